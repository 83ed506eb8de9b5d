"""What a service keeps of its fold, in one SQLite file: a snapshot, how far the log was read, the index of the past.

Everything in it can be built anew from the log, but for one thing: the head. It is the memory of how far the log went,
by which a log that has since been cut or replaced is found out; so it never goes back, even when the rest is cleared,
unless the log was restored from an archive and is of a higher era.

One process has the file at a time: SQLite's exclusive lock is held as long as it is open.
"""

import asyncio
import gc
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

import aiosqlite
import msgspec

from leasehold.events.errors import CorruptSnapshotError, StorageError, StoreInUseError
from leasehold.projections import snapshots
from leasehold.projections.history import IndexRow
from leasehold.projections.rows import Head
from leasehold.projections.state import FOLD_VERSION, State

_SCHEMA: Final = ("store.sql", "store-2.sql")
"""What makes schema 1, and each further one of the one before."""
SCHEMA_VERSION: Final = len(_SCHEMA)
APPLICATION_ID: Final = 0x4C534844
"""`LSHD`, in the file's header: another program's database is not taken for ours."""
LOCK_WAIT_S: Final = 5.0
"""A predecessor that is being stopped gets this long to let go of the file."""
CACHE_KIB: Final = 32 * 1024
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""What the write-ahead log is cut back to after a checkpoint."""

_PUT_HEAD: Final = """
INSERT INTO head (id, ledger_id, sequence, chain, era) VALUES (1, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    ledger_id = excluded.ledger_id, sequence = excluded.sequence, chain = excluded.chain, era = excluded.era
WHERE (excluded.era, excluded.sequence) >= (head.era, head.sequence)
"""
_PUT_ROW: Final = "INSERT OR IGNORE INTO past (kind, name, position) VALUES (?, ?, ?)"
_PUT_SNAPSHOT: Final = """
INSERT OR REPLACE INTO snapshot (id, fold_version, sequence, chain, sha256) VALUES (1, ?, ?, ?, ?)
"""
_PUT_PIECE: Final = "INSERT INTO snapshot_piece (number, body) VALUES (?, ?)"
_DROP_PIECES: Final = "DELETE FROM snapshot_piece"
_GET_POSITIONS: Final = """
SELECT position FROM past WHERE kind = ? AND name = ? AND position > ? ORDER BY position LIMIT ?
"""

_Work = tuple[str, Sequence[Sequence[Any]]]
"""A statement, and the parameters of each time that it is to be run."""


class NotedHead(msgspec.Struct, frozen=True):
    """The last record that was read from a log: which log, which record, its chain hash and its era."""

    ledger_id: str
    sequence: int
    chain: str
    era: int = 0


class FoldStore:
    """One open file. Methods raise StorageError when the disk fails; what they were to write is then wholly absent."""

    def __init__(self, path: Path, database: aiosqlite.Connection) -> None:
        """Use `open`."""
        self.path = path
        self._database = database
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> "FoldStore":
        """Open the file at `path`, or make it (mode 0600).

        Raises:
            StoreInUseError: another process has it open, and still had after `lock_wait_s`.
            StorageError: it cannot be opened, is damaged, not ours, or was written by a newer version.
        """
        async with _disk(path):
            _make_private(path)
            database = await aiosqlite.connect(path, isolation_level=None, timeout=lock_wait_s)
            store = cls(path, database)
            try:
                await store._prepare()
            except BaseException:
                await database.close()
                raise
            return store

    async def _prepare(self) -> None:
        await self._pragma("locking_mode = EXCLUSIVE")
        # The journal's mode is written to the file, so only once it is known to be ours.
        if await self._pragma("application_id") != APPLICATION_ID:
            if await self._pragma("schema_version"):
                raise StorageError(f"{self.path} is another program's database")
            await self._migrate(0)
        version = await self._pragma("user_version")
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise StorageError(f"{self.path} has schema {version}; this build knows {SCHEMA_VERSION}")
        if version < SCHEMA_VERSION:
            await self._migrate(version)
        await self._pragma("journal_mode = WAL")
        await self._pragma("synchronous = NORMAL")
        await self._pragma(f"cache_size = -{CACHE_KIB}")
        await self._pragma(f"journal_size_limit = {WAL_BYTES_MAX}")
        await self._transact([])

    async def _migrate(self, version: int) -> None:
        """From schema `version` (0: nothing yet) to today's, wholly or not at all."""
        folder = resources.files("leasehold.services")
        script = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCHEMA[version:])
        await self._database.executescript(
            f"BEGIN IMMEDIATE; {script}\nPRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )

    async def _pragma(self, text: str) -> int | str | None:
        # Rows left unread would keep the file in use.
        rows = list(await self._database.execute_fetchall(f"PRAGMA {text}"))
        return rows[0][0] if rows else None

    async def close(self) -> None:
        """Let go of the file; a second time does nothing."""
        async with self._writing, _disk(self.path):
            await self._database.close()

    # --- reading ------------------------------------------------------------------------------------------------

    async def head(self) -> NotedHead | None:
        """How far the log has ever been read; `None` if it never was."""
        row = await self._row("SELECT ledger_id, sequence, chain, era FROM head")
        return NotedHead(*row) if row else None

    async def load(self) -> State | None:
        """The state of the snapshot; `None` if there is none, or one of another version of the fold.

        Raises:
            CorruptSnapshotError: it is not what was written; the text names the record that it stood at.
        """
        row = await self._row("SELECT fold_version, sequence, chain, sha256 FROM snapshot")
        if row is None or row[0] != FOLD_VERSION:
            return None
        async with _disk(self.path):
            pieces = await self._database.execute_fetchall("SELECT body FROM snapshot_piece ORDER BY number")
        # The state is still nobody's, so another thread may build it while the loop goes on.
        return await asyncio.to_thread(_restore, row[1], row[2], row[3], [piece[0] for piece in pieces])

    async def positions(self, kind: str, name: str, after: int, limit: int) -> list[int]:
        """Where `name` of `kind` is told of: positions above `after`, lowest first, at most `limit`."""
        async with _disk(self.path):
            rows = await self._database.execute_fetchall(_GET_POSITIONS, (kind, name, after, limit))
            return [row[0] for row in rows]

    async def _row(self, sql: str) -> sqlite3.Row | None:
        async with _disk(self.path):
            return next(iter(await self._database.execute_fetchall(sql)), None)

    # --- writing ------------------------------------------------------------------------------------------------

    async def note(self, head: Head, rows: Iterable[IndexRow] = ()) -> None:
        """Write down that the log was read up to `head`, with the index rows of what was read since the last time.

        Rows that are there already do no harm, and a head below the noted one leaves it as it is.
        """
        await self._transact([(_PUT_ROW, list(rows)), (_PUT_HEAD, [_noted(head)])])

    async def save_snapshot(self, state: State) -> None:
        """Keep the state as it is now; it may move on meanwhile. Rows up to it must have been noted before."""
        frozen = snapshots.freeze(state)
        await self.save_frozen(frozen.head, await encode_gently(frozen))

    async def save_frozen(self, head: Head, pieces: Sequence[bytes]) -> None:
        """Keep the encoded state of `head`, given in pieces, with the hash of the whole, and the head with it."""
        snapshot = (FOLD_VERSION, head.sequence, head.chain, await asyncio.to_thread(_sha256, pieces))
        put_pieces = (_PUT_PIECE, list(enumerate(pieces)))
        await self._transact(
            [(_DROP_PIECES, [()]), put_pieces, (_PUT_SNAPSHOT, [snapshot]), (_PUT_HEAD, [_noted(head)])]
        )

    async def clear(self) -> None:
        """Forget snapshot and index, so that both are built anew; the head stays."""
        await self._transact([("DELETE FROM snapshot", [()]), (_DROP_PIECES, [()]), ("DELETE FROM past", [()])])

    async def _transact(self, works: Sequence[_Work]) -> None:
        async with self._writing, _disk(self.path):
            # A cancellation may have left one open; statements are run in order, so this one meets no other's work.
            await self._database.rollback()
            try:
                await self._database.execute("BEGIN IMMEDIATE")
                for sql, parameters in works:
                    await self._database.executemany(sql, parameters)
                await self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    await self._database.rollback()
                raise


def _noted(head: Head) -> tuple[str, int, str, int]:
    return head.ledger_id, head.sequence, head.chain, head.era


async def encode_gently(frozen: snapshots.Frozen) -> list[bytes]:
    """What `snapshots.encode_state` makes of the state, in pieces, with pauses for the rest of the loop."""
    pieces = []
    for piece in snapshots.encode_pieces(frozen):
        if piece:
            pieces.append(piece)
        await asyncio.sleep(0)
    return pieces


def _restore(sequence: int, chain: str, sha256: str, pieces: Sequence[bytes]) -> State | None:
    if _sha256(pieces) != sha256:
        raise CorruptSnapshotError(f"the snapshot at record {sequence} is not what was written: its hash differs")
    # Nothing that is made here is garbage; looking for some among it takes longer than making it.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        state = snapshots.decode_state(b"".join(pieces))
    except (CorruptSnapshotError, LookupError) as error:
        raise CorruptSnapshotError(f"the snapshot at record {sequence} cannot be read: {error}") from error
    finally:
        if was_enabled:
            gc.enable()
    if state is not None and (state.head.sequence, state.head.chain) != (sequence, chain):
        raise CorruptSnapshotError(f"the snapshot at record {sequence} is of record {state.head.sequence}")
    return state


def _sha256(pieces: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives the files beside it the mode of this one.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


@asynccontextmanager
async def _disk(path: Path) -> AsyncIterator[None]:
    """Turns what SQLite and the file system complain about into errors of ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise StoreInUseError(f"{path} is in use by another process") from error
        raise StorageError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{path} is damaged ({error}); moved away, it is built anew from the log") from error
    except (sqlite3.Error, OSError, OverflowError) as error:
        raise StorageError(f"{path}: {error}") from error
    except ValueError as error:
        # The client's word for a connection that is closed.
        raise StorageError(f"{path} is closed") from error
