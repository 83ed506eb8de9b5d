"""A cluster on paper around the real sequencer, with a log in memory: many devices, leases, and requests that wait.

Of a hundred devices of a host, ten are GPUs, fifty NICs, thirty-five disks and five FPGAs, over two NUMA nodes. All
GPUs are leased, each alone; who waits, waits for GPUs.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from leasehold.events import codec, inputs, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, Holder, HostName, Principal, RequestId, device_id
from leasehold.events.record import Record
from leasehold.events.schedule_events import QueueLooked
from leasehold.events.scheduling import Constraint, Need
from leasehold.projections.reporting import Reporter
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from tests.bench.cluster import CLUSTER, paper_device

GPUS, NICS, DISKS = range(10), range(10, 60), range(60, 95)
PER_HOST: Final = 100
CLASSES: Final = {
    "gpu": 'device.vendor == "10de" && device.pci.class == "0302"',
    "nic": 'device.pci.class == "0200"',
}
TTL_MS: Final = 3_600_000
WAIT_MS: Final = 24 * 3_600_000
_MODELS: Final = {
    "gpu": ("10de", "20b0", 0x030200),
    "nic": ("8086", "10c9", 0x020000),
    "disk": ("144d", "a808", 0x010802),
    "fpga": ("1172", "e001", 0x120000),
}
OPERATOR: Final = Principal("ops")
QUOTA: Final = 1_000_000
GPU, GPU_PAIR = Need(device_class="gpu"), Need(device_class="gpu", count=2)
_TENANTS: Final = 4
_STEP_NS: Final = 1_000_000
"""Between two records."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def description(number: int) -> DeviceDescription:
    """The device of that number on its host."""
    model = "gpu" if number in GPUS else "nic" if number in NICS else "disk" if number in DISKS else "fpga"
    vendor, product, pci_class = _MODELS[model]
    plain = paper_device(number)
    path = plain.sysfs_path.replace("pci0000:00", f"pci0000:{number % 2 * 8}0")
    return msgspec.structs.replace(
        plain, vendor_id=vendor, product_id=product, pci_class=pci_class, numa_node=number % 2, sysfs_path=path
    )


def resident_mb() -> float:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


class Timed(msgspec.Struct, frozen=True):
    """What a record told, how large it is, and what it took of a processor: whoever else works here counts for nothing.
    `looks`: how often it looked at those who wait.
    """

    us: float
    answer: Answer | None
    events: list[Event]
    looks: int
    bytes: int


class Crowd:
    """One allocator that always wins; who waits is looked at as in a real one."""

    def __init__(self, hosts: int) -> None:
        self.sequencer = Sequencer(State(), cluster=CLUSTER, writer="bench-writer")
        self.now_ns = time.time_ns()
        self.hosts = [HostName(f"host-{number:04}") for number in range(hosts)]
        self.bodies: list[bytes] | None = None
        """Records are kept here, if it is a list."""
        self._observed = 0
        self._asked = 0
        self.sequencer.note(inputs.DeciderStarts("bench-writer", "start"))
        self._record()
        self.now_ns += 60 * 10**9

    @property
    def state(self) -> State:
        """Behind all that was decided."""
        return self.sequencer.state

    # --- records

    def _record(self) -> Timed:
        """What waits, decided and taken by the log."""
        self.now_ns += _STEP_NS
        begun_ns = time.thread_time_ns()
        draft = self.sequencer.draft(self.now_ns)
        if draft is not None:
            self.sequencer.committed()
        us = (time.thread_time_ns() - begun_ns) / 1_000
        replies = [reply.answer for reply in self.sequencer.replies]
        self.sequencer.replies.clear()
        if draft is None:
            return Timed(us, replies[0] if replies else None, [], 0, 0)
        if self.bodies is not None:
            self.bodies.append(draft.body)
        events = [event for step in draft.record.steps for event in step.events]
        return Timed(us, replies[0] if replies else None, events, _looks(draft.record), len(draft.body))

    def ask(self, request: inputs.Request, by: Principal) -> Timed:
        """A request, alone in its record but for looks at those who wait."""
        self._asked += 1
        assert self.sequencer.ask(self._asked, by, request), "too many wait"
        return self._record()

    def settle(self) -> Iterator[Timed]:
        """Records until nobody has anything to do any more."""
        while self.sequencer.has_work(self.now_ns + _STEP_NS):
            yield self._record()

    def begin(self) -> dict[str, Any]:
        """What all requests have."""
        self._asked += 1
        return {"request_id": RequestId(f"request-{self._asked}"), "issued_at_ns": self.now_ns}

    # --- what there is

    def picture(self) -> None:
        """All hosts tell what devices they have."""
        found = {device.key: device for device in map(description, range(PER_HOST))}
        for host in self.hosts:
            reporter = Reporter(host, "watcher", 1)
            for message in (reporter.starts(), *reporter.synced({}, found)):
                self._observed += 1
                # From the wire, as an allocator has it: hosts share no memory.
                self.sequencer.observe(self._observed, codec.decode_observed(codec.encode(message)))
                self._record()

    def lease_gpus(self) -> None:
        """Each by itself, by many."""
        for number, device in enumerate(device_of(host, gpu) for host in self.hosts for gpu in GPUS):
            granted(self.ask(self.lease(device), scheduler(number)))

    def add_classes(self) -> None:
        """Classes, and a quota of each tenant, that is large enough."""
        for name, select in CLASSES.items():
            self.ask(schedule_inputs.SetClassRequest(**self.begin(), name=name, select=select), OPERATOR)
        for number in range(_TENANTS):
            tenant = Principal(f"lab-{number}")
            for name in ("", "gpu"):
                quota = schedule_inputs.SetQuotaRequest(
                    **self.begin(), tenant=tenant, devices_max=QUOTA, device_class=name
                )
                self.ask(quota, OPERATOR)

    def wait(self, number: int) -> Timed:
        """One more waits: of ten, four for any GPU, two for one by name, two for two on one NUMA node, one for one on a
        host, and one for a GPU with four NICs on its host.
        """
        timed = self.ask(self.wanted(number), scheduler(number))
        assert timed.answer is not None and timed.answer.outcome == "queued", timed.answer
        return timed

    def wanted(self, number: int) -> inputs.LeaseRequest:
        """What that one waits for."""
        host = self.hosts[number % len(self.hosts)]
        match number % 10:
            case 4 | 5:
                return self.lease(device_of(host, number % len(GPUS)), wait_ms=WAIT_MS)
            case 6 | 7:
                return self.need(GPU_PAIR, constraints=(same("numa_node"),), wait_ms=WAIT_MS)
            case 8:
                return self.need(GPU, host=host, wait_ms=WAIT_MS)
            case 9:
                nics = Need(device_class="nic", count=4)
                return self.need(GPU, nics, constraints=(same("host"),), wait_ms=WAIT_MS)
            case _:
                return self.need(GPU, wait_ms=WAIT_MS)

    # --- requests

    def lease(self, *devices: str, **fields: Any) -> inputs.LeaseRequest:
        """Of devices by name."""
        given = {**self.begin(), "devices": devices, "holder": Holder(f"job-{self._asked}"), "ttl_ms": TTL_MS, **fields}
        return inputs.LeaseRequest(**given)

    def need(self, *needs: Need, **fields: Any) -> inputs.LeaseRequest:
        """Of devices that are needed."""
        return self.lease(needs=needs, **fields)

    def release(self, lease: int) -> tuple[inputs.ReleaseRequest, Principal]:
        """Of a lease, and by whom."""
        row = self.state.leases[lease]
        return inputs.ReleaseRequest(**self.begin(), lease=lease, token=row.token), row.principal


def device_of(host: HostName, number: int) -> DeviceId:
    """The device of that number on a host."""
    return device_id(host, description(number).key)


def scheduler(number: int) -> Principal:
    """One of those who ask."""
    return Principal(f"scheduler-{number % 8}@lab-{number % _TENANTS}")


def same(attribute: str, *needs: str) -> Constraint:
    """All have the same."""
    return Constraint(kind="same", attribute=attribute, needs=needs)


def distinct(attribute: str, *needs: str) -> Constraint:
    """No two have the same."""
    return Constraint(kind="distinct", attribute=attribute, needs=needs)


def granted(timed: Timed) -> int:
    """The lease that was granted."""
    assert timed.answer is not None and timed.answer.outcome == "granted", timed.answer
    return timed.answer.lease


def _looks(record: Record) -> int:
    return sum(isinstance(event, QueueLooked) for step in record.steps for event in step.events)
