"""Leases that share a device, or only look on: what they hold, and how they end."""

import pytest

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import Principal
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import RefusalCode
from leasehold.events.views import LeaseView
from leasehold.projections import bindings
from leasehold.projections.views import lease_view
from tests.projections.ledger import H1, H2, SECOND, A, B, Ledger, device, ledger_with_hosts, refusal_of
from tests.projections.test_restore import decided_by, restored
from tests.scheduling import words
from tests.scheduling.keeping import acts, reserve, same_from_snapshot

CARD = device("01:00.0")


@pytest.fixture
def ledger() -> Ledger:
    """A card that three may share."""
    ledger = ledger_with_hosts()
    words.policy(ledger, CARD, share_max=3)
    return ledger


def sharers(ledger: Ledger) -> tuple[int, ...]:
    """Who shares the card."""
    return ledger.state.devices[CARD].sharers


def test_a_shared_device_is_nobodys_alone(ledger: Ledger) -> None:
    """Each who shares it stands in its row, none holds it, none is told to its binder, and no token opens it."""
    one = ledger.granted("01:00.0", mode="shared")
    two = ledger.granted("01:00.0", mode="shared", principal=B)
    row = ledger.state.devices[CARD]
    assert (row.sharers, row.lease, row.ending, row.floor) == ((one, two), 0, False, 0)
    assert [acts(ledger, "01:00.0", token) for token in (one, two)] == [False, False]
    assert bindings.holds_of(ledger.state, H1) == []
    assert same_from_snapshot(ledger)


@pytest.mark.parametrize("mode", ["shared", "admin"])
@pytest.mark.parametrize("how", ["released", "expired", "revoked"])
def test_it_ends_at_once(ledger: Ledger, mode: str, how: str) -> None:
    """However it ends, nothing has to be freed: the lease is over with its one event, also while the device is used."""
    other = ledger.granted("01:00.0", mode="shared", principal=B, ttl_ms=3_600_000)
    lease = ledger.granted("01:00.0", mode=mode)
    ledger.change("01:00.0", in_use_by=("somebody",))
    match how:
        case "released":
            answer = ledger.release(lease)
            assert (answer.outcome, answer.state) == ("released", "ended")
        case "expired":
            ledger.tick(61)
        case _:
            words.say(ledger, inputs.RevokeRequest, lease=lease)
    assert len(ledger.events) == 1
    row = ledger.state.leases[lease]
    assert (row.ended, row.held) == (how, 0)
    assert sharers(ledger) == (other,)
    assert not ledger.state.devices[CARD].ending
    ledger.now_ns += 26 * 3_600 * SECOND
    for _ in range(6):
        ledger.lease("nothing")
    assert lease not in ledger.state.leases, "and it is forgotten as any"


def test_looking_on_beside_the_holder(ledger: Ledger) -> None:
    """Who only looks on neither has the device nor keeps it from anybody, before, beside and behind a holder."""
    before = ledger.granted("01:00.0", mode="admin", principal=B)
    holder = ledger.granted("01:00.0")
    beside = ledger.granted("01:00.0", mode="admin", principal=B)
    assert ledger.state.devices[CARD].lease == holder
    assert acts(ledger, "01:00.0", holder)
    assert not acts(ledger, "01:00.0", beside)
    for lease in (before, beside):
        ledger.release(lease, B)
        assert acts(ledger, "01:00.0", holder)
    assert ledger.release(holder).state == "ended"
    assert ledger.granted("01:00.0", principal=B)


def test_renewed_as_any(ledger: Ledger) -> None:
    """A shared lease lives by its time, and is renewed."""
    lease = ledger.granted("01:00.0", mode="shared")
    ledger.now_ns += 50 * SECOND
    assert ledger.renew(lease).outcome == "renewed"
    ledger.tick(60)
    assert sharers(ledger) == (lease,)
    ledger.tick(31)
    assert sharers(ledger) == ()


def test_quotas_count_who_shares(ledger: Ledger) -> None:
    """A shared device counts for each tenant that shares it, from grant to end; one that is looked at does not."""
    for tenant in ("a", "b"):
        words.say(ledger, schedule_inputs.SetQuotaRequest, tenant=Principal(tenant), devices_max=1)
    one = ledger.granted("01:00.0", mode="shared")
    ledger.granted("01:00.0", mode="shared", principal=B)
    assert ledger.granted("01:00.0", mode="admin")
    used = {tenant: row.devices for (tenant, _), row in ledger.state.quotas.items()}
    assert used == {"a": 1, "b": 1}
    assert refusal_of(ledger.lease("03:00.0")).code is RefusalCode.QUOTA_EXCEEDED
    ledger.release(one)
    assert ledger.state.quotas[A, ""].devices == 0
    assert ledger.granted("03:00.0")


def test_behind_a_restore(ledger: Ledger) -> None:
    """Who shares it still does, by the token of the new era."""
    lease = ledger.granted("01:00.0", mode="shared")
    after = decided_by(restored(ledger, len(ledger.bodies)))
    assert sharers(after) == (lease,)
    assert not acts(after, "01:00.0", after.state.leases[lease].token)
    assert after.release(lease).outcome == "released"
    assert sharers(after) == ()


def test_nothing_is_reserved_for_it(ledger: Ledger) -> None:
    """What is shared, or looked at, moves nowhere with a domain."""
    for mode in ("shared", "admin"):
        lease = ledger.granted("01:00.0", mode=mode)
        assert refusal_of(reserve(ledger, lease, device("03:00.0"))).code is RefusalCode.NOT_TRANSFERABLE


def test_lists_tell_who_does_not_have_it_alone(ledger: Ledger) -> None:
    """In a list of leases one sees who shares, only looks on, or stands in for another: no device has two owners."""

    def view(lease: int) -> LeaseView:
        return lease_view(ledger.state, lease, asker=A)

    alone, shared = ledger.granted("0a:00.0"), ledger.granted("01:00.0", mode="shared")
    watching = ledger.granted("0a:00.0", mode="admin")
    assert [view(lease).mode for lease in (alone, shared, watching)] == ["", "shared", "admin"]
    target = reserve(ledger, alone, device("0b:00.0", H2)).lease
    assert [view(lease).reserved_for for lease in (alone, target)] == ["", lease_id_text(alone)]
