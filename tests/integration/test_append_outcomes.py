"""Each unclear end of an append, provoked through a wire that can be cut, becomes clear and right: on one server and on
three, which answer a repeated append each in its own way.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from urllib.parse import urlparse

import pytest

from leasehold.projections.appending import Lost, Said, Won
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Entry
from leasehold.services.ledger.streams import ensure_streams
from tests.support.cluster import fresh_streams
from tests.support.proxy import Flow, Proxy, proxy_to
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

OURS = b'{"record": "ours"}'
FOREIGN = b'{"record": "foreign"}'
TIMEOUT_S = 0.3
RECORDS = 300
KILLS = 3


class Bench:
    """One log, reached directly and through a proxy."""

    def __init__(self, repeated: bytes, proxy: Proxy, direct: JetStreamLedger, proxied: JetStreamLedger) -> None:
        self.repeated = repeated
        """What the server says to an append that it has taken already."""
        self.proxy = proxy
        self.direct = direct
        self.proxied = proxied
        self.unknown = asyncio.Event()
        self.unknown_count = 0

    def note_unknown(self) -> None:
        """What a requester would be told."""
        self.unknown_count += 1
        self.unknown.set()

    def begin(self, body: bytes) -> "asyncio.Future[Won | Lost]":
        """Append through the proxy."""
        return asyncio.ensure_future(
            append_certainly(self.proxied, 0, body, timeout_s=TIMEOUT_S, on_unknown=self.note_unknown)
        )

    async def log(self) -> list[Entry]:
        """All of the log."""
        entries: list[Entry] = []
        last = await self.direct.last_sequence()
        async with aclosing(self.direct.follow(0)) as batches:
            while len(entries) < last:
                entries += await anext(batches)
        return entries


@pytest.fixture(params=["one server", "three servers"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """An empty log. The proxied connection has been used once, so that only appends pass from now on."""
    async with AsyncExitStack() as stack:
        if request.param == "one server":
            url = (await stack.enter_async_context(server_at(tmp_path / "data", sync_always=True))).url
            async with connected(url) as client:
                await ensure_streams(client, SUBJECTS)
        else:
            urls = request.getfixturevalue("shared_cluster")
            await fresh_streams(urls)
            # Which of them leads is left to chance.
            url = urls[0]
        proxy = await stack.enter_async_context(proxy_to(url))
        direct = await stack.enter_async_context(ledger_at(url, "direct"))
        proxied = await stack.enter_async_context(ledger_at(proxy.url, "proxied"))
        assert await proxied.last_sequence() == 0
        yield Bench(b"10071" if request.param == "one server" else b'"duplicate": true', proxy, direct, proxied)


async def test_the_acknowledgement_is_lost(bench: Bench) -> None:
    """The record is stored but nobody hears of it: it is found as won, and stands there once."""
    bench.proxy.down.flow = Flow.DROP
    end = bench.begin(OURS)
    await bench.proxy.down.wait_for(b'"seq":1')
    await asyncio.wait_for(bench.unknown.wait(), 20)
    assert not end.done(), "nothing can be known before the wire is back"
    bench.proxy.cut()
    assert await asyncio.wait_for(end, 20) == Won(1)
    assert bench.unknown_count == 1, "who waits is told once"
    assert await bench.log() == [Entry(1, OURS)]


async def test_the_publish_is_lost(bench: Bench) -> None:
    """The record never reaches the server: it is appended again, and stands there once."""
    bench.proxy.up.flow = Flow.DROP
    end = bench.begin(OURS)
    await bench.proxy.up.wait_for(OURS)
    await asyncio.wait_for(bench.unknown.wait(), 20)
    assert await bench.direct.last_sequence() == 0
    bench.proxy.cut()
    assert await asyncio.wait_for(end, 20) == Won(1)
    assert await bench.log() == [Entry(1, OURS)]


async def test_a_foreign_record_is_stored_meanwhile(bench: Bench) -> None:
    """Our record never reached the server, and another's has taken its place: ours has lost, and is nowhere."""
    bench.proxy.up.flow = Flow.DROP
    end = bench.begin(OURS)
    await bench.proxy.up.wait_for(OURS)
    assert await bench.direct.append(0, FOREIGN, timeout_s=5) == (Said.STORED, 1)
    bench.proxy.cut()
    assert await asyncio.wait_for(end, 20) == Lost(1, FOREIGN)
    assert await bench.log() == [Entry(1, FOREIGN)]


async def test_a_refusal_is_lost(bench: Bench) -> None:
    """The server refused our record, but nobody heard of it: it has lost all the same."""
    assert await bench.direct.append(0, FOREIGN, timeout_s=5) == (Said.STORED, 1)
    bench.proxy.down.flow = Flow.DROP
    end = bench.begin(OURS)
    await bench.proxy.down.wait_for(b"10071")
    bench.proxy.cut()
    assert await asyncio.wait_for(end, 20) == Lost(1, FOREIGN)
    assert await bench.log() == [Entry(1, FOREIGN)]


async def test_a_late_publish_after_the_retry_is_refused(bench: Bench) -> None:
    """The first publish is held on the way and arrives when the retry has long been stored: one copy stands there."""
    bench.proxy.up.flow = Flow.HOLD
    end = bench.begin(OURS)
    await bench.proxy.up.wait_for(OURS)
    await asyncio.wait_for(bench.unknown.wait(), 20)
    link = bench.proxy.cut_client_off()
    assert await asyncio.wait_for(end, 20) == Won(1)
    assert OURS in link.held_up
    await link.send_late(answer=bench.repeated)
    assert await bench.log() == [Entry(1, OURS)]


async def test_a_late_publish_before_the_retry_counts_once(bench: Bench) -> None:
    """The first publish was given up, arrives late all the same, and only then the retry: one copy stands there."""
    bench.proxy.up.flow = Flow.HOLD
    assert await bench.proxied.append(0, OURS, timeout_s=TIMEOUT_S) == (Said.NOTHING, 0)
    link = bench.proxy.cut_client_off()
    await link.send_late(answer=b'"seq":1')
    assert await asyncio.wait_for(bench.begin(OURS), 20) == Won(1)
    assert await bench.log() == [Entry(1, OURS)]


async def test_an_append_that_waits_for_the_wire_can_be_cancelled(bench: Bench) -> None:
    """While the outcome is unknown the append goes on for ever, but ends at once when it is cancelled."""
    bench.proxy.up.flow = Flow.DROP
    end = bench.begin(OURS)
    await asyncio.wait_for(bench.unknown.wait(), 20)
    end.cancel()
    await asyncio.wait({end}, timeout=5)
    assert end.cancelled()
    assert await bench.log() == []


async def test_the_server_is_killed_again_and_again_under_appends(tmp_path: Path) -> None:
    """Killed with -9 while an append is in flight, and restarted in its place: every append ends as won, in order."""
    data = tmp_path / "data"
    server = server_at(data, sync_always=True)
    bodies = [b"record %d" % number for number in range(1, RECORDS + 1)]
    progress = asyncio.Event()
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(lambda: server.stop())
        url = server.url
        async with connected(url) as client:
            await ensure_streams(client, SUBJECTS)
        ledger = await stack.enter_async_context(ledger_at(url))

        ends: list[Won | Lost] = []

        async def write() -> None:
            for expected, body in enumerate(bodies):
                ends.append(await append_certainly(ledger, expected, body, timeout_s=TIMEOUT_S))
                progress.set()

        writing = asyncio.ensure_future(write())
        stack.callback(writing.cancel)
        for kill in range(1, KILLS + 1):
            while len(ends) < kill * RECORDS // (KILLS + 2):
                progress.clear()
                await asyncio.wait_for(progress.wait(), 20)
            # The writer never rests, so an append is in flight whenever this happens.
            server.kill()
            assert await server.wait() == -9
            assert len(ends) < RECORDS
            await server.stop()
            server = server_at(data, sync_always=True, port=urlparse(url).port or 0)
            await server.start()
        await asyncio.wait_for(writing, 60)
        assert ends == [Won(sequence) for sequence in range(1, RECORDS + 1)]
        entries: list[Entry] = []
        async with aclosing(ledger.follow(0)) as batches:
            while len(entries) < RECORDS:
                entries += await asyncio.wait_for(anext(batches), 20)
        assert entries == [Entry(sequence, body) for sequence, body in enumerate(bodies, 1)]
