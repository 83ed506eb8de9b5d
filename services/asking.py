"""Requests as they are made on this side of the bus: with an id of their own, and the time at which they are issued."""

import time
import uuid
from collections.abc import Iterable
from typing import Final

from leasehold.events import identities, inputs
from leasehold.events.capabilities import NewDevice
from leasehold.events.hostdevs import parse_stub
from leasehold.events.identities import Holder, RequestId
from leasehold.events.inputs import GONE_MS
from leasehold.events.scheduling import Constraint, Need, Option

ORDER_TIMEOUT_MS: Final = 60_000
"""As long as libvirt waits for a virtual HBA."""


def new_request_id() -> str:
    """An id that no other request of this principal has."""
    return uuid.uuid4().hex


def _named(request_id: str | None) -> RequestId:
    return RequestId(new_request_id() if request_id is None else request_id)


def lease_request(
    devices: tuple[str, ...],
    *,
    holder: str,
    ttl_ms: int,
    host: str = "",
    force: bool = False,
    domain: str = "",
    gone_ms: int = GONE_MS,
    keep: bool = False,
    driver: str = "",
    unmanaged: bool = False,
    needs: tuple[Need, ...] = (),
    constraints: tuple[Constraint, ...] = (),
    mode: str = "",
    tolerates: tuple[str, ...] = (),
    wait_ms: int = 0,
    priority: int = 0,
    request_id: str | None = None,
) -> inputs.LeaseRequest:
    """Lease `devices` (names, keys, addresses or paths) or what is needed, all or none; for `domain` (a uuid), if there
    is one.

    Raises:
        InvalidInputError: `domain` is no uuid, or `driver` no stub driver.
    """
    return inputs.LeaseRequest(
        request_id=_named(request_id),
        issued_at_ns=time.time_ns(),
        devices=devices,
        holder=Holder(holder),
        ttl_ms=ttl_ms,
        host=host,
        force=force,
        domain=identities.parse_uuid(domain, "domain") if domain else "",
        gone_ms=gone_ms,
        keep=keep,
        driver=parse_stub(driver) if driver else "",
        unmanaged=unmanaged,
        needs=needs,
        constraints=constraints,
        mode=mode,
        tolerates=tolerates,
        wait_ms=wait_ms,
        priority=priority,
    )


def needs_of(
    select: str = "",
    *,
    device_class: str = "",
    count: int = 1,
    every: bool = False,
    first_of: Iterable[str | Option] = (),
    needs: Iterable[Need] = (),
) -> tuple[Need, ...]:
    """What is needed: one thing, by a selector, a class or both; or the first of several `first_of` (selectors, of
    `count` devices each, or options); and all of `needs` besides.
    """
    options = tuple(
        Option(select=each, count=count, every=every) if isinstance(each, str) else each for each in first_of
    )
    if options:
        return (Need(first_of=options), *needs)
    if select or device_class:
        return (Need(select=select, device_class=device_class, count=count, every=every), *needs)
    return tuple(needs)


def constraints_of(
    same: str | Iterable[str] = (), distinct: str | Iterable[str] = (), constraints: Iterable[Constraint] = ()
) -> tuple[Constraint, ...]:
    """Which attributes are to be the same, or distinct, for all devices; and all of `constraints` besides."""
    said = (("same", same), ("distinct", distinct))
    return (
        *(
            Constraint(kind=kind, attribute=attribute)
            for kind, attributes in said
            for attribute in ((attributes,) if isinstance(attributes, str) else attributes)
        ),
        *constraints,
    )


def renew_request(lease: int, token: int, *, ttl_ms: int = 0, request_id: str | None = None) -> inputs.RenewRequest:
    """Keep a lease for `ttl_ms` from now; 0: for as long as before."""
    return inputs.RenewRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), lease=lease, token=token, ttl_ms=ttl_ms
    )


def release_request(lease: int, token: int, *, request_id: str | None = None) -> inputs.ReleaseRequest:
    """Give a lease back."""
    return inputs.ReleaseRequest(request_id=_named(request_id), issued_at_ns=time.time_ns(), lease=lease, token=token)


def confirm_free_request(
    device: str, reason: str, *, host: str = "", request_id: str | None = None
) -> inputs.ConfirmFreeRequest:
    """Say by name that nobody uses a device whose lease has ended."""
    return inputs.ConfirmFreeRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), device=device, reason=reason, host=host
    )


def retire_agent_request(
    host: str, agent: str, reason: str, *, request_id: str | None = None
) -> inputs.RetireAgentRequest:
    """Say by name that `agent` of `host` will not come back."""
    return inputs.RetireAgentRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), host=host, agent=agent, reason=reason
    )


def create_device_request(
    device: NewDevice, *, host: str = "", timeout_ms: int = ORDER_TIMEOUT_MS, request_id: str | None = None
) -> inputs.CreateDeviceRequest:
    """Have `host`, or the one of the parent that is named, make a device within `timeout_ms`."""
    return inputs.CreateDeviceRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), device=device, host=host, timeout_ms=timeout_ms
    )


def destroy_device_request(
    device: str, *, host: str = "", timeout_ms: int = ORDER_TIMEOUT_MS, request_id: str | None = None
) -> inputs.DestroyDeviceRequest:
    """Have its host take away a device that was made, within `timeout_ms`."""
    return inputs.DestroyDeviceRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), device=device, host=host, timeout_ms=timeout_ms
    )


def prepare_request(
    domain: str,
    *,
    holder: str,
    ttl_ms: int,
    host: str = "",
    bus: str = "",
    force: bool = False,
    gone_ms: int = GONE_MS,
    keep: bool = False,
    driver: str = "",
    unmanaged: bool = False,
    request_id: str | None = None,
) -> inputs.PrepareRequest:
    """Lease for `domain` (its name, uuid, key or id) what its configuration claims, of one `bus` or of both.

    Raises:
        InvalidInputError: `driver` is no stub driver.
    """
    return inputs.PrepareRequest(
        request_id=_named(request_id),
        issued_at_ns=time.time_ns(),
        domain=domain,
        holder=Holder(holder),
        ttl_ms=ttl_ms,
        host=host,
        bus=bus,
        force=force,
        gone_ms=gone_ms,
        keep=keep,
        driver=parse_stub(driver) if driver else "",
        unmanaged=unmanaged,
    )


def reattach_request(
    domain: str, *, host: str = "", bus: str = "", request_id: str | None = None
) -> inputs.ReattachRequest:
    """Release all of the asker's leases that are for `domain`, of one `bus` or of both."""
    return inputs.ReattachRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), domain=domain, host=host, bus=bus
    )


def operate_device_request(
    device: str,
    operation: str,
    *,
    host: str = "",
    driver: str = "",
    timeout_ms: int = ORDER_TIMEOUT_MS,
    request_id: str | None = None,
) -> inputs.OperateDeviceRequest:
    """Have its host do one of `hostdevs.OPERATIONS` to a device that nobody has leased.

    Raises:
        InvalidInputError: `driver` is no stub driver.
    """
    return inputs.OperateDeviceRequest(
        request_id=_named(request_id),
        issued_at_ns=time.time_ns(),
        device=device,
        operation=operation,
        host=host,
        driver=parse_stub(driver) if driver else "",
        timeout_ms=timeout_ms,
    )


def revoke_request(
    lease: int, reason: str, *, force: bool = False, request_id: str | None = None
) -> inputs.RevokeRequest:
    """Take `lease` away; with `force` its devices are taken even from a domain that still has them."""
    return inputs.RevokeRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), lease=lease, reason=reason, force=force
    )


def declare_dead_request(host: str, reason: str, *, request_id: str | None = None) -> inputs.DeclareDeadRequest:
    """Say by name that `host` is off."""
    return inputs.DeclareDeadRequest(
        request_id=_named(request_id), issued_at_ns=time.time_ns(), host=host, reason=reason
    )
