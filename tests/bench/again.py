"""Going through a million events again: `leasehold replay` of an archive, beside PyPI `eventsourcing` on the same disk.

Each is a process of its own that begins with a file and ends with a state; its whole time and its peak of memory count.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from leasehold.services.archive.writer import ArchiveWriter, Limits
from leasehold.services.ledger.port import Entry
from tests.bench import logs
from tests.bench.measure import Figure, Part, Plan, Table, figure, ratio
from tests.support.tree import ROOT

ROUNDS_MAX: Final = 2
"""Of the small log; the large one is gone through once, by turns: all of them take some minutes."""
PACKED: Final = 64
"""Requests in a record of a busy log; a log of single requests has one."""
CLUSTER: Final = "bench"
PEER: Final = "eventsourcing"
DECIDED, FOLDED, LOG, AGGREGATES = "decided again", "folded", f"{PEER}, its log", f"{PEER}, each aggregate"
_BATCH: Final = 512
_RUN_S_MAX: Final = 900.0
# Of a process that was started from a large one the kernel counts that one's memory, too: so a small one starts it.
_TIMED: Final = """
import resource, subprocess, sys, time
begun_s = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
print(time.perf_counter() - begun_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
NOTES: Final = (
    "packed: 64 requests in a record; single: one; the whole process, the interpreter's start with it",
    "decided again: `leasehold replay` of an archive: chain checked, inputs decided, compared to the byte, folded",
    "folded: as that, but nothing is decided or compared",
    f"{LOG}: its SQLite recorder's notifications in order, by the thousand, each applied to its aggregate (a lease)",
    f"{AGGREGATES}: as its repository gives them, one by one",
    f"{PEER} chains nothing, decides nothing, and forgets a lease with its release; ours remembers requests, too",
)


class Ran(msgspec.Struct, frozen=True):
    """One process, from its start to its end."""

    events: int
    took_s: float
    peak_mb: float


async def measure(folder: Path, plan: Plan) -> Part:
    """Logs of the smallest and the largest size, by turns; the peer goes through as many events."""
    figures: dict[str, Figure] = {}
    rows: list[tuple[str, ...]] = []
    smallest, largest = min(plan.events), max(plan.events)
    for events in sorted({smallest, largest}):
        commands = await _made(folder, events)
        found: dict[str, list[Ran]] = {name: [] for name in commands}
        for _ in range(1 if events == largest else min(plan.rounds, ROUNDS_MAX)):
            for name, command in commands.items():
                found[name].append(await asyncio.to_thread(_ran, command))
        rows += (_row(name, events, runs, found.get(LOG, []), figures) for name, runs in found.items())
    columns = ("what", "events", "s", "events/s", "peak MB", "to its log")
    notes = NOTES if find_spec(PEER) is not None else (*NOTES, f"{PEER} is not installed")
    return Part([Table(f"A log gone through again, beside {PEER}", columns, rows, notes)], figures)


async def _made(folder: Path, events: int) -> dict[str, list[str]]:
    """What is gone through, and the command for it."""
    commands: dict[str, list[str]] = {}
    for name, packed in (("packed", PACKED), ("single", 1)):
        directory = folder / f"{name}-{events}"
        last = await write_archive(logs.bodies(events, packed), directory)
        command = [sys.executable, "-m", "leasehold", "replay", str(directory), "--json"]
        commands[f"{name}, {DECIDED}"] = command
        # The last one is decided: at least one must be.
        commands[f"{name}, {FOLDED}"] = [*command, "--from", str(last)]
    if find_spec(PEER) is not None:
        path = str(folder / f"{PEER}-{events}.sqlite")
        peer = [sys.executable, "-m", "tests.bench.eventsourced"]
        await asyncio.to_thread(_ran, [*peer, "write", path, str(events)])
        commands |= {LOG: [*peer, "log", path], AGGREGATES: [*peer, "aggregates", path]}
    return commands


async def write_archive(records: Iterable[bytes], directory: Path) -> int:
    """An archive of these records, by the writer that the archive's process has; how many they were."""
    writer = ArchiveWriter(directory, CLUSTER, Limits(reserve_bytes=0))
    await writer.lock()
    try:
        await writer.load()
        batch: list[Entry] = []
        for sequence, body in enumerate(records, 1):
            batch.append(Entry(sequence, body))
            if len(batch) == _BATCH:
                await writer.write(batch)
                batch.clear()
        await writer.write(batch)
        return writer.tip.sequence
    finally:
        await writer.close()


def _ran(command: list[str]) -> Ran:
    """Run a command that ends with one JSON object, which says how many events it went through."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, *command], capture_output=True, check=True, cwd=ROOT, timeout=_RUN_S_MAX
    )
    said, took_s, peak_kib = done.stdout.decode().rsplit(maxsplit=2)
    return Ran(msgspec.json.decode(said)["events"], float(took_s), int(peak_kib) * 1024 / 1e6)


def _row(name: str, events: int, runs: list[Ran], peer: list[Ran], figures: dict[str, Figure]) -> tuple[str, ...]:
    rates = [run.events / run.took_s for run in runs]
    rate = figures[f"again {name} {events} events/s"] = figure(rates)
    peak = figures[f"again {name} {events} peak MB"] = figure(run.peak_mb for run in runs)
    to_peer = ratio(rates, [run.events / run.took_s for run in peer]) if peer else None
    if to_peer is not None:
        figures[f"again {name} {events} to {LOG}"] = to_peer
    took = figure(run.took_s for run in runs)
    return (
        name, f"{runs[0].events:,}", took.text(1), rate.text(), peak.text(), to_peer.text(2) if to_peer else "",
    )  # fmt: skip
