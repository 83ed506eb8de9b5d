"""Requests that wait: who is let in, who comes next, who is looked at when something is better now, and who gives up.

Their order is fixed when they come (`terms.rank_ns`): time, less a minute for each step of priority. Who comes first is
looked at first, and may keep devices, which nobody behind it gets: those that it would have if nobody had leased any.
So those who need many gather them one by one, and who comes first never waits for who comes later. Nothing is held by
keeping: what is granted, is granted whole.

A tick takes the oldest note of what is new (`stirring`), and looks at those whom it may concern until one of them gets
something, then goes on from there: each decision does a bounded piece of work, and the ledger says how far it has come.
What events make of all this: `queueing`.
"""

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from leasehold.events import inputs, limits
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.identities import DeviceId, HostName, Principal, RequestRef, tenant_of
from leasehold.events.position import parse_queued_id, queued_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_events import (
    QueuedMoved,
    QueueLooked,
    RequestQueued,
    RequestWithdrawn,
    WaitingEnded,
)
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.projections import buckets, granting, quotas, selectors
from leasehold.projections.conflicts import CODE_OF_RULE, first_blockers
from leasehold.projections.declining import Declined, declined
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.rows import QueuedState
from leasehold.projections.searching import Found, search
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State
from leasehold.projections.stirring import DEVICE, HOST
from leasehold.projections.terms import Terms, rank_ns

_NS_PER_MS: Final = 1_000_000
_MAY_PASS: Final = frozenset(
    {
        RefusalCode.DEVICE_HELD,
        RefusalCode.DEVICE_MISSING,
        RefusalCode.DEVICE_IN_USE,
        RefusalCode.DEVICE_QUARANTINED,
        RefusalCode.DEVICE_CORDONED,
        RefusalCode.DEVICE_TAINTED,
        RefusalCode.DEVICE_KEPT,
        RefusalCode.DEVICE_UNCLEAN,
        RefusalCode.DEVICE_SHARED,
        RefusalCode.HOST_STALE,
        RefusalCode.NO_MATCH,
        RefusalCode.NOT_ENOUGH,
        RefusalCode.CONSTRAINT_UNMET,
        RefusalCode.QUOTA_EXCEEDED,
    }
)
"""Refusals that time, or others, may lift. A search that was cut off is none: each look would cost as much again."""
_HOLDERS: Final = frozenset(
    {
        RefusalCode.DEVICE_HELD,
        RefusalCode.DEVICE_IN_USE,
        RefusalCode.DEVICE_SHARED,
        RefusalCode.DEVICE_UNCLEAN,
        RefusalCode.HOST_STALE,
    }
)
"""Those that tell who has a device now, or what is soon over by itself: it may be kept all the same."""
AHEAD_COUNTED_MAX: Final = 1_024
_TENANT: Final = "tenant:"
_CLASS: Final = "class:"


# --- coming and going ---------------------------------------------------------------------------------------------


def terms_of(request: inputs.LeaseRequest, ref: RequestRef, now_ns: int) -> Terms:
    """The terms of somebody who asks now, and does not wait yet."""
    return Terms(
        tenant=tenant_of(ref.principal),
        tolerates=request.tolerates,
        mode=request.mode,
        rank_ns=rank_ns(now_ns, request.priority),
    )


def terms_of_waiting(queued: int, row: QueuedState) -> Terms:
    """The terms of somebody who waits."""
    return Terms(
        tenant=row.tenant, tolerates=row.asked.tolerates, mode=row.asked.mode, rank_ns=row.rank_ns, queued=queued
    )


def granted(state: State, lease: LeaseGranted) -> list[Event]:
    """A grant; before it, that its devices are not kept any more for those who come later."""
    if lease.mode == "admin":
        return [lease]
    return [*_losses(state, lease.devices, but=lease.queued or 0), lease]


def queued_or(
    state: State, ref: RequestRef, request: inputs.LeaseRequest, given: Declined, terms: Terms, now_ns: int
) -> list[Event] | Declined:
    """What was declined waits, if that was asked for and can help."""
    if not request.wait_ms or given.refusal.code not in _MAY_PASS:
        return given
    full = _is_full(state, ref, given.about)
    if full is not None:
        return full
    outlook = _outlook(state, ref, request, terms, _over_quota(state, request, terms) or given.refusal, frozenset())
    waits = RequestQueued(
        request=ref,
        tenant=terms.tenant,
        asked=request,
        rank_ns=terms.rank_ns,
        until_ns=now_ns + request.wait_ms * _NS_PER_MS,
        keeps=outlook.keeps,
        buckets=outlook.buckets,
        why=outlook.why,
    )
    return [*_losses(state, outlook.keeps, but=0), waits]


def _is_full(state: State, ref: RequestRef, about: tuple[str, ...]) -> Declined | None:
    if len(state.queue) >= limits.QUEUED_MAX:
        text, help_text = f"{limits.QUEUED_MAX} requests wait already", "ask again later"
    elif len(state.indexes.queued_of.get(ref.principal, ())) >= limits.QUEUED_PER_PRINCIPAL_MAX:
        text = f"{limits.QUEUED_PER_PRINCIPAL_MAX} requests of {ref.principal} wait already"
        help_text = "withdraw some, or wait until some are over"
    else:
        return None
    return declined(about, RefusalCode.QUEUE_FULL, text, help_text)


def _losses(state: State, devices: tuple[DeviceId, ...], *, but: int) -> list[Event]:
    """Who loses what was kept for him, because somebody who comes before him has or keeps it from now on."""
    taken = set(devices)
    keepers = {state.indexes.kept.get(device, but) for device in devices} - {but}
    return [
        QueuedMoved(
            queued=keeper,
            keeps=tuple(device for device in state.queue[keeper].keeps if device not in taken),
            buckets=state.queue[keeper].buckets,
        )
        for keeper in sorted(keepers)
    ]


def withdraw(state: State, ref: RequestRef, request: WithdrawRequest, _now_ns: int) -> list[Event] | Declined:
    """Whoever asked takes his request back."""
    row = state.queue.get(request.queued)
    name = queued_id_text(request.queued)
    if row is None:
        text = f"no request waits at {name}"
        return declined((name,), RefusalCode.QUEUED_UNKNOWN, text, "list the queue; what was granted is released")
    if row.principal != ref.principal:
        text = f"the request at {name} is {row.principal}'s"
        return declined((name,), RefusalCode.NOT_YOURS, text, "an operator may take it back with revoke")
    return [RequestWithdrawn(request=ref, queued=request.queued, reason=request.reason)]


def ended(state: State, now_ns: int, *, limit: int) -> list[Event]:
    """The requests that have waited for as long as they were to."""
    return [
        WaitingEnded(queued=queued, why=msgspec.structs.replace(state.queue[queued].why, search=None))
        for queued in state.waitings.due_by(now_ns, limit=limit)
    ]


# --- looking ------------------------------------------------------------------------------------------------------


def is_due(state: State, writer: str) -> bool:
    """Whether something is new that `writer` has to look at: who decides, alone."""
    return bool(state.indexes.stirs) and state.head.decider == writer


def looked(state: State, now_ns: int) -> list[Event]:
    """A piece of the look at those who wait: what one of them gets, or how far it has come."""
    if not state.indexes.stirs:
        return []
    oldest, head = state.indexes.stirs[0], state.head
    news = _News(state, state.stirred[oldest])
    after = (head.looked_rank_ns, head.looked_queued) if head.looked_queued else None
    tried = passed = steps = 0
    for _, queued in _in_order(state, news.words, after):
        row = state.queue[queued]
        if news.concerns(queued, row):
            events, cost = _look(state, queued, row, now_ns)
            if events:
                return [QueueLooked(through=0, rank_ns=row.rank_ns, queued=queued), *events]
            tried, steps = tried + 1, steps + cost
        else:
            passed += 1
        if (
            tried >= limits.QUEUED_TRIED_PER_TICK_MAX
            or passed >= limits.QUEUED_PASSED_PER_TICK_MAX
            or steps >= limits.SEARCH_STEPS_MAX
        ):
            return [QueueLooked(through=0, rank_ns=row.rank_ns, queued=queued)]
    return [QueueLooked(through=oldest)]


def _in_order(state: State, words: frozenset[str], after: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    """The places of those who wait under any of these words, behind `after`, first comes first, each once."""
    lists = [state.indexes.queued[word] for word in sorted(words) if word in state.indexes.queued]
    last = after
    for place in heapq.merge(*(_behind(places, after) for places in lists)):
        if place != last:
            yield place
        last = place


def _behind(places: list[tuple[int, int]], after: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    start = bisect_right(places, after) if after is not None else 0
    return (places[number] for number in range(start, len(places)))


class _News:
    """A note of what is new: under which words those wait whom it may concern, and whom of them it does."""

    def __init__(self, state: State, note: tuple[str, ...]) -> None:
        self._state = state
        self._alone = {parse_queued_id(word) for word in note if word.startswith("Q")}
        self._devices: list[tuple[DeviceId, frozenset[str]]] = []
        plain = {word for word in note if word.startswith((_CLASS, EVERYBODY))}
        self._tenants = frozenset(word for word in note if word.startswith(_TENANT))
        for word in note:
            if word.startswith(HOST):
                for device in state.indexes.on_host.get(HostName(word.removeprefix(HOST)), ()):
                    plain.update(buckets.of_device(device, state.devices[device]))
            elif word.startswith(DEVICE):
                device = DeviceId(word.removeprefix(DEVICE))
                self._devices.append((device, frozenset(buckets.of_device(device, state.devices[device]))))
        self._plain = frozenset(plain)
        self.words = self._plain.union(self._tenants, *(those for _, those in self._devices))

    def concerns(self, queued: int, row: QueuedState) -> bool:
        """Whether a waiting request may get something by it, or lose it."""
        if queued in self._alone or EVERYBODY in self._plain or not self._plain.isdisjoint(row.buckets):
            return True
        if f"{_TENANT}{row.tenant}" in self._tenants and self._is_of_quota(queued, row):
            return True
        return any(self._is_of_use(device, those, queued, row) for device, those in self._devices)

    def _is_of_quota(self, queued: int, row: QueuedState) -> bool:
        if row.keeps:
            return _kept_over_quota(self._state, row.keeps, row.tenant) is not None
        is_over = _over_quota(self._state, row.asked, terms_of_waiting(queued, row)) is not None
        return row.why.code == RefusalCode.QUOTA_EXCEEDED and not is_over

    def _is_of_use(self, device: DeviceId, those: frozenset[str], queued: int, row: QueuedState) -> bool:
        state, its = self._state, self._state.devices[device]
        if device in row.keeps:
            return True
        if those.isdisjoint(row.buckets) or state.keeper_before(device, row.rank_ns, queued):
            return False
        # Who has enough kept for him waits until it is free; what another has leads him no further.
        if row.keeps and its.lease and not any(need.every for need in row.asked.needs):
            return False
        return could_be(state, row.asked, device)


def could_be(state: State, asked: inputs.LeaseRequest, device: DeviceId) -> bool:
    """Whether a known device is one that is asked for: by name, or because some need of it matches."""
    if asked.devices:
        return True  # it is found by its names
    if asked.host and state.devices[device].host != asked.host:
        return False
    options = (option for need in asked.needs for option in (need.first_of or (need,)))
    return any(
        all(_matches(state, text, device) for text in (option.select, _class_text(state, option.device_class)) if text)
        for option in options
    )


def _class_text(state: State, name: str) -> str:
    return state.classes[name].select if name in state.classes else ""


def _matches(state: State, text: str, device: DeviceId) -> bool:
    selector = selectors.compiled(text)
    return isinstance(selector, Selector) and selector.matches(state, device) is True


def _look(state: State, queued: int, row: QueuedState, now_ns: int) -> tuple[list[Event], int]:
    """What a waiting request gets now: the lease, or other devices kept for it; and what it cost, in steps."""
    terms = terms_of_waiting(queued, row)
    ref = RequestRef(row.principal, row.asked.request_id, row.body_hash, row.asked.issued_at_ns)
    why = _over_quota(state, row.asked, terms)
    if why is None:
        given = granting.decide_lease(state, ref, row.asked, terms, now_ns)
        if isinstance(given, LeaseGranted):
            return granted(state, given), 0
        why = given.refusal
    outlook = _outlook(state, ref, row.asked, terms, why, frozenset(row.keeps))
    is_other_reason = _reason(outlook.why) != _reason(row.why)
    # Of who has nothing kept, reasons come and go with all who have what he asks for.
    is_of_quota = (outlook.why.code == RefusalCode.QUOTA_EXCEEDED) != (row.why.code == RefusalCode.QUOTA_EXCEEDED)
    is_told = is_other_reason and (bool(outlook.keeps) or is_of_quota)
    if (outlook.keeps, outlook.buckets) == (row.keeps, row.buckets) and not is_told:
        return [], outlook.steps
    moved = QueuedMoved(queued=queued, keeps=outlook.keeps, buckets=outlook.buckets)
    if is_other_reason:
        moved = msgspec.structs.replace(moved, why=msgspec.structs.replace(outlook.why, search=None))
    return [*_losses(state, outlook.keeps, but=queued), moved], outlook.steps


def _reason(why: Refusal) -> tuple[object, ...]:
    return why.code, tuple((each.device, each.rule, each.lease) for each in why.blockers)


class _Outlook(msgspec.Struct, frozen=True):
    """What is to be kept for a request, under what it is to be found, why it is not granted, and what it cost to say
    so, in steps.
    """

    keeps: tuple[DeviceId, ...]
    buckets: tuple[str, ...]
    why: Refusal
    steps: int


def _outlook(
    state: State,
    ref: RequestRef,
    asked: inputs.LeaseRequest,
    terms: Terms,
    why: Refusal,
    kept: frozenset[DeviceId],
) -> _Outlook:
    """What may become of a request that is declined because of `why`."""
    steps = why.search.steps if why.search is not None else 1
    found = buckets.of_request(state, asked, terms.tenant)
    if why.code == RefusalCode.QUOTA_EXCEEDED:
        # Its tenant has enough, so others are not kept from what it would have. Where any devices would count, it
        # is found only when its tenant has less, or may have more.
        if _over_quota(state, asked, terms) is not None:
            found = tuple(word for word in found if word.startswith((_TENANT, _CLASS)))
        return _Outlook((), found, why, steps)
    keeps, more = _keeps(state, ref, asked, terms, kept)
    is_over = _kept_over_quota(state, keeps, terms.tenant) if terms.mode != "admin" else None
    if is_over is not None:
        return _Outlook((), found, is_over, steps + more)
    return _Outlook(keeps, found, why, steps + more)


def _kept_over_quota(state: State, keeps: tuple[DeviceId, ...], tenant: Principal) -> Refusal | None:
    """Why a tenant may not have these devices, whoever has them now."""
    charged = quotas.charges(state, tenant, keeps)
    return charged.refusal if isinstance(charged, Declined) else None


def _over_quota(state: State, asked: inputs.LeaseRequest, terms: Terms) -> Refusal | None:
    """Why, whatever devices were found for it, a request would be too much for its tenant; `None`: it need not be."""
    for device_class, count in _least_charged(asked):
        quota = state.quotas.get((terms.tenant, device_class))
        if quota is not None and terms.mode != "admin" and quota.devices + count > quota.devices_max:
            return quotas.exceeded(terms.tenant, device_class, quota, count)
    return None


def _least_charged(asked: inputs.LeaseRequest) -> Iterator[tuple[str, int]]:
    """Of all classes (the empty one), and of those that a request names, how many devices it would have at least."""
    least = [min((each.count for each in need.first_of), default=need.count) for need in asked.needs]
    yield "", sum(least) or 1
    by_class: dict[str, int] = {}
    for need, count in zip(asked.needs, least, strict=True):
        names = {option.device_class for option in (need.first_of or (need,))}
        if len(names) == 1:
            name = names.pop()
            by_class[name] = by_class.get(name, 0) + count
    by_class.pop("", None)
    yield from sorted(by_class.items())


# --- keeping ------------------------------------------------------------------------------------------------------


def _keeps(
    state: State, ref: RequestRef, asked: inputs.LeaseRequest, terms: Terms, kept: frozenset[DeviceId]
) -> tuple[tuple[DeviceId, ...], int]:
    """What a request would have if nobody had leased anything, and nobody kept anything who comes behind it; none, if
    it could not have all even then. And what it cost to say so, in steps.
    """
    owner = (ref.principal, asked.holder)
    if asked.devices:
        return _named_keeps(state, owner, asked, terms), 1
    found = search(state, asked, terms, owner=owner, ignoring_holders=True, prefer=kept)
    if isinstance(found, Found):
        return found.devices, found.search.steps
    return (), found.refusal.search.steps if found.refusal.search is not None else 1


def _named_keeps(
    state: State, owner: tuple[str, str], asked: inputs.LeaseRequest, terms: Terms
) -> tuple[DeviceId, ...]:
    devices = granting.named(state, asked)
    if isinstance(devices, Declined):
        return ()
    found = first_blockers(state, devices, owner=owner, force=asked.force, terms=terms)
    return devices if all(CODE_OF_RULE[each.rule] in _HOLDERS for each in found) else ()


# --- what is told of the queue ------------------------------------------------------------------------------------


def place(state: State, queued: int) -> int:
    """The place of a waiting request among all that wait, from 1."""
    return state.indexes.queued.before(EVERYBODY, (state.queue[queued].rank_ns, queued)) + 1


def ahead(state: State, queued: int) -> int:
    """How many come before a waiting request and are found under the same words, so that they could want the same; of
    very many, at most so many.
    """
    row, waiting = state.queue[queued], state.indexes.queued
    before = (row.rank_ns, queued)
    words = [word for word in row.buckets if not word.startswith((_TENANT, _CLASS))]
    if "any" in words or not words:
        return place(state, queued) - 1
    words.append("any")
    counts = [waiting.before(word, before) for word in words]
    if sum(counts) > AHEAD_COUNTED_MAX:
        return min(sum(counts), place(state, queued) - 1)
    return len({each for word, count in zip(words, counts, strict=True) for each in waiting.get(word, [])[:count]})


DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    WithdrawRequest: withdraw
}
"""By type of request; see `decide`."""
