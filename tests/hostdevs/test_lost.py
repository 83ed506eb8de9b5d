"""Restarts, crashes, losses and reboots: what has a device keeps it, and what comes back is made good."""

import pytest

from leasehold.events import inputs
from leasehold.events.event_types import DeviceReplaced
from leasehold.events.hostdev_events import DeviceGivenBack
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.hostdevs.cluster import OPERATOR, Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.hostdevs.test_pci import DOM_A, DOM_B, NIC, VF0
from tests.projections.ledger import B, refusal_of

ROOT_PORT = f"pci0000:00/{kernel.PORT}"


@scenario(
    "lost",
    "the daemon restarts while a domain runs",
    libvirt="the active list is built again from running domains, without checks; the inactive list is lost",
    here="binder, allocator or both: leases, notes and what is bound stay; nothing is written",
)
@pytest.mark.parametrize("which", ["binder", "allocator", "both"])
def test_restarts(cluster: Cluster, host: Host, which: str) -> None:
    """The second domain is refused as before, and the first one's device is not touched."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    told = list(host.kernel.told)
    if which in ("binder", "both"):
        host.kill_binder()
    if which in ("allocator", "both"):
        cluster.restart_allocator()
    if which in ("binder", "both"):
        host.start_binder()
    cluster.advance(1)
    assert host.word(NIC) == "leased prepared"
    assert host.kernel.told == told
    assert refusal_of(cluster.want(host, NIC, principal=B)).code == RefusalCode.DEVICE_HELD
    assert not host.start(DOM_B, NIC).ok


@scenario(
    "lost",
    "killed in the middle of preparing",
    libvirt="what was bound stays on the stub, and on no list (inferred)",
    here="the next run goes on: the device is prepared, or the lease's end brings it back",
    wrong=True,
)
@pytest.mark.parametrize("write", range(5))
def test_killed_while_preparing(cluster: Cluster, host: Host, write: int) -> None:
    """At each of the writes; the driver that it had before is known from the notes."""
    host.kill_at(write)
    lease = cluster.want(host, NIC, domain=DOM_A).lease
    if host.handing is not None:
        host.kill_binder()  # it had no such write: killed behind it
    host.kernel.on_told = lambda *_: None
    host.start_binder()
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("leased prepared", "vfio-pci")
    cluster.give(lease)
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "killed in the middle of giving back",
    libvirt="what was unbound stays so (inferred)",
    here="the next run brings it to its end, and only then it is free",
    wrong=True,
)
@pytest.mark.parametrize("write", range(5))
def test_killed_while_giving_back(cluster: Cluster, host: Host, write: int) -> None:
    """At each of the writes."""
    lease = cluster.take(host, NIC)
    host.kill_at(write)
    cluster.give(lease)
    if host.handing is not None:
        host.kill_binder()
    else:
        assert host.word(NIC).startswith("ending")
    host.kernel.on_told = lambda *_: None
    host.start_binder()
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "the guest ends while the daemon is down",
    libvirt="found at its start: reset, reattached, free",
    here="the same, when the poller has seen that it is gone",
)
def test_a_guest_ends_while_nobody_looks(cluster: Cluster, host: Host) -> None:
    """Its lease ends behind its grace time, and the device comes back."""
    cluster.take(host, NIC, domain=DOM_A, gone_ms=5_000)
    assert host.start(DOM_A, NIC).ok
    host.kill_binder()
    host.stop(DOM_A, hooked=False)
    cluster.advance(10)
    assert host.word(NIC).startswith("ending")
    host.start_binder()
    cluster.advance(1)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "a device vanishes in use, and the daemon restarts",
    libvirt="the restart fails to find it, and kills the running domain",
    here="the lease stays, marked lost; nobody acts on the domain",
    wrong=True,
)
def test_a_device_vanishes_and_all_restart(cluster: Cluster, host: Host) -> None:
    """Then it comes back: it is still its holder's, and the domain's end frees it."""
    cluster.take(host, VF0, domain=DOM_A)
    assert host.start(DOM_A, VF0).ok
    host.kernel.pci.write_device(kernel.PF, "sriov_numvfs", "0")
    cluster.settle()
    assert host.view(VF0).state == "lost"
    host.kill_binder()
    cluster.restart_allocator()
    host.start_binder()
    cluster.advance(1)
    assert host.view(VF0).state == "lost"
    assert host.is_running(DOM_A)
    host.kernel.pci.write_device(kernel.PF, "sriov_numvfs", "2")
    cluster.settle()
    assert refusal_of(cluster.want(host, VF0, principal=B)).code == RefusalCode.DEVICE_HELD
    host.stop(DOM_A)
    cluster.advance(5)
    assert (host.word(VF0), host.driver(VF0)) == ("free", "igbvf")


@scenario(
    "lost",
    "a device vanishes in use and comes back",
    libvirt="an event without an owner; the claim stays, and so does the refusal for others",
    here="the same; `DeviceMissing`, `DeviceReappeared`, and it is handed over anew when its domain has let go",
)
def test_a_device_comes_back(cluster: Cluster, host: Host) -> None:
    """As a card in a hot-plug slot does."""
    lease = cluster.take(host, NIC)
    host.kernel.pci.unplug(kernel.NIC)
    cluster.settle()
    assert host.view(NIC).state == "lost"
    host.kernel.pci.add(f"{ROOT_PORT}/{kernel.NIC}", "e1000e", "8086:10d3", "flr pm", 16)
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("leased prepared", "vfio-pci")
    cluster.give(lease)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "another card comes to its place",
    libvirt="not noticed: the address is the identity",
    here="told; it is not handed over for the old lease, and free only when that has ended",
    wrong=True,
)
def test_another_card_in_its_place(cluster: Cluster, host: Host) -> None:
    """What its holder never asked for stays on its driver."""
    lease = cluster.take(host, NIC)
    host.kernel.pci.unplug(kernel.NIC)
    cluster.settle()
    host.kernel.pci.load("ixgbe", "8086:10fb")
    host.kernel.pci.add(f"{ROOT_PORT}/{kernel.NIC}", "ixgbe", "8086:10fb", "flr", 16)
    cluster.advance(5)
    assert [event.device.product_id for event in cluster.told if isinstance(event, DeviceReplaced)] == ["10fb"]
    assert (host.view(NIC).state, host.driver(NIC)) == ("lost", "ixgbe")
    cluster.give(lease)
    cluster.advance(40)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "ixgbe")


@scenario(
    "lost",
    "the host reboots with devices leased",
    libvirt="nothing is left of any claim: its lists are in memory",
    here="leases live on; what was bound is not any more, so it is prepared anew",
)
def test_a_reboot(cluster: Cluster, host: Host) -> None:
    """Notes of another boot are void, but for their floors."""
    lease = cluster.take(host, NIC, domain=DOM_A)
    host.kill_binder()
    host.bind_by_hand(NIC, "")
    host.bind_by_hand(NIC, "e1000e")
    host.set_boot("boot-2")
    host.start_watching()
    host.start_binder()
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("leased prepared", "vfio-pci")
    cluster.give(lease)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "the host reboots while a device is being given back",
    libvirt="nothing is left of any claim: its lists are in memory",
    here="it is on its driver, which the binder sees, and says",
)
def test_a_reboot_while_giving_back(cluster: Cluster, host: Host) -> None:
    """Only then it is free."""
    lease = cluster.take(host, NIC)
    host.kill_binder()
    cluster.give(lease)
    host.bind_by_hand(NIC, "")
    host.bind_by_hand(NIC, "e1000e")
    host.set_boot("boot-2")
    host.start_watching()
    cluster.advance(1)
    assert host.word(NIC).startswith("ending")
    host.start_binder()
    cluster.advance(5)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")
    assert [type(event) for event in cluster.told].count(DeviceGivenBack) == 1


@scenario(
    "lost",
    "the host is off, and somebody says that it is dead",
    libvirt="no word for it",
    here="what its ended leases held is free; nothing of it is granted before it has told what is so",
)
def test_a_dead_host(cluster: Cluster, host: Host) -> None:
    """It comes back with the card still on the stub of a lease that is over: first that is taken back."""
    lease = cluster.take(host, NIC)
    host.kill_binder()
    cluster.give(lease)
    assert refusal_of(cluster.declare_dead(host)).code == RefusalCode.HOST_ALIVE
    host.silence("watcher", "poller", inputs.BINDER)
    assert cluster.declare_dead(host).outcome == "declared_dead"
    host.is_off = True
    cluster.advance(1)
    assert cluster.state.devices[host.id(NIC)].lease == 0
    assert refusal_of(cluster.ask(cluster.request(NIC, host="h1"), B)).code == RefusalCode.HOST_STALE
    host.is_off = False
    host.start_watching()
    assert refusal_of(cluster.ask(cluster.request(NIC, host="h1"), B)).code in (
        RefusalCode.HOST_STALE,
        RefusalCode.DEVICE_QUARANTINED,
    )
    host.start_binder()
    cluster.advance(40)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "lost",
    "a host that cannot hear the ledger",
    libvirt="no word for it",
    here="its binder begins nothing, refuses stale tokens, soon vouches for none, and ends what it has begun",
)
def test_cut_off(cluster: Cluster, host: Host) -> None:
    """The stale one is refused at once; the living one for as long as nobody can know better."""
    old = cluster.take(host, NIC)
    old_token = cluster.state.leases[old].token
    cluster.give(old)
    new = cluster.take(host, NIC)
    token = cluster.state.leases[new].token
    host.is_cut_off = True
    assert host.check(NIC, old_token).code == "token_stale"
    assert host.check(NIC, token).ok
    cluster.want(host, VF0)
    assert host.driver(VF0) == "igbvf"
    cluster.advance(16)
    assert host.check(NIC, old_token).code == "token_stale"
    assert host.check(NIC, token).code == "cut_off"
    assert host.start(DOM_A, NIC).code == "cut_off"
    host.is_cut_off = False
    host.sync()
    cluster.advance(1)
    assert host.check(NIC, token).ok
    assert host.word(VF0) == "leased prepared"


def test_an_operator_is_not_the_holder() -> None:
    """What operators may, they may as operators."""
    assert OPERATOR != B
