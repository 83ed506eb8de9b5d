"""What administrators have a binder do to devices that nobody has leased: detach, reattach, reset.

Each order is begun once, and what came of it is told until the log has it. What the binder itself still has to take
back of a device goes first; a reattach is done by that.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import OrderToBinder, ReattachDevice
from leasehold.events.event_types import Event, HostOrdered, LedgerRestored, OrderCarriedOut, OrderFailed
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import BINDER, Observation, OrderDone, OrderNotDone
from leasehold.events.position import lease_id_text
from leasehold.events.views import OrderView
from leasehold.projections.handing import Handing
from leasehold.projections.handnotes import Operate, Outcome
from leasehold.projections.handover import Back, Busy, Done, Failed, NotBack, Ready

WAITING: Final = "waiting"


class Begun(msgspec.Struct, frozen=True, order=True):
    """An order. A restored ledger may give its number again, but not at the same time."""

    order: int
    ordered_at_ns: int


class HandOrders:
    """The orders of one run."""

    def __init__(self, handing: Handing) -> None:
        """`handing`: what else is done to the devices."""
        self._handing = handing
        self._open: dict[Begun, OrderToBinder] = {}
        """Not begun yet."""
        self._begun: dict[Begun, Operate] = {}
        self._results: dict[Begun, OrderDone | OrderNotDone] = {}
        self._untold: set[Begun] = set()
        self._over: dict[int, int] = {}
        """Orders that were heard to be over, and when: an answer to `sync` may be older than that."""
        self._as_of = 0
        self._known = 0

    @property
    def known(self) -> int:
        """The newest order that was heard of."""
        return self._known

    def synced(self, views: Iterable[OrderView], as_of: int) -> None:
        """Take in the log's answer to `sync`: what is still to be done."""
        listed = {
            Begun(view.order, view.ordered_at_ns): view
            for view in views
            if self._over.get(view.order, -1) < view.ordered_at_ns and isinstance(view.what, OrderToBinder)
        }
        self._as_of = as_of
        self._known = max((begun.order for begun in listed), default=0)
        self._results = {begun: result for begun, result in self._results.items() if begun in listed}
        self._open = {begun: order for begun, order in self._open.items() if begun.order > as_of}
        for begun, view in listed.items():
            if view.state == WAITING:
                self._take(begun, view.what)  # type: ignore[arg-type]
        self._untold = set(self._results)

    def hear(self, position: int, event: Event, *, at_ns: int) -> None:
        """Take a new order; forget what is over."""
        match event:
            case HostOrdered(agent=agent, order=order) if agent == BINDER and isinstance(order, OrderToBinder):
                if position > self._as_of:
                    self._known = max(self._known, position)
                    self._take(Begun(position, at_ns), order)
            case OrderCarriedOut(order=number) | OrderFailed(order=number, timed_out=False):
                self._end(number, at_ns)
            case OrderFailed(order=number):
                self._open = {begun: order for begun, order in self._open.items() if begun.order != number}
            case LedgerRestored():
                self._over.clear()
                self._open.clear()
                self._as_of = self._known = 0

    def _end(self, number: int, at_ns: int) -> None:
        self._over[number] = at_ns
        if len(self._over) > limits.ORDERS_KEPT_PER_HOST_MAX:
            del self._over[next(iter(self._over))]
        self._open = {begun: order for begun, order in self._open.items() if begun.order != number}
        self._results = {begun: result for begun, result in self._results.items() if begun.order != number}

    def _take(self, begun: Begun, order: OrderToBinder) -> None:
        if begun not in self._begun and begun not in self._results:
            self._open[begun] = order

    def jobs(self, now_ms: int) -> list[Operate]:
        """What to begin with now: each once, until its `done`."""
        jobs = [self._begin(begun, self._open[begun], now_ms) for begun in sorted(self._open)]
        return [job for job in jobs if job is not None]

    def _begin(self, begun: Begun, order: OrderToBinder, now_ms: int) -> Operate | None:
        handing, key = self._handing, order.device
        if handing.wants_back(key):
            if isinstance(order, ReattachDevice):
                handing.hasten(key)
            return None
        living = handing.log.grant_of(key)
        if living is not None:
            del self._open[begun]
            self._settle(begun, OrderNotDone(begun.order, f"{lease_id_text(living.lease)} holds it meanwhile"))
            return None
        if not handing.log.is_synced or handing.is_cut_off(now_ms) or not handing.claim(key):
            return None
        del self._open[begun]
        description = handing.log.picture.get(key)
        job = self._begun[begun] = Operate(
            order=begun.order, ordered_at_ns=begun.ordered_at_ns, what=order, note=handing.note_of(key),
            description=description,
        )  # fmt: skip
        return job

    def done(self, job: Operate, outcome: Outcome) -> None:
        """What came of an order."""
        begun, key = Begun(job.order, job.ordered_at_ns), job.what.device
        self._begun.pop(begun, None)
        is_host_s = isinstance(outcome, Back)
        self._handing.operated(key, is_attached=is_host_s)
        if outcome is not None:
            self._settle(begun, _result(begun.order, key, outcome))

    def taken_back(self, key: DeviceKey, outcome: Outcome) -> None:
        """What a lease had left of a device was taken back, or could not be: who ordered it hears that."""
        for begun in sorted(self._open):
            order = self._open[begun]
            if outcome is not None and order.device == key and isinstance(order, ReattachDevice):
                del self._open[begun]
                self._settle(begun, _result(begun.order, key, outcome))

    def _settle(self, begun: Begun, result: OrderDone | OrderNotDone) -> None:
        self._results[begun] = result
        self._untold.add(begun)

    @property
    def has_news(self) -> bool:
        """Whether `observations` has something."""
        return bool(self._untold)

    def observations(self) -> list[Observation]:
        """What the wires have not been given yet."""
        untold, self._untold = sorted(self._untold), set()
        return [self._results[begun] for begun in untold if begun in self._results]


def _result(order: int, key: DeviceKey, outcome: Outcome) -> OrderDone | OrderNotDone:
    match outcome:
        case Ready() | Back() | Done():
            return OrderDone(order, key)
        case Busy(who=who):
            reason = f"it is in use by {', '.join(who)}"
        case Failed(reason=reason):
            pass
        case NotBack(reason=reason, help=help_):
            reason = f"{reason} ({help_})" if help_ else reason
        case _:
            reason = "it is not known what came of it"
    return OrderNotDone(order, reason[: limits.REASON_CHARS_MAX])
