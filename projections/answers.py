"""Answers, computed from the state: the current outcome of a remembered request."""

from typing import Final

from leasehold.events.answers import Answer, Heard
from leasehold.events.identities import HostName, RequestKey
from leasehold.events.position import end_of_record
from leasehold.projections import bindings
from leasehold.projections.orders import newest_open
from leasehold.projections.rows import AnswerState, LeaseState
from leasehold.projections.state import State

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
    if known is None:
        return None
    request_id = key.partition("/")[2]
    as_of = end_of_record(state.head.sequence)
    if known.refusal is not None:
        return Answer(
            outcome="refused", request_id=request_id, position=known.position, as_of=as_of, refusal=known.refusal
        )
    if known.order:
        return _answer_of_order(state, request_id, known)
    lease = state.leases.get(known.lease)
    devices = (known.device,) if known.device else ()
    if lease is None:
        return Answer(
            outcome=_OUTCOME[known.verb], request_id=request_id, position=known.position, as_of=as_of,
            lease=known.lease, leases=known.leases, devices=devices,
        )  # fmt: skip
    return Answer(
        outcome=_OUTCOME[known.verb],
        request_id=request_id,
        position=known.position,
        as_of=as_of,
        lease=known.lease,
        token=lease.token,
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
