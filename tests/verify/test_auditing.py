"""What the audit says of logs: nothing of those that were decided by the rules, and each breach planted into one."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.identities import DeviceId, Holder, Principal, RequestId, RequestRef
from leasehold.events.record import Record, Step
from leasehold.projections.auditing import Audit
from tests.projections.ledger import A, B, Ledger, device, ledger_with_hosts
from tests.projections.scenario import play
from tests.sim.run import bounded
from tests.sim.simulation import Simulation

_replace = msgspec.structs.replace
SEEDS = range(7_000, 7_040)


def _audited(bodies: list[bytes]) -> Audit:
    audit = Audit()
    for sequence, body in enumerate(bodies, 1):
        audit.step(sequence, codec.decode_record(body, sequence))
    return audit


def test_nothing_is_found_in_what_the_rules_decided() -> None:
    """Logs of the simulator, with all its faults, are flawless for the audit, which met grants and answers in them."""
    granted = answered = 0
    for seed in SEEDS:
        print(f"seed {seed}")
        with bounded():
            simulation = Simulation(seed)
            simulation.run()
            audit = _audited(simulation.log.bodies)
        granted, answered = granted + audit.granted, answered + audit.answered
    assert granted > 10 * len(SEEDS)
    assert answered > 3 * granted
    assert _audited(play().bodies).granted


# --- breaches ---------------------------------------------------------------------------------------------------------

Change = Callable[[Ledger, list[Record]], None]


def _records(ledger: Ledger) -> list[Record]:
    return [codec.decode_record(body, sequence) for sequence, body in enumerate(ledger.bodies, 1)]


def _last(records: list[Record]) -> Step:
    return records[-1].steps[-1]


def _with(records: list[Record], step: Step) -> None:
    records[-1] = _replace(records[-1], steps=(*records[-1].steps[:-1], step))


def _event(records: list[Record], **fields: Any) -> None:
    step = _last(records)
    _with(records, _replace(step, events=(_replace(step.events[0], **fields), *step.events[1:])))


def _another_grant(ledger: Ledger, records: list[Record], *devices: DeviceId, principal: Principal = B) -> None:
    """Behind the log, a record in which `devices` are granted as if nobody had anything."""
    request = ledger.request(*devices, holder=Holder("thief"))
    ref = RequestRef(principal, request.request_id, codec.body_hash(request), request.issued_at_ns)
    granted = next(event for record in records for event in _events(record) if isinstance(event, LeaseGranted))
    event = _replace(granted, request=ref, holder=request.holder, devices=devices, ttl_ms=request.ttl_ms)
    records.append(_replace(records[-1], steps=(Step(inputs.Asked(principal, request), (event,)),)))


def _events(record: Record) -> list[Event]:
    return [event for step in record.steps for event in step.events]


def _behind(*held: str) -> Change:
    def change(ledger: Ledger, records: list[Record]) -> None:
        _another_grant(ledger, records, *map(device, held))

    return change


def _asked_by_another(_ledger: Ledger, records: list[Record]) -> None:
    step = _last(records)
    assert isinstance(step.input, inputs.Asked)
    _with(records, _replace(step, input=_replace(step.input, principal=Principal("other"))))


def _asked_for_something_else(_ledger: Ledger, records: list[Record]) -> None:
    step = _last(records)
    assert isinstance(step.input, inputs.Asked)
    request = _replace(step.input.request, devices=(device("02:00.0"),))
    _with(records, _replace(step, input=_replace(step.input, request=request)))


def _asked_under_another_id(_ledger: Ledger, records: list[Record]) -> None:
    step = _last(records)
    assert isinstance(step.input, inputs.Asked)
    request = _replace(step.input.request, request_id=RequestId("other"))
    _with(records, _replace(step, input=_replace(step.input, request=request)))


def _asked_by_nobody(_ledger: Ledger, records: list[Record]) -> None:
    _with(records, _replace(_last(records), input=inputs.Tick("alloc")))


def _for_another(_ledger: Ledger, records: list[Record]) -> None:
    _event(records, holder=Holder("thief"))


def _twice_the_same_device(_ledger: Ledger, records: list[Record]) -> None:
    _event(records, devices=(device("01:00.0"), device("01:00.0")))


def _then(*events: Event, given: inputs.Input | None = None) -> Change:
    """Behind the grant of 01:00.0, a record with these events; lease 0 in them is that of the grant."""

    def change(_ledger: Ledger, records: list[Record]) -> None:
        lease = len(records) * 256
        meant = tuple(_replace(event, lease=lease) for event in events)
        records.append(_replace(records[-1], steps=(Step(given or inputs.Tick("alloc"), meant),)))

    return change


def _released(*, principal: Principal = A, **fields: Any) -> Change:
    """The grant of 01:00.0 is given back by this principal, with these fields of the request."""

    def change(ledger: Ledger, records: list[Record]) -> None:
        lease = len(records) * 256
        request = inputs.ReleaseRequest(
            **{"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns, "lease": lease, "token": lease, **fields}
        )
        ref = RequestRef(principal, request.request_id, codec.body_hash(request), request.issued_at_ns)
        step = Step(inputs.Asked(principal, request), (event_types.LeaseReleased(request=ref, lease=lease),))
        records.append(_replace(records[-1], steps=(step,)))

    return change


def _released_twice(ledger: Ledger, records: list[Record]) -> None:
    _released()(ledger, records)
    lease = (len(records) - 1) * 256
    _released(lease=lease, token=lease)(ledger, records)
    step = _last(records)
    _with(records, _replace(step, events=(_replace(step.events[0], lease=lease),)))


_FREED = event_types.DeviceFreed(device=device("01:00.0"), lease=0, evidence="none")
_EXPIRED = event_types.LeaseExpired(0)


@pytest.mark.parametrize(
    ("held", "change", "says"),
    [
        (("01:00.0",), _behind("01:00.0"), "it is held by vm"),
        (("02:00.0",), _behind("02:00.1"), "IOMMU group"),
        (("03:00.0",), _behind("03:10.0"), "above or below"),
        (("03:10.0",), _behind("03:00.0"), "above or below"),
        (("04:00.0",), _behind("2-1.1"), "above or below"),
        (("2-1",), _behind("2-1.2"), "above or below"),
        (("2-1.2",), _behind("04:00.0"), "above or below"),
        (("01:00.0",), _behind("09:00.0", "01:00.0"), "it is held by vm"),
        (("01:00.0",), _asked_by_another, "but asked was"),
        (("01:00.0",), _asked_for_something_else, "answers another request under the id"),
        (("01:00.0",), _asked_under_another_id, "but asked was"),
        (("01:00.0",), _asked_by_nobody, "nobody asked here"),
        (("01:00.0",), _for_another, "not as it was asked for"),
        (("01:00.0",), _twice_the_same_device, "not as it was asked for|a lease of the devices"),
        (("01:00.0",), _then(_FREED), "lives"),
        (("01:00.0",), _then(_EXPIRED), "before its time"),
        (("01:00.0",), _released(principal=B), "acts on lease"),
        (("01:00.0",), _released(token=1), "with token 1$"),
        (("01:00.0",), _released(lease=256), "with token"),
        (("01:00.0",), _released_twice, "does not live"),
        (("01:00.0",), _then(_replace(_FREED, device=device("09:00.0"))), "does not hold it"),
    ],
)
def test_breaches_are_found(held: tuple[str, ...], change: Change, says: str) -> None:
    """What cannot be in any log is found in the record where it stands, with its position and what it is."""
    ledger = ledger_with_hosts()
    ledger.granted(*held)
    records = _records(ledger)
    change(ledger, records)
    audit = Audit()
    for sequence, record in enumerate(records[:-1], 1):
        audit.step(sequence, record)
    with pytest.raises(CorruptLedgerError, match=f"^record {len(records)}: at position [0-9]+, .*({says})") as caught:
        audit.step(len(records), records[-1])
    assert caught.value.sequence == len(records)


def test_the_same_holder_may_have_the_mates_of_a_group() -> None:
    """What the rules allow is no breach: a group in two leases of one holder, a PF and its VFs in one lease."""
    ledger = ledger_with_hosts()
    ledger.granted("02:00.0")
    ledger.granted("02:00.1")
    ledger.granted("03:00.0", "03:10.0", "03:10.1")
    assert _audited(ledger.bodies).granted == 3


def test_what_comes_to_be_shared_is_no_breach_and_what_is_granted_then_is() -> None:
    """A group drawn anew over two holders' devices is the host's doing; a third device of it, granted then, is not."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", holder=Holder("one"))
    ledger.granted("0a:00.0", holder=Holder("other"))
    ledger.change("0a:00.0", iommu_group=1)
    ledger.change("09:00.0", iommu_group=1)
    records = _records(ledger)
    audit = _audited(ledger.bodies)
    _another_grant(ledger, records, device("09:00.0"))
    with pytest.raises(CorruptLedgerError, match="IOMMU group"):
        audit.step(len(records), records[-1])
