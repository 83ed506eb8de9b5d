"""The small machines that the shells run: clock, contact, append, reporter, packing."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.answers import Heard
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import HostName
from leasehold.projections.appending import Append, Appender, Lost, Read, Said, Won
from leasehold.projections.reporting import Need, Picture, Reporter, differences
from leasehold.projections.state import State
from leasehold.projections.timekeeping import Contact, LedgerClock
from tests.projections.ledger import H1, SECOND, A, Ledger, device, ledger_with_hosts, pci

MS = 1_000_000
WALL_NS = 1_700_000_000 * SECOND


# --- time ---------------------------------------------------------------------------------------------------------


def clock_at(server_ns: int, monotonic_ns: int) -> LedgerClock:
    """A clock that has just heard the server."""
    clock = LedgerClock()
    clock.heard_server(server_ns=server_ns, monotonic_ns=monotonic_ns, wall_ns=server_ns)
    return clock


def test_no_time_before_the_server_is_heard() -> None:
    """An allocator that has not heard the server's time does not decide."""
    assert LedgerClock().now_ns(5) is None
    assert "not known" in LedgerClock().trouble


def test_time_goes_on_between() -> None:
    """Between two words of the server the monotonic clock carries the time on, whatever the wall clock does."""
    assert clock_at(WALL_NS, 7).now_ns(7 + 3 * SECOND) == WALL_NS + 3 * SECOND


def test_a_step_back_is_followed_at_once() -> None:
    """A server that steps back is believed: leases last longer, none ends early."""
    clock = clock_at(WALL_NS, 0)
    clock.heard_server(server_ns=WALL_NS - 60 * SECOND, monotonic_ns=SECOND, wall_ns=WALL_NS - 60 * SECOND)
    assert clock.now_ns(SECOND) == WALL_NS - 60 * SECOND


def test_a_step_forward_is_followed_slowly() -> None:
    """A server that steps forward gains at most a thousandth of the time that has gone by, so no lease ends at once."""
    clock = clock_at(WALL_NS, 0)
    server_ns = WALL_NS + 3_600 * SECOND
    clock.heard_server(server_ns=server_ns, monotonic_ns=10 * SECOND, wall_ns=server_ns)
    assert clock.now_ns(10 * SECOND) == WALL_NS + 10 * SECOND + 10 * MS


@given(st.lists(st.tuples(st.integers(0, 100 * SECOND), st.integers(-100 * SECOND, 100 * SECOND)), max_size=20))
def test_time_never_runs_ahead(steps: list[tuple[int, int]]) -> None:
    """However the server's clock jumps, ours gains on real time by a thousandth at most."""
    clock, real_ns, jumped_ns = clock_at(WALL_NS, 0), 0, 0
    for elapsed_ns, jump_ns in steps:
        real_ns += elapsed_ns
        jumped_ns += jump_ns
        server_ns = WALL_NS + real_ns + jumped_ns
        clock.heard_server(server_ns=server_ns, monotonic_ns=real_ns, wall_ns=server_ns)
        now_ns = clock.now_ns(real_ns)
        assert now_ns is not None
        assert now_ns <= WALL_NS + real_ns + real_ns // 1_000
        assert now_ns <= max(server_ns, WALL_NS + real_ns + real_ns // 1_000)


@pytest.mark.parametrize(("error_ns", "decides"), [(0, True), (SECOND, True), (-SECOND, True), (SECOND + 1, False)])
def test_a_wrong_clock_does_not_decide(error_ns: int, decides: bool) -> None:
    """A machine whose clock differs from the server's by more than a second does not decide, until it agrees again."""
    clock = clock_at(WALL_NS, 0)
    clock.heard_server(server_ns=WALL_NS, monotonic_ns=0, wall_ns=WALL_NS + error_ns)
    assert (clock.now_ns(0) is not None) == decides
    assert bool(clock.trouble) != decides
    clock.heard_server(server_ns=WALL_NS, monotonic_ns=0, wall_ns=WALL_NS)
    assert clock.now_ns(0) == WALL_NS


def test_contact() -> None:
    """Only a pause longer than an outage takes counts as one."""
    contact = Contact()
    outage_ns = limits.OUTAGE_MS * MS
    assert [contact.reached(at) for at in (0, outage_ns, 2 * outage_ns + 1, 2 * outage_ns + 2)] == [
        False,
        False,
        True,
        False,
    ]


# --- one append ---------------------------------------------------------------------------------------------------

OURS, THEIRS = b"ours", b"theirs"
Answer = tuple[Said, int] | bytes | None


@pytest.mark.parametrize(
    ("answers", "end"),
    [
        ([(Said.STORED, 8)], Won(8)),
        ([(Said.REFUSED, 8), THEIRS], Lost(8, THEIRS)),
        ([(Said.REFUSED, 8), OURS], Won(8)),
        ([(Said.REFUSED, 9), OURS], Won(8)),
        ([(Said.NOTHING, 0), OURS], Won(8)),
        ([(Said.NOTHING, 0), THEIRS], Lost(8, THEIRS)),
        ([(Said.NOTHING, 0), None, (Said.STORED, 8)], Won(8)),
        ([(Said.NOTHING, 0), None, (Said.REFUSED, 8), THEIRS], Lost(8, THEIRS)),
        ([(Said.NOTHING, 0), None, (Said.NOTHING, 0), None, (Said.REFUSED, 8), OURS], Won(8)),
        ([(Said.STORED, 9), THEIRS], Lost(8, THEIRS)),
        ([(Said.REFUSED, 7), None, (Said.STORED, 8)], Won(8)),
        ([(Said.REFUSED, 0), THEIRS], Lost(8, THEIRS)),
    ],
)
def test_how_an_append_ends(answers: list[Answer], end: Won | Lost) -> None:
    """Whatever is answered, only what stands behind the expected sequence says how it ended."""
    appender = Appender(7, OURS)
    for answer in answers:
        if isinstance(answer, tuple):
            assert appender.action == Append(7, OURS)
            appender.answered(*answer)
        else:
            assert appender.action == Read(8)
            appender.found(answer)
    assert appender.action == end


def test_a_log_that_became_shorter() -> None:
    """A log that ends before what was read of it is corrupt, not behind."""
    with pytest.raises(CorruptLedgerError):
        Appender(7, OURS).answered(Said.REFUSED, 6)


# --- reporting ----------------------------------------------------------------------------------------------------

PICTURES = st.dictionaries(st.integers(0, 20), st.integers(0, 2), max_size=12).map(
    lambda chosen: {
        pci(f"{bus:02x}:00.0").key: pci(f"{bus:02x}:00.0", driver=f"d{driver}") for bus, driver in chosen.items()
    }
)


@given(PICTURES, PICTURES)
def test_differences_lead_from_one_picture_to_the_other(before: Picture, after: Picture) -> None:
    """Done in order, the differences make one picture of the other; equal pictures have none."""
    made = dict(before)
    found = differences(before, after)
    for each in found:
        if isinstance(each, inputs.DeviceSeen):
            made[each.device.key] = each.device
        else:
            assert isinstance(each, inputs.DeviceGone)
            del made[each.key]
    assert made == after
    assert bool(found) == (before != after)


@given(PICTURES, PICTURES)
def test_reports_are_messages_that_can_be_taken(before: Picture, after: Picture) -> None:
    """Reports are cut to messages within their bounds, numbered without gaps, and closed by the whole's beginning."""
    with patch.object(limits, "OBSERVATIONS_PER_MESSAGE_MAX", 3):
        reporter = Reporter(H1, "watcher", 5)
        messages = [reporter.starts(), *reporter.synced(before, after)]
        for number, message in enumerate(messages):
            assert codec.decode_observed(codec.encode(message)) == message
            assert message.counter == number
        assert messages[-1].observations[-1] == inputs.PictureComplete(since=1)
        assert not reporter.look(after)
        assert (reporter.look(before) == []) == (before == after)


@pytest.mark.parametrize(
    ("heard", "need"),
    [
        ({"run": 6}, Need.SUPERSEDED),
        ({"run": 4}, Need.AGAIN),
        ({"run": 0}, Need.AGAIN),
        ({"counter": 0}, Need.WAIT),
        ({}, Need.NOTHING),
        ({"complete": False}, Need.SYNC),
        ({"wants_report": True}, Need.SYNC),
    ],
)
def test_what_an_agent_needs(heard: dict[str, int], need: Need) -> None:
    """The log's answer to a heartbeat says what the run must do next."""
    reporter = Reporter(H1, "watcher", 5)
    reporter.synced({}, {})
    answer = {"run": 5, "counter": 1, "complete": True, "wants_report": False, **heard}
    assert reporter.need(Heard(**answer)) == need  # type: ignore[arg-type]


# --- packing ------------------------------------------------------------------------------------------------------


def test_all_that_waits_goes_into_one_record() -> None:
    """Requests that wait are decided in their order, in one record, as far as it has room; the rest in the next."""
    ledger = ledger_with_hosts()
    for ticket in range(400):
        assert ledger.sequencer.ask(ticket, A, ledger.request(device("01:00.0") if ticket == 3 else f"no{ticket}"))
    assert ledger.sequencer.waiting == 400
    for count in (256, 144):
        before = len(ledger.bodies)
        ledger.commit()
        assert len(ledger.bodies) == before + 1
        assert len(ledger.events) == count
        assert len(ledger.bodies[-1]) <= limits.RECORD_BYTES_MAX
    assert [reply.ticket for reply in ledger.sequencer.replies] == list(range(400))
    assert [reply.ticket for reply in ledger.sequencer.replies if reply.answer.outcome == "granted"] == [3]


def test_large_inputs_do_not_share_a_record() -> None:
    """A record stays within its bytes, however much waits."""
    ledger = ledger_with_hosts()
    name = "x" * 1_000
    for ticket in range(60):
        devices = tuple(f"{ticket:03}{number:03}{name}" for number in range(50))
        assert ledger.sequencer.ask(ticket, A, ledger.request(*devices))
    while ledger.sequencer.waiting:
        ledger.commit()
        assert len(ledger.bodies[-1]) <= limits.RECORD_BYTES_MAX
    assert len(ledger.sequencer.replies) == 60


def test_who_decides_stands_before_all_that_is_decided() -> None:
    """However much is noted before, and though there is room for releases only: others follow the time of a record."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    sequencer, state = ledger.sequencer, ledger.state
    run = state.hosts[H1].sources["watcher"].run
    sequencer.note(inputs.HostHeard(H1, "watcher", run, alive=False))
    sequencer.note(inputs.DeciderStarts(sequencer.writer, "takeover", 0))
    sequencer.releases_only = True
    assert not sequencer.has_work(ledger.now_ns)
    given = inputs.ReleaseRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=lease)
    assert sequencer.ask(1, A, given)
    ledger.commit()
    assert [type(event) for event in ledger.events][:2] == [event_types.GraceStarted, event_types.LeaseReleased]
    assert not state.hosts[H1].stale
    sequencer.note(inputs.DeciderStarts(sequencer.writer, "outage", 0))
    sequencer.releases_only = False
    ledger.commit()
    assert [type(event) for event in ledger.events][:2] == [event_types.GraceStarted, event_types.HostWentStale]


def test_too_many_requests_are_not_taken() -> None:
    """The queue of requests has a bound; beyond it the shell is told at once."""
    ledger = ledger_with_hosts()
    with patch.object(limits, "REQUESTS_WAITING_MAX", 2):
        assert [ledger.sequencer.ask(ticket, A, ledger.request("no")) for ticket in range(3)] == [True, True, False]
    ledger.commit()
    assert [reply.ticket for reply in ledger.sequencer.replies] == [0, 1]


def test_a_lost_draft_leaves_no_trace() -> None:
    """When another's record stands where a draft would, the state is as if it had never been; nothing is forgotten."""
    ours, theirs = ledger_with_hosts(), ledger_with_hosts()
    assert ours.bodies == theirs.bodies
    theirs.granted("01:00.0")
    for ticket, text in enumerate(("01:00.0", "0a:00.0", "02:00.0")):
        assert ours.sequencer.ask(ticket, A, ours.request(device(text)))
    ours.sequencer.observe(5, None)
    ours.sequencer.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    assert ours.sequencer.draft(ours.now_ns) is not None
    assert ours.sequencer.in_flight is not None
    ours.sequencer.lost(len(theirs.bodies), theirs.bodies[-1])
    assert not ours.sequencer.replies
    assert ours.sequencer.waiting == 3
    assert rows(ours.state) == rows(theirs.state)
    ours.commit()
    assert [reply.answer.outcome for reply in ours.sequencer.replies] == ["granted", "refused", "refused"]


def rows(state: State) -> object:
    """All tables, plainly."""
    tables = {name: dict(table) for name, table in vars(state).items() if isinstance(table, dict)}
    return (
        state.head,
        tables,
        {name: dict(table) for name, table in vars(state.indexes).items() if isinstance(table, dict)},
    )


def test_work_in_sight() -> None:
    """The sequencer says when time alone will make work: at the next expiry, at the end of grace, or not."""
    ledger = ledger_with_hosts()
    assert ledger.sequencer.next_work_ns() is None
    ledger.granted("01:00.0", ttl_ms=10_000)
    lease = ledger.granted("0a:00.0", ttl_ms=5_000)
    assert ledger.sequencer.next_work_ns() == ledger.now_ns + 5 * SECOND
    ledger.release(lease)
    assert ledger.sequencer.next_work_ns() == ledger.now_ns + 10 * SECOND
    assert not ledger.sequencer.has_work(ledger.now_ns)
    assert ledger.sequencer.has_work(ledger.now_ns + 10 * SECOND)


def test_messages_are_read_in_order_and_once() -> None:
    """What was handed in, or stands in another's record, is not taken again."""
    ledger = Ledger()
    reporter = Reporter(HostName("h1"), "watcher", 1)
    for sequence in (1, 1, 2):
        ledger.sequencer.observe(sequence, reporter.starts())
    assert ledger.sequencer.read_through == 2
    assert ledger.sequencer.observed_room == limits.OBSERVED_WAITING_MAX - 2
    ledger.commit()
    assert ledger.state.head.observed_through == 2
