"""Devices of different leases that have come to be such as cannot be owned apart: a group was drawn anew, a function
turned out to be another's. What the host does to its devices cannot be refused, so nothing is taken away: it is told.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import (
    DeviceChanged,
    DeviceReappeared,
    DeviceReplaced,
    Event,
    SharedPair,
    SharingFound,
)
from leasehold.events.identities import DeviceId, HostName, device_id
from leasehold.events.refusals import Blocker
from leasehold.projections import conflicts
from leasehold.projections.state import State
from leasehold.projections.tables import Journal, Table

K = TypeVar("K")
V = TypeVar("V")

_PAIRS_COUNTED_MAX: Final = 4_096
"""Who opens a bridge with thousands of leased devices behind it is not to stop the log."""


def shared(state: State, device: DeviceId, around: conflicts.Around | None = None) -> Iterator[Blocker]:
    """For each device that another lease holds, though it cannot be owned apart from this leased one, what says so.

    `around`: of several that are looked at on one state.
    """
    lease = state.leases.get(state.devices[device].lease)
    if lease is None:
        return
    owner = (lease.principal, lease.holder)
    together = frozenset(lease.devices)
    for found in conflicts.blockers(state, device, owner=owner, together=together, force=True, around=around):
        if found.lease and found.because_of:
            yield found


def arisen(state: State, host: HostName, events: Iterable[Event]) -> SharingFound | None:
    """What will be shared behind `events`, which follow from one report of `host`, and is not on `state`."""
    moved: dict[DeviceId, DeviceDescription] = {}
    for event in events:
        if isinstance(event, DeviceChanged | DeviceReplaced | DeviceReappeared):
            device = device_id(host, event.device.key)
            if _ties(event.device) != _ties(state.devices[device].description):
                moved[device] = event.device
    if not moved:
        return None
    later = _moved(state, host, moved)
    touched = _carried_by(later, moved)
    around_now, around_later = conflicts.Around(state), conflicts.Around(later)
    before = {_both(found) for device in touched for found in shared(state, device, around_now)}
    pairs: dict[frozenset[str], SharedPair] = {}
    for found in chain.from_iterable(shared(later, device, around_later) for device in touched):
        both = _both(found)
        if both not in before and both not in pairs:
            mine, other = DeviceId(found.device), DeviceId(found.because_of)
            pairs[both] = SharedPair(mine, state.devices[mine].lease, other, found.lease, found.rule)
            if len(pairs) == _PAIRS_COUNTED_MAX:
                break
    told = tuple(pairs.values())[: limits.SHARED_PAIRS_TOLD_MAX]
    return SharingFound(host, told, len(pairs)) if pairs else None


def _both(found: Blocker) -> frozenset[str]:
    return frozenset((found.device, found.because_of))


def _ties(description: DeviceDescription) -> tuple[object, ...]:
    """All of a description that ties its device to others."""
    tied: tuple[object, ...] = (description.iommu_group, description.physical_function, description.parent)
    match description.capability:
        case Pci(resets=resets, isolation=isolation):
            return (*tied, resets, isolation, description.bridge, description.pci_class)
        case UsbDevice(peer=peer):
            return (*tied, peer)
    return tied


def _carried_by(state: State, devices: Iterable[DeviceId]) -> list[DeviceId]:
    """These devices and what they carry, in the order of their ids."""
    found = set(devices)
    for device in devices:
        found.update(conflicts.descendants(state, device))
        found.update(conflicts.virtual_functions_of(state, device))
    return sorted(found)


def _moved(state: State, host: HostName, moved: dict[DeviceId, DeviceDescription]) -> State:
    """The devices as they will be, and what ties them; for looking at only."""
    later = State()
    later.hosts, later.leases, later.devices = state.hosts, state.leases, _Over(state.devices)
    for name in later.indexes.DESCRIBED:
        setattr(later.indexes, name, _Over(getattr(state.indexes, name)))
    for device, description in moved.items():
        row = state.devices[device]
        later.devices.put(device, msgspec.structs.replace(row, description=description))
        later.indexes.describe(device, host, row.description, description)
    return later


class _Over(Table[K, V]):
    """A table that lies over another: what is put goes no deeper. An index without members is as good as none."""

    __slots__ = ("_below",)

    def __init__(self, below: Table[K, V]) -> None:
        super().__init__(Journal())
        self._below = below

    def __missing__(self, key: K) -> V:
        return self._below[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._below

    def get(self, key: K, default: Any = None) -> Any:
        """As of a dictionary."""
        try:
            return self[key]
        except KeyError:
            return default

    def drop(self, key: K) -> None:
        """Only indexes are dropped from."""
        nothing: Any = ()
        self.put(key, nothing)
