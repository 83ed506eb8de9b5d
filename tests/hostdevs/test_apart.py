"""libvirt's scenarios with devices that cannot be owned apart, and with what the host itself needs."""

from leasehold.events.hostdev_events import PrepareFailed
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.binder.kernel import pci
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.hostdevs.test_pci import DOM_A, DOM_B, GPU, NIC, PF, SATA, SMBUS, VF0, VF1
from tests.projections.ledger import B, refusal_of


@scenario(
    "apart",
    "another member of its IOMMU group, for another domain",
    libvirt="refused, naming the member that is in use",
    here="refused, naming it, its lease and the rule",
)
def test_group_members(cluster: Cluster, host: Host) -> None:
    """Both are one holder's, or nobody's."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    lease = cluster.take(host, SATA)
    refusal = refusal_of(cluster.want(host, SMBUS, principal=B))
    assert [(each.rule, each.because_of, each.lease) for each in refusal.blockers] == [
        ("iommu_group", f"h1/{SATA}", lease)
    ]


@scenario(
    "apart",
    "a member of the group for the same domain, while it runs",
    libvirt="accepted; QEMU may refuse it later",
    here="granted to the same holder",
)
def test_group_members_of_one_holder(cluster: Cluster, host: Host) -> None:
    """The same principal and holder may have the rest."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    cluster.take(host, SATA, domain=DOM_A)
    answer = cluster.want(host, SMBUS, domain=DOM_A)
    assert answer.outcome == "granted", answer.refusal


@scenario(
    "apart",
    "a group member is still on its host driver (vfio)",
    libvirt="accepted; QEMU fails with `group is not viable`",
    here="the lease fails, and says which member is on which driver",
)
def test_a_group_that_is_not_viable(cluster: Cluster, host: Host) -> None:
    """One function of a card alone cannot be handed over by vfio."""
    cluster.want(host, GPU)
    failed = [event for event in cluster.told if isinstance(event, PrepareFailed)]
    assert [event.key for event in failed] == [GPU]
    assert kernel.GPU_SOUND in failed[0].reason
    assert (host.driver(GPU), host.word(GPU)) == ("nouveau", "free")


@scenario(
    "apart",
    "a physical function while one of its virtual functions is held",
    libvirt="accepted",
    here="refused",
    wrong=True,
)
def test_pf_while_vf_is_held(cluster: Cluster, host: Host) -> None:
    """And the other way round."""
    lease = cluster.take(host, VF0)
    refusal = refusal_of(cluster.want(host, PF, principal=B))
    assert [(each.rule, each.because_of) for each in refusal.blockers] == [("physical_function", f"h1/{VF0}")]
    assert refusal_of(cluster.operate(host, "detach", PF)).code == RefusalCode.DEVICE_HELD
    cluster.give(lease)
    cluster.take(host, PF, principal=B)
    refusal = refusal_of(cluster.want(host, VF1))
    assert [(each.rule, each.because_of) for each in refusal.blockers] == [("physical_function", f"h1/{PF}")]


@scenario(
    "apart", "two virtual functions of one card for two domains", libvirt="accepted", here="granted: each is alone"
)
def test_two_virtual_functions(cluster: Cluster, host: Host) -> None:
    """They share nothing but their physical function."""
    cluster.take(host, VF0, domain=DOM_A)
    cluster.take(host, VF1, domain=DOM_B, principal=B)
    assert (host.word(VF0), host.word(VF1)) == ("leased prepared", "leased prepared")


@scenario(
    "apart",
    "a USB controller while a stick behind it is held, and the other way round",
    libvirt="both accepted (inferred): its lists of PCI and USB know nothing of each other",
    here="refused both ways",
    wrong=True,
)
def test_controller_and_stick(cluster: Cluster, host: Host) -> None:
    """Who resets the controller takes the stick away."""
    controller, stick = pci(kernel.XHCI), kernel.usb(kernel.STICK)
    lease = cluster.take(host, stick)
    refusal = refusal_of(cluster.want(host, controller, principal=B))
    assert ("usb_tree", f"h1/{stick}") in [(each.rule, each.because_of) for each in refusal.blockers]
    cluster.give(lease)
    cluster.take(host, controller, principal=B)
    refusal = refusal_of(cluster.want(host, stick))
    assert ("usb_tree", f"h1/{controller}") in [(each.rule, each.because_of) for each in refusal.blockers]


@scenario(
    "apart",
    "a device that the host itself lives on",
    libvirt="not asked: the host loses its disk or its network",
    here="refused, unless forced",
    wrong=True,
)
def test_what_the_host_lives_on(cluster: Cluster, host: Host) -> None:
    """The card of the default route is the host's."""
    host.protect(NIC, "carries the default route")
    refusal = refusal_of(cluster.want(host, NIC))
    assert refusal.code == RefusalCode.DEVICE_PROTECTED
    assert refusal_of(cluster.operate(host, "detach", NIC)).code == RefusalCode.DEVICE_PROTECTED


# --- classes that libvirt keeps lists of their own for ----------------------------------------------------------------


@scenario(
    "apart",
    "two namespaces of one NVMe controller for two domains",
    libvirt="accepted (inferred): the controller is left out of the check, and stays active for ever",
    here="refused: a namespace stands for its controller, which goes as a whole",
    wrong=True,
)
def test_namespaces(cluster: Cluster, host: Host) -> None:
    """Each is a child of the function; whoever has the function has both."""
    keys = [host.show_child(NIC, f"nvme/{number}", kind="storage") for number in (1, 2)]
    first = cluster.want(host, keys[0], domain=DOM_A)
    assert first.devices == (f"h1/{NIC}",)
    assert refusal_of(cluster.want(host, keys[1], domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD


@scenario(
    "apart",
    "a disk of a SCSI controller, shareable",
    libvirt="two domains may have one, if both say `<shareable/>`; which controller it is on, nobody asks",
    here="no: a disk stands for its controller, and that for one holder",
)
def test_a_disk_is_its_controller(cluster: Cluster, host: Host) -> None:
    """While the controller is another's, no disk of it is had."""
    disk = host.show_child(VF0, "scsi/0:0:0:0", kind="storage")
    cluster.take(host, VF0, principal=B)
    assert refusal_of(cluster.want(host, disk)).code == RefusalCode.DEVICE_HELD


@scenario(
    "apart",
    "a mediated device for two domains, and its card while it is held",
    libvirt="the first is refused, with the owner's name; the second accepted (inferred)",
    here="both refused",
    wrong=True,
)
def test_mediated_devices(cluster: Cluster, host: Host) -> None:
    """It is a device of its own, which lives and dies with its card."""
    uuid = "83c32df7-d52e-4ec1-9668-1f3c7e4df107"
    mdev = host.make_mdev(NIC, uuid)
    answer = cluster.want(host, mdev, domain=DOM_A)
    assert host.word(mdev) == "leased prepared", answer
    assert refusal_of(cluster.want(host, mdev, domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert refusal_of(cluster.want(host, NIC, principal=B)).code == RefusalCode.DEVICE_HELD
    assert host.driver(NIC) == "e1000e"
    assert host.start(DOM_A, f"mdev/{uuid}").ok
    assert not host.start(DOM_B, f"mdev/{uuid}").ok


@scenario(
    "apart",
    "not by vfio, behind a bridge that does not keep its devices apart (no ACS)",
    libvirt="refused only if the strict flag says so: `… is behind a switch lacking ACS and cannot be assigned`",
    here="all that is behind it goes to one holder (rule `acs`)",
)
def test_behind_an_open_bridge(cluster: Cluster) -> None:
    """Two cards behind one conventional bridge reach each other's memory, and no IOMMU group says so."""
    host = cluster.add("h2", stub="pci-stub")
    bridge = "pci0000:00/0000:00:1e.0"
    host.kernel.pci.bridge(bridge)
    for name in ("secondary_bus_number", "subordinate_bus_number"):
        host.kernel.tree.write(bridge, name, "5")
    cards = [host.kernel.pci.add(f"{bridge}/0000:05:0{slot}.0", "e1000e") for slot in (1, 2)]
    cluster.settle()
    first, second = (pci(path.rpartition("/")[2]) for path in cards)
    cluster.want(host, first, principal=B)
    print([event.reason for event in cluster.told if isinstance(event, PrepareFailed)])
    assert host.word(first) == "leased prepared"
    assert [each.rule for each in refusal_of(cluster.want(host, second)).blockers] == ["acs"]
