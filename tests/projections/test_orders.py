"""Orders to hosts: how each comes to its one end, and what is remembered of it."""

from typing import Any

import pytest

from leasehold.events import inputs, limits
from leasehold.events.capabilities import (
    CreateVport,
    NewMdev,
    NewVport,
)
from leasehold.events.event_types import HostOrdered, OrderCarriedOut, OrderFailed
from leasehold.events.identities import DeviceId
from leasehold.projections.orders import list_orders, open_orders
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from tests.projections.hbas import (
    FABRIC,
    GPU,
    GVT,
    Creator,
    HbaLedger,
    hba_key,
    vport,
    wwn,
)
from tests.projections.ledger import H1, H2, SECOND, A, refusal_of

PORT = wwn(0x77)


# --- an order's life ----------------------------------------------------------------------------------------------


def test_an_order_is_given_and_carried_out() -> None:
    """A request becomes an order to the host's creator; asking again says how it stands, to its end."""
    ledger = HbaLedger()
    new = NewVport(parent="scsi_host1", wwnn=wwn(0x76), wwpn=PORT, parent_fabric_wwn=FABRIC)
    answer = ledger.create(new)
    order = ledger.ordered(answer)
    (event,) = ledger.events
    assert isinstance(event, HostOrdered)
    assert (event.host, event.agent, event.deadline_ns) == (H1, "creator", ledger.now_ns + 60 * SECOND)
    assert event.order == answer.what == CreateVport(parent=hba_key(1), wwnn=wwn(0x76), wwpn=PORT)
    assert answer.state == "waiting"
    assert [row.order for row in open_orders(ledger.state, H1, "creator")] == [order]
    device = vport(PORT, on=1)
    ledger.see(device)
    ledger.creator.done(order, device.key)
    assert ledger.events[1:] == [OrderCarriedOut(host=H1, order=order, device=device.key)]
    later = ledger.again(answer, new)
    assert (later.outcome, later.state, later.order, later.what) == ("ordered", "done", order, event.order)
    assert later.devices == (DeviceId(f"{H1}/{device.key}"),)
    assert not open_orders(ledger.state, H1, "creator")


def test_an_answer_outlives_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, it names what was made, though so much was ordered since that the order itself is forgotten."""
    monkeypatch.setattr(limits, "ORDERS_KEPT_PER_HOST_MAX", 1)
    ledger = HbaLedger()
    new = NewVport(parent="scsi_host1", wwnn=wwn(0x76), wwpn=PORT)
    answer = ledger.create(new)
    ledger.creator.done(ledger.ordered(answer), vport(PORT, on=1).key)
    before = ledger.again(answer, new)
    ledger.ordered(ledger.create(NewVport()))
    assert answer.order not in ledger.state.orders
    after = ledger.again(answer, new)
    assert after.devices == before.devices == (DeviceId(f"{H1}/{vport(PORT, on=1).key}"),)
    assert (after.state, after.order) == ("done", answer.order)


def test_an_order_that_fails() -> None:
    """What the host could not do is told with its reason, and may be asked for anew."""
    ledger = HbaLedger()
    answer = ledger.create(NewVport())
    order = ledger.ordered(answer)
    ledger.creator.not_done(order, "the HBA has no link")
    assert ledger.events[1:] == [OrderFailed(host=H1, order=order, reason="the HBA has no link")]
    later = ledger.again(answer, NewVport())
    assert (later.state, later.message) == ("failed", "the HBA has no link")
    assert ledger.create(NewVport()).state == "waiting"


def test_an_order_that_is_not_heard_of_times_out_and_may_be_late() -> None:
    """By its deadline an order fails as timed out; that it was carried out after all is told once, as late."""
    ledger = HbaLedger()
    answer = ledger.create(NewVport(), timeout_ms=5_000)
    order = ledger.ordered(answer)
    ledger.tick(4)
    assert ledger.events == []
    ledger.tick(1)
    (event,) = ledger.events
    assert isinstance(event, OrderFailed)
    assert (event.order, event.timed_out) == (order, True)
    assert ledger.again(answer, NewVport(), timeout_ms=5_000).state == "timed_out"
    ledger.tick(100)
    assert ledger.events == []
    ledger.creator.not_done(order)
    assert ledger.events[1:] == []
    ledger.creator.done(order, "pci/0000:05:00.0/scsi_host/new")
    (late,) = ledger.events[1:]
    assert isinstance(late, OrderCarriedOut)
    assert late.late
    assert ledger.again(answer, NewVport(), timeout_ms=5_000).state == "done"
    ledger.creator.done(order)
    assert ledger.events[1:] == []


@pytest.mark.parametrize("first", ["done", "not_done"])
def test_an_order_ends_once(first: str) -> None:
    """What is told of an order that is over changes nothing."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport()))
    getattr(ledger.creator, first)(order)
    assert len(ledger.events) == 2
    for word in ("done", "not_done"):
        getattr(ledger.creator, word)(order)
        assert len(ledger.events) == 1
    ledger.tick(100)
    assert ledger.events == []


def test_the_last_word_of_a_message_counts() -> None:
    """A message that says two things of one order says the second."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport()))
    ledger.creator.say(inputs.OrderNotDone(order, "no"), inputs.OrderDone(order))
    assert [type(event) for event in ledger.events[1:]] == [OrderCarriedOut]


def test_only_the_agent_that_was_told_can_say() -> None:
    """Neither the host's watcher nor another host's creator can end an order; nor can one that is unknown be ended."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport()))
    ledger.observe(inputs.OrderDone(order))
    other = Creator(ledger, H2)
    other.start()
    other.done(order)
    ledger.creator.done(order + 1)
    assert ledger.state.orders[order].state == "waiting"


def test_no_order_times_out_in_a_grace_time() -> None:
    """An outage of ours ends no order: its end may be in what was not taken in yet."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport(), timeout_ms=1_000))
    ledger.now_ns += 2 * SECOND
    ledger.note(inputs.DeciderStarts("alloc", "outage"))
    ledger.tick(29)
    assert ledger.state.orders[order].state == "waiting"
    ledger.tick(2)
    assert ledger.state.orders[order].state == "timed_out"


def test_orders_in_a_restored_ledger() -> None:
    """An open order stays open behind a restore; nothing new is ordered before the host has been reported again."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport(), timeout_ms=1_000))
    ledger.note(inputs.LedgerRestores(cluster="lab", writer="restorer", era=1, reason="a new disk"))
    refusal = refusal_of(ledger.create(NewVport()))
    assert (refusal.code, "restored" in refusal.message) == ("host_forbids", True)
    ledger.tick(20)
    assert ledger.state.orders[order].state == "waiting"
    ledger.creator.say(inputs.OrderDone(order), inputs.PictureComplete(since=ledger.creator.counter + 1))
    assert ledger.state.orders[order].state == "done"
    assert refusal_of(ledger.create(NewVport())).code == "host_stale"
    ledger.observe(inputs.PictureComplete(since=ledger.counters[H1] + 1))
    ledger.ordered(ledger.create(NewVport()))


def test_time_alone_ends_an_order() -> None:
    """The sequencer knows when an order is due without being told to look."""
    ledger = HbaLedger()
    ledger.ordered(ledger.create(NewVport(), timeout_ms=5_000))
    due_ns = ledger.sequencer.next_work_ns()
    assert due_ns == ledger.now_ns + 5 * SECOND
    assert not ledger.sequencer.has_work(due_ns - 1)
    ledger.now_ns = due_ns
    ledger.commit()
    assert [type(event) for event in ledger.events] == [OrderFailed]


def test_a_draft_with_orders_is_taken_back() -> None:
    """What a lost record would have ordered, ended or forgotten is as it was."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport()))
    before = encode_state(ledger.state)
    request = inputs.CreateDeviceRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=NewVport(), host=H1
    )
    assert ledger.sequencer.ask(99, A, request)
    draft = ledger.sequencer.draft(ledger.now_ns + 61 * SECOND)
    assert draft is not None
    assert len(ledger.state.orders) == 2
    assert ledger.state.orders[order].state == "timed_out"
    ledger.sequencer._draft = None
    ledger.state.roll_back()
    assert encode_state(ledger.state) == before
    assert [row.order for row in open_orders(ledger.state, H1, "creator")] == [order]


def test_orders_survive_a_snapshot() -> None:
    """A state from a snapshot knows which orders are open, on what, and when they are due."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport(wwpn=PORT), timeout_ms=9_000))
    loaded = decode_state(encode_state(ledger.state))
    assert loaded is not None
    assert loaded.deadlines.next_ns() == ledger.now_ns + 9 * SECOND
    for name in ("orders", "open_orders", "orders_on", "ordered_marks", "marks", "hbas"):
        assert getattr(loaded.indexes, name) == getattr(ledger.state.indexes, name)
        assert getattr(loaded.indexes, name)
    assert list_orders(loaded, host=H1) == list_orders(ledger.state, host=H1)
    assert list_orders(loaded)[0][0].order == order


def test_a_log_with_orders_is_decided_again() -> None:
    """Every record of a log with orders follows again from its inputs, made-up names included."""
    ledger = HbaLedger()
    ledger.creator.done(ledger.ordered(ledger.create(NewVport())))
    ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT)))
    ledger.create(NewMdev(parent=GPU, mdev_type="none"))
    ledger.tick(100)
    replay = Replay()
    assert not any(replay.step(sequence, body) for sequence, body in enumerate(ledger.bodies, 1))
    assert encode_state(replay.state) == encode_state(ledger.state)


# --- what is remembered -------------------------------------------------------------------------------------------


def test_orders_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a bound the oldest order that is over goes, an open one never; its answer stays as it was."""
    monkeypatch.setattr(limits, "ORDERS_KEPT_PER_HOST_MAX", 3)
    ledger = HbaLedger()
    answers = [ledger.create(NewVport(parent="scsi_host0"))]
    for _ in range(4):
        answers.append(ledger.create(NewVport(parent="scsi_host1")))
        ledger.creator.not_done(answers[-1].order, "no")
    assert ledger.state.indexes.orders[H1] == (answers[0].order, answers[3].order, answers[4].order)
    gone = ledger.again(answers[1], NewVport(parent="scsi_host1"))
    assert (gone.outcome, gone.state, gone.message, gone.order) == ("ordered", "failed", "no", answers[1].order)
    ledger.creator.done(answers[1].order)
    assert len(ledger.events) == 1


@pytest.mark.parametrize("ends_late", [False, True])
def test_answers_about_orders_are_forgotten_once(ends_late: bool) -> None:
    """An answer is remembered for its time from the order's end on, and then forgotten, once."""
    ledger = HbaLedger()
    answer = ledger.create(NewVport(), timeout_ms=5_000)
    ledger.tick(5)
    if ends_late:
        ledger.tick(1)
        ledger.creator.done(answer.order)
    assert ledger.state.orders[answer.order].state == ("done" if ends_late else "timed_out")
    assert [row.key for row in ledger.state.fading.values()] == [f"{A}/{answer.request_id}"]
    ledger.now_ns += limits.REQUEST_KEPT_NS - 10 * SECOND
    assert ledger.create(NewVport(parent="nothing")).outcome == "refused"
    assert f"{A}/{answer.request_id}" in ledger.state.answers
    ledger.now_ns += 20 * SECOND
    assert ledger.create(NewVport(parent="nothing")).outcome == "refused"
    assert f"{A}/{answer.request_id}" not in ledger.state.answers
    assert ledger.state.orders[answer.order].state == ("done" if ends_late else "timed_out")


def test_each_agent_has_its_own_orders() -> None:
    """An agent that is given none hears of none."""
    ledger = HbaLedger()
    ledger.ordered(ledger.create(NewVport()))
    assert len(open_orders(ledger.state, H1, "creator")) == 1
    assert not open_orders(ledger.state, H1, "watcher")
    assert not open_orders(ledger.state, H2, "creator")


def test_orders_are_listed_in_pages() -> None:
    """Open ones, or all, of one host or of all, oldest first."""
    ledger = HbaLedger()
    Creator(ledger, H2).start()
    orders = [ledger.ordered(ledger.create(NewVport(), host=host)) for host in (H1, H2, H1, H1)]
    ledger.creator.done(orders[0])

    def listed(**fields: Any) -> tuple[list[int], bool]:
        rows, more = list_orders(ledger.state, **fields)
        return [row.order for row in rows], more

    assert listed() == (orders[1:], False)
    assert listed(ended=True) == (orders, False)
    assert listed(ended=True, limit=2) == (orders[:2], True)
    assert listed(ended=True, limit=2, after=orders[1]) == (orders[2:], False)
    assert listed(host=H1) == ([orders[2], orders[3]], False)
    assert listed(host=H2, ended=True) == ([orders[1]], False)
    assert listed(host="none") == ([], False)
    (row,) = list_orders(ledger.state, host=H1, ended=True, limit=1)[0]
    assert (row.state, row.asked_by, row.agent, row.host) == ("done", A, "creator", H1)
