"""Reads the ledger from a snapshot on and stays with it: the state, for every service that folds.

A log that is not the one that was read before is never read on: `start` refuses it and names the first record that does
not fit; unless it was restored from an archive, which its era says: then all is built anew. A snapshot that is damaged,
or of another version of the fold, is built anew from the log, if that is sound.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

from leasehold.events import codec, limits
from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError, LeaseholdError, UnavailableError
from leasehold.events.event_types import Event
from leasehold.events.position import end_of_record, sequence_of
from leasehold.events.record import chain_hash
from leasehold.projections import evolve
from leasehold.projections.history import IndexRow, index_rows
from leasehold.projections.rows import Head
from leasehold.projections.snapshots import freeze
from leasehold.projections.state import State
from leasehold.services.ledger.port import Entry, Ledger, last_beyond_doubt
from leasehold.services.store import FoldStore, NotedHead, encode_gently

_log: Final = logging.getLogger(__name__)

SLICE_NS: Final = 4_000_000
"""Folding lets the rest of the loop go on after this long; a record of the largest kind takes 10 ms more."""
NOTE_S: Final = limits.HEAD_NOTE_MS / 1_000
UNNOTED_ROWS_MAX: Final = 50_000
"""Index rows that may wait for the disk; folding waits for it then."""
SNAPSHOT_SHARE: Final = 20
"""A snapshot that took a second is followed by another after this many at the earliest."""
PROOF_S: Final = 10.0
"""How long `start` takes at most to go over what has been read since the snapshot; behind that it goes on by itself."""
SAVE_POLL_S: Final = 1.0
END_TRIES: Final = 5
END_TRY_S: Final = 1.0


class LedgerReader:
    """The state of one ledger, kept up to date. `start` it once, and `stop` it in the end."""

    def __init__(self, ledger: Ledger, store: FoldStore) -> None:
        """Both stay their owner's, and must be closed after `stop`."""
        self.caught_up = asyncio.Event()
        """The end that the log had at the start has been reached."""
        self.ended = asyncio.Event()
        """Nothing is read any more: see `failure`, or `stop` was called."""
        self.failure: LeaseholdError | None = None
        """Why reading has ended by itself. The state may then lie within a record and must not be used."""
        self.goal = 0
        """The last record that the log had at the start."""
        self._ledger = ledger
        self._store = store
        self._state = State()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._unnoted = _Unnoted()
        self._anchor = 0
        self._vouched = 0
        self._noted = 0
        self._saved = 0
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        self._keeping = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def state(self) -> State:
        """The state behind the last record read. It changes under the reader's hands, between two awaits at most."""
        return self._state

    # --- beginning and end --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the snapshot, see that the log is still the one it was made of, and begin to follow.

        Raises:
            CorruptLedgerError: the log is shorter or another than the one that was read before; the first record that
                is wrong is named, and nothing is changed.
            StorageError: the store cannot be read.
            UnavailableError: the log cannot be read now; `start` may be tried again.
        """
        noted = await self._store.head()
        state = await self._load()
        try:
            self.goal = await self._check_log(noted, state.head if state else None)
        except CorruptLedgerError as error:
            if not await self._was_restored(noted):
                raise
            _log.warning("the log was restored from an archive, and all is built anew from it: %s", error)
            self.goal, state, noted = await self._ledger.last_sequence(), None, None
        if state is None:
            if noted is not None:
                _log.warning("%s: everything is built anew from the log", self._store.path)
            await self._store.clear()
            state = State()
        self._state = state
        self._anchor = self._noted = self._saved = state.head.sequence
        self._vouched = noted.sequence if noted else 0
        self._advanced()
        self._tasks = [asyncio.create_task(self._guard(work)) for work in (self._follow, self._note, self._save)]
        if self._anchor:
            await self.wait_for(end_of_record(self._vouched), PROOF_S)
            if self.failure is not None:
                await self.stop()
                raise self.failure

    async def _load(self) -> State | None:
        try:
            return await self._store.load()
        except CorruptSnapshotError as error:
            _log.warning("%s: %s", self._store.path, error)
            return None

    async def _check_log(self, noted: NotedHead | None, snapshot: Head | None) -> int:
        """Compare the log with what was read of it before; its last sequence."""
        if noted is None or not noted.sequence:
            return await self._ledger.last_sequence()
        last = await last_beyond_doubt(self._ledger, noted.sequence)
        if last < noted.sequence:
            raise CorruptLedgerError(
                f"the log ends at {last}, but record {noted.sequence} was read from it before", sequence=last + 1
            )
        first = await self._read(1)
        ledger_id = codec.decode_record(first, 1).ledger_id
        if ledger_id != noted.ledger_id:
            raise CorruptLedgerError(
                f"of ledger {ledger_id}, but {self._store.path} is of ledger {noted.ledger_id}", sequence=1
            )
        known = snapshot.sequence if snapshot else 0
        if snapshot is not None and known < noted.sequence:
            await self._check_record(known, snapshot.chain, known=0)
        await self._check_record(noted.sequence, noted.chain, known=known)
        return last

    async def _was_restored(self, noted: NotedHead | None) -> bool:
        """Whether a log that is not as it was noted is a later era of the same ledger."""
        last = await self._ledger.last_sequence()
        if noted is None or not last:
            return False
        record = codec.decode_record(await self._read(last), last)
        return record.ledger_id == noted.ledger_id and record.era > noted.era

    async def _check_record(self, sequence: int, chain: str, *, known: int) -> None:
        found = chain_hash(await self._read(sequence))
        if found != chain:
            since = f"; record {known} is as it was" if known else ""
            raise CorruptLedgerError(
                f"its hash is {found[:12]}…, but {chain[:12]}… was read there before{since}", sequence=sequence
            )

    async def _read(self, sequence: int) -> bytes:
        body = await self._ledger.read(sequence)
        if body is None:
            raise CorruptLedgerError("it is not there any more", sequence=sequence)
        return body

    async def stop(self) -> None:
        """End reading, and keep what has been read. A second time does nothing.

        Raises:
            StorageError: the disk does not take it.
        """
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await _end(task)
        self._end_waiting()
        if tasks and self.failure is None:
            await self._note_now()
            if self._state.head.sequence > self._saved:
                await self._store.save_snapshot(self._state)

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one of the tasks; its failure ends them all."""
        try:
            await work()
        except LeaseholdError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, readers must hear of it instead of waiting
            _log.exception("reading the ledger has failed")
            self._fail(CorruptLedgerError(f"it cannot be read: {error!r}", sequence=self._state.head.sequence + 1))

    def _fail(self, error: LeaseholdError) -> None:
        if self.failure is None and not self._stopping.is_set():
            _log.error("reading the ledger has stopped: %s", error)
            self.failure = error
        self._end_waiting()

    # --- following ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with aclosing(self._ledger.follow(self._state.head.sequence)) as batches:
            async for batch in batches:
                begun_ns = time.monotonic_ns()
                for entry in batch:
                    if self._stopping.is_set():
                        return
                    try:
                        evolve.fold(self._state, entry.sequence, entry.body, self._unnoted.add)
                    except CorruptLedgerError as error:
                        raise await self._blame(entry, error) from None
                    if time.monotonic_ns() - begun_ns > SLICE_NS:
                        await self._breathe()
                        begun_ns = time.monotonic_ns()
                await self._breathe()
        if not self._stopping.is_set():
            raise UnavailableError("the ledger was closed under its reader")

    async def _breathe(self) -> None:
        """Tell those who wait how far it is, and let the others of the loop, and the disk, keep up."""
        self._advanced()
        if self._unnoted.count > UNNOTED_ROWS_MAX:
            await self._note_now()
        await asyncio.sleep(0)

    async def _blame(self, entry: Entry, error: CorruptLedgerError) -> CorruptLedgerError:
        """Name the record before, where the one behind vouches for the one that does not follow it."""
        head = self._state.head
        if not self._anchor < head.sequence < self._vouched:
            return error
        try:
            says = codec.decode_record(entry.body, entry.sequence).prev
            behind = await self._ledger.read(entry.sequence + 1) if entry.sequence < self._vouched else None
            is_vouched = behind is None or codec.decode_record(behind, 0).prev == chain_hash(entry.body)
        except LeaseholdError:
            return error
        if says == head.chain or not is_vouched:
            return error
        reason = f"its hash is {head.chain[:12]}…, but record {entry.sequence} says that it follows {says[:12]}…"
        return CorruptLedgerError(reason, sequence=head.sequence)

    def _advanced(self) -> None:
        sequence = self._state.head.sequence
        self._moved.set()
        if sequence >= self.goal:
            self.caught_up.set()
        for waiting, wanted in tuple(self._waiting.items()):
            if wanted <= sequence and not waiting.done():
                waiting.set_result(None)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Wait until the record that holds `position` has been read; `False` if it was not within `timeout_s`."""
        if sequence_of(position) <= self._state.head.sequence:
            return self.failure is None
        if self._stopping.is_set():
            return False
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = sequence_of(position)
        try:
            async with asyncio.timeout(timeout_s):
                await waiting
        except TimeoutError:
            return False
        finally:
            del self._waiting[waiting]
        return sequence_of(position) <= self._state.head.sequence and self.failure is None

    def _end_waiting(self) -> None:
        self._stopping.set()
        self.ended.set()
        self._moved.set()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    # --- keeping ------------------------------------------------------------------------------------------------

    def unnoted(self, kind: str, name: str) -> list[int]:
        """Where `name` of `kind` is told of, as far as the store does not have it yet. Ask this before the store."""
        return self._unnoted.positions(kind, name)

    async def _note(self) -> None:
        while not self._stopping.is_set():
            await self._moved.wait()
            await self._pause(NOTE_S)
            self._moved.clear()
            await self._note_now()

    async def _note_now(self) -> None:
        async with self._keeping:
            head = self._state.head
            if head.sequence > self._noted:
                await self._store.note(head, self._unnoted.take())
                self._unnoted.forget_taken()
                self._noted = head.sequence

    async def _save(self) -> None:
        saved_s, took_s = time.monotonic(), 0.0
        while not self._stopping.is_set():
            await self._pause(SAVE_POLL_S)
            records, elapsed_s = self._state.head.sequence - self._saved, time.monotonic() - saved_s
            is_due = records >= limits.SNAPSHOT_RECORDS or elapsed_s * 1_000 >= limits.SNAPSHOT_INTERVAL_MS
            if records and is_due and elapsed_s >= SNAPSHOT_SHARE * took_s:
                begun_s = time.monotonic()
                await self._save_now()
                saved_s = time.monotonic()
                took_s = saved_s - begun_s

    async def _save_now(self) -> None:
        frozen = freeze(self._state)
        pieces = await encode_gently(frozen)
        # No snapshot without the index rows of all before it: they would be missing for ever.
        await self._note_now()
        async with self._keeping:
            await self._store.save_frozen(frozen.head, pieces)
        self._saved = frozen.head.sequence

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return


class _Unnoted:
    """Index rows on their way to the disk."""

    def __init__(self) -> None:
        self._fresh: list[IndexRow] = []
        self._taken: list[IndexRow] = []

    @property
    def count(self) -> int:
        """Rows that are not being written yet."""
        return len(self._fresh)

    def add(self, state: State, position: int, event: Event) -> None:
        """The rows of an event that the state has just been moved over."""
        self._fresh += index_rows(state, position, event)

    def take(self) -> list[IndexRow]:
        """All rows, to be written; again with the next ones, unless `forget_taken` comes before."""
        self._taken, self._fresh = self._taken + self._fresh, []
        return self._taken

    def forget_taken(self) -> None:
        """What was taken is on the disk."""
        self._taken = []

    def positions(self, kind: str, name: str) -> list[int]:
        """In order."""
        rows = (*self._taken, *self._fresh)
        return [row[2] for row in rows if row[1] == name and row[0] == kind]


async def _end(task: asyncio.Task[None]) -> None:
    # The NATS client swallows a cancellation in some places, so once may not be enough.
    for _ in range(END_TRIES):
        if task.done():
            return
        task.cancel()
        await asyncio.wait({task}, timeout=END_TRY_S)
