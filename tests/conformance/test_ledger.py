"""Every ledger keeps the contract of `leasehold.services.ledger.port`: the one in memory, the real one on one server as
on three, and an archive, where it is only read.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import aiosqlite
import pytest

from leasehold.events import limits
from leasehold.events.errors import CorruptLedgerError, InvalidInputError
from leasehold.projections.appending import Lost, Said, Won
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import Meta, Segment, file_name
from leasehold.services.archive.writer import make_segment
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Entry, Ledger
from leasehold.services.ledger.streams import ensure_streams
from tests.archive.records import START_NS
from tests.support.cluster import fresh_streams
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

TIMEOUT_S = 5.0
Open = Callable[[], Awaitable[Ledger]]
"""Opens another handle on the same log."""


class _Written(ArchivedLedger):
    """An archive that another writes to: what is appended here goes into its files, past the check of what it is."""

    def __init__(self, directory: Path, log: MemoryLog) -> None:
        super().__init__(directory)
        self._memory = MemoryLedger(log)

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        said, sequence = await self._memory.append(expected, body, timeout_s=timeout_s)
        if said is Said.STORED:
            await self._insert(sequence, body)
        return said, sequence

    async def _insert(self, sequence: int, body: bytes) -> None:
        first = sequence - (sequence - 1) % 20
        segment = Segment(first, "2026-01-01", self.directory / file_name(first, START_NS))
        if first == sequence:
            await make_segment(segment, Meta("", "", first, "0" * 64, ""))
        row = (sequence, START_NS, bytes(32), body)
        async with aiosqlite.connect(segment.path) as database:
            await database.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)
            await database.commit()


@pytest.fixture(params=["memory", "one server", "three servers", "archive"])
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """An empty log."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            log = MemoryLog()

            async def open_memory() -> Ledger:
                return MemoryLedger(log)

            yield open_memory
            return
        if request.param == "archive":
            written = MemoryLog()

            async def open_archive() -> Ledger:
                return _Written(tmp_path, written)

            yield open_archive
            return
        if request.param == "one server":
            urls = [(await stack.enter_async_context(server_at(tmp_path / "data"))).url]
            async with connected(urls[0]) as client:
                await ensure_streams(client, SUBJECTS)
        else:
            urls = request.getfixturevalue("shared_cluster")
            await fresh_streams(urls)
        handles = itertools.count()

        async def open_jetstream() -> Ledger:
            # Each handle through another server.
            return await stack.enter_async_context(ledger_at(urls[next(handles) % len(urls)]))

        yield open_jetstream


async def fill(ledger: Ledger, count: int) -> list[bytes]:
    bodies = [b"record %d" % number for number in range(1, count + 1)]
    for expected, body in enumerate(bodies):
        assert await ledger.append(expected, body, timeout_s=TIMEOUT_S) == (Said.STORED, expected + 1)
    return bodies


async def take(ledger: Ledger, after: int, count: int) -> list[Entry]:
    """The next `count` entries, batch by batch; every batch has something in it."""
    entries: list[Entry] = []
    async with asyncio.timeout(30), aclosing(ledger.follow(after)) as batches:
        async for batch in batches:
            assert batch
            entries += batch
            if len(entries) >= count:
                return entries
    return entries


async def test_an_empty_log_ends_at_0_and_has_nothing_at_1(open_ledger: Open) -> None:
    """Nothing is there before the first append."""
    ledger = await open_ledger()
    assert await ledger.last_sequence() == 0
    assert await ledger.read(1) is None


async def test_only_the_right_expectation_is_taken(open_ledger: Open) -> None:
    """An append is stored behind the last record or refused with the last sequence; a refused one leaves no trace."""
    ledger = await open_ledger()
    assert await ledger.append(1, b"too high", timeout_s=TIMEOUT_S) == (Said.REFUSED, 0)
    bodies = await fill(ledger, 3)
    for expected in (0, 2, 4, 1_000):
        assert await ledger.append(expected, b"wrong", timeout_s=TIMEOUT_S) == (Said.REFUSED, 3)
    # Its own record, once more: one server looks at the expectation first, three at the bytes.
    assert await ledger.append(2, bodies[2], timeout_s=TIMEOUT_S) in ((Said.REFUSED, 3), (Said.STORED, 3))
    assert await ledger.last_sequence() == 3
    assert [await ledger.read(sequence) for sequence in range(1, 5)] == [*bodies, None]


async def test_a_body_has_bounds(open_ledger: Open) -> None:
    """Nothing and too much are refused before they are sent; the largest record goes in and comes back to the byte."""
    ledger = await open_ledger()
    largest = bytes(range(256)) * (limits.RECORD_BYTES_MAX // 256)
    for body in (b"", largest + b"x"):
        with pytest.raises(InvalidInputError):
            await ledger.append(0, body, timeout_s=TIMEOUT_S)
    assert len(largest) == limits.RECORD_BYTES_MAX
    assert await ledger.append(0, largest, timeout_s=TIMEOUT_S) == (Said.STORED, 1)
    assert await ledger.read(1) == largest
    assert await take(ledger, 0, 1) == [Entry(1, largest)]


async def test_of_two_writers_exactly_one_wins_each_head(open_ledger: Open) -> None:
    """Over 100 heads, of two that append at once one is stored, the other refused, and the log has the winners."""
    writers = [await open_ledger(), await open_ledger()]
    winners = []
    for head in range(100):
        bodies = [b"writer %d at %d" % (number, head) for number in range(2)]
        said = await asyncio.gather(
            *(writer.append(head, body, timeout_s=TIMEOUT_S) for writer, body in zip(writers, bodies, strict=True))
        )
        assert sorted(said, key=lambda each: each[0].value) == [(Said.REFUSED, head + 1), (Said.STORED, head + 1)]
        winners.append(bodies[[each[0] for each in said].index(Said.STORED)])
    assert [entry.body for entry in await take(writers[0], 0, 100)] == winners


async def test_certain_appends_end_as_won_or_lost(open_ledger: Open) -> None:
    """Of two that append the same head with certainty, one has won and the other is told what stands there instead."""
    first, second = await open_ledger(), await open_ledger()
    ends = await asyncio.gather(append_certainly(first, 0, b"first"), append_certainly(second, 0, b"second"))
    winner = await first.read(1)
    assert winner in (b"first", b"second")
    assert tuple(ends) == ((Won(1), Lost(1, b"first")) if winner == b"first" else (Lost(1, b"second"), Won(1)))


async def test_following_begins_anywhere(open_ledger: Open) -> None:
    """From the beginning, the middle and the end, by two readers at once, all records come once and in order."""
    ledger = await open_ledger()
    bodies = await fill(ledger, 50)
    expected = [Entry(number, body) for number, body in enumerate(bodies, 1)]
    assert list(await asyncio.gather(take(ledger, 0, 50), take(ledger, 0, 50))) == [expected, expected]
    assert await take(ledger, 20, 30) == expected[20:]
    assert await take(ledger, 49, 1) == expected[49:]


async def test_following_stays_with_the_log(open_ledger: Open) -> None:
    """A reader at the end gets each record that another handle appends, one by one."""
    reader, writer = await open_ledger(), await open_ledger()
    await fill(writer, 2)
    async with asyncio.timeout(30), aclosing(reader.follow(2)) as batches:
        for expected in range(2, 12):
            waiting = asyncio.ensure_future(anext(batches))
            body = b"live %d" % expected
            assert await writer.append(expected, body, timeout_s=TIMEOUT_S) == (Said.STORED, expected + 1)
            assert await waiting == [Entry(expected + 1, body)]


async def test_the_same_bytes_twice_are_refused(open_ledger: Open) -> None:
    """An append that would be taken for a repetition of another one is an error, not a success."""
    ledger = await open_ledger()
    bodies = await fill(ledger, 2)
    with pytest.raises(InvalidInputError, match="already stand at 1"):
        await ledger.append(2, bodies[0], timeout_s=TIMEOUT_S)
    assert await ledger.last_sequence() == 2


async def test_close_ends_what_follows(open_ledger: Open) -> None:
    """A reader that waits for the next record ends when its handle is closed, as does one that begins later."""
    ledger = await open_ledger()
    await fill(ledger, 1)
    async with asyncio.timeout(30), aclosing(ledger.follow(0)) as batches:
        assert await anext(batches) == [Entry(1, b"record 1")]
        waiting = asyncio.ensure_future(anext(batches, None))
        await ledger.close()
        assert await waiting is None
    assert await take(ledger, 0, 1) == []


async def test_a_log_that_ends_before_what_was_read_is_corrupt(open_ledger: Open) -> None:
    """Who has read up to 5 of a log that ends at 3 is told so, with the first sequence that is missing."""
    ledger = await open_ledger()
    await fill(ledger, 3)
    with pytest.raises(CorruptLedgerError) as caught:
        await take(ledger, 5, 1)
    assert caught.value.sequence == 4
    with pytest.raises(CorruptLedgerError):
        await append_certainly(ledger, 5, b"behind nothing")
