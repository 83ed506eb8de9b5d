"""Devices of every kind on imitated machines: where they hang, what they are called, and what they can do."""

from pathlib import Path

import pytest

from leasehold.events.capabilities import (
    Ap,
    Bond,
    Bridge,
    Ccw,
    Drm,
    Mdev,
    MdevParent,
    MdevType,
    Net,
    Other,
    Pci,
    System,
    UsbInterface,
    Vdpa,
    Vlan,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER
from leasehold.services.watcher.picture import take_picture
from tests.watcher.samples import (
    CARD,
    PORT,
    UUID,
    seen,
    with_usb,
)
from tests.watcher.trees import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- the computer and buses -----------------------------------------------------------------------------------------


def test_the_computer_is_what_its_dmi_tables_say(tree: Tree) -> None:
    """Product, maker, serial, firmware; it has no path and no parent."""
    told = {"product_name": "Standard PC", "sys_vendor": "QEMU", "product_serial": "17", "bios_date": "04/01/2014"}
    tree.device("virtual/dmi/id", "class/dmi", **told, product_uuid="4C4C4544-0039-4A10-8032-B9C04F4E3332")
    assert take_picture(tree.root)[COMPUTER] == DeviceDescription(
        key=COMPUTER,
        name="computer",
        kind="system",
        capability=System(
            product="Standard PC",
            vendor="QEMU",
            serial="17",
            uuid="4c4c4544-0039-4a10-8032-b9c04f4e3332",
            firmware_date="04/01/2014",
        ),
    )


def test_an_interface_says_its_numbers(tree: Tree) -> None:
    """Hexadecimal in sysfs, numbers here."""
    with_usb(tree, "2")
    for name, value in (("Number", "0a"), ("Class", "ff"), ("SubClass", "42"), ("Protocol", "01")):
        tree.write(f"{PORT}/1-2:1.0", f"bInterface{name}", value)
    tree.write(f"{PORT}/1-2:1.0", "interface", "ADB Interface")
    assert seen(tree)["usb/0000:00:14.0/2-2/interface/1.0"].capability == UsbInterface(
        number=10, interface_class=255, subclass=66, protocol=1, description="ADB Interface"
    )


# --- networks -------------------------------------------------------------------------------------------------------


def net(picture: dict[str, DeviceDescription], key: str) -> Net:
    capability = picture[key].capability
    assert isinstance(capability, Net)
    return capability


def test_bridges_vlans_and_bonds(tree: Tree) -> None:
    """Members name their master, a VLAN what it lies on: by key where that is known. All are devices of their own."""
    tree.pci(CARD)
    for number, name in enumerate(("eth0", "eth1", "eth2")):
        tree.net(f"{CARD}/net/{name}", dev_port=str(number), ifindex=str(number + 2))
    tree.bond("bond0", ("eth0", "eth1"), "802.3ad 4")
    tree.vlan("bond0", 10)
    tree.bridge("br0", ("bond0.10", "eth2"))
    tree.uevent(tree.net("virtual/net/tap0"), INTERFACE="tap0")
    tree.write("virtual/net/tap0", "tun_flags", "0x5002")
    picture = seen(tree)
    below = "pci/0000:00:01.0/net"
    assert net(picture, "virtual/net/bond0").kind == Bond(mode="802.3ad", active="eth0")
    assert net(picture, "virtual/net/bond0.10").kind == Vlan(id=10, lower="virtual/net/bond0")
    assert net(picture, "virtual/net/br0").kind == Bridge(bridge_id="8000.020000000001")
    assert [net(picture, f"{below}/{port}").master for port in (0, 1, 2)] == [
        "virtual/net/bond0", "virtual/net/bond0", "virtual/net/br0",
    ]  # fmt: skip
    assert net(picture, "virtual/net/bond0.10").master == "virtual/net/br0"
    kinds = {key: net(picture, key).device_type for key in picture if key.startswith("virtual/")}
    assert kinds == {
        "virtual/net/bond0": "bond",
        "virtual/net/bond0.10": "vlan",
        "virtual/net/br0": "bridge",
        "virtual/net/tap0": "tap",
    }


def test_wifi_and_loopback(tree: Tree) -> None:
    """80211 and neither: the loopback is no Ethernet."""
    with_usb(tree, "2")
    tree.wlan(f"{PORT}/1-2:1.0/net/wlan0", operstate="dormant")
    tree.net("virtual/net/lo", type="772", address="00:00:00:00:00:00")
    picture = seen(tree)
    assert net(picture, "usb/0000:00:14.0/2-2/net/1.0-0").medium == "80211"
    assert net(picture, "virtual/net/lo").medium == ""
    assert picture["virtual/net/lo"].name == "net_lo_00_00_00_00_00_00"


@pytest.mark.parametrize("speed", ["-1", "0", "4294967295"])
def test_a_link_without_a_speed_tells_none(tree: Tree, speed: str) -> None:
    """-1 is what the kernel says of a link whose speed nobody knows (libvirt: 4294967295)."""
    tree.pci(CARD)
    tree.net(f"{CARD}/net/eth0", operstate="up", speed=speed)
    assert net(seen(tree), "pci/0000:00:01.0/net/0").link_speed_mbps == -1


# --- GPUs and slices ------------------------------------------------------------------------------------------------


def test_a_gpu_with_nodes_and_slices(tree: Tree) -> None:
    """Its nodes by their sort; the types that it offers, and a mediated device, which is a part of it."""
    tree.pci(CARD, driver="i915", pci_class="0x030000", boot_vga="1")
    tree.drm(CARD, "card1", 1)
    tree.drm(CARD, "renderD129", 129)
    tree.device(f"{CARD}/drm/card1/card1-HDMI-A-1", "class/drm")
    tree.mdev_types(CARD, i915_GVTg_V5_4=1, i915_GVTg_V5_8=0)
    tree.mdev(CARD, UUID, "i915_GVTg_V5_4", group=12)
    picture = seen(tree)
    card = picture["pci/0000:00:01.0"]
    assert isinstance(card.capability, Pci)
    assert card.capability.boot_vga
    assert card.capability.mdev_types == (
        MdevType(id="i915_GVTg_V5_4", name="I915_GVTG_V5_4", device_api="vfio-pci", available_instances=1),
        MdevType(id="i915_GVTg_V5_8", name="I915_GVTG_V5_8", device_api="vfio-pci", available_instances=0),
    )
    assert {key: device.capability for key, device in picture.items() if device.kind == "drm"} == {
        "pci/0000:00:01.0/drm/primary-0": Drm(drm_type="primary"),
        "pci/0000:00:01.0/drm/render-0": Drm(drm_type="render"),
    }
    assert picture["pci/0000:00:01.0/drm/render-0"].devnodes == ("/dev/dri/renderD129",)
    slice_of_it = picture[f"pci/0000:00:01.0/mdev/{UUID}"]
    assert slice_of_it.name == f"mdev_{UUID.replace('-', '_')}_0000_00_01_0"
    assert (slice_of_it.parent, slice_of_it.physical_function) == ("pci/0000:00:01.0",) * 2
    assert (slice_of_it.iommu_group, slice_of_it.driver) == (12, "vfio_mdev")
    assert slice_of_it.capability == Mdev(uuid=UUID, mdev_type="i915_GVTg_V5_4")


def test_what_is_nothing_else_and_offers_slices(tree: Tree) -> None:
    """The kernel's sample of a serial port, below no bus: a device of its own, and what was made of it below it."""
    tree.device("virtual/mtty/mtty", "class/mtty")
    tree.mdev_types("virtual/mtty/mtty", **{"mtty-1": 24})
    tree.mdev("virtual/mtty/mtty", UUID, "mtty-1")
    picture = seen(tree)
    offered = MdevType(id="mtty-1", name="MTTY-1", device_api="vfio-pci", available_instances=24)
    assert picture["virtual/mtty/mtty"].name == "mtty_mtty"
    assert picture["virtual/mtty/mtty"].capability == MdevParent(mdev_types=(offered,))
    assert picture[f"virtual/mdev/{UUID}"].parent == "virtual/mtty/mtty"


def test_virtual_functions_of_a_card(tree: Tree) -> None:
    """Each names the physical one; its NIC is its own."""
    tree.pci(CARD, sriov_totalvfs="7", sriov_numvfs="2")
    for slot in ("0000:00:10.0", "0000:00:10.2"):
        function = tree.pci(f"pci0000:00/{slot}", driver="igbvf")
        tree.link(tree.devices / function / "physfn", tree.devices / CARD)
        tree.net(f"{function}/net/e{slot[-1]}")
    picture = seen(tree)
    parts = [key for key, device in picture.items() if device.physical_function == "pci/0000:00:01.0"]
    assert parts == ["pci/0000:00:10.0", "pci/0000:00:10.2"]
    assert picture["pci/0000:00:10.2/net/0"].parent == "pci/0000:00:10.2"


# --- mainframes -----------------------------------------------------------------------------------------------------


def test_channels_and_crypto_adapters(tree: Tree) -> None:
    """Subchannels with their devices, a DASD by its identifier, crypto cards with queues, and the matrix."""
    channel = tree.device("css0/0.0.0001", "bus/css/devices")
    tree.driver(channel, "css", "io_subchannel")
    device = tree.device(f"{channel}/0.0.1b2c", "bus/ccw/devices", online="1", uid="IBM.750000000L1241.1b2c.11")
    disk = tree.block(f"{device}/block/dasda", "94:0")
    tree.link(tree.devices / disk / "device", tree.devices / device)
    other = tree.device("css0/0.0.0004", "bus/css/devices", dev_busid="0.0.1b2e")
    tree.driver(other, "css", "vfio_ccw")
    tree.device("css0/0.0.0009", "bus/css/devices")
    card = tree.device("ap/card07", "bus/ap/devices")
    tree.device(f"{card}/07.0038", "bus/ap/devices")
    tree.device("vfio_ap/matrix", "bus/matrix/devices")
    picture = {key: device for key, device in seen(tree).items() if key != COMPUTER}
    assert {key: (device.name, device.parent) for key, device in picture.items()} == {
        "platform/ap/07.0038": ("ap_07_0038", "platform/ap/card07"),
        "platform/ap/card07": ("ap_card07", ""),
        "platform/block/0.0.1b2c-0": ("block_dasda_IBM_750000000L1241_1b2c_11", "platform/ccw/0.0.1b2c"),
        "platform/ccw/0.0.1b2c": ("ccw_0_0_1b2c", "platform/css/0.0.0001"),
        "platform/css/0.0.0001": ("css_0_0_0001", ""),
        "platform/css/0.0.0004": ("css_0_0_0004", ""),
        "platform/matrix/matrix": ("ap_matrix", ""),
    }
    assert picture["platform/ap/07.0038"].capability == Ap(adapter=7, domain=0x38)
    assert picture["platform/ap/card07"].capability == Ap(adapter=7)
    assert picture["platform/ccw/0.0.1b2c"].capability == Ccw(cssid=0, ssid=0, devno=0x1B2C)
    assert picture["platform/ccw/0.0.1b2c"].attributes == {"online": "1"}
    assert picture["platform/css/0.0.0004"].capability == Ccw(
        cssid=0, ssid=0, devno=4, is_subchannel=True, channel_device="0.0.1b2e"
    )
    tree.write(device, "online", "0")
    assert seen(tree)["platform/ccw/0.0.1b2c"].attributes == {"online": "0"}


def test_a_virtio_data_path(tree: Tree) -> None:
    """Below the function that it is a part of, with the node that a guest is given."""
    tree.pci(CARD)
    tree.device(f"{CARD}/vdpa3", "bus/vdpa/devices")
    tree.node(f"{CARD}/vdpa3/vhost-vdpa-0", "class/vhost-vdpa", "511:0")
    picture = seen(tree)
    assert picture["pci/0000:00:01.0/vdpa/0"].capability == Vdpa(chardev="/dev/vhost-vdpa-0")
    assert picture["pci/0000:00:01.0/vdpa/0"].name == "vdpa_vdpa3"
    assert [key for key in picture if "vhost" in key] == []


# --- all others -----------------------------------------------------------------------------------------------------


def test_unknown_things_are_kept(tree: Tree) -> None:
    """Whatever has a node and is not virtual, with what the kernel says of it; it is never anybody's parent."""
    with_usb(tree, "2")
    tree.write(PORT, "idVendor", "046d")
    below = f"{PORT}/1-2:1.0/0003:046D:C31C.0001"
    tree.node(f"{below}/hidraw/hidraw0", "class/hidraw", "247:0")
    tree.node(f"{below}/input/input9/event4", "class/input", "13:68", "input/event4")
    tree.node(f"{below}/input/input9/mouse1", "class/input", "13:33", "input/mouse1")
    tree.pci(CARD)
    for name in ("controlC1", "pcmC1D0p", "pcmC1D0c"):
        tree.node(f"{CARD}/sound/card1/{name}", "class/sound", f"116:{len(name)}{name[-1]}", f"snd/{name}")
    new = tree.node(f"{CARD}/novel/novel7", "class/novel", "300:7")
    tree.uevent(new, MAJOR="300", MINOR="7", DEVNAME="novel/7", DEVTYPE="widget", NOVEL_SORT="blue")
    tree.node(f"{CARD}/novel/novel7/part1", "class/part", "301:1")
    tree.node("virtual/mem/null", "class/mem", "1:3")
    tree.node("platform/serial8250/tty/ttyS1", "class/tty", "4:65")
    tree.node(f"{CARD}/bsg/0:0:0:0", "class/bsg", "252:0")
    tree.device("platform/00:03", "bus/pnp/devices")
    tree.node("platform/00:03/rtc/rtc0", "class/rtc", "251:0")
    picture = seen(tree)
    others = {key: device for key, device in picture.items() if device.kind == "other"}
    stick = "usb/0000:00:14.0/2-2"
    assert list(others) == [
        "pci/0000:00:01.0/novel/0",
        "pci/0000:00:01.0/part/0",
        "pci/0000:00:01.0/sound/control-0",
        "pci/0000:00:01.0/sound/pcm-D0c-0",
        "pci/0000:00:01.0/sound/pcm-D0p-0",
        "platform/rtc/00:03-0",
        f"{stick}/hidraw/1.0-0",
        f"{stick}/input/1.0-event-0",
        f"{stick}/input/1.0-mouse-0",
    ]
    assert others["pci/0000:00:01.0/novel/0"].capability == Other(devtype="widget", values={"NOVEL_SORT": "blue"})
    assert others["pci/0000:00:01.0/novel/0"].subsystem == "novel"
    assert others["pci/0000:00:01.0/novel/0"].devnodes == ("/dev/novel/7",)
    keyboard = others[f"{stick}/hidraw/1.0-0"]
    assert (keyboard.vendor_id, keyboard.product_id) == ("046d", "6001")
    assert (keyboard.name, keyboard.parent) == ("hidraw_hidraw0", f"{stick}/interface/1.0")
    parents = {device.parent for device in picture.values()}
    assert parents.isdisjoint(others)


def test_ports_of_one_serial_adapter(tree: Tree) -> None:
    """Told apart by the adapter's own numbers, though the kernel has named them the other way round."""
    with_usb(tree, "2")
    tree.tty(f"{PORT}/1-2:1.0/ttyUSB0", "188:0", port_number="1")
    tree.tty(f"{PORT}/1-2:1.0/ttyUSB1", "188:1", port_number="0")
    names = {key: device.name for key, device in seen(tree).items() if "/tty/" in key}
    stick = "usb/0000:00:14.0/2-2"
    assert names == {f"{stick}/tty/1.0-0": "tty_ttyUSB1", f"{stick}/tty/1.0-1": "tty_ttyUSB0"}
