"""What xend says of domains, read into descriptions and uses. Not used is `image/pci`: it is what was there at boot."""

from collections.abc import Iterator
from typing import Final

from leasehold.events import identities
from leasehold.events.domains import DomainDescription, SeenDomain
from leasehold.events.errors import InvalidInputError
from leasehold.services.poller.source import XEN, uses_of
from leasehold.services.xend.sxp import Sxp

_STATUS: Final = ("halted", "paused", "running", "suspended", "shutting_down", "crashed", "unknown")
"""By number, since 3.0.4."""
_LETTERS: Final = (("c", "crashed"), ("s", "shutting_down"), ("d", "dying"), ("p", "paused"))
"""In libvirt's order; with none of these a domain runs, on a CPU or not."""
_KINDS: Final = {"linux": "pv"}
_MIB: Final = 1024 * 1024


def read_domain(expression: Sxp) -> SeenDomain | None:
    """A domain from `(domain (domid 1) …)`; `None` if it does not say which one it is."""
    fields = _fields(expression)
    domid = _number(fields, "domid", -1)
    try:
        key = identities.domain_key(XEN, _text(fields, "uuid"))
    except InvalidInputError:
        return None
    kind, image = _image(fields.get("image", []))
    description = DomainDescription(
        key=key,
        name=_text(fields, "name"),
        domid=domid,
        state=_state(fields, has_incarnation=domid >= 0),
        memory_bytes=_number(fields, "memory") * _MIB,
        max_memory_bytes=_number(fields, "maxmem") * _MIB,
        vcpus=_number(fields, "vcpus"),
        kind=kind,
    )
    words = [word for device in fields.get("device", []) for word in _device_words(device)]
    words += [word for spelt in image for word in _qemu_words(spelt)]
    # Whatever a running domain has its configuration has, too.
    return SeenDomain(description, uses_of(words, words if domid >= 0 else ()))


def _state(fields: dict[str, list[Sxp]], *, has_incarnation: bool) -> str:
    """By its status where there is one, which is right when letters are mixed; `d` goes before all."""
    letters, status = _text(fields, "state"), _number(fields, "status", -1)
    if "d" in letters:
        return "dying"
    if 0 <= status < len(_STATUS):
        state = _STATUS[status]
        # What has a number still has its devices: it is on its way.
        return "shutting_down" if has_incarnation and state in ("halted", "suspended") else state
    if not has_incarnation:
        return "halted"
    return next((state for letter, state in _LETTERS if letter in letters), "running")


def _image(values: list[Sxp]) -> tuple[str, list[str]]:
    """How a domain is virtualised, and what QEMU was told of USB devices."""
    if not values or not isinstance(values[0], list) or not values[0]:
        return "", []
    kind = _leaf(values[0][0])
    spelt = [_leaf(value) for value in _fields(values[0]).get("usbdevice", [])]
    return _KINDS.get(kind, kind), [text for text in spelt if text]


def _device_words(device: Sxp) -> Iterator[str]:
    """`(pci (dev (domain 0x0000) (bus 0x03) …) …)`, or `(vusb (port-1 1-1) …)`, or `(vusb … (port (1 1-1) …))`."""
    if not isinstance(device, list) or not device:
        return
    fields = _fields(device)
    match _leaf(device[0]):
        case "pci":
            for function in _all(device, "dev"):
                if (word := _pci_word(_fields(function))) is not None:
                    yield word
        case "vusb":
            for name, values in fields.items():
                ports = values if name.startswith("port-") else []
                if name == "port":
                    ports = [
                        pair[1]
                        for each in _all(device, "port")
                        for pair in each[1:]
                        if isinstance(pair, list) and len(pair) == 2
                    ]
                yield from (f"usb-port/{port}" for port in map(_leaf, ports) if port)


def _pci_word(fields: dict[str, list[Sxp]]) -> str | None:
    """Its numbers are hexadecimal, in whatever width they were sent, with 0x or without."""
    try:
        domain, bus, slot, function = (int(_text(fields, name), 16) for name in ("domain", "bus", "slot", "func"))
    except ValueError:
        return None
    return f"pci/{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _qemu_words(spelt: str) -> Iterator[str]:
    """`host:0529:0001` or `host:1.3`; `tablet` and the like are no devices of the host."""
    how, _, rest = spelt.partition(":")
    if how != "host":
        return
    vendor, colon, product = rest.partition(":")
    if colon:
        yield f"usb-id/{vendor:0>4}:{product:0>4}"
    else:
        yield f"usb-address/{rest}"


def free_pci_words(answer: Sxp) -> frozenset[str]:
    """From `xend.node.pciinfo`: functions that may be given to domains, and that no domain has."""
    devices = answer if isinstance(answer, list) else []
    return frozenset(word for device in devices if (word := _pci_word(_fields(device))) is not None)


def name_of(expression: Sxp) -> str:
    """What a domain is called."""
    return _text(_fields(expression), "name")


def names(answer: Sxp) -> list[str]:
    """A list of names."""
    return [_leaf(each) for each in answer] if isinstance(answer, list) else []


# --- lists ----------------------------------------------------------------------------------------------------------


def _all(expression: list[Sxp], name: str) -> Iterator[list[Sxp]]:
    """The parts `(name …)` of an expression."""
    return (part for part in expression[1:] if isinstance(part, list) and part and _leaf(part[0]) == name)


def _fields(expression: Sxp) -> dict[str, list[Sxp]]:
    """What follows the name in each part `(name value …)`, by name; parts that repeat are one list."""
    found: dict[str, list[Sxp]] = {}
    for part in expression[1:] if isinstance(expression, list) else ():
        if isinstance(part, list) and part:
            found.setdefault(_leaf(part[0]), []).extend(part[1:])
    return found


def _leaf(value: Sxp) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _text(fields: dict[str, list[Sxp]], name: str) -> str:
    values = fields.get(name)
    return _leaf(values[0]) if values else ""


def _number(fields: dict[str, list[Sxp]], name: str, default: int = 0) -> int:
    try:
        return int(float(_text(fields, name)))
    except (ValueError, OverflowError):
        return default
