"""What becomes of requests: once, in time, by whom it may be, and with the token that counts."""

from typing import Any

import msgspec
import pytest

from leasehold.events import event_types, inputs, limits
from leasehold.events.identities import DeviceId, DeviceKey, Holder, RequestId
from leasehold.events.refusals import RefusalCode
from leasehold.projections.fencing import check_token
from tests.projections.ledger import H1, SECOND, A, B, Ledger, device, ledger_with_hosts, refusal_of

HOUR = 3_600 * SECOND
_replace = msgspec.structs.replace


def kinds(ledger: Ledger) -> list[str]:
    """The types of the events of the last record."""
    return [type(event).__name__ for event in ledger.events]


# --- asking again -------------------------------------------------------------------------------------------------


def test_asking_again_is_one_effect() -> None:
    """The same request, said again, makes no record and gets the same lease, as it is now."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    first = ledger.ask(request)
    ledger.now_ns += SECOND
    again = ledger.ask(_replace(request, issued_at_ns=ledger.now_ns))
    assert not ledger.events
    assert (again.outcome, again.lease, again.position) == ("granted", first.lease, first.position)
    ledger.release(first.lease)
    assert ledger.ask(request).ended == "released"
    assert ledger.ask(request).state == "ended"


@pytest.mark.parametrize("verb", ["renew", "release", "confirm_free", "refused"])
def test_every_request_is_remembered(verb: str) -> None:
    """Renewals, releases, confirmations and refusals are answered again as they were, without another event."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    common: dict[str, Any] = {"request_id": RequestId("x"), "issued_at_ns": ledger.now_ns}
    if verb == "confirm_free":
        ledger.change("01:00.0", in_use_by=("vm",))
        ledger.release(lease)
    requests: dict[str, inputs.Request] = {
        "renew": inputs.RenewRequest(**common, lease=lease, token=lease, ttl_ms=50_000),
        "release": inputs.ReleaseRequest(**common, lease=lease, token=lease),
        "confirm_free": inputs.ConfirmFreeRequest(**common, device=device("01:00.0"), reason="gone"),
        "refused": inputs.LeaseRequest(**common, devices=("nothing",), holder=Holder("vm"), ttl_ms=1_000),
    }
    request = requests[verb]
    first = ledger.ask(request)
    assert ledger.events
    assert first.outcome == {"renew": "renewed", "release": "released", "confirm_free": "freed"}.get(verb, "refused")
    again = ledger.ask(request)
    assert not ledger.events
    assert again == _replace(first, as_of=again.as_of)


def test_an_id_names_one_request() -> None:
    """Another body under a known id is refused, and the first request's answer stays what it was."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    lease = ledger.ask(request).lease
    other = _replace(request, holder=Holder("other"), devices=(device("0a:00.0"),))
    assert refusal_of(ledger.ask(other)).code == RefusalCode.REQUEST_ID_REUSED
    assert refusal_of(ledger.ask(other)).code == RefusalCode.REQUEST_ID_REUSED
    assert ledger.ask(request).lease == lease
    assert not ledger.state.devices[device("0a:00.0")].lease


def test_ids_are_each_principals_own() -> None:
    """The same id of another principal is another request."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    assert ledger.ask(request, A).outcome == "granted"
    assert refusal_of(ledger.ask(request, B)).code == RefusalCode.DEVICE_HELD


def test_two_of_one_request_in_one_record() -> None:
    """A request that comes twice before it is decided is decided once and answered twice."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"))
    assert ledger.sequencer.ask(101, A, request)
    assert ledger.sequencer.ask(102, A, request)
    ledger.commit()
    assert kinds(ledger) == ["LeaseGranted"]
    assert {reply.ticket: reply.answer.outcome for reply in ledger.sequencer.replies} == {
        101: "granted",
        102: "granted",
    }


# --- when it was asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_ns", "code"),
    [
        (0, None),
        (limits.REQUEST_AGE_NS_MAX - 1, None),
        (limits.REQUEST_AGE_NS_MAX, RefusalCode.REQUEST_TOO_OLD),
        (-limits.REQUEST_AHEAD_NS_MAX, None),
        (-limits.REQUEST_AHEAD_NS_MAX - 1, RefusalCode.REQUEST_FROM_FUTURE),
    ],
)
def test_time_of_issue(age_ns: int, code: RefusalCode | None) -> None:
    """A request older than its answer would be remembered, or too far ahead, is refused; a known one is answered."""
    ledger = ledger_with_hosts()
    answer = ledger.lease("01:00.0", issued_at_ns=ledger.now_ns - age_ns)
    assert (answer.refusal.code if answer.refusal else None) == code


def test_a_known_request_is_never_too_old() -> None:
    """What is remembered is answered, however long ago it was issued."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"), ttl_ms=limits.LEASE_TTL_MS_MAX)
    lease = ledger.ask(request).lease
    ledger.now_ns += 26 * HOUR
    assert ledger.ask(request).lease == lease


def test_what_is_forgotten_is_too_old() -> None:
    """When an answer has been forgotten, its request is too old to be decided anew: never two effects."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("01:00.0"), issued_at_ns=ledger.now_ns + limits.REQUEST_AHEAD_NS_MAX)
    ledger.release(ledger.ask(request).lease)
    ended_ns = ledger.now_ns
    remembered = True
    for seconds in range(0, 3 * limits.REQUEST_KEPT_NS // SECOND, 1_799):
        ledger.now_ns = ended_ns + seconds * SECOND
        ledger.lease("nothing")  # something happens, so that something can be forgotten
        answer = ledger.ask(request)
        if answer.outcome == "refused":
            assert refusal_of(answer).code == RefusalCode.REQUEST_TOO_OLD
            remembered = False
        else:
            assert remembered
            assert (answer.outcome, answer.ended) == ("granted", "released")
    assert not remembered
    assert not ledger.state.devices[device("01:00.0")].lease


def test_memory_of_one_principal_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bound the oldest answers go, what they answered is too old from then on, and no other suffers."""
    monkeypatch.setattr(limits, "REQUESTS_KEPT_PER_PRINCIPAL_MAX", 5)
    ledger = ledger_with_hosts()
    asked = []
    for _ in range(12):
        ledger.now_ns += 20 * SECOND
        asked.append(ledger.request("nothing", holder=Holder("vm")))
        assert refusal_of(ledger.ask(asked[-1])).code == RefusalCode.DEVICE_UNKNOWN
    stranger = ledger.request(device("01:00.0"), issued_at_ns=asked[0].issued_at_ns)
    assert ledger.ask(stranger, B).outcome == "granted"
    codes = [refusal_of(ledger.ask(request)).code for request in reversed(asked)]
    assert codes[:5] == [RefusalCode.DEVICE_UNKNOWN] * 5
    assert set(codes[5:]) == {RefusalCode.REQUEST_TOO_OLD}
    assert len([key for key in ledger.state.answers if key.startswith("a/")]) <= 6


# --- leases of others, stale tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["renew", "release"])
def test_who_may_act_on_a_lease(verb: str) -> None:
    """Only the principal that asked for it, with its token, while it lives; each other case has its own code."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    act = ledger.renew if verb == "renew" else ledger.release
    common: dict[str, Any] = {"issued_at_ns": ledger.now_ns}
    kind = inputs.RenewRequest if verb == "renew" else inputs.ReleaseRequest
    unknown = kind(request_id=ledger.new_id(), lease=lease + 1, token=lease + 1, **common)
    wrong = kind(request_id=ledger.new_id(), lease=lease, token=lease - 1, **common)
    assert refusal_of(ledger.ask(unknown)).code == RefusalCode.LEASE_UNKNOWN
    assert refusal_of(ledger.ask(wrong)).code == RefusalCode.TOKEN_STALE
    assert refusal_of(act(lease, B)).code == RefusalCode.NOT_YOURS
    assert act(lease).outcome == f"{verb}ed".replace("ee", "e")
    if verb == "renew":
        ledger.release(lease)
    assert refusal_of(act(lease)).code == RefusalCode.LEASE_ENDED


def test_the_fence() -> None:
    """A token is let in while its lease lives, and never again once it has ended or another has come."""
    ledger = ledger_with_hosts()
    first = ledger.granted("01:00.0")
    there = device("01:00.0")
    assert check_token(ledger.state, there, first) is None
    assert check_token(ledger.state, device("01:00.0/net/0"), first) is None
    assert check_token(ledger.state, device("0a:00.0"), first) is not None
    assert check_token(ledger.state, there, first + 1) is not None
    assert check_token(ledger.state, DeviceId("h1/pci/0000:ff:00.0"), first) is not None
    ledger.release(first)
    assert check_token(ledger.state, there, first) is not None
    second = ledger.granted("01:00.0")
    assert check_token(ledger.state, there, first) is not None
    assert check_token(ledger.state, there, second) is None


# --- the end of a lease -------------------------------------------------------------------------------------------


def test_release_frees_at_once_with_evidence() -> None:
    """Where a fresh picture shows no user, the end and the freeing stand in one record."""
    ledger = ledger_with_hosts()
    answer = ledger.release(ledger.granted("01:00.0", "0a:00.0"))
    assert kinds(ledger) == ["LeaseReleased", "DeviceFreed", "DeviceFreed"]
    assert answer.state == "ended"
    ledger.granted("01:00.0", principal=B)


@pytest.mark.parametrize("evidence", ["use ends", "device goes", "picture comes back", "operator"])
def test_no_release_without_evidence(evidence: str) -> None:
    """A device in use after its lease is held until the use is seen to end, it is gone, or an operator says so."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    if evidence == "picture comes back":
        ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    else:
        ledger.change("01:00.0", in_use_by=("vm",))
    assert ledger.release(lease).state == "ending"
    ledger.tick(3_600)
    assert refusal_of(ledger.lease("01:00.0", principal=B)).code in {RefusalCode.DEVICE_HELD, RefusalCode.HOST_STALE}
    if evidence == "use ends":
        ledger.change("01:00.0", in_use_by=())
    elif evidence == "device goes":
        ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    elif evidence == "picture comes back":
        ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=True))
    else:
        assert ledger.confirm_free(device("01:00.0")).outcome == "freed"
    freed = next(event for event in ledger.events if isinstance(event, event_types.DeviceFreed))
    assert freed.evidence
    assert not ledger.state.devices[device("01:00.0")].lease


def test_managed_hosts_wait_for_their_binder() -> None:
    """On a host where a binder acts, what a watcher sees is no evidence; an operator's word is."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.start_binder(H1)
    assert ledger.release(lease).state == "ending"
    ledger.tick(3_600)
    assert ledger.state.devices[device("01:00.0")].ending
    assert ledger.confirm_free(device("01:00.0")).outcome == "freed"


@pytest.mark.parametrize("text", ["01:00.0", "0a:00.0"])
def test_nothing_to_confirm(text: str) -> None:
    """A device that is free, or whose lease lives, cannot be confirmed free."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0")
    assert refusal_of(ledger.confirm_free(device(text))).code == RefusalCode.NOTHING_TO_CONFIRM
    assert refusal_of(ledger.confirm_free("nothing")).code == RefusalCode.DEVICE_UNKNOWN


# --- expiry -------------------------------------------------------------------------------------------------------


def test_expiry() -> None:
    """A lease ends when its time is over and not before, by a decision in the log."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=10_000)
    ledger.now_ns += 10 * SECOND - 1
    ledger.tick()
    assert not ledger.events
    ledger.now_ns += 1
    ledger.tick()
    assert kinds(ledger) == ["LeaseExpired", "DeviceFreed"]
    assert refusal_of(ledger.renew(lease)).code == RefusalCode.LEASE_ENDED


def test_a_renewal_before_the_tick_wins() -> None:
    """A lease lives until its expiry is in the log: a renewal that stands before it keeps it, however late."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=10_000)
    ledger.now_ns += 3_600 * SECOND
    assert ledger.renew(lease).outcome == "renewed"
    ledger.tick(14)
    assert not ledger.events
    ledger.tick(1)
    assert kinds(ledger) == ["LeaseExpired", "DeviceFreed"]


@pytest.mark.parametrize(("ttl_ms", "seconds"), [(0, 10), (5_000, 5), (60_000, 60)])
def test_renewals(ttl_ms: int, seconds: int) -> None:
    """A renewal counts from when it is decided: for as long as the grant, or as it says, shorter or longer; and the
    ledger keeps the lease for half of that more.
    """
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", ttl_ms=10_000)
    ledger.now_ns += 8 * SECOND
    answer = ledger.renew(lease, ttl_ms=ttl_ms)
    kept_ns = seconds * SECOND * 3 // 2
    assert answer.expires_at_ns == ledger.now_ns + kept_ns
    assert answer.ttl_ms == seconds * 1_000
    ledger.now_ns += kept_ns - 1
    ledger.tick()
    assert not ledger.events
    ledger.now_ns += 1
    ledger.tick()
    assert "LeaseExpired" in kinds(ledger)


def test_renewals_that_were_forgotten() -> None:
    """Of a long row of renewals only the last are remembered; an older one that comes again is too old, not new."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    asked = []
    for number in range(limits.RENEWALS_KEPT_PER_LEASE + 3):
        ledger.now_ns += SECOND
        request = inputs.RenewRequest(
            request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=lease, ttl_ms=60_001 + number
        )
        asked.append(request)
        assert ledger.ask(request).outcome == "renewed"
    expires_at_ns = ledger.state.leases[lease].expires_at_ns
    outcomes = [ledger.ask(request).outcome for request in reversed(asked)]
    assert outcomes == ["renewed"] * limits.RENEWALS_KEPT_PER_LEASE + ["refused"] * 3
    assert ledger.state.leases[lease].expires_at_ns == expires_at_ns


def test_grace() -> None:
    """After a start or an outage nothing expires for the grace time, then at once."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=1_000)
    ledger.now_ns += SECOND
    ledger.note(inputs.DeciderStarts("alloc", "outage"))
    assert kinds(ledger) == ["GraceStarted"]
    ledger.now_ns += limits.GRACE_MS * 1_000_000 - 1
    ledger.tick()
    assert not ledger.events
    ledger.now_ns += 1
    ledger.tick()
    assert kinds(ledger) == ["LeaseExpired", "DeviceFreed"]


def test_takeover() -> None:
    """Another allocator lets nothing expire before it has taken over, late, and given a grace time of its own."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", ttl_ms=1_000)
    ledger.sequencer.writer = "standby"
    ledger.now_ns += SECOND + limits.TAKEOVER_MS * 1_000_000 - 1
    ledger.tick()
    assert not ledger.events
    ledger.now_ns += 1
    ledger.tick()
    assert kinds(ledger) == ["GraceStarted"]
    assert ledger.state.head.decider == "standby"
    ledger.tick(limits.GRACE_MS // 1_000 - 1)
    assert not ledger.events
    ledger.tick(1)
    assert "LeaseExpired" in kinds(ledger)


def test_anyone_frees_what_has_evidence() -> None:
    """Freeing is no judgement over time, so an allocator that is not the decider does it too."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.change("01:00.0", in_use_by=("vm",))
    ledger.release(lease)
    ledger.sequencer.writer = "standby"
    ledger.change("01:00.0", in_use_by=())
    assert "DeviceFreed" in kinds(ledger)


# --- refusals that repeat -----------------------------------------------------------------------------------------


def test_equal_refusals_are_counted() -> None:
    """The same refusal of the same principal within the window is counted on the first, then told anew."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", principal=B)
    first = ledger.lease("01:00.0")
    assert kinds(ledger) == ["RequestRefused"]
    for count in (1, 2):
        ledger.now_ns += SECOND
        assert refusal_of(ledger.lease("01:00.0")) == first.refusal
        (repeated,) = ledger.events
        assert isinstance(repeated, event_types.RefusalsRepeated)
        assert (repeated.first, repeated.count) == (first.position, count)
    ledger.now_ns += limits.REFUSAL_WINDOW_NS
    ledger.lease("01:00.0")
    assert kinds(ledger) == ["RequestRefused"]


def test_unequal_refusals_are_told() -> None:
    """Another principal, another device or another lease in the way makes another refusal."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", "02:00.0", principal=B)
    ledger.lease("01:00.0")
    for change in ("device", "principal", "lease"):
        if change == "lease":
            ledger.release(lease, B)
            ledger.granted("01:00.0", principal=B)
        ledger.lease("02:00.0" if change == "device" else "01:00.0", principal=B if change == "principal" else A)
        assert kinds(ledger) == ["RequestRefused"], change
