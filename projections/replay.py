"""Going through a log again: fold it, and decide every recorded input again to see that the same bytes follow."""

from itertools import zip_longest
from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.event_types import Event
from leasehold.events.position import position_of
from leasehold.events.record import RULES_DECIDED, RULES_VERSION, RULES_WRITTEN, Record, Step, chain_hash
from leasehold.projections import evolve
from leasehold.projections.decide import decide
from leasehold.projections.state import State

_SHOWN_CHARS: Final = 400
_BEFORE_CHARS: Final = 120
"""Of a long text that differs, what is shown of it before the place."""


class Difference(msgspec.Struct, frozen=True):
    """Where deciding again gave something else: the place, the input there, and both outcomes."""

    sequence: int
    step: int
    """-1: each step is the same, but the record is written in other bytes."""
    position: int
    """Of the first event that is not the same."""
    given: str
    recorded: str
    decided: str

    def __str__(self) -> str:
        place = f"step {self.step}, position {self.position}" if self.step >= 0 else "how it is written"
        return f"record {self.sequence}, {place}: recorded {self.recorded}, decided again {self.decided}"


class Replay:
    """A walk through a ledger, record by record, from its beginning or from a state."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.events = 0
        self.folded_only = 0
        """Records of other rules than this build carries: folded, not decided again."""

    def step(self, sequence: int, body: bytes, record: Record | None = None) -> Difference | None:
        """Check, decide again and fold the record at `sequence`; the first difference, if there is one.

        `record`: `body` decoded, where that is known.

        Raises:
            CorruptLedgerError: it does not belong there.
        """
        record = record or codec.decode_record(body, sequence)
        evolve.check_belongs(self.state, sequence, record)
        difference = self._walk(sequence, record)
        if difference is None and record.rules_version in RULES_WRITTEN:
            difference = _written_otherwise(sequence, body, codec.encode(record))
        evolve.seal(self.state, sequence, record, chain_hash(body))
        return difference

    def _walk(self, sequence: int, record: Record) -> Difference | None:
        decides = record.rules_version in RULES_DECIDED
        self.folded_only += not decides
        difference: Difference | None = None
        begun = position_of(sequence, 0)
        position: int = begun
        self.state.rules_version = record.rules_version
        for number, step in enumerate(record.steps):
            if decides:
                again = tuple(decide(self.state, step.input, record.decided_at_ns) or ())
                if again != step.events and difference is None:
                    difference = _decided_otherwise(sequence, number, position, step, again)
            position = evolve.evolve_recorded(self.state, position, record.decided_at_ns, step.events)
        self.state.rules_version = RULES_VERSION
        self.events += position - begun
        return difference


def _decided_otherwise(sequence: int, number: int, position: int, step: Step, again: tuple[Event, ...]) -> Difference:
    both = enumerate(zip_longest(step.events, again))
    at, (recorded, decided) = next((index, pair) for index, pair in both if pair[0] != pair[1])
    texts = _around(*("nothing" if each is None else codec.encode(each).decode() for each in (recorded, decided)))
    given, _ = _around(*[codec.encode(step.input).decode()] * 2)
    return Difference(sequence, number, position + at, given, *texts)


def _written_otherwise(sequence: int, recorded: bytes, decided: bytes) -> Difference | None:
    """Equal values are equal bytes, so what comes out to the byte is the record as it would be written now."""
    if recorded == decided:
        return None
    texts = _around(recorded.decode(errors="replace"), decided.decode())
    return Difference(sequence, -1, position_of(sequence, 0), "", *texts)


def _around(one: str, other: str) -> tuple[str, str]:
    """Both texts; of long ones, what stands around the first difference."""
    same = next((at for at, pair in enumerate(zip_longest(one, other)) if pair[0] != pair[1]), 0)
    start = max(0, same - _BEFORE_CHARS) if max(len(one), len(other)) > _SHOWN_CHARS else 0
    first, second = (
        ("…" if start else "") + text[start : start + _SHOWN_CHARS] + ("…" if len(text) > start + _SHOWN_CHARS else "")
        for text in (one, other)
    )
    return first, second
