"""What asking by need and waiting cost, however many devices, leases and waiting requests there are beside.

In a process of its own, with the core alone, as in `memory`: the real sequencer decides, folds, encodes, hashes and
answers, one request in a record; nothing is sent. `python -m tests.bench.scheduling` prints one round.
"""

import asyncio
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import Holder, Principal
from leasehold.events.inputs import Request
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.events.scheduling import Constraint, Need
from leasehold.projections import selectors
from leasehold.services.lifeline import tied_to_us
from tests.bench.core import PRINCIPAL, Bench, device
from tests.bench.measure import Figure, Part, Plan, Table, figure, percentile
from tests.scheduling import growth
from tests.support.tree import ROOT

HOSTS, GPUS, NICS, OTHERS = 1_000, 8, 32, 60
LEASES, WAITING = 10_000, 1_000
DECISIONS: Final = 300
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
GPU = 'device.vendor == "10de" && device.product == "2684"'
NIC = 'device.vendor == "8086" && device.product == "10ca"'
BY_CLASS = 'device.pci.class == "0200" && device.numa_node == 1'
UNINDEXED = 'device.serial == "it has none"'
TTL_MS: Final = 24 * 3_600_000


class Found(msgspec.Struct, frozen=True):
    """What one process has found: resident memory, and of each kind of decision how long it took, in microseconds."""

    empty_mb: float
    devices_mb: float
    waiting_mb: float
    took_us: dict[str, list[float]]
    steps: dict[str, int]
    """The most that a search took."""


async def measure(_folder: Path, plan: Plan) -> Part:
    """Processes one after the other."""
    rounds = [await _in_process() for _ in range(min(plan.rounds, 3))]
    figures: dict[str, Figure] = {}
    rows = []
    for name in rounds[0].took_us:
        shown = [name]
        for percent in (50, 99):
            each = figure(percentile(sorted(one.took_us[name]), percent) for one in rounds)
            figures[f"scheduling {name} p{percent} us"] = each
            shown.append(each.text())
        rows.append((*shown, str(max(one.steps.get(name, 0) for one in rounds) or "")))
    for name in ("empty_mb", "devices_mb", "waiting_mb"):
        figures[f"scheduling {name}"] = figure(getattr(one, name) for one in rounds)
    memory = " / ".join(figures[f"scheduling {name}"].text() for name in ("empty_mb", "devices_mb", "waiting_mb"))
    notes = (
        f"{HOSTS:,} hosts of {GPUS} GPUs, {NICS} NICs, {OTHERS} others; {LEASES:,} leases; {WAITING:,} wait for GPUs",
        f"resident memory, empty / with all devices / with all leases and all who wait: {memory} MB",
    )
    decisions = Table("Asking by need", ("decision", "p50 µs", "p99 µs", "steps, most"), rows, notes)
    return Part([decisions, _growth(figures)], figures)


def _growth(figures: dict[str, Figure]) -> Table:
    rows = []
    for way in growth.WAYS:
        grown = growth.measure(way)
        figures[f"scheduling growth {way} MB per h"] = figure([grown.bytes / 1e6])
        rows.append((way, f"{grown.requests:,}", f"{grown.records:,}", f"{grown.bytes / 1e6:,.0f}"))
    columns = ("renewals of 10,000 leases of a minute", "requests per h", "records per h", "MB per h")
    return Table("How fast the ledger grows by renewals", columns, rows)


async def _in_process() -> Found:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.scheduling", "--json",
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, preexec_fn=tied_to_us(),
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return msgspec.json.decode(out, type=Found)


# --- in the process -----------------------------------------------------------------------------------------------


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


def _descriptions() -> list[DeviceDescription]:
    models = (*(("10de", "2684", 0x030200),) * GPUS, *(("8086", "10ca", 0x020000),) * NICS)
    models += (("144d", "a80a", 0x010802),) * OTHERS
    return [
        msgspec.structs.replace(
            device(number), vendor_id=vendor, product_id=product, pci_class=pci_class, numa_node=number % 2
        )
        for number, (vendor, product, pci_class) in enumerate(models)
    ]


class Farm:
    """All these hosts, and who has and waits for what."""

    def __init__(self) -> None:
        self.bench = Bench(in_flight=1)
        self.answers: list[Answer] = []
        self.steps: dict[str, int] = {}
        self._holders = itertools.count()
        for number in range(HOSTS):
            # From the wire, as an allocator has it: hosts share no memory.
            wire = codec.encode(_descriptions())
            self.bench.add_host(f"node{number:04}", msgspec.json.decode(wire, type=list[DeviceDescription]))

    def ask(self, request: Request, principal: Principal = PRINCIPAL) -> Answer:
        """In a record of its own."""
        assert self.bench.sequencer.ask(1, principal, request)
        return self.commit()[0]

    def commit(self) -> list[Answer]:
        """What waits, decided and taken by the log."""
        bench = self.bench
        bench.now_ns += 1_000_000
        if bench.sequencer.draft(bench.now_ns) is not None:
            bench.sequencer.committed()
        answers = [reply.answer for reply in bench.sequencer.replies]
        bench.sequencer.replies.clear()
        return answers

    def request(self, *needs: Need, **fields: Any) -> inputs.LeaseRequest:
        """By somebody new."""
        given = {"request_id": self.bench.request_id(), "issued_at_ns": self.bench.now_ns, "ttl_ms": TTL_MS}
        holder = Holder(f"job-{next(self._holders)}")
        return inputs.LeaseRequest(**{**given, "holder": holder, "needs": needs, **fields})

    def settle(self) -> int:
        """Decide until nothing is left to decide: how many records that took."""
        records = 0
        while self.bench.sequencer.has_work(self.bench.now_ns):
            self.commit()
            records += 1
        return records

    def fill(self) -> None:
        """Lease all GPUs, and some NICs; then others wait for GPUs."""
        for number in range(LEASES):
            answer = self.ask(self.request(Need(select=GPU if number < HOSTS * GPUS else NIC)))
            assert answer.outcome == "granted", answer
        pair = (Constraint(kind="same", attribute="numa_node"),)
        for number in range(WAITING):
            both = {"constraints": pair, "wait_ms": 3_600_000 * 24} if number % 2 else {"wait_ms": 3_600_000 * 24}
            answer = self.ask(self.request(Need(select=GPU, count=1 + number % 2), **both))
            assert answer.outcome == "queued", answer


def _timed(farm: Farm, name: str, make: Callable[[], Request], undo: Callable[[Answer], None]) -> list[float]:
    took = []
    for _ in range(DECISIONS):
        request = make()
        begun_s = time.perf_counter()
        answer = farm.ask(request)
        took.append((time.perf_counter() - begun_s) * 1e6)
        search = answer.search or (answer.refusal.search if answer.refusal is not None else None)
        farm.steps[name] = max(farm.steps.get(name, 0), search.steps if search is not None else 0)
        undo(answer)
    return took


def _find() -> Found:
    gc.set_threshold(100_000, 50, 100)  # as the processes of ours have it
    selectors.load()
    empty_mb = _resident_mb()
    farm = Farm()
    devices_mb = _resident_mb()
    farm.fill()
    farm.settle()
    waiting_mb = _resident_mb()

    def release(answer: Answer) -> None:
        assert answer.outcome == "granted", answer
        farm.ask(farm.bench.release(answer.lease))
        farm.settle()

    def withdraw(answer: Answer) -> None:
        assert answer.outcome == "queued", answer
        fields = {"request_id": farm.bench.request_id(), "issued_at_ns": farm.bench.now_ns}
        farm.ask(WithdrawRequest(queued=answer.queued, **fields))
        farm.settle()

    def refused(answer: Answer) -> None:
        assert answer.outcome == "refused", answer

    node = (Constraint(kind="same", attribute="numa_node"),)
    apart = (Constraint(kind="distinct", attribute="host"),)
    last = f"node{HOSTS - 1:04}/{device(GPUS + NICS - 1).key}"
    ways: dict[str, tuple[Callable[[], Request], Callable[[Answer], None]]] = {
        "a device by its name": (lambda: farm.request(devices=(last,)), release),
        "one of a model": (lambda: farm.request(Need(select=NIC)), release),
        "four of a model on one node": (lambda: farm.request(Need(select=NIC, count=4), constraints=node), release),
        "one by class and node": (lambda: farm.request(Need(select=BY_CLASS)), release),
        "one each of eight hosts": (
            lambda: farm.request(Need(select=NIC, count=8), constraints=apart),
            release,
        ),
        "refused: all of a model are leased": (lambda: farm.request(Need(select=GPU)), refused),
        "cut off: by what no index has": (lambda: farm.request(Need(select=UNINDEXED)), refused),
        "let in to wait for two on one node": (
            lambda: farm.request(Need(select=GPU, count=2), constraints=node, wait_ms=3_600_000),
            withdraw,
        ),
    }
    took_us = {name: _timed(farm, name, make, undo) for name, (make, undo) in ways.items()}
    took_us["a GPU is released, and who waits gets it"] = _handed_on(farm)
    return Found(empty_mb, devices_mb, waiting_mb, took_us, farm.steps)


def _handed_on(farm: Farm) -> list[float]:
    """From the release until nothing is left to decide."""
    took = []
    state = farm.bench.sequencer.state
    leases = [lease for lease, row in sorted(state.leases.items()) if not row.ended and len(row.devices) == 1]
    for lease in leases[:DECISIONS]:
        request = farm.bench.release(lease)
        begun_s = time.perf_counter()
        farm.ask(request)
        farm.settle()
        took.append((time.perf_counter() - begun_s) * 1e6)
    return took


def main() -> None:
    """One round."""
    found = _find()
    if "--json" in sys.argv[1:]:
        print(msgspec.json.encode(found).decode())
        return
    print(f"MB: empty {found.empty_mb:.0f}, devices {found.devices_mb:.0f}, waiting {found.waiting_mb:.0f}")
    for name, took in found.took_us.items():
        ordered = sorted(took)
        print(
            f"{name:<44} p50 {percentile(ordered, 50):>9.0f} us  p99 {percentile(ordered, 99):>9.0f} us  "
            f"steps {found.steps.get(name, 0)}"
        )


if __name__ == "__main__":
    main()
