"""Who waits is looked at whenever something has become better for him, no sooner, and a few at a time."""

from typing import Any

import msgspec
import pytest

from leasehold.events import event_types, inputs, limits
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import DeviceKey, Holder
from leasehold.events.schedule_events import QueueLooked
from leasehold.events.schedule_inputs import SetQuotaRequest, WithdrawRequest
from leasehold.projections import stirring
from leasehold.projections.decide import decide
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from tests.projections.domains import Polled, described, unused, used
from tests.projections.ledger import H1, H2, SECOND, A, B, Ledger, device, ledger_with_hosts
from tests.scheduling import words
from tests.scheduling.queues import check_queue, folds_alike, holder_of, queued, settle, told


def _held(ledger: Ledger) -> Any:
    lease = ledger.granted("01:00.0")
    return lambda: ledger.release(lease)


def _expiring(ledger: Ledger) -> Any:
    ledger.granted("01:00.0", ttl_ms=5_000)
    return lambda: ledger.tick(6)


def _missing(ledger: Ledger) -> Any:
    description = ledger.state.devices[device("01:00.0")].description
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    return lambda: ledger.see(description)


def _used(ledger: Ledger) -> Any:
    ledger.change("01:00.0", in_use_by=("somebody",))
    return lambda: ledger.change("01:00.0", in_use_by=())


def _attached(ledger: Ledger) -> Any:
    poller = Polled(ledger)
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    return lambda: poller.say(unused("pci/0000:01:00.0"))


def _stale(ledger: Ledger) -> Any:
    ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    return lambda: ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=True))


def _cordoned(ledger: Ledger) -> Any:
    words.cordon(ledger, device=device("01:00.0"))
    return lambda: words.uncordon(ledger, device=device("01:00.0"))


def _host_cordoned(ledger: Ledger) -> Any:
    words.cordon(ledger, host="h1")
    return lambda: words.uncordon(ledger, host="h1")


def _tainted(ledger: Ledger) -> Any:
    words.taint(ledger, device=device("01:00.0"))
    return lambda: words.untaint(ledger, device=device("01:00.0"))


def _host_tainted(ledger: Ledger) -> Any:
    words.taint(ledger, host="h1")
    return lambda: words.untaint(ledger, host="h1")


def _unclean(ledger: Ledger) -> Any:
    words.policy(ledger, device("01:00.0"), clean=True)
    ledger.release(ledger.granted("01:00.0", principal=B), B)
    return lambda: words.clean(ledger, device("01:00.0"))


def _kept(ledger: Ledger) -> Any:
    ledger.granted("0a:00.0", principal=B)
    place = queued(ledger, "0a:00.0", "01:00.0", who="sooner", principal=B)
    given: dict[str, Any] = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns}
    return lambda: ledger.ask(WithdrawRequest(**given, queued=place), B)


def _over_quota(ledger: Ledger) -> Any:
    _quota(ledger, 1)
    lease = ledger.granted("0a:00.0")
    return lambda: ledger.release(lease)


def _raised_quota(ledger: Ledger) -> Any:
    _quota(ledger, 0)
    return lambda: _quota(ledger, 1)


def _dropped_quota(ledger: Ledger) -> Any:
    _quota(ledger, 0)
    return lambda: _quota(ledger, -1)


def _quota(ledger: Ledger, devices_max: int) -> None:
    given: dict[str, Any] = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns}
    assert ledger.ask(SetQuotaRequest(**given, tenant=A, devices_max=devices_max), words.OPS).outcome == "set"


@pytest.mark.parametrize(
    "stands",
    [
        _held, _expiring, _missing, _used, _attached, _stale, _cordoned, _host_cordoned, _tainted, _host_tainted,
        _unclean, _kept, _over_quota, _raised_quota, _dropped_quota,
    ],
)  # fmt: skip
def test_whatever_stood_in_the_way(stands: Any) -> None:
    """Whatever it was that kept a request from being granted: when it is gone, the request is granted."""
    ledger = ledger_with_hosts()
    over = stands(ledger)
    place = queued(ledger, "01:00.0", who="w")
    assert not settle(ledger)
    over()
    settle(ledger)
    assert holder_of(ledger, "01:00.0") == "w"
    assert place not in ledger.state.queue
    folds_alike(ledger)


@pytest.mark.parametrize(
    ("has", "wants"),
    [
        ("02:00.0", "02:00.1"),  # IOMMU group
        ("03:10.0", "03:00.0"),  # a virtual function, and its physical one
        ("03:00.0", "03:10.0"),
        ("2-1.1", "04:00.0"),  # USB, and its controller
        ("04:00.0", "2-1.1"),
        ("2-1", "2-1.2"),
    ],
)
def test_what_is_tied_to_what_became_free(has: str, wants: str) -> None:
    """Who waits for a device that only another's lease of what is tied to it keeps away, gets it when that one ends."""
    ledger = ledger_with_hosts()
    lease = ledger.granted(has, principal=B, holder=Holder("other"))
    queued(ledger, wants, who="w")
    ledger.release(lease, B)
    settle(ledger)
    assert holder_of(ledger, wants) == "w"
    folds_alike(ledger)


def test_more_relatives_than_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that is tied to more others than a note names, all of its host is news: none of them is missed."""
    monkeypatch.setattr(stirring, "RELATIVES_MAX", 1)
    ledger = ledger_with_hosts()
    lease = ledger.granted("04:00.0", principal=B, holder=Holder("other"))
    queued(ledger, "2-1.2", who="w")
    ledger.release(lease, B)
    settle(ledger)
    assert holder_of(ledger, "2-1.2") == "w"


def test_two_steps_away() -> None:
    """A device that is blocked by a part of its mate (a virtual function of another in its IOMMU group) is got, too."""
    ledger = ledger_with_hosts()
    ledger.see(
        *(msgspec.structs.replace(ledger.state.devices[device("03:00.0")].description, iommu_group=1),),
    )
    lease = ledger.granted("03:10.0", principal=B, holder=Holder("other"))
    queued(ledger, "01:00.0", who="w")
    ledger.release(lease, B)
    settle(ledger)
    assert holder_of(ledger, "01:00.0") == "w"


def test_nobody_cares() -> None:
    """What nobody waits for is not noted, and makes no work."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    queued(ledger, "01:00.0")
    lease = ledger.granted("0a:00.0", principal=B)
    ledger.release(lease, B)
    assert not ledger.state.stirred
    assert [type(event) for event in ledger.events] == [event_types.LeaseReleased, event_types.DeviceFreed]


def test_only_who_decides_looks() -> None:
    """A standby has nothing to do for who waits; when it decides, it goes on where the other was."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", who="w")
    sequencer = ledger.sequencer
    sequencer.releases_only = True  # the grant is left undone
    ledger.release(lease)
    sequencer.releases_only = False
    assert ledger.state.stirred
    other = Sequencer(decode_state(encode_state(ledger.state)) or ledger.state, cluster="lab", writer="other")
    assert not other.has_work(ledger.now_ns)
    ledger.sequencer = other
    ledger.note(inputs.DeciderStarts("other", "takeover"))
    settle(ledger)
    assert holder_of(ledger, "01:00.0") == "w"


def test_who_is_not_looked_at_is_taken_over() -> None:
    """If who decides looks at nobody for long, another that writes decides from then on, and looks; not before."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", who="w")
    gone, late_ns = ledger.sequencer, ledger.now_ns + limits.TAKEOVER_MS * 1_000_000
    gone.releases_only = True  # the grant is left undone
    ledger.release(lease)
    ledger.now_ns += SECOND
    other = Sequencer(decode_state(encode_state(ledger.state)) or ledger.state, cluster="lab", writer="other")
    ledger.sequencer = other
    ledger.lease("0a:00.0", principal=B)
    assert other.next_work_ns() == late_ns, "what it writes itself puts nothing off"
    ledger.now_ns = late_ns
    settle(ledger)
    assert holder_of(ledger, "01:00.0") == "w"
    assert other.state.head.decider == "other"
    assert other.state.head.unlooked_since_ns == 0
    folds_alike(ledger)


def test_who_begins_to_decide_has_time_to_look() -> None:
    """Who has just taken over is not taken over himself for what the one before him left undone."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", who="w")
    ledger.sequencer.releases_only = True
    ledger.release(lease)
    ledger.now_ns += 2 * limits.TAKEOVER_MS * 1_000_000
    ledger.note(inputs.DeciderStarts("other", "takeover"))
    ledger.commit()
    assert ledger.state.stirred
    assert decide(ledger.state, inputs.Tick("third"), ledger.now_ns + limits.TAKEOVER_MS * 1_000_000 - 1) is None
    assert decide(ledger.state, inputs.Tick("third"), ledger.now_ns + limits.TAKEOVER_MS * 1_000_000)


def test_without_room_nobody_is_looked_at() -> None:
    """While only releases are taken, who waits is granted nothing, and there is no work for it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", who="w")
    ledger.sequencer.releases_only = True
    ledger.release(lease)
    assert not ledger.sequencer.has_work(ledger.now_ns)
    ledger.sequencer.releases_only = False
    settle(ledger)
    assert holder_of(ledger, "01:00.0") == "w"


def test_each_decision_looks_at_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tick tries so many, and one record has so many looks; the next goes on behind them, until all are through."""
    monkeypatch.setattr(limits, "QUEUED_TRIED_PER_TICK_MAX", 2)
    ledger = ledger_with_hosts()
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    places = [queued(ledger, "01:00.0", "0a:00.0", who=f"w{number}") for number in range(20)]
    ledger.change("0a:00.0", driver="igb")
    looks = told(ledger, QueueLooked)
    assert len(looks) == limits.LOOKS_PER_RECORD_MAX
    steps = [place for look in looks if (place := look.queued)]
    assert steps == sorted(steps)
    assert steps[-1] < places[-1]
    more = [event for event in settle(ledger) if isinstance(event, QueueLooked)]
    assert (more[-1].queued, more[-1].through > 0) == (0, True)
    assert not ledger.state.stirred
    check_queue(ledger.state)


def test_many_notes_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past their bound, what is new is noted for all who wait at once; nobody is forgotten by it."""
    monkeypatch.setattr(limits, "STIRRED_MAX", 1)
    monkeypatch.setattr(stirring, "WORDS_MAX", 2)
    ledger = ledger_with_hosts()
    names = ("01:00.0", "0a:00.0", "03:10.0", "03:10.1", "2-1.1", "2-2")
    leases = [ledger.granted(name, holder=Holder(name)) for name in names]
    for name in names:
        queued(ledger, name, who=f"for {name}")
    ledger.sequencer.releases_only = True  # nobody looks meanwhile
    for lease in leases:
        ledger.release(lease)
    assert 1 <= len(ledger.state.stirred) <= 2
    assert ("*",) in ledger.state.stirred.values()
    ledger.sequencer.releases_only = False
    settle(ledger)
    assert [holder_of(ledger, name) for name in names] == [f"for {name}" for name in names]
    folds_alike(ledger)


def test_a_lost_draft_leaves_nothing_behind() -> None:
    """A look that another's record overtakes is taken back wholly, and made again behind it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", "0a:00.0", who="gang")
    other = Sequencer(decode_state(encode_state(ledger.state)) or ledger.state, cluster="lab", writer="other")
    before = encode_state(ledger.state)
    row = ledger.state.leases[lease]
    release = inputs.ReleaseRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=row.token
    )
    ledger.sequencer.ask(1_000, A, release)
    draft = ledger.sequencer.draft(ledger.now_ns)
    assert draft is not None
    assert any(isinstance(event, LeaseGranted) for step in draft.record.steps for event in step.events)
    other.ask(1, B, ledger.request(device("0b:00.0", H2), holder=Holder("x")))
    foreign = other.draft(ledger.now_ns)
    assert foreign is not None
    ledger.state.journal.roll_back()
    assert encode_state(ledger.state) == before
    check_queue(ledger.state)
    ledger.state.journal.begin()
    ledger.sequencer.lost(len(ledger.bodies) + 1, foreign.body)
    ledger.bodies.append(foreign.body)
    settle(ledger)
    assert holder_of(ledger, "0a:00.0") == "gang"
    folds_alike(ledger)
