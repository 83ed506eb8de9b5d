"""The binder as an agent: hands the leased devices of its host over, and takes them back. Off unless somebody runs it.

What is to be done and told says `projections.handing`; how the kernel is told, `services.binder.machine`. Here are the
wires between them: the log, the notes on disk, threads, and the door at which hooks and helpers ask.

Nothing is done before it is noted durably. The end of this process changes nothing of the host: devices of living
leases stay with their holders, and what was being done is gone on with by the next run.
"""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from leasehold.events import limits
from leasehold.events.answers import Heard
from leasehold.events.errors import UnavailableError
from leasehold.events.event_types import SourceStarted
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import BINDER, Observed
from leasehold.events.subjects import Subjects
from leasehold.projections.handing import Handing
from leasehold.projections.handnotes import Operate, Outcome, Prepare, TakeBack
from leasehold.projections.handorders import HandOrders
from leasehold.projections.handover import Before, Failed, NotBack
from leasehold.projections.reporting import Reporter
from leasehold.services.binder.acting import act
from leasehold.services.binder.door import Door
from leasehold.services.binder.machine import Machine
from leasehold.services.binder.notes import Notes, boot_of
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.speaking import InLog, Speaker
from leasehold.services.threads import on_thread
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot

_log: Final = logging.getLogger(__name__)

AGENT: Final = BINDER
REFRESH_MS: Final = 10_000
"""The log is asked anew this often: the last message of a burst may be lost, which nothing shows."""
NOTE_S: Final = 30.0
"""So long a job waits until what it is about to do is on disk."""
HELP_FAILED: Final = "see the binder's log"


class BinderAgent:
    """One run of the binder of one host."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        notes: Path,
        door: Path,
        *,
        machine: Machine | None = None,
        root: HostRoot = THIS_MACHINE,
        ends: threading.Event | None = None,
    ) -> None:
        """`notes`: where they are kept; `door`: the socket where hooks ask; `machine`: what acts on `root`, and heeds
        `ends`, which is set at the end.
        """
        self._host = host
        self._ends = ends or threading.Event()
        self._machine = machine or Machine(root, ends=self._ends)
        self._root = root
        self._notes = Notes(notes, root)
        self._door_path = door
        self._handing = Handing(host)
        self._orders = HandOrders(self._handing)
        self._stirred = asyncio.Event()
        self._changed = asyncio.Condition()
        """Told to whoever waits at the door."""
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._run = 0
        self._asked_ms = 0
        """When the log was asked last."""
        self._gaps = self._gaps_asked = 0
        """How much had been missed when the log was asked: the last time that it answered, and the last time at all."""
        self._is_refresh = False
        """It is asked anew although nothing is known to be missing."""
        self._complaint = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._speaker = Speaker(connection, subjects, host, AGENT, self, manages=True)
        self.reported = self._speaker.reported
        """Set once the log counts on this run."""

    @property
    def handing(self) -> Handing:
        """How far everything is."""
        return self._handing

    async def run(self) -> None:
        """Hand over and take back until cancelled.

        Raises:
            StoreInUseError: another binder acts on this host, or has these notes.
            StorageError: the notes, or the door, cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        notes = self._notes.open()
        try:
            self._handing = Handing(self._host, notes, boot=boot_of(self._root))
            self._orders = HandOrders(self._handing)
            door = Door(self._door_path, self._host, self._handing, self._changed, self._stir)
            async with door, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._speaker.run())
                tasks.create_task(self._work())
        finally:
            self._ends.set()
            for task in self._tasks:
                task.cancel()
            self._notes.close()

    # --- speaking ---------------------------------------------------------------------------------------------------

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """All that the log does not have."""
        now_ms = _now_ms()
        if not self._handing.synced(
            in_log.holds, in_log.picture, as_of=in_log.as_of, era=in_log.era, now_ms=now_ms
        ):
            self._say_complaints()
            raise UnavailableError("the log's answer is older than what is known here")
        self._orders.synced(in_log.orders, in_log.as_of)
        self._run, self._asked_ms, self._gaps = reporter.run, now_ms, self._gaps_asked
        self._stir()
        is_refresh, self._is_refresh = self._is_refresh and reporter.is_synced, False
        words = [*self._handing.observations(), *self._orders.observations()]
        return reporter.tell(words) if is_refresh else reporter.synced({}, {}, also=words)

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What came of it since the last time."""
        return reporter.tell([*self._handing.observations(), *self._orders.observations()])

    def misses(self, known: Heard) -> bool:
        """Whether something was not heard of: the message that told it was lost; or may be, for all that is known."""
        now_ms = _now_ms()
        handing = self._handing
        is_behind = (
            known.order > self._orders.known
            or not handing.log.is_synced
            or handing.log.wants_sync
            or self._speaker.gaps > self._gaps
        )
        if not is_behind:
            handing.contact(now_ms)
        self._gaps_asked = self._speaker.gaps
        self._is_refresh = is_behind or now_ms - self._asked_ms >= REFRESH_MS
        return self._is_refresh

    def hear(self, told: FeedEvent) -> None:
        """Take in what is told of this host."""
        event = told.event
        if event is None:
            return
        if isinstance(event, SourceStarted) and event.agent == AGENT and event.run > self._run:
            # Another one acts on this host from here on, unless it is the run that we begin ourselves.
            self._handing.log.is_synced = False
            return
        at_ns = told.at_ns
        self._handing.hear(told.position, event, at_ns=at_ns, era=told.log.era, now_ms=_now_ms())
        self._orders.hear(told.position, event, at_ns=at_ns)
        self._stir()

    # --- doing ------------------------------------------------------------------------------------------------------

    def _stir(self) -> None:
        """Something may be to do, or to tell, or to write down."""
        self._stirred.set()

    async def _work(self) -> None:
        """Begin with whatever is to be done, until cancelled."""
        while True:
            self._stirred.clear()
            now_ms = _now_ms()
            jobs = [*self._handing.jobs(now_ms), *self._orders.jobs(now_ms)]
            self._say_complaints()
            trouble = await self._write_notes()
            for job in jobs:
                task = asyncio.create_task(self._do(job, trouble))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            async with self._changed:
                self._changed.notify_all()
            if self._handing.has_news or self._orders.has_news:
                self._speaker.wake()
            next_ms = self._handing.next_ms(_now_ms())
            pause_s = limits.HEARTBEAT_MS / 1_000 if next_ms is None else max(0.0, (next_ms - _now_ms()) / 1_000)
            try:
                async with asyncio.timeout(min(pause_s, limits.HEARTBEAT_MS / 1_000)):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    async def _do(self, job: Prepare | TakeBack | Operate, trouble: str) -> None:
        """Do one job. What is not done at this process's end stays open, for the next run."""
        outcome: Outcome
        try:
            if trouble:
                outcome = _failed(job, trouble)
            else:
                outcome = await on_thread(partial(act, self._machine, job, self._note_from_thread, _now_ms()))
        except Exception:  # noqa: BLE001 - whatever went wrong, the log must hear that it did
            _log.exception("%s went wrong", job)
            outcome = _failed(job, "the binder failed at it")
        if self._ends.is_set():
            return
        _log.info("%s: %s", _shown(job), outcome)
        now_ms = _now_ms()
        if isinstance(job, Operate):
            self._orders.done(job, outcome)
        else:
            self._handing.done(job.number, outcome, now_ms)
        if isinstance(job, TakeBack):
            self._orders.taken_back(job.key, outcome)
        self._stir()

    def _note_from_thread(self, befores: Sequence[Before]) -> None:
        """Note what devices are, durably, before a job writes to them. Raises OSError."""
        assert self._loop is not None
        noting = asyncio.run_coroutine_threadsafe(self._note(befores), self._loop)
        try:
            trouble = noting.result(NOTE_S)
        except (concurrent.futures.CancelledError, TimeoutError) as error:
            raise OSError("it cannot be noted in time") from error
        if trouble:
            raise OSError(trouble)

    async def _note(self, befores: Sequence[Before]) -> str:
        self._handing.noted(befores)
        return await self._write_notes()

    async def _write_notes(self) -> str:
        """Have all notes on disk; why not, or empty."""
        async with self._writing:
            notes = self._handing.notes
            if self._notes.has(notes):
                return ""
            try:
                await on_thread(partial(self._notes.write, notes))
            except OSError as error:
                _log.error("the notes cannot be written, so nothing is done: %s", error)
                return f"it cannot be noted on this host ({error.strerror or error})"
        return ""

    def _say_complaints(self) -> None:
        for complaint in self._handing.complaints:
            # Some come again with each answer of the log.
            if complaint != self._complaint:
                _log.error("%s", complaint)
            self._complaint = complaint
        self._handing.complaints.clear()


def _failed(job: Prepare | TakeBack | Operate, reason: str) -> Outcome:
    """Nothing is known to be done of it, and all of it may be."""
    if isinstance(job, TakeBack):
        return NotBack(job.key, reason, HELP_FAILED)
    left = tuple(NotBack(key, reason, HELP_FAILED) for key in job.keys) if isinstance(job, Prepare) else ()
    return Failed(job.keys[0], reason, left)


def _shown(job: Prepare | TakeBack | Operate) -> str:
    keys: Sequence[DeviceKey] = job.keys
    return f"{type(job).__name__} {', '.join(keys)}"


def _now_ms() -> int:
    """Time that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
