"""Leases, as events move them: granted, renewed, ended, and their devices free again. What else moves them: `keeping`.

Only what is leased alone is held by its device's row, raises its floor, and waits for evidence behind the end.
"""

from typing import Final

import msgspec

from leasehold.events import event_types, limits
from leasehold.events.hostdev_events import LeaseRevoked, PrepareFailed
from leasehold.events.identities import Principal, RequestRef, device_id, principal_of, request_key
from leasehold.events.position import token_of
from leasehold.projections import bonds, failing, marking, queueing, remembering
from leasehold.projections.rows import AnswerState, LeaseState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


def granted(state: State, position: int, at_ns: int, event: event_types.LeaseGranted) -> None:
    """Its devices are held from here on; or shared, or looked at, by one more."""
    ref, mode, charges = event.request, event.mode or "", event.charges or ()
    key = request_key(ref.principal, ref.request_id)
    token = token_of(state.head.era, position)
    # Each of up to 15 words costs little; Python hands on more of them in a dict, for ten times as much.
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
        held=0 if mode else len(event.devices),
        bond=event.bond or None,
        handover=event.handover or None,
        tenant=event.tenant,
        mode=mode,
        tolerates=event.tolerates or (),
    )
    if event.reserved_for or event.search or (mode and charges):
        row = _replace(
            row,
            reserved_for=event.reserved_for or 0,
            charges=charges if mode else (),
            search=event.search or None,
        )
    state.put_lease(position, row)
    if row.bond is not None:
        bonds.look(state, position, at_ns)
    if row.reserved_for:
        _succeed(state, row.reserved_for, position)
    for number, device in enumerate(event.devices):
        before = state.devices[device]
        charged: tuple[str, ...] = ()
        if charges:
            charged = charges[number]
            count(state, event.tenant, charged, 1)
        if mode == "shared":
            state.put_device(device, _replace(before, sharers=(*before.sharers, position)))
        elif not mode:
            after = _replace(
                before,
                lease=position,
                ending=False,
                floor=token,
                since_position=position,
                since_ns=at_ns,
                charged=charged,
                marks=failing.granted(before) if before.marks is not None else None,
            )
            state.put_device(device, after)
    answer = AnswerState(
        body_hash=ref.body_hash,
        verb="lease",
        position=position,
        issued_at_ns=ref.issued_at_ns,
        lease=position,
        queued=event.queued or 0,
    )
    state.answers.put(key, answer)
    queueing.granted(state, position, event)


def count(state: State, tenant: Principal, classes: tuple[str, ...], by: int) -> None:
    """So many devices more, or fewer, count against these quotas of a tenant, as far as there still are such."""
    for name in classes:
        quota = state.quotas.get((tenant, name))
        if quota is not None:
            state.put_quota(tenant, name, _replace(quota, devices=quota.devices + by))


def _succeed(state: State, source: int, successor: int) -> None:
    """What is reserved to stand in for a lease, if that is still known; 0: nothing any more."""
    row = state.leases.get(source)
    if row is not None:
        state.put_lease(source, _replace(row, successor=successor))


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
        renewed_position=position,
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
    key = request_key(ref.principal, ref.request_id)
    known = state.answers.get(key)
    if known is not None and known.verb == "release" and known.body_hash == ref.body_hash:
        ended = (*(known.leases or (known.lease,)), event.lease)
        state.answers.put(key, _replace(known, leases=ended))
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
    device = device_id(event.host, event.key)
    state.put_device(device, failing.failed(state.devices[device], position, at_ns))


def revoked(state: State, position: int, at_ns: int, event: LeaseRevoked) -> None:
    """An operator took it away; or what domains still have of one that has ended."""
    ref = event.request
    row = state.leases[event.lease]
    if row.ended:
        state.put_lease(event.lease, _replace(row, is_forced_off=event.force))
    else:
        reason = f"{ref.principal}: {event.reason}"
        end(state, position, at_ns, event.lease, "revoked", reason=reason, is_forced_off=event.force)
    if at_ns - ref.issued_at_ns >= limits.REQUEST_AGE_NS_MAX:
        return  # a taint has ended it behind a long notice: what put that there cannot be asked again
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
    if row.reserved_for:
        _succeed(state, row.reserved_for, 0)
    if row.mode:
        _leave(state, lease, row)
    else:
        for device in row.devices:
            before = state.devices[device]
            state.put_device(
                device, _replace(before, ending=True, floor=floor, since_position=position, since_ns=at_ns)
            )
    for key in (row.grant_key, *row.renewals):
        remembering.fade(state, at_ns, principal_of(key), key)


def _leave(state: State, lease: int, row: LeaseState) -> None:
    """Who shared devices, or looked at them, does not any more."""
    for classes in row.charges:
        count(state, row.tenant, classes, -1)
    for device in row.devices if row.mode == "shared" else ():
        before = state.devices[device]
        state.put_device(device, _replace(before, sharers=tuple(each for each in before.sharers if each != lease)))


def freed(state: State, position: int, at_ns: int, event: event_types.DeviceFreed) -> None:
    """A device is nobody's again. An operator's word ends its binder's quarantine, too, and may be all that it does."""
    row = state.devices[event.device]
    quarantine = row.quarantine if event.request is None else failing.lasting(row.quarantine)
    if event.lease:
        tenant = state.leases[event.lease].tenant
        if row.charged:
            count(state, tenant, row.charged, -1)
        after = _replace(
            row,
            lease=0,
            ending=False,
            displaced=False,
            binding=None,
            quarantine=quarantine,
            since_position=position,
            since_ns=at_ns,
            charged=(),
            marks=marking.used_by(row.marks, tenant, position),
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
        state.drop_lease(lease)
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
