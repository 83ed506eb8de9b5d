"""Holders in the simulator whose leases are for domains, and an operator who says that agents will not come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leasehold.events import inputs
from leasehold.events.identities import DeviceId, Holder, split_device_id
from leasehold.events.inputs import POLLER
from tests.sim.holders import Held, SimHolder, counted_ns
from tests.sim.hypervisors import UUIDS, SimHypervisor
from tests.sim.linear import Operation


@dataclass
class SimTenant(SimHolder):
    """It leases for domains that are there, or are not yet, starts them, and gives them what it has."""

    def act(self) -> None:
        """Something with a domain, or what any holder does."""
        rng = self.sim.domain_rng
        if self.sim.binders and self.sim.binder_rng.random() < 0.15:
            self._speak_of_a_domain()
            return
        bound = [held for held in self.held if not held.is_over and held.request.domain]
        if not bound or rng.random() < 0.5:
            super().act()
            return
        held = rng.choice(bound)
        uuid, device = held.request.domain, rng.choice(held.devices)
        hypervisor, binder = self._hypervisor(device), self.sim.binder_of(device)
        key = split_device_id(device)[1]  # type: ignore[arg-type]
        match rng.choice(("start", "attach", "attach", "attach", "detach", "stop", "stop")):
            case "start":
                if binder is not None and binder.handing is not None:
                    binder.handing.starts(uuid)
                hypervisor.start(uuid)
            case "attach":
                if binder is None or binder.may_have(uuid, key):
                    hypervisor.attach(uuid, key)
            case "detach":
                hypervisor.detach_some(uuid, self.sim.now_ns)
            case "stop" if rng.random() < 0.3:
                hypervisor.stop(uuid, self.sim.now_ns)
                if binder is not None and binder.handing is not None and self.sim.binder_rng.random() < 0.7:
                    binder.handing.stopped(uuid)

    def _speak_of_a_domain(self) -> None:
        """Have all that a domain claims handed over, or all that it has taken back."""
        rng = self.sim.binder_rng
        host, uuid, bus = rng.choice(self.sim.hosts), rng.choice(UUIDS), rng.choice(("", "", "pci", "usb"))
        request_id, asked_ns = self._id(), self.sim.now_ns + self.skew_ns
        if rng.random() < 0.3:
            where = rng.choice(("", host.name))
            self._send(
                inputs.ReattachRequest(request_id=request_id, issued_at_ns=asked_ns, domain=uuid, host=where, bus=bus)
            )
            return
        request = inputs.PrepareRequest(
            request_id=request_id, issued_at_ns=asked_ns, domain=uuid, holder=Holder(self.name), host=host.name,
            bus=bus, ttl_ms=rng.choice(self.ttls_ms), gone_ms=rng.choice((0, 5_000)), keep=rng.random() < 0.15,
        )  # fmt: skip
        operation = Operation("acquire", (), self.sim.now_ns, ttl_ns=counted_ns(request.ttl_ms))
        self.sim.history.append(operation)
        self._send(request, operation)

    def _choice(self) -> tuple[DeviceId, ...]:
        rng = self.sim.domain_rng
        if rng.random() < 0.8:
            return super()._choice()
        # Its domain may be on either host.
        return tuple(rng.choice(host.ids()) for host in self.sim.hosts)

    def _purpose(self) -> dict[str, Any]:
        rng = self.sim.domain_rng
        if rng.random() < 0.1:
            return {}
        gone_ms = rng.choice((0, 1_000, 5_000, 20_000))
        hypervisors = [poller.hypervisor for poller in self.sim.pollers]
        there = [uuid for each in hypervisors for uuid, domain in each.domains.items() if domain.runs]
        uuid = rng.choice(there) if there and rng.random() < 0.7 else rng.choice(UUIDS)
        purpose = {"domain": uuid, "gone_ms": gone_ms, "keep": rng.random() < 0.15}
        if self.sim.binders and self.sim.binder_rng.random() < 0.1:
            purpose |= self.sim.binder_rng.choice(({"unmanaged": True}, {"driver": "pciback"}))
        return purpose

    def _hypervisor(self, device: str) -> SimHypervisor:
        host = device.partition("/")[0]
        return next(poller.hypervisor for poller in self.sim.pollers if poller.hypervisor.host.name == host)

    def _gives_back(self, held: Held) -> bool:
        """What will be outlived is left to that, and what nobody will see the end of is not."""
        bond = self.sim.oracle.domains.bonds.get(held.lease)
        return self._is_orphan(held) or (super()._gives_back(held) and not (bond is not None and bond.is_seen))


@dataclass
class SimOperator(SimHolder):
    """It says that agents will not come back, right or wrong."""

    asked: dict[str, str] = field(default_factory=dict)
    """By host: the last request about its poller."""

    def act(self) -> None:
        """Now and then about any agent."""
        rng = self.sim.domain_rng
        gone = [poller for poller in self.sim.pollers if poller.is_gone]
        if gone and rng.random() < 0.1:
            self._retire(rng.choice(gone).hypervisor.host.name, POLLER)
        elif rng.random() < 0.02:
            agent = rng.choice((POLLER, POLLER, "creator", "watcher"))
            self._retire(rng.choice(self.sim.hosts).name, agent)

    def _retire(self, host: str, agent: str) -> None:
        request = inputs.RetireAgentRequest(
            request_id=self._id(),
            # By the ledger's own time, so that what it asks in the end is not refused as too early.
            issued_at_ns=self.sim.reader.head.decided_at_ns,
            host=host,
            agent=agent,
            reason="it burnt down",
        )
        self._send(request)
        self.asked[host] = request.request_id

    def settle(self) -> None:
        """Those that have gone for good are retired, as soon as that can be."""
        for poller in self.sim.pollers:
            host = poller.hypervisor.host.name
            is_known = (host, POLLER) in self.sim.oracle.sources
            sent = self.sent.get(self.asked.get(host, ""))
            if poller.is_gone and is_known and (sent is None or sent.answer is not None):
                self._retire(host, POLLER)
