"""What the core needs for many hosts, and what a decision then costs: in a process of its own.

The core is all that an allocator and a query service keep of the ledger; what comes on top of it is the interpreter and
the libraries, which are in the figures.
"""

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from leasehold.services.lifeline import tied_to_us
from tests.bench.logs import LogMaker
from tests.bench.measure import Figure, Part, Plan, Table, figure, percentile
from tests.support.tree import ROOT

SIZES: Final = ((1, 100), (1_000, 100))
DECISIONS: Final = 2_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Found(msgspec.Struct, frozen=True):
    """What one process has found. Leases are granted and released in turn, each in a record of its own."""

    before_mb: float
    after_mb: float
    grant_us: list[float]
    release_us: list[float]


async def measure(_folder: Path, plan: Plan) -> Part:
    """Each size in processes of its own, by turns."""
    found: dict[tuple[int, int], list[Found]] = {size: [] for size in SIZES}
    for _ in range(min(plan.rounds, 3)):
        for size in SIZES:
            found[size].append(await _in_process(*size))
    figures: dict[str, Figure] = {}
    rows = []
    for (hosts, devices), rounds in found.items():
        shown = [f"{hosts:,}, {devices}", figure(each.before_mb for each in rounds).text()]
        key = f"{hosts}x{devices}"
        memory = figures[f"{key} MB"] = figure(each.after_mb for each in rounds)
        shown.append(memory.text())
        for name in ("grant_us", "release_us"):
            for percent in (50, 99):
                each = figure(percentile(sorted(getattr(one, name)), percent) for one in rounds)
                figures[f"{key} {name} p{percent}"] = each
                shown.append(each.text())
        rows.append(tuple(shown))
    columns = ("hosts, devices of each", "empty, MB", "full, MB", "grant p50 µs", "p99", "release p50 µs", "p99")
    notes = (
        "resident memory of a process with the core alone, before and after all hosts have told their devices",
        f"of {DECISIONS:,} requests each: decide, fold, encode, hash, answer, one request in a record; nothing is sent",
    )
    return Part([Table("Many hosts: memory, and the price of a decision", columns, rows, notes)], figures)


async def _in_process(hosts: int, devices: int) -> Found:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.memory", str(hosts), str(devices),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, preexec_fn=tied_to_us(),
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return msgspec.json.decode(out, type=Found)


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6


def _find(hosts: int, devices: int) -> Found:
    # As the processes of ours have it.
    gc.set_threshold(100_000, 50, 100)
    before_mb = _resident_mb()
    maker = LogMaker(hosts=hosts, devices_per_host=devices, begun_ns=time.time_ns())
    for _ in maker.pictures():
        pass
    after_mb = _resident_mb()
    took_us: dict[str, list[float]] = {"grant": [], "release": []}
    for _ in range(DECISIONS):
        for name, ask in (("grant", maker.lease), ("release", maker.release)):
            ask()
            begun_s = time.perf_counter()
            maker.record()
            took_us[name].append((time.perf_counter() - begun_s) * 1e6)
    return Found(before_mb, after_mb, took_us["grant"], took_us["release"])


if __name__ == "__main__":
    print(msgspec.json.encode(_find(int(sys.argv[1]), int(sys.argv[2]))).decode())
