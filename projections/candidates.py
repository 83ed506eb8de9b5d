"""Which devices could be given to somebody, so that a search looks at these alone, however many others there are.

Devices of one host and one model stand in one cell. A cell is found by what is common to its devices, their buckets
(`buckets`); a lease of one of them touches the list of its cell, and others only when that becomes empty, or is empty
no more. What follows is a function of the rows, and never stored.

| list | what it has |
|---|---|
| `known` | all that is not a bridge, a root hub, or a child that stands for its parent |
| `free` | of these, what by its own row could be leased alone: no lease, no user, not missing, cordoned, protected, … |
| `shareable` | of these, what by its own row one more could share |

What is not in `free` is refused by a rule of `conflicts` to whoever wants it alone, unless forced. What is in it need
not be had: hosts, ties, taints and those who wait are not looked at here.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Final

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, HostName, is_physical, physical_key, split_device_id
from leasehold.projections.rows import DeviceState
from leasehold.projections.tables import Journal, SortedLists, Table

Cell = tuple[HostName, str, str, str, int]
"""Host, kind, vendor, product and PCI class (24 bits, as in a description)."""
_Lists = dict[Cell, list[DeviceId]]
_ANY: Final = "any"
_DEVICE: Final = "device:"
_HOST: Final = itemgetter(0)


class Listing:
    """Devices by cell, and cells, as far as they have any, by bucket; each sorted."""

    __slots__ = ("buckets", "cells")

    def __init__(self, journal: Journal) -> None:
        self.cells: SortedLists[Cell, DeviceId] = SortedLists(journal)
        self.buckets: SortedLists[str, Cell] = SortedLists(journal)

    def add(self, cell: Cell, device: DeviceId) -> None:
        """It is in from here on."""
        if cell not in self.cells:
            for bucket in buckets_of(cell):
                self.buckets.add(bucket, cell)
        self.cells.add(cell, device)

    def remove(self, cell: Cell, device: DeviceId) -> None:
        """It is out from here on."""
        self.cells.remove(cell, device)
        if cell not in self.cells:
            for bucket in buckets_of(cell):
                self.buckets.remove(bucket, cell)

    def has(self, cell: Cell, device: DeviceId) -> bool:
        """Whether it is in."""
        members = self.cells.get(cell, ())
        at = bisect_left(members, device)
        return at < len(members) and members[at] == device

    def fill(self, cells: dict[Cell, list[DeviceId]]) -> None:
        """All these are in; nothing was."""
        found: dict[str, list[Cell]] = {}
        for cell in sorted(cells):
            self.cells[cell] = sorted(cells[cell])
            for bucket in buckets_of(cell):
                found.setdefault(bucket, []).append(cell)
        self.buckets.update(found)


class Candidates:
    """The three lists of a state."""

    __slots__ = ("_cells", "free", "known", "shareable")

    def __init__(self, journal: Journal) -> None:
        self._cells: Table[DeviceId, Cell] = Table(journal)
        self.known = Listing(journal)
        self.free = Listing(journal)
        self.shareable = Listing(journal)

    def cell_of(self, device: DeviceId) -> Cell | None:
        """The cell of a device; `None`: it is not known, or nothing that can be leased."""
        return self._cells.get(device)

    def follow(self, device: DeviceId, before: DeviceState | None, row: DeviceState) -> None:
        """A device's row is another than before."""
        if before is not None and before.description is row.description:
            if not before.lease or not row.lease:
                self.follow_lease(device, row)
            if before.marks is not None or row.marks is not None:
                self._follow_sharing(device, before, row)
            return
        was_in = self._cells.get(device)
        cell = cell_of_row(row) if is_leasable(row.description) else None
        if cell is None and was_in is None:
            return
        was_free = was_in is not None and before is not None and is_free(before)
        was_shareable = was_in is not None and before is not None and _is_shareable(before)
        _move(self.free, device, was_in if was_free else None, cell if is_free(row) else None)
        _move(self.shareable, device, was_in if was_shareable else None, cell if _is_shareable(row) else None)
        _move(self.known, device, was_in, cell)
        if cell is None:
            self._cells.drop(device)
        elif cell != was_in:
            self._cells.put(device, cell)

    def follow_lease(self, device: DeviceId, row: DeviceState) -> None:
        """Whether it is free, where the description is the same as before. Each lease and release comes by here."""
        cell = self._cells.get(device)
        if cell is None:
            return
        members = self.free.cells.get(cell, ())  # as `has`, without the call
        at = bisect_left(members, device)
        was_free = at < len(members) and members[at] == device
        if row.lease:
            if was_free:
                self.free.remove(cell, device)
        elif is_free(row) is not was_free:
            (self.free.remove if was_free else self.free.add)(cell, device)

    def _follow_sharing(self, device: DeviceId, before: DeviceState, row: DeviceState) -> None:
        cell, is_now = self._cells.get(device), _is_shareable(row)
        if cell is not None and _is_shareable(before) is not is_now:
            (self.shareable.add if is_now else self.shareable.remove)(cell, device)

    def fill(self, devices: Iterable[tuple[DeviceId, DeviceState]]) -> None:
        """What `follow` would make of all these; nothing is in yet."""
        lists: tuple[_Lists, _Lists, _Lists] = ({}, {}, {})
        alike: dict[Cell, Cell] = {}
        for device, row in devices:
            if not is_leasable(row.description):
                continue
            cell = cell_of_row(row)
            cell = self._cells[device] = alike.setdefault(cell, cell)
            for those, is_in in zip(lists, (True, is_free(row), _is_shareable(row)), strict=True):
                if is_in:
                    those.setdefault(cell, []).append(device)
        for listing, those in zip((self.known, self.free, self.shareable), lists, strict=True):
            listing.fill(those)


def _move(listing: Listing, device: DeviceId, was: Cell | None, now: Cell | None) -> None:
    if was == now:
        return
    if was is not None:
        listing.remove(was, device)
    if now is not None:
        listing.add(now, device)


def is_leasable(description: DeviceDescription) -> bool:
    """As `conflicts.is_unleasable` has it, and it stands for itself."""
    key = description.key
    if description.bridge or not is_physical(key) or (description.kind == "usb_device" and key.endswith("-0")):
        return False
    return physical_key(key) == key


def cell_of_row(row: DeviceState) -> Cell:
    """In which cell such a device is."""
    it = row.description
    return row.host, it.kind, it.vendor_id, it.product_id, it.pci_class


def is_free(row: DeviceState) -> bool:
    """Whether nothing in its own row keeps a device from being leased alone."""
    if row.lease:
        return False
    if row.missing or row.quarantine is not None or row.sharers:
        return False
    description = row.description
    if description.in_use_by or description.protections:
        return False
    return row.marks is None or row.marks.cordon is None


def _is_shareable(row: DeviceState) -> bool:
    marks = row.marks
    if marks is None or marks.policy is None or marks.cordon is not None or row.lease or row.missing:
        return False
    return row.quarantine is None and len(row.sharers) < marks.policy.share_max > 1


def buckets_of(cell: Cell) -> tuple[str, ...]:
    """Those that all devices of a cell are in."""
    host, kind, vendor_id, product_id, pci_class = cell
    found = [_ANY, f"kind:{kind}", f"host:{host}"]
    if pci_class >= 0:
        found.append(f"pci_class:{pci_class >> 8:04x}")
    if vendor_id and product_id:
        found.append(f"model:{vendor_id.lower()}:{product_id.lower()}")
    return tuple(found)


# --- reading ------------------------------------------------------------------------------------------------------


def cells(
    listing: Listing, wanted: Sequence[frozenset[str]], host: str = ""
) -> Iterator[tuple[HostName, list[list[DeviceId]]]]:
    """The hosts that have devices in at least one bucket of each of `wanted`, sorted, with these devices, by cell.

    A set with buckets of single devices narrows nothing here: `named` has those.
    """
    sets = [names for names in wanted if _ANY not in names and not any(name.startswith(_DEVICE) for name in names)]
    if host:
        sets.append(frozenset((f"host:{host}",)))
    least = min(sets, key=lambda names: _size(listing, names), default=frozenset((_ANY,)))
    others = [names for names in sets if names is not least]
    found = merge(*(listing.buckets.get(name, ()) for name in sorted(least)))
    for name, group in groupby(found, _HOST):
        those = dict.fromkeys(group)  # a cell may be in several of these buckets
        kept = [cell for cell in those if is_in_all(buckets_of(cell), others)] if others else those
        if kept:
            yield name, [listing.cells[cell] for cell in kept]


def is_in_all(names: tuple[str, ...], sets: Sequence[frozenset[str]]) -> bool:
    """Whether one of these buckets is in each of the sets."""
    return not any(each.isdisjoint(names) for each in sets)


def _size(listing: Listing, names: frozenset[str]) -> int:
    return sum(len(listing.buckets.get(name, ())) for name in names)


def devices(listing: Listing, wanted: Sequence[frozenset[str]], host: str = "") -> Iterator[DeviceId]:
    """The devices in at least one bucket of each of `wanted`, by host and key."""
    for _, lists in cells(listing, wanted, host):
        yield from in_order(lists)


def in_order(lists: Sequence[list[DeviceId]]) -> Iterable[DeviceId]:
    """The devices of these cells of one host, by key."""
    return lists[0] if len(lists) == 1 else merge(*lists)


def named(wanted: Sequence[frozenset[str]]) -> tuple[DeviceId, ...] | None:
    """The devices that alone can be meant, by host and key; `None`: it is not said so narrowly."""
    for names in wanted:
        if names and all(name.startswith(_DEVICE) for name in names):
            found = (DeviceId(name.removeprefix(_DEVICE)) for name in names)
            return tuple(sorted(found, key=split_device_id))
    return None
