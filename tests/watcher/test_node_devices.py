"""Devices of every kind on imitated machines: where they hang, what they are called, and what they can do."""

from pathlib import Path

import pytest

from leasehold.events.capabilities import (
    Ap,
    Bond,
    Bridge,
    Ccw,
    Drm,
    FcHost,
    Mdev,
    MdevParent,
    MdevType,
    Net,
    Other,
    Pci,
    ScsiDevice,
    ScsiGeneric,
    ScsiHost,
    ScsiTarget,
    Storage,
    System,
    UsbInterface,
    Vdpa,
    Vlan,
    VportOps,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER, DeviceKey
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
HBA = "pci0000:00/0000:00:07.0"
XHCI = "pci0000:00/0000:00:14.0"
PORT = f"{XHCI}/usb1/1-2"
UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
WWNN, WWPN = "20000000c9831b4b", "10000000c9831b4b"
FAR_WWPN = "5006016041e0b3c1"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def seen(tree: Tree, **said: str) -> dict[str, DeviceDescription]:
    """The picture, where udev says the same of every device."""
    return {str(key): device for key, device in take_picture(tree.root, udev=lambda _path: said).items()}


def line(picture: dict[str, DeviceDescription], key: str) -> list[str]:
    """The names from a device up to the computer."""
    names = []
    while key:
        names.append(picture[key].name)
        key = picture[key].parent
    return names


def with_usb(tree: Tree, *ports: str) -> None:
    """A controller with devices of one interface each."""
    tree.pci(XHCI, pci_class="0x0c0330")
    tree.usb(f"{XHCI}/usb1", bDeviceClass="09")
    for port in ports:
        tree.usb(f"{XHCI}/usb1/1-{port}")
        tree.usb(f"{XHCI}/usb1/1-{port}/1-{port}:1.0", bInterfaceNumber="00")


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


# --- SCSI and disks -------------------------------------------------------------------------------------------------


def sata(tree: Tree, port: int, host: int, disk: str, **attributes: str) -> str:
    """A disk at a port of a SATA controller, with the numbers that the kernel happened to give."""
    above = tree.device(f"{CARD}/ata{host + 1}")
    tree.device(f"{above}/ata_port/ata{host + 1}", "class/ata_port", port_no=str(port))
    tree.scsi_host(f"{above}/host{host}", proc_name="ahci", unique_id=str(host + 1))
    unit = tree.scsi_device(tree.scsi_target(f"{above}/host{host}", f"{host}:0:0"), 0)
    number = f"8:{16 * (ord(disk[-1]) - ord('a'))}"
    return tree.scsi_disk(unit, disk, number, generic=f"sg{host}", **attributes)


def test_a_sata_disk_behind_scsi(tree: Tree) -> None:
    """Disk, logical unit, target, host, function: each below the next, each named as libvirt names it."""
    tree.pci(CARD, pci_class="0x010601")
    disk = sata(tree, 2, 4, "sdb", size="7814037168", removable="0")
    tree.write(disk, "queue/rotational", "1")
    tree.write(disk, "queue/logical_block_size", "512")
    picture = seen(tree)
    below = "pci/0000:00:01.0"
    disk_key = f"{below}/block/port-2:0:0:0"
    assert line(picture, disk_key) == [
        "block_sdb", "scsi_4_0_0_0", "scsi_target4_0_0", "scsi_host4", "pci_0000_00_01_0",
    ]  # fmt: skip
    assert line(picture, f"{below}/scsi_generic/port-2:0:0:0")[:2] == ["scsi_generic_sg4", "scsi_4_0_0_0"]
    assert picture[disk_key].capability == Storage(
        block="/dev/sdb",
        bus="ata",
        drive_type="disk",
        vendor="ATA",
        model="WDC WD40",
        size_bytes=4_000_787_030_016,
        logical_block_size=512,
        rotational=True,
    )
    capabilities = {device.kind: device.capability for device in picture.values()}
    assert capabilities["scsi_host"] == ScsiHost(host=4, unique_id=5, driver="ahci")
    assert capabilities["scsi_target"] == ScsiTarget(target="target4:0:0")
    assert capabilities["scsi"] == ScsiDevice(host=4, bus=0, target=0, lun=0, scsi_type="disk")
    assert capabilities["scsi_generic"] == ScsiGeneric(char="/dev/sg4")
    assert picture[f"{below}/scsi_generic/port-2:0:0:0"].devnodes == ("/dev/sg4",)


def test_an_nvme_disk_with_sectors_of_4096_bytes(tree: Tree) -> None:
    """Its size is what it is (libvirt: eight times that), its key the namespace's id, whatever it is called."""
    tree.pci(CARD, pci_class="0x010802")
    tree.node(f"{CARD}/nvme/nvme3", "class/nvme", "240:3", model="QEMU NVMe Ctrl", serial="NVME1")
    disk = tree.block(f"{CARD}/nvme/nvme3/nvme3n1", "259:0", size="2097152", nsid="7")
    tree.link(tree.devices / disk / "device", tree.devices / f"{CARD}/nvme/nvme3")
    tree.write(disk, "queue/logical_block_size", "4096")
    found = seen(tree)["pci/0000:00:01.0/block/7"]
    assert (found.serial, found.parent) == ("NVME1", "pci/0000:00:01.0")
    assert found.capability == Storage(
        block="/dev/nvme3n1",
        bus="nvme",
        drive_type="disk",
        model="QEMU NVMe Ctrl",
        size_bytes=2**30,
        logical_block_size=4096,
    )


@pytest.mark.parametrize(
    ("size", "said", "has_disc"),
    [
        ("1024000", {}, True),
        ("2097151", {}, False),
        ("2097151", {"USEC_INITIALIZED": "1", "ID_CDROM_MEDIA": "1", "ID_TYPE": "cd", "ID_FS_LABEL": "DEB"}, True),
        ("1024000", {"USEC_INITIALIZED": "1", "ID_TYPE": "cd"}, False),
    ],
)
def test_a_cd_drive_with_and_without_a_disc(tree: Tree, size: str, said: dict[str, str], has_disc: bool) -> None:
    """udev's word counts where it has spoken, else the size that an empty drive says."""
    tree.pci(CARD)
    unit = tree.scsi_device(tree.scsi_target(tree.scsi_host(f"{CARD}/host0"), "0:0:0"), 0, type="5")
    tree.scsi_disk(unit, "sr0", "11:0", size=size, removable="1")
    drive = next(device.capability for device in seen(tree, **said).values() if device.kind == "block")
    assert isinstance(drive, Storage)
    assert (drive.drive_type, drive.removable, drive.media_available) == ("cdrom", True, has_disc)
    assert drive.size_bytes == (int(size) * 512 if has_disc else -1)
    assert drive.media_label == said.get("ID_FS_LABEL", "")


def test_a_usb_stick_with_storage(tree: Tree) -> None:
    """All of it below the interface, in the key of the port; it can be unplugged, and has what its maker wrote."""
    with_usb(tree, "2")
    host = tree.scsi_host(f"{PORT}/1-2:1.0/host6", proc_name="usb-storage")
    unit = tree.scsi_device(tree.scsi_target(host, "6:0:0"), 0, vendor="SanDisk", model="Ultra")
    tree.scsi_disk(unit, "sda", "8:0", size="0", removable="1")
    picture = seen(tree)
    key = "usb/0000:00:14.0/2-2/block/1.0-0:0:0:0"
    assert line(picture, key)[3:] == ["scsi_host6", "usb_1_2_1_0", "usb_1_2", "usb_usb1", "pci_0000_00_14_0"]
    assert picture[key].capability == Storage(
        block="/dev/sda",
        bus="usb",
        drive_type="disk",
        vendor="SanDisk",
        model="Ultra",
        removable=True,
        hotpluggable=True,
        media_available=False,
    )


def fc_machine(tree: Tree, host: int = 5) -> None:
    """An HBA with one virtual HBA, and a remote port with two disks."""
    tree.pci(HBA, pci_class="0x0c0400")
    path = tree.fc_host(f"{HBA}/host{host}", WWNN, WWPN, vports_max=127, npiv_vports_inuse="1")
    tree.vport(path, host + 1, "2101001b32a9da4e", "2001001b32a9da4e")
    target = tree.scsi_target(tree.remote_port(path, 0, FAR_WWPN), f"{host}:0:0")
    for lun, disk in enumerate(("sdc", "sdd")):
        tree.scsi_disk(tree.scsi_device(target, lun), disk, f"8:{32 + 16 * lun}")


def test_a_fibre_channel_hba(tree: Tree) -> None:
    """It is known by its world wide name, says whether it can have virtual ones, and whose disks it sees."""
    fc_machine(tree)
    picture = seen(tree)
    hba = f"pci/0000:00:07.0/scsi_host/{WWPN}"
    assert picture[hba].capability == ScsiHost(
        host=5,
        unique_id=1,
        driver="lpfc",
        fc_host=FcHost(wwnn=WWNN, wwpn=WWPN, fabric_wwn="100000051e000001", port_state="Online"),
        vport_ops=VportOps(max_vports=127, vports=1),
    )
    virtual = picture["pci/0000:00:07.0/scsi_host/2001001b32a9da4e"]
    assert (virtual.parent, virtual.name) == (hba, "scsi_host6")
    assert isinstance(virtual.capability, ScsiHost)
    assert virtual.capability.is_vport
    assert virtual.capability.vport_ops is None
    target = picture[f"pci/0000:00:07.0/scsi_target/{WWPN}:{FAR_WWPN}"]
    assert target.capability == ScsiTarget(target="target5:0:0", remote_port="rport-5:0-0", remote_wwpn=FAR_WWPN)
    assert line(picture, f"pci/0000:00:07.0/block/{WWPN}:{FAR_WWPN}:1") == [
        "block_sdd", "scsi_5_0_0_1", "scsi_target5_0_0", "scsi_host5", "pci_0000_00_07_0",
    ]  # fmt: skip


def test_a_software_hba_hangs_below_the_interface_that_it_uses(tree: Tree) -> None:
    """Fibre Channel over Ethernet, as the recorded guest has it: the key is the NIC's function's."""
    tree.pci(CARD)
    tree.net(f"{CARD}/net/eth0")
    tree.fc_host(f"{CARD}/net/eth0/ctlr_0/host8", WWNN, WWPN, vports_max=4)
    picture = seen(tree)
    names = line(picture, f"pci/0000:00:01.0/scsi_host/{WWPN}")
    assert names == ["scsi_host8", "net_eth0_02_00_00_00_00_01", "pci_0000_00_01_0"]


def test_an_adapter_without_a_name_is_told_by_its_place(tree: Tree) -> None:
    """`0xffffffffffffffff` and zeros are what drivers say before a link was up: no names."""
    tree.pci(HBA)
    tree.fc_host(f"{HBA}/host3", "f" * 16, "0" * 16)
    (host,) = (device for device in seen(tree).values() if device.kind == "scsi_host")
    assert host.key == "pci/0000:00:07.0/scsi_host/0"
    assert isinstance(host.capability, ScsiHost)
    assert host.capability.fc_host is not None
    assert (host.capability.fc_host.wwnn, host.capability.fc_host.wwpn) == ("", "")


def test_what_has_no_physical_place_hangs_on_the_computer(tree: Tree) -> None:
    """An SD card of a board by the device that firmware names, a Xen disk by its bus, an iSCSI host by nothing."""
    mmc = "platform/soc/fe340000.mmc"
    tree.device("platform/soc", "bus/platform/devices")
    tree.device(mmc, "bus/platform/devices")
    tree.device(f"{mmc}/mmc_host/mmc0/mmc0:aaaa", "bus/mmc/devices")  # the card, by a number of its own
    for name, number in (("mmcblk0boot0", "179:8"), ("mmcblk0", "179:0")):
        tree.block(f"{mmc}/mmc_host/mmc0/mmc0:aaaa/block/{name}", number)
    tree.device("vbd-51712", "bus/xen/devices")
    tree.block("vbd-51712/block/xvda", "202:0")
    tree.scsi_host("platform/host3", proc_name="iscsi_tcp")
    picture = seen(tree)
    assert {key: device.name for key, device in picture.items() if key.startswith("platform/")} == {
        "platform/block/fe340000.mmc-0": "block_mmcblk0",
        "platform/block/fe340000.mmc-1": "block_mmcblk0boot0",
        "platform/block/vbd-51712-0": "block_xvda",
        "platform/scsi_host/host3": "scsi_host3",
    }
    assert {picture[key].parent for key in picture} == {""}


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


# --- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_identical_sticks_are_told_apart_by_their_ports(tree: Tree, swapped: bool) -> None:
    """Same ids, no serials: a serial port stays in the key of its stick when ttyUSB0 and ttyUSB1 swap."""
    with_usb(tree, "2", "3")
    for port, number in (("2", int(swapped)), ("3", int(not swapped))):
        stick = f"{XHCI}/usb1/1-{port}"
        tree.write(stick, "devnum", str(7 + number))
        tree.tty(f"{stick}/1-{port}:1.0/ttyUSB{number}", f"188:{number}", port_number="0")
    picture = seen(tree)
    for port, number in (("2", int(swapped)), ("3", int(not swapped))):
        found = picture[f"usb/0000:00:14.0/2-{port}/tty/1.0-0"]
        assert found.devnodes == (f"/dev/ttyUSB{number}",)
        assert found.sysfs_path.startswith(f"/sys/devices/{XHCI}/usb1/1-{port}/")


def rebooted(folder: Path, *, other_order: bool) -> dict[DeviceKey, str]:
    """A machine whose kernel found things in this or the other order: what physical thing each key leads to."""
    tree = Tree(folder)
    tree.pci(CARD, pci_class="0x010601")
    first, second = (1, 0) if other_order else (0, 1)
    for port, host, disk in ((1, first, "sd" + "ab"[first]), (2, second, "sd" + "ab"[second])):
        path = sata(tree, port, host, disk)
        tree.write(path, "device/vpd_pg80", b"\x00\x80\x00\x05" + f"SATA{port}".encode())
    fc_machine(tree, host=12 if other_order else 5)
    for slot, number in (("02", first), ("03", second)):
        gpu = tree.pci(f"pci0000:00/0000:00:{slot}.0", pci_class="0x030000")
        tree.drm(gpu, f"card{number}", number)
        tree.drm(gpu, f"renderD{128 + number}", 128 + number)
        drive = tree.pci(f"pci0000:00/0000:00:1{slot[1]}.0", pci_class="0x010802")
        nvme = tree.node(f"{drive}/nvme/nvme{number}", "class/nvme", f"240:{number}", serial=f"NVME{slot}")
        disk = tree.block(f"{nvme}/nvme{number}n1", f"259:{number}", nsid="1")
        tree.link(tree.devices / disk / "device", tree.devices / nvme)
    with_usb(tree, "2")
    for index, event, name in ((3 + first, 20 + second, "keys"), (9 + first, 22 + second, "wheel")):
        below = f"{PORT}/1-2:1.0/0003:046D:C31C.0001/input/input{index}"
        tree.node(f"{below}/event{event}", "class/input", f"13:{event}", f"input/event{event}")
        tree.write(below, "name", name)
    return {key: what_it_is(tree, device) for key, device in take_picture(tree.root).items()}


def what_it_is(tree: Tree, device: DeviceDescription) -> str:
    """A word for a thing that does not depend on the kernel's numbers."""
    if device.serial or device.kind not in ("pci", "usb_device", "other"):
        return device.serial or device.kind
    name = tree.root.sys.parent / device.sysfs_path[1:] / "../name"
    return name.read_text() if name.exists() else device.subsystem if device.kind == "other" else device.sysfs_path


def test_renumbering_changes_no_key(tmp_path: Path) -> None:
    """Disks, hosts, GPUs, controllers and nodes found in another order: the same keys, each for the same thing."""
    before = rebooted(tmp_path / "before", other_order=False)
    after = rebooted(tmp_path / "after", other_order=True)
    assert before == after
    assert before[DeviceKey("pci/0000:00:01.0/block/port-2:0:0:0")] == "SATA2"
    assert before[DeviceKey("pci/0000:00:12.0/block/1")] == "NVME02"
    assert before[DeviceKey("usb/0000:00:14.0/2-2/input/1.0-event-1")] == "wheel\n"
    assert len(before) > 30


def test_names_are_unique(tree: Tree) -> None:
    """Of interfaces that libvirt would call alike the first key keeps the name; the others get marks of their own."""
    for name in ("a-b", "a.b", "a_b"):
        tree.net(f"virtual/net/{name}")
    names = {key: device.name for key, device in seen(tree).items() if device.kind == "net"}
    called = "net_a_b_02_00_00_00_00_01"
    assert names["virtual/net/a-b"] == called
    assert len(set(names.values())) == 3
    assert all(name.startswith(called) for name in names.values())


def test_links_of_nodes_are_shown_but_for_those_that_count(tree: Tree) -> None:
    """by-diskseq is another number for the same disk each time that it is found."""
    tree.pci(CARD)
    tree.block(f"{CARD}/virtio0/block/vda", "254:0", serial="S")
    links = "/dev/disk/by-path/b /dev/disk/by-diskseq/9 /dev/disk/by-id/a"
    found = seen(tree, DEVLINKS=links)["pci/0000:00:01.0/block/0"]
    assert found.devnodes == ("/dev/vda", "/dev/disk/by-id/a", "/dev/disk/by-path/b")
