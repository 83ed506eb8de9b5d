"""The files of an archive, looked at closely: each row, each segment, how the segments hang together, and the note.

SQLite's own means are not trusted: whoever can write a file can drop its triggers. What is compared is the bytes of
each record with the hash that was kept with them, that with the chain, the segment with the one before, and the schema
with the one that this build makes.
"""

import contextlib
import functools
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import aiosqlite

from leasehold.events.errors import CorruptLedgerError, StorageError, UnavailableError
from leasehold.events.record import chain_hash
from leasehold.services.archive import segments
from leasehold.services.archive.chain import Tip, tip_of
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import Head, Segment
from leasehold.services.ledger.port import Entry
from leasehold.services.verifying.links import Links, blame

BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
_FETCHED: Final = 32
"""Rows that are fetched at once; a record may be large."""
_ROWS: Final = "SELECT sequence, decided_at_ns, chain, body FROM records WHERE sequence >= ? ORDER BY sequence"
_ROW: Final = "SELECT sequence, decided_at_ns, chain, body FROM records WHERE sequence = ?"
_COUNT: Final = "SELECT count(*) FROM records"
_COUNT_TO: Final = "SELECT count(*) FROM records WHERE sequence <= ?"
_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"

_Row = Sequence[Any]


class ArchiveFiles:
    """An archive as it stands in a directory, also while it is written to: up to the record that it then ended with."""

    def __init__(self, directory: Path) -> None:
        """Use `open`."""
        self.directory = directory
        self.segments: list[Segment] = []
        self.head: Head | None = None
        """How far it had gone, as it is noted beside the segments."""
        self.last = 0
        """The sequence of its last record when it was opened; 0: that cannot be read."""
        self.done = Tip()
        """The last record that was looked at."""
        self._ledger = ArchivedLedger(directory)
        self._links = Links()
        self._ledger_id = ""
        self._cluster = ""

    @classmethod
    async def open(cls, directory: Path) -> "ArchiveFiles":
        """Look which files there are.

        Raises:
            UnavailableError: there are none.
            StorageError: they cannot be read.
        """
        files = cls(directory)
        _check_there(directory)
        # The note before the files: it is behind them while they are written.
        files.head = segments.read_head(directory)
        files.segments = segments.segments_in(directory)
        if not files.segments and files.head is None:
            inside = directory / "archive"
            hint = f"; {inside} has some" if inside.is_dir() and segments.segments_in(inside) else ""
            raise UnavailableError(f"{directory} holds no segments of an archive{hint}")
        # If it is damaged there, the walk through the records says so better.
        with contextlib.suppress(CorruptLedgerError, StorageError):
            files.last = await files._ledger.last_sequence()
        return files

    async def read(self, sequence: int) -> bytes | None:
        """One record, as `Ledger.read` does."""
        return await self._ledger.read(sequence)

    async def records(self) -> AsyncGenerator[Entry, None]:
        """All records in order, each looked at.

        Raises:
            CorruptLedgerError: the first record or segment that is not as it was, by name.
            StorageError: a segment cannot be read.
        """
        for index, segment in enumerate(self.segments):
            await self._begin(segment, self.segments[index - 1].name if index else "")
            while rows := await self._rows(segment):
                for row in rows:
                    try:
                        entry = self._take(segment, row)
                    except CorruptLedgerError as error:
                        raise await self._blamed(segment, error) from error
                    yield entry
            # A last one without records was begun by somebody who was killed then.
            if self.done.sequence < segment.first and segment is not self.segments[-1]:
                raise CorruptLedgerError(f"missing: segment {segment.name} is empty", sequence=segment.first)
            await self._finish(segment)
        self._check_head()

    async def _begin(self, segment: Segment, previous: str) -> None:
        """The segment and its place behind the one before."""
        expected = self.done.sequence + 1
        if segment.first != expected:
            what = f"segment {segment.name} begins at {segment.first}"
            where = f"{previous} ends at {expected - 1}" if previous else "no segment is before it"
            if segment.first > expected:
                raise CorruptLedgerError(f"missing: {what}, but {where}", sequence=expected)
            raise CorruptLedgerError(f"{what}, but {where}: one of both is another's", sequence=segment.first)
        async with segments.reading(segment) as database:
            await _check_schema(database, segment)
            meta = await segments.meta_of(database, segment)
        said = (meta.first, meta.follows, meta.previous)
        if said != (segment.first, self.done.chain, previous):
            raise CorruptLedgerError(
                f"segment {segment.name} says that it begins with record {meta.first} behind {meta.follows[:12]}… in "
                f"{meta.previous or 'no segment'}; before it is {self.done.chain[:12]}… in {previous or 'no segment'}",
                sequence=segment.first,
            )
        self._ledger_id, self._cluster = self._ledger_id or meta.ledger_id, self._cluster or meta.cluster
        if (meta.ledger_id, meta.cluster) != (self._ledger_id, self._cluster):
            raise CorruptLedgerError(
                f"segment {segment.name} is of ledger {meta.ledger_id} (cluster {meta.cluster}), the one before of "
                f"{self._ledger_id} ({self._cluster})",
                sequence=segment.first,
            )

    async def _rows(self, segment: Segment) -> list[_Row]:
        """The next ones of the segment, up to a bound; none behind its last one."""
        found: list[_Row] = []
        size = 0
        try:
            async with (
                segments.reading(segment) as database,
                database.execute(_ROWS, [max(segment.first, self.done.sequence + 1)]) as cursor,
            ):
                while size < BATCH_BYTES_MAX and (rows := await cursor.fetchmany(_FETCHED)):
                    found += rows
                    size += sum(len(row[3]) for row in rows if isinstance(row[3], bytes))
        except CorruptLedgerError as error:
            raise await self._unreadable(segment, error) from error
        return [row for row in found if not self.last or row[0] <= self.last]

    async def _unreadable(self, segment: Segment, error: CorruptLedgerError) -> CorruptLedgerError:
        """The record, if there is one, at which reading the segment comes to nothing."""
        sequence = self.done.sequence + 1
        while True:
            try:
                async with segments.reading(segment) as database:
                    row = await segments.first_row(database, _ROW, [sequence])
                if row is None:
                    return CorruptLedgerError(_without_record(error), sequence=sequence)
                self._take(segment, row)
            except CorruptLedgerError as worse:
                said = _without_record(worse)
                return CorruptLedgerError(f"cannot be read: {said}" if "damaged" in said else said, sequence=sequence)
            sequence += 1

    def _take(self, segment: Segment, row: _Row) -> Entry:
        """Look at the next row."""
        sequence, decided_at_ns, chain, body = row
        where = f"in segment {segment.name}"
        expected = self.done.sequence + 1
        if sequence != expected:
            raise CorruptLedgerError(f"missing {where}: the next one there is {sequence}", sequence=expected)
        if not isinstance(body, bytes) or not isinstance(chain, bytes):
            raise CorruptLedgerError(f"{where} it is no record", sequence=sequence)
        if chain_hash(body) != chain.hex():
            raise CorruptLedgerError(
                f"{where} its bytes have the hash {chain_hash(body)[:12]}…, but kept with them was "
                f"{chain.hex()[:12]}…: one of both was changed",
                sequence=sequence,
            )
        try:
            self._links.step(sequence, body)
            done = tip_of(sequence, body)
        except CorruptLedgerError as error:
            raise CorruptLedgerError(f"{where}, {_without_record(error)}", sequence=sequence) from error
        if decided_at_ns != done.decided_at_ns:
            raise CorruptLedgerError(f"{where} it is filed under another time than it says", sequence=sequence)
        if done.ledger_id != self._ledger_id:
            raise CorruptLedgerError(f"{where}, which is of another ledger", sequence=sequence)
        if sequence == segment.first and segment.date != segments.day_of(decided_at_ns):
            raise CorruptLedgerError(f"{where}, although it was decided on another day", sequence=sequence)
        head = self.head
        if head is not None and head.sequence == sequence and (head.chain, head.era) != (done.chain, done.era):
            raise CorruptLedgerError(f"{where} it is not the one that {segments.HEAD_FILE} notes", sequence=sequence)
        self.done = done
        return Entry(sequence, body)

    async def _blamed(self, segment: Segment, error: CorruptLedgerError) -> CorruptLedgerError:
        """The error of a row, with the record that is at fault if it is the one before, and with the segment."""
        if error.sequence != self._links.refused:
            return error
        blamed = await blame(self.read, self._links, error)
        at = self.segments.index(segment)
        name = self.segments[at - (blamed.sequence < segment.first)].name
        return CorruptLedgerError(f"in segment {name}, {_without_record(blamed)}", sequence=blamed.sequence)

    async def _finish(self, segment: Segment) -> None:
        """That a segment holds nothing but what was read from it, and that its indexes say so."""
        async with segments.reading(segment) as database:
            if segment is self.segments[-1]:
                # It may grow meanwhile.
                row = await segments.first_row(database, _COUNT_TO, [self.done.sequence])
            else:
                row = await segments.first_row(database, _COUNT)
            found = await segments.pragma(database, "integrity_check(1)")
        if row is None or row[0] != max(0, self.done.sequence + 1 - segment.first):
            raise CorruptLedgerError(f"segment {segment.name} holds records of other places", sequence=segment.first)
        if found != "ok":
            raise CorruptLedgerError(f"segment {segment.name} is damaged ({found})", sequence=segment.first)

    def _check_head(self) -> None:
        head, done = self.head, self.done
        if head is None:
            return
        if head.sequence > done.sequence:
            raise CorruptLedgerError(
                f"missing: the archive ends at {done.sequence}, but {segments.HEAD_FILE} notes that it went to "
                f"{head.sequence}",
                sequence=done.sequence + 1,
            )
        if head.ledger_id != done.ledger_id or head.sequence < 1:
            said = f"{segments.HEAD_FILE} notes record {head.sequence} of ledger {head.ledger_id}"
            raise CorruptLedgerError(said, sequence=done.sequence)


def _check_there(directory: Path) -> None:
    if not directory.is_dir():
        raise UnavailableError(f"{directory} is no directory; an archive is one")


async def _check_schema(database: aiosqlite.Connection, segment: Segment) -> None:
    """That the segment has the tables and triggers that it was made with, and nothing else."""
    found = {tuple(row) for row in await database.execute_fetchall(_SCHEMA)}
    for row in sorted(_schema() - found, key=str):
        raise CorruptLedgerError(
            f"segment {segment.name} is not as it was made: its {row[0]} {row[1]} is changed or gone",
            sequence=segment.first,
        )
    for row in sorted(found - _schema(), key=str):
        raise CorruptLedgerError(
            f"segment {segment.name} is not as it was made: it has a {row[0]} {row[1]}", sequence=segment.first
        )


@functools.cache
def _schema() -> frozenset[tuple[Any, ...]]:
    script = resources.files("leasehold.services.archive").joinpath("archive.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(script)
        return frozenset(tuple(row) for row in database.execute(_SCHEMA))


def _without_record(error: CorruptLedgerError) -> str:
    return str(error).removeprefix(f"record {error.sequence}: ")
