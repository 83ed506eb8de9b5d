"""A position: one place in the log, as one integer (`record sequence * 256 + index of the event in its record`).

Lease ids, fencing tokens and event ids derive from the position of the grant, so none of them can be guessed at
random, none needs a generator, and a later one is always larger.
"""

import re
from typing import Final, NewType

from leasehold.events.errors import InvalidInputError
from leasehold.events.limits import EVENTS_PER_RECORD_MAX, SEQUENCE_MAX

Position = NewType("Position", int)
"""0 stands before the first event."""

_LEASE_ID: Final = re.compile(r"L([1-9][0-9]{0,15})")


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
