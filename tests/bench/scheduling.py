"""What asking by need, waiting and keeping cost, however many devices, leases and waiting requests there are beside.

Each run is a process of its own (`trial`) around the core alone, as in `memory`: the real sequencer decides, folds,
encodes, hashes and answers; nothing is sent. Beside the whole size stand smaller ones: what grows with the number of
devices, or of those who wait, shows as a ratio.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from leasehold.services.lifeline import tied_to_us
from tests.bench import trial
from tests.bench.crowd import GPUS, PER_HOST
from tests.bench.measure import Figure, Part, Plan, Table, figure, percentile, ratio
from tests.bench.trial import Found
from tests.scheduling import growth
from tests.support.tree import ROOT

Size = tuple[int, int]
"""Hosts, and how many wait."""
WHOLE: Final[Size] = (1_000, 1_000)
FEWER_HOSTS: Final[Size] = (100, 100)
FEWER_WAIT: Final[Size] = (1_000, 100)
SIZES: Final = (WHOLE, FEWER_WAIT, FEWER_HOSTS)
TIMES: Final = 100
"""How often each thing is asked in one run."""
SERVED_PER_H: Final = 10_000
_NOT_TIMES: Final = frozenset({trial.SERVED_BYTES})

Rounds = Mapping[Size, Sequence[Found]]


async def measure(_folder: Path, plan: Plan) -> Part:
    """Each size in processes of its own, by turns."""
    rounds: dict[Size, list[Found]] = {size: [] for size in SIZES}
    for _ in range(min(plan.rounds, 3)):
        for size in SIZES:
            rounds[size].append(await _in_process(*size))
    figures: dict[str, Figure] = {}
    tables = [_decisions(rounds, figures), _sizes(rounds[WHOLE], figures), _growth(rounds[WHOLE], figures)]
    return Part(tables, figures)


async def _in_process(hosts: int, waiters: int) -> Found:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.trial", str(hosts), str(waiters), str(TIMES),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, preexec_fn=tied_to_us(),
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0
    return msgspec.json.decode(out, type=Found)


def _percentiles(rounds: Sequence[Found], what: str, percent: float) -> list[float]:
    return [percentile(sorted(one.us[what]), percent) for one in rounds]


def _decisions(rounds: Rounds, figures: dict[str, Figure]) -> Table:
    rows = []
    for what in rounds[WHOLE][0].us:
        if what in _NOT_TIMES or not all(what in one.us for some in rounds.values() for one in some):
            continue
        p50s = {size: _percentiles(some, what, 50) for size, some in rounds.items()}
        p50 = figures[f"scheduling {what} p50 us"] = figure(p50s[WHOLE])
        p99 = figures[f"scheduling {what} p99 us"] = figure(_percentiles(rounds[WHOLE], what, 99))
        by_waiters = figures[f"scheduling {what} by waiters"] = ratio(p50s[WHOLE], p50s[FEWER_WAIT])
        by_devices = figures[f"scheduling {what} by devices"] = ratio(p50s[FEWER_WAIT], p50s[FEWER_HOSTS])
        digits = 0 if p50.median >= 10 else 1
        rows.append((what, p50.text(digits), p99.text(digits), by_waiters.text(2), by_devices.text(2)))
    hosts, waiters = WHOLE
    notes = (
        f"{hosts:,} hosts of {PER_HOST} devices; all {hosts * len(GPUS):,} GPUs are leased, {waiters:,} wait for GPUs",
        "beside that stand two classes, and four tenants with quotas; each request is alone in its record",
        f"processor time of {TIMES} requests (fewer of what is seldom): decide, fold, encode, hash, answer",
        "in it are the looks at those who wait that stand in the same record; nothing is sent",
        f"ratios of p50: to {FEWER_WAIT[1]} waiting; of these to {FEWER_HOSTS[0]} hosts. One: it does not grow",
    )
    columns = ("decision", "p50 µs", "p99 µs", f"to {FEWER_WAIT[1]} waiting", "to 10,000 devices")
    return Table("Asking by need, waiting and keeping: the price of a decision", columns, rows, notes)


def _sizes(rounds: Sequence[Found], figures: dict[str, Figure]) -> Table:
    """Memory, snapshots, folding."""
    hosts, waiters = WHOLE
    devices, leases = hosts * PER_HOST, hosts * len(GPUS)

    def of(name: str) -> list[float]:
        return [one.memory[name] for one in rounds]

    per_device = [1e6 * (full - empty) / devices for full, empty in zip(of("devices"), of("empty"), strict=True)]
    per_lease = [1e6 * (full - before) / leases for full, before in zip(of("leases"), of("devices"), strict=True)]
    found = {
        "resident memory of the process, MB": (of("whole"), 0),
        "memory of a device, bytes": (per_device, 0),
        "memory of a living lease, bytes": (per_lease, 0),
        "memory of who waits, bytes": ([1e6 * each / waiters for each in of("waiting")], 0),
        "snapshot, MB": ([one.counts["snapshot MB"] for one in rounds], 1),
        "snapshot written in, s of a processor": ([one.counts["snapshot s"] for one in rounds], 2),
        "state from the snapshot in, s of a processor": ([one.counts["from the snapshot s"] for one in rounds], 2),
        "fold, with hash and decoding, events/s": ([one.counts["fold events/s"] for one in rounds], 0),
        "records of a drain of 100 leases": ([one.counts["records of a drain"] for one in rounds], 0),
    }
    rows = []
    for what, (values, digits) in found.items():
        figures[f"scheduling {what}"] = figure(values)
        rows.append((what, figure(values).text(digits)))
    notes = (
        "memory grows by pages, and by what asking leaves behind: remembered answers are in it",
        "folded: the records of all decisions of the table above, on the state from the snapshot before them",
    )
    return Table("Leases, and requests that wait: memory, snapshots, folding", ("what", "measured"), rows, notes)


def _growth(rounds: Sequence[Found], figures: dict[str, Figure]) -> Table:
    rows = []
    for way, what in growth.WAYS.items():
        grown = growth.measure(way)
        found = figures[f"scheduling growth {way} MB/h"] = figure([grown.bytes / 1e6])
        rows.append((f"renewals: {way}", f"{grown.requests:,}", f"{grown.records:,}", f"{found.median:,.0f}", what))
    served = [percentile(sorted(one.us[trial.SERVED_BYTES]), 50) for one in rounds]
    found = figures["scheduling growth served MB/h"] = figure(each * SERVED_PER_H / 1e6 for each in served)
    what = f"one waits, another releases, the first has it: {figure(served).median:,.0f} bytes each time"
    rows.append(("the queue", f"{2 * SERVED_PER_H:,}", f"{2 * SERVED_PER_H:,}", f"{found.median:,.0f}", what))
    columns = ("by", "requests/h", "records/h", "MB/h", "what it is")
    notes = (
        "renewals of 10,000 leases of a minute, each at 0.25 to 0.4 of it",
        f"the queue: {SERVED_PER_H:,} served in an hour, {WHOLE[1]:,} waiting beside; looks at them are in it",
    )
    return Table("How fast the ledger grows", columns, rows, notes)
