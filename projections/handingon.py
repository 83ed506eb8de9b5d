"""Deciding on leases that are kept, given back, given to another holder, or moved with their domain in two steps.

What events make of them: `leasing` and `keeping`.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec

from leasehold.events import inputs, limits, schedule_inputs
from leasehold.events.event_types import DomainBond, Event, LeaseReleased, LeaseRenewed
from leasehold.events.identities import RequestRef, tenant_of
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.events.schedule_events import LeasesRenewed, LeaseSwitched, LeaseTransferred
from leasehold.projections import conflicts, fencing, granting, quotas, waiting
from leasehold.projections.declining import Declined, declined
from leasehold.projections.ending import ending
from leasehold.projections.keeping import is_covered, kept_until_ns
from leasehold.projections.remembering import TOO_OLD
from leasehold.projections.rows import DeviceState, LeaseState
from leasehold.projections.state import State

_NS_PER_MS: Final = 1_000_000
_COALESCES: Final = 5
"""From these rules on a renewal is written only if it matters."""
_ABOUT_MAX: Final = 16
"""So many of the leases that a request names are named by its refusal."""


# --- keeping and giving back --------------------------------------------------------------------------------------


def changes_nothing(state: State, asked: inputs.Asked, now_ns: int) -> bool:
    """Whether this is a renewal of leases that are kept for long enough already: no word of it comes into the log."""
    ref = RequestRef(asked.principal, asked.request.request_id, "", asked.request.issued_at_ns)
    match asked.request:
        case inputs.RenewRequest():
            return _renew(state, ref, asked.request, now_ns) == []
        case schedule_inputs.RenewManyRequest():
            return _renew_many(state, ref, asked.request, now_ns) == []
    return False


def _renew(state: State, ref: RequestRef, request: inputs.RenewRequest, now_ns: int) -> list[Event] | Declined:
    """No event, if the lease is kept for as long already."""
    lease, name = state.leases.get(request.lease), lease_id_text(request.lease)
    if lease is not None and ref.issued_at_ns <= lease.renewal_horizon_ns:
        return Declined((name,), TOO_OLD)
    refusal = fencing.of_lease(state, ref.principal, request.lease, request.token)
    if refusal is not None:
        return Declined((name,), refusal)
    row = state.leases[request.lease]
    ttl_ms = request.ttl_ms or row.ttl_ms
    expires_at_ns = now_ns + ttl_ms * _NS_PER_MS
    if state.rules_version >= _COALESCES:
        if is_covered(row, ttl_ms, now_ns):
            return []
        expires_at_ns = kept_until_ns(now_ns, ttl_ms)
    return [LeaseRenewed(request=ref, lease=request.lease, ttl_ms=ttl_ms, expires_at_ns=expires_at_ns)]


def _renew_many(
    state: State, ref: RequestRef, request: schedule_inputs.RenewManyRequest, now_ns: int
) -> list[Event] | Declined:
    """All that can be kept, in one event, which makes them fall due together; none, if all are kept already."""
    refusals = [(lease, fencing.of_lease(state, ref.principal, lease, token)) for lease, token in request.leases]
    kept = tuple(dict.fromkeys(lease for lease, refusal in refusals if refusal is None))
    if not kept:
        about = tuple(lease_id_text(lease) for lease, _ in refusals[:_ABOUT_MAX])
        first = next(refusal for _, refusal in refusals if refusal is not None)
        more = f"; and so none of {len(refusals)}" if len(refusals) > 1 else ""
        return Declined(about, msgspec.structs.replace(first, message=first.message + more))
    if all(is_covered(row, row.ttl_ms, now_ns) for row in map(state.leases.__getitem__, kept)):
        return []
    return [LeasesRenewed(request=ref, leases=kept)]


def _release(state: State, ref: RequestRef, request: inputs.ReleaseRequest, _now_ns: int) -> list[Event] | Declined:
    refusal = fencing.of_lease(state, ref.principal, request.lease, request.token)
    if refusal is not None:
        return Declined((lease_id_text(request.lease),), refusal)
    return ending(state, LeaseReleased(request=ref, lease=request.lease))


# --- to another holder --------------------------------------------------------------------------------------------


def _transfer(
    state: State, ref: RequestRef, request: schedule_inputs.TransferRequest, _now_ns: int
) -> list[Event] | Declined:
    refusal = fencing.of_lease(state, ref.principal, request.lease, request.token)
    if refusal is not None:
        return Declined((lease_id_text(request.lease),), refusal)
    row = state.leases[request.lease]
    principal = request.principal or ref.principal
    tenant = tenant_of(principal)
    why_not = _not_given(state, request.lease, row) or (tenant != row.tenant and _not_clean(state, request.lease, row))
    if why_not:
        return why_not
    tied = _tied(state, row, (principal, request.holder))
    if tied:
        return Declined(row.devices, granting.refusal_of(tied))
    charges = quotas.charges(state, tenant, row.devices) if tenant != row.tenant else ()
    if isinstance(charges, Declined):
        return charges
    return [
        LeaseTransferred(
            request=ref,
            lease=request.lease,
            principal=principal,
            tenant=tenant,
            holder=request.holder,
            charges=charges or msgspec.UNSET,
        )
    ]


def _not_given(state: State, lease: int, row: LeaseState) -> Declined | None:
    """Why a lease of this kind, or in this state, goes to nobody else, and nowhere else."""
    if row.mode:
        how = "shares its devices with others" if row.mode == "shared" else "only looks on"
        return _not_transferable(lease, f"it {how}: there is nothing to hand on", "ask for another lease")
    if row.reserved_for:
        source = lease_id_text(row.reserved_for)
        return _not_transferable(lease, f"it is reserved to stand in for {source}", "switch it first, or release it")
    if row.successor:
        successor = lease_id_text(row.successor)
        return _not_transferable(lease, f"{successor} is reserved to stand in for it", f"release {successor} first")
    displaced = next((device for device in row.devices if state.devices[device].displaced), None)
    if displaced is not None:
        why = f"another thing sits at {displaced} than was leased"
        return _not_transferable(lease, why, "release it, and lease what is there")
    return None


def _not_clean(state: State, lease: int, row: LeaseState) -> Declined | None:
    """Which device would come to another tenant without being cleaned up."""
    for device in row.devices:
        marks = state.devices[device].marks
        if marks is not None and marks.policy is not None and marks.policy.clean:
            why = f"{device} must be cleaned up before another tenant gets it"
            return _not_transferable(lease, why, "release it; once it is confirmed clean, the other can lease it")
    return None


def _not_transferable(lease: int, why: str, help_text: str) -> Declined:
    name = lease_id_text(lease)
    return declined((name,), RefusalCode.NOT_TRANSFERABLE, f"{name} cannot be handed on: {why}", help_text)


def _tied(state: State, row: LeaseState, owner: tuple[str, str]) -> tuple[Blocker, ...]:
    """What other leases hold that could not be owned apart from this one's devices, if these went to `owner`."""
    if owner == (row.principal, row.holder):
        return ()
    together, around = frozenset(row.devices), conflicts.Around(state)
    found = (
        blocker
        for device in row.devices
        for blocker in conflicts.blockers(state, device, owner=owner, together=together, force=True, around=around)
        if blocker.lease and blocker.because_of
    )
    return tuple(islice(found, limits.BLOCKERS_PER_REFUSAL_MAX))


# --- with a domain that moves -------------------------------------------------------------------------------------


def _reserve(
    state: State, ref: RequestRef, request: schedule_inputs.ReserveRequest, now_ns: int
) -> list[Event] | Declined:
    """As a lease of its holder, for the same domain and on the same terms; it does not wait."""
    refusal = fencing.of_lease(state, ref.principal, request.lease, request.token)
    if refusal is not None:
        return Declined((lease_id_text(request.lease),), refusal)
    row = state.leases[request.lease]
    why_not = _not_given(state, request.lease, row)
    if why_not is not None:
        return why_not
    bond = row.bond or DomainBond(uuid="")
    wanted = inputs.LeaseRequest(
        request_id=request.request_id,
        issued_at_ns=request.issued_at_ns,
        holder=row.holder,
        ttl_ms=request.ttl_ms,
        devices=request.devices,
        host=request.host,
        domain=bond.uuid,
        gone_ms=bond.gone_ms,
        keep=bond.keep,
        driver=request.driver,
        needs=request.needs,
        constraints=request.constraints,
        tolerates=request.tolerates or row.tolerates,
    )
    terms = waiting.terms_of(wanted, ref, now_ns)
    given = granting.decide_lease(state, ref, wanted, terms, now_ns, reserved_for=request.lease)
    return given if isinstance(given, Declined) else waiting.granted(state, given)


def _switch(
    state: State, ref: RequestRef, request: schedule_inputs.SwitchRequest, _now_ns: int
) -> list[Event] | Declined:
    name = lease_id_text(request.lease)
    refusal = fencing.of_lease(state, ref.principal, request.lease, request.token)
    if refusal is not None:
        return Declined((name,), refusal)
    row = state.leases[request.lease]
    if not row.reserved_for:
        text = f"lease {name} is reserved for nothing: it counts already"
        return declined((name,), RefusalCode.NOT_RESERVED, text, "reserve devices for a lease first")
    source = state.leases.get(row.reserved_for)
    refusal = _displaced(state, row) or (_still_has(state, row.reserved_for, source) if source is not None else None)
    if refusal is not None:
        return Declined((name, lease_id_text(row.reserved_for)), refusal)
    switched = LeaseSwitched(request=ref, lease=request.lease, source=row.reserved_for)
    if source is None or source.ended:
        return [switched]
    return [*ending(state, LeaseReleased(request=ref, lease=row.reserved_for)), switched]


def _displaced(state: State, row: LeaseState) -> Refusal | None:
    for device in row.devices:
        if state.devices[device].displaced:
            text = f"another thing sits at {device} than was reserved"
            return Refusal(code=RefusalCode.DEVICE_MISSING, message=text, help="release it, and reserve what is there")
    return None


def _still_has(state: State, lease: int, row: LeaseState) -> Refusal | None:
    """Why it cannot be said that the source has let go of its devices. What has been freed of it, it has let go of."""
    for device in row.devices:
        held = state.devices[device]
        if held.lease == lease:
            refusal = _in_hand(state, device, held, is_living=not row.ended)
            if refusal is not None:
                return refusal
    return None


def _in_hand(state: State, device: str, row: DeviceState, *, is_living: bool) -> Refusal | None:
    host = state.hosts[row.host]
    if host.dead:
        return None
    if users := conflicts.users_seen(state, row):
        return Refusal(
            code=RefusalCode.SOURCE_STILL_HAS,
            message=f"{device} is still used by {', '.join(users)}",
            help="take it from there, or end that domain; the switch can be asked for as soon as that is seen",
        )
    if is_living and host.stale:
        return Refusal(
            code=RefusalCode.HOST_STALE,
            message=f"whether {device} is still used cannot be said: what is known of {row.host} may be out of date "
            f"({host.stale})",
            help=f"see that the agents on {row.host} run; of a host that is off: leasehold dead {row.host}",
        )
    return None


DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    inputs.RenewRequest: _renew,
    inputs.ReleaseRequest: _release,
    schedule_inputs.RenewManyRequest: _renew_many,
    schedule_inputs.TransferRequest: _transfer,
    schedule_inputs.ReserveRequest: _reserve,
    schedule_inputs.SwitchRequest: _switch,
}
"""By type of request; see `decide`."""
