"""The allocator on a real server: beside another one, cut off from its log, with a wrong clock, with silent hosts."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path

import msgspec
import pytest

from leasehold.events import codec, limits
from leasehold.events.answers import Answer
from leasehold.events.errors import StorageError
from leasehold.events.event_types import Event, LeaseExpired
from leasehold.events.inputs import LeaseRequest, Request, StillHere
from leasehold.events.subjects import LEDGER_STREAM, OBSERVED_STREAM
from leasehold.projections.reporting import Reporter
from leasehold.projections.rows import Head
from leasehold.projections.state import State
from leasehold.services.allocator.wire import Wire
from leasehold.services.connection import Connection
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from leasehold.services.processes import Keeper
from leasehold.services.store import FoldStore
from leasehold.services.verifying.checks import check_ledger
from tests.support.damage_allocator import (
    HOST,
    RunningAllocator,
    lease,
    publish,
    release,
    report_cards,
    running_allocator,
)
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

CARDS = 6
ANSWER_S_MAX = 1.0
BUSY_S = 0.4
"""What a busy machine may add to a time that is promised."""
SECOND_NS = 10**9


Asked = tuple[str, Request]
"""Principal and request."""


class Bench:
    """A server with its streams, and a client."""

    def __init__(self, server: NatsServer, client: Connection, ledger: JetStreamLedger) -> None:
        self.server = server
        self.client = client
        self.ledger = ledger

    async def events(self) -> list[tuple[int, Event]]:
        """All of the ledger: when each event was decided, and the event."""
        found: list[tuple[int, Event]] = []
        last = await self.ledger.last_sequence()
        async with aclosing(self.ledger.follow(0)) as batches:
            done = 0
            while done < last:
                for entry in await anext(batches):
                    record = codec.decode_record(entry.body, entry.sequence)
                    found += [(record.decided_at_ns, event) for step in record.steps for event in step.events]
                    done = entry.sequence
        return found

    async def check(self) -> None:
        """The whole ledger is in order, every decision again."""
        report = await check_ledger(self.ledger, [], lambda _done, _all: None)
        assert report.problem == ""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A server with empty streams."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        yield Bench(server, client, await stack.enter_async_context(ledger_at(server.url, "bench")))


@contextmanager
def frozen(server: NatsServer) -> Iterator[None]:
    """The server stands still, and nothing that was sent to it is lost."""
    os.kill(server.pid, signal.SIGSTOP)
    # The signal stops its threads one after the other, and one that still runs may answer.
    while any(_state_of(task) != "T" for task in Path(f"/proc/{server.pid}/task").iterdir()):
        pass
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def _state_of(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


# --- two of them ----------------------------------------------------------------------------------------------------


async def test_two_allocators_decide_the_same(bench: Bench) -> None:
    """Both hear all requests and race for each record: no double grant, one answer from each, and both say the same."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with running_allocator(bench.server.url, "one") as one, running_allocator(bench.server.url, "two") as two:
        await one.settled()
        await two.settled()
        await report_cards(bench.client, one, CARDS)
        await two.until(lambda: two.state.hosts[HOST].device_count == CARDS and not two.source()[2])
        asked = 0
        for turn in range(25):
            asked += await _race(one, two, chance, turn)
        assert (one.answers, two.answers) == (asked, asked)
        bodies = [await _body(bench, sequence + 1) for sequence in range(await bench.ledger.last_sequence())]
        writers = Counter(codec.decode_record(body, 0).writer for body in bodies)
        print(writers)
        assert len(writers) == 2, "one of them never won, so nothing was raced for"
    await bench.check()


async def _body(bench: Bench, sequence: int) -> bytes:
    body = await bench.ledger.read(sequence)
    assert body is not None
    return body


async def _race(one: RunningAllocator, two: RunningAllocator, chance: random.Random, turn: int) -> int:
    """Several principals want the same cards, and all give back what they got; how many requests that was."""
    requests: list[Asked] = [
        (f"p{number}", lease(chance.randrange(1, CARDS + 1), f"t{turn}", holder=f"vm {number}")) for number in range(8)
    ]
    pairs = await _ask_both(one, two, requests, chance)
    granted = [(principal, answer) for (principal, _), (answer, _) in pairs if answer.outcome == "granted"]
    holders = Counter(device for _, answer in granted for device in answer.devices)
    assert set(holders.values()) == {1}, holders
    assert set(holders) == {request.devices[0] for _, request in requests if isinstance(request, LeaseRequest)}
    back: list[Asked] = [(principal, release(answer, f"r{turn}")) for principal, answer in granted]
    for _, (answer, _) in await _ask_both(one, two, back, chance):
        assert answer.outcome == "released"
    return len(requests) + len(back)


async def _ask_both(
    one: RunningAllocator, two: RunningAllocator, requests: list[Asked], chance: random.Random
) -> list[tuple[Asked, tuple[Answer, Answer]]]:
    """Hand each request to both, in an order of their own, and compare the answers."""
    asked: dict[tuple[RunningAllocator, int], asyncio.Future[Answer]] = {}
    for running in (one, two) if chance.random() < 0.5 else (two, one):
        for index in chance.sample(range(len(requests)), len(requests)):
            asked[running, index] = running.begin(*requests[index])
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        answers = {key: await answer for key, answer in asked.items()}
    pairs = []
    for index, request in enumerate(requests):
        first, second = answers[one, index], answers[two, index]
        assert _said(first) == _said(second), (request, first, second)
        pairs.append((request, (first, second)))
    return pairs


def _said(answer: Answer) -> tuple[object, ...]:
    return (answer.outcome, answer.position, answer.lease, answer.token, answer.holder, answer.devices, answer.refusal)


# --- the log out of reach -------------------------------------------------------------------------------------------


async def test_a_frozen_server_is_unavailable_within_a_second(bench: Bench) -> None:
    """Who asks while the log stands still hears so within a second; what was "not done" is not done, then or later."""
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        await report_cards(bench.client, running, CARDS)
        outcomes: Counter[str] = Counter()
        requests = [lease(slot, f"frozen-{slot}", ttl_ms=120_000) for slot in range(1, CARDS + 1)]
        with frozen(bench.server):
            # The first goes into a record in flight, or hears that the log is silent; the others wait behind it.
            first_told = asyncio.create_task(_timed(running, requests[0]))
            # Nothing tells when a record is in flight.
            while not (running.allocator.sequencer.in_flight or first_told.done()):  # noqa: ASYNC110
                await asyncio.sleep(0)
            told = await asyncio.gather(first_told, *(_timed(running, request) for request in requests[1:]))
        for (answer, took_s), request in zip(told, requests, strict=True):
            outcomes[answer.outcome] += 1
            assert answer.outcome in ("unavailable", "outcome_unknown"), answer
            assert answer.message
            assert answer.request_id == request.request_id
            assert took_s < ANSWER_S_MAX + BUSY_S, took_s
        print(outcomes)
        assert outcomes["unavailable"] >= CARDS - 1
        await running.until(lambda: not running.allocator.trouble)
        for (answer, _), request in zip(told, requests, strict=True):
            if answer.outcome == "unavailable":
                assert not running.state.answers.get(f"alice/{request.request_id}")  # type: ignore[call-overload]
        first = [await running.decided("alice", request) for request in requests]
        again = [await running.decided("alice", request) for request in requests]
        assert [_said(answer) for answer in first] == [_said(answer) for answer in again]
        assert {answer.outcome for answer in first} == {"granted"}
        assert len({answer.lease for answer in first}) == CARDS
    await bench.check()


async def _timed(running: RunningAllocator, request: Request) -> tuple[Answer, float]:
    began_s = time.monotonic()
    answer = await running.ask("alice", request)
    return answer, time.monotonic() - began_s


async def test_a_server_that_is_gone_is_unavailable_at_once(bench: Bench) -> None:
    """With the server killed nothing is promised, and once that is known nobody has to wait to hear it."""
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        bench.server.kill()
        await bench.server.wait()
        await running.until(lambda: "does not answer" in running.allocator.trouble)
        answer, took_s = await _timed(running, lease(1, "gone"))
        assert answer.outcome == "unavailable"
        assert "the log does not answer" in answer.message
        assert took_s < BUSY_S


async def test_an_inbox_that_lost_its_end_goes_on(bench: Bench) -> None:
    """The inbox is made anew and would number from one: what is reported from then on is taken in all the same."""
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        reporter = await report_cards(bench.client, running, CARDS)
        through = running.allocator.sequencer.read_through
        assert through > 1
        await bench.client.ask(f"$JS.API.STREAM.DELETE.{OBSERVED_STREAM}", timeout_s=5)
        await ensure_streams(bench.client, SUBJECTS)
        async with asyncio.timeout(30):
            while await running.observed.last_sequence() < through:  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(0)
        message = reporter.assure()
        assert message.observations == (StillHere(),)
        await publish(bench.client, message)
        await running.until(lambda: running.source()[1] == reporter.counter)
        assert running.state.head.observed_through > through
    await bench.check()


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["server_off_ns", "wall_off_ns"])
@pytest.mark.parametrize("off_ns", [1_200_000_000, -1_200_000_000, 3_600 * SECOND_NS])
async def test_a_wrong_clock_decides_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, clock: str, off_ns: int
) -> None:
    """A clock that is off by more than a second, whoever's it is: unavailable with the reason, until it is right."""
    monkeypatch.setattr(limits, "CONTACT_MS", 100)
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        await report_cards(bench.client, running, 1)
        setattr(running, clock, off_ns)
        await running.until(lambda: running.allocator.trouble)
        before = await bench.ledger.last_sequence()
        answer, took_s = await _timed(running, lease(1, "wrong"))
        assert answer.outcome == "unavailable"
        assert "clock differs from the server's by" in answer.message
        assert took_s < ANSWER_S_MAX
        assert await bench.ledger.last_sequence() == before
        setattr(running, clock, 0)
        assert (await running.decided("alice", lease(1, "wrong"))).outcome == "granted"


@pytest.mark.parametrize("grace_ms", [100, 2_500])
async def test_a_lease_expires_soon_after_its_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, grace_ms: int
) -> None:
    """Within a second of its time, or of the end of the grace time if that is later, and never before either."""
    monkeypatch.setattr(limits, "GRACE_MS", grace_ms)
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        await report_cards(bench.client, running, 2)
        short = await running.decided("alice", lease(1, "short", ttl_ms=1_000))
        long = await running.decided("alice", lease(2, "long", ttl_ms=3_600_000))
        await running.until(lambda: running.state.leases[short.lease].ended)
        grace_ns = running.state.head.grace_until_ns
        ends = {event.lease: at_ns for at_ns, event in await bench.events() if isinstance(event, LeaseExpired)}
        assert set(ends) == {short.lease}
        due_ns = max(short.expires_at_ns, grace_ns)
        print(f"expired {(ends[short.lease] - due_ns) / 1e6:.1f} ms after it was due")
        assert 0 <= ends[short.lease] - due_ns < SECOND_NS
        assert running.state.leases[long.lease].ended == ""
        assert (await running.ask("bob", lease(1, "next"))).outcome == "granted"


# --- hosts ----------------------------------------------------------------------------------------------------------


async def test_a_silent_host_is_stale_until_it_speaks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence past its bound makes the host stale, and nothing of it is granted; one heartbeat brings it back."""
    monkeypatch.setattr(limits, "HOST_SILENT_MS", 600)
    monkeypatch.setattr(limits, "CONTACT_MS", 100)
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        await report_cards(bench.client, running, 1)
        await running.until(lambda: "not been heard" in running.source()[2])
        refused = await running.decided("alice", lease(1, "silent"))
        assert refused.refusal is not None
        assert refused.refusal.code == "host_stale"
        running.allocator.hear(HOST, "watcher", 99)
        running.allocator.hear(HOST, "binder", 1)
        await running.until(lambda: not running.allocator.hearing._heard_ns or running.source()[2])
        running.allocator.hear(HOST, "watcher", 1)
        await running.until(lambda: not running.source()[2])
        running.allocator.hear(HOST, "watcher", 1)
        assert (await running.decided("alice", lease(1, "back"))).outcome == "granted"
    await bench.check()


async def test_a_run_of_the_future_locks_nobody_out(bench: Bench) -> None:
    """The highest run there is would make every later one old: it is dropped, told of, and the agent is heard."""
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        for run in (2**63 - 1, time.time_ns() + 2 * limits.REQUEST_AHEAD_NS_MAX):
            await publish(bench.client, Reporter(HOST, "watcher", run).starts())
        await running.until(lambda: running.allocator.inbox.dropped.count == 2)
        await report_cards(bench.client, running, 1, run=time.time_ns())
        assert running.source()[2] == ""


# --- the wire, and what is kept -------------------------------------------------------------------------------------

ELSEWHERE = (
    SUBJECTS.ledger,
    SUBJECTS.inbox(HOST, "watcher"),
    f"$JS.API.STREAM.DELETE.{LEDGER_STREAM}",
    f"$JS.API.STREAM.DELETE.{OBSERVED_STREAM}",
    SUBJECTS.request("bob", "lease"),
)


async def test_answers_go_to_inboxes_only(bench: Bench) -> None:
    """We may write the ledger and delete streams: nobody has us do so by naming their subjects for our answer."""
    async with running_allocator(bench.server.url) as running:
        await running.settled()
        wire = Wire(running.connection, SUBJECTS, running.allocator, name="a1")
        sending = asyncio.create_task(wire.send_replies())
        await wire.start()
        try:
            await running.connection.flush()
            before = await bench.ledger.last_sequence()
            for reply in ELSEWHERE:
                await bench.client.publish(SUBJECTS.request("alice", "lease"), b"garbage", reply=reply)
                await bench.client.publish(SUBJECTS.alive(HOST, "watcher"), b'{"run":1,"counter":1}', reply=reply)
            answered = await bench.client.ask(SUBJECTS.request("alice", "lease"), b"garbage", timeout_s=5)
            answer = msgspec.json.decode(answered.body, type=Answer)
            assert (answer.outcome, answer.field) == ("invalid", "request")
            assert wire.dropped.count + running.connection.dropped.count >= len(ELSEWHERE)
            assert await bench.ledger.last_sequence() == before
            assert await running.observed.last_sequence() == 0
        finally:
            await wire.stop()
            sending.cancel()


class _FullDisk:
    """A store that takes nothing."""

    def __init__(self) -> None:
        self.tries = 0

    async def note(self, _head: Head) -> None:
        self.tries += 1
        raise StorageError("disk full")


async def test_the_last_head_is_noted_though_nothing_follows(tmp_path: Path) -> None:
    """Two records at once and then silence: the second is on disk soon, without a third."""
    store = await FoldStore.open(tmp_path / "allocator.sqlite")
    keeper = Keeper(store)
    keeping = asyncio.create_task(keeper.run())
    try:
        for sequence in (1, 2, 3):
            state = State()
            state.set_head(Head(ledger_id="l", sequence=sequence, chain=f"{sequence:064x}"))
            await keeper.after_record(state)
            if sequence == 1:
                await asyncio.sleep(0)
        async with asyncio.timeout(limits.HEAD_NOTE_MS / 1_000 + BUSY_S):
            while (head := await store.head()) is None or head.sequence < 3:  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(0)
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await store.close()


async def test_decisions_go_on_while_the_state_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is of the state at its record, however far that has moved on when the disk takes it; nobody waits for
    it, and the next one is begun only when it is done.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_RECORDS", 1)
    monkeypatch.setattr(limits, "SNAPSHOT_INTERVAL_MS", 0)
    store = _SlowDisk()
    keeper = Keeper(store)  # type: ignore[arg-type]
    saving = asyncio.create_task(keeper.save())
    state = State()

    async def move_to(sequence: int) -> None:
        state.set_head(Head(ledger_id="l", sequence=sequence, chain="c"))
        await keeper.after_record(state)

    try:
        async with asyncio.timeout(BUSY_S):
            for sequence in (1, 2, 3):
                await move_to(sequence)
                await store.begun.wait()
            store.free.set()
            while len(store.saved) < 2:
                await asyncio.sleep(0)
                await move_to(state.head.sequence + 1)
    finally:
        saving.cancel()
        await asyncio.wait({saving})
    assert store.saved[0] == 1, "the state of the record behind which it was due"
    assert store.saved[1] > 3, "what was due meanwhile was not to be kept back"


class _SlowDisk:
    """A store that takes a snapshot only when it is told to."""

    def __init__(self) -> None:
        self.begun, self.free = asyncio.Event(), asyncio.Event()
        self.saved: list[int] = []

    async def save_frozen(self, head: Head, _pieces: list[bytes]) -> None:
        self.begun.set()
        await self.free.wait()
        self.saved.append(head.sequence)


async def test_a_full_disk_stops_no_decision() -> None:
    """What cannot be noted is told once, not with every record, and nothing is raised."""
    store = _FullDisk()
    keeper = Keeper(store)  # type: ignore[arg-type]
    for sequence in range(1, 50):
        state = State()
        state.set_head(Head(ledger_id="l", sequence=sequence, chain="c"))
        await keeper.after_record(state)
        await keeper.note()
    assert store.tries == 49
