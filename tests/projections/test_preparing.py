"""Prepare and reattach: leases of all that a domain's configuration claims, and their ends."""

from typing import Any

import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.event_types import LeaseGranted, LeaseReleased
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import Holder
from leasehold.events.refusals import RefusalCode
from leasehold.projections.replay import Replay
from tests.projections.domains import MDEV_UUID, OTHER, UUID, Polled, described, domain, polled_ledger, unused, used
from tests.projections.ledger import H1, H2, A, B, Ledger, device, pci, refusal_of
from tests.projections.test_hostdevs import kinds

CARD = "pci/0000:01:00.0"
STICK, TWIN = device("2-3"), device("2-4")


def prepare(ledger: Ledger, domain_text: str = UUID, principal: Any = A, **fields: Any) -> Answer:
    """Have all devices of a domain leased."""
    said: dict[str, Any] = {"holder": Holder("vm"), "ttl_ms": 60_000, "domain": domain_text, **fields}
    request = inputs.PrepareRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, **said)
    return ledger.ask(codec.decode_request("prepare", codec.encode(request)), principal)


def reattach(ledger: Ledger, domain_text: str = UUID, principal: Any = A, **fields: Any) -> Answer:
    """Release all of a domain."""
    request = inputs.ReattachRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, domain=domain_text, **fields
    )
    return ledger.ask(codec.decode_request("reattach", codec.encode(request)), principal)


def _configured(*words: str, **fields: Any) -> tuple[Ledger, Polled]:
    """A domain that claims what these words name."""
    ledger, poller = polled_ledger()
    poller.see(**fields)
    poller.say(*(used(word, use="configured") for word in words))
    return ledger, poller


# --- prepare ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [UUID, UUID.upper(), "web", f"xen/{UUID}", domain()])
def test_all_that_a_domain_claims_is_leased_for_it(text: str) -> None:
    """Whatever it is called by: PCI and USB devices, each once, with what was said of the lease."""
    ledger, poller = _configured(CARD, "usb-address/1.3")
    poller.say(used(CARD))
    poller.say(unused(CARD))
    answer = prepare(ledger, text, gone_ms=7_000)
    assert (answer.outcome, answer.devices) == ("granted", (device("01:00.0"), STICK))
    (granted,) = (event for event in ledger.events if isinstance(event, LeaseGranted))
    assert granted.bond
    assert (granted.bond.uuid, granted.bond.gone_ms, granted.bond.keep) == (UUID, 7_000, False)
    assert granted.holder == "vm"


@pytest.mark.parametrize(("bus", "devices"), [("pci", (device("01:00.0"),)), ("usb", (STICK,))])
def test_of_one_bus_only(bus: str, devices: tuple[str, ...]) -> None:
    """What is on the other bus stays as it is, also if it could not be told which device is meant."""
    other = "usb-id/0529:0001" if bus == "pci" else "pci/0000:0f:00.0"
    ledger, _ = _configured(CARD, "usb-port/1-3", other)
    assert prepare(ledger, bus=bus).devices == devices


def test_a_slice_is_claimed_by_its_uuid() -> None:
    """A mediated device is on its parent's bus."""
    ledger, _ = _configured(f"mdev/{MDEV_UUID}")
    slice_id = f"{H1}/pci/0000:0a:00.0/mdev/{MDEV_UUID}"
    assert refusal_of(prepare(ledger, bus="usb")).code == RefusalCode.NOTHING_TO_PREPARE
    assert prepare(ledger, bus="pci").devices == (slice_id,)


def test_what_is_leased_for_it_already_is_left_out() -> None:
    """By whomever; asked once more, there is nothing left to prepare."""
    ledger, _ = _configured(CARD, "usb-address/1.3")
    assert ledger.lease("01:00.0", principal=B, domain=UUID).outcome == "granted"
    assert prepare(ledger).devices == (STICK,)
    refusal = refusal_of(prepare(ledger))
    assert refusal.code == RefusalCode.NOTHING_TO_PREPARE
    assert refusal.message == f"{domain()} claims no devices that are not leased for it already"


def test_one_held_device_refuses_all() -> None:
    """All or none: nothing is granted, and the refusal names who has the one."""
    ledger, _ = _configured(CARD, "usb-address/1.3")
    ledger.granted("2-3", principal=B, holder=Holder("other"))
    refusal = refusal_of(prepare(ledger))
    assert refusal.code == RefusalCode.DEVICE_HELD
    assert "other" in refusal.message
    assert kinds(ledger) == ["RequestRefused"]
    assert not ledger.state.devices[device("01:00.0")].lease


def test_twins_are_not_guessed() -> None:
    """Two sticks of a kind: neither is taken, also if one of them is another's. One that this domain has a lease of is
    the one that is meant.
    """
    ledger, poller = _configured("usb-id/0529:0001")
    refusal = refusal_of(prepare(ledger))
    assert refusal.code == RefusalCode.DEVICE_AMBIGUOUS
    assert refusal.message == f"Multiple USB devices for 0529:0001: {domain()} could have {STICK}, {TWIN}"
    ledger.granted("2-3", principal=B)
    assert refusal_of(prepare(ledger)).code == RefusalCode.DEVICE_AMBIGUOUS
    poller.say(used(CARD, use="configured"))
    ledger.granted("2-4", domain=UUID)
    assert prepare(ledger).devices == (device("01:00.0"),)


def test_a_twin_that_is_gone_is_not_meant() -> None:
    """The one that is there is taken."""
    ledger, _ = _configured("usb-id/0529:0001")
    ledger.observe(inputs.DeviceGone(ledger.state.devices[STICK].description.key))
    assert prepare(ledger).devices == (TWIN,)


def test_what_no_device_is_called_refuses_all() -> None:
    """A word that nothing known is called by, with the word."""
    ledger, _ = _configured(CARD, "pci/0000:0f:00.0")
    refusal = refusal_of(prepare(ledger))
    assert refusal.code == RefusalCode.DEVICE_UNKNOWN
    assert "pci/0000:0f:00.0" in refusal.message
    assert refusal_of(prepare(ledger, bus="usb")).code == RefusalCode.NOTHING_TO_PREPARE


def test_a_missing_device_is_not_skipped() -> None:
    """It is refused as any lease of what is not there."""
    ledger, _ = _configured(CARD)
    ledger.observe(inputs.DeviceGone(ledger.state.devices[device("01:00.0")].description.key))
    assert refusal_of(prepare(ledger)).code == RefusalCode.DEVICE_MISSING


def test_domains_that_are_not_known_or_not_one() -> None:
    """Neither is guessed; the host tells them apart."""
    ledger, poller = _configured(CARD)
    assert refusal_of(prepare(ledger, "db")).code == RefusalCode.DOMAIN_UNKNOWN
    assert refusal_of(prepare(ledger, host=H2)).code == RefusalCode.DOMAIN_UNKNOWN
    poller.say(inputs.DomainSeen(described(OTHER)))
    refusal = refusal_of(prepare(ledger, "web"))
    assert refusal.code == RefusalCode.DOMAIN_AMBIGUOUS
    assert domain() in refusal.message
    assert domain(OTHER) in refusal.message


def test_more_than_a_lease_may_have() -> None:
    """It is refused with both numbers, and one bus may still be prepared."""
    ledger, poller = polled_ledger()
    cards = [pci(f"{0x20 + number // 8:02x}:{number % 8:02x}.0", iommu_group=100 + number) for number in range(65)]
    ledger.see(*cards)
    poller.see()
    poller.say(*(used(card.key, use="configured") for card in cards), used("usb-address/1.3", use="configured"))
    refusal = refusal_of(prepare(ledger))
    assert refusal.code == RefusalCode.DEVICES_TOO_MANY
    assert f"66 devices; a lease has at most {limits.DEVICES_PER_LEASE_MAX}" in refusal.message
    assert prepare(ledger, bus="usb").devices == (STICK,)


def test_how_they_are_handed_over_is_kept() -> None:
    """The stub, and that devices are unmanaged: in the grant, and in what the binder is told."""
    ledger, _ = _configured(CARD)
    assert refusal_of(prepare(ledger, driver="pciback")).code == RefusalCode.HOST_NOT_MANAGED
    ledger.start_binder(H1)
    refusal = refusal_of(prepare(ledger, unmanaged=True))
    assert refusal.code == RefusalCode.DEVICE_NOT_DETACHED
    assert refusal.message == (
        f"{device('01:00.0')} is bound to no driver: an unmanaged device must be detached from the host by hand"
    )
    ledger.change("01:00.0", driver="igb")
    assert "bound to igb" in refusal_of(prepare(ledger, unmanaged=True)).message
    ledger.change("01:00.0", driver="pciback")
    lease = prepare(ledger, unmanaged=True).lease
    assert ledger.state.leases[lease].handover == Handover(unmanaged=True)


def test_usb_devices_are_never_by_hand() -> None:
    """Unmanaged or not, they are bound to no stub."""
    ledger, _ = _configured("usb-address/1.3")
    ledger.start_binder(H1)
    assert prepare(ledger, unmanaged=True).outcome == "granted"


# --- reattach -----------------------------------------------------------------------------------------------------


def test_all_leases_of_a_domain_are_released() -> None:
    """The asker's, and no others'; by one request, whose answer names them all, also when it is asked again."""
    ledger, _ = _configured(CARD)
    mine = [ledger.granted("01:00.0", domain=UUID), ledger.granted("2-3", domain=UUID, keep=True)]
    theirs = ledger.granted("0a:00.0", principal=B, domain=UUID)
    other = ledger.granted("03:10.0", domain=OTHER)
    request = inputs.ReattachRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, domain="web")
    answer = ledger.ask(request)
    assert kinds(ledger) == ["LeaseReleased", "LeaseReleased", "DeviceFreed", "DeviceFreed"]
    assert (answer.outcome, list(answer.leases), answer.lease) == ("released", mine, mine[0])
    again = ledger.ask(request)
    assert not ledger.events
    assert (again.position, again.leases) == (answer.position, answer.leases)
    assert not ledger.state.leases[theirs].ended
    assert not ledger.state.leases[other].ended


def test_one_lease_is_released_as_by_a_release() -> None:
    """Its answer is a release's."""
    ledger, _ = _configured(CARD)
    lease = ledger.granted("01:00.0", domain=UUID)
    answer = reattach(ledger)
    assert (answer.outcome, answer.lease, answer.state, answer.leases) == ("released", lease, "ended", ())


def test_a_domain_that_is_gone_is_reattached_by_its_uuid() -> None:
    """Leases for it may outlive it; by name it cannot be found any more."""
    ledger, poller = polled_ledger()
    poller.see()
    lease = ledger.granted("01:00.0", domain=UUID, keep=True)
    poller.gone()
    assert refusal_of(reattach(ledger, "web")).code == RefusalCode.DOMAIN_UNKNOWN
    assert reattach(ledger, UUID.replace("-", "").upper()).lease == lease


def test_of_one_bus_or_host() -> None:
    """What is on the other stays; a lease of both buses is not torn, and nothing else ends then."""
    ledger, _ = _configured(CARD)
    nic, stick = ledger.granted("01:00.0", domain=UUID), ledger.granted("2-3", domain=UUID)
    assert reattach(ledger, bus="usb").lease == stick
    far = ledger.ask(ledger.request(device("0b:00.0", H2), domain=UUID)).lease
    assert reattach(ledger, host=H2).lease == far
    both = ledger.granted("0a:00.0", "2-4", domain=UUID)
    refusal = refusal_of(reattach(ledger, bus="pci"))
    assert refusal.code == RefusalCode.LEASE_OF_BOTH_BUSES
    assert kinds(ledger) == ["RequestRefused"]
    assert list(reattach(ledger).leases) == [nic, both]


@pytest.mark.parametrize("fields", [{}, {"bus": "usb"}, {"host": H2}])
def test_nothing_to_reattach(fields: dict[str, Any]) -> None:
    """Nobody's lease, another's, one of the other bus or host."""
    ledger, _ = _configured(CARD)
    ledger.granted("01:00.0", principal=A if fields else B, domain=UUID)
    assert refusal_of(reattach(ledger, **fields)).code == RefusalCode.NOTHING_TO_REATTACH
    assert refusal_of(reattach(ledger, "web2")).code == RefusalCode.DOMAIN_UNKNOWN


def test_two_domains_of_a_name() -> None:
    """The name does not say whose; a uuid does."""
    ledger, poller = _configured(CARD)
    poller.say(inputs.DomainSeen(described(OTHER)))
    ledger.granted("01:00.0", domain=UUID)
    assert refusal_of(reattach(ledger, "web")).code == RefusalCode.DOMAIN_AMBIGUOUS
    assert reattach(ledger, UUID).outcome == "released"


def test_as_many_as_a_record_holds() -> None:
    """A domain with more leases, of more devices, than one record has events for: the oldest leases end, their devices
    are freed in this record and behind it, and asking anew ends the rest.
    """
    ledger, poller = polled_ledger()
    cards = [pci(f"{number // 32 + 0x20:02x}:{number % 32:02x}.0", iommu_group=100 + number) for number in range(420)]
    for start in range(0, 420, 210):
        ledger.see(*cards[start : start + 210])
    ids = [device(card.key.removeprefix("pci/0000:")) for card in cards]
    leases = [
        ledger.ask(ledger.request(*ids[number * 6 : number * 6 + 6], domain=UUID)).lease for number in range(70)
    ]
    first = reattach(ledger)
    assert sum(isinstance(event, LeaseReleased) for event in ledger.events) == limits.LEASES_REATTACHED_MAX
    assert len(ledger.events) == limits.EVENTS_PER_RECORD_MAX
    assert list(first.leases) == leases[: limits.LEASES_REATTACHED_MAX]
    ledger.tick()
    assert list(reattach(ledger).leases) == leases[limits.LEASES_REATTACHED_MAX :]
    ledger.tick()
    assert not any(ledger.state.devices[each].lease for each in ids)
    assert poller.host == H1
    replay = Replay()
    assert not any(replay.step(number, body) for number, body in enumerate(ledger.bodies, 1))
