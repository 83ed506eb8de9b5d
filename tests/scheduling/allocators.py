"""Several allocators over one log, as in the simulator, and nothing else: who decides changes, appends are lost."""

import random

from leasehold.events import inputs
from leasehold.events.event_types import Event
from leasehold.events.identities import Principal
from leasehold.events.inputs import Request
from leasehold.projections import evolve
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from tests.projections.ledger import A, Ledger
from tests.scheduling.queues import ROUNDS_MAX

_NS_PER_MS = 1_000_000


class Allocators:
    """They all hear what is asked, in any order; the log takes what is based on its end, and no other."""

    def __init__(self, ledger: Ledger, rng: random.Random, count: int = 2) -> None:
        """They begin where the ledger is, which is not used any more."""
        self.now_ns = ledger.now_ns
        self.bodies = list(ledger.bodies)
        self.rng = rng
        self._tickets = 0
        body = encode_state(ledger.state)
        self._all = [Sequencer(_decoded(body), cluster="lab", writer=f"alloc-{number}") for number in range(count)]
        self._reader = _decoded(body)
        self._deciding = self._all[0]
        self._note_decides()

    @property
    def state(self) -> State:
        """Behind all that is in the log."""
        self._follow()
        return self._reader

    def _follow(self) -> list[Event]:
        events: list[Event] = []
        for sequence in range(self._reader.head.sequence + 1, len(self.bodies) + 1):
            record = evolve.fold(self._reader, sequence, self.bodies[sequence - 1])
            events += [event for step in record.steps for event in step.events]
        return events

    def _note_decides(self) -> None:
        self._deciding.note(inputs.DeciderStarts(self._deciding.writer, "takeover"))

    def ask(self, request: Request, principal: Principal = A) -> None:
        """Somebody asks: one of them, or both, hear it, as after a takeover."""
        self._tickets += 1
        for sequencer in self._all:
            if sequencer is self._deciding or self.rng.random() < 0.3:
                assert sequencer.ask(self._tickets, principal, request)

    def run(self) -> list[Event]:
        """One of them drafts, and its draft is taken, or lost to another's; what has come of it."""
        if self.rng.random() < 0.1:
            self._deciding = self.rng.choice(self._all)
            self._note_decides()
        first, second = self.rng.sample(self._all, 2)
        self._catch_up(first)
        draft = first.draft(self.now_ns)
        if draft is not None and self.rng.random() < 0.3:
            self._append(second)
        if draft is not None:
            self._end(first)
        first.replies.clear()
        return self._follow()

    def _append(self, sequencer: Sequencer) -> None:
        self._catch_up(sequencer)
        if sequencer.draft(self.now_ns) is not None:
            self._end(sequencer)
        sequencer.replies.clear()

    def _catch_up(self, sequencer: Sequencer) -> None:
        while sequencer.state.head.sequence < len(self.bodies):
            sequence = sequencer.state.head.sequence + 1
            sequencer.apply(sequence, self.bodies[sequence - 1])

    def _end(self, sequencer: Sequencer) -> None:
        draft = sequencer.in_flight
        assert draft is not None
        if draft.expected == len(self.bodies):
            self.bodies.append(draft.body)
            sequencer.committed()
        else:
            sequencer.lost(draft.expected + 1, self.bodies[draft.expected])
            self._catch_up(sequencer)

    def settle(self) -> list[Event]:
        """Decide until none of them has anything to do: all that came of it."""
        events: list[Event] = []
        for _ in range(ROUNDS_MAX):
            for sequencer in self._all:
                self._catch_up(sequencer)
            if not any(sequencer.has_work(self.now_ns) for sequencer in self._all):
                return events
            events += self.run()
        raise AssertionError(f"there is still work after {ROUNDS_MAX} rounds")


def _decoded(body: bytes) -> State:
    state = decode_state(body)
    assert state is not None
    return state

