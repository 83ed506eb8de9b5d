"""The creator as an agent: does on its host what is ordered there, and tells what came of it.

An order comes by the feed, at once, or with the next sync. It is done at most once in effect: whoever does it looks
first whether it is so already, so a run that was killed between doing and telling is made good by the next one. What
came of it is told until the log has it.

A request to the kernel may take for ever, so each order has a thread of its own, and nobody waits for that at the end.
Orders for one parent are done one after the other.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.answers import Heard
from leasehold.events.capabilities import Order, keys_of
from leasehold.events.event_types import HostOrdered, LedgerRestored, OrderCarriedOut, OrderFailed, SourceStarted
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import CREATOR, Observed, OrderDone, OrderNotDone
from leasehold.events.subjects import Subjects
from leasehold.events.views import OrderView
from leasehold.projections.reporting import Reporter
from leasehold.services.connection import Connection
from leasehold.services.creator.attempt import Attempt, Write, write_attribute
from leasehold.services.creator.carrying import carry_out
from leasehold.services.creator.notes import Begun, Notes
from leasehold.services.feedevents import FeedEvent
from leasehold.services.speaking import InLog, Speaker
from leasehold.services.threads import on_thread
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot

_log: Final = logging.getLogger(__name__)

AGENT: Final = CREATOR
UNDO_NS_MAX: Final = 2 * 10**9
"""So long before its deadline (or a tenth of its time) an order is given up, to take back what was begun."""
CLOCK_NS: Final = 300 * 10**9
"""What was heard up to so long, or twice as long, ago says what time the log has: clocks go at different speeds."""

Result = OrderDone | OrderNotDone


class LedgerClock:
    """What time the log has, as far as it is told: no later than that of the event that came fastest of late."""

    def __init__(self) -> None:
        self._since_ns = 0
        self._ahead_ns: tuple[int, ...] = ()
        """Of the fastest event since then, and of the fastest in the time before."""

    def heard(self, at_ns: int) -> None:
        """Something decided at `at_ns` (ns since 1970) has been told now."""
        now_ns = _passed_ns()
        if not self._ahead_ns or now_ns - self._since_ns > CLOCK_NS:
            self._since_ns = now_ns
            self._ahead_ns = (at_ns - now_ns, *self._ahead_ns[:1])
        else:
            self._ahead_ns = (max(self._ahead_ns[0], at_ns - now_ns), *self._ahead_ns[1:])

    def now_ns(self) -> int:
        """Of the log, ns since 1970; of this machine, as long as nothing was heard."""
        return _passed_ns() + max(self._ahead_ns) if self._ahead_ns else time.time_ns()


def _passed_ns() -> int:
    """Time that nobody sets, and that goes on while the machine sleeps: an order's does, too."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Task(msgspec.Struct, frozen=True):
    """An order as it was given."""

    begun: Begun
    order: Order
    deadline_ns: int

    @property
    def give_up_ns(self) -> int:
        return self.deadline_ns - min(UNDO_NS_MAX, max(0, self.deadline_ns - self.begun.ordered_at_ns) // 10)


class CreatorAgent:
    """One run of the creator of one host."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        notes: Path,
        *,
        root: HostRoot = THIS_MACHINE,
        write: Write = write_attribute,
    ) -> None:
        """`notes`: where to keep what was begun; `root`: the machine; `write`: how its kernel is told."""
        self._host = host
        self._root = root
        self._write = write
        self._notes = Notes(notes)
        self._clock = LedgerClock()
        self._ends = threading.Event()
        self._run = 0
        """Under which the log hears us; 0: under none, so that nothing new is begun."""
        self._known = 0
        """The newest order that was heard of."""
        self._as_of = 0
        """Up to where the log was asked: what the feed tells of orders before that is late, or told anew."""
        self._working: dict[Begun, asyncio.Task[None]] = {}
        self._parents: dict[DeviceKey, asyncio.Lock] = {}
        self._over: dict[int, int] = {}
        """Orders that were heard to be over, and when they were: an answer to `sync` may be older than that. A restored
        ledger gives their numbers again, later."""
        self._results: dict[Begun, Result] = {}
        self._untold: set[Begun] = set()
        self._speaker = Speaker(connection, subjects, host, AGENT, self, tells_picture=False)
        self.reported = self._speaker.reported
        """Set once the log counts on this run."""

    async def run(self) -> None:
        """Do what is ordered until cancelled. What is not done by then stays open, for the next run.

        Raises:
            StoreInUseError: another creator runs with the same notes.
            StorageError: they cannot be used.
        """
        self._notes.open()
        try:
            await self._speaker.run()
        finally:
            self._ends.set()
            for task in self._working.values():
                task.cancel()
            self._notes.close()

    # --- speaking ---------------------------------------------------------------------------------------------------

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """All that is known of orders which are not over for the log."""
        self._run = reporter.run
        listed = {Begun(view.order, view.ordered_at_ns): view for view in in_log.orders}
        self._known = max((begun.order for begun in listed), default=0)
        self._as_of = in_log.as_of
        listed = {begun: view for begun, view in listed.items() if not self._is_over(begun)}
        settled = {begun for begun, view in listed.items() if self._is_settled(begun, view)}
        for begun in (self._results.keys() - listed.keys()) | settled:
            self._forget(begun)
        self._note(partial(self._notes.keep_only, listed.keys() - settled | self._working.keys()))
        for begun, view in listed.items():
            if view.state == "waiting" or self._notes.has(begun):
                self._take(_Task(begun, view.what, view.deadline_ns))
        self._untold = set(self._results)
        return [*reporter.synced({}, {}), *await self.news(reporter)]

    def _is_over(self, begun: Begun) -> bool:
        over_ns = self._over.get(begun.order)
        return over_ns is not None and begun.ordered_at_ns <= over_ns

    def _is_settled(self, begun: Begun, view: OrderView) -> bool:
        """Whether it timed out, and nothing came of it."""
        return view.state == "timed_out" and isinstance(self._results.get(begun), OrderNotDone)

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What came of orders since the last time."""
        told, self._untold = sorted(self._untold), set()
        return reporter.tell([self._results[begun] for begun in told])

    def misses(self, known: Heard) -> bool:
        """Whether an order was not heard of: the message that told it was lost."""
        return known.order > self._known

    def hear(self, told: FeedEvent) -> None:
        """Take a new order; forget what is over."""
        self._clock.heard(told.at_ns)
        match told.event:
            case HostOrdered(agent=agent, order=order, deadline_ns=deadline_ns) if agent == AGENT and self._run:
                if told.position > self._as_of:
                    self._known = max(self._known, told.position)
                    self._take(_Task(Begun(told.position, told.at_ns), order, deadline_ns))
            case OrderCarriedOut(order=number) | OrderFailed(order=number, timed_out=False):
                self._over[number] = told.at_ns
                if len(self._over) > limits.ORDERS_KEPT_PER_HOST_MAX:
                    del self._over[next(iter(self._over))]
                for begun in [begun for begun in self._results if begun.order == number]:
                    self._forget(begun)
            case LedgerRestored():
                # Positions are given out again: what is ordered from here on is learnt by asking.
                self._over.clear()
                self._run = 0
            case SourceStarted(agent=agent, run=run) if agent == AGENT and run > self._run:
                # Another one acts on this host from here on, unless it is the run that we begin ourselves.
                self._run = 0

    def _forget(self, begun: Begun) -> None:
        self._results.pop(begun, None)
        self._untold.discard(begun)

    def _note(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            _log.error("it cannot be noted what is over: %s", error)

    # --- doing ------------------------------------------------------------------------------------------------------

    def _take(self, task: _Task) -> None:
        """Begin with an order, unless it was taken before."""
        if task.begun in self._working or task.begun in self._results:
            return
        if len(self._working) >= limits.ORDERS_KEPT_PER_HOST_MAX:
            # The kernel does not come back from so many; the next sync brings it again.
            _log.error("order %d waits: %d are being done", task.begun.order, len(self._working))
            return
        self._working[task.begun] = asyncio.create_task(self._do(task))

    async def _do(self, task: _Task) -> None:
        try:
            async with self._parents.setdefault(keys_of(task.order)[-1], asyncio.Lock()):
                attempt = Attempt(
                    self._root,
                    lambda: (task.give_up_ns - self._clock.now_ns()) / 1e9,
                    write=self._write,
                    begins=partial(self._notes.begin, task.begun),
                    is_begun=self._notes.has(task.begun),
                    ends=self._ends,
                )
                result = await on_thread(partial(carry_out, attempt, task.begun.order, task.order))
        except Exception:  # noqa: BLE001 - whatever went wrong, whoever ordered it must hear that it did
            _log.exception("order %d went wrong", task.begun.order)
            result = OrderNotDone(task.begun.order, "the creator failed at it; what is left of it is not known")
        finally:
            del self._working[task.begun]
        if result is not None:
            _log.info("order %d: %s", task.begun.order, result)
            self._results[task.begun] = result
            self._untold.add(task.begun)
            if len(self._results) > limits.ORDERS_KEPT_PER_HOST_MAX:
                # The log has forgotten it by now.
                self._forget(min(self._results))
            self._speaker.wake()
