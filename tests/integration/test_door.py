"""Principals take turns within bounds; the door answers once; hearing knows whom it has heard; complaints are few."""

import logging
from collections.abc import Callable

import msgspec
import pytest

from leasehold.events import limits
from leasehold.events.answers import Answer
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import HostName, Principal
from leasehold.events.inputs import DeviceSeen, HostHeard, Observed
from leasehold.projections import evolve
from leasehold.projections.decide import decide
from leasehold.projections.rows import HostState, SourceState
from leasehold.projections.state import State
from leasehold.services import complaints
from leasehold.services.allocator.buckets import Buckets
from leasehold.services.allocator.door import Door
from leasehold.services.allocator.hearing import Hearing
from leasehold.services.allocator.intake import Intake, surplus
from leasehold.services.allocator.turns import Turns, Waiting
from leasehold.services.complaints import Complaints
from tests.integration.growing import pci

ALICE = Principal("alice")
BOB = Principal("bob")
HOST = HostName("h1")
SILENT_NS = limits.HOST_SILENT_MS * 1_000_000
LIFE_S = limits.APPEND_TIMEOUT_MS / 1_000


def taking(answers: list[Answer]) -> Callable[[Answer], None]:
    return answers.append


# --- turns ----------------------------------------------------------------------------------------------------------


def request(principal: Principal, arrived_s: float = 0.0, body: bytes = b"{}") -> Waiting:
    return Waiting(principal, "lease", body, b"_INBOX.x", arrived_s)


def taken(turns: Turns) -> list[Waiting]:
    return list(iter(turns.take, None))


def test_principals_take_turns() -> None:
    """One request each, in the order in which each asked; who asked a hundred times delays another by one request."""
    turns = Turns()
    for number in range(100):
        assert turns.put(request(ALICE, number))
    assert turns.put(request(BOB, 100))
    assert turns.put(request(BOB, 101))
    order = [(waiting.principal, waiting.arrived_s) for waiting in taken(turns)]
    assert order[:5] == [(ALICE, 0), (BOB, 100), (ALICE, 1), (BOB, 101), (ALICE, 2)]
    assert [at for principal, at in order if principal == ALICE] == list(range(100))
    assert len(turns) == 0


def test_one_principal_cannot_take_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone one gets its bound; where others wait each has a share, and who comes late still finds a place."""
    monkeypatch.setattr(limits, "REQUESTS_WAITING_PER_PRINCIPAL_MAX", 6)
    monkeypatch.setattr(limits, "REQUESTS_WAITING_MAX", 8)
    turns = Turns()
    assert [turns.put(request(ALICE)) for _ in range(8)].count(True) == 6
    assert [turns.put(request(BOB)) for _ in range(8)].count(True) == 4
    assert [turns.put(request(Principal(f"p{number}"))) for number in range(9)].count(True) == 6
    assert len(turns) == 16, "twice the bound, and no more whoever asks"
    assert len(taken(turns)) == 16
    assert turns.put(request(ALICE)), "room again"


def test_bytes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large requests count by their size: one principal cannot fill the memory, nor can all together."""
    monkeypatch.setattr(limits, "REQUESTS_WAITING_BYTES_MAX", 10_000)
    turns = Turns()
    assert [turns.put(request(ALICE, body=bytes(1_000))) for _ in range(20)].count(True) == 5
    names = [Principal(f"p{number}") for number in range(40)]
    assert sum(turns.put(request(name, body=bytes(1_000))) for name in names) <= 15
    taken(turns)
    assert turns.put(request(ALICE, body=bytes(1_000)))


def test_who_waited_too_long_is_named_once() -> None:
    """Overdue are those that arrived before; they wait no more, the others do."""
    turns = Turns()
    for principal, at in ((ALICE, 1.0), (ALICE, 3.0), (BOB, 2.0), (BOB, 0.5)):
        turns.put(request(principal, at))
    assert [waiting.arrived_s for waiting in turns.overdue(2.5)] == [1.0, 2.0, 0.5]
    assert [waiting.arrived_s for waiting in taken(turns)] == [3.0]


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Full at first, refilled by time up to the burst, one for each key; what is remembered of keys is bounded."""
    buckets = Buckets[str](rate_per_s=10, burst=5, keys_max=50)
    assert [buckets.take("a", 1.0) for _ in range(7)].count(True) == 5
    assert buckets.take("b", 1.0)
    assert not buckets.take("a", 1.05), "half a token is none"
    assert buckets.take("a", 1.15)
    assert [buckets.take("a", 1_000.0) for _ in range(9)].count(True) == 5
    assert not buckets.take("a", 1_000.1, tokens=3)
    for number in range(500):
        assert buckets.take(f"k{number}", 0.0)
    assert len(buckets) <= 50


# --- the door -------------------------------------------------------------------------------------------------------


def test_each_is_answered_once() -> None:
    """The first word counts: an answer after giving up, or a second answer, goes nowhere."""
    door, answers = Door(), list[Answer]()
    ticket = door.wait("r1", 0.0, taking(answers))
    door.give_up(ticket, "outcome_unknown", "silence")
    door.answer(ticket, Answer(outcome="granted"))
    door.give_up(ticket, "unavailable", "again")
    assert [(answer.outcome, answer.request_id, answer.message) for answer in answers] == [
        ("outcome_unknown", "r1", "silence")
    ]
    assert door.counts["unknown"] == door.counts["answered"] == door.counts["asked"] == 1
    assert not door._waiters


def test_overdue_are_those_whose_time_is_over() -> None:
    """In time nobody is overdue; then each is named once; what has been answered never is."""
    door = Door()
    third, first, second = (door.wait("r", at, taking([])) for at in (0.2, 0.0, 0.1))
    assert door.overdue(LIFE_S - 0.01) == []
    door.answer(first, Answer(outcome="granted"))
    assert door.overdue(0.1 + LIFE_S) == [second]
    assert door.overdue(0.1 + LIFE_S) == []
    assert door.overdue(60.0) == [third]
    assert not door._deadlines, "deadlines of those who are gone are not kept"


# --- the intake -----------------------------------------------------------------------------------------------------


def test_a_host_that_floods_the_inbox_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its messages, or its bytes, a host's reports are dropped with the reason; another host's are taken."""
    monkeypatch.setattr(limits, "OBSERVED_PER_HOST_AT_ONCE", 10)
    monkeypatch.setattr(limits, "OBSERVED_PER_HOST_PER_S", 0.001)
    monkeypatch.setattr(limits, "OBSERVED_BYTES_PER_HOST_AT_ONCE", 1_000)
    monkeypatch.setattr(limits, "OBSERVED_BYTES_PER_HOST_PER_S", 0.001)
    intake = Intake()
    for _ in range(10):
        intake.admit(HOST, 10)
    with pytest.raises(InvalidInputError, match=r"h1 sends more than .* messages"):
        intake.admit(HOST, 10)
    intake.admit(HostName("h2"), 900)
    with pytest.raises(InvalidInputError, match=r"h2 sends more than .* bytes"):
        intake.admit(HostName("h2"), 200)


def test_devices_that_find_no_place_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the host does not have already, and only as many as are too many."""
    monkeypatch.setattr(limits, "DEVICES_PER_HOST_MAX", 3)
    state = known()
    seen = tuple(DeviceSeen(pci(slot)) for slot in range(1, 6))
    message = Observed(host=HOST, agent="watcher", run=7, counter=4, observations=seen)
    assert surplus(state, message) == 2
    events = decide(state, message, 0)
    assert [type(event).__name__ for event in events or ()] == ["ObservationsAccepted", *["DeviceAppeared"] * 3]
    for position, event in enumerate(events or (), 1):
        evolve.evolve(state, position, 0, event)
    assert surplus(state, message) == 2
    assert surplus(state, msgspec.structs.replace(message, observations=seen[:3])) == 0


# --- hearing --------------------------------------------------------------------------------------------------------


def known(run: int = 7, *, stale: str = "", complete: bool = True) -> State:
    state = State()
    source = SourceState(run=run, counter=3, complete=complete, stale=stale)
    state.put_host(HOST, HostState(mode="watched", sources={"watcher": source}))
    return state


def test_silence_is_noted_after_its_time_and_speech_at_once() -> None:
    """Silent for fifteen seconds: noted; heard again while stale: noted; else nothing."""
    hearing = Hearing()
    assert list(hearing.notes(known(), 1)) == []
    hearing.heard(known(), HOST, "watcher", 7, 10)
    assert list(hearing.notes(known(), 10 + SILENT_NS)) == []
    assert list(hearing.notes(known(), 11 + SILENT_NS)) == [HostHeard(HOST, "watcher", 7, alive=False)]
    stale = known(stale="silent")
    assert list(hearing.notes(stale, 12 + SILENT_NS)) == []
    hearing.heard(stale, HOST, "watcher", 7, 13 + SILENT_NS)
    assert list(hearing.notes(stale, 14 + SILENT_NS)) == [HostHeard(HOST, "watcher", 7, alive=True)]


def test_an_agent_never_heard_has_its_time_from_our_start() -> None:
    """An allocator that has just started gives everybody the whole time to speak, and so does one that was deaf."""
    hearing = Hearing()
    assert list(hearing.notes(known(), SILENT_NS * 5)) == []
    assert list(hearing.notes(known(), SILENT_NS * 6)) == []
    hearing.forget()
    assert list(hearing.notes(known(), SILENT_NS * 7)) == []
    assert [note.alive for note in hearing.notes(known(), SILENT_NS * 8 + 1)] == [False]


def test_heartbeats_of_others_say_nothing() -> None:
    """Unknown hosts, agents and runs are not remembered, and drown out nobody: the known run is still heard."""
    hearing, state = Hearing(), known()
    assert list(hearing.notes(state, 0)) == []
    hearing.heard(state, HOST, "watcher", 7, SILENT_NS)
    for number in range(1_000):
        hearing.heard(state, HostName(f"h{number + 2}"), "watcher", 7, SILENT_NS)
        hearing.heard(state, HOST, f"agent{number}", 7, SILENT_NS)
        hearing.heard(state, HOST, "watcher", number + 8, SILENT_NS)
    assert list(hearing.notes(state, SILENT_NS * 2)) == []
    assert len(hearing._heard_ns) == 1
    assert [note.alive for note in hearing.notes(state, SILENT_NS * 2 + 1)] == [False], "their words are not its life"


def test_a_run_that_has_not_reported_yet_is_let_be() -> None:
    """Only a picture that was whole can grow old by silence."""
    hearing = Hearing()
    assert list(hearing.notes(known(complete=False), 0)) == []
    assert list(hearing.notes(known(complete=False), SILENT_NS * 3)) == []


# --- complaints -----------------------------------------------------------------------------------------------------


def test_a_flood_of_complaints_is_told_in_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Ten lines a window and the number of the others, all of which are counted."""
    now_s = [0.0]
    told = Complaints(logging.getLogger("test"), "messages were dropped", lambda: now_s[0])
    for number in range(100_000):
        told.tell("message %d", number)
    now_s[0] += complaints.WINDOW_S + 1
    told.tell("message %d", 100_000)
    assert told.count == 100_001
    lines = [record.getMessage() for record in caplog.records]
    first = [f"message {number}" for number in range(10)]
    assert lines == [*first, "99990 more messages were dropped", "message 100000"]


def test_a_subject_in_a_complaint_is_plain() -> None:
    """Nothing from outside begins a line of its own in the log, or is longer than a line may be."""
    assert complaints.printable("a\nthe allocator stops: \x1b[31m\udcff") == r"'a\nthe allocator stops: \x1b[31m\udcff'"
    assert len(complaints.printable("x" * 10_000)) < 130
