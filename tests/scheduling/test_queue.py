"""Requests that wait: who is let in, who comes first, how it ends, and what is kept for whom meanwhile."""

from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import DeviceKey, Holder, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.events.schedule_events import QueuedMoved, QueueLooked, RequestQueued, RequestWithdrawn, WaitingEnded
from leasehold.events.schedule_inputs import SetQuotaRequest, WithdrawRequest
from leasehold.projections import stirring
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from tests.projections.domains import Polled, described, unused, used
from tests.projections.ledger import H1, H2, SECOND, A, B, Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling import words
from tests.scheduling.queues import check_queue, folds_alike, holder_of, kept_for, queued, settle, waits

_replace = msgspec.structs.replace
C = Principal("c")


def told(ledger: Ledger, kind: type[Any]) -> list[Any]:
    """The events of a kind in the last record."""
    return [event for event in ledger.events if isinstance(event, kind)]


# --- coming -------------------------------------------------------------------------------------------------------


def test_who_waits_gets_it_when_it_is_free() -> None:
    """A refused request that may wait is queued; when the device is free it is granted under the same request id."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    request = ledger.request(device("01:00.0"), wait_ms=60_000, holder=Holder("w"))
    first = ledger.ask(request, B)
    assert (first.outcome, first.queued, first.ahead) == ("queued", first.position, 0)
    assert first.refusal is not None
    assert (first.refusal.code, first.refusal.blockers[0].lease) == (RefusalCode.DEVICE_HELD, lease)
    assert first.kept == (device("01:00.0"),)
    assert first.until_ns == ledger.now_ns + 60 * SECOND
    again = ledger.ask(request, B)
    assert not ledger.events, "asking how it stands is no event"
    assert (again.outcome, again.queued) == ("queued", first.queued)
    ledger.release(lease)
    assert told(ledger, LeaseGranted), "it is granted by the record that frees it"
    got = ledger.ask(request, B)
    assert (got.outcome, got.holder, got.queued) == ("granted", "w", first.queued)
    assert ledger.renew(got.lease, B).outcome == "renewed"
    folds_alike(ledger)


def test_who_does_not_say_so_does_not_wait() -> None:
    """Without `wait_ms` the same request is refused."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    assert refusal_of(waits(ledger, "01:00.0", wait_ms=0)).code == RefusalCode.DEVICE_HELD
    assert not ledger.state.queue


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        (("7f:00.0",), RefusalCode.DEVICE_UNKNOWN),
        (("02:02.0",), RefusalCode.DEVICE_UNLEASABLE),
        (("06:00.0", "01:00.0"), RefusalCode.DEVICE_PROTECTED),
    ],
)
def test_what_does_not_pass_is_not_waited_for(devices: tuple[str, ...], why: RefusalCode) -> None:
    """A refusal that neither time nor others lift is given at once, even where another reason would pass."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    assert refusal_of(waits(ledger, *devices)).code == why
    assert not ledger.state.queue


def test_the_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many of one principal, or of all, none is let in; each is told which bound it was."""
    monkeypatch.setattr(limits, "QUEUED_PER_PRINCIPAL_MAX", 2)
    monkeypatch.setattr(limits, "QUEUED_MAX", 3)
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    for _ in range(2):
        queued(ledger, "01:00.0")
    refused = refusal_of(waits(ledger, "01:00.0"))
    assert (refused.code, "of a" in refused.message) == (RefusalCode.QUEUE_FULL, True)
    queued(ledger, "01:00.0", principal=B)
    refused = refusal_of(waits(ledger, "01:00.0", principal=C))
    assert (refused.code, "3 requests" in refused.message) == (RefusalCode.QUEUE_FULL, True)
    assert len(ledger.state.queue) == 3


# --- order --------------------------------------------------------------------------------------------------------


def test_first_comes_first() -> None:
    """Five that want one device get it in the order in which they came, whoever asks in between."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    places = []
    for number in range(5):
        ledger.now_ns += SECOND
        answer = waits(ledger, "01:00.0", who=f"w{number}")
        places.append(answer.queued)
        assert answer.ahead == number
    for number in range(5):
        ledger.release(lease)
        assert holder_of(ledger, "01:00.0") == f"w{number}"
        assert refusal_of(ledger.lease("01:00.0", principal=B)).code == RefusalCode.DEVICE_HELD
        lease = ledger.state.devices[device("01:00.0")].lease
    ledger.release(lease)
    assert not holder_of(ledger, "01:00.0")
    assert not ledger.state.queue
    folds_alike(ledger)


def test_priority_counts_like_time() -> None:
    """Each step of priority is a minute of waiting: so an old request comes before a newer, more urgent one."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=86_400_000)
    queued(ledger, "01:00.0", who="oldest", wait_ms=86_400_000)
    ledger.now_ns += 10 * 60 * SECOND
    queued(ledger, "01:00.0", who="urgent", priority=9, wait_ms=86_400_000)
    queued(ledger, "01:00.0", who="more urgent", priority=11, wait_ms=86_400_000)
    queued(ledger, "01:00.0", who="modest", priority=-5, wait_ms=86_400_000)
    ledger.now_ns += 60 * SECOND
    queued(ledger, "01:00.0", who="plain", wait_ms=86_400_000)
    order = []
    for _ in range(5):
        ledger.release(lease)
        order.append(holder_of(ledger, "01:00.0"))
        lease = ledger.state.devices[device("01:00.0")].lease
    assert order == ["more urgent", "oldest", "urgent", "plain", "modest"]


def test_who_comes_later_passes_where_he_harms_nobody() -> None:
    """A request that wants nothing of what is kept for others is granted at once, and one that waits behind, too."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    queued(ledger, "01:00.0", "0a:00.0", who="gang")
    assert ledger.lease("03:10.0", principal=B).outcome == "granted"
    assert refusal_of(ledger.lease("0a:00.0", principal=B)).code == RefusalCode.DEVICE_KEPT


# --- what is kept ------------------------------------------------------------------------------------------------


def test_what_is_kept_is_told_by_name() -> None:
    """Who is refused because of a keep is told for whom it is, and since when."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    place = queued(ledger, "01:00.0", "0a:00.0", who="gang")
    blocker = refusal_of(ledger.lease("0a:00.0", principal=B)).blockers[0]
    assert (blocker.rule, blocker.holder, blocker.since_position) == ("kept", "gang", place)


def test_a_mate_of_what_is_kept_is_kept_from_others() -> None:
    """A device of the same IOMMU group as a kept one is not given to another holder: it would block what is kept."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    queued(ledger, "01:00.0", "02:00.0", who="gang")
    refused = refusal_of(ledger.lease("02:00.1", principal=B, holder=Holder("other")))
    assert refused.code == RefusalCode.DEVICE_KEPT
    assert refused.blockers[0].because_of == device("02:00.0")


def test_who_comes_first_takes_what_is_kept_for_who_comes_later() -> None:
    """A more urgent request gets a device that is kept for another, which is told, and is looked at again."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    later = queued(ledger, "01:00.0", "0a:00.0", who="gang")
    assert kept_for(ledger, "0a:00.0") == later
    ledger.now_ns += SECOND
    lease = ledger.granted("0a:00.0", principal=B, priority=1)
    assert told(ledger, QueuedMoved)[0].queued == later
    assert ledger.events.index(told(ledger, QueuedMoved)[0]) < ledger.events.index(told(ledger, LeaseGranted)[0])
    settle(ledger)
    assert kept_for(ledger, "0a:00.0") == later, "it may have it next"
    ledger.release(lease, B)
    settle(ledger)
    assert not holder_of(ledger, "0a:00.0"), "it has not all that it needs"
    folds_alike(ledger)


def test_a_waiting_one_that_comes_first_takes_what_is_kept_too() -> None:
    """A more urgent request that has to wait as well keeps what it needs, and who loses it keeps nothing of it."""
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    second = ledger.granted("03:10.0")
    later = queued(ledger, "01:00.0", "0a:00.0", who="later")
    ledger.now_ns += SECOND
    sooner = queued(ledger, "03:10.0", "0a:00.0", who="sooner", priority=5)
    assert (kept_for(ledger, "0a:00.0"), kept_for(ledger, "03:10.0")) == (sooner, sooner)
    settle(ledger)
    assert kept_for(ledger, "01:00.0") == 0, "it could not have all: it keeps nothing from others"
    assert later in ledger.state.queue
    ledger.release(first)
    ledger.release(second)
    settle(ledger)
    assert holder_of(ledger, "0a:00.0") == "sooner"
    assert kept_for(ledger, "01:00.0") == later
    folds_alike(ledger)


def test_who_could_not_have_it_anyway_keeps_nothing() -> None:
    """What waits for a device that is missing keeps none of its others idle."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    place = queued(ledger, "01:00.0", "0a:00.0")
    assert ledger.state.queue[place].keeps == ()
    assert ledger.lease("0a:00.0", principal=B).outcome == "granted"


# --- how it ends --------------------------------------------------------------------------------------------------


def test_taking_it_back() -> None:
    """Who asked may withdraw: what was kept goes to who comes next, and both requests are answered by what happened."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    request = ledger.request(device("01:00.0"), device("0a:00.0"), wait_ms=60_000)
    place = ledger.ask(request).queued
    queued(ledger, "0a:00.0", who="next", principal=B)
    withdraw = WithdrawRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, queued=place, reason="too late")
    assert refusal_of(ledger.ask(withdraw, B)).code == RefusalCode.NOT_YOURS
    withdraw = _replace(withdraw, request_id=ledger.new_id())
    answer = ledger.ask(withdraw)
    assert (answer.outcome, answer.queued) == ("withdrawn", place)
    assert told(ledger, RequestWithdrawn)
    settle(ledger)
    assert holder_of(ledger, "0a:00.0") == "next"
    over = refusal_of(ledger.ask(request))
    assert (over.code, "too late" in over.message) == (RefusalCode.WITHDRAWN, True)
    assert ledger.ask(withdraw).outcome == "withdrawn"
    assert not ledger.events
    again = refusal_of(ledger.ask(_replace(withdraw, request_id=ledger.new_id())))
    assert again.code == RefusalCode.QUEUED_UNKNOWN
    folds_alike(ledger)


def test_an_operator_takes_anybodys_back() -> None:
    """An operator revokes a place in the queue as he would a lease: who waited is told by whom, and why."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    request = ledger.request(device("01:00.0"), wait_ms=60_000)
    place = ledger.ask(request).queued
    revoke = inputs.RevokeRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=place, reason="spam")
    answer = ledger.ask(revoke, words.OPS)
    assert (answer.outcome, answer.queued) == ("revoked", place)
    over = refusal_of(ledger.ask(request))
    assert over.code == RefusalCode.WITHDRAWN
    assert "ops" in over.message and "spam" in over.message
    folds_alike(ledger)


def test_waiting_in_vain() -> None:
    """A request waits until its time is over, to the nanosecond, and is then refused with its last reason."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=3_600_000)
    request = ledger.request(device("01:00.0"), device("0a:00.0"), wait_ms=30_000)
    place = ledger.ask(request).queued
    due_ns = ledger.now_ns + 30 * SECOND
    ledger.now_ns = due_ns - 1
    ledger.tick()
    assert not ledger.events
    assert ledger.sequencer.next_work_ns() == due_ns
    ledger.now_ns = due_ns
    ledger.commit()
    assert told(ledger, WaitingEnded)[0].queued == place
    over = refusal_of(ledger.ask(request))
    assert over.code == RefusalCode.WAITED_IN_VAIN
    assert "30 s" in over.message and "leased" in over.message
    assert ledger.lease("0a:00.0", principal=B).outcome == "granted"
    assert not ledger.sequencer.has_work(ledger.now_ns)
    folds_alike(ledger)


def test_nobody_waits_in_vain_because_of_an_outage() -> None:
    """In a grace time no waiting ends; behind it those end whose time was over."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=3_600_000)
    place = queued(ledger, "01:00.0", wait_ms=30_000)
    ledger.now_ns += 60 * SECOND
    ledger.note(inputs.DeciderStarts("alloc", "outage"))
    ledger.tick(limits.GRACE_MS // 1_000 - 1)
    assert place in ledger.state.queue
    ledger.tick(2)
    assert place not in ledger.state.queue


def test_who_is_granted_at_the_last_moment_did_not_wait_in_vain() -> None:
    """What is free when the time is over was free before: who waits is granted, or refused, and never both."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    request = ledger.request(device("01:00.0"), wait_ms=30_000)
    ledger.ask(request)
    ledger.now_ns += 30 * SECOND
    ledger.release(lease)
    settle(ledger)
    answer = ledger.ask(request)
    assert answer.outcome in ("granted", "refused")
    assert (answer.outcome == "granted") == bool(holder_of(ledger, "01:00.0"))
    folds_alike(ledger)


def test_the_answer_is_forgotten_only_when_it_is_over() -> None:
    """However long it waits and however much its principal asks meanwhile, asking again finds it; later it may fade."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    request = ledger.request(device("01:00.0"), wait_ms=40 * 3_600_000)
    place = ledger.ask(request).queued
    for _ in range(30):
        ledger.now_ns += 3_600 * SECOND
        ledger.lease("7f:00.0")
    assert ledger.ask(request).queued == place
    key = next(iter(ledger.state.queue.values())).request
    ledger.now_ns += 11 * 3_600 * SECOND
    ledger.tick()
    assert ledger.state.answers[key].refusal is not None
    ledger.now_ns += 25 * 3_600 * SECOND
    for _ in range(40):
        ledger.lease("7f:00.0")
    assert key not in ledger.state.answers


# --- what is looked at, and when ----------------------------------------------------------------------------------


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


def test_deciding_again() -> None:
    """A log in which requests wait, lose what was kept, are withdrawn, granted and over, is decided again alike."""
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    queued(ledger, "01:00.0", "0a:00.0", who="gang")
    queued(ledger, "01:00.0", who="later", wait_ms=5_000)
    ledger.granted("03:10.0", principal=B)
    queued(ledger, "0a:00.0", "03:10.0", who="sooner", priority=3)
    place = queued(ledger, "01:00.0", who="last", principal=B)
    given: dict[str, Any] = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns}
    ledger.ask(WithdrawRequest(**given, queued=place), B)
    ledger.tick(6)
    ledger.release(first)
    settle(ledger)
    replay = Replay()
    kinds: set[type[Any]] = set()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
        kinds |= {type(event) for step in codec.decode_record(body, sequence).steps for event in step.events}
    assert {RequestQueued, QueuedMoved, QueueLooked, RequestWithdrawn, WaitingEnded, LeaseGranted} <= kinds
