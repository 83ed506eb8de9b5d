"""One simulated run per seed, and many of them at once: `python -m tests.sim.run --seeds 10000`."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from leasehold.events import limits
from leasehold.projections import leading
from tests.sim.schedulebook import FAILURES_MAX
from tests.sim.simulation import Simulation
from tests.sim.world import SECOND

BOUNDS = {
    "OBSERVATIONS_PER_MESSAGE_MAX": 4,
    "REQUESTS_WAITING_MAX": 48,
    "REQUESTS_HEARD_MAX": 64,
    "NEW_CLOCK_GRACE_MS_MAX": 90_000,
    "FAILURES_MAX": FAILURES_MAX,
}
"""Small, so that runs of two minutes reach them: a report takes several messages, a flood fills the queues, and there
are leases for longer than a new clock waits, and devices fail too often."""


@dataclass(frozen=True)
class Outcome:
    """How one seed went."""

    seed: int
    failure: str
    records: int
    kinds: frozenset[str]
    left_open: int


@contextmanager
def bounded() -> Iterator[None]:
    """With the bounds of the simulator."""
    with ExitStack() as stack:
        for name, value in BOUNDS.items():
            stack.enter_context(patch.object(limits, name, value))
        # Here a turn of a loop takes up to seconds.
        stack.enter_context(patch.object(leading, "_STILL_NS", 5 * SECOND))
        yield


def simulate(seed: int) -> Outcome:
    """Run one seed."""
    failure = ""
    simulation = Simulation(seed)
    with bounded():
        try:
            simulation.run()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
    return Outcome(seed, failure, len(simulation.log.bodies), frozenset(simulation.oracle.seen), simulation.left_open)


def main(arguments: list[str] | None = None) -> int:
    """Run many seeds on all cores; print how it went and every seed that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    failures, records, left_open, kinds = [], 0, 0, set[str]()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        seeds = range(options.first, options.first + options.seeds)
        for done, outcome in enumerate(pool.imap_unordered(simulate, seeds, chunksize=16), 1):
            records += outcome.records
            left_open += outcome.left_open
            kinds |= outcome.kinds
            if outcome.failure:
                failures.append(outcome.seed)
                print(f"seed {outcome.seed}: {outcome.failure}", flush=True)
            if sys.stderr.isatty() and done % 50 == 0:
                print(f"\r{done}/{options.seeds}", end="", file=sys.stderr, flush=True)
    took_s = time.monotonic() - started
    print(f"{options.seeds} seeds from {options.first}: {records} records, {len(kinds)} kinds of event, {took_s:.0f} s")
    print(f"{left_open} leases ended early in the one case that is left open (docs/adr/0011-which-time-counts.md)")
    print(f"{options.seeds - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
