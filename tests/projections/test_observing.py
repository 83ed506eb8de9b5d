"""What agents report: which words count, and what they do to leases."""

import pytest

from leasehold.events import event_types, inputs
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import DeviceGone, DeviceSeen, Observation, Observed, PictureComplete, StillHere
from leasehold.events.refusals import RefusalCode
from leasehold.projections.fencing import check_token
from leasehold.projections.views import device_word, picture_of
from tests.projections.ledger import H1, B, Ledger, device, ledger_with_hosts, pci, refusal_of
from tests.projections.test_requests import kinds

THERE = device("0a:00.0")
KEY = DeviceKey("pci/0000:0a:00.0")


def message(counter: int, *observations: Observation, run: int = 1) -> Observed:
    """A message of the watcher of h1."""
    return Observed(host=H1, agent="watcher", run=run, counter=counter, observations=observations)


# --- which words count --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrives", "counts"),
    [
        (message(2, StillHere()), True),
        (message(1, DeviceGone(KEY)), False),
        (message(0, inputs.SourceStarts()), False),
        (message(2, DeviceGone(KEY), run=2), False),
        (message(0, inputs.SourceStarts(), run=2), True),
        (Observed(host=H1, agent="binder", run=1, counter=1, observations=(DeviceGone(KEY),)), False),
        (Observed(host=HostName("h9"), agent="watcher", run=1, counter=1, observations=(StillHere(),)), False),
    ],
    ids=[
        "the next",
        "an old one",
        "the run again",
        "an unknown run",
        "a new run",
        "an unknown agent",
        "an unknown host",
    ],
)
def test_what_counts(arrives: Observed, counts: bool) -> None:
    """Only the next message of the current run counts, or the start of a newer one; all else leaves no word."""
    ledger = ledger_with_hosts()
    ledger.observe_message(arrives)
    assert bool(ledger.events) == counts


def test_late_words_of_an_old_run() -> None:
    """When a new run has started, nothing that the old one said counts any more."""
    ledger = ledger_with_hosts()
    ledger.observe_message(message(0, inputs.SourceStarts(), run=2))
    ledger.observe_message(message(2, DeviceGone(KEY), run=1))
    ledger.observe_message(message(0, inputs.SourceStarts(), run=1))
    assert not ledger.events
    assert not ledger.state.devices[THERE].missing


def test_a_gap() -> None:
    """A gap makes the host stale and asks for a report; only a picture that began behind the gap is whole."""
    ledger = ledger_with_hosts()
    ledger.observe_message(message(4, DeviceGone(KEY)))
    (asked,) = ledger.events
    assert isinstance(asked, event_types.ReportRequested)
    assert "2 to 3" in asked.reason
    source = ledger.state.hosts[H1].sources["watcher"]
    assert (source.wants_report, source.complete, source.gap) == (True, False, 4)
    ledger.observe_message(message(5, PictureComplete(since=3)))
    ledger.observe_message(message(6, PictureComplete(since=4)))
    assert refusal_of(ledger.lease("0a:00.0")).code == RefusalCode.HOST_STALE
    ledger.observe_message(message(7, PictureComplete(since=5)))
    ledger.granted("0a:00.0")


def test_the_last_word_of_a_message() -> None:
    """Of several words about one device in one message the last counts."""
    ledger = ledger_with_hosts()
    ledger.observe(DeviceGone(KEY), DeviceSeen(pci("0a:00.0", iommu_group=13)), DeviceGone(KEY))
    assert kinds(ledger) == ["ObservationsAccepted", "DeviceMissing"]


def test_silence() -> None:
    """An agent that is silent makes its host stale, once; heard again, it is up to date without a new report."""
    ledger = ledger_with_hosts()
    for alive, expected in ((True, []), (False, ["HostWentStale"]), (False, []), (True, ["HostCameBack"]), (True, [])):
        ledger.note(inputs.HostHeard(H1, "watcher", 1, alive))
        assert kinds(ledger) == expected
    ledger.note(inputs.HostHeard(H1, "watcher", 2, alive=False))
    assert not ledger.events


def test_hosts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bounds no host, agent or device is taken in."""
    for name, bound in (("HOSTS_MAX", 2), ("AGENTS_PER_HOST_MAX", 1), ("DEVICES_PER_HOST_MAX", 24)):
        monkeypatch.setattr(f"leasehold.events.limits.{name}", bound)
    ledger = ledger_with_hosts()
    for host, agent in ((HostName("h3"), "watcher"), (H1, "binder")):
        start = Observed(host=host, agent=agent, run=1, counter=0, observations=(inputs.SourceStarts(),))
        ledger.observe_message(start)
        assert not ledger.events
    ledger.see(pci("0c:00.0"))
    assert kinds(ledger) == ["ObservationsAccepted"]


# --- what they mean -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "says", "event"),
    [
        ((), DeviceSeen(pci("0c:00.0")), "DeviceAppeared"),
        ((), DeviceSeen(pci("0a:00.0", iommu_group=13)), ""),
        ((), DeviceSeen(pci("0a:00.0", iommu_group=13, driver="vfio-pci")), "DeviceChanged"),
        ((), DeviceSeen(pci("0a:00.0", product_id="1572")), "DeviceReplaced"),
        ((), DeviceSeen(pci("0a:00.0", vendor_id="10de")), "DeviceReplaced"),
        ((), DeviceSeen(pci("0a:00.0", serial="1")), "DeviceChanged"),
        ((DeviceSeen(pci("0a:00.0", serial="1")),), DeviceSeen(pci("0a:00.0", serial="2")), "DeviceReplaced"),
        ((), DeviceGone(KEY), "DeviceMissing"),
        ((DeviceGone(KEY),), DeviceGone(KEY), ""),
        ((), DeviceGone(DeviceKey("pci/0000:0c:00.0")), ""),
        ((DeviceGone(KEY),), DeviceSeen(pci("0a:00.0", iommu_group=13)), "DeviceReappeared"),
        ((DeviceGone(KEY),), DeviceSeen(pci("0a:00.0", product_id="1572")), "DeviceReplaced"),
    ],
)
def test_what_a_word_means(before: tuple[Observation, ...], says: Observation, event: str) -> None:
    """What is seen makes the event that fits what was known; what is known already makes none."""
    ledger = ledger_with_hosts()
    for each in before:
        ledger.observe(each)
    ledger.observe(says)
    assert kinds(ledger) == ["ObservationsAccepted", *filter(None, [event])]


def test_a_change_names_its_fields() -> None:
    """A change says which fields differ, sorted."""
    ledger = ledger_with_hosts()
    ledger.see(pci("0a:00.0", iommu_group=2, driver="vfio-pci"))
    assert isinstance(ledger.events[1], event_types.DeviceChanged)
    assert ledger.events[1].changed == ("driver", "iommu_group")
    ledger.granted("02:00.0", principal=B)
    assert refusal_of(ledger.lease("0a:00.0")).blockers[0].rule == "iommu_group"


def word(ledger: Ledger) -> str:
    """How the device stands, in a word."""
    return device_word(ledger.state, THERE)[0]


def test_a_lost_device_keeps_its_lease() -> None:
    """A leased device that goes is lost; the lease keeps its place and token, and resumes when the same is back."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("0a:00.0")
    ledger.observe(DeviceGone(KEY))
    assert word(ledger) == "lost"
    assert refusal_of(ledger.lease("0a:00.0", principal=B)).code == RefusalCode.DEVICE_MISSING
    assert ledger.renew(lease).outcome == "renewed"
    ledger.see(pci("0a:00.0", iommu_group=13))
    assert word(ledger) == "leased"
    assert check_token(ledger.state, THERE, lease) is None


def test_another_thing_is_not_handed_over() -> None:
    """A lease does not reach another thing in the same place: its token is shut out there, until a new grant."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("0a:00.0", "01:00.0")
    ledger.see(pci("0a:00.0", product_id="1572", iommu_group=13))
    assert word(ledger) == "lost"
    assert check_token(ledger.state, THERE, lease) is not None
    assert check_token(ledger.state, device("01:00.0"), lease) is None
    assert refusal_of(ledger.lease("0a:00.0", principal=B)).code == RefusalCode.DEVICE_HELD
    ledger.release(lease)
    again = ledger.granted("0a:00.0", principal=B)
    assert word(ledger) == "leased"
    assert check_token(ledger.state, THERE, again) is None


def test_a_free_device_is_replaced() -> None:
    """Another thing in the place of a free one can be leased."""
    ledger = ledger_with_hosts()
    ledger.see(pci("0a:00.0", product_id="1572", iommu_group=13))
    ledger.granted("0a:00.0")
    assert picture_of(ledger.state, H1)[KEY].product_id == "1572"
