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
_CELLS_PER_STEP: Final = 8


class News:
    """A note of what is new: who waits for it, and whom of them it concerns."""

    def __init__(self, state: State, note: tuple[str, ...]) -> None:
        self.steps = 0
        """What it cost so far."""
        self._state = state
        self._alone = {parse_queued_id(word) for word in note if word.startswith("Q")} & state.queue.keys()
        self._tenants = frozenset(word for word in note if word.startswith(TENANT))
        self._devices: list[tuple[DeviceId, frozenset[str]]] = []
        plain = {word for word in note if word.startswith((CLASS, EVERYBODY))}
        for word in note:
            if word.startswith(HOST):
                for device in state.indexes.on_host.get(HostName(word.removeprefix(HOST)), ()):
                    plain.update(buckets.of_device(device, state.devices[device]))
            elif word.startswith(DEVICE):
                device = DeviceId(word.removeprefix(DEVICE))
                self._devices.append((device, frozenset(buckets.of_device(device, state.devices[device]))))
        self._plain = frozenset(plain)
        self._free: dict[tuple[tuple[str, ...], str], int] = {}

    def in_order(self, after: Place | None) -> Iterator[Place]:
        """The places behind `after` of those who may wait for it, first comes first, each once."""
        words = self._plain.union(self._tenants, *(those for _, those in self._devices))
        queued = self._state.indexes.queued
        lists = [queued[word] for word in sorted(words) if word in queued]
        lists.append(sorted((self._state.queue[each].rank_ns, each) for each in self._alone))
        last = after
        for place in heapq.merge(*(_behind(places, after) for places in lists)):
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
        return any(self._is_of_use(device, those, queued, row) for device, those in self._devices)

    def _is_of_quota(self, row: QueuedState) -> bool:
        if row.keeps:
            return kept_over_quota(self._state, row.keeps, row.tenant) is not None
        is_blocked = row.why.code == RefusalCode.QUOTA_EXCEEDED
        return is_blocked and over_quota(self._state, row.asked, row.tenant) is None

    def _is_of_use(self, device: DeviceId, those: frozenset[str], queued: int, row: QueuedState) -> bool:
        state, its = self._state, self._state.devices[device]
        is_free = candidates.is_free(its)
        if device in row.keeps and (not is_free or its.marks is not None or not self._is_meant(row.asked, device)):
            return True
        if those.isdisjoint(row.buckets) or state.keeper_before(device, row.rank_ns, queued):
            return False
        may_have = is_free or bool(row.asked.mode) or row.asked.force
        if may_have and not self._may_be_whole(row, its.host):
            may_have = False
        if any(need.every or any(option.every for option in need.first_of) for need in row.asked.needs):
            may_have = True  # it may have one device less to get
        # Who has enough kept for him waits until it is free; for who has not, this may be kept, whoever has it now.
        may_keep = not row.keeps and not is_far_behind(state, row.buckets, row.rank_ns, queued)
        return (may_have or may_keep) and self._is_meant(row.asked, device)

    def _may_be_whole(self, row: QueuedState, host: HostName) -> bool:
        """Whether so many devices are free, under the words of a waiting request, as it needs at least: on this host
        alone, if it needs all on one. Without that no search finds them.
        """
        asked = row.asked
        count = sum(least_of(asked))
        if count < 2 or asked.mode or asked.force or any(word.startswith(DEVICE) for word in row.buckets):
            return True
        key = (row.buckets, host if _is_on_one_host(asked) else "")
        if key not in self._free:
            self._free[key] = self._count_free(*key)
        return self._free[key] >= count

    def _count_free(self, words: tuple[str, ...], host: str) -> int:
        free = self._state.candidates.free
        if host:
            on_host = free.buckets.get(f"{HOST}{host}", ())
            cells = {cell for cell in on_host if not frozenset(words).isdisjoint(candidates.buckets_of(cell))}
        else:
            cells = {cell for word in words for cell in free.buckets.get(word, ())}
        self.steps += len(cells) // _CELLS_PER_STEP
        return sum(len(free.cells[cell]) for cell in cells)

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
