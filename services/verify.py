"""Checking a whole ledger: every record in its place, every decision decided again, and what was read of it before.

A log that lost its end, or was put back to an older one, is in itself flawless. What shows it are the witnesses: what
the services had noted of the log when they read it.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError
from leasehold.events.subjects import Subjects
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from leasehold.projections.state import State
from leasehold.services import home
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Ledger
from leasehold.services.natsserver import USER, NatsServer
from leasehold.services.store import FoldStore

STORES: Final = ("allocator.sqlite", "query.sqlite")
_YIELD_EVERY: Final = 256

Progress = Callable[[int, int], None]
"""Told how many records of how many have been checked."""


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody had noted: the record at `sequence` had this chain hash, and the state behind it was this one."""

    name: str
    ledger_id: str
    sequence: int
    chain: str
    state: bytes = b""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the check ended. `problem` is empty if nothing was found; `sequence` names the first bad record."""

    records: int
    events: int
    chain: str
    ledger_id: str
    folded_only: int
    witnesses: tuple[str, ...]
    problem: str = ""
    sequence: int = 0


async def check_ledger(ledger: Ledger, witnesses: list[Witness], progress: Progress) -> Report:
    """Walk through the whole log and compare it with the witnesses. Nothing is written."""
    last = await ledger.last_sequence()
    walk = _Walk(witnesses)
    try:
        if last:
            async with contextlib.aclosing(ledger.follow(0)) as batches:  # type: ignore[type-var]
                async for entries in batches:
                    for entry in entries[: last - walk.sequence]:
                        walk.step(entry.sequence, entry.body)
                        if entry.sequence % _YIELD_EVERY == 0:
                            progress(entry.sequence, last)
                            await asyncio.sleep(0)
                    if walk.sequence >= last:
                        break
        walk.finish()
    except CorruptLedgerError as error:
        return walk.report(str(error), error.sequence)
    progress(last, last)
    return walk.report()


class _Walk:
    """The walk through the records, with what it meets on the way."""

    def __init__(self, witnesses: list[Witness]) -> None:
        self._witnesses = witnesses
        self._by_sequence: dict[int, list[Witness]] = {}
        for witness in witnesses:
            self._by_sequence.setdefault(witness.sequence, []).append(witness)
        self._replay = Replay()

    @property
    def sequence(self) -> int:
        return self._replay.state.head.sequence

    def step(self, sequence: int, body: bytes) -> None:
        difference = self._replay.step(sequence, body)
        if difference is not None:
            raise CorruptLedgerError(f"deciding it again gives something else: {difference}", sequence=sequence)
        for witness in self._by_sequence.pop(sequence, ()):
            self._compare(witness, self._replay.state)

    def _compare(self, witness: Witness, state: State) -> None:
        head = state.head
        if witness.ledger_id != head.ledger_id:
            raise CorruptLedgerError(
                f"this is ledger {head.ledger_id}, but {witness.name} had read {witness.ledger_id}", sequence=1
            )
        if witness.chain != head.chain:
            raise CorruptLedgerError(
                f"it (or one before it) is not the one that {witness.name} had read", sequence=head.sequence
            )
        if witness.state and witness.state != encode_state(state):
            raise CorruptLedgerError(
                f"the state folded up to it is not the one that {witness.name} holds", sequence=head.sequence
            )

    def finish(self) -> None:
        """Witnesses of records that never came."""
        for sequence in sorted(self._by_sequence):
            if sequence:
                name = self._by_sequence[sequence][0].name
                raise CorruptLedgerError(
                    f"missing: the log ends at {self.sequence}, but {name} had read up to {sequence}",
                    sequence=self.sequence + 1,
                )

    def report(self, problem: str = "", sequence: int = 0) -> Report:
        head = self._replay.state.head
        return Report(
            records=head.sequence,
            events=self._replay.events,
            chain=head.chain,
            ledger_id=head.ledger_id,
            folded_only=self._replay.folded_only,
            witnesses=tuple(witness.name for witness in self._witnesses if witness.sequence),
            problem=problem,
            sequence=sequence,
        )


async def witnesses_in(data: Path) -> list[Witness]:
    """What the services of a data directory had noted of the log. Nobody may have the files open.

    Raises:
        CorruptSnapshotError: a snapshot is not what was written.
        StorageError: a file cannot be read.
    """
    found: list[Witness] = []
    for name in STORES:
        if (data / name).exists():
            store = await FoldStore.open(data / name)
            try:
                found.extend(await _witnesses_of(store, name))
            finally:
                await store.close()
    return found


async def _witnesses_of(store: FoldStore, name: str) -> list[Witness]:
    found = []
    head = await store.head()
    if head is not None:
        found.append(Witness(name=name, ledger_id=head.ledger_id, sequence=head.sequence, chain=head.chain))
    state = await store.load()
    if state is not None:
        at = state.head
        found.append(
            Witness(
                name=f"the snapshot in {name}",
                ledger_id=at.ledger_id,
                sequence=at.sequence,
                chain=at.chain,
                state=encode_state(state),
            )
        )
    return found


@asynccontextmanager
async def copy_of(data: Path) -> AsyncIterator[Path]:
    """A copy of a data directory that nobody uses: a server that starts on a damaged store changes it.

    Raises:
        StoreInUseError: somebody uses it.
    """
    # The lock is held while the copy is made, so that nothing starts in between.
    server = NatsServer(data, secret=home.new_secret(), lock_wait_s=0.5)
    await server.take_lock()
    try:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="leasehold-verify-", dir=data.parent))
        try:
            for name in ("jetstream", *STORES, *(f"{store}-wal" for store in STORES)):
                await asyncio.to_thread(_copy, data / name, folder / name)
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    finally:
        await server.stop()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


async def verify_at_rest(data: Path, cluster: str, progress: Progress) -> Report:
    """Check the ledger of a data directory that nobody uses, on a copy of it.

    Raises:
        LeaseholdError: it is in use, cannot be read, or a server cannot be started on it.
    """
    async with copy_of(data) as folder:
        try:
            witnesses = await witnesses_in(folder)
        except CorruptSnapshotError as error:
            return Report(
                records=0, events=0, chain="", ledger_id="", folded_only=0, witnesses=(), problem=str(error)
            )
        secret = home.new_secret()
        async with NatsServer(folder, secret=secret, sync_always=False) as server:
            connection = await connect(server.url, user=USER, password=secret, name="verify")
            try:
                return await _check(connection, cluster, witnesses, progress)
            finally:
                await disconnect(connection)


async def verify_live(info: home.ConnectionInfo, witnesses: list[Witness], progress: Progress) -> Report:
    """Check the ledger behind a connection while it is in use.

    Raises:
        LeaseholdError: it cannot be reached.
    """
    connection = await connect(info.url, user=info.user, password=info.password, name="verify")
    try:
        return await _check(connection, info.cluster, witnesses, progress)
    finally:
        await disconnect(connection)


async def _check(connection: Connection, cluster: str, witnesses: list[Witness], progress: Progress) -> Report:
    ledger = JetStreamLedger(connection, Subjects(cluster))
    try:
        return await check_ledger(ledger, witnesses, progress)
    except CorruptLedgerError as error:
        sequence = error.sequence or 1
        return Report(
            records=0, events=0, chain="", ledger_id="", folded_only=0,
            witnesses=tuple(witness.name for witness in witnesses), problem=str(error), sequence=sequence,
        )  # fmt: skip
    finally:
        await ledger.close()


