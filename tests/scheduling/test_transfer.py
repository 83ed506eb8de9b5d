"""A lease goes to another holder: the old token acts nowhere from then on, and who had it is not told the new one."""

import random

import msgspec
import pytest

from leasehold.events import limits, schedule_events, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, HostName, Principal, tenant_of
from leasehold.events.inputs import Request
from leasehold.events.position import position_of_token, token_of
from leasehold.events.refusals import RefusalCode
from leasehold.projections.feeding import Feeding
from leasehold.projections.fencing import check_token
from leasehold.projections.replay import Replay
from leasehold.projections.views import lease_view
from tests.projections.ledger import SECOND, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of
from tests.projections.test_restore import decided_by, restored
from tests.scheduling import words
from tests.scheduling.keeping import acts, renew_many, renewal, same_from_snapshot, transfer, transfer_of

_replace = msgspec.structs.replace
TWO = ("01:00.0", "03:00.0")


def token_now(ledger: Ledger, lease: int) -> int:
    """The token that counts."""
    return ledger.state.leases[lease].token


# --- the fence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["", "b"])
def test_the_old_token_acts_nowhere(to: str) -> None:
    """Behind a transfer, to the same principal or another, the token before opens no device of the lease, renews
    nothing, releases nothing, gives nothing on; the new one does all of that.
    """
    ledger = ledger_with_hosts()
    lease = ledger.granted(*TWO)
    answer = transfer(ledger, lease, "other", to=to)
    assert (answer.outcome, answer.lease, answer.holder) == ("transferred", lease, "other")
    (event,) = ledger.events
    assert isinstance(event, schedule_events.LeaseTransferred)
    token = token_now(ledger, lease)
    assert token > lease
    assert [acts(ledger, text, lease) for text in TWO] == [False, False]
    assert [acts(ledger, text, token) for text in TWO] == [True, True]
    owner = Principal(to) if to else A
    for principal in (A, B):
        for refused in (
            ledger.ask(renewal(ledger, lease, lease), principal),
            renew_many(ledger, (lease, lease), principal=principal),
            ledger.release(lease, principal, token=lease),
            transfer(ledger, lease, "third", principal=principal, token=lease),
        ):
            assert refusal_of(refused).code in (RefusalCode.TOKEN_STALE, RefusalCode.NOT_YOURS)
    row = ledger.state.leases[lease]
    assert (row.principal, row.tenant, row.holder) == (owner, tenant_of(owner), "other")
    assert ledger.renew(lease, owner, ttl_ms=70_000).outcome == "renewed"
    assert ledger.release(lease, owner).outcome == "released"
    assert not acts(ledger, "01:00.0", token)


def test_floors_stand_on_each_device() -> None:
    """Each device's floor is the new token: whatever else goes wrong with the lease's row, older tokens are below."""
    ledger = ledger_with_hosts()
    lease = ledger.granted(*TWO)
    transfer(ledger, lease, "other")
    assert {ledger.state.devices[device(text)].floor for text in TWO} == {token_now(ledger, lease)}
    said = check_token(ledger.state, device("01:00.0"), lease)
    assert said is not None
    assert said.code is RefusalCode.TOKEN_STALE


@pytest.mark.parametrize("records", [0, 1, 2])
def test_behind_a_restore(records: int) -> None:
    """A restored ledger that has the transfer gives its holder the new token in the new era, and the one that lost
    it gives it to who had the lease before; in either all tokens of before are dead, on every device.
    """
    ledger = ledger_with_hosts()
    request = ledger.request(*(device(text) for text in TWO))
    lease = ledger.ask(request).lease
    transfer(ledger, lease, "other", to="b")
    first = token_now(ledger, lease)
    transfer(ledger, lease, "third", principal=B, to="b")
    second = token_now(ledger, lease)
    after = restored(ledger, len(ledger.bodies) - 2 + records)
    token = token_of(1, (lease, first, second)[records])
    assert token_now(after, lease) == token
    for text in TWO:
        assert [acts(after, text, each) for each in (lease, first, second, token)] == [False, False, False, True]
        for each in (lease, first, second):
            assert acts(after, text, token_of(1, each)) is (token_of(1, each) == token), "only the last one counts"
    decided_by(after)
    asked_again = after.ask(request)
    assert (asked_again.outcome, asked_again.token) == ("granted", token if records == 0 else 0)
    holder = ("vm", "other", "third")[records]
    assert asked_again.holder == holder
    owner = B if records else A
    assert after.renew(lease, owner, ttl_ms=80_000).outcome == "renewed"
    if records:
        refused = refusal_of(after.ask(renewal(after, lease, lease), owner))
        assert holder in refused.message, "it was given away since that token"
    stale = refusal_of(after.ask(renewal(after, lease, position_of_token(token)), owner))
    assert "before the ledger was restored" in stale.message


def test_two_restores() -> None:
    """The token moves from era to era, and stays that of the transfer."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    transfer(ledger, lease, "other")
    position = token_now(ledger, lease)
    once = restored(ledger, len(ledger.bodies))
    twice = restored(once, len(once.bodies))
    assert token_now(twice, lease) == token_of(2, position)
    assert acts(twice, "01:00.0", token_of(2, position))
    assert not acts(twice, "01:00.0", token_of(1, position))


def test_who_had_it_is_not_told_the_new_token() -> None:
    """The grant's request, its renewals and the transfer itself, asked again by who had the lease, tell no token; the
    new holder finds it in the list of his leases, and the asker has it where the lease stays his principal's.
    """
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    lease = ledger.ask(request).lease
    renewed = renewal(ledger, lease, lease, ttl_ms=70_000)
    ledger.ask(renewed)
    within = transfer_of(ledger, lease, "other")
    assert ledger.ask(within).token == token_now(ledger, lease), "the same principal asks for the other holder"
    for each in (request, renewed):
        assert (ledger.ask(each).token, ledger.ask(each).state) == (0, "living")
    away = transfer_of(ledger, lease, "third", principal=B)
    assert ledger.ask(away).token == 0
    old: Request
    for old in (request, renewed, within, away):
        answer = ledger.ask(old)
        assert not ledger.events
        assert (answer.token, answer.holder) == (0, "third")
    assert lease_view(ledger.state, lease, asker=A).token == 0
    assert lease_view(ledger.state, lease, asker=B).token == token_now(ledger, lease)


def test_asked_again_it_is_done_once() -> None:
    """The same transfer asked again, also when the lease has gone on to a third, moves nothing, and is answered so."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    request = transfer_of(ledger, lease, "other")
    first = ledger.ask(request)
    again = ledger.ask(request)
    assert again == _replace(first, as_of=again.as_of)
    assert not ledger.events
    transfer(ledger, lease, "third")
    late = ledger.ask(request)
    assert not ledger.events
    assert (late.outcome, late.position, late.holder, late.token) == ("transferred", first.position, "third", 0)
    assert ledger.state.leases[lease].holder == "third"


def test_a_new_token_for_oneself() -> None:
    """Given to its own holder, a lease gets another token: so a leaked one is shut out."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    answer = transfer(ledger, lease, "vm")
    assert answer.token > lease
    assert not acts(ledger, "01:00.0", lease)
    assert acts(ledger, "01:00.0", answer.token)


def test_a_chain_of_holders() -> None:
    """Of any row of holders, with releases of others and restores between, only the last token opens the device."""
    for seed in range(20):
        rng = random.Random(seed)
        ledger = ledger_with_hosts()
        lease = ledger.granted("01:00.0", ttl_ms=3_600_000)
        tokens, owner = {token_now(ledger, lease)}, A
        for number in range(8):
            if rng.random() < 0.25:
                ledger = decided_by(restored(ledger, len(ledger.bodies)))
                tokens.add(token_now(ledger, lease))
                continue
            to = rng.choice((A, B))
            transfer(ledger, lease, f"vm{number}", principal=owner, to=to)
            owner = to
            tokens.add(token_now(ledger, lease))
        alive = {token for token in tokens if acts(ledger, "01:00.0", token)}
        assert alive == {token_now(ledger, lease)}, f"seed {seed}"
        assert same_from_snapshot(ledger)
        replay = Replay()
        for sequence, body in enumerate(ledger.bodies, 1):
            assert replay.step(sequence, body) is None, f"seed {seed}"


# --- what goes with it --------------------------------------------------------------------------------------------


def test_its_time_goes_on() -> None:
    """A transfer does not prolong a lease: it ends when it would have, unless its new holder renews it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    until_ns = ledger.now_ns + 60 * SECOND
    ledger.now_ns += 50 * SECOND
    transfer(ledger, lease, "other", to="b")
    ledger.now_ns = until_ns
    ledger.tick()
    assert ledger.state.leases[lease].ended == "expired"


def test_what_is_remembered_is_forgotten_in_the_end() -> None:
    """A lease that has gone from one principal to another and has ended leaves nothing behind once its answers are."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.renew(lease, ttl_ms=70_000)
    transfer(ledger, lease, "other", to="b")
    ledger.renew(lease, B, ttl_ms=80_000)
    ledger.release(lease, B)
    assert all(fading.key.startswith(f"{whose}/") for (whose, _), fading in ledger.state.fading.items())
    ledger.now_ns += 26 * 3_600 * SECOND
    for principal in (A, B):
        for _ in range(8):
            ledger.lease("02:00.0", "nothing", principal=principal)
    assert lease not in ledger.state.leases
    assert not any(row.lease == lease for row in ledger.state.answers.values())


def test_each_host_is_told() -> None:
    """The feed tells each host of the lease, so that its binder raises the floors there."""
    ledger = ledger_with_hosts()
    far = device("0b:00.0", HostName("h2"))
    lease = ledger.ask(ledger.request(device("01:00.0"), far)).lease
    transfer(ledger, lease, "other", to="b")
    fold = Feeding()
    told = [message for number, body in enumerate(ledger.bodies, 1) for message in fold.fold(number, body)]
    kind = "lease_transferred"
    assert {message.subject.split(".")[0] for message in told if kind in message.subject} == {"h1", "h2"}
    assert ledger.state.devices[far].floor == token_now(ledger, lease)


def test_the_domain_stays() -> None:
    """A lease for a domain is for it behind the transfer, too."""
    ledger = ledger_with_hosts()
    uuid = "00000000-0000-0000-0000-000000000001"
    lease = ledger.granted("01:00.0", domain=uuid)
    transfer(ledger, lease, "other")
    bond = ledger.state.leases[lease].bond
    assert bond is not None
    assert bond.uuid == uuid
    assert ledger.state.indexes.bonds[uuid] == (lease,)


def test_quotas_follow() -> None:
    """Devices count for the tenant that has them: one with no room gets none, and nothing has moved then."""
    ledger = ledger_with_hosts()

    def quota(tenant: str, most: int) -> Answer:
        return words.say(ledger, schedule_inputs.SetQuotaRequest, tenant=Principal(tenant), devices_max=most)

    assert quota("a", 4).outcome == quota("b", 1).outcome == "set"
    lease = ledger.granted(*TWO)
    assert refusal_of(transfer(ledger, lease, "other", to="b")).code is RefusalCode.QUOTA_EXCEEDED
    assert ledger.state.leases[lease].principal == A
    quota("b", 2)
    transfer(ledger, lease, "other", to="b")
    used = {tenant: row.devices for (tenant, _), row in ledger.state.quotas.items()}
    assert used == {"a": 0, "b": 2}
    ledger.release(lease, B)
    assert {row.devices for row in ledger.state.quotas.values()} == {0}


def test_a_quota_that_comes_later() -> None:
    """A quota that is set behind a transfer counts the devices of who has them now."""
    ledger = ledger_with_hosts()
    lease = ledger.granted(*TWO)
    transfer(ledger, lease, "other", to="b")
    for tenant in ("a", "b"):
        words.say(ledger, schedule_inputs.SetQuotaRequest, tenant=Principal(tenant), devices_max=9)
    assert {tenant: row.devices for (tenant, _), row in ledger.state.quotas.items()} == {"a": 0, "b": 2}
    transfer(ledger, lease, "vm", principal=B, to="a")
    assert {tenant: row.devices for (tenant, _), row in ledger.state.quotas.items()} == {"a": 2, "b": 0}


# --- what is not given on -----------------------------------------------------------------------------------------


def test_not_without_cleaning() -> None:
    """What must be cleaned up between tenants goes to no other tenant, but to another holder of the same."""
    ledger = ledger_with_hosts()
    words.policy(ledger, device("01:00.0"), clean=True)
    lease = ledger.granted("01:00.0")
    refused = refusal_of(transfer(ledger, lease, "other", to="b"))
    assert (refused.code, "cleaned up" in refused.message) == (RefusalCode.NOT_TRANSFERABLE, True)
    assert transfer(ledger, lease, "other").outcome == "transferred"


def test_not_what_is_tied_to_a_lease_that_stays() -> None:
    """Of two leases of one holder in an IOMMU group, neither goes to another: they could not be owned apart."""
    ledger = ledger_with_hosts()
    one, two = ledger.granted("02:00.0"), ledger.granted("02:00.1")
    refused = refusal_of(transfer(ledger, one, "other"))
    assert (refused.code, refused.blockers[0].rule, refused.blockers[0].lease) == (
        RefusalCode.DEVICE_HELD,
        "iommu_group",
        two,
    )
    assert transfer(ledger, one, "vm").outcome == "transferred", "to the same owner they can"
    ledger.release(two)
    assert transfer(ledger, one, "other").outcome == "transferred"


def test_not_over_another_thing() -> None:
    """A lease whose device was replaced is not given on: its token would reach the thing that nobody has leased."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.see(pci("01:00.0", iommu_group=1, product_id="1572"))
    assert refusal_of(transfer(ledger, lease, "other")).code is RefusalCode.NOT_TRANSFERABLE
    assert not acts(ledger, "01:00.0", token_now(ledger, lease))


@pytest.mark.parametrize("mode", ["shared", "admin"])
def test_not_what_is_held_by_nobody_alone(mode: str) -> None:
    """Shared leases, and such as only look on, open nothing, and go to nobody else."""
    ledger = ledger_with_hosts()
    words.policy(ledger, device("01:00.0"), share_max=2)
    lease = ledger.granted("01:00.0", mode=mode)
    assert not acts(ledger, "01:00.0", lease)
    assert refusal_of(transfer(ledger, lease, "other")).code is RefusalCode.NOT_TRANSFERABLE


def test_not_by_who_may_not() -> None:
    """A transfer needs the lease's principal and its token, and a lease that lives."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    assert refusal_of(transfer(ledger, lease, "x", principal=B)).code is RefusalCode.NOT_YOURS
    assert refusal_of(transfer(ledger, lease, "x", token=lease + 1)).code is RefusalCode.TOKEN_STALE
    ledger.release(lease)
    assert refusal_of(transfer(ledger, lease, "x")).code is RefusalCode.LEASE_ENDED
    request = schedule_inputs.TransferRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=7, token=7, holder=Holder("x")
    )
    assert refusal_of(ledger.ask(request)).code is RefusalCode.LEASE_UNKNOWN


def test_the_clock_of_who_had_it_binds_nobody() -> None:
    """Who has it now renews by his own clock, although that of the one before was ahead, and he renewed often."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for number in range(limits.RENEWALS_KEPT_PER_LEASE + 2):
        ahead_ns = ledger.now_ns + 3_000 * SECOND + number
        assert ledger.renew(lease, ttl_ms=60_000 + number, issued_at_ns=ahead_ns).outcome == "renewed"
    assert refusal_of(ledger.renew(lease, ttl_ms=90_000)).code is RefusalCode.REQUEST_TOO_OLD
    assert transfer(ledger, lease, "x", to=B).outcome == "transferred"
    assert ledger.renew(lease, ttl_ms=90_000, principal=B).outcome == "renewed"
