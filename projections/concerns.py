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
from leasehold.projections.rows import QueuedState
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State
from leasehold.projections.stirring import DEVICE, HOST

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
        return any(self._is_of_use(each, queued, row) for each in self._devices)

    def _is_of_quota(self, row: QueuedState) -> bool:
        if row.keeps:
            return kept_over_quota(self._state, row.keeps, row.tenant) is not None
        is_blocked = row.why.code == RefusalCode.QUOTA_EXCEEDED
        return is_blocked and over_quota(self._state, row.asked, row.tenant) is None

    def _is_of_use(self, about: "_About", queued: int, row: QueuedState) -> bool:
        if about.keeper[1] == queued:
            if not about.is_free or about.is_marked or not self._is_meant(row.asked, about.device):
                return True
        elif about.keeper < (row.rank_ns, queued) or about.words.isdisjoint(row.buckets):
            return False
        may_have = about.is_free or bool(row.asked.mode) or row.asked.force
        if may_have and not self._may_be_whole(row, about.host):
            may_have = False
        if any(need.every or any(option.every for option in need.first_of) for need in row.asked.needs):
            may_have = True  # it may have one device less to get
        # Who has enough kept for him waits until it is free; for who has not, this may be kept, whoever has it now.
        if not may_have and (row.keeps or is_far_behind(self._state, row.buckets, row.rank_ns, queued)):
            return False
        return self._is_meant(row.asked, about.device)

    def _may_be_whole(self, row: QueuedState, host: HostName) -> bool:
        """Whether for each of its needs so many devices are free as it takes at least: on this host alone, if it needs
        all on one. Without that no search finds them.
        """
        asked = row.asked
        if sum(least_of(asked)) < 2 or asked.mode or asked.force:  # noqa: PLR2004 - one is free, or may be had as it is
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

    __slots__ = ("device", "host", "is_free", "is_marked", "keeper", "words")

    def __init__(self, state: State, device: DeviceId) -> None:
        row = state.devices[device]
        self.device = device
        self.host = row.host
        self.is_free = candidates.is_free(row)
        self.is_marked = row.marks is not None
        self.words = frozenset(buckets.of_device(device, row))
        keeper = state.indexes.kept.get(device, 0)
        self.keeper = (state.queue[keeper].rank_ns, keeper) if keeper else _NOBODY
        """The place of whom it is kept for."""


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
