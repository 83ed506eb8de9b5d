"""How far the query service has read, what it bears, and how it stands on the bus."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasehold import __version__
from leasehold.events import codec, event_types, limits, questions
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, HostName
from leasehold.events.position import end_of_record, position_of
from leasehold.events.questions import QUESTIONS, Reading
from leasehold.events.views import ChangeView, DeviceView
from leasehold.projections import telling, wording
from leasehold.services import questioning
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.query.decoding import decode_question
from leasehold.services.query.lists import DeviceIds, LeaseIds
from leasehold.services.query.service import QueryService
from leasehold.services.questioning import fitted
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore
from tests.integration.asking import DEVICE, WAIT_S, Running, asking_at
from tests.integration.growing import Grower, pci
from tests.support.servers import SUBJECTS, connected, ledger_at


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with asking_at(tmp_path) as running:
        yield running


# --- how far it has read ------------------------------------------------------------------------------------------


async def test_reading_your_own_writes(running: Running) -> None:
    """A question with the position of a decision is answered from behind it, however soon it is asked."""
    grower = running.grower
    for turn in range(30):
        granted = await grower.ask("alice", grower.lease(DEVICE, holder=f"vm{turn}"))
        question = questions.Show(name=DEVICE, min_position=granted.position)
        reading = await running.ask(question, behind=True)
        assert reading.as_of >= granted.position
        assert reading.devices[0].holder == f"vm{turn}"
        await grower.ask("alice", grower.release(granted))


async def test_a_position_that_does_not_come(running: Running) -> None:
    """After a second the answer is `unavailable`, and says how far reading is; meanwhile others are answered."""
    ahead = position_of(running.grower.state.head.sequence + 50, 0)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    waiting = asyncio.ensure_future(running.ask(questions.Status(min_position=ahead)))
    assert (await running.ask(questions.Status())).outcome == "ok"
    assert not waiting.done()
    reading = await waiting
    assert 0.9 < loop.time() - begun_s < 2
    assert reading.outcome == "unavailable"
    assert reading.as_of == end_of_record(running.grower.state.head.sequence)
    assert str(ahead) in reading.message


async def test_before_it_has_caught_up(running: Running) -> None:
    """While the log is still being read, every question is answered with how far that is."""
    running.reader.caught_up.clear()
    reading = await running.ask(questions.Status())
    assert reading.outcome == "unavailable"
    assert "at record" in reading.message


async def test_after_a_broken_record_nothing_is_answered(running: Running) -> None:
    """A log that cannot be read on is named in every answer."""
    bad = running.grower.state.head.sequence + 1
    await running.grower.ledger.append(bad - 1, b'{"no":"record"}', timeout_s=5)
    async with asyncio.timeout(WAIT_S):
        await running.reader.ended.wait()
    for question in (questions.Status(), questions.Show(name=DEVICE), questions.History(name=DEVICE)):
        reading = await running.ask(question)
        assert reading.outcome == "unavailable"
        assert f"record {bad}" in reading.message


async def test_too_many_questions_at_once(running: Running) -> None:
    """Past the bound of one principal the rest hears so at once, while others are still answered."""
    ahead = position_of(running.grower.state.head.sequence + 50, 0)
    body = codec.encode(questions.Status(min_position=ahead))
    loop = asyncio.get_running_loop()
    begun_s = loop.time()

    async def ask() -> tuple[str, float]:
        reading = await running.raw("status", body, "bob")
        assert reading.outcome == "unavailable"
        return reading.message, loop.time() - begun_s

    asking = [asyncio.ensure_future(ask()) for _ in range(questioning.IN_WORK_PER_PRINCIPAL_MAX + 10)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert (await running.ask(questions.Status(), "alice")).outcome == "ok"
    answers = await asyncio.gather(*asking)
    assert sum("too many" in message for message, _ in answers) == 10
    assert all((took_s < 0.9) == ("too many" in message) for message, took_s in answers)
    assert (await running.ask(questions.Status(), "bob")).outcome == "ok"


# --- what cannot be asked -----------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_fields = sorted({field for kind in QUESTIONS.values() for field in kind.__struct_fields__})
_questions = st.dictionaries(st.sampled_from(_fields) | st.text(max_size=8), _json, max_size=4)
_garbage = (
    st.binary(max_size=200)
    | _json.map(lambda value: json.dumps(value).encode())
    | _questions.map(lambda value: json.dumps(value).encode())
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verb=st.sampled_from(sorted(QUESTIONS)), body=_garbage)
async def test_garbage_is_answered(running: Running, verb: str, body: bytes) -> None:
    """Whatever is sent is answered: `invalid` with a field and a reason, unless it happens to be a question."""
    try:
        decode_question(verb, body)
        readable = True
    except InvalidInputError:
        readable = False
    reading = await running.raw(verb, body)
    assert (reading.outcome == "invalid") == (not readable), reading
    if not readable:
        assert reading.field
        assert reading.message


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("list_devices", {"limit": 0}, "limit"),
        ("list_devices", {"limit": 1_001}, "limit"),
        ("list_devices", {"limit": 1.5}, "limit"),
        ("list_devices", {"hosts": "h1"}, "hosts"),
        ("list_devices", {"host": "No Host"}, "host"),
        ("list_devices", {"after": "x" * 400}, "after"),
        ("list_devices", {"min_position": -1}, "min_position"),
        ("list_devices", {"min_position": 2**53}, "min_position"),
        ("list_leases", {"holder": "\u0000"}, "holder"),
        ("list_leases", {"after": 2**60}, "after"),
        ("list_leases", {"ended": "yes"}, "ended"),
        ("show", {}, "name"),
        ("show", {"name": ""}, "name"),
        ("show", {"name": "x" * 1_025}, "name"),
        ("show", {"name": "two\nlines"}, "name"),
        ("history", {"name": "x", "kind": "planet"}, "kind"),
        ("sync", {"host": ""}, "host"),
        ("sync", {"host": "h1", "limit": 201}, "limit"),
        ("sync", {"host": "h1", "agent": "Not One"}, "agent"),
        ("status", [], "question"),
        ("status", "x" * limits.REQUEST_BYTES_MAX, "question"),
    ],
)
def test_bounds_are_named(verb: str, body: object, field: str) -> None:
    """Every field has bounds, and the one that is over them is named."""
    with pytest.raises(InvalidInputError) as caught:
        decode_question(verb, json.dumps(body).encode())
    assert caught.value.field == field


async def test_an_empty_question_is_one(running: Running) -> None:
    """A question without any field may be asked with nothing at all, as simple tools do."""
    assert (await running.raw("status", b"")).outcome == "ok"


async def test_a_principal_that_cannot_be_is_told_so(running: Running) -> None:
    """A subject that names no possible principal is answered, not dropped."""
    reply = await running.client.ask("leasehold.test.req.!!.status", b"{}", timeout_s=3)
    reading = msgspec.json.decode(reply.body, type=Reading)
    assert (reading.outcome, reading.field) == ("invalid", "principal")


# --- as a service -------------------------------------------------------------------------------------------------


async def test_it_can_be_discovered(running: Running) -> None:
    """The usual tools see the service with its version and an endpoint for each verb."""
    reply = await running.client.ask("$SRV.INFO.leasehold-query", b"", timeout_s=3)
    info = json.loads(reply.body)
    assert info["version"] == __version__
    assert {each["name"]: each["subject"] for each in info["endpoints"]} == {
        verb: SUBJECTS.requests_all(verb) for verb in QUESTIONS
    }
    assert {each["queue_group"] for each in info["endpoints"]} == {"query"}


async def test_several_share_the_load(running: Running, tmp_path: Path) -> None:
    """Of two services each question reaches one; when one stops, the other answers all."""
    async with connected(running.url, "second") as bus, ledger_at(running.url) as ledger:
        store = await FoldStore.open(tmp_path / "second.sqlite")
        reader = LedgerReader(ledger, store)
        second = QueryService(bus, SUBJECTS, reader, ledger, store)
        try:
            await reader.start()
            async with asyncio.timeout(WAIT_S):
                await reader.caught_up.wait()
            await second.start()
            for _ in range(50):
                assert (await running.ask(questions.Status())).outcome == "ok"
            first_had, second_had = _answered(running.service), _answered(second)
            assert first_had + second_had == 50
            assert min(first_had, second_had) > 0
            await running.service.stop()
            for _ in range(20):
                assert (await running.ask(questions.Status())).outcome == "ok"
            assert _answered(second) == second_had + 20
        finally:
            await second.stop()
            await reader.stop()
            await store.close()


def _answered(service: QueryService) -> int:
    listening = service.listening._service
    assert listening is not None
    return sum(endpoint.num_requests for endpoint in listening.stats().endpoints)


async def test_answers_fit_into_a_message(running: Running) -> None:
    """Pages of devices with all the attributes that they may have are cut, say so, and together are whole."""
    attributes = {f"name{number}": "x" * 300 for number in range(24)}
    cards = [pci(slot, attributes=attributes) for slot in range(1, 32)]
    for number in range(2, 7):
        await running.grower.report(f"h{number}", *cards)
    rows: list[DeviceView] = []
    pages, more = 0, True
    while more:
        reading = await running.ok(questions.ListDevices(after=rows[-1].device if rows else ""))
        rows, more, pages = rows + reading.devices, reading.more, pages + 1
    assert pages > 1
    assert [view.device for view in rows] == sorted(running.grower.state.devices)


@given(st.integers(0, 60), st.integers(300, 4_000))
def test_cutting_keeps_the_beginning(count: int, bytes_max: int) -> None:
    """What is left of a cut answer fits, is its beginning, and says that there is more."""
    rows = [DeviceDescription(key=pci(slot % 32).key, name=f"n{slot}", kind="pci") for slot in range(count)]
    body = fitted(Reading(outcome="ok", descriptions=rows), bytes_max)
    left = msgspec.json.decode(body, type=Reading)
    assert len(body) <= bytes_max
    assert left.descriptions == rows[: len(left.descriptions)]
    assert left.more == (len(left.descriptions) < count)
    assert left.descriptions or not rows


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(300, 2_000))
def test_cutting_parts_nothing_that_belongs_together(sizes: list[int], bytes_max: int) -> None:
    """Of rows that a page names together, like the changes of one device, all are left or none."""
    names = [f"h1/pci/0000:00:{index:02x}.0" for index, size in enumerate(sizes) for _ in range(size)]
    rows = [ChangeView(device=DeviceId(name), what="x", before="", after="", position=1, at_ns=1) for name in names]
    left = msgspec.json.decode(fitted(Reading(outcome="ok", changes=rows), bytes_max), type=Reading)
    kept = [row.device for row in left.changes]
    assert kept == names[: len(kept)]
    assert not set(kept) & set(names[len(kept) :])
    assert left.outcome == "unavailable" or left.more == (len(kept) < len(names))


# --- orders and sentences -----------------------------------------------------------------------------------------


async def test_lists_stay_right_while_the_state_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of many changes, the pages of both orders are what sorting everything anew gives."""
    monkeypatch.setattr("leasehold.services.query.lists.SPARE_MAX", 10)
    monkeypatch.setattr("leasehold.services.query.lists.GONE_MAX", 5)
    monkeypatch.setattr(limits, "REQUESTS_KEPT_PER_PRINCIPAL_MAX", 20)
    grower = Grower(MemoryLedger(MemoryLog()))
    await grower.start()
    devices, leases = DeviceIds(), LeaseIds()
    for turn in range(60):
        await grower.report(f"h{turn * 7 % 40}", *(pci(slot) for slot in range(1, 3 + turn % 5)))
        await grower.pass_time(1)
        await grower.turn(f"h{turn * 7 % 40}/pci/0000:00:01.0", holder=f"vm{turn % 3}")
        if turn % 4 == 0:
            await grower.ask("alice", grower.lease(f"h{turn * 7 % 40}/pci/0000:00:02.0", holder=f"vm{turn % 3}"))
        state = grower.state
        assert devices.page(state, host="", after="", limit=10**6) == (sorted(state.devices), False)
        for holder in ("", "vm1"):
            for ended in (False, True):
                expected = [
                    lease
                    for lease, row in sorted(state.leases.items())
                    if (not holder or row.holder == holder) and (ended or not row.ended)
                ]
                for limit in (3, 10**6):
                    page = leases.page(state, holder=holder, ended=ended, after=0, limit=limit)
                    assert page == (expected[:limit], len(expected) > limit)
    assert len(grower.state.leases) < 60


def test_every_event_has_a_sentence() -> None:
    """No type of event is without one; spans are told in whole units."""
    assert set(telling._TELLERS) == set(get_args(Event))
    for ms, text in ((0, "0 ms"), (1_500, "1500 ms"), (60_000, "1 min"), (90_000, "90 s"), (86_400_000, "1 d")):
        assert wording.span_text(ms) == text


@given(st.text(max_size=3_000))
def test_a_sentence_is_one_printable_line(reason: str) -> None:
    """Whatever an agent passes on, the line is bounded, and nothing in it steers a terminal."""
    text = telling.tell(event_types.HostWentStale(HostName("h1"), "watcher", reason), 300)
    assert text.isprintable()
    assert len(text) <= telling.TEXT_CHARS_MAX
