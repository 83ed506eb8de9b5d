"""Handing over and taking back, in the log: what frees a device of a managed host, and what keeps it."""

import msgspec
import pytest

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.hostdev_events import PrepareFailed
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey, Principal
from leasehold.events.inputs import GivenBack, NotPrepared, Prepared, Stuck
from leasehold.events.refusals import RefusalCode
from leasehold.projections.bindings import binding_view, hold_of, holds_of
from leasehold.projections.views import device_view, device_word, host_view, lease_view
from tests.projections.domains import OTHER, UUID, Polled, key, unused, used
from tests.projections.ledger import H1, H2, A, B, Ledger, device, ledger_with_hosts, refusal_of

NIC, MATE = DeviceKey("pci/0000:01:00.0"), DeviceKey("pci/0000:0a:00.0")
CARD, SPARE = device("01:00.0"), device("0a:00.0")


def managed() -> Ledger:
    """Both hosts, the first one with a binder."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    return ledger


def kinds(ledger: Ledger) -> list[str]:
    """The events of the last record, but for what each report begins with."""
    names = [type(event).__name__ for event in ledger.events]
    return [name for name in names if name != "ObservationsAccepted"]


def revoke(ledger: Ledger, lease: int, *, force: bool = False, principal: Principal = B) -> Answer:
    """An operator takes a lease away."""
    return ledger.ask(
        inputs.RevokeRequest(
            request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, reason="needed", force=force
        ),
        principal,
    )


def declare_dead(ledger: Ledger, host: str = H1) -> Answer:
    """An operator says that a host is off."""
    request_id = ledger.new_id()
    return ledger.ask(
        inputs.DeclareDeadRequest(request_id=request_id, issued_at_ns=ledger.now_ns, host=host, reason="it burnt"), B
    )


def silence(ledger: Ledger, *agents: str, run: int = 1) -> None:
    """Agents of the first host are not heard any more."""
    for agent in agents:
        ledger.note(inputs.HostHeard(H1, agent, run, alive=False))


# --- from grant to free -------------------------------------------------------------------------------------------


def test_a_device_is_handed_over_and_taken_back() -> None:
    """Each step is shown, of the device and of the lease; behind the end only the binder's word frees it, at once."""
    ledger = managed()
    answer = ledger.lease("01:00.0")
    lease = answer.lease
    assert answer.prepared == "preparing"
    assert _binding(ledger) == "preparing"
    ledger.bind(Prepared(NIC, lease, "vfio-pci", "igb", "flr"))
    assert kinds(ledger) == ["DevicePrepared"]
    view = device_view(ledger.state, CARD).binding
    assert view is not None
    assert (view.state, view.driver, view.was_driver, view.reset) == ("prepared", "vfio-pci", "igb", "flr")
    assert lease_view(ledger.state, lease, asker=A).prepared == "prepared"
    assert ledger.release(lease).prepared == "taking_back"
    ledger.tick(3_600)
    assert not ledger.events
    assert _binding(ledger) == "giving_back"
    ledger.bind(GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]
    assert _binding(ledger) == ""
    assert device_word(ledger.state, CARD) == ("free", "")
    assert lease_view(ledger.state, lease, asker=A).prepared == ""


def _binding(ledger: Ledger, text: str = "01:00.0") -> str:
    view = device_view(ledger.state, device(text)).binding
    return view.state if view is not None else ""


def test_a_lease_is_prepared_when_all_its_devices_are() -> None:
    """As long as one is missing, it is being prepared."""
    ledger = managed()
    lease = ledger.granted("01:00.0", "0a:00.0")
    ledger.bind(Prepared(NIC, lease))
    assert lease_view(ledger.state, lease, asker=A).prepared == "preparing"
    ledger.bind(Prepared(MATE, lease))
    assert lease_view(ledger.state, lease, asker=A).prepared == "prepared"


def test_what_is_known_already_is_not_told_again() -> None:
    """A binder that says a thing twice, in one message or in two, makes one event of it."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    said = Prepared(NIC, lease, "vfio-pci", "igb", "flr")
    ledger.bind(said, said)
    assert kinds(ledger) == ["DevicePrepared"]
    ledger.bind(said)
    assert not kinds(ledger)
    ledger.bind(msgspec.structs.replace(said, reset="pm"))
    assert kinds(ledger) == ["DevicePrepared"]
    ledger.release(lease)
    stuck = Stuck(NIC, lease, "igb does not bind", "reboot")
    ledger.bind(stuck, stuck)
    assert kinds(ledger) == ["DeviceQuarantined"]
    ledger.bind(stuck)
    assert not kinds(ledger)
    ledger.bind(GivenBack(NIC, lease, "igb"), GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]


def test_a_domain_that_still_has_it_keeps_it() -> None:
    """The binder's word alone frees nothing that a hypervisor says is attached; its letting go does, then."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    ledger.start_binder(H1)
    lease = ledger.granted("01:00.0")
    poller.see()
    poller.say(used(NIC))
    ledger.release(lease)
    ledger.bind(GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack"]
    ledger.tick(60)
    assert ledger.state.devices[CARD].ending
    poller.say(unused(NIC))
    assert kinds(ledger) == ["AttachmentGone", "DeviceFreed"]


def test_what_cannot_be_prepared_ends_the_lease() -> None:
    """One device fails: none is handed over, all wait for the binder, and holder and operator read why."""
    ledger = managed()
    lease = ledger.granted("01:00.0", "0a:00.0")
    ledger.bind(Prepared(NIC, lease))
    ledger.bind(NotPrepared(MATE, lease, "its group has a bridge on it"))
    assert kinds(ledger) == ["PrepareFailed"]
    view = lease_view(ledger.state, lease, asker=A)
    assert (view.state, view.ended, view.prepared) == ("ending", "failed", "taking_back")
    assert view.reason == "h1/pci/0000:0a:00.0: its group has a bridge on it"
    assert refusal_of(ledger.renew(lease)).code == RefusalCode.LEASE_ENDED
    assert refusal_of(ledger.lease("0a:00.0", principal=B)).code == RefusalCode.DEVICE_HELD
    ledger.bind(GivenBack(NIC, lease), GivenBack(MATE, lease))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceGivenBack", "DeviceFreed", "DeviceFreed"]


def test_failing_and_being_back_may_come_together() -> None:
    """A binder that has rolled back says all in one message, each word on what those before it came to."""
    ledger = managed()
    lease = ledger.granted("01:00.0", "0a:00.0")
    failed = NotPrepared(MATE, lease, "no")
    ledger.bind(failed, failed, GivenBack(NIC, lease), GivenBack(MATE, lease), Prepared(NIC, lease))
    assert kinds(ledger) == ["PrepareFailed", "DeviceGivenBack", "DeviceGivenBack", "DeviceFreed", "DeviceFreed"]


def test_the_answer_says_why_it_failed() -> None:
    """Who asks his request again reads how it ended."""
    ledger = managed()
    request = ledger.request(CARD)
    lease = ledger.ask(request).lease
    ledger.bind(NotPrepared(NIC, lease, "no IOMMU"))
    answer = ledger.ask(request)
    assert (answer.outcome, answer.ended, answer.message) == ("granted", "failed", "h1/pci/0000:01:00.0: no IOMMU")


def test_lease_over_two_kinds_of_hosts() -> None:
    """Each host by its own rule: the watched one frees by what is seen, the managed one by its binder's word; and the
    failing on one ends the lease on both.
    """
    ledger = managed()
    far = device("0b:00.0", H2)
    request = ledger.request(CARD, far)
    lease = ledger.ask(request).lease
    assert lease_view(ledger.state, lease, asker=A).prepared == "preparing"
    assert device_view(ledger.state, far).binding is None
    ledger.bind(NotPrepared(NIC, lease, "no"))
    assert kinds(ledger) == ["PrepareFailed", "DeviceFreed"]
    assert not ledger.state.devices[far].lease
    assert ledger.state.devices[CARD].ending
    ledger.bind(GivenBack(NIC, lease))
    assert not ledger.state.devices[CARD].lease


# --- binders that come and go -------------------------------------------------------------------------------------


def test_a_binder_may_come_later() -> None:
    """Leases live on when their host becomes managed; from then on what ends waits for the binder's word."""
    ledger = ledger_with_hosts()
    lease, ended = ledger.granted("01:00.0"), ledger.granted("0a:00.0")
    ledger.change("0a:00.0", in_use_by=("domain web",))
    ledger.release(ended)
    ledger.start_binder(H1)
    assert _binding(ledger) == ""
    assert _binding(ledger, "0a:00.0") == "giving_back"
    ledger.change("0a:00.0", in_use_by=())
    ledger.release(lease)
    ledger.tick(3_600)
    assert not ledger.events
    ledger.bind(GivenBack(NIC, lease), GivenBack(MATE, ended))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceGivenBack", "DeviceFreed", "DeviceFreed"]


def test_a_silent_binder_stops_grants() -> None:
    """Nothing of its host is granted, and what it has given back before is free all the same."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    silence(ledger, inputs.BINDER)
    assert refusal_of(ledger.lease("0a:00.0")).code == RefusalCode.HOST_STALE
    ledger.release(lease)
    assert ledger.state.devices[CARD].ending
    ledger.bind(GivenBack(NIC, lease))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]


def test_a_binder_alone_shows_no_devices() -> None:
    """It acts on a host, and does not tell what is there: without a watcher nothing is granted."""
    ledger = managed()
    silence(ledger, "watcher")
    retire(ledger, "watcher")
    assert host_view(ledger.state, H1).stale == "no agent tells of its devices"


def retire(ledger: Ledger, agent: str) -> Answer:
    """An operator says that an agent will not come back."""
    request_id = ledger.new_id()
    return ledger.ask(
        inputs.RetireAgentRequest(
            request_id=request_id, issued_at_ns=ledger.now_ns, host=H1, agent=agent, reason="moved"
        ),
        B,
    )


def test_a_retired_binder_leaves_a_watched_host() -> None:
    """By the operator's word nobody hands over there any more: what nobody is seen to use is free, as on any host that
    is only watched; what is in quarantine is not, before he says so of it.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0", "0a:00.0")
    ledger.bind(Prepared(NIC, lease), Prepared(MATE, lease))
    ledger.release(lease)
    ledger.bind(Stuck(MATE, lease, "it hangs", "reboot"))
    assert refusal_of(retire(ledger, inputs.BINDER)).code == RefusalCode.AGENT_ALIVE
    silence(ledger, inputs.BINDER)
    assert retire(ledger, inputs.BINDER).outcome == "retired"
    assert (host_view(ledger.state, H1).mode, host_view(ledger.state, H1).stale) == ("watched", "")
    assert kinds(ledger) == ["AgentRetired", "DeviceFreed"]
    assert not ledger.state.devices[CARD].lease
    ledger.tick(3_600)
    assert device_word(ledger.state, SPARE)[0] == "quarantined"
    assert ledger.confirm_free(SPARE).outcome == "freed"
    assert device_word(ledger.state, SPARE) == ("free", "")
    ledger.start_binder(H1, run=2)
    assert host_view(ledger.state, H1).mode == "managed"


# --- quarantine ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_given_back_is_kept_apart() -> None:
    """It shows why, and what to do; time does not end it, and the binder does when it has brought it back after all."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    ledger.bind(Stuck(NIC, lease, "igb does not bind", "load igb, then reattach it"))
    assert device_word(ledger.state, CARD) == ("quarantined", "igb does not bind; load igb, then reattach it")
    view = device_view(ledger.state, CARD).binding
    assert view is not None
    assert (view.state, view.reason, view.help) == ("quarantined", "igb does not bind", "load igb, then reattach it")
    ledger.tick(3_600)
    assert not ledger.events
    ledger.bind(GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]
    assert device_word(ledger.state, CARD) == ("free", "")


@pytest.mark.parametrize("holds", [True, False], ids=["of an ended lease", "of nobody's lease"])
def test_an_operator_ends_a_quarantine(holds: bool) -> None:
    """By name, for a device of an ended lease and for one that nobody holds; each lets it be granted again."""
    ledger = managed()
    lease = 0
    if holds:
        lease = ledger.granted("01:00.0")
        ledger.release(lease)
    ledger.bind(Stuck(NIC, lease, "left over", "look"))
    assert refusal_of(ledger.lease("01:00.0", principal=B)).code in (
        RefusalCode.DEVICE_HELD, RefusalCode.DEVICE_QUARANTINED,
    )  # fmt: skip
    answer = ledger.confirm_free(CARD)
    assert (answer.outcome, answer.lease, answer.devices) == ("freed", lease, (CARD,))
    assert ledger.state.devices[CARD].quarantine is None
    assert ledger.granted("01:00.0", principal=B)


def test_a_quarantine_outlives_what_it_came_from() -> None:
    """Freed by an operator's word about the host, the device is still kept apart until its binder has it in order."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    ledger.bind(Stuck(NIC, lease, "it hangs", "reboot"))
    silence(ledger, "watcher", inputs.BINDER)
    declare_dead(ledger)
    ledger.tick()
    assert not ledger.state.devices[CARD].lease
    assert device_word(ledger.state, CARD)[0] == "quarantined"
    ledger.start_host(H1, run=3)
    ledger.start_binder(H1, GivenBack(NIC, lease, "igb"), run=3)
    assert device_word(ledger.state, CARD) == ("free", "")


def test_a_living_lease_of_what_is_kept_apart() -> None:
    """It lives; its device stays apart when it ends, until the binder has given it back."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.bind(Stuck(NIC, lease, "it hangs", "reboot"), GivenBack(NIC, lease))
    assert kinds(ledger) == ["DeviceQuarantined"]
    assert device_word(ledger.state, CARD)[0] == "leased"
    assert refusal_of(ledger.confirm_free(CARD)).code == RefusalCode.NOTHING_TO_CONFIRM
    ledger.release(lease)
    assert device_word(ledger.state, CARD)[0] == "quarantined"
    ledger.bind(GivenBack(NIC, lease))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]


def test_stuck_behind_its_being_given_back() -> None:
    """A device that was given back, and that its domain has not let go of yet, may get stuck after all: it stays."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    ledger.start_binder(H1)
    lease = ledger.granted("01:00.0")
    poller.see()
    poller.say(used(NIC))
    ledger.release(lease)
    ledger.bind(GivenBack(NIC, lease, "igb"))
    ledger.bind(Stuck(NIC, lease, "the domain has it again", "stop it"))
    poller.say(unused(NIC))
    ledger.tick(60)
    assert ledger.state.devices[CARD].ending
    ledger.bind(GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]


def test_of_a_lease_that_is_held_a_binder_speaks_by_name() -> None:
    """That a device of some lease or other is back says nothing of the one that is stuck now; of a lease that the log
    does not have, it is kept apart all the same, and comes back under the same name.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    ledger.bind(Stuck(NIC, lease, "it hangs", "reboot"))
    ledger.bind(GivenBack(NIC, 0), GivenBack(NIC, 4_711))
    assert not kinds(ledger)
    ledger.bind(Stuck(MATE, 4_711, "left over", "look"))
    assert kinds(ledger) == ["DeviceQuarantined"]
    quarantine = ledger.state.devices[SPARE].quarantine
    assert quarantine is not None
    assert quarantine.lease == 0
    ledger.bind(GivenBack(MATE, 4_711))
    assert device_word(ledger.state, SPARE) == ("free", "")


def test_what_was_replaced_is_not_to_be_acted_on() -> None:
    """Another thing sits where the leased one was: the binder reads that the lease's token is below the floor."""
    ledger = managed()
    ledger.granted("01:00.0")
    ledger.change("01:00.0", product_id="1572")
    hold = hold_of(ledger.state, CARD)
    assert hold is not None
    assert hold.token < hold.floor


# --- what a binder is told ----------------------------------------------------------------------------------------


def test_holds_say_all_that_a_binder_needs() -> None:
    """Of what is leased, what is being given back, what is kept apart, and of floors behind that; not of the rest."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    ledger.start_binder(H1)
    lease = ledger.granted("01:00.0", "0a:00.0", domain=UUID, keep=True, driver="pciback")
    poller.see()
    poller.say(used(NIC))
    ledger.bind(Prepared(NIC, lease, "pciback", "igb"))
    told = {hold.key: hold for hold in holds_of(ledger.state, H1)}
    assert set(told) == {NIC, MATE}
    assert told[NIC] == Hold(
        key=NIC, floor=lease, lease=lease, token=lease, granted_at_ns=ledger.state.leases[lease].granted_at_ns,
        holder="vm", domain=UUID, keep=True, handover=ledger.state.leases[lease].handover, prepared=True, mates=(MATE,),
        attached=(key(),),
    )  # fmt: skip
    assert not told[MATE].prepared
    ledger.release(lease)
    ledger.bind(GivenBack(MATE, lease), Stuck(NIC, lease, "x", "y"))
    told = {hold.key: hold for hold in holds_of(ledger.state, H1)}
    assert (told[MATE].lease, told[MATE].floor > lease) == (0, True)
    assert (told[NIC].lease, told[NIC].token, told[NIC].quarantined) == (lease, 0, True)


# --- hooks --------------------------------------------------------------------------------------------------------


def test_a_hook_lets_a_lease_go() -> None:
    """The domain has stopped and the host's policy is to give back: its lease ends at once, as one whose domain has
    gone; words about leases that are not for a domain, or only by name, or not of this host alone, change nothing.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0", domain=UUID)
    named = ledger.granted("0a:00.0", domain=UUID, keep=True)
    other = ledger.ask(ledger.request(device("03:10.0"), device("0b:00.0", H2), domain=OTHER)).lease
    plain = ledger.granted("03:10.1")
    ledger.bind(*(inputs.LetGo(each) for each in (named, other, plain, 4_711, lease, lease)))
    assert kinds(ledger) == ["LeaseOutlived"]
    assert ledger.state.leases[lease].ended == "outlived"


def test_others_than_the_binder_cannot_speak_for_it() -> None:
    """Its words out of another agent's mouth, or on a host that nobody manages, change nothing."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    told = inputs.Observed(host=H1, agent="watcher", run=1, counter=ledger.counters[H1] + 1, observations=(
        Prepared(NIC, lease), NotPrepared(NIC, lease, "x"), Stuck(NIC, lease, "x", "y"), inputs.LetGo(lease),
    ))  # fmt: skip
    ledger.observe_message(told)
    assert not kinds(ledger)


def test_a_failed_lease_cannot_fail_by_another_hosts_binder() -> None:
    """A binder speaks of the devices of its own host."""
    ledger = managed()
    ledger.start_binder(H2)
    lease = ledger.granted("01:00.0")
    ledger.bind(NotPrepared(NIC, lease, "x"), NotPrepared(DeviceKey("pci/0000:0b:00.0"), lease, "x"), host=H2)
    assert not kinds(ledger)
    ledger.bind(NotPrepared(NIC, lease, "x"))
    (failed,) = (event for event in ledger.events if isinstance(event, PrepareFailed))
    assert failed.lease == lease




def test_a_lease_of_before_a_binder_is_not_said_to_be_prepared() -> None:
    """Its holder has the device, and nobody hands it over any more; behind its end the binder is to give it back."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.start_binder(H1)
    row = ledger.state.devices[CARD]
    assert binding_view(ledger.state, row) is None
    assert lease_view(ledger.state, lease, asker=A).prepared == ""
    ledger.release(lease)
    view = binding_view(ledger.state, ledger.state.devices[CARD])
    assert view is not None
    assert view.state == "giving_back"
    assert lease_view(ledger.state, lease, asker=A).prepared == "taking_back"
    later = ledger.granted("0a:00.0")
    assert lease_view(ledger.state, later, asker=A).prepared == "preparing"
