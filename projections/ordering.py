"""Deciding on orders to hosts: which are given, and what their agents say of them."""

from leasehold.events import event_types, inputs
from leasehold.events.event_types import Event
from leasehold.events.inputs import Observed
from leasehold.projections.state import OrderState, State

_UNHEARD = "nothing was heard of it in time"


def done(state: State, given: Observed, said: inputs.OrderDone) -> Event | None:
    """The host has done it: also behind its time, but not twice."""
    row = _told(state, given, said.order)
    if row is None or row.state not in ("waiting", "timed_out"):
        return None
    return event_types.OrderCarriedOut(host=row.host, order=said.order, device=said.device, late=not row.is_open)


def not_done(state: State, given: Observed, said: inputs.OrderNotDone) -> Event | None:
    """The host could not do it."""
    row = _told(state, given, said.order)
    if row is None or not row.is_open:
        return None
    return event_types.OrderFailed(host=row.host, order=said.order, reason=said.reason)


def _told(state: State, given: Observed, order: int) -> OrderState | None:
    """The order that this agent was given; nobody else can say what became of it."""
    row = state.orders.get(order)
    return row if row is not None and (row.host, row.agent) == (given.host, given.agent) else None


def overdue(state: State, now_ns: int, *, limit: int) -> list[Event]:
    """The end of orders of which nothing was heard by their deadlines, at most `limit`."""
    orders = state.deadlines.due_by(now_ns, limit=limit)
    return [
        event_types.OrderFailed(host=state.orders[order].host, order=order, reason=_UNHEARD, timed_out=True)
        for order in orders
    ]
