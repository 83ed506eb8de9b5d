"""Device classes: who is told what of a selector that is none, and that none goes while it is needed."""

from typing import Any

from leasehold.events import limits, schedule_inputs
from leasehold.events.answers import Answer
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Need
from leasehold.projections.rows import ClassState
from tests.projections.ledger import A, Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling.words import OPS, code, holds_after_restart, say

NICS = 'device.vendor == "8086" && device.product == "10c9"'


def set_class(ledger: Ledger, name: str = "nic", select: str = NICS) -> Answer:
    """An operator names a selector."""
    return say(ledger, schedule_inputs.SetClassRequest, name=name, select=select)


def remove_class(ledger: Ledger, name: str = "nic") -> Answer:
    """An operator takes it away."""
    return say(ledger, schedule_inputs.RemoveClassRequest, name=name)


def test_a_class_is_kept_and_replaced() -> None:
    """A class has the selector that was given last, with who gave it and where; and can be taken away."""
    ledger = ledger_with_hosts()
    first = set_class(ledger)
    assert first.outcome == "set"
    assert ledger.state.classes["nic"] == ClassState(select=NICS, position=first.position, by=OPS)
    second = set_class(ledger, select="device.pci.vf")
    assert ledger.state.classes["nic"] == ClassState(select="device.pci.vf", position=second.position, by=OPS)
    assert remove_class(ledger).outcome == "set"
    assert not ledger.state.classes
    assert code(remove_class(ledger)) == RefusalCode.CLASS_UNKNOWN


def test_asking_again_for_a_class_is_the_same_request() -> None:
    """A repeated request to set a class is answered as before, and writes nothing."""
    ledger = ledger_with_hosts()
    request = schedule_inputs.SetClassRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, name="nic", select=NICS
    )
    first, records = ledger.ask(request, OPS), len(ledger.bodies)
    again = ledger.ask(request, OPS)
    assert (again.outcome, again.position) == (first.outcome, first.position)
    assert len(ledger.bodies) == records


def test_a_selector_that_is_none_makes_no_class() -> None:
    """A wrong selector is refused with its place, and the class stays what it was."""
    ledger = ledger_with_hosts()
    set_class(ledger)
    refusal = refusal_of(set_class(ledger, select='device.vendor == "10DE"'))
    assert refusal.code == RefusalCode.SELECTOR_INVALID
    assert "column 18" in refusal.message
    assert ledger.state.classes["nic"].select == NICS


def test_there_are_so_many_classes_at_most() -> None:
    """One class more than may be is refused; one that is there may still be replaced."""
    ledger = ledger_with_hosts()
    for number in range(limits.CLASSES_MAX):
        ledger.state.put_class(f"c{number}", ClassState(select="true", position=1))
    assert code(set_class(ledger)) == RefusalCode.CLASSES_TOO_MANY
    assert set_class(ledger, "c7").outcome == "set"


def test_a_class_that_a_quota_names_stays() -> None:
    """While a quota names it, a class stays; whose it is is told."""
    ledger = ledger_with_hosts()
    set_class(ledger)
    quota: dict[str, Any] = {"tenant": "lab", "device_class": "nic"}
    say(ledger, schedule_inputs.SetQuotaRequest, devices_max=4, **quota)
    refusal = refusal_of(remove_class(ledger))
    assert (refusal.code, "a quota of lab" in refusal.message) == (RefusalCode.CLASS_IN_USE, True)
    say(ledger, schedule_inputs.SetQuotaRequest, devices_max=-1, **quota)
    assert remove_class(ledger).outcome == "set"


def test_a_class_that_is_waited_for_stays() -> None:
    """While a waiting request names it, a class stays; which request that is, is told."""
    ledger = ledger_with_hosts()
    set_class(ledger)
    waits = ledger.lease(needs=(Need(device_class="nic", count=64),), wait_ms=60_000)
    assert waits.outcome == "queued", waits
    refusal = refusal_of(remove_class(ledger))
    assert (refusal.code, f"Q{waits.queued}" in refusal.message) == (RefusalCode.CLASS_IN_USE, True)
    say(ledger, schedule_inputs.WithdrawRequest, A, queued=waits.queued)
    assert remove_class(ledger).outcome == "set"


def test_a_class_with_another_selector_serves_who_waits() -> None:
    """Who waits for a class gets what matches its new selector, without asking again."""
    ledger = ledger_with_hosts()
    set_class(ledger, select='device.vendor == "10de"')
    waits = ledger.lease(needs=(Need(device_class="nic"),), wait_ms=60_000)
    assert waits.outcome == "queued", waits
    set_class(ledger, select='device.host == "h1" && device.key == "pci/0000:0a:00.0"')
    ledger.tick()
    assert ledger.state.devices[device("0a:00.0")].lease
    assert not ledger.state.queue


def test_classes_come_back_from_a_snapshot() -> None:
    """Behind a snapshot classes are as before, to the byte."""
    ledger = ledger_with_hosts()
    set_class(ledger)
    holds_after_restart(ledger)
    assert ledger.state.classes
