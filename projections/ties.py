"""What ties devices to each other: what is above and below, and what they share where no IOMMU group says so.

| tie | between whom | from what |
|---|---|---|
| `iommu_group` | the members of a group | the kernel's own answer; it alone counts where there is one |
| `acs` | who reaches each other past the IOMMU: behind one open bridge | `isolation` of the bridges above |
| `slot` | functions of one slot, one of which is reset only with the others | `resets` |
| `usb_ports` | USB controllers of one slot: EHCI and its companions have the same sockets | the class |
| `usb_ports` | the two halves of one USB 3 hub or socket | `peer` |

Agents from before these facts were told did not tell `resets`: nothing of theirs is tied by `acs`, `slot` or ports, so
what was decided on their words is decided so again. The climb over bridges is that of Linux' `pci_device_group`
(`drivers/iommu/iommu.c`). Descriptions may say anything, be it in circles: each walk sees each device once, and who is
tied to another finds it tied to himself.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.projections.indexes import COMPANIONS, is_open, slot_of, tells_resets
from leasehold.projections.rows import DeviceState
from leasehold.projections.state import State
from leasehold.projections.tables import Table

Tie = tuple[str, HostName, int | str]
"""The rule, the host, and which group, bridge or slot of it."""

_OWN_RESETS: Final = frozenset({"flr", "af_flr", "pm", "device_specific", "acpi"})
"""Those that reset one function and nothing else, in the kernel's words (`reset_method`)."""


def lineage(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The devices above, nearest first, each once; the last may be one that is not known."""
    seen = {device}
    while (row := state.devices.get(device)) is not None and row.description.parent:
        device = device_id(row.host, DeviceKey(row.description.parent))
        if device in seen:
            return
        seen.add(device)
        yield device


def below(
    state: State, device: DeviceId, through: Table[DeviceId, tuple[DeviceId, ...]], *, but_kind: str = ""
) -> Iterator[DeviceId]:
    """The known devices that `through` leads down to, breadth first, each once; none of, and behind, `but_kind`."""
    if device not in through:
        return
    waiting, seen = deque([device]), {device}
    while waiting:
        for child in through.get(waiting.popleft(), ()):
            if child not in seen and not (but_kind and state.devices[child].description.kind == but_kind):
                seen.add(child)
                waiting.append(child)
                yield child


def carries_others(row: DeviceState) -> bool:
    """Whether it is a PCI bridge or a USB root hub."""
    description = row.description
    is_root_hub = description.kind == "usb_device" and description.key.endswith("-0")
    return description.bridge or is_root_hub


# --- what devices share -------------------------------------------------------------------------------------------


def ties_of(state: State, device: DeviceId) -> Iterator[Tie]:
    """What ties a known device to all its mates in it; a group of one ties nothing."""
    row = state.devices[device]
    description = row.description
    group = description.iommu_group
    if group >= 0:
        if len(state.indexes.groups[row.host, group]) > 1:
            yield "iommu_group", row.host, group
        if description.pci_class not in COMPANIONS:
            return
    if not tells_resets(description):
        return
    if group < 0:
        bridge = open_bridge(state, device)
        if bridge:
            yield "acs", row.host, bridge
        if not description.physical_function:
            yield "slot", row.host, slot_of(description)
    if description.pci_class in COMPANIONS:
        yield "usb_ports", row.host, slot_of(description)


def open_bridge(state: State, device: DeviceId) -> str:
    """The highest bridge above a function behind which devices reach each other; empty: none is known to be so.

    Below the highest one there may be others that keep devices apart: what leaves them upwards is let through again
    before it comes to the IOMMU.
    """
    found = ""
    for above in lineage(state, device):
        row = state.devices.get(above)
        if row is not None and tells_resets(row.description) and is_open(row.description):
            found = above
    return found


def _beside(state: State, bridge: DeviceId) -> Iterator[DeviceId]:
    """A bridge, and those of its slot that let through what comes from it."""
    row = state.devices[bridge]
    for other in state.indexes.slots.get((row.host, slot_of(row.description)), ()):
        description = state.devices[other].description
        if description.parent == row.description.parent and is_open(description):
            yield other


def mates_of(state: State, device: DeviceId, tie: Tie) -> Iterator[DeviceId]:
    """The other functions that share a slot, a bridge or ports with a known one; bridges are nobody's."""
    rule, host, which = tie
    row = state.devices[device]
    if rule == "acs":
        for bridge in _beside(state, DeviceId(str(which))):
            for mate in below(state, bridge, state.indexes.children):
                if mate != device and _shares_bridge(state.devices[mate].description):
                    yield mate
        return
    for mate in state.indexes.slots.get((host, str(which)), ()):
        other = state.devices[mate]
        if mate == device or carries_others(other):
            continue
        if rule == "usb_ports":
            is_mate = other.description.pci_class in COMPANIONS
        else:
            is_mate = _shares_slot(other.description) and not (
                resets_alone(row.description) and resets_alone(other.description)
            )
        if is_mate:
            yield mate


def _shares_bridge(description: DeviceDescription) -> bool:
    return description.iommu_group < 0 and not description.bridge and tells_resets(description)


def _shares_slot(description: DeviceDescription) -> bool:
    return description.iommu_group < 0 and not description.physical_function


def resets_alone(description: DeviceDescription) -> bool:
    """Whether a function can be reset without its neighbours."""
    resets = description.capability.resets if isinstance(description.capability, Pci) else None
    return resets is not None and not _OWN_RESETS.isdisjoint(resets)


# --- the halves of USB 3 ------------------------------------------------------------------------------------------


def peers_of(state: State, device: DeviceId) -> tuple[DeviceId, ...]:
    """The known devices at the other half of the socket of a USB device, whichever of both says so."""
    row = state.devices[device]
    told = state.indexes.peers.get(device, ())
    capability = row.description.capability
    if isinstance(capability, UsbDevice) and capability.peer:
        named = device_id(row.host, DeviceKey(capability.peer))
        if named in state.devices and named not in told:
            told = tuple(sorted((*told, named)))
    return tuple(peer for peer in told if peer != device)


# --- functions behind a function ----------------------------------------------------------------------------------


def functions_above(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The functions that carry a function though they are no bridges: a storage controller with a domain of its own."""
    description = state.devices[device].description
    if not description.parent or not tells_resets(description):
        return
    for above in lineage(state, device):
        row = state.devices.get(above)
        if row is not None and row.description.kind == "pci" and not row.description.bridge:
            yield above


def functions_below(state: State, device: DeviceId) -> Iterator[DeviceId]:
    """The functions that such a function carries."""
    description = state.devices[device].description
    if description.kind == "pci" and not description.bridge:
        for each in below(state, device, state.indexes.children):
            if tells_resets(state.devices[each].description):
                yield each
