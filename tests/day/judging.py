"""What must hold when the day is over: of the copies, of the answers, of the past, of the feed, of deciding again."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leasehold.events import questions
from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import Moment
from leasehold.events.record import chain_hash
from leasehold.events.views import OwnerView
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.writer import ArchiveWriter
from leasehold.services.asking import confirm_free_request
from leasehold.services.ledger.port import Entry
from leasehold.services.past import Past
from leasehold.services.verifying.links import check_chain
from tests.bench.cluster import HOST
from tests.day.devices import ask_devices, compare_host, settled
from tests.day.domains import ask_domains, domains_settled
from tests.day.feed import told
from tests.day.oracle import Held, RawLog
from tests.day.running import Day
from tests.support.running import leasehold

BATCH_RECORDS = 256
ASKING = 8
"""Questions of the past that are under way at once."""
DEVICES_EVERY = 10
"""Of so many instants all devices are asked for at one."""
COMMANDS = 4
"""Instants that are asked with the command line, too."""
REPLAY_S = 600.0
ARCHIVED_S = 120.0
"""Until an archive has come to the end of the log."""


@dataclass
class Outcome:
    """What came of the day."""

    problems: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.figures.items()]
        return "\n".join([*lines, *(f"PROBLEM {problem}" for problem in self.problems[:20])])


async def judge(day: Day, *, instants: int, seed: int) -> Outcome:
    """Everything, one after the other."""
    outcome = Outcome()
    picture = await settled(day)
    outcome.problems += await domains_settled(day)
    log, bodies = await _read(day)
    outcome.figures |= {
        "records": log.records,
        "events": log.events,
        "types of events": dict(log.types.most_common()),
        "killed": dict(day.killed),
        "longest from a kill to 50 answers of each principal": f"{day.longest_silence_s:.2f} s",
        "requests answered": sum(len(load.said) for load in day.loads),
        "orders": f"{len(log.orders)}, ended {sum(len(row.ends) for row in log.orders.values())} times",
        "what happened to devices and domains": dict(day.machine.steps.most_common()),
    }
    outcome.problems += compare_host(day, log, picture)
    await _compare_archives(day, bodies, outcome)
    for load in day.loads:
        outcome.problems += load.check(log)
    await _ask_everything(day, log)
    await _ask_past(day, log, outcome, instants, random.Random(f"{seed} instants"))
    chance = random.Random(f"{seed} devices")
    outcome.problems += await ask_devices(day, log, _moments(log, max(instants // DEVICES_EVERY, 10), chance))
    outcome.problems += await ask_domains(day, log, _moments(log, max(instants // DEVICES_EVERY, 10), chance))
    found = await told(day.client.connection, log)
    outcome.problems += found.problems
    outcome.figures["messages of the feed"] = found.messages
    outcome.problems += day.heard.problems
    outcome.figures["held against schemas"] = dict(sorted((found.checked + day.heard.checked).items()))
    await _replay(day, bodies, outcome, random.Random(f"{seed} replay"))
    return outcome


async def _read(day: Day) -> tuple[RawLog, list[bytes]]:
    """The ledger as the server has it."""
    log = RawLog()
    bodies: list[bytes] = []
    ledger = day.client.ledger()
    try:
        last = await ledger.last_sequence()
        async with aclosing(ledger.follow(0)) as batches:
            async for batch in batches:
                for entry in batch[: last - len(bodies)]:
                    log.add(entry.sequence, entry.body)
                    bodies.append(entry.body)
                if len(bodies) >= last:
                    break
    finally:
        await ledger.close()
    return log, bodies


async def _compare_archives(day: Day, bodies: list[bytes], outcome: Outcome) -> None:
    """Each archive comes to the log's end, and holds the same bytes up to there; a tick may have followed."""
    for directory in day.archives:
        archived, at = ArchivedLedger(directory), 0
        async with asyncio.timeout(ARCHIVED_S), aclosing(archived.follow(0)) as batches:
            async for batch in batches:
                for entry in batch[: len(bodies) - at]:
                    if entry.body != bodies[at]:
                        outcome.problems.append(f"{directory.name}: record {entry.sequence} is another")
                    at += 1
                if at == len(bodies):
                    break
    outcome.figures["archives, the same to the byte"] = f"{len(day.archives)} with {len(bodies)} records"


# --- the past -----------------------------------------------------------------------------------------------------


def _moments(log: RawLog, count: int, chance: random.Random) -> list[Moment]:
    """Half of them positions, half times: anywhere, and at, before and behind events."""
    found = []
    for number in range(count):
        if number % 2:
            position = chance.choice(log.positions) + chance.choice((0, 0, 0, -1, 1))
            found.append(Moment(position=min(max(position, 1), log.positions[-1])))
        else:
            at = chance.choice((chance.choice(log.decided), chance.randint(log.decided[0], log.decided[-1])))
            found.append(Moment(ns=at + chance.choice((0, 0, -1, 1))))
    return found


def _expected(log: RawLog, moment: Moment) -> list[tuple[object, ...]]:
    position = moment.position or log.end_at(moment.ns)
    found: dict[str, Held] = log.owners_at(position)
    return [found[device].told_at(position) for device in sorted(found)]


def _said(row: OwnerView, last: int) -> tuple[object, ...]:
    """A row of the answer; of what came behind `last` (the cluster goes on) the oracle does not know."""
    ended = (row.ended, row.ended_position, row.ended_ns) if row.ended_position <= last else ("", 0, 0)
    freed = (row.freed_position, row.freed_ns) if row.freed_position <= last else (0, 0)
    return (
        row.device, row.lease, row.holder, row.principal, row.tenant, row.state, row.from_position, row.from_ns,
        *ended, *freed,
    )  # fmt: skip


async def _ask_past(day: Day, log: RawLog, outcome: Outcome, count: int, chance: random.Random) -> None:
    """`owners` at so many instants is what brute force says; some by the command line, on the bus and offline."""
    moments = _moments(log, count, chance)
    expected = [_expected(log, moment) for moment in moments]
    past, took_ms = Past(day.client), []
    # An archive whose models are behind has to wait.
    day.client.seen = max(day.client.seen, log.positions[-1])
    waiting = iter(zip(moments, expected, strict=True))

    async def ask() -> None:
        for moment, wanted in waiting:
            began_s = time.perf_counter()
            said = [_said(row, log.positions[-1]) for row in await past.owners(moment).all()]
            took_ms.append((time.perf_counter() - began_s) * 1e3)
            _compare(outcome, f"owners at {moment}", said, wanted)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(ASKING):
            tasks.create_task(ask())
    rows = sum(len(wanted) for wanted in expected)
    took_ms.sort()
    outcome.figures["owners asked"] = (
        f"at {len(moments)} instants, {rows} rows, p50 {took_ms[len(took_ms) // 2]:.1f} ms, "
        f"p99 {took_ms[len(took_ms) * 99 // 100]:.1f} ms with {ASKING} under way"
    )
    for index in range(0, len(moments), max(len(moments) // COMMANDS, 1)):
        await _command(day, moments[index], expected[index], outcome, offline=bool(index % 2))


async def _command(
    day: Day, moment: Moment, wanted: list[tuple[object, ...]], outcome: Outcome, *, offline: bool
) -> None:
    """The same by the command line. Times are given there to the nanosecond, as tables show them."""
    at = str(moment.position) if moment.position else _text(moment.ns)
    where = ("--archive", str(day.archives[1])) if offline else ()
    done = await asyncio.to_thread(leasehold, None if offline else day.up.data, "owners", "--at", at, "--json", *where)
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = done.objects
    said = [(row["device"], row["lease"], row["holder"], row["from_position"]) for row in rows]
    _compare(outcome, f"owners --at {at} {where}", said, [(row[0], row[1], row[2], row[6]) for row in wanted])


def _text(ns: int) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9))
    return f"{seconds}.{ns % 10**9:09d}Z"


def _compare(outcome: Outcome, what: str, said: list[Any], wanted: list[Any]) -> None:
    if said == wanted:
        return
    first = next((pair for pair in zip(said, wanted, strict=False) if pair[0] != pair[1]), (said[-1:], wanted[-1:]))
    outcome.problems.append(f"{what}: {len(said)} rows, {len(wanted)} expected; said {first[0]}, expected {first[1]}")


async def _ask_everything(day: Day, log: RawLog) -> None:
    """One question of each kind, for the check of what is said on the wire."""
    held = log.tenures[-1]
    beginning, end = Moment(position=1), Moment(position=log.positions[-1])
    asked: tuple[questions.Question, ...] = (
        questions.ListDevices(host=HOST, limit=50),
        questions.ListLeases(ended=True, limit=50),
        questions.ListHosts(),
        questions.ListOrders(ended=True, limit=50),
        questions.ListDomains(host=HOST, limit=50),
        questions.ListDevices(host=HOST, cap="net", count_only=True),
        questions.Show(name=held.device),
        questions.History(name=held.device, limit=50),
        questions.Explain(name=held.device),
        questions.Sync(host=HOST),
        questions.Status(),
        questions.DevicesAt(at=end, host=HOST, limit=50),
        questions.DomainsAt(at=end, host=HOST, limit=50),
        questions.Sync(host=HOST, agent="poller"),
        questions.Diff(since=beginning, to=end, limit=50),
        questions.Who(device=held.device, since=beginning, to=end, limit=50),
        questions.Blame(request_id=day.loads[0].said[-1].request.request_id),
        questions.Utilisation(by="holder", since=beginning, to=end),
        questions.Archived(),
    )
    verbs = {kind: verb for verb, kind in (questions.QUESTIONS | questions.PAST_QUESTIONS).items()}
    for question in asked:
        await day.client.question(verbs[type(question)], question)
    # A refusal, and questions that cannot be answered.
    await day.client.answer_to(confirm_free_request(held.device, "the day is over"))
    for unknown in (questions.Show(name="nothing"), questions.Owners(device="nothing")):
        with contextlib.suppress(InvalidInputError):
            await day.client.question(verbs[type(unknown)], unknown)


# --- deciding again -----------------------------------------------------------------------------------------------


async def _replay(day: Day, bodies: list[bytes], outcome: Outcome, chance: random.Random) -> None:
    """Deciding all again finds nothing; and finds the one decision that was changed, which the chain does not show."""
    began_s = time.monotonic()
    clean = await asyncio.to_thread(leasehold, None, "replay", str(day.archives[0]), "--json", timeout_s=REPLAY_S)
    outcome.figures["replay"] = f"{len(bodies)} records in {time.monotonic() - began_s:.1f} s, code {clean.code}"
    if clean.code:
        outcome.problems.append(f"replay of an unchanged archive: {clean.out}{clean.err}")
    forged = day.up.data.parent / "forged"
    sequence = await forge(forged, day.client.subjects.cluster, bodies, chance)
    assert await check_chain(ArchivedLedger(forged)) == len(bodies), "the chain of the forged archive is whole"
    found = await asyncio.to_thread(leasehold, None, "replay", str(forged), timeout_s=REPLAY_S)
    said = found.out + found.err
    outcome.figures["replay of a changed decision"] = f"record {sequence}: code {found.code}, {said.strip()[-300:]}"
    if found.code != 1 or f"record {sequence}" not in said:
        outcome.problems.append(f"record {sequence} was changed, and replay ends with {found.code}: {said}")


async def forge(directory: Path, cluster: str, bodies: list[bytes], chance: random.Random) -> int:
    """Archive the records with one decision changed, and every hash behind it made anew; which record it is.

    The changed lease still comes to the same end, so that only who decides again can tell.
    """
    candidates = [number for number, body in enumerate(bodies, 1) if b'"type":"lease_renewed.' in body]
    sequence = chance.choice(candidates)
    writer = ArchiveWriter(directory, cluster)
    await writer.lock()
    try:
        await writer.load()
        async for batch in _forged(bodies, sequence):
            await writer.write(batch)
    finally:
        await writer.close()
    return sequence


async def _forged(bodies: list[bytes], sequence: int) -> AsyncIterator[list[Entry]]:
    prev, batch = b"", []
    for number, body in enumerate(bodies, 1):
        if number == sequence:
            body = _changed(body)
        elif number > sequence:
            old = chain_hash(bodies[number - 2]).encode()
            body = body.replace(b'"prev":"' + old, b'"prev":"' + prev, 1)
        prev = chain_hash(body).encode()
        batch.append(Entry(number, body))
        if len(batch) == BATCH_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch


def _changed(body: bytes) -> bytes:
    """The record with one lease renewed for a millisecond longer than was decided."""
    record = json.loads(body)
    event = next(
        event for step in record["steps"] for event in step["events"] if event["type"].startswith("lease_renewed.")
    )
    event["expires_at_ns"] += 10**6
    return json.dumps(record, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
