"""What operators said of devices and hosts, as events move it. Who may say it when: `operators`."""

from collections.abc import Callable, Iterator
from typing import Any, Final, get_args

import msgspec

from leasehold.events import schedule_events
from leasehold.events.identities import DeviceId, DeviceKey, HostName, Principal, device_id
from leasehold.events.schedule_views import TaintView
from leasehold.events.scheduling import Policy
from leasehold.projections import bonds, failing, remembering
from leasehold.projections.evictions import taint_of
from leasehold.projections.rows import AnswerState, Mark, Marks, taints_of
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace
_NOTHING: Final = Marks()
CORDON: Final = "cordon"
TAINT: Final = "taint"
_OfTarget = schedule_events.Cordoned | schedule_events.Uncordoned | schedule_events.Tainted | schedule_events.Untainted
_OfDevice = schedule_events.PolicySet | schedule_events.DeviceCleaned | schedule_events.DeviceHealed
Marking = _OfTarget | _OfDevice
"""What operators said."""


# --- what an event says -------------------------------------------------------------------------------------------


def marks_after(marks: Marks | None, position: int, event: Marking) -> Marks | None:
    """What there is to say of a host or a device behind this event about it; `None`: nothing (any more)."""
    after = _after(marks or _NOTHING, position, event)
    return after if after != _NOTHING else None


def _after(was: Marks, position: int, event: Marking) -> Marks:
    match event:
        case schedule_events.Cordoned():
            return _replace(was, cordon=Mark(request=event.request, position=position, reason=event.reason))
        case schedule_events.Uncordoned():
            return _replace(was, cordon=None)
        case schedule_events.Tainted(taint=taint):
            mark = Mark(request=event.request, position=position, reason=taint.reason, taint=taint)
            return _replace(was, taints=tuple(sorted((*_others(was, taint.name), mark), key=_name_of)))
        case schedule_events.Untainted():
            return _replace(was, taints=_others(was, event.name))
        case schedule_events.PolicySet(policy=policy):
            now = _replace(was, policy=policy if policy != Policy() else None)
            # What need not be cleaned any more is not waited for.
            return now if policy.clean else _clean(now)
        case schedule_events.DeviceCleaned():
            return _clean(was)
        case schedule_events.DeviceHealed():
            return _replace(was, failures=())


def used_by(marks: Marks | None, tenant: Principal, position: int) -> Marks | None:
    """What there is to say of a device behind a lease of this tenant: perhaps that it is to be cleaned."""
    if marks is None or marks.policy is None or not marks.policy.clean:
        return marks
    return _replace(marks, unclean_tenant=tenant, unclean_position=position)


def _clean(marks: Marks) -> Marks:
    return _replace(marks, unclean_tenant="", unclean_position=0)


def _others(marks: Marks, name: str) -> tuple[Mark, ...]:
    """The taints that are not called so."""
    return tuple(mark for mark in marks.taints if _name_of(mark) != name)


def _name_of(mark: Mark) -> str:
    return taint_of(mark).name


# --- folding ------------------------------------------------------------------------------------------------------


def _of_target(state: State, position: int, at_ns: int, event: _OfTarget) -> None:
    if event.key:
        _of_device(state, position, at_ns, device_id(event.host, event.key), event)
        return
    row = state.hosts[event.host]
    bonds.put_host(state, at_ns, event.host, _replace(row, marks=marks_after(row.marks, position, event)))
    _remember(state, position, at_ns, event)


def _of_device(state: State, position: int, at_ns: int, device: DeviceId, event: Marking) -> None:
    row = state.devices[device]
    after = _replace(row, marks=marks_after(row.marks, position, event))
    if isinstance(event, schedule_events.DeviceHealed) and failing.lasting(row.quarantine) is not None:
        after = _replace(after, quarantine=None)
    state.put_device(device, after)
    _remember(state, position, at_ns, event, device)


def _of_one_device(state: State, position: int, at_ns: int, event: _OfDevice) -> None:
    _of_device(state, position, at_ns, event.device, event)


def _remember(state: State, position: int, at_ns: int, event: Marking, device: str = "") -> None:
    ref = event.request
    answer = AnswerState(
        body_hash=ref.body_hash,
        verb=_VERBS[type(event)],
        position=position,
        issued_at_ns=ref.issued_at_ns,
        device=device,
    )
    remembering.remember_ended(state, at_ns, ref, answer)


# --- reading ------------------------------------------------------------------------------------------------------


def marks_of(state: State, host: HostName, key: DeviceKey) -> Marks | None:
    """What operators said of a device, or (`key` empty) of a host."""
    return state.devices[device_id(host, key)].marks if key else state.hosts[host].marks


def taint_views(state: State, *, host: str = "", after: str = "", limit: int) -> tuple[list[TaintView], bool]:
    """What is cordoned or tainted, in the order of hosts and devices, from behind `after` (`target kind name`); and
    whether there is more.
    """
    target, kind, name = (*after.split(" "), "", "", "")[:3]
    behind = (_place(target), kind, name)
    views: list[TaintView] = []
    for marked in [HostName(host)] if host else sorted(state.indexes.marked, key=_place):
        if after and _place(marked) < (_place(target)[0],):
            continue
        for each in state.indexes.marked.get(marked, ()):
            for view in _views_of(state, marked, each):
                if after and (_place(each), view.kind, view.name) <= behind:
                    continue
                if len(views) == limit:
                    return views, True
                views.append(view)
    return views, False


def _place(target: str) -> tuple[str, ...]:
    """By what hosts, with their devices, are sorted: a host's name ends where a device's id has a slash."""
    return tuple(target.partition("/")[::2]) if "/" in target else (target,)


def _views_of(state: State, host: HostName, target: str) -> Iterator[TaintView]:
    marks = state.hosts[host].marks if target == host else state.devices[DeviceId(target)].marks
    if marks is not None and marks.cordon is not None:
        mark = marks.cordon
        yield TaintView(target=target, kind=CORDON, reason=mark.reason, by=mark.by, since_position=mark.position)
    for mark in taints_of(marks):
        taint = taint_of(mark)
        yield TaintView(
            target=target,
            kind=TAINT,
            name=taint.name,
            value=taint.value,
            effect=taint.effect,
            reason=taint.reason,
            by=mark.by,
            evicts_at_ns=taint.evicts_at_ns,
            since_position=mark.position,
        )


_VERBS: Final[dict[type[Any], str]] = {
    schedule_events.Cordoned: "cordon",
    schedule_events.Uncordoned: "uncordon",
    schedule_events.Tainted: "taint",
    schedule_events.Untainted: "untaint",
    schedule_events.PolicySet: "set_policy",
    schedule_events.DeviceCleaned: "confirm_clean",
    schedule_events.DeviceHealed: "heal",
}
HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {
    **dict.fromkeys(get_args(_OfTarget), _of_target),
    **dict.fromkeys(get_args(_OfDevice), _of_one_device),
}
"""By type of event; see `evolve`."""
