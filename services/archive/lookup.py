"""One look at the read models: a connection, a place up to which all of it is seen, and where moments are in it."""

import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import aiosqlite
import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnavailableError
from leasehold.events.event_types import Event
from leasehold.events.position import end_of_record, index_of, sequence_of
from leasehold.events.questions import Moment, Reading
from leasehold.events.record import Record, Step
from leasehold.projections.modelrows import ModelsHead
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.models import complaints, head_of, open_to_read

CHECK_STEPS: Final = 10_000
"""After so many steps of SQLite's machine it is looked whether the time is over."""
RECORDS_KEPT_MAX: Final = 64
ALL: Final = ("", "~")
"""Between these all device ids lie."""


class Place(msgspec.Struct, frozen=True):
    """Where a moment is: behind `position`, in a record decided at `at_ns`; and the time that was asked for (`ns`),
    as far as the log goes.
    """

    position: int
    at_ns: int
    ns: int


class Glass:
    """A connection to look through: read only, and for so long only as its deadline says."""

    def __init__(self, path: Path, database: aiosqlite.Connection) -> None:
        """Use `open`."""
        self.path = path
        self.database = database
        self.deadline_s = 0.0

    @classmethod
    async def open(cls, path: Path) -> "Glass":
        """Open the models at `path`.

        Raises:
            StorageError: there are none, or such as this build cannot read.
        """
        glass = cls(path, await open_to_read(path))
        glass.database.row_factory = sqlite3.Row
        await glass.database.set_progress_handler(lambda: time.monotonic() > glass.deadline_s, CHECK_STEPS)
        return glass

    @asynccontextmanager
    async def look(self, ledger: ArchivedLedger, deadline_s: float) -> AsyncIterator["Lookup"]:
        """See the models as they are now, whatever is written meanwhile.

        Raises:
            UnavailableError: the time is over.
            StorageError: they cannot be read.
        """
        self.deadline_s = deadline_s
        with complaints(self.path), _hurry():
            await self.database.execute("BEGIN")
            try:
                yield Lookup(self.database, ledger, await head_of(self.database), deadline_s)
            finally:
                await self.database.rollback()

    async def close(self) -> None:
        """Close it."""
        with complaints(self.path):
            await self.database.close()


@contextmanager
def _hurry() -> Iterator[None]:
    """Turns an interrupted statement into what is said of it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise too_long() from error
        raise


def too_long() -> UnavailableError:
    """What is said when the time is over."""
    return UnavailableError("the answer takes too long: ask for one host or one device, or for a shorter time")


class Lookup:
    """What one question sees."""

    def __init__(
        self, database: aiosqlite.Connection, ledger: ArchivedLedger, head: ModelsHead, deadline_s: float
    ) -> None:
        """Use `Glass.look`."""
        self.head = head
        self.deadline_s = deadline_s
        self._database = database
        self._ledger = ledger
        self._records: dict[int, Record] = {}

    @property
    def as_of(self) -> int:
        """The position up to which the models go."""
        return end_of_record(self.head.sequence) if self.head.sequence else 0

    async def rows(self, sql: str, **parameters: Any) -> list[sqlite3.Row]:
        """The answer of the models."""
        return list(await self._database.execute_fetchall(sql, parameters))

    def check_time(self) -> None:
        """Raises UnavailableError when the time is over: for work outside of SQLite."""
        if time.monotonic() > self.deadline_s:
            raise too_long()

    # --- what is answered ---------------------------------------------------------------------------------------

    def reading(self, at: Place, since: Place | None = None, **fields: Any) -> Reading:
        """An answer about a place, or about the time between two."""
        return Reading(
            outcome="ok",
            as_of=self.as_of,
            at_position=at.position,
            at_ns=at.at_ns,
            since_position=since.position if since else 0,
            since_ns=since.at_ns if since else 0,
            **fields,
        )

    def not_found(self, at: Place, message: str) -> Reading:
        """Nothing was known of it at that place."""
        return msgspec.structs.replace(self.reading(at), outcome="not_found", message=message)

    # --- places -------------------------------------------------------------------------------------------------

    async def place(self, moment: Moment) -> Place:
        """Where `moment` is; without one, the end. A time behind the end is the end.

        Raises:
            UnavailableError: a position that has not been read yet.
        """
        if moment.position:
            sequence = sequence_of(moment.position)
            if sequence > self.head.sequence:
                said = f"position {moment.position} has not been read yet: the archive goes up to {self.as_of}"
                raise UnavailableError(said)
            at_ns = await self._decided_at(sequence)
            return Place(moment.position, at_ns, at_ns)
        if not moment.ns or moment.ns >= self.head.decided_at_ns:
            return Place(self.as_of, self.head.decided_at_ns, self.head.decided_at_ns)
        sequence, at_ns = await self._ledger.at_or_before(moment.ns)
        if not sequence:
            return Place(0, 0, moment.ns)
        return Place(end_of_record(sequence), at_ns, moment.ns)

    async def span(self, since: Moment, to: Moment) -> tuple[Place, Place]:
        """The places of two moments; `since` no moment: the beginning.

        Raises:
            InvalidInputError: the first lies behind the second.
            UnavailableError: a position that has not been read yet.
        """
        begins = await self._decided_at(1)
        first = await self.place(since) if since.position or since.ns else Place(0, 0, begins)
        last = await self.place(to)
        if first.position > last.position or first.ns > last.ns:
            raise InvalidInputError("it lies behind `to`", field="since")
        return Place(first.position, first.at_ns, max(first.ns, begins)), last

    async def _decided_at(self, sequence: int) -> int:
        if not sequence or not self.head.sequence:
            return 0
        return (await self.record(sequence)).decided_at_ns

    # --- records ------------------------------------------------------------------------------------------------

    async def record(self, sequence: int) -> Record:
        """The record at `sequence`, which the models have.

        Raises:
            CorruptLedgerError: it is not in the archive.
            StorageError: the archive cannot be read.
        """
        self.check_time()
        if sequence not in self._records:
            body = await self._ledger.read(sequence)
            if body is None:
                raise CorruptLedgerError("the models have it, but the archive does not", sequence=sequence)
            if len(self._records) >= RECORDS_KEPT_MAX:
                del self._records[next(iter(self._records))]
            self._records[sequence] = codec.decode_record(body, sequence)
        return self._records[sequence]

    async def event(self, position: int) -> tuple[Record, Step, Event]:
        """The event at `position`, which the models have; its record and its step. Raises as `record` does."""
        record = await self.record(sequence_of(position))
        index = index_of(position)
        for step in record.steps:
            if index < len(step.events):
                return record, step, step.events[index]
            index -= len(step.events)
        raise CorruptLedgerError(f"the models have its event {index_of(position)}", sequence=sequence_of(position))


def range_of(host: str) -> tuple[str, str]:
    """Between which texts the device ids of a host lie; of all hosts, if it is empty."""
    # "0" comes right behind "/".
    return (f"{host}/", f"{host}0") if host else ALL
