"""Deciding: `decide(state, input, now_ns)` says which events follow from one input. It changes nothing and cannot fail.

`None` means that the input is not worth a word in the log: a request that has been decided before, an observation of
an older run, a tick without work. A refusal is an event like any other.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, get_args

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.event_types import Event
from leasehold.events.hostdev_events import LeaseRevoked
from leasehold.events.identities import DeviceId, HostName, RequestRef, request_key
from leasehold.events.inputs import Asked, Input, Request
from leasehold.events.record import ledger_id_of
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_events import RequestWithdrawn
from leasehold.projections import (
    classes,
    conflicts,
    drifting,
    evictions,
    failing,
    granting,
    handingon,
    hostdevs,
    observing,
    operating,
    operators,
    ordering,
    waiting,
)
from leasehold.projections.declining import Declined
from leasehold.projections.ending import ending
from leasehold.projections.naming import resolve, unresolved
from leasehold.projections.remembering import TOO_OLD, id_reused, refusal_fingerprint
from leasehold.projections.rows import LeaseState
from leasehold.projections.state import State

Decision = list[Event] | None
_NS_PER_MS: Final = 1_000_000
_End = event_types.LeaseExpired | event_types.LeaseOutlived | LeaseRevoked
_ENDS: Final = get_args(_End)
"""Of leases that end without being given back."""


def decide(state: State, given: Input, now_ns: int) -> Decision:
    """The events that follow from `given` at `now_ns`, 1 to 256; `None` if nothing does."""
    decider: Callable[[State, Any, int], Decision] = _DECIDERS[type(given)]
    return decider(state, given, now_ns) or None


def _ledger_begins(state: State, given: inputs.LedgerBegins, now_ns: int) -> Decision:
    if state.head.sequence:
        return None
    ledger_id = ledger_id_of(given.cluster, given.writer, now_ns)
    return [event_types.LedgerStarted(ledger_id, given.cluster, given.era)]


def _ledger_restores(state: State, given: inputs.LedgerRestores, now_ns: int) -> Decision:
    head = state.head
    if not head.sequence or given.cluster != head.cluster or not head.era < given.era <= limits.ERA_MAX:
        return None
    # Whoever decides next has a clock of his own; how much time went by meanwhile nobody can tell.
    until_ns = _grace_until_ns(state, now_ns, clock_age_ms=0)
    return [
        event_types.LedgerRestored(
            writer=given.writer, era=given.era, through=head.sequence, reason=given.reason, until_ns=until_ns
        )
    ]


# --- time ---------------------------------------------------------------------------------------------------------


def _decider_starts(state: State, given: inputs.DeciderStarts, now_ns: int) -> Decision:
    until_ns = _grace_until_ns(state, now_ns, clock_age_ms=given.clock_age_ms)
    return [event_types.GraceStarted(given.writer, given.reason, until_ns)]


def _grace_until_ns(state: State, now_ns: int, *, clock_age_ms: int | None) -> int:
    """Until when nothing expires, if somebody begins to decide now."""
    grace_ms = limits.GRACE_MS
    if clock_age_ms is not None and clock_age_ms < limits.NEW_CLOCK_GRACE_MS_MAX:
        # Time as it was before may have been another: from when this clock began, each lease gets its whole time.
        longest_ms = max((_whole_ms(lease) for lease in state.leases.values() if not lease.ended), default=0)
        grace_ms = max(grace_ms, min(longest_ms, limits.NEW_CLOCK_GRACE_MS_MAX) - clock_age_ms)
    return max(now_ns + grace_ms * _NS_PER_MS, state.head.grace_until_ns)


def _whole_ms(lease: LeaseState) -> int:
    """For how long a lease lives on, at the longest, if nobody says anything from now on."""
    if lease.bond is None or not lease.gone_since_ns:
        return lease.ttl_ms
    return max(lease.ttl_ms, lease.bond.gone_ms)


def _tick(state: State, given: inputs.Tick, now_ns: int) -> Decision:
    events: list[Event] = []
    for device in heapq.nsmallest(limits.EVENTS_PER_RECORD_MAX, state.indexes.freeable):
        row = state.devices[device]
        evidence = state.evidence_of_free(row)
        events.append(event_types.DeviceFreed(device=device, lease=row.lease, evidence=evidence))
    if state.head.decider != given.writer:
        late_ns = _timed_work_ns(state, given.writer)
        if not events and late_ns is not None and now_ns >= late_ns:
            # The decider leaves something undone, so holders may have been unable to reach it, too.
            return _decider_starts(state, inputs.DeciderStarts(given.writer, "takeover"), now_ns)
    elif now_ns >= state.head.grace_until_ns:
        expired = map(event_types.LeaseExpired, state.expired_by(now_ns, limit=limits.EVENTS_PER_RECORD_MAX))
        events += _ended(state, expired, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
        outlived = _outlived(state, now_ns, limit=limits.EVENTS_PER_RECORD_MAX)
        events += _ended(state, outlived, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
        events += ordering.overdue(state, now_ns, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
        events += waiting.ended(state, now_ns, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
    if state.head.decider == given.writer and state.rules_version >= drifting.RULES:
        if state.rules_version >= evictions.RULES:
            over = frozenset(event.lease for event in events if isinstance(event, _ENDS))
            evicted = evictions.due(state, now_ns, but=over, limit=limits.EVENTS_PER_RECORD_MAX)
            events += _ended(state, evicted, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
        moved = frozenset(_moved_by(state, events))
        if state.rules_version >= failing.RULES:
            room = limits.EVENTS_PER_RECORD_MAX - len(events)
            events += failing.told(state, now_ns, but=moved, limit=room)
        events += drifting.told(state, now_ns, but=moved, limit=limits.EVENTS_PER_RECORD_MAX - len(events))
    if not events and waiting.is_due(state, given.writer):
        # Only behind all else: what that changes counts for those who wait.
        return waiting.looked(state, now_ns)
    return events


def _moved_by(state: State, events: list[Event]) -> Iterator[DeviceId]:
    """The devices of which these events of a tick change who has them."""
    for event in events:
        if isinstance(event, event_types.DeviceFreed):
            yield event.device
        elif isinstance(event, _ENDS):
            yield from state.leases[event.lease].devices


def next_work_ns(state: State, writer: str) -> int | None:
    """When a tick of `writer` will have something to do: 0 for now, `None` for not in sight."""
    if state.indexes.freeable or waiting.is_due(state, writer):
        return 0
    return _timed_work_ns(state, writer)


def _timed_work_ns(state: State, writer: str) -> int | None:
    """When `writer` has to do with the next end of a lease or deadline, what is to be told of a device, or who waits:
    in time as the decider, late as another.
    """
    nexts = (
        state.next_expiry_ns(),
        state.outlivings.next_ns(),
        state.deadlines.next_ns(),
        state.waitings.next_ns(),
    )
    due = [max(due_ns, state.head.grace_until_ns) for due_ns in nexts if due_ns is not None]
    told = [state.drifts.next_ns()] if state.rules_version >= drifting.RULES else []
    told += [state.evictions.next_ns()] if state.rules_version >= evictions.RULES else []
    told += [state.failing.next_ns()] if state.rules_version >= failing.RULES else []
    due += [due_ns for due_ns in told if due_ns is not None]
    if state.head.unlooked_since_ns:
        due.append(state.head.unlooked_since_ns)
    if not due:
        return None
    return min(due) + (0 if state.head.decider == writer else limits.TAKEOVER_MS * _NS_PER_MS)


def _outlived(state: State, now_ns: int, *, limit: int) -> Iterator[event_types.LeaseOutlived]:
    """The ends of leases whose domains have been gone for long enough, at most `limit`."""
    for lease in state.outlived_by(now_ns, limit=limit):
        row = state.leases[lease]
        assert row.bond is not None
        yield event_types.LeaseOutlived(lease=lease, domain=row.bond.uuid, gone_since_ns=row.gone_since_ns)


def _ended(state: State, ends: Iterable[_End], *, limit: int) -> list[Event]:
    """As many of these ends of leases as there is room for, each with what becomes free by it."""
    events: list[Event] = []
    for end in ends:
        some = ending(state, end)
        if len(events) + len(some) > limit:
            break
        events += some
    return events


# --- requests -----------------------------------------------------------------------------------------------------


def _asked(state: State, given: Asked, now_ns: int) -> Decision:
    request = given.request
    ref = RequestRef(given.principal, request.request_id, codec.body_hash(request), request.issued_at_ns)
    known = state.answers.get(request_key(given.principal, request.request_id))
    if known is not None and known.body_hash == ref.body_hash:
        return None
    refusal = _untimely(state, ref, now_ns)
    if known is not None:
        refusal = id_reused(request.request_id)
    if refusal is not None:
        return _refuse(state, ref, request, (), refusal, now_ns)
    decider: Callable[[State, RequestRef, Any, int], Decision] = _REQUEST_DECIDERS[type(request)]
    return decider(state, ref, request, now_ns)


def _untimely(state: State, ref: RequestRef, now_ns: int) -> Refusal | None:
    horizon_ns = max(
        now_ns - limits.REQUEST_AGE_NS_MAX,
        state.principals[ref.principal].horizon_ns if ref.principal in state.principals else 0,
    )
    if ref.issued_at_ns <= horizon_ns:
        return TOO_OLD
    if ref.issued_at_ns > now_ns + limits.REQUEST_AHEAD_NS_MAX:
        return Refusal(
            code=RefusalCode.REQUEST_FROM_FUTURE,
            message="the request says that it was issued more than an hour in the future",
            help="set the clock there",
        )
    return None


def _refuse(
    state: State, ref: RequestRef, request: Request, about: tuple[str, ...], refusal: Refusal, now_ns: int
) -> Decision:
    verb = codec.verb_of(request)
    first = state.indexes.refusal_prints.get(refusal_fingerprint(ref.principal, verb, about, refusal))
    if first is not None and now_ns - state.refusals[first].at_ns <= limits.REFUSAL_WINDOW_NS:
        count = state.refusals[first].count + 1
        return [event_types.RefusalsRepeated(request=ref, first=first, count=count)]
    holder = request.holder if isinstance(request, inputs.LeaseRequest | inputs.PrepareRequest) else ""
    return [event_types.RequestRefused(request=ref, verb=verb, about=about, refusal=refusal, holder=holder)]


def _lease(state: State, ref: RequestRef, request: inputs.LeaseRequest, now_ns: int) -> Decision:
    terms = waiting.terms_of(request, ref, now_ns)
    given = granting.decide_lease(state, ref, request, terms, now_ns)
    if isinstance(given, Declined):
        waits = waiting.queued_or(state, ref, request, given, terms, now_ns)
        if isinstance(waits, Declined):
            return _refuse(state, ref, request, waits.about, waits.refusal, now_ns)
        return waits
    return waiting.granted(state, given)


def _confirm_free(state: State, ref: RequestRef, request: inputs.ConfirmFreeRequest, now_ns: int) -> Decision:
    resolved = resolve(state, request.device, request.host)
    if resolved.device is None:
        return _refuse(state, ref, request, (request.device,), unresolved(resolved), now_ns)
    device: DeviceId = conflicts.physical_device(resolved.device)
    row = state.devices.get(device)
    if row is None or not (row.ending or (failing.is_stuck(row.quarantine) and not row.lease)):
        refusal = Refusal(
            code=RefusalCode.NOTHING_TO_CONFIRM,
            message=f"{device} is not waiting to become free",
            help=failing.way_out(device)
            if row is not None and row.quarantine is not None
            else "only a device in quarantine, or whose lease has ended, and which is not free yet, "
            "can be confirmed free",
        )
        return _refuse(state, ref, request, (device,), refusal, now_ns)
    evidence = f"{ref.principal} says so: {request.reason}"
    return [event_types.DeviceFreed(device=device, lease=row.lease, evidence=evidence, request=ref)]


def _order(
    state: State, ref: RequestRef, request: inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest, now_ns: int
) -> Decision:
    given = ordering.order_for(state, ref, request, now_ns)
    return _done(state, ref, request, given, now_ns)


def _done(state: State, ref: RequestRef, request: Request, given: Event | Declined, now_ns: int) -> Decision:
    if isinstance(given, Declined):
        return _refuse(state, ref, request, given.about, given.refusal, now_ns)
    return [given]


def _operate(state: State, ref: RequestRef, request: inputs.OperateDeviceRequest, now_ns: int) -> Decision:
    return _done(state, ref, request, operating.operate(state, ref, request, now_ns), now_ns)


def _prepare(state: State, ref: RequestRef, request: inputs.PrepareRequest, now_ns: int) -> Decision:
    given = hostdevs.prepare(state, ref, request, now_ns)
    if isinstance(given, Declined):
        return _refuse(state, ref, request, given.about, given.refusal, now_ns)
    return waiting.granted(state, given)


def _reattach(state: State, ref: RequestRef, request: inputs.ReattachRequest, now_ns: int) -> Decision:
    found = hostdevs.reattach(state, ref, request)
    if isinstance(found, Declined):
        return _refuse(state, ref, request, found.about, found.refusal, now_ns)
    return hostdevs.released(state, ref, found)


def _revoke(state: State, ref: RequestRef, request: inputs.RevokeRequest, now_ns: int) -> Decision:
    if request.lease in state.queue:
        return [RequestWithdrawn(request=ref, queued=request.lease, reason=request.reason)]
    found = hostdevs.revoke(state, ref, request)
    if isinstance(found, Declined):
        return _refuse(state, ref, request, found.about, found.refusal, now_ns)
    # What has ended holds no more than some of its devices, and these wait for evidence already.
    return [found] if state.leases[found.lease].ended else ending(state, found)


def _declare_dead(state: State, ref: RequestRef, request: inputs.DeclareDeadRequest, now_ns: int) -> Decision:
    return _done(state, ref, request, hostdevs.declare_dead(state, ref, request), now_ns)


def _retire(state: State, ref: RequestRef, request: inputs.RetireAgentRequest, now_ns: int) -> Decision:
    refusal = _not_retired(state, request)
    if refusal is not None:
        return _refuse(state, ref, request, (f"{request.host}/{request.agent}",), refusal, now_ns)
    host = HostName(request.host)
    return [event_types.AgentRetired(request=ref, host=host, agent=request.agent, reason=request.reason)]


def _not_retired(state: State, request: inputs.RetireAgentRequest) -> Refusal | None:
    """Why an agent is not to be forgotten, if it is not."""
    host = state.hosts.get(HostName(request.host))
    source = host.sources.get(request.agent) if host is not None else None
    if source is None:
        return Refusal(
            code=RefusalCode.AGENT_UNKNOWN,
            message=f"no agent {request.agent} on host {request.host} is known",
            help="list the hosts, with their agents",
        )
    if not source.stale:
        return Refusal(
            code=RefusalCode.AGENT_ALIVE,
            message=f"{request.agent} on {request.host} is heard",
            help="stop it first; one that has gone without a word is known to have after a while",
        )
    return None


def _scheduled(state: State, ref: RequestRef, request: Request, now_ns: int) -> Decision:
    given = _SCHEDULE_DECIDERS[type(request)](state, ref, request, now_ns)
    if isinstance(given, Declined):
        return _refuse(state, ref, request, given.about, given.refusal, now_ns)
    return given


_SCHEDULE_DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    **waiting.DECIDERS,
    **handingon.DECIDERS,
    **classes.DECIDERS,
    **operators.DECIDERS,
}
_REQUEST_DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], Decision]]] = {
    inputs.LeaseRequest: _lease,
    inputs.ConfirmFreeRequest: _confirm_free,
    inputs.CreateDeviceRequest: _order,
    inputs.DestroyDeviceRequest: _order,
    inputs.RetireAgentRequest: _retire,
    inputs.PrepareRequest: _prepare,
    inputs.ReattachRequest: _reattach,
    inputs.OperateDeviceRequest: _operate,
    inputs.RevokeRequest: _revoke,
    inputs.DeclareDeadRequest: _declare_dead,
    **dict.fromkeys(_SCHEDULE_DECIDERS, _scheduled),
}
_DECIDERS: Final[dict[type[Any], Callable[[State, Any, int], Decision]]] = {
    inputs.LedgerBegins: _ledger_begins,
    inputs.LedgerRestores: _ledger_restores,
    inputs.DeciderStarts: _decider_starts,
    inputs.Tick: _tick,
    inputs.HostHeard: observing.host_heard,
    inputs.Observed: observing.observed,
    Asked: _asked,
}
