"""Leases that are renewed together, transferred or switched, as events move them. Who may: `handingon`.

A renewal keeps a lease in the ledger for half of its time longer than its holder may count on. So one that finds the
lease kept long enough already need not be written: of what each holder sends every third of his time, every second.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events.identities import RequestRef, principal_of, request_key
from leasehold.events.position import token_of
from leasehold.events.schedule_events import LeasesRenewed, LeaseSwitched, LeaseTransferred
from leasehold.projections import bonds, leasing, remembering
from leasehold.projections.rows import AnswerState, LeaseState
from leasehold.projections.state import State

_NS_PER_MS: Final = 1_000_000
_replace: Final = msgspec.structs.replace


def kept_until_ns(now_ns: int, ttl_ms: int) -> int:
    """Until when the ledger keeps a lease that is renewed now; its holder counts on `ttl_ms` from when he sent."""
    return now_ns + (ttl_ms + ttl_ms // 2) * _NS_PER_MS


def is_covered(lease: LeaseState, ttl_ms: int, now_ns: int) -> bool:
    """Whether a living lease is kept for `ttl_ms` from now on already, so that renewing it for that changes nothing."""
    return ttl_ms == lease.ttl_ms and now_ns + ttl_ms * _NS_PER_MS <= lease.expires_at_ns


def _renewed(state: State, position: int, at_ns: int, event: LeasesRenewed) -> None:
    """Each lives on, for its own time."""
    for lease in event.leases:
        row = state.leases[lease]
        expires_at_ns = kept_until_ns(at_ns, row.ttl_ms)
        state.put_lease(lease, _replace(row, expires_at_ns=expires_at_ns, renewed_position=position))
    _remember(state, position, at_ns, event.request, "renew_many", 0)


def _transferred(state: State, position: int, at_ns: int, event: LeaseTransferred) -> None:
    """It is another's from here on, and the token of who had it acts no more, on none of its devices."""
    lease, row, token = event.lease, state.leases[event.lease], token_of(state.head.era, position)
    assert not row.ended, f"lease {lease} has ended already ({row.ended})"
    for key in row.renewals:
        remembering.fade(state, at_ns, principal_of(key), key)
    after = _replace(
        row,
        principal=event.principal,
        tenant=event.tenant,
        holder=event.holder,
        token=token,
        renewals=(),
        # Whatever was asked before has another token; how far ahead that clock was is nothing to whoever has it now.
        renewal_horizon_ns=0,
        transferred_position=position,
    )
    state.put_lease(lease, after)
    for number, device in enumerate(row.devices):
        before = state.devices[device]
        charged = before.charged
        if event.tenant != row.tenant:
            charged = event.charges[number] if event.charges else ()
            leasing.count(state, row.tenant, before.charged, -1)
            leasing.count(state, event.tenant, charged, 1)
        held = _replace(before, floor=token, since_position=position, since_ns=at_ns, charged=charged)
        state.put_device(device, held)
    _remember(state, position, at_ns, event.request, "transfer", lease)


def _switched(state: State, position: int, at_ns: int, event: LeaseSwitched) -> None:
    """What was reserved counts from here on, by a token of its own."""
    lease, row, token = event.lease, state.leases[event.lease], token_of(state.head.era, position)
    assert not row.ended, f"lease {lease} has ended already ({row.ended})"
    assert row.reserved_for == event.source, f"lease {lease} is not reserved for {event.source}"
    state.put_lease(lease, _replace(row, token=token, reserved_for=0))
    bonds.look(state, lease, at_ns)
    for device in row.devices:
        state.put_device(device, _replace(state.devices[device], floor=token))
    _remember(state, position, at_ns, event.request, "switch", lease)


def _remember(state: State, position: int, at_ns: int, ref: RequestRef, verb: str, lease: int) -> None:
    key = request_key(ref.principal, ref.request_id)
    answer = AnswerState(
        body_hash=ref.body_hash, verb=verb, position=position, issued_at_ns=ref.issued_at_ns, lease=lease
    )
    known = state.answers.get(key)
    if known is not None and known.body_hash == ref.body_hash:
        # The end of the source came first, by the same request.
        state.answers.put(key, answer)
    else:
        remembering.remember_ended(state, at_ns, ref, answer)


HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {
    LeasesRenewed: _renewed,
    LeaseTransferred: _transferred,
    LeaseSwitched: _switched,
}
"""By type of event; see `evolve`."""
