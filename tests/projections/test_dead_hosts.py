"""What operators say of leases and hosts: revoked, declared dead; and what lets a host be granted from again."""

from leasehold.events import inputs
from leasehold.events.hostdev_events import LeaseRevoked
from leasehold.events.identities import split_device_id
from leasehold.events.inputs import GivenBack, Prepared, Stuck
from leasehold.events.refusals import RefusalCode
from leasehold.projections.bindings import hold_of, holds_of
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.views import host_view, lease_view
from tests.projections.domains import UUID, Polled, used
from tests.projections.ledger import H1, A, B, device, ledger_with_hosts, refusal_of
from tests.projections.test_hostdevs import (
    CARD,
    MATE,
    NIC,
    declare_dead,
    kinds,
    managed,
    retire,
    revoke,
    silence,
)

# --- leases -------------------------------------------------------------------------------------------------------


def test_a_lease_is_revoked() -> None:
    """It ends at once, whoever holds it; its devices wait for the binder; its holder reads who did that, and why."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    answer = revoke(ledger, lease)
    assert (answer.outcome, answer.ended, answer.state) == ("revoked", "revoked", "ending")
    (event,) = ledger.events
    assert isinstance(event, LeaseRevoked)
    assert lease_view(ledger.state, lease, asker=A).reason == "b: needed"
    assert refusal_of(ledger.release(lease)).code == RefusalCode.LEASE_ENDED
    hold = hold_of(ledger.state, CARD)
    assert hold is not None
    assert (hold.token, hold.revoked, hold.given_back) == (0, False, False)


def test_revoking_by_force_is_told_to_the_binder() -> None:
    """It takes the device even from a domain."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    revoke(ledger, lease, force=True)
    hold = hold_of(ledger.state, CARD)
    assert hold is not None
    assert hold.revoked


def test_what_cannot_be_revoked() -> None:
    """A lease that is not known, and one that has ended."""
    ledger = managed()
    assert refusal_of(revoke(ledger, 4_711)).code == RefusalCode.LEASE_UNKNOWN
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    assert refusal_of(revoke(ledger, lease)).code == RefusalCode.LEASE_ENDED


def test_what_is_kept_behind_the_end_is_taken_by_force() -> None:
    """A lease that has ended, and whose devices are not free yet, is revoked by force, once: how it ended stays, and of
    what is another's by now nothing changes.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0", "0a:00.0")
    ledger.release(lease)
    ledger.bind(GivenBack(split_device_id(device("0a:00.0"))[1], lease, "igb"))
    ledger.tick()
    other = ledger.granted("0a:00.0", principal=B)
    assert refusal_of(revoke(ledger, lease)).code == RefusalCode.LEASE_ENDED
    answer = revoke(ledger, lease, force=True)
    assert (answer.outcome, answer.ended, answer.state) == ("revoked", "released", "ending")
    assert kinds(ledger) == ["LeaseRevoked"]
    forced, free = hold_of(ledger.state, CARD), hold_of(ledger.state, device("0a:00.0"))
    assert forced is not None and free is not None
    assert (forced.token, forced.revoked, free.lease, free.revoked) == (0, True, other, False)
    refusal = refusal_of(revoke(ledger, lease, force=True))
    assert refusal.code == RefusalCode.LEASE_ENDED
    assert "by force" in refusal.message
    snapshot = decode_state(encode_state(ledger.state))
    assert snapshot is not None
    assert snapshot.leases[lease].is_forced_off
    ledger.bind(GivenBack(NIC, lease, "igb"))
    ledger.tick()
    assert ledger.state.devices[CARD].lease == 0
    assert refusal_of(revoke(ledger, lease, force=True)).code == RefusalCode.LEASE_ENDED


def test_nobody_takes_by_force_where_no_binder_acts() -> None:
    """On a watched host a lease that has ended is not revoked: nothing would come of it."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    lease = ledger.granted("01:00.0", domain=UUID)
    poller.see()
    poller.say(used(NIC))
    ledger.release(lease)
    assert refusal_of(revoke(ledger, lease, force=True)).code == RefusalCode.LEASE_ENDED


def test_revoking_twice_by_one_request() -> None:
    """The same request has one effect, and the same answer."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    request = inputs.RevokeRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, reason="x")
    first = ledger.ask(request, B)
    again = ledger.ask(request, B)
    assert not ledger.events
    assert (first.outcome, first.position) == (again.outcome, again.position)


# --- hosts that are declared dead ---------------------------------------------------------------------------------


def test_a_host_that_is_heard_is_not_dead() -> None:
    """As long as one of its agents is; nor one that is not known."""
    ledger = managed()
    assert refusal_of(declare_dead(ledger)).code == RefusalCode.HOST_ALIVE
    silence(ledger, "watcher")
    refusal = refusal_of(declare_dead(ledger))
    assert (refusal.code, refusal.message) == (RefusalCode.HOST_ALIVE, "binder on h1 is heard")
    assert refusal_of(declare_dead(ledger, "h9")).code == RefusalCode.AGENT_UNKNOWN


def test_a_dead_host_frees_what_has_ended_and_is_not_granted_from() -> None:
    """By the operator's word. Leases that live stay; those that end are free at once; nothing is granted."""
    ledger = managed()
    lease, ended = ledger.granted("01:00.0"), ledger.granted("0a:00.0")
    ledger.release(ended)
    silence(ledger, "watcher", inputs.BINDER)
    answer = declare_dead(ledger)
    assert answer.outcome == "declared_dead"
    assert kinds(ledger) == ["HostDeclaredDead", "DeviceFreed"]
    evidence = next(event.evidence for event in ledger.events if hasattr(event, "evidence"))
    assert evidence == "declared dead by b: it burnt"
    assert not ledger.state.leases[lease].ended
    assert host_view(ledger.state, H1).stale.startswith("declared dead by b: it burnt")
    assert refusal_of(ledger.lease("0a:00.0")).code == RefusalCode.HOST_STALE
    revoke(ledger, lease)
    assert kinds(ledger) == ["LeaseRevoked", "DeviceFreed"]
    assert refusal_of(ledger.lease("01:00.0")).code == RefusalCode.HOST_STALE


def test_a_dead_host_comes_back_when_its_binder_has_reconciled() -> None:
    """What is on its way from before counts no more; then the watcher's picture alone does not do; and what the binder
    cannot take back is kept apart before anything is granted.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0")
    silence(ledger, "watcher", inputs.BINDER)
    declare_dead(ledger)
    revoke(ledger, lease)
    ledger.observe(inputs.PictureComplete(since=ledger.counters[H1] + 1))
    ledger.bind(GivenBack(MATE, lease), inputs.PictureComplete(since=2))
    assert not ledger.events
    ledger.start_host(H1, run=3)
    assert host_view(ledger.state, H1).stale.startswith("declared dead")
    ledger.start_binder(H1, Stuck(NIC, lease, "domain web has it", "stop it"), run=3)
    assert kinds(ledger) == ["DeviceQuarantined", "PictureCompleted"]
    assert host_view(ledger.state, H1).stale == ""
    assert refusal_of(ledger.lease("01:00.0")).code == RefusalCode.DEVICE_QUARANTINED
    assert ledger.granted("0a:00.0")


def test_a_dead_host_that_is_only_watched() -> None:
    """There the watcher's new picture does it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    silence(ledger, "watcher")
    ledger.change("01:00.0", in_use_by=("domain web",))
    declare_dead(ledger)
    ledger.release(lease)
    assert kinds(ledger) == ["LeaseReleased", "DeviceFreed"]
    ledger.start_host(H1, run=2)
    assert host_view(ledger.state, H1).stale == ""


def test_a_dead_host_whose_binder_is_retired() -> None:
    """Who tells of its devices decides, then: also if he has reported already."""
    ledger = managed()
    silence(ledger, "watcher", inputs.BINDER)
    declare_dead(ledger)
    ledger.start_host(H1, run=3)
    assert host_view(ledger.state, H1).stale.startswith("declared dead")
    retire(ledger, inputs.BINDER)
    assert (host_view(ledger.state, H1).mode, host_view(ledger.state, H1).stale) == ("watched", "")


def test_the_log_is_the_same_from_a_snapshot() -> None:
    """What is handed over, kept apart, revoked and dead stands in a snapshot as it was."""
    ledger = managed()
    lease = ledger.granted("01:00.0", driver="vfio-pci")
    ledger.bind(Prepared(NIC, lease, "vfio-pci", "igb", "flr"), Stuck(MATE, 0, "left over", "look"))
    revoke(ledger, lease, force=True)
    silence(ledger, "watcher", inputs.BINDER)
    declare_dead(ledger)
    body = encode_state(ledger.state)
    again = decode_state(body)
    assert again is not None
    assert encode_state(again) == body
    assert sorted(again.indexes.freeable) == sorted(ledger.state.indexes.freeable)
    assert holds_of(again, H1) == holds_of(ledger.state, H1)
