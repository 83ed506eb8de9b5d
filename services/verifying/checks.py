"""Checking a whole log: every record in its place, every decision decided again, what must hold in any log, and what
was kept of it elsewhere: by the services that had read it, and in an archive.

A log that lost its end, or was put back to an older one, is in itself flawless. What shows it are the witnesses: what
the services had noted of the log when they read it, and the archive.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, LeaseholdError, StorageError, UnavailableError
from leasehold.projections.auditing import Audit
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from leasehold.projections.state import State
from leasehold.services.archive.chain import tip_of
from leasehold.services.archive.segments import HEAD_FILE
from leasehold.services.ledger.port import Entry, Ledger
from leasehold.services.verifying import witnesses as noted
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.links import YIELD_EVERY, Links, Read, blame, records
from leasehold.services.verifying.witnesses import Witness

Progress = Callable[[int, int], None]
"""Told how many records of how many have been checked."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the check ended. `problem` is empty if nothing was found; `sequence` names the first bad record."""

    records: int
    events: int
    leases: int = 0
    """How many were granted."""
    chain: str
    ledger_id: str
    folded_only: int
    witnesses: tuple[str, ...]
    archived: int = 0
    """So many records stand in the archive, each the same."""
    segments: int = 0
    modelled: int = 0
    """Up to this record the archive's read models are what is built anew; 0: they were not looked at."""
    problem: str = ""
    sequence: int = 0
    help: str = ""
    """What else is known of the problem."""


async def check_ledger(
    ledger: Ledger, witnesses: Sequence[Witness], progress: Progress, archive: ArchiveFiles | None = None
) -> Report:
    """Walk through the whole log, and compare it with the witnesses and the archive. Nothing is written.

    Raises:
        UnavailableError: it cannot be read now.
    """
    last = await ledger.last_sequence()
    era = await _era_of(ledger, last)
    # A log of a higher era was restored since, and may have begun anew before what they had read.
    walk = Walk([witness for witness in witnesses if witness.era >= era])
    beside = _Beside(archive) if archive is not None else None
    try:
        async with contextlib.aclosing(records(ledger, last)) as entries:
            report = await _through(walk, entries, ledger.read, last, progress, beside)
        if beside is not None:
            await beside.finish(last)
            report = beside.judge(report)
    finally:
        if beside is not None:
            await beside.close()
    return report


async def _era_of(ledger: Ledger, last: int) -> int:
    with contextlib.suppress(CorruptLedgerError):
        if last and (body := await ledger.read(last)) is not None:
            return tip_of(last, body).era
    return 0


async def check_archive(archive: ArchiveFiles, progress: Progress) -> Report:
    """Walk through an archive alone, without a bus: its files, and all that is looked at in a log. Nothing is written.

    Raises:
        StoreInUseError: a segment is in use.
    """
    walk = Walk(())
    async with contextlib.aclosing(archive.records()) as entries:
        report = await _through(walk, entries, archive.read, archive.last, progress, None)
    noted = (HEAD_FILE,) if archive.head is not None else ()
    return msgspec.structs.replace(report, witnesses=noted, segments=len(archive.segments))


async def _through(
    walk: "Walk",
    entries: AsyncGenerator[Entry, None],
    read: Read,
    last: int,
    progress: Progress,
    beside: "_Beside | None",
) -> Report:
    try:
        async for entry in entries:
            walk.step(entry.sequence, entry.body)
            if beside is not None:
                await beside.compare(entry)
            if entry.sequence % YIELD_EVERY == 0:
                progress(entry.sequence, last)
                await asyncio.sleep(0)
        walk.finish()
    except CorruptLedgerError as error:
        blamed = await blame(read, walk.links, error)
        return walk.report(str(blamed), blamed.sequence)
    except StorageError as error:
        at = walk.links.sequence + 1
        return walk.report(f"record {at}: {error}", at)
    progress(last, last)
    return walk.report()


class _Beside:
    """An archive that is read in step with a log. What is found in it is kept for the end: the log matters more."""

    def __init__(self, archive: ArchiveFiles) -> None:
        self._archive = archive
        self._entries = archive.records()
        self._same = 0
        self._has_ended = False
        self._problem: CorruptLedgerError | StorageError | None = None

    async def compare(self, entry: Entry) -> None:
        """The archive's next record must be this one, if it has one."""
        body = await self._next()
        if body is None or self._problem is not None:
            return
        if body == entry.body:
            self._same = entry.sequence
        else:
            is_later = tip_of(entry.sequence, entry.body).era > self._archive.done.era
            why = "the log was restored from less than the archive holds" if is_later else "each is flawless by itself"
            self._problem = CorruptLedgerError(f"it is another one than in the log: {why}", sequence=entry.sequence)

    async def finish(self, last: int) -> None:
        """What the archive has behind the last record of the log that was compared."""
        if self._same == last and await self._next() is not None and self._problem is None:
            ends = self._archive.last
            self._problem = CorruptLedgerError(
                f"missing: the log ends at {last}, but the archive goes to {ends}", sequence=last + 1
            )

    async def _next(self) -> bytes | None:
        if self._has_ended:
            return None
        try:
            return (await anext(self._entries)).body
        except StopAsyncIteration:
            self._has_ended = True
        except (CorruptLedgerError, StorageError) as error:
            self._has_ended = True
            self._problem = self._problem or error
        return None

    def judge(self, report: Report) -> Report:
        """The report on the log, with what the archive says."""
        report = msgspec.structs.replace(report, archived=self._same, segments=len(self._archive.segments))
        if report.problem:
            return msgspec.structs.replace(report, help=self._help(report.sequence))
        if self._problem is None:
            return report
        where = f"the archive in {self._archive.directory}: " if isinstance(self._problem, CorruptLedgerError) else ""
        sequence = self._problem.sequence if isinstance(self._problem, CorruptLedgerError) else self._same + 1
        return msgspec.structs.replace(report, problem=f"{where}{self._problem}", sequence=sequence)

    def _help(self, sequence: int) -> str:
        archive = self._archive
        if archive.last >= sequence and (self._problem is None or archive.done.sequence >= sequence):
            return f"the archive in {archive.directory} has record {sequence}; it goes to {archive.last}"
        return ""

    async def close(self) -> None:
        """Read no more of it."""
        await self._entries.aclose()


class Walk:
    """The walk through the records, with what it meets on the way."""

    def __init__(self, witnesses: Sequence[Witness]) -> None:
        self.links = Links()
        self._witnesses = witnesses
        self._by_sequence: dict[int, list[Witness]] = {}
        for witness in witnesses:
            self._by_sequence.setdefault(witness.sequence, []).append(witness)
        self._replay = Replay()
        self._audit = Audit()

    def step(self, sequence: int, body: bytes) -> None:
        """Check one record, decide it again, and hear its witnesses. Raises CorruptLedgerError."""
        self.links.step(sequence, body)
        try:
            record = codec.decode_record(body, sequence)
            difference = self._replay.step(sequence, body, record)
            if difference is None:
                self._audit.step(sequence, record)
        except LeaseholdError:
            raise
        except Exception as error:
            # Events that were never decided may fit nothing: whatever that breaks, the record is at fault.
            raise CorruptLedgerError(f"it does not fit what was before it ({error!r})", sequence=sequence) from error
        if difference is not None:
            raise CorruptLedgerError(f"deciding it again gives something else: {difference}", sequence=sequence)
        if sequence == 1:
            self._check_ledger_id()
        for witness in self._by_sequence.pop(sequence, ()):
            self._compare(witness, self._replay.state)

    def _check_ledger_id(self) -> None:
        ledger_id = self._replay.state.head.ledger_id
        for witness in self._witnesses:
            if witness.sequence and witness.ledger_id != ledger_id:
                raise CorruptLedgerError(noted.other_ledger(ledger_id, witness), sequence=1)

    def _compare(self, witness: Witness, state: State) -> None:
        head = state.head
        if witness.chain != head.chain:
            raise CorruptLedgerError(noted.changed(witness), sequence=head.sequence)
        if witness.state and witness.state != encode_state(state):
            raise CorruptLedgerError(
                f"the state folded up to it is not the one that {witness.name} holds", sequence=head.sequence
            )

    def finish(self) -> None:
        """Witnesses of records that never came. Raises CorruptLedgerError."""
        for sequence in sorted(self._by_sequence):
            if sequence:
                ends = self._replay.state.head.sequence
                raise CorruptLedgerError(noted.cut(ends, self._by_sequence[sequence][0]), sequence=ends + 1)

    def report(self, problem: str = "", sequence: int = 0) -> Report:
        """What was found."""
        head = self._replay.state.head
        return Report(
            records=min(head.sequence, sequence - 1) if sequence else head.sequence,
            events=self._replay.events,
            leases=self._audit.granted,
            chain=head.chain,
            ledger_id=head.ledger_id,
            folded_only=self._replay.folded_only,
            witnesses=tuple(witness.name for witness in self._witnesses if witness.sequence),
            problem=problem,
            sequence=sequence,
        )


async def archive_of(data: Path) -> ArchiveFiles | None:
    """The archive of a data directory, if it has one.

    Raises:
        StorageError: it cannot be read.
    """
    directory = data / "archive"
    try:
        return await ArchiveFiles.open(directory) if directory.is_dir() else None
    except UnavailableError:
        return None
