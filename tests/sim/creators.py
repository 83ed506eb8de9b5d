"""Creators in the simulator, around the real reporter, who asks for orders, and what is checked of these at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leasehold.events import inputs
from leasehold.events.capabilities import CreateMdev, DestroyMdev, NewMdev
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import CREATOR, Observation, OrderDone, OrderNotDone
from leasehold.projections.orders import open_orders
from leasehold.projections.reporting import Need, Reporter
from tests.sim.holders import SimHolder
from tests.sim.watchers import known_of, send
from tests.sim.world import GPU, MDEV_TYPE, SECOND, UUIDS, SimHost, ViolationError, mdev

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


@dataclass
class _Task:
    """An order as it was told."""

    order: int
    what: CreateMdev | DestroyMdev
    deadline_ns: int
    due_ns: int = 0
    """When the kernel has done what it was told; 0: it was told nothing yet."""


@dataclass
class SimCreator:
    """A creator: killed between doing and telling, slow, refused by its kernel, its messages lost, late or doubled."""

    sim: Simulation
    host: SimHost
    reporter: Reporter | None = None
    tasks: dict[int, _Task] = field(default_factory=dict)
    results: dict[int, Observation] = field(default_factory=dict)
    newest: int = 0
    gone_from_ns: int = 0
    """From then on it is never seen again; 0: it comes back each time."""
    begun: set[int] = field(default_factory=set)
    """On its disk: orders that the kernel was told to carry out."""
    effects: dict[int, int] = field(default_factory=dict)
    """The judge's own book: how often each order changed the host."""
    found_so: set[int] = field(default_factory=set)
    """And which had nothing left to change."""
    _waited: int = 0

    def act(self) -> None:
        """One turn of its loop: a heartbeat, what its answer calls for, and some work."""
        rng = self.sim.order_rng
        is_gone = 0 < self.gone_from_ns <= self.sim.now_ns
        if is_gone or rng.random() < self.sim.faults.creator_killed:
            self._die()
            return
        known = known_of(self.sim, self.host.name, CREATOR)
        if self.reporter is None:
            self.reporter = Reporter(self.host.name, CREATOR, max(known.run + 1, self.sim.now_ns))
            self._send(self.reporter.starts())
            return
        need = self.reporter.need(known)
        self._waited = self._waited + 1 if need is Need.WAIT else 0
        if need is Need.SUPERSEDED:
            self._die()
        elif need is Need.AGAIN:
            self._send(self.reporter.starts())
        elif need is Need.WAIT and self._waited > 3:
            self._send(self.reporter.assure())
        elif need is Need.SYNC or (need is Need.NOTHING and known.order > self.newest):
            self._sync(self.reporter)
        elif need is Need.NOTHING:
            self._work()
            self._tell(self.reporter)

    def _die(self) -> None:
        """What the kernel was told it may still do; all else is forgotten."""
        for task in self.tasks.values():
            if task.due_ns and self.sim.order_rng.random() < 0.5:
                self._apply(task)
        self.reporter = None
        self.tasks.clear()
        self.results.clear()
        self.newest = 0

    def _sync(self, reporter: Reporter) -> None:
        rows = {row.order: row for row in open_orders(self.sim.reader, self.host.name, CREATOR)}
        self.newest = max(rows, default=0)
        self.results = {order: result for order, result in self.results.items() if order in rows}
        for order, row in rows.items():
            is_wanted = row.state == "waiting" or order in self.begun
            if is_wanted and order not in self.tasks and order not in self.results:
                assert isinstance(row.what, CreateMdev | DestroyMdev)
                self.tasks[order] = _Task(order, row.what, row.deadline_ns)
        for message in reporter.synced({}, {}):
            self._send(message)
        self._tell(reporter)

    def _tell(self, reporter: Reporter) -> None:
        for message in reporter.tell(list(self.results.values())[:4]):
            self._send(message)
            if self.sim.order_rng.random() < self.sim.faults.observed_twice:
                # Told again, under a counter of its own.
                self._send(reporter.tell(message.observations)[0])
        if self.sim.order_rng.random() < 0.7:
            self.results.clear()

    def _send(self, message: inputs.Observed) -> None:
        send(self.sim, message, self.sim.order_rng)

    # --- doing ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """The oldest order; on this host all are about one parent."""
        if not self.tasks:
            return
        task = self.tasks[min(self.tasks)]
        if not task.due_ns:
            self._begin(task)
        elif self.sim.now_ns >= task.due_ns:
            self._apply(task)
            self._finish(task, OrderDone(task.order, _key(task)))

    def _begin(self, task: _Task) -> None:
        rng, faults = self.sim.order_rng, self.sim.faults
        if self._is_so(task):
            self.found_so.add(task.order)
            self._finish(task, OrderDone(task.order, _key(task)))
        elif self.sim.reader.head.decided_at_ns >= task.deadline_ns:
            self._finish(task, OrderNotDone(task.order, "its time was over"))
        elif rng.random() < faults.kernel_refuses or self.host.users.get(_key(task)):
            self._finish(task, OrderNotDone(task.order, "the kernel refused it"))
        else:
            self.begun.add(task.order)
            slow = rng.random() < faults.kernel_slow
            task.due_ns = self.sim.now_ns + (rng.randrange(1, 90) * SECOND if slow else 0)

    def _is_so(self, task: _Task) -> bool:
        return (_key(task) in self.host.devices) == isinstance(task.what, CreateMdev)

    def _apply(self, task: _Task) -> None:
        if self._is_so(task):
            return
        self.effects[task.order] = self.effects.get(task.order, 0) + 1
        if isinstance(task.what, CreateMdev):
            self.host.devices[_key(task)] = mdev(task.what.uuid)
        else:
            del self.host.devices[_key(task)]
            self.host.users.pop(_key(task), None)

    def _finish(self, task: _Task, result: Observation) -> None:
        del self.tasks[task.order]
        self.results[task.order] = result


def _key(task: _Task) -> DeviceKey:
    return DeviceKey(f"{GPU}/mdev/{task.what.uuid}")


class SimOrderer(SimHolder):
    """An operator: has mediated devices made and destroyed, and asks again and again what became of it."""

    def act(self) -> None:
        """Ask for one thing, or ask again."""
        rng = self.sim.order_rng
        waiting = [sent for sent in self.sent.values() if sent.answer is None or sent.answer.state == "waiting"]
        if waiting and rng.random() < 0.5:
            self.sim.submit(self, rng.choice(waiting).request)
            return
        host, uuid = rng.choice(self.sim.hosts), rng.choice(UUIDS)
        timeout_ms = rng.choice((1_000, 1_000, 10_000, 60_000))
        device = rng.choice((NewMdev(parent=GPU, mdev_type=MDEV_TYPE, uuid=uuid), f"{host.name}/{mdev(uuid).key}"))
        if isinstance(device, NewMdev):
            self._send(
                inputs.CreateDeviceRequest(
                    request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, device=device, host=host.name,
                    timeout_ms=timeout_ms,
                )
            )  # fmt: skip
        else:
            self._send(
                inputs.DestroyDeviceRequest(
                    request_id=self._id(), issued_at_ns=self.sim.now_ns + self.skew_ns, device=device,
                    timeout_ms=timeout_ms,
                )
            )  # fmt: skip

    def settle(self) -> None:
        """It holds nothing."""


def check_orders(sim: Simulation) -> None:
    """Each order has come to its one end, which is what the host has seen.

    Raises:
        ViolationError: one has not.
    """
    for creator in sim.creators:
        whose = (creator.host.name, CREATOR)
        orders = {order: row for order, row in sim.oracle.orders.rows.items() if (row.host, row.agent) == whose}
        last_of = {row.uuid: order for order, row in sorted(orders.items())}
        for order, row in orders.items():
            effects = creator.effects.get(order, 0)
            if effects > 1:
                raise ViolationError(f"orders: {order} was carried out {effects} times")
            if row.state == "waiting":
                raise ViolationError(f"orders: {order} never came to an end")
            if row.state == "done" and not effects and order not in creator.found_so:
                raise ViolationError(f"orders: {order} was told as done, but nothing was done")
            if row.state == "failed" and effects:
                raise ViolationError(f"orders: {order} was told as failed, but was carried out")
            if row.state == "timed_out" and effects and last_of[row.uuid] == order and not creator.gone_from_ns:
                raise ViolationError(f"orders: {order} was carried out late, but that was lost")
