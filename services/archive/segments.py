"""The files of an archive: one SQLite file after the other, each named by its first record and that one's day.

`00000000000000000001-2026-11-21.sqlite` begins with record 1, decided on that day (UTC). Only the last one is written
to; the others are sealed: no write-ahead log beside them, mode 0400. `head.json` beside them says how far the archive
has ever gone, so that a tail which was cut off is missed.
"""

import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import aiosqlite
import msgspec

from leasehold.events.errors import CorruptLedgerError, StorageError, StoreInUseError

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x4C534841
"""`LSHA`, in the header of each segment."""
HEAD_FILE: Final = "head.json"
READ_WAIT_S: Final = 5.0
"""How long a reader waits for a lock; only the moment in which a segment is sealed takes one."""
BATCH_RECORDS_MAX: Final = 1_024
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""What is read at a time is not larger; one record alone may be."""
_NAME: Final = re.compile(r"([0-9]{20})-([0-9]{4}-[0-9]{2}-[0-9]{2})\.sqlite")
SEALED_MODE: Final = 0o400
_SECONDS_MAX: Final = 253_402_300_799
"""The last second of the year 9999."""
_SIZES: Final = "SELECT length(body) FROM records WHERE sequence > ? ORDER BY sequence LIMIT ?"
_ROWS: Final = """
SELECT sequence, decided_at_ns, chain, body FROM records WHERE sequence > ? ORDER BY sequence LIMIT ?
"""


class Segment(msgspec.Struct, frozen=True, order=True):
    """One file of an archive, by its name alone."""

    first: int
    """The sequence of its first record."""
    date: str
    """The day (UTC) on which that was decided, like `2026-11-21`."""
    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def is_sealed(self) -> bool:
        """Whether nothing is to be written to it any more."""
        return self.path.stat().st_mode & 0o777 == SEALED_MODE


class Meta(msgspec.Struct, frozen=True):
    """What a segment says of itself."""

    ledger_id: str
    cluster: str
    first: int
    follows: str
    """The chain hash of the record before its first one, 64 hex digits; zeros for the first of all."""
    previous: str
    """The name of the segment before; empty for the first of all."""


class End(msgspec.Struct, frozen=True):
    """A record's place: its sequence, when it was decided, its chain hash (64 hex digits)."""

    sequence: int
    decided_at_ns: int
    chain: str


class Row(NamedTuple):
    """One record as it stands in a segment."""

    sequence: int
    decided_at_ns: int
    chain: bytes
    body: bytes


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far an archive has gone, as it is noted beside the segments."""

    ledger_id: str
    era: int
    sequence: int
    chain: str


def file_name(first: int, decided_at_ns: int) -> str:
    """What the segment is called that begins with record `first`, decided at `decided_at_ns`."""
    return f"{first:020}-{day_of(decided_at_ns)}.sqlite"


def day_of(ns: int) -> str:
    """The day (UTC) of a time in ns since 1970, like `2026-11-21`; the last one there is, of times behind all days."""
    seconds = min(max(ns // 10**9, 0), _SECONDS_MAX)
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).date().isoformat()


def segments_in(directory: Path) -> list[Segment]:
    """The segments of an archive, in order.

    Raises:
        StorageError: there is no such directory, or it cannot be read.
    """
    found = []
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise StorageError(f"{directory} cannot be read as an archive ({error.strerror})") from error
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found.append(Segment(int(match[1]), match[2], directory / name))
    return sorted(found)


def read_head(directory: Path) -> Head | None:
    """How far the archive has gone, as it is noted; `None` if it never was.

    Raises:
        StorageError: the note cannot be read.
    """
    path = directory / HEAD_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read ({error})") from error


# --- one segment ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def reading(segment: Segment) -> AsyncIterator[aiosqlite.Connection]:
    """A connection to a segment that only reads, also while it is written to. To be held for a moment only: a segment
    is not sealed while others read it.

    Raises:
        StorageError: it cannot be opened, or was not written by this archive.
        CorruptLedgerError: it is damaged.
    """
    with complaints(segment):
        database = await _open(segment)
        try:
            await check_kind(database, segment)
            yield database
        finally:
            await database.close()


async def _open(segment: Segment) -> aiosqlite.Connection:
    uri = segment.path.absolute().as_uri()
    database = await aiosqlite.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=READ_WAIT_S)
    try:
        await database.execute_fetchall("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        await database.close()
        # A write-ahead log is only read where a file can be laid beside it: not on a full disk, nor on one that takes
        # no writes. Without one, nobody is writing, and the segment is all there is.
        is_for_that = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
        if not is_for_that or not segment.path.exists():
            raise
        if _size(Path(f"{segment.path}-wal")):
            raise StorageError(
                f"{segment.path} has a write-ahead log, which cannot be read where nothing can be written ({error}): "
                "copy it to where that can be, or take a copy made by `leasehold archive backup`"
            ) from error
        return await aiosqlite.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
    except BaseException:
        await database.close()
        raise
    return database


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def check_kind(database: aiosqlite.Connection, segment: Segment) -> None:
    """Raises StorageError unless the file is a segment that this build can read."""
    if await pragma(database, "application_id") != APPLICATION_ID:
        raise StorageError(f"{segment.path} is not a segment of an archive")
    version = await pragma(database, "user_version")
    if version != SCHEMA_VERSION:
        raise StorageError(f"{segment.path} has schema {version}; this build knows {SCHEMA_VERSION}")


async def pragma(database: aiosqlite.Connection, text: str) -> int | str | None:
    """What SQLite says to a pragma."""
    # Rows left unread would keep the file in use.
    rows = list(await database.execute_fetchall(f"PRAGMA {text}"))
    return rows[0][0] if rows else None


async def meta_of(database: aiosqlite.Connection, segment: Segment) -> Meta:
    """What the segment says of itself.

    Raises:
        CorruptLedgerError: it says nothing.
    """
    row = await first_row(database, "SELECT ledger_id, cluster, first, lower(hex(follows)), previous FROM meta")
    if row is None:
        raise CorruptLedgerError(f"segment {segment.name} does not say what it is", sequence=segment.first)
    return Meta(*row)


async def end_of(database: aiosqlite.Connection) -> End | None:
    """The last record of a segment; `None` if it has none yet."""
    sql = "SELECT sequence, decided_at_ns, lower(hex(chain)) FROM records ORDER BY sequence DESC LIMIT 1"
    row = await first_row(database, sql)
    return End(*row) if row else None


async def rows_behind(database: aiosqlite.Connection, after: int) -> list[Row]:
    """The next records of a segment behind `after`, in order, as many as are read at a time; none at its end."""
    sizes = await database.execute_fetchall(_SIZES, (after, BATCH_RECORDS_MAX))
    count, room = 0, BATCH_BYTES_MAX
    for (size,) in sizes:
        room -= size
        if room < 0 and count:
            break
        count += 1
    return list(map(Row._make, await database.execute_fetchall(_ROWS, (after, count)))) if count else []


async def first_row(
    database: aiosqlite.Connection, sql: str, parameters: Sequence[int | str] = ()
) -> sqlite3.Row | None:
    """The first row of an answer."""
    return next(iter(await database.execute_fetchall(sql, parameters)), None)


@contextmanager
def complaints(segment: Segment) -> Iterator[None]:
    """Turns what SQLite and the file system complain about into errors of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise StoreInUseError(f"{segment.path} is in use by another process") from error
        raise StorageError(f"{segment.path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise CorruptLedgerError(f"segment {segment.name} is damaged ({error})", sequence=segment.first) from error
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{segment.path}: {error}") from error
