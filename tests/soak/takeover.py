"""Allocators that are killed, stopped, resumed and ended at random, under load, for as long as wanted.

    python -m tests.soak.takeover --minutes 5 [--seed N]

Afterwards: what every client was told must fit together, one device at a time and with the ledger; every request is
asked again and must be told the same; the whole ledger is decided again. How long each takeover took is printed: from
the signal to the first answer to a request that was sent after it.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from leasehold.services.verifying.checks import check_ledger
from tests.support.allocators import Company, company
from tests.support.history import Load
from tests.support.told import Figures

PAUSE_S = (0.3, 2.5)
FROZEN_S = (0.0, 3.0)
WHAT = ("kill", "kill", "freeze", "freeze", "end", "kill another", "freeze another")


@dataclass
class Outcome:
    """What came of a run."""

    figures: Figures
    problems: list[str]
    done: Counter[str] = field(default_factory=Counter)
    """How often each thing was done to the decider, or to another."""
    took_s: dict[str, list[float]] = field(default_factory=dict)
    """Takeovers, by what made them necessary."""

    def __str__(self) -> str:
        lines = [str(self.figures), f"done: {dict(self.done)}"]
        for what, took_s in self.took_s.items():
            lines.append(
                f"takeover after {what}: {len(took_s)} times, min {min(took_s):.2f} s, "
                f"median {statistics.median(took_s):.2f} s, max {max(took_s):.2f} s"
            )
        return "\n".join(lines + self.problems[:20])


async def _disturb(company: Company, load: Load, chance: random.Random, outcome: Outcome) -> None:
    """Do something to the decider, or to another; see that somebody answers; and make good what was done."""
    what = chance.choice(WHAT)
    decider = await company.decider()
    victim = decider
    if what.endswith("another"):
        victim = chance.choice([member for member in company.members if member is not decider])
    outcome.problems += [f"{each.data.name} has ended by itself" for each in company.members if each.has_ended]
    began_ns = time.monotonic_ns()
    if what.startswith("freeze"):
        victim.freeze()
    elif what.startswith("kill"):
        victim.kill()
    else:
        await victim.end()
    took_s = (await load.first_decision(began_ns) - began_ns) / 1e9
    outcome.done[what] += 1
    outcome.took_s.setdefault(what, []).append(took_s)
    if what.startswith("freeze"):
        await asyncio.sleep(chance.uniform(*FROZEN_S))
        victim.thaw()
    else:
        victim.start()


async def run(folder: Path, *, seconds: float, seed: int, allocators: int = 3, pace_s: float = 0.03) -> Outcome:
    """Disturb for so long, then judge."""
    chance = random.Random(seed)
    async with company(folder, allocators) as members:
        load = members.load(seed, pace_s=pace_s)
        outcome = Outcome(load.figures(), [])
        async with load.running():
            await load.first_decision(0)
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s and not outcome.problems:
                await asyncio.sleep(chance.uniform(*PAUSE_S))
                await _disturb(members, load, chance, outcome)
        await judge(members, load, outcome)
    return outcome


async def judge(members: Company, load: Load, outcome: Outcome) -> None:
    """All that must hold when everybody has calmed down."""
    await load.settle()
    outcome.figures = load.figures()
    await load.ask_all_again()
    outcome.problems += await load.check(members.ledger)
    report = await check_ledger(members.ledger, [], lambda _done, _all: None)
    if report.problem:
        outcome.problems.append(report.problem)
    figures = load.figures()
    outcome.figures.lost, outcome.figures.doubled = figures.lost, figures.doubled


def main() -> int:
    """Run it from the command line; 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.takeover")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--allocators", type=int, default=3)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="leasehold-soak-") as folder:
        outcome = asyncio.run(
            run(Path(folder), seconds=options.minutes * 60, seed=options.seed, allocators=options.allocators)
        )
    print(outcome)
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
