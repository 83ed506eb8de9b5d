"""The archive's process on a real server: killed, in trouble, asked; and beside the others in an `up`."""

import asyncio
import contextlib
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from leasehold.events import codec
from leasehold.events.questions import Archived, ArchiveView, Owners, Reading
from leasehold.services.archive import rebuilding
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import segments_in
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Entry
from leasehold.services.processes import EXIT_CORRUPT, EXIT_IN_USE
from tests.archive.records import held, names
from tests.bench.cluster import CLUSTER, PRINCIPAL, Bus, ask_until, bus
from tests.integration.growing import Grower, pci
from tests.support.running import leasehold, running_up

WAIT_S = 60.0


@asynccontextmanager
async def growing(found: Bus) -> AsyncIterator[Grower]:
    """Who decides, in this process: a host with eight cards."""
    async with found.connected("anybody") as client:
        grower = Grower(JetStreamLedger(client, found.subjects), cluster=CLUSTER)
        await grower.start()
        await grower.report("h1", *(pci(slot) for slot in range(1, 9)))
        yield grower


async def started(found: Bus, name: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "leasehold.services.processes", "archive", "--data", str(found.data), "--host", "h1",
        "--name", name,
    )  # fmt: skip


@asynccontextmanager
async def archive(found: Bus, name: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """The real process, ended in good order unless it has ended."""
    process = await started(found, name)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), WAIT_S)


async def until_at(directory: Path, sequence: int) -> None:
    """Wait until so many records are archived."""
    directory.mkdir(mode=0o700, exist_ok=True)
    async with asyncio.timeout(WAIT_S):
        async with contextlib.aclosing(ArchivedLedger(directory).follow(0)) as batches:
            async for batch in batches:
                if batch[-1].sequence >= sequence:
                    return


async def view(found: Bus) -> ArchiveView:
    """What the archive says of itself, on the bus."""
    async with found.connected("operator") as client:
        subject = found.subjects.request(PRINCIPAL, "archived")
        reading: Reading = await ask_until(client, subject, codec.encode(Archived()), Reading)
    assert reading.archive is not None, reading
    return reading.archive


async def until(found: Bus, *, modelled: int = 0, trouble: str = "") -> ArchiveView:
    """Wait until its models go so far, and its trouble is this."""
    async with asyncio.timeout(WAIT_S):
        while True:
            now = await view(found)
            if now.modelled >= modelled and (trouble in now.trouble if trouble else not now.trouble):
                return now


async def test_killed_beside_a_ledger_that_grows(tmp_path: Path) -> None:
    """Two archives, one of them killed (SIGKILL) again and again: in the end both hold what the ledger holds."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found) as grower, archive(found, "2"):
        for _ in range(4):
            process = await started(found)
            target = grower.state.head.sequence + rng.randrange(1, 60)
            while grower.state.head.sequence < target:
                await grower.turn(f"h1/pci/0000:00:0{rng.randrange(1, 9)}.0")
            await until_at(found.data / "archive", rng.randrange(1, target + 1))
            process.kill()
            await process.wait()
        async with archive(found):
            await grower.turn("h1/pci/0000:00:01.0")
            expected = [Entry(index, body) for index, body in enumerate(grower.bodies, 1)]
            for name in ("archive", "archive-2"):
                await until_at(found.data / name, len(expected))
                assert await held(found.data / name) == expected
            last = await until(found, modelled=len(expected))
    head = grower.state.head
    assert (last.sequence, last.chain, last.ledger_id, last.era) == (head.sequence, head.chain, head.ledger_id, 0)


async def test_a_damaged_archive_says_so_and_goes_on_when_put_right(tmp_path: Path) -> None:
    """The process lives on and tells what is wrong to whoever asks; put right, it goes on without being started."""
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found) as grower:
        directory = found.data / "archive"
        async with archive(found):
            await until_at(directory, grower.state.head.sequence)
        (segment,) = segments_in(directory)
        whole = segment.path.read_bytes()
        segment.path.write_bytes(b"x" * len(whole))
        await grower.turn("h1/pci/0000:00:01.0")
        async with archive(found):
            await until(found, trouble=f"{directory} is damaged: record 1: segment {segment.name} is damaged")
            segment.path.write_bytes(whole)
            now = await until(found, modelled=grower.state.head.sequence)
            assert now.sequence == grower.state.head.sequence


def _inode(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


async def test_the_models_are_built_anew_when_asked(tmp_path: Path) -> None:
    """`rebuild` removes them under a process that runs, which builds them again; without one, they are just removed."""
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found) as grower:
        directory = found.data / "archive"
        models = directory / rebuilding.MODELS_FILE
        async with archive(found):
            last = grower.state.head.sequence
            await until(found, modelled=last)
            before = _inode(models)
            kept = models.open("rb")
            try:
                assert rebuilding.ask(directory)
                while _inode(models) in (0, before):
                    await until(found, modelled=last)
                await until(found, modelled=last)
            finally:
                kept.close()
            async with found.connected("operator") as client:
                subject = found.subjects.request(PRINCIPAL, "owners")
                reading: Reading = await ask_until(client, subject, codec.encode(Owners()), Reading)
                assert reading.outcome == "ok"
        assert models.exists()
        assert not rebuilding.ask(directory)
        assert not models.exists()
        assert not rebuilding.is_asked(directory)


async def test_the_models_are_built_anew_when_deleted(tmp_path: Path) -> None:
    """They can be deleted at any time: under a process that runs, which builds them again without being asked."""
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found) as grower:
        models = found.data / "archive" / rebuilding.MODELS_FILE
        async with archive(found):
            await until(found, modelled=grower.state.head.sequence)
            for path in models.parent.glob(f"{models.name}*"):
                path.unlink()
            await grower.turn("h1/pci/0000:00:01.0")
            await until(found, modelled=grower.state.head.sequence)
        assert models.exists()


async def test_what_it_cannot_go_on_with_ends_it(tmp_path: Path) -> None:
    """Another ledger than the one archived ends it, with the record in its log; so does a second in one directory."""
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found) as grower:
        directory = found.data / "archive"
        async with archive(found):
            await until_at(directory, grower.state.head.sequence)
            second = await started(found)
            assert await asyncio.wait_for(second.wait(), WAIT_S) == EXIT_IN_USE
            await grower.turn("h1/pci/0000:00:01.0")
            await until_at(directory, grower.state.head.sequence)
        last = grower.state.head.sequence
    shutil.rmtree(tmp_path / "data" / "jetstream")
    async with bus(tmp_path / "data", sync_always=False) as found, growing(found):
        process = await started(found)
        assert await asyncio.wait_for(process.wait(), WAIT_S) == EXIT_CORRUPT
        said = (found.data / "archive.log").read_text()
        assert f"but {last} are archived" in said
    assert len(await held(directory)) == last


def test_beside_the_others(tmp_path: Path) -> None:
    """`up` archives, `status` says how far, a backup is taken meanwhile; a wiped log beside it is not begun anew."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    with running_up(data):
        status = leasehold(data, "status")
        assert "archive   " in status.out
        copied = leasehold(data, "archive", "backup", str(copy), "--json").object
        assert copied["records"] > 0
        assert copied["segments"] == 1
        shown = leasehold(data, "archive", "status", "--json").object
        assert shown["sequence"] >= copied["records"]
        assert [each["first"] for each in shown["files"]] == [1]
        refused = leasehold(data, "archive", "restore", str(copy))
        assert (refused.code, "is written to by another process" in refused.err) == (1, True)
    shutil.rmtree(data / "jetstream")
    for name in ("allocator.sqlite", "query.sqlite"):
        (data / name).unlink()
    done = leasehold(data, "up", "--data", str(data))
    assert done.code == 1
    assert "there is no stream LEDGER" in done.err
    assert "`leasehold restore-ledger` makes the log of them again" in done.err
    shutil.rmtree(data / "archive")
    assert leasehold(data, "archive", "restore", str(copy)).code == 0
    assert names(data / "archive") == names(copy)
    assert leasehold(data, "archive", "status", "--archive", str(data / "archive")).out.startswith("archive   ")
    nothing = leasehold(data, "archive", "status", "--archive", str(tmp_path))
    assert (nothing.code, nothing.err) == (4, f"leasehold: {tmp_path} holds no archive\n")
