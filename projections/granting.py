"""Deciding on a lease, however it was asked for: all of its devices, or none."""

from typing import Final

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.event_types import DomainBond, LeaseGranted
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceId, RequestRef
from leasehold.events.refusals import Blocker, Refusal
from leasehold.events.scheduling import Search
from leasehold.projections import conflicts, quotas, restraints, searching
from leasehold.projections.declining import Declined
from leasehold.projections.naming import Resolved, resolve, unresolved
from leasehold.projections.state import State
from leasehold.projections.terms import Terms

_NS_PER_MS: Final = 1_000_000
_UNSET: Final = msgspec.UNSET


def decide_lease(
    state: State, ref: RequestRef, request: inputs.LeaseRequest, terms: Terms, now_ns: int, *, reserved_for: int = 0
) -> LeaseGranted | Declined:
    """The lease of the devices that are named, or of those that are found for what is needed.

    `reserved_for`: the lease that it is to stand in for. Who waits is given what is kept for him, where that will do.
    """
    search = None
    if request.needs:
        kept = frozenset(state.queue[terms.queued].keeps) if terms.queued else frozenset()
        owner = (ref.principal, request.holder)
        found = searching.search(state, request, terms, owner=owner, prefer=kept)
        if isinstance(found, Declined):
            return found
        devices, search = found.devices, found.search
    else:
        those = named(state, request)
        if isinstance(those, Declined):
            return those
        devices = those
    return grant(
        state,
        ref,
        request,
        devices,
        uuid=request.domain,
        now_ns=now_ns,
        terms=terms,
        search=search,
        reserved_for=reserved_for,
    )


def named(state: State, request: inputs.LeaseRequest) -> tuple[DeviceId, ...] | Declined:
    """The physical devices that a request names, sorted, each once."""
    found: set[DeviceId] = set()
    for text in request.devices:
        resolved = resolve(state, text, request.host)
        if resolved.device is None:
            return Declined(request.devices, unresolved(resolved))
        found.add(conflicts.physical_device(resolved.device))
    devices = tuple(sorted(found))
    for device in devices:
        if device not in state.devices:
            return Declined(request.devices, unresolved(Resolved(device)))
    return devices


def grant(
    state: State,
    ref: RequestRef,
    request: inputs.LeaseRequest | inputs.PrepareRequest,
    devices: tuple[DeviceId, ...],
    *,
    uuid: str,
    now_ns: int,
    terms: Terms,
    search: Search | None = None,
    reserved_for: int = 0,
) -> LeaseGranted | Declined:
    """The lease of `devices` (known and physical, sorted, each once), for the domain of `uuid` if that is not empty."""
    if search is None:
        owner = (ref.principal, request.holder)
        found = conflicts.first_blockers(state, devices, owner=owner, force=request.force, terms=terms)
        if found:
            return Declined(devices, refusal_of(found))
    handover: Handover | msgspec.UnsetType = _UNSET
    if request.driver or request.unmanaged:
        handover = Handover(driver=request.driver, unmanaged=request.unmanaged)
        for device in devices:
            blocker = restraints.not_handed_over(state, device, handover)
            if blocker is not None:
                return Declined(devices, _not_so(blocker))
    bond: DomainBond | msgspec.UnsetType = _UNSET
    if uuid:
        bond = DomainBond(uuid=uuid, gone_ms=request.gone_ms, keep=request.keep)
    charges: tuple[tuple[str, ...], ...] = ()
    if state.quotas and terms.mode != "admin":
        charged = quotas.charges(state, terms.tenant, devices)
        if isinstance(charged, Declined):
            return charged
        charges = charged
    return event_types.LeaseGranted(
        request=ref,
        tenant=terms.tenant,
        holder=request.holder,
        devices=devices,
        ttl_ms=request.ttl_ms,
        expires_at_ns=now_ns + request.ttl_ms * _NS_PER_MS,
        forced=request.force and any(state.devices[device].description.protections for device in devices),
        bond=bond,
        handover=handover,
        mode=terms.mode or _UNSET,
        tolerates=terms.tolerates or _UNSET,
        charges=charges if charges and any(charges) else _UNSET,
        queued=terms.queued or _UNSET,
        reserved_for=reserved_for or _UNSET,
        search=search or _UNSET,
    )


def _not_so(blocker: Blocker) -> Refusal:
    """The refusal of a way of handing over: nothing is in the way but what was asked for."""
    return Refusal(code=conflicts.CODE_OF_RULE[blocker.rule], message=blocker.why, help=blocker.help)


def refusal_of(found: tuple[Blocker, ...]) -> Refusal:
    """The refusal for these blockers, of which the first is the gravest."""
    return Refusal(
        code=conflicts.CODE_OF_RULE[found[0].rule],
        message=f"{found[0].device}: {found[0].why}",
        blockers=found,
        help=found[0].help,
    )
