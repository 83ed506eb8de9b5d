"""What the services of a data directory had noted of the log when they read it: what shows that it lost its end since.

A log that lost its end, or was put back to an older one, is in itself flawless.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError, StorageError
from leasehold.events.record import chain_hash
from leasehold.projections.snapshots import encode_state
from leasehold.services.ledger.port import Ledger
from leasehold.services.store import FoldStore

_STORES: Final = re.compile(r"(allocator(-[a-z0-9_-]+)?|query)\.sqlite")


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody had noted: the record at `sequence` had this chain hash, and the state behind it was this one."""

    name: str
    ledger_id: str
    sequence: int
    chain: str
    era: int = 0
    state: bytes = b""


def stores_in(data: Path) -> list[str]:
    """The files in which services of a data directory keep what they have read."""
    return sorted(path.name for path in data.glob("*.sqlite") if _STORES.fullmatch(path.name))


async def check_heads(ledger: Ledger, witnesses: Sequence[Witness]) -> None:
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
                raise CorruptLedgerError(other_ledger(ledger_id, witness), sequence=1)
        witnesses = [witness for witness in witnesses if witness.era >= era]
    for witness in sorted(witnesses, key=lambda each: each.sequence):
        if witness.sequence > last:
            raise CorruptLedgerError(cut(last, witness), sequence=last + 1)
        if witness.sequence and chain_hash(await _read(ledger, witness.sequence)) != witness.chain:
            raise CorruptLedgerError(changed(witness), sequence=witness.sequence)


async def _read(ledger: Ledger, sequence: int) -> bytes:
    body = await ledger.read(sequence)
    if body is None:
        raise CorruptLedgerError("it is not there", sequence=sequence)
    return body


def other_ledger(ledger_id: str, witness: Witness) -> str:
    """What to say of a log that is not the one that was read."""
    return f"this is ledger {ledger_id}, but {witness.name} had read {witness.ledger_id}"


def cut(last: int, witness: Witness) -> str:
    """What to say of a log that ends before what was read."""
    return f"missing: the log ends at {last}, but {witness.name} had read up to {witness.sequence}"


def changed(witness: Witness) -> str:
    """What to say of a record that is not the one that was read."""
    return f"it (or one before it) is not the one that {witness.name} had read"


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
