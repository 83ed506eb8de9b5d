"""The poller as an agent: its looks at a source that is played, and what the log has of them, on a real bus."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from unittest.mock import Mock

import pytest

from leasehold.events import limits
from leasehold.events.domains import DomainDescription, SeenDomain, Use
from leasehold.events.errors import InvalidInputError, SourceUnavailableError
from leasehold.events.event_types import DeviceFreed
from leasehold.events.identities import DeviceId, DomainKey, HostName
from leasehold.events.inputs import DomainSeen, PictureComplete, SourceBlind, SourceSees
from leasehold.events.subjects import Subjects
from leasehold.projections import polling
from leasehold.projections.polling import Look
from leasehold.projections.reporting import Reporter
from leasehold.services.client import Client
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.poller import agent as agent_module
from leasehold.services.poller.agent import AGENT, PollerAgent
from leasehold.services.poller.source import Source
from leasehold.services.poller.xend import XendSource
from leasehold.services.speaking import InLog
from tests.bench.cluster import HOST, Bus, bus
from tests.poller.xenstage import NO_SYSFS, XenProcess, XenStage

WAIT_S: Final = 60.0
POLL_S: Final = 0.02
UUID: Final = "6a1f2c3d-0b1e-4c5d-8e9f-a0b1c2d3e4f5"
KEY: Final = DomainKey(f"xen/{UUID}")
GPU: Final = "pci/0000:03:00.0"


class Played:
    """A source that shows what it is told to."""

    title = "a played hypervisor"
    rest_ms = limits.POLL_MS_MAX

    def __init__(self) -> None:
        self.domains: dict[DomainKey, SeenDomain] = {}
        self.trouble: Exception | None = None
        self.hangs = False
        self.looks = 0
        self.at_once = 0
        self.closed = False
        self.stirred = asyncio.Event()

    def show(self, *uses: Use, key: DomainKey = KEY, domid: int = 1, name: str = "web1") -> None:
        """That this domain is there."""
        domain = DomainDescription(key=key, name=name, domid=domid, state="running")
        self.domains[key] = SeenDomain(domain, tuple(sorted(uses)))

    async def look(self, watched: frozenset[str]) -> Look:
        """As it was told."""
        self.looks += 1
        self.at_once += 1
        assert self.at_once == 1, "two looks at once"
        try:
            await asyncio.sleep(0)
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            if self.trouble is not None:
                raise self.trouble
            return Look(domains=dict(self.domains))
        finally:
            self.at_once -= 1

    async def changed(self) -> None:
        """When `stirred`."""
        await self.stirred.wait()
        self.stirred.clear()

    async def close(self) -> None:
        """Noted."""
        self.closed = True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes twenty times as fast."""
    for module, name, value in (
        *((limits, name, value) for name, value in (("POLL_MS_MIN", 50), ("POLL_MS_MAX", 100), ("BLIND_MS", 400))),
        *(
            (polling, name, value)
            for name, value in (("MISSING_MS", 100), ("WARY_MS", 200), ("RETRY_MS_MAX", 100), ("HELD_MS", 300))
        ),
        (limits, "POLL_TIMEOUT_MS", 1_000),
        (agent_module, "FIRST_LOOK_S", 0.3),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(Played, "rest_ms", 100)


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus, with an allocator, a query service and a feed in processes of their own."""
    async with (
        bus(tmp_path / "bus", sync_always=False) as found,
        found.process("allocator"),
        found.process("query"),
        found.process("feed"),
    ):
        yield found


@pytest.fixture
async def client(found: Bus) -> AsyncIterator[Client]:
    """Somebody who looks."""
    async with Client(found.data, patience_s=WAIT_S) as client:
        yield client


@asynccontextmanager
async def running(found: Bus, source: Source, *, says_goodbye: bool = True) -> AsyncIterator[PollerAgent]:
    """A poller in this process. `says_goodbye`: it ends in good order."""
    async with found.connected("agent") as connection:
        agent = PollerAgent(connection, found.subjects, HOST, source, chance=lambda: 500)
        task = asyncio.ensure_future(agent.run())
        try:
            await asyncio.wait_for(agent.reported.wait(), WAIT_S)
            yield agent
        finally:
            if not says_goodbye:
                await connection.close()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or says_goodbye is False, task.exception()


async def until(is_so: Callable[[], Awaitable[bool] | bool]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = is_so()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(POLL_S)


async def told(client: Client) -> list[str]:
    """The types of events that the log has of the domain."""
    return [row.type.partition(".")[0] for row in [each async for each in client.history(UUID, kind="domain")]]


@pytest.mark.usefixtures("hasty")
async def test_domains_are_in_the_ledger(found: Bus, client: Client) -> None:
    """What is there at the start, what comes, another incarnation, what it gets and loses, and that it goes."""
    source = Played()
    source.show()
    async with running(found, source):
        (row,) = await client.domains()
        assert (row.uuid, row.name, row.state, row.domid, row.agent) == (UUID, "web1", "running", 1, AGENT)
        source.show(Use(GPU, "attached"))
        await until(lambda: has(client, uses=1))
        source.show(Use(GPU, "attached"), domid=2)
        await until(lambda: has(client, domid=2))
        source.show(domid=2)
        await until(lambda: has(client, uses=0))
        source.domains.clear()
        await until(lambda: is_empty(client))
    assert source.closed
    assert await told(client) == [
        "domain_appeared", "attachment_seen", "domain_started", "attachment_gone", "domain_vanished",
    ]  # fmt: skip


async def has(client: Client, *, uses: int | None = None, domid: int | None = None, blind: bool | None = None) -> bool:
    """Whether the one domain is so."""
    rows = await client.domains()
    return bool(rows) and (
        (uses is None or len(rows[0].uses) == uses)
        and (domid is None or rows[0].domid == domid)
        and (blind is None or rows[0].stale.startswith("poller: ") is blind)
    )


async def is_empty(client: Client) -> bool:
    """Whether there are no domains."""
    return not await client.domains()


@pytest.mark.usefixtures("hasty")
async def test_no_answer_makes_the_host_stale(found: Bus, client: Client) -> None:
    """Nothing vanishes; what is known may be out of date; when there are answers again all is as it was."""
    source = Played()
    source.show(Use(GPU, "attached"))
    async with running(found, source):
        for trouble in (SourceUnavailableError("it is away"), RuntimeError("a fault of ours")):
            source.trouble = trouble
            await until(lambda: has(client, blind=True))
            source.trouble = None
            await until(lambda: has(client, blind=False))
        source.hangs = True
        await until(lambda: has(client, blind=True))
    assert await told(client) == ["domain_appeared", "attachment_seen"]


@pytest.mark.usefixtures("hasty")
async def test_a_source_that_never_answers(found: Bus, client: Client) -> None:
    """The log is told that once, and is left in peace; when it answers, all is told."""
    source = Played()
    source.trouble = SourceUnavailableError("nobody is there")
    source.show()
    async with running(found, source):
        (host,) = await client.hosts()
        assert host.stale == "poller: nobody is there"
        before = (await client.status()).sequence
        looks = source.looks
        await until(lambda: source.looks > looks + 10)
        assert (await client.status()).sequence <= before + 1
        source.trouble = None
        await until(lambda: has(client, blind=False))


@pytest.mark.usefixtures("hasty")
async def test_a_poller_that_is_killed_loses_nothing(found: Bus, client: Client) -> None:
    """The next one finds what was told; it tells only what differs: what went meanwhile, and what came."""
    other = DomainKey("xen/00000000-0000-4000-8000-000000000001")
    source = Played()
    source.show(Use(GPU, "attached"))
    source.show(key=other, name="other")
    async with running(found, source, says_goodbye=False):
        assert len(await client.domains()) == 2
    source = Played()
    source.show(Use(GPU, "attached"))
    async with running(found, source):
        await until(lambda: has_domains(client, 1))
    assert await told(client) == ["domain_appeared", "attachment_seen"]


async def has_domains(client: Client, count: int) -> bool:
    """Whether there are so many."""
    return len(await client.domains()) == count


async def test_a_hint_is_followed_at_once() -> None:
    """What a source tells, and a lease that begins or ends on this host, make it look before it is time."""
    source = Played()
    agent = PollerAgent(Mock(spec=Connection), Subjects("c"), HostName("h1"), source, chance=lambda: 999)
    task = asyncio.ensure_future(agent._poll())
    try:
        await until(lambda: source.looks > 0)
        for _ in range(5):
            looks = source.looks
            source.stirred.set()
            await until(lambda looks=looks: source.looks > looks)  # type: ignore[misc]
            event = DeviceFreed(device=DeviceId(f"h1/{GPU}"), lease=256, evidence="not seen in use")
            agent.hear(Mock(spec=FeedEvent, event=event))
            looks = source.looks
            await until(lambda looks=looks: source.looks > looks)  # type: ignore[misc]
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_what_catching_up_says() -> None:
    """All that the log lacks, then that it sees, then that the picture is whole; or that it sees nothing."""
    for trouble, last in ((None, SourceSees()), (SourceUnavailableError("away"), SourceBlind("away"))):
        source = Played()
        source.show()
        source.trouble = trouble
        agent = PollerAgent(Mock(spec=Connection), Subjects("c"), HostName("h1"), source)
        task = asyncio.ensure_future(agent._poll())
        (message,) = await agent.catch_up(Reporter(HostName("h1"), AGENT, 1), InLog({}, ()))
        seen = [] if trouble else [DomainSeen(source.domains[KEY].domain)]
        assert message.observations == (*seen, last, PictureComplete(since=1))
        task.cancel()
        await asyncio.wait({task})


class Counted(XendSource):
    """xend, with its looks counted."""

    looks = 0

    async def look(self, watched: frozenset[str]) -> Look:
        """One more."""
        self.looks += 1
        return await super().look(watched)


@pytest.mark.usefixtures("hasty")
async def test_whatever_happens_the_log_ends_with_what_is_there(found: Bus, client: Client, tmp_path: Path) -> None:
    """Guests start, reboot, crash, get other names and cards, and go, by chance; xend is away, or lists nothing for a
    while; pollers are killed.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    stage = XenProcess(tmp_path, chance.choice(("xmlrpc", "unix")), seed=seed)
    await stage.open()
    try:
        await stage.order("make", "12")
        for _ in range(3):
            source = Counted(stage.url, sysfs=NO_SYSFS)
            async with running(found, source, says_goodbye=chance.random() < 0.5):
                for _ in range(3):
                    await happens(stage, chance)
                    looks = source.looks
                    await until(lambda source=source, looks=looks: source.looks > looks + 1)  # type: ignore[misc]
        async with running(found, stage.source()):
            await until(lambda: is_true(stage, client))
    finally:
        await stage.close()


async def happens(stage: XenStage, chance: random.Random) -> None:
    """Something does."""
    match chance.randrange(4):
        case 0:
            await stage.lose()
            await stage.find()
        case 1:
            # It may be so busy with the one before that it refuses.
            with contextlib.suppress(InvalidInputError):
                await stage.order("restart", "20", "150")
        case _:
            await stage.order("churn", "6")


async def is_true(stage: XenStage, client: Client) -> bool:
    """Whether the log has the domains that are there, in their incarnations, with their cards."""
    shown = await stage.order("show")
    there = {
        (row["uuid"], row["name"], row["domid"], tuple(sorted(f"pci/{each}" for each in row["pci"])))
        for row in shown["domains"]
    }
    rows = await client.domains()
    known = {
        (row.uuid, row.name, row.domid, tuple(use.said for use in row.uses if use.use == "attached")) for row in rows
    }
    return there == known
