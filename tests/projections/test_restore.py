"""A restored ledger: who owned what still does, every older token is dead, and every host must report again."""

from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs, limits
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import HostName
from leasehold.events.position import position_of_token, token_of
from leasehold.events.record import Record
from leasehold.events.refusals import RefusalCode
from leasehold.projections import evolve
from leasehold.projections.answers import answer_for, heard
from leasehold.projections.fencing import check_token
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from tests.projections.ledger import H1, H2, SECOND, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of

_replace = msgspec.structs.replace


def restored(ledger: Ledger, records: int, *, reason: str = "wiped") -> Ledger:
    """Another ledger with the first records of this one, and the one behind them that raises the era."""
    later = Ledger("restorer")
    state = State()
    for sequence, body in enumerate(ledger.bodies[:records], 1):
        evolve.fold(state, sequence, body)
        later.bodies.append(body)
    later.now_ns = max(ledger.now_ns, state.head.decided_at_ns) + SECOND
    later.sequencer = Sequencer(state, cluster="lab", writer="restorer")
    # Agents and requesters are those of before: they count on.
    later.counters, later._observed, later._ids = dict(ledger.counters), ledger._observed, ledger._ids
    later.note(restores(state.head.era + 1, reason=reason))
    return later


def restores(era: int, *, cluster: str = "lab", reason: str = "wiped") -> inputs.LedgerRestores:
    """The input that begins an era."""
    return inputs.LedgerRestores(cluster=cluster, writer="restorer", era=era, reason=reason)


def decided_by(ledger: Ledger, writer: str = "alloc2") -> Ledger:
    """An allocator takes the ledger over, and hosts report again; past its grace time."""
    ledger.sequencer = Sequencer(ledger.state, cluster="lab", writer=writer)
    ledger.note(inputs.DeciderStarts(writer, "takeover"))
    ledger.now_ns += 31 * SECOND
    return ledger


def test_ownership_is_as_it_was() -> None:
    """Leases, their devices and their answers are those of the log; only the tokens are others."""
    before = ledger_with_hosts()
    one, other = before.granted("01:00.0", "02:00.0", "02:00.1"), before.granted("0a:00.0", principal=B)
    before.change("0a:00.0", in_use_by=("vm",))
    before.release(other, B)
    after = restored(before, len(before.bodies))
    (event,) = after.events
    assert isinstance(event, event_types.LedgerRestored)
    assert (event.era, event.through, event.writer) == (1, len(before.bodies), "restorer")
    assert {name: (row.lease, row.ending) for name, row in after.state.devices.items()} == {
        name: (row.lease, row.ending) for name, row in before.state.devices.items()
    }
    for lease in (one, other):
        row, row_before = after.state.leases[lease], before.state.leases[lease]
        assert row == _replace(row_before, token=token_of(1, lease))
        answer = answer_for(after.state, row.grant_key)
        assert answer is not None
        assert (answer.outcome, answer.lease, answer.token) == ("granted", lease, token_of(1, lease))


def test_all_older_tokens_are_dead() -> None:
    """No token that any record before has given out acts on any device, also not one of a record that was lost."""
    before = ledger_with_hosts()
    kept = before.granted("01:00.0")
    records = len(before.bodies)
    lost = before.granted("0a:00.0", principal=B)
    before.release(kept)
    lost_too = before.granted("01:00.0", principal=B)
    after = restored(before, records)
    tokens = {kept, lost, lost_too, *range(lost_too + 600)}
    for name in after.state.devices:
        assert all(check_token(after.state, name, token) is not None for token in tokens)
        assert after.state.devices[name].floor > max(tokens)
    assert check_token(after.state, device("01:00.0"), token_of(1, kept)) is None
    said = check_token(after.state, device("01:00.0"), kept)
    assert said is not None
    assert "before the ledger was restored" in said.message
    assert "request id" in said.help


def test_floors_keep_their_positions() -> None:
    """A floor is moved to the new era, at its position: who was shut out before the restore still is."""
    before = ledger_with_hosts()
    lease = before.granted("01:00.0")
    before.change("01:00.0", product_id="1572")
    assert check_token(before.state, device("01:00.0"), lease) is not None
    after = restored(before, len(before.bodies))
    for name, row in before.state.devices.items():
        assert after.state.devices[name].floor == token_of(1, row.floor)
    assert check_token(after.state, device("01:00.0"), token_of(1, lease)) is not None


def test_the_holder_goes_on_with_the_new_token() -> None:
    """The old token is refused with what helps; the grant's request, asked again, has the one that counts."""
    before = ledger_with_hosts()
    request = before.request(device("01:00.0"))
    lease = before.ask(request).lease
    after = decided_by(restored(before, len(before.bodies)))
    refused = refusal_of(after.ask(_renewal(after, lease, lease)))
    assert refused.code is RefusalCode.TOKEN_STALE
    assert "before the ledger was restored" in refused.message
    assert "again" in refused.help
    answer = after.ask(request)
    assert (answer.outcome, answer.lease, answer.token) == ("granted", lease, token_of(1, lease))
    assert after.ask(_renewal(after, lease, answer.token)).outcome == "renewed"
    assert after.release(lease).outcome == "released"


def _renewal(ledger: Ledger, lease: int, token: int) -> inputs.RenewRequest:
    return inputs.RenewRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, token=token)


def test_nothing_is_granted_before_a_host_has_reported_again() -> None:
    """All sources are stale and are asked to report; what they said under way, before they were asked, is no report."""
    before = ledger_with_hosts()
    after = decided_by(restored(before, len(before.bodies)))
    for host in (H1, H2):
        said = heard(after.state, host, "watcher")
        assert (said.complete, said.wants_report, said.stale) == (False, True, "the ledger was restored")
    assert refusal_of(after.lease("01:00.0")).code is RefusalCode.HOST_STALE
    # The end of a report that had begun before.
    after.observe(inputs.PictureComplete(since=1))
    assert refusal_of(after.lease("01:00.0")).code is RefusalCode.HOST_STALE
    after.observe(inputs.PictureComplete(since=after.counters[H1] + 1))
    assert after.lease("01:00.0").outcome == "granted"
    assert after.lease("01:00.0", host=H2).outcome == "refused"


def test_a_source_that_is_ahead_of_the_log_reports_again() -> None:
    """Words of a run whose messages, or whose very start, were lost are a gap, and lead to a whole new report."""
    before = ledger_with_hosts()
    records = len(before.bodies)
    before.see(pci("0c:00.0"))
    before.see(pci("0d:00.0"))
    after = decided_by(restored(before, records))
    after.observe(inputs.StillHere())
    assert [type(event) for event in after.events] == [event_types.ReportRequested]
    after.observe(inputs.DeviceSeen(pci("0c:00.0")), inputs.PictureComplete(since=after.counters[H1] + 1))
    assert device("0c:00.0") in after.state.devices
    assert not after.state.hosts[H1].stale


def test_a_device_that_is_new_behind_a_restore_has_its_floor() -> None:
    """It may have been leased in a record that was lost: such a token is below its floor, too."""
    after = decided_by(restored(ledger_with_hosts(), 3))
    after.observe(inputs.DeviceSeen(pci("0c:00.0")))
    assert after.state.devices[device("0c:00.0")].floor == token_of(1, 0)


def test_nothing_expires_before_somebody_decides_and_has_given_time() -> None:
    """The decider of before is none any more; a lease that was over long ago gets the whole grace time."""
    before = ledger_with_hosts()
    lease = before.granted("01:00.0", ttl_ms=120_000)
    before.now_ns += 3_600 * SECOND
    after = restored(before, len(before.bodies))
    assert after.state.head.grace_until_ns == after.now_ns + 120 * SECOND
    after.sequencer = Sequencer(after.state, cluster="lab", writer="alloc")
    for _ in range(3):
        after.tick(31)
        assert not after.state.leases[lease].ended
    after.tick(60)
    assert [type(event) for event in after.events] == [event_types.GraceStarted]
    after.tick(31)
    assert after.state.leases[lease].ended == "expired"


def test_a_new_grant_is_above_all() -> None:
    """In the new era a lease's id is its position, its token is above all tokens and floors of before."""
    before = ledger_with_hosts()
    lease = before.granted("01:00.0")
    after = decided_by(restored(before, len(before.bodies)))
    after.observe(inputs.PictureComplete(since=after.counters[H1] + 1))
    answer = after.lease("0a:00.0", principal=B)
    assert position_of_token(answer.token) == answer.lease > lease
    assert answer.token == token_of(1, answer.lease) > after.state.leases[lease].token
    assert check_token(after.state, device("0a:00.0"), answer.token) is None
    assert after.release(answer.lease, B).outcome == "released"
    assert after.state.devices[device("0a:00.0")].floor > answer.token
    replay = Replay()
    assert not any(replay.step(number, body) for number, body in enumerate(after.bodies, 1))


def test_again_and_again() -> None:
    """A ledger can be restored 63 times; each era's tokens are above the last one's. The 64th time is not taken."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for era in range(1, limits.ERA_MAX + 1):
        ledger = restored(ledger, len(ledger.bodies))
        assert ledger.state.head.era == era
        assert ledger.state.leases[lease].token == token_of(era, lease) < 2**53
    records = len(ledger.bodies)
    ledger.note(restores(limits.ERA_MAX + 1))
    assert (len(ledger.bodies), ledger.events) == (records, [])


@pytest.mark.parametrize(
    "wrong", [restores(0), restores(64), restores(1, cluster="other")], ids=["same era", "too high", "cluster"]
)
def test_what_is_no_restore(wrong: inputs.LedgerRestores) -> None:
    """Only a higher era of the same cluster can begin; anything else is no event."""
    ledger = ledger_with_hosts()
    records = len(ledger.bodies)
    ledger.note(wrong)
    assert (len(ledger.bodies), ledger.state.head.era) == (records, 0)


def test_eras_that_were_lost_are_left_out() -> None:
    """Where an era is known to have been lost with its records, the one that begins is above it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.note(restores(7))
    assert ledger.state.head.era == 7
    assert ledger.state.leases[lease].token == token_of(7, lease)
    replay = Replay()
    assert not any(replay.step(number, body) for number, body in enumerate(ledger.bodies, 1))


def test_an_empty_ledger_cannot_be_restored() -> None:
    """There is nothing to go on from: the ledger begins instead, in era 0."""
    ledger = Ledger()
    ledger.note(restores(1))
    assert [type(event) for event in ledger.events] == [event_types.LedgerStarted]
    assert ledger.state.head.era == 0


def _forged(record: Record, **fields: Any) -> bytes:
    return codec.encode(_replace(record, **fields))


def test_nothing_else_raises_the_era() -> None:
    """A record of another era than the last one's is refused, unless it is higher and a restore is its first step."""
    ledger = ledger_with_hosts()
    head, sequence = ledger.state.head, ledger.state.head.sequence + 1
    ledger = restored(ledger, len(ledger.bodies))
    record = codec.decode_record(ledger.bodies[-1], sequence)
    (step,) = record.steps
    event = step.events[0]
    assert isinstance(event, event_types.LedgerRestored)
    tick = _replace(step, input=inputs.Tick("x"))
    grace = _replace(tick, events=(event_types.GraceStarted("x", "y", 1),))
    forgeries = {
        "another input": _forged(record, steps=(tick,)),
        "not in the first place": _forged(record, steps=(grace, step)),
        "another era than its event's": _forged(record, era=2),
        "too high": _forged(record, era=64, steps=(_replace(step, events=(_replace(event, era=64),)),)),
        "the record's own era": _forged(record, era=0),
        "without an event of it": _forged(record, steps=(_replace(step, events=grace.events),)),
        "of the same era": _forged(record, era=0, steps=(_replace(step, events=(_replace(event, era=0),)),)),
        "twice": _forged(record, steps=(step, step)),
        "hidden in a record of the old era": _forged(record, era=0, steps=(tick,)),
    }
    for name, body in forgeries.items():
        state = State()
        for number, earlier in enumerate(ledger.bodies[:-1], 1):
            evolve.fold(state, number, earlier)
        assert state.head == head
        with pytest.raises(CorruptLedgerError) as caught:
            evolve.fold(state, sequence, body)
        assert caught.value.sequence == sequence, name


def test_snapshots_and_rolling_back_across_a_restore() -> None:
    """A snapshot from before or behind a restore leads to the same bytes; a restore that is lost has never been."""
    before = ledger_with_hosts()
    before.granted("01:00.0")
    before.granted("0a:00.0", principal=B)
    after = decided_by(restored(before, len(before.bodies)))
    whole = encode_state(after.state)
    reader = State()
    for sequence, body in enumerate(after.bodies, 1):
        at = encode_state(reader)
        reader.journal.begin()
        evolve.fold(reader, sequence, body)
        reader.roll_back()
        assert encode_state(reader) == at
        evolve.fold(reader, sequence, body)
        other = decode_state(encode_state(reader))
        assert other is not None
        for number in range(sequence + 1, len(after.bodies) + 1):
            evolve.fold(other, number, after.bodies[number - 1])
        assert encode_state(other) == whole


def test_an_old_allocator_loses_its_append_to_the_restore() -> None:
    """One that was asleep with the same head folds the restore, answers with the new tokens, and announces itself."""
    before = ledger_with_hosts()
    lease = before.granted("01:00.0", ttl_ms=60_000)
    asleep = before.sequencer
    after = restored(before, len(before.bodies))
    asleep.ask(1, A, _renewal(before, lease, lease))
    draft = asleep.draft(before.now_ns + SECOND)
    assert draft is not None
    asleep.lost(draft.expected + 1, after.bodies[-1])
    assert asleep.state.head.era == 1
    again = asleep.draft(after.now_ns + SECOND)
    assert again is not None
    assert again.record.era == 1
    asleep.committed()
    (reply,) = asleep.replies
    assert refusal_of(reply.answer).code is RefusalCode.TOKEN_STALE
    assert HostName("h1") in asleep.state.hosts
