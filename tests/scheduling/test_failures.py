"""Devices that fail their holders too often: in quarantine with the evidence, until an operator has healed them."""

from typing import Any

import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.hostdev_events import DeviceQuarantined
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import GivenBack, NotPrepared, Stuck
from leasehold.events.position import position_of, sequence_of
from leasehold.events.refusals import RefusalCode
from leasehold.projections.bindings import hold_of, holds_of
from leasehold.projections.decide import decide, next_work_ns
from leasehold.projections.handlog import HandLog
from leasehold.projections.replay import Replay
from leasehold.projections.views import device_word
from tests.projections.ledger import H1, SECOND, A, B, Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling import words
from tests.scheduling.words import code, heal, kinds, word

KEY = DeviceKey("pci/0000:01:00.0")
CARD, OTHER, MATE = device("01:00.0"), device("0a:00.0"), device("02:00.0")


def managed() -> Ledger:
    """Both hosts, the first one with a binder."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    return ledger


def not_prepared(ledger: Ledger, *, gives_back: bool = True) -> int:
    """One lease of the card comes to nothing, since it cannot be prepared."""
    lease = ledger.granted("01:00.0")
    ledger.bind(NotPrepared(KEY, lease, "vfio-pci does not take it"))
    if gives_back:
        ledger.bind(GivenBack(KEY, lease, "igb"))
    return lease


def failures(ledger: Ledger) -> int:
    """How often the card has failed, as far as it is remembered."""
    marks = ledger.state.devices[CARD].marks
    return len(marks.failures) if marks is not None else 0


def quarantines(ledger: Ledger) -> list[DeviceQuarantined]:
    """Those that the last record tells."""
    return [event for event in ledger.events if isinstance(event, DeviceQuarantined)]


def replays(ledger: Ledger) -> None:
    """The whole log is decided again to the same events."""
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
    assert replay.folded_only == 0


# --- into quarantine, and out -------------------------------------------------------------------------------------


def test_what_cannot_be_prepared_again_and_again_is_in_quarantine() -> None:
    """With where each failure stands, and the way out; nobody gets it, and its holders are told why."""
    ledger = managed()
    for _ in range(limits.FAILURES_MAX - 1):
        not_prepared(ledger)
    assert word(ledger, CARD) == "free"
    lease = not_prepared(ledger, gives_back=False)
    ledger.tick()
    (event,) = quarantines(ledger)
    assert (event.lease, event.key, event.host) == (lease, KEY, H1)
    assert isinstance(event.evidence, tuple)
    told = [type(each).__name__ for position in event.evidence for each in _events_at(ledger, position)]
    assert told == ["PrepareFailed"] * limits.FAILURES_MAX
    assert f"leasehold heal {CARD}" in event.help
    words.holds_after_restart(ledger)
    # It is free of its lease when its binder has given it back, and stays where it is.
    ledger.bind(GivenBack(KEY, lease, "igb"))
    assert kinds(ledger) == ["DeviceGivenBack", "DeviceFreed"]
    assert device_word(ledger.state, CARD) == ("quarantined", f"{event.reason}; {event.help}")
    refused = ledger.lease("01:00.0", principal=B)
    assert code(refused) == RefusalCode.DEVICE_QUARANTINED
    assert "failed its holders 3 times" in refusal_of(refused).message
    assert heal(ledger, CARD).outcome == "set"
    assert ledger.state.devices[CARD].marks is None
    assert ledger.lease("01:00.0", principal=B).outcome == "granted"
    replays(ledger)


def _events_at(ledger: Ledger, position: int) -> list[Any]:
    record = codec.decode_record(ledger.bodies[sequence_of(position) - 1], sequence_of(position))
    events = [event for step in record.steps for event in step.events]
    return [events[position % limits.EVENTS_PER_RECORD_MAX]]


def test_nobody_gets_it_before_that_is_told() -> None:
    """On a watched host it is free at once; a request that comes with the end of the lease is refused all the same."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for _ in range(limits.FAILURES_MAX):
        ledger.observe(inputs.DeviceGone(KEY))
        ledger.see(ledger.state.devices[CARD].description)
    token = ledger.state.leases[lease].token
    release = inputs.ReleaseRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=token)
    assert ledger.sequencer.ask(1_000, A, release)
    assert ledger.sequencer.ask(1_001, B, ledger.request(CARD))
    ledger.commit()
    first, second = (reply.answer for reply in ledger.sequencer.replies)
    ledger.sequencer.replies.clear()
    assert first.outcome == "released"
    assert code(second) == RefusalCode.DEVICE_QUARANTINED
    assert next_work_ns(ledger.state, "alloc") == ledger.now_ns
    words.holds_after_restart(ledger)
    ledger.tick()
    assert len(quarantines(ledger)) == 1
    assert next_work_ns(ledger.state, "alloc") != 0
    replays(ledger)


def test_who_has_it_keeps_it() -> None:
    """While a lease lives that came through it all, nothing is told; then it is."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for _ in range(limits.FAILURES_MAX + 1):
        ledger.observe(inputs.DeviceGone(KEY))
        ledger.see(ledger.state.devices[CARD].description)
    ledger.tick()
    assert not quarantines(ledger)
    assert word(ledger, CARD) == "leased"
    assert ledger.renew(lease).outcome == "renewed"
    ledger.release(lease)
    ledger.tick()
    assert len(quarantines(ledger)) == 1


def test_failures_long_ago_do_not_count() -> None:
    """Only those within the window, however many there were."""
    ledger = managed()
    for _ in range(3 * limits.FAILURES_MAX):
        not_prepared(ledger)
        assert word(ledger, CARD) == "free"
        ledger.now_ns += limits.FAILURE_WINDOW_NS // (limits.FAILURES_MAX - 1) + SECOND


@pytest.mark.parametrize("is_near", [False, True])
def test_the_window_has_an_end(*, is_near: bool) -> None:
    """To the nanosecond."""
    ledger = managed()
    not_prepared(ledger)
    ledger.now_ns += limits.FAILURE_WINDOW_NS + (0 if is_near else 1)
    for _ in range(limits.FAILURES_MAX - 1):
        not_prepared(ledger)
    ledger.tick()
    assert word(ledger, CARD) == ("quarantined" if is_near else "free")


# --- what counts --------------------------------------------------------------------------------------------------


def test_a_binders_quarantine_counts_once_however_often_it_is_told() -> None:
    """Until it is over; that its reason changes is nothing new of the device."""
    ledger = managed()
    for number in range(limits.FAILURES_MAX):
        lease = ledger.granted("01:00.0")
        ledger.release(lease)
        for why in ("it does not answer", "it is still busy"):
            ledger.bind(Stuck(KEY, lease, why, "look at it"))
        assert failures(ledger) == number + 1
        ledger.bind(GivenBack(KEY, lease, "igb"))
    ledger.tick()
    assert word(ledger, CARD) == "quarantined"
    assert ledger.state.devices[CARD].quarantine is not None
    replays(ledger)


def test_what_its_host_does_is_not_its_fault() -> None:
    """Missing while the host starts anew, while nobody has it, or told twice: none of that counts."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.DeviceGone(KEY))
    ledger.see(ledger.state.devices.get(CARD).description)  # type: ignore[union-attr]
    assert failures(ledger) == 0
    ledger.granted("01:00.0")
    seen = [row.description for row in ledger.state.devices.values() if row.host == H1 and row.description.key != KEY]
    for run in (2, 3, 4, 5):
        ledger.observe(inputs.SourceStarts(), run=run)
        ledger.observe(inputs.DeviceGone(KEY), run=run)
        ledger.observe(*map(inputs.DeviceSeen, seen), inputs.PictureComplete(since=1), run=run)
        assert ledger.state.devices[CARD].missing
        assert failures(ledger) == 0
        ledger.observe(inputs.DeviceSeen(ledger.state.devices[CARD].description), run=run)
    ledger.observe(inputs.DeviceGone(KEY), run=run)
    assert failures(ledger) == 1


def test_another_thing_in_its_place_counts() -> None:
    """As its going does, while somebody has it."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    for product in ("0001", "0002"):
        ledger.change("01:00.0", product_id=product)
    assert failures(ledger) == 2


# --- beside the binder's own --------------------------------------------------------------------------------------


def test_only_healing_ends_it() -> None:
    """Neither its binder's word nor a confirmation that it is free; what its binder has trouble with is told, too."""
    ledger = managed()
    lease = 0
    for _ in range(limits.FAILURES_MAX):
        lease = not_prepared(ledger, gives_back=False)
        ledger.tick()
        assert ledger.confirm_free(CARD).outcome == "freed"
    assert word(ledger, CARD) == "quarantined"
    refused = ledger.confirm_free(CARD)
    assert code(refused) == RefusalCode.NOTHING_TO_CONFIRM
    assert "heal" in refusal_of(refused).help
    ledger.bind(GivenBack(KEY, 0, "igb"))
    assert not kinds(ledger)
    hold = hold_of(ledger.state, CARD)
    assert hold is not None
    assert not hold.quarantined
    ledger.bind(Stuck(KEY, lease, "it hangs", "pull it out"))
    assert device_word(ledger.state, CARD) == ("quarantined", "it hangs; pull it out")
    ledger.bind(GivenBack(KEY, 0, "igb"))
    ledger.tick()
    quarantine = ledger.state.devices[CARD].quarantine
    assert quarantine is not None
    assert len(quarantine.evidence) == limits.FAILURES_MAX
    words.holds_after_restart(ledger)
    heal(ledger, CARD)
    assert word(ledger, CARD) == "free"
    replays(ledger)


def test_its_binder_follows_it_as_the_log_has_it() -> None:
    """A binder that follows the events knows the same as one that asks: it has nothing to mend."""
    ledger = managed()
    for _ in range(limits.FAILURES_MAX):
        not_prepared(ledger)
    ledger.tick()
    assert word(ledger, CARD) == "quarantined"
    follows = HandLog(H1)
    follows.synced([], {}, 0, 0)
    for sequence, body in enumerate(ledger.bodies, 1):
        record = codec.decode_record(body, sequence)
        for index, event in enumerate(event for step in record.steps for event in step.events):
            follows.hear(position_of(sequence, index), event, record.decided_at_ns, record.era)
    asked = {hold.key: hold for hold in holds_of(ledger.state, H1)}
    assert follows.holds[KEY] == asked[KEY]
    assert not asked[KEY].quarantined


def test_healing_forgets_what_has_not_come_to_a_quarantine_yet() -> None:
    """So that one more failure later is the first again; what has not failed cannot be healed."""
    ledger = managed()
    assert code(heal(ledger, CARD)) == RefusalCode.NOTHING_TO_HEAL
    for _ in range(limits.FAILURES_MAX - 1):
        not_prepared(ledger)
    assert heal(ledger, CARD).outcome == "set"
    not_prepared(ledger)
    assert word(ledger, CARD) == "free"


def test_a_binders_quarantine_is_not_healed() -> None:
    """Its binder, or who confirms that it is free, ends that; its being a failure can be forgotten."""
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    ledger.bind(Stuck(KEY, lease, "it hangs", "pull it out"))
    assert heal(ledger, CARD).outcome == "set"
    assert word(ledger, CARD) == "quarantined"
    refused = heal(ledger, CARD)
    assert code(refused) == RefusalCode.NOTHING_TO_HEAL
    assert "pull it out" in refusal_of(refused).help
    assert ledger.confirm_free(CARD).outcome == "freed"
    assert word(ledger, CARD) == "free"


# --- by earlier rules ---------------------------------------------------------------------------------------------


def test_by_earlier_rules_failures_do_not_matter() -> None:
    """They lead to nothing, neither a quarantine nor a refusal; nor do they by today's, if it was granted since."""
    for is_granted in (True, False):
        ledger = managed()
        ledger.state.rules_version = 4
        for _ in range(limits.FAILURES_MAX):
            not_prepared(ledger)
            ledger.tick()
            assert not quarantines(ledger)
        assert failures(ledger) == limits.FAILURES_MAX
        if is_granted:
            not_prepared(ledger)
            assert failures(ledger) == 1
        ledger.state.rules_version = 5
        events = decide(ledger.state, inputs.Tick("alloc"), ledger.now_ns)
        assert [type(event).__name__ for event in events or []] == ([] if is_granted else ["DeviceQuarantined"])


def test_what_is_tied_to_it_is_kept_back_too() -> None:
    """A device in quarantine blocks its group, as one does that its binder could not take back."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("02:00.0")
    for _ in range(limits.FAILURES_MAX):
        ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:02:00.0")))
        ledger.see(ledger.state.devices[MATE].description)
    ledger.release(lease)
    ledger.tick()
    assert code(ledger.lease("02:00.1", principal=B)) == RefusalCode.DEVICE_QUARANTINED
    assert ledger.lease("0a:00.0").outcome == "granted"
