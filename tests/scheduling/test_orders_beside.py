"""What operators' words and sharers mean for orders: what nobody is granted can be worked on, what is shared cannot."""

from typing import Any

import pytest

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewVirtualFunctions, Pci
from leasehold.events.identities import Holder
from leasehold.events.refusals import RefusalCode
from tests.projections.ledger import H1, B, Ledger, device, ledger_with_hosts, refusal_of
from tests.scheduling import words

CARD = device("0a:00.0")


def operate(ledger: Ledger, operation: str = "detach", **fields: Any) -> Answer:
    """The binder is told to do something to the card."""
    given = {"request_id": ledger.new_id(), "issued_at_ns": ledger.now_ns, "device": CARD, "operation": operation}
    return ledger.ask(inputs.OperateDeviceRequest(**{**given, **fields}), words.OPS)


def shared(ledger: Ledger) -> None:
    """Somebody shares the card."""
    words.policy(ledger, CARD, share_max=2)
    answer = ledger.ask(ledger.request(CARD, mode="shared", holder=Holder("one")), B)
    assert answer.outcome == "granted", answer


@pytest.mark.parametrize("operation", ["detach", "reset"])
def test_a_device_that_nobody_is_granted_can_be_worked_on(operation: str) -> None:
    """Cordoned and with more taints than a refusal names; that is what it was cordoned for."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    assert words.cordon(ledger, device=CARD).outcome == "set"
    for number in range(16):
        assert words.taint(ledger, f"t{number}", device=CARD).outcome == "set"
        assert words.taint(ledger, f"t{number}", host=H1).outcome == "set"
    assert operate(ledger, operation).outcome == "ordered"


def test_beside_taints_what_is_leased_is_still_seen() -> None:
    """However many taints a device has, it is not detached while a mate of its group is leased."""
    ledger = ledger_with_hosts()
    ledger.change("0a:00.0", iommu_group=1)
    ledger.start_binder(H1)
    ledger.granted("01:00.0")
    for number in range(16):
        assert words.taint(ledger, f"t{number}", device=CARD).outcome == "set"
        assert words.taint(ledger, f"t{number}", host=H1).outcome == "set"
    assert refusal_of(operate(ledger)).code == RefusalCode.DEVICE_HELD


def test_a_shared_device_is_not_worked_on() -> None:
    """Who shares it has it."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H1)
    shared(ledger)
    refusal = refusal_of(operate(ledger))
    assert refusal.code == RefusalCode.DEVICE_SHARED
    assert "shared by one" in refusal.message


def test_who_shares_a_device_is_not_in_its_own_way() -> None:
    """What he does with it is no use without a lease; others may share it, too, alone nobody has it."""
    ledger = ledger_with_hosts()
    shared(ledger)
    ledger.change("0a:00.0", in_use_by=("process 7",))
    answer = ledger.ask(ledger.request(CARD, mode="shared", holder=Holder("two")), B)
    assert answer.outcome == "granted", answer
    assert refusal_of(ledger.lease("0a:00.0")).code == RefusalCode.DEVICE_SHARED
    assert refusal_of(ledger.lease("0a:00.0", mode="shared")).code == RefusalCode.DEVICE_SHARED


def test_relatives_of_a_shared_device() -> None:
    """Who shares a function keeps others from having its virtual functions alone, and the other way round."""
    ledger = ledger_with_hosts()
    whole, part = device("03:00.0"), device("03:10.0")
    words.policy(ledger, whole, share_max=2)
    lease = ledger.granted("03:00.0", mode="shared", principal=B)
    refusal = refusal_of(ledger.lease("03:10.0"))
    assert refusal.code == RefusalCode.DEVICE_SHARED
    assert refusal.blockers[0].because_of == whole
    ledger.release(lease, principal=B)
    assert ledger.lease("03:10.0").outcome == "granted"
    refusal = refusal_of(ledger.lease("03:00.0", mode="shared", principal=B))
    assert refusal.code == RefusalCode.DEVICE_HELD
    assert refusal.blockers[0].because_of == part


def test_virtual_functions_are_not_made_under_who_shares_a_device() -> None:
    """Not even by himself: he has no word from the others."""
    ledger = ledger_with_hosts()
    ledger.change("0a:00.0", capability=Pci(virtual_functions_max=4))
    words_of_creator: tuple[inputs.Observation, ...] = (inputs.SourceStarts(), inputs.PictureComplete(since=1))
    for counter, word in enumerate(words_of_creator):
        message = inputs.Observed(host=H1, agent=inputs.CREATOR, run=1, counter=counter, observations=(word,))
        ledger.observe_message(message)
    shared(ledger)
    request = inputs.CreateDeviceRequest(
        request_id=ledger.new_id(),
        issued_at_ns=ledger.now_ns,
        host=H1,
        device=NewVirtualFunctions(parent=CARD, count=2),
    )
    assert refusal_of(ledger.ask(request, B)).code == RefusalCode.DEVICE_SHARED
