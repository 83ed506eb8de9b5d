"""Watchers in the simulator, around the real reporter, and what is checked of whoever reads the log."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from leasehold.events import codec
from leasehold.events.answers import Answer, Heard
from leasehold.events.identities import HostName
from leasehold.events.inputs import CREATOR, Observed
from leasehold.projections import evolve
from leasehold.projections.answers import heard
from leasehold.projections.reporting import Need, Reporter
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.projections.views import picture_of
from tests.sim.world import SECOND, SimHost, ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class SimWatcher:
    """A watcher: restarted, its messages lost, late or doubled."""

    def __init__(self, sim: Simulation, host: SimHost) -> None:
        self.sim = sim
        self.host = host
        self.reporter: Reporter | None = None
        self.cut_off_until_ns = 0
        self._waited = 0

    def act(self) -> None:
        """One turn of its loop: a heartbeat, and what its answer calls for."""
        rng, faults = self.sim.rng, self.sim.faults
        if rng.random() < faults.watcher_killed or self.sim.is_off(self.host.name):
            self.reporter = None
            return
        if self.sim.now_ns < self.cut_off_until_ns:
            return
        known = known_of(self.sim, self.host.name, "watcher")
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
        send(self.sim, message, self.sim.rng)


def known_of(sim: Simulation, host: HostName, agent: str) -> Heard:
    """The answer to a heartbeat: of one that decides, or thinks that it does."""
    answers = [allocator.heard(host, agent) for allocator in sim.allocators]
    told = [answer for answer in answers if answer is not None]
    rng = sim.order_rng if agent == CREATOR else sim.side_rng
    return rng.choice(told or [heard(sim.reader, host, agent)])


def send(sim: Simulation, message: Observed, rng: random.Random) -> None:
    """An agent's message goes out: it may be lost, late, or come twice."""
    faults = sim.faults
    copy = codec.decode_observed(codec.encode(message))
    if copy != message:
        raise ViolationError("codec: an observation was not read as written")
    chance = rng.random()
    if (chance := chance - faults.observed_lost) < 0:
        return
    if (chance := chance - faults.observed_late) < 0:
        due_ns = sim.now_ns + rng.randrange(1, 40) * SECOND // 2
        sim.later(due_ns, lambda: sim.observed.append(copy))
        return
    sim.observed.append(copy)
    if chance - faults.observed_twice < 0:
        sim.observed.append(copy)


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
