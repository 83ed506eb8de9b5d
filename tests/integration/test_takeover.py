"""Several allocators on one real server: who decides, what standbys keep, and what those say whose turn it is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from leasehold.events import codec, limits
from leasehold.events.answers import Answer
from leasehold.events.errors import UnavailableError
from leasehold.events.event_types import GraceStarted
from leasehold.events.identities import Principal
from leasehold.services.allocator.contact import monotonic_ns
from leasehold.services.allocator.hint import KvHint, MemoryHint
from leasehold.services.allocator.wire import Wire
from leasehold.services.ledger.streams import HINT_STREAM, ensure_streams
from leasehold.services.room import RoomNotice
from leasehold.services.verifying.checks import check_ledger
from tests.support.damage_allocator import (
    HOST,
    RunningAllocator,
    lease,
    release,
    report_cards,
    running_allocator,
)
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at

CARDS = 4
SECOND_NS = 10**9


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A server with empty streams; in the end the whole ledger must be in order."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        yield server.url
        ledger = await stack.enter_async_context(ledger_at(server.url))
        report = await check_ledger(ledger, [], lambda _done, _all: None)
        assert report.problem == ""


@asynccontextmanager
async def pair(url: str, hint: MemoryHint) -> AsyncIterator[tuple[RunningAllocator, RunningAllocator]]:
    """One that decides, with cards reported, and one that stands by and has read it all."""
    async with running_allocator(url, "one", hint=hint) as one:
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        async with running_allocator(url, "two", hint=hint) as two:
            await two.until(lambda: two.state.head == one.state.head and two.allocator.status()["role"] == "standby")
            yield one, two


async def _starts(url: str) -> list[tuple[str, str]]:
    """Who began to decide, and why."""
    async with ledger_at(url) as ledger:
        found = []
        for sequence in range(1, await ledger.last_sequence() + 1):
            body = await ledger.read(sequence)
            assert body is not None
            events = (event for step in codec.decode_record(body, sequence).steps for event in step.events)
            found += [(event.writer, event.reason) for event in events if isinstance(event, GraceStarted)]
        return found


async def test_a_standby_follows_and_answers_nothing(url: str) -> None:
    """It has what the decider appends, prunes what it read of the inbox, and says nothing, to a bad request neither."""
    async with pair(url, MemoryHint()) as (one, two):
        said = two.begin("alice", lease(1, "a"))
        granted = await one.ask("alice", lease(1, "a"))
        assert granted.outcome == "granted"
        await two.until(lambda: two.state.leases)
        two.allocator.ask("alice", "lease", b"garbage", said.set_result)  # type: ignore[arg-type]
        repeated = two.begin("alice", lease(1, "a"))
        assert (await one.ask("alice", release(granted, "b"))).outcome == "released"
        await two.until(lambda: not two.allocator.door.waiting)
        await two.until(lambda: two.state.head == one.state.head)
        assert not said.done()
        assert not repeated.done()
        assert "stands by; one decides" in two.allocator.trouble
        assert two.allocator.decides is False
        assert one.allocator.decides is True
        assert two.allocator.sequencer.observed_room == limits.OBSERVED_WAITING_MAX
        assert two.allocator.status()["sequence"] == one.state.head.sequence


async def test_what_only_the_standby_heard_is_decided_by_it(url: str) -> None:
    """The decider dies on a request: whoever asked is told that nothing is known; after the takeover it is decided."""
    async with pair(url, MemoryHint()) as (one, two):
        granted = await one.ask("alice", lease(1, "a"))
        # The decider never hears these.
        heard = [two.begin("alice", lease(2, "b")), two.begin("alice", release(granted, "c"))]
        answers = await asyncio.gather(*heard)
        assert {answer.outcome for answer in answers} == {"outcome_unknown"}
        # As if it had been killed: its name stands in the hint, and is not refreshed.
        begun = asyncio.get_running_loop().time()
        one.allocator._hint._able = lambda: "killed"  # type: ignore[union-attr]
        late = two.begin("bob", lease(3, "y"))
        await two.until(lambda: two.allocator.decides)
        print(f"took over after {asyncio.get_running_loop().time() - begun:.2f} s")
        await two.until(lambda: two.state.leases[granted.lease].ended == "released")
        known = two.state.answers
        assert "alice/b" in known
        assert "bob/y" in known, "heard within the last seconds"
        assert (await late).outcome in ("granted", "outcome_unknown")
        assert (await two.ask("alice", lease(2, "b"))).outcome == "granted"
        await one.until(lambda: one.allocator.status()["role"] == "standby")
    assert await _starts(url) == [("one", "start"), ("two", "takeover")]


async def test_a_clean_stop_hands_over_at_once(url: str) -> None:
    """Who is told to end gives the hint back, and the next one need not wait for it to stand still."""
    hint = MemoryHint()
    async with running_allocator(url, "two", hint=hint) as two:
        await two.settled()
        async with running_allocator(url, "three", hint=hint) as three:
            await three.until(lambda: three.state.head == two.state.head)
            # A refresh of which it does not know that it was taken, as when it is told to end in the middle of one.
            assert await hint.put(hint.seat.revision, "two")
            await two.allocator._hint.give_back()  # type: ignore[union-attr]
            began = asyncio.get_running_loop().time()
            await three.until(lambda: three.allocator.decides or two.allocator.decides)
            took_s = asyncio.get_running_loop().time() - began
            print(f"handed over within {took_s:.3f} s")
            assert took_s < limits.HINT_STILL_MS / 1_000


class _Noted(MemoryHint):
    """A hint that knows who was ever put in."""

    def __init__(self) -> None:
        super().__init__()
        self.put_in: list[str] = []

    async def put(self, expected: int, writer: str) -> int | None:
        self.put_in.append(writer)
        return await super().put(expected, writer)


@pytest.mark.parametrize("clock", ["server_off_ns", "wall_off_ns"])
async def test_a_clock_that_goes_wrong_hands_over(url: str, monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    """A decider whose clock is off lets the other decide, and takes it back from nobody when it is right again."""
    monkeypatch.setattr(limits, "CONTACT_MS", 100)
    hint = _Noted()
    async with pair(url, hint) as (one, two):
        setattr(one, clock, 2 * SECOND_NS)
        await two.until(lambda: two.allocator.decides)
        assert "" in hint.put_in, "it was not given back"
        both = [one.begin("alice", lease(1, "a")), two.begin("alice", lease(1, "a"))]
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result().outcome for each in done] == ["granted"]
        assert done == {both[1]}
        setattr(one, clock, 0)
        await one.until(lambda: not one.allocator.contact.trouble)
        assert (await two.ask("alice", lease(2, "b"))).outcome == "granted"
        assert one.allocator.status()["role"] == "standby"


async def test_with_a_silent_hint_all_decide_and_nothing_else_changes(url: str) -> None:
    """The hint's store answers nobody: both decide, each request has one outcome, and later one of them stands by."""
    hint = MemoryHint()
    async with pair(url, hint) as (one, two):
        hint.is_silent = True
        await two.until(lambda: two.allocator.decides)
        for turn in range(20):
            request = lease(1, f"a{turn}")
            answers = await asyncio.gather(one.ask("alice", request), two.ask("alice", request))
            assert answers[0].outcome == "granted"
            assert (answers[0].position, answers[0].lease) == (answers[1].position, answers[1].lease)
            back = release(answers[0], f"r{turn}")
            answers = await asyncio.gather(two.ask("alice", back), one.ask("alice", back))
            assert {answer.outcome for answer in answers} == {"released"}
        lost = [int(each.allocator.status()["lost_appends"]) for each in (one, two)]
        print(f"appends lost: {lost}")
        assert sum(lost) > 0
        hint.is_silent = False
        roles = {"decider", "standby"}
        await two.until(lambda: {each.allocator.status()["role"] for each in (one, two)} == roles)


async def test_a_bucket_that_was_deleted_is_made_again(url: str) -> None:
    """Somebody deletes the bucket: whoever decided goes on, and the other stands by again."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(url))
        one = await stack.enter_async_context(running_allocator(url, "one", hint=KvHint(client)))
        await one.settled()
        two = await stack.enter_async_context(running_allocator(url, "two", hint=KvHint(client)))
        await two.until(lambda: two.allocator.status()["sequence"] and "one decides" in two.allocator.trouble)
        await client.ask(f"$JS.API.STREAM.DELETE.{HINT_STREAM}", timeout_s=5)
        writers = {"one", "two"}
        async with asyncio.timeout(30):
            while (await KvHint(client).look()).writer not in writers:
                pass
        await two.until(lambda: one.allocator.decides != two.allocator.decides)


async def test_an_old_picture_answers_nothing(url: str) -> None:
    """A repetition leaves no record. Who answers it looks at the log first: another may have decided meanwhile."""
    async with running_allocator(url, "one") as one, running_allocator(url, "two") as two:
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        await two.until(lambda: two.state.head == one.state.head)
        granted = await one.ask("alice", lease(1, "a"))
        assert (await one.ask("alice", release(granted, "b"))).ended == "released"
        again = await two.ask("alice", lease(1, "a"))
        assert (again.lease, again.ended) == (granted.lease, "released")
        assert (await one.ask("alice", lease(2, "c"))).outcome == "granted"
        assert (await two.ask("alice", lease(1, "a"))).as_of >= one.state.head.sequence * 256


async def test_a_standby_started_late_takes_over(url: str) -> None:
    """It reads what was decided before it came, and its answers to old requests are the old ones."""
    hint = MemoryHint()
    async with running_allocator(url, "one", hint=hint) as one:
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        first = [await one.ask("alice", lease(slot, f"r{slot}")) for slot in range(1, CARDS + 1)]
    async with running_allocator(url, "two", hint=hint) as two:
        await two.settled()
        again = [await two.ask("alice", lease(slot, f"r{slot}")) for slot in range(1, CARDS + 1)]
        assert [(each.outcome, each.lease) for each in again] == [(each.outcome, each.lease) for each in first]
        assert two.state.hosts[HOST].device_count == CARDS
    assert await _starts(url) == [("one", "start"), ("two", "takeover")]


async def test_what_was_heard_long_ago_is_decided_by_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the log nor the hint answers, the decider keeps what it hears for as long as a standby does."""
    monkeypatch.setattr(limits, "REQUEST_HEARD_MS", 1_000)
    hint = MemoryHint()
    async with running_allocator(url, "one", hint=hint) as one:
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        contact, server_time = one.allocator.contact, one.allocator.contact._server_time

        async def silent() -> int:
            raise UnavailableError("silent")

        hint.is_silent, contact._server_time = True, silent
        contact.want()
        await one.until(lambda: "does not answer" in one.allocator.trouble)
        assert (await one.ask("alice", lease(1, "old"))).outcome == "outcome_unknown"
        assert one.allocator.status()["heard"] == 1
        forgotten_ns = monotonic_ns() + limits.REQUEST_HEARD_MS * 1_000_000
        await one.until(lambda: monotonic_ns() > forgotten_ns)
        contact._server_time = server_time
        assert (await one.decided("alice", lease(2, "new"))).outcome == "granted"
        assert "alice/new" in one.state.answers
        assert "alice/old" not in one.state.answers


async def test_who_takes_over_without_room_says_so_first(url: str) -> None:
    """While only releases are taken, the first record of a new decider begins with who it is."""
    low = RoomNotice(server="n1", free_bytes=1, reserve_bytes=2, low=True, path="/data")
    async with pair(url, MemoryHint()) as (one, two):
        granted = await one.ask("alice", lease(1, "a"))
        one.allocator.hear_room(low)
        two.allocator.hear_room(low)
        one.allocator._hint._able = lambda: "killed"  # type: ignore[union-attr]
        await two.until(lambda: two.allocator.decides)
        assert (await two.ask("alice", lease(2, "b"))).outcome == "outcome_unknown"
        assert (await two.ask("alice", release(granted, "c"))).outcome == "released"
        assert two.state.head.decider == "two"
    assert await _starts(url) == [("one", "start"), ("two", "takeover")]


async def test_a_log_that_looks_shorter_for_a_moment_ends_nobody(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is new may not have caught up: only a log that stays shorter is a corrupt one."""
    looks = 0
    async with running_allocator(url, "one") as one:
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        ledger = one.allocator._ledger
        last_sequence = ledger.last_sequence

        async def shorter() -> int:
            nonlocal looks
            looks += 1
            return await last_sequence() - (looks <= 3)

        monkeypatch.setattr(ledger, "last_sequence", shorter)
        one.allocator.contact.want()
        assert (await one.decided("alice", lease(1, "a"))).outcome == "granted"
        assert looks > 3


async def test_who_asks_again_is_told_in_time_that_nothing_is_known(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a repetition is answered the log is looked at; while that takes long, who waits is told so in a second."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_allocator(url, "one", hint=MemoryHint()))
        door = await stack.enter_async_context(connected(url, "door"))
        client = await stack.enter_async_context(connected(url, "client"))
        wire = Wire(door, SUBJECTS, one.allocator, name="one")
        await wire.start()
        stack.push_async_callback(wire.stop)
        sending = asyncio.create_task(wire.send_replies())
        stack.callback(sending.cancel)
        await one.settled()
        await report_cards(one.connection, one, CARDS)
        subject, body = SUBJECTS.request(Principal("alice"), "lease"), codec.encode(lease(1, "a"))
        reply = await client.ask(subject, body, timeout_s=2.0)
        assert msgspec.json.decode(reply.body, type=Answer).outcome == "granted"

        async def silent() -> int:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(one.allocator._ledger, "last_sequence", silent)
        one.allocator.contact.made()
        reply = await client.ask(subject, body, timeout_s=limits.REQUEST_TIMEOUT_MS / 1_000)
        assert msgspec.json.decode(reply.body, type=Answer).outcome == "outcome_unknown"
