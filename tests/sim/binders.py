"""Binders in the simulator, around the real core of handing over and the real reporter, and what is checked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from leasehold.events import codec, event_types, hostdev_events, limits
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceKey, device_id, split_device_id
from leasehold.events.inputs import BINDER, NotPrepared, Observation, Observed
from leasehold.events.position import position_of
from leasehold.events.schedule_events import LeaseSwitched, LeaseTransferred
from leasehold.projections import vouching
from leasehold.projections.bindings import holds_of
from leasehold.projections.handing import Handing
from leasehold.projections.handnotes import Job, Note, Operate, Outcome, Prepare, TakeBack
from leasehold.projections.handorders import HandOrders
from leasehold.projections.handover import Before, Failed
from leasehold.projections.orders import open_orders
from leasehold.projections.reporting import Need, Reporter
from leasehold.projections.views import picture_of
from tests.sim.hypervisors import UUIDS
from tests.sim.kernels import SimKernel
from tests.sim.machines import NoteBefore, Steps, carry_out
from tests.sim.watchers import known_of, send
from tests.sim.world import SimHost, ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MS: Final = 1_000_000
LAG_EVENTS: Final = 3
BOUNDS: Final = {
    "prepare_timeout_ms": 20_000,
    "give_back_timeout_ms": 8_000,
    "again_ms": 5_000,
    "held_timeout_ms": 20_000,
}
"""Small, so that runs of two minutes reach them."""
ENDS: Final = (
    event_types.LeaseReleased,
    event_types.LeaseExpired,
    event_types.LeaseOutlived,
    hostdev_events.PrepareFailed,
    hostdev_events.LeaseRevoked,
)
ASK_ANEW_MS: Final = 10_000
"""So often a binder asks what the log has, as a lost last message of the feed shows by nothing else."""


@dataclass(frozen=True)
class Told:
    """An event as the feed tells it to hosts."""

    position: int
    event: Event
    at_ns: int
    era: int
    hosts: frozenset[str]
    """Which hosts hear of it; empty: all."""


@dataclass
class SimFeed:
    """What is told of each host, in the order of the log."""

    told: list[Told] = field(default_factory=list)
    ended_ns: dict[int, int] = field(default_factory=dict)
    """When leases ended, by the true time."""
    lease_of: dict[int, int] = field(default_factory=dict)
    """Whose a token is or was, by the position that it is made of."""
    replaced_ns: dict[int, int] = field(default_factory=dict)
    """When another token came in the place of one, as leases changed hands."""
    _tokens: dict[int, int] = field(default_factory=dict)
    _leases: dict[int, frozenset[str]] = field(default_factory=dict)

    def add(self, sequence: int, body: bytes, now_ns: int) -> None:
        """The next record."""
        record = codec.decode_record(body, sequence)
        position: int = position_of(sequence, 0)
        for step in record.steps:
            for event in step.events:
                hosts = self._hosts_of(position, event)
                if isinstance(event, ENDS):
                    self.ended_ns[event.lease] = now_ns
                self._note_token(position, event, now_ns)
                self.told.append(Told(position, event, record.decided_at_ns, record.era, hosts))
                position += 1

    def _note_token(self, position: int, event: Event, now_ns: int) -> None:
        if isinstance(event, event_types.LeaseGranted):
            self.lease_of[position] = position
            self._tokens[position] = position
        elif isinstance(event, LeaseTransferred | LeaseSwitched):
            self.replaced_ns[self._tokens[event.lease]] = now_ns
            self._tokens[event.lease] = position
            self.lease_of[position] = event.lease

    def _hosts_of(self, position: int, event: Event) -> frozenset[str]:
        match event:
            case event_types.LeaseGranted():
                self._leases[position] = frozenset(split_device_id(device)[0] for device in event.devices)
                return self._leases[position]
            case event_types.DeviceFreed():
                return frozenset({split_device_id(event.device)[0]})
            case hostdev_events.PrepareFailed():
                return self._leases[event.lease]
        lease, host = getattr(event, "lease", 0), getattr(event, "host", "")
        if host:
            return frozenset({host})
        return self._leases.get(lease, frozenset())


@dataclass
class SimBinder:
    """A binder: killed between any two steps, cut off from the bus, deaf for a while, its messages lost or late."""

    sim: Simulation
    host: SimHost
    kernel: SimKernel
    disk: dict[DeviceKey, Note] = field(default_factory=dict)
    """Its notes, as they were last made durable."""
    handing: Handing | None = None
    orders: HandOrders | None = None
    reporter: Reporter | None = None
    cut_off_until_ns: int = 0
    gone_until_ns: int = 0
    """Until then nobody runs it."""
    _heard: int = 0
    """How much of the feed."""
    _work: list[tuple[Job, Steps]] = field(default_factory=list)
    _waited: int = 0
    _asked_ms: int = 0
    """When it asked last what the log has."""
    _has_lost: bool = False
    """The last thing that was told did not arrive."""
    _misses: bool = False
    """It is known that something did not."""

    def act(self) -> None:
        """One turn of its loop: some work, what is told of its host, a heartbeat, and what its answer calls for."""
        rng = self.sim.binder_rng
        if self.sim.is_off(self.host.name) or self.sim.now_ns < self.gone_until_ns:
            self.die()
            return
        if rng.random() < self.sim.faults.binder_killed:
            self.die()
            return
        if self.handing is None:
            self.handing = Handing(self.host.name, self.disk.values(), boot=str(self.kernel.boots), **BOUNDS)
            self.orders = HandOrders(self.handing)
            self._heard = len(self.sim.feed.told)
        self._do(self.handing)
        if self.sim.now_ns < self.cut_off_until_ns:
            return
        self._hear(self.handing)
        self._speak(self.handing)
        if self.handing is not None:
            self._do(self.handing)

    def die(self) -> None:
        """All that is in memory is gone. What the kernel was told last it may still do."""
        rng = self.sim.binder_rng
        for _, steps in self._work:
            if rng.random() < 0.3:
                next(steps, None)
            steps.close()
        self._work.clear()
        self.handing = self.orders = self.reporter = None

    @property
    def now_ms(self) -> int:
        """By a clock that nobody sets."""
        return self.sim.now_ns // MS

    # --- speaking ---------------------------------------------------------------------------------------------------

    def _hear(self, handing: Handing) -> None:
        """What the feed has told since; a message that is lost is noticed with the next one."""
        rng, told = self.sim.binder_rng, self.sim.feed.told
        end = len(told) if rng.random() < 0.8 else min(len(told), self._heard + rng.randrange(LAG_EVENTS))
        for each in told[self._heard : end]:
            if each.hosts and self.host.name not in each.hosts:
                continue
            self._misses = self._misses or self._has_lost
            self._has_lost = rng.random() < self.sim.faults.told_lost
            if self._has_lost:
                continue
            handing.hear(each.position, each.event, at_ns=each.at_ns, era=each.era, now_ms=self.now_ms)
            if self.orders is not None:
                self.orders.hear(each.position, each.event, at_ns=each.at_ns)
        self._heard = end

    def _speak(self, handing: Handing) -> None:
        known = known_of(self.sim, self.host.name, BINDER)
        if self.reporter is None:
            run = max(known.run + 1, self.sim.now_ns)
            self.reporter = Reporter(self.host.name, BINDER, run, manages=True)
            self._send(self.reporter.starts())
            return
        need = self.reporter.need(known)
        self._waited = self._waited + 1 if need is Need.WAIT else 0
        if need is Need.SUPERSEDED:
            self.die()
        elif need is Need.AGAIN:
            self._send(self.reporter.starts())
        elif need is Need.WAIT and self._waited > 3:
            self._send(self.reporter.assure())
        elif need is Need.SYNC or (need is Need.NOTHING and self._wants_sync(handing)):
            self._sync(handing, self.reporter)
        elif need is Need.NOTHING:
            handing.contact(self.now_ms)
            self._send_all(self.reporter.tell(self._news(handing)))

    def _wants_sync(self, handing: Handing) -> bool:
        is_time = self.now_ms - self._asked_ms >= ASK_ANEW_MS
        return self._misses or handing.log.wants_sync or is_time

    def _sync(self, handing: Handing, reporter: Reporter) -> None:
        state = self.sim.reader
        holds = holds_of(state, self.host.name)
        as_of = position_of(state.head.sequence + 1, 0) - 1
        picture = picture_of(state, self.host.name)
        if not handing.synced(holds, picture, as_of=as_of, era=state.head.era, now_ms=self.now_ms):
            raise ViolationError(f"handing: the binder of {self.host.name} does not take what the log says")
        if self.orders is not None:
            self.orders.synced(open_orders(state, self.host.name, BINDER), as_of)
        self._misses, self._asked_ms = False, self.now_ms
        self._send_all(reporter.synced({}, {}, also=self._news(handing)))

    def _news(self, handing: Handing) -> list[Observation]:
        return [*handing.observations(), *(self.orders.observations() if self.orders is not None else ())]

    def _send_all(self, messages: Sequence[Observed]) -> None:
        for message in messages:
            self._send(message)

    def _send(self, message: Observed) -> None:
        send(self.sim, message, self.sim.binder_rng)

    # --- doing ------------------------------------------------------------------------------------------------------

    def _do(self, handing: Handing) -> None:
        """Begin with what is to be done, and do a step of each job."""
        jobs: list[Job] = [*handing.jobs(self.now_ms)]
        if self.orders is not None:
            jobs += self.orders.jobs(self.now_ms)
        words = handing._telling._ends.values()
        self.kernel.failed |= {word.lease for word in words if isinstance(word, NotPrepared)}
        for job in jobs:
            self._write(handing)
            self._work.append((job, carry_out(self.kernel, job, self._noting(handing))))
        for work in list(self._work):
            for _ in range(self.sim.binder_rng.choice((0, 1, 1, 3))):
                try:
                    next(work[1])
                except StopIteration as end:
                    self._work.remove(work)
                    self._done(handing, work[0], end.value)
                    break

    def _done(self, handing: Handing, job: Job, outcome: Outcome) -> None:
        if isinstance(job, Operate):
            if self.orders is not None:
                self.orders.done(job, outcome)
        else:
            if isinstance(job, Prepare) and isinstance(outcome, Failed):
                self.kernel.failed.add(job.grant.lease)
            handing.done(job.number, outcome, self.now_ms)
            if isinstance(job, TakeBack) and self.orders is not None:
                self.orders.taken_back(job.key, outcome)
        self._write(handing)

    def _noting(self, handing: Handing) -> NoteBefore:
        def note(befores: Sequence[Before]) -> None:
            handing.noted(befores)
            self._write(handing)

        return note

    def _write(self, handing: Handing) -> None:
        """Make the notes durable: floors never go back."""
        for note in handing.notes:
            before = self.disk.get(note.key)
            if before is not None and note.floor < before.floor:
                raise ViolationError(f"handing: the floor of {note.key} goes back from {before.floor} to {note.floor}")
            self.disk[note.key] = note

    # --- its door ---------------------------------------------------------------------------------------------------

    def may_have(self, uuid: str, key: DeviceKey) -> bool:
        """Whether a hook lets this domain have a device: not where nobody answers it."""
        if self.handing is None:
            return False
        verdict = vouching.may_have(self.handing, uuid, "", (key,), self.now_ms)
        if verdict.refusal is not None or not verdict.is_ready:
            return False
        for lease in verdict.leases:
            self._judge_vouching(key, lease, self.sim.now_ns)
            if self.kernel.handed.get(key, lease) != lease:
                raise ViolationError(f"door: {key} is let go to {uuid}, but is in {self.kernel.handed[key]}'s hands")
            if self.sim.oracle.leases[lease].domain != uuid:
                raise ViolationError(f"door: {key} is let go to {uuid}, but {lease} is not for that")
        return True

    def check_token(self, key: DeviceKey, token: int) -> None:
        """Whoever shows a token there: one that does not act any more may be let in for so long as was agreed."""
        if self.handing is not None and vouching.check_token(self.handing, key, token, self.now_ms) is None:
            lease = self.sim.feed.lease_of.get(token % 2**47, 0)
            self._judge_vouching(key, lease, self.sim.feed.replaced_ns.get(token % 2**47, self.sim.now_ns))
            if self.sim.oracle.leases[lease].reserved_for:
                raise ViolationError(f"door: {lease} is let in to {key}, but only reserved")

    def try_door(self) -> None:
        """Show the tokens of all that is handed over, and let some domain ask for it."""
        era = self.sim.oracle.era << 47
        for key, lease in self.kernel.handed.items():
            self.check_token(key, lease | era)
            row = self.sim.oracle.leases.get(lease)
            if row is not None and row.token != lease:
                self.check_token(key, row.token | era)
            self.may_have(self.sim.binder_rng.choice(UUIDS), key)

    def _judge_vouching(self, key: DeviceKey, lease: int, until_ns: int) -> None:
        """`until_ns`: when it was over with what was shown, if it is."""
        row = self.sim.oracle.leases.get(lease)
        ended_ns = min(until_ns, self.sim.feed.ended_ns.get(lease, until_ns))
        if row is None or device_id(self.host.name, key) not in row.devices:
            raise ViolationError(f"door: {lease} is let in to {key}, which it is not for")
        silent_ms = (self.sim.now_ns - ended_ns) // MS
        if silent_ms > limits.CUT_OFF_MS + ASK_ANEW_MS + 2_000:
            raise ViolationError(f"door: {lease} is let in to {key}, {silent_ms} ms behind its end")


def check_hands(sim: Simulation) -> list[str]:
    """What is not as the log has it on managed hosts, once nothing is leased any more."""
    wrong = []
    for binder in sim.binders:
        kernel, name = binder.kernel, binder.host.name
        wrong += [f"{name}/{key} in {lease}'s hands" for key, lease in kernel.handed.items()]
        notes = binder.handing.notes if binder.handing is not None else ()
        wrong += [f"{name}/{note.key} noted as {note.step}" for note in notes if note.step]
    for device, row in sim.oracle.hands.devices.items():
        if row.quarantine:
            wrong.append(f"{device} in quarantine: {row.quarantine}")
        # Vendor and product mean the root hub here, too, and so accuse neither.
        is_foreign = bool(sim.oracle.domains.users(device, ("", "")))
        if row.drift[0] != ("foreign" if is_foreign else ""):
            wrong.append(f"{device} drifts: {row.drift[0] or 'not'}, but a domain has it: {is_foreign}")
    return wrong

