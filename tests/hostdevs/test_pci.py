"""libvirt's scenarios with PCI functions: detach, prepare, give back, partial failures, what cannot be owned apart."""

import errno

import pytest

from leasehold.events.hostdev_events import DevicePrepared, PrepareFailed
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.binder.kernel import pci
from tests.hostdevs.hosts import OPERATOR, Cluster, Host
from tests.hostdevs.table import scenario
from tests.projections.ledger import A, B, refusal_of

DOM_A, DOM_B = "c0ffee00-0000-4000-8000-00000000000a", "c0ffee00-0000-4000-8000-00000000000b"
NIC, PF, VF0, VF1 = pci(kernel.NIC), pci(kernel.PF), pci(kernel.VF0), pci(kernel.VF1)
GPU, SOUND, SATA, SMBUS = pci(kernel.GPU), pci(kernel.GPU_SOUND), pci(kernel.SATA), pci(kernel.SMBUS)
PORT = pci(kernel.PORT)


# --- detach, reattach, reset ------------------------------------------------------------------------------------------


@scenario(
    "detach", "a free device is detached, once and again", libvirt="bound to the stub; the second time nothing is done",
    here="the same; and it can be leased from there",
)  # fmt: skip
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
    "detach", "a device that was never detached is reattached", libvirt="it is probed again, which is no error",
    here="it stays on its driver, which is no error",
)  # fmt: skip
def test_reattach_of_what_was_never_detached(cluster: Cluster, host: Host) -> None:
    """Nothing is written to it."""
    told = list(host.kernel.told)
    assert cluster.order(host, "reattach", NIC) == ("done", "")
    assert (host.driver(NIC), host.kernel.told) == ("e1000e", told)


@scenario(
    "detach", "detach, reattach or reset of a device in use",
    libvirt="refused: `PCI device … is in use by driver QEMU, domain a`",
    here="refused, with the lease, its holder and the domain that has it; nothing is written",
)  # fmt: skip
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
    "detach", "a free member of a group is detached while another member is in use", libvirt="allowed",
    here="refused: the group belongs to one holder", wrong=True,
)  # fmt: skip
def test_a_neighbour_in_its_group_is_left_alone(cluster: Cluster, host: Host) -> None:
    """The lease of one function keeps administrators from the other."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    cluster.take(host, SATA)
    refusal = refusal_of(cluster.operate(host, "reattach", SMBUS))
    assert (refusal.code, refusal.blockers[0].rule) == (RefusalCode.DEVICE_HELD, "iommu_group")
    assert host.driver(SMBUS) == "vfio-pci"


@scenario(
    "detach", "to a driver that is no stub", libvirt="refused: `unknown driver name 'e1000e'`", here="refused, with those that there are"
)  # fmt: skip
def test_an_unknown_stub(cluster: Cluster, host: Host) -> None:
    """It never gets to the host."""
    with pytest.raises(Exception, match="is no stub driver; those are vfio-pci, xen-pciback and pci-stub"):
        cluster.operate(host, "detach", NIC, driver="e1000e")


@scenario(
    "detach", "the probe of the stub fails without an error", libvirt="not noticed: the driver is never looked at",
    here="the order fails, and the device is back on its driver", wrong=True,
)  # fmt: skip
def test_a_silent_probe(cluster: Cluster, host: Host) -> None:
    """What was written is not believed: the link is read."""
    host.kernel.pci.silent.add(("vfio-pci", kernel.NIC))
    state, reason = cluster.order(host, "detach", NIC)
    assert state == "failed"
    assert "vfio-pci" in reason
    assert host.driver(NIC) == "e1000e"


@scenario(
    "detach", "reset with neighbours on the bus that are in use",
    libvirt="refused: `Active … devices on bus with …, not doing bus reset`", here="refused; the neighbour is named",
)  # fmt: skip
def test_a_bus_is_not_reset_under_others(cluster: Cluster, host: Host) -> None:
    """The GPU's only reset would hit the sound function, which drives the host's speaker."""
    state, reason = cluster.order(host, "reset", GPU)
    assert state == "failed"
    assert "a reset of its bus would hit others" in reason
    assert (host.kernel.pci.resets, host.driver(SOUND)) == ([], "snd_hda_intel")


@scenario(
    "detach", "a bridge is detached, or given to a domain",
    libvirt="refused: `Non-endpoint PCI devices cannot be assigned to guests`", here="refused: it carries others",
)  # fmt: skip
def test_a_bridge_is_nobodys(cluster: Cluster, host: Host) -> None:
    """Neither leased nor operated on."""
    assert refusal_of(cluster.want(host, PORT)).code == RefusalCode.DEVICE_UNLEASABLE
    assert refusal_of(cluster.operate(host, "detach", PORT)).code == RefusalCode.DEVICE_UNLEASABLE


# --- prepare and give back --------------------------------------------------------------------------------------------


@scenario(
    "prepare", "a managed device: the domain starts and stops",
    libvirt="bound to the stub, reset, active; at the stop reset and back on its driver",
    here="the same, by lease and release; each step is an event, and read back",
)  # fmt: skip
def test_managed(cluster: Cluster, host: Host) -> None:
    """From its driver to the stub, with a reset, and back."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    (told,) = [event for event in cluster.told if isinstance(event, DevicePrepared)]
    assert (told.driver, told.was_driver, told.reset) == ("vfio-pci", "e1000e", "flr")
    assert host.driver(NIC) == "vfio-pci"
    assert host.start(DOM_A, NIC).ok
    host.stop(DOM_A)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")
    assert refusal_of(cluster.renew(lease)).code == RefusalCode.LEASE_ENDED


@scenario(
    "prepare", "an unmanaged device that is on its host driver",
    libvirt="refused: `Unmanaged PCI device … must be manually detached from the host`", here="refused; its driver is named",
)  # fmt: skip
def test_unmanaged_and_not_detached(cluster: Cluster, host: Host) -> None:
    """Nothing is written."""
    told = list(host.kernel.told)
    refusal = refusal_of(cluster.want(host, NIC, unmanaged=True))
    assert refusal.code == RefusalCode.DEVICE_NOT_DETACHED
    assert "e1000e" in refusal.message
    assert host.kernel.told == told


@scenario(
    "prepare", "an unmanaged device that was detached by hand", libvirt="active; at the stop it stays on the stub",
    here="the same",
)  # fmt: skip
def test_unmanaged(cluster: Cluster, host: Host) -> None:
    """Bound by hand before the lease, it is so behind it."""
    host.bind_by_hand(NIC, "vfio-pci")
    lease = cluster.take(host, NIC, unmanaged=True)
    cluster.give(lease)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "vfio-pci")


@scenario(
    "prepare", "managed and unmanaged devices for one domain, the unmanaged one on its host driver",
    libvirt="refused as a whole: the managed one was detached, and is bound back",
    here="two requests: the managed one is prepared, the unmanaged one refused before anything is written",
)  # fmt: skip
def test_mixed(cluster: Cluster, host: Host) -> None:
    """The domain does not start without the second, and giving the first back is one release."""
    lease = cluster.take(host, VF0, domain=DOM_A)
    assert refusal_of(cluster.want(host, NIC, domain=DOM_A, unmanaged=True)).code == RefusalCode.DEVICE_NOT_DETACHED
    assert not host.start(DOM_A, VF0, NIC).ok
    assert (host.driver(VF0), host.driver(NIC)) == ("vfio-pci", "e1000e")
    cluster.give(lease)
    assert (host.word(VF0), host.driver(VF0)) == ("free", "igbvf")


@scenario(
    "prepare", "a managed device that is on the stub already", libvirt="active; at the stop it stays on the stub",
    here="the same: it goes back to what it was",
)  # fmt: skip
def test_on_the_stub_already(cluster: Cluster, host: Host) -> None:
    """What it was before is noted, whatever it was."""
    host.bind_by_hand(NIC, "vfio-pci")
    cluster.give(cluster.take(host, NIC))
    assert (host.word(NIC), host.driver(NIC)) == ("free", "vfio-pci")


@scenario(
    "prepare", "a device with no driver at all", libvirt="bound to the stub; at the stop the host is probed for a driver",
    here="bound to the stub; then bound to nothing, as before",
)  # fmt: skip
def test_without_a_driver(cluster: Cluster, host: Host) -> None:
    """What somebody has unbound by hand stays so."""
    host.kernel.pci.unbind("e1000e", kernel.NIC)
    cluster.settle()
    cluster.give(cluster.take(host, NIC))
    assert (host.word(NIC), host.driver(NIC)) == ("free", "")


@scenario(
    "prepare", "a second domain asks for it", libvirt="refused at its start, with driver and name of the first",
    here="refused when it is asked for, long before the start, with lease and holder; and again at the door",
)  # fmt: skip
def test_a_second_domain(cluster: Cluster, host: Host) -> None:
    """The first one notices nothing."""
    lease = cluster.take(host, NIC, domain=DOM_A, holder="web")
    assert host.start(DOM_A, NIC).ok
    refusal = refusal_of(cluster.want(host, NIC, domain=DOM_B, principal=B))
    assert refusal.code == RefusalCode.DEVICE_HELD
    assert [(blocker.holder, blocker.lease) for blocker in refusal.blockers] == [("web", lease)]
    said = host.start(DOM_B, NIC, name="db")
    assert (said.ok, said.holder) == (False, "web")
    assert host.word(NIC) == "leased prepared"


@scenario(
    "prepare", "the same domain asks for it again", libvirt="refused, with its own name",
    here="refused; `prepare` leaves out what it has already",
)  # fmt: skip
def test_the_same_domain_again(cluster: Cluster, host: Host) -> None:
    """A lease is not given twice, not even to its holder."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    refusal = refusal_of(cluster.want(host, NIC, domain=DOM_A))
    assert [blocker.lease for blocker in refusal.blockers] == [lease]
    host.configure(DOM_A, NIC, VF0)
    answer = cluster.prepare(DOM_A)
    assert answer.devices == (f"h1/{VF0}",)
    assert refusal_of(cluster.prepare(DOM_A)).code == RefusalCode.NOTHING_TO_PREPARE


@scenario(
    "prepare", "another hypervisor's driver asks for it (libxl while QEMU has it)",
    libvirt="refused in one monolithic libvirtd; with a daemon for each driver both get it",
    here="refused: one state for all hypervisors", wrong=True,
)  # fmt: skip
def test_another_hypervisor(cluster: Cluster, host: Host) -> None:
    """The door does not care which hypervisor's hook asks."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    host.hypervisor = "xen"
    said = host.start(DOM_B, NIC)
    assert not said.ok
    assert refusal_of(cluster.want(host, NIC, domain=DOM_B, driver="pciback")).code == RefusalCode.DEVICE_HELD


@scenario(
    "prepare", "two hosts have a card at the same address", libvirt="each host knows its own only",
    here="two devices: the host is part of the key",
)  # fmt: skip
def test_two_hosts(cluster: Cluster, host: Host) -> None:
    """Each is leased and handed over on its own host."""
    other = cluster.add("h2", hypervisor="xen")
    first = cluster.take(host, NIC, domain=DOM_A)
    assert other.driver(NIC) == "e1000e"
    cluster.take(other, NIC, domain=DOM_A)
    cluster.give(first)
    assert (host.driver(NIC), other.driver(NIC)) == ("e1000e", "vfio-pci")


@scenario(
    "prepare", "a device that is not in sysfs", libvirt="skipped: the domain starts as far as libvirt cares",
    here="refused: unknown", wrong=True,
)  # fmt: skip
def test_a_device_that_is_not_there(cluster: Cluster, host: Host) -> None:
    """Nor does the door let a domain start with it."""
    nothing = "pci/0000:09:00.0"
    answer = cluster.want(host, NIC, nothing)
    assert refusal_of(answer).code == RefusalCode.DEVICE_UNKNOWN
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")
    said = host.start(DOM_A, nothing)
    assert (said.ok, said.code) == (False, "device_unknown")


@scenario(
    "prepare", "two domains are defined with one device", libvirt="accepted; refused at the start of the second",
    here="both may claim it; whose it is is decided by the lease, before any start",
)  # fmt: skip
def test_two_configurations(cluster: Cluster, host: Host) -> None:
    """The second `prepare` is refused, and nothing of the first is touched."""
    for uuid in (DOM_A, DOM_B):
        host.configure(uuid, NIC)
    assert cluster.prepare(DOM_A).outcome == "granted"
    assert refusal_of(cluster.prepare(DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert host.word(NIC) == "leased prepared"


@scenario(
    "prepare", "one device twice in one request",
    libvirt="refused: `Hostdev already exists in the domain configuration`", here="it is one device: granted once",
)  # fmt: skip
def test_twice_in_one_request(cluster: Cluster, host: Host) -> None:
    """By whatever names."""
    answer = cluster.want(host, NIC, f"h1/{NIC}", "0000:01:00.0")
    assert answer.devices == (f"h1/{NIC}",)


@scenario(
    "prepare", "one device of several is busy", libvirt="refused as a whole; the others are on their drivers, and free",
    here="the same; nothing was written at all",
)  # fmt: skip
def test_one_of_several_is_busy(cluster: Cluster, host: Host) -> None:
    """The free one can be had by another at once."""
    cluster.take(host, VF0, domain=DOM_A)
    told = list(host.kernel.told)
    assert refusal_of(cluster.want(host, VF1, VF0, domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert host.kernel.told == told
    assert (host.word(VF1), host.driver(VF1)) == ("free", "igbvf")
    cluster.take(host, VF1, principal=B)


@scenario(
    "prepare", "one device of several cannot be bound", libvirt="refused as a whole, the others are bound back",
    here="the same: the lease ends as `failed`, each device is given back, and what went wrong is said",
)  # fmt: skip
def test_one_of_several_cannot_be_bound(cluster: Cluster, host: Host) -> None:
    """Roll-back, and then everything is free again."""
    host.kernel.pci.silent.add(("vfio-pci", kernel.VF1))
    lease = cluster.want(host, NIC, VF1).lease
    (failed,) = [event for event in cluster.told if isinstance(event, PrepareFailed)]
    assert (failed.key, failed.lease) == (VF1, lease)
    assert "vfio-pci" in failed.reason
    host.kernel.pci.silent.clear()
    cluster.advance(60)
    assert [host.word(key) for key in (NIC, VF1)] == ["free", "free"]
    assert [host.driver(key) for key in (NIC, VF1)] == ["e1000e", "igbvf"]


@scenario(
    "prepare", "one device of several cannot be reset", libvirt="all are reset before the first failure is told, then bound back",
    here="bound back; the lease ends as `failed`",
)  # fmt: skip
def test_one_of_several_cannot_be_reset(cluster: Cluster, host: Host) -> None:
    """A reset that fails is a failure of the whole."""
    host.kernel.refuse["reset 1"] = errno.EIO
    cluster.want(host, NIC, VF1)
    assert [type(event) for event in cluster.told].count(PrepareFailed) == 1
    del host.kernel.refuse["reset 1"]
    cluster.advance(60)
    assert [host.word(key) for key in (NIC, VF1)] == ["free", "free"]
    assert [host.driver(key) for key in (NIC, VF1)] == ["e1000e", "igbvf"]


@scenario(
    "prepare", "PCI goes, USB does not (libvirt's order of classes)",
    libvirt="the start ends; what was prepared is freed by the normal stop",
    here="one request over both: all or none, whatever the class",
)  # fmt: skip
def test_classes_together(cluster: Cluster, host: Host) -> None:
    """A stick that another has keeps the card free."""
    stick = kernel.usb(kernel.STICK)
    cluster.take(host, stick, principal=B)
    assert refusal_of(cluster.want(host, NIC, stick)).code == RefusalCode.DEVICE_HELD
    assert host.word(NIC) == "free"


@scenario(
    "prepare", "a stranger gives it back", libvirt="left out: only what is this domain's is reattached",
    here="refused: a lease is its principal's; `reattach` of a stranger finds nothing",
)  # fmt: skip
def test_a_stranger(cluster: Cluster, host: Host) -> None:
    """Nothing of it changes."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    assert refusal_of(cluster.release(lease, principal=B)).code == RefusalCode.NOT_YOURS
    assert refusal_of(cluster.reattach(DOM_A, principal=B)).code == RefusalCode.NOTHING_TO_REATTACH
    assert host.word(NIC) == "leased prepared"
    assert cluster.reattach(DOM_A).lease == lease
    assert host.word(NIC) == "free"


@scenario(
    "prepare", "a start that was refused is followed by the stop that libvirt makes of it",
    libvirt="frees only what is this domain's", here="the same",
)  # fmt: skip
def test_a_refused_start_frees_nothing(cluster: Cluster, host: Host) -> None:
    """The other domain's lease lives."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    assert not host.start(DOM_B, NIC).ok
    host.ask("stop", DOM_B)
    cluster.settle()
    assert host.word(NIC) == "leased prepared"


@scenario(
    "prepare", "reattach never returns (the driver hangs)", libvirt="`nodedev-reattach` hangs, and its caller with it",
    here="the device goes into quarantine, with the reason and the way out", wrong=True,
)  # fmt: skip
def test_a_driver_that_does_not_take_it_back(cluster: Cluster, host: Host) -> None:
    """It is nobody's until the binder succeeds, which it tries again and again."""
    lease = cluster.take(host, NIC)
    host.kernel.pci.silent.add(("e1000e", kernel.NIC))
    cluster.give(lease)
    for _ in range(8):
        cluster.advance(10)
    view = host.view(NIC)
    assert view.binding is not None
    assert (view.binding.state, view.lease != "") == ("quarantined", True)
    assert view.binding.reason
    assert view.binding.help
    assert refusal_of(cluster.want(host, NIC, principal=B)).code in (
        RefusalCode.DEVICE_QUARANTINED, RefusalCode.DEVICE_HELD,
    )  # fmt: skip
    host.kernel.pci.silent.clear()
    for _ in range(8):
        cluster.advance(10)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "prepare", "the domain still has it when it is taken away", libvirt="at a stop QEMU has ended; a hot-unplug waits for the guest",
    here="it is waited for; only `revoke --force` takes it from a running domain",
)  # fmt: skip
@pytest.mark.parametrize("force", [False, True])
def test_a_domain_that_does_not_let_go(cluster: Cluster, host: Host, force: bool) -> None:
    """The lease is over at once, the device is free when it is let go."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    # The kernel asks who has the function to let go before it takes it.
    host.kernel.on_told = lambda attribute, _: host.let_go(DOM_A) if attribute == "unbind" else None
    cluster.revoke(lease, force=force)
    cluster.advance(40)
    if force:
        assert host.driver(NIC) == "e1000e"
    else:
        assert host.word(NIC).startswith("ending")
        assert host.driver(NIC) == "vfio-pci"
    host.stop(DOM_A)
    cluster.advance(40)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "prepare", "a virtual function's MAC and VLAN", libvirt="saved in /run and restored at the stop",
    here="the same, saved before anything is written; trust, spoof check and rates, too",
)  # fmt: skip
def test_settings_of_a_virtual_function(cluster: Cluster, host: Host) -> None:
    """What the domain made of them does not outlive it."""
    before = dict(host.kernel.vfs[0])
    lease = cluster.take(host, VF0)
    host.kernel.vfs[0] |= {"address": "52:54:00:00:00:09", "vlan_list": [{"vlan": 7, "qos": 0}], "trust": True}
    cluster.give(lease)
    assert host.word(VF0) == "free"
    assert {name: host.kernel.vfs[0][name] for name in ("address", "vlan_list", "trust")} == {
        name: before[name] for name in ("address", "vlan_list", "trust")
    }


# --- what cannot be owned apart ---------------------------------------------------------------------------------------


@scenario(
    "apart", "another member of its IOMMU group, for another domain", libvirt="refused, naming the member that is in use",
    here="refused, naming it, its lease and the rule",
)  # fmt: skip
def test_group_members(cluster: Cluster, host: Host) -> None:
    """Both are one holder's, or nobody's."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    lease = cluster.take(host, SATA)
    refusal = refusal_of(cluster.want(host, SMBUS, principal=B))
    assert [(each.rule, each.because_of, each.lease) for each in refusal.blockers] == [
        ("iommu_group", f"h1/{SATA}", lease)
    ]


@scenario(
    "apart", "a member of the group for the same domain, while it runs", libvirt="accepted; QEMU may refuse it later",
    here="granted to the same holder",
)  # fmt: skip
def test_group_members_of_one_holder(cluster: Cluster, host: Host) -> None:
    """The same principal and holder may have the rest."""
    host.bind_by_hand(SMBUS, "vfio-pci")
    cluster.take(host, SATA, domain=DOM_A)
    answer = cluster.want(host, SMBUS, domain=DOM_A)
    assert answer.outcome == "granted", answer.refusal


@scenario(
    "apart", "a group member is still on its host driver (vfio)", libvirt="accepted; QEMU fails with `group is not viable`",
    here="the lease fails, and says which member is on which driver", wrong=True,
)  # fmt: skip
def test_a_group_that_is_not_viable(cluster: Cluster, host: Host) -> None:
    """One function of a card alone cannot be handed over by vfio."""
    cluster.want(host, GPU)
    failed = [event for event in cluster.told if isinstance(event, PrepareFailed)]
    assert [event.key for event in failed] == [GPU]
    assert kernel.GPU_SOUND in failed[0].reason
    assert (host.driver(GPU), host.word(GPU)) == ("nouveau", "free")


@scenario(
    "apart", "a physical function while one of its virtual functions is held", libvirt="accepted", here="refused", wrong=True
)  # fmt: skip
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
)  # fmt: skip
def test_two_virtual_functions(cluster: Cluster, host: Host) -> None:
    """They share nothing but their physical function."""
    cluster.take(host, VF0, domain=DOM_A)
    cluster.take(host, VF1, domain=DOM_B, principal=B)


@scenario(
    "apart", "a USB controller while a stick behind it is held, and the other way round",
    libvirt="both accepted: PCI and USB lists know nothing of each other", here="refused both ways", wrong=True,
)  # fmt: skip
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
    "apart", "a device that the host itself lives on", libvirt="accepted: the host loses its disk or its network",
    here="refused, unless forced", wrong=True,
)  # fmt: skip
def test_what_the_host_lives_on(cluster: Cluster, host: Host) -> None:
    """The card of the default route is the host's."""
    host.protect(NIC, "carries the default route")
    refusal = refusal_of(cluster.want(host, NIC))
    assert refusal.code == RefusalCode.DEVICE_PROTECTED
    assert refusal_of(cluster.operate(host, "detach", NIC)).code == RefusalCode.DEVICE_PROTECTED


def test_operators_are_asked_by_name() -> None:
    """The harness's operator is no tenant of the leases."""
    assert OPERATOR not in (A, B)
