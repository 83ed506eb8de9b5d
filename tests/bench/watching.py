"""What a still machine costs, and how long a kernel's event takes into the ledger."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from leasehold.events import codec
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import DeviceAppeared
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.picture import take_picture
from tests.bench.cluster import HOST, Bus, bus
from tests.bench.measure import Figure, Part, Plan, Table, figure, percentile
from tests.live.scenarios import UDEVD
from tests.support import tree
from tests.support.netns import Machine
from tests.support.running import RunningUp

SETTLE_S: Final = 5.0
"""After a start: until caches are warm and the first snapshot has been thought of."""
EVENTS: Final = 20
PAUSE_S: Final = 0.3
LOOPBACK: Final = Path("/sys/class/net/lo/uevent")
"""`change` written here makes the kernel tell of the loopback interface, and does nothing else."""
_ARRIVE_S: Final = 10.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


async def measure(folder: Path, plan: Plan) -> Part:
    """Idleness under a real `up`; events of the loopback interface."""
    figures: dict[str, Figure] = {}
    tables = [await _idle(folder / "up", plan, figures)]
    tables.append(await _kernel_events(folder / "events", figures))
    tables.append(await asyncio.to_thread(_real_links, folder, figures))
    return Part(tables, figures)


# --- idleness ---------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def _idle(data: Path, plan: Plan, figures: dict[str, Figure]) -> Table:
    up = await asyncio.to_thread(RunningUp, data)
    try:
        await asyncio.sleep(SETTLE_S)
        pids = {**up.children(), "up itself": up.process.pid}
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        begun_s = time.monotonic()
        await asyncio.sleep(plan.idle_s)
        took_s = time.monotonic() - begun_s
        spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    finally:
        await asyncio.to_thread(up.stop)
    rows = []
    for name, busy_s in sorted(spent.items()):
        share = figures[f"idle {name} %"] = figure([100 * busy_s / took_s])
        rows.append((name, f"{share.median:.2f} %", f"{busy_s * 1_000:.0f} ms"))
    notes = (f"of one processor, over {took_s:.0f} s of a `leasehold up` that nobody asks anything; counted in 10 ms",)
    return Table("At rest", ("process", "CPU", "that is"), rows, notes)


# --- events -----------------------------------------------------------------------------------------------------------


def _paper(number: int) -> DeviceDescription:
    return DeviceDescription(key=DeviceKey(f"pci/ffff:00:00.0/net/{number}"), name=f"net_paper{number}", kind="net")


class _Changing:
    """This machine's real picture, and with it so many devices on paper."""

    def __init__(self) -> None:
        self.papers = 0

    def look(self, *, known: Picture) -> Picture:
        return take_picture(known=known) | {paper.key: paper for paper in map(_paper, range(self.papers))}


async def _kernel_events(data: Path, figures: dict[str, Figure]) -> Table:
    title, columns = "From the kernel's event into the ledger", ("what", "p50 ms", "p99 ms", "max ms")
    if not os.access(LOOPBACK, os.W_OK):
        return Table(title, columns, [], ("not measured: only root may have the kernel make an event",))
    async with bus(data) as found, found.process("allocator"), found.process("query"):
        took_ms = await _make_events(found)
    ordered = sorted(took_ms)
    names = ("p50", "p99", "max")
    for name, percent in zip(names, (50, 99, 100), strict=True):
        figures[f"kernel event {name} ms"] = figure([percentile(ordered, percent)])
    rows = [(f"{EVENTS} events", *(f"{figures[f'kernel event {name} ms'].median:.1f}" for name in names))]
    notes = (
        f"clock: from before `change` is written to {LOOPBACK} until a reader of the ledger has the record",
        "all is real (event, watcher, its look, bus, allocator, fsync) but for the change: the loopback is nothing",
        "that changes, so with each event a paper device comes into what the watcher sees",
    )
    return Table(title, columns, rows, notes)


def _real_links(folder: Path, figures: dict[str, Figure]) -> Table:
    """Links in a namespace of their own: told by the kernel, and where udevd is installed, by that."""
    columns = ("what", "p50 ms", "max ms")
    rows: list[tuple[str, ...]] = []
    notes = ["from when the kernel's event is heard (not udevd's, also where udevd runs) until a reader has the record"]
    for udevd in (False, True):
        try:
            measured = _in_namespace(folder / ("udev" if udevd else "kernel"), udevd=udevd)
        except (OSError, AssertionError, subprocess.CalledProcessError) as error:
            notes.append(f"{'with' if udevd else 'without'} udevd not measured: {str(error)[-300:]}")
            continue
        for what, took_ms in measured.items():
            name = f"link {what}, {'udevd runs' if udevd else 'no udevd'}"
            figures[f"{name} p50 ms"] = figure([percentile(sorted(took_ms), 50)])
            rows.append((name, f"{figures[f'{name} p50 ms'].median:.1f}", f"{max(took_ms):.1f}"))
    return Table("From the kernel's event into the ledger, on real links", columns, rows, tuple(notes))


def _in_namespace(folder: Path, *, udevd: bool) -> dict[str, list[float]]:
    machine = Machine(1)
    try:
        for kind, place in (("sysfs", "/sys"), ("tmpfs", "/run")):
            machine.do("mount", "-t", kind, kind, place)
        if udevd:
            machine.start(UDEVD, output=folder.with_suffix(".udevd.log"))
            machine.do("sh", "-c", "until udevadm control --ping --timeout=5; do :; done")
        program = [sys.executable, "-m", "tests.bench.delays", str(folder)]
        found: dict[str, list[float]] = json.loads(machine.do(*program, environment={"PYTHONPATH": str(tree.ROOT)}))
        return found
    finally:
        machine.close()


async def _make_events(found: Bus) -> list[float]:
    arrived: asyncio.Queue[float] = asyncio.Queue()
    async with found.connected("agent") as agent_connection, found.connected("allocator") as reading:
        ledger, changing = JetStreamLedger(reading, found.subjects), _Changing()
        agent = WatcherAgent(agent_connection, found.subjects, HOST, look=changing.look)
        tasks = [asyncio.create_task(agent.run()), asyncio.create_task(_hear(ledger, arrived))]
        took_ms = []
        try:
            async with asyncio.timeout(60):
                await agent.reported.wait()
            for _ in range(EVENTS):
                await asyncio.sleep(PAUSE_S)
                changing.papers += 1
                begun_s = time.perf_counter()
                LOOPBACK.write_text("change")
                async with asyncio.timeout(_ARRIVE_S):
                    took_ms.append((await arrived.get() - begun_s) * 1_000)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await ledger.close()
    return took_ms


async def _hear(ledger: JetStreamLedger, arrived: "asyncio.Queue[float]") -> None:
    """Say when a record tells of a paper device."""
    async with contextlib.aclosing(ledger.follow(0)) as batches:
        async for entries in batches:
            now_s = time.perf_counter()
            for entry in entries:
                for step in codec.decode_record(entry.body, entry.sequence).steps:
                    for event in step.events:
                        if isinstance(event, DeviceAppeared) and event.device.name.startswith("net_paper"):
                            arrived.put_nowait(now_s)
