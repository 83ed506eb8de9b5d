"""Real allocator processes, killed, stopped and resumed under load. `make soak` does it for minutes."""

import asyncio
import random
import time
from pathlib import Path

from tests.soak.takeover import Outcome, judge, run
from tests.support.allocators import company

SECONDS = 10.0
LOAD_S = 1.5
TAKEOVER_S_MAX = 8.0
"""Three seconds are promised and printed; a machine that is busy with other tests may take its time."""


def _seed() -> int:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return seed


async def test_allocators_are_killed_stopped_and_resumed(tmp_path: Path) -> None:
    """Whatever is done to whoever decides: another answers soon, nothing that was told is lost, all fits together."""
    outcome = await run(tmp_path, seconds=SECONDS, seed=_seed())
    print(outcome)
    assert not outcome.problems
    assert not outcome.figures.undecided
    assert sum(outcome.done.values()) >= 2
    assert max(max(took_s) for took_s in outcome.took_s.values()) < TAKEOVER_S_MAX


async def test_a_stopped_decider_answers_nothing_wrong(tmp_path: Path) -> None:
    """It wakes when its successor has worked for a while: every answer that it ever sends fits what was told before."""
    async with company(tmp_path, 2) as members:
        load = members.load(_seed(), workers=8, pace_s=0.005)
        outcome = Outcome(load.figures(), [])
        async with load.running():
            await load.first_decision(0)
            for _ in range(2):
                stopped = await members.decider()
                stopped.freeze()
                began_ns = time.monotonic_ns()
                await load.first_decision(began_ns)
                successor = await members.decider()
                assert successor is not stopped
                asked = len(load.asked)
                stopped.thaw()
                woken_ns = time.monotonic_ns()
                while len(load.asked) < asked + 100:
                    await load.first_decision(time.monotonic_ns())
                assert await members.decider() is successor
                print(f"the stopped one slept {(woken_ns - began_ns) / 1e9:.2f} s")
        await judge(members, load, outcome)
        print(outcome)
        assert not outcome.problems


async def test_two_that_both_decide_lose_speed_and_nothing_else(tmp_path: Path) -> None:
    """Without a hint both decide everything: appends are lost to each other, answers are the same and in order."""
    speeds = {}
    for hint in (True, False):
        folder = tmp_path / ("hint" if hint else "hintless")
        folder.mkdir()
        async with company(folder, 2, hint=hint) as members:
            load = members.load(_seed(), workers=8, pace_s=0.0)
            outcome = Outcome(load.figures(), [])
            async with load.running():
                await load.first_decision(0)
                began_s, before = time.monotonic(), load.figures().answered
                await asyncio.sleep(LOAD_S)
                speeds[hint] = (load.figures().answered - before) / (time.monotonic() - began_s)
            await judge(members, load, outcome)
            lost = sum(member.log.count("was another's") for member in members.members)
            print(f"{'one decides' if hint else 'both decide'}: {speeds[hint]:.0f}/s, {lost} appends lost; {outcome}")
            assert not outcome.problems
            assert hint or lost
    print(f"one alone is {speeds[True] / speeds[False]:.1f} times as fast as two against each other")
