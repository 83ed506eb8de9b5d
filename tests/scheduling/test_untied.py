"""Who waits for a device gets it, too, when what it could not be owned apart from is that no more."""

from tests.projections.ledger import device, ledger_with_hosts


def test_a_leased_device_is_found_in_another_group() -> None:
    """The one that is leased is told of; the one that is waited for is tied to it no more, and is looked at."""
    ledger = ledger_with_hosts()
    ledger.granted("02:00.1")
    assert ledger.lease("02:00.0", holder="other", wait_ms=3_600_000).outcome == "queued"
    ledger.change("02:00.1", iommu_group=99)
    ledger.tick()
    assert not ledger.state.queue
    assert ledger.state.devices[device("02:00.0")].lease


def test_a_virtual_function_is_found_to_be_of_none() -> None:
    """What was a part of a leased function, and is a thing of its own now, is had by who waits for the function."""
    ledger = ledger_with_hosts()
    ledger.granted("03:10.0")
    assert ledger.lease("03:00.0", holder="other", wait_ms=3_600_000).outcome == "queued"
    ledger.change("03:10.0", physical_function="")
    ledger.tick()
    assert not ledger.state.queue
    assert ledger.state.devices[device("03:00.0")].lease
