"""Whom it may concern: those who wait, as far as a note of what is new (`stirring`) can be of use to them.

A search costs more than to see that it would find nothing. So those are passed over who have all kept that they need
while the device in question is another's, or who never asked for such a device, or before whom somebody keeps it.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from leasehold.events import limits
from leasehold.events.identities import DeviceId, HostName
from leasehold.events.inputs import LeaseRequest
from leasehold.events.position import parse_queued_id
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Need, Option
from leasehold.projections import attributes, buckets, candidates, selectors
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.outlooks import CLASS, TENANT, is_far_behind, kept_over_quota, least_of, over_quota
from leasehold.projections.rows import QueuedState, taints_of
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State
from leasehold.projections.stirring import DEVICE, HOST
from leasehold.projections.terms import tolerated

Place = tuple[int, int]
"""Rank and position of who waits."""
_COST_OF_STEP: Final = 128
"""An evaluation of a selector that costs so much counts as a step more."""
_NOBODY: Final[Place] = (2**63, 0)
"""Behind all places."""


class News:
    """A note of what is new: who waits for it, and whom of them it concerns."""

    def __init__(self, state: State, note: tuple[str, ...]) -> None:
        self.steps = 0
        """What it cost so far."""
        self._state = state
        self._alone = {parse_queued_id(word) for word in note if word.startswith("Q")} & state.queue.keys()
        self._tenants = frozenset(word for word in note if word.startswith(TENANT))
        self._devices: list[_About] = []
        plain = {word for word in note if word.startswith((CLASS, EVERYBODY))}
        for word in note:
            if word.startswith(HOST):
                for device in state.indexes.on_host.get(HostName(word.removeprefix(HOST)), ()):
                    plain.update(buckets.of_device(device, state.devices[device]))
            elif word.startswith(DEVICE):
                self._devices.append(_About(state, DeviceId(word.removeprefix(DEVICE))))
        self._plain = frozenset(plain)
        self._free: dict[tuple[str, str, str], int] = {}

    def in_order(self, after: Place | None) -> Iterator[Place]:
        """The places behind `after` of those who may wait for it, first comes first, each once."""
        words = self._plain.union(self._tenants, *(each.words for each in self._devices))
        queued = self._state.indexes.queued
        lists = [queued[word] for word in sorted(words) if word in queued]
        lists.append(sorted((self._state.queue[each].rank_ns, each) for each in self._alone))
        last = after
        is_of_devices = not (self._plain or self._tenants or self._alone)
        until = max((each.keeper for each in self._devices), default=_NOBODY) if is_of_devices else _NOBODY
        for place in heapq.merge(*(_behind(places, after) for places in lists)):
            if place > until:
                return  # all these devices are kept for somebody who comes before
            if place != last:
                yield place
            last = place

    def concerns(self, queued: int, row: QueuedState) -> bool:
        """Whether a waiting request may get something by it, or lose it."""
        self.steps += 1 + len(self._devices)
        if queued in self._alone or EVERYBODY in self._plain or not self._plain.isdisjoint(row.buckets):
            return True
        if f"{TENANT}{row.tenant}" in self._tenants and self._is_of_quota(row):
            return True
        mine = [each for each in self._devices if each.keeper[1] == queued]
        if any(each.is_lost or not self._is_meant(row.asked, each.device) for each in mine):
            return True
        place = (row.rank_ns, queued)
        others = [each for each in self._devices if each.keeper > place and not each.words.isdisjoint(row.buckets)]
        there = (*mine, *others)
        return bool(there) and self._is_of_use(there, queued, row)

    def _is_of_quota(self, row: QueuedState) -> bool:
        if row.keeps:
            return kept_over_quota(self._state, row.keeps, row.tenant) is not None
        is_blocked = row.why.code == RefusalCode.QUOTA_EXCEEDED
        return is_blocked and over_quota(self._state, row.asked, row.tenant) is None

    def _is_of_use(self, there: "tuple[_About, ...]", queued: int, row: QueuedState) -> bool:
        """Whether one of these devices, which nobody keeps who comes before, can be had, or kept."""
        asked = row.asked
        if asked.needs and asked.host:
            there = tuple(each for each in there if each.host == asked.host)
        # Where all that match are wanted, one less may be what is waited for.
        if not any(need.every or any(option.every for option in need.first_of) for need in asked.needs):
            found = [each for each in there if not each.is_barred(asked.tolerates)]
            # Who has enough kept for him waits until it is free; for who has not, it may be kept, whoever has it now.
            if found and (row.keeps or is_far_behind(self._state, row.buckets, row.rank_ns, queued)):
                takes_all = bool(asked.mode) or asked.force
                found = [each for each in found if (each.is_free or takes_all) and self._may_be_whole(row, each.host)]
            there = tuple(found)
        return any(self._is_meant(asked, each.device) for each in there)

    def _may_be_whole(self, row: QueuedState, host: HostName) -> bool:
        """Whether for each of its needs so many devices are free as it takes at least: on this host alone, if it needs
        all on one. Without that no search finds them.
        """
        asked = row.asked
        if sum(least_of(asked)) < 2 or asked.mode or asked.force:
            return True
        where = host if _is_on_one_host(asked) else asked.host
        return all(
            any(self._count_free(option, where) >= option.count for option in need.first_of or (need,))
            for need in asked.needs
        )

    def _count_free(self, option: Need | Option, host: str) -> int:
        """How many devices are free that could be meant, on one host or on all: as far as anybody can ask for."""
        key = (option.select, option.device_class, host)
        found = self._free.get(key)
        if found is None:
            sets = [frozenset(names) for names in buckets.of_option(self._state, option, host)]
            found = 0
            for _, lists in candidates.cells(self._state.candidates.free, sets, host):
                self.steps += 1
                found += sum(map(len, lists))
                if found >= limits.DEVICES_PER_LEASE_MAX:
                    break
            self._free[key] = found
        return found

    def _is_meant(self, asked: LeaseRequest, device: DeviceId) -> bool:
        return bool(asked.devices) or self._could_be(asked, device)

    def _could_be(self, asked: LeaseRequest, device: DeviceId) -> bool:
        """Whether some need matches a known device; it is not seen to the end where that would cost too much."""
        state = self._state
        for need in asked.needs:
            for option in need.first_of or (need,):
                of_class = state.classes.get(option.device_class)
                texts = (option.select, of_class.select if of_class is not None else "")
                if self.steps >= limits.LOOK_STEPS_MAX or all(self._matches(text, device) for text in texts if text):
                    return True
        return False

    def _matches(self, text: str, device: DeviceId) -> bool:
        selector = selectors.compiled(text)
        if not isinstance(selector, Selector):
            return False
        self.steps += 1 + selector.cost // _COST_OF_STEP
        return selector.matches(self._state, device) is True


class _About:
    """How a device of a note stands."""

    __slots__ = ("_taints", "device", "host", "is_cordoned", "is_free", "is_lost", "keeper", "words")

    def __init__(self, state: State, device: DeviceId) -> None:
        row = state.devices[device]
        both = (row.marks, state.hosts[row.host].marks)
        self.device = device
        self.host = row.host
        self.is_cordoned = any(marks is not None and marks.cordon is not None for marks in both)
        self._taints = [mark.taint for marks in both for mark in taints_of(marks) if mark.taint is not None]
        self.is_free = candidates.is_free(row)
        self.is_lost = not self.is_free or row.marks is not None
        """Whoever it is kept for may have to do without it."""
        self.words = frozenset(buckets.of_device(device, row))
        keeper = state.indexes.kept.get(device, 0)
        self.keeper = (state.queue[keeper].rank_ns, keeper) if keeper else _NOBODY
        """The place of whom it is kept for."""

    def is_barred(self, tolerates: tuple[str, ...]) -> bool:
        """Whether operators keep it from whoever tolerates these."""
        return self.is_cordoned or not all(tolerated(taint, tolerates) for taint in self._taints)


def _is_on_one_host(asked: LeaseRequest) -> bool:
    """Whether all devices have to be on one host."""
    for each in asked.constraints:
        attribute = attributes.named(each.attribute)
        if (
            each.kind == "same"
            and not each.needs
            and (each.attribute == "host" or (attribute is not None and attribute.is_local))
        ):
            return True
    return False


def _behind(places: list[Place], after: Place | None) -> Iterator[Place]:
    start = bisect_right(places, after) if after is not None else 0
    return (places[number] for number in range(start, len(places)))
