"""Leases, as events move them: granted, renewed, ended, and their devices free again."""

from typing import Final

import msgspec

from leasehold.events import event_types, limits
from leasehold.events.hostdev_events import LeaseRevoked, PrepareFailed
from leasehold.events.identities import RequestRef, request_key
from leasehold.events.position import token_of
from leasehold.projections import bonds, remembering
from leasehold.projections.rows import AnswerState, LeaseState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


def granted(state: State, position: int, at_ns: int, event: event_types.LeaseGranted) -> None:
    """Its devices are held from here on."""
    ref = event.request
    key = request_key(ref.principal, ref.request_id)
    token = token_of(state.head.era, position)
    row = LeaseState(
        principal=ref.principal,
        holder=event.holder,
        devices=event.devices,
        token=token,
        ttl_ms=event.ttl_ms,
        granted_at_ns=at_ns,
        expires_at_ns=event.expires_at_ns,
        forced=event.forced,
        grant_key=key,
        held=len(event.devices),
        bond=event.bond or None,
        handover=event.handover or None,
    )
    state.put_lease(position, row)
    if row.bond is not None:
        bonds.look(state, position, at_ns)
    for device in event.devices:
        before = state.devices[device]
        state.put_device(
            device,
            _replace(before, lease=position, ending=False, floor=token, since_position=position, since_ns=at_ns),
        )
    answer = AnswerState(
        body_hash=ref.body_hash, verb="lease", position=position, issued_at_ns=ref.issued_at_ns, lease=position
    )
    state.answers.put(key, answer)


def renewed(state: State, position: int, _at_ns: int, event: event_types.LeaseRenewed) -> None:
    """It lives on."""
    ref = event.request
    key = request_key(ref.principal, ref.request_id)
    row = state.leases[event.lease]
    renewals, horizon_ns = (*row.renewals, key), row.renewal_horizon_ns
    if len(renewals) > limits.RENEWALS_KEPT_PER_LEASE:
        horizon_ns = max(horizon_ns, state.answers[renewals[0]].issued_at_ns)
        state.answers.drop(renewals[0])
        renewals = renewals[1:]
    after = _replace(
        row,
        ttl_ms=event.ttl_ms,
        expires_at_ns=event.expires_at_ns,
        renewals=renewals,
        renewal_horizon_ns=horizon_ns,
    )
    state.put_lease(event.lease, after)
    answer = AnswerState(
        body_hash=ref.body_hash, verb="renew", position=position, issued_at_ns=ref.issued_at_ns, lease=event.lease
    )
    state.answers.put(key, answer)


def released(state: State, position: int, at_ns: int, event: event_types.LeaseReleased) -> None:
    """Its holder gave it back; one request may end several leases, and has one answer."""
    ref = event.request
    end(state, position, at_ns, event.lease, "released")
    known = state.answers.get(request_key(ref.principal, ref.request_id))
    if known is not None and known.verb == "release" and known.body_hash == ref.body_hash:
        ended = (*(known.leases or (known.lease,)), event.lease)
        state.answers.put(request_key(ref.principal, ref.request_id), _replace(known, leases=ended))
        return
    answer = AnswerState(
        body_hash=ref.body_hash, verb="release", position=position, issued_at_ns=ref.issued_at_ns, lease=event.lease
    )
    remembering.remember_ended(state, at_ns, ref, answer)


def expired(state: State, position: int, at_ns: int, event: event_types.LeaseExpired) -> None:
    """Its time was over."""
    end(state, position, at_ns, event.lease, "expired")


def outlived(state: State, position: int, at_ns: int, event: event_types.LeaseOutlived) -> None:
    """Its domain has gone."""
    end(state, position, at_ns, event.lease, "outlived")


def failed(state: State, position: int, at_ns: int, event: PrepareFailed) -> None:
    """It could not be handed over."""
    end(state, position, at_ns, event.lease, "failed", reason=f"{event.host}/{event.key}: {event.reason}")


def revoked(state: State, position: int, at_ns: int, event: LeaseRevoked) -> None:
    """An operator took it away; or what domains still have of one that has ended."""
    ref = event.request
    row = state.leases[event.lease]
    if row.ended:
        state.put_lease(event.lease, _replace(row, is_forced_off=event.force))
    else:
        reason = f"{ref.principal}: {event.reason}"
        end(state, position, at_ns, event.lease, "revoked", reason=reason, is_forced_off=event.force)
    answer = AnswerState(
        body_hash=ref.body_hash, verb="revoke", position=position, issued_at_ns=ref.issued_at_ns, lease=event.lease
    )
    remembering.remember_ended(state, at_ns, ref, answer)


def end(
    state: State,
    position: int,
    at_ns: int,
    lease: int,
    how: str,
    *,
    reason: str = "",
    is_forced_off: bool = False,
) -> None:
    """A living lease is over; its devices wait for evidence that they are free."""
    row = state.leases[lease]
    assert not row.ended, f"lease {lease} has ended already ({row.ended})"
    floor = token_of(state.head.era, position)
    after = _replace(
        row,
        ended=how,
        ended_at_ns=at_ns,
        ended_position=position,
        renewals=(),
        end_reason=reason,
        is_forced_off=is_forced_off,
    )
    state.put_lease(lease, after)
    for device in row.devices:
        before = state.devices[device]
        state.put_device(
            device, _replace(before, ending=True, floor=floor, since_position=position, since_ns=at_ns)
        )
    for key in (row.grant_key, *row.renewals):
        remembering.fade(state, at_ns, row.principal, key)


def freed(state: State, position: int, at_ns: int, event: event_types.DeviceFreed) -> None:
    """A device is nobody's again. An operator's word ends its quarantine, too, and may be about nothing else."""
    row = state.devices[event.device]
    quarantine = row.quarantine if event.request is None else None
    if event.lease:
        after = _replace(
            row,
            lease=0,
            ending=False,
            displaced=False,
            binding=None,
            quarantine=quarantine,
            since_position=position,
            since_ns=at_ns,
        )
        state.put_device(event.device, after)
        _let_go(state, event.lease)
    else:
        state.put_device(event.device, _replace(row, quarantine=quarantine))
    if event.request is not None:
        _remember_confirmed(state, position, at_ns, event, event.request)


def _let_go(state: State, lease: int) -> None:
    row = state.leases[lease]
    granted = state.answers.get(row.grant_key)
    if row.held == 1 and (granted is None or granted.lease != lease):
        # Nobody can ask for its outcome any more.
        state.leases.drop(lease)
    else:
        state.put_lease(lease, _replace(row, held=row.held - 1))


def _remember_confirmed(
    state: State, position: int, at_ns: int, event: event_types.DeviceFreed, ref: RequestRef
) -> None:
    answer = AnswerState(
        body_hash=ref.body_hash,
        verb="confirm_free",
        position=position,
        issued_at_ns=ref.issued_at_ns,
        lease=event.lease,
        device=event.device,
    )
    remembering.remember_ended(state, at_ns, ref, answer)
