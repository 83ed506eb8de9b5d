"""The judge's book of what hosts are told to do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.books import Device, Lease, Order, Source
from tests.sim.handbook import BINDER, HandBook
from tests.sim.world import ViolationError

Json = dict[str, Any]


@dataclass
class OrderBook:
    """All orders, open and over."""

    devices: dict[str, Device]
    leases: dict[int, Lease]
    hands: HandBook
    sources: dict[tuple[str, str], Source]
    domains_with: Callable[[str], list[str]]
    rows: dict[int, Order] = field(default_factory=dict)

    def on(self, device: str) -> list[int]:
        """The open orders about a device."""
        return [order for order, row in self.rows.items() if row.is_open and device in (row.parent, row.device)]

    def host_ordered(self, position: int, event: Json, given: Json, now_ns: int) -> None:
        """A host is told to do something."""
        host, what, principal, agent = event["host"], event["order"], event["request"]["principal"], event["agent"]
        for each in ("watcher", agent):
            _must(not self.sources[host, each].stale, f"{host} was told, but {each} is stale")
        if given["principal"] != principal:
            raise ViolationError("principal: ordered for another")
        _must(event["deadline_ns"] > now_ns, "the deadline is over already")
        if agent == BINDER:
            device = f"{host}/{what['device']}"
            _must(not self.on(device), f"two open orders are about {device}")
            self._check_operated(device, what)
            self.rows[position] = Order(host, agent, "", device, "", principal, event["deadline_ns"])
            return
        device = f"{host}/{what['device']}" if what["type"] == "destroy_mdev" else ""
        row = Order(host, agent, f"{host}/{what['parent']}", device, what["uuid"], principal, event["deadline_ns"])
        for other in self.rows.values():
            same = other.is_open and (other.host, other.uuid) == (host, row.uuid)
            _must(not same, f"two open orders are about {row.uuid}")
        parents_lease = self.devices[row.parent].lease
        if parents_lease:
            _must(self.leases[parents_lease].principal == principal, f"{row.parent} is another's")
        if device:
            _must(not self._had(device), f"{device} is to be destroyed, but leased")
        self.rows[position] = row

    def _had(self, device: str) -> int:
        """A lease that has it, alone or with others; 0: none."""
        sharing = (
            lease
            for lease, row in self.leases.items()
            if row.mode == "shared" and not row.ended and device in row.devices
        )
        return self.devices[device].lease or next(sharing, 0)

    def _check_operated(self, device: str, what: Json) -> None:
        """Only what nobody has is bound by order, but that one in quarantine is brought back."""
        row, lease = self.devices[device], self._had(device)
        if lease:
            quarantine = self.hands.row(device).quarantine
            is_way_out = what["type"] == "reattach_device" and quarantine and self.leases[lease].ended
            _must(bool(is_way_out), f"{device} is to be bound, but {lease} holds it")
        _must(row.is_bare and not row.is_missing, f"{device} is to be bound, but is not there or protected")
        _must(not self.domains_with(device), f"{device} is to be bound, but a domain has it")

    def order_carried_out(self, _position: int, event: Json, given: Json, _now_ns: int) -> None:
        """It was done."""
        row = self.rows[event["order"]]
        _must(row.state == ("timed_out" if event.get("late") else "waiting"), f"done, but was {row.state}")
        _check_teller(row, given)
        row.state = "done"

    def order_failed(self, _position: int, event: Json, given: Json, now_ns: int) -> None:
        """It was not done, or nobody said so in time."""
        row = self.rows[event["order"]]
        _must(row.is_open, f"failed, but was {row.state}")
        row.state = "timed_out" if event.get("timed_out") else "failed"
        if event.get("timed_out"):
            _must(now_ns >= row.deadline_ns, "timed out before its time")
        else:
            _check_teller(row, given)


def _check_teller(row: Order, given: Json) -> None:
    _must((given["host"], given["agent"]) == (row.host, row.agent), "another told what became of it")


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise ViolationError(f"orders: {text}")
