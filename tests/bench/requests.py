"""The request path: everybody does the same job, by turns, in several short rounds."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.bench import etcd, postgres, redis_
from tests.bench.cluster import cluster
from tests.bench.machine import SYNCS, sync_ms
from tests.bench.measure import Contender, Figure, Part, Plan, Round, Table, figure, leasing, percentile, ratio
from tests.bench.ours import Ours, bare
from tests.bench.peers import NotInstalledError

IN_FLIGHT: Final = (1, 16, 64)
DEVICES: Final = max(IN_FLIGHT)
FOUGHT_FOR: Final = 10
BARE, R1, R3 = "bare NATS", "Leasehold R1", "Leasehold R3"
PEERS: Final = (postgres.PEER, redis_.PEER, etcd.PEER, etcd.THREE)

Rounds = dict[tuple[str, int, bool], list[Round]]
"""By contender, requests in flight, and whether all fought for the same ten devices."""


async def measure(folder: Path, plan: Plan) -> Part:
    """Start everybody, measure by turns, end everybody."""
    missing: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        contenders: list[Contender] = []
        first = await stack.enter_async_context(cluster(folder / "r1", DEVICES))
        contenders.append(await stack.enter_async_context(bare(first)))
        three = await stack.enter_async_context(cluster(folder / "r3", DEVICES, servers=3))
        for name, found in ((R1, first), (R3, three)):
            connection = await stack.enter_async_context(found.connected("operator"))
            contenders.append(Ours(name, connection, found.subjects))
        for peer in PEERS:
            own = folder / peer.name.replace(" ", "-")
            own.mkdir()
            try:
                contenders.append(await stack.enter_async_context(peer.run(own, max(IN_FLIGHT))))
            except NotInstalledError as error:
                missing[peer.name] = f"not installed: {error}"
        rounds, synced_ms = await _by_turns(contenders, plan, folder)
    names = [each.name for each in contenders]
    tables = [_apart(rounds, names), _fight(rounds, names), _who(missing)]
    return Part(tables, {**_figures(rounds, names), "fsync p50 ms": figure(synced_ms)})


async def _by_turns(contenders: list[Contender], plan: Plan, folder: Path) -> tuple[Rounds, list[float]]:
    """All rounds of all, and beside them what one fsync took, p50 of each round, ms."""
    rounds: Rounds = {}
    synced_ms: list[float] = []
    for number in range(-1, plan.rounds):
        synced_ms.append(percentile(sorted(sync_ms(folder / "sync", SYNCS)), 50))
        for in_flight in IN_FLIGHT:
            for contender in contenders:
                for fight in (False, True):
                    if fight and (contender.name == BARE or in_flight <= FOUGHT_FOR):
                        continue
                    devices = FOUGHT_FOR if fight else DEVICES
                    # The first time is for caches and connections, and does not count.
                    seconds = plan.seconds if number >= 0 else min(plan.seconds, 0.2)
                    found = await leasing(contender, in_flight, devices, seconds)
                    if number >= 0:
                        rounds.setdefault((contender.name, in_flight, fight), []).append(found)
    return rounds, synced_ms


def like(name: str) -> str:
    """Which of ours does what this one does: on one server, or on three."""
    return R3 if name.endswith("R3") else R1


def _rates(rounds: list[Round]) -> list[float]:
    return [each.pairs_per_s for each in rounds]


def _times(rounds: list[Round]) -> tuple[Figure, Figure]:
    """p50 and p99 of a grant, ms, each over the rounds."""
    ordered = [sorted(each.lease_ms) for each in rounds if each.lease_ms]
    return figure(percentile(each, 50) for each in ordered), figure(percentile(each, 99) for each in ordered)


def _apart(rounds: Rounds, names: list[str]) -> Table:
    rows = []
    for in_flight in IN_FLIGHT:
        free, one = _rates(rounds[BARE, in_flight, False]), _rates(rounds[R1, in_flight, False])
        for name in names:
            found = rounds[name, in_flight, False]
            p50, p99 = _times(found)
            rates = _rates(found)
            rows.append((
                name, str(in_flight), figure(rates).text(), p50.text(2), p99.text(2), ratio(rates, free).text(2),
                ratio(one, rates).text(2),
            ))  # fmt: skip
    return Table(
        "Lease and release, each a device of its own",
        ("who", "in flight", "pairs/s", "grant p50 ms", "grant p99 ms", "to bare NATS", "Leasehold R1 to it"),
        rows,
        ("a pair is a lease and a release, each answered after it is on the disk (bare NATS: two requests, echoed)",),
    )


def _fight(rounds: Rounds, names: list[str]) -> Table:
    rows = []
    for in_flight in (each for each in IN_FLIGHT if each > FOUGHT_FOR):
        one = _rates(rounds[R1, in_flight, True])
        for name in (each for each in names if each != BARE):
            found = rounds[name, in_flight, True]
            rates, refusals = _rates(found), [each.refusals_per_s for each in found]
            answers = figure(pairs * 2 + no for pairs, no in zip(rates, refusals, strict=True))
            rows.append((
                name, str(in_flight), figure(rates).text(), figure(refusals).text(), answers.text(),
                ratio(one, rates).text(2),
            ))  # fmt: skip
    return Table(
        f"All fight for {FOUGHT_FOR} devices",
        ("who", "in flight", "pairs/s", "refusals/s", "answers/s", "Leasehold R1 to it (pairs)"),
        rows,
        ("who is refused asks again at once; Leasehold's refusals are in the log, with their reason",),
    )


def _who(missing: dict[str, str]) -> Table:
    rows = [(peer.name, missing.get(peer.name) or peer.version(), peer.durable) for peer in PEERS]
    notes = [f"{peer.name}: {peer.job}. What it does not do: {peer.lacks}." for peer in PEERS]
    return Table("The peers", ("peer", "version", "durable by"), rows, tuple(notes))


def _figures(rounds: Rounds, names: list[str]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for (name, in_flight, fight), found in rounds.items():
        key = f"{'fight' if fight else 'apart'} {name} {in_flight}"
        figures[f"{key} pairs/s"] = figure(_rates(found))
        if any(each.lease_ms for each in found):
            figures[f"{key} p50 ms"], figures[f"{key} p99 ms"] = _times(found)
        if name not in {R1, R3}:
            ours = _rates(rounds[like(name), in_flight, fight])
            figures[f"{key} ours to it"] = ratio(ours, _rates(found))
    return figures
