"""The read models stay with their archive: over restarts at any record, other records, damage, and restored ledgers."""

import asyncio
import os
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from leasehold.events import inputs
from leasehold.events.position import end_of_record
from leasehold.events.questions import DevicesAt, Moment
from leasehold.services.archive.keeper import ModelsKeeper, build
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.ledger.port import Entry
from leasehold.services.room import reserve_of
from tests.archive.records import made, writing
from tests.past.logs import archived, devices_in, seeds, simulated
from tests.projections.ledger import H1, SECOND, Ledger, ledger_with_hosts
from tests.support.disks import small_disk_at

MODELS = "models.sqlite"


def entries_of(bodies: Sequence[bytes]) -> list[Entry]:
    """As they stand in a log."""
    return [Entry(sequence, body) for sequence, body in enumerate(bodies, 1)]


def content(path: Path) -> list[object]:
    """All rows of all tables."""
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        names = [row[0] for row in found]
        assert len(names) > 5
        return [(name, sorted(database.execute(f"SELECT * FROM {name}"), key=repr)) for name in names]


async def test_restarts_leave_no_trace(tmp_path: Path) -> None:
    """Models that were kept by many runs, each going on where the one before was, are those built at once."""
    (seed,) = seeds(1)
    rng = random.Random(seed)
    entries = entries_of(simulated(seed))
    bits, whole = tmp_path / "bits", tmp_path / "whole"
    async with writing(bits) as writer:
        while entries:
            count = rng.randrange(1, 60)
            await writer.write(entries[:count])
            entries = entries[count:]
            assert await build(ArchivedLedger(bits), bits / MODELS) == writer.tip.sequence
    await made(whole, [entry async for batch in ArchivedLedger(bits).follow_to_end(0) for entry in batch])
    await build(ArchivedLedger(whole), whole / MODELS)
    assert content(bits / MODELS) == content(whole / MODELS)


async def test_they_follow_what_is_archived(tmp_path: Path) -> None:
    """Whoever waits for a position goes on when the models have it; one that does not come in time is said so."""
    ledger = ledger_with_hosts()
    async with writing(tmp_path) as writer:
        archive = ArchivedLedger(tmp_path)
        keeper = ModelsKeeper(archive, tmp_path / MODELS)
        await keeper.start()
        running = asyncio.create_task(keeper.run())
        entries = entries_of(ledger.bodies)
        last = end_of_record(len(entries))
        assert not await keeper.wait_for(last, 0.01)
        waiting = asyncio.create_task(keeper.wait_for(last, 30.0))
        await writer.write(entries)
        archive.wake()
        assert await waiting
        assert keeper.sequence == len(entries)
        assert not keeper.trouble
        running.cancel()
        await asyncio.wait({running})
        await keeper.stop()
        await archive.close()


async def test_nobody_waits_for_more_records_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are let come together before they are written, but not while somebody waits for one."""
    monkeypatch.setattr("leasehold.services.archive.keeper.GATHER_S", 600.0)
    entries = entries_of(ledger_with_hosts().bodies)
    async with writing(tmp_path) as writer:
        archive = ArchivedLedger(tmp_path)
        keeper = ModelsKeeper(archive, tmp_path / MODELS)
        await keeper.start()
        running = asyncio.create_task(keeper.run())
        for entry in entries:
            await writer.write([entry])
            archive.wake()
            assert await keeper.wait_for(end_of_record(entry.sequence), 30.0), entry.sequence
        running.cancel()
        await asyncio.wait({running})
        await keeper.stop()
        await archive.close()


async def test_models_of_other_records_are_built_anew(tmp_path: Path) -> None:
    """Models that do not fit the archive (another's, or damaged) are emptied and made again."""
    first, second = Ledger(), ledger_with_hosts()
    first.note(inputs.DeciderStarts("alloc", "start"))
    archives = [await made(tmp_path / "first", entries_of(first.bodies)),
                await made(tmp_path / "second", entries_of(second.bodies))]  # fmt: skip
    for directory in archives:
        await build(ArchivedLedger(directory), directory / MODELS)
    right = content(archives[0] / MODELS)
    for wrong in ((archives[1] / MODELS).read_bytes(), b"no database at all" * 1_000):
        for suffix in ("-wal", "-shm"):
            Path(f"{archives[0] / MODELS}{suffix}").unlink(missing_ok=True)
        (archives[0] / MODELS).write_bytes(wrong)
        await build(ArchivedLedger(archives[0]), archives[0] / MODELS)
        assert content(archives[0] / MODELS) == right


async def test_a_restored_ledger(tmp_path: Path) -> None:
    """Behind a restore no host counts as up to date, in the models as in the fold, until it has reported again."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    restored = inputs.LedgerRestores(cluster="lab", writer="keeper", era=1, reason="the disk was lost")
    ledger.note(restored)
    place = end_of_record(len(ledger.bodies))
    shown = devices_in(ledger.state)
    assert {row.state for row in shown} >= {"stale", "leased"}
    ledger.now_ns += SECOND
    ledger.start_host(H1, run=2)
    async with archived(tmp_path, ledger.bodies) as past:
        assert await past.all(DevicesAt(at=Moment(position=place)), "devices", "device") == shown
        assert await past.all(DevicesAt(), "devices", "device") == devices_in(ledger.state)


async def test_a_disk_without_room_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room the models say so and keep what they have; with room again they go on by themselves."""
    entries = entries_of(ledger_with_hosts().bodies)
    directory = await made(tmp_path / "archive", entries)
    (tmp_path / "disk").mkdir()
    with small_disk_at(tmp_path / "disk", 8) as disk:
        ballast = disk / "ballast"
        archive = ArchivedLedger(directory)
        keeper = ModelsKeeper(archive, disk / MODELS)
        monkeypatch.setattr("leasehold.services.archive.keeper.AGAIN_S", 0.02)
        await keeper.start()
        # Room for its own files, but less than is left to the ledger.
        status = os.statvfs(disk)
        reserve = reserve_of(status.f_blocks * status.f_frsize)
        ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - reserve // 2))
        running = asyncio.create_task(keeper.run())
        assert not await keeper.wait_for(end_of_record(1), 0.5)
        assert "nearly full" in keeper.trouble
        ballast.unlink()
        assert await keeper.wait_for(end_of_record(len(entries)), 30.0)
        assert not keeper.trouble
        running.cancel()
        await asyncio.wait({running})
        await keeper.stop()
        await archive.close()
        await build(ArchivedLedger(directory), directory / MODELS)
        assert content(disk / MODELS) == content(directory / MODELS)
