"""What lists are paged through: ids in order, kept beside the state, so that a page costs what is on it."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from operator import is_not
from typing import Final

from leasehold.events.identities import COMPUTER, DeviceId, split_device_id
from leasehold.projections.answers import lease_word
from leasehold.projections.nodedev import UNBOUND, Wanted, bus_of, capability_types, is_wanted
from leasehold.projections.rows import DeviceState, LeaseState
from leasehold.projections.state import State

INSERTED_ONE_BY_ONE_MAX: Final = 64
REBUILT_SHARE: Final = 16
"""If more than one device in so many has changed, it is quicker to begin anew."""
GONE_MAX: Final = 256
"""Entries of leases that are gone which a walk over a list may meet before they are taken out of it."""
SPARE_MAX: Final = 100_000


class DeviceIds:
    """The ids of all devices, in order. None is ever removed from a state, so their number tells whether to look."""

    def __init__(self) -> None:
        self._ids: list[DeviceId] = []

    def page(self, state: State, *, host: str, after: str, limit: int) -> tuple[list[DeviceId], bool]:
        """Ids behind `after`, of one host if one is given, at most `limit`; and whether there are more."""
        ids = self._follow(state)
        low, high = between(ids, host, after)
        return ids[low : min(low + limit, high)], low + limit < high

    def _follow(self, state: State) -> list[DeviceId]:
        count = len(state.devices) - len(self._ids)
        if count > INSERTED_ONE_BY_ONE_MAX:
            self._ids = sorted(state.devices)
        elif count:
            # A dictionary keeps what came last at its end.
            for device in islice(reversed(state.devices), count):
                insort(self._ids, device)
        return self._ids


class DeviceFilters:
    """The ids of the devices that are there, in order, by what questions may say of them: a page, or a count, costs
    what is in the shortest list that the question leads to, whatever the number of devices.

    A fold puts a new row in place of one that changes, and no device is ever removed from a state: so the rows that are
    not those of the last look are what has changed since. That look takes 5 ms with 100,000 devices.
    """

    def __init__(self) -> None:
        self._sequence = -1
        self._rows: list[DeviceState] = []
        self._entries: list[tuple[Entry, ...]] = []
        self._lists: dict[Entry, list[DeviceId]] = {}

    def page(self, state: State, wanted: Wanted, *, host: str, after: str, limit: int) -> tuple[list[DeviceId], bool]:
        """Ids behind `after`, of one host if one is given, at most `limit`; and whether there are more."""
        found = list(islice(self._those(state, wanted, host, after), limit + 1))
        return found[:limit], len(found) > limit

    def count(self, state: State, wanted: Wanted, *, host: str) -> int:
        """How many there are."""
        return sum(1 for _ in self._those(state, wanted, host, ""))

    def _those(self, state: State, wanted: Wanted, host: str, after: str) -> Iterator[DeviceId]:
        self._follow(state)
        lists = [self._between(those, host, after) for those in self._candidates(state, wanted)]
        shortest = min(lists, key=len)
        # What is in the only list has all that is said; children may have gone.
        if len(lists) == 1 and wanted.parents is None:
            return iter(shortest)
        return (each for each in shortest if is_wanted(wanted, state.devices[each]))

    def _candidates(self, state: State, wanted: Wanted) -> Iterator[list[Sequence[DeviceId]]]:
        """Lists; those of each yield have together all that are wanted."""
        entries = [("cap", each) for each in wanted.caps]
        said = [entries, *([entry] for entry in (("bus", wanted.bus), ("driver", wanted.driver)) if entry[1])]
        if wanted.parents is None:
            said.append([] if any(said) else [_ALL])
        elif any(split_device_id(parent)[1] == COMPUTER for parent in wanted.parents):
            said.append([_TOP])
        else:
            yield [state.indexes.children.get(parent, ()) for parent in wanted.parents]
        for some in filter(None, said):
            yield [self._lists.get(entry, ()) for entry in some]

    def _between(self, those: list[Sequence[DeviceId]], host: str, after: str) -> Sequence[DeviceId]:
        parts = [part for ids in those if (part := ids[slice(*between(ids, host, after))])]
        return parts[0] if len(parts) == 1 else sorted(set().union(*parts))

    def _follow(self, state: State) -> None:
        if state.head.sequence == self._sequence:
            return
        self._sequence = state.head.sequence
        ids, rows = list(state.devices), list(state.devices.values())
        before = len(self._rows)
        changed = list(compress(range(before), map(is_not, self._rows, rows)))
        if len(changed) + len(rows) - before > INSERTED_ONE_BY_ONE_MAX + len(rows) // REBUILT_SHARE:
            self._entries, self._lists = [], {}
            # Most devices are in the same lists as many others: what says so is kept once.
            kept: dict[tuple[Entry, ...], tuple[Entry, ...]] = {}
            for device, row in zip(ids, rows, strict=True):
                entries = _entries(row)
                self._entries.append(kept.setdefault(entries, entries))
                for entry in entries:
                    self._lists.setdefault(entry, []).append(device)
            for some in self._lists.values():
                some.sort()
        else:
            self._entries += [()] * (len(rows) - before)
            for at in (*changed, *range(before, len(rows))):
                self._move(ids[at], at, rows[at])
        self._rows = rows

    def _move(self, device: DeviceId, at: int, row: DeviceState) -> None:
        old, new = self._entries[at], _entries(row)
        self._entries[at] = new
        for entry in old:
            if entry not in new:
                some = self._lists[entry]
                del some[bisect_left(some, device)]
                if not some:
                    del self._lists[entry]
        for entry in new:
            if entry not in old:
                insort(self._lists.setdefault(entry, []), device)


Entry = tuple[str, str]
_ALL: Final = ("all", "")
_TOP: Final = ("top", "")


def _entries(row: DeviceState) -> tuple[Entry, ...]:
    """In which lists a device is."""
    if row.missing:
        return ()
    description = row.description
    entries = [_ALL, *(("cap", each) for each in capability_types(description))]
    bus = bus_of(description)
    if bus:
        entries.append(("bus", bus))
    if description.driver or bus:
        entries.append(("driver", description.driver or UNBOUND))
    if description.parent in ("", COMPUTER) and description.key != COMPUTER:
        entries.append(_TOP)
    return tuple(entries)


def between(ids: Sequence[DeviceId], host: str, after: str) -> tuple[int, int]:
    """Between which indexes of `ids`, in order, those of `host` (or all) behind `after` stand."""
    low, high = bisect_right(ids, after), len(ids)
    if host:
        # "0" comes right behind "/".
        low, high = max(low, bisect_left(ids, f"{host}/")), bisect_left(ids, f"{host}0")
    return low, max(low, high)


class LeaseIds:
    """The ids of leases in the order of their grants: of all and of each holder, with the ended ones and without.

    A fold adds a lease with an id above all others, so the new ones stand at the end of the table. What has ended or
    has been forgotten is passed over, and taken out of a list once too much of it is.
    """

    def __init__(self) -> None:
        self._last = 0
        self._count = 0
        self._lists: dict[tuple[str, bool], list[int]] = {}

    def page(self, state: State, *, holder: str, ended: bool, after: int, limit: int) -> tuple[list[int], bool]:
        """Ids behind `after`, of one holder if one is given, at most `limit`; and whether there are more."""
        self.follow(state)
        ids = self._lists.get((holder, ended), [])
        found: list[int] = []
        gone = 0
        for at in range(bisect_right(ids, after), len(ids)):
            if not _shows(state.leases.get(ids[at]), ended=ended):
                gone += 1
                continue
            found.append(ids[at])
            if len(found) > limit:
                break
        if gone > GONE_MAX:
            ids[:] = [lease for lease in ids if _shows(state.leases.get(lease), ended=ended)]
        return found[:limit], len(found) > limit

    def follow(self, state: State) -> None:
        """Take in what is new in the table."""
        if self._count > 2 * len(state.leases) + SPARE_MAX:
            self._last, self._count, self._lists = 0, 0, {}
        new = []
        for lease in reversed(state.leases):
            if lease <= self._last:
                break
            new.append(lease)
        for lease in reversed(new):
            for holder in ("", state.leases[lease].holder):
                for ended in (False, True):
                    self._lists.setdefault((holder, ended), []).append(lease)
        self._last = max([self._last, *new[:1]])
        self._count += len(new)


def _shows(row: LeaseState | None, *, ended: bool) -> bool:
    return row is not None and (ended or lease_word(row) != "ended")
