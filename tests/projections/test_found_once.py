"""Faults of the core that were found once, by the simulator or by reading. Each stays mended."""

from unittest.mock import patch

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import DeviceKey, HostName, RequestId
from leasehold.events.record import Record, Step
from leasehold.projections import evolve
from leasehold.projections.answers import heard
from leasehold.projections.fencing import check_token
from leasehold.projections.history import index_rows
from leasehold.projections.naming import resolve
from leasehold.projections.reporting import Need, Reporter
from leasehold.projections.views import device_view
from tests.projections.ledger import H1, SECOND, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of


def test_a_child_is_not_leased_apart_from_a_parent_that_comes_later() -> None:
    """A NIC that is reported before the function it sits on cannot be leased until that is known, and then as it."""
    ledger = ledger_with_hosts()
    child = pci("0e:00.0", key=DeviceKey("pci/0000:0e:00.0/net/0"), name="net_q", kind="net", parent="pci/0000:0e:00.0")
    ledger.see(child)
    early = ledger.lease("0e:00.0/net/0")
    assert refusal_of(early).code == "device_unknown"
    assert device_view(ledger.state, device("0e:00.0/net/0")).state == "unleasable"
    ledger.see(pci("0e:00.0"))
    assert ledger.lease("0e:00.0/net/0").devices == (device("0e:00.0"),)
    assert refusal_of(ledger.lease("0e:00.0", principal=B)).code == "device_held"


@pytest.mark.parametrize("name", ["L0", "L²", "L99999999999999999999", "L", "L1"])
def test_a_device_called_like_a_lease_harms_no_reader(name: str) -> None:
    """What was asked for under a name that looks like a lease's is indexed without an error."""
    ledger = ledger_with_hosts()
    assert refusal_of(ledger.lease(name)).code == "device_unknown"
    for event in ledger.events:
        assert list(index_rows(ledger.state, 99, event))


@pytest.mark.parametrize(
    "event",
    [
        event_types.LeaseExpired(5),
        event_types.DeviceMissing(H1, DeviceKey("pci/0000:ff:00.0")),
        event_types.SourceStopped(HostName("h7"), "w", 1),
    ],
)
def test_nonsense_in_a_chained_record_is_named(event: event_types.Event) -> None:
    """A record that is in its place but says what cannot be is a corrupt ledger, with the record's number."""
    ledger = ledger_with_hosts()
    with pytest.raises(CorruptLedgerError) as caught:
        evolve.fold(ledger.state, ledger.state.head.sequence + 1, codec.encode(_next(ledger, event)))
    assert caught.value.sequence == ledger.state.head.sequence + 1


def test_another_era_is_not_taken_for_ours() -> None:
    """A record of another era of the ledger does not belong behind ours."""
    ledger = ledger_with_hosts()
    record = msgspec.structs.replace(_next(ledger, event_types.GraceStarted("x", "y", 1)), era=7)
    with pytest.raises(CorruptLedgerError, match="era 7"):
        evolve.fold(ledger.state, ledger.state.head.sequence + 1, codec.encode(record))


def _next(ledger: Ledger, event: event_types.Event) -> Record:
    head = ledger.state.head
    return Record(
        format=1,
        ledger_id=head.ledger_id,
        era=head.era,
        prev=head.chain,
        writer="x",
        decided_at_ns=head.decided_at_ns,
        rules_version=1,
        observed_through=head.observed_through,
        steps=(Step(inputs.Tick("x"), (event,)),),
    )


def test_a_serial_that_was_told_once_is_remembered() -> None:
    """Serial 1, then none, then serial 2: another thing sits there, and the old token does not act on it."""
    ledger = ledger_with_hosts()
    ledger.see(pci("0c:00.0", serial="1"))
    lease = ledger.granted("0c:00.0")
    ledger.see(pci("0c:00.0"))
    assert check_token(ledger.state, device("0c:00.0"), lease) is None
    ledger.see(pci("0c:00.0", serial="2"))
    assert any(isinstance(event, event_types.DeviceReplaced) for event in ledger.events)
    assert check_token(ledger.state, device("0c:00.0"), lease) is not None


def test_the_row_of_an_ended_lease_goes_with_its_last_device() -> None:
    """Though its request id has meanwhile been given to another lease, which keeps its own row."""
    ledger = ledger_with_hosts()
    request = ledger.request(device("0a:00.0"))
    first = ledger.ask(request).lease
    ledger.change("0a:00.0", in_use_by=("vm",))
    ledger.release(first)
    ledger.now_ns += 26 * 3600 * SECOND
    for name in ("x", "y", "z"):
        ledger.lease(name)
    again = msgspec.structs.replace(request, issued_at_ns=ledger.now_ns, devices=(device("01:00.0"),))
    second = ledger.ask(again).lease
    assert second not in (0, first)
    ledger.change("0a:00.0", in_use_by=())
    assert first not in ledger.state.leases
    assert second in ledger.state.leases


def test_a_counted_refusal_keeps_its_own_words() -> None:
    """Two refusals that differ in what they say are two, not one that is counted."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for token in (5, 6):
        request = inputs.ReleaseRequest(
            request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=token
        )
        assert f"token {token} " in refusal_of(ledger.ask(request)).message


def test_host_and_key_are_found_in_every_spelling() -> None:
    """`host/key` with an upper-case address is the same device."""
    assert resolve(ledger_with_hosts().state, "h1/pci/0000:0A:00.0").device == device("0a:00.0")


def test_a_group_takes_along_what_its_members_carry() -> None:
    """A controller's group mate is not handed out while a stick behind the controller is another's, nor the reverse."""
    ledger = ledger_with_hosts()
    ledger.see(pci("04:00.1", iommu_group=6))
    ledger.granted("2-2", principal=B)
    assert refusal_of(ledger.lease("04:00.1", principal=A)).blockers[0].rule == "iommu_group"
    other = ledger_with_hosts()
    other.see(pci("04:00.1", iommu_group=6))
    other.granted("04:00.1", principal=A)
    assert refusal_of(other.lease("2-2", principal=B)).blockers[0].rule == "iommu_group"


def test_more_renewals_in_one_record_than_are_remembered() -> None:
    """Each of them is answered with its own outcome, although the first are forgotten within the same record."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for ticket in range(20):
        request = inputs.RenewRequest(
            request_id=ledger.new_id(), issued_at_ns=ledger.now_ns + ticket, lease=lease, token=lease,
            ttl_ms=60_001 + ticket,
        )  # fmt: skip
        assert ledger.sequencer.ask(ticket, A, request)
    assert ledger.sequencer.draft(ledger.now_ns) is not None
    ledger.sequencer.committed()
    assert [reply.answer.outcome for reply in ledger.sequencer.replies] == ["renewed"] * 20
    ledger.sequencer.replies.clear()


def test_a_renewal_that_comes_again_late_is_not_done_again() -> None:
    """Forgotten among newer ones, or after the lease has ended, a renewal is refused as too old, not decided anew."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    first = inputs.RenewRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=lease, ttl_ms=50_000
    )
    assert ledger.ask(first).outcome == "renewed"
    for number in range(10):
        ledger.now_ns += SECOND
        ledger.renew(lease, ttl_ms=60_001 + number)
    assert refusal_of(ledger.ask(first)).code == "request_too_old"
    other = inputs.RenewRequest(
        request_id=ledger.new_id(), issued_at_ns=first.issued_at_ns, lease=lease, token=lease
    )
    ledger.release(lease)
    assert refusal_of(ledger.ask(other)).code == "request_too_old"


def test_words_behind_a_gap_do_not_make_a_picture_whole() -> None:
    """A picture whose report began before a gap is not complete, whatever closes it."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.StillHere(), skip=1)
    source = ledger.state.hosts[H1].sources["watcher"]
    assert source.wants_report
    ledger.observe(inputs.PictureComplete(since=source.gap))
    assert not ledger.state.hosts[H1].sources["watcher"].complete
    ledger.observe(inputs.PictureComplete(since=source.gap + 2))
    assert ledger.state.hosts[H1].sources["watcher"].complete


def test_lost_drafts_do_not_let_the_queue_grow() -> None:
    """Requests in a draft that may be lost keep their places: however often records are lost, no more wait than may."""
    one, two = ledger_with_hosts(), ledger_with_hosts()
    with patch.object(limits, "REQUESTS_WAITING_MAX", 5):
        for turn in range(4):
            for number in range(10):
                request = one.request("nothing", request_id=RequestId(f"r{turn}-{number}"))
                one.sequencer.ask(100 * turn + number, A, request)
            assert one.sequencer.waiting == 5
            assert one.sequencer.draft(one.now_ns) is not None
            for number in range(10):
                request = one.request("nothing", request_id=RequestId(f"s{turn}-{number}"))
                one.sequencer.ask(1_000 + 100 * turn + number, A, request)
            assert one.sequencer.waiting == 5
            two.sequencer.note(inputs.DeciderStarts(f"two{turn}", "start"))
            draft = two.sequencer.draft(two.now_ns)
            assert draft is not None
            two.sequencer.committed()
            one.sequencer.lost(draft.expected + 1, draft.body)


def test_a_run_that_had_begun_when_its_host_was_declared_dead_reports_anew() -> None:
    """No word of the run that was known counts any more; the next run counts from its beginning on, whatever its
    number, and not before it has said that it begins.
    """
    ledger = ledger_with_hosts()
    ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    request = inputs.DeclareDeadRequest(request_id=RequestId("dead"), issued_at_ns=ledger.now_ns, host=H1, reason="off")
    assert ledger.ask(request, B).outcome == "declared_dead"
    ledger.observe(inputs.StillHere())
    assert not ledger.events
    ledger.counters[H1] = 0
    ledger.observe(inputs.StillHere(), run=2)
    assert not ledger.events
    ledger.observe(inputs.SourceStarts(), run=2)
    assert [type(event).__name__ for event in ledger.events] == ["SourceStarted"]
    reporter = Reporter(H1, "watcher", 1)
    reporter.synced({}, {})
    ledger = ledger_with_hosts()
    assert reporter.need(heard(ledger.state, H1, "watcher")) is not Need.SUPERSEDED
    ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    ledger.ask(request, B)
    assert reporter.need(heard(ledger.state, H1, "watcher")) is Need.SUPERSEDED
