"""`python -m tests.day --events 100000 [--seed N]`: the whole day; 1 if anything was not as it must be."""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.day.judging import Outcome, judge
from tests.day.machine import AGENTS
from tests.day.running import OTHERS, OWN, Day, expired, running, work

DEVICES = 240
INSTANTS = 1_000
HALF = 0.5
KILLS = 100
"""Between two kills each principal is answered so often that there come to be about so many."""


async def whole_day(
    folder: Path, *, events: int, instants: int, seed: int, devices: int = DEVICES, expiries: bool = True
) -> Outcome:
    """Kill every part again and again until there are so many events; then judge.

    `expiries`: wait for the first lease that expires; while deciders are killed, grace follows on grace.
    """
    chance = random.Random(seed)
    async with running(folder / "data", seed=seed, devices=devices) as day:
        began_s = time.monotonic()
        await work(day, events=events, disturb=lambda: _disturb(day, chance, events // KILLS))
        took_s = time.monotonic() - began_s
        if expiries:
            await expired(day)
        outcome = await judge(day, instants=instants, seed=seed)
        outcome.figures["load"] = f"{took_s:.1f} s, {int(day.events / took_s)} events/s with all that was killed"
        return outcome


async def _disturb(day: Day, chance: random.Random, pause: int) -> AsyncIterator[None]:
    """Each part once, in any order; then whoever it hits."""
    parts = [(role, False) for role in (*OWN, *AGENTS)] + [(role, True) for role in OTHERS]
    chance.shuffle(parts)
    for role, second in parts:
        await day.more(chance.randint(1, pause))
        await day.kill(role, second=second)
        yield
    while True:
        await day.more(chance.randint(1, pause))
        role = chance.choice((*OWN, *OTHERS, *AGENTS))
        await day.kill(role, second=role in OTHERS and chance.random() < HALF)
        yield


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.day")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--instants", type=int, default=INSTANTS)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="leasehold-day-") as folder:
        outcome = asyncio.run(
            whole_day(Path(folder), events=options.events, instants=options.instants, seed=options.seed)
        )
    print(outcome)
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
