"""Requests that wait: who is let in, who comes next, who is looked at when something is better now, and who gives up.

Their order is fixed when they come (`terms.rank_ns`): time, less a minute for each step of priority. Who comes first is
looked at first, and may keep devices, which nobody behind it gets: those that it would have if nobody had leased any.
So those who need many gather them one by one, and who comes first never waits for who comes later. Nothing is held by
keeping: what is granted, is granted whole.

A tick takes the oldest note of what is new (`stirring`), and looks at those whom it may concern until one of them gets
something, then goes on from there: each decision does a bounded piece of work, and the ledger says how far it has come.
What events make of all this: `queueing`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import inputs, limits
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.identities import DeviceId, RequestRef, tenant_of
from leasehold.events.position import queued_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_events import (
    QueuedMoved,
    QueueLooked,
    RequestQueued,
    RequestWithdrawn,
    WaitingEnded,
)
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.projections import granting
from leasehold.projections.concerns import News
from leasehold.projections.declining import Declined, declined
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.narrowing import ANY
from leasehold.projections.outlooks import CLASS, TENANT, outlook, over_quota
from leasehold.projections.rows import QueuedState
from leasehold.projections.state import State
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
AHEAD_COUNTED_MAX: Final = 1_024
"""Up to so many that may want the same are counted, each once; more are added up word by word."""


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
    if lease.mode == "admin" or not state.indexes.kept:
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
    found = outlook(state, ref, request, terms, over_quota(state, request, terms.tenant) or given.refusal, frozenset())
    waits = RequestQueued(
        request=ref,
        tenant=terms.tenant,
        asked=request,
        rank_ns=terms.rank_ns,
        until_ns=now_ns + request.wait_ms * _NS_PER_MS,
        keeps=found.keeps,
        buckets=found.buckets,
        why=_kept(found.why),
    )
    return [*_losses(state, found.keeps, but=0), waits]


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
        for queued in state.waitings.due_by(now_ns, limit=min(limit, limits.WAITS_ENDED_PER_TICK_MAX))
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
    news = News(state, state.stirred[oldest])
    after = (head.looked_rank_ns, head.looked_queued) if head.looked_queued else None
    tried = steps = 0
    for _, queued in news.in_order(after):
        row = state.queue[queued]
        if news.concerns(queued, row):
            events, cost = _look(state, queued, row, now_ns)
            if events:
                return [QueueLooked(through=0, rank_ns=row.rank_ns, queued=queued), *events]
            tried, steps = tried + 1, steps + cost
        if tried >= limits.QUEUED_TRIED_PER_TICK_MAX or steps + news.steps >= limits.LOOK_STEPS_MAX:
            return [QueueLooked(through=0, rank_ns=row.rank_ns, queued=queued)]
    return [QueueLooked(through=oldest)]


def _look(state: State, queued: int, row: QueuedState, now_ns: int) -> tuple[list[Event], int]:
    """What a waiting request gets now: the lease, or other devices kept for it; and what it cost, in steps."""
    terms = terms_of_waiting(queued, row)
    ref = RequestRef(row.principal, row.asked.request_id, row.body_hash, row.asked.issued_at_ns)
    why = over_quota(state, row.asked, row.tenant)
    if why is None:
        given = granting.decide_lease(state, ref, row.asked, terms, now_ns)
        if isinstance(given, LeaseGranted):
            return granted(state, given), 0
        why = given.refusal
    found = outlook(state, ref, row.asked, terms, why, frozenset(row.keeps))
    why = msgspec.structs.replace(_kept(found.why), search=None)
    is_told = _reason(why) != _reason(row.why) and (bool(row.asked.devices) or why.code != row.why.code)
    if (found.keeps, found.buckets) == (row.keeps, row.buckets) and not is_told:
        return [], found.steps
    moved = QueuedMoved(queued=queued, keeps=found.keeps)
    if found.buckets != row.buckets:
        moved = msgspec.structs.replace(moved, buckets=found.buckets)
    if is_told:
        moved = msgspec.structs.replace(moved, why=why)
    return [*_losses(state, found.keeps, but=queued), moved], found.steps


def _kept(why: Refusal) -> Refusal:
    """A reason as it is kept for as long as somebody waits."""
    return msgspec.structs.replace(why, blockers=why.blockers[: limits.BLOCKERS_PER_WAITING_MAX])


def _reason(why: Refusal) -> tuple[object, ...]:
    """What is told anew when it changes; who names no device is told only of another kind of reason by itself."""
    return why.code, tuple((each.device, each.rule, each.lease) for each in why.blockers)


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
    words = [word for word in row.buckets if not word.startswith((TENANT, CLASS))]
    if ANY in words or not words:
        return place(state, queued) - 1
    words.append(ANY)
    counts = [waiting.before(word, before) for word in words]
    if sum(counts) > AHEAD_COUNTED_MAX:
        return min(sum(counts), place(state, queued) - 1)
    return len({each for word, count in zip(words, counts, strict=True) for each in waiting.get(word, [])[:count]})


DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    WithdrawRequest: withdraw
}
"""By type of request; see `decide`."""
