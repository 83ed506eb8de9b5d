"""Allocators in the simulator: the real sequencer, standby, hint and clock, in a loop that goes wrong as shells do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leasehold.events import inputs, limits, schedule_inputs
from leasehold.events.answers import Heard
from leasehold.events.identities import HostName, Principal
from leasehold.events.inputs import Request
from leasehold.events.schedule_inputs import RenewManyRequest
from leasehold.projections.answers import heard
from leasehold.projections.appending import Append, Appender, Lost, Read, Said, Won
from leasehold.projections.leading import Leading
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state
from leasehold.projections.standby import Standby
from leasehold.projections.state import State
from leasehold.projections.timekeeping import Contact, LedgerClock
from tests.sim.clocks import SimMachine
from tests.sim.hint import look_once
from tests.sim.world import SECOND, ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MS = 1_000_000
FRESH_NS = 3 * SECOND
"""Here a turn of a loop takes up to seconds, so what counts as just looked at is older than in the shell."""
RELEASING = (inputs.ReleaseRequest, inputs.ConfirmFreeRequest, schedule_inputs.WithdrawRequest)
Key = tuple[str, str]
"""Principal and request id."""


class SimAllocator:
    """An allocator: killed, stopped, with a wrong clock, cut off between append and acknowledgement, and deposed."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.machine = SimMachine(sim.rng)
        self.machine.boot(sim.now_ns)
        self.paused_until_ns = 0
        self.sequencer: Sequencer | None = None
        self.appender: Appender | None = None
        self.standby = Standby()
        self.leading = Leading("")
        self.clock = LedgerClock()
        self.contact = Contact()
        self.decides = False
        self.is_deaf = False
        """Whether the log did not answer when it was looked at last."""
        self.in_touch_since_ns = 0
        """The judge's own book: since when it has been in touch with the log without an outage."""
        self.drafted_ns = 0
        self._was_stopped = False
        self._contact_ns = 0
        self._touched_ns = 0
        self._heard: dict[Key, int] = {}
        """The judge's own book: what it heard, and when."""
        self._owed: set[Key] = set()
        self._starts = 0

    @property
    def is_there(self) -> bool:
        """Whether requests reach it; one that is stopped finds them when it wakes up."""
        return self.sequencer is not None

    @property
    def _monotonic_ns(self) -> int:
        return self.machine.monotonic_ns(self.sim.now_ns)

    @property
    def _is_low(self) -> bool:
        return self.sim.now_ns < self.sim.low_until_ns

    def heard(self, host: HostName, agent: str) -> Heard | None:
        """What it answers an agent's heartbeat; `None` if it must not."""
        is_fresh = self.sim.now_ns - self._touched_ns <= FRESH_NS and self.sim.now_ns >= self.paused_until_ns
        if self.sequencer is None or self.appender is not None or not self.decides or not is_fresh:
            return None
        return heard(self.sequencer.state, host, agent)

    # --- what happens to it ---------------------------------------------------------------------------------------

    def ask(self, ticket: int, principal: str, request: Request) -> None:
        """A request arrives."""
        if self.sequencer is None or (self._is_low and not isinstance(request, RELEASING)):
            return
        if not self.decides:
            self._forget(self.standby.hear(ticket, Principal(principal), request, self._monotonic_ns))
        elif not self.sequencer.ask(ticket, Principal(principal), request):
            return
        if not isinstance(request, inputs.RenewRequest | RenewManyRequest):
            # Of renewals not each is written down.
            self._heard[principal, request.request_id] = self.sim.now_ns
        if self.sequencer.waiting > limits.REQUESTS_WAITING_MAX or len(self.standby) > limits.REQUESTS_HEARD_MAX:
            raise ViolationError(f"bounds: {self.sequencer.waiting} and {len(self.standby)} requests wait")

    def _forget(self, ticket: int | None) -> None:
        """A standby had no room for what it heard first."""
        if ticket is not None:
            self._heard.pop(self.sim.asked_as(ticket), None)

    def kill(self, *, with_machine: bool = False) -> None:
        """All that was in memory is gone. Sometimes the machine fails with it, or loses its disk."""
        self.sequencer = None
        self.appender = None
        self.decides = False
        self._owed.clear()
        self._heard.clear()
        if with_machine or self.sim.rng.random() < 0.4:
            self.machine.boot(self.sim.now_ns)
        elif self.sim.rng.random() < 0.1:
            self.machine.note = None

    def act(self) -> None:
        """A few steps of its loop."""
        rng, faults = self.sim.rng, self.sim.faults
        if self.sim.now_ns < self.paused_until_ns:
            return
        if rng.random() < faults.killed:
            self.kill()
        if rng.random() < faults.paused:
            self.paused_until_ns = self.sim.now_ns + rng.choice((1, 5, 20, 90)) * SECOND
            self._was_stopped = True
            return
        if self.sequencer is None and self.sim.log.is_reached(self.sim.now_ns):
            self._start()
        for _ in range(rng.randrange(1, 5)):
            if self.sequencer is None:
                return
            self._step(self.sequencer)
            self._reply()
        if self.sequencer is not None:
            self._settle_debts(self.sequencer)

    def _start(self) -> None:
        self._starts += 1
        state = State()
        if self.sim.snapshot and self.sim.rng.random() < 0.5:
            state = decode_state(self.sim.snapshot) or state
        writer = f"{self.name}.{self._starts}"
        sequencer = self.sequencer = Sequencer(state, cluster="sim", writer=writer)
        for sequence in range(state.head.sequence + 1, len(self.sim.log.bodies) + 1):
            sequencer.apply(sequence, self.sim.log.bodies[sequence - 1])
        self.standby, self.leading, self.contact = Standby(), Leading(writer), Contact()
        self.clock = LedgerClock()
        if self.sim.hint is not None:
            self.clock = self.machine.clock(state.head, self.sim.now_ns)
        self.is_deaf, self._contact_ns = False, 0
        self.in_touch_since_ns = self._touched_ns = self.sim.now_ns
        if self.sim.hint is None:
            self._decide_from_here(sequencer, "start")

    # --- its loop -------------------------------------------------------------------------------------------------

    def _step(self, sequencer: Sequencer) -> None:
        if self.appender is not None:
            self._append(sequencer, self.appender)
            return
        # Stopped right between looking and deciding, it goes on with what it knew.
        is_caught, self._was_stopped = self._was_stopped and self.sim.rng.random() < 0.5, False
        if not is_caught:
            if not self._keep_contact(sequencer):
                return
            if self.sim.hint is not None:
                self._mind_hint(sequencer)
        if not self.decides:
            return
        for sequence in range(sequencer.read_through + 1, len(self.sim.observed) + 1):
            if sequencer.observed_room <= 0:
                break
            sequencer.observe(sequence, self.sim.observed[sequence - 1])
        self._look_for_room(sequencer)
        now_ns = self.clock.now_ns(self._monotonic_ns)
        if now_ns is not None:
            self._draft(sequencer, now_ns)

    def _look_for_room(self, sequencer: Sequencer) -> None:
        """While there is hardly any, only releases are decided; then all have a grace time."""
        if sequencer.releases_only == self._is_low:
            return
        sequencer.releases_only = self._is_low
        if not self._is_low:
            sequencer.note(inputs.DeciderStarts(sequencer.writer, "outage", self.clock.age_ms(self._monotonic_ns)))
            return
        self._owed.clear()
        for pending in sequencer.give_up_requests():
            if isinstance(pending.asked.request, RELEASING):
                sequencer.ask(pending.ticket, pending.asked.principal, pending.asked.request)

    def _keep_contact(self, sequencer: Sequencer) -> bool:
        """Once a second: the server's time, what others have appended."""
        monotonic_ns = self._monotonic_ns
        is_fresh = self._contact_ns and monotonic_ns - self._contact_ns < limits.CONTACT_MS * MS
        if is_fresh and not self.is_deaf and not self.clock.trouble:
            # A standby follows the log all the time.
            return self.decides or self._catch_up(sequencer)
        self.is_deaf = not self.sim.log.is_reached(self.sim.now_ns)
        if self.is_deaf:
            return False
        server_ns = self.sim.now_ns + self.sim.server.error_ns
        self.clock.heard_server(
            server_ns=server_ns,
            monotonic_ns=monotonic_ns,
            wall_ns=server_ns + self.machine.skew_ns,
            log_ns=sequencer.state.head.decided_at_ns,
        )
        if not self._catch_up(sequencer):
            return False
        self._contact_ns = monotonic_ns
        self._note_touch()
        if self.contact.reached(monotonic_ns) and (self.decides or sequencer.state.head.decider == sequencer.writer):
            sequencer.note(inputs.DeciderStarts(sequencer.writer, "outage", self.clock.age_ms(monotonic_ns)))
        self.machine.keep(self.clock, sequencer.state.head.ledger_id, sequencer.writer)
        return True

    def _note_touch(self) -> None:
        if self.sim.now_ns - self._touched_ns > limits.OUTAGE_MS * MS:
            self.in_touch_since_ns = self.sim.now_ns
        self._touched_ns = self.sim.now_ns

    def _catch_up(self, sequencer: Sequencer) -> bool:
        """Fold what others have appended; whether the log could be reached."""
        if not self.sim.log.is_reached(self.sim.now_ns):
            self.is_deaf = True
            return False
        for sequence in range(sequencer.state.head.sequence + 1, len(self.sim.log.bodies) + 1):
            self._folded(sequencer, sequence, self.sim.log.bodies[sequence - 1])
        self.standby.forget(self._monotonic_ns - limits.REQUEST_HEARD_MS * MS)
        return True

    def _folded(self, sequencer: Sequencer, sequence: int, body: bytes) -> None:
        """Fold another's record, with all that hangs on it."""
        lost = sequencer.in_flight is not None
        record = sequencer.lost(sequence, body) if lost else sequencer.apply(sequence, body)
        self.standby.seen(record)
        self.clock.heard_record(decided_at_ns=record.decided_at_ns, monotonic_ns=self._monotonic_ns)

    # --- who decides ----------------------------------------------------------------------------------------------

    def _mind_hint(self, sequencer: Sequencer) -> None:
        assert self.sim.hint is not None
        able = self.clock.now_ns(self._monotonic_ns) is not None and not self.is_deaf
        now_ns, monotonic_ns = self.sim.now_ns, self._monotonic_ns
        look_once(self.leading, self.sim.hint, now_ns=now_ns, monotonic_ns=monotonic_ns, able=able)
        decides = self.leading.decides(monotonic_ns) and able
        if decides and not self.decides:
            if self._catch_up(sequencer):
                self._decide_from_here(sequencer, "takeover")
        elif self.decides and not decides:
            self._stand_by(sequencer)

    def _decide_from_here(self, sequencer: Sequencer, reason: str) -> None:
        self.decides = True
        sequencer.note(inputs.DeciderStarts(sequencer.writer, reason, self.clock.age_ms(self._monotonic_ns)))
        # What was heard just before a bound of time may have been forgotten by it.
        since_ns = self.sim.now_ns - (limits.REQUEST_HEARD_MS - 1_000) * MS
        has_room = True
        for ticket, asked in self.standby.take_over():
            if not sequencer.ask(ticket, asked.principal, asked.request):
                # There is no room for it: whoever asked hears that it is unavailable.
                has_room = False
                self._heard.pop((asked.principal, asked.request.request_id), None)
        if has_room and not self.sim.is_flooded:
            self._owed = {key for key, at_ns in self._heard.items() if at_ns >= since_ns}

    def _stand_by(self, sequencer: Sequencer) -> None:
        self.decides = sequencer.releases_only = False
        self._owed.clear()
        sequencer.give_up_notes()
        for pending in sequencer.give_up_requests():
            asked = pending.asked
            self._forget(self.standby.hear(pending.ticket, asked.principal, asked.request, self._monotonic_ns))

    def _settle_debts(self, sequencer: Sequencer) -> None:
        """Who took over and has nothing left to do has decided all that it heard while it stood by."""
        if self._owed and self.decides and self.appender is None and not sequencer.waiting and not sequencer.replies:
            missing = self._owed - self.sim.oracle.decided.keys()
            if missing:
                raise ViolationError(f"takeover: {min(missing)} was heard, but {sequencer.writer} did not decide it")
            self._owed.clear()

    # --- deciding -------------------------------------------------------------------------------------------------

    def _draft(self, sequencer: Sequencer, now_ns: int) -> None:
        draft = sequencer.draft(now_ns)
        if draft is not None:
            self.drafted_ns = self.sim.now_ns
            self.appender = Appender(draft.expected, draft.body)
        elif sequencer.replies:
            self._look_before_answering(sequencer)

    def _look_before_answering(self, sequencer: Sequencer) -> None:
        """Answers that no record carries are as old as the state: the log is asked whether it goes on."""
        is_reached = self.sim.log.is_reached(self.sim.now_ns)
        if not is_reached or len(self.sim.log.bodies) != sequencer.state.head.sequence:
            sequencer.reconsider()
            self._contact_ns = 0

    def _append(self, sequencer: Sequencer, appender: Appender) -> None:
        action = appender.action
        if not self.sim.log.is_reached(self.sim.now_ns):
            self._contact_ns = 0
            return
        if isinstance(action, Append):
            action = appender.answered(*self._publish(action))
        elif isinstance(action, Read):
            action = appender.found(self.sim.log.read(action.sequence))
            self._contact_ns = 0
        if self.sequencer is None:
            return
        if isinstance(action, Won):
            self.appender = None
            sequencer.committed()
        elif isinstance(action, Lost):
            self.appender = None
            self._folded(sequencer, action.sequence, action.body)
            self._contact_ns = 0

    def _publish(self, action: Append) -> tuple[Said, int]:
        rng, faults, log = self.sim.rng, self.sim.faults, self.sim.log
        chance = rng.random()
        if (chance := chance - faults.publish_lost) < 0:
            return Said.NOTHING, 0
        if (chance := chance - faults.publish_late) < 0:
            due_ns = self.sim.now_ns + rng.randrange(1, 60) * SECOND // 4
            self.sim.later(due_ns, lambda: log.append(action.expected, action.body))
            return Said.NOTHING, 0
        said = log.append(action.expected, action.body)
        if (chance := chance - faults.killed_after_append) < 0:
            self.kill()
        if chance - faults.ack_lost < 0:
            return Said.NOTHING, 0
        return said

    def _reply(self) -> None:
        if self.sequencer is None:
            return
        for reply in self.sequencer.replies:
            self.sim.deliver(reply.ticket, reply.answer)
        self.sequencer.replies.clear()
