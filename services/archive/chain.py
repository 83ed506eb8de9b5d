"""Whether one record goes on behind another: what is looked at before a record is archived, and in copies of it.

Only what stands around a record's steps is read. An archive keeps records of any kind, also such as this build cannot
read.
"""

from typing import Final

import msgspec

from leasehold.events.errors import CorruptLedgerError
from leasehold.events.record import GENESIS_PREV, chain_hash


class Tip(msgspec.Struct, frozen=True):
    """The last record of a log, and what the next one must fit to."""

    ledger_id: str = ""
    era: int = 0
    sequence: int = 0
    decided_at_ns: int = 0
    chain: str = GENESIS_PREV


class _Envelope(msgspec.Struct, frozen=True):
    ledger_id: str
    era: int
    prev: str
    decided_at_ns: int


_decoder: Final = msgspec.json.Decoder(_Envelope)


def tip_of(sequence: int, body: bytes) -> Tip:
    """The record `body`, at `sequence`, as the last one of a log.

    Raises:
        CorruptLedgerError: it is no record.
    """
    envelope = _envelope(sequence, body)
    return Tip(envelope.ledger_id, envelope.era, sequence, envelope.decided_at_ns, chain_hash(body))


def _envelope(sequence: int, body: bytes) -> _Envelope:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptLedgerError(f"not a record ({error})", sequence=sequence) from error


def advance(tip: Tip, sequence: int, body: bytes) -> Tip:
    """The tip behind the record `body`, at `sequence`, if that goes on behind `tip`.

    An era may be higher than the one before: that is a restored ledger. Whether it may be, its first record says.

    Raises:
        CorruptLedgerError: it does not; the text says in what.
    """
    envelope = _envelope(sequence, body)
    if sequence != tip.sequence + 1:
        raise CorruptLedgerError(f"it comes behind record {tip.sequence}", sequence=sequence)
    if envelope.prev != tip.chain:
        reason = f"it says that it follows {envelope.prev[:12]}…, but record {tip.sequence} is {tip.chain[:12]}…"
        raise CorruptLedgerError(reason, sequence=sequence)
    if tip.sequence:
        if envelope.ledger_id != tip.ledger_id:
            raise CorruptLedgerError(f"of ledger {envelope.ledger_id}, not {tip.ledger_id}", sequence=sequence)
        if envelope.era < tip.era:
            raise CorruptLedgerError(f"of era {envelope.era}, behind one of era {tip.era}", sequence=sequence)
        if envelope.decided_at_ns < tip.decided_at_ns:
            raise CorruptLedgerError("decided before the record that it follows", sequence=sequence)
    return Tip(envelope.ledger_id, envelope.era, sequence, envelope.decided_at_ns, chain_hash(body))
