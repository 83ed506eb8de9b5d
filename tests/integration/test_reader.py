"""The reader: snapshot and tail are the whole log, and a log that is not what it was is not read on."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.errors import CorruptLedgerError, StorageError, UnknownFormatError
from leasehold.events.position import end_of_record, position_of
from leasehold.events.record import Record, chain_hash
from leasehold.projections import evolve, snapshots
from leasehold.projections.appending import Said
from leasehold.projections.history import IndexRow, index_rows
from leasehold.projections.rows import Head
from leasehold.projections.state import State
from leasehold.services import reader as reading
from leasehold.services.ledger import api, port
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Ledger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore
from tests.integration.growing import Grower, pci
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

WAIT_S = 30.0
DEVICES = [f"h1/pci/0000:00:{slot:02x}.0" for slot in range(1, 9)]


class Log:
    """One log, in memory or on a server: handles on it, and what an operator's mishap can do to it."""

    def __init__(self, opener: Callable[[], Awaitable[Ledger]], empty: Callable[[], Awaitable[None]]) -> None:
        self.open = opener
        self._empty = empty

    async def replace(self, bodies: list[bytes]) -> None:
        """Let the log hold these records and nothing else."""
        await self._empty()
        ledger = await self.open()
        for expected, body in enumerate(bodies):
            assert await ledger.append(expected, body, timeout_s=5) == (Said.STORED, expected + 1)


@pytest.fixture(params=["memory", "jetstream"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            held = MemoryLog()

            async def open_memory() -> Ledger:
                return MemoryLedger(held)

            async def empty_memory() -> None:
                held.bodies.clear()
                held._places.clear()

            yield Log(open_memory, empty_memory)
            return
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)

        async def open_jetstream() -> Ledger:
            return await stack.enter_async_context(ledger_at(server.url))

        async def empty_jetstream() -> None:
            await client.ask("$JS.API.STREAM.DELETE.LEDGER", timeout_s=api.API_TIMEOUT_S)
            await ensure_streams(client, SUBJECTS)

        yield Log(open_jetstream, empty_jetstream)


@pytest.fixture(autouse=True)
def _short_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "DOUBT_PAUSE_S", 0.005)


@asynccontextmanager
async def reading_from(log: Log, path: Path) -> AsyncIterator[LedgerReader]:
    """A reader that has caught up, and is stopped in good order in the end."""
    ledger, store = await log.open(), await FoldStore.open(path)
    reader = LedgerReader(ledger, store)
    try:
        await reader.start()
        async with asyncio.timeout(WAIT_S):
            await reader.caught_up.wait()
        yield reader
    finally:
        await reader.stop()
        await store.close()


async def crash(log: Log, path: Path, *, until: int) -> None:
    """Read up to record `until`, note that, and end without a snapshot, as a killed process does."""
    ledger, store = await log.open(), await FoldStore.open(path)
    reader = LedgerReader(ledger, store)
    try:
        await reader.start()
        assert await reader.wait_for(end_of_record(until), WAIT_S)
        await reader._note_now()
    finally:
        await end_at_once(reader, store)


async def end_at_once(reader: LedgerReader, store: FoldStore) -> None:
    """End without keeping anything more."""
    for task in reader._tasks:
        await reading._end(task)
    await store.close()


async def grown(log: Log, turns: int = 6) -> Grower:
    """A log of some 20 records: a host, leases, refusals, an expiry."""
    grower = Grower(await log.open())
    await grower.start()
    await grower.report("h1", *(pci(slot) for slot in range(1, 9)))
    await grow(grower, turns)
    return grower


async def grow(grower: Grower, turns: int = 6) -> None:
    for turn in range(turns):
        await grower.turn(DEVICES[turn % len(DEVICES)], holder=f"vm{turn}")
    await grower.ask("alice", grower.lease(DEVICES[0], holder="kept"))
    await grower.ask("bob", grower.lease(DEVICES[0], holder="refused"))
    await grower.ask("bob", grower.lease(DEVICES[1], holder="short", ttl_ms=1_000))
    await grower.pass_time(70)


def folded(bodies: list[bytes]) -> tuple[bytes, set[IndexRow]]:
    """State and index of a log, from zero and without any service."""
    state, rows = State(), set()
    for sequence, body in enumerate(bodies, 1):
        record = codec.decode_record(body, sequence)
        events = [event for step in record.steps for event in step.events]
        for index, event in enumerate(events):
            position = position_of(sequence, index)
            evolve.evolve(state, position, record.decided_at_ns, event)
            rows |= set(index_rows(state, position, event))
        evolve.seal(state, sequence, record, chain_hash(body))
    return snapshots.encode_state(state), rows


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path)
    try:
        with database:
            yield database
    finally:
        database.close()


def kept_rows(path: Path) -> set[IndexRow]:
    with edited(path) as database:
        return {(row[0], row[1], row[2]) for row in database.execute("SELECT kind, name, position FROM past")}


def kept(path: Path) -> list[tuple[object, ...]]:
    """Everything that a closed store remembers."""
    with edited(path) as database:
        snapshot = database.execute("SELECT * FROM snapshot").fetchall()
        snapshot += database.execute("SELECT * FROM snapshot_piece").fetchall()
        head = database.execute("SELECT * FROM head").fetchall()
        return [*snapshot, *head, *sorted(database.execute("SELECT * FROM past"))]


async def refusal_of(log: Log, path: Path) -> CorruptLedgerError:
    """What starting ends with; it must change nothing of what was kept."""
    before = kept(path)
    ledger, store = await log.open(), await FoldStore.open(path)
    reader = LedgerReader(ledger, store)
    try:
        with pytest.raises(CorruptLedgerError) as caught:
            await reader.start()
    finally:
        await reader.stop()
        await store.close()
    assert kept(path) == before
    return caught.value


def changed(body: bytes) -> bytes:
    """The record with another moment in it, as valid as before."""
    record = msgspec.json.decode(body, type=Record)
    return codec.encode(msgspec.structs.replace(record, decided_at_ns=record.decided_at_ns + 1))


async def test_snapshot_and_tail_are_the_whole_log(log: Log, tmp_path: Path) -> None:
    """After each of five restarts, state and index are to the byte what folding the log from zero gives."""
    grower, path = await grown(log), tmp_path / "store"
    for _ in range(5):
        async with reading_from(log, path) as reader:
            assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
            await grow(grower)
            assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
            state, rows = folded(grower.bodies)
            assert snapshots.encode_state(reader.state) == state
        assert kept_rows(path) == rows


async def test_a_snapshot_at_any_record_leads_to_the_same(log: Log, tmp_path: Path) -> None:
    """A reader that was stopped or killed behind each record in turn ends with the same bytes and the same index."""
    grower = await grown(log, turns=2)
    bodies, path = grower.bodies, tmp_path / "store"
    for length in range(1, len(bodies) + 1):
        await log.replace(bodies[:length])
        async with reading_from(log, path) as reader:
            assert snapshots.encode_state(reader.state) == folded(bodies[:length])[0]
        if length % 3 == 0 and length < len(bodies):
            await log.replace(bodies[: length + 1])
            await crash(log, path, until=length + 1)
    assert kept_rows(path) == folded(bodies)[1]


async def test_snapshots_are_taken_on_the_way(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough records a snapshot is written while reading goes on, with the index of all before it."""
    monkeypatch.setattr(limits, "SNAPSHOT_RECORDS", 5)
    monkeypatch.setattr(reading, "SAVE_POLL_S", 0.02)
    grower, path = await grown(log), tmp_path / "store"
    ledger, store = await log.open(), await FoldStore.open(path)
    saved, save = asyncio.Event(), store.save_frozen

    async def save_and_tell(head: Head, pieces: list[bytes]) -> None:
        await save(head, pieces)
        saved.set()

    monkeypatch.setattr(store, "save_frozen", save_and_tell)
    reader = LedgerReader(ledger, store)
    try:
        await reader.start()
        async with asyncio.timeout(WAIT_S):
            await saved.wait()
        loaded = await store.load()
        assert loaded is not None
    finally:
        await end_at_once(reader, store)
    at = loaded.head.sequence
    state, rows = folded(grower.bodies[:at])
    assert snapshots.encode_state(loaded) == state
    assert rows <= kept_rows(path)


async def test_a_cut_tail_is_refused(log: Log, tmp_path: Path) -> None:
    """A log that lost its last records is not read, whether the reader was stopped or killed; the first is named."""
    grower, path = await grown(log), tmp_path / "store"
    bodies = list(grower.bodies)
    await crash(log, path, until=len(bodies))
    await log.replace(bodies[:-1])
    error = await refusal_of(log, path)
    assert error.sequence == len(bodies)
    assert f"ends at {len(bodies) - 1}, but record {len(bodies)} was read" in str(error)
    await log.replace(bodies)
    async with reading_from(log, path):
        pass
    await log.replace(bodies[:3])
    assert (await refusal_of(log, path)).sequence == 4
    await log.replace([])
    assert (await refusal_of(log, path)).sequence == 1


async def test_an_older_log_that_went_on_differently_is_refused(log: Log, tmp_path: Path) -> None:
    """A log restored from an older copy and grown beyond what was read before does not fit at the noted head."""
    grower, path = await grown(log), tmp_path / "store"
    old = list(grower.bodies)
    await grow(grower)
    async with reading_from(log, path):
        noted = len(grower.bodies)
    await log.replace(old)
    fork = Grower(await log.open(), writer="alloc2")
    for sequence, body in enumerate(old, 1):
        fork.sequencer.apply(sequence, body)
    fork.now_ns = grower.now_ns
    await fork.start()
    for _ in range(3):
        await grow(fork)
    assert await (await log.open()).last_sequence() > noted
    error = await refusal_of(log, path)
    assert error.sequence == noted
    assert "was read there before" in str(error)


async def test_a_changed_record_is_refused(log: Log, tmp_path: Path) -> None:
    """Each single record from the snapshot on, changed but readable, is found at the start and named."""
    grower, path = await grown(log, turns=1), tmp_path / "store"
    async with reading_from(log, path):
        anchor = len(grower.bodies)
    await grow(grower, turns=1)
    bodies = list(grower.bodies)
    await crash(log, path, until=len(bodies))
    for number in range(anchor, len(bodies) + 1):
        await log.replace([*bodies[: number - 1], changed(bodies[number - 1]), *bodies[number:]])
        assert (await refusal_of(log, path)).sequence == number
    await log.replace(bodies)
    async with reading_from(log, path) as reader:
        assert snapshots.encode_state(reader.state) == folded(bodies)[0]


async def test_records_out_of_order_are_refused(log: Log, tmp_path: Path) -> None:
    """Two neighbours exchanged behind the snapshot: the first of both is named."""
    grower, path = await grown(log, turns=1), tmp_path / "store"
    async with reading_from(log, path):
        anchor = len(grower.bodies)
    await grow(grower, turns=1)
    bodies = list(grower.bodies)
    await crash(log, path, until=len(bodies))
    for first, second in pairwise(range(anchor, len(bodies) - 1)):
        swapped = list(bodies)
        swapped[first], swapped[second] = bodies[second], bodies[first]
        await log.replace(swapped)
        assert (await refusal_of(log, path)).sequence == first + 1


async def test_another_ledger_is_refused(log: Log, tmp_path: Path) -> None:
    """A log of other origin is not taken for ours, however long it is."""
    await grown(log)
    path = tmp_path / "store"
    async with reading_from(log, path):
        pass
    await log.replace([])
    other = Grower(await log.open(), writer="another")
    await other.start()
    await other.report("h1", *(pci(slot) for slot in range(1, 9)))
    await grow(other, turns=12)
    error = await refusal_of(log, path)
    assert error.sequence == 1
    assert "of ledger" in str(error)


@pytest.mark.parametrize(
    "damage",
    ["UPDATE snapshot_piece SET body = x'00'", "UPDATE snapshot SET fold_version = 99", "DELETE FROM snapshot"],
)
async def test_a_useless_snapshot_is_built_anew(
    log: Log, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged, of another fold or gone: with a warning, state and index are made again from a sound log."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path):
        pass
    with edited(path) as database:
        database.execute(damage)
        database.execute("INSERT INTO past VALUES ('device', 'never was', 77)")
    with caplog.at_level(logging.WARNING):
        async with reading_from(log, path) as reader:
            state, rows = folded(grower.bodies)
            assert snapshots.encode_state(reader.state) == state
    assert "built anew" in caplog.text
    assert kept_rows(path) == rows


async def test_a_useless_snapshot_does_not_excuse_a_cut_log(log: Log, tmp_path: Path) -> None:
    """Without its snapshot a reader still knows how far the log went, and refuses a shorter one."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path):
        pass
    with edited(path) as database:
        database.execute("UPDATE snapshot_piece SET body = x'00'")
    await log.replace(grower.bodies[:-2])
    assert (await refusal_of(log, path)).sequence == len(grower.bodies) - 1


async def test_a_broken_record_ends_reading(log: Log, tmp_path: Path) -> None:
    """A foreign record at the end stops a reader that follows: it names it, lets all who wait go, and keeps nothing."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path) as reader:
        assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
        waiting = asyncio.ensure_future(reader.wait_for(2**52, WAIT_S))
        bad = len(grower.bodies) + 1
        assert (await grower.ledger.append(bad - 1, b'{"no":"record"}', timeout_s=5))[0] is Said.STORED
        async with asyncio.timeout(WAIT_S):
            await reader.ended.wait()
        assert not await waiting
        assert not await reader.wait_for(0, 1)
        assert isinstance(reader.failure, UnknownFormatError)
        assert reader.failure.sequence == bad
        noted = await reader._store.head()
        assert noted is None or noted.sequence < bad


async def test_waiting_for_a_position(log: Log, tmp_path: Path) -> None:
    """What is read already is there at once, what comes is waited for, and what does not come ends with the time."""
    grower = await grown(log)
    async with reading_from(log, tmp_path / "store") as reader:
        last = len(grower.bodies)
        assert await reader.wait_for(end_of_record(last), 0)
        assert not await reader.wait_for(position_of(last + 1, 0), 0.05)
        waiting = asyncio.ensure_future(reader.wait_for(position_of(last + 1, 0), WAIT_S))
        await grower.note(inputs.DeciderStarts("alloc1", "again"))
        assert await waiting
        assert reader.state.head.sequence >= last + 1


async def test_an_empty_log_is_caught_up_with(log: Log, tmp_path: Path) -> None:
    """A reader may start before the first record, and reads it when it comes."""
    async with reading_from(log, tmp_path / "store") as reader:
        assert reader.state.head.sequence == 0
        grower = await grown(log)
        assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
        assert snapshots.encode_state(reader.state) == folded(grower.bodies)[0]


async def test_rows_not_noted_yet_are_told(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment, what is not in the store is in the reader: together they hold the whole index."""
    monkeypatch.setattr(reading, "NOTE_S", 0.03)
    grower = await grown(log)
    async with reading_from(log, tmp_path / "store") as reader:
        for _ in range(20):
            await grow(grower, turns=1)
            assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
            fresh = reader.unnoted("host", "h1")
            stored = await reader._store.positions("host", "h1", 0, 100_000)
            expected = {row[2] for row in folded(grower.bodies)[1] if row[:2] == ("host", "h1")}
            assert set(fresh) | set(stored) == expected


async def test_rows_that_come_while_others_are_written(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows on their way to the disk, and those that come meanwhile, are told at every moment and are all kept."""
    grower, path = await grown(log), tmp_path / "store"
    async with reading_from(log, path) as reader:
        store = reader._store
        begun, go_on, write = asyncio.Event(), asyncio.Event(), store.note

        async def write_slowly(head: Head, rows: list[IndexRow]) -> None:
            begun.set()
            await go_on.wait()
            await write(head, rows)

        monkeypatch.setattr(store, "note", write_slowly)
        await grow(grower, turns=1)
        async with asyncio.timeout(WAIT_S):
            await begun.wait()
        await grow(grower, turns=1)
        assert await reader.wait_for(end_of_record(len(grower.bodies)), WAIT_S)
        expected = {row[2] for row in folded(grower.bodies)[1] if row[:2] == ("host", "h1")}
        for _ in range(2):
            fresh = reader.unnoted("host", "h1")
            assert fresh == sorted(fresh)
            assert {*fresh, *await store.positions("host", "h1", 0, 100_000)} == expected
            go_on.set()
            await reader._note_now()
    assert kept_rows(path) == folded(grower.bodies)[1]


async def test_a_disk_that_fails_ends_reading(log: Log, tmp_path: Path) -> None:
    """What cannot be noted is not read on: a log that is cut later would go unnoticed."""
    grower = await grown(log)
    async with reading_from(log, tmp_path / "store") as reader:
        await reader._store.close()
        await grow(grower, turns=1)
        async with asyncio.timeout(WAIT_S):
            await reader.ended.wait()
        assert isinstance(reader.failure, StorageError)
        assert not await reader.wait_for(0, 0)
