"""A mediated device of a virtual function is a part of the physical one, too: what is whole has one owner."""

import pytest

from leasehold.events import codec
from leasehold.events.capabilities import MdevType, NewMdev, Pci
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.identities import DeviceId, DeviceKey
from leasehold.projections import conflicts
from leasehold.projections.auditing import Audit
from tests.projections.hbas import GVT, UUID, UUID2, HbaLedger, mdev
from tests.projections.ledger import H1, A, B, pci, refusal_of

CARD = "0d:00.0"
WHOLE, FUNCTION = DeviceKey("pci/0000:0d:00.0"), DeviceKey("pci/0000:0d:00.4")
PART = DeviceId(f"{H1}/{FUNCTION}/mdev/{UUID}")
NEW = NewMdev(parent=FUNCTION, mdev_type=GVT, uuid=UUID2)


def ledger_with_card() -> HbaLedger:
    """A card with a virtual function, of which there is a mediated device."""
    ledger = HbaLedger()
    offered = MdevType(id=GVT, name="GVTg_V5_4", device_api="vfio-pci", available_instances=4)
    part = DeviceKey(PART.removeprefix(f"{H1}/"))
    ledger.see(
        pci(CARD, iommu_group=40),
        pci("0d:00.4", iommu_group=41, physical_function=WHOLE, capability=Pci(mdev_types=(offered,))),
        mdev(key=part, parent=FUNCTION, physical_function=FUNCTION, iommu_group=42),
    )
    return ledger


def test_who_has_the_card_keeps_others_from_its_parts() -> None:
    """And who has a part of a part keeps others from the card; either way it is said what stands in the way."""
    ledger = ledger_with_card()
    lease = ledger.granted(CARD)
    refusal = refusal_of(ledger.ask(ledger.request(PART), B))
    assert (refusal.code, refusal.blockers[0].rule) == ("device_held", "physical_function")
    ledger.release(lease)
    assert ledger.ask(ledger.request(PART), A).outcome == "granted"
    refusal = refusal_of(ledger.lease(CARD, principal=B))
    assert (refusal.code, refusal.blockers[0].because_of) == ("device_held", PART)


def test_nothing_is_made_on_what_is_a_part_of_anothers() -> None:
    """Nor is a part of it taken away; its owner may have either done."""
    ledger = ledger_with_card()
    ledger.granted(CARD, principal=B)
    assert refusal_of(ledger.create(NEW)).code == "device_held"
    assert refusal_of(ledger.destroy(PART)).code == "device_held"
    ledger.ordered(ledger.create(NEW, principal=B))


def test_nobody_gets_the_card_while_an_order_for_a_part_is_open() -> None:
    """It would be changed under its new owner."""
    ledger = ledger_with_card()
    order = ledger.ordered(ledger.create(NEW))
    refusal = refusal_of(ledger.lease(CARD, principal=B))
    found = [(blocker.rule, blocker.because_of) for blocker in refusal.blockers]
    assert (refusal.code, found) == ("device_in_use", [("ordered", f"{H1}/{FUNCTION}")])
    ledger.creator.not_done(order)
    ledger.granted(CARD, principal=B)


def test_a_card_of_many_parts() -> None:
    """However many parts it has, whoever holds the last one keeps others from the card."""
    ledger = ledger_with_card()
    many, other = DeviceKey("pci/0000:0d:00.5"), DeviceKey("pci/0000:0d:00.6")
    for text in ("0d:00.5", "0d:00.6"):
        ledger.see(pci(text, iommu_group=-1, physical_function=WHOLE))
    uuids = [f"c2177883-f1bb-47f0-914d-{number:012x}" for number in range(4_200)]
    for at in range(0, len(uuids), 200):
        keys = [DeviceKey(f"{many}/mdev/{each}") for each in uuids[at : at + 200]]
        ledger.see(*(mdev(each[-36:], key=each, parent=many, physical_function=many) for each in keys))
    part = DeviceKey(f"{other}/mdev/{UUID2}")
    ledger.see(mdev(UUID2, key=part, parent=other, physical_function=other))
    assert ledger.ask(ledger.request(f"{H1}/{part}"), A).outcome == "granted"
    assert refusal_of(ledger.lease(CARD, principal=B)).blockers[0].because_of == f"{H1}/{part}"


def found_wrong(ledger: HbaLedger) -> str:
    """What the audit says of the log."""
    audit = Audit()
    with pytest.raises(CorruptLedgerError) as raised:
        for sequence, body in enumerate(ledger.bodies, 1):
            audit.step(sequence, codec.decode_record(body, sequence))
    return str(raised.value)


def test_the_audit_knows_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log in which the card and a part of a part have different owners is found to be wrong; as is one in which a
    part of what is another's is taken away.
    """
    monkeypatch.setattr(conflicts, "blockers", lambda *_args, **_how: iter(()))
    ledger = ledger_with_card()
    ledger.granted(CARD)
    assert ledger.ask(ledger.request(PART), B).outcome == "granted"
    assert "which is above or below it, is held by" in found_wrong(ledger)
    monkeypatch.setattr(conflicts, "physical_function_of", lambda *_args: iter(()))
    ledger = ledger_with_card()
    ledger.granted(CARD)
    ledger.ordered(ledger.destroy(PART, principal=B))
    assert f"although {H1}/{WHOLE} is held by {A}" in found_wrong(ledger)
