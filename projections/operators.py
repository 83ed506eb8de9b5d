"""What operators say of devices and hosts: cordons, taints, drains, policies, cleaning and healing.

| word | what it does | until |
|---|---|---|
| cordon | nothing more is granted | uncordon |
| taint `no_grant` | nothing more is granted to who does not tolerate it | untaint |
| taint `evict` | the same; and living leases that do not tolerate it end, behind a notice | untaint |
| policy | how many may share a device; whether it is to be cleaned between tenants | another policy |
| clean | somebody has cleaned it up behind its last lease | its next lease has ended |
| heal | it works again, although it failed too often | it fails too often again |

They concern the host, or the device itself, for which a functional child stands; not what is plugged in below. The last
word of one kind (of one name, for taints) counts. What events make of it: `marking`; ends of leases: `evictions`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import limits, schedule_events, schedule_inputs
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, DeviceKey, HostName, RequestRef, device_id
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Policy, Taint
from leasehold.projections import conflicts, failing
from leasehold.projections.declining import Declined, declined
from leasehold.projections.evictions import taint_of
from leasehold.projections.marking import marks_of
from leasehold.projections.naming import Resolved, resolve, unresolved
from leasehold.projections.rows import taints_of
from leasehold.projections.state import State

_NS_PER_MS: Final = 1_000_000


class _Target(msgspec.Struct, frozen=True):
    """What it is about: a device, or (`key` empty) a host."""

    host: HostName
    key: DeviceKey

    @property
    def text(self) -> str:
        """As people call it."""
        return device_id(self.host, self.key) if self.key else self.host


def _target(state: State, host: str, device: str) -> _Target | Declined:
    if device:
        found = _device(state, host, device)
        if isinstance(found, Declined):
            return found
        row = state.devices[found]
        return _Target(row.host, row.description.key)
    name = HostName(host)
    if name not in state.hosts:
        return declined((host,), RefusalCode.HOST_UNKNOWN, f"no host {host} is known", "list the hosts")
    return _Target(name, DeviceKey(""))


def _device(state: State, host: str, text: str) -> DeviceId | Declined:
    """The known device that is meant, or which it stands for."""
    resolved = resolve(state, text, host)
    if resolved.device is None:
        return Declined((text,), unresolved(resolved))
    device = conflicts.physical_device(resolved.device)
    row = state.devices.get(device)
    if row is None:
        return Declined((text,), unresolved(Resolved(device)))
    if conflicts.is_unleasable(row):
        said = f"{device} is never leased: it carries other devices, or there is nothing of it to hand out"
        return declined((device,), RefusalCode.DEVICE_UNLEASABLE, said, "name the devices behind it, or the host")
    return device


# --- cordons and taints -------------------------------------------------------------------------------------------


def _cordon(
    state: State, ref: RequestRef, request: schedule_inputs.CordonRequest, _now_ns: int
) -> list[Event] | Declined:
    at = _target(state, request.host, request.device)
    if isinstance(at, Declined):
        return at
    return [schedule_events.Cordoned(request=ref, host=at.host, key=at.key, reason=request.reason)]


def _uncordon(
    state: State, ref: RequestRef, request: schedule_inputs.UncordonRequest, _now_ns: int
) -> list[Event] | Declined:
    at = _target(state, request.host, request.device)
    if isinstance(at, Declined):
        return at
    marks = marks_of(state, at.host, at.key)
    if marks is None or marks.cordon is None:
        text = f"{at.text} is not cordoned"
        return declined((at.text,), RefusalCode.NOT_CORDONED, text, _elsewhere(state, at))
    return [schedule_events.Uncordoned(request=ref, host=at.host, key=at.key)]


def _elsewhere(state: State, at: _Target) -> str:
    """Where else to look, of what is not cordoned, or not tainted so, itself."""
    marks = state.hosts[at.host].marks if at.key else None
    if marks is not None and (marks.cordon is not None or marks.taints):
        return f"its host {at.host} is cordoned or tainted: name that one"
    return "list the taints: what is cordoned or tainted stands there"


def _taint(state: State, ref: RequestRef, request: schedule_inputs.TaintRequest, now_ns: int) -> list[Event] | Declined:
    at = _target(state, request.host, request.device)
    if isinstance(at, Declined):
        return at
    others = [mark for mark in taints_of(marks_of(state, at.host, at.key)) if taint_of(mark).name != request.name]
    if len(others) >= limits.TAINTS_MAX:
        text = f"{at.text} has {len(others)} taints already"
        return declined((at.text,), RefusalCode.TAINTS_TOO_MANY, text, "take one of them away first")
    taint = Taint(
        name=request.name,
        value=request.value,
        effect=request.effect,
        reason=request.reason,
        evicts_at_ns=now_ns + request.notice_ms * _NS_PER_MS if request.effect == "evict" else 0,
    )
    return [schedule_events.Tainted(request=ref, host=at.host, key=at.key, taint=taint)]


def _untaint(
    state: State, ref: RequestRef, request: schedule_inputs.UntaintRequest, _now_ns: int
) -> list[Event] | Declined:
    at = _target(state, request.host, request.device)
    if isinstance(at, Declined):
        return at
    names = [taint_of(mark).name for mark in taints_of(marks_of(state, at.host, at.key))]
    if request.name not in names:
        has = f"; its taints: {', '.join(names)}" if names else ""
        text = f"{at.text} has no taint {request.name}{has}"
        return declined((at.text,), RefusalCode.TAINT_UNKNOWN, text, _elsewhere(state, at))
    return [schedule_events.Untainted(request=ref, host=at.host, key=at.key, name=request.name)]


# --- devices ------------------------------------------------------------------------------------------------------


def _set_policy(
    state: State, ref: RequestRef, request: schedule_inputs.SetPolicyRequest, _now_ns: int
) -> list[Event] | Declined:
    device = _device(state, request.host, request.device)
    if isinstance(device, Declined):
        return device
    policy = Policy(share_max=request.share_max, clean=request.clean)
    return [schedule_events.PolicySet(request=ref, device=device, policy=policy)]


def _confirm_clean(
    state: State, ref: RequestRef, request: schedule_inputs.ConfirmCleanRequest, _now_ns: int
) -> list[Event] | Declined:
    device = _device(state, request.host, request.device)
    if isinstance(device, Declined):
        return device
    row = state.devices[device]
    if row.lease:
        text = f"{device} is held by lease {lease_id_text(row.lease)}: it is cleaned up when that has ended"
        return declined((device,), RefusalCode.NOTHING_TO_CLEAN, text, "wait until it is free")
    if row.marks is None or not row.marks.unclean_position:
        text = f"nobody waits for {device} to be cleaned"
        help_text = "only a device whose policy says so is to be cleaned, behind each of its leases"
        return declined((device,), RefusalCode.NOTHING_TO_CLEAN, text, help_text)
    return [schedule_events.DeviceCleaned(request=ref, device=device, reason=request.reason)]


def _heal(state: State, ref: RequestRef, request: schedule_inputs.HealRequest, _now_ns: int) -> list[Event] | Declined:
    device = _device(state, request.host, request.device)
    if isinstance(device, Declined):
        return device
    row = state.devices[device]
    if failing.lasting(row.quarantine) is None and (row.marks is None or not row.marks.failures):
        text = f"{device} has not failed"
        help_text = "list the device: it says what stands in its way"
        if row.quarantine is not None:
            help_text = f"it is in quarantine because its binder could not take it back: {row.quarantine.help}"
        return declined((device,), RefusalCode.NOTHING_TO_HEAL, text, help_text)
    return [schedule_events.DeviceHealed(request=ref, device=device, reason=request.reason)]


DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    schedule_inputs.CordonRequest: _cordon,
    schedule_inputs.UncordonRequest: _uncordon,
    schedule_inputs.TaintRequest: _taint,
    schedule_inputs.UntaintRequest: _untaint,
    schedule_inputs.SetPolicyRequest: _set_policy,
    schedule_inputs.ConfirmCleanRequest: _confirm_clean,
    schedule_inputs.HealRequest: _heal,
}
"""By type of request; see `decide`."""
