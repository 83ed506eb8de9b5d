"""Writes an archive: one process at a time, one transaction for what has arrived together, segment after segment.

Where it goes on is what stands in the last segment, so it may be killed at any time. Behind a failure of the disk the
file is opened anew, and what it holds is taken as it is.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import aiosqlite
import msgspec

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StorageError, StoreInUseError
from leasehold.services.archive import segments
from leasehold.services.archive.chain import Tip, advance, tip_of
from leasehold.services.archive.segments import Head, Meta, Segment
from leasehold.services.home import make_private_dir, write_private
from leasehold.services.ledger.port import Entry
from leasehold.services.room import reserve_of

_log: Final = logging.getLogger(__name__)

SEGMENT_RECORDS_MAX: Final = 500_000
SEGMENT_BYTES_MAX: Final = 512 * 1024 * 1024
"""A segment that has so many records, or is so large, is followed by another on the same day."""
TRANSACTION_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of records, in one transaction; one record alone may be larger."""
LOCK_FILE: Final = "lock"
LOCK_WAIT_S: Final = 5.0
"""A predecessor that is being stopped gets this long to let go of the archive."""
_LOCK_POLL_S: Final = 0.02
_WAL_BYTES_MAX: Final = 64 * 1024 * 1024
_INSERT: Final = "INSERT INTO records (sequence, decided_at_ns, chain, body) VALUES (?, ?, ?, ?)"
_Row = tuple[int, int, bytes, bytes]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a segment is full, and how much room (in bytes) is left on the disk; `None`: what the log keeps, too."""

    records_max: int = SEGMENT_RECORDS_MAX
    bytes_max: int = SEGMENT_BYTES_MAX
    reserve_bytes: int | None = None


class ArchiveWriter:
    """The one that writes the archive in a directory. `lock` it, then `load` it, and `close` it in the end."""

    def __init__(self, directory: Path, cluster: str, bounds: Limits | None = None) -> None:
        """Nothing is touched yet."""
        self.directory = directory
        self.tip = Tip()
        """The last record that is archived for good."""
        self.vouched: Head | None = None
        """How far the archive has gone according to its note, if that is further than it goes now."""
        self._cluster = cluster
        self._bounds = bounds or Limits()
        self._lock: int | None = None
        self._segment: Segment | None = None
        self._opened: os.stat_result | None = None
        """The file that is written to, whatever stands under its name."""
        self._database: aiosqlite.Connection | None = None
        self._unsealed: list[Segment] = []
        self._noted = (0, 0)
        """Era and sequence."""

    # --- beginning and end --------------------------------------------------------------------------------------

    async def lock(self, *, wait_s: float = LOCK_WAIT_S) -> None:
        """Take the directory for this process, and make it unless it is there.

        Raises:
            StoreInUseError: another process writes there, and still did after `wait_s`.
            InvalidInputError: the directory cannot be used.
        """
        make_private_dir(self.directory)
        self._lock = await take_lock(self.directory, wait_s)

    async def load(self) -> None:
        """Go over the segments: whether each follows the one before, and where the last one ends.

        Raises:
            StorageError: the archive cannot be read, or is damaged; the segment or the record is named.
        """
        # Held until another is open: on a full disk nobody could read a segment that is not.
        before, self._database, self._segment = self._database, None, None
        try:
            await self._lock_again()
            await self._load()
        except CorruptLedgerError as error:
            raise StorageError(f"the archive in {self.directory} is damaged: {error}") from error
        finally:
            if before is not None:
                await before.close()

    async def _lock_again(self) -> None:
        """Be the only one in the directory that stands there now: it may have been moved away, and is made anew then.

        Raises:
            StoreInUseError, StorageError: another process writes there, or it cannot be made.
        """
        assert self._lock is not None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.directory / LOCK_FILE), os.fstat(self._lock)):
                return
        try:
            make_private_dir(self.directory)
        except InvalidInputError as error:
            raise StorageError(str(error)) from error
        before, self._lock = self._lock, await take_lock(self.directory, wait_s=0)
        os.close(before)
        _log.warning("the archive in %s was moved away: it is begun anew, or gone on with as it stands", self.directory)
        # Nothing of what stood there is noted here.
        self.tip = Tip()

    async def _load(self) -> None:
        found = segments.segments_in(self.directory)
        tip, previous = Tip(), ""
        self._unsealed = []
        for segment in found:
            end = await check_link(segment, previous, tip)
            if end is None and segment is found[-1]:
                # Made by one that was killed before it wrote a record there.
                _remove(segment)
                found.remove(segment)
                break
            if end is None:
                raise CorruptLedgerError(f"segment {segment.name} is empty", sequence=segment.first)
            tip, previous = end, segment.name
            if segment is not found[-1] and not segment.is_sealed:
                self._unsealed.append(segment)
        self.tip = tip
        head = segments.read_head(self.directory)
        self.vouched = None
        if head is not None and head.sequence > tip.sequence:
            self.vouched = head
            _log.error(
                "the archive in %s has lost records %d to %d, which it had: they are taken from the ledger again",
                self.directory, tip.sequence + 1, head.sequence,
            )  # fmt: skip
        self._noted = (head.era, head.sequence) if head else (0, 0)
        if found:
            await self._enter(found[-1])

    async def close(self) -> None:
        """Note how far it goes, and let go of it; a second time does nothing.

        Raises:
            StorageError: the disk does not take the note.
        """
        if self._lock is None:
            return
        try:
            await self.note()
        finally:
            await self._leave()
            os.close(self._lock)
            self._lock = None

    async def _enter(self, segment: Segment) -> None:
        with segments.complaints(segment):
            if segment.is_sealed:
                # By a copy, or by hand: it is the last one, so it is written to.
                segment.path.chmod(0o600)
            database = await aiosqlite.connect(segment.path, isolation_level=None, timeout=segments.READ_WAIT_S)
            try:
                await segments.pragma(database, "journal_mode = WAL")
                await segments.pragma(database, "synchronous = FULL")
                await segments.pragma(database, f"journal_size_limit = {_WAL_BYTES_MAX}")
            except BaseException:
                await database.close()
                raise
        self._database, self._segment = database, segment
        self._opened = segment.path.stat()
        # From here on counted: what is written shows in the file only when the write-ahead log is taken over.
        self._bytes = self._opened.st_size

    async def _leave(self) -> None:
        database, self._database, self._segment = self._database, None, None
        if database is not None:
            await database.close()

    # --- writing ------------------------------------------------------------------------------------------------

    async def write(self, entries: Sequence[Entry]) -> None:
        """Archive what comes behind `tip`, in order; what is archived already is passed over.

        Raises:
            CorruptLedgerError: a record does not go on behind the one before; it is named. Those before are archived.
            StorageError: the disk does not take it, or has too little room left. `tip` says what is archived; `load`
                before the next `write`.
        """
        fresh = [entry for entry in entries if entry.sequence > self.tip.sequence]
        at = 0
        while at < len(fresh):
            at = await self._write_some(fresh, at)

    async def _write_some(self, entries: Sequence[Entry], at: int) -> int:
        """One transaction, in one segment; where to go on."""
        first = tip_of(entries[at].sequence, entries[at].body)
        begins = self._is_full(first)
        room = self._bounds.records_max - (0 if begins else self._count())
        tip, rows, size, failure = self.tip, list[_Row](), 0, None
        for entry in entries[at : at + room]:
            try:
                after = advance(tip, entry.sequence, entry.body)
                self._check_vouched(after)
            except CorruptLedgerError as error:
                failure = error
                break
            size += len(entry.body)
            is_next_day = segments.day_of(after.decided_at_ns) != segments.day_of(first.decided_at_ns)
            if rows and (size > TRANSACTION_BYTES_MAX or is_next_day):
                break
            rows.append((entry.sequence, after.decided_at_ns, bytes.fromhex(after.chain), entry.body))
            tip = after
        if rows:
            await self._store(rows, tip, begins=begins)
        if failure is not None:
            raise failure
        return at + len(rows)

    def _count(self) -> int:
        return self.tip.sequence + 1 - self._segment.first if self._segment else 0

    def _is_full(self, following: Tip) -> bool:
        """Whether what follows belongs into another segment."""
        segment = self._segment
        if segment is None or segments.day_of(following.decided_at_ns) != segment.date:
            return True
        return self._count() >= self._bounds.records_max or self._bytes >= self._bounds.bytes_max

    def _check_vouched(self, tip: Tip) -> None:
        """What the note says of a record that was lost here must be true of the one that takes its place."""
        vouched = self.vouched
        # Behind a restore other records may stand there: what was lost is lost.
        if vouched is None or tip.sequence != vouched.sequence or tip.era > vouched.era:
            return
        if tip.chain != vouched.chain:
            reason = f"its hash is {tip.chain[:12]}…, but {vouched.chain[:12]}… was archived there before"
            raise CorruptLedgerError(reason, sequence=tip.sequence)

    async def _store(self, rows: Sequence[_Row], tip: Tip, *, begins: bool) -> None:
        self._check_place()
        if begins:
            await self._roll(rows[0], tip.ledger_id)
        assert self._segment is not None
        assert self._database is not None
        with segments.complaints(self._segment):
            await self._database.execute("BEGIN IMMEDIATE")
            await self._database.executemany(_INSERT, rows)
            await self._database.execute("COMMIT")
        self.tip = tip
        self._bytes += sum(len(row[3]) for row in rows)
        if self.vouched is not None and tip.sequence >= self.vouched.sequence:
            _log.warning("the archive in %s has again what it had", self.directory)
            self.vouched = None

    def _check_place(self) -> None:
        """That what is written to is what stands under its name, and that there is room.

        The log's server needs what is left on the disk more than the archive does: what that keeps is not lost.
        """
        try:
            status = os.statvfs(self.directory)
            if self._segment and self._opened and not os.path.samestat(self._segment.path.stat(), self._opened):
                raise StorageError(f"{self._segment.path} was replaced while it was written to")
        except OSError as error:
            raise StorageError(f"the archive in {self.directory} is gone ({error.strerror})") from error
        reserve = self._bounds.reserve_bytes
        if reserve is None:
            reserve = reserve_of(status.f_blocks * status.f_frsize)
        free = status.f_bavail * status.f_frsize
        if free < reserve:
            mib = 1024 * 1024
            raise StorageError(
                f"the disk is nearly full ({free // mib} MiB free, the last {reserve // mib} are left to the ledger): "
                f"nothing is archived until there is room again at {self.directory}; the ledger keeps it meanwhile"
            )

    # --- segments -----------------------------------------------------------------------------------------------

    async def _roll(self, row: _Row, ledger_id: str) -> None:
        """Begin a segment with the record in `row`, and seal the one before."""
        before = self._segment
        await self._leave()
        if before is not None:
            self._unsealed.append(before)
        name = segments.file_name(row[0], row[1])
        segment = Segment(row[0], segments.day_of(row[1]), self.directory / name)
        previous = before.name if before else ""
        await make_segment(segment, Meta(ledger_id, self._cluster, row[0], self.tip.chain, previous))
        await self._enter(segment)

    async def seal(self) -> None:
        """Seal what another segment follows; what somebody is just reading is left for the next time."""
        for segment in tuple(self._unsealed):
            if await seal(segment) and segment in self._unsealed:
                self._unsealed.remove(segment)

    async def note(self) -> None:
        """Note how far the archive goes, if that has changed, and see to it that what is full is sealed.

        Raises:
            StorageError: the disk does not take it.
        """
        await self.seal()
        tip = self.tip
        if (tip.era, tip.sequence) <= self._noted:
            return
        await asyncio.to_thread(write_head, self.directory, tip)
        self._noted = (tip.era, tip.sequence)


async def take_lock(directory: Path, wait_s: float) -> int:
    """Be the only one that writes to an archive, until the descriptor that is returned is closed.

    Raises:
        StoreInUseError: another process does, and still did after `wait_s`.
        StorageError: the file that tells it cannot be opened.
    """
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written to ({error.strerror})") from error
    give_up_s = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    raise StoreInUseError(f"{directory} is written to by another process") from None
            else:
                return descriptor
            await asyncio.sleep(_LOCK_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise


def write_head(directory: Path, tip: Tip) -> None:
    """Note that the archive in `directory` goes to `tip`.

    Raises:
        StorageError: the disk does not take it.
    """
    head = Head(ledger_id=tip.ledger_id, era=tip.era, sequence=tip.sequence, chain=tip.chain)
    try:
        write_private(directory / segments.HEAD_FILE, msgspec.json.encode(head) + b"\n")
    except OSError as error:
        raise StorageError(f"{directory / segments.HEAD_FILE} cannot be written ({error.strerror})") from error


async def make_segment(segment: Segment, meta: Meta) -> None:
    """Make the file of a segment, without records yet: whole or not at all.

    Raises:
        StorageError: the disk does not take it.
    """
    script = resources.files("leasehold.services.archive").joinpath("archive.sql").read_text(encoding="utf-8")
    beside = segment.path.with_suffix(".new")
    with segments.complaints(segment):
        beside.unlink(missing_ok=True)
        # SQLite gives the files beside it the mode of this one.
        os.close(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            async with aiosqlite.connect(beside, isolation_level=None) as database:
                await database.executescript(
                    f"BEGIN IMMEDIATE; {script}\nPRAGMA application_id = {segments.APPLICATION_ID};"
                    f"PRAGMA user_version = {segments.SCHEMA_VERSION}; COMMIT;"
                )
                values = (meta.ledger_id, meta.cluster, meta.first, bytes.fromhex(meta.follows), meta.previous)
                await database.execute("INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?)", values)
            # Left of a file of that name that was taken away, SQLite would take it for a part of this one.
            for path in tuple(_files(segment.path))[1:]:
                path.unlink(missing_ok=True)
            beside.rename(segment.path)
        except BaseException:
            for path in _files(beside):
                path.unlink(missing_ok=True)
            raise
        sync_directory(segment.path.parent)


def sync_directory(directory: Path) -> None:
    """Have the disk know which files are in a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def seal(segment: Segment) -> bool:
    """Let a segment be one file that nobody writes to; `False` if somebody is just reading it.

    Raises:
        StorageError: the disk does not take it.
    """
    if segment.is_sealed:
        return True
    with segments.complaints(segment):
        async with aiosqlite.connect(segment.path, isolation_level=None, timeout=0) as database:
            try:
                await segments.pragma(database, "wal_checkpoint(TRUNCATE)")
                mode = await segments.pragma(database, "journal_mode = DELETE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                return False
        if mode != "delete":
            return False
        segment.path.chmod(segments.SEALED_MODE)
    return True


async def check_link(segment: Segment, previous: str, before: Tip) -> Tip | None:
    """The last record of a segment, which should follow record `before` in the segment named `previous` (none: empty);
    `None` if it has no record.

    Raises:
        CorruptLedgerError: it does not follow; or its last record is not the one that it was.
    """
    if segment.first != before.sequence + 1:
        where = f"segment {segment.name} does not follow {previous}" if previous else f"{segment.name} is the first"
        raise CorruptLedgerError(f"missing: {where}", sequence=before.sequence + 1)
    async with segments.reading(segment) as database:
        meta = await segments.meta_of(database, segment)
        if (meta.first, meta.follows, meta.previous) != (segment.first, before.chain, previous):
            raise CorruptLedgerError(
                f"segment {segment.name} says that it begins with record {meta.first}, behind {meta.follows[:12]}… in "
                f"{meta.previous or 'no other'}; that is {before.chain[:12]}… in {previous or 'no other'}",
                sequence=segment.first,
            )
        row = await segments.first_row(
            database, "SELECT sequence, lower(hex(chain)), body FROM records ORDER BY sequence DESC LIMIT 1"
        )
    if row is None:
        return None
    tip = tip_of(row[0], row[2])
    if tip.chain != row[1]:
        raise CorruptLedgerError(f"its hash is {tip.chain[:12]}…, not {row[1][:12]}…", sequence=row[0])
    return tip


def _files(path: Path) -> Iterable[Path]:
    """A database, and what SQLite lays beside it."""
    return (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")))


def _remove(segment: Segment) -> None:
    with segments.complaints(segment):
        for path in _files(segment.path):
            path.unlink(missing_ok=True)
