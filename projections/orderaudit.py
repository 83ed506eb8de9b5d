"""What must hold of orders in any log, by whichever rules they were decided: a part of the audit.

- An order is given in the step of the request that asks for it, for what that names and until its time is over; never
  for what an order that is open is for already, nor of a device that is another's or is not free yet, or a part of one;
  to the binder, of none that is held at all, but that one in quarantine is brought back.
- It ends once: by a word of the agent that was told, or by time behind its deadline. What time has ended may be
  carried out late; nothing else is said of an order that is over.

Written apart from `orders` and `ordering`, so that a mistake there is not made here, too.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    DetachDevice,
    NewMdev,
    NewVirtualFunctions,
    NewVport,
    Order,
    OrderToBinder,
    ReattachDevice,
    ResetDevice,
    SetVirtualFunctions,
    keys_of,
)
from leasehold.events.identities import DeviceId, HostName, device_id, parse_wwn, physical_key
from leasehold.events.inputs import Asked, Input, Observed

_NS_PER_MS: Final = 1_000_000
_Asking = inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest | inputs.OperateDeviceRequest
_BY_OPERATION: Final[dict[str, type[Order]]] = {
    "detach": DetachDevice,
    "reattach": ReattachDevice,
    "reset": ResetDevice,
}
_Told = event_types.HostOrdered | event_types.OrderCarriedOut | event_types.OrderFailed


class Holding(msgspec.Struct, frozen=True):
    """Who holds a device; its lease lives, or has ended and the device is not free yet."""

    principal: str
    has_ended: bool
    is_quarantined: bool = False


class _Given(msgspec.Struct, frozen=True):
    """An order of which something may still be said."""

    host: HostName
    agent: str
    deadline_ns: int
    thing: tuple[str, ...]
    """What it is for: an order for the same may not be given while this one is open."""
    timed_out: bool = False


class OrderAudit:
    """The orders of a log, as they are told."""

    def __init__(
        self, held: Callable[[DeviceId], Holding | None], wholes: Callable[[DeviceId], tuple[DeviceId, ...]]
    ) -> None:
        """`held` tells who holds a device at the event that is looked at, `wholes` what that is a part of."""
        self.given = 0
        """How many orders were given so far."""
        self._held = held
        self._wholes = wholes
        self._orders: dict[int, _Given] = {}
        self._things: dict[tuple[str, ...], int] = {}
        """What the open ones are for."""

    def take(self, position: int, at_ns: int, given: Input, event: _Told, *, grace_until_ns: int) -> str:
        """Look at the next event of an order: what is wrong with it; empty: nothing."""
        match event:
            case event_types.HostOrdered():
                return self._order(position, at_ns, given, event)
            case event_types.OrderCarriedOut():
                return self._carry_out(given, event)
            case event_types.OrderFailed():
                return self._fail(at_ns, given, event, grace_until_ns)

    def _order(self, position: int, at_ns: int, given: Input, event: event_types.HostOrdered) -> str:
        self.given += 1
        order, request = event.order, given.request if isinstance(given, Asked) else None
        if not isinstance(request, _Asking):
            return f"{event.host} is told to do something, but not asked for"
        if event.agent != (inputs.BINDER if isinstance(order, OrderToBinder) else inputs.CREATOR):
            return f"{event.agent} on {event.host} is told to do what is not its work"
        if not _is_asked(request, order) or request.host not in ("", event.host):
            return f"{event.host} is told to do something else than was asked for"
        if event.deadline_ns != at_ns + request.timeout_ms * _NS_PER_MS:
            return f"order {position} is to be done by another time than was asked for"
        thing = _thing(event.host, order)
        if thing in self._things:
            return f"order {position} is for what order {self._things[thing]} is for, which is not over"
        keys = keys_of(order)
        near = [device_id(event.host, each) for each in (*keys, *map(physical_key, keys))]
        for each in dict.fromkeys((*near, *(whole for device in near for whole in self._wholes(device)))):
            holding = self._held(each)
            if holding and not _may_be_held(order, holding, event.request.principal, is_itself=each == near[0]):
                return f"order {position} is given although {each} is held by {holding.principal}"
        self._orders[position] = _Given(event.host, event.agent, event.deadline_ns, thing)
        self._things[thing] = position
        return ""

    def _carry_out(self, given: Input, event: event_types.OrderCarriedOut) -> str:
        row = self._orders.get(event.order)
        if row is None or row.host != event.host:
            return f"order {event.order} is carried out on {event.host}, but is over, or was never given there"
        if event.late != row.timed_out:
            how = "late" if event.late else "in time"
            return f"order {event.order} is said to be carried out {how}, but is not"
        if not _says(given, row, inputs.OrderDone(event.order, event.device)):
            return f"order {event.order} is carried out, but {row.agent} on {row.host} has not said so"
        self._end(event.order, row)
        return ""

    def _fail(self, at_ns: int, given: Input, event: event_types.OrderFailed, grace_until_ns: int) -> str:
        row = self._orders.get(event.order)
        if row is None or row.host != event.host or row.timed_out:
            return f"order {event.order} fails on {event.host}, but is over, or was never given there"
        if event.timed_out:
            if not isinstance(given, inputs.Tick) or at_ns < max(row.deadline_ns, grace_until_ns):
                return f"order {event.order} times out before its time, or in a grace time"
        elif not _says(given, row, inputs.OrderNotDone(event.order, event.reason)):
            return f"order {event.order} fails, but {row.agent} on {row.host} has not said so"
        self._end(event.order, row)
        if event.timed_out:
            self._orders[event.order] = msgspec.structs.replace(row, timed_out=True)
        return ""

    def _end(self, order: int, row: _Given) -> None:
        del self._orders[order]
        if not row.timed_out:
            del self._things[row.thing]


def _may_be_held(order: Order, holding: Holding, principal: str, *, is_itself: bool) -> bool:
    """Whether an order may be given although this device is held: `is_itself`: it is for the device, not near it."""
    if isinstance(order, ReattachDevice) and is_itself:
        return holding.has_ended and holding.is_quarantined
    if isinstance(order, DestroyMdev | DestroyVport | OrderToBinder) and is_itself:
        return False
    return isinstance(order, OrderToBinder) or (not holding.has_ended and holding.principal == principal)


def _is_asked(request: _Asking, order: Order) -> bool:
    """Whether it is what the request names; what the request leaves open may be anything."""
    if isinstance(request, inputs.DestroyDeviceRequest):
        return isinstance(order, DestroyVport | DestroyMdev)
    if isinstance(request, inputs.OperateDeviceRequest):
        return isinstance(order, _BY_OPERATION[request.operation])
    match request.device, order:
        case NewVport() as new, CreateVport():
            pairs = ((new.wwnn, order.wwnn), (new.wwpn, order.wwpn))
            return all(not asked or parse_wwn(asked) == told for asked, told in pairs)
        case NewMdev() as new, CreateMdev():
            return new.mdev_type == order.mdev_type and new.uuid in ("", order.uuid)
        case NewVirtualFunctions() as new, SetVirtualFunctions():
            return new.count == order.count
    return False


def _thing(host: HostName, order: Order) -> tuple[str, ...]:
    """What an order is for, so that two for the same are seen."""
    match order:
        case CreateVport():
            return ("wwpn", order.wwpn)
        case CreateMdev():
            return ("uuid", host, order.uuid)
        case SetVirtualFunctions():
            return ("functions", host, order.parent)
        case _:
            return ("device", host, order.device)


def _says(given: Input, row: _Given, word: inputs.OrderDone | inputs.OrderNotDone) -> bool:
    """Whether the agent that was told says just this here."""
    if not isinstance(given, Observed) or (given.host, given.agent) != (row.host, row.agent):
        return False
    return word in given.observations
