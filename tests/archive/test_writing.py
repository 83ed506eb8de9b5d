"""The archive's writer: what it takes and refuses, what it makes of damage, and that it loses nothing."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from leasehold.events.errors import CorruptLedgerError, StorageError, StoreInUseError
from leasehold.events.record import chain_hash
from leasehold.services.archive import segments
from leasehold.services.archive.archiver import Archiver
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.writer import ArchiveWriter, Limits
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.port import Entry
from tests.archive.records import (
    DAY_NS,
    NO_RESERVE,
    SECOND_NS,
    START_NS,
    chained,
    held,
    log_of,
    made,
    names,
    record,
    remount,
    seconds,
    tamper,
    writing,
)
from tests.support.disks import small_disk_at

SMALL = Limits(reserve_bytes=0, records_max=10)


# --- what goes on behind what -------------------------------------------------------------------------------------


async def test_writing_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Opened again after every few records, and given some twice: all stand there once and in order."""
    entries = chained(seconds(100, every_s=7_000))
    rng = random.Random(7)
    at = 0
    while at < len(entries):
        async with writing(tmp_path / "archive", SMALL) as writer:
            assert writer.tip.sequence == at
            for _ in range(rng.randrange(3)):
                upto = min(at + rng.randrange(1, 9), len(entries))
                await writer.write(entries[max(0, at - rng.randrange(3)) : upto])
                at = upto
    assert await held(tmp_path / "archive") == entries
    head = segments.read_head(tmp_path / "archive")
    assert head is not None
    assert (head.sequence, head.chain) == (100, chain_hash(entries[-1].body))


def _wrong() -> dict[str, tuple[bytes, str]]:
    good = chained(seconds(3))
    prev, at_ns = chain_hash(good[-1].body), START_NS + 3 * SECOND_NS
    return {
        "chain": (record("0" * 64, at_ns), "follows 000000000000…"),
        "ledger": (record(prev, at_ns, ledger_id="another"), "of ledger another"),
        "time": (record(prev, START_NS), "decided before"),
        "no record": (b"not JSON", "not a record"),
        "half a record": (record(prev, at_ns)[:-10], "not a record"),
        "no object": (b"[1, 2]", "not a record"),
    }


@pytest.mark.parametrize("what", _wrong())
async def test_a_record_that_does_not_fit_is_refused_by_name(tmp_path: Path, what: str) -> None:
    """It is named; those before it in the same batch are archived, and nothing behind."""
    good = chained(seconds(3))
    body, reason = _wrong()[what]
    behind = Entry(5, record(chain_hash(body), START_NS + 9 * SECOND_NS))
    async with writing(tmp_path / "archive") as writer:
        with pytest.raises(CorruptLedgerError, match=f"record 4: .*{reason}"):
            await writer.write([*good, Entry(4, body), behind])
        assert writer.tip.sequence == 3
    assert await held(tmp_path / "archive") == good


async def test_a_gap_is_refused(tmp_path: Path) -> None:
    """A record that does not come next is no record to archive, whatever its bytes are."""
    entries = chained(seconds(5))
    async with writing(tmp_path / "archive") as writer:
        with pytest.raises(CorruptLedgerError, match="record 4: it comes behind record 2"):
            await writer.write([*entries[:2], entries[3]])
    assert await held(tmp_path / "archive") == entries[:2]


async def test_a_new_era_is_gone_on_with(tmp_path: Path) -> None:
    """A restored ledger's next record bears the next era, never an earlier one again."""
    entries = chained(seconds(3))
    restored = Entry(4, record(chain_hash(entries[-1].body), START_NS + 5 * SECOND_NS, era=1))
    async with writing(tmp_path / "archive") as writer:
        await writer.write([*entries, restored])
        assert writer.tip.era == 1
        back = Entry(5, record(chain_hash(restored.body), START_NS + 6 * SECOND_NS, era=0))
        with pytest.raises(CorruptLedgerError, match="record 5: of era 0"):
            await writer.write([back])


async def test_one_process_writes(tmp_path: Path) -> None:
    """A second writer is told so; when the first ends, it can."""
    second = ArchiveWriter(tmp_path / "archive", "test")
    async with writing(tmp_path / "archive"):
        with pytest.raises(StoreInUseError, match="another process"):
            await second.lock(wait_s=0)
    await second.lock(wait_s=0)
    await second.close()


# --- damage -------------------------------------------------------------------------------------------------------


async def _archive(tmp_path: Path) -> tuple[Path, list[Entry], list[Path]]:
    entries = chained(seconds(35))
    directory = await made(tmp_path / "archive", entries, SMALL)
    return directory, entries, [directory / name for name in names(directory)]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("a file is gone", "record 11: missing: segment .*21-2026-01-01.sqlite does not follow .*01-2026-01-01.sqlite"),
        ("the first file is gone", "record 1: missing: .*11-2026-01-01.sqlite is the first"),
        ("a file was cut", "record 15: missing: segment .*21-2026"),
        ("a file is another archive's", "record 11: segment .*11-2026-01-01.sqlite says that it begins with record 11"),
        ("the last record was changed", "record 35: its hash is"),
        ("the last record is none", "record 35: not a record"),
        ("a file is no database", "segment .*11-2026-01-01.sqlite is damaged"),
    ],
)
async def test_damage_is_seen_before_writing_goes_on(tmp_path: Path, what: str, reason: str) -> None:
    """Files that do not follow each other, or an end that is not what it was: nothing is written behind them."""
    directory, _, files = await _archive(tmp_path)
    if what == "a file is gone":
        files[1].unlink()
    elif what == "the first file is gone":
        files[0].unlink()
    elif what == "a file was cut":
        tamper(files[1], "DELETE FROM records WHERE sequence >= 15")
    elif what == "a file is another archive's":
        other = await made(tmp_path / "other", chained(seconds(35), padding=1), SMALL)
        files[1].unlink()
        (other / files[1].name).rename(files[1])
    elif what == "the last record was changed":
        tamper(files[3], "UPDATE records SET body = CAST(replace(body, 'w', 'v') AS BLOB) WHERE sequence = 35")
    elif what == "the last record is none":
        tamper(files[3], "UPDATE records SET body = x'00' WHERE sequence = 35")
    else:
        files[1].chmod(0o600)
        files[1].write_bytes(b"x" * files[1].stat().st_size)
    with pytest.raises(StorageError, match=f"is damaged: .*{reason}"):
        async with writing(directory, SMALL):
            pass


@pytest.mark.parametrize("what", ["records", "the last file", "all files"])
async def test_a_lost_end_is_fetched_again(tmp_path: Path, what: str) -> None:
    """What the note says was there, and is not, is taken from the ledger again, if that still has the same."""
    directory, entries, files = await _archive(tmp_path)
    if what == "records":
        tamper(files[-1], "DELETE FROM records WHERE sequence > 32")
    else:
        for path in files if what == "all files" else files[-1:]:
            path.unlink()
    async with writing(directory, SMALL) as writer:
        assert _vouched(writer) == 35
        other = chained(seconds(35), padding=1)
        if what == "all files":
            with pytest.raises(CorruptLedgerError, match=r"record 35: .* was archived there before"):
                await writer.write(other)
            return
        await writer.write(entries[:34])
        assert _vouched(writer) == 35
        await writer.write(entries[34:])
        assert _vouched(writer) == 0
    assert await held(directory) == entries


def _vouched(writer: ArchiveWriter) -> int:
    return writer.vouched.sequence if writer.vouched else 0


# --- following a ledger -------------------------------------------------------------------------------------------


@asynccontextmanager
async def archiving(
    log: MemoryLog, directory: Path, bounds: Limits = NO_RESERVE
) -> AsyncIterator[tuple[Archiver, asyncio.Task[None]]]:
    """An archiver at work; its task is given, to be asked for its failure."""
    writer = ArchiveWriter(directory, "test", bounds)
    await writer.lock(wait_s=0)
    written = asyncio.Event()
    archiver = Archiver(MemoryLedger(log), writer, written.set)
    task = asyncio.create_task(archiver.run())
    try:
        yield archiver, task
    finally:
        task.cancel()
        await asyncio.wait({task})
        await writer.close()


async def until_held(directory: Path, count: int) -> list[Entry]:
    """Wait until the archive holds so many records."""
    ledger = ArchivedLedger(directory)
    async with asyncio.timeout(30), aclosing(ledger.follow(0)) as batches:
        found: list[Entry] = []
        async for batch in batches:
            found += batch
            if len(found) >= count:
                break
    return found


async def test_it_catches_up_and_stays(tmp_path: Path) -> None:
    """After being away, all that was missed is archived; then each record as it comes, also over days."""
    entries = chained(seconds(3_000, every_s=600))
    log = log_of(entries[:1_000])
    directory = tmp_path / "archive"
    async with archiving(log, directory):
        assert await until_held(directory, 1_000) == entries[:1_000]
    for entry in entries[1_000:2_500]:
        log.append(entry.body)
    async with archiving(log, directory) as (archiver, _task):
        assert await until_held(directory, 2_500) == entries[:2_500]
        for entry in entries[2_500:]:
            log.append(entry.body)
        assert await until_held(directory, 3_000) == entries
        assert archiver.trouble == ""
    head = segments.read_head(directory)
    assert head is not None
    assert head.sequence == 3_000


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("shorter", "record 21: missing: the log ends at 20, but 35 are archived"),
        ("another", "record 35: its hash is .* is archived"),
        ("another behind it", "record 36: it says that it follows"),
    ],
)
async def test_another_ledger_is_refused(tmp_path: Path, what: str, reason: str) -> None:
    """A ledger that is shorter than the archive, or another one, is not archived; the record is named."""
    directory, entries, _ = await _archive(tmp_path)
    log = log_of(entries[:20]) if what == "shorter" else log_of(entries)
    if what == "another":
        log = log_of(chained(seconds(40), padding=1))
    elif what == "another behind it":
        log.append(record("1" * 64, START_NS + DAY_NS))
    async with archiving(log, directory, SMALL) as (_archiver, task):
        with pytest.raises(CorruptLedgerError, match=reason):
            await asyncio.wait_for(task, 30)
    assert await held(directory) == entries


def _is_of_another_past(archiver: Archiver) -> bool:
    """Asked anew: what was known of it a moment ago says nothing."""
    return archiver.is_of_another_past


async def test_a_ledger_that_was_restored_from_less_is_told_and_waited_for(tmp_path: Path) -> None:
    """Where the archive holds records that a restored ledger has lost, both are kept, and it is said what to do."""
    directory, entries, _ = await _archive(tmp_path)
    restored = [*entries[:30], Entry(31, record(chain_hash(entries[29].body), START_NS + DAY_NS, era=1))]
    async with archiving(log_of(restored), directory, SMALL) as (archiver, task):
        async with asyncio.timeout(30):
            while not archiver.trouble:
                await asyncio.wait({task}, timeout=0.02)
        assert "restored from less than the 35 records" in archiver.trouble
        assert str(directory) in archiver.trouble
        assert _is_of_another_past(archiver)
        assert not task.done()
        assert await held(directory) == entries
        directory.rename(tmp_path / "kept")
        async with asyncio.timeout(30):
            while archiver.trouble:
                await asyncio.wait({task}, timeout=0.02)
        assert not _is_of_another_past(archiver)
        assert await until_held(directory, 31) == restored
        with pytest.raises(StoreInUseError):
            await ArchiveWriter(directory, "test").lock(wait_s=0)
    assert await held(tmp_path / "kept") == entries


@pytest.mark.parametrize("what", ["directory", "segment"])
async def test_what_is_taken_away_while_it_is_written_to(tmp_path: Path, what: str) -> None:
    """A file that is no longer where it was is not written to any more: an archive is made where it should be."""
    entries = chained(seconds(20))
    log, directory = log_of(entries[:10]), tmp_path / "archive"
    async with archiving(log, directory) as (archiver, task):
        await until_held(directory, 10)
        if what == "directory":
            directory.rename(tmp_path / "kept")
            directory.mkdir(mode=0o700)
        else:
            (segment,) = segments.segments_in(directory)
            segment.path.rename(tmp_path / "kept")
        for entry in entries[10:]:
            log.append(entry.body)
        async with asyncio.timeout(30):
            while archiver.trouble or not directory.exists() or len(await held(directory)) < 20:
                assert not task.done()
                await asyncio.wait({task}, timeout=0.02)
    assert await held(directory) == entries
    if what == "directory":
        assert await held(tmp_path / "kept") == entries[:10]


async def test_a_restored_ledger_is_gone_on_with(tmp_path: Path) -> None:
    """One that was restored from all that is archived has one record more, of the next era: archived as any other."""
    directory, entries, _ = await _archive(tmp_path)
    restored = [*entries, Entry(36, record(chain_hash(entries[-1].body), START_NS + DAY_NS, era=1))]
    async with archiving(log_of(restored), directory, SMALL):
        assert await until_held(directory, 36) == restored


# --- trouble ------------------------------------------------------------------------------------------------------


async def test_a_lost_end_that_the_restored_ledger_lacks_too_is_lost(tmp_path: Path) -> None:
    """An archive that lost its end goes on with a ledger that was restored from what was left of it."""
    directory, entries, files = await _archive(tmp_path)
    tamper(files[-1], "DELETE FROM records WHERE sequence > 32")
    restored = [*entries[:32], Entry(33, record(chain_hash(entries[31].body), START_NS + DAY_NS, era=1))]
    async with archiving(log_of(restored), directory, SMALL):
        assert await until_held(directory, 33) == restored


@pytest.mark.parametrize("reserve", [None, 0], ids=["near the end of the disk", "at its end"])
async def test_a_full_disk_is_waited_out(tmp_path: Path, reserve: int | None) -> None:
    """It is said, what is archived stays and is read, and when there is room it goes on by itself: nothing is lost."""
    entries = chained(seconds(600, every_s=1_000), padding=20_000)
    log = log_of(entries)
    (tmp_path / "disk").mkdir()
    with small_disk_at(tmp_path / "disk", 16) as disk:
        filler, directory = disk / "filler", disk / "archive"
        filler.write_bytes(b"x" * 9 * 2**20)
        async with archiving(log, directory, Limits(reserve_bytes=reserve, records_max=100)) as (archiver, task):
            async with asyncio.timeout(30):
                while not archiver.trouble:
                    await asyncio.wait({task}, timeout=0.02)
            assert "full" in archiver.trouble
            before = await held(directory)
            assert 0 < len(before) < 600
            assert before == entries[: len(before)]
            filler.unlink()
            remount(disk, "size=64m")
            assert await until_held(directory, 600) == entries
            async with asyncio.timeout(30):
                while archiver.trouble:
                    await asyncio.wait({task}, timeout=0.02)
    assert not task.done() or task.cancelled()


_CHILD = """
import asyncio, sys
from pathlib import Path
from leasehold.services.archive.writer import Limits
from tests.archive.records import chained, seconds, writing

async def main():
    entries = chained(seconds(4_000, every_s=60), padding=500)
    async with writing(Path(sys.argv[1]), Limits(reserve_bytes=0, records_max=150)) as writer:
        print(writer.tip.sequence, flush=True)
        while writer.tip.sequence < len(entries):
            await writer.write(entries[writer.tip.sequence : writer.tip.sequence + 23])
            await writer.note()
            print(writer.tip.sequence, flush=True)

asyncio.run(main())
"""


async def test_killed_at_any_time_it_keeps_what_it_had(tmp_path: Path) -> None:
    """Killed (SIGKILL) again and again while it writes: what it called archived is there, in order, and it goes on."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    entries = chained(seconds(4_000, every_s=60), padding=500)
    directory = tmp_path / "archive"
    for _ in range(3):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, str(directory), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        said = 0
        for _ in range(rng.randrange(1, 20)):
            line = await asyncio.wait_for(child.stdout.readline(), 60)
            if not line:
                break
            said = int(line)
        if child.returncode is None:
            child.kill()
        rest = await child.stdout.read()
        said = max([said, *(int(line) for line in rest.split(b"\n")[:-1])])
        await child.wait()
        there = await held(directory) if directory.exists() else []
        assert len(there) >= said
        assert there == entries[: len(there)]
    async with writing(directory, Limits(reserve_bytes=0, records_max=150)) as writer:
        assert _vouched(writer) == 0
        await writer.write(entries)
    assert await held(directory) == entries


async def test_a_damaged_archive_stops_nothing_but_itself(tmp_path: Path) -> None:
    """The archiver says what is wrong, and goes on when it has been put right."""
    directory, entries, files = await _archive(tmp_path)
    files[1].rename(tmp_path / "away")
    log = log_of(chained(seconds(40)))
    async with archiving(log, directory, SMALL) as (archiver, task):
        async with asyncio.timeout(30):
            while not archiver.trouble:
                await asyncio.wait({task}, timeout=0.02)
        assert "is damaged: record 11: missing" in archiver.trouble
        (tmp_path / "away").rename(files[1])
        assert (await until_held(directory, 40))[:35] == entries


def test_the_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A note that cannot be read is said to be so; it is not taken for none."""
    assert segments.read_head(tmp_path) is None
    (tmp_path / segments.HEAD_FILE).write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"head\.json cannot be read"):
        segments.read_head(tmp_path)
    (tmp_path / segments.HEAD_FILE).write_bytes(b'{"ledger_id":"\xff"}')
    with pytest.raises(StorageError, match=r"head\.json cannot be read"):
        segments.read_head(tmp_path)
    head = segments.Head(ledger_id="x", era=1, sequence=2, chain="c")
    (tmp_path / segments.HEAD_FILE).write_bytes(msgspec.json.encode(head))
    assert segments.read_head(tmp_path) == head
