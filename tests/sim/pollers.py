"""Pollers in the simulator, around the real beliefs and the real reporter, and what is checked of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leasehold.events import limits
from leasehold.events.domains import DomainPicture, Use
from leasehold.events.identities import device_id, uuid_of
from leasehold.events.inputs import POLLER, DeviceUnused, DomainGone, Observation
from leasehold.projections.domains import seen_domains
from leasehold.projections.polling import Look, Polling, differences
from leasehold.projections.reporting import Need, Reporter
from tests.sim.hypervisors import SimHypervisor
from tests.sim.watchers import known_of, send
from tests.sim.world import SECOND, ViolationError

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

MS = 1_000_000


@dataclass
class SimPoller:
    """A poller: killed, cut off, slow, its source away, its messages lost, late or doubled."""

    sim: Simulation
    hypervisor: SimHypervisor
    reporter: Reporter | None = None
    cut_off_until_ns: int = 0
    gone_from_ns: int = 0
    """From then on it is never seen again; 0: it comes back each time."""
    covered: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The judge's own book: which attaching has been told, or was known, behind which run and counter."""
    _polling: Polling = field(default_factory=Polling)
    _began_ns: int = 0
    _shown_ns: dict[str, int] = field(default_factory=dict)
    """When a domain, by uuid, was last listed."""
    _used_ns: dict[tuple[str, str], int] = field(default_factory=dict)
    """When a domain was last seen to have a device, or that was said to be held."""
    _attached: frozenset[int] = frozenset()
    _failing_since_ns: int = 0
    """When the first look failed since the last that did not."""
    _has_told_blind: bool = False
    """It must have told that it sees nothing, and has seen nothing since."""
    _waited: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether it will not come back."""
        return 0 < self.gone_from_ns <= self.sim.now_ns

    def act(self) -> None:
        """One turn of its loop: a look, a heartbeat, and what its answer calls for."""
        rng = self.sim.domain_rng
        is_off = self.sim.is_off(self.hypervisor.host.name)
        if self.is_gone or rng.random() < self.sim.faults.poller_killed or is_off:
            self.reporter = None
            return
        if self.reporter is not None and rng.random() < 0.8:
            self._look()
        if self.sim.now_ns < self.cut_off_until_ns:
            return
        known = known_of(self.sim, self.hypervisor.host.name, POLLER)
        if self.reporter is None:
            self._begin(max(known.run + 1, self.sim.now_ns))
            return
        need = self.reporter.need(known)
        self._waited = self._waited + 1 if need is Need.WAIT else 0
        if need is Need.SUPERSEDED:
            self.reporter = None
        elif need is Need.AGAIN:
            send(self.sim, self.reporter.starts(), rng)
        elif need is Need.WAIT and self._waited > 3:
            send(self.sim, self.reporter.assure(), rng)
        elif need is Need.SYNC:
            self._sync(self.reporter)
        elif need is Need.NOTHING:
            # All that it told is in the log.
            self._check_blind()
            for message in self.reporter.tell(self._polling.news(self._now_ms)):
                send(self.sim, message, rng)
            self._note_covered(self.reporter)
            failing_ns = self.sim.now_ns - self._failing_since_ns if self._failing_since_ns else 0
            self._has_told_blind = failing_ns >= limits.BLIND_MS * MS

    @property
    def _now_ms(self) -> int:
        return self.sim.now_ns // MS

    def _begin(self, run: int) -> None:
        self.reporter, self._polling = Reporter(self.hypervisor.host.name, POLLER, run), Polling()
        self._began_ns = self.sim.now_ns
        self._shown_ns, self._used_ns, self._attached = {}, {}, frozenset()
        self._failing_since_ns, self._has_told_blind = 0, False
        send(self.sim, self.reporter.starts(), self.sim.domain_rng)

    def _sync(self, reporter: Reporter) -> None:
        news = self._polling.sync(self._in_log(), self._now_ms)
        for message in reporter.synced({}, {}, also=news):
            send(self.sim, message, self.sim.domain_rng)
        self._note_covered(reporter)

    def _in_log(self) -> DomainPicture:
        rows = seen_domains(self.sim.reader, self.hypervisor.host.name, POLLER)
        return {row.domain.key: row for row in rows}

    def _look(self) -> None:
        self._polling.asks(self._now_ms)
        look = self.hypervisor.look(self.sim.now_ns, self._polling.watched)
        if look is None:
            self._polling.failed("connection refused", self._now_ms)
            self._failing_since_ns = self._failing_since_ns or self.sim.now_ns
            return
        self._failing_since_ns, self._has_told_blind = 0, False
        before = self._polling._believed()
        self._note_seen(look, before)
        self._polling.saw(look, self._now_ms)
        self._judge(differences(before, self._polling._believed()))

    # --- judging ----------------------------------------------------------------------------------------------------

    def _note_seen(self, look: Look, believed: DomainPicture) -> None:
        now_ns, hypervisor = self.sim.now_ns, self.hypervisor
        for key, seen in believed.items():
            if seen.domain.name in look.unclear_names or seen.domain.domid in look.unclear_domids:
                self._shown_ns[uuid_of(key)] = now_ns
        for key, seen in look.domains.items():
            self._shown_ns[uuid_of(key)] = now_ns
            for use in seen.uses:
                if use.use == "attached":
                    self._used_ns[uuid_of(key), use.device] = now_ns
        for uuid, word in hypervisor.given:
            if look.held and word in look.held:
                self._used_ns[uuid, word] = now_ns
        shown = {(uuid_of(key), use) for key, seen in look.domains.items() for use in seen.uses}
        self._attached = frozenset(
            number for (uuid, word), number in hypervisor.given.items() if (uuid, Use(word, "attached")) in shown
        )

    def _note_covered(self, reporter: Reporter) -> None:
        """What the last look showed is in what has been sent, or in the log already."""
        for number in self._attached:
            told = self.covered.get(number)
            if told is None or told[0] != reporter.run:
                self.covered[number] = (reporter.run, reporter.counter)

    def _check_blind(self) -> None:
        host = self.hypervisor.host.name
        if self._has_told_blind and not self.sim.oracle.sources[host, POLLER].blind:
            raise ViolationError(f"polling: {host} has not answered for long, but is believed")

    def _judge(self, believed: list[Observation]) -> None:
        """Nothing is believed to have gone that has been there all the time since it was last seen."""
        hypervisor, name = self.hypervisor, self.hypervisor.host.name
        for each in believed:
            if isinstance(each, DomainGone):
                uuid = uuid_of(each.key)
                seen_ns = self._shown_ns.get(uuid, self._began_ns)
                if uuid in hypervisor.domains and hypervisor.ended_ns.get(uuid, 0) < seen_ns:
                    raise ViolationError(f"polling: {each.key} on {name} is taken for gone, but has been there")
            elif isinstance(each, DeviceUnused) and each.use == "attached":
                uuid = uuid_of(each.domain)
                seen_ns = self._used_ns.get((uuid, each.device), self._began_ns)
                if hypervisor.has(uuid, each.device) and hypervisor.let_go_ns.get((uuid, each.device), 0) < seen_ns:
                    raise ViolationError(f"polling: {each.domain} on {name} is taken not to have {each.device}")


def check_pictures(sim: Simulation) -> list[str]:
    """The hosts whose domains are not known as they are."""
    wrong: list[str] = []
    for poller in sim.pollers:
        host = poller.hypervisor.host.name
        real = {} if poller.is_gone else poller.hypervisor.picture()
        if sim.oracle.domains.picture(host) != {uuid_of(key): (seen.domain, seen.uses) for key, seen in real.items()}:
            wrong.append(host)
    return wrong


def cut_off_pollers(sim: Simulation) -> None:
    """A poller may lose its way to the bus for a while."""
    rng = sim.domain_rng
    if sim.pollers and rng.random() < sim.faults.host_cut_off:
        rng.choice(sim.pollers).cut_off_until_ns = sim.now_ns + rng.randrange(1, 60) * SECOND


def end_leased_domains(sim: Simulation) -> None:
    """At the end, domains that leases are for, or that have what is leased, are ended; all others may go on."""
    bound = {row.bond.uuid for row in sim.reader.leases.values() if row.bond is not None and not row.ended}
    leased = {device for device, row in sim.reader.devices.items() if row.lease}
    handed = {device_id(each.host.name, key) for each in sim.binders for key in each.kernel.handed}
    for poller in sim.pollers:
        hypervisor = poller.hypervisor
        for uuid, domain in sorted(hypervisor.domains.items()):
            has = {device_id(hypervisor.host.name, key) for key in domain.attached.values()}
            if uuid in bound or has & (leased | handed):
                hypervisor.stop(uuid, sim.now_ns)
