"""An allocator in this process, on a real server, that can be cut off, misled about time, and watched."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, HostName, Principal, RequestId
from leasehold.events.inputs import Observed, Request
from leasehold.events.subjects import LEDGER_STREAM
from leasehold.projections.reporting import Reporter
from leasehold.projections.state import State
from leasehold.services.allocator.hint import Hint
from leasehold.services.allocator.service import Allocator
from leasehold.services.connection import Connection
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.observed import ObservedReader
from tests.integration.growing import pci
from tests.support.servers import SUBJECTS, connected, ledger_at

HOST = HostName("h1")
WAIT_S = 30.0
_POLL_S = 0.005


class RunningAllocator:
    """One allocator, with what it is asked for here counted."""

    def __init__(self, connection: Connection, ledger: JetStreamLedger, name: str, *, hint: Hint | None = None) -> None:
        self.server_off_ns = 0
        """What is added to the server's time, as this allocator hears it."""
        self.wall_off_ns = 0
        self.connection = connection
        self.observed = ObservedReader(connection)
        self.answers = 0
        self.allocator = Allocator(
            ledger=ledger,
            observed=self.observed,
            subjects=SUBJECTS,
            server_time=self._server_time,
            state=State(),
            writer=name,
            on_record=self._on_record,
            hint=hint,
            wall_ns=lambda: time.time_ns() + self.wall_off_ns,
        )

    @property
    def state(self) -> State:
        """What the ledger says; while a record is in flight, what it would say."""
        return self.allocator.sequencer.state

    async def _server_time(self) -> int:
        return await api.server_time_ns(self.connection, LEDGER_STREAM) + self.server_off_ns

    async def _on_record(self, _state: State) -> None:
        await asyncio.sleep(0)

    def begin(self, principal: str, request: Request) -> "asyncio.Future[Answer]":
        """Hand in a request. A second answer to it is an error."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def respond(given: Answer) -> None:
            self.answers += 1
            answer.set_result(given)

        self.allocator.ask(Principal(principal), codec.verb_of(request), codec.encode(request), respond)
        return answer

    async def ask(self, principal: str, request: Request) -> Answer:
        """Hand in a request and wait for its answer."""
        async with asyncio.timeout(WAIT_S):
            return await self.begin(principal, request)

    async def decided(self, principal: str, request: Request) -> Answer:
        """As `ask`, again and again until there is a decision."""
        async with asyncio.timeout(WAIT_S):
            while True:
                answer = await self.begin(principal, request)
                if answer.outcome not in ("unavailable", "outcome_unknown"):
                    return answer
                await asyncio.sleep(_POLL_S)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(WAIT_S):
            # Anything may be waited for, so nothing tells when it holds.
            while self.allocator.sequencer.in_flight is not None or not holds():  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def settled(self) -> None:
        """Wait until the ledger is begun and requests are decided."""
        await self.until(lambda: self.state.head.sequence and not self.allocator.trouble)

    def source(self) -> tuple[int, int, str]:
        """Run, counter and staleness of the host's watcher, as the ledger has them; zeros if it has none."""
        host = self.state.hosts.get(HOST)
        source = host.sources.get("watcher") if host else None
        return (source.run, source.counter, source.stale) if source else (0, 0, "unknown")


@asynccontextmanager
async def running_allocator(
    url: str, name: str = "alloc1", *, hint: Hint | None = None
) -> AsyncIterator[RunningAllocator]:
    """A running allocator with connections of its own; without a hint it always decides."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(url, name))
        ledger = await stack.enter_async_context(ledger_at(url, name))
        running = RunningAllocator(client, ledger, name, hint=hint)
        task = asyncio.create_task(running.allocator.run())
        try:
            yield running
        finally:
            for _ in range(3):
                # The NATS client swallows a cancellation in some places, so once may not be enough.
                task.cancel()
                await asyncio.wait({task}, timeout=3)
            assert task.done()
            with suppress(asyncio.CancelledError):
                task.result()


async def publish(client: Connection, message: Observed) -> None:
    """Put a message into the inbox."""
    subject = SUBJECTS.inbox(message.host, message.agent)
    reply = await client.ask(subject, codec.encode(message), timeout_s=5)
    assert reply.status == 0
    assert b"error" not in reply.body, reply.body


async def report_cards(client: Connection, running: RunningAllocator, count: int, run: int = 1) -> Reporter:
    """A host with so many cards, reported as its watcher would."""
    reporter = Reporter(HOST, "watcher", run)
    await publish(client, reporter.starts())
    await running.until(lambda: running.source()[0] == run)
    running.allocator.hear(HOST, "watcher", run)
    for message in reporter.synced({}, {card.key: card for card in map(pci, range(1, count + 1))}):
        await publish(client, message)
    await running.until(lambda: running.source() == (run, reporter.counter, ""))
    return reporter


def lease(slot: int, request_id: str, *, holder: str = "vm1", ttl_ms: int = 60_000) -> inputs.LeaseRequest:
    """Asks for one of the cards."""
    return inputs.LeaseRequest(
        request_id=RequestId(request_id),
        issued_at_ns=time.time_ns(),
        devices=(f"{HOST}/{pci(slot).key}",),
        holder=Holder(holder),
        ttl_ms=ttl_ms,
    )


def release(granted: Answer, request_id: str) -> inputs.ReleaseRequest:
    """Gives back what was granted."""
    return inputs.ReleaseRequest(
        request_id=RequestId(request_id), issued_at_ns=time.time_ns(), lease=granted.lease, token=granted.token
    )
