"""Leases that end with a domain: when they do, and what keeps them from it."""

from typing import Any

import pytest

from leasehold.events import event_types, inputs
from leasehold.events.identities import Principal
from leasehold.projections.decide import decide
from leasehold.projections.views import lease_view
from tests.projections.domains import UUID, Polled, described, domain, polled_ledger, unused, used
from tests.projections.ledger import H1, H2, SECOND, Ledger, device

GONE_S = 60
A = Principal("a")


def _bound(**fields: Any) -> tuple[Ledger, Polled, int]:
    """A lease of a device for a domain that is not known yet."""
    ledger, poller = polled_ledger()
    lease = ledger.granted("01:00.0", **{"domain": UUID, "gone_ms": GONE_S * 1_000, "ttl_ms": 5_000, **fields})
    return ledger, poller, lease


def _gone_since(ledger: Ledger, lease: int) -> int:
    return lease_view(ledger.state, lease, asker=A).gone_since_ns


def _pass(ledger: Ledger, seconds: int) -> None:
    """Time passes, and is looked at on the way as often as there is something to do."""
    until_ns = ledger.now_ns + seconds * SECOND
    while True:
        due_ns = ledger.sequencer.next_work_ns()
        if due_ns is None or due_ns > until_ns:
            break
        ledger.now_ns = max(ledger.now_ns, due_ns)
        ledger.tick()
    ledger.now_ns = until_ns


def _ended(ledger: Ledger, lease: int) -> str:
    row = ledger.state.leases.get(lease)
    return row.ended if row is not None else "forgotten"


def test_until_the_domain_is_seen_the_lease_ends_by_time() -> None:
    """A lease for a domain that never comes expires as any other."""
    ledger, _, lease = _bound()
    _pass(ledger, 4)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 2)
    assert _ended(ledger, lease) == "expired"


def test_while_the_domain_is_there_the_lease_lives() -> None:
    """It does not expire, however long nobody renews it, and shows that it has no time to end."""
    ledger, poller, lease = _bound()
    assert lease_view(ledger.state, lease, asker=A).expires_at_ns == ledger.now_ns + 5 * SECOND
    poller.see()
    _pass(ledger, 30 * 24 * 3_600)
    view = lease_view(ledger.state, lease, asker=A)
    assert (view.state, view.domain, view.gone_ms, view.gone_since_ns) == ("living", UUID, GONE_S * 1_000, 0)
    assert view.expires_at_ns == 0


@pytest.mark.parametrize("known_before", [False, True])
def test_the_lease_ends_when_the_domain_has_been_gone_for_long_enough(known_before: bool) -> None:
    """Not a moment before; and the device is free at once, since neither watcher nor poller shows a user."""
    ledger, poller = polled_ledger()
    if known_before:
        poller.see()
    lease = ledger.granted("01:00.0", domain=UUID, gone_ms=GONE_S * 1_000, ttl_ms=5_000)
    if not known_before:
        poller.see()
    poller.say(used("pci/0000:01:00.0"))
    poller.say(unused("pci/0000:01:00.0"), inputs.DomainGone(described().key))
    gone_ns = ledger.now_ns
    assert _gone_since(ledger, lease) == gone_ns
    _pass(ledger, GONE_S - 1)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 1)
    assert [type(event).__name__ for event in ledger.events] == ["LeaseOutlived", "DeviceFreed"]
    (end,) = [event for event in ledger.events if isinstance(event, event_types.LeaseOutlived)]
    assert (end.lease, end.domain, end.gone_since_ns) == (lease, UUID, gone_ns)
    assert _ended(ledger, lease) == "outlived"
    assert not ledger.state.indexes.bonds
    assert not ledger.state.indexes.bonded


@pytest.mark.parametrize("fields", [{"domid": -1, "state": "halted"}, {"domid": -1, "state": "suspended"}])
def test_a_halted_domain_is_gone(fields: dict[str, Any]) -> None:
    """A domain that is still known and has no incarnation has no devices: its lease ends."""
    ledger, poller, lease = _bound()
    poller.see(**fields)
    assert _gone_since(ledger, lease) == 0, "it was not there yet"
    poller.see()
    poller.see(**fields)
    _pass(ledger, GONE_S)
    assert _ended(ledger, lease) == "outlived"


@pytest.mark.parametrize(
    "fields",
    [
        {"domid": 7, "state": "dying"},
        {"domid": -1, "state": "dying"},
        {"domid": -1, "state": "unknown"},
        {"domid": 7, "state": "crashed"},
        {"domid": 7, "state": "paused"},
        {"domid": 8, "state": "running"},
    ],
)
def test_a_domain_that_may_hold_devices_is_there(fields: dict[str, Any]) -> None:
    """A dying or a crashed domain, and one of which nobody can tell, keep the lease."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.see(**fields)
    _pass(ledger, 100 * GONE_S)
    assert _ended(ledger, lease) == ""


def test_a_reboot_keeps_the_lease() -> None:
    """A gap that is shorter than the grace time ends nothing, and the next one begins from zero."""
    ledger, poller, lease = _bound()
    for domid in (7, 8, 9):
        poller.see(domid=domid)
        poller.gone()
        _pass(ledger, GONE_S - 1)
    poller.see(domid=10)
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, lease) == ""


def test_what_is_new_of_a_gone_domain_does_not_stop_the_clock() -> None:
    """A halted domain that is renamed, or a domain of that uuid elsewhere, is as gone as before."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.see(domid=-1, state="halted")
    since_ns = ledger.now_ns
    _pass(ledger, GONE_S - 1)
    poller.see(domid=-1, state="halted", name="web2")
    poller.say(inputs.DomainGone(described().key))
    Polled(ledger, H2).see()
    assert _gone_since(ledger, lease) == since_ns
    _pass(ledger, 1)
    assert _ended(ledger, lease) == "outlived"


@pytest.mark.parametrize("how", ["blind", "silent", "restarted", "watcher", "gap"])
def test_a_doubtful_picture_stops_the_clock(how: str) -> None:
    """While a host's picture may be out of date nothing is gone; when it is up to date again the clock begins anew."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    _pass(ledger, GONE_S - 1)
    if how == "blind":
        poller.say(inputs.SourceBlind("no answer"))
    elif how == "silent":
        poller.hear(alive=False)
    elif how == "restarted":
        poller.run += 1
        poller.counter = -1
        poller.say(inputs.SourceStarts())
    elif how == "watcher":
        ledger.observe(inputs.SourceStops())
    else:
        poller.counter += 1
        poller.say(inputs.StillHere())
    assert ledger.state.hosts[H1].stale
    assert _gone_since(ledger, lease) == 0
    _pass(ledger, 100 * GONE_S)
    assert _ended(ledger, lease) == ""
    if how == "blind":
        poller.say(inputs.SourceSees())
    elif how == "silent":
        poller.hear(alive=True)
    elif how == "watcher":
        ledger.observe(inputs.PictureComplete(since=ledger.counters[H1]))
    else:
        poller.say(inputs.PictureComplete(since=poller.counter + 1))
    assert not ledger.state.hosts[H1].stale
    assert _gone_since(ledger, lease) == ledger.now_ns
    _pass(ledger, GONE_S - 1)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 1)
    assert _ended(ledger, lease) == "outlived"


def test_a_domain_that_is_back_when_the_picture_is_stops_the_clock() -> None:
    """A report that shows the domain again leaves nothing of its having been gone."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    poller.run, poller.counter = 2, -1
    poller.say(inputs.SourceStarts())
    poller.say(inputs.DomainSeen(described(domid=9)), inputs.PictureComplete(since=1))
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, lease) == ""


def test_nothing_ends_in_a_grace_time() -> None:
    """Who begins to decide lets a grace time pass: until then it is heard that the domain is back."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    ledger.now_ns += (GONE_S + 5) * SECOND
    ledger.note(inputs.DeciderStarts("alloc", "outage"))
    _pass(ledger, 29)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 1)
    assert _ended(ledger, lease) == "outlived"


def test_a_decider_with_a_new_clock_waits_for_the_whole_time() -> None:
    """Time as it was before may have been another: from when its clock began a gone domain has its whole time."""
    ledger, poller, lease = _bound(gone_ms=600_000)
    poller.see()
    poller.gone()
    ledger.now_ns += 700 * SECOND
    ledger.note(inputs.DeciderStarts("alloc", "start", clock_age_ms=0))
    _pass(ledger, 599)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 1)
    assert _ended(ledger, lease) == "outlived"


def test_a_standby_takes_over() -> None:
    """An end that the decider leaves undone is taken over, behind a grace time of its own."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    due_ns = ledger.now_ns + GONE_S * SECOND
    tick = inputs.Tick("other")
    assert decide(ledger.state, tick, due_ns + 2 * SECOND) is None
    taken_over = decide(ledger.state, tick, due_ns + 3 * SECOND)
    assert [type(event) for event in taken_over or ()] == [event_types.GraceStarted]
    assert [type(event) for event in decide(ledger.state, inputs.Tick("alloc"), due_ns) or ()] == [
        event_types.LeaseOutlived, event_types.DeviceFreed,
    ]  # fmt: skip
    assert _ended(ledger, lease) == ""


def test_a_named_domain_changes_nothing() -> None:
    """With `keep` the domain is only named: the lease expires by its time, whether the domain is there or not."""
    ledger, poller, lease = _bound(keep=True)
    poller.see()
    assert lease_view(ledger.state, lease, asker=A).gone_ms == -1
    poller.gone()
    _pass(ledger, 4)
    assert _ended(ledger, lease) == ""
    _pass(ledger, 1)
    assert _ended(ledger, lease) == "expired"


def test_at_once() -> None:
    """Without a grace time the lease ends with the next thing that is decided."""
    ledger, poller, lease = _bound(gone_ms=0)
    poller.see()
    poller.gone()
    ledger.tick()
    assert _ended(ledger, lease) == "outlived"


def test_it_can_be_renewed_and_released_as_any_other() -> None:
    """Neither needs the domain."""
    ledger, poller, lease = _bound()
    poller.see()
    assert ledger.renew(lease).outcome == "renewed"
    poller.gone()
    assert ledger.renew(lease).outcome == "renewed"
    assert _gone_since(ledger, lease) == ledger.now_ns
    assert ledger.release(lease).outcome == "released"
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, lease) == "released"


def test_a_domain_elsewhere_is_not_the_one() -> None:
    """A domain of that uuid on a host of which the lease has no device says nothing of it (all hosts of Xen have one
    Domain-0).
    """
    ledger, _, lease = _bound()
    Polled(ledger, H2).see()
    _pass(ledger, 5)
    assert _ended(ledger, lease) == "expired"


def test_devices_of_two_hosts() -> None:
    """The domain is there while either host shows it; both must show that it is gone, and one without a poller does
    not.
    """
    ledger, poller = polled_ledger()
    wanted = (device("01:00.0"), device("0b:00.0", H2))
    answer = ledger.ask(ledger.request(*wanted, domain=UUID, gone_ms=GONE_S * 1_000, ttl_ms=5_000))
    poller.see()
    poller.gone()
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, answer.lease) == ""
    second = Polled(ledger, H2)
    second.see()
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, answer.lease) == ""
    second.gone()
    _pass(ledger, GONE_S)
    assert _ended(ledger, answer.lease) == "outlived"


def test_a_retired_poller_ends_no_lease() -> None:
    """Nobody says any more that the domain is there, which is not to say that it is gone: its holder gives it back."""
    ledger, poller, lease = _bound()
    poller.see()
    poller.hear(alive=False)
    retire = inputs.RetireAgentRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=H1, agent="poller", reason="gone for good"
    )
    assert ledger.ask(retire).outcome == "retired"
    assert domain() not in ledger.state.domains
    _pass(ledger, 10 * GONE_S)
    assert _ended(ledger, lease) == ""
    assert ledger.release(lease).outcome == "released"


def test_many_end_at_once() -> None:
    """All leases for a domain end with it, packed into one record as far as there is room."""
    ledger, poller = polled_ledger()
    texts = ("01:00.0", "02:00.0", "0a:00.0", "2-1.1")
    leases = [ledger.granted(text, domain=UUID, gone_ms=1_000) for text in texts]
    poller.see()
    poller.gone()
    ledger.tick(1)
    assert len(ledger.events) == 8
    assert {_ended(ledger, lease) for lease in leases} == {"outlived"}
