"""What the audit says of devices that are handed out: nothing of what the rules decided, and each planted breach.

Logs of the simulator are audited there, at the end of each run.
"""

from collections.abc import Callable

import msgspec
import pytest

from leasehold.events import codec, event_types, hostdev_events, inputs
from leasehold.events.capabilities import DetachDevice, ReattachDevice
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event
from leasehold.events.hostdevs import Truth
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import BINDER, Asked, GivenBack, LetGo, Observed, Prepared, Stuck
from leasehold.events.record import Record, Step
from leasehold.projections.auditing import Audit
from tests.past.handed import random_log
from tests.past.logs import seeds
from tests.projections.ledger import H1, A, B, Ledger, device, ledger_with_hosts

_replace = msgspec.structs.replace
TICK = inputs.Tick("alloc")
NIC = DeviceKey("pci/0000:01:00.0")
CARD = device("01:00.0")
Plant = Callable[[], list[Record]]


def _records(ledger: Ledger) -> list[Record]:
    return [codec.decode_record(body, sequence) for sequence, body in enumerate(ledger.bodies, 1)]


def _audited(records: list[Record]) -> Audit:
    audit = Audit()
    for sequence, record in enumerate(records, 1):
        audit.step(sequence, record)
    return audit


def _then(records: list[Record], given: inputs.Input, *events: Event) -> list[Record]:
    return [*records, _replace(records[-1], steps=(Step(given, events),))]


def _by_binder(*words: inputs.Observation, agent: str = BINDER) -> Observed:
    return Observed(host=H1, agent=agent, run=1, counter=99, observations=words)


def _leased(*, prepared: bool = True) -> tuple[Ledger, int]:
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    lease = ledger.granted("01:00.0")
    if prepared:
        ledger.bind(Prepared(NIC, lease, "vfio-pci", "igb", "flr"))
    return ledger, lease


def _ended() -> tuple[Ledger, int]:
    ledger, lease = _leased()
    ledger.release(lease)
    return ledger, lease


def _freed(lease: int) -> event_types.DeviceFreed:
    return event_types.DeviceFreed(device=CARD, lease=lease, evidence="so it is said")


def _back(lease: int, key: DeviceKey = NIC) -> tuple[Observed, hostdev_events.DeviceGivenBack]:
    event = hostdev_events.DeviceGivenBack(host=H1, key=key, lease=lease, driver="igb")
    return _by_binder(GivenBack(key, lease, "igb")), event


def _ask_revoke(ledger: Ledger, lease: int, *, force: bool = False) -> None:
    request = inputs.RevokeRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, lease=lease, reason="needed", force=force
    )
    assert ledger.ask(request, B).outcome == "revoked"


def _ask_dead(ledger: Ledger) -> None:
    request = inputs.DeclareDeadRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=H1, reason="it burnt"
    )
    assert ledger.ask(request, B).outcome == "declared_dead"


def test_nothing_is_found_in_what_the_rules_decided() -> None:
    """Logs of hosts that hand over, get stuck, die and come back are flawless, and the audit met their words."""
    assert sum(_audited(_records(random_log(seed))).hostdevs.told for seed in seeds(6)) > 100


def test_out_of_quarantine_by_order() -> None:
    """What is stuck behind its lease's end may be reattached by order; other orders are not given of what is held."""
    ledger, lease = _ended()
    ledger.bind(Stuck(NIC, lease, "no driver takes it", "see the kernel's log"))
    request = inputs.OperateDeviceRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=CARD, operation="reattach"
    )
    assert ledger.ask(request, B).outcome == "ordered"
    records = _records(ledger)
    assert _audited(records).orders.given == 1
    *before, last = records
    step = last.steps[-1]
    assert isinstance(step.input, Asked)
    asked = _replace(step.input, request=_replace(request, operation="detach"))
    given = step.events[0]
    assert isinstance(given, event_types.HostOrdered)
    ref = _replace(given.request, body_hash=codec.body_hash(asked.request))
    event = _replace(step.events[0], order=DetachDevice(device=NIC), request=ref)
    with pytest.raises(CorruptLedgerError, match="is held by"):
        _audited([*before, _replace(last, steps=(Step(asked, (event,)),))])
    mixed = _replace(step.events[0], agent=inputs.CREATOR, order=ReattachDevice(device=NIC))
    with pytest.raises(CorruptLedgerError, match="what is not its work"):
        _audited([*before, _replace(last, steps=(Step(step.input, (mixed,)),))])


# --- breaches ---------------------------------------------------------------------------------------------------------


def _not_given_back() -> list[Record]:
    ledger, lease = _ended()
    return _then(_records(ledger), TICK, _freed(lease))


def _given_back_for_another() -> list[Record]:
    ledger, lease = _ended()
    return _then(_then(_records(ledger), *_back(lease - 256)), TICK, _freed(lease))


def _given_back_twice() -> list[Record]:
    ledger, lease = _ended()
    return _then(_then(_records(ledger), *_back(lease)), *_back(lease))


def _given_back_while_leased() -> list[Record]:
    ledger, lease = _leased()
    return _then(_records(ledger), *_back(lease))


def _given_back_by_the_watcher() -> list[Record]:
    ledger, lease = _ended()
    return _then(_records(ledger), _by_binder(GivenBack(NIC, lease, "igb"), agent="watcher"), _back(lease)[1])


def _given_back_otherwise() -> list[Record]:
    ledger, lease = _ended()
    return _then(_records(ledger), _by_binder(GivenBack(NIC, lease, "e1000e")), _back(lease)[1])


def _prepared_for_nobody() -> list[Record]:
    ledger, lease = _ended()
    event = hostdev_events.DevicePrepared(host=H1, key=NIC, lease=lease, driver="vfio-pci")
    return _then(_records(ledger), _by_binder(Prepared(NIC, lease, "vfio-pci")), event)


def _failed_twice() -> list[Record]:
    ledger, lease = _leased(prepared=False)
    event = hostdev_events.PrepareFailed(host=H1, key=NIC, lease=lease, reason="no")
    said = _by_binder(inputs.NotPrepared(NIC, lease, "no"))
    return _then(_then(_records(ledger), said, event), said, event)


def _granted_in_quarantine() -> list[Record]:
    ledger, lease = _ended()
    ledger.bind(GivenBack(NIC, lease, "igb"))
    granted = _grant_after(ledger)
    stuck = hostdev_events.DeviceQuarantined(host=H1, key=NIC, lease=0, reason="no", help="look")
    *before, last = granted
    return [*_then(before, _by_binder(Stuck(NIC, 0, "no", "look")), stuck), last]


def _granted_on_a_dead_host() -> list[Record]:
    ledger, lease = _ended()
    ledger.bind(GivenBack(NIC, lease, "igb"))
    granted = _grant_after(ledger)
    dead = ledger_with_hosts()
    dead.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    _ask_dead(dead)
    stale = event_types.HostWentStale(H1, "watcher", "silent"), event_types.HostWentStale(H1, BINDER, "silent")
    *before, last = granted
    return [*_then(before, TICK, *stale), _records(dead)[-1], last]


def _grant_after(ledger: Ledger) -> list[Record]:
    assert ledger.granted("01:00.0")
    return _records(ledger)


def _dead_though_heard() -> list[Record]:
    ledger, _ = _ended()
    dead = ledger_with_hosts()
    dead.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    _ask_dead(dead)
    return [*_records(ledger), _records(dead)[-1]]


def _dead_by_nobody() -> list[Record]:
    ledger = ledger_with_hosts()
    ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    _ask_dead(ledger)
    *before, last = _records(ledger)
    step = last.steps[-1]
    assert isinstance(step.input, Asked)
    return [*before, _replace(last, steps=(Step(step.input, (_replace(step.events[0], host="h2"),)),))]


def _revoked_by_nobody() -> list[Record]:
    ledger, lease = _leased()
    other = ledger.granted("0a:00.0")
    _ask_revoke(ledger, lease)
    *before, last = _records(ledger)
    step = last.steps[-1]
    return [*before, _replace(last, steps=(Step(step.input, (_replace(step.events[0], lease=other),)),))]


def _revoked_twice() -> list[Record]:
    ledger, lease = _leased()
    _ask_revoke(ledger, lease)
    records = _records(ledger)
    return [*records, _replace(records[-1], steps=records[-1].steps[-1:])]


def _forced_twice() -> list[Record]:
    ledger, lease = _leased()
    ledger.release(lease)
    _ask_revoke(ledger, lease, force=True)
    records = _records(ledger)
    _audited(records)
    return [*records, _replace(records[-1], steps=records[-1].steps[-1:])]


def _let_go_of_no_domain() -> list[Record]:
    ledger, lease = _leased()
    event = event_types.LeaseOutlived(lease=lease, domain="d", gone_since_ns=ledger.now_ns)
    return _then(_records(ledger), _by_binder(LetGo(lease)), event)


def _let_go_by_the_watcher() -> list[Record]:
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    uuid = "d0d0d0d0-0000-4000-8000-000000000001"
    lease = ledger.granted("01:00.0", domain=uuid)
    event = event_types.LeaseOutlived(lease=lease, domain=uuid, gone_since_ns=ledger.now_ns)
    return _then(_records(ledger), _by_binder(LetGo(lease), agent="watcher"), event)


def _freed_of_nothing() -> list[Record]:
    ledger, lease = _ended()
    assert ledger.confirm_free(CARD, principal=B).outcome == "freed"
    *before, last = _records(ledger)
    ledger, lease = _ended()
    step = last.steps[-1]
    event = _replace(step.events[0], lease=0)
    assert lease
    return [*before, last, _replace(last, steps=(Step(step.input, (event,)),))]


def _drift(kind: str, position: int = 1) -> hostdev_events.DriftDetected:
    truth = Truth("so", position)
    return hostdev_events.DriftDetected(device=CARD, kind=kind, leased=truth, attached=truth, bound=truth)


def _two_drifts() -> list[Record]:
    ledger, _ = _leased()
    return _then(_then(_records(ledger), TICK, _drift("driver")), TICK, _drift("lost"))


def _drift_of_no_kind() -> list[Record]:
    return _then(_records(_leased()[0]), TICK, _drift("odd"))


def _drift_of_later() -> list[Record]:
    return _then(_records(_leased()[0]), TICK, _drift("driver", position=2**40))


def _drift_by_a_word() -> list[Record]:
    return _then(_records(_leased()[0]), _by_binder(inputs.StillHere()), _drift("driver"))


def _never_drifted() -> list[Record]:
    event = hostdev_events.DriftResolved(device=CARD, kind="driver", since_position=512)
    return _then(_records(_leased()[0]), TICK, event)


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (_not_given_back, "the binder of its host has not given it back"),
        (_given_back_for_another, "the binder of its host has not given it back"),
        (_given_back_twice, "is given back twice"),
        (_given_back_while_leased, "its lease L[0-9]+ lives"),
        (_given_back_by_the_watcher, "its host's binder has not said so"),
        (_given_back_otherwise, "its host's binder has not said so"),
        (_prepared_for_nobody, "does not live and hold it"),
        (_failed_twice, "does not live"),
        (_granted_in_quarantine, "could not bring it into order"),
        (_granted_on_a_dead_host, "its host is dead"),
        (_dead_though_heard, "is heard"),
        (_dead_by_nobody, "nobody has said so"),
        (_revoked_by_nobody, "not as it was asked for"),
        (_revoked_twice, "does not live"),
        (_forced_twice, "does not live"),
        (_let_go_of_no_domain, "not for, or does not live"),
        (_let_go_by_the_watcher, "by the word of another"),
        (_freed_of_nothing, "of no lease"),
        (_two_drifts, "not resolved"),
        (_drift_of_no_kind, "which is no drift"),
        (_drift_of_later, "by events that come later"),
        (_drift_by_a_word, "but not by time"),
        (_never_drifted, "was not told at"),
    ],
)
def test_breaches_are_found(plant: Plant, says: str) -> None:
    """What cannot be in any log is found in the record where it stands, with its position and what it is."""
    records = plant()
    audit = _audited(records[:-1])
    with pytest.raises(CorruptLedgerError, match=f"^record {len(records)}: at position [0-9]+, .*({says})") as caught:
        audit.step(len(records), records[-1])
    assert caught.value.sequence == len(records)


def test_leases_of_a_domain_end_together_and_no_others() -> None:
    """A release of all leases for a domain names only leases that are for it."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    uuid = "d0d0d0d0-0000-4000-8000-000000000001"
    lease, other = ledger.granted("01:00.0", domain=uuid), ledger.granted("0a:00.0")
    request = inputs.ReattachRequest(request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, domain=uuid)
    assert ledger.ask(request, A).lease == lease
    *before, last = _records(ledger)
    _audited([*before, last])
    step = last.steps[-1]
    wrong = _replace(last, steps=(Step(step.input, (_replace(step.events[0], lease=other),)),))
    with pytest.raises(CorruptLedgerError, match="which it is not for"):
        _audited([*before, wrong])
