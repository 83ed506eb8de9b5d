"""The store of a fold: what was written is what is read, wholly or not at all."""

import os
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from leasehold.events.errors import CorruptSnapshotError, LeaseholdError, StorageError, StoreInUseError
from leasehold.projections import snapshots
from leasehold.projections.rows import Head
from leasehold.projections.snapshots import freeze
from leasehold.projections.state import State
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.store import APPLICATION_ID, SCHEMA_VERSION, FoldStore, NotedHead, encode_gently
from tests.integration.growing import Grower, pci


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FoldStore]:
    opened = await FoldStore.open(tmp_path / "store.sqlite")
    try:
        yield opened
    finally:
        await opened.close()


async def some_state() -> State:
    """A state with something in every table."""
    grower = Grower(MemoryLedger(MemoryLog()))
    await grower.start()
    await grower.report("h1", *(pci(slot) for slot in range(1, 32)))
    await grower.turn("h1/pci/0000:00:05.0")
    for holder in ("vm1", "vm2"):
        await grower.ask(holder, grower.lease("h1/pci/0000:00:06.0", holder=holder))
    return grower.state


def head_at(sequence: int, chain: str = "c", ledger_id: str = "l") -> Head:
    return Head(ledger_id=ledger_id, sequence=sequence, chain=chain)


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """The file of a closed store, for damaging it."""
    database = sqlite3.connect(path)
    try:
        with database:
            yield database
    finally:
        database.close()


@asynccontextmanager
async def reopened(store: FoldStore) -> AsyncIterator[FoldStore]:
    """The same file, opened anew."""
    await store.close()
    again = await FoldStore.open(store.path)
    try:
        yield again
    finally:
        await again.close()


async def test_a_new_store_knows_nothing_and_is_private(store: FoldStore) -> None:
    """No head, no snapshot, no past; and nobody but its owner can read the files."""
    assert await store.head() is None
    assert await store.load() is None
    assert await store.positions("host", "h1", 0, 10) == []
    files = sorted(store.path.parent.iterdir())
    assert {os.stat(file).st_mode & 0o777 for file in files} == {0o600}, files


async def test_a_snapshot_comes_back_to_the_byte(store: FoldStore) -> None:
    """State and head are the same after the file was closed and opened again."""
    state = await some_state()
    await store.save_snapshot(state)
    async with reopened(store) as again:
        loaded = await again.load()
        assert loaded is not None
        assert snapshots.encode_state(loaded) == snapshots.encode_state(state)
        head = state.head
        assert await again.head() == NotedHead(head.ledger_id, head.sequence, head.chain)


async def test_gentle_encoding_is_the_encoding() -> None:
    """Bit by bit or at once: the same bytes, of an empty state as well, and as of the moment of freezing."""
    assert b"".join(await encode_gently(freeze(State()))) == snapshots.encode_state(State())
    state = await some_state()
    frozen, expected = freeze(state), snapshots.encode_state(state)
    state.leases.drop(next(iter(state.leases)))
    state.set_head(msgspec.structs.replace(state.head, sequence=4_711))
    assert b"".join(await encode_gently(frozen)) == expected


async def test_the_head_never_goes_back(store: FoldStore) -> None:
    """A lower head is not written; rows are, and neither clearing nor a snapshot lowers it."""
    await store.note(head_at(7, "seven"), [("host", "h1", 1_792)])
    await store.note(head_at(3, "three"), [("host", "h1", 768), ("host", "h1", 1_792)])
    assert await store.positions("host", "h1", 0, 10) == [768, 1_792]
    await store.save_frozen(head_at(5, "five"), [b"{", b"}"])
    await store.clear()
    assert await store.head() == NotedHead("l", 7, "seven")
    assert await store.positions("host", "h1", 0, 10) == []
    assert await store.load() is None


async def test_a_higher_era_is_further_than_any_record(store: FoldStore) -> None:
    """A log that was restored is shorter than before, and noted all the same; the era before is not noted again."""
    await store.note(head_at(7, "seven"))
    restored = msgspec.structs.replace(head_at(5, "five"), era=1)
    await store.note(restored)
    assert await store.head() == NotedHead("l", 5, "five", era=1)
    await store.note(head_at(9, "nine"))
    assert await store.head() == NotedHead("l", 5, "five", era=1)


async def test_a_store_of_schema_1_is_brought_along(tmp_path: Path) -> None:
    """What an older build has noted is read by this one, as of era 0, and is gone on with."""
    path = tmp_path / "old.sqlite"
    with edited(path) as database:
        database.executescript(resources.files("leasehold.services").joinpath("store.sql").read_text())
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("PRAGMA user_version = 1")
        database.execute("INSERT INTO head VALUES (1, 'l', 7, 'seven')")
        database.execute("INSERT INTO past VALUES ('host', 'h1', 1792)")
    for _ in range(2):
        store = await FoldStore.open(path)
        try:
            assert await store.head() == NotedHead("l", 7, "seven", era=0)
            assert await store.positions("host", "h1", 0, 10) == [1_792]
        finally:
            await store.close()
    with edited(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_positions_come_in_order_and_pages(store: FoldStore) -> None:
    """Of one kind and name only, from behind a position, as many as asked for."""
    rows = [("device", "d", position) for position in range(1_000, 0, -1)]
    await store.note(head_at(9), [*rows, ("device", "e", 5), ("lease", "d", 6)])
    assert await store.positions("device", "d", 0, 3) == [1, 2, 3]
    assert await store.positions("device", "d", 997, 10) == [998, 999, 1_000]


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO snapshot_piece VALUES (-1, x'20')",
        "UPDATE snapshot_piece SET body = CAST(substr(body, 1, 9) || 'x' || substr(body, 11) AS BLOB) WHERE number = 5",
        "DELETE FROM snapshot_piece WHERE number = 3",
        "DELETE FROM snapshot_piece",
        "UPDATE snapshot SET sha256 = 'deadbeef'",
        "UPDATE snapshot SET sequence = sequence + 1",
        "UPDATE snapshot SET chain = 'other'",
    ],
)
async def test_a_damaged_snapshot_is_found(store: FoldStore, damage: str) -> None:
    """One byte of it, its hash or its place being other than written: the error names the record it stood at."""
    state = await some_state()
    await store.save_snapshot(state)
    await store.close()
    with edited(store.path) as database:
        database.execute(damage)
        (sequence,) = database.execute("SELECT sequence FROM snapshot").fetchone()
    async with reopened(store) as again:
        with pytest.raises(CorruptSnapshotError, match=f"record {sequence} "):
            await again.load()
        noted = await again.head()
        assert noted is not None
        assert noted.sequence == state.head.sequence


async def test_a_snapshot_of_another_fold_is_none(store: FoldStore) -> None:
    """It is not damaged: there is just no snapshot for this build."""
    await store.save_snapshot(await some_state())
    await store.close()
    with edited(store.path) as database:
        database.execute("UPDATE snapshot SET fold_version = fold_version + 1")
    async with reopened(store) as again:
        assert await again.load() is None


async def test_one_process_has_it_at_a_time(store: FoldStore) -> None:
    """A second opening fails while the first lives, and works afterwards."""
    with pytest.raises(StoreInUseError, match="in use"):
        await (await FoldStore.open(store.path, lock_wait_s=0.05)).close()
    async with reopened(store) as again:
        assert await again.head() is None


async def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """Another program's database, a newer schema, a file that is no database: refused by name, not a byte changed."""
    other, newer, text = (tmp_path / name for name in ("other", "newer", "text"))
    with edited(other) as database:
        database.execute("CREATE TABLE precious (thing)")
    await (await FoldStore.open(newer)).close()
    with edited(newer) as database:
        database.execute("PRAGMA user_version = 99")
    text.write_text("this is a letter\n" * 100)
    for path, said in ((other, "another program"), (newer, "schema 99"), (text, "damaged")):
        before = path.read_bytes()
        with pytest.raises(StorageError, match=said):
            await (await FoldStore.open(path)).close()
        assert path.read_bytes() == before


async def test_a_full_disk_leaves_no_half_transaction(store: FoldStore) -> None:
    """Past the bound of what may be written, rows and head are both absent; with room again, both are taken."""
    await store.note(head_at(1), [("host", "h1", 256)])
    rows = [("host", f"host-{number}", 512) for number in range(100_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, hard))
    try:
        with pytest.raises(StorageError, match=store.path.name):
            await store.note(head_at(2), rows)
        with pytest.raises(StorageError):
            await store.save_frozen(head_at(2), [bytes(1024 * 1024)] * 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    async with reopened(store) as again:
        assert await again.head() == NotedHead("l", 1, "c")
        assert await again.positions("host", "host-0", 0, 1) == []
        await again.note(head_at(2), rows)
        assert await again.positions("host", "host-99999", 0, 1) == [512]


async def test_a_closed_store_says_so(store: FoldStore) -> None:
    """Reading and writing fail with an error of ours; closing again does nothing."""
    await store.close()
    await store.close()
    for work in (store.head(), store.load(), store.note(head_at(1)), store.positions("host", "h1", 0, 1)):
        with pytest.raises(LeaseholdError, match="closed"):
            await work
