"""Deciding a whole log again, record by record, until something else comes out than what stands there."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

import msgspec

from leasehold.events.errors import CorruptLedgerError, InvalidInputError, LeaseholdError
from leasehold.events.record import event_count
from leasehold.projections import evolve
from leasehold.projections.replay import Difference, Replay
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.ledger.port import Entry, Ledger
from leasehold.services.verifying.checks import Progress
from leasehold.services.verifying.links import YIELD_EVERY, Links, blame, records


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended. `problem` is empty if every decision came out as it stands; `sequence` names the first bad record.

    `difference`: where a record is as it was written, but another decision comes out.
    """

    records: int
    """Gone through, from the beginning of the log."""
    events: int
    decided: int
    """Records that were decided again."""
    folded_only: int
    """Records of rules that this build does not carry, or before the first one that was asked for."""
    ledger_id: str
    chain: str
    took_ms: int = 0
    problem: str = ""
    sequence: int = 0
    difference: Difference | None = None


async def replay(ledger: Ledger, progress: Progress, *, first: int = 1, last: int = 0) -> Replayed:
    """Go through a log from its beginning, and decide again the records from `first` to `last` (0: to its end).

    Raises:
        InvalidInputError: the log has no such records.
        UnavailableError: it cannot be read now.
        StorageError: it cannot be read.
    """
    end = await ledger.last_sequence()
    if not 1 <= first <= (last or end) <= end:
        raise InvalidInputError(f"{first} to {last or end}; the log has records 1 to {end}", field="record")
    end = last or end
    walk = _Walk(first)
    try:
        async with contextlib.aclosing(_entries(ledger, end)) as entries:
            async for entry in entries:
                if (difference := walk.step(entry.sequence, entry.body)) is not None:
                    return walk.report(str(difference), entry.sequence, difference)
                if entry.sequence % YIELD_EVERY == 0:
                    progress(entry.sequence, end)
                    await asyncio.sleep(0)
    except CorruptLedgerError as error:
        blamed = await blame(ledger.read, walk.links, error)
        return walk.report(str(blamed), blamed.sequence)
    progress(end, end)
    return walk.report()


async def _entries(ledger: Ledger, last: int) -> AsyncGenerator[Entry, None]:
    if not isinstance(ledger, ArchivedLedger):
        async for entry in records(ledger, last):
            yield entry
        return
    async with contextlib.aclosing(ledger.follow_to_end()) as batches:
        async for batch in batches:
            for entry in batch:
                if entry.sequence > last:
                    return
                yield entry


class _Walk:
    """The way through the records."""

    def __init__(self, first: int) -> None:
        self.links = Links()
        self._first = first
        self._replay = Replay()
        self._folded_before = 0
        self._begun_s = time.monotonic()

    def step(self, sequence: int, body: bytes) -> Difference | None:
        """One record: its place, and unless it stands before the first one that was asked for, what comes out of it.

        Raises:
            CorruptLedgerError: it is not in its place, or cannot follow there.
        """
        self.links.step(sequence, body)
        try:
            if sequence >= self._first:
                return self._replay.step(sequence, body)
            before = evolve.fold(self._replay.state, sequence, body)
        except LeaseholdError:
            raise
        except Exception as error:
            # Events that were never decided may fit nothing: whatever that breaks, the record is at fault.
            raise CorruptLedgerError(f"it does not fit what was before it ({error!r})", sequence=sequence) from error
        self._replay.events += event_count(before)
        self._folded_before += 1
        return None

    def report(self, problem: str = "", sequence: int = 0, difference: Difference | None = None) -> Replayed:
        """What was found."""
        head = self._replay.state.head
        passed = min(head.sequence, sequence - 1) if sequence else head.sequence
        folded_only = self._folded_before + self._replay.folded_only
        return Replayed(
            records=passed,
            events=self._replay.events,
            decided=max(0, passed - folded_only),
            folded_only=folded_only,
            ledger_id=head.ledger_id,
            chain=head.chain,
            took_ms=round((time.monotonic() - self._begun_s) * 1_000),
            problem=problem,
            sequence=sequence,
            difference=difference,
        )
