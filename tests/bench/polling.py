"""What it costs to look at a hypervisor's domains: all in a few requests, beside one request for each."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from leasehold.events import limits
from leasehold.projections.polling import REST_FACTOR, Polling
from leasehold.services.poller import xendtext
from leasehold.services.poller.xend import XendSource
from leasehold.services.xend import answers
from leasehold.services.xend.address import Address
from leasehold.services.xend.http import Reply, Request, exchange
from tests.bench.measure import Figure, Part, Plan, Table, figure
from tests.bench.watching import cpu_s
from tests.poller.xenstage import XenProcess

DOMAINS: Final = (10, 100, 1_000)
WAYS: Final = ("XML-RPC, all at once", "HTTP, all that run at once", "HTTP, one request each")
REST_S: Final = limits.POLL_MS_MAX // 1_000
Look = Callable[[], Awaitable[int]]
"""Looks once; how many domains it found."""


async def measure(folder: Path, plan: Plan) -> Part:
    """The stand-in for xend, with more and more domains."""
    figures: dict[str, Figure] = {}
    rows = []
    for count in DOMAINS:
        directory = folder / str(count)
        directory.mkdir()
        stage = XenProcess(directory, "xmlrpc", domains=count)
        await stage.find()
        try:
            for name, look in _lookers(stage, count).items():
                rows.append(await _row(stage, name, count, look, plan, figures))
        finally:
            await stage.close()
    notes = (
        "CPU of the poller, with what it believes and tells; of the stand-in, a Python program as xend is, in 10 ms",
        f"behind a look comes a pause of {REST_FACTOR} times what it took, at least; at rest of {REST_S} s",
    )
    titles = ("domains", "how", "CPU", "of one domain", "time", "CPU of xend's stand-in")
    return Part([Table("Looking at a hypervisor's domains", titles, rows, notes)], figures)


def _lookers(stage: XenProcess, count: int) -> dict[str, Look]:
    looks = (
        _polled(XendSource(stage.url), count),
        _polled(XendSource(str(stage.http)), count),
        lambda: _one_by_one(stage.http),
    )
    return dict(zip(WAYS, looks, strict=True))


def _polled(source: XendSource, count: int) -> Look:
    polling = Polling()
    polling.sync({}, 0)

    async def look() -> int:
        now_ms = time.monotonic_ns() // 1_000_000
        polling.asks(now_ms)
        found = await source.look(polling.watched)
        polling.saw(found, now_ms)
        polling.news(now_ms)
        assert len(found.domains) == count + 1, "some are missing"
        return len(found.domains)

    return look


async def _one_by_one(address: Address) -> int:
    """As one would write it at first: the names, then each by itself."""
    names = xendtext.names(answers.value_of(await _reply(address, "?state=all"), "poll"))
    found = [xendtext.read_domain(answers.value_of(await _reply(address, f"/{quote(name)}"), "poll")) for name in names]
    return len(found)


async def _reply(address: Address, rest: str) -> Reply:
    return await exchange(address, Request("poll", "GET", f"/xend/domain{rest}"), timeout_s=60)


async def _row(
    stage: XenProcess, name: str, count: int, look: Look, plan: Plan, figures: dict[str, Figure]
) -> tuple[str, ...]:
    """Look again and again, once without counting."""
    await look()
    spent: dict[str, list[float]] = {"CPU": [], "time": [], "xend": []}
    for _ in range(plan.rounds):
        theirs_s, ours_s, begun_s = cpu_s(stage.pid), time.process_time(), time.monotonic()
        await look()
        spent["time"].append(1_000 * (time.monotonic() - begun_s))
        spent["CPU"].append(1_000 * (time.process_time() - ours_s))
        spent["xend"].append(1_000 * (cpu_s(stage.pid) - theirs_s))
        await asyncio.sleep(0)
    found = {what: figure(values) for what, values in spent.items()}
    figures[f"poll {count} {name} ms"] = found["CPU"]
    each_us = 1_000 * found["CPU"].median / count
    return (
        f"{count:,}", name, f"{found['CPU'].text(1)} ms", f"{each_us:.0f} µs", f"{found['time'].text(1)} ms",
        f"{found['xend'].text()} ms",
    )  # fmt: skip
