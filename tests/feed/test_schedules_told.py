"""What is told of requests that wait, of leases that change hands or are shared, and of what operators say."""

from typing import get_args

from leasehold.events import schedule_events, schedule_inputs
from leasehold.events.event_types import DeviceChanged, LeaseExpired, LeaseGranted, LeaseReleased
from leasehold.events.identities import Holder, tenant_of
from leasehold.events.position import lease_id_text, queued_id_text
from leasehold.events.schedule_events import ScheduleEvent
from leasehold.events.subjects import EventSubject
from leasehold.projections.evolve import evolve
from leasehold.projections.feeding import Feeding
from leasehold.projections.history import index_rows
from leasehold.projections.scheduletelling import TELLERS
from leasehold.projections.state import State
from leasehold.projections.telling import tell
from leasehold.services.query.decoding import KINDS
from tests.feed.test_telling import attributes, subjects_of, told_of
from tests.golden import schedules
from tests.past import logs
from tests.past.scheduled import random_log
from tests.projections.ledger import H1, A, B, device, ledger_with_hosts
from tests.scheduling import keeping
from tests.scheduling.words import cordon, policy, say

KEY = "pci/0000:01:00.0"


def of(device: str, lease: int, tenant: str, host: str = "h1") -> tuple[str, str, str, str]:
    """Host, device, lease and tenant of a subject."""
    return host, device, lease_id_text(lease) if lease else "", tenant


def named(subjects: list[EventSubject]) -> list[tuple[str, str, str, str]]:
    """The same of each of these."""
    return [(each.host, each.device, each.lease, each.tenant) for each in subjects]


def test_who_waits_is_told_of_as_his_tenants_matter() -> None:
    """A request that waits is told under its tenant, with what is kept for it, and by its place; so is what becomes of
    it.
    """
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    waits = ledger.lease("01:00.0", principal=B, wait_ms=60_000)
    (queued,) = subjects_of(ledger, schedule_events.RequestQueued)
    assert named(queued) == [of(KEY, 0, "b")]
    say(ledger, schedule_inputs.WithdrawRequest, B, queued=waits.queued)
    (withdrawn,) = subjects_of(ledger, schedule_events.RequestWithdrawn)
    assert named(withdrawn) == [of("", 0, "b", host="")]
    told = [attributes(message) for message in told_of(ledger.bodies)]
    about = {each.subject for each in told if each.tag == "request_withdrawn.v1"}
    assert about == {queued_id_text(waits.queued)}
    ledger.release(first)


def test_both_tenants_hear_of_a_transfer() -> None:
    """A lease that changes hands is told to who had it and to who has it, and what follows to the latter."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    keeping.transfer(ledger, lease, "job", to=B)
    (told,) = subjects_of(ledger, schedule_events.LeaseTransferred)
    assert named(told) == [of(KEY, lease, "a"), of(KEY, lease, "b")]
    ledger.release(lease, B)
    (told,) = subjects_of(ledger, LeaseReleased)
    assert named(told) == [of(KEY, lease, "b")]


def test_all_who_share_hear_of_their_device() -> None:
    """What becomes of a shared device is told under each lease that shares it, and under none that has ended; who only
    looks on hears of his own lease.
    """
    ledger = ledger_with_hosts()
    policy(ledger, device("01:00.0"), share_max=3)
    first = ledger.granted("01:00.0", mode="shared")
    second = ledger.granted("01:00.0", principal=B, mode="shared")
    watcher = ledger.granted("01:00.0", holder=Holder("eye"), mode="admin")
    assert [named(told) for told in subjects_of(ledger, LeaseGranted)][-1] == [of(KEY, watcher, "a")]
    ledger.change("01:00.0", driver="e1000e")
    assert named(subjects_of(ledger, DeviceChanged)[-1]) == [of(KEY, first, "a"), of(KEY, second, "b")]
    ledger.release(first)
    ledger.change("01:00.0", driver="vfio-pci")
    assert named(subjects_of(ledger, DeviceChanged)[-1]) == [of(KEY, second, "b")]
    ledger.tick(120)
    assert len(subjects_of(ledger, LeaseExpired)) == 2
    fold = Feeding()
    told_of(ledger.bodies, fold)
    assert (fold.leases, fold.sharers, fold.queue) == ({}, {}, {})


def test_what_is_said_of_a_device_is_told_to_who_has_it() -> None:
    """A cordon of a device is told under the lease that holds it, of a host under the host alone."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    cordon(ledger, device=device("01:00.0"))
    cordon(ledger, host=H1)
    told = [named(each) for each in subjects_of(ledger, schedule_events.Cordoned)]
    assert told == [[of(KEY, lease, "a")], [of("", 0, "")]]


def test_each_kind_has_a_sentence() -> None:
    """Every type of event has one, in printable words on one line, and names what it is about."""
    assert set(TELLERS) == set(get_args(ScheduleEvent))
    texts = {type(event): tell(event, 1_536) for event in schedules.EVENTS}
    assert all(text and text.isprintable() for text in texts.values())
    assert len(set(texts.values())) == len(texts)
    waits = texts[schedule_events.RequestQueued]
    for said in (
        "Q1536",
        "all, at least 2, of class fast",
        "the same numa_node of nic",
        "for up to 10 min",
        "kept for it",
    ):
        assert said in waits
    assert "job-7 of scheduler-2" in texts[schedule_events.LeaseTransferred]
    assert "drain=fans" in texts[schedule_events.Tainted]


_OF_PLACE = schedule_events.QueuedMoved | schedule_events.WaitingEnded | schedule_events.RequestWithdrawn


def test_histories_of_all_that_is_named() -> None:
    """Each event of a random log is found by what it is about, and by nothing that there is no kind for."""
    state = State()
    found: dict[tuple[str, str], list[int]] = {}
    events = logs.events_of(random_log(17).bodies)
    for position, ns, event in events:
        evolve(state, position, ns, event)
        for kind, name, at in index_rows(state, position, event):
            assert kind in KINDS
            assert at == position
            found.setdefault((kind, name), []).append(position)
    for position, _, event in events:
        if isinstance(event, schedule_events.RequestQueued):
            assert position in found["queued", queued_id_text(position)]
            assert position in found["holder", event.asked.holder]
        elif isinstance(event, _OF_PLACE):
            assert position in found["queued", queued_id_text(event.queued)]
        elif isinstance(event, LeaseGranted):
            assert not isinstance(event.queued, int) or position in found["queued", queued_id_text(event.queued)]
        elif isinstance(event, schedule_events.LeasesRenewed):
            assert all(position in found["lease", lease_id_text(lease)] for lease in event.leases)
        elif isinstance(event, schedule_events.LeaseTransferred):
            assert position in found["lease", lease_id_text(event.lease)]
            assert position in found["principal", event.principal]
        elif isinstance(event, schedule_events.ClassSet | schedule_events.ClassRemoved):
            assert position in found["class", event.name]
        elif isinstance(event, schedule_events.QuotaSet):
            assert position in found["principal", event.tenant]
            assert tenant_of(event.tenant) in (A, B)


def test_ledger_of_the_tests_has_all_of_it() -> None:
    """The random log that these tests read has most kinds of events, so that they say something."""
    seen = {type(event) for seed in range(4) for _, _, event in logs.events_of(random_log(seed).bodies)}
    rare = {schedule_events.DeviceCleaned, schedule_events.LeaseSwitched, schedule_events.ClassRemoved}
    assert set(get_args(ScheduleEvent)) - seen <= rare
