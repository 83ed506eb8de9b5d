"""Requests that wait: who is let in, who comes first, how it ends, and what is kept for whom meanwhile."""

from typing import Any

import msgspec
import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import DeviceKey, Holder, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.events.schedule_events import QueuedMoved, QueueLooked, RequestQueued, RequestWithdrawn, WaitingEnded
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.projections.replay import Replay
from tests.projections.ledger import SECOND, B, device, ledger_with_hosts, refusal_of
from tests.scheduling import words
from tests.scheduling.queues import folds_alike, holder_of, kept_for, queued, settle, told, waits

_replace = msgspec.structs.replace
C = Principal("c")


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


# --- the log ------------------------------------------------------------------------------------------------------


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
