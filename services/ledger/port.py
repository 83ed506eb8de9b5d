"""What a ledger is, whatever keeps it. `tests/conformance/test_ledger.py` holds every implementation to this page."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final, Protocol

import msgspec

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError
from leasehold.projections.appending import Said

DOUBTS_MAX: Final = 20
DOUBT_PAUSE_S: Final = 0.1
"""A log that looks shorter than it was is looked at again for two seconds: a replica may not have caught up yet."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One record as it stands in the log."""

    sequence: int
    """1 for the first; each following one is one higher, without gaps."""
    body: bytes


class Ledger(Protocol):
    """A handle on the one log. Several handles may be open on it, in several processes."""

    async def last_sequence(self) -> int:
        """The sequence of the last record; 0 when there is none.

        Raises:
            UnavailableError: it cannot be known now.
        """
        ...

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        """Try once to append `body` (1 to `limits.RECORD_BYTES_MAX` bytes) behind sequence `expected`.

        No two records may have the same bytes, since they tell a repeated append from another one; the hash of the
        record before, which each record carries, sees to that.

        Returns:
            `STORED` with the sequence where the very same bytes now stand; `REFUSED` with the last sequence of the log,
            or 0 if the refusal did not name it; `NOTHING` with 0 if no clear answer came within `timeout_s`: then the
            record may be stored, may be stored later, or may never be. Trouble of the network is never raised.

        Raises:
            InvalidInputError: the body is empty or too long, or stands somewhere else in the log already.
        """
        ...

    async def read(self, sequence: int) -> bytes | None:
        """The record at `sequence` as the log's leader has it; `None` only when the log ends before.

        Raises:
            UnavailableError: it cannot be known now.
            CorruptLedgerError: the log goes on behind `sequence`, but has nothing there.
        """
        ...

    def follow(self, after: int) -> AsyncGenerator[list[Entry], None]:
        """All records from `after` + 1 on, in order and without gaps, then for ever the new ones, until `close`.

        Batches are never empty. Breaks of the connection are healed inside. A consumer that stops early should close
        the iterator (`contextlib.aclosing`).

        Raises:
            CorruptLedgerError: a record is missing (its sequence is named), or the log ends before `after`.
        """
        ...

    async def close(self) -> None:
        """End what follows through this handle. The log, and a connection given from outside, stay as they are."""
        ...


def check_body(body: bytes) -> None:
    """Raises InvalidInputError unless `body` may be a record's."""
    if not 1 <= len(body) <= limits.RECORD_BYTES_MAX:
        raise InvalidInputError(f"{len(body)} bytes; 1 to {limits.RECORD_BYTES_MAX} are possible", field="record")


def check_stored(said: Said, sequence: int, expected: int) -> None:
    """Raises InvalidInputError if an append behind `expected` was taken for a repetition of another one."""
    if said is Said.STORED and sequence != expected + 1:
        raise InvalidInputError(f"the very same bytes already stand at {sequence}", field="record")


async def last_beyond_doubt(ledger: Ledger, known: int) -> int:
    """The sequence of the last record. Less than `known`, which was read from the log before, only if it stays so.

    Raises:
        UnavailableError: it cannot be known now.
    """
    last = await ledger.last_sequence()
    for _ in range(DOUBTS_MAX):
        if last >= known:
            break
        await asyncio.sleep(DOUBT_PAUSE_S)
        last = await ledger.last_sequence()
    return last
