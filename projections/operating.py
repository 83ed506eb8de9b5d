"""Deciding on what administrators have a host's binder do to one device: detach, reattach, reset (`nodedev` in virsh).

Nothing is done to a device that is leased, used, needed by the host, or tied to one that is; in virsh the neighbours of
a device that is in use may be detached. What is in quarantine may be reattached, which is one way out of it.
"""

from itertools import islice
from typing import Final

from leasehold.events import inputs, limits
from leasehold.events.capabilities import DetachDevice, OrderToBinder, ReattachDevice, ResetDevice
from leasehold.events.event_types import HostOrdered
from leasehold.events.identities import DeviceId, HostName, RequestRef
from leasehold.events.inputs import BINDER
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.projections import conflicts, failing
from leasehold.projections.declining import Declined, declined
from leasehold.projections.granting import refusal_of
from leasehold.projections.naming import Resolved, resolve, unresolved
from leasehold.projections.rows import DeviceState
from leasehold.projections.state import State

_FOR_HOLDERS: Final = frozenset(("cordoned", "tainted", "unclean", "kept"))
"""Rules that keep a device from being leased, not from being worked on."""


def operate(
    state: State, ref: RequestRef, request: inputs.OperateDeviceRequest, now_ns: int
) -> HostOrdered | Declined:
    """What a host's binder is told to do for this request."""
    resolved = resolve(state, request.device, request.host)
    if resolved.device is None:
        return Declined((request.device,), unresolved(resolved))
    device = conflicts.physical_device(resolved.device)
    if device not in state.devices:
        return Declined((request.device,), unresolved(Resolved(device)))
    row = state.devices[device]
    refused = _host_refuses(state, row.host, device) or _device_refuses(state, device, row, request)
    if refused is not None:
        return refused
    deadline_ns = now_ns + request.timeout_ms * 1_000_000
    order = _order(row, request)
    return HostOrdered(request=ref, host=row.host, agent=BINDER, order=order, deadline_ns=deadline_ns)


def _order(row: DeviceState, request: inputs.OperateDeviceRequest) -> OrderToBinder:
    key = row.description.key
    if request.operation == "detach":
        return DetachDevice(device=key, driver=request.driver)
    return ReattachDevice(device=key) if request.operation == "reattach" else ResetDevice(device=key)


def _host_refuses(state: State, host: HostName, device: DeviceId) -> Declined | None:
    row = state.hosts[host]
    binder = row.sources.get(BINDER)
    if row.mode != "managed" or binder is None:
        text = f"no binder acts on {host}, so nothing is unbound, rebound or reset there"
        return declined((device,), RefusalCode.HOST_NOT_MANAGED, text, f"run a binder on {host}, or do it by hand")
    if row.stale:
        text = f"what is known of host {host} may be out of date ({row.stale})"
        return declined((device,), RefusalCode.HOST_STALE, text, f"see that the agents on {host} run")
    if len(state.indexes.open_orders.get(host, ())) >= limits.ORDERS_OPEN_PER_HOST_MAX:
        text = f"{limits.ORDERS_OPEN_PER_HOST_MAX} orders to {host} are not over yet"
        return declined((device,), RefusalCode.ORDERS_TOO_MANY, text, "wait until some are over")
    return None


def _device_refuses(
    state: State, device: DeviceId, row: DeviceState, request: inputs.OperateDeviceRequest
) -> Declined | None:
    if row.description.kind not in ("pci", "usb_device"):
        text = f"{device} is neither a PCI function nor a USB device, and has no driver of its own"
        return declined((device,), RefusalCode.DEVICE_UNLEASABLE, text, "name the device that it is a part of")
    if request.driver and row.description.kind != "pci":
        text = f"{device} is a USB device, which is bound to no stub"
        return declined((device,), RefusalCode.DEVICE_UNLEASABLE, text, "detach it without naming a driver")
    is_stuck = failing.is_stuck(row.quarantine)
    mends = request.operation == "reattach" and is_stuck
    if row.lease and not (mends and row.ending):
        return _in_use(state, device, row)
    if row.quarantine is not None and is_stuck and not mends:
        text = f"{device} is in quarantine: {row.quarantine.reason}"
        return declined((device,), RefusalCode.DEVICE_QUARANTINED, text, row.quarantine.help)
    # Whoever asks: nobody's lease of what it is tied to is his own here. What has failed too often must be tried.
    found = conflicts.blockers(state, device, owner=("", ""), together=frozenset((device,)), force=False)
    mended = (("quarantined", ""), ("same_device", "")) if mends or not is_stuck else ()
    those = (each for each in found if (each.rule, each.because_of) not in mended and each.rule not in _FOR_HOLDERS)
    left = conflicts.by_gravity(list(islice(those, limits.BLOCKERS_PER_REFUSAL_MAX)))
    return Declined((device,), refusal_of(left)) if left else None


def _in_use(state: State, device: DeviceId, row: DeviceState) -> Declined:
    """As libvirt says it, with the lease: by which driver and domain it is used, as far as that is known."""
    lease = state.leases[row.lease]
    whose = f"lease {lease_id_text(row.lease)} of {lease.holder}"
    ended = f" (ended: {lease.ended}; not free yet)" if row.ending else ""
    text = f"{device} is in use by {', '.join((whose + ended, *conflicts.users_of_leased(state, row)))}"
    blocker: Blocker = conflicts.held(state, device, device, "same_device")
    help_text = "release the lease first" if not row.ending else blocker.help
    return Declined(
        (device,), Refusal(code=RefusalCode.DEVICE_HELD, message=text, blockers=(blocker,), help=help_text)
    )
