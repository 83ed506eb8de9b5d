"""Answers, computed from the state: the current outcome of a remembered request."""

from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.answers import Answer, Heard, NotRenewed
from leasehold.events.identities import HostName, Principal, RequestKey
from leasehold.events.inputs import Asked, RenewRequest
from leasehold.events.position import end_of_record
from leasehold.events.schedule_inputs import RenewManyRequest
from leasehold.projections import bindings, fencing, waiting
from leasehold.projections.orders import newest_open
from leasehold.projections.remembering import id_reused
from leasehold.projections.rows import AnswerState, LeaseState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace

_OUTCOME: Final = {
    "lease": "granted",
    "renew": "renewed",
    "release": "released",
    "confirm_free": "freed",
    "create_device": "ordered",
    "destroy_device": "ordered",
    "retire_agent": "retired",
    "operate_device": "ordered",
    "revoke": "revoked",
    "declare_dead": "declared_dead",
    "withdraw": "withdrawn",
    "renew_many": "renewed",
    "transfer": "transferred",
    "reserve": "granted",
    "switch": "switched",
    "set_class": "set",
    "remove_class": "set",
    "set_quota": "set",
    "cordon": "set",
    "uncordon": "set",
    "taint": "set",
    "untaint": "set",
    "set_policy": "set",
    "confirm_clean": "set",
    "heal": "set",
}


def lease_word(lease: LeaseState) -> str:
    """`living`, `ending` (ended, not all devices free) or `ended`."""
    if not lease.ended:
        return "living"
    return "ending" if lease.held else "ended"


def answer_for(state: State, key: RequestKey) -> Answer | None:
    """The current outcome of the request `key`; `None` if it was never decided, or forgotten."""
    known = state.answers.get(key)
    return None if known is None else _answer_of(state, key, known)


def _answer_of(state: State, key: RequestKey, known: AnswerState) -> Answer:
    principal, _, request_id = key.partition("/")
    as_of = end_of_record(state.head.sequence)
    if known.refusal is not None:
        return Answer(
            outcome="refused", request_id=request_id, position=known.position, as_of=as_of, refusal=known.refusal,
            queued=known.queued,
        )  # fmt: skip
    if known.queued and known.verb == "lease" and known.queued in state.queue:
        return _answer_of_waiting(state, request_id, known)
    if known.order:
        return _answer_of_order(state, request_id, known)
    lease = state.leases.get(known.lease)
    devices = (known.device,) if known.device else ()
    if lease is None:
        return Answer(
            outcome=_OUTCOME[known.verb], request_id=request_id, position=known.position, as_of=as_of,
            lease=known.lease, leases=known.leases, devices=devices, queued=known.queued,
        )  # fmt: skip
    # No token for whom the lease is not, or not any more: who had it before may ask his old requests again, as he
    # would behind a restore, and that is not to open anything.
    is_his = lease.principal == principal and known.position >= lease.transferred_position
    # Each of up to 15 words costs little; Python hands on more of them in a dict, for ten times as much.
    answer = Answer(
        outcome=_OUTCOME[known.verb],
        request_id=request_id,
        position=known.position,
        as_of=as_of,
        lease=known.lease,
        token=lease.token if is_his else 0,
        holder=lease.holder,
        devices=devices or lease.devices,
        state=lease_word(lease),
        ended=lease.ended,
        prepared=bindings.prepared_word(state, lease),
        leases=known.leases,
        ttl_ms=lease.ttl_ms,
        expires_at_ns=lease.expires_at_ns,
        message=lease.end_reason,
    )
    if known.queued or lease.reserved_for or lease.search is not None:
        return _replace(answer, reserved_for=lease.reserved_for, queued=known.queued, search=lease.search)
    return answer


def answer_to(state: State, asked: Asked, key: RequestKey, position: int) -> Answer:
    """The answer to a request (`key`) that was just decided, by a step that begins at `position`, or before.

    A renewal that needs no word in the log has none: it is answered by how its lease stands, and with the position of
    the event that made it so.
    """
    known = state.answers.get(key)
    request = asked.request
    if known is not None and known.position != position and known.body_hash != codec.body_hash(request):
        # Another body stands under this id; that answer is not this request's.
        refusal = id_reused(request.request_id)
        return Answer(outcome="refused", request_id=request.request_id, position=position, refusal=refusal)
    if isinstance(request, RenewManyRequest):
        return _answer_of_many(state, asked.principal, request, answer_for(state, key))
    if known is None:
        assert isinstance(request, RenewRequest), request
        covered_at = state.leases[request.lease].renewed_position or request.lease
        unwritten = AnswerState(body_hash="", verb="renew", position=covered_at, issued_at_ns=0, lease=request.lease)
        return _replace(_answer_of(state, key, unwritten), token=request.token)
    return _answer_of(state, key, known)


def _answer_of_many(state: State, principal: Principal, request: RenewManyRequest, known: Answer | None) -> Answer:
    """Which leases were renewed together, and why others were not; each as it is now: what is ended stays so."""
    answer = known or Answer(outcome="renewed", request_id=request.request_id, as_of=end_of_record(state.head.sequence))
    refused = [(lease, fencing.of_lease(state, principal, lease, token)) for lease, token in request.leases]
    not_renewed = tuple(NotRenewed(lease=lease, code=why.code, message=why.message) for lease, why in refused if why)
    if answer.refusal is not None:
        return _replace(answer, not_renewed=not_renewed)
    renewed = tuple(dict.fromkeys(lease for lease, why in refused if not why))
    rows = [state.leases[lease] for lease in renewed]
    return _replace(
        answer,
        position=answer.position
        or max(row.renewed_position or lease for lease, row in zip(renewed, rows, strict=True)),
        leases=renewed,
        not_renewed=not_renewed,
        ttl_ms=min((row.ttl_ms for row in rows), default=0),
        expires_at_ns=min((row.expires_at_ns for row in rows), default=0),
    )


def _answer_of_waiting(state: State, request_id: str, known: AnswerState) -> Answer:
    row = state.queue[known.queued]
    return Answer(
        outcome="queued",
        request_id=request_id,
        position=known.position,
        as_of=end_of_record(state.head.sequence),
        holder=row.asked.holder,
        queued=known.queued,
        ahead=waiting.ahead(state, known.queued),
        until_ns=row.until_ns,
        kept=row.keeps,
        refusal=row.why,
    )


def _answer_of_order(state: State, request_id: str, known: AnswerState) -> Answer:
    row = state.orders.get(known.order)
    return Answer(
        outcome=_OUTCOME[known.verb],
        request_id=request_id,
        position=known.position,
        as_of=end_of_record(state.head.sequence),
        order=known.order,
        what=row.what if row is not None else None,
        devices=(known.device,) if known.device else (),
        state=known.state,
        message=known.reason,
    )


def heard(state: State, host: HostName, agent: str) -> Heard:
    """What the log has of an agent; run 0 if it knows none."""
    row = state.hosts.get(host)
    source = row.sources.get(agent) if row else None
    as_of = end_of_record(state.head.sequence)
    if source is None:
        return Heard(run=0, counter=0, complete=False, wants_report=False, as_of=as_of)
    return Heard(
        run=source.run,
        counter=source.counter,
        complete=source.complete,
        wants_report=source.wants_report,
        stale=source.stale,
        as_of=as_of,
        order=newest_open(state, host, agent),
    )
