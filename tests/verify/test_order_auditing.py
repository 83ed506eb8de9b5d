"""What the audit says of orders: nothing of those that were decided by the rules, and each breach that is planted."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.capabilities import CreateMdev, NewMdev, NewVport
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event, HostOrdered
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import CREATOR
from leasehold.events.record import Record, Step
from leasehold.projections.auditing import Audit
from tests.past.logs import seeds
from tests.past.nodedevs import GPU, MDEV_TYPE, SCSI_HOST, NodeLedger, random_log
from tests.projections.ledger import H1, SECOND, B, Ledger, device

_replace = msgspec.structs.replace


def _records(ledger: Ledger) -> list[Record]:
    return [codec.decode_record(body, sequence) for sequence, body in enumerate(ledger.bodies, 1)]


def _audited(records: list[Record]) -> Audit:
    audit = Audit()
    for sequence, record in enumerate(records, 1):
        audit.step(sequence, record)
    return audit


def test_nothing_is_found_in_what_the_rules_decided() -> None:
    """Logs of hosts that make, destroy, fail and are late are flawless for the audit, which met orders in them."""
    given = sum(_audited(_records(random_log(seed, steps=200))).orders.given for seed in seeds(8))
    assert given > 40


# --- breaches ---------------------------------------------------------------------------------------------------------

Plant = Callable[[NodeLedger], list[Record]]


def _said(observation: inputs.Observation) -> inputs.Observed:
    return inputs.Observed(host=H1, agent=CREATOR, run=1, counter=99, observations=(observation,))


def _then(records: list[Record], given: inputs.Input, *events: Event, at_ns: int = 0) -> list[Record]:
    """One record more; `at_ns`: so much later."""
    last = records[-1]
    return [*records, _replace(last, decided_at_ns=last.decided_at_ns + at_ns, steps=(Step(given, events),))]


def _ordered(ledger: NodeLedger) -> int:
    answer = ledger.create(NewMdev(parent=GPU, mdev_type=MDEV_TYPE), timeout_ms=10_000)
    assert answer.outcome == "ordered", answer
    return answer.position


def _otherwise(**fields: Any) -> Plant:
    """An order that is not what was asked for."""

    def plant(ledger: NodeLedger) -> list[Record]:
        _ordered(ledger)
        *records, last = _records(ledger)
        step = last.steps[-1]
        event = _replace(step.events[0], **fields)
        return [*records, _replace(last, steps=(_replace(step, events=(event,)),))]

    return plant


def _of_another_type(ledger: NodeLedger) -> list[Record]:
    order = CreateMdev(parent=DeviceKey(GPU), mdev_type="nvidia-36", uuid="01234567-89ab-4def-8123-456789abcdef")
    return _otherwise(order=order)(ledger)


def _again(ledger: NodeLedger) -> list[Record]:
    """The same once more, for another request."""
    order = _ordered(ledger)
    first = _records(ledger)
    _ordered(ledger)
    *records, last = _records(ledger)
    step, before = last.steps[-1], first[-1].steps[-1].events[0]
    assert isinstance(before, HostOrdered)
    assert order
    return [*records, _replace(last, steps=(_replace(step, events=(_replace(step.events[0], order=before.order),)),))]


def _of_what_is_held(ledger: NodeLedger) -> list[Record]:
    """The order stands behind a grant of the parent to another."""
    _ordered(ledger)
    *records, last = _records(ledger)
    grant = NodeLedger()
    grant.begin()
    assert grant.ask(grant.request(device("03:00.0")), B).outcome == "granted"
    return [*records, _records(grant)[-1], last]


def _ended(*steps: Callable[[NodeLedger, int], tuple[inputs.Input, Event]], at_s: int = 0) -> Plant:
    """Behind an order, a record for each of these."""

    def plant(ledger: NodeLedger) -> list[Record]:
        order = _ordered(ledger)
        records = _records(ledger)
        for step in steps:
            given, event = step(ledger, order)
            records = _then(records, given, event, at_ns=at_s * SECOND)
        return records

    return plant


def _done(_ledger: NodeLedger, order: int, **fields: Any) -> tuple[inputs.Input, Event]:
    word = inputs.OrderDone(order, "pci/0000:03:00.0/mdev/x")
    event = event_types.OrderCarriedOut(**{"host": H1, "order": order, "device": word.device, **fields})
    return _said(word), event


def _late(ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return _done(ledger, order, late=True)


def _elsewhere(ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return _done(ledger, order, host="h2")


def _never_given(ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return _done(ledger, order + 256)


def _nobody_said(ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return inputs.Tick("alloc"), _done(ledger, order)[1]


def _another_said(ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    given, event = _done(ledger, order)
    assert isinstance(given, inputs.Observed)
    return _replace(given, agent="watcher"), event


def _failed(_ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return _said(inputs.OrderNotDone(order, "no")), event_types.OrderFailed(host=H1, order=order, reason="no")


def _failed_otherwise(_ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    return _said(inputs.OrderNotDone(order, "no")), event_types.OrderFailed(host=H1, order=order, reason="so")


def _timed_out(_ledger: NodeLedger, order: int) -> tuple[inputs.Input, Event]:
    event = event_types.OrderFailed(host=H1, order=order, reason="nothing was heard", timed_out=True)
    return inputs.Tick("alloc"), event


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (_otherwise(deadline_ns=1), "by another time"),
        (_otherwise(host="h2"), "something else than was asked for"),
        (_of_another_type, "something else than was asked for"),
        (_again, "is for what order [0-9]+ is for"),
        (_of_what_is_held, "is held by b"),
        (_ended(_done, _done), "is over"),
        (_ended(_failed, _done), "is over"),
        (_ended(_done, _failed), "is over"),
        (_ended(_late), "late, but is not"),
        (_ended(_timed_out, _done, at_s=10), "in time, but is not"),
        (_ended(_timed_out, _timed_out, at_s=10), "is over"),
        (_ended(_timed_out, _late, _late, at_s=10), "is over"),
        (_ended(_timed_out, at_s=9), "before its time"),
        (_ended(_elsewhere), "never given there"),
        (_ended(_never_given), "never given there"),
        (_ended(_nobody_said), "has not said so"),
        (_ended(_another_said), "has not said so"),
        (_ended(_failed_otherwise), "has not said so"),
    ],
)
def test_breaches_are_found(plant: Plant, says: str) -> None:
    """What cannot be in any log is found in the record where it stands, with its position and what it is."""
    ledger = NodeLedger()
    ledger.begin()
    records = plant(ledger)
    audit = _audited(records[:-1])
    with pytest.raises(CorruptLedgerError, match=f"^record {len(records)}: at position [0-9]+, .*({says})") as caught:
        audit.step(len(records), records[-1])
    assert caught.value.sequence == len(records)


@pytest.mark.parametrize("steps", [(_done,), (_failed,), (_timed_out,), (_timed_out, _late)])
def test_what_may_become_of_an_order(steps: tuple[Any, ...]) -> None:
    """It is done, fails, or times out and is done late; then another for the same may be given."""
    ledger = NodeLedger()
    ledger.begin()
    audit = _audited(_ended(*steps, at_s=10)(ledger))
    assert audit.orders.given == 1


def test_an_order_for_a_virtual_hba_bears_the_names_that_were_asked_for() -> None:
    """In any spelling of them; other names are found."""
    ledger = NodeLedger()
    ledger.begin()
    ledger.create(NewVport(parent=SCSI_HOST, wwpn="50:01:43:80:12:34:56:78"))
    assert _audited(_records(ledger)).orders.given == 1
    *records, last = _records(ledger)
    step = last.steps[-1]
    assert isinstance(step.events[0], HostOrdered)
    order = _replace(step.events[0].order, wwpn="5001438012345679")
    changed = _replace(last, steps=(_replace(step, events=(_replace(step.events[0], order=order),)),))
    with pytest.raises(CorruptLedgerError, match="something else than was asked for"):
        _audited([*records, changed])
