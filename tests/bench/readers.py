"""What follows the ledger (the archive, its read models, the feed) while the allocator runs at full speed: whether each
keeps up, what it costs the allocator, and how fast an archive catches up that was away.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.errors import LeaseholdError
from leasehold.events.position import position_of, sequence_of
from leasehold.events.record import event_count
from leasehold.services.archive.chain import tip_of
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.models import noted_head
from leasehold.services.archive.rebuilding import MODELS_FILE
from leasehold.services.connection import Connection
from leasehold.services.feed.stream import end_of_events
from leasehold.services.ledger.jetstream import JetStreamLedger
from tests.bench.cluster import START_S, Bus, cluster
from tests.bench.measure import Figure, Part, Plan, Table, figure, leasing, ratio
from tests.bench.ours import Ours
from tests.bench.watching import cpu_s

IN_FLIGHT: Final = 64
SECONDS_MIN: Final = 1.5
ROUNDS_MAX: Final = 3
AWAY_ROUNDS: Final = 2
NOBODY, ARCHIVE, MODELS, FEED, SERVER = "nobody", "archive", "read models", "feed", "server"
ALL: Final = f"{ARCHIVE}, {FEED}"
SETS: Final[dict[str, tuple[str, ...]]] = {NOBODY: (), ARCHIVE: (ARCHIVE,), ALL: (ARCHIVE, FEED)}
"""Who follows, as processes: that of the archive keeps the read models, too."""
PLACES_OF: Final = {ARCHIVE: (ARCHIVE, MODELS), FEED: (FEED,)}
_POLL_S: Final = 0.01
_COST_NOTES: Final = (
    f"lease and release with {IN_FLIGHT} in flight, each a device of its own; processes as `leasehold up` starts them",
    "to nobody: pairs/s to those of the same round that nobody follows",
    "CPU: time of a processor for each pair, during the load",
)
_LAG_NOTES: Final = (
    "behind: at the end of the load, in records, and for how long the first of them has been decided",
    "caught up: from the end of the load until it has the last record",
)
_AWAY_NOTES: Final = ("an archive that has nothing, from its first record until it has all of the rounds above",)


class Followed(msgspec.Struct, frozen=True):
    """How it stood with one that follows, at the end of a load."""

    records: int
    ms: float
    caught_up_ms: float


class Load(msgspec.Struct, frozen=True):
    """One round: what the allocator did, CPU time of each process for each pair (µs), how each followed."""

    pairs_per_s: float
    cpu_us: dict[str, float]
    followed: dict[str, Followed]


class Away(msgspec.Struct, frozen=True):
    """How fast an archive, or its read models, had all."""

    records_per_s: float
    events_per_s: float


async def measure(folder: Path, plan: Plan) -> Part:
    """Rounds by turns on one server; then an archive of all of them, made anew."""
    seconds = max(plan.seconds, SECONDS_MIN)
    rounds: dict[str, list[Load]] = {name: [] for name in SETS}
    async with (
        cluster(folder / "readers", IN_FLIGHT) as found,
        found.connected("operator") as operator,
        found.connected("anybody") as anybody,
    ):
        ours, places = Ours("ours", operator, found.subjects), _Places(found, anybody)
        await leasing(ours, IN_FLIGHT, IN_FLIGHT, min(plan.seconds, 0.2))
        for _ in range(min(plan.rounds, ROUNDS_MAX)):
            for name, roles in SETS.items():
                rounds[name].append(await _round(found, places, ours, roles, seconds))
        away = [await _away(found, places) for _ in range(AWAY_ROUNDS)]
        await places.ledger.close()
    figures: dict[str, Figure] = {}
    return Part([_cost(rounds, figures), _lag(rounds, figures), _catching_up(away, figures)], figures)


class _Places:
    """Which record is the last that each has whole; read where they put them, so that nobody is asked."""

    def __init__(self, found: Bus, connection: Connection) -> None:
        self.ledger = JetStreamLedger(connection, found.subjects)
        self.directory = found.data / "archive"
        self._connection = connection
        self._archived = ArchivedLedger(self.directory)

    async def of(self, name: str) -> int:
        """The sequence; 0: it has none."""
        if name == FEED:
            return await self._told()
        if name == MODELS:
            head = await noted_head(self.directory / MODELS_FILE)
            return head.sequence if head else 0
        # Its files may not be there yet.
        with suppress(LeaseholdError):
            return await self._archived.last_sequence()
        return 0

    async def _told(self) -> int:
        said = (await end_of_events(self._connection)).said
        if said is None:
            return 0
        sequence = sequence_of(said.position)
        body = await self.ledger.read(sequence)
        assert body is not None
        count = event_count(codec.decode_record(body, sequence))
        return sequence if said.position == position_of(sequence, count - 1) else sequence - 1

    async def wait(self, name: str, sequence: int) -> float:
        """When it had the record at `sequence`, s."""
        async with asyncio.timeout(START_S):
            while True:
                if await self.of(name) >= sequence:
                    return time.monotonic()
                await asyncio.sleep(_POLL_S)


async def _round(found: Bus, places: _Places, ours: Ours, roles: Sequence[str], seconds: float) -> Load:
    names = [name for role in roles for name in PLACES_OF[role]]
    async with AsyncExitStack() as stack:
        pids = {SERVER: found.server_pids[0]}
        for role in roles:
            pids[role] = (await stack.enter_async_context(found.process(role))).pid
        last = await places.ledger.last_sequence()
        for name in names:
            await places.wait(name, last)
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        load = await leasing(ours, IN_FLIGHT, IN_FLIGHT, seconds)
        ended_s, ended_ns = time.monotonic(), time.time_ns()
        at_end = await asyncio.gather(*map(places.of, names))
        cpu_us = {name: 1e6 * (cpu_s(pid) - before[name]) / len(load.lease_ms) for name, pid in pids.items()}
        last = await places.ledger.last_sequence()
        caught_up = await asyncio.gather(*(places.wait(name, last) for name in names))
        followed = {}
        for name, sequence, caught_up_s in zip(names, at_end, caught_up, strict=True):
            ms = await _age_ms(places, sequence + 1, ended_ns) if sequence < last else 0.0
            followed[name] = Followed(last - sequence, ms, 1_000 * (caught_up_s - ended_s))
    return Load(load.pairs_per_s, cpu_us, followed)


async def _age_ms(places: _Places, sequence: int, now_ns: int) -> float:
    """For how long the record has been decided."""
    body = await places.ledger.read(sequence)
    assert body is not None
    return max(0.0, (now_ns - tip_of(sequence, body).decided_at_ns) / 1e6)


async def _away(found: Bus, places: _Places) -> dict[str, Away]:
    """Let an archive and its models be made of all that there is."""
    await asyncio.to_thread(shutil.rmtree, places.directory)
    last = await places.ledger.last_sequence()
    async with found.process(ARCHIVE):
        await places.wait(ARCHIVE, 1)
        # The models begin as soon as there is anything.
        begun_s = time.monotonic()
        ended = await asyncio.gather(*(places.wait(name, last) for name in PLACES_OF[ARCHIVE]))
    events = 0
    async for batch in ArchivedLedger(places.directory).follow_to_end():
        events += sum(event_count(codec.decode_record(entry.body, entry.sequence)) for entry in batch)
    took = {name: ended_s - begun_s for name, ended_s in zip(PLACES_OF[ARCHIVE], ended, strict=True)}
    return {name: Away(last / took_s, events / took_s) for name, took_s in took.items()}


# --- tables -----------------------------------------------------------------------------------------------------------


def _cost(rounds: dict[str, list[Load]], figures: dict[str, Figure]) -> Table:
    rows = []
    alone = [load.pairs_per_s for load in rounds[NOBODY]]
    for name, loads in rounds.items():
        rates = [load.pairs_per_s for load in loads]
        rate = figures[f"followed by {name} pairs/s"] = figure(rates)
        share = figures[f"followed by {name} to nobody"] = ratio(rates, alone)
        cpu_us = []
        for process in (SERVER, ARCHIVE, FEED):
            spent = [load.cpu_us[process] for load in loads if process in load.cpu_us]
            if spent:
                figures[f"followed by {name} {process} us"] = figure(spent)
            cpu_us.append(figure(spent).text() if spent else "")
        rows.append((name, rate.text(), share.text(2), *cpu_us))
    columns = ("followed by", "pairs/s", "to nobody", "CPU of server, µs", "archive, µs", "feed, µs")
    return Table("What following costs the allocator at full speed", columns, rows, _COST_NOTES)


def _lag(rounds: dict[str, list[Load]], figures: dict[str, Figure]) -> Table:
    rows = []
    for who, loads in rounds.items():
        for name in loads[0].followed:
            found = [load.followed[name] for load in loads]
            key = f"{name} of {who}"
            records = figures[f"{key} behind records"] = figure(each.records for each in found)
            ms = figures[f"{key} behind ms"] = figure(each.ms for each in found)
            caught_up = figures[f"{key} caught up ms"] = figure(each.caught_up_ms for each in found)
            rows.append((name, who, records.text(), ms.text(), caught_up.text()))
    columns = ("what", "followed by", "behind, records", "behind, ms", "caught up after, ms")
    return Table("How far behind a busy allocator", columns, rows, _LAG_NOTES)


def _catching_up(away: list[dict[str, Away]], figures: dict[str, Figure]) -> Table:
    rows = []
    for name in away[0]:
        records = figures[f"{name} away records/s"] = figure(each[name].records_per_s for each in away)
        events = figures[f"{name} away events/s"] = figure(each[name].events_per_s for each in away)
        rows.append((name, records.text(), events.text()))
    return Table("An archive that was away", ("what", "records/s", "events/s"), rows, _AWAY_NOTES)
