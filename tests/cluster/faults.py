"""What happens to a cluster under load, one after the other, and how long it takes until decisions come again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from tests.cluster.running import Site, running_site
from tests.support.cluster import SERVERS
from tests.support.history import Load
from tests.support.servers import ledger_at
from tests.support.told import Figures

RECOVERED_S: Final = 60.0
BETWEEN: Final = 60
"""Requests that are decided between two faults."""

_POLL_S: Final = 0.02

Fault = Callable[[Site], Awaitable[int]]
"""Does it; returns since when (ns, monotonic) decisions count as made after it."""


async def leader_killed(site: Site) -> int:
    """The leader is killed, and started again when the others have gone on without it."""
    leader = await site.leader()
    await site.cluster.kill(leader)
    since_ns = time.monotonic_ns()
    await site.leader(but=leader)
    await site.cluster.start(leader)
    return since_ns


async def leader_stepped_down(site: Site) -> int:
    """The leader hands over."""
    leader = await site.leader()
    since_ns = time.monotonic_ns()
    await site.cluster.step_down(site.clients[leader])
    return since_ns


async def all_killed(site: Site) -> int:
    """All three are killed at once, and started again."""
    everybody = range(SERVERS)
    await site.cluster.kill(*everybody)
    since_ns = time.monotonic_ns()
    await site.cluster.start(*everybody)
    return since_ns


async def leader_cut_off(site: Site) -> int:
    """The leader is cut off from both others, is replaced, and is let in again when the others have decided."""
    leader = await site.leader()
    others = [client for number, client in enumerate(site.clients) if number != leader]
    site.cluster.cut_off(leader)
    since_ns = time.monotonic_ns()
    try:
        await site.cluster.leader(others, but=leader)
    finally:
        site.cluster.heal()
    return since_ns


async def suffer(site: Site, load: Load, faults: Sequence[Fault]) -> None:
    """Let the load run, and the faults come."""
    async with load.running():
        await _decided(load, BETWEEN)
        for fault in faults:
            since_ns = await fault(site)
            recovered_ns = await load.first_decision(since_ns, RECOVERED_S)
            print(f"{fault.__name__}: decisions again after {(recovered_ns - since_ns) / 1e9:.2f} s")
            await _decided(load, BETWEEN)
    await load.settle()
    await load.ask_all_again()


async def _decided(load: Load, count: int) -> None:
    """Wait until so many more requests have been begun."""
    goal = len(load.asked) + count
    async with asyncio.timeout(RECOVERED_S):
        # The load has a pace of its own, and tells nobody how far it is.
        while len(load.asked) < goal:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)


async def judged(folder: Path, faults: Sequence[Fault], seed: int) -> tuple[Figures, list[str]]:
    """A run with these faults: its figures, and what is wrong with it."""
    print(f"seed {seed}")
    async with running_site(folder) as site:
        load = site.load(seed)
        await suffer(site, load, faults)
        async with ledger_at(site.cluster.urls) as ledger:
            problems = await load.check(ledger)
        problems += await site.verify()
        problems += [f"an allocator ended with {code}" for code in site.ended()]
        print(load.figures())
        return load.figures(), problems
