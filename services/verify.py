"""Checking a whole ledger: every record in its place, every decision decided again, and what was read of it before.

A log that lost its end, or was put back to an older one, is in itself flawless. What shows it are the witnesses: what
the services had noted of the log when they read it.
"""

import asyncio
import contextlib
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import (
    CorruptLedgerError,
    CorruptSnapshotError,
    LeaseholdError,
    StorageError,
    UnavailableError,
)
from leasehold.events.record import GENESIS_PREV, chain_hash
from leasehold.events.subjects import Subjects
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from leasehold.projections.state import State
from leasehold.services import permissions
from leasehold.services.client import Client
from leasehold.services.connection import connect, disconnect
from leasehold.services.credentials import new_credential
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Entry, Ledger
from leasehold.services.natsserver import NatsServer
from leasehold.services.store import FoldStore

_STORES: Final = re.compile(r"(allocator(-[a-z0-9_-]+)?|query)\.sqlite")
_YIELD_EVERY: Final = 256
STALL_S: Final = 2.0
"""No record for so long, and the next one is asked for by itself: a server passes over what it cannot read."""

def stores_in(data: Path) -> list[str]:
    """The files in which services of a data directory keep what they have read."""
    return sorted(path.name for path in data.glob("*.sqlite") if _STORES.fullmatch(path.name))


Progress = Callable[[int, int], None]
"""Told how many records of how many have been checked."""


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody had noted: the record at `sequence` had this chain hash, and the state behind it was this one."""

    name: str
    ledger_id: str
    sequence: int
    chain: str
    era: int = 0
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
        async with contextlib.aclosing(_records(ledger, last)) as entries:
            async for entry in entries:
                walk.step(entry.sequence, entry.body)
                if entry.sequence % _YIELD_EVERY == 0:
                    progress(entry.sequence, last)
                    await asyncio.sleep(0)
        walk.finish()
    except CorruptLedgerError as error:
        blamed = await _blame(ledger, walk.links, error)
        return walk.report(str(blamed), blamed.sequence)
    progress(last, last)
    return walk.report()


async def check_chain(ledger: Ledger) -> int:
    """Walk through the whole log by its chain alone: that no record is changed, missing or out of order.

    Much less than `check_ledger`, and much faster. Returns how many records there are.

    Raises:
        CorruptLedgerError: the first bad record is named.
        UnavailableError: it cannot be read now.
    """
    last = await ledger.last_sequence()
    links = _Links()
    try:
        async with contextlib.aclosing(_records(ledger, last)) as entries:
            async for entry in entries:
                links.step(entry.sequence, entry.body)
                if entry.sequence % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
    except CorruptLedgerError as error:
        raise await _blame(ledger, links, error) from None
    return last


async def check_heads(ledger: Ledger, witnesses: list[Witness]) -> None:
    """Whether the records that were read last are still there and the same, to be asked before anybody appends.

    A log of a higher era was restored from an archive since: it may end before what was read, or go on otherwise.

    Raises:
        CorruptLedgerError: the log is shorter than it was, or another one.
        UnavailableError: it cannot be read now.
    """
    last = await ledger.last_sequence()
    if last:
        ledger_id = codec.decode_record(await _read(ledger, 1), 1).ledger_id
        era = codec.decode_record(await _read(ledger, last), last).era
        for witness in witnesses:
            if witness.sequence and witness.ledger_id != ledger_id:
                raise CorruptLedgerError(_other_ledger(ledger_id, witness), sequence=1)
        witnesses = [witness for witness in witnesses if witness.era >= era]
    for witness in sorted(witnesses, key=lambda each: each.sequence):
        if witness.sequence > last:
            raise CorruptLedgerError(_cut(last, witness), sequence=last + 1)
        if witness.sequence and chain_hash(await _read(ledger, witness.sequence)) != witness.chain:
            raise CorruptLedgerError(_changed(witness), sequence=witness.sequence)


async def _read(ledger: Ledger, sequence: int) -> bytes:
    body = await ledger.read(sequence)
    if body is None:
        raise CorruptLedgerError("it is not there", sequence=sequence)
    return body


def _other_ledger(ledger_id: str, witness: Witness) -> str:
    return f"this is ledger {ledger_id}, but {witness.name} had read {witness.ledger_id}"


def _cut(last: int, witness: Witness) -> str:
    return f"missing: the log ends at {last}, but {witness.name} had read up to {witness.sequence}"


def _changed(witness: Witness) -> str:
    return f"it (or one before it) is not the one that {witness.name} had read"


async def _records(ledger: Ledger, last: int) -> AsyncGenerator[Entry, None]:
    """Records 1 to `last`, in order.

    Raises:
        CorruptLedgerError: one of them is not there, or cannot be read by the server.
    """
    done = 0
    if not last:
        return
    async with contextlib.aclosing(ledger.follow(0)) as batches:
        while done < last:
            for entry in (await _next_batch(ledger, batches, done + 1))[: last - done]:
                yield entry
                done = entry.sequence


async def _next_batch(ledger: Ledger, batches: AsyncIterator[list[Entry]], sequence: int) -> list[Entry]:
    getting = asyncio.ensure_future(anext(batches))
    try:
        while True:
            await asyncio.wait({getting}, timeout=STALL_S)
            if getting.done():
                return getting.result()
            with contextlib.suppress(UnavailableError):
                await _read(ledger, sequence)
    finally:
        if not getting.done():
            getting.cancel()
            await asyncio.wait({getting})


class _Links:
    """The chain up to the last record: what the next one must say that it follows."""

    def __init__(self) -> None:
        self.sequence = 0
        self.chain = GENESIS_PREV
        self.last_body = b""

    def step(self, sequence: int, body: bytes) -> None:
        """Raises CorruptLedgerError."""
        self.last_body = body
        try:
            prev = _link_decoder.decode(body).prev
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptLedgerError(f"not a record ({error})", sequence=sequence) from error
        if prev != self.chain:
            raise CorruptLedgerError(
                f"it follows a record with hash {prev[:12]}…, but the one before has {self.chain[:12]}…",
                sequence=sequence,
            )
        self.sequence, self.chain = sequence, chain_hash(body)


class _Link(msgspec.Struct):
    prev: str


_link_decoder: Final = msgspec.json.Decoder(_Link)


async def _blame(ledger: Ledger, links: _Links, error: CorruptLedgerError) -> CorruptLedgerError:
    """A record that does not follow the one before: which of both was changed, if the one behind can tell.

    `links` has taken all up to the one before, and looked at the one that does not follow.
    """
    at = links.sequence + 1
    try:
        says = _link_decoder.decode(links.last_body).prev
        if error.sequence != at or at < 2 or says == links.chain:
            return error
        behind = await ledger.read(at + 1)
        if behind is None or _link_decoder.decode(behind).prev != chain_hash(links.last_body):
            return error
    except (LeaseholdError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error
    return CorruptLedgerError(
        f"changed, or one behind it is missing: its hash is {links.chain[:12]}…, but what is now record {at} follows "
        f"{says[:12]}…, and is itself as it was",
        sequence=at - 1,
    )


class _Walk:
    """The walk through the records, with what it meets on the way."""

    def __init__(self, witnesses: list[Witness]) -> None:
        self.links = _Links()
        self._witnesses = witnesses
        self._by_sequence: dict[int, list[Witness]] = {}
        for witness in witnesses:
            self._by_sequence.setdefault(witness.sequence, []).append(witness)
        self._replay = Replay()

    def step(self, sequence: int, body: bytes) -> None:
        """Check one record, decide it again, and hear its witnesses. Raises CorruptLedgerError."""
        self.links.step(sequence, body)
        try:
            difference = self._replay.step(sequence, body)
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
                raise CorruptLedgerError(_other_ledger(ledger_id, witness), sequence=1)

    def _compare(self, witness: Witness, state: State) -> None:
        head = state.head
        if witness.chain != head.chain:
            raise CorruptLedgerError(_changed(witness), sequence=head.sequence)
        if witness.state and witness.state != encode_state(state):
            raise CorruptLedgerError(
                f"the state folded up to it is not the one that {witness.name} holds", sequence=head.sequence
            )

    def finish(self) -> None:
        """Witnesses of records that never came. Raises CorruptLedgerError."""
        for sequence in sorted(self._by_sequence):
            if sequence:
                ends = self._replay.state.head.sequence
                raise CorruptLedgerError(_cut(ends, self._by_sequence[sequence][0]), sequence=ends + 1)

    def report(self, problem: str = "", sequence: int = 0) -> Report:
        """What was found."""
        head = self._replay.state.head
        return Report(
            records=min(head.sequence, sequence - 1) if sequence else head.sequence,
            events=self._replay.events,
            chain=head.chain,
            ledger_id=head.ledger_id,
            folded_only=self._replay.folded_only,
            witnesses=tuple(witness.name for witness in self._witnesses if witness.sequence),
            problem=problem,
            sequence=sequence,
        )


async def witnesses_in(data: Path) -> tuple[list[Witness], str]:
    """What the services of a data directory had noted of the log, and what is wrong with that, if anything is.

    Nobody may have the files open.
    """
    found: list[Witness] = []
    problem = ""
    for name in stores_in(data):
        try:
            store = await FoldStore.open(data / name)
            try:
                found += await _head_of(store, name)
                found += await _snapshot_of(store, name)
            finally:
                await store.close()
        except (CorruptSnapshotError, StorageError) as error:
            problem = problem or f"{name}: {str(error).removeprefix(f'{data / name}: ')}"
    return found, problem


async def heads_in(data: Path) -> list[Witness]:
    """How far the services of a data directory had read the log. Nobody may have the files open.

    Raises:
        LeaseholdError: a file is in use, damaged, or not ours.
    """
    found: list[Witness] = []
    for name in stores_in(data):
        store = await FoldStore.open(data / name)
        try:
            found.extend(await _head_of(store, name))
        finally:
            await store.close()
    return found


async def _head_of(store: FoldStore, name: str) -> list[Witness]:
    head = await store.head()
    if head is None:
        return []
    return [Witness(name=name, ledger_id=head.ledger_id, sequence=head.sequence, chain=head.chain, era=head.era)]


async def _snapshot_of(store: FoldStore, name: str) -> list[Witness]:
    state = await store.load()
    if state is None:
        return []
    at = state.head
    name, body = f"the snapshot in {name}", encode_state(state)
    return [Witness(name=name, ledger_id=at.ledger_id, sequence=at.sequence, chain=at.chain, era=at.era, state=body)]


@asynccontextmanager
async def copy_of(data: Path) -> AsyncIterator[Path]:
    """A copy of a data directory that nobody uses: a server that starts on a damaged store changes it.

    Raises:
        StoreInUseError: somebody uses it.
        StorageError: it cannot be read, or there is no room for a copy.
        UnavailableError: there is nothing to copy.
    """
    if not (data / "jetstream").exists() and not stores_in(data):
        raise UnavailableError(f"{data} holds no ledger: nothing was started there")
    # The lock is held while the copy is made, so that nothing starts in between.
    server = NatsServer(data, users={}, lock_wait_s=0.5)
    try:
        folder = await _locked_copy(server, data)
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    finally:
        await server.stop()


async def _locked_copy(server: NatsServer, data: Path) -> Path:
    try:
        await server.take_lock()
        return await asyncio.to_thread(_copied, data)
    except OSError as error:
        raise StorageError(f"{data} cannot be copied for the check: {error}") from error


def _copied(data: Path) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="leasehold-verify-", dir=data.parent))
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="leasehold-verify-"))
    try:
        stores = stores_in(data)
        for name in ("jetstream", *stores, *(f"{store}-wal" for store in stores)):
            if (data / name).is_dir():
                shutil.copytree(data / name, folder / name)
            elif (data / name).exists():
                shutil.copy2(data / name, folder / name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


async def verify_at_rest(data: Path, cluster: str, progress: Progress) -> Report:
    """Check the ledger of a data directory that nobody uses, on a copy of it.

    Raises:
        LeaseholdError: it is in use, cannot be read, or a server cannot be started on it.
    """
    async with copy_of(data) as folder:
        witnesses, problem = await witnesses_in(folder)
        reader = new_credential("query", "verify", cluster)
        users = permissions.render([reader.user], cluster)
        async with NatsServer(folder, users=users, probe=reader, sync_always=False) as server:
            connection = await connect(server.url, credential=reader, name="verify")
            try:
                report = await _check(JetStreamLedger(connection, Subjects(cluster)), witnesses, progress)
            finally:
                await disconnect(connection)
    # What is wrong with the log matters more than what is wrong with what was made of it.
    return report if report.problem else msgspec.structs.replace(report, problem=problem)


async def verify_live(client: Client, witnesses: list[Witness], progress: Progress) -> Report:
    """Check the ledger behind an open client while it is in use.

    Raises:
        LeaseholdError: it cannot be reached.
    """
    return await _check(client.ledger(), witnesses, progress)


async def _check(ledger: Ledger, witnesses: list[Witness], progress: Progress) -> Report:
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


