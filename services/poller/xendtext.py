"""What xend says of domains, as descriptions and uses. Not used is `image/pci`: it is what was there at boot."""

from collections.abc import Iterator

from leasehold.events import identities
from leasehold.events.domains import DomainDescription, SeenDomain
from leasehold.events.errors import InvalidInputError, XendReplyError
from leasehold.services.poller.source import XEN, uses_of
from leasehold.services.xend import devices, model, sxp
from leasehold.services.xend.model import Domain
from leasehold.services.xend.sxp import Sxp


def read_domain(expression: Sxp) -> SeenDomain | None:
    """A domain from `(domain (domid 1) …)`; `None` if it does not say which one it is."""
    try:
        domain = model.domain_of(expression, now_s=0)
        key = identities.domain_key(XEN, domain.uuid)
    except InvalidInputError:
        return None
    runs = domain.domid >= 0
    description = DomainDescription(
        key=key,
        name=domain.name,
        domid=domain.domid,
        # One that is being suspended still has its devices.
        state="shutting_down" if runs and domain.state == "suspended" else domain.state,
        memory_bytes=domain.memory_bytes,
        max_memory_bytes=domain.max_memory_bytes,
        vcpus=domain.vcpus,
        kind=domain.kind,
    )
    words = list(_words(domain))
    # Whatever a running domain has its configuration has, too.
    return SeenDomain(description, uses_of(words, words if runs else ()))


def _words(domain: Domain) -> Iterator[str]:
    yield from (f"pci/{function.address}" for function in domain.pci)
    for controller in domain.usb:
        yield from (f"usb-port/{port}" for port in controller.ports.values() if port)
    yield from filter(None, map(_usb_word, domain.usb_host))


def _usb_word(told: str) -> str:
    """Of `host:529:1` or `host:001.003` (as lsusb writes it); empty: `tablet`, `host:1.*` and the like."""
    how, _, rest = told.partition(":")
    if how != "host":
        return ""
    try:
        if ":" in rest:
            return "usb-id/{:04x}:{:04x}".format(*(int(each, 16) for each in rest.split(":")[:2]))
        bus, address = map(int, rest.split("."))
    except ValueError:
        return ""
    return f"usb-address/{bus}.{address}"


def free_pci_words(answer: Sxp) -> frozenset[str]:
    """From `xend.node.pciinfo`: functions that may be given to domains, and that no domain has."""
    found = map(devices.pci_function_of, listed(answer))
    return frozenset(f"pci/{function.address}" for function in found if function is not None)


def name_of(expression: Sxp) -> str:
    """What a domain is called."""
    return devices.field(expression, "name")


def names(answer: Sxp) -> list[str]:
    """A list of names.

    Raises:
        XendReplyError: it is none.
    """
    return [sxp.text(each) for each in listed(answer)]


def all_names(answer: Sxp) -> list[str]:
    """The names of all domains. There is always Domain-0: a list without any is not what there is.

    Raises:
        XendReplyError: it is none.
    """
    found = names(answer)
    if not found:
        raise XendReplyError("not even Domain-0 is listed", op="poll")
    return found


def listed(answer: Sxp) -> list[Sxp]:
    """An answer that is a list; anything else is not "none".

    Raises:
        XendReplyError: it is none.
    """
    if not isinstance(answer, list):
        raise XendReplyError(f"not a list: {answer[:80]!r}", op="poll")
    return answer
