"""What following costs: 1 to 100 subscribers while a thousand events a second happen; half of them choose. Beside each
row the same number of plain listeners, who are told whatever arrives: what is between them is the price of our checks.

    python -m tests.bench.subscribers URL CREDENTIAL FIRST END client|plain

is a process that some of the subscribers live in, each with a connection of its own.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import HostName, RequestId
from leasehold.events.subjects import Subjects
from leasehold.services import credentials, home
from leasehold.services.client import Client
from leasehold.services.connection import connect, disconnect
from leasehold.services.credentials import write_credential
from leasehold.services.feedevents import FeedEvent, wanted
from leasehold.services.lifeline import tied_to_us
from tests.bench.cluster import CLUSTER, PRINCIPAL, START_S, Bus, beat, bus, paper_device, report_devices
from tests.bench.measure import Figure, Part, Plan, Table, figure, percentile
from tests.bench.ours import lease_request
from tests.bench.watching import cpu_s
from tests.support.tree import ROOT

COUNTS: Final = (1, 10, 50, 100)
EVENTS_PER_S: Final = 1_000
EVENTS_PER_PAIR: Final = 3
"""A grant, a release, and that the device is free."""
HOSTS: Final = tuple(HostName(f"host{number}") for number in range(10))
DEVICES: Final = 16
"""Of each host."""
SECONDS_MIN: Final = 5.0
ROUNDS_MAX: Final = 3
SETTLE_S: Final = 5.0
"""What piled up while a hundred began is given, then."""
CALM_EVENTS_PER_S: Final = 100
"""While subscribers begin."""
PROCESSES: Final = 2
_ASK_S: Final = 10.0
HELD_MS: Final = 1_000.0
"""Whose slowest hundredth is not later than this keeps up: else it grows with the time that is measured."""
OURS: Final = "client"
PLAIN: Final = "plain"
_COLUMNS: Final = (
    "subscribers", "events/s", "given/s", "lag p50 ms", "lag p99 ms", "their CPU", "server", "feed", "allocator",
    "others", "us/given: theirs", "server", "us/event: feed", "allocator",
)  # fmt: skip
_NOTES: Final = (
    "leases that are granted and released at once, over ten hosts; every second subscriber wants everything",
    "of the others three in five want one host, one in five one device, and one in five the grants of all hosts",
    "client: `client.events()`, each looks at the position and the time of every event, and no further into it",
    "plain: the same connection listens to the same subjects, and looks at the time; what it misses it does not know",
    "lag: from when the allocator has decided, before the append and its fsync, until the program has the event",
    "CPU of one processor; subscribers live in two processes (one alone in one), each with a connection of its own",
    "others: all else that the machine did meanwhile, who asks for the leases among it",
)


class Heard(msgspec.Struct, frozen=True):
    """What the subscribers of one process were given, in one round."""

    lag_ms: list[float]
    """Of each event at each of them."""
    doubled: int
    """Or out of order."""


async def measure(folder: Path, plan: Plan) -> Part:
    """All of it on one server."""
    figures: dict[str, Figure] = {}
    async with _running(folder / "feed") as (found, pids):
        rows = [await _round_of(found, pids, count, kind, plan, figures) for count in COUNTS for kind in (OURS, PLAIN)]
    notes = (*_NOTES, *(_held(kind, figures) for kind in (OURS, PLAIN)))
    return Part([Table("Subscribers, at a thousand events a second", _COLUMNS, rows, notes)], figures)


def _held(kind: str, figures: dict[str, Figure]) -> str:
    """With how many it still keeps up, and what the most of them take."""
    held = [count for count in COUNTS if figures[f"{count} {kind} lag p99 ms"].median < HELD_MS]
    said = f"{max(held)} keep up (lag p99 below {HELD_MS:g} ms)" if held else "none keeps up"
    row = f"{COUNTS[-1]} {kind}"
    each_us = sum(figures[f"{row} {name} us/given"].median for name in ("subscribers", "server"))
    rest = sum(figures[f"{row} {name} %"].median for name in ("feed", "allocator"))
    given = figures[f"{row} given/s"].median
    return (
        f"{kind}: {said}; {COUNTS[-1]} take {given:,.0f} given/s x {each_us:.1f} us of subscribers and server = "
        f"{given * each_us / 1e6:.1f} processors, and feed and allocator {rest / 100:.1f}"
    )


@asynccontextmanager
async def _running(data: Path) -> AsyncIterator[tuple[Bus, dict[str, int]]]:
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(bus(data))
        pids = {"server": found.server_pids[0]}
        for role in ("allocator", "query", "feed"):
            pids[role] = (await stack.enter_async_context(found.process(role))).pid
        agent = await stack.enter_async_context(found.connected("anybody"))
        beating = []
        for host in HOSTS:
            async with asyncio.timeout(START_S):
                reporter = await report_devices(agent, found.subjects, DEVICES, host)
            beating.append(asyncio.create_task(beat(agent, found.subjects, reporter)))
        try:
            yield found, pids
        finally:
            for task in beating:
                task.cancel()
            await asyncio.wait(beating)


async def _round_of(
    found: Bus, pids: dict[str, int], count: int, kind: str, plan: Plan, figures: dict[str, Figure]
) -> tuple[str, ...]:
    """So many subscribers, in several rounds."""
    rounds: dict[str, list[float]] = {}
    async with _load(found) as load, _subscribers(found, count, kind) as subscribers:
        load.events_per_s = EVENTS_PER_S
        for _ in range(min(plan.rounds, ROUNDS_MAX)):
            await asyncio.sleep(SETTLE_S)
            before, events, begun_s = _spent(pids, subscribers), load.events, time.monotonic()
            await subscribers.say("begin")
            await asyncio.sleep(max(SECONDS_MIN, plan.seconds))
            took_s, happened = time.monotonic() - begun_s, load.events - events
            spent = {name: each - before[name] for name, each in _spent(pids, subscribers).items()}
            heard: list[Heard] = await subscribers.said("end", Heard)
            assert not any(each.doubled for each in heard), "events came twice, or out of order"
            lag_ms = sorted(lag for each in heard for lag in each.lag_ms)
            values = {f"{name} %": 100 * each / took_s for name, each in spent.items()}
            for name, each in spent.items():
                per, events_of = ("given", len(lag_ms)) if name in ("subscribers", "server") else ("event", happened)
                values[f"{name} us/{per}"] = 1e6 * each / events_of
            values |= {"events/s": happened / took_s, "given/s": len(lag_ms) / took_s}
            values |= {f"lag p{percent} ms": percentile(lag_ms, percent) for percent in (50, 99)}
            for name, value in values.items():
                rounds.setdefault(name, []).append(value)
    mine = {name: figure(values) for name, values in rounds.items()}
    figures.update({f"{count} {kind} {name}": value for name, value in mine.items()})
    shares = (f"{mine[f'{name} %'].median:.0f} %" for name in ("subscribers", "server", "feed", "allocator", "others"))
    costs = (
        f"{mine[name].median:.1f}"
        for name in ("subscribers us/given", "server us/given", "feed us/event", "allocator us/event")
    )
    rates = (mine[name].text() for name in ("events/s", "given/s"))
    return (f"{count} {kind}", *rates, mine["lag p50 ms"].text(1), mine["lag p99 ms"].text(1), *shares, *costs)


def _spent(pids: dict[str, int], subscribers: "_Subscribers") -> dict[str, float]:
    """CPU time of each so far, s."""
    spent = {name: cpu_s(pid) for name, pid in pids.items()}
    spent["subscribers"] = sum(cpu_s(process.pid) for process in subscribers.processes)
    spent["others"] = _machine_cpu_s() - sum(spent.values())
    return spent


def _machine_cpu_s() -> float:
    """CPU time of all that runs on this machine so far, s."""
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


# --- what happens -----------------------------------------------------------------------------------------------------


class _Load:
    """Leases and releases at a steady pace."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask
        self._turn = 0
        self._run = time.time_ns()
        self.events = 0
        self.events_per_s = CALM_EVENTS_PER_S
        self.ended = False

    async def go_on(self) -> None:
        """Until `ended`: a pair whenever one is due. All are through when this returns."""
        due_s = time.monotonic()
        async with asyncio.TaskGroup() as pairs:
            while not self.ended:
                self._turn += 1
                pairs.create_task(self._pair(self._turn))
                due_s += EVENTS_PER_PAIR / self.events_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _pair(self, turn: int) -> None:
        host, device = HOSTS[turn % len(HOSTS)], paper_device(turn // len(HOSTS) % DEVICES)
        try:
            request_id = RequestId(f"{self._run}-{turn}")
            granted = await self._ask("lease", lease_request(f"{host}/{device.key}", request_id))
            if granted.outcome != "granted":
                return
            release = inputs.ReleaseRequest(
                request_id=RequestId(f"{request_id}-r"), issued_at_ns=time.time_ns(), lease=granted.lease,
                token=granted.token,
            )  # fmt: skip
            await self._ask("release", release)
        except UnavailableError:
            return
        self.events += EVENTS_PER_PAIR


@asynccontextmanager
async def _load(found: Bus) -> AsyncIterator[_Load]:
    async with found.connected("operator") as connection:

        async def ask(verb: str, request: inputs.Request) -> Answer:
            subject = found.subjects.request(PRINCIPAL, verb)
            reply = await connection.ask(subject, codec.encode(request), timeout_s=_ASK_S)
            return msgspec.json.decode(reply.body, type=Answer)

        load = _Load(ask)
        going = asyncio.create_task(load.go_on())
        try:
            yield load
        finally:
            load.ended = True
            await going


# --- who listens ------------------------------------------------------------------------------------------------------


class _Subscribers:
    """The processes of the subscribers, which are told a word and say an object, a line each."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self.processes = processes

    async def say(self, word: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n".encode())
            await process.stdin.drain()

    async def said(self, word: str, kind: Any) -> list[Any]:
        """What each says to a word."""
        await self.say(word)
        found = []
        async with asyncio.timeout(START_S):
            for process in self.processes:
                assert process.stdout is not None
                found.append(msgspec.json.decode(await process.stdout.readline(), type=kind))
        return found


@asynccontextmanager
async def _subscribers(found: Bus, count: int, kind: str) -> AsyncIterator[_Subscribers]:
    path = found.data / "subscriber.json"
    credential = credentials.own_credential(home.read_connection(found.data), "operator")
    write_credential(path, credential)
    ends = [count * part // PROCESSES for part in range(PROCESSES + 1)]
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.subscribers", found.urls[0], str(path), str(first), str(end), kind,
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**28,
            preexec_fn=tied_to_us(),
        )
        for first, end in pairwise(ends) if end > first
    ]  # fmt: skip
    subscribers = _Subscribers(processes)
    try:
        assert all(await subscribers.said("ready?", bool))
        yield subscribers
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await process.wait()


def _choice(number: int) -> dict[str, Any]:
    if number % 2 == 0:
        return {}
    host = HOSTS[number // 2 % len(HOSTS)]
    match number // 2 % 5:
        case 3:
            return {"device": f"{host}/{paper_device(0).key}"}
        case 4:
            return {"kind": "lease_granted"}
    return {"host": host}


class _Listening:
    """All subscribers of this process."""

    def __init__(self, count: int) -> None:
        """`count`: how many there are."""
        self._begin()
        self._count = count
        self._had_one: set[int] = set()
        self.all_have_one = asyncio.Event()

    def _begin(self) -> None:
        self.lag_ms: list[float] = []
        self.doubled = 0

    async def follow(self, number: int, url: str, path: str) -> None:
        """With a client, until cancelled."""
        last = 0
        async with Client(credentials=path, url=url) as client:
            async for event in client.events(**_choice(number)):
                self._note(number, event)
                self.doubled += event.position <= last
                last = event.position

    async def listen(self, number: int, url: str, path: str) -> None:
        """Without any of its checks, until cancelled."""

        def hear(subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
            self._note(number, FeedEvent(0, subject, body, headers or b""))

        connection = await connect(url, credential=credentials.read_credential(Path(path)), name="plain")
        try:
            await connection.listen(wanted(**_choice(number)).listened(Subjects(CLUSTER)), hear)
            await asyncio.get_running_loop().create_future()
        finally:
            await disconnect(connection)

    def _note(self, number: int, event: FeedEvent) -> None:
        self.lag_ms.append((time.time_ns() - event.at_ns) / 1e6)
        if number not in self._had_one:
            self._had_one.add(number)
            if len(self._had_one) == self._count:
                self.all_have_one.set()

    async def hear(self, word: str) -> object:
        """What there is to say to a word; `None`: nothing."""
        match word:
            case "ready?":
                await self.all_have_one.wait()
                return True
            case "begin":
                self._begin()
            case "end":
                heard = Heard(self.lag_ms, self.doubled)
                self._begin()
                return heard
        return None


async def _listen(url: str, path: str, numbers: range, kind: str) -> None:
    listening = _Listening(len(numbers))
    how = listening.listen if kind == PLAIN else listening.follow
    tasks = [asyncio.create_task(how(number, url, path)) for number in numbers]
    try:
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            hearing = asyncio.ensure_future(listening.hear(word))
            await asyncio.wait({hearing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            said = await hearing
            if said is not None:
                sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
                sys.stdout.buffer.flush()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(_listen(sys.argv[1], sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4])), sys.argv[5]))
