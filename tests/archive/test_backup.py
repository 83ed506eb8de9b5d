"""Copies of an archive: taken while it is written to, each whole, and good to go on with."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, LeaseholdError, StoreInUseError
from leasehold.events.record import chain_hash
from leasehold.services.archive.backup import back_up, restore
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.writer import Limits
from leasehold.services.ledger.port import Entry
from tests.archive.records import chained, held, made, names, seconds, tamper, writing

SMALL = Limits(reserve_bytes=0, records_max=40)


async def _writer(directory: Path, entries: list[Entry], rng: random.Random, begun: asyncio.Event) -> None:
    async with writing(directory, SMALL) as writer:
        at = 0
        while at < len(entries):
            upto = at + rng.randrange(1, 12)
            await writer.write(entries[at:upto])
            await writer.note()
            begun.set()
            at = upto


async def test_a_copy_is_taken_while_it_grows(tmp_path: Path) -> None:
    """Copies beside a writer that does not pause: each is a beginning of the archive, and each goes further."""
    seed = random.randrange(2**32)
    print("seed", seed)
    entries = chained(seconds(1_500, every_s=900), padding=300)
    begun = asyncio.Event()
    working = asyncio.create_task(_writer(tmp_path / "archive", entries, random.Random(seed), begun))
    await begun.wait()
    records, rounds = 0, 0
    while not working.done():
        copied = await back_up(tmp_path / "archive", tmp_path / "copy")
        there = await held(tmp_path / "copy")
        assert there == entries[: copied.records]
        assert copied.chain == chain_hash(there[-1].body)
        assert copied.records >= records
        records, rounds = copied.records, rounds + 1
    await working
    assert rounds > 1
    last = await back_up(tmp_path / "archive", tmp_path / "copy")
    assert (last.records, last.segments) == (1_500, len(names(tmp_path / "archive")))
    assert await held(tmp_path / "copy") == entries
    # What is sealed is not copied again.
    assert (await back_up(tmp_path / "archive", tmp_path / "copy")).copied == 1


async def test_a_copy_is_put_back_and_gone_on_with(tmp_path: Path) -> None:
    """Into an empty directory, and nowhere else; a writer goes on behind it."""
    entries = chained(seconds(200))
    await made(tmp_path / "archive", entries[:150], SMALL)
    await back_up(tmp_path / "archive", tmp_path / "copy")
    with pytest.raises(InvalidInputError, match="holds something else"):
        await restore(tmp_path / "copy", tmp_path / "archive")
    shutil.rmtree(tmp_path / "archive")
    assert (await restore(tmp_path / "copy", tmp_path / "archive")).records == 150
    async with writing(tmp_path / "archive", SMALL) as writer:
        await writer.write(entries)
    assert await held(tmp_path / "archive") == entries
    assert (await held(tmp_path / "copy"))[-1].sequence == 150


async def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """Neither other files nor another archive are overwritten; a place that is written to is refused."""
    archive = await made(tmp_path / "archive", chained(seconds(100)), SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInputError, match=r"holds something else: thesis\.txt"):
        await back_up(archive, tmp_path / "mine")
    other = await made(tmp_path / "other", chained(seconds(300), padding=1), SMALL)
    with pytest.raises(LeaseholdError):
        await back_up(archive, other)
    assert await held(other) == chained(seconds(300), padding=1)
    async with writing(tmp_path / "busy"):
        with pytest.raises(StoreInUseError):
            await back_up(archive, tmp_path / "busy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="holds no archive"):
        await back_up(tmp_path / "empty", tmp_path / "copy")


@pytest.mark.parametrize("what", ["less", "another"])
async def test_a_copy_that_has_more_is_not_given_up(tmp_path: Path, what: str) -> None:
    """An archive that was made anew, or lost its end, or is of another ledger, does not take the place of a copy that
    may be the last one with its records.
    """
    entries = chained(seconds(100))
    await back_up(await made(tmp_path / "archive", entries), tmp_path / "copy")
    fewer = await made(tmp_path / "fewer", entries[:60] if what == "less" else chained(seconds(200), padding=1))
    assert names(fewer) == names(tmp_path / "copy")
    with pytest.raises(InvalidInputError, match=r"ends at record 100 and .*: keep it"):
        await back_up(fewer, tmp_path / "copy")
    assert await held(tmp_path / "copy") == entries


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "UPDATE records SET body = CAST(replace(body, 'w', 'v') AS BLOB) WHERE sequence = 17",
            "record 17: its hash is",
        ),
        ("UPDATE records SET decided_at_ns = 5 WHERE sequence = 17", "record 17: .* says"),
        ("UPDATE records SET chain = zeroblob(32) WHERE sequence = 17", "record 17: its hash is"),
        ("DELETE FROM records WHERE sequence = 17", "record 18: it comes behind record 16"),
        ("DELETE FROM records WHERE sequence > 35", "record 36: missing: segment .* does not follow"),
        ("UPDATE meta SET follows = randomblob(32)", "says that it begins"),
        ("UPDATE records SET sequence = 1000 WHERE sequence = 40", "comes behind record 39|missing: segment"),
    ],
)
async def test_what_is_damaged_is_not_copied(tmp_path: Path, statement: str, reason: str) -> None:
    """A changed or missing record is named, and the good copy that was there before stays."""
    entries = chained(seconds(100))
    archive = await made(tmp_path / "archive", entries, SMALL)
    await back_up(archive, tmp_path / "copy")
    damaged = archive / names(archive)[0]
    tamper(damaged, statement)
    damaged.chmod(0o600)
    with pytest.raises(CorruptLedgerError, match=reason):
        await back_up(archive, tmp_path / "copy")
    assert await held(tmp_path / "copy") == entries


async def test_a_cut_archive_is_not_copied(tmp_path: Path) -> None:
    """An archive that ends before what is noted of it is refused, with the first record that is missing."""
    archive = await made(tmp_path / "archive", chained(seconds(100)), SMALL)
    (archive / names(archive)[-1]).unlink()
    with pytest.raises(CorruptLedgerError, match="record 81: missing: the archive ends at 80, but had gone to 100"):
        await back_up(archive, tmp_path / "copy")
    assert ArchivedLedger(tmp_path / "copy").noted_head() is None


async def test_a_copy_that_rotted_is_found(tmp_path: Path) -> None:
    """A sealed segment of the copy that is there already is gone over as well."""
    archive = await made(tmp_path / "archive", chained(seconds(100)), SMALL)
    await back_up(archive, tmp_path / "copy")
    rotten = tmp_path / "copy" / names(archive)[0]
    body = bytearray(rotten.read_bytes())
    at = body.index(b'"writer":"w"') + 10
    body[at] ^= 1
    rotten.chmod(0o600)
    rotten.write_bytes(body)
    rotten.chmod(0o400)
    with pytest.raises(CorruptLedgerError, match="its hash is"):
        await back_up(archive, tmp_path / "copy")
