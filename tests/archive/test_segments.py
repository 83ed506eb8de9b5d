"""The archive's files: what they refuse, where one ends and the next begins, and how the whole is read."""

import asyncio
import itertools
import shutil
import sqlite3
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StorageError
from leasehold.events.record import GENESIS_PREV, chain_hash
from leasehold.services.archive import segments
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import Segment, file_name
from leasehold.services.archive.writer import Limits
from leasehold.services.ledger.port import Entry
from tests.archive.records import (
    DAY_NS,
    SECOND_NS,
    START_NS,
    chained,
    held,
    made,
    names,
    remount,
    seconds,
    tamper,
    writing,
)
from tests.support.disks import small_disk_at

REFUSED = (
    "UPDATE records SET body = x'00' WHERE sequence = 2",
    "UPDATE records SET sequence = 9 WHERE sequence = 3",
    "DELETE FROM records WHERE sequence = 3",
    "DELETE FROM records",
    "INSERT OR REPLACE INTO records VALUES (2, 0, zeroblob(32), x'00')",
    "REPLACE INTO records VALUES (3, 0, zeroblob(32), x'00')",
    "INSERT OR IGNORE INTO records VALUES (3, 0, zeroblob(32), x'00')",
    "INSERT INTO records VALUES (5, 0, zeroblob(32), x'00')",
    "INSERT INTO records VALUES (0, 0, zeroblob(32), x'00')",
    "INSERT INTO records (decided_at_ns, chain, body) VALUES (0, zeroblob(32), x'00')",
    "INSERT INTO records VALUES (4, 0, zeroblob(31), x'00')",
    "UPDATE meta SET first = 2",
    "DELETE FROM meta",
    "REPLACE INTO meta SELECT * FROM meta",
    "INSERT INTO meta SELECT 2, ledger_id, cluster, first, follows, previous FROM meta",
)


@pytest.mark.parametrize("statement", REFUSED)
async def test_a_segment_is_only_appended_to(tmp_path: Path, statement: str) -> None:
    """SQLite itself refuses to change, delete or replace a record, or to insert one anywhere but behind the last."""
    entries = chained(seconds(3))
    directory = await made(tmp_path / "archive", entries)
    database = sqlite3.connect(directory / names(directory)[0])
    try:
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(statement)
        database.rollback()
        database.execute("INSERT INTO records VALUES (4, 0, zeroblob(32), x'00')")
    finally:
        database.close()
    assert await held(directory) == entries


async def test_a_day_has_its_segment(tmp_path: Path) -> None:
    """At a new day (UTC, of the ledger's clock) another file begins; each is named by its first record and its day."""
    times = [START_NS - 1, START_NS, START_NS + DAY_NS - 1, START_NS + 3 * DAY_NS]
    entries = chained(times)
    directory = await made(tmp_path / "archive", entries)
    assert names(directory) == [
        "00000000000000000001-2025-12-31.sqlite",
        "00000000000000000002-2026-01-01.sqlite",
        "00000000000000000004-2026-01-04.sqlite",
    ]
    assert await held(directory) == entries
    assert await held(directory, 2) == entries[2:]


@pytest.mark.parametrize("bounds", [Limits(reserve_bytes=0, records_max=10), Limits(reserve_bytes=0, bytes_max=60_000)])
async def test_a_full_segment_is_followed_and_sealed(tmp_path: Path, bounds: Limits) -> None:
    """A day's records go into several files where they are many or large; all but the last are sealed and alone."""
    entries = chained(seconds(95), padding=3_000)
    directory = tmp_path / "archive"
    async with writing(directory, bounds) as writer:
        for at in range(0, 95, 7):
            await writer.write(entries[at : at + 7])
        await writer.note()
        found = ArchivedLedger(directory).segments()
        assert len(found) > 4
        assert [each.is_sealed for each in found] == [True] * (len(found) - 1) + [False]
        assert await held(directory) == entries
    assert not list(directory.glob("*-wal"))
    for one, following in itertools.pairwise(found):
        meta = await ArchivedLedger(directory).meta(following)
        assert (meta.previous, meta.first, meta.cluster) == (one.name, following.first, "test")
        assert meta.follows == chain_hash(entries[following.first - 2].body)
    assert (await ArchivedLedger(directory).meta(found[0])).follows == GENESIS_PREV


async def test_what_is_read_now_is_sealed_later(tmp_path: Path) -> None:
    """A segment that somebody holds open is left as it is, and sealed at the next opportunity; nothing waits for it."""
    entries = chained(seconds(30))
    directory = tmp_path / "archive"
    async with writing(directory, Limits(reserve_bytes=0, records_max=10)) as writer:
        await writer.write(entries[:5])
        (first,) = writer_segments = ArchivedLedger(directory).segments()
        async with segments.reading(first) as database:
            assert await segments.end_of(database)
            await writer.write(entries[5:])
            await writer.note()
            sealed = [first.is_sealed]
        await writer.seal()
        assert [*sealed, first.is_sealed] == [False, True]
        assert len(writer_segments) < len(ArchivedLedger(directory).segments())
    assert await held(directory) == entries


# --- reading ------------------------------------------------------------------------------------------------------


async def test_reading_stays_with_an_archive_that_grows(tmp_path: Path) -> None:
    """Who follows gets every record once and in order, over the ends of segments, and whoever is woken gets it then."""
    entries = chained(seconds(200))
    ledger = ArchivedLedger(tmp_path / "archive")
    async with writing(ledger.directory, Limits(reserve_bytes=0, records_max=30)) as writer:
        found: list[Entry] = []
        async with aclosing(ledger.follow(0)) as batches:
            for at in range(0, 200, 8):
                await writer.write(entries[at : at + 8])
                ledger.wake()
                while len(found) < at + 8:
                    found += await asyncio.wait_for(anext(batches), 60)
    assert found == entries


async def test_an_empty_directory_is_an_empty_archive(tmp_path: Path) -> None:
    """Without segments there is nothing to read; without the directory, that is said."""
    ledger = ArchivedLedger(tmp_path)
    assert (await ledger.last_sequence(), await ledger.read(1), await ledger.end()) == (0, None, None)
    assert await ledger.at_or_before(START_NS) == (0, 0)
    assert await held(tmp_path) == []
    with pytest.raises(StorageError, match="nowhere cannot be read as an archive"):
        ArchivedLedger(tmp_path / "nowhere").segments()
    with pytest.raises(InvalidInputError, match="only read"):
        await ledger.append(0, b"x", timeout_s=1)


@pytest.mark.parametrize("how", ["copied while it was written to", "closed"])
async def test_an_archive_where_nothing_may_be_written_is_read(tmp_path: Path, how: str) -> None:
    """On a disk that takes no writes an archive that was closed is read; one with a write-ahead log says what to do."""
    entries = chained(seconds(12))
    (tmp_path / "disk").mkdir()
    with small_disk_at(tmp_path / "disk", 8) as disk:
        async with writing(tmp_path / "archive", Limits(reserve_bytes=0, records_max=5)) as writer:
            await writer.write(entries)
            await writer.note()
            if how != "closed":
                shutil.copytree(tmp_path / "archive", disk / "copy")
                assert list((disk / "copy").glob("*-wal"))
        if how == "closed":
            shutil.copytree(tmp_path / "archive", disk / "copy")
        else:
            # What the copy holds is read where a file may be laid beside it.
            shutil.copytree(disk / "copy", tmp_path / "again")
            assert await held(tmp_path / "again") == entries
            for path in (disk / "copy").glob("*-shm"):
                path.unlink()
        remount(disk, "ro")
        try:
            if how == "closed":
                assert await held(disk / "copy") == entries
            else:
                with pytest.raises(StorageError, match="leasehold archive backup"):
                    await held(disk / "copy")
        finally:
            remount(disk, "rw")


@settings(max_examples=12, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0, 1, SECOND_NS, DAY_NS // 3, DAY_NS, 5 * DAY_NS]), min_size=1, max_size=30),
    asked=st.lists(st.tuples(st.integers(0, 29), st.sampled_from([-1, 0, 1, SECOND_NS, DAY_NS])), max_size=12),
)
async def test_a_moment_is_the_last_record_decided_then_or_before(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], asked: list[tuple[int, int]]
) -> None:
    """For any times of records and any moment: the same as looking at all of them, also over many segments."""
    times = [START_NS + sum(gaps[: index + 1]) for index in range(len(gaps))]
    directory = await made(tmp_path_factory.mktemp("archive"), chained(times), Limits(reserve_bytes=0, records_max=4))
    ledger = ArchivedLedger(directory)
    for index, offset in [*asked, (0, -1), (len(times) - 1, 0)]:
        moment = times[index % len(times)] + offset
        expected = max([(seq, ns) for seq, ns in enumerate(times, 1) if ns <= moment], default=(0, 0))
        assert await ledger.at_or_before(moment) == expected
    assert await ledger.at_or_before(2**62) == (len(times), times[-1])
    assert await ledger.at_or_before(-(2**62)) == (0, 0)


async def test_what_is_missing_or_foreign_is_named(tmp_path: Path) -> None:
    """A gap within a segment or between two, and a file that is no segment, are found by whoever reads there."""
    entries = chained(seconds(30))
    directory = await made(tmp_path / "archive", entries, Limits(reserve_bytes=0, records_max=10))
    first, second, third = (directory / name for name in names(directory))
    tamper(second, "DELETE FROM records WHERE sequence = 15")
    with pytest.raises(CorruptLedgerError, match=f"record 15: missing in segment {second.name}"):
        await held(directory)
    with pytest.raises(CorruptLedgerError, match="record 15: missing"):
        await ArchivedLedger(directory).read(15)
    second.unlink()
    with pytest.raises(CorruptLedgerError, match=f"record 11: missing behind segment {first.name}"):
        await held(directory)
    first.unlink()
    with pytest.raises(CorruptLedgerError, match="record 1: missing; the archive begins at 21"):
        await held(directory)
    third.write_bytes(b"not a database, " * 1_000)
    with pytest.raises(CorruptLedgerError, match=f"segment {third.name} is damaged"):
        await held(directory, 20)
    third.unlink()
    with sqlite3.connect(third) as database:
        database.execute("CREATE TABLE records (sequence, body)")
    database.close()
    with pytest.raises(StorageError, match="is not a segment of an archive"):
        await held(directory, 20)


@given(st.integers(0, 2**63 - 1))
def test_names_of_segments_sort_as_their_records_do(ns: int) -> None:
    """Any time that a record can bear has a day, and is found again in the name."""
    name = file_name(7, ns)
    day = datetime.fromtimestamp(min(ns // SECOND_NS, 253_402_300_799), UTC).date().isoformat()
    assert name == f"{7:020}-{day}.sqlite"
    assert Segment(7, day, Path(name)) < Segment(10, "2000-01-01", Path(file_name(10, 0)))
