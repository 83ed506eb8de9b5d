"""How an agent speaks: the wires of `projections.reporting`, for the watcher and every other agent of a host.

A `Speaker` says that its agent lives, finds out what the log misses, brings what the agent has to tell into the inbox,
and hears what is told of its host. What there is to tell, the agent's own `Part` says. While the bus is away the part
goes on with its work, and when the bus is back it is asked again for all that differs from the log.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from leasehold.events import codec, limits
from leasehold.events.answers import Heard, Heartbeat
from leasehold.events.domains import DomainPicture
from leasehold.events.errors import LeaseholdError, UnavailableError
from leasehold.events.event_types import HostWentStale, LedgerRestored, ReportRequested, SourceStarted
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed
from leasehold.events.questions import Reading, Sync
from leasehold.events.subjects import Subjects
from leasehold.events.views import OrderView
from leasehold.projections.reporting import Need, Picture, Reporter
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.hostslice import HostSlice
from leasehold.services.ledger import api

_log: Final = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S: Final = 1.0
ASK_TIMEOUT_S: Final = 1.5
RETRY_S: Final = 0.25
ACCEPT_POLL_S: Final = 0.02
"""While something of ours is on its way into the log, look this often whether it has arrived."""
PAGES_MAX: Final = limits.DEVICES_PER_HOST_MAX
ASSURE_AFTER_S: Final = 5.0
"""What has not arrived after this long is taken for lost."""


class InLog(msgspec.Struct, frozen=True):
    """What the log has of this host."""

    picture: Picture
    """The devices that are there; empty for an agent that tells none."""
    orders: tuple[OrderView, ...]
    """What the agent is still to do."""
    as_of: int = 0
    """Behind which position this is so: what was ordered before, and is not among the orders, is over."""
    domains: DomainPicture = {}
    """The domains that this agent has told of."""
    holds: tuple[Hold, ...] = ()
    """Of a binder: what leases have, or had, of this host's devices."""
    era: int = 0
    """Of the log that `as_of` is a place in."""


class Part(Protocol):
    """What an agent does beside speaking."""

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """All that the log does not have, closed as `Reporter.synced` does; asked for at the start and after losses."""
        ...

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What there is to tell since the last time; asked for after a `wake`."""
        ...

    def misses(self, known: Heard) -> bool:
        """Whether the log has something for the agent that it does not know, so that it must catch up."""
        ...

    def hear(self, told: FeedEvent) -> None:
        """An event of this host or of the whole cluster, in order, at most once. It must not block."""
        ...


class Speaker:
    """The wires of one run of one agent of one host, and of the runs that must follow it."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        agent: str,
        part: Part,
        *,
        tells_picture: bool = True,
        manages: bool = False,
    ) -> None:
        """`tells_picture`: what the log knows to be on the host matters to the agent, so it is asked for; `manages`: it
        hands devices over and takes them back.
        """
        self._connection = connection
        self._subjects = subjects
        self._host = host
        self._agent = agent
        self._part = part
        self._tells_picture = tells_picture
        self._manages = manages
        self._reporter: Reporter | None = None
        self._pending_since_s: float | None = None
        self._wake = asyncio.Event()
        self._trouble = ""
        self.gaps = 0
        """How often something that was told may have been missed."""
        self.reported = asyncio.Event()
        """Set once the log has all that there was to tell."""

    def wake(self) -> None:
        """Ask the part for news as soon as they can be told."""
        self._wake.set()

    async def run(self) -> None:
        """Speak until cancelled; then say goodbye."""
        # What the log says of this agent is acted on at once; without the feed the next heartbeat's answer says it.
        told = HostSlice(self._connection, self._subjects, self._host, self._hear, self._miss)
        await told.open()
        try:
            while True:
                await self._turn()
        finally:
            await told.close()
            await self._say_goodbye()

    def _miss(self) -> None:
        self.gaps += 1
        self.wake()

    def _hear(self, told: FeedEvent) -> None:
        """Speak at once if the log wants something: a report, or because it counts on another run than this one."""
        match told.event:
            case ReportRequested(agent=agent) | HostWentStale(agent=agent):
                is_ours = agent == self._agent
            case SourceStarted(agent=agent, run=run):
                is_ours = agent == self._agent and self._reporter is not None and run != self._reporter.run
            case LedgerRestored():
                is_ours = True
            case _:
                is_ours = False
        if is_ours:
            self.wake()
        self._part.hear(told)

    async def _turn(self) -> None:
        """One round: a heartbeat, what its answer calls for, and the news if there is a reason to ask for them."""
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
                await self._send_all(await self._part.news(self._reporter))
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
            self._reporter = Reporter(
                self._host, self._agent, max(time.time_ns(), known.run + 1), manages=self._manages
            )
            await self._send(self._reporter.starts())
            return ACCEPT_POLL_S
        need = self._reporter.need(known)
        if need is not Need.WAIT:
            self._pending_since_s = None
        match need:
            case Need.SUPERSEDED:
                _log.warning("somebody else speaks as this host's %s; beginning anew", self._agent)
                self._reporter = None
                # Two agents of one name would take turns for ever: the later one gets time to be seen.
                return limits.HEARTBEAT_MS / 1_000
            case Need.AGAIN:
                await self._send(self._reporter.starts())
                return ACCEPT_POLL_S
            case Need.SYNC:
                await self._sync(self._reporter, known)
                return ACCEPT_POLL_S
            case Need.WAIT:
                return await self._wait(self._reporter)
            case Need.NOTHING if self._part.misses(known):
                await self._sync(self._reporter, known)
                return ACCEPT_POLL_S
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
        subject = self._subjects.alive(self._host, self._agent)
        reply = await self._connection.ask(subject, body, timeout_s=ASK_TIMEOUT_S)
        if reply.status:
            raise UnavailableError("no allocator hears us")
        return msgspec.json.decode(reply.body, type=Heard)

    async def _sync(self, reporter: Reporter, known: Heard) -> None:
        in_log = await self._ask_log(known)
        if in_log is not None:
            await self._send_all(await self._part.catch_up(reporter, in_log))

    async def _ask_log(self, known: Heard) -> InLog | None:
        """What the log has of this host; `None` if it moved on while we asked."""
        picture: Picture = {}
        domains: DomainPicture = {}
        orders: dict[int, OrderView] = {}
        holds: dict[str, Hold] = {}
        after, era, as_of = "", -1, 0
        for _ in range(PAGES_MAX):
            reading = await self._ask_page(known, after)
            if (reading.source_run, reading.source_counter) != (known.run, known.counter):
                return None
            if era not in (-1, reading.era):
                return None
            # While pages are asked for, the log goes on: what is so behind the first is known of all.
            era, as_of = reading.era, as_of or reading.as_of
            orders.update({order.order: order for order in reading.orders})
            if not self._tells_picture:
                return InLog({}, tuple(orders.values()), as_of, era=era)
            picture.update({device.key: device for device in reading.descriptions})
            domains.update({seen.domain.key: seen for seen in reading.seen_domains})
            holds.update({hold.key: hold for hold in reading.holds})
            if not reading.more:
                return InLog(picture, tuple(orders.values()), as_of, domains, tuple(holds.values()), era)
            after = reading.seen_domains[-1].domain.key if domains else reading.descriptions[-1].key
        raise UnavailableError("the log's picture of this host has no end")

    async def _ask_page(self, known: Heard, after: str) -> Reading:
        question = Sync(host=self._host, agent=self._agent, after=after, min_position=known.as_of)
        subject = self._subjects.request(f"agent-{self._host}"[: limits.NAME_CHARS_MAX], "sync")
        reply = await self._connection.ask(subject, codec.encode(question), timeout_s=ASK_TIMEOUT_S)
        if reply.status:
            raise UnavailableError("no query service answers")
        reading = msgspec.json.decode(reply.body, type=Reading)
        if reading.outcome != "ok":
            raise UnavailableError(f"the log's picture of this host cannot be had: {reading.message}")
        return reading

    async def _send_all(self, messages: Sequence[Observed]) -> None:
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
