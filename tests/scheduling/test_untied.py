"""Who waits for a device gets it, too, when what it could not be owned apart from, or counts as, is
that no more.
"""

from leasehold.events.schedule_inputs import SetClassRequest, SetQuotaRequest
from tests.projections.ledger import A, device, ledger_with_hosts
from tests.scheduling.words import say


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


def test_a_device_is_of_a_class_no_more_of_which_its_tenant_has_enough() -> None:
    """Who named it, and so does not wait for the class, is looked at when the class means something else."""
    ledger = ledger_with_hosts()
    say(ledger, SetClassRequest, name="net", select='device.vendor == "8086"')
    say(ledger, SetQuotaRequest, tenant=A, device_class="net", devices_max=0)
    assert ledger.lease("01:00.0", wait_ms=3_600_000).outcome == "queued"
    say(ledger, SetClassRequest, name="net", select='device.vendor == "0403"')
    ledger.tick()
    assert not ledger.state.queue
    assert ledger.state.devices[device("01:00.0")].lease
