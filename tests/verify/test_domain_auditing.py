"""What the audit says of domains and leases for them: nothing of what the rules decided, and each planted breach."""

from collections.abc import Callable

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import DomainBond, Event, LeaseOutlived
from leasehold.events.identities import RequestRef
from leasehold.events.inputs import Observed
from leasehold.events.record import Record, Step
from leasehold.projections.auditing import Audit
from tests.projections.domains import OTHER, UUID, Polled, described, key, polled_ledger, unused, used
from tests.projections.ledger import H1, SECOND, A, Ledger, device

_replace = msgspec.structs.replace
TICK = inputs.Tick("alloc")
SAID = Observed(host=H1, agent="poller", run=1, counter=9, observations=(inputs.StillHere(),))
GONE_NS = 60 * SECOND


def _records(ledger: Ledger) -> list[Record]:
    return [codec.decode_record(body, sequence) for sequence, body in enumerate(ledger.bodies, 1)]


def _audit(records: list[Record]) -> None:
    audit = Audit()
    for sequence, record in enumerate(records, 1):
        audit.step(sequence, record)


def _then(ledger: Ledger, given: inputs.Input, *events: Event, after_ns: int = 0) -> list[Record]:
    """The ledger's records, and one more so much later."""
    records = _records(ledger)
    last = records[-1]
    return [*records, _replace(last, decided_at_ns=last.decided_at_ns + after_ns, steps=(Step(given, events),))]


def _bound() -> tuple[Ledger, Polled, int]:
    ledger, poller = polled_ledger()
    return ledger, poller, ledger.granted("01:00.0", domain=UUID, gone_ms=60_000)


def _outlived(lease: int, ledger: Ledger, domain: str = UUID) -> LeaseOutlived:
    return LeaseOutlived(lease=lease, domain=domain, gone_since_ns=ledger.now_ns)


def test_nothing_is_found_in_what_the_rules_decided() -> None:
    """A log in which domains come, have devices, reboot, are doubted and go, and leases with them, is flawless."""
    ledger, poller, lease = _bound()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    poller.say(inputs.SourceBlind("no"), inputs.DomainSeen(described(domid=9)))
    poller.say(inputs.SourceSees(), unused("pci/0000:01:00.0"), inputs.DomainGone(key()))
    poller.hear(alive=False)
    poller.hear(alive=True)
    ledger.tick(59)
    ledger.tick(1)
    assert ledger.state.leases[lease].ended == "outlived"
    poller.hear(alive=False)
    retire = inputs.RetireAgentRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=H1, agent="poller", reason="gone for good"
    )
    assert ledger.ask(retire).outcome == "retired"
    _audit(_records(ledger))


def _not_seen() -> list[Record]:
    ledger, _, lease = _bound()
    return _then(ledger, TICK, _outlived(lease, ledger), after_ns=GONE_NS)


def _still_there() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    return _then(ledger, TICK, _outlived(lease, ledger), after_ns=GONE_NS)


def _too_early() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    poller.see(domid=-1, state="halted")
    return _then(ledger, TICK, _outlived(lease, ledger), after_ns=GONE_NS - 1)


def _counted_from_before() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    end = _outlived(lease, ledger)
    ledger.now_ns += 30 * SECOND
    poller.see()
    poller.gone()
    return _then(ledger, TICK, end, after_ns=GONE_NS - 30 * SECOND)


def _in_doubt() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    end = _outlived(lease, ledger)
    poller.say(inputs.SourceBlind("no answer"))
    return _then(ledger, TICK, end, after_ns=GONE_NS)


def _in_doubt_meanwhile() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    end = _outlived(lease, ledger)
    ledger.now_ns += SECOND
    poller.hear(alive=False)
    poller.hear(alive=True)
    return _then(ledger, TICK, end, after_ns=GONE_NS - SECOND)


def _in_a_grace_time() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    poller.gone()
    end = _outlived(lease, ledger)
    ledger.now_ns += GONE_NS
    ledger.note(inputs.DeciderStarts("alloc", "outage"))
    return _then(ledger, TICK, end)


def _another_domain() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see(OTHER)
    poller.gone(OTHER)
    return _then(ledger, TICK, _outlived(lease, ledger, OTHER), after_ns=GONE_NS)


def _named_only() -> list[Record]:
    ledger, poller = polled_ledger()
    lease = ledger.granted("01:00.0", domain=UUID, keep=True)
    poller.see()
    poller.gone()
    return _then(ledger, TICK, _outlived(lease, ledger), after_ns=GONE_NS)


def _expired_though_seen() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.see()
    return _then(ledger, TICK, event_types.LeaseExpired(lease), after_ns=1_000 * SECOND)


def _other_bond() -> list[Record]:
    ledger, _, _ = _bound()
    records = _records(ledger)
    (step,) = records[-1].steps
    grant = step.events[0]
    assert isinstance(grant, event_types.LeaseGranted)
    other = _replace(grant, bond=DomainBond(uuid=OTHER, gone_ms=60_000))
    return [*records[:-1], _replace(records[-1], steps=(Step(step.input, (other,)),))]


def _vanishes_with_devices() -> list[Record]:
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    return _then(ledger, SAID, event_types.DomainVanished(H1, key(), "web", 7))


def _appears_twice() -> list[Record]:
    ledger, poller = polled_ledger()
    poller.see()
    return _then(ledger, SAID, event_types.DomainAppeared(H1, "poller", described()))


def _changes_unknown() -> list[Record]:
    ledger, _ = polled_ledger()
    return _then(ledger, SAID, event_types.DomainStarted(H1, described(), -1, ("domid",)))


def _has_twice() -> list[Record]:
    ledger, poller = polled_ledger()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    return _then(ledger, SAID, event_types.AttachmentSeen(H1, key(), "pci/0000:01:00.0", "attached"))


def _granted_though_attached() -> list[Record]:
    ledger, _, _ = _bound()
    records = _records(ledger)
    seen = event_types.DomainAppeared(H1, "poller", described())
    has = event_types.AttachmentSeen(H1, key(), "pci/0000:01:00.0", "attached")
    return [*records[:-1], _replace(records[-1], steps=(Step(SAID, (seen, has)), *records[-1].steps))]


def _freed_though_attached() -> list[Record]:
    ledger, poller, lease = _bound()
    poller.say(inputs.DomainSeen(described()), used("pci/0000:01:00.0"))
    ledger.release(lease)
    freed = event_types.DeviceFreed(device=device("01:00.0"), lease=lease, evidence="nobody is seen")
    return _then(ledger, TICK, freed)


def _retired_unasked() -> list[Record]:
    ledger, _ = polled_ledger()
    request = inputs.RetireAgentRequest(
        request_id=ledger.new_id(), issued_at_ns=1, host=H1, agent="watcher", reason="gone for good"
    )
    given = inputs.Asked(A, request)
    ref = RequestRef(given.principal, request.request_id, codec.body_hash(request), 1)
    return _then(ledger, given, event_types.AgentRetired(request=ref, host=H1, agent="poller", reason="x"))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_not_seen, "was not seen yet, or is there"),
        (_still_there, "was not seen yet, or is there"),
        (_too_early, "before that has been gone"),
        (_counted_from_before, "before that has been gone"),
        (_in_doubt, "does not show which domains"),
        (_in_doubt_meanwhile, "before that has been gone"),
        (_in_a_grace_time, "in a grace time"),
        (_another_domain, "that it is not for"),
        (_named_only, "that it is not for"),
        (_expired_though_seen, "although its domain was seen"),
        (_other_bond, "not for the domain that was asked for"),
        (_vanishes_with_devices, "still uses something"),
        (_appears_twice, "appears, but is known"),
        (_changes_unknown, "is not known"),
        (_has_twice, "told twice"),
        (_granted_though_attached, "is attached to domain"),
        (_freed_though_attached, "is attached to domain"),
        (_retired_unasked, "not as it was asked for"),
    ],
)
def test_each_breach_is_found(plant: Callable[[], list[Record]], said: str) -> None:
    """A log that tells of what may not be is found at that event, and says what is wrong with it."""
    records = plant()
    with pytest.raises(CorruptLedgerError, match=said) as caught:
        _audit(records)
    assert caught.value.sequence == len(records)
