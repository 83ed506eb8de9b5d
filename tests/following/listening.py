"""A reader of the feed beside a test, and what it should be given."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager

from leasehold.events.identities import HostName
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent, Log, Wanted, wanted
from leasehold.services.following import Following
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Ledger
from tests.feed.events import Told, expected
from tests.integration.growing import Grower, pci
from tests.support.servers import SUBJECTS

WAIT_S = 30.0
HOSTS = ("h1", "h2")


def choices(lease: str) -> list[Wanted]:
    """One reader of each sort."""
    return [
        wanted(),
        wanted(host="h1"),
        wanted(host="h2", kind="lease_granted"),
        wanted(device="h1/pci/0000:00:01.0"),
        wanted(kind="device_freed"),
        wanted(lease=lease),
        wanted(tenant="team2"),
    ]


def is_wanted(told: Told, choice: Wanted) -> bool:
    """As a person would say it, from the subject."""
    parts = SUBJECTS.parse_event(f"leasehold.test.evt.{told.subject}")
    return (
        choice.host in ("", parts.host)
        and choice.kind in ("", parts.kind)
        and choice.device in ("", f"{parts.host}/{parts.device}")
        and choice.lease in ("", parts.lease)
        and choice.tenant in ("", parts.tenant)
    )


def positions(bodies: list[bytes], choice: Wanted, since: int = 0) -> list[int]:
    """What is to be given, each once."""
    found = [told.position for told in expected(bodies) if told.position > since and is_wanted(told, choice)]
    return list(dict.fromkeys(found))


async def grown(ledger: Ledger, turns: int = 5, writer: str = "alloc1") -> Grower:
    """A log of two hosts, on each of which devices change hands."""
    grower = Grower(ledger, writer=writer)
    await grower.start()
    for host in HOSTS:
        await grower.report(host, *(pci(slot) for slot in range(1, 5)))
    await turn(grower, turns)
    return grower


async def turn(grower: Grower, turns: int) -> None:
    """More of it: of one device, and now and then of three on both hosts."""
    for number in range(turns):
        host, principal = HostName(HOSTS[number % 2]), f"p@team{number % 3}"
        await grower.turn(f"{host}/pci/0000:00:0{1 + number % 4}.0", principal=principal)
        if number % 5 == 0:
            names = ("h1/pci/0000:00:01.0", "h2/pci/0000:00:02.0", "h1/pci/0000:00:03.0")
            granted = await grower.ask(principal, grower.lease(*names, holder="vm3"))
            await grower.ask(principal, grower.release(granted))


class Listener:
    """One reader, who writes down what it is given."""

    def __init__(self, following: Following, choice: Wanted) -> None:
        self.following = following
        self.choice = choice
        self.given: list[FeedEvent] = []
        self.may_take = asyncio.Event()
        self.may_take.set()
        self._news = asyncio.Condition()
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async with aclosing(self.following.events()) as events:
            async for event in events:
                self.given.append(event)
                async with self._news:
                    self._news.notify_all()
                await self.may_take.wait()

    @property
    def positions(self) -> list[int]:
        return [event.position for event in self.given]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so, or the reader ends."""
        async with asyncio.timeout(WAIT_S):
            waiting = asyncio.ensure_future(self._until(is_so))
            await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                self.task.result()
            await waiting

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(is_so)

    async def has_all(self, bodies: list[bytes], since: int = 0) -> None:
        """Wait until it was given all of the log that it wants; and see that it was nothing else."""
        right = positions(bodies, self.choice, since)
        try:
            await self.until(lambda: len(self.given) >= len(right))
        finally:
            assert self.positions == right[: len(self.given)], self.choice
        assert self.positions == right, self.choice


@asynccontextmanager
async def listening(
    client: Connection,
    log_of: Grower,
    choice: Iterable[Wanted],
    *,
    since: int = 0,
    era: int = 0,
    may_read_ledger: bool = True,
    ledger: MemoryLog | None = None,
) -> AsyncIterator[list[Listener]]:
    """Readers through one connection."""
    told_by = Log(log_of.state.head.ledger_id, era)

    def open_ledger() -> Ledger:
        return JetStreamLedger(client, SUBJECTS) if ledger is None else MemoryLedger(ledger)

    opened = open_ledger if may_read_ledger else None
    listeners = [Listener(Following(client, SUBJECTS, each, since, told_by, opened), each) for each in choice]
    try:
        yield listeners
    finally:
        tasks = [listener.task for listener in listeners]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
