"""Which thing is which, whatever numbers the kernel has given out: keys, names and links."""

from pathlib import Path

import pytest

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.services.watcher.picture import take_picture
from tests.watcher.samples import (
    CARD,
    PORT,
    XHCI,
    fc_machine,
    sata,
    seen,
    with_usb,
)
from tests.watcher.trees import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


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
