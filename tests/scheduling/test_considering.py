"""A request that is only considered is answered as it then is when it is asked, names the leases that then end, and
leaves nothing behind.
"""

from typing import Any

import msgspec

from leasehold.events import codec, inputs, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.event_types import LeaseExpired, LeaseOutlived, LeaseReleased
from leasehold.events.hostdev_events import LeaseRevoked, PrepareFailed
from leasehold.events.identities import Holder, Principal, RequestId
from leasehold.events.inputs import Request
from leasehold.events.position import lease_id_text
from leasehold.events.schedule_events import Tainted
from leasehold.events.schedule_views import Broken
from leasehold.projections.considering import considered
from leasehold.projections.snapshots import encode_state
from tests.past import logs, scheduled
from tests.projections.ledger import A, B, Ledger, device, ledger_with_hosts

_SAME = ("outcome", "devices", "state", "ended", "leases", "ttl_ms", "ahead", "kept", "until_ns", "message")
_ENDS = LeaseReleased | LeaseExpired | LeaseOutlived | LeaseRevoked | PrepareFailed


class _Considering(Ledger):
    """Everything that is asked is considered before."""

    compared = 0

    def ask(self, request: Request, principal: Principal = A) -> Answer:
        before = encode_state(self.state)
        lists = {name: list(getattr(self.state, name)) for name in ("devices", "hosts")}
        told, broken = considered(self.state, principal, request, self.now_ns)
        assert encode_state(self.state) == before
        assert {name: list(getattr(self.state, name)) for name in lists} == lists
        assert self.state.news == []
        living = {lease for lease, row in self.state.leases.items() if not row.ended}
        noted = dict(self.state.indexes.evictions)
        answer = super().ask(request, principal)
        steps = codec.decode_record(self.bodies[-1], len(self.bodies)).steps if self.events else ()
        if len(steps) == 1 and answer.position:
            type(self).compared += 1
            self._compare(told, broken, answer, living, noted)
        return answer

    def _compare(
        self, told: Answer, broken: list[Broken], answer: Answer, living: set[int], noted: dict[int, int]
    ) -> None:
        for name in _SAME:
            assert getattr(told, name) == getattr(answer, name), (name, told, answer)
        assert (told.refusal is None) == (answer.refusal is None)
        if told.refusal is not None and answer.refusal is not None:
            assert told.refusal.code == answer.refusal.code
        assert (told.token, told.position) == (0, 0)
        ends = {event.lease for event in self.events if isinstance(event, _ENDS)} & living
        for event in self.events:
            if isinstance(event, Tainted):
                ends |= {
                    lease
                    for lease, due_ns in self.state.indexes.evictions.items()
                    if due_ns == event.taint.evicts_at_ns and noted.get(lease) != due_ns
                }
        assert {each.lease for each in broken} == {lease_id_text(lease) for lease in ends}


def test_whatever_is_asked_was_considered_right(monkeypatch: Any) -> None:
    """In a random log each request, of any verb, is answered as it was considered, and breaks what it was said to."""

    def considering() -> Ledger:
        ledger = ledger_with_hosts()
        ledger.__class__ = _Considering
        return ledger

    monkeypatch.setattr(scheduled, "ledger_with_hosts", considering)
    _Considering.compared = 0
    for seed in logs.seeds(3):
        scheduled.random_log(seed)
    assert _Considering.compared > 150


def test_ids_need_not_be_new() -> None:
    """Whoever considers what he has asked before hears how it would be decided anew, under the id that he said."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    assert ledger.ask(request).outcome == "granted"
    told, broken = considered(ledger.state, A, request, ledger.now_ns)
    assert (told.outcome, told.request_id, broken) == ("refused", request.request_id, [])
    old = msgspec.structs.replace(request, devices=(device("0a:00.0"),), issued_at_ns=1)
    told, _ = considered(ledger.state, A, old, ledger.now_ns)
    assert (told.outcome, told.lease, told.token) == ("granted", 0, 0)


def test_an_id_that_was_used_by_chance() -> None:
    """The id under which it is considered is none that the asker has used."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", request_id=RequestId("considered-0"))
    told, _ = considered(ledger.state, A, ledger.request(device("0a:00.0")), ledger.now_ns)
    assert told.outcome == "granted"


def test_who_would_have_to_act() -> None:
    """A drain names each lease with its holder, the devices that are meant, and when it ends."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", "0a:00.0", holder=Holder("db"))
    ledger.granted("03:00.0", tolerates=("drain",))
    request = schedule_inputs.TaintRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=device("0a:00.0"), name="drain",
        reason="new fans", effect="evict", notice_ms=60_000,
    )  # fmt: skip
    told, broken = considered(ledger.state, B, request, ledger.now_ns)
    assert told.outcome == "set"
    assert broken == [
        Broken(
            lease=lease_id_text(lease), holder="db", principal="a", devices=(device("0a:00.0"),),
            ends_at_ns=ledger.now_ns + 60 * 10**9,
        )
    ]  # fmt: skip
    assert not ledger.state.indexes.evictions


def test_a_renewal_without_a_word_in_the_log() -> None:
    """What needs no event is considered as it is answered."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    request = inputs.RenewRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=lease, ttl_ms=0
    )
    told, broken = considered(ledger.state, A, request, ledger.now_ns)
    assert (told.outcome, told.lease, broken) == ("renewed", lease, [])
