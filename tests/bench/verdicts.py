"""The numbers to hold, and whether this run held them."""

from collections.abc import Iterator, Mapping
from typing import Final

from leasehold.services.archive.service import POSITION_WAIT_S
from tests.bench.measure import Figure, Table
from tests.bench.polling import WAYS
from tests.bench.readers import ALL, MODELS
from tests.bench.requests import BARE, IN_FLIGHT, PEERS, R1, like

HALF_OF_BARE: Final = 0.5
RECORDS_PER_S_MIN: Final = 60_000
EVENTS_PER_S_MIN: Final = 300_000
START_S_MAX: Final = 1.0
START_EVENTS: Final = 1_000_000
KERNEL_EVENT_MS_MAX: Final = 50
IDLE_PERCENT_MAX: Final = 0.2
"""Of one processor; counted in 10 ms, over twenty seconds, that is four of them."""
MEMORY_MB_MAX: Final = 1_000
POLL_CPU_MS_MAX: Final = 1_000
DECISION_GROWTH_MAX: Final = 1.5
"""A thousand times as many devices may not make a decision dearer than noise would."""

Verdict = tuple[str, str, str, str]
"""What, what is wanted, what was measured, whether it holds."""
Figures = Mapping[str, Figure]


def judge(figures: Figures) -> Table:
    """Each number that this run has measured."""
    rows = [*_against_peers(figures), *_against_bare(figures), *_others(figures)]
    return Table("Numbers to hold", ("what", "wanted", "measured", "held"), rows)


def _verdict(what: str, wanted: str, measured: str, *, holds: bool) -> Verdict:
    return what, wanted, measured, "yes" if holds else "NO"


def _against_peers(figures: Figures) -> Iterator[Verdict]:
    for in_flight in IN_FLIGHT:
        for peer in PEERS:
            if share := figures.get(f"apart {peer.name} {in_flight} ours to it"):
                what = f"{like(peer.name)} to {peer.name}, {in_flight} in flight"
                yield _verdict(what, "above 1", share.text(2), holds=share.median > 1)


def _against_bare(figures: Figures) -> Iterator[Verdict]:
    to_bare = figures.get(f"apart {BARE} 64 ours to it")
    if to_bare is None:
        return
    what = f"{R1} to {BARE}, 64 in flight"
    yield _verdict(what, f"{HALF_OF_BARE:g} or more", to_bare.text(2), holds=to_bare.median >= HALF_OF_BARE)
    sync, trip, p50 = (
        figures[name].median for name in ("fsync p50 ms", f"apart {BARE} 1 p50 ms", f"apart {R1} 1 p50 ms")
    )
    bound = sync + 2 * trip
    wanted = f"{bound:.2f} ms (one fsync, {sync:.2f}, and two round trips, {trip:.2f} each)"
    yield _verdict("p50 of a grant alone", wanted, f"{p50:.2f} ms", holds=p50 <= bound)


def _others(figures: Figures) -> Iterator[Verdict]:
    at_least = (
        ("replay: read, hash, decode, fold", "single all records/s", RECORDS_PER_S_MIN, "records/s"),
        ("fold, with hash and decoding", "packed decode, hash and fold events/s", EVENTS_PER_S_MIN, "events/s"),
    )
    for what, name, least, unit in at_least:
        if found := figures.get(name):
            yield _verdict(what, f"{least:,} {unit}", found.text(), holds=found.median >= least)
    at_most = (
        *(
            (f"start of the {role} at a million events", f"{role} {START_EVENTS} snapshot s", START_S_MAX, "s", 2)
            for role in ("allocator", "query")
        ),
        ("kernel event to ledger, p99", "kernel event p99 ms", KERNEL_EVENT_MS_MAX, "ms", 1),
        ("idle watcher", "idle watcher %", IDLE_PERCENT_MAX, "% CPU", 2),
        # Longer than that no question of the past waits for what its asker has seen.
        (f"{MODELS} behind a busy allocator", f"{MODELS} of {ALL} behind ms", POSITION_WAIT_S * 1_000, "ms", 0),
        ("1,000 hosts with 100 devices each", "1000x100 MB", MEMORY_MB_MAX, "MB", 0),
        (f"1,000 domains of a xend, {WAYS[0]}: CPU", f"poll 1000 {WAYS[0]} ms", POLL_CPU_MS_MAX, "ms", 0),
    )
    links = ((name.removesuffix(" p50 ms"), name) for name in figures if name.startswith("link "))
    at_most += tuple((f"{what}: median", name, KERNEL_EVENT_MS_MAX, "ms", 1) for what, name in links)
    for what, name, most, unit, digits in at_most:
        if found := figures.get(name):
            yield _verdict(what, f"{most:,g} {unit} at most", f"{found.median:,.{digits}f}", holds=found.median <= most)
    one, many = figures.get("1x100 grant_us p50"), figures.get("1000x100 grant_us p50")
    if one is not None and many is not None:
        growth = many.median / one.median
        what, wanted = "a grant among 100,000 devices, to one among 100", f"{DECISION_GROWTH_MAX:g} at most"
        yield _verdict(what, wanted, f"{growth:.2f}", holds=growth <= DECISION_GROWTH_MAX)
