"""Orders: what hosts were told to do, and what became of it. What leads to one is decided in `ordering`.

An order ends once: carried out, failed, or timed out. One that timed out may still turn out to have been carried out.
"""

import heapq
from typing import Final

import msgspec

from leasehold.events import event_types, limits
from leasehold.events.capabilities import DestroyMdev, DestroyVport, Order, OrderToBinder
from leasehold.events.identities import DeviceKey, HostName, Principal, RequestKey, device_id, request_key
from leasehold.events.views import OrderView
from leasehold.projections import remembering
from leasehold.projections.rows import AnswerState, OrderState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


# --- folding ------------------------------------------------------------------------------------------------------


def ordered(state: State, position: int, at_ns: int, event: event_types.HostOrdered) -> None:
    """A host is told to do something; what was told to it longest ago, and is over, may be forgotten for it."""
    ref = event.request
    key = request_key(ref.principal, ref.request_id)
    row = OrderState(
        host=event.host,
        agent=event.agent,
        what=event.order,
        request=key,
        ordered_at_ns=at_ns,
        deadline_ns=event.deadline_ns,
    )
    state.put_order(position, row)
    answer = AnswerState(
        body_hash=ref.body_hash,
        verb=_verb_of(event.order),
        position=position,
        issued_at_ns=ref.issued_at_ns,
        order=position,
        state=row.state,
    )
    state.answers.put(key, answer)
    kept = state.indexes.orders[event.host]
    if len(kept) > limits.ORDERS_KEPT_PER_HOST_MAX:
        oldest = next((order for order in kept if not state.orders[order].is_open), None)
        if oldest is not None:
            state.drop_order(oldest)


def _verb_of(order: Order) -> str:
    """What was asked for to lead to it."""
    if isinstance(order, OrderToBinder):
        return "operate_device"
    return "destroy_device" if isinstance(order, DestroyVport | DestroyMdev) else "create_device"


def carried_out(state: State, _position: int, at_ns: int, event: event_types.OrderCarriedOut) -> None:
    """The host has done it, in time or late."""
    _end(state, at_ns, event.order, state_now="done", device=event.device)


def failed(state: State, _position: int, at_ns: int, event: event_types.OrderFailed) -> None:
    """It was not done, or nothing was heard of it in time."""
    _end(state, at_ns, event.order, state_now="timed_out" if event.timed_out else "failed", reason=event.reason)


def _end(state: State, at_ns: int, order: int, *, state_now: str, device: str = "", reason: str = "") -> None:
    before = state.orders[order]
    state.put_order(order, _replace(before, state=state_now, device=device, reason=reason))
    known = state.answers.get(before.request)
    if known is not None and known.order == order:
        # The order is forgotten earlier than its answer, which is to stay the same.
        about = device_id(before.host, DeviceKey(device)) if device else ""
        state.answers.put(before.request, _replace(known, state=state_now, device=about, reason=reason))
        if before.is_open:
            remembering.fade(state, at_ns, _principal_of(before.request), before.request)


# --- reading ------------------------------------------------------------------------------------------------------


def order_view(state: State, order: int) -> OrderView:
    """One order, which must be remembered."""
    row = state.orders[order]
    principal, _, request_id = row.request.partition("/")
    return OrderView(
        order=order,
        host=row.host,
        agent=row.agent,
        what=row.what,
        state=row.state,
        asked_by=principal,
        request_id=request_id,
        ordered_at_ns=row.ordered_at_ns,
        deadline_ns=row.deadline_ns,
        device=row.device,
        reason=row.reason,
    )


def list_orders(
    state: State, *, host: str = "", ended: bool = False, after: int = 0, limit: int = limits.LIST_ROWS_MAX
) -> tuple[list[OrderView], bool]:
    """Orders behind `after`, of one host if one is given, oldest first, at most `limit`; and whether there are more.

    `ended`: also those that are over. Over all hosts it takes a walk over all orders that are remembered.
    """
    index = state.indexes.orders if ended else state.indexes.open_orders
    some = [index.get(HostName(host), ())] if host else list(index.values())
    found = heapq.nsmallest(limit + 1, (order for orders in some for order in orders if order > after))
    return [order_view(state, order) for order in found[:limit]], len(found) > limit


def open_orders(state: State, host: str, agent: str) -> list[OrderView]:
    """What `agent` is still to do on a host, or may have done behind its time; oldest first, at most
    `limits.ORDERS_KEPT_PER_HOST_MAX`.
    """
    kept = [(order, state.orders[order]) for order in state.indexes.orders.get(HostName(host), ())]
    wanted = [order for order, row in kept if row.agent == agent and row.state in ("waiting", "timed_out")]
    return [order_view(state, order) for order in wanted]


def newest_open(state: State, host: HostName, agent: str) -> int:
    """The newest open order of `agent` on a host; 0 if there is none."""
    open_here = state.indexes.open_orders.get(host, ())
    return max((order for order in open_here if state.orders[order].agent == agent), default=0)


def _principal_of(key: RequestKey) -> Principal:
    return Principal(key.partition("/")[0])
