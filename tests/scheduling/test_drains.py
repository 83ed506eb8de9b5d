"""Taints that end living leases: whose, when, by whose word; and previews that name exactly these."""

import random
import sys
from types import FrameType
from typing import Any

import pytest

from leasehold.events import event_types, inputs, limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.hostdev_events import LeaseRevoked
from leasehold.events.identities import DeviceKey, Holder, Principal, RequestId, request_key
from leasehold.events.position import lease_id_text, parse_lease_id, position_of
from leasehold.events.schedule_inputs import TaintRequest
from leasehold.events.schedule_views import Broken
from leasehold.projections.bindings import hold_of
from leasehold.projections.decide import decide, next_work_ns
from leasehold.projections.previews import moved_over
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import encode_state
from leasehold.projections.views import device_word, lease_view
from tests.projections.domains import UUID, Polled, described, unused, used
from tests.projections.ledger import H1, H2, SECOND, A, B, Ledger, device, ledger_with_hosts, pci
from tests.scheduling import words
from tests.scheduling.words import OPS, drain, kinds, taint, untaint

CARD, OTHER, AWAY = device("01:00.0"), device("0a:00.0"), device("01:00.0", H2)


def living(ledger: Ledger) -> set[int]:
    """All leases that live."""
    return {lease for lease, row in ledger.state.leases.items() if not row.ended}


def revoked(ledger: Ledger) -> list[LeaseRevoked]:
    """The leases that the last record ends by an operator's word."""
    return [event for event in ledger.events if isinstance(event, LeaseRevoked)]


def tolerating(ledger: Ledger, *devices: str, tolerates: tuple[str, ...]) -> int:
    """A lease of somebody who does not mind; it may have been granted before there was anything to tolerate."""
    return ledger.granted(*devices, principal=B, tolerates=tolerates)


def preview(ledger: Ledger, **fields: Any) -> list[Broken]:
    """What a taint would break; nothing is done."""
    state = ledger.state
    before = encode_state(state)
    fields = {"name": "drain", "reason": "r", "effect": "evict", **fields}
    request = TaintRequest(request_id=RequestId("preview"), issued_at_ns=ledger.now_ns, **fields)
    state.journal.begin()
    events = decide(state, inputs.Asked(OPS, request), ledger.now_ns)
    assert events is not None
    broken = moved_over(state, position_of(state.head.sequence + 1, 0), ledger.now_ns, events)
    state.roll_back()
    assert encode_state(state) == before
    return broken


# --- who ends, and when -------------------------------------------------------------------------------------------


def test_a_drained_host_is_given_up_by_who_does_not_tolerate_it() -> None:
    """At once, with the operator's name and reason; who tolerates it stays, and so does who has nothing there."""
    ledger = ledger_with_hosts()
    ends = ledger.granted("01:00.0")
    stays = tolerating(ledger, "0a:00.0", tolerates=("drain",))
    away = ledger.ask(ledger.request(AWAY)).lease
    answer = drain(ledger, host=H1)
    ledger.tick()
    assert kinds(ledger) == ["LeaseRevoked", "DeviceFreed"]
    (event,) = revoked(ledger)
    assert (event.lease, event.reason, event.force) == (ends, "drained: kernel update", False)
    assert (event.request.principal, event.request.request_id) == (OPS, answer.request_id)
    assert living(ledger) == {stays, away}
    assert ledger.state.leases[ends].end_reason == "ops: drained: kernel update"
    assert next_work_ns(ledger.state, "alloc") not in (0, None)
    words.holds_after_restart(ledger)


def test_notice_is_kept_to_the_nanosecond() -> None:
    """Until then the lease lives, and says what is coming; then it ends by itself, without another word."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=3_600_000)
    drain(ledger, host=H1, notice_ms=60_000)
    due_ns = ledger.now_ns + 60 * SECOND
    view = lease_view(ledger.state, lease, asker=A)
    assert view.evicts_at_ns == due_ns
    assert "drained: kernel update" in view.reason
    word, why = device_word(ledger.state, CARD)
    assert word == "leased"
    assert "it is to be given up (ops: drained: kernel update)" in why
    assert next_work_ns(ledger.state, "alloc") == due_ns
    words.holds_after_restart(ledger)
    ledger.now_ns = due_ns - 1
    ledger.tick()
    assert living(ledger) == {lease}
    ledger.now_ns = due_ns
    ledger.tick()
    assert [event.lease for event in revoked(ledger)] == [lease]
    assert lease_view(ledger.state, lease, asker=A).evicts_at_ns == 0


@pytest.mark.parametrize("hours", [1, 30])
def test_what_a_drain_was_answered_stays_its_answer(hours: int) -> None:
    """However long the notice is: the leases that end by it later do not change it, nor bring a forgotten one back."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=limits.LEASE_TTL_MS_MAX)
    answer = drain(ledger, host=H1, notice_ms=hours * 3_600_000)
    key = request_key(OPS, RequestId(answer.request_id))
    assert key in ledger.state.answers
    for _ in range(hours):
        ledger.tick(3_600)
        taint(ledger, "other", host=H2)
    assert not living(ledger)
    known = ledger.state.answers.get(key)
    assert (known.verb if known is not None else "") == ("taint" if hours == 1 else "")


def test_who_is_not_evicted_yet_stays_when_the_taint_goes() -> None:
    """Or is replaced by one that only keeps others away."""
    for undo in ("untaint", "replace"):
        ledger = ledger_with_hosts()
        lease = ledger.granted("01:00.0")
        drain(ledger, host=H1, notice_ms=5_000)
        if undo == "untaint":
            untaint(ledger, "drain", host=H1)
        else:
            taint(ledger, "drain", host=H1)
        ledger.tick(6)
        assert living(ledger) == {lease}, undo
        assert not ledger.state.indexes.evictions
        words.holds_after_restart(ledger)


def test_the_taint_that_comes_first_counts() -> None:
    """Of several of host and devices, whatever the order in which they were said; each lease ends once."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", "0a:00.0", ttl_ms=3_600_000)
    drain(ledger, host=H1, notice_ms=60_000)
    taint(ledger, "hot", device=OTHER, effect="evict", notice_ms=10_000, value="85")
    taint(ledger, "loud", device=CARD, effect="evict", notice_ms=30_000)
    ledger.tick(10)
    (event,) = revoked(ledger)
    assert (event.lease, event.reason) == (lease, "tainted hot=85: kernel update")
    ledger.tick(100)
    assert not revoked(ledger)


def test_a_lease_of_several_hosts_ends_as_a_whole() -> None:
    """Also of what is not drained."""
    ledger = ledger_with_hosts()
    lease = ledger.ask(ledger.request(CARD, AWAY)).lease
    (broken,) = preview(ledger, host=H2)
    assert (broken.lease, broken.devices) == (lease_id_text(lease), (AWAY,))
    drain(ledger, host=H2)
    ledger.tick()
    assert kinds(ledger) == ["LeaseRevoked", "DeviceFreed", "DeviceFreed"]


def test_what_expires_at_that_moment_ends_once() -> None:
    """By its time, since its holder was silent; the taint ends nothing that has ended."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=10_000)
    other = ledger.granted("0a:00.0", ttl_ms=60_000)
    drain(ledger, host=H1, notice_ms=10_000)
    ledger.tick(10)
    assert kinds(ledger) == ["LeaseExpired", "DeviceFreed", "LeaseRevoked", "DeviceFreed"]
    assert (ledger.state.leases[lease].ended, ledger.state.leases[other].ended) == ("expired", "revoked")


def test_a_domain_keeps_its_devices_until_it_lets_go() -> None:
    """On a managed host: the lease ends without force, and its binder waits for the domain."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    poller = Polled(ledger)
    poller.say(inputs.DomainSeen(described()))
    lease = ledger.granted("01:00.0", domain=UUID)
    poller.say(used("pci/0000:01:00.0"))
    (broken,) = preview(ledger, device=CARD)
    assert broken.domain == UUID
    drain(ledger, device=CARD)
    ledger.tick()
    assert kinds(ledger) == ["LeaseRevoked"]
    hold = hold_of(ledger.state, CARD)
    assert hold is not None
    assert (hold.lease, hold.token, hold.revoked) == (lease, 0, False)
    ledger.bind(inputs.GivenBack(DeviceKey("pci/0000:01:00.0"), lease, "igb"))
    assert "DeviceFreed" not in kinds(ledger)
    poller.say(unused("pci/0000:01:00.0"))
    ledger.tick()
    assert words.word(ledger, CARD) == "tainted"


def test_who_shares_is_evicted_and_who_looks_on_is_not() -> None:
    """Shared leases end at once; one that only looks on has nothing that could be taken away."""
    ledger = ledger_with_hosts()
    words.policy(ledger, CARD, share_max=3)
    first = ledger.granted("01:00.0", mode="shared")
    second = ledger.granted("01:00.0", mode="shared", principal=B, holder=Holder("other"), tolerates=("drain",))
    watcher = ledger.granted("01:00.0", mode="admin", principal=B)
    assert words.word(ledger, CARD) == "shared"
    assert [broken.lease for broken in preview(ledger, host=H1)] == [lease_id_text(first)]
    drain(ledger, host=H1)
    ledger.tick()
    assert kinds(ledger) == ["LeaseRevoked"]
    assert living(ledger) == {second, watcher}
    words.holds_after_restart(ledger)


def test_what_the_decider_leaves_undone_another_takes_over() -> None:
    """A notice that is over is acted upon by whoever sees it, behind the time that a takeover waits."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=3_600_000)
    drain(ledger, host=H1, notice_ms=5_000)
    due_ns = ledger.now_ns + 5 * SECOND
    late_ns = due_ns + limits.TAKEOVER_MS * 1_000_000
    assert next_work_ns(ledger.state, "another") == late_ns
    assert decide(ledger.state, inputs.Tick("another"), late_ns - 1) is None
    events = decide(ledger.state, inputs.Tick("another"), late_ns)
    assert events is not None
    assert isinstance(events[0], event_types.GraceStarted)
    ledger.now_ns = late_ns
    ledger.note(inputs.DeciderStarts("alloc", "takeover"))
    # No grace for what was announced: it is not the holder's silence that ends it.
    assert kinds(ledger) == ["GraceStarted", "LeaseRevoked", "DeviceFreed"]
    assert [event.lease for event in revoked(ledger)] == [lease]


# --- many ---------------------------------------------------------------------------------------------------------


def crowded(leases: int, *, each: int = 1) -> Ledger:
    """A host with so many leases of `each` devices."""
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    ledger.observe(inputs.SourceStarts())
    devices: list[DeviceDescription] = [
        pci(f"{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}", iommu_group=number)
        for number in range(leases * each)
    ]
    for start in range(0, len(devices), 200):
        ledger.see(*devices[start : start + 200])
    ledger.observe(inputs.PictureComplete(since=1))
    ledger.now_ns += 31 * SECOND
    for number in range(leases):
        some = [f"h1/{row.key}" for row in devices[number * each : number * each + each]]
        request = ledger.request(*some, holder=Holder(f"job-{number}"), ttl_ms=3_600_000)
        assert ledger.sequencer.ask(number, A, request)
        if number % 50 == 49:
            ledger.commit()
    while ledger.sequencer.waiting:
        ledger.commit()
    ledger.sequencer.replies.clear()
    assert len(living(ledger)) == leases
    return ledger


def test_a_drain_of_thousands_of_leases_goes_over_many_records() -> None:
    """None of them is overfull, each lease ends once, its devices with it, and the work ends."""
    ledger = crowded(2_000, each=2)
    leases = living(ledger)
    broken = preview(ledger, host=H1)
    assert {parse_lease_id(each.lease) for each in broken} == leases
    drain(ledger, host=H1)
    ended: list[int] = []
    records = 0
    while next_work_ns(ledger.state, "alloc") == ledger.state.head.decided_at_ns or ledger.state.indexes.evictions:
        ledger.commit()
        records += 1
        assert 1 <= len(ledger.events) <= limits.EVENTS_PER_RECORD_MAX
        assert kinds(ledger) == ["LeaseRevoked", "DeviceFreed", "DeviceFreed"] * (len(ledger.events) // 3)
        ended += [event.lease for event in revoked(ledger)]
    assert sorted(ended) == sorted(leases)
    assert len(ended) == len(set(ended))
    assert records == -(-2_000 // (limits.EVENTS_PER_RECORD_MAX // 3))
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None


def calls_of_a_tick(ledger: Ledger) -> int:
    """How many functions a tick calls."""
    calls = 0

    def count(_frame: FrameType, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    tick = inputs.Tick("alloc")
    sys.setprofile(count)
    try:
        decide(ledger.state, tick, ledger.now_ns)
    finally:
        sys.setprofile(None)
    return calls


def test_a_tick_does_not_look_at_who_is_not_concerned() -> None:
    """With ten times as many leases under notice on the host, a tick that evicts one costs the same."""
    costs = []
    for leases in (40, 400):
        ledger = crowded(leases)
        drain(ledger, host=H1, notice_ms=600_000)
        drain(ledger, device=DEVICE)
        costs.append(calls_of_a_tick(ledger))
        ledger.tick()
        assert len(revoked(ledger)) == 1
    assert costs[1] <= costs[0] + 12, costs


DEVICE = "h1/pci/0000:00:01.0"


# --- previews -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_preview_names_exactly_what_then_breaks(seed: int) -> None:
    """In any world: these leases end by this request, with this notice, and no others."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = _any_world(chance)
    fields: dict[str, Any] = {
        "name": chance.choice(("drain", "hot")),
        "value": chance.choice(("", "85")),
        "notice_ms": chance.choice((0, 0, 20_000)),
        **_any_target(chance),
    }
    broken = preview(ledger, **fields)
    assert len({each.lease for each in broken}) == len(broken)
    answer = taint(ledger, effect="evict", **fields)
    promised = {each.lease: each.ends_at_ns for each in broken}
    came: dict[str, int] = {}
    others = 0
    for _ in range(60):
        ledger.tick(1)
        for event in revoked(ledger):
            if event.request.request_id == answer.request_id:
                came[lease_id_text(event.lease)] = ledger.now_ns
            else:
                others += 1
    assert came.keys() == promised.keys(), (came, promised, others)
    for lease, at_ns in came.items():
        assert 0 <= at_ns - promised[lease] <= SECOND
    words.holds_after_restart(ledger)


FREE = ("01:00.0", "02:00.0", "02:00.1", "03:10.0", "03:10.1", "0a:00.0", "2-2", "2-1.1", "2-1.2")


def _any_target(chance: random.Random) -> dict[str, str]:
    if chance.random() < 0.5:
        return {"host": chance.choice((H1, H1, H2))}
    return {"device": chance.choice([*(device(text) for text in FREE), device("0b:00.0", H2), AWAY])}


def _any_world(chance: random.Random) -> Ledger:
    """Leases of all kinds, some ended, some under other taints, some with several devices or hosts."""
    ledger = ledger_with_hosts()
    for text in ("2-2", "03:10.1"):
        words.policy(ledger, device(text), share_max=chance.randint(1, 3))
    for number in range(14):
        some = [device(text) for text in chance.sample(FREE, chance.choice((1, 1, 2)))]
        some += [device("0b:00.0", H2)] if chance.random() < 0.2 else []
        tolerates = chance.choice(((), (), ("drain",), ("hot=85",), ("*",)))
        mode = chance.choice(("", "", "", "shared", "admin"))
        principal = chance.choice((A, B, Principal("c")))
        request = ledger.request(*some, tolerates=tolerates, mode=mode, ttl_ms=3_600_000, holder=Holder(f"h{number}"))
        answer = ledger.ask(request, principal)
        if answer.outcome == "granted" and chance.random() < 0.2:
            ledger.release(answer.lease, principal)
        if chance.random() < 0.15:
            effect, notice_ms = chance.choice((("no_grant", 0), ("evict", 30_000), ("evict", 10_000)))
            taint(ledger, chance.choice(("hot", "loud")), effect=effect, notice_ms=notice_ms, **_any_target(chance))
    return ledger


def test_a_preview_of_other_words_names_what_they_end() -> None:
    """A revocation and a release name their lease; what ends nothing, nobody."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    state = ledger.state
    base: dict[str, Any] = {"request_id": RequestId("x"), "issued_at_ns": ledger.now_ns}
    revoke = inputs.Asked(OPS, inputs.RevokeRequest(lease=lease, reason="r", **base))
    release = inputs.Asked(A, inputs.ReleaseRequest(lease=lease, token=state.leases[lease].token, **base))
    asked = inputs.Asked(B, ledger.request(OTHER))
    for given, expected in ((revoke, [lease_id_text(lease)]), (release, [lease_id_text(lease)]), (asked, [])):
        state.journal.begin()
        events = decide(state, given, ledger.now_ns)
        broken = moved_over(state, position_of(state.head.sequence + 1, 0), ledger.now_ns, events or [])
        state.roll_back()
        assert [each.lease for each in broken] == expected
