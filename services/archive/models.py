"""The file of the read models, beside the segments of an archive: one process writes it, any number read.

Everything in it comes from the archive and can be built from it again; so a file that is damaged, of another ledger or
of another version is emptied, never mended.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite
import msgspec

from leasehold.events.errors import StorageError, StoreInUseError
from leasehold.projections.intervals import IntervalFold
from leasehold.projections.modelrows import (
    MODELS_VERSION,
    Changes,
    DeviceRow,
    DomainIdRow,
    DomainNameRow,
    DomainRow,
    HostRow,
    KeepRow,
    LeaseRow,
    ModelsHead,
    NameRow,
    OrderRow,
    OwnershipRow,
    QueuedRow,
    RefusalRow,
    RequestRow,
    Resumed,
    Row,
    SharingRow,
    TenureRow,
    VersionRow,
)
from leasehold.services.room import reserve_of

FILE: Final = "models.sqlite"
APPLICATION_ID: Final = 0x4C53484D
"""`LSHM`, in the file's header."""
LOCK_WAIT_S: Final = 5.0
CACHE_KIB: Final = 32 * 1024
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
ROOM_SHARE: Final = 4
"""The models stop before the archive does: by one part in so many of the room that it leaves to the ledger."""

_TABLES: Final[dict[type[Any], str]] = {
    DeviceRow: "device",
    VersionRow: "version",
    OwnershipRow: "ownership",
    LeaseRow: "lease",
    HostRow: "host",
    RequestRow: "request",
    RefusalRow: "refusal",
    OrderRow: "host_order",
    NameRow: "name",
    DomainRow: "domain",
    DomainIdRow: "domain_id",
    DomainNameRow: "domain_name",
    TenureRow: "tenure",
    SharingRow: "sharing",
    QueuedRow: "queued",
    KeepRow: "keep",
}
_LATE: Final = "UPDATE host_order SET late_position = ?, device = ? WHERE ordered = ?"
_REPEATED: Final = "UPDATE refusal SET repeats = max(repeats, ?) WHERE position = ?"
_LAST_OF_HOSTS: Final = "host WHERE from_position = (SELECT max(from_position) FROM host h WHERE h.host = host.host)"
_LAST_OF_DOMAINS: Final = (
    "domain_id i CROSS JOIN domain ON domain.domain = i.domain AND NOT gone AND from_position ="
    " (SELECT max(from_position) FROM domain d WHERE d.domain = i.domain)"
)
_HELD: Final = "ownership JOIN device USING (device) WHERE lease != 0 AND from_position = lease"
_OPEN: Final = (
    "(lease IN (SELECT lease FROM device WHERE lease != 0)"
    " OR lease IN (SELECT from_position FROM sharing WHERE ended_position = 0))"
)

_R = TypeVar("_R", bound=Row)
Work = tuple[str, Sequence[Sequence[Any]]]
"""A statement, and the parameters of each time that it is to be run."""


def works_of(changes: Changes) -> list[Work]:
    """What writes these changes, with the rows as they are now."""
    works: list[Work] = []
    for rows in changes.rows():
        some = list(rows)
        if some:
            kind = type(some[0])
            fields = kind.__struct_fields__
            # Replacing makes it harmless to write a row twice.
            into = f"{_TABLES[kind]} ({', '.join(fields)})"
            sql = f"INSERT OR REPLACE INTO {into} VALUES ({_marks(len(fields))})"  # noqa: S608 - all ours
            works.append((sql, [msgspec.structs.astuple(row) for row in some]))
    if changes.repeated:
        works.append((_REPEATED, [(count, first) for first, count in changes.repeated.items()]))
    if changes.late:
        works.append((_LATE, [(*late, order) for order, late in changes.late.items()]))
    return works


def _marks(count: int) -> str:
    return ", ".join("?" * count)


class Models:
    """The file, open for writing. Methods raise StorageError when the disk fails; nothing of it is there then.

    Who writes holds the archive's lock, so there is one at a time.
    """

    def __init__(self, path: Path, database: aiosqlite.Connection) -> None:
        """Use `open`."""
        self.path = path
        self._database = database
        self._opened = path.stat()

    @classmethod
    async def open(cls, path: Path) -> "Models":
        """Open the file at `path`, or make it (mode 0600); what is not of this version, or damaged, is emptied first.

        Raises:
            StorageError: it cannot be opened, or is another program's.
        """
        with complaints(path):
            try:
                return await cls._open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                # Damaged: nothing in it is worth more than the time to build it.
                remove(path)
                return await cls._open(path)

    @classmethod
    async def _open(cls, path: Path) -> "Models":
        _make_private(path)
        database = await aiosqlite.connect(path, isolation_level=None, timeout=LOCK_WAIT_S)
        models = cls(path, database)
        try:
            if await _pragma(database, "user_version") != MODELS_VERSION:
                await models._create()
            for text in (
                "journal_mode = WAL",
                "synchronous = NORMAL",
                f"cache_size = -{CACHE_KIB}",
                f"journal_size_limit = {WAL_BYTES_MAX}",
            ):
                await _pragma(database, text)
        except BaseException:
            await database.close()
            raise
        return models

    async def _create(self) -> None:
        if await _pragma(self._database, "schema_version") and (
            await _pragma(self._database, "application_id") != APPLICATION_ID
        ):
            raise StorageError(f"{self.path} is another program's database")
        await self._empty()

    async def _empty(self) -> None:
        """Drop what is there and make all tables anew, in one transaction: who reads sees the one or the other."""
        names = await self._database.execute_fetchall("SELECT name FROM sqlite_schema WHERE type = 'table'")
        drops = "".join(f"DROP TABLE {name};" for (name,) in names)
        script = resources.files("leasehold.services.archive").joinpath("models.sql").read_text(encoding="utf-8")
        await self._database.executescript(
            f"BEGIN IMMEDIATE; {drops} {script}\nPRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {MODELS_VERSION}; COMMIT;"
        )

    async def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        with complaints(self.path):
            await self._database.close()

    def is_in_place(self) -> bool:
        """Whether the file that is open is the one that stands at `path`."""
        try:
            return os.path.samestat(self.path.stat(), self._opened)
        except OSError:
            return False

    async def clear(self) -> None:
        """Forget everything, so that it is built anew."""
        with complaints(self.path):
            await self._empty()

    async def head(self) -> ModelsHead:
        """How far the rows go."""
        with complaints(self.path):
            return await head_of(self._database)

    async def resume(self, fold: IntervalFold) -> None:
        """Bring a new fold to where the rows are."""
        with complaints(self.path):
            fold.resume(Resumed(
                head=await head_of(self._database),
                devices=await self._rows(DeviceRow, "device"),
                leases=await self._rows(LeaseRow, f"lease WHERE {_OPEN}"),
                ownerships=await self._rows(OwnershipRow, _HELD),
                tenures=await self._rows(TenureRow, f"tenure WHERE until_position = 0 AND {_OPEN}"),
                sharings=await self._rows(SharingRow, "sharing WHERE ended_position = 0"),
                orders=await self._rows(OrderRow, "host_order WHERE ended_position = 0"),
                queue=await self._rows(QueuedRow, "queued WHERE ended_position = 0"),
                keeps=await self._rows(KeepRow, "keep WHERE until_position = 0"),
                hosts=await self._rows(HostRow, _LAST_OF_HOSTS),
                domains=await self._rows(DomainRow, _LAST_OF_DOMAINS),
            ))  # fmt: skip

    async def _rows(self, kind: type[_R], source: str) -> list[_R]:
        table = _TABLES[kind]
        columns = ", ".join(f"{table}.{field}" for field in kind.__struct_fields__)
        found = await self._database.execute_fetchall(f"SELECT {columns} FROM {source}")  # noqa: S608 - all ours
        return [kind(**dict(zip(kind.__struct_fields__, row, strict=True))) for row in found]

    async def write(self, works: Sequence[Work], head: ModelsHead) -> None:
        """Write rows and how far they go, in one transaction.

        Raises:
            StorageError: the disk does not take it, or is nearly full; nothing of it is there then.
        """
        with complaints(self.path):
            check_room(self.path)
            try:
                await self._database.execute("BEGIN IMMEDIATE")
                for sql, parameters in works:
                    await self._database.executemany(sql, parameters)
                await self._database.execute(_put_head(), msgspec.structs.astuple(head))
                await self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    await self._database.rollback()
                raise


def _put_head() -> str:
    fields = ModelsHead.__struct_fields__
    return f"INSERT OR REPLACE INTO head (id, {', '.join(fields)}) VALUES (1, {_marks(len(fields))})"  # noqa: S608


async def head_of(database: aiosqlite.Connection) -> ModelsHead:
    """How far the rows go."""
    fields = ", ".join(ModelsHead.__struct_fields__)
    row = next(iter(await database.execute_fetchall(f"SELECT {fields} FROM head")), None)  # noqa: S608
    return ModelsHead(*row) if row else ModelsHead()


async def open_to_read(path: Path) -> aiosqlite.Connection:
    """A connection that cannot write, also on a medium that cannot be written to.

    Raises:
        StorageError: there are no models, or such as this build cannot read.
    """
    with complaints(path):
        uri = uri_of(path)
        database = await aiosqlite.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=LOCK_WAIT_S)
        try:
            version = await _pragma(database, "user_version")
        except sqlite3.OperationalError:
            await database.close()
            if not is_whole(path):
                raise
            # A write-ahead log is only read where a file can be laid beside it. Without one, this file is all there is.
            database = await aiosqlite.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
            version = await _pragma(database, "user_version")
        except BaseException:
            # Its thread would outlive the program.
            await database.close()
            raise
        if version != MODELS_VERSION or await _pragma(database, "application_id") != APPLICATION_ID:
            await database.close()
            raise StorageError(f"{path} has models of version {version}; this build knows {MODELS_VERSION}")
        return database


def uri_of(path: Path) -> str:
    """The path as SQLite takes it with options behind it."""
    return path.absolute().as_uri()


def is_whole(path: Path) -> bool:
    """Whether the file is there, and nothing of it is in a write-ahead log yet."""
    try:
        return path.exists() and not Path(f"{path}-wal").stat().st_size
    except FileNotFoundError:
        return True


def _make_private(path: Path) -> None:
    # SQLite gives the files beside it the mode of this one.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


async def noted_head(path: Path) -> ModelsHead | None:
    """How far the models at `path` go; `None` if there are none that can be read."""
    try:
        database = await open_to_read(path)
    except StorageError:
        return None
    try:
        with complaints(path):
            return await head_of(database)
    finally:
        await database.close()


def remove(path: Path) -> None:
    """Delete the file and what SQLite has laid beside it."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")


def check_room(path: Path) -> None:
    """Raises StorageError when the disk is so full that what is left is for others."""
    status = os.statvfs(path)
    reserve = reserve_of(status.f_blocks * status.f_frsize)
    reserve += reserve // ROOM_SHARE
    free = status.f_bavail * status.f_frsize
    if free < reserve:
        said = f"{free >> 20} MiB free, the last {reserve >> 20} are left to the ledger and the archive"
        raise StorageError(f"the disk is nearly full ({said}): the read models wait")


async def _pragma(database: aiosqlite.Connection, text: str) -> int | str | None:
    # Rows left unread would keep the file in use.
    rows = list(await database.execute_fetchall(f"PRAGMA {text}"))
    return rows[0][0] if rows else None


@contextmanager
def complaints(path: Path) -> Iterator[None]:
    """Turns what SQLite and the file system complain about into errors of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise StoreInUseError(f"{path} is in use by another process") from error
        raise StorageError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{path} is damaged ({error}); deleted, it is built anew from the archive") from error
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{path}: {error}") from error
    except ValueError as error:
        # The client's word for a connection that is closed.
        raise StorageError(f"{path} is closed") from error
