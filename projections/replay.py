"""Going through a log again: fold it, and decide every recorded input again to see that the same events follow."""

import msgspec

from leasehold.events import codec
from leasehold.events.position import position_of
from leasehold.events.record import RULES_VERSION, Record, chain_hash
from leasehold.projections import evolve
from leasehold.projections.decide import decide
from leasehold.projections.state import State


class Difference(msgspec.Struct, frozen=True):
    """Where deciding again gave something else: the record, the step in it, and both outcomes."""

    sequence: int
    step: int
    recorded: str
    decided: str

    def __str__(self) -> str:
        return f"record {self.sequence}, step {self.step}: recorded {self.recorded}, decided again {self.decided}"


class Replay:
    """A walk through a ledger, record by record, from its beginning or from a state."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.events = 0
        self.folded_only = 0
        """Records of other rules than this build carries: folded, not decided again."""

    def step(self, sequence: int, body: bytes) -> Difference | None:
        """Check, decide again and fold the record at `sequence`; the first difference, if there is one.

        Raises:
            CorruptLedgerError: it does not belong there.
        """
        record = codec.decode_record(body, sequence)
        evolve.check_belongs(self.state, sequence, record)
        difference = self._walk(sequence, record)
        evolve.seal(self.state, sequence, record, chain_hash(body))
        return difference

    def _walk(self, sequence: int, record: Record) -> Difference | None:
        decides = record.rules_version == RULES_VERSION
        self.folded_only += not decides
        difference: Difference | None = None
        begun = position_of(sequence, 0)
        position: int = begun
        for number, step in enumerate(record.steps):
            if decides:
                again = tuple(decide(self.state, step.input, record.decided_at_ns) or ())
                if again != step.events and difference is None:
                    difference = Difference(sequence, number, _text(step.events), _text(again))
            position = evolve.evolve_recorded(self.state, position, record.decided_at_ns, step.events)
        self.events += position - begun
        return difference


def _text(events: object) -> str:
    text = codec.encode(events).decode()
    return text if len(text) <= 400 else f"{text[:400]}…"
