"""One simulated run: who is in it, what happens in each step, and what must hold in the end."""

import random
from collections.abc import Callable

from leasehold.events import codec
from leasehold.events.answers import Answer
from leasehold.events.identities import DeviceId, DeviceKey, HostName, RequestKey, split_device_id
from leasehold.events.inputs import POLLER, HostHeard, Observed, Request
from leasehold.projections import evolve
from leasehold.projections.auditing import Audit
from leasehold.projections.fencing import check_token
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from leasehold.projections.state import State
from leasehold.projections.views import picture_of
from tests.sim import restoring
from tests.sim.allocators import SimAllocator
from tests.sim.beliefs import check_expiries, note_cut_short
from tests.sim.binders import SimBinder, SimFeed, check_hands
from tests.sim.clocks import HOUR, SimServerClock
from tests.sim.creators import SimCreator, SimOrderer, check_orders
from tests.sim.hint import SimHint
from tests.sim.holders import Held, SimFlooder, SimHolder
from tests.sim.hypervisors import SOURCES, SimHypervisor
from tests.sim.kernels import SimKernel
from tests.sim.linear import Operation, is_linearizable
from tests.sim.oracle import Oracle
from tests.sim.patience import LOOK_EVERY_S, Patience
from tests.sim.pollers import SimPoller, check_pictures, cut_off_pollers, end_leased_domains
from tests.sim.schedulers import SimScheduler, tell_of_transfers
from tests.sim.stewards import SimSteward
from tests.sim.tenants import SimOperator, SimTenant
from tests.sim.wardens import SimWarden, disturb_hosts
from tests.sim.watchers import SimWatcher, check_reader
from tests.sim.world import GPU, SECOND, Faults, SimHost, SimLog, ViolationError, gpu

STEPS = 120
HEALING_STEPS = 400


class Simulation:
    """One run. The seed decides everything."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.side_rng = random.Random(f"side {seed}")
        """For what came later, so that what a seed leads to stays the same without it."""
        self.restore_rng = random.Random(f"restore {seed}")
        self.order_rng = random.Random(f"order {seed}")
        self.domain_rng = random.Random(f"domain {seed}")
        self.binder_rng = random.Random(f"binder {seed}")
        self.retire_rng = random.Random(f"retire {seed}")
        self.schedule_rng = random.Random(f"schedule {seed}")
        self.has_binders_retired = self.retire_rng.random() < 0.25
        self.restores = self._planned_restores()
        self.has_small_disk = self.side_rng.random() < 0.25
        self.low_until_ns = 0
        """Up to then there is hardly room for the log, and all that decide have been told so."""
        self.faults = Faults()
        self.now_ns = 1_700_000_000 * SECOND
        self.server = SimServerClock()
        self.hint = SimHint(self.rng, self.faults) if self.rng.random() < 0.85 else None
        """Without it everybody decides."""
        self.is_flooded = self.rng.random() < 0.1
        self.planned: dict[int, tuple[Callable[[], object], ...]] = {}
        """What is done after certain steps."""
        self._choose_faults()
        self.log = SimLog(stored=self._stored)
        self.observed: list[Observed] = []
        self.reader = State()
        self.snapshot = b""
        self.oracle = Oracle()
        self.history: list[Operation] = []
        self.hosts = [SimHost(HostName("h1")), SimHost(HostName("h2"))]
        self.allocators = [SimAllocator(self, f"alloc{number}") for number in range(3)]
        self.watchers = [SimWatcher(self, host) for host in self.hosts]
        self.creators: list[SimCreator] = []
        """In some runs hosts make devices."""
        self.pollers: list[SimPoller] = []
        """In some they have domains."""
        self.binders: list[SimBinder] = []
        """In some devices are handed over."""
        self.feed = SimFeed()
        self.off_until_ns: dict[HostName, int] = {}
        """Hosts that are off, or have been."""
        self.holders = [SimHolder(self, principal, f"{principal}-vm{n}") for principal in ("a", "b") for n in range(2)]
        for holder in self.holders:
            holder.is_lazy = self.rng.random() < 0.3
        if self.is_flooded:
            self.holders.append(SimFlooder(self, "c", "c-flood"))
        if self.order_rng.random() < 0.3:
            self._have_devices_made()
        if self.domain_rng.random() < 0.5:
            self._have_domains()
        if self.binder_rng.random() < 0.4:
            self._have_binders()
        self.patience = Patience()
        if self.schedule_rng.random() < 0.35:
            self._have_schedulers()
        if self.hint is not None and self.rng.random() < 0.25:
            self._plan_a_step_forward()
        self.healed_ns = 0
        """Since when nothing fails any more."""
        self.cut_short: set[int] = set()
        """Leases that ended before their time."""
        self.left_open = 0
        """Leases that ended early in the one case that no rule covers."""
        self._asked = 0
        self._later: list[tuple[int, Callable[[], object]]] = []
        self._tickets: dict[int, tuple[SimHolder, Request, int, int]] = {}

    def _have_devices_made(self) -> None:
        for host in self.hosts:
            host.devices[GPU] = gpu()
        self.creators = [SimCreator(self, host) for host in self.hosts]
        if self.order_rng.random() < 0.3:
            self.creators[1].gone_from_ns = self.now_ns + self.order_rng.randrange(20, 90) * SECOND
        self.holders.append(SimOrderer(self, "a", "a-orders"))

    def _have_domains(self) -> None:
        rng = self.domain_rng
        for host in self.hosts:
            hypervisor = SimHypervisor(host, rng, rng.choice(SOURCES), tells_generation=rng.random() < 0.5)
            poller = SimPoller(self, hypervisor)
            if rng.random() < 0.15:
                poller.gone_from_ns = self.now_ns + rng.randrange(20, 90) * SECOND
            self.pollers.append(poller)
        self.oracle.domains.pollers = {poller.hypervisor.host.name: poller for poller in self.pollers}
        self.holders += [SimTenant(self, "a", "a-tenant"), SimTenant(self, "b", "b-tenant")]
        self.holders.append(SimOperator(self, "op", "op"))

    def _have_binders(self) -> None:
        hypervisors = {poller.hypervisor.host.name: poller.hypervisor for poller in self.pollers}
        for host in self.hosts:
            if self.binder_rng.random() < 0.7:
                kernel = SimKernel(self, host, hypervisors.get(host.name))
                self.binders.append(SimBinder(self, host, kernel))
        self.oracle.hands.kernels = {binder.host.name: binder.kernel for binder in self.binders}
        self.holders.append(SimWarden(self, "op", "op-warden"))

    def _have_schedulers(self) -> None:
        """In some runs holders say what they need, and operators say what may be had."""
        names = (("a", "a-sched"), ("b", "b-sched"), ("b", "b-gang"))
        self.holders += [SimScheduler(self, principal, name) for principal, name in names]
        self.holders.append(SimSteward(self, "op", "op-steward"))

    def _planned_restores(self) -> frozenset[int]:
        rng = self.restore_rng
        count = rng.choice((1, 1, 3)) if rng.random() < 0.15 else 0
        return frozenset(rng.randrange(10, STEPS) for _ in range(count))

    def _choose_faults(self) -> None:
        rng, faults = self.rng, self.faults
        faults.flood = 0.05 if self.is_flooded else 0.0
        faults.server_jumps = rng.choice((0.0, 0.003, 0.02))
        faults.power_lost = rng.choice((0.0, 0.001, 0.02))
        faults.clock_jumps = rng.choice((0.0, 0.003, 0.02))
        # Leases last until a decider has been at work for a grace time: some runs let it.
        faults.killed, faults.paused = rng.choice(((0.004, 0.01), (0.004, 0.01), (0.02, 0.0), (0.001, 0.002)))

    def _plan_a_step_forward(self) -> None:
        """A quiet run, but that the server steps forward and allocators fail where it hurts most."""
        rng = self.rng
        self.faults.heal()
        self.is_flooded = False
        for holder in self.holders:
            holder.is_lazy, holder.ttls_ms = True, (80_000,)
        step = rng.randrange(15, 40)
        failed = rng.choice((self._lose_all, self._lose_standbys, self._lose_a_standby))
        self.planned[step] = (self.server.step_forward, failed)
        for _ in range(rng.choice((0, 1, 2, 2))):
            step += rng.randrange(5, 50)
            self.planned[step] = (rng.choice((self._lose_decider, self._stop_decider)),)

    def _lose_all(self) -> None:
        for allocator in self.allocators:
            allocator.kill(with_machine=True)

    def _lose_standbys(self) -> None:
        for allocator in self.allocators:
            if not allocator.decides:
                allocator.kill(with_machine=True)

    def _lose_a_standby(self) -> None:
        for allocator in [each for each in self.allocators if not each.decides][:1]:
            allocator.kill(with_machine=True)

    def _lose_decider(self) -> None:
        for allocator in self.allocators:
            if allocator.decides:
                allocator.kill(with_machine=True)

    def _stop_decider(self) -> None:
        for allocator in self.allocators:
            if allocator.decides:
                allocator.paused_until_ns = self.now_ns + 90 * SECOND

    # --- what actors use ------------------------------------------------------------------------------------------

    def later(self, due_ns: int, act: Callable[[], object]) -> None:
        """Do something at a later time."""
        self._later.append((due_ns, act))

    def submit(self, holder: SimHolder, request: Request, *, is_trick: bool = False) -> None:
        """A request goes out to all allocators that hear it."""
        if is_trick and request == holder.sent[request.request_id].request:
            return
        for allocator in self.allocators:
            if allocator.is_there and self.rng.random() >= self.faults.request_lost:
                self._asked += 1
                ticket = self._asked
                self._tickets[ticket] = (holder, request, len(self.log.bodies), self.now_ns)
                allocator.ask(ticket, holder.principal, request)

    def deliver(self, ticket: int, answer: Answer) -> None:
        """An answer comes back, or is lost."""
        holder, request, asked_at, asked_ns = self._tickets.pop(ticket)
        holder.asked_ns = asked_ns
        if answer.state == "living" and self.oracle.ended_by(answer.lease, asked_at):
            raise ViolationError(f"current: {answer.lease} was told as living, but had ended when that was asked")
        if self.rng.random() >= self.faults.reply_lost:
            holder.take(request, answer)

    def asked_as(self, ticket: int) -> tuple[str, str]:
        """By whom, and under which id, that was asked to which no answer has come yet."""
        holder, request, *_ = self._tickets[ticket]
        return holder.principal, request.request_id

    def holder_of(self, held: Held) -> SimHolder:
        """Whose this lease is."""
        return next(holder for holder in self.holders if held in holder.held)

    def is_off(self, host: HostName) -> bool:
        """Whether this host has no power."""
        return self.now_ns < self.off_until_ns.get(host, 0)

    def binder_of(self, device: str) -> SimBinder | None:
        """Who hands this device over; nobody on a host that is only watched."""
        return next((each for each in self.binders if each.host.name == device.partition("/")[0]), None)

    def is_ready(self, host: HostName, key: DeviceKey, lease: int) -> bool:
        """Whether a leased device can be used: where it is handed over, behind that."""
        kernel = self.oracle.hands.kernels.get(host)
        return kernel is None or (kernel.is_there(key) and kernel.is_ready(key, lease))

    def _stored(self, sequence: int, body: bytes) -> None:
        self.oracle.record(sequence, body)
        if self.oracle.writer not in self.oracle.announced:
            raise ViolationError(f"time: {self.oracle.writer} decided before it said so")
        check_expiries(self, body)
        note_cut_short(self, body)
        evolve.fold(self.reader, sequence, body)
        tell_of_transfers(self, body)
        if self.binders:
            self.feed.add(sequence, body, self.now_ns)
        if self.rng.random() < 0.02:
            self.snapshot = encode_state(self.reader)

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it.

        Raises:
            ViolationError: a promise was broken.
        """
        for number in range(STEPS + 100 * bool(self.planned)):
            self._step()
            for act in self.planned.get(number, ()):
                act()
            if number in self.restores:
                restoring.restore(self)
        self._heal()
        self._check_end()

    def _step(self) -> None:
        self.now_ns += self.rng.choice((50, 200, 400, 900, 1_500)) * 1_000_000
        self._do_what_is_due()
        self._disturb_time()
        for allocator in self.allocators:
            if self.rng.random() < 0.7:
                allocator.act()
        for watcher in self.watchers:
            if self.rng.random() < 0.6:
                watcher.act()
        for creator in self.creators:
            creator.act()
        self._let_domains_act()
        for binder in self.binders:
            binder.kernel.act()
            binder.act()
        for holder in self.holders:
            if self.rng.random() < 0.6:
                holder.act()
        self._disturb()
        self._try_tokens()

    def _let_domains_act(self) -> None:
        for poller in self.pollers:
            poller.hypervisor.act(self.now_ns)
        for poller in self.pollers:
            poller.act()

    def _disturb_time(self) -> None:
        rng, faults = self.rng, self.faults
        if rng.random() < faults.clock_jumps:
            rng.choice(self.allocators).machine.skew_ns = rng.choice((0, 0, HOUR, -HOUR, 2 * SECOND))
        if rng.random() < faults.clock_jumps:
            # Past the hour the log refuses what they ask for.
            rng.choice(self.holders).skew_ns = rng.choice((0, 0, 0, HOUR - 60 * SECOND, -HOUR, 2 * HOUR))
        if rng.random() < faults.server_jumps:
            self.server.jump(rng)
        if rng.random() < faults.power_lost:
            # And what was a wrong clock is a right one afterwards.
            self.server.jump(rng)
            self._lose_all()
        if rng.random() < faults.log_down:
            self.log.down_until_ns = self.now_ns + rng.randrange(1, 40) * SECOND
        if self.has_small_disk and self.side_rng.random() < 0.02:
            self.low_until_ns = self.now_ns + self.side_rng.randrange(1, 40) * SECOND
        if rng.random() < faults.host_cut_off:
            rng.choice(self.watchers).cut_off_until_ns = self.now_ns + rng.randrange(1, 60) * SECOND
        cut_off_pollers(self)
        disturb_hosts(self)
        if self.hint is not None:
            self.hint.disturb(self.now_ns)

    def _do_what_is_due(self) -> None:
        due = [each for each in self._later if each[0] <= self.now_ns]
        self._later = [each for each in self._later if each[0] > self.now_ns]
        for _, act in sorted(due, key=lambda each: each[0]):
            act()

    def _disturb(self) -> None:
        if self.faults.killed and self.rng.random() < 0.04:
            self.rng.choice(self.hosts).shuffle(self.rng)
        if self.rng.random() < (0.03 if self.faults.killed else 0.2):
            host = self.rng.choice(self.hosts)
            row = self.reader.hosts.get(host.name)
            alive = not self.faults.killed or self.rng.random() < 0.6
            for allocator in self.allocators:
                if row is not None and allocator.sequencer is not None and allocator.decides:
                    for agent, source in row.sources.items():
                        heard = alive and not self._has_gone(host.name, agent)
                        allocator.sequencer.note(HostHeard(host.name, agent, source.run, heard))

    def _has_gone(self, host: HostName, agent: str) -> bool:
        gone = (each.hypervisor.host.name for each in self.pollers if each.is_gone)
        return self.is_off(host) or (agent == POLLER and host in gone)

    def _try_tokens(self) -> None:
        """Whatever token is shown at the door of a device, only its living lease's may act."""
        restoring.check_tokens(self, self.reader)
        for binder in self.binders:
            binder.try_door()
        held = [held for holder in self.holders for held in holder.has()]
        if not held:
            return
        shown = self.rng.choice(held)
        device = self.rng.choice(shown.devices)
        token = shown.token + self.rng.choice((0, 0, 0, 1, -256))
        door = self.binder_of(device)
        if door is not None:
            door.check_token(split_device_id(DeviceId(device))[1], token)
        if check_token(self.reader, DeviceId(device), token) is None and not self.oracle.may_act(device, token):
            raise ViolationError(f"token: {token} was let in to {device}")

    # --- the end --------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Nothing fails any more: everything that was asked is answered, and everything becomes free."""
        self.faults.heal()
        self.healed_ns = self.now_ns
        for allocator in self.allocators:
            allocator.machine.skew_ns = allocator.paused_until_ns = 0
        self.log.down_until_ns = self.low_until_ns = 0
        self.has_small_disk = False
        if self.hint is not None:
            self.hint.silent_until_ns = 0
        for watcher in self.watchers:
            watcher.cut_off_until_ns = 0
        for holder in self.holders:
            holder.skew_ns = 0
        for host in self.hosts:
            host.devices.update(host.absent)
            host.absent.clear()
        self.off_until_ns.clear()
        for binder in self.binders:
            binder.cut_off_until_ns = binder.gone_until_ns = 0
            binder.kernel.settle()
        for poller in self.pollers:
            poller.cut_off_until_ns = 0
            poller.hypervisor.settle(self.now_ns)
        for step in range(HEALING_STEPS):
            self.now_ns += SECOND
            self._do_what_is_due()
            # Where the log is ahead of the server, it waits: nobody needs to watch that second by second.
            self.now_ns += max(0, self.oracle.decided_at_ns - self.now_ns - self.server.error_ns)
            for allocator in self.allocators:
                allocator.act()
            for watcher in self.watchers:
                watcher.act()
            for creator in self.creators:
                creator.act()
            self._let_domains_act()
            for binder in self.binders:
                binder.kernel.act()
                binder.act()
            end_leased_domains(self)
            for holder in self.holders:
                holder.settle()
                for sent in list(holder.sent.values()):
                    if sent.answer is None and step % 5 == 0:
                        self.submit(holder, sent.request)
            self._disturb()
            if step % LOOK_EVERY_S == 0:
                self.patience.look(self)
            if step > 10 and self._is_quiet():
                return
        raise ViolationError(f"liveness: {self._left_over()} after {HEALING_STEPS} s without faults")

    def _is_quiet(self) -> bool:
        return not self._left_over()

    def _left_over(self) -> str:
        waiting = [id_ for holder in self.holders for id_, sent in holder.sent.items() if sent.answer is None]
        ordered = [order for order, row in self.oracle.orders.rows.items() if row.state == "waiting"]
        ordered += [order for creator in self.creators for order in (*creator.tasks, *creator.results)]
        leased = [device for device, row in self.reader.devices.items() if row.lease]
        unseen = [host.name for host in self.hosts if picture_of(self.reader, host.name) != host.picture()]
        stale = [host for host, row in self.reader.hosts.items() if row.stale]
        return ", ".join(
            f"{what}: {which}"
            for what, which in (
                ("unanswered", waiting),
                ("ordered", ordered),
                ("unseen", unseen),
                ("domains unseen", check_pictures(self)),
                ("not free", leased),
                ("stale", stale),
                ("not as leased", check_hands(self)),
            )
            if which
        )

    def _check_end(self) -> None:
        check_reader(self)
        for host in self.hosts:
            if picture_of(self.reader, host.name) != host.picture():
                raise ViolationError(f"intake: what the log knows of {host.name} is not how it is")
        replay, audit = Replay(), Audit()
        for sequence, body in enumerate(self.log.bodies, 1):
            difference = replay.step(sequence, body)
            if difference is not None:
                raise ViolationError(f"replay: {difference}")
            audit.step(sequence, codec.decode_record(body, sequence))
        restoring.check_part(self)
        check_orders(self)
        self._check_answers()
        self._check_history()

    def _check_answers(self) -> None:
        for holder in self.holders:
            for request_id, sent in holder.sent.items():
                key = RequestKey(f"{holder.principal}/{request_id}")
                # Of renewals only the last few are remembered.
                if sent.answer is not None and sent.answer.outcome != "renewed" and key not in self.reader.answers:
                    raise ViolationError(f"once: {request_id} was forgotten at once")

    def _check_history(self) -> None:
        renewed: dict[int, int] = {}
        for holder in self.holders:
            for held in holder.held:
                renewed[held.lease] = max(renewed.get(held.lease, 0), held.until_ns)
        for operation in self.history:
            if operation.kind == "acquire" and operation.lease in self.cut_short:
                operation.ttl_ns = 0
        devices = sorted({device for operation in self.history for device in operation.devices})
        for device in devices:
            if not is_linearizable([each for each in self.history if device in each.devices], renewed):
                raise ViolationError(f"linearizability: the history of {device} has no order")
