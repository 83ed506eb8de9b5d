"""Devices as node devices: their capability types and buses in libvirt's words, and which of them a question asks for.

Sources: the words are those of libvirt 9.0's `virNodeDevCapType` (`virsh nodedev-list --cap`) and of its
`nodedev.rng`, and `bridge`, `vlan`, `bond` and `other`, which it does not have.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from leasehold.events.capabilities import Ccw, MdevParent, Net, Pci, ScsiHost, ScsiTarget, Storage, Vlan
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER, DeviceId, DeviceKey, device_id
from leasehold.events.questions import DevicesAt, ListDevices
from leasehold.projections.naming import all_named
from leasehold.projections.rows import DeviceState
from leasehold.projections.state import State

UNBOUND: Final = "none"
"""As a driver: none is bound."""
_TYPE_OF_KIND: Final = {"block": "storage", "usb_interface": "usb"}
"""All other kinds are called as libvirt calls their capability."""
_BUS_OF_KIND: Final = {
    "pci": "pci",
    "usb_device": "usb",
    "usb_interface": "usb",
    "scsi_host": "scsi",
    "scsi_target": "scsi",
    "scsi": "scsi",
    "mdev": "mdev",
    "ccw": "ccw",
    "css": "css",
    "ap_card": "ap",
    "ap_queue": "ap",
    "ap_matrix": "ap",
    "vdpa": "vdpa",
}
BUSES: Final = tuple(dict.fromkeys(_BUS_OF_KIND.values()))
_OWN_TYPES: Final = (
    "system", "pci", "usb_device", "usb", "net", "scsi_host", "scsi_target", "scsi", "storage", "scsi_generic", "drm",
    "mdev", "mdev_types", "ccw", "css", "ap_card", "ap_queue", "ap_matrix", "vdpa", "other",
)  # fmt: skip
_NESTED_TYPES: Final = (
    "phys_function", "virt_functions", "pci-bridge", "cardbus-bridge", "vpd", "80203", "80211", "bridge", "vlan",
    "bond", "fc_host", "vports", "fc_remote_port", "removable", "hotpluggable",
)  # fmt: skip
CAPABILITY_TYPES: Final = (*_OWN_TYPES, *_NESTED_TYPES)
"""What a device's own capability may be, then what may be nested in it (`mdev_types`, too)."""
_ALIASES: Final = {"vport_ops": "vports", "block": "storage", "usb_interface": "usb"}
"""Other words for a type: the one in libvirt's XML, and our kinds."""


def capability_type(word: str) -> str:
    """The type that `word` names; empty if it is none."""
    word = _ALIASES.get(word, word)
    return word if word in CAPABILITY_TYPES else ""


def capability_types(description: DeviceDescription) -> tuple[str, ...]:
    """The type of a device's own capability, then those nested in it."""
    types = [_TYPE_OF_KIND.get(description.kind, description.kind)]
    if description.kind == "pci" and description.physical_function:
        types.append("phys_function")
    nested = _NESTED.get(type(description.capability))
    if nested is not None:
        types += [each for each in nested(description.capability) if each and each not in types]
    return tuple(types)


def bus_of(description: DeviceDescription) -> str:
    """What the device sits on; empty: on none, like a network interface, which is a function of what does."""
    return _BUS_OF_KIND.get(description.kind, "")


def _pci_types(pci: Pci) -> tuple[str, ...]:
    return (
        "virt_functions" if pci.virtual_functions_max > 0 else "",
        pci.bridge_type,
        "mdev_types" if pci.mdev_types else "",
        "vpd" if pci.vpd else "",
    )


_NESTED: Final[dict[type, Callable[[Any], tuple[str, ...]]]] = {
    Pci: _pci_types,
    Net: lambda net: (net.medium, str(net.kind.__struct_config__.tag) if net.kind else ""),
    ScsiHost: lambda host: ("fc_host" if host.fc_host else "", "vports" if host.vport_ops else ""),
    ScsiTarget: lambda target: ("fc_remote_port" if target.remote_port else "",),
    Storage: lambda disk: ("removable" if disk.removable else "", "hotpluggable" if disk.hotpluggable else ""),
    MdevParent: lambda parent: ("mdev_types" if parent.mdev_types else "",),
    Ccw: lambda channel: ("mdev_types" if channel.mdev_types else "",),
}
"""What is nested in a capability of each class; empty texts for what is not."""


# --- what follows from other devices --------------------------------------------------------------------------------


def parent_of(row: DeviceState) -> DeviceId | None:
    """What the device is right below; `None` for the computer itself."""
    description = row.description
    if description.key == COMPUTER:
        return None
    return device_id(row.host, DeviceKey(description.parent or COMPUTER))


def parent_name(state: State, row: DeviceState) -> str:
    """The parent's node-device name: `computer` where it has none that is known, none for the computer itself."""
    parent = parent_of(row)
    if parent is None:
        return ""
    above = state.devices.get(parent)
    return above.description.name if above else COMPUTER


def virtual_functions(state: State, device: DeviceId) -> tuple[DeviceKey, ...]:
    """The keys of a physical function's virtual ones that are there, in the order of their addresses."""
    parts = _present(state, state.indexes.virtual_functions.get(device, ()))
    return tuple(row.description.key for row in parts if row.description.kind == "pci")


def group_members(state: State, row: DeviceState) -> tuple[DeviceKey, ...]:
    """The keys of all devices that are there in the IOMMU group, the device itself, too."""
    group = row.description.iommu_group
    mates = state.indexes.groups.get((row.host, group), ()) if group >= 0 else ()
    return tuple(mate.description.key for mate in _present(state, mates))


def members(state: State, device: DeviceId) -> tuple[str, ...]:
    """The interfaces that are in a bridge or a bond, by name, sorted."""
    return tuple(sorted(map(_interface, _present(state, state.indexes.members.get(device, ())))))


def master(state: State, row: DeviceState) -> str:
    """The bridge or bond that an interface is in, by name."""
    net = row.description.capability
    return _interface_called(state, row, net.master) if isinstance(net, Net) else ""


def lower(state: State, row: DeviceState) -> str:
    """The interface that a VLAN is on, by name."""
    net = row.description.capability
    return _interface_called(state, row, net.kind.lower) if isinstance(net, Net) and isinstance(net.kind, Vlan) else ""


def _interface_called(state: State, row: DeviceState, key_or_name: str) -> str:
    other = state.devices.get(device_id(row.host, DeviceKey(key_or_name)))
    return _interface(other) if other else key_or_name


def _interface(row: DeviceState) -> str:
    net = row.description.capability
    return net.interface if isinstance(net, Net) and net.interface else row.description.name


def _present(state: State, devices: Iterable[DeviceId]) -> Iterator[DeviceState]:
    return (row for row in map(state.devices.__getitem__, devices) if not row.missing)


# --- which are asked for --------------------------------------------------------------------------------------------


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices are asked for, of all that is said; what is empty says nothing."""

    present: bool = False
    """Whether only those that are there are asked for; so it is if anything else is said."""
    caps: tuple[str, ...] = ()
    """Capability types: one of these."""
    bus: str = ""
    driver: str = ""
    """`none`: what sits on a bus and has no driver."""
    parents: frozenset[DeviceId] | None = None
    """Right below one of these."""

    @property
    def is_all(self) -> bool:
        """Whether nothing is said."""
        return not (self.present or self.caps or self.bus or self.driver) and self.parents is None


def wanted_by(state: State, question: ListDevices | DevicesAt) -> Wanted:
    """What a question about devices says; with `parents` empty if its parent is no device that is known."""
    parents = parents_named(state, question.parent, question.host) if question.parent else None
    return Wanted(
        present=question.present or question.count_only,
        caps=tuple(map(capability_type, question.cap.split(","))) if question.cap else (),
        bus=question.bus,
        driver=question.driver,
        parents=parents,
    )


def parents_named(state: State, text: str, host: str = "") -> frozenset[DeviceId]:
    """The devices that `text` names, of each host or of `host`: of one name there may be one on each.

    `computer` need not be known: it is what all that has no parent is below.
    """
    if text == COMPUTER:
        return frozenset(device_id(each, COMPUTER) for each in state.hosts if not host or each == host)
    return frozenset(all_named(state, text, host))


def is_wanted(wanted: Wanted, row: DeviceState) -> bool:
    """Whether the device is there and all holds that is said."""
    description = row.description
    if row.missing:
        return False
    if wanted.bus and bus_of(description) != wanted.bus:
        return False
    if wanted.driver and not _has_driver(description, wanted.driver):
        return False
    if wanted.parents is not None and parent_of(row) not in wanted.parents:
        return False
    return not wanted.caps or not set(wanted.caps).isdisjoint(capability_types(description))


def _has_driver(description: DeviceDescription, driver: str) -> bool:
    if driver == UNBOUND:
        return not description.driver and bool(bus_of(description))
    return description.driver == driver
