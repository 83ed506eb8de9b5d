"""libvirt's scenarios with `nodedev-detach`, `nodedev-reattach` and `nodedev-reset`."""

import pytest

from leasehold.events.errors import InvalidInputError
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.hostdevs.test_pci import DOM_A, GPU, NIC, PORT, SATA, SMBUS, SOUND
from tests.projections.ledger import refusal_of


@scenario(
    "detach",
    "a free device is detached, once and again",
    libvirt="bound to the stub; the second time nothing is done",
    here="the same; and it can be leased from there",
)
def test_detach(cluster: Cluster, host: Host) -> None:
    """An administrator's order; a lease of it finds it on the stub, and leaves it there."""
    for _ in range(2):
        assert cluster.order(host, "detach", NIC) == ("done", "")
        assert host.driver(NIC) == "vfio-pci"
    lease = cluster.take(host, NIC)
    cluster.give(lease)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "vfio-pci")
    assert cluster.order(host, "reattach", NIC) == ("done", "")
    assert host.driver(NIC) == "e1000e"


@scenario(
    "detach",
    "a device that was never detached is reattached",
    libvirt="it is probed again, which is no error",
    here="it stays on its driver, which is no error",
)
def test_reattach_of_what_was_never_detached(cluster: Cluster, host: Host) -> None:
    """Nothing is written to it."""
    told = list(host.kernel.told)
    assert cluster.order(host, "reattach", NIC) == ("done", "")
    assert (host.driver(NIC), host.kernel.told) == ("e1000e", told)


@scenario(
    "detach",
    "detach, reattach or reset of a device in use",
    libvirt="refused: `PCI device … is in use by driver QEMU, domain a`",
    here="refused, with the lease, its holder and the domain that has it; nothing is written",
)
@pytest.mark.parametrize("operation", ["detach", "reattach", "reset"])
def test_nothing_is_done_to_a_device_in_use(cluster: Cluster, host: Host, operation: str) -> None:
    """The lease protects it from administrators, too."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC, name="a").ok
    told = list(host.kernel.told)
    refusal = refusal_of(cluster.operate(host, operation, NIC))
    assert refusal.code == RefusalCode.DEVICE_HELD
    assert "in use by lease" in refusal.message
    assert "driver qemu, domain a" in refusal.message
    assert host.kernel.told == told


@scenario(
    "detach",
    "a free member of a group is detached while another member is in use",
    libvirt="allowed",
    here="refused: the group belongs to one holder",
    wrong=True,
)
def test_a_neighbour_in_its_group_is_left_alone(cluster: Cluster, host: Host) -> None:
    """The lease of one function keeps administrators from the other."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    cluster.take(host, SATA)
    refusal = refusal_of(cluster.operate(host, "reattach", SMBUS))
    assert (refusal.code, refusal.blockers[0].rule) == (RefusalCode.DEVICE_HELD, "iommu_group")
    assert host.driver(SMBUS) == "vfio-pci"


@scenario(
    "detach",
    "to a driver that is no stub",
    libvirt="refused: `unknown driver name 'e1000e'`",
    here="refused, with those that there are",
)
def test_an_unknown_stub(cluster: Cluster, host: Host) -> None:
    """It never gets to the host."""
    with pytest.raises(InvalidInputError, match="is no stub driver; those are vfio-pci, xen-pciback and pci-stub"):
        cluster.operate(host, "detach", NIC, driver="e1000e")


@scenario(
    "detach",
    "the probe of the stub fails without an error",
    libvirt="not noticed: the driver is never looked at",
    here="the order fails, and the device is back on its driver",
    wrong=True,
)
def test_a_silent_probe(cluster: Cluster, host: Host) -> None:
    """What was written is not believed: the link is read."""
    host.kernel.pci.silent.add(("vfio-pci", kernel.NIC))
    state, reason = cluster.order(host, "detach", NIC)
    assert state == "failed"
    assert "vfio-pci" in reason
    assert host.driver(NIC) == "e1000e"


@scenario(
    "detach",
    "reset with neighbours on the bus that are in use",
    libvirt="refused: `Active … devices on bus with …, not doing bus reset`",
    here="refused; the neighbour is named",
)
def test_a_bus_is_not_reset_under_others(cluster: Cluster, host: Host) -> None:
    """The GPU's only reset would hit the sound function, which drives the host's speaker."""
    state, reason = cluster.order(host, "reset", GPU)
    assert state == "failed"
    assert "a reset of its bus would hit others" in reason
    assert (host.kernel.pci.resets, host.driver(SOUND)) == ([], "snd_hda_intel")


@scenario(
    "detach",
    "a bridge is detached, or given to a domain",
    libvirt="refused: `Non-endpoint PCI devices cannot be assigned to guests`",
    here="refused: it carries others",
)
def test_a_bridge_is_nobodys(cluster: Cluster, host: Host) -> None:
    """Neither leased nor operated on."""
    assert refusal_of(cluster.want(host, PORT)).code == RefusalCode.DEVICE_UNLEASABLE
    assert refusal_of(cluster.operate(host, "detach", PORT)).code == RefusalCode.DEVICE_UNLEASABLE
