"""Device classes, which are named selectors, and quotas: who may set them, and what events make of them.

Who may at all, the bus decides: only operators can say these verbs. A class may be given another selector at any time:
leases stay, and who waits for the class is looked at again.
"""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events import limits
from leasehold.events.event_types import Event
from leasehold.events.identities import RequestRef
from leasehold.events.position import queued_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_events import ClassRemoved, ClassSet, QuotaSet
from leasehold.events.schedule_inputs import RemoveClassRequest, SetClassRequest
from leasehold.projections import quotas, remembering, selectors
from leasehold.projections.celparser import Fault
from leasehold.projections.declining import Declined, declined
from leasehold.projections.rows import AnswerState, ClassState
from leasehold.projections.state import State


def _invalid(fault: Fault) -> Refusal:
    return Refusal(
        code=RefusalCode.SELECTOR_INVALID,
        message=f"the selector cannot be read: {fault}",
        help='write it like device.vendor == "8086" && device.pci.class == "0200"',
    )


def _set(state: State, ref: RequestRef, request: SetClassRequest, _now_ns: int) -> list[Event] | Declined:
    selector = selectors.compiled(request.select)
    if isinstance(selector, Fault):
        return Declined((request.name,), _invalid(selector))
    if request.name not in state.classes and len(state.classes) >= limits.CLASSES_MAX:
        text = f"there are {limits.CLASSES_MAX} classes already"
        return declined((request.name,), RefusalCode.CLASSES_TOO_MANY, text, "remove those that nobody needs")
    return [ClassSet(request=ref, name=request.name, select=request.select)]


def _remove(state: State, ref: RequestRef, request: RemoveClassRequest, _now_ns: int) -> list[Event] | Declined:
    name = request.name
    if name not in state.classes:
        return declined((name,), RefusalCode.CLASS_UNKNOWN, f"there is no class {name}", "list the classes")
    tenants = state.indexes.quotas_on.get(name, [])
    waiting = state.indexes.queued.get(f"class:{name}", [])
    if tenants or waiting:
        users = [f"a quota of {tenant}" for tenant in tenants[:_USERS_NAMED]]
        users += [queued_id_text(queued) for _rank_ns, queued in waiting[: _USERS_NAMED - len(users)]]
        more = len(tenants) + len(waiting) - len(users)
        text = f"class {name} is named by {', '.join(users)}{f' and {more} more' if more else ''}"
        help_text = "take the quotas away, and wait for, or withdraw, the requests"
        return declined((name,), RefusalCode.CLASS_IN_USE, text, help_text)
    return [ClassRemoved(request=ref, name=name)]


_USERS_NAMED: Final = 4
DECIDERS: Final[dict[type[Any], Callable[[State, RequestRef, Any, int], list[Event] | Declined]]] = {
    SetClassRequest: _set,
    RemoveClassRequest: _remove,
    **quotas.DECIDERS,
}
"""By type of request; see `decide`."""


def _class_set(state: State, position: int, at_ns: int, event: ClassSet) -> None:
    row = ClassState(select=event.select, position=position, by=event.request.principal)
    state.put_class(event.name, row)
    _remember(state, position, at_ns, event.request, "set_class")


def _class_removed(state: State, position: int, at_ns: int, event: ClassRemoved) -> None:
    state.classes.drop(event.name)
    _remember(state, position, at_ns, event.request, "remove_class")


def _quota_set(state: State, position: int, at_ns: int, event: QuotaSet) -> None:
    quotas.quota_set(state, position, event)
    _remember(state, position, at_ns, event.request, "set_quota")


def _remember(state: State, position: int, at_ns: int, ref: RequestRef, verb: str) -> None:
    answer = AnswerState(body_hash=ref.body_hash, verb=verb, position=position, issued_at_ns=ref.issued_at_ns)
    remembering.remember_ended(state, at_ns, ref, answer)


HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {
    ClassSet: _class_set,
    ClassRemoved: _class_removed,
    QuotaSet: _quota_set,
}
"""By type of event; see `evolve`."""
