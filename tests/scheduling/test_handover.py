"""A domain moves with its devices in two steps: reserved on the target, counted once the source has let go."""

from typing import Any

import msgspec
import pytest

from leasehold.events import event_types, inputs, schedule_events
from leasehold.events.answers import Answer
from leasehold.events.position import token_of
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Need
from leasehold.projections.fencing import check_token
from leasehold.projections.replay import Replay
from tests.projections.domains import UUID, Polled, described, key, unused, used
from tests.projections.ledger import H2, SECOND, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of
from tests.projections.test_restore import decided_by, restored
from tests.scheduling.keeping import (
    acts,
    renew_many,
    renewal,
    reserve,
    reserve_of,
    same_from_snapshot,
    switch,
    switch_of,
    transfer,
)

_replace = msgspec.structs.replace
HERE = "01:00.0"
"""On h1, where the domain comes from."""
THERE = device("0b:00.0", H2)
"""On h2, where it goes."""


class Move:
    """A domain with a card on one host, and a lease for it."""

    def __init__(self, **fields: Any) -> None:
        self.ledger = ledger_with_hosts()
        self.poller = Polled(self.ledger)
        self.source = self.ledger.granted(HERE, **{"domain": UUID, "gone_ms": 3_600_000, **fields})
        self.poller.say(inputs.DomainSeen(described()), used(f"pci/0000:{HERE}"))
        self.target = 0

    def reserve(self, **fields: Any) -> Answer:
        """The first step."""
        answer = reserve(self.ledger, self.source, THERE, **fields)
        self.target = answer.lease
        return answer

    def let_go(self) -> None:
        """The source's hypervisor has taken the card from the domain."""
        self.poller.say(unused(f"pci/0000:{HERE}"))

    def token(self) -> int:
        """Of the reserved lease."""
        return self.ledger.state.leases[self.target].token


def opens_there(ledger: Ledger, token: int) -> str:
    """Why a token does not open the target's device; empty: it does."""
    refusal = check_token(ledger.state, THERE, token)
    return refusal.code if refusal is not None else ""


# --- the two steps ------------------------------------------------------------------------------------------------


def test_a_domain_moves() -> None:
    """Reserved, the target's device is held and opens nothing; once the source has let go, one request ends the source
    and lets the target count, by a token that nobody knew before.
    """
    move = Move()
    ledger = move.ledger
    answer = move.reserve()
    assert (answer.outcome, answer.reserved_for, answer.devices) == ("granted", move.source, (THERE,))
    reserved_token = answer.token
    assert opens_there(ledger, reserved_token) == RefusalCode.LEASE_RESERVED
    assert refusal_of(ledger.ask(ledger.request(THERE), B)).code is RefusalCode.DEVICE_HELD
    assert acts(ledger, HERE, move.source), "the source goes on as it was"
    refused = refusal_of(switch(ledger, move.target))
    assert refused.code is RefusalCode.SOURCE_STILL_HAS
    assert "domain" in refused.message
    assert ledger.state.leases[move.source].ended == ""
    move.let_go()
    answer = switch(ledger, move.target)
    assert [type(event).__name__ for event in ledger.events] == ["LeaseReleased", "DeviceFreed", "LeaseSwitched"]
    assert (answer.outcome, answer.lease, answer.reserved_for) == ("switched", move.target, 0)
    assert answer.token > reserved_token
    assert opens_there(ledger, answer.token) == ""
    assert opens_there(ledger, reserved_token) == RefusalCode.TOKEN_STALE
    assert not acts(ledger, HERE, move.source)
    assert ledger.state.leases[move.source].ended == "released"
    assert ledger.granted(HERE, principal=B)
    bond = ledger.state.leases[move.target].bond
    assert bond is not None
    assert (bond.uuid, bond.gone_ms) == (UUID, 3_600_000)
    assert same_from_snapshot(ledger)
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None


def test_the_switch_asked_again() -> None:
    """It is done once, and answered alike, however often it comes; the source is not ended again."""
    move = Move()
    move.reserve()
    move.let_go()
    request = switch_of(move.ledger, move.target)
    first = move.ledger.ask(request)
    again = move.ledger.ask(request)
    assert not move.ledger.events
    assert again == _replace(first, as_of=again.as_of)
    refused = refusal_of(switch(move.ledger, move.target))
    assert refused.code is RefusalCode.NOT_RESERVED


def test_the_reservation_asked_again() -> None:
    """It is one reservation; asked again behind the switch, its answer has the token that counts now."""
    move = Move()
    request = reserve_of(move.ledger, move.source, THERE)
    first = move.ledger.ask(request)
    again = move.ledger.ask(request)
    assert not move.ledger.events
    assert again == _replace(first, as_of=again.as_of)
    move.let_go()
    token = switch(move.ledger, first.lease).token
    late = move.ledger.ask(request)
    assert (late.outcome, late.lease, late.token, late.reserved_for) == ("granted", first.lease, token, 0)


def test_a_switch_that_was_refused_can_be_asked_anew() -> None:
    """While the domain still has the device nothing has moved; asked anew later, the switch goes through."""
    move = Move()
    move.reserve()
    before = move.ledger.state.leases[move.source], move.ledger.state.leases[move.target]
    request = switch_of(move.ledger, move.target)
    assert refusal_of(move.ledger.ask(request)).code is RefusalCode.SOURCE_STILL_HAS
    assert (move.ledger.state.leases[move.source], move.ledger.state.leases[move.target]) == before
    move.let_go()
    assert refusal_of(move.ledger.ask(request)).code is RefusalCode.SOURCE_STILL_HAS, "that one was decided"
    assert switch(move.ledger, move.target).outcome == "switched"


# --- what the source's host shows ---------------------------------------------------------------------------------


def test_a_host_that_is_not_up_to_date() -> None:
    """While the source's host may be out of date, nobody can say that the domain has let go."""
    move = Move()
    move.reserve()
    move.let_go()
    move.ledger.observe(inputs.StillHere(), skip=1)
    refused = refusal_of(switch(move.ledger, move.target))
    assert refused.code is RefusalCode.HOST_STALE
    assert "h1" in refused.message


def test_whatever_uses_the_source() -> None:
    """A process that is seen on the source's device is as good as a domain."""
    move = Move()
    move.reserve()
    move.let_go()
    move.ledger.change(HERE, in_use_by=("vfio: qemu (pid 7)",))
    assert "qemu" in refusal_of(switch(move.ledger, move.target)).message
    move.ledger.change(HERE, in_use_by=())
    assert switch(move.ledger, move.target).outcome == "switched"


def test_a_source_that_has_ended() -> None:
    """If the source has ended otherwise, the switch goes through; but not while a domain still has a device of it."""
    move = Move()
    move.reserve()
    move.ledger.release(move.source)
    assert refusal_of(switch(move.ledger, move.target)).code is RefusalCode.SOURCE_STILL_HAS
    move.let_go()
    assert switch(move.ledger, move.target).outcome == "switched"
    assert [type(event).__name__ for event in move.ledger.events if "Lease" in type(event).__name__] == [
        "LeaseSwitched"
    ]


def test_a_source_that_is_forgotten() -> None:
    """A source that the ledger does not know any more stands in nobody's way."""
    move = Move()
    move.reserve(ttl_ms=7 * 24 * 3_600_000)
    move.let_go()
    move.ledger.release(move.source)
    move.ledger.now_ns += 26 * 3_600 * SECOND
    for _ in range(6):
        move.ledger.lease("nothing")
    assert move.source not in move.ledger.state.leases
    assert switch(move.ledger, move.target).outcome == "switched"


def test_the_reserved_device_was_replaced() -> None:
    """The new token would open what nobody has reserved: so the switch is refused, and the source goes on."""
    move = Move()
    move.reserve()
    move.let_go()
    move.ledger.see(pci("0b:00.0", iommu_group=2, product_id="1572"), host=H2)
    assert refusal_of(switch(move.ledger, move.target)).code is RefusalCode.DEVICE_MISSING
    assert acts(move.ledger, HERE, move.source)


# --- while it is reserved -----------------------------------------------------------------------------------------


def test_it_is_kept_and_given_back_as_any_lease() -> None:
    """A reservation is renewed, expires, and is released by its token; then another one can be made."""
    move = Move()
    ledger = move.ledger
    move.reserve(ttl_ms=10_000)
    ledger.now_ns += 8 * SECOND
    assert renew_many(ledger, (move.target, move.token())).leases == (move.target,)
    assert ledger.release(move.target).outcome == "released"
    move.reserve(ttl_ms=10_000)
    ledger.tick(11)
    assert ledger.state.leases[move.target].ended == "expired"
    assert refusal_of(switch(ledger, move.target)).code is RefusalCode.LEASE_ENDED
    assert move.reserve().outcome == "granted"
    assert acts(ledger, HERE, move.source)


def test_one_at_a_time() -> None:
    """Of one source one reservation lives at a time; and neither it nor its source goes to another holder meanwhile."""
    move = Move()
    move.reserve()
    other = device("01:00.0", H2)
    assert refusal_of(reserve(move.ledger, move.source, other)).code is RefusalCode.NOT_TRANSFERABLE
    for lease in (move.source, move.target):
        assert refusal_of(transfer(move.ledger, lease, "other")).code is RefusalCode.NOT_TRANSFERABLE
    assert refusal_of(reserve(move.ledger, move.target, other)).code is RefusalCode.NOT_TRANSFERABLE
    move.let_go()
    switch(move.ledger, move.target)
    assert transfer(move.ledger, move.target, "other").outcome == "transferred"


def test_a_move_that_fails() -> None:
    """The domain comes up on the target for a moment and vanishes: the reservation does not end with it."""
    move = Move()
    move.reserve()
    there = Polled(move.ledger, host=H2)
    there.say(inputs.DomainSeen(described()))
    there.say(inputs.DomainGone(key()))
    move.ledger.tick(1)
    row = move.ledger.state.leases[move.target]
    assert (row.ended, row.domain_seen) == ("", False)
    move.let_go()
    there.say(inputs.DomainSeen(described()))
    switch(move.ledger, move.target)
    assert move.ledger.state.leases[move.target].domain_seen, "from the switch on it ends with its domain"


def test_by_need() -> None:
    """What is reserved may be said by need, as of any request."""
    move = Move()
    need = Need(select='device.host == "h2" && device.key == "pci/0000:0b:00.0"')
    answer = reserve(move.ledger, move.source, needs=(need,))
    assert (answer.outcome, answer.devices, answer.reserved_for) == ("granted", (THERE,), move.source)


def test_who_may_not() -> None:
    """Reserving and switching need the lease's principal and its token."""
    move = Move()
    assert refusal_of(reserve(move.ledger, move.source, THERE, principal=B)).code is RefusalCode.NOT_YOURS
    assert refusal_of(move.reserve(token=move.source + 1)).code is RefusalCode.TOKEN_STALE
    move.reserve()
    move.let_go()
    assert refusal_of(switch(move.ledger, move.target, principal=B)).code is RefusalCode.NOT_YOURS
    assert refusal_of(switch(move.ledger, move.target, token=move.target + 1)).code is RefusalCode.TOKEN_STALE


# --- behind a restore ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_switch", [False, True])
def test_behind_a_restore(has_switch: bool) -> None:
    """A restored ledger with the switch has the target by the switch's token in the new era; one that lost it has it
    reserved, and the source as it was; in both every older token opens nothing.
    """
    move = Move()
    reserved_token = move.reserve().token
    move.let_go()
    records = len(move.ledger.bodies)
    switched = switch(move.ledger, move.target).token
    after = restored(move.ledger, records + has_switch)
    for token in (reserved_token, switched, move.source, token_of(1, reserved_token)):
        assert opens_there(after, token) != ""
    if has_switch:
        assert opens_there(after, token_of(1, switched)) == ""
        assert after.state.leases[move.source].ended == "released"
    else:
        assert opens_there(after, token_of(1, switched)) == RefusalCode.TOKEN_STALE
        assert opens_there(after, token_of(1, reserved_token)) == RefusalCode.LEASE_RESERVED
        assert acts(after, HERE, token_of(1, move.source))
        decided_by(after)
        assert refusal_of(after.ask(renewal(after, move.target, reserved_token), A)).code is RefusalCode.TOKEN_STALE


def test_events_say_what_they_are_of() -> None:
    """The switch names both leases, and its answer stands under the request that made all of its events."""
    move = Move()
    move.reserve()
    move.let_go()
    request = switch_of(move.ledger, move.target)
    move.ledger.ask(request)
    released, _, switched = move.ledger.events
    assert isinstance(released, event_types.LeaseReleased)
    assert isinstance(switched, schedule_events.LeaseSwitched)
    assert (switched.lease, switched.source, released.lease) == (move.target, move.source, move.source)
    assert released.request == switched.request
    assert move.ledger.state.devices[device(HERE)].lease == 0
