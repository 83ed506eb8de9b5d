"""Who follows the ledger gets every record once and in order, whatever happens to the wire and to the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlparse

import pytest

from leasehold.projections.appending import Said
from leasehold.services.ledger import tail
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from tests.support.cluster import fresh_streams
from tests.support.proxy import Flow, proxy_to
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

RECORDS = 3_000
RECORD_BYTES = 300
CUTS = 5
BIG_BYTES = 400_000
BIG_RECORDS = 120
"""Together more than the 32 MiB that the server lets a consumer have under way."""


@pytest.fixture(params=["one server", "three servers"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Where empty streams are: on one server, or replicated on three."""
    if request.param == "three servers":
        urls = request.getfixturevalue("shared_cluster")
        await fresh_streams(urls)
        # Which of them leads is left to chance.
        yield urls[0]
        return
    async with server_at(tmp_path / "data") as server:
        async with connected(server.url) as client:
            await ensure_streams(client, SUBJECTS)
        yield server.url


async def append_all(ledger: JetStreamLedger, first: int, last: int, size: int = RECORD_BYTES) -> None:
    for sequence in range(first, last + 1):
        body = (b"%d " % sequence).ljust(size, b"x")
        assert await ledger.append(sequence - 1, body, timeout_s=10) == (Said.STORED, sequence)


async def test_cuts_in_the_middle_lose_and_repeat_nothing(url: str) -> None:
    """Cut off five times during a replay, and once more at the end of the log, a reader has all records, once each."""
    async with proxy_to(url) as proxy, ledger_at(url) as direct:
        await append_all(direct, 1, RECORDS)
        # By what went over the wire: all records may come to the reader in one batch.
        proxy.cut_each(RECORDS * RECORD_BYTES // (CUTS + 1), CUTS)
        async with ledger_at(proxy.url) as ledger, aclosing(ledger.follow(0)) as batches:
            sequences: list[int] = []
            async with asyncio.timeout(60):
                while len(sequences) < RECORDS:
                    sequences += [entry.sequence for entry in await anext(batches)]
                waiting = asyncio.ensure_future(anext(batches))
                proxy.cut()
                await append_all(direct, RECORDS + 1, RECORDS + 1)
                sequences += [entry.sequence for entry in await waiting]
            assert proxy.cuts_to_come == 0
            assert sequences == list(range(1, RECORDS + 2))


async def test_a_silent_wire_is_noticed(url: str) -> None:
    """A wire that carries nothing any more, without being cut, is given up, and the reading goes on over another."""
    async with proxy_to(url) as proxy, ledger_at(url) as direct:
        await append_all(direct, 1, 1)
        async with ledger_at(proxy.url) as ledger, aclosing(ledger.follow(0)) as batches:
            async with asyncio.timeout(60):
                assert [entry.sequence for entry in await anext(batches)] == [1]
                waiting = asyncio.ensure_future(anext(batches))
                proxy.down.flow = Flow.DROP
                await append_all(direct, 2, 2)
                await proxy.down.wait_for(b"2 xxx")
                proxy.down.flow = Flow.PASS
                assert [entry.sequence for entry in await waiting] == [2]


async def test_a_message_lost_on_the_way_is_fetched_again(url: str) -> None:
    """A wire that loses one message and goes on with the next makes no gap, and is not taken for one in the log."""
    async with proxy_to(url) as proxy, ledger_at(url) as direct:
        await append_all(direct, 1, 1)
        async with ledger_at(proxy.url) as ledger, aclosing(ledger.follow(0)) as batches:
            async with asyncio.timeout(60):
                sequences = [entry.sequence for entry in await anext(batches)]
                waiting = asyncio.ensure_future(anext(batches))
                proxy.down.flow = Flow.DROP
                await append_all(direct, 2, 2)
                await proxy.down.wait_for(b"2 xxx")
                proxy.down.flow = Flow.PASS
                await append_all(direct, 3, 3)
                sequences += [entry.sequence for entry in await waiting]
                while len(sequences) < 3:
                    sequences += [entry.sequence for entry in await anext(batches)]
                assert sequences == [1, 2, 3]


async def test_a_killed_and_restarted_server_is_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps nothing of a reader over kill -9; the reader goes on when it is back, not only after silence."""
    monkeypatch.setattr(tail, "SILENCE_S_MAX", 1_000.0)
    server = server_at(tmp_path / "data", sync_always=True)
    await server.start()
    port = urlparse(server.url).port or 0
    async with connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
    async with ledger_at(server.url) as ledger, aclosing(ledger.follow(0)) as batches:
        await append_all(ledger, 1, 5)
        sequences: list[int] = []
        async with asyncio.timeout(60):
            while len(sequences) < 5:
                sequences += [entry.sequence for entry in await anext(batches)]
            waiting = asyncio.ensure_future(anext(batches))
            server.kill()
            await server.wait()
            await server.stop()
            async with server_at(tmp_path / "data", port=port) as again, ledger_at(again.url) as direct:
                await append_all(direct, 6, 6)
                sequences += [entry.sequence for entry in await waiting]
        assert sequences == [1, 2, 3, 4, 5, 6]


async def test_a_slow_reader_holds_the_server_back(url: str) -> None:
    """A reader that takes its time gets everything, and never has more waiting than the server's window of 32 MiB."""
    async with ledger_at(url) as ledger:
        await append_all(ledger, 1, BIG_RECORDS, BIG_BYTES)
        count = 0
        async with asyncio.timeout(60), aclosing(ledger.follow(0)) as batches:
            while count < BIG_RECORDS:
                batch = await anext(batches)
                count += len(batch)
                assert len(batch) * BIG_BYTES <= 33 * 1024 * 1024
                for _ in range(2_000):
                    # Turns of the loop in which the read loop could go on taking messages, were there no bound.
                    await asyncio.sleep(0)
        assert count == BIG_RECORDS
