"""The read models beside an archive: whether they are what is built anew from it, row by row."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiosqlite
import msgspec

from leasehold.events.errors import UnavailableError
from leasehold.services.archive import models
from leasehold.services.archive.keeper import ModelsKeeper
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.rebuilding import MODELS_FILE
from leasehold.services.ledger.port import Entry


class ModelsReport(msgspec.Struct, frozen=True):
    """Up to which record the models go, and the first row that is not what comes out of the archive, if one is not."""

    sequence: int
    problem: str = ""


async def check_models(directory: Path) -> ModelsReport:
    """Build the models of the archive in `directory` anew, elsewhere, and compare: every table, every row.

    The archive may be in use; it should have been checked before. Nothing of it is written.

    Raises:
        UnavailableError: it has no models.
        CorruptLedgerError: the archive is damaged.
        StorageError: something cannot be read, or there is no room for what is built.
    """
    path = directory / MODELS_FILE
    if not path.exists():
        raise UnavailableError(f"{directory} has no read models")
    async with working_directory(directory) as folder:
        kept, anew = folder / "kept.sqlite", folder / "anew.sqlite"
        with models.complaints(path):
            await _copy(path, kept)
            head = await models.noted_head(kept)
        sequence = head.sequence if head is not None else 0
        keeper = ModelsKeeper(_UpTo(directory, sequence), anew)
        try:
            await keeper.start()
            await keeper.catch_up()
        finally:
            await keeper.stop()
        with models.complaints(path):
            return ModelsReport(sequence, await _difference(kept, anew))


@asynccontextmanager
async def working_directory(beside: Path) -> AsyncIterator[Path]:
    """A new directory on the same disk, if that can be written to, for as long as it is needed."""
    folder = _made(beside)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _made(beside: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="leasehold-verify-", dir=beside.absolute().parent))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="leasehold-verify-"))


async def _copy(source: Path, target: Path) -> None:
    """A copy of one moment, also of a file that is written to."""
    database = await models.open_to_read(source)
    try:
        async with aiosqlite.connect(target) as copy:
            await database.backup(copy)
    finally:
        await database.close()


class _UpTo(ArchivedLedger):
    """The beginning of an archive, up to a record."""

    def __init__(self, directory: Path, last: int) -> None:
        super().__init__(directory)
        self._last = last

    async def follow_to_end(self, after: int = 0) -> AsyncGenerator[list[Entry], None]:
        """See `ArchivedLedger`."""
        if after >= self._last:
            return
        async with aclosing(super().follow_to_end(after)) as batches:
            async for batch in batches:
                yield [entry for entry in batch if entry.sequence <= self._last]
                if batch[-1].sequence >= self._last:
                    return


async def _difference(kept: Path, anew: Path) -> str:
    """The first row that stands only in one of both, in words; empty: there is none."""
    async with aiosqlite.connect(kept, isolation_level=None) as database:
        await database.execute("ATTACH ? AS anew", [str(anew)])
        tables, wanted = await _tables(database, "main"), await _tables(database, "anew")
        if tables != wanted:
            return f"{MODELS_FILE} has the tables {', '.join(tables)}; built anew are {', '.join(wanted)}"
        for table in wanted:
            for one, other, said in (("main", "anew", "does not come out of"), ("anew", "main", "is missing, out of")):
                sql = f"SELECT * FROM {one}.{table} EXCEPT SELECT * FROM {other}.{table} LIMIT 1"  # noqa: S608 - ours
                row = next(iter(await database.execute_fetchall(sql)), None)
                if row is not None:
                    return f"{MODELS_FILE}, table {table}: {_shown(tuple(row))} {said} the archive"
    return ""


async def _tables(database: aiosqlite.Connection, schema: str) -> list[str]:
    sql = f"SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' ORDER BY name"  # noqa: S608 - ours
    return [name for (name,) in await database.execute_fetchall(sql)]


def _shown(row: tuple[object, ...]) -> str:
    text = ", ".join(str(value) for value in row)
    return f"({text[:200]}…)" if len(text) > 200 else f"({text})"
