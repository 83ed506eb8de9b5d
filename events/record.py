"""The record: one message of the ledger, one transaction, all or nothing; and the chain that ties records together."""

import hashlib
from typing import Final

import msgspec

from leasehold.events.event_types import Event
from leasehold.events.inputs import Input

FORMAT: Final = 1
RULES_VERSION: Final = 5
"""Raised when the same input would be decided differently, or an event be written differently."""
RULES_DECIDED: Final = frozenset({2, 3, 4, 5})
"""Rules that this build decides by; records of others are folded, but not decided again. 2 and 3 come to the same
events, which are written differently; 4 decides otherwise only on what no record of theirs can hold, but for ticks, by
which it also tells how the witnesses of a device differ."""
RULES_WRITTEN: Final = frozenset({3, 4, 5})
"""Rules whose records this build would write in the same bytes."""
GENESIS_PREV: Final = "0" * 64


class Step(msgspec.Struct, frozen=True, gc=False):
    """One input and what followed from it."""

    input: Input
    events: tuple[Event, ...]


class Record(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Inputs and the 1 to 256 events that follow from them.

    `prev` is the chain hash of the record before (64 hex digits, zeros for the first); `decided_at_ns` never goes back;
    `observed_through` is the last sequence of OBSERVED that has been taken in.
    """

    format: int
    ledger_id: str
    era: int
    prev: str
    writer: str
    decided_at_ns: int
    rules_version: int
    observed_through: int
    steps: tuple[Step, ...]


def chain_hash(body: bytes) -> str:
    """SHA-256 over the record's bytes as they stand in the log; `prev` in them makes it one over all before."""
    return hashlib.sha256(body).hexdigest()


def ledger_id_of(cluster: str, writer: str, decided_at_ns: int) -> str:
    """The id of a ledger, from what its first record says: nothing in the log is random."""
    return hashlib.sha256(f"{cluster}\n{writer}\n{decided_at_ns}".encode()).hexdigest()[:16]


def event_count(record: Record) -> int:
    """How many events the record holds."""
    return sum(len(step.events) for step in record.steps)
