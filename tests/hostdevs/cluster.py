"""A cluster in one process: the real core in memory, hosts on paper, and who asks."""

import time
from pathlib import Path
from typing import Any, Final

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.event_types import Event
from leasehold.events.identities import (
    DeviceKey,
    Holder,
    Principal,
)
from leasehold.events.inputs import Request
from leasehold.events.position import position_of
from leasehold.projections.orders import order_view
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from tests.hostdevs.hosts import Host
from tests.projections.ledger import START_NS, A, Ledger

ROUNDS_MAX: Final = 60
OPERATOR: Final = Principal("operator")


class Cluster(Ledger):
    """A ledger that tells its hosts what has happened."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.told: list[Event] = []
        """All events ever."""
        self.asked_s = time.monotonic()
        self.note(inputs.DeciderStarts("alloc", "start"))

    @property
    def now_ms(self) -> int:
        """What the binders' clocks show."""
        return (self.now_ns - START_NS) // 1_000_000

    def door_ms(self) -> int:
        """The same, at a door, where whoever asks may wait."""
        return self.now_ms + int((time.monotonic() - self.asked_s) * 1_000)

    def add(self, name: str, *, hypervisor: str = "qemu", stub: str = "vfio-pci", managed: bool = True) -> Host:
        """A host with all its agents, past its grace time."""
        host = self.hosts[name] = Host(self, name, self.folder / name, hypervisor=hypervisor, stub=stub)
        host.start_watching()
        if managed:
            host.start_binder()
        self.advance(31)
        return host

    def commit(self) -> None:
        """As a ledger does; and the hosts hear it."""
        before = len(self.bodies)
        super().commit()
        if len(self.bodies) == before:
            return
        self.told += self.events
        for index, event in enumerate(self.events):
            for host in self.hosts.values():
                host.hear(position_of(self.state.head.sequence, index), event)

    def advance(self, seconds: float) -> None:
        """Time passes, and everything that follows happens."""
        self.now_ns += int(seconds * 1_000_000_000)
        self.tick()
        self.settle()

    def settle(self) -> None:
        """Let everybody do what is to be done, until nothing is."""
        for _ in range(ROUNDS_MAX):
            moved = [host.watch() | host.work() for host in self.hosts.values()]
            if not any(moved):
                return
        raise AssertionError("it does not come to rest")

    def restart_allocator(self) -> None:
        """Another one takes over, from a snapshot."""
        state = decode_state(encode_state(self.state))
        assert state is not None
        self.sequencer = Sequencer(state, cluster="lab", writer="other")
        self.note(inputs.DeciderStarts("other", "takeover"))
        self.advance(31)

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(self, request: Request, principal: Principal = A) -> Answer:
        """As it would come through the gate. Raises InvalidInputError."""
        verb = type(request).__struct_config__.tag.partition(".")[0]  # type: ignore[union-attr]
        return super().ask(codec.decode_request(verb, codec.encode(request)), principal)

    def want(self, host: Host, *keys: str, principal: Principal = A, **fields: Any) -> Answer:
        """Ask for devices of a host, by their keys or any other names."""
        answer = self.ask(self.request(*keys, host=host.name, **fields), principal)
        self.settle()
        return answer

    def take(self, host: Host, *keys: str, principal: Principal = A, **fields: Any) -> int:
        """As `want`, where it must be granted and handed over: the lease."""
        answer = self.want(host, *keys, principal=principal, **fields)
        assert answer.outcome == "granted", answer.refusal
        assert all(host.word(DeviceKey(key)) == "leased prepared" for key in keys), [
            host.view(DeviceKey(key)) for key in keys
        ]
        return answer.lease

    def give(self, lease: int, principal: Principal = A) -> Answer:
        """Release a lease."""
        answer = self.release(lease, principal)
        self.settle()
        return answer

    def operate(self, host: Host, operation: str, key: str, driver: str = "") -> Answer:
        """`nodedev detach`, `reattach`, `reset`."""
        answer = self.ask(
            inputs.OperateDeviceRequest(
                request_id=self.new_id(),
                issued_at_ns=self.now_ns,
                device=key,
                operation=operation,
                host=host.name,
                driver=driver,
            ),
            OPERATOR,
        )
        self.settle()
        return answer

    def order(self, host: Host, operation: str, key: str, driver: str = "") -> tuple[str, str]:
        """As `operate`, where it must be ordered: what came of it, and why."""
        answer = self.operate(host, operation, key, driver)
        assert answer.outcome == "ordered", answer.refusal
        view = order_view(self.state, answer.order)
        return view.state, view.reason

    def revoke(self, lease: int, *, force: bool = False) -> Answer:
        """An operator takes a lease away."""
        answer = self.ask(
            inputs.RevokeRequest(
                request_id=self.new_id(), issued_at_ns=self.now_ns, lease=lease, reason="needed", force=force
            ),
            OPERATOR,
        )
        self.settle()
        return answer

    def prepare(self, domain: str, principal: Principal = A, **fields: Any) -> Answer:
        """All that a domain claims."""
        answer = self.ask(
            inputs.PrepareRequest(
                request_id=self.new_id(),
                issued_at_ns=self.now_ns,
                domain=domain,
                holder=Holder("vm"),
                ttl_ms=600_000,
                **fields,
            ),
            principal,
        )
        self.settle()
        return answer

    def declare_dead(self, host: Host) -> Answer:
        """An operator says that a host is off."""
        return self.ask(
            inputs.DeclareDeadRequest(
                request_id=self.new_id(), issued_at_ns=self.now_ns, host=host.name, reason="it burnt"
            ),
            OPERATOR,
        )

    def reattach(self, domain: str, principal: Principal = A, **fields: Any) -> Answer:
        """Give back all that a domain has leases of."""
        answer = self.ask(
            inputs.ReattachRequest(request_id=self.new_id(), issued_at_ns=self.now_ns, domain=domain, **fields),
            principal,
        )
        self.settle()
        return answer

    def close(self) -> None:
        """End the kernels."""
        for host in self.hosts.values():
            if host.handing is not None:
                host.kill_binder()
            host.kernel.close()
