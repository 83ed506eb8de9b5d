"""Quotas: how many devices of a class a tenant may have at a time; which devices count, and as events move it.

What a device counts against is found when it is granted (or when a quota is set), and stands in its row, or in the
lease that shares it, until it is free: a class that is given another selector meanwhile changes nothing about that.
Devices that are only looked at (`admin`) do not count. Which of its devices a tenant would rather give back nobody can
say for it, so who has more than a lowered quota allows keeps them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from leasehold.events import limits
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, Principal, RequestRef
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_events import QuotaSet
from leasehold.events.schedule_inputs import SetQuotaRequest
from leasehold.projections import selectors
from leasehold.projections.declining import Declined, declined
from leasehold.projections.rows import LeaseState, QuotaState
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


def charges(state: State, tenant: Principal, devices: tuple[DeviceId, ...]) -> tuple[tuple[str, ...], ...] | Declined:
    """Of each of these devices, against which quotas of `tenant` it would count, if it got them all.

    Empty: it has none. Declined: it would have more than it may.
    """
    names = state.indexes.quotas_of.get(tenant)
    if not names:
        return ()
    found = tuple(tuple(name for name in names if is_of_class(state, device, name)) for device in devices)
    for name in names:
        quota = state.quotas[tenant, name]
        wanted = sum(name in each for each in found)
        if wanted > max(quota.left, 0):
            return Declined(devices, exceeded(tenant, name, quota, wanted))
    return found


def is_of_class(state: State, device: DeviceId, name: str) -> bool:
    """Whether a known device is of a class; of the nameless one all are, of one that is not known none."""
    if not name:
        return True
    row = state.classes.get(name)
    selector = selectors.compiled(row.select) if row is not None else None
    return isinstance(selector, Selector) and selector.matches(state, device) is True


def exceeded(tenant: Principal, name: str, quota: QuotaState, wanted: int) -> Refusal:
    """Why a tenant may not have so many devices more of a class."""
    of = f" of class {name}" if name else ""
    return Refusal(
        code=RefusalCode.QUOTA_EXCEEDED,
        message=f"tenant {tenant} may have {quota.devices_max} devices{of} at a time; "
        f"it has {quota.devices}, and this needs {wanted}",
        help="release what is not needed, wait for it, or ask an operator to raise the quota",
    )


def _leased(state: State, tenant: Principal) -> Iterator[tuple[int, LeaseState]]:
    """The leases of a tenant that count, by their ids."""
    for lease in state.indexes.leases_of.get(tenant, ()):
        row = state.leases[lease]
        if row.mode != "admin":
            yield lease, row


def _devices_of(state: State, lease: int, row: LeaseState) -> Iterator[DeviceId]:
    """Those that it has still."""
    for device in row.devices:
        if row.mode or state.devices[device].lease == lease:
            yield device


# --- setting them -------------------------------------------------------------------------------------------------


def _set(state: State, ref: RequestRef, request: SetQuotaRequest, _now_ns: int) -> list[Event] | Declined:
    tenant, name = request.tenant, request.device_class
    about = (f"{tenant}/{name}",)
    known = state.quotas.get((tenant, name))
    if request.devices_max < 0:
        if known is None:
            text = f"tenant {tenant} has no quota of {f'class {name}' if name else 'all classes together'}"
            return declined(about, RefusalCode.QUOTA_UNKNOWN, text, "list the quotas")
        return [QuotaSet(request=ref, tenant=tenant, device_class=name, devices_max=-1)]
    if known is not None:
        return [QuotaSet(request=ref, tenant=tenant, device_class=name, devices_max=request.devices_max)]
    if name and name not in state.classes:
        return declined(about, RefusalCode.CLASS_UNKNOWN, f"there is no class {name}", "list the classes, or add it")
    own = len(state.indexes.quotas_of.get(tenant, ()))
    if own >= limits.QUOTAS_PER_TENANT_MAX or len(state.quotas) >= limits.QUOTAS_MAX:
        text = f"tenant {tenant} has {own} quotas of at most {limits.QUOTAS_PER_TENANT_MAX}"
        text += f", and all have {len(state.quotas)} of at most {limits.QUOTAS_MAX}"
        return declined(about, RefusalCode.QUOTAS_TOO_MANY, text, "take away those that are not needed")
    has = {device for lease, row in _leased(state, tenant) for device in _devices_of(state, lease, row)}
    if len(has) > limits.CHARGED_AT_ONCE_MAX:
        text = f"tenant {tenant} has {len(has)} devices, and at most {limits.CHARGED_AT_ONCE_MAX} are counted at once"
        return declined(about, RefusalCode.DEVICES_TOO_MANY, text, "set it when the tenant has fewer devices")
    charged = tuple(device for device in sorted(has) if is_of_class(state, device, name))
    return [QuotaSet(request=ref, tenant=tenant, device_class=name, devices_max=request.devices_max, charged=charged)]


DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    SetQuotaRequest: _set,
}
"""By type of request; see `decide`."""


# --- as events move them ------------------------------------------------------------------------------------------


def quota_set(state: State, position: int, event: QuotaSet) -> None:
    """How many devices a tenant may have; of a new quota also which it has, of one that goes that none counts."""
    tenant, name = event.tenant, event.device_class
    known = state.quotas.get((tenant, name))
    if event.devices_max < 0:
        _count_anew(state, tenant, name, frozenset())
        state.drop_quota(tenant, name)
        return
    by = event.request.principal
    if known is not None:
        row = _replace(known, devices_max=event.devices_max, position=position, by=by)
    else:
        devices = _count_anew(state, tenant, name, frozenset(event.charged))
        row = QuotaState(devices_max=event.devices_max, devices=devices, position=position, by=by)
    state.put_quota(tenant, name, row)


def _count_anew(state: State, tenant: Principal, name: str, charged: frozenset[str]) -> int:
    """Let just these of a tenant's devices count against its quota of a class; how many that are."""
    count = 0
    for lease, row in list(_leased(state, tenant)):
        if row.mode:
            before = row.charges or ((),) * len(row.devices)
            after = tuple(
                _with(each, name, counts=device in charged) for device, each in zip(row.devices, before, strict=True)
            )
            count += sum(name in each for each in after)
            if after != before:
                state.put_lease(lease, _replace(row, charges=after))
            continue
        for device in _devices_of(state, lease, row):
            device_row = state.devices[device]
            now = _with(device_row.charged, name, counts=device in charged)
            count += name in now
            if now != device_row.charged:
                state.put_device(device, _replace(device_row, charged=now))
    return count


def _with(names: tuple[str, ...], name: str, *, counts: bool) -> tuple[str, ...]:
    rest = tuple(each for each in names if each != name)
    return tuple(sorted((*rest, name))) if counts else rest
