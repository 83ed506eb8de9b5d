"""The sequencer: everything an allocator does except waiting. It packs what has come in into the next record, keeps it
apart until the log has taken it, and gives out answers only then.

One record is in flight at a time. What the shell reports back is either `committed` (ours stands in the log) or `lost`
(another's stands there: ours is undone, the other is folded, and everything is decided again).
"""

from collections import deque
from typing import Final

import msgspec

from leasehold.events import codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.identities import Principal, RequestKey, request_key
from leasehold.events.inputs import Asked, Input, Observed, Request
from leasehold.events.position import end_of_record, position_of
from leasehold.events.record import FORMAT, RULES_VERSION, Record, Step, chain_hash
from leasehold.projections import evolve, waiting
from leasehold.projections.answers import answer_to
from leasehold.projections.decide import decide, next_work_ns
from leasehold.projections.rows import Head
from leasehold.projections.state import State


class Pending(msgspec.Struct, frozen=True, gc=False):
    """A request that waits. `ticket` is the shell's own mark for where the answer goes."""

    ticket: int
    asked: Asked
    key: RequestKey


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer that may be given out now."""

    ticket: int
    answer: Answer


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A record that is ready to be appended behind `expected`."""

    expected: int
    body: bytes
    record: Record
    chain: str


class Sequencer:
    """The state of one ledger and what waits to be decided on it."""

    def __init__(self, state: State, *, cluster: str, writer: str) -> None:
        self.state = state
        self.writer = writer
        self.releases_only = False
        """There is hardly room for records: only what is asked (the shell lets in nothing but releases) is decided, and
        before it who decides."""
        self.replies: list[Reply] = []
        """Answers that may be given out; the shell takes them away."""
        self._cluster = cluster
        self._requests: deque[Pending] = deque()
        self._observed: deque[tuple[int, Observed | None]] = deque()
        self._notes: deque[Input] = deque()
        self._noted: set[Input] = set()
        """What stands in `_notes`: a host that has gone quiet is looked for there among as many as there are hosts."""
        self._through = state.head.observed_through
        self._draft: Draft | None = None
        self._drafted: list[tuple[Pending, Answer]] = []
        self._drafted_notes: list[Input] = []
        self._drafted_observed: list[tuple[int, Observed | None]] = []
        self._repeats: list[Pending] = []

    # --- what comes in ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> Draft | None:
        """The record whose end is not known yet."""
        return self._draft

    @property
    def waiting(self) -> int:
        """How many requests wait, in the next record or behind it."""
        return len(self._requests) + len(self._drafted)

    def ask(self, ticket: int, principal: Principal, request: Request) -> bool:
        """Let a request wait; `False` if too many do."""
        # What is in a draft comes back if that is lost, so it has its place.
        if self.waiting >= limits.REQUESTS_WAITING_MAX:
            return False
        self._requests.append(Pending(ticket, Asked(principal, request), request_key(principal, request.request_id)))
        return True

    def withdraw(self, tickets: frozenset[int]) -> frozenset[int]:
        """Take back those of `tickets` that are not in a draft yet, and name them; the others may still be decided."""
        withdrawn = frozenset(pending.ticket for pending in self._requests if pending.ticket in tickets)
        if withdrawn:
            self._requests = deque(pending for pending in self._requests if pending.ticket not in withdrawn)
        return withdrawn

    def give_up_requests(self) -> list[Pending]:
        """Take back all requests that wait, in order. Nothing may be in flight."""
        assert self._draft is None
        given_up = list(self._requests)
        self._requests.clear()
        return given_up

    def give_up_notes(self) -> None:
        """Take back all notes: another decides. Nothing may be in flight."""
        assert self._draft is None
        self._notes.clear()
        self._noted.clear()

    def reconsider(self) -> None:
        """The log goes on behind what the last `draft`, which came to nothing, was based on: its replies go back to
        where they wait. Only before they have been taken away; `apply` what stands in the log and draft again.
        """
        self.replies.clear()
        self._requests.extendleft(reversed(self._repeats))
        self._repeats = []

    def observe(self, sequence: int, message: Observed | None) -> None:
        """Let the message at `sequence` of OBSERVED wait; `None` for one that could not be read. In order only."""
        if sequence > self._through:
            self._through = sequence
            self._observed.append((sequence, message))

    @property
    def observed_room(self) -> int:
        """How many messages of OBSERVED may still be handed in."""
        return limits.OBSERVED_WAITING_MAX - len(self._observed) - len(self._drafted_observed)

    @property
    def read_through(self) -> int:
        """The last sequence of OBSERVED that was handed in: reading goes on behind it."""
        return self._through

    def note(self, given: Input) -> None:
        """Let a note of the allocator itself wait (a tick, a host heard); one like it that waits already is enough."""
        if given in self._noted:
            return
        self._noted.add(given)
        if isinstance(given, inputs.DeciderStarts):
            # No record of a new decider, and so none of its clock's times, stands in the log before this.
            self._notes.appendleft(given)
        else:
            self._notes.append(given)

    def has_work(self, now_ns: int) -> bool:
        """Whether a draft could come out now."""
        if self.releases_only:
            return bool(self._requests)
        due = next_work_ns(self.state, self.writer)
        is_due = due is not None and due <= now_ns
        return bool(self._requests or self._observed or self._notes or is_due)

    def next_work_ns(self) -> int | None:
        """When time alone will make work; `None` if not in sight."""
        return None if self.releases_only else next_work_ns(self.state, self.writer)

    # --- drafting -----------------------------------------------------------------------------------------------

    def draft(self, now_ns: int) -> Draft | None:
        """Decide what waits and make it the next record; `None` if nothing of it is worth one.

        The state then stands behind the draft; `committed` or `lost` must follow. After `None` the replies are as old
        as the state: who has not looked at the log since these requests came should do so, and `reconsider` if need be.
        """
        assert self._draft is None
        before = self.state.head
        now_ns = max(now_ns, before.decided_at_ns)
        # Looked up before anything is written down, when what renewals left behind can be cleared away.
        due_ns = self.next_work_ns()
        self.state.journal.begin()
        packing = _Packing(self.state, before, now_ns)
        self._pack(packing, is_due=due_ns is not None and due_ns <= now_ns)
        if not packing.steps:
            self.state.journal.commit()
            self._repeats = [pending for pending, _ in self._drafted]
            self._answer_drafted()
            return None
        self._draft = self._seal(packing, before, now_ns)
        return self._draft

    def _pack(self, packing: "_Packing", *, is_due: bool) -> None:
        if packing.before.sequence == 0:
            packing.add(inputs.LedgerBegins(cluster=self._cluster, writer=self.writer))
        self._pack_notes(packing)
        if packing.before.sequence and self.state.head.era != packing.before.era:
            return  # a restore leaves everybody what he has: what is due is for who decides behind it
        if not self.releases_only:
            self._pack_what_is_told(packing)
            self._pack_looks(packing)
        while self._requests and packing.add(self._requests[0].asked):
            pending = self._requests.popleft()
            # Right behind its own step: later ones of the record may already forget it.
            self._drafted.append((pending, answer_to(self.state, pending.asked, pending.key, packing.last_position)))
        if is_due or (self.state.indexes.freeable and not self.releases_only):
            packing.add(inputs.Tick(self.writer))
        if not self.releases_only:
            self._pack_looks(packing)

    def _pack_looks(self, packing: "_Packing") -> None:
        """Those who wait, as far as something is new for them: before whoever asks now, and behind him."""
        while (
            packing.looks < limits.LOOKS_PER_RECORD_MAX
            and waiting.is_due(self.state, self.writer)
            and packing.add(inputs.Tick(self.writer))
        ):
            packing.looks += 1

    def _pack_notes(self, packing: "_Packing") -> None:
        """Notes of our own; without room only who decides, since others follow the time of what is decided."""
        while self._notes:
            note = self._notes[0]
            if (self.releases_only and not isinstance(note, inputs.DeciderStarts)) or not packing.add(note):
                return
            self._noted.discard(note)
            self._drafted_notes.append(self._notes.popleft())

    def _pack_what_is_told(self, packing: "_Packing") -> None:
        """What agents report."""
        while self._observed:
            sequence, message = self._observed[0]
            if message is not None and not packing.add(message):
                break
            packing.observed_through = max(packing.observed_through, sequence)
            self._drafted_observed.append(self._observed.popleft())

    def _seal(self, packing: "_Packing", before: Head, now_ns: int) -> Draft:
        record = Record(
            format=FORMAT,
            ledger_id=self.state.head.ledger_id,
            era=self.state.head.era,
            prev=before.chain,
            writer=self.writer,
            decided_at_ns=now_ns,
            rules_version=RULES_VERSION,
            observed_through=packing.observed_through,
            steps=tuple(packing.steps),
        )
        body = codec.encode_record(record, packing.encoded)
        draft = Draft(before.sequence, body, record, chain_hash(body))
        evolve.seal(self.state, before.sequence + 1, record, draft.chain)
        return draft

    # --- how it ended -------------------------------------------------------------------------------------------

    def committed(self) -> Record:
        """The draft stands in the log: its answers may be given out."""
        assert self._draft is not None
        record, self._draft = self._draft.record, None
        self.state.journal.commit()
        self._answer_drafted()
        return record

    def _answer_drafted(self) -> None:
        head = self.state.head
        as_of = end_of_record(head.sequence)
        for pending, answer in self._drafted:
            self.replies.append(Reply(pending.ticket, msgspec.structs.replace(answer, as_of=as_of, era=head.era)))
        self._drafted.clear()
        self._drafted_notes.clear()
        self._drafted_observed.clear()

    def lost(self, sequence: int, body: bytes) -> Record:
        """Another's record stands where the draft would: undo, fold the other, let everything wait again.

        Raises:
            CorruptLedgerError: the other's record does not belong there.
        """
        assert self._draft is not None
        self._draft = None
        self.state.roll_back()
        self._requests.extendleft(pending for pending, _ in reversed(self._drafted))
        self._observed.extendleft(reversed(self._drafted_observed))
        self._notes.extendleft(reversed(self._drafted_notes))
        self._noted.update(self._drafted_notes)
        self._drafted, self._drafted_observed, self._drafted_notes = [], [], []
        return self.apply(sequence, body)

    def apply(self, sequence: int, body: bytes) -> Record:
        """Fold another's record; nothing may be in flight.

        Raises:
            CorruptLedgerError: it is not the next record.
        """
        assert self._draft is None
        record = evolve.fold(self.state, sequence, body)
        while self._observed and self._observed[0][0] <= record.observed_through:
            self._observed.popleft()
        self._through = max(self._through, record.observed_through)
        return record


_BYTES_AROUND_STEPS: Final = 1_024


class _Packing:
    """A record being packed: adds steps while there is room, and moves the state along."""

    def __init__(self, state: State, before: Head, now_ns: int) -> None:
        self.before = before
        self.steps: list[Step] = []
        self.encoded: list[bytes] = []
        self.observed_through = before.observed_through
        self.last_position = 0
        """Of the first event of the step that was added last."""
        self.looks = 0
        """How many steps were looks at those who wait."""
        self._state = state
        self._now_ns = now_ns
        self._first_position: int = position_of(before.sequence + 1, 0)
        self._count = 0
        self._bytes = _BYTES_AROUND_STEPS

    def add(self, given: Input) -> bool:
        """Decide `given` into the record; `False` if there is no room for it (then nothing has changed)."""
        if len(self.steps) >= limits.STEPS_PER_RECORD_MAX:
            return False
        events = decide(self._state, given, self._now_ns)
        if not events:
            return True
        step = Step(given, tuple(events))
        encoded = codec.encode(step)
        size = len(encoded) + 1
        if self.steps and (
            self._count + len(events) > limits.EVENTS_PER_RECORD_MAX or self._bytes + size > limits.RECORD_BYTES_MAX
        ):
            return False
        self.last_position = position = self._first_position + self._count
        for event in events:
            evolve.evolve(self._state, position, self._now_ns, event)
            position += 1
        self._count += len(events)
        self.steps.append(step)
        self.encoded.append(encoded)
        self._bytes += size
        return True
