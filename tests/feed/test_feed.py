"""The feed on a real server: EVENTS is what the ledger says, whoever tells it and whatever is forgotten meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from leasehold.events import inputs, limits
from leasehold.events.cloudevents import header_lines, raw_headers
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import HostName
from leasehold.projections import evolve
from leasehold.projections.reporting import Reporter
from leasehold.services.connection import Connection
from leasehold.services.feed import keeping, service
from leasehold.services.feed.stream import LEAP, empty_events, state_of_events
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Entry, Ledger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from tests.feed.events import WAIT_S, Told, expected, feeding, stored, until, until_end, until_told
from tests.integration.growing import Grower, pci
from tests.support.servers import SUBJECTS, connected, server_at

HOSTS = ("h1", "h2")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection to a server with streams."""
    async with server_at(tmp_path / "nats") as server, connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
        yield client


async def grown(ledger: Ledger, turns: int = 5) -> Grower:
    """A log of two hosts, on each of which devices change hands."""
    grower = Grower(ledger)
    await grower.start()
    for host in HOSTS:
        await grower.report(host, *(pci(slot) for slot in range(1, 5)))
    await turn(grower, turns)
    return grower


async def turn(grower: Grower, turns: int) -> None:
    """More of it."""
    for number in range(turns):
        host = HostName(HOSTS[number % 2])
        await grower.turn(f"{host}/pci/0000:00:0{1 + number % 4}.0", principal=f"p{number % 3}@team")


async def test_all_is_told_once_and_in_order(client: Connection, tmp_path: Path) -> None:
    """Old events, and those that come while the feed runs: EVENTS holds each of them once, in the order of the log."""
    grower = await grown(JetStreamLedger(client, SUBJECTS))
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(expected(grower.bodies)))
        await turn(grower, 20)
        await until_told(client, len(expected(grower.bodies)))
    assert await stored(client) == expected(grower.bodies)


async def test_what_is_stored_is_what_is_heard(client: Connection, tmp_path: Path) -> None:
    """Who listens hears each message of EVENTS once, in its order, although two feeds tell at once."""
    heard: list[str] = []
    await client.listen(SUBJECTS.events_all, lambda subject, _reply, _body, _headers: heard.append(subject.decode()))
    grower = await grown(JetStreamLedger(client, SUBJECTS))
    async with feeding(client, tmp_path / "one"), feeding(client, tmp_path / "two"):
        await turn(grower, 40)
        await until_told(client, len(expected(grower.bodies)))
    in_stream = await stored(client)
    assert in_stream == expected(grower.bodies)
    await client.flush()
    assert [subject.split(".", 3)[3] for subject in heard] == [message.subject for message in in_stream]


async def test_a_feed_goes_on_where_another_has_ended(client: Connection, tmp_path: Path) -> None:
    """Started again, with what it has kept and without, a feed tells what is new, and nothing twice."""
    grower = await grown(JetStreamLedger(client, SUBJECTS))
    for name in ("feed", "feed", "another"):
        async with feeding(client, tmp_path / name):
            await until_told(client, len(expected(grower.bodies)))
        await turn(grower, 5)
        assert len(await stored(client)) < len(expected(grower.bodies))
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(expected(grower.bodies)))
    assert await stored(client) == expected(grower.bodies)


async def test_what_it_kept_is_used(client: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fold that it has kept, a feed reads the log from there on; a damaged one, or none, costs only that."""
    monkeypatch.setattr(limits, "SNAPSHOT_RECORDS", 5)
    monkeypatch.setattr(service, "SAVE_S", 0.0)
    log = MemoryLog()
    ledger = Reading(log)
    grower = await grown(ledger)
    path = tmp_path / "feed"
    async with feeding(client, path, ledger):
        for _ in range(4):
            await turn(grower, 5)
            await until_told(client, len(expected(grower.bodies)))
    files = keeping.FeedFiles(path)
    # What was being written when the feed ended is still written.
    await until(lambda: has_kept(files, 2))
    monkeypatch.setattr(service, "SAVE_S", 3_600.0)
    ledger.followed.clear()
    await turn(grower, 5)
    async with feeding(client, path, ledger):
        await until_told(client, len(expected(grower.bodies)))
    assert ledger.followed[0] >= files.load()[-1].head.sequence > 0
    path.write_bytes(b"0" * 64 + b"\n{}")
    (tmp_path / "feed-before").unlink()
    ledger.followed.clear()
    await turn(grower, 5)
    async with feeding(client, path, ledger):
        await until_told(client, len(expected(grower.bodies)))
    assert ledger.followed[0] == 0
    assert await stored(client) == expected(grower.bodies)


async def has_kept(files: keeping.FeedFiles, count: int) -> bool:
    """Whether so many folds are there."""
    return len(files.load()) == count


class Reading(MemoryLedger):
    """A ledger that notes from where it was followed."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.followed: list[int] = []

    def follow(self, after: int) -> AsyncGenerator[list[Entry], None]:
        self.followed.append(after)
        return super().follow(after)


@pytest.mark.parametrize("is_running", [True, False])
async def test_what_is_emptied_is_told_again(client: Connection, tmp_path: Path, is_running: bool) -> None:
    """Emptied under a feed that runs, or before it starts, EVENTS is told again: the same messages at other places."""
    grower = await grown(JetStreamLedger(client, SUBJECTS))
    before = expected(grower.bodies)
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(before))
        if is_running:
            await empty_events(client, (await state_of_events(client)).last_seq)
            await until_told(client, len(before))
            await turn(grower, 3)
            await until_told(client, len(expected(grower.bodies)))
    if not is_running:
        await empty_events(client, (await state_of_events(client)).last_seq)
        async with feeding(client, tmp_path / "feed"):
            await until_told(client, len(before))
    assert (await state_of_events(client)).first_seq > LEAP
    assert await stored(client) == expected(grower.bodies)


async def test_what_a_server_has_forgotten_is_told_again(client: Connection, tmp_path: Path) -> None:
    """An EVENTS that has lost its end, by a little or by almost all, gets it again, from a feed that runs."""
    grower = await grown(JetStreamLedger(client, SUBJECTS), 30)
    whole = expected(grower.bodies)
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
        for keep in (len(whole) - 3, 2):
            await cut(client, keep)
            await until_told(client, len(whole))
            assert await stored(client) == whole


async def cut(client: Connection, keep: int) -> None:
    """Let EVENTS hold only its first messages, and give out the places of the others again, as after a crash."""
    first = (await stored(client))[:keep]
    config = (await api.stream_info(client, "EVENTS")).config
    assert not (await client.ask("$JS.API.STREAM.DELETE.EVENTS", b"", timeout_s=5)).status
    reply = await api.call(client, "STREAM.CREATE.EVENTS", config, api.StreamInfo)
    assert reply.error is None, reply.error
    for number, told in enumerate(first):
        headers = {"Nats-Expected-Last-Sequence": str(number)} | headers_of(told)
        await client.ask(f"leasehold.test.told.{told.subject}", told.body, timeout_s=5, headers=headers)


def headers_of(told: Told) -> dict[str, str]:
    """A message's headers, to be sent again."""
    return raw_headers(f"NATS/1.0\r\n{header_lines(told.said)}\r\n".encode())


async def test_what_is_no_feeds_is_told_anew(client: Connection, tmp_path: Path) -> None:
    """An EVENTS that ends in what no feed has told, or in something that the log does not say, is told anew."""
    grower = await grown(JetStreamLedger(client, SUBJECTS))
    whole = expected(grower.bodies)
    await client.ask("leasehold.test.told.h1.x._._._", b"{}", timeout_s=5)
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
    assert await stored(client) == whole
    last = whole[-1]
    await cut(client, 0)
    await client.ask(f"leasehold.test.told.{last.subject}", b'{"type":"x"}', timeout_s=5, headers=headers_of(last))
    async with feeding(client, tmp_path / "feed"):
        await until_told(client, len(whole))
    assert await stored(client) == whole


async def test_a_log_that_has_lost_its_end_is_not_told_on(client: Connection, tmp_path: Path) -> None:
    """A ledger that ends before what was told of it, in the same era, stops the feed, and EVENTS stays as it is."""
    log = MemoryLog()
    grower = await grown(MemoryLedger(log))
    async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
        await until_told(client, len(expected(grower.bodies)))
    shorter = MemoryLog()
    for body in grower.bodies[:-4]:
        shorter.append(body)
    with pytest.raises(CorruptLedgerError, match=f"{len(grower.bodies)} was told of before"):
        async with feeding(client, tmp_path / "feed", MemoryLedger(shorter)) as running:
            await asyncio.wait_for(asyncio.shield(running), WAIT_S)
    assert await stored(client) == expected(grower.bodies)


async def test_another_log_is_told_anew(client: Connection, tmp_path: Path) -> None:
    """Of another ledger, longer or shorter than the one that was told of, all is told, and nothing of the old one."""
    log = MemoryLog()
    grower = await grown(MemoryLedger(log))
    async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
        await until_told(client, len(expected(grower.bodies)))
    for turns in (1, 20):
        other = MemoryLog()
        grower = Grower(MemoryLedger(other), writer=f"another{turns}")
        await grower.start()
        for host in HOSTS:
            await grower.report(host, *(pci(slot) for slot in range(1, 5)))
        await turn(grower, turns)
        whole = expected(grower.bodies)
        async with feeding(client, tmp_path / "feed", MemoryLedger(other)):
            await until_end(client, whole[-1])
        assert await stored(client) == whole


@pytest.mark.parametrize("turns", [0, 20], ids=["shorter", "longer"])
async def test_a_restored_log_is_told_anew(client: Connection, tmp_path: Path, turns: int) -> None:
    """Of a log that was written back without its last records, and has gone on in a new era, EVENTS tells all, and
    nothing of what was lost.
    """
    log = MemoryLog()
    grower = await grown(MemoryLedger(log))
    async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
        await until_told(client, len(expected(grower.bodies)))
    restored = MemoryLog()
    grower = Grower(MemoryLedger(restored), writer="restorer")
    for sequence, body in enumerate(log.bodies[:-6], 1):
        restored.append(body)
        evolve.fold(grower.state, sequence, body)
        grower.bodies.append(body)
    grower.now_ns = grower.state.head.decided_at_ns
    await grower.note(inputs.LedgerRestores(cluster="test", writer="restorer", era=1, reason="lost"))
    await grower.start()
    for host in HOSTS if turns else ():
        grower.sequencer.observe(100 + HOSTS.index(host), Reporter(HostName(host), "watcher", 2).starts())
        await grower.commit()
    for number in range(turns):
        await grower.note(inputs.DeciderStarts(f"restorer{number}", "start"))
    whole = expected(grower.bodies)
    assert whole[-1].said.era == 1
    async with feeding(client, tmp_path / "feed", MemoryLedger(restored)):
        await until_end(client, whole[-1])
    assert await stored(client) == whole


async def test_a_killed_server_costs_nothing(tmp_path: Path) -> None:
    """The server is killed again and again while two feeds tell; in the end EVENTS is what the ledger says."""
    data = tmp_path / "nats"
    server: NatsServer = server_at(data, sync_always=True)
    await server.start()
    port = int(server.url.rpartition(":")[2])
    try:
        async with AsyncExitStack() as stack:
            log = MemoryLog()
            for name in ("a", "b"):
                client = await stack.enter_async_context(connected(server.url, name))
                await ensure_streams(client, SUBJECTS)
                await stack.enter_async_context(feeding(client, tmp_path / name, MemoryLedger(log)))
            grower = await grown(MemoryLedger(log), 2)
            for _ in range(4):
                await turn(grower, 25)
                server.kill()
                await server.wait()
                await server.stop()
                await turn(grower, 5)
                server = server_at(data, port=port)
                await server.start()
            async with connected(server.url, "looks") as looks:
                await until_told(looks, len(expected(grower.bodies)))
                assert await stored(looks) == expected(grower.bodies)
    finally:
        await server.stop()
