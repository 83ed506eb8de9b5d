"""Finding a device by what people call it: key, `host/key`, node-device name, PCI address or sysfs path."""

from typing import Final

import msgspec

from leasehold.events import identities, limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceId
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections.state import State

_BUSES: Final = ("pci", "usb", "virtual", "platform")
"""How keys begin; a host of that name can only be given apart from the key."""


class Resolved(msgspec.Struct, frozen=True):
    """The device that `text` names; none if nothing is called so, or several are (`candidates`)."""

    text: str
    device: DeviceId | None = None
    candidates: tuple[DeviceId, ...] = ()


def resolve(state: State, text: str, host: str = "") -> Resolved:
    """Find the one device that `text` names, on `host` if one is given."""
    present = all_named(state, text, host)
    if len(present) == 1:
        return Resolved(text, present[0])
    return Resolved(text, None, tuple(sorted(present)[: limits.CANDIDATES_PER_REFUSAL_MAX]))


def unresolved(failed: Resolved) -> Refusal:
    """The refusal of a request about a device that nothing, or more than one thing, is called like."""
    if failed.candidates:
        return Refusal(
            code=RefusalCode.DEVICE_AMBIGUOUS,
            message=f"{failed.text} could be {', '.join(failed.candidates)}",
            help="name one of these, or the host",
        )
    return Refusal(
        code=RefusalCode.DEVICE_UNKNOWN,
        message=f"no device {failed.text} is known",
        help="list the devices; a name, key, PCI address or sysfs path of a device is taken",
    )


def all_named(state: State, text: str, host: str = "") -> list[DeviceId]:
    """All devices that `text` names, on `host` if one is given: node-device names and keys are each host's own."""
    known = DeviceId(text)
    if known in state.devices and (not host or state.devices[known].host == host):
        return [known]
    named_host, _, rest = text.partition("/")
    if rest and named_host in state.hosts and named_host not in _BUSES:
        if host and host != named_host:
            return []
        host, name = named_host, spelling(rest)
    else:
        name = spelling(text)
    found = [device for device in state.indexes.lookup.get(name, ()) if not host or state.devices[device].host == host]
    # A name may still be that of a thing that went away; what is there comes first.
    return [device for device in found if not state.devices[device].missing] or found


def spelling(text: str) -> str:
    """What to look up: a key or PCI address in its one spelling, else the text as given."""
    text = text.rstrip("/") or text
    if text.startswith("/sys/bus/pci/devices/"):
        text = text.rsplit("/", 1)[1]
    try:
        return identities.pci_key(identities.parse_pci_address(text))
    except InvalidInputError:
        pass
    try:
        return identities.parse_device_key(text)
    except InvalidInputError:
        return text
