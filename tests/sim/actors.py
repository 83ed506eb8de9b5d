"""Who acts in the simulator: allocators around the real sequencer, and watchers around the real reporter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.inputs import Observed, Request
from leasehold.projections import evolve
from leasehold.projections.answers import heard
from leasehold.projections.appending import Append, Appender, Lost, Read, Said, Won
from leasehold.projections.reporting import Need, Reporter
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.projections.timekeeping import Contact, LedgerClock
from leasehold.projections.views import picture_of
from tests.sim.world import SECOND, SimHost, ViolationError

if TYPE_CHECKING:
    from tests.sim.run import Simulation


class SimAllocator:
    """An allocator: killed, paused, with a wrong clock, cut off between append and acknowledgement."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.skew_ns = 0
        self.paused_until_ns = 0
        self.sequencer: Sequencer | None = None
        self.appender: Appender | None = None
        self.clock = LedgerClock()
        self.contact = Contact()
        self._starts = 0

    @property
    def is_up(self) -> bool:
        """Whether it would take a request now."""
        return self.sequencer is not None and self.sim.now_ns >= self.paused_until_ns

    def ask(self, ticket: int, principal: str, request: Request) -> None:
        """A request arrives."""
        if self.sequencer is not None:
            self.sequencer.ask(ticket, principal, request)  # type: ignore[arg-type]

    def kill(self) -> None:
        """All that was in memory is gone."""
        self.sequencer = None
        self.appender = None

    def act(self) -> None:
        """A few steps of its loop."""
        rng, faults = self.sim.rng, self.sim.faults
        if self.sim.now_ns < self.paused_until_ns:
            return
        if rng.random() < faults.killed:
            self.kill()
        if rng.random() < faults.paused:
            self.paused_until_ns = self.sim.now_ns + rng.randrange(1, 90) * SECOND
            return
        if self.sequencer is None:
            self._start()
        for _ in range(rng.randrange(1, 5)):
            if self.sequencer is None:
                return
            self._step(self.sequencer)
        self._reply()

    def _start(self) -> None:
        self._starts += 1
        state = State()
        if self.sim.snapshot and self.sim.rng.random() < 0.5:
            state = decode_state(self.sim.snapshot) or state
        self.sequencer = Sequencer(state, cluster="sim", writer=f"{self.name}.{self._starts}")
        self.clock, self.contact = LedgerClock(), Contact()
        self._catch_up(self.sequencer)
        self.sequencer.note(inputs.DeciderStarts(self.sequencer.writer, "start"))

    def _catch_up(self, sequencer: Sequencer) -> None:
        for sequence in range(sequencer.state.head.sequence + 1, len(self.sim.log.bodies) + 1):
            sequencer.apply(sequence, self.sim.log.bodies[sequence - 1])
        self._reached(sequencer)

    def _reached(self, sequencer: Sequencer) -> None:
        now_ns = self.sim.now_ns
        server_ns = now_ns + self.sim.server_error_ns
        self.clock.heard_server(server_ns=server_ns, monotonic_ns=now_ns, wall_ns=server_ns + self.skew_ns)
        if self.contact.reached(now_ns):
            sequencer.note(inputs.DeciderStarts(sequencer.writer, "outage"))

    def _step(self, sequencer: Sequencer) -> None:
        if self.appender is not None:
            self._append(sequencer, self.appender)
            return
        self._catch_up(sequencer)
        for sequence in range(sequencer.read_through + 1, len(self.sim.observed) + 1):
            if sequencer.observed_room <= 0:
                break
            sequencer.observe(sequence, self.sim.observed[sequence - 1])
        now_ns = self.clock.now_ns(self.sim.now_ns)
        if now_ns is None:
            return
        draft = sequencer.draft(now_ns)
        if draft is not None:
            self.appender = Appender(draft.expected, draft.body)

    def _append(self, sequencer: Sequencer, appender: Appender) -> None:
        action = appender.action
        if isinstance(action, Append):
            action = appender.answered(*self._publish(action))
        elif isinstance(action, Read):
            action = appender.found(self.sim.log.read(action.sequence))
            self._reached(sequencer)
        if self.sequencer is None:
            return
        if isinstance(action, Won):
            self.appender = None
            sequencer.committed()
        elif isinstance(action, Lost):
            self.appender = None
            sequencer.lost(action.sequence, action.body)

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


class SimWatcher:
    """A watcher: restarted, its messages lost, late or doubled."""

    def __init__(self, sim: Simulation, host: SimHost) -> None:
        self.sim = sim
        self.host = host
        self.reporter: Reporter | None = None
        self.silent = False
        self._waited = 0

    def act(self) -> None:
        """One turn of its loop: a heartbeat, and what its answer calls for."""
        rng, faults = self.sim.rng, self.sim.faults
        if rng.random() < faults.watcher_killed:
            self.reporter = None
            return
        known = heard(self.sim.reader, self.host.name, "watcher")
        if self.reporter is None:
            # The host's clock may be wrong by an hour, but it does not stand still between two runs.
            clock_ns = self.sim.now_ns + rng.choice((0, 0, -3_600, 3_600)) * SECOND
            self.reporter = Reporter(self.host.name, "watcher", max(known.run + 1, clock_ns))
            self._send(self.reporter.starts())
            return
        need = self.reporter.need(known)
        self._waited = self._waited + 1 if need is Need.WAIT else 0
        if need is Need.SUPERSEDED:
            self.reporter = None
        elif need is Need.AGAIN:
            self._send(self.reporter.starts())
        elif need is Need.WAIT and self._waited > 3:
            self._send(self.reporter.assure())
        elif need is Need.SYNC:
            for message in self.reporter.synced(picture_of(self.sim.reader, self.host.name), self.host.picture()):
                self._send(message)
        elif need is Need.NOTHING:
            for message in self.reporter.look(self.host.picture()):
                self._send(message)

    def _send(self, message: Observed) -> None:
        rng, faults = self.sim.rng, self.sim.faults
        copy = codec.decode_observed(codec.encode(message))
        if copy != message:
            raise ViolationError("codec: an observation was not read as written")
        chance = rng.random()
        if (chance := chance - faults.observed_lost) < 0:
            return
        if (chance := chance - faults.observed_late) < 0:
            due_ns = self.sim.now_ns + rng.randrange(1, 40) * SECOND // 2
            self.sim.later(due_ns, lambda: self.sim.observed.append(copy))
            return
        self.sim.observed.append(copy)
        if chance - faults.observed_twice < 0:
            self.sim.observed.append(copy)


def check_reader(sim: Simulation) -> None:
    """Folding from zero, and from a snapshot with the tail, gives equal bytes.

    Raises:
        ViolationError: it does not.
    """
    whole = State()
    cut = sim.rng.randrange(len(sim.log.bodies) + 1)
    early = State()
    for sequence, body in enumerate(sim.log.bodies, 1):
        evolve.fold(whole, sequence, body)
        if sequence <= cut:
            evolve.fold(early, sequence, body)
    resumed = decode_state(encode_state(early))
    if resumed is None:
        raise ViolationError("snapshot: not read by the build that wrote it")
    for sequence in range(cut + 1, len(sim.log.bodies) + 1):
        evolve.fold(resumed, sequence, sim.log.bodies[sequence - 1])
    if not encode_state(whole) == encode_state(resumed) == encode_state(sim.reader):
        raise ViolationError(f"fold: snapshot at {cut} and tail differ from the fold from zero")


def refused(answer: Answer, code: str) -> bool:
    """Whether an answer is a refusal of this code."""
    return answer.refusal is not None and answer.refusal.code == code
