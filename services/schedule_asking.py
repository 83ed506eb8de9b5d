"""Requests about the queue, about keeping and handing on, and of operators: made as `asking` makes all others."""

import time
from collections.abc import Iterable
from typing import Any, TypeVar

from leasehold.events import schedule_inputs
from leasehold.events.hostdevs import parse_stub
from leasehold.events.identities import Holder, Principal, RequestId
from leasehold.events.schedule_inputs import ScheduleRequest
from leasehold.events.scheduling import DRAIN, Constraint, Need
from leasehold.services.asking import new_request_id

Made = TypeVar("Made", bound=ScheduleRequest)


def _made(kind: type[Made], request_id: str | None, **fields: Any) -> Made:
    named = RequestId(new_request_id() if request_id is None else request_id)
    return kind(request_id=named, issued_at_ns=time.time_ns(), **fields)


def withdraw_request(
    queued: int, reason: str = "", *, request_id: str | None = None
) -> schedule_inputs.WithdrawRequest:
    """Take a waiting request back."""
    return _made(schedule_inputs.WithdrawRequest, request_id, queued=queued, reason=reason)


def renew_many_request(
    leases: Iterable[tuple[int, int]], *, request_id: str | None = None
) -> schedule_inputs.RenewManyRequest:
    """Keep many leases, each named with its token."""
    return _made(schedule_inputs.RenewManyRequest, request_id, leases=tuple(leases))


def transfer_request(
    lease: int, token: int, holder: str, *, principal: str = "", request_id: str | None = None
) -> schedule_inputs.TransferRequest:
    """Give a lease to another holder, of the same principal or of another."""
    return _made(
        schedule_inputs.TransferRequest,
        request_id,
        lease=lease,
        token=token,
        holder=Holder(holder),
        principal=Principal(principal),
    )


def reserve_request(
    lease: int,
    token: int,
    devices: tuple[str, ...] = (),
    *,
    ttl_ms: int,
    needs: tuple[Need, ...] = (),
    constraints: tuple[Constraint, ...] = (),
    host: str = "",
    tolerates: tuple[str, ...] = (),
    driver: str = "",
    request_id: str | None = None,
) -> schedule_inputs.ReserveRequest:
    """Hold devices elsewhere for the domain of a lease, until it has moved there.

    Raises:
        InvalidInputError: `driver` is no stub driver.
    """
    return _made(
        schedule_inputs.ReserveRequest,
        request_id,
        lease=lease,
        token=token,
        ttl_ms=ttl_ms,
        devices=devices,
        needs=needs,
        constraints=constraints,
        host=host,
        tolerates=tolerates,
        driver=parse_stub(driver) if driver else "",
    )


def switch_request(lease: int, token: int, *, request_id: str | None = None) -> schedule_inputs.SwitchRequest:
    """The domain has moved: what was reserved counts from here on."""
    return _made(schedule_inputs.SwitchRequest, request_id, lease=lease, token=token)


def set_class_request(name: str, select: str, *, request_id: str | None = None) -> schedule_inputs.SetClassRequest:
    """Give a selector a name."""
    return _made(schedule_inputs.SetClassRequest, request_id, name=name, select=select)


def remove_class_request(name: str, *, request_id: str | None = None) -> schedule_inputs.RemoveClassRequest:
    """Take a class away."""
    return _made(schedule_inputs.RemoveClassRequest, request_id, name=name)


def set_quota_request(
    tenant: str, devices_max: int, *, device_class: str = "", request_id: str | None = None
) -> schedule_inputs.SetQuotaRequest:
    """Say how many devices, of a class or of all, a tenant may have at a time; -1: as many as there are."""
    return _made(
        schedule_inputs.SetQuotaRequest,
        request_id,
        tenant=Principal(tenant),
        devices_max=devices_max,
        device_class=device_class,
    )


def cordon_request(
    reason: str, *, host: str = "", device: str = "", request_id: str | None = None
) -> schedule_inputs.CordonRequest:
    """Let nothing more of a device, or of a host, be granted."""
    return _made(schedule_inputs.CordonRequest, request_id, reason=reason, host=host, device=device)


def uncordon_request(
    *, host: str = "", device: str = "", request_id: str | None = None
) -> schedule_inputs.UncordonRequest:
    """Let it be granted again."""
    return _made(schedule_inputs.UncordonRequest, request_id, host=host, device=device)


def taint_request(
    name: str,
    reason: str,
    *,
    host: str = "",
    device: str = "",
    value: str = "",
    effect: str = "no_grant",
    notice_ms: int = 0,
    request_id: str | None = None,
) -> schedule_inputs.TaintRequest:
    """Keep away from a device, or a host, who does not tolerate this."""
    return _made(
        schedule_inputs.TaintRequest,
        request_id,
        name=name,
        reason=reason,
        host=host,
        device=device,
        value=value,
        effect=effect,
        notice_ms=notice_ms,
    )


def untaint_request(
    name: str, *, host: str = "", device: str = "", request_id: str | None = None
) -> schedule_inputs.UntaintRequest:
    """Take a taint away."""
    return _made(schedule_inputs.UntaintRequest, request_id, name=name, host=host, device=device)


def drain_request(
    reason: str, *, host: str = "", device: str = "", notice_ms: int = 0, request_id: str | None = None
) -> schedule_inputs.TaintRequest:
    """Have all leases of a device, or of a host, end after a notice, but for those that tolerate it; grant no more."""
    return taint_request(
        DRAIN, reason, host=host, device=device, effect="evict", notice_ms=notice_ms, request_id=request_id
    )


def set_policy_request(
    device: str, *, host: str = "", share_max: int = 1, clean: bool = False, request_id: str | None = None
) -> schedule_inputs.SetPolicyRequest:
    """Say how a device may be handed out."""
    return _made(
        schedule_inputs.SetPolicyRequest, request_id, device=device, host=host, share_max=share_max, clean=clean
    )


def confirm_clean_request(
    device: str, reason: str, *, host: str = "", request_id: str | None = None
) -> schedule_inputs.ConfirmCleanRequest:
    """Say by name that a device was cleaned up behind its last lease."""
    return _made(schedule_inputs.ConfirmCleanRequest, request_id, device=device, reason=reason, host=host)


def heal_request(
    device: str, reason: str, *, host: str = "", request_id: str | None = None
) -> schedule_inputs.HealRequest:
    """Say by name that a device which failed too often works again."""
    return _made(schedule_inputs.HealRequest, request_id, device=device, reason=reason, host=host)
