"""Whoever follows the feed is given each event that he wants, once and in order, whatever happens to feed and bus."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from leasehold.events import inputs, limits
from leasehold.events.errors import InvalidInputError, SnapshotNeededError
from leasehold.events.event_types import LeaseGranted
from leasehold.services import following
from leasehold.services.connection import Connection
from leasehold.services.feed.stream import empty_events, state_of_events
from leasehold.services.feedevents import Wanted, wanted
from leasehold.services.following import Following
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.streams import ensure_streams
from tests.feed.events import expected, feeding, until, until_end, until_told
from tests.following.listening import HOSTS, choices, grown, listening, turn
from tests.integration.growing import Grower
from tests.support.proxy import proxy_to
from tests.support.servers import SUBJECTS, connected, server_at

CUTS = 6
WAIT_S = 30


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A server with streams."""
    async with server_at(tmp_path / "nats") as server:
        async with connected(server.url) as client:
            await ensure_streams(client, SUBJECTS)
        yield server.url


@pytest.fixture
async def client(url: str) -> AsyncIterator[Connection]:
    """A connection to it."""
    async with connected(url) as client:
        yield client


def a_lease(grower: Grower) -> str:
    """One that the log has."""
    return next(told.subject.split(".")[3] for told in expected(grower.bodies) if ".lease_granted." in told.subject)


async def test_every_choice_is_given_what_it_names(client: Connection, tmp_path: Path) -> None:
    """All, of a host, kind, device, lease or tenant: what the log has of it, old and new, typed and with its place."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 20)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, choices(a_lease(grower))) as listeners,
    ):
        for listener in listeners:
            await listener.has_all(grower.bodies)
        await turn(grower, 20)
        for listener in listeners:
            await listener.has_all(grower.bodies)
            assert len(listener.given) > 1, listener.choice
    granted = next(event for event in listeners[0].given if event.type == "lease_granted.v2")
    assert isinstance(granted.event, LeaseGranted)
    assert granted.event.devices[0] == granted.device
    assert granted.device.startswith(f"{granted.host}/pci/")
    assert (granted.lease, granted.log.era) == (f"L{granted.position}", 0)
    assert granted.tenant == granted.event.tenant
    assert granted.cause == f"{granted.event.request.principal}/{granted.event.request.request_id}"
    assert granted.at_ns == grower.state.leases[granted.position].granted_at_ns


async def test_it_goes_on_behind_any_position(client: Connection, tmp_path: Path) -> None:
    """Begun behind any event, or behind any place between two, a reader is given what follows it and nothing else."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 10)
    whole = expected(grower.bodies)
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
        for told in [*whole[:: len(whole) // 12], whole[-1]]:
            for since in (told.position - 1, told.position):
                async with listening(client, grower, [wanted(), wanted(host="h1")], since=since) as listeners:
                    for listener in listeners:
                        await listener.has_all(grower.bodies, since)


async def test_news_need_no_look(client: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event after a silence arrives by itself, whatever was chosen: nobody waits for the next look."""
    monkeypatch.setattr(following, "LOOK_S", 3_600)
    grower = await grown(JetStreamLedger(client, SUBJECTS), 20)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, choices(a_lease(grower))[:5]) as listeners,
    ):
        for _ in range(3):
            for listener in listeners:
                await listener.has_all(grower.bodies)
            await turn(grower, 2)


async def test_cuts_cost_nothing(client: Connection, url: str, tmp_path: Path) -> None:
    """Cut off again and again while the log grows, and once more when it is still, readers miss and double nothing."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 20)
    async with (
        feeding(client, tmp_path / "feed"),
        proxy_to(url) as proxy,
        connected(proxy.url, "reader") as reader,
        listening(reader, grower, choices(a_lease(grower))) as listeners,
    ):
        for number in range(CUTS):
            await turn(grower, 5)
            proxy.cut()
            await turn(grower, 5)
            if number % 2:
                await listeners[number % len(listeners)].has_all(grower.bodies)
        for listener in listeners:
            await listener.has_all(grower.bodies)


async def test_what_is_lost_on_the_way_is_found(
    client: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a third of all live messages lost on the way, the last one too, and a tenth doubled, nothing is missed."""
    monkeypatch.setattr(following, "LOOK_S", 0.2)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    hear = Following._hear
    lost = 0

    def lossy(self: Following, *message: Any) -> None:
        nonlocal lost
        drawn = chance.random()
        if drawn < 0.33:
            lost += 1
            return
        for _ in range(1 + (drawn > 0.9)):
            hear(self, *message)

    monkeypatch.setattr(Following, "_hear", lossy)
    grower = await grown(JetStreamLedger(client, SUBJECTS), 20)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, choices(a_lease(grower))) as listeners,
    ):
        for _ in range(4):
            await turn(grower, 10)
            for listener in listeners:
                await listener.has_all(grower.bodies)
    assert lost > 100


async def test_a_feed_that_is_told_anew_is_no_matter(client: Connection, tmp_path: Path) -> None:
    """EVENTS is emptied and told again, under readers who are at its end, and under one who is far behind."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 20)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, choices(a_lease(grower))) as listeners,
    ):
        listeners[0].may_take.clear()
        for _ in range(3):
            await listeners[1].has_all(grower.bodies)
            await turn(grower, 5)
            await empty_events(client, (await state_of_events(client)).last_seq)
            await turn(grower, 5)
        listeners[0].may_take.set()
        for listener in listeners:
            await listener.has_all(grower.bodies)


async def test_killed_servers_and_feeds_cost_nothing(tmp_path: Path) -> None:
    """The server is killed again and again, with what it had not written down, and so are the feeds: every reader is
    given everything once.
    """
    data = tmp_path / "nats"
    server = server_at(data, sync_always=True)
    await server.start()
    port = int(server.url.rpartition(":")[2])
    log = MemoryLog()
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connected(server.url))
            await ensure_streams(client, SUBJECTS)
            grower = await grown(MemoryLedger(log), 20)
            asked = listening(client, grower, choices(a_lease(grower)), ledger=log)
            listeners = await stack.enter_async_context(asked)
            for number in range(4):
                async with feeding(client, tmp_path / f"feed{number % 2}", MemoryLedger(log)):
                    await turn(grower, 20)
                    if number % 2:
                        await listeners[0].has_all(grower.bodies)
                    server.kill()
                    await server.wait()
                    await server.stop()
                    await turn(grower, 5)
                    server = server_at(data, port=port)
                    await server.start()
            async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
                for listener in listeners:
                    await listener.has_all(grower.bodies)
    finally:
        await server.stop()


async def forget_all_but(client: Connection, keep: int) -> None:
    """Let EVENTS have lost its oldest messages, as if its bound had been reached."""
    reply = await api.call(client, "STREAM.PURGE.EVENTS", {"keep": keep}, api.PurgeReply)
    assert reply.success, reply


async def test_what_the_feed_has_lost_is_in_the_ledger(client: Connection, tmp_path: Path) -> None:
    """Where EVENTS does not reach back far enough, it comes from the ledger, for any choice and from any place."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 30)
    whole = expected(grower.bodies)
    chosen = choices(a_lease(grower))
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
        for keep in (20, 7, 1):
            await forget_all_but(client, keep)
            for since in (0, whole[len(whole) // 2].position):
                async with listening(client, grower, chosen, since=since) as listeners:
                    await turn(grower, 2)
                    for listener in listeners:
                        await listener.has_all(grower.bodies, since)


async def test_who_may_not_read_the_ledger_is_told(client: Connection, tmp_path: Path) -> None:
    """A role without the ledger learns that a snapshot is needed, and from where on the feed goes; never a gap."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 30)
    whole = expected(grower.bodies)
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
        await forget_all_but(client, 10)
        oldest = whole[-10].position
        async with listening(client, grower, choices(a_lease(grower)), may_read_ledger=False) as listeners:
            for listener in listeners:
                with pytest.raises(SnapshotNeededError, match=f"goes back to position {oldest}"):
                    await asyncio.wait_for(listener.task, WAIT_S)
                assert not listener.given
        async with listening(client, grower, [wanted()], since=oldest, may_read_ledger=False) as listeners:
            await turn(grower, 2)
            await listeners[0].has_all(grower.bodies, oldest)


async def test_a_slow_reader_is_not_waited_for(
    client: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes nothing for long keeps little waiting, delays nobody, and is given everything in the end."""
    monkeypatch.setattr(limits, "FEED_WAITING_MAX", 20)
    grower = await grown(JetStreamLedger(client, SUBJECTS), 5)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, [wanted(), wanted(host="h1"), wanted()]) as listeners,
    ):
        for listener in listeners[:2]:
            await listener.has_all(grower.bodies)
            listener.may_take.clear()
        await turn(grower, 60)
        await listeners[2].has_all(grower.bodies)
        for listener in listeners[:2]:
            waiting = listener.following._hearing
            assert len(waiting._ready) + len(waiting._early) <= 20
            listener.may_take.set()
            await listener.has_all(grower.bodies)


async def test_only_the_feed_is_believed(client: Connection, tmp_path: Path) -> None:
    """What comes under a subject of the feed, and not out of its stream, is not an event: as an answer of a service
    that somebody wanted to have sent there.
    """
    grower = await grown(JetStreamLedger(client, SUBJECTS), 5)
    whole = expected(grower.bodies)
    async with (
        feeding(client, tmp_path / "feed"),
        listening(client, grower, [wanted(), wanted(host="h1")]) as listeners,
    ):
        for listener in listeners:
            await listener.has_all(grower.bodies)
        subject = f"leasehold.test.evt.{whole[-1].subject}"
        await client.publish(subject, b"{}")
        await client.publish(subject, b"{}", headers={"Nats-Subject": "leasehold.test.ledger", "Nats-Sequence": "9"})
        headers = {"Nats-Subject": subject, "Nats-Sequence": "x"}
        await client.publish(subject, b"{}", headers=headers)
        await turn(grower, 2)
        for listener in listeners:
            await listener.has_all(grower.bodies)


async def restored(grower: Grower, log: MemoryLog, lost: int) -> Grower:
    """The log without its last records, restored, and gone on with."""
    later = Grower(MemoryLedger(log), writer="restorer")
    later.bodies = grower.bodies[: len(grower.bodies) - lost]
    for sequence, body in enumerate(later.bodies, 1):
        log.append(body)
        later.sequencer.apply(sequence, body)
    later.now_ns = grower.now_ns
    await later.note(inputs.LedgerRestores(cluster="test", writer="restorer", era=1, reason="wiped"))
    await later.start()
    for number in range(30):
        # The host is out of date: refused, which is told of the device.
        device = f"{HOSTS[number % 2]}/pci/0000:00:01.0"
        await later.ask(f"p{number}@team", later.lease(device, holder=f"vm{number}"))
    return later


@pytest.mark.parametrize("choice", [wanted(), wanted(host="h1"), wanted(kind="lease_granted")], ids=str)
async def test_a_restored_ledger_is_noticed(client: Connection, tmp_path: Path, choice: Wanted) -> None:
    """Who was given what the restored ledger does not have is told so; who was not, goes on as if nothing had been."""
    log, other = MemoryLog(), MemoryLog()
    grower = await grown(MemoryLedger(log), 20)
    later = await restored(grower, other, 8)
    kept = expected(later.bodies)[40].position
    async with listening(client, grower, [choice], ledger=other) as (ahead,):
        async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
            await ahead.has_all(grower.bodies)
        async with feeding(client, tmp_path / "feed", MemoryLedger(other)):
            with pytest.raises(SnapshotNeededError, match="restored from an archive"):
                await asyncio.wait_for(ahead.task, WAIT_S)
            await until_end(client, expected(later.bodies)[-1])
            async with listening(client, grower, [choice], since=kept, ledger=other) as (behind,):
                await behind.has_all(later.bodies, kept)


async def has_heard(following: Following) -> bool:
    """Whether it has heard of another era."""
    return following._other_log is not None


async def test_what_waits_is_not_given_after_a_restore(client: Connection, tmp_path: Path) -> None:
    """What a slow reader had heard, and the restored ledger does not have, is not given to him any more."""
    log, other = MemoryLog(), MemoryLog()
    grower = await grown(MemoryLedger(log), 20)
    later = await restored(grower, other, 8)
    async with listening(client, grower, [wanted(), wanted(host="h1")], ledger=other) as listeners:
        for listener in listeners:
            listener.may_take.clear()
        async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
            for listener in listeners:
                await listener.until(lambda given=listener.given: bool(given))  # type: ignore[misc]
            await until_told(client, len(expected(grower.bodies)))
        async with feeding(client, tmp_path / "feed", MemoryLedger(other)):
            for listener in listeners:
                await until(lambda following=listener.following: has_heard(following))  # type: ignore[misc]
                listener.may_take.set()
                await listener.has_all(later.bodies)


async def test_another_ledger_is_noticed(client: Connection, tmp_path: Path) -> None:
    """Positions of one ledger are never taken for those of another."""
    log, other = MemoryLog(), MemoryLog()
    grower = await grown(MemoryLedger(log), 5)
    another = await grown(MemoryLedger(other), 30, "another")
    async with (
        feeding(client, tmp_path / "feed", MemoryLedger(other)),
        listening(client, grower, choices(a_lease(another)), since=2_000, ledger=other) as listeners,
    ):
        for listener in listeners:
            with pytest.raises(SnapshotNeededError, match=str(another.state.head.ledger_id)):
                await asyncio.wait_for(listener.task, WAIT_S)


@pytest.mark.parametrize(
    ("field", "chosen"),
    [
        ("kind", {"kind": "lease_grant"}),
        ("kind", {"kind": "lease_granted.v2"}),
        ("host", {"host": "H1"}),
        ("device", {"device": "pci_0000_00_01_0"}),
        ("device", {"device": "h1/pci/0000:00:01.0", "host": "h2"}),
        ("lease", {"lease": "x"}),
        ("tenant", {"tenant": "a.b"}),
    ],
)
def test_what_cannot_be_chosen_is_named(field: str, chosen: dict[str, str]) -> None:
    """A choice that names nothing is refused with its field, and is not followed in silence."""
    with pytest.raises(InvalidInputError) as refused:
        wanted(**chosen)
    assert refused.value.field == field
