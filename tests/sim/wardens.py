"""Who minds managed hosts in the simulator: an operator who is right or wrong, and what becomes of whole hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leasehold.events import inputs
from leasehold.events.hostdevs import OPERATIONS
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.events.inputs import HostHeard
from tests.sim.binders import SimBinder
from tests.sim.holders import SimHolder
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation
    from tests.sim.watchers import SimWatcher


@dataclass
class SimWarden(SimHolder):
    """It revokes leases, declares hosts dead, has devices bound by order, and confirms what it has looked at. It ends
    binders for a while, and retires them: then their hosts are only watched.
    """

    def act(self) -> None:
        """One of these, now and then."""
        rng = self.sim.binder_rng
        lost = [host.name for host in self.sim.hosts if _is_out_of_touch(self.sim, host.name)]
        if lost and rng.random() < 0.4:
            self._give_up(rng.choice(lost))
            return
        self._end_or_retire()
        match rng.choice(("nothing",) * 40 + ("revoke", "revoke", "dead", "operate", "operate", "confirm")):
            case "revoke":
                self._revoke()
            case "dead":
                self._declare_dead(rng.choice(self.sim.hosts).name)
            case "operate":
                self._operate()
            case "confirm":
                self._confirm()

    def _end_or_retire(self) -> None:
        """In some runs."""
        rng, now_ns = self.sim.retire_rng, self.sim.now_ns
        for binder in self.sim.binders if self.sim.has_binders_retired else ():
            if now_ns >= binder.gone_until_ns:
                if rng.random() < 0.02:
                    binder.gone_until_ns = now_ns + rng.choice((20, 60)) * SECOND
            elif rng.random() < 0.2:
                self._send(
                    inputs.RetireAgentRequest(
                        request_id=self._id(), issued_at_ns=self._now_ns, host=binder.host.name, agent=inputs.BINDER,
                        reason="it is done by hand",
                    )
                )  # fmt: skip

    def _give_up(self, host: HostName) -> None:
        """Of a host that is not heard: what it has is to be had again, or it is off for good."""
        if self.sim.binder_rng.random() < 0.5:
            self._revoke(host)
        else:
            self._declare_dead(host)

    def _revoke(self, host: str = "") -> None:
        rng = self.sim.binder_rng
        held = {row.lease for row in self.sim.oracle.devices.values()}
        some = [
            lease
            for lease, row in self.sim.oracle.leases.items()
            if (not row.ended or lease in held) and any(device.startswith(host) for device in row.devices)
        ]
        if some:
            lease, force = rng.choice(some), rng.random() < 0.4
            self._send(
                inputs.RevokeRequest(
                    request_id=self._id(), issued_at_ns=self._now_ns, lease=lease, reason="needed", force=force
                )
            )

    def _declare_dead(self, host: HostName) -> None:
        self._send(
            inputs.DeclareDeadRequest(
                request_id=self._id(), issued_at_ns=self._now_ns, host=host, reason="no light is on"
            )
        )

    def _operate(self) -> None:
        rng = self.sim.binder_rng
        host = rng.choice(self.sim.hosts)
        self._send(
            inputs.OperateDeviceRequest(
                request_id=self._id(),
                issued_at_ns=self._now_ns,
                device=rng.choice(host.ids()),
                operation=rng.choice(OPERATIONS),
                timeout_ms=rng.choice((5_000, 60_000)),
            )
        )

    def _confirm(self) -> None:
        """It has looked whether anybody uses the device; not, what it is bound to."""
        rng, ending = self.sim.binder_rng, []
        for device, row in self.sim.oracle.devices.items():
            if row.lease and self.sim.oracle.leases[row.lease].ended and not self._users(device):
                ending.append(DeviceId(device))
        if ending:
            self._send(
                inputs.ConfirmFreeRequest(
                    request_id=self._id(), issued_at_ns=self._now_ns, device=rng.choice(ending), reason="I looked"
                )
            )

    def _users(self, device: str) -> tuple[str, ...]:
        host, key = split_device_id(DeviceId(device))
        kernel = self.sim.oracle.hands.kernels.get(host)
        return kernel.users(key) if kernel is not None else ("nobody has looked",)

    @property
    def _now_ns(self) -> int:
        """By the ledger's own time, so that nothing is refused as too early."""
        return self.sim.reader.head.decided_at_ns

    def settle(self) -> None:
        """It holds nothing."""


def disturb_hosts(sim: Simulation) -> None:
    """A host with binders may lose its power, or its way to the bus; that it is not heard is noticed in a while."""
    rng = sim.binder_rng
    if not sim.binders:
        return
    for binder in sim.binders:
        if rng.random() < sim.faults.host_cut_off:
            binder.cut_off_until_ns = sim.now_ns + rng.randrange(1, 60) * SECOND
        if rng.random() < sim.faults.host_lost and not sim.creators:
            _turn_off(sim, binder.host.name, rng.choice((3, 15, 40, 60)))
        elif rng.random() < sim.faults.host_lost:
            _cut_off(sim, binder.host.name, rng.choice((15, 40, 60)))
    for host, row in sim.reader.hosts.items():
        if _is_out_of_touch(sim, host) and rng.random() < 0.2:
            for allocator in sim.allocators:
                if allocator.sequencer is not None and allocator.decides:
                    for agent, source in row.sources.items():
                        allocator.sequencer.note(HostHeard(host, agent, source.run, False))


def _turn_off(sim: Simulation, host: HostName, seconds: int) -> None:
    sim.off_until_ns[host] = sim.now_ns + seconds * SECOND
    for poller in sim.pollers:
        if poller.hypervisor.host.name == host:
            poller.hypervisor.lose_power(sim.now_ns)
    for binder in sim.binders:
        if binder.host.name == host:
            binder.die()
            binder.kernel.boot()


def _cut_off(sim: Simulation, host: HostName, seconds: int) -> None:
    """All of its agents at once: it looks as if it were off, but its domains run on."""
    until_ns = sim.now_ns + seconds * SECOND
    agents: list[SimWatcher | SimBinder] = [*sim.watchers, *sim.binders]
    for agent in agents:
        if agent.host.name == host:
            agent.cut_off_until_ns = until_ns
            if isinstance(agent, SimBinder) and sim.binder_rng.random() < 0.5:
                agent.kernel.break_down(until_ns + 60 * SECOND)
    for poller in sim.pollers:
        if poller.hypervisor.host.name == host:
            poller.cut_off_until_ns = until_ns


def _is_out_of_touch(sim: Simulation, host: HostName) -> bool:
    binder = next((each for each in sim.binders if each.host.name == host), None)
    watcher = next(each for each in sim.watchers if each.host.name == host)
    is_cut_off = binder is not None and sim.now_ns < min(binder.cut_off_until_ns, watcher.cut_off_until_ns)
    return sim.is_off(host) or is_cut_off
