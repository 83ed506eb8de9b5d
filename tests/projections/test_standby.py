"""What a standby keeps of what it hears, and what it hands over."""

from typing import Any

from leasehold.events import codec, inputs, limits
from leasehold.events.identities import Holder, Principal, RequestId
from leasehold.events.inputs import Asked, Request
from leasehold.events.record import Record, Step
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.standby import Standby
from leasehold.projections.state import State
from tests.projections.ledger import A, B, device, ledger_with_hosts


def lease(request_id: str, *, name: str = "h1/pci/0000:00:01.0", issued_at_ns: int = 1) -> inputs.LeaseRequest:
    return inputs.LeaseRequest(
        request_id=RequestId(request_id), issued_at_ns=issued_at_ns, devices=(name,), holder=Holder("vm"), ttl_ms=5_000
    )


def record(*asked: Asked) -> Record:
    fields: dict[str, Any] = {"format": 1, "ledger_id": "l", "era": 0, "prev": "", "writer": "w", "decided_at_ns": 1}
    steps = tuple(Step(each, ()) for each in asked)
    return Record(**fields, rules_version=1, observed_through=0, steps=steps)


def tickets(standby: Standby) -> list[int]:
    return [ticket for ticket, _ in standby.take_over()]


def test_what_the_ledger_has_is_dropped_and_the_rest_handed_over_in_order() -> None:
    """A record drops what it decides, asked again or not; another principal's, other words and the rest stay."""
    standby = Standby()
    heard: list[tuple[Principal, Request]] = [
        (A, lease("a")),
        (B, lease("a")),
        (A, lease("b")),
        (A, lease("a", issued_at_ns=2)),
        (A, lease("a", name="h1/pci/0000:00:02.0")),
    ]
    for ticket, (principal, request) in enumerate(heard):
        standby.hear(ticket, principal, request, ticket)
    standby.seen(record(Asked(A, lease("c")), Asked(A, lease("a"))))
    assert len(standby) == 3
    assert standby.take_over() == [(1, Asked(B, lease("a"))), (2, Asked(A, lease("b"))), (4, Asked(*heard[4]))]
    assert standby.take_over() == []
    standby.seen(record(Asked(A, lease("b"))))


def test_only_the_last_seconds_are_kept() -> None:
    """What is older than asked for goes; what was heard at that very moment stays."""
    standby = Standby()
    for ticket in range(5):
        standby.hear(ticket, A, lease(f"r{ticket}"), 10 * ticket)
    standby.forget(20)
    assert tickets(standby) == [2, 3, 4]
    standby.forget(10**9)


def test_it_is_bounded() -> None:
    """However much is heard, the newest of it is kept and nothing more, in its indexes neither."""
    standby = Standby()
    for ticket in range(limits.REQUESTS_HEARD_MAX + 10):
        standby.hear(ticket, A, lease(f"r{ticket % 7}"), ticket)
    assert len(standby) == limits.REQUESTS_HEARD_MAX
    assert sum(map(len, standby._tickets.values())) == limits.REQUESTS_HEARD_MAX
    assert tickets(standby)[0] == 10
    assert not standby._tickets


def test_what_is_undecided() -> None:
    """A request is undecided until a record has it, or the state an answer to these very words."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    other_words = ledger.request(device("0a:00.0"), request_id=request.request_id)
    standby = Standby()
    standby.hear(1, A, request, 0)
    assert standby.is_undecided(1, ledger.state)
    assert not standby.is_undecided(2, ledger.state)
    ledger.ask(request)
    assert not standby.is_undecided(1, ledger.state)
    standby.hear(2, A, other_words, 0)
    assert standby.is_undecided(2, ledger.state)
    standby.seen(codec.decode_record(ledger.bodies[-1], len(ledger.bodies)))
    assert tickets(standby) == [2]


def test_what_was_drafted_into_nothing_can_be_decided_again() -> None:
    """A repetition is answered from the state; if the log goes on behind that, it is answered anew, behind the rest."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    other = Sequencer(State(), cluster="lab", writer="other")
    granted = ledger.ask(request)
    for sequence, body in enumerate(ledger.bodies, 1):
        other.apply(sequence, body)
    assert other.ask(1, A, request)
    assert other.draft(ledger.now_ns) is None
    assert [reply.answer.state for reply in other.replies] == ["living"]
    ledger.release(granted.lease)
    other.reconsider()
    assert (other.replies, other.waiting) == ([], 1)
    other.apply(len(ledger.bodies), ledger.bodies[-1])
    assert other.draft(ledger.now_ns) is None
    assert [reply.answer.ended for reply in other.replies] == ["released"]
    other.replies.clear()
    other.ask(2, B, request)
    other.note(inputs.Tick("other"))
    assert [pending.ticket for pending in other.give_up_requests()] == [2]
    assert other.has_work(ledger.now_ns)
    other.give_up_notes()
    assert not other.has_work(ledger.now_ns)
    assert other.draft(ledger.now_ns) is None
