"""The watcher as an agent: looks at its host, and reports to the bus what differs from the log.

The protocol is `projections.reporting`; here are the wires. While the bus is away the watcher keeps watching, and when
it is back it reports the difference.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.events import codec, limits
from leasehold.events.answers import Heard, Heartbeat
from leasehold.events.errors import LeaseholdError, UnavailableError
from leasehold.events.event_types import HostWentStale, LedgerRestored, ReportRequested, SourceStarted
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed
from leasehold.events.questions import Reading, Sync
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Need, Picture, Reporter
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.hostslice import HostSlice
from leasehold.services.ledger import api
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture

_log: Final = logging.getLogger(__name__)

AGENT: Final = "watcher"
PUBLISH_TIMEOUT_S: Final = 1.0
ASK_TIMEOUT_S: Final = 1.5
RETRY_S: Final = 0.25
ACCEPT_POLL_S: Final = 0.02
"""While something of ours is on its way into the log, look this often whether it has arrived."""
PAGES_MAX: Final = limits.DEVICES_PER_HOST_MAX
ASSURE_AFTER_S: Final = 5.0
"""What has not arrived after this long is taken for lost."""

Look = Callable[[], Picture]


class WatcherAgent:
    """One run of the watcher of one host."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        *,
        monitor: UeventMonitor | None = None,
        look: Look = take_picture,
    ) -> None:
        """`look` takes the whole picture; it runs in a thread."""
        self._connection = connection
        self._subjects = subjects
        self._host = host
        self._monitor = monitor or UeventMonitor()
        self._look = look
        self._reporter: Reporter | None = None
        self._pending_since_s: float | None = None
        self._wake = asyncio.Event()
        self._trouble = ""
        self.reported = asyncio.Event()
        """Set once the log has the whole picture."""

    async def run(self) -> None:
        """Watch until cancelled; then say goodbye."""
        self._monitor.start()
        # What the log says of this agent is acted on at once; without the feed the next heartbeat's answer says it.
        told = HostSlice(self._connection, self._subjects, self._host, self._hear, self._wake.set)
        await told.open()
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                await self._turn()
        finally:
            watching.cancel()
            await told.close()
            self._monitor.close()
            await self._say_goodbye()

    async def _watch(self) -> None:
        while True:
            signal = await self._monitor.next()
            if signal.overflow:
                _log.warning("events were lost; looking at everything again")
            self._wake.set()

    def _hear(self, told: FeedEvent) -> None:
        """Speak at once if the log wants something: a report, or because it counts on another run than this one."""
        match told.event:
            case ReportRequested(agent=agent) | HostWentStale(agent=agent):
                is_ours = agent == AGENT
            case SourceStarted(agent=agent, run=run):
                is_ours = agent == AGENT and self._reporter is not None and run != self._reporter.run
            case LedgerRestored():
                is_ours = True
            case _:
                is_ours = False
        if is_ours:
            self._wake.set()

    async def _turn(self) -> None:
        """One round: a heartbeat, what its answer calls for, and a look if there is a reason for one."""
        try:
            pause_s = await self._speak()
            self._trouble = ""
            await self._connection.note(well=True)
        except LeaseholdError as error:
            self._complain(error)
            await self._connection.note(well=False)
            pause_s = RETRY_S
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        if self._reporter is not None and self._reporter.is_synced and self._connection.is_connected:
            try:
                await self._send_all(self._reporter.look(await asyncio.to_thread(self._look)))
            except LeaseholdError as error:
                # What is lost shows as a gap at the next heartbeat.
                self._complain(error)

    def _complain(self, error: LeaseholdError) -> None:
        # Attempts come four a second for as long as the trouble lasts; one line for each kind of it is enough.
        if str(error) != self._trouble:
            self._trouble = str(error)
            _log.info("cannot report now: %s", error)

    async def _speak(self) -> float:
        """Say that we live, and do what the answer calls for; how long to wait before the next time."""
        known = await self._heartbeat()
        if self._reporter is None:
            self._reporter = Reporter(self._host, AGENT, max(time.time_ns(), known.run + 1))
            await self._send(self._reporter.starts())
            return ACCEPT_POLL_S
        need = self._reporter.need(known)
        if known.run == self._reporter.run and known.counter > self._reporter.counter:
            # Whatever we number below that is taken for old: nobody hears us under this run any more.
            need = Need.SUPERSEDED
        if need is not Need.WAIT:
            self._pending_since_s = None
        match need:
            case Need.SUPERSEDED:
                _log.warning("somebody else speaks as this host's watcher; beginning anew")
                self._reporter = None
                # Two watchers of one host would take turns for ever: the later one gets time to be seen.
                return limits.HEARTBEAT_MS / 1_000
            case Need.AGAIN:
                await self._send(self._reporter.starts())
                return ACCEPT_POLL_S
            case Need.SYNC:
                await self._sync(self._reporter, known)
                return ACCEPT_POLL_S
            case Need.WAIT:
                return await self._wait(self._reporter)
            case Need.NOTHING:
                self.reported.set()
        return limits.HEARTBEAT_MS / 1_000

    async def _wait(self, reporter: Reporter) -> float:
        now_s = time.monotonic()
        if self._pending_since_s is None:
            self._pending_since_s = now_s
        elif now_s - self._pending_since_s > ASSURE_AFTER_S:
            self._pending_since_s = now_s
            await self._send(reporter.assure())
        return ACCEPT_POLL_S if now_s - self._pending_since_s < 1 else RETRY_S

    async def _heartbeat(self) -> Heard:
        reporter = self._reporter
        body = codec.encode(Heartbeat(run=reporter.run if reporter else 0, counter=reporter.counter if reporter else 0))
        reply = await self._connection.ask(self._subjects.alive(self._host, AGENT), body, timeout_s=ASK_TIMEOUT_S)
        if reply.status:
            raise UnavailableError("no allocator hears us")
        return msgspec.json.decode(reply.body, type=Heard)

    async def _sync(self, reporter: Reporter, known: Heard) -> None:
        in_log = await self._ask_picture(known)
        picture = await asyncio.to_thread(self._look)
        if in_log is not None:
            await self._send_all(reporter.synced(in_log, picture))

    async def _ask_picture(self, known: Heard) -> Picture | None:
        """What the log knows to be here; `None` if it moved on while we asked."""
        picture: Picture = {}
        after = ""
        for _ in range(PAGES_MAX):
            question = Sync(host=self._host, agent=AGENT, after=after, min_position=known.as_of)
            subject = self._subjects.request(f"agent-{self._host}"[: limits.NAME_CHARS_MAX], "sync")
            reply = await self._connection.ask(subject, codec.encode(question), timeout_s=ASK_TIMEOUT_S)
            if reply.status:
                raise UnavailableError("no query service answers")
            reading = msgspec.json.decode(reply.body, type=Reading)
            if reading.outcome != "ok":
                raise UnavailableError(f"the log's picture of this host cannot be had: {reading.message}")
            if (reading.source_run, reading.source_counter) != (known.run, known.counter):
                return None
            picture.update({device.key: device for device in reading.descriptions})
            if not reading.more:
                return picture
            after = reading.descriptions[-1].key
        raise UnavailableError("the log's picture of this host has no end")

    async def _send_all(self, messages: list[Observed]) -> None:
        for message in messages:
            await self._send(message)

    async def _send(self, message: Observed) -> None:
        """Have it put into the inbox. What is lost here shows as a gap, and is then reported again."""
        subject = self._subjects.observed(message.host, message.agent)
        reply = await self._connection.ask(subject, codec.encode(message), timeout_s=PUBLISH_TIMEOUT_S)
        if reply.status:
            raise UnavailableError(f"no allocator takes reports (status {reply.status})")
        answer = msgspec.json.decode(reply.body, type=api.PublishReply)
        if answer.error is not None:
            raise UnavailableError(f"the inbox refused a report: {answer.error.description}")

    async def _say_goodbye(self) -> None:
        if self._reporter is None or not self._reporter.is_synced or not self._connection.is_connected:
            return
        try:
            await self._send(self._reporter.stops())
        except LeaseholdError as error:
            _log.info("left without a goodbye: %s", error)
