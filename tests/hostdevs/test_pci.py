"""libvirt's scenarios with PCI functions: detach, prepare, give back, partial failures, what cannot be owned apart."""

import errno

import pytest

from leasehold.events.hostdev_events import DevicePrepared, PrepareFailed
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.binder.kernel import pci
from tests.hostdevs.cluster import OPERATOR, Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.projections.ledger import A, B, refusal_of

DOM_A, DOM_B = "c0ffee00-0000-4000-8000-00000000000a", "c0ffee00-0000-4000-8000-00000000000b"
NIC, PF, VF0, VF1 = pci(kernel.NIC), pci(kernel.PF), pci(kernel.VF0), pci(kernel.VF1)
GPU, SOUND, SATA, SMBUS = pci(kernel.GPU), pci(kernel.GPU_SOUND), pci(kernel.SATA), pci(kernel.SMBUS)
PORT = pci(kernel.PORT)


# --- prepare and give back --------------------------------------------------------------------------------------------


@scenario(
    "prepare",
    "a managed device: the domain starts and stops",
    libvirt="bound to the stub, reset, active; at the stop reset and back on its driver",
    here="the same, by lease and release; each step is an event, and read back",
)
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
    "prepare",
    "an unmanaged device that is on its host driver",
    libvirt="refused: `Unmanaged PCI device … must be manually detached from the host`",
    here="refused; its driver is named",
)
def test_unmanaged_and_not_detached(cluster: Cluster, host: Host) -> None:
    """Nothing is written."""
    told = list(host.kernel.told)
    refusal = refusal_of(cluster.want(host, NIC, unmanaged=True))
    assert refusal.code == RefusalCode.DEVICE_NOT_DETACHED
    assert "e1000e" in refusal.message
    assert host.kernel.told == told


@scenario(
    "prepare",
    "an unmanaged device that was detached by hand",
    libvirt="active; at the stop it stays on the stub",
    here="the same",
)
def test_unmanaged(cluster: Cluster, host: Host) -> None:
    """Bound by hand before the lease, it is so behind it."""
    host.bind_by_hand(NIC, "vfio-pci")
    lease = cluster.take(host, NIC, unmanaged=True)
    cluster.give(lease)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "vfio-pci")


@scenario(
    "prepare",
    "managed and unmanaged devices for one domain, the unmanaged one on its host driver",
    libvirt="refused as a whole: the managed one was detached, and is bound back",
    here="two requests: the managed one is prepared, the unmanaged one refused before anything is written",
)
def test_mixed(cluster: Cluster, host: Host) -> None:
    """The domain does not start without the second, and giving the first back is one release."""
    lease = cluster.take(host, VF0, domain=DOM_A)
    assert refusal_of(cluster.want(host, NIC, domain=DOM_A, unmanaged=True)).code == RefusalCode.DEVICE_NOT_DETACHED
    assert not host.start(DOM_A, VF0, NIC).ok
    assert (host.driver(VF0), host.driver(NIC)) == ("vfio-pci", "e1000e")
    cluster.give(lease)
    assert (host.word(VF0), host.driver(VF0)) == ("free", "igbvf")


@scenario(
    "prepare",
    "a managed device that is on the stub already",
    libvirt="active; at the stop it stays on the stub",
    here="the same: it goes back to what it was",
)
def test_on_the_stub_already(cluster: Cluster, host: Host) -> None:
    """What it was before is noted, whatever it was."""
    host.bind_by_hand(NIC, "vfio-pci")
    cluster.give(cluster.take(host, NIC))
    assert (host.word(NIC), host.driver(NIC)) == ("free", "vfio-pci")


@scenario(
    "prepare",
    "a device with no driver at all",
    libvirt="bound to the stub; at the stop the host is probed for a driver",
    here="bound to the stub; then bound to nothing, as before",
)
def test_without_a_driver(cluster: Cluster, host: Host) -> None:
    """What somebody has unbound by hand stays so."""
    host.kernel.pci.unbind("e1000e", kernel.NIC)
    cluster.settle()
    cluster.give(cluster.take(host, NIC))
    assert (host.word(NIC), host.driver(NIC)) == ("free", "")


@scenario(
    "prepare",
    "a second domain asks for it",
    libvirt="refused at its start, with driver and name of the first",
    here="refused when it is asked for, long before the start, with lease and holder; and again at the door",
)
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
    "prepare",
    "the same domain asks for it again",
    libvirt="refused, with its own name",
    here="refused; `prepare` leaves out what it has already",
)
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
    "prepare",
    "another hypervisor's driver asks for it (libxl while QEMU has it)",
    libvirt="refused in one libvirtd; with a daemon for each driver both get it (inferred)",
    here="refused: one state for all hypervisors",
    wrong=True,
)
def test_another_hypervisor(cluster: Cluster, host: Host) -> None:
    """The door does not care which hypervisor's hook asks."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    host.hypervisor = "xen"
    said = host.start(DOM_B, NIC)
    assert not said.ok
    assert refusal_of(cluster.want(host, NIC, domain=DOM_B, driver="pciback")).code == RefusalCode.DEVICE_HELD


@scenario(
    "prepare",
    "two hosts have a card at the same address",
    libvirt="each host knows its own only",
    here="two devices: the host is part of the key",
)
def test_two_hosts(cluster: Cluster, host: Host) -> None:
    """Each is leased and handed over on its own host."""
    other = cluster.add("h2", hypervisor="xen")
    first = cluster.take(host, NIC, domain=DOM_A)
    assert other.driver(NIC) == "e1000e"
    cluster.take(other, NIC, domain=DOM_A)
    cluster.give(first)
    assert (host.driver(NIC), other.driver(NIC)) == ("e1000e", "vfio-pci")


@scenario(
    "prepare",
    "a device that is not in sysfs",
    libvirt="skipped: the domain starts as far as libvirt cares",
    here="refused: unknown",
    wrong=True,
)
def test_a_device_that_is_not_there(cluster: Cluster, host: Host) -> None:
    """Nor does the door let a domain start with it."""
    nothing = "pci/0000:09:00.0"
    answer = cluster.want(host, NIC, nothing)
    assert refusal_of(answer).code == RefusalCode.DEVICE_UNKNOWN
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")
    said = host.start(DOM_A, nothing)
    assert (said.ok, said.code) == (False, "device_unknown")


@scenario(
    "prepare",
    "two domains are defined with one device",
    libvirt="accepted; refused at the start of the second",
    here="both may claim it; whose it is is decided by the lease, before any start",
)
def test_two_configurations(cluster: Cluster, host: Host) -> None:
    """The second `prepare` is refused, and nothing of the first is touched."""
    for uuid in (DOM_A, DOM_B):
        host.configure(uuid, NIC)
    assert cluster.prepare(DOM_A).outcome == "granted"
    assert refusal_of(cluster.prepare(DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert host.word(NIC) == "leased prepared"


@scenario(
    "prepare",
    "one device twice in one request",
    libvirt="refused: `Hostdev already exists in the domain configuration`",
    here="it is one device: granted once",
)
def test_twice_in_one_request(cluster: Cluster, host: Host) -> None:
    """By whatever names."""
    answer = cluster.want(host, NIC, f"h1/{NIC}", "0000:01:00.0")
    assert answer.devices == (f"h1/{NIC}",)


@scenario(
    "prepare",
    "one device of several is busy",
    libvirt="refused as a whole; the others are on their drivers, and free",
    here="the same; nothing was written at all",
)
def test_one_of_several_is_busy(cluster: Cluster, host: Host) -> None:
    """The free one can be had by another at once."""
    cluster.take(host, VF0, domain=DOM_A)
    told = list(host.kernel.told)
    assert refusal_of(cluster.want(host, VF1, VF0, domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert host.kernel.told == told
    assert (host.word(VF1), host.driver(VF1)) == ("free", "igbvf")
    cluster.take(host, VF1, principal=B)


@scenario(
    "prepare",
    "one device of several cannot be bound",
    libvirt="refused as a whole, the others are bound back",
    here="the same: the lease ends as `failed`, each device is given back, and what went wrong is said",
)
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
    "prepare",
    "one device of several cannot be reset",
    libvirt="all are reset before the first failure is told, then bound back",
    here="bound back; the lease ends as `failed`",
)
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
    "prepare",
    "PCI goes, USB does not (libvirt's order of classes)",
    libvirt="the start ends; what was prepared is freed by the normal stop",
    here="one request over both: all or none, whatever the class",
)
def test_classes_together(cluster: Cluster, host: Host) -> None:
    """A stick that another has keeps the card free."""
    stick = kernel.usb(kernel.STICK)
    cluster.take(host, stick, principal=B)
    assert refusal_of(cluster.want(host, NIC, stick)).code == RefusalCode.DEVICE_HELD
    assert host.word(NIC) == "free"


@scenario(
    "prepare",
    "a stranger gives it back",
    libvirt="left out: only what is this domain's is reattached",
    here="refused: a lease is its principal's; `reattach` of a stranger finds nothing",
)
def test_a_stranger(cluster: Cluster, host: Host) -> None:
    """Nothing of it changes."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    assert refusal_of(cluster.release(lease, principal=B)).code == RefusalCode.NOT_YOURS
    assert refusal_of(cluster.reattach(DOM_A, principal=B)).code == RefusalCode.NOTHING_TO_REATTACH
    assert host.word(NIC) == "leased prepared"
    assert cluster.reattach(DOM_A).lease == lease
    assert host.word(NIC) == "free"


@scenario(
    "prepare",
    "a start that was refused is followed by the stop that libvirt makes of it",
    libvirt="frees only what is this domain's",
    here="the same",
)
def test_a_refused_start_frees_nothing(cluster: Cluster, host: Host) -> None:
    """The other domain's lease lives."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    assert not host.start(DOM_B, NIC).ok
    host.ask("stop", DOM_B)
    cluster.settle()
    assert host.word(NIC) == "leased prepared"


@scenario(
    "prepare",
    "reattach never returns (the driver hangs)",
    libvirt="`nodedev-reattach` hangs, and its caller with it (as users report)",
    here="the device goes into quarantine, with the reason and the way out",
    wrong=True,
)
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
        RefusalCode.DEVICE_QUARANTINED,
        RefusalCode.DEVICE_HELD,
    )
    host.kernel.pci.silent.clear()
    for _ in range(8):
        cluster.advance(10)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "prepare",
    "the domain still has it when it is taken away",
    libvirt="at a stop QEMU has ended; a hot-unplug waits for the guest",
    here="it is waited for; only `revoke --force` takes it from a running domain",
)
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
    "prepare",
    "a virtual function's MAC and VLAN",
    libvirt="saved in /run and restored at the stop",
    here="the same, saved before anything is written; trust, spoof check and rates, too",
)
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


def test_operators_are_asked_by_name() -> None:
    """The harness's operator is no tenant of the leases."""
    assert OPERATOR not in (A, B)
