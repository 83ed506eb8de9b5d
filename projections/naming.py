"""Finding a device by what people call it: key, `host/key`, node-device name, PCI address or sysfs path."""

import msgspec

from leasehold.events import identities, limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceId
from leasehold.projections.state import State


class Resolved(msgspec.Struct, frozen=True):
    """The device that `text` names; none if nothing is called so, or several are (`candidates`)."""

    text: str
    device: DeviceId | None = None
    candidates: tuple[DeviceId, ...] = ()


def resolve(state: State, text: str, host: str = "") -> Resolved:
    """Find the one device that `text` names, on `host` if one is given."""
    if text in state.devices and (not host or text.startswith(f"{host}/")):
        return Resolved(text, DeviceId(text))
    found: dict[DeviceId, None] = {}
    for name in _spellings(text):
        for device in state.indexes.lookup.get(name, ()):
            if not host or state.devices[device].host == host:
                found[device] = None
    # A name may still be that of a thing that went away; what is there comes first.
    present = [device for device in found if not state.devices[device].missing] or list(found)
    if len(present) == 1:
        return Resolved(text, present[0])
    return Resolved(text, None, tuple(sorted(present)[: limits.CANDIDATES_PER_REFUSAL_MAX]))


def _spellings(text: str) -> tuple[str, ...]:
    """The texts to look up: as given, a sysfs path without its end, a key or PCI address in its one spelling."""
    stripped = text.rstrip("/") or text
    if stripped.startswith("/sys/bus/pci/devices/"):
        stripped = stripped.rsplit("/", 1)[1]
    try:
        return (identities.pci_key(identities.parse_pci_address(stripped)),)
    except InvalidInputError:
        pass
    try:
        return (identities.parse_device_key(stripped),)
    except InvalidInputError:
        return (stripped,)
