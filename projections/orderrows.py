"""The rows of the read models that tell what hosts were told to do: a part of the fold in `intervals`."""

from collections.abc import Iterable

from leasehold.events import codec
from leasehold.events.event_types import HostOrdered, OrderCarriedOut, OrderFailed
from leasehold.events.identities import DeviceKey, device_id
from leasehold.projections.modelrows import Changes, OrderRow


class OrderRows:
    """The open orders, each as its row has it."""

    def __init__(self) -> None:
        self._open: dict[int, OrderRow] = {}

    def resume(self, rows: Iterable[OrderRow]) -> None:
        """Go on from all open orders."""
        self._open = {row.ordered: row for row in rows}

    def ordered(self, changes: Changes, position: int, at_ns: int, event: HostOrdered) -> None:
        """A host is to do something."""
        ref = event.request
        self._open[position] = changes.orders[position] = OrderRow(
            ordered=position,
            host=event.host,
            at_ns=at_ns,
            agent=event.agent,
            principal=ref.principal,
            request_id=ref.request_id,
            what=codec.encode(event.order),
            deadline_ns=event.deadline_ns,
        )

    def carried_out(self, changes: Changes, position: int, event: OrderCarriedOut) -> None:
        """It has done it. Raises KeyError if that is not awaited."""
        device = device_id(event.host, DeviceKey(event.device)) if event.device else ""
        if event.late:
            changes.late[event.order] = (position, device)
        else:
            self._end(changes, position, event.order, device)

    def failed(self, changes: Changes, position: int, event: OrderFailed) -> None:
        """It has not, or not in time. Raises KeyError if that is not awaited."""
        self._end(changes, position, event.order, "")

    def _end(self, changes: Changes, position: int, order: int, device: str) -> None:
        row = self._open.pop(order)
        row.ended_position, row.device = position, device
        changes.orders[order] = row
