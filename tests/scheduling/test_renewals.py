"""Renewals: what changes nothing is not written, a holder can count on each answer, and many leases are one request."""

import random

import msgspec
import pytest

from leasehold.events import codec, inputs, limits, schedule_events
from leasehold.events.event_types import LeaseExpired, LeaseRenewed
from leasehold.events.refusals import RefusalCode
from leasehold.events.schedule_inputs import RenewManyRequest
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.standby import Standby
from leasehold.projections.state import State
from tests.projections.ledger import SECOND, A, B, Ledger, ledger_with_hosts, refusal_of
from tests.projections.test_restore import decided_by, restored
from tests.scheduling.keeping import renew_many, renewal, same_from_snapshot

_replace = msgspec.structs.replace
SEEDS = 40


def expiry_ns(ledger: Ledger, lease: int) -> int:
    """When the ledger lets it go."""
    return ledger.state.leases[lease].expires_at_ns


def renew_many_of(ledger: Ledger, *leases: int) -> inputs.Request:
    """A request with the tokens that count."""
    pairs = tuple((lease, ledger.state.leases[lease].token) for lease in leases)
    return RenewManyRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, leases=pairs)


# --- what is written ----------------------------------------------------------------------------------------------


def test_what_changes_nothing_is_not_written() -> None:
    """A renewal that finds its lease kept for as long already is answered `renewed`, with no record; others are
    written, and keep the lease for half of its time more than its holder counts on.
    """
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    assert ledger.renew(lease).outcome == "renewed"
    assert not ledger.events, "it was granted at this moment"
    ledger.now_ns += 20 * SECOND
    written = ledger.renew(lease)
    (event,) = ledger.events
    assert isinstance(event, LeaseRenewed)
    assert expiry_ns(ledger, lease) == ledger.now_ns + 90 * SECOND == written.expires_at_ns
    records = len(ledger.bodies)
    ledger.now_ns += 30 * SECOND
    covered = ledger.renew(lease)
    assert len(ledger.bodies) == records
    assert (covered.outcome, covered.token, covered.state) == ("renewed", lease, "living")
    assert covered.position == written.position, "the event that keeps it"
    ledger.now_ns += 1
    ledger.renew(lease)
    assert len(ledger.bodies) == records + 1


def test_another_time_is_written() -> None:
    """A renewal for a shorter time, too, is a change: it is not swallowed because the lease is kept for longer."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.renew(lease, ttl_ms=10_000)
    assert expiry_ns(ledger, lease) == ledger.now_ns + 15 * SECOND
    assert ledger.state.leases[lease].ttl_ms == 10_000
    ledger.now_ns += 5 * SECOND
    ledger.renew(lease)
    assert not ledger.events


def test_how_often_it_is_written() -> None:
    """Of renewals every third of the time, as clients send them, no more than every second one is written."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    before = len(ledger.bodies)
    for _ in range(60):
        ledger.now_ns += 20 * SECOND
        assert ledger.renew(lease).outcome == "renewed"
    assert len(ledger.bodies) - before == 30


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_a_holder_can_count_on_each_answer(first: int) -> None:
    """Whatever is answered `renewed`, written or not, no expiry comes before the holder's whole time behind it."""
    for seed in range(first, first + 20):
        rng = random.Random(seed)
        ledger = ledger_with_hosts()
        leases = {ledger.granted(text): ledger.now_ns + 60 * SECOND for text in ("01:00.0", "03:00.0", "0a:00.0")}
        for _ in range(60):
            ledger.now_ns += rng.randrange(40 * SECOND)
            ledger.tick()
            for event in ledger.events:
                if isinstance(event, LeaseExpired):
                    assert ledger.now_ns >= leases.pop(event.lease), f"seed {seed}"
            asked = rng.sample(sorted(leases), rng.randrange(len(leases) + 1))
            if rng.random() < 0.5 and asked:
                answer = renew_many(ledger, *((lease, lease) for lease in asked))
                assert answer.leases == tuple(asked), f"seed {seed}"
            for lease in asked:
                ttl_ms = rng.choice((0, 0, 0, 20_000, 60_000))
                answer = ledger.renew(lease, ttl_ms=ttl_ms)
                assert answer.outcome == "renewed", f"seed {seed}"
                leases[lease] = ledger.now_ns + answer.ttl_ms * 1_000_000
                assert answer.expires_at_ns >= leases[lease], f"seed {seed}"
        assert same_from_snapshot(ledger)


def test_grants_in_the_same_record_cover() -> None:
    """A renewal behind its grant in one record is answered from the draft; if the draft is lost, so is the answer."""
    ledger = ledger_with_hosts()
    other = Sequencer(State(), cluster="lab", writer="other")
    for sequence, body in enumerate(ledger.bodies, 1):
        other.apply(sequence, body)
    lease = ledger.granted("01:00.0")
    request = renewal(ledger, lease, lease)
    assert other.ask(1, A, request)
    assert other.draft(ledger.now_ns) is not None, "there the lease is not known: that is a refusal"
    assert not other.replies, "nothing is said before the log has it"
    other.lost(len(ledger.bodies), ledger.bodies[-1])
    assert other.draft(ledger.now_ns) is None
    (reply,) = other.replies
    assert (reply.answer.outcome, reply.answer.lease) == ("renewed", lease)


def test_an_answer_without_a_record_is_looked_at_anew() -> None:
    """If the log has gone on, an unwritten renewal is decided again before anything is answered."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    slow = Sequencer(State(), cluster="lab", writer="slow")
    for sequence, body in enumerate(ledger.bodies, 1):
        slow.apply(sequence, body)
    assert slow.ask(1, A, renewal(ledger, lease, lease))
    assert slow.draft(ledger.now_ns) is None
    assert [reply.answer.outcome for reply in slow.replies] == ["renewed"]
    slow.reconsider()
    ledger.release(lease)
    slow.apply(len(ledger.bodies), ledger.bodies[-1])
    assert slow.draft(ledger.now_ns) is not None
    slow.committed()
    assert [reply.answer.refusal and reply.answer.refusal.code for reply in slow.replies] == ["lease_ended"]


def test_old_rules_write_each() -> None:
    """By the rules of before each renewal is written, for its own time: old logs are decided again alike."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.state.rules_version = 4
    ledger.renew(lease)
    (event,) = ledger.events
    assert isinstance(event, LeaseRenewed)
    assert event.expires_at_ns == ledger.now_ns + 60 * SECOND


def test_standbys_do_not_wait_for_a_record() -> None:
    """What the decider answers without a record counts as decided for who stands by: he says nothing to that holder."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    standby = Standby()
    standby.hear(1, A, renewal(ledger, lease, lease), 0)
    standby.hear(2, A, renewal(ledger, lease, lease + 1), 0)
    standby.hear(3, A, renewal(ledger, lease, lease, ttl_ms=70_000), 0)
    assert [standby.is_undecided(ticket, ledger.state) for ticket in (1, 2, 3)] == [False, True, True]


# --- many at once -------------------------------------------------------------------------------------------------


def test_many_are_one_event() -> None:
    """One request renews all leases of a holder, each for its own time, by one event that names them and no more."""
    ledger = ledger_with_hosts()
    long, short = ledger.granted("01:00.0"), ledger.granted("03:00.0", ttl_ms=10_000)
    ledger.now_ns += 5 * SECOND
    answer = renew_many(ledger, (long, long), (short, short))
    (event,) = ledger.events
    assert isinstance(event, schedule_events.LeasesRenewed)
    assert event.leases == (long, short) == answer.leases
    assert (answer.outcome, answer.ttl_ms, answer.expires_at_ns) == ("renewed", 10_000, expiry_ns(ledger, short))
    assert expiry_ns(ledger, long) == ledger.now_ns + 90 * SECOND
    assert expiry_ns(ledger, short) == ledger.now_ns + 15 * SECOND
    assert renew_many(ledger, (long, long), (short, short)).leases == (long, short)
    assert not ledger.events, "all of them are kept for long enough"


def test_what_cannot_be_kept_keeps_nobody_else() -> None:
    """Leases that have ended, are another's, or have another token, are answered with their reasons; others live."""
    ledger = ledger_with_hosts()
    mine, over, others = ledger.granted("01:00.0"), ledger.granted("03:00.0"), ledger.granted("0a:00.0", principal=B)
    ledger.release(over)
    ledger.now_ns += SECOND
    answer = renew_many(ledger, (mine, mine), (over, over), (others, others), (mine, mine + 1), (7, 7))
    assert answer.leases == (mine,)
    assert [(each.lease, each.code) for each in answer.not_renewed] == [
        (over, RefusalCode.LEASE_ENDED),
        (others, RefusalCode.NOT_YOURS),
        (mine, RefusalCode.TOKEN_STALE),
        (7, RefusalCode.LEASE_UNKNOWN),
    ]
    assert all(each.message for each in answer.not_renewed)
    assert expiry_ns(ledger, others) < ledger.now_ns + 60 * SECOND


def test_none_that_can_be_kept() -> None:
    """If no lease can be kept, that is a refusal, which still says why of each."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    ledger.release(lease)
    answer = renew_many(ledger, (lease, lease), (7, 7))
    assert refusal_of(answer).code is RefusalCode.LEASE_ENDED
    assert [each.lease for each in answer.not_renewed] == [lease, 7]


def test_many_asked_again() -> None:
    """The same request again, whenever and however often, renews nothing again, and is answered alike; of what has
    ended since it says so.
    """
    ledger = ledger_with_hosts()
    one, two = ledger.granted("01:00.0"), ledger.granted("03:00.0")
    ledger.now_ns += 30 * SECOND
    request = renew_many_of(ledger, one, two)
    first = ledger.ask(request)
    kept_ns = expiry_ns(ledger, one)
    ledger.now_ns += 60 * SECOND
    again = ledger.ask(request)
    assert again == _replace(first, as_of=again.as_of)
    assert not ledger.events
    assert expiry_ns(ledger, one) == kept_ns
    ledger.release(two)
    last = ledger.ask(request)
    assert (last.outcome, last.leases) == ("renewed", (one,))
    assert [each.lease for each in last.not_renewed] == [two]


def test_as_many_as_may_be_named() -> None:
    """A request with as many leases as may be named, all of them long ids, is within a request's bound, and its record
    within a record's.
    """
    pairs = tuple((2**46 + number, 2**52 + number) for number in range(limits.RENEWALS_PER_REQUEST_MAX))
    ledger = ledger_with_hosts()
    request = RenewManyRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, leases=pairs)
    assert len(codec.encode(request)) < limits.REQUEST_BYTES_MAX
    answer = ledger.ask(request)
    assert len(answer.not_renewed) == limits.RENEWALS_PER_REQUEST_MAX
    assert len(codec.encode(answer)) < limits.RECORD_BYTES_MAX


def test_tokens_of_before_a_restore_renew_nothing() -> None:
    """Behind a restore the old tokens keep no lease, one by one or many at once, and the new ones do."""
    before = ledger_with_hosts()
    lease = before.granted("01:00.0")
    after = decided_by(restored(before, len(before.bodies)))
    answer = renew_many(after, (lease, lease))
    assert refusal_of(answer).code is RefusalCode.TOKEN_STALE
    assert refusal_of(after.ask(renewal(after, lease, lease))).code is RefusalCode.TOKEN_STALE
    assert renew_many(after, (lease, after.state.leases[lease].token)).leases == (lease,)


def test_decided_again_alike() -> None:
    """A log with renewals of each kind folds and is decided again to the same events."""
    ledger = ledger_with_hosts()
    one, two = ledger.granted("01:00.0"), ledger.granted("03:00.0")
    for _ in range(6):
        ledger.now_ns += 20 * SECOND
        ledger.renew(one)
        renew_many(ledger, (one, one), (two, two), (9, 9))
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None


def test_a_lease_may_be_renewed_over_and_over() -> None:
    """What is remembered of renewals does not grow with them: of single ones the last few of each lease, and of many at
    once no lease's name.
    """
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0")
    for number in range(4 * limits.RENEWALS_KEPT_PER_LEASE):
        ledger.now_ns += SECOND
        ledger.renew(lease, ttl_ms=60_001 + number)
    assert len(ledger.state.leases[lease].renewals) == limits.RENEWALS_KEPT_PER_LEASE
    ledger.now_ns += 70 * SECOND
    assert ledger.ask(renew_many_of(ledger, lease)).leases == (lease,)
    assert ledger.events
    assert all(not row.leases for row in ledger.state.answers.values())
