"""Sentences about requests that wait, leases that change hands, and what operators say of devices and hosts: a part of
`telling`.
"""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events import schedule_events
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import DeviceKey, HostName, device_id
from leasehold.events.inputs import LeaseRequest
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.schedule_inputs import ReserveRequest
from leasehold.events.scheduling import Constraint, Need, Option, Policy
from leasehold.projections.state import State
from leasehold.projections.wording import asked_text, lease_text, span_text

NAMED_MAX: Final = 8
"""So many devices or leases of many are named."""
_MODES: Final = {"shared": "to be shared with others", "admin": "only to look on"}


def wanted_text(request: LeaseRequest | ReserveRequest) -> str:
    """What a request asks for, in one line: the devices that it names, or its needs and constraints."""
    host = f" on {request.host}" if request.host else ""
    if request.devices:
        return f"{', '.join(request.devices)}{host}"
    names = any(need.name for need in request.needs) or bool(request.constraints and len(request.needs) > 1)
    needs = (_need_text(need, number, is_named=names) for number, need in enumerate(request.needs, 1))
    constraints = "".join(f", {_constraint_text(each)}" for each in request.constraints)
    return f"{' and '.join(needs)}{host}{constraints}"


def _need_text(need: Need, number: int, *, is_named: bool) -> str:
    options = need.first_of or (need,)
    text = ", else ".join(map(_option_text, options))
    return f"{need.name or number}: {text}" if is_named else text


def _option_text(option: Need | Option) -> str:
    count = f"all, at least {option.count}," if option.every else str(option.count)
    what = [f"of class {option.device_class}"] if option.device_class else []
    what += [f"with {option.select}"] if option.select else []
    return f"{count} {' '.join(what)}"


def _constraint_text(constraint: Constraint) -> str:
    of = f" of {', '.join(constraint.needs)}" if constraint.needs else ""
    return f"{'the same' if constraint.kind == 'same' else 'distinct'} {constraint.attribute}{of}"


def granted_text(event: LeaseGranted, state: State | None) -> str:
    """What a grant says beside its devices and terms, each behind a comma; mostly empty."""
    parts = [_MODES.get(event.mode, event.mode)] if event.mode else []
    if event.queued:
        parts.append(f"waited as {queued_id_text(event.queued)}")
    if event.reserved_for:
        parts.append(f"reserved to stand in for {lease_text(event.reserved_for, state)}, counts from the switch on")
    if event.search:
        parts.append(f"found in {event.search.steps} step{'' if event.search.steps == 1 else 's'}")
    return "".join(f", {part}" for part in parts)


# --- waiting ------------------------------------------------------------------------------------------------------


def _request_queued(event: schedule_events.RequestQueued, position: int, _state: State | None) -> str:
    asked = event.asked
    priority = f", priority {asked.priority}" if asked.priority else ""
    return (
        f"{asked.holder} waits as {queued_id_text(position)} for {wanted_text(asked)}, for up to "
        f"{span_text(asked.wait_ms)}{priority}{_kept_text(event.keeps)}: {event.why.message} "
        f"({asked_text(event.request)})"
    )


def _kept_text(keeps: tuple[str, ...]) -> str:
    return f", with {listed(keeps)} kept for it" if keeps else ""


def listed(names: tuple[str, ...]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f"{', '.join(names[:NAMED_MAX])}{more}"


def _queued_moved(event: schedule_events.QueuedMoved, _position: int, state: State | None) -> str:
    kept = f"{listed(event.keeps)} kept for it" if event.keeps else "nothing kept for it"
    return f"{_queued_text(event.queued, state)} waits on, with {kept}"


def _queued_text(queued: int, state: State | None) -> str:
    """A place in the queue, and who waits there, if `state` still knows it."""
    row = state.queue.get(queued) if state is not None else None
    return f"{queued_id_text(queued)} of {row.asked.holder}" if row is not None else queued_id_text(queued)


def _queue_looked(event: schedule_events.QueueLooked, _position: int, _state: State | None) -> str:
    if not event.queued:
        return f"what became better up to position {event.through} helps nobody more who waits"
    return f"who waits up to {queued_id_text(event.queued)} was looked at for what became better"


def _request_withdrawn(event: schedule_events.RequestWithdrawn, _position: int, state: State | None) -> str:
    why = f": {event.reason}" if event.reason else ""
    return f"{_queued_text(event.queued, state)} waits no more, it was taken back{why} ({asked_text(event.request)})"


def _waiting_ended(event: schedule_events.WaitingEnded, _position: int, state: State | None) -> str:
    return f"{_queued_text(event.queued, state)} has waited in vain: {event.why.message}"


# --- keeping ------------------------------------------------------------------------------------------------------


def _leases_renewed(event: schedule_events.LeasesRenewed, _position: int, _state: State | None) -> str:
    leases = listed(tuple(map(lease_id_text, event.leases)))
    return f"{leases} renewed together, each for its own time ({asked_text(event.request)})"


def _lease_transferred(event: schedule_events.LeaseTransferred, _position: int, _state: State | None) -> str:
    whose = f" of {event.principal}" if event.principal != event.request.principal else ""
    return (
        f"{lease_id_text(event.lease)} given to {event.holder}{whose}: its old token acts no more "
        f"({asked_text(event.request)})"
    )


def _lease_switched(event: schedule_events.LeaseSwitched, _position: int, state: State | None) -> str:
    return (
        f"{lease_text(event.lease, state)} stands in for {lease_id_text(event.source)} from here on "
        f"({asked_text(event.request)})"
    )


# --- classes and quotas -------------------------------------------------------------------------------------------


def _class_set(event: schedule_events.ClassSet, _position: int, _state: State | None) -> str:
    return f"class {event.name} is what has {event.select} ({asked_text(event.request)})"


def _class_removed(event: schedule_events.ClassRemoved, _position: int, _state: State | None) -> str:
    return f"there is no class {event.name} any more ({asked_text(event.request)})"


def _quota_set(event: schedule_events.QuotaSet, _position: int, _state: State | None) -> str:
    of = f" of class {event.device_class}" if event.device_class else ""
    if event.devices_max < 0:
        return f"{event.tenant} may have as many devices{of} as there are ({asked_text(event.request)})"
    devices = "device" if event.devices_max == 1 else "devices"
    return (
        f"{event.tenant} may have at most {event.devices_max} {devices}{of}, and has {len(event.charged)} "
        f"({asked_text(event.request)})"
    )


# --- what operators say -------------------------------------------------------------------------------------------


def target_text(host: HostName, key: DeviceKey) -> str:
    """A device, or a whole host."""
    return device_id(host, key) if key else f"host {host}"


def _cordoned(event: schedule_events.Cordoned, _position: int, _state: State | None) -> str:
    target = target_text(event.host, event.key)
    return f"nothing more of {target} is granted, it is cordoned: {event.reason} ({asked_text(event.request)})"


def _uncordoned(event: schedule_events.Uncordoned, _position: int, _state: State | None) -> str:
    target = target_text(event.host, event.key)
    return f"{target} is granted from again, it is cordoned no more ({asked_text(event.request)})"


def _tainted(event: schedule_events.Tainted, _position: int, _state: State | None) -> str:
    taint = event.taint
    name = f"{taint.name}={taint.value}" if taint.value else taint.name
    evicts = ", and leases that do not tolerate it end" if taint.effect == "evict" else ""
    why = f": {taint.reason}" if taint.reason else ""
    target = target_text(event.host, event.key)
    return f"{target} is granted only to who tolerates {name}{evicts}{why} ({asked_text(event.request)})"


def _untainted(event: schedule_events.Untainted, _position: int, _state: State | None) -> str:
    return f"{target_text(event.host, event.key)} has no taint {event.name} any more ({asked_text(event.request)})"


def _policy_set(event: schedule_events.PolicySet, _position: int, _state: State | None) -> str:
    return f"{event.device} is {policy_text(event.policy)} ({asked_text(event.request)})"


def policy_text(policy: Policy) -> str:
    """How a device may be handed out."""
    shared = f"for up to {policy.share_max} who share it" if policy.share_max > 1 else "for one at a time"
    return f"{shared}{', and is cleaned up behind each lease before another tenant gets it' if policy.clean else ''}"


def _device_cleaned(event: schedule_events.DeviceCleaned, _position: int, _state: State | None) -> str:
    return f"{event.device} was cleaned up: {event.reason} ({asked_text(event.request)})"


def _device_healed(event: schedule_events.DeviceHealed, _position: int, _state: State | None) -> str:
    return f"{event.device} works again, its failures are forgotten: {event.reason} ({asked_text(event.request)})"


TELLERS: Final[dict[type[Any], Callable[[Any, int, State | None], str]]] = {
    schedule_events.RequestQueued: _request_queued,
    schedule_events.QueuedMoved: _queued_moved,
    schedule_events.QueueLooked: _queue_looked,
    schedule_events.RequestWithdrawn: _request_withdrawn,
    schedule_events.WaitingEnded: _waiting_ended,
    schedule_events.LeasesRenewed: _leases_renewed,
    schedule_events.LeaseTransferred: _lease_transferred,
    schedule_events.LeaseSwitched: _lease_switched,
    schedule_events.ClassSet: _class_set,
    schedule_events.ClassRemoved: _class_removed,
    schedule_events.QuotaSet: _quota_set,
    schedule_events.Cordoned: _cordoned,
    schedule_events.Uncordoned: _uncordoned,
    schedule_events.Tainted: _tainted,
    schedule_events.Untainted: _untainted,
    schedule_events.PolicySet: _policy_set,
    schedule_events.DeviceCleaned: _device_cleaned,
    schedule_events.DeviceHealed: _device_healed,
}
