"""What happens past the ledger: domains started without asking, drivers changed by hand, owners forgotten by others."""

from leasehold.events.hostdev_events import DriftDetected, DriftResolved
from leasehold.events.hostdevs import DRIFTS
from leasehold.events.refusals import RefusalCode
from leasehold.projections.drifting import list_drifts
from tests.binder import kernel
from tests.binder.kernel import STICK, usb
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import SCENARIOS, scenario
from tests.hostdevs.test_pci import DOM_A, DOM_B, NIC, VF0, VF1
from tests.projections.ledger import B, refusal_of


def drift(cluster: Cluster, host: Host, key: str) -> str:
    """Which one is told of a device when time has passed; empty: none. It names all three, and what to do."""
    cluster.advance(6)
    cluster.advance(1)
    found = [view for view in list_drifts(cluster.state)[0] if view.device == f"{host.name}/{key}"]
    for view in found:
        assert all((view.leased.says, view.attached.says, view.bound.says, view.help)), view
        assert view.since_position
    return "".join(view.kind for view in found)


def told(cluster: Cluster) -> list[str]:
    """The drifts that began and ended, in order."""
    return [
        f"{'+' if isinstance(event, DriftDetected) else '-'}{event.kind}"
        for event in cluster.told
        if isinstance(event, DriftDetected | DriftResolved)
    ]


@scenario(
    "drift",
    "a domain is started without asking (no hook, `xl` by its path)",
    libvirt="does not know of other hypervisors' domains (inferred)",
    here="seen by the poller: drift `foreign`; nobody else is granted it; it ends when the domain lets go",
    wrong=True,
)
def test_started_without_a_lease(cluster: Cluster, host: Host) -> None:
    """Told, with what to do, and told again when it is over."""
    host.start(DOM_A, NIC, hooked=False)
    assert drift(cluster, host, NIC) == "foreign"
    assert refusal_of(cluster.want(host, NIC, principal=B)).code == RefusalCode.DEVICE_IN_USE
    host.stop(DOM_A, hooked=False)
    assert drift(cluster, host, NIC) == ""
    assert told(cluster) == ["+foreign", "-foreign"]
    cluster.take(host, NIC, principal=B)


@scenario(
    "drift",
    "hot-plug past the hook into a domain that it is not leased for",
    libvirt="refused, if the other domain is the same daemon's; it calls no hook",
    here="seen by the poller: drift `misused`",
)
def test_plugged_into_another(cluster: Cluster, host: Host) -> None:
    """The lease stays its holder's."""
    cluster.take(host, usb(STICK), domain=DOM_A)
    host.attach(DOM_B, host.address(usb(STICK)))
    cluster.settle()
    assert drift(cluster, host, usb(STICK)) == "misused"
    host.stop(DOM_B, hooked=False)
    assert drift(cluster, host, usb(STICK)) == ""


@scenario(
    "drift",
    "two domains have one device (libvirt's roll-back, or libxl's lost owner)",
    libvirt="both run",
    here="drift `attached_twice`, with both names; the ledger keeps the one holder",
    wrong=True,
)
def test_attached_twice(cluster: Cluster, host: Host) -> None:
    """Whatever a hypervisor has let happen, it is seen."""
    cluster.take(host, NIC, domain=DOM_A)
    assert host.start(DOM_A, NIC).ok
    host.attach(DOM_B, NIC)
    cluster.settle()
    assert drift(cluster, host, NIC) == "attached_twice"
    (view,) = list_drifts(cluster.state)[0]
    assert view.attached.says.count("vm-") == 2
    host.stop(DOM_B, hooked=False)
    assert drift(cluster, host, NIC) == ""
    assert host.word(NIC) == "leased prepared"


@scenario(
    "drift",
    "its driver is changed by hand while it is leased",
    libvirt="not noticed: it ignores such events, and reads no driver again",
    here="drift `driver`: what it was handed over on, and what it is bound to; ends when it is bound so again",
    wrong=True,
)
def test_a_driver_changed_by_hand(cluster: Cluster, host: Host) -> None:
    """It is told, and not undone behind the back of whoever did it."""
    cluster.take(host, NIC)
    host.bind_by_hand(NIC, "e1000e")
    assert drift(cluster, host, NIC) == "driver"
    assert host.driver(NIC) == "e1000e"
    host.bind_by_hand(NIC, "vfio-pci")
    assert drift(cluster, host, NIC) == ""


@scenario(
    "drift",
    "a lease ends while its domain still runs with the device",
    libvirt="a domain's devices end with it",
    here="drift `kept`: nobody gets it before the domain lets go",
)
def test_kept(cluster: Cluster, host: Host) -> None:
    """Released by its holder, who has not looked."""
    lease = cluster.take(host, NIC, domain=DOM_A, keep=True)
    assert host.start(DOM_A, NIC).ok
    cluster.give(lease)
    assert drift(cluster, host, NIC) == "kept"
    assert host.driver(NIC) == "vfio-pci"
    host.stop(DOM_A, hooked=False)
    cluster.advance(40)
    assert drift(cluster, host, NIC) == ""
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "drift",
    "a leased device goes away, or another thing comes to its place",
    libvirt="an event that names no owner; the second is not noticed",
    here="drift `lost`, drift `replaced`",
    wrong=True,
)
def test_lost_and_replaced(cluster: Cluster, host: Host) -> None:
    """One after the other, of one stick."""
    cluster.take(host, usb(STICK))
    path = str(host.kernel.usb.folder(STICK)).partition("/devices/")[2]
    host.kernel.usb.unplug(STICK)
    cluster.settle()
    assert drift(cluster, host, usb(STICK)) == "lost"
    host.kernel.usb.plug(path, "0781:5581", "another serial")
    cluster.settle()
    assert drift(cluster, host, usb(STICK)) == "replaced"
    assert told(cluster) == ["+lost", "-lost", "+replaced"]


@scenario(
    "drift",
    "the binder does not hand over (it is stopped, or cut off)",
    libvirt="no such part",
    here="drift `not_prepared`, when it takes longer than it may",
)
def test_not_prepared(cluster: Cluster, host: Host) -> None:
    """The lease is there, the device is on its host driver."""
    host.is_cut_off = True
    cluster.want(host, VF1, ttl_ms=600_000)
    for _ in range(8):
        cluster.advance(10)
    assert drift(cluster, host, VF1) == "not_prepared"
    host.is_cut_off = False
    host.sync()
    cluster.advance(1)
    assert drift(cluster, host, VF1) == ""
    assert host.word(VF1) == "leased prepared"


@scenario(
    "drift",
    "libxl forgets the owner of a card when a second domain's attach is refused",
    libvirt="libxl 4.17 offers the card as assignable while a domain has it",
    here="the lease does not follow libxl's notes: still leased, refused to others, taken back from its domain only",
    wrong=True,
)
def test_libxl_forgets_an_owner(cluster: Cluster) -> None:
    """The recorded session: a1 has the card, a2's attach is refused, the owner's key is gone."""
    host = cluster.add("xen1", hypervisor="xen", stub="pciback")
    xen = host.kernel.boot_xen()
    lease = cluster.take(host, NIC, domain=DOM_A)
    assert host.driver(NIC) == "pciback"
    assert host.start(DOM_A, NIC).ok
    xen.give(kernel.NIC, 5)
    assert not host.start(DOM_B, NIC).ok
    assert refusal_of(cluster.want(host, NIC, domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    cluster.give(lease)
    cluster.advance(40)
    assert host.driver(NIC) == "pciback"
    xen.take(kernel.NIC)
    host.stop(DOM_A, hooked=False)
    cluster.advance(40)
    assert (host.word(NIC), host.driver(NIC)) == ("free", "e1000e")


@scenario(
    "drift",
    "two domains claim one device in their configurations",
    libvirt="accepted, refused at the second start",
    here="no drift: a claim is none before it is a lease or an attachment",
)
def test_configured_twice(cluster: Cluster, host: Host) -> None:
    """Configurations may say what they like."""
    host.configure(DOM_A, VF0)
    host.configure(DOM_B, VF0)
    assert drift(cluster, host, VF0) == ""
    assert told(cluster) == []


def test_each_kind_of_drift_is_shown() -> None:
    """No kind is left without a scenario here."""
    named = " ".join(f"{each.what} {each.here}" for each in SCENARIOS if each.section == "drift")
    assert [kind for kind in DRIFTS if f"`{kind}`" not in named] == []
