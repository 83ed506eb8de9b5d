"""An archive read as a ledger: offline, without a bus, also while another process writes to it.

It is read as it stands. Whether it is what the ledger said, `verify` checks; what is missing is found here, too.
"""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from leasehold.events.errors import CorruptLedgerError, InvalidInputError
from leasehold.events.questions import ArchiveView
from leasehold.projections.appending import Said
from leasehold.services.archive.chain import Tip, tip_of
from leasehold.services.archive.segments import (
    End,
    Head,
    Meta,
    Segment,
    day_of,
    end_of,
    first_row,
    meta_of,
    read_head,
    reading,
    rows_behind,
    segments_in,
)
from leasehold.services.ledger.port import Entry

POLL_S_MIN: Final = 0.05
POLL_S_MAX: Final = 0.5
"""How often is looked for news at the end of an archive that somebody else may be writing."""

_BEFORE: Final = """
SELECT sequence, decided_at_ns FROM records WHERE decided_at_ns <= ? ORDER BY decided_at_ns DESC, sequence DESC LIMIT 1
"""


class ArchivedLedger:
    """A handle on the archive in a directory; see `port.Ledger`. It never writes, and holds no file open.

    Every method raises `StorageError` where the archive cannot be read, and `CorruptLedgerError` where a segment is
    damaged; both name the file.
    """

    def __init__(self, directory: Path) -> None:
        """Nothing is read yet; an empty directory is an archive without records."""
        self.directory = directory
        self._closed = False
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Let all who follow through this handle look at once: there are new records."""
        self._news.set()

    def segments(self) -> list[Segment]:
        """The files of the archive, in order."""
        return segments_in(self.directory)

    def noted_head(self) -> Head | None:
        """How far the archive has ever gone, as it is noted beside the segments, and a moment ago at most."""
        return read_head(self.directory)

    async def meta(self, segment: Segment) -> Meta:
        """What a segment says of itself."""
        async with reading(segment) as database:
            return await meta_of(database, segment)

    async def end(self) -> End | None:
        """The last record; `None` if there is none."""
        for segment in reversed(self.segments()):
            async with reading(segment) as database:
                end = await end_of(database)
            if end is not None:
                return end
        return None

    async def view(self, *, modelled: int = 0, trouble: str = "") -> ArchiveView:
        """How it stands with it; how far read models go, and what is wrong, is told from outside."""
        found = self.segments()
        body = await self.read(end.sequence) if (end := await self.end()) else None
        tip = tip_of(end.sequence, body) if end and body else Tip()
        return ArchiveView(
            ledger_id=tip.ledger_id,
            era=tip.era,
            sequence=tip.sequence,
            chain=tip.chain,
            decided_at_ns=tip.decided_at_ns,
            segments=len(found),
            bytes=sum(segment.path.stat().st_size for segment in found),
            modelled=modelled,
            trouble=trouble,
        )

    async def last_sequence(self) -> int:
        """See `port.Ledger`."""
        end = await self.end()
        return end.sequence if end else 0

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        """See `port.Ledger`; here it is always refused.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError("an archive is only read", field="ledger")

    async def read(self, sequence: int) -> bytes | None:
        """See `port.Ledger`."""
        assert sequence >= 1, sequence
        segments = self.segments()
        segment = _holding(segments, sequence)
        if segment is None:
            if segments:
                raise CorruptLedgerError(f"missing; the archive begins at {segments[0].first}", sequence=sequence)
            return None
        async with reading(segment) as database:
            row = await first_row(database, "SELECT body FROM records WHERE sequence = ?", [sequence])
            end = None if row else await end_of(database)
        if row is not None:
            body: bytes = row[0]
            return body
        if segment is not segments[-1] or (end is not None and end.sequence > sequence):
            raise CorruptLedgerError(f"missing in segment {segment.name}", sequence=sequence)
        return None

    async def at_or_before(self, ns: int) -> tuple[int, int]:
        """The last record that was decided at `ns` (since 1970, UTC) or before, and when; (0, 0) if none was."""
        day = day_of(ns)
        for segment in reversed(self.segments()):
            if segment.date > day:
                continue
            async with reading(segment) as database:
                row = await first_row(database, _BEFORE, [ns])
            if row is not None:
                return row[0], row[1]
        return 0, 0

    async def follow(self, after: int) -> AsyncGenerator[list[Entry], None]:
        """See `port.Ledger`. News come within half a second, or at once behind `wake`."""
        pause_s = POLL_S_MIN
        await self._check_reach(after)
        while not self._closed:
            self._news.clear()
            entries = await self._next(after)
            if entries:
                yield entries
                after, pause_s = entries[-1].sequence, POLL_S_MIN
            else:
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, POLL_S_MAX)

    async def follow_to_end(self, after: int = 0) -> AsyncGenerator[list[Entry], None]:
        """As `follow`, but ends behind the last record that there is now."""
        await self._check_reach(after)
        while entries := await self._next(after):
            yield entries
            after = entries[-1].sequence

    async def close(self) -> None:
        """See `port.Ledger`."""
        self._closed = True
        self._news.set()

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def _check_reach(self, after: int) -> None:
        last = await self.last_sequence()
        if last < after:
            raise CorruptLedgerError(
                f"the archive ends at {last}, but {after} was read from it before", sequence=last + 1
            )

    async def _next(self, after: int) -> list[Entry]:
        """The next records behind `after`, without gaps; none at the end."""
        # Listed before it is read: a segment that another one follows is complete.
        segments = self.segments()
        segment = _holding(segments, after + 1)
        if segment is None:
            if segments:
                raise CorruptLedgerError(f"missing; the archive begins at {segments[0].first}", sequence=after + 1)
            return []
        async with reading(segment) as database:
            entries = [Entry(row.sequence, row.body) for row in await rows_behind(database, after)]
        for index, entry in enumerate(entries):
            if entry.sequence != after + 1 + index:
                raise CorruptLedgerError(f"missing in segment {segment.name}", sequence=after + 1 + index)
        if not entries and segment is not segments[-1]:
            raise CorruptLedgerError(f"missing behind segment {segment.name}", sequence=after + 1)
        return entries


def _holding(segments: list[Segment], sequence: int) -> Segment | None:
    """The segment in which `sequence` stands, if it stands anywhere."""
    before = [segment for segment in segments if segment.first <= sequence]
    return before[-1] if before else None
