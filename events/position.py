"""A position: one place in the log, as one integer (`record sequence * 256 + index of the event in its record`).

Lease ids, fencing tokens and event ids derive from the position of the grant, so none of them can be guessed at
random, none needs a generator, and a later one is always larger. Tokens have the era of the ledger in front: those
of a ledger that was restored are above all that were ever given out before.
"""

import re
from typing import Final, NewType

from leasehold.events.errors import InvalidInputError
from leasehold.events.limits import ERA_MAX, EVENTS_PER_RECORD_MAX, SEQUENCE_MAX

Position = NewType("Position", int)
"""0 stands before the first event."""

_POSITION_BITS: Final = 47
assert EVENTS_PER_RECORD_MAX * (SEQUENCE_MAX + 1) == 1 << _POSITION_BITS
_LEASE_ID: Final = re.compile(r"L([1-9][0-9]{0,15})")
_QUEUED_ID: Final = re.compile(r"Q([1-9][0-9]{0,15})")


def position_of(sequence: int, index: int) -> Position:
    """The position of event `index` (0 to 255) of the record at ledger `sequence` (1 and up)."""
    assert 1 <= sequence <= SEQUENCE_MAX, sequence
    assert 0 <= index < EVENTS_PER_RECORD_MAX, index
    return Position(sequence * EVENTS_PER_RECORD_MAX + index)


def sequence_of(position: int) -> int:
    """The ledger sequence of the record that holds `position`."""
    return position // EVENTS_PER_RECORD_MAX


def index_of(position: int) -> int:
    """The index of the event within its record."""
    return position % EVENTS_PER_RECORD_MAX


def end_of_record(sequence: int) -> Position:
    """The last position that the record at `sequence` could hold: what "everything up to here" means as `as_of`."""
    return Position(sequence * EVENTS_PER_RECORD_MAX + EVENTS_PER_RECORD_MAX - 1)


def token_of(era: int, position: int) -> int:
    """The fencing token (or floor) that `position` stands for in `era`; in era 0 the position itself."""
    assert 0 <= era <= ERA_MAX, era
    assert 0 <= position < 1 << _POSITION_BITS, position
    return era << _POSITION_BITS | position


def era_of_token(token: int) -> int:
    """The era that gave the token out."""
    return token >> _POSITION_BITS


def position_of_token(token: int) -> Position:
    """The position that the token (or floor) stands for."""
    return Position(token & (1 << _POSITION_BITS) - 1)


def lease_id_text(position: int) -> str:
    """How people see a lease id: `L` and the position of its grant."""
    return f"L{position}"


def parse_lease_id(text: str) -> Position:
    """Read `L4352` (or the bare number).

    Raises:
        InvalidInputError: anything else.
    """
    match = _LEASE_ID.fullmatch(text if text.startswith("L") else f"L{text}")
    if match is None or int(match[1]) >= 2**53:
        raise InvalidInputError(f"{text[:80]!r} is not a lease id; one looks like L4352", field="lease")
    return Position(int(match[1]))


def queued_id_text(position: int) -> str:
    """How people see a place in the queue: `Q` and the position at which the request was queued."""
    return f"Q{position}"


def parse_queued_id(text: str) -> Position:
    """Read `Q4352` (or the bare number).

    Raises:
        InvalidInputError: anything else.
    """
    match = _QUEUED_ID.fullmatch(text if text.startswith("Q") else f"Q{text}")
    if match is None or int(match[1]) >= 2**53:
        raise InvalidInputError(f"{text[:80]!r} is no place in the queue; one looks like Q4352", field="queued")
    return Position(int(match[1]))
