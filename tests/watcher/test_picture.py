"""Pictures of imitated machines: keys, parents, and what a description says."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from leasehold.events.capabilities import Net, Pci, Storage, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0/0000:01:00.0"
XHCI = "pci0000:00/0000:00:14.0"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def seen(tree: Tree) -> dict[str, DeviceDescription]:
    """All but the computer, which is always there."""
    return {str(key): device for key, device in take_picture(tree.root).items() if key != COMPUTER}


def keys(tree: Tree) -> list[str]:
    return list(seen(tree))


def with_xhci(tree: Tree) -> None:
    tree.pci(XHCI, pci_class="0x0c0330")
    tree.usb(f"{XHCI}/usb1", speed="480", bDeviceClass="09")
    tree.usb(f"{XHCI}/usb2", speed="10000", bDeviceClass="09")


def test_an_empty_machine_is_a_computer(tree: Tree) -> None:
    """No buses, no /proc tables: nothing but itself, and no error."""
    assert list(take_picture(tree.root)) == [COMPUTER]


def test_a_multi_function_card_behind_a_bridge(tree: Tree) -> None:
    """Both functions have the bridge as parent, their own driver and the IOMMU group that they share."""
    tree.pci("pci0000:00/0000:00:01.0", pci_class="0x060400")
    tree.pci(CARD, driver="igb", group=7, revision="0x01", subsystem_vendor="0x8086", subsystem_device="0xa03c")
    tree.pci(CARD.replace("00.0/0000:01:00.0", "00.0/0000:01:00.1").replace("01:00.0", "01:00.1"), group=7)
    picture = seen(tree)
    first, second = picture["pci/0000:01:00.0"], picture["pci/0000:01:00.1"]
    assert picture["pci/0000:00:01.0"].bridge
    assert not first.bridge
    assert (first.parent, second.parent) == ("pci/0000:00:01.0",) * 2
    assert (first.driver, second.driver) == ("igb", "")
    assert (first.iommu_group, second.iommu_group) == (7, 7)
    assert first.name == "pci_0000_01_00_0"
    assert first.sysfs_path == f"/sys/devices/{CARD}"
    assert first.capability == Pci(revision=1, subsystem_product_id="a03c", subsystem_vendor_id="8086", resets=())


def test_a_bridge_of_another_class_is_known_by_its_secondary_bus(tree: Tree) -> None:
    """The kernel's own file tells a type 1 header; `config` need not be readable, and is not read."""
    tree.pci("pci0000:00/0000:00:01.0", secondary_bus_number="1", pci_class="0x058000")
    os.mkfifo(tree.devices / "pci0000:00/0000:00:01.0/config")  # opening it to read would block without a writer
    assert seen(tree)["pci/0000:00:01.0"].bridge


def test_what_is_not_there_is_none(tree: Tree) -> None:
    """No numa file, no class, no group: -1 and empty texts, and the device is there all the same."""
    tree.device("pci0000:00/0000:00:05.0", "bus/pci/devices", vendor="0x1af4")
    device = seen(tree)["pci/0000:00:05.0"]
    assert (device.numa_node, device.pci_class, device.iommu_group) == (-1, -1, -1)
    assert (device.vendor_id, device.product_id, device.physical_function) == ("1af4", "", "")


def test_a_domain_of_more_than_16_bits(tree: Tree) -> None:
    """Intel's VMD numbers its own domains, below the controller that holds them."""
    tree.pci("pci0000:00/0000:00:0e.0")
    tree.pci("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0")
    assert seen(tree)["pci/10000:e0:06.0"].parent == "pci/0000:00:0e.0"


def test_a_virtual_function_names_its_physical_one(tree: Tree) -> None:
    """SR-IOV: the link of the VF; the PF tells how many there are and may be."""
    tree.pci(CARD, sriov_totalvfs="7", sriov_numvfs="1")
    function = tree.pci(f"{CARD[:-12]}0000:01:10.0", group=9)
    tree.link(tree.devices / function / "physfn", tree.devices / CARD)
    picture = seen(tree)
    assert picture["pci/0000:01:10.0"].physical_function == "pci/0000:01:00.0"
    assert picture["pci/0000:01:00.0"].capability == Pci(virtual_functions_max=7, virtual_functions=1, resets=())


def test_two_root_hubs_of_one_controller_count_their_ports_apart(tree: Tree) -> None:
    """The same port number in both generations makes two keys."""
    with_xhci(tree)
    tree.usb(f"{XHCI}/usb1/1-1")
    tree.usb(f"{XHCI}/usb2/2-1")
    assert keys(tree) == ["pci/0000:00:14.0", *(f"usb/0000:00:14.0/{path}" for path in ("2-0", "2-1", "3-0", "3-1"))]


def test_a_hub_behind_a_hub(tree: Tree) -> None:
    """Each is the parent of the next, and both are hubs."""
    with_xhci(tree)
    tree.usb(f"{XHCI}/usb1/1-4", bDeviceClass="09")
    tree.usb(f"{XHCI}/usb1/1-4/1-4.1", bDeviceClass="09", serial="B")
    tree.usb(f"{XHCI}/usb1/1-4/1-4.1/1-4.1.3", serial="A", manufacturer="FTDI", product="FT232R")
    picture = seen(tree)
    stick = picture["usb/0000:00:14.0/2-4.1.3"]
    assert stick.parent == "usb/0000:00:14.0/2-4.1"
    assert picture[stick.parent].parent == "usb/0000:00:14.0/2-4"
    assert [picture[key].hub for key in (stick.parent, "usb/0000:00:14.0/2-4")] == [True, True]
    assert not stick.hub
    assert (stick.kind, stick.vendor_id, stick.product_id, stick.serial) == ("usb_device", "0403", "6001", "A")
    assert stick.capability == UsbDevice(device_class=0, speed_kbps=480_000, manufacturer="FTDI", product="FT232R")


def test_an_interface_and_a_device_with_one_libvirt_name(tree: Tree) -> None:
    """`1-4:1.1` and `1-4.1.1` are both `usb_1_4_1_1` with libvirt: the device is called so, the interface marked."""
    with_xhci(tree)
    tree.usb(f"{XHCI}/usb1/1-4")
    tree.usb(f"{XHCI}/usb1/1-4/1-4:1.1")
    tree.usb(f"{XHCI}/usb1/1-4/1-4.1")
    tree.usb(f"{XHCI}/usb1/1-4/1-4.1/1-4.1.1")
    called = {key: device.name for key, device in seen(tree).items() if device.name.startswith("usb_1_4_1_1")}
    assert called == {
        "usb/0000:00:14.0/2-4.1.1": "usb_1_4_1_1",
        "usb/0000:00:14.0/2-4/interface/1.1": "usb_1_4_1_1_7718ec",
    }


def test_a_controller_that_is_no_pci_device(tree: Tree) -> None:
    """It stands in the key by its sysfs name, respelled when a key could not hold it."""
    tree.usb("platform/dummy_hcd.0/usb1")
    tree.usb("platform/soc:usb@fe80,1/usb2")
    first, second = keys(tree)
    assert first == "usb/dummy_hcd.0/2-0"
    assert second.startswith("usb/xsoc:usb-fe80-1-")


def test_root_hubs_of_one_generation_below_one_function_do_not_meet(tree: Tree) -> None:
    """Two platform controllers in one PCI function, one of them with two root hubs: five hubs, five keys."""
    tree.pci(XHCI)
    for bus, controller in enumerate(("dwc3.0", "dwc3.1", "dwc3.1"), 1):
        tree.usb(f"{XHCI}/{controller}/usb{bus}")
        tree.usb(f"{XHCI}/{controller}/usb{bus}/{bus}-1")
    assert [key for key in keys(tree) if key.endswith("/2-1")] == [
        "usb/0000:00:14.0:dwc3.0/2-1",
        "usb/0000:00:14.0:dwc3.1.3/2-1",
        "usb/0000:00:14.0:dwc3.1/2-1",
    ]


def test_nics_go_by_their_port_on_the_card(tree: Tree) -> None:
    """Two ports of one function, through a virtio device that is skipped; name, MAC and speed are shown."""
    tree.pci(CARD)
    tree.net(f"{CARD}/virtio2/net/eth0", ifindex="2", operstate="up", speed="1000", address="02:fc:00:00:00:01")
    tree.net(f"{CARD}/virtio2/net/eth1", ifindex="3", operstate="down", speed="1000", dev_port="1")
    picture = seen(tree)
    nic = picture["pci/0000:01:00.0/net/0"]
    assert (nic.parent, nic.name) == ("pci/0000:01:00.0", "net_eth0_02_fc_00_00_00_01")
    assert nic.capability == Net(
        interface="eth0", address="02:fc:00:00:00:01", medium="80203", link_state="up", link_speed_mbps=1_000
    )
    other = picture["pci/0000:01:00.0/net/1"].capability
    assert isinstance(other, Net)
    assert (other.link_state, other.link_speed_mbps) == ("down", -1)


def test_a_second_nic_with_the_same_port_goes_by_its_name(tree: Tree) -> None:
    """The elder keeps the number, so that somebody's monitor interface does not rename the card's own."""
    tree.pci(CARD)
    tree.net(f"{CARD}/net/wlan0", ifindex="3")
    tree.net(f"{CARD}/net/mon0", ifindex="9")
    picture = seen(tree)
    called = {key: device.name for key, device in picture.items() if device.kind == "net"}
    assert called == {
        "pci/0000:01:00.0/net/0": "net_wlan0_02_00_00_00_00_01",
        "pci/0000:01:00.0/net/mon0": "net_mon0_02_00_00_00_00_01",
    }


def test_a_nic_that_is_called_like_another_ones_number(tree: Tree) -> None:
    """Three NICs of port 0 and 1, one of them named `1`: three keys."""
    tree.pci(CARD)
    for index, (name, port) in enumerate((("a", "0"), ("b", "1"), ("1", "0")), 1):
        tree.net(f"{CARD}/net/{name}", ifindex=str(index), dev_port=port)
    assert [key for key in keys(tree) if "/net/" in key] == [
        "pci/0000:01:00.0/net/0",
        "pci/0000:01:00.0/net/1",
        "pci/0000:01:00.0/net/1-named",
    ]


def test_nics_of_two_usb_interfaces_count_from_zero_both(tree: Tree) -> None:
    """The interface stands in the key, and is the parent."""
    with_xhci(tree)
    tree.usb(f"{XHCI}/usb1/1-2")
    for number in ("1.0", "1.2"):
        tree.usb(f"{XHCI}/usb1/1-2/1-2:{number}", driver="cdc_ether")
        tree.net(f"{XHCI}/usb1/1-2/1-2:{number}/net/usb{number[-1]}", ifindex="4")
    picture = seen(tree)
    for number in ("1.0", "1.2"):
        assert picture[f"usb/0000:00:14.0/2-2/net/{number}-0"].parent == f"usb/0000:00:14.0/2-2/interface/{number}"


def test_disks(tree: Tree) -> None:
    """Size in bytes whatever the sectors, the node, model and serial; no partitions, no virtual or hidden ones."""
    tree.pci(CARD)
    disk = tree.block(f"{CARD}/virtio3/block/vda", "8:0", size="1000", removable="0")
    tree.partition(disk, 1, "8:1")
    tree.write(disk, "queue/logical_block_size", "4096")
    tree.write(disk, "device/model", "WDC WD40   ")
    tree.write(disk, "device/vpd_pg80", b"\x00\x80\x00\x14     WD-WCC4E1234567padding")
    tree.block(f"{CARD}/nvme/nvme0/nvme0c0n1", "259:7", hidden="1")
    tree.block("virtual/block/loop0", "7:0")
    picture = seen(tree)
    assert list(picture) == ["pci/0000:01:00.0", "pci/0000:01:00.0/block/0"]
    assert picture["pci/0000:01:00.0/block/0"].serial == "WD-WCC4E1234567"
    assert picture["pci/0000:01:00.0/block/0"].capability == Storage(
        block="/dev/vda", drive_type="disk", model="WDC WD40", size_bytes=512_000, logical_block_size=4_096
    )


def test_a_disk_with_a_slash_in_its_name(tree: Tree) -> None:
    """sysfs writes `cciss!c0d0` for /dev/cciss/c0d0; its key does not name it."""
    tree.pci(CARD)
    tree.block(f"{CARD}/block/cciss!c0d0", "104:0")
    assert seen(tree)["pci/0000:01:00.0/block/0"].devnodes == ("/dev/cciss/c0d0",)


def test_a_disk_that_udevd_has_not_dealt_with_waits_for_its_serial(tree: Tree) -> None:
    """Shown without its serial it could not be told from the disk that was there before."""
    tree.pci(CARD)
    tree.block(f"{CARD}/block/sda", "8:0")
    (tree.root.run / "udev").mkdir()
    (tree.root.run / "udev/control").touch()
    key = "pci/0000:01:00.0/block/0"
    assert key not in take_picture(tree.root, udev=lambda _path: {})
    told = {"USEC_INITIALIZED": "1", "ID_SERIAL": "WDC_1", "ID_SERIAL_SHORT": "1"}
    disk = {str(each): device for each, device in take_picture(tree.root, udev=lambda _path: told).items()}[key]
    assert (disk.serial, disk.name) == ("1", "block_sda_WDC_1")


def test_a_disk_stays_when_udevd_begins_to_run(tree: Tree) -> None:
    """It may take its time with the disk, or never be told to look at it. Another disk in its place waits, unless the
    log has one there that never told a serial, when a watcher starts.
    """
    tree.pci(CARD)
    disk = tree.block(f"{CARD}/block/sda", "8:0")
    before = take_picture(tree.root, udev=lambda _path: {})
    assert "pci/0000:01:00.0/block/0" in before
    (tree.root.run / "udev").mkdir()
    (tree.root.run / "udev/control").touch()
    assert take_picture(tree.root, udev=lambda _path: {}) == before
    (tree.devices / disk).rename(tree.devices / "elsewhere")
    tree.block(f"{CARD}/block/sda", "8:0")
    assert list(take_picture(tree.root, udev=lambda _path: {})) == [COMPUTER, "pci/0000:01:00.0"]
    with_serial = {key: msgspec.structs.replace(each, serial="A") for key, each in before.items()}
    assert list(take_picture(tree.root, udev=lambda _path: {}, known=with_serial)) == [COMPUTER, "pci/0000:01:00.0"]
    for known in (before, {}):
        assert take_picture(tree.root, udev=lambda _path: {}, known=known) == before


def test_a_device_that_goes_while_it_is_read_is_left_out(tree: Tree) -> None:
    """Its folder is gone at the end of the reading; the others stay."""
    tree.pci(CARD)
    gone = tree.pci("pci0000:00/0000:00:09.0")

    def udev(path: str) -> dict[str, str]:
        if path.endswith(gone) and (tree.devices / gone).exists():
            (tree.devices / gone).rename(tree.devices / "elsewhere")
        return {}

    assert list(take_picture(tree.root, udev=udev)) == [COMPUTER, "pci/0000:01:00.0"]


def test_nothing_changes_by_itself(tree: Tree) -> None:
    """Two looks at one machine are equal to the byte, in order too."""
    with_xhci(tree)
    tree.pci(CARD)
    tree.net(f"{CARD}/net/eth0")
    assert list(take_picture(tree.root).items()) == list(take_picture(tree.root).items())


def test_a_look_costs_in_proportion(tmp_path: Path) -> None:
    """Ten times the devices cost ten times the work, not more: the least of three looks each."""
    cost_us = []
    for count in (150, 1_500):
        machine = Tree(tmp_path / str(count))
        for number in range(count // 3):
            card = machine.pci(f"pci0000:{number // 32:02x}/0000:{number // 32:02x}:{number % 32:02x}.0")
            machine.net(f"{card}/net/e{number}", ifindex=str(number + 2))
            machine.net(f"virtual/net/v{number}")
        took_ns = []
        for _ in range(3):
            begun_ns = time.process_time_ns()
            assert len(seen(machine)) == count
            took_ns.append(time.process_time_ns() - begun_ns)
        cost_us.append(min(took_ns) / 1_000 / count)
    print(f"a device costs {cost_us[0]:.0f} us among 150 and {cost_us[1]:.0f} us among 1500")
    assert cost_us[1] < 2 * cost_us[0]
