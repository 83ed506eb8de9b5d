"""Reading a log again, and starting on one: what a process must do before it can answer."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from leasehold.events import codec
from leasehold.events.answers import Answer
from leasehold.events.questions import Reading, Status
from leasehold.events.record import chain_hash, event_count
from leasehold.projections import evolve
from leasehold.projections.replay import Replay
from leasehold.projections.state import State
from leasehold.services.ledger.jetstream import JetStreamLedger
from tests.bench import logs
from tests.bench.cluster import PRINCIPAL, Bus, ask_until, bus
from tests.bench.measure import Figure, Part, Plan, Table, figure
from tests.bench.ours import lease_request

SLICES: Final = 5
"""What can be gone through only once is timed in so many slices, for a median and a spread."""
SMALL_EVENTS: Final = 40_000
PACKED: Final = 64
"""Requests in a record of a busy log; a log of single requests has one."""
STARTS: Final = 3
START_S: Final = 600.0
_ROLES: Final = ("allocator", "query")


async def measure(folder: Path, plan: Plan) -> Part:
    """Logs of single requests and of packed ones, gone through and started on."""
    figures: dict[str, Figure] = {}
    rows: list[tuple[str, ...]] = []
    starts: list[tuple[str, ...]] = []
    small = await _log(folder / "small", SMALL_EVENTS, 1)
    async with bus(small) as found:
        rows += await _go_through(found, "single", plan, figures)
    async with bus(folder / "empty") as found:
        starts += await _start(found, "an empty log", figures, "0")
    for events in plan.events:
        data = await _log(folder / f"log-{events}", events, PACKED)
        async with bus(data) as found:
            if events == max(plan.events):
                rows += await _go_through(found, "packed", plan, figures)
            starts += await _start(found, f"{events:,} events", figures, str(events))
    notes = (
        f"single: one request in a record; packed: {PACKED}. A third of the requests each: leases, renewals, releases",
        "read: from the server through `follow`, unopened; all: read, hash, decode, fold",
        "decide again: what `verify` does with each record, its fold with it",
    )
    start_notes = (
        "from the start of the process until it has answered a request or question; the interpreter's start is in it",
        f"from zero: without the file of its fold, once; from a snapshot: medians of {STARTS} starts",
    )
    columns = ("log", "what", "records/s", "events/s")
    start_columns = ("log", "process", "from zero, s", "from a snapshot, s", "file of the fold, MB")
    return Part(
        [Table("Reading the log again", columns, rows, notes), Table("Starting", start_columns, starts, start_notes)],
        figures,
    )


async def _log(data: Path, events: int, requests_per_record: int) -> Path:
    """A data directory with such a log."""
    async with bus(data, sync_always=False) as found, found.connected("anybody") as connection:
        await logs.fill(connection, found.subjects, logs.bodies(events, requests_per_record))
    return data


# --- going through ----------------------------------------------------------------------------------------------------


async def _go_through(found: Bus, name: str, plan: Plan, figures: dict[str, Figure]) -> list[tuple[str, ...]]:
    async with found.connected("allocator") as connection:
        ledger = JetStreamLedger(connection, found.subjects)
        last = await ledger.last_sequence()
        bodies: list[bytes] = []
        read_s, all_s = [], []
        for _ in range(min(plan.rounds, STARTS)):
            bodies.clear()
            read_s.append(await _follow(ledger, last, lambda _, body: bodies.append(body)))
            all_s.append(await _follow(ledger, last, partial(evolve.fold, State())))
        await ledger.close()
    rows = _alone(name, bodies, figures)
    events = sum(event_count(codec.decode_record(body, 0)) for body in bodies)
    for what, took_s in (("read", read_s), ("all", all_s)):
        records_per_s = figures[f"{name} {what} records/s"] = figure(last / each for each in took_s)
        events_per_s = figures[f"{name} {what} events/s"] = figure(events / each for each in took_s)
        rows.append((_title(name, bodies), what, records_per_s.text(), events_per_s.text()))
    return rows


async def _follow(ledger: JetStreamLedger, last: int, take: Callable[[int, bytes], object]) -> float:
    """Read the whole log and hand each record over; how long that took, s."""
    begun_s = time.perf_counter()
    async with contextlib.aclosing(ledger.follow(0)) as batches:
        async for entries in batches:
            for entry in entries:
                take(entry.sequence, entry.body)
            if entries[-1].sequence >= last:
                break
    return time.perf_counter() - begun_s


def _alone(name: str, bodies: Sequence[bytes], figures: dict[str, Figure]) -> list[tuple[str, ...]]:
    """Each step by itself, on records that lie in memory, slice by slice."""
    state, replay = State(), Replay()
    rates: dict[str, list[tuple[float, float]]] = {}
    size = -(-len(bodies) // SLICES)
    for start in range(0, len(bodies), size):
        part = bodies[start : start + size]
        events = sum(event_count(codec.decode_record(body, 0)) for body in part)
        steps: dict[str, Callable[[int, bytes], object]] = {
            "hash": _hash,
            "decode": _decode,
            "decode, hash and fold": partial(evolve.fold, state),
            "decide again": replay.step,
        }
        for what, step in steps.items():
            took_s = _timed_s(step, part, start)
            rates.setdefault(what, []).append((len(part) / took_s, events / took_s))
    rows: list[tuple[str, ...]] = []
    for what, found in rates.items():
        records_per_s = figures[f"{name} {what} records/s"] = figure(each[0] for each in found)
        events_per_s = figures[f"{name} {what} events/s"] = figure(each[1] for each in found)
        rows.append((_title(name, bodies), what, records_per_s.text(), events_per_s.text()))
    return rows


def _hash(_sequence: int, body: bytes) -> None:
    chain_hash(body)


def _decode(sequence: int, body: bytes) -> None:
    codec.decode_record(body, sequence)


def _timed_s(step: Callable[[int, bytes], object], bodies: Sequence[bytes], after: int) -> float:
    """How long a step takes for these records, which stand behind `after`."""
    begun_s = time.perf_counter()
    for sequence, body in enumerate(bodies, after + 1):
        step(sequence, body)
    return time.perf_counter() - begun_s


def _title(name: str, bodies: Sequence[bytes]) -> str:
    return f"{name}: {len(bodies):,} records, {sum(map(len, bodies)) / 1e6:.0f} MB"


# --- starting ---------------------------------------------------------------------------------------------------------


async def _start(found: Bus, title: str, figures: dict[str, Figure], key: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    async with found.connected("operator") as connection:

        async def until_answer(role: str) -> float:
            body: bytes
            kind: Any
            if role == "allocator":
                verb, body, kind = "lease", codec.encode(lease_request("none")), Answer
            else:
                verb, body, kind = "status", codec.encode(Status()), Reading
            subject = found.subjects.request(PRINCIPAL, verb)
            begun_s = time.perf_counter()
            async with found.process(role):
                while True:
                    answer = await ask_until(connection, subject, body, kind, START_S)
                    if answer.outcome != "unavailable":
                        return time.perf_counter() - begun_s
                    await asyncio.sleep(0.005)

        for role in _ROLES:
            _forget(found.data, role)
            zero_s = figure([await until_answer(role)])
            again_s = figure([await until_answer(role) for _ in range(STARTS)])
            figures[f"{role} {key} zero s"], figures[f"{role} {key} snapshot s"] = zero_s, again_s
            size = sum(each.stat().st_size for each in found.data.glob(f"{role}*.sqlite*"))
            rows.append((title, role, f"{zero_s.median:.2f}", again_s.text(2), f"{size / 1e6:.1f}"))
    return rows


def _forget(data: Path, role: str) -> None:
    for each in data.glob(f"{role}*.sqlite*"):
        each.unlink()
