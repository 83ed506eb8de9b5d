"""Copies of an archive, also of one that is being written to; each copy is gone over before it takes its place."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import aiosqlite
import msgspec

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StorageError
from leasehold.events.record import chain_hash
from leasehold.services.archive import segments
from leasehold.services.archive.chain import Tip, advance
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import Head, Segment
from leasehold.services.archive.writer import LOCK_FILE, check_link, sync_directory, take_lock, write_head


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy holds now, and how many of its segments had to be copied for that."""

    ledger_id: str
    era: int
    records: int
    chain: str
    segments: int
    copied: int


async def back_up(source: Path, destination: Path) -> Copied:
    """Copy the archive in `source` to `destination`: an empty directory, or one with an earlier copy, which is brought
    up to date. Every record of the copy is gone over.

    Raises:
        InvalidInputError: there is no archive in `source`, or something else in `destination`: other files, or a copy
            with records that `source` does not have.
        CorruptLedgerError: the archive is damaged; the record is named. What was copied before stays as it was.
        StorageError: it cannot be read or written.
        StoreInUseError: somebody writes to `destination`.
    """
    names = {segment.name for segment in segments.segments_in(source)}
    return await _copy(source, destination, may_hold=names | {segments.HEAD_FILE, LOCK_FILE})


async def restore(source: Path, destination: Path) -> Copied:
    """Copy a copy of an archive to where it is to be gone on with: an empty directory. Raises as `back_up` does."""
    return await _copy(source, destination, may_hold={LOCK_FILE})


async def _copy(source: Path, destination: Path, *, may_hold: set[str]) -> Copied:
    # Read first: the archive goes on meanwhile, and never stands before what is noted of it.
    head = segments.read_head(source)
    found = segments.segments_in(source)
    if not found:
        raise InvalidInputError(f"{source} holds no archive", field="archive")
    _make(destination)
    lock = await take_lock(destination, wait_s=0)
    try:
        _check_place(destination, may_hold)
        await _check_kept(source, destination)
        tip, previous, fresh = Tip(), "", list[tuple[Path, Segment]]()
        for segment in found:
            there = Segment(segment.first, segment.date, destination / segment.name)
            if not _is_same(segment, there):
                beside = await _copied(segment, there)
                fresh.append((beside.path, there))
                end = await check_records(beside, previous, tip, head)
            else:
                end = await check_records(there, previous, tip, head)
            if end.sequence == tip.sequence and segment is not found[-1]:
                raise CorruptLedgerError(f"segment {segment.name} is empty", sequence=segment.first)
            tip, previous = end, segment.name
        _check_reach(tip, head)
        # Only now: a copy that was good is not given up for one that is not.
        await asyncio.to_thread(_put, fresh, destination)
        write_head(destination, tip)
    finally:
        os.close(lock)
    return Copied(
        ledger_id=tip.ledger_id,
        era=tip.era,
        records=tip.sequence,
        chain=tip.chain,
        segments=len(found),
        copied=len(fresh),
    )


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{directory} cannot be made ({error.strerror})") from error


def _check_place(directory: Path, may_hold: set[str]) -> None:
    others = sorted(path.name for path in directory.iterdir() if path.name not in may_hold)
    # What a copy that was interrupted has left.
    others = [name for name in others if not name.endswith((".new", ".new-journal"))]
    if others:
        raise InvalidInputError(f"{directory} holds something else: {others[0]}", field="directory")


async def _check_kept(source: Path, destination: Path) -> None:
    """Raises InvalidInputError if an earlier copy has a record that the archive has not: it may be the last of them."""
    kept = await ArchivedLedger(destination).end()
    if kept is None:
        return
    body = await ArchivedLedger(source).read(kept.sequence)
    if body is None or chain_hash(body) != kept.chain:
        what = "goes further" if body is None else "is of other records"
        raise InvalidInputError(
            f"{destination} holds a copy that ends at record {kept.sequence} and {what} than the archive in {source}: "
            "keep it, and name another directory",
            field="directory",
        )


def _is_same(segment: Segment, there: Segment) -> bool:
    try:
        sizes = [each.path.stat().st_size for each in (segment, there)]
        return segment.is_sealed and there.is_sealed and sizes[0] == sizes[1]
    except FileNotFoundError:
        return False


async def _copied(segment: Segment, there: Segment) -> Segment:
    """A copy of `segment`, beside the place that it is for."""
    beside = msgspec.structs.replace(there, path=there.path.with_suffix(".new"))
    with segments.complaints(beside):
        beside.path.unlink(missing_ok=True)
        if segment.is_sealed:
            await asyncio.to_thread(shutil.copyfile, segment.path, beside.path)
            beside.path.chmod(segments.SEALED_MODE)
            return beside
        os.close(os.open(beside.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        async with segments.reading(segment) as database, aiosqlite.connect(beside.path) as copy:
            # All at once: a copy in steps begins anew whenever something was written in between.
            await database.backup(copy)
            await segments.pragma(copy, "journal_mode = DELETE")
    return beside


def _put(fresh: Sequence[tuple[Path, Segment]], directory: Path) -> None:
    """Have the disk hold the copies, each in its place."""
    for beside, there in fresh:
        with segments.complaints(there):
            descriptor = os.open(beside, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            beside.rename(there.path)
    sync_directory(directory)


async def check_records(segment: Segment, previous: str, before: Tip, head: Head | None = None) -> Tip:
    """Go over every record of a segment, which should follow record `before` in the segment named `previous`; its last
    record, or `before` if it has none.

    Args:
        head: How far the archive had gone, as it was noted: what it says of its record must be true.

    Raises:
        CorruptLedgerError: the first record that is not what it was is named.
    """
    await check_link(segment, previous, before)
    tip = before
    async with segments.reading(segment) as database:
        while rows := await segments.rows_behind(database, tip.sequence):
            for row in rows:
                tip = advance(tip, row.sequence, row.body)
                if (tip.decided_at_ns, tip.chain) != (row.decided_at_ns, row.chain.hex()):
                    reason = f"its hash is {tip.chain[:12]}…, but segment {segment.name} says {row.chain.hex()[:12]}…"
                    raise CorruptLedgerError(reason, sequence=row.sequence)
                if head is not None and head.sequence == tip.sequence and head.chain != tip.chain:
                    reason = f"its hash is {tip.chain[:12]}…, but {head.chain[:12]}… is noted of it"
                    raise CorruptLedgerError(reason, sequence=row.sequence)
    return tip


def _check_reach(tip: Tip, head: Head | None) -> None:
    if head is not None and head.sequence > tip.sequence:
        raise CorruptLedgerError(
            f"missing: the archive ends at {tip.sequence}, but had gone to {head.sequence}", sequence=tip.sequence + 1
        )
