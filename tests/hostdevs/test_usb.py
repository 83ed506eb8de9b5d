"""libvirt's scenarios with USB devices: identity, twins, numbers that come again, roll-back, hubs."""

import pytest

from leasehold.events.event_types import DeviceReplaced
from leasehold.events.hostdev_events import PrepareFailed
from leasehold.events.identities import DeviceKey
from leasehold.events.refusals import RefusalCode
from tests.binder import kernel
from tests.binder.kernel import SERIAL, STICK, TWIN_A, TWIN_B, XHCI, usb
from tests.hostdevs.cluster import Cluster
from tests.hostdevs.hosts import Host
from tests.hostdevs.table import scenario
from tests.hostdevs.test_pci import DOM_A, DOM_B
from tests.projections.ledger import B, refusal_of

DOM_C = "c0ffee00-0000-4000-8000-00000000000c"
A_KEY, B_KEY, STICK_KEY, HUB_KEY = usb(TWIN_A), usb(TWIN_B), usb(STICK), usb("1-1")
BUS = f"pci0000:00/0000:00:1c.3/{XHCI}/usb1"
TWIN_ID = "usb-id/0403:6001"
STICK_ID = "usb-id/0781:5581"


@scenario(
    "usb",
    "a domain starts with a stick, and stops",
    libvirt="a list entry; QEMU takes it from its driver",
    here="its interfaces are taken from their drivers before, and bound again behind the end",
)
def test_handed_over_and_back(cluster: Cluster, host: Host) -> None:
    """The device stays for usbfs; nothing of the host uses it meanwhile."""
    assert host.kernel.driver("1-2:1.0") == "usb-storage"
    cluster.take(host, STICK_KEY, domain=DOM_A)
    assert (host.kernel.driver("1-2:1.0"), host.kernel.driver("1-2")) == ("", "usb")
    assert host.start(DOM_A, host.address(STICK_KEY)).ok
    host.stop(DOM_A)
    assert (host.word(STICK_KEY), host.kernel.driver("1-2:1.0")) == ("free", "usb-storage")


@scenario(
    "usb",
    "a start with a free and a busy stick is refused; then a third domain asks for the busy one",
    libvirt="the roll-back removes the victim's claim: the third domain starts, and two run with one stick",
    here="a refused request changes nothing of anybody's: the third is refused, too",
    wrong=True,
)
def test_roll_back_touches_nobody_else(cluster: Cluster, host: Host) -> None:
    """usbA has one; usbR wants [free, that one]; usbX wants that one. The free one stays free."""
    lease = cluster.take(host, STICK_KEY, domain=DOM_A)
    assert host.start(DOM_A, host.address(STICK_KEY)).ok
    assert refusal_of(cluster.want(host, A_KEY, STICK_KEY, domain=DOM_B, principal=B)).code == RefusalCode.DEVICE_HELD
    assert not host.start(DOM_B, host.address(A_KEY), host.address(STICK_KEY)).ok
    refusal = refusal_of(cluster.want(host, STICK_KEY, domain=DOM_C, principal=B))
    assert [blocker.lease for blocker in refusal.blockers] == [lease]
    assert not host.start(DOM_C, host.address(STICK_KEY)).ok
    assert host.word(A_KEY) == "free"
    cluster.take(host, A_KEY, domain=DOM_C, principal=B)


@scenario(
    "usb",
    "the stick is pulled out and plugged in again: it has another number",
    libvirt="it is free under its new number, and still listed under the old: two domains have it",
    here="it is the same thing at the same port: still leased, and to nobody else",
    wrong=True,
)
def test_plugged_in_again(cluster: Cluster, host: Host) -> None:
    """Identity is port, vendor, product and serial; the number is none."""
    cluster.take(host, STICK_KEY, domain=DOM_A)
    assert host.start(DOM_A, host.address(STICK_KEY)).ok
    before = host.address(STICK_KEY)
    host.kernel.usb.unplug(STICK)
    cluster.settle()
    assert host.view(STICK_KEY).state == "lost"
    host.kernel.usb.plug(f"{BUS}/{STICK}", "0781:5581", "4C530001")
    cluster.settle()
    assert host.address(STICK_KEY) != before
    assert host.word(STICK_KEY).startswith("leased")
    assert refusal_of(cluster.want(host, STICK_KEY, principal=B)).code == RefusalCode.DEVICE_HELD
    assert not host.start(DOM_B, host.address(STICK_KEY)).ok


@scenario(
    "usb",
    "another stick gets the number that a leased one had",
    libvirt="handed out to whoever has configured that number",
    here="it is another device, at another port, that nobody has leased: refused at the door",
    wrong=True,
)
def test_a_number_comes_again(cluster: Cluster, host: Host) -> None:
    """What a word means is looked up when it is asked, never remembered."""
    cluster.take(host, STICK_KEY, domain=DOM_A)
    number = host.address(STICK_KEY)
    host.kernel.usb.unplug(STICK)
    host.kernel.usb._number = int(number.rpartition(".")[2]) - 1
    host.kernel.usb.plug(f"{BUS}/1-3", "0403:6001", "another")
    cluster.settle()
    assert host.address(usb("1-3")) == number
    said = host.start(DOM_A, number)
    assert not said.ok
    assert usb("1-3") in said.message
    assert host.word(usb("1-3")) == "free"


@scenario(
    "usb",
    "another stick is plugged into the port of a leased one",
    libvirt="the claim stays on the old number; the new one is anybody's (inferred)",
    here="told (`DeviceReplaced`); the lease stays with what is gone, and the new thing is nobody's until it ends",
    wrong=True,
)
def test_another_thing_in_its_place(cluster: Cluster, host: Host) -> None:
    """The token does not act on what its holder never asked for, and nobody else gets it under the lease."""
    lease = cluster.take(host, STICK_KEY, domain=DOM_A)
    host.kernel.usb.unplug(STICK)
    cluster.settle()
    host.kernel.usb.plug(f"{BUS}/{STICK}", "0781:5581", "another serial")
    cluster.settle()
    assert [event.device.serial for event in cluster.told if isinstance(event, DeviceReplaced)] == ["another serial"]
    assert host.view(STICK_KEY).state == "lost"
    assert not host.start(DOM_A, host.address(STICK_KEY)).ok
    assert refusal_of(cluster.want(host, STICK_KEY, principal=B)).code == RefusalCode.DEVICE_HELD
    cluster.give(lease)
    cluster.advance(40)
    assert (host.word(STICK_KEY), host.kernel.driver("1-2:1.0")) == ("free", "usb-storage")


@scenario(
    "usb",
    "by vendor and product: none, one, or several are there",
    libvirt="none: `Did not find USB device`; one: taken; several: `Multiple USB devices for …`, even if one is taken",
    here="the same words when a domain is prepared; by address or port each twin can be had",
)
def test_by_what_it_is(cluster: Cluster, host: Host) -> None:
    """Twins with one serial number are two devices: their ports tell them apart."""
    host.configure(DOM_A, TWIN_ID)
    refusal = refusal_of(cluster.prepare(DOM_A))
    assert refusal.code == RefusalCode.DEVICE_AMBIGUOUS
    assert "Multiple USB devices for 0403:6001" in refusal.message
    cluster.take(host, A_KEY, domain=DOM_B, principal=B)
    assert refusal_of(cluster.prepare(DOM_A)).code == RefusalCode.DEVICE_AMBIGUOUS
    host.configure(DOM_C, STICK_ID)
    assert cluster.prepare(DOM_C).devices == (f"h1/{STICK_KEY}",)
    host.configure("c0ffee00-0000-4000-8000-00000000000d", "usb-id/dead:beef")
    assert refusal_of(cluster.prepare("c0ffee00-0000-4000-8000-00000000000d")).code == RefusalCode.DEVICE_UNKNOWN


@scenario(
    "usb",
    "identical twins, serial number and all, for two domains",
    libvirt="by bus and number, which change",
    here="by port: each its own lease, each its own driver back",
)
def test_twins(cluster: Cluster, host: Host) -> None:
    """The release of one does nothing to the other."""
    first = cluster.take(host, A_KEY, domain=DOM_A)
    cluster.take(host, B_KEY, domain=DOM_B, principal=B)
    assert host.kernel.describe(A_KEY).serial == host.kernel.describe(B_KEY).serial == SERIAL
    cluster.give(first)
    assert (host.word(A_KEY), host.word(B_KEY)) == ("free", "leased prepared")
    assert (host.kernel.driver(f"{TWIN_A}:1.0"), host.kernel.driver(f"{TWIN_B}:1.0")) == ("ftdi_sio", "")


@scenario(
    "usb",
    "twins change their ports while one of them is leased",
    libvirt="the claim stays on a number that is nobody's now (inferred)",
    here="what is told is what is there: the leased port has the twin now, which only its serial could tell apart",
)
def test_twins_that_change_places(cluster: Cluster, host: Host) -> None:
    """The lease is for the thing at the port; with one serial number for both nobody can tell, and the other port's
    twin is never handed out under the lease.
    """
    cluster.take(host, A_KEY, domain=DOM_A)
    for name in (TWIN_A, TWIN_B):
        host.kernel.usb.unplug(name)
    cluster.settle()
    for name in (TWIN_B, TWIN_A):
        host.kernel.usb.plug(f"{BUS}/1-1/{name}", "0403:6001", SERIAL)
    cluster.settle()
    assert host.word(A_KEY).startswith("leased")
    assert host.word(B_KEY) == "free"
    assert not host.start(DOM_A, host.address(B_KEY)).ok


@scenario(
    "usb",
    "the same domain plugs it in twice",
    libvirt="refused, with its own name",
    here="refused: it has a lease of it",
)
def test_twice(cluster: Cluster, host: Host) -> None:
    """As with PCI."""
    lease = cluster.take(host, STICK_KEY, domain=DOM_A)
    refusal = refusal_of(cluster.want(host, STICK_KEY, domain=DOM_A))
    assert [blocker.lease for blocker in refusal.blockers] == [lease]


@scenario(
    "usb",
    "a device that is not there, but optional (`startupPolicy`)",
    libvirt="the domain starts without it",
    here="refused at the door: what is not known cannot be vouched for; leave it out, and plug it in later",
)
def test_an_optional_device_that_is_missing(cluster: Cluster, host: Host) -> None:
    """Between the question and the start somebody could plug it in."""
    host.kernel.usb.unplug(STICK)
    cluster.settle()
    assert host.start(DOM_A, STICK_ID).code == "device_unknown"


@scenario(
    "usb",
    "a hub while a stick behind it is held, and the other way round",
    libvirt="not related to each other (inferred)",
    here="refused, through hubs behind hubs; a hub itself is never handed over",
    wrong=True,
)
def test_hubs(cluster: Cluster, host: Host) -> None:
    """Whoever resets a hub takes away all below."""
    host.kernel.usb.plug(f"{BUS}/1-1/1-1.6", "0409:55aa", bDeviceClass="09")
    host.kernel.usb.plug(f"{BUS}/1-1/1-1.6/1-1.6.2", "0781:5581", "deep")
    cluster.settle()
    deep, inner = usb("1-1.6.2"), usb("1-1.6")
    lease = cluster.take(host, deep)
    for hub in (inner, HUB_KEY):
        blockers = refusal_of(cluster.want(host, hub, principal=B)).blockers
        assert ("usb_tree", f"h1/{deep}") in [(each.rule, each.because_of) for each in blockers]
    cluster.give(lease)
    cluster.want(host, HUB_KEY, principal=B)
    assert [event.reason for event in cluster.told if isinstance(event, PrepareFailed)] == [
        "it is a hub: lease what is plugged in below it"
    ]
    assert host.word(HUB_KEY) == "free"


@scenario(
    "usb",
    "two devices of one name (`1-4:1.1` and `1-4.1.1` are both `usb_1_4_1_1`)",
    libvirt="the later one silently replaces the earlier one in its list",
    here="two keys, and two names: the second gets a suffix",
    wrong=True,
)
def test_two_of_one_name(cluster: Cluster, host: Host) -> None:
    """A name is a convenience, the key is the device."""
    host.kernel.usb.product("1234:5678", "usb-storage", "1.0", "1.1")
    host.kernel.usb.plug(f"{BUS}/1-4", "1234:5678", bDeviceClass="09")
    host.kernel.usb.plug(f"{BUS}/1-4/1-4.1", "0409:55aa", bDeviceClass="09")
    host.kernel.usb.plug(f"{BUS}/1-4/1-4.1/1-4.1.1", "0781:5581", "deep")
    cluster.settle()
    key = usb("1-4.1.1")
    names = [host.view(each).name for each in (key, DeviceKey(f"{usb('1-4')}/interface/1.1"))]
    assert len(set(names)) == 2
    assert [name[:11] for name in names] == ["usb_1_4_1_1"] * 2
    assert cluster.want(host, names[0]).devices == (f"h1/{key}",)


@scenario(
    "usb",
    "somebody on the host uses the stick through usbfs",
    libvirt="not asked",
    here="refused: it is in use, and by whom",
)
def test_in_use_on_the_host(cluster: Cluster, host: Host) -> None:
    """A claim by usbfs makes no event of the kernel; the interface's driver tells it."""
    (host.kernel.usb.folder("1-2:1.0") / "driver").unlink()
    host.kernel.usb.claim("1-2:1.0")
    cluster.settle()
    answer = cluster.want(host, STICK_KEY)
    assert refusal_of(answer).code == RefusalCode.DEVICE_IN_USE


@pytest.mark.parametrize("key", [A_KEY, STICK_KEY])
@scenario(
    "usb",
    "a stick is reset for its next holder",
    libvirt="by QEMU, if at all",
    here="its port is reset when it is handed over, and when it comes back",
)
def test_resets(cluster: Cluster, host: Host, key: DeviceKey) -> None:
    """Nothing that one domain left in it reaches the next."""
    cluster.give(cluster.take(host, key))
    name = TWIN_A if key == A_KEY else STICK
    assert host.kernel.usb.resets.count(name) == 2


def test_the_keys_are_those_of_the_kernel(host: Host) -> None:
    """The words of this module and the kernel's names mean the same devices."""
    assert {A_KEY, B_KEY, STICK_KEY, HUB_KEY} <= host.kernel.picture().keys()
    assert kernel.XHCI == XHCI
