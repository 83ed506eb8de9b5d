"""Deciding on a lease of known devices, however it was asked for: all or none."""

from typing import Final

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.event_types import DomainBond, LeaseGranted
from leasehold.events.hostdevs import STUBS, Handover
from leasehold.events.identities import DeviceId, RequestRef, tenant_of
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.projections import conflicts
from leasehold.projections.declining import Declined
from leasehold.projections.state import State

_NS_PER_MS: Final = 1_000_000


def grant(
    state: State,
    ref: RequestRef,
    request: inputs.LeaseRequest | inputs.PrepareRequest,
    devices: tuple[DeviceId, ...],
    *,
    uuid: str,
    now_ns: int,
) -> LeaseGranted | Declined:
    """The lease of `devices` (known and physical, sorted, each once), for the domain of `uuid` if that is not empty."""
    owner = (ref.principal, request.holder)
    found = conflicts.first_blockers(state, devices, owner=owner, force=request.force)
    if found:
        return Declined(devices, refusal_of(found))
    handover: Handover | msgspec.UnsetType = msgspec.UNSET
    if request.driver or request.unmanaged:
        handover = Handover(driver=request.driver, unmanaged=request.unmanaged)
        refusal = _not_handed_over(state, devices, handover)
        if refusal is not None:
            return Declined(devices, refusal)
    bond: DomainBond | msgspec.UnsetType = msgspec.UNSET
    if uuid:
        bond = DomainBond(uuid=uuid, gone_ms=request.gone_ms, keep=request.keep)
    return event_types.LeaseGranted(
        request=ref,
        tenant=tenant_of(ref.principal),
        holder=request.holder,
        devices=devices,
        ttl_ms=request.ttl_ms,
        expires_at_ns=now_ns + request.ttl_ms * _NS_PER_MS,
        forced=request.force and any(state.devices[device].description.protections for device in devices),
        bond=bond,
        handover=handover,
    )


def refusal_of(found: tuple[Blocker, ...]) -> Refusal:
    """The refusal for these blockers, of which the first is the gravest."""
    return Refusal(
        code=conflicts.CODE_OF_RULE[found[0].rule],
        message=f"{found[0].device}: {found[0].why}",
        blockers=found,
        help=found[0].help,
    )


def _not_handed_over(state: State, devices: tuple[DeviceId, ...], handover: Handover) -> Refusal | None:
    """Why devices cannot be handed over in the way that was said."""
    for device in devices:
        row = state.devices[device]
        if state.hosts[row.host].mode != "managed":
            return Refusal(
                code=RefusalCode.HOST_NOT_MANAGED,
                message=f"{device}: no binder acts on {row.host}, so nothing is handed over there",
                help=f"run a binder on {row.host}, or say neither a driver nor that devices are unmanaged",
            )
        driver = row.description.driver
        if handover.unmanaged and row.description.kind == "pci" and driver not in STUBS:
            bound = f"bound to {driver}" if driver else "bound to no driver"
            return Refusal(
                code=RefusalCode.DEVICE_NOT_DETACHED,
                message=f"{device} is {bound}: an unmanaged device must be detached from the host by hand",
                help=f"leasehold nodedev detach {device}, or lease it managed",
            )
    return None
