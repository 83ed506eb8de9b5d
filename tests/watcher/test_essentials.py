"""What the host lives on is protected, with everything above it."""

from pathlib import Path

import pytest

from leasehold.events import limits
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

BRIDGE = "pci0000:00/0000:00:01.0"
CARD = f"{BRIDGE}/0000:01:00.0"
NIC = "pci0000:00/0000:00:03.0"
SECOND = "pci0000:00/0000:00:04.0"
DISK = f"{CARD}/ata1/block/sda"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    tree.pci(BRIDGE, pci_class="0x060400")
    tree.pci(CARD)
    tree.block(DISK, "8:0")
    for card, name in ((NIC, "eth0"), (SECOND, "eth1")):
        tree.pci(card)
        tree.net(f"{card}/net/{name}")
    return tree


def protected(tree: Tree, **needed: str) -> dict[str, tuple[str, ...]]:
    picture = take_picture(tree.root, needed_interfaces=needed)
    return {str(key): device.protections for key, device in picture.items() if device.protections}


def on_sda(reason: str) -> dict[str, tuple[str, ...]]:
    below = (f"block_sda below it: {reason}",)
    return {"pci/0000:00:01.0": below, "pci/0000:01:00.0": below, "pci/0000:01:00.0/block/0": (reason,)}


def test_a_host_that_needs_nothing(tree: Tree) -> None:
    """No mounts, no routes: nothing is protected."""
    assert protected(tree) == {}


def test_a_disk_mounted_whole(tree: Tree) -> None:
    """By its number, whatever the source is called."""
    tree.mount("8:0", "/", source="/dev/root")
    assert protected(tree) == on_sda("mounted at /")


def test_device_mapper_over_a_partition(tree: Tree) -> None:
    """The way down is part of the reason."""
    part = tree.partition(DISK, 2, "8:2")
    tree.write(tree.block("virtual/block/dm-0", "253:0", slaves=(part,)), "dm/name", "vg-root")
    tree.mount("253:0", "/", source="UUID=0815")
    assert protected(tree) == on_sda("mounted at / (through vg-root, sda2)")


def test_a_mirror_protects_both_its_disks(tree: Tree) -> None:
    """md over a disk of each of two controllers."""
    other = tree.block(f"{SECOND}/block/sdb", "8:16")
    tree.block("virtual/block/md0", "9:0", slaves=(DISK, other))
    tree.mount("9:0", "/srv")
    found = protected(tree)
    assert found["pci/0000:01:00.0/block/0"] == found["pci/0000:00:04.0/block/0"]
    assert found["pci/0000:00:04.0"] == ("block_sdb below it: mounted at /srv (through md0)",)


def test_bind_mounts_are_one_reason(tree: Tree) -> None:
    """A container host has hundreds; the filesystem's own mount is named, and they are no news."""
    tree.mount("8:0", "/z", root="/var")
    tree.mount("8:0", "/home/data with blank".replace(" ", "\\040"))
    for number in range(40):
        tree.mount("8:0", f"/{number}", root=f"/layer/{number}")
    assert protected(tree) == on_sda("mounted at /home/data with blank")


def test_swap_on_a_partition_and_in_a_file(tree: Tree) -> None:
    """The file is looked for below the mount that it lies on, which lies on top at its point."""
    tree.partition(DISK, 3, "8:3")
    tree.block(f"{SECOND}/block/sdb", "8:16")
    tree.mount("8:0", "/data")
    tree.mount("8:16", "/data")
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    tree.table("swaps", f"{head}/dev/sda3    partition\t1\t0\t-2\n/data/swap\\040file\\040(deleted) file\t1\t0\t-3\n")
    found = protected(tree)
    assert found["pci/0000:01:00.0/block/0"] == ("mounted at /data", "swap (through sda3)")
    assert found["pci/0000:00:04.0/block/0"] == ("mounted at /data", "swap")


def test_a_loop_file_lies_on_a_disk(tree: Tree) -> None:
    """Mounted images (snaps) keep the disk on which their file is."""
    tree.mount("8:0", "/images")
    tree.write(tree.block("virtual/block/loop3", "7:3"), "loop/backing_file", "/images/a.squashfs")
    tree.mount("7:3", "/snap/a", kind="squashfs")
    found = protected(tree)["pci/0000:01:00.0/block/0"]
    assert found == ("mounted at /images", "mounted at /snap/a (through loop3)")


def test_btrfs_over_two_disks(tree: Tree) -> None:
    """mountinfo gives it no device number and names one member; the other is found in /sys/fs."""
    other = tree.block(f"{SECOND}/block/sdb", "8:16")
    for member in (DISK, other):
        name = Path(member).name
        tree.link(tree.root.sys / "fs/btrfs/0815-4711/devices" / name, tree.devices / member)
    tree.mount("0:35", "/", kind="btrfs", source="/dev/sda", root="/@")
    found = protected(tree)
    assert found["pci/0000:01:00.0/block/0"] == found["pci/0000:00:04.0/block/0"] == ("mounted at /",)


def test_a_mapped_node_is_found_by_its_link(tree: Tree) -> None:
    """btrfs on /dev/mapper/root, which links to ../dm-0."""
    tree.block("virtual/block/dm-0", "253:0", slaves=(DISK,))
    (tree.root.dev / "dm-0").touch()
    tree.link(tree.root.dev / "mapper/root", tree.root.dev / "dm-0")
    tree.mount("0:35", "/", kind="btrfs", source="/dev/mapper/root")
    assert protected(tree) == on_sda("mounted at / (through dm-0)")


def test_a_filesystem_mounted_in_another_namespace(tree: Tree) -> None:
    """ext4 has a folder in /sys/fs for each mounted disk, though no mount of ours shows it."""
    (tree.root.sys / "fs/ext4/sda").mkdir(parents=True)
    (tree.root.sys / "fs/ext4/features").mkdir()
    assert protected(tree) == on_sda("mounted as ext4 in another namespace")
    tree.mount("8:0", "/")
    assert protected(tree) == on_sda("mounted at /")


def test_filesystems_without_a_disk_protect_nothing(tree: Tree) -> None:
    """An overlay, a FUSE filesystem and ZFS have no way to a disk in /sys, and no disk is guessed."""
    tree.link(tree.root.sys / "fs/btrfs/0815/devices/sda", tree.devices / DISK)
    tree.mount("0:20", "/", kind="overlay", source="overlay")
    tree.mount("0:21", "/mnt", kind="fuse", source="/dev/fuse")
    tree.mount("0:22", "/tank", kind="zfs", source="tank")
    assert protected(tree) == on_sda("mounted as btrfs in another namespace")


def multipath_disk(tree: Tree) -> None:
    """An NVMe disk that two controllers reach, mounted at /."""
    for number, card in enumerate((CARD, SECOND)):
        tree.device(f"{card}/nvme/nvme{number}")
        head = tree.devices / f"virtual/nvme-subsystem/nvme-subsys0/nvme{number}"
        tree.link(head, tree.devices / f"{card}/nvme/nvme{number}")
    tree.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:1")
    tree.mount("259:1", "/")


def test_an_nvme_disk_with_two_controllers_protects_both(tree: Tree) -> None:
    """The kernel shows a multipath disk below none of them."""
    multipath_disk(tree)
    below = ("block_nvme0n1 below it: mounted at /",)
    assert protected(tree) == {
        "pci/0000:00:01.0": below,
        "pci/0000:00:04.0": below,
        "pci/0000:01:00.0": below,
        "pci/0000:00:04.0/block/1": ("mounted at /",),
    }


def test_a_disk_that_is_not_shown_yet_protects_its_controllers(tree: Tree) -> None:
    """udevd has not dealt with it, or its path is one of several: what is above it stands for it."""
    (tree.root.run / "udev").mkdir()
    (tree.root.run / "udev/control").touch()
    tree.mount("8:0", "/")
    reason = ("mounted at / (through sda)",)
    below = ("pci_0000_01_00_0 below it: mounted at / (through sda)",)
    assert protected(tree) == {"pci/0000:00:01.0": below, "pci/0000:01:00.0": reason}


def test_a_multipath_disk_that_is_not_shown_yet_protects_its_controllers(tree: Tree) -> None:
    """Nothing lies above it in /sys, so its controllers stand for it."""
    multipath_disk(tree)
    (tree.root.run / "udev").mkdir()
    (tree.root.run / "udev/control").touch()
    assert sorted(protected(tree)) == ["pci/0000:00:01.0", "pci/0000:00:04.0", "pci/0000:01:00.0"]


def test_a_usb_disk_protects_the_whole_way_up(tree: Tree) -> None:
    """Interface, device, hub, root hub, controller."""
    port = f"{SECOND}/usb1/1-4/1-4.1"
    for path in (f"{SECOND}/usb1", f"{SECOND}/usb1/1-4", port, f"{port}/1-4.1:1.0"):
        tree.usb(path)
    tree.block(f"{port}/1-4.1:1.0/host6/block/sdb", "8:16")
    tree.mount("8:16", "/mnt")
    assert sorted(protected(tree)) == [
        "pci/0000:00:04.0",
        "usb/0000:00:04.0/2-0",
        "usb/0000:00:04.0/2-4",
        "usb/0000:00:04.0/2-4.1",
        "usb/0000:00:04.0/2-4.1/block/1.0-0",
        "usb/0000:00:04.0/2-4.1/interface/1.0",
    ]


def test_a_bond_with_a_vlan_carries_the_default_route(tree: Tree) -> None:
    """Both NICs below it are needed, and an interface that goes round in circles ends."""
    tree.net("virtual/net/bond0", lower=("eth0", "eth1"))
    tree.net("virtual/net/bond0.7", lower=("bond0",))
    tree.net("virtual/net/bond0", lower=("bond0.7",))
    tree.default_route("bond0.7")
    reason = "carries the default route (through bond0.7, bond0)"
    found = protected(tree)
    assert found["pci/0000:00:03.0/net/0"] == found["pci/0000:00:04.0/net/0"] == (reason,)
    assert found["pci/0000:00:03.0"] == (f"net_eth0_02_00_00_00_00_01 below it: {reason}",)


def test_the_default_route_of_ipv6(tree: Tree) -> None:
    """The kernel's line that rejects all that has no route is none."""
    zero = "0" * 32
    tree.table(
        "net/ipv6_route",
        f"{zero} 00 {zero} 00 fd{'0' * 29}1 00000400 00000002 00000000 00000003     eth1\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200     eth0\n",
    )
    assert sorted(protected(tree)) == ["pci/0000:00:04.0", "pci/0000:00:04.0/net/0"]


def test_a_route_to_one_network_protects_nothing(tree: Tree) -> None:
    """Only the default route counts; what else is needed the caller says."""
    tree.table("net/route", "Iface\neth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
    assert protected(tree) == {}
    found = protected(tree, eth0="has the address that reaches the bus")
    assert found["pci/0000:00:03.0/net/0"] == ("has the address that reaches the bus",)


def test_a_virtual_function_needs_its_physical_one(tree: Tree) -> None:
    """The route over a VF's NIC protects the card and the bridge above it."""
    function = tree.pci(f"{BRIDGE}/0000:01:10.0")
    tree.link(tree.devices / function / "physfn", tree.devices / CARD)
    tree.net(f"{function}/net/eth9")
    tree.default_route("eth9")
    found = protected(tree)
    assert found["pci/0000:01:00.0"][0].endswith("on its virtual function: carries the default route")
    assert "pci/0000:00:01.0" in found


def test_the_boot_display(tree: Tree) -> None:
    """The adapter and the bridge above it."""
    tree.write(CARD, "boot_vga", "1")
    tree.write(SECOND, "boot_vga", "0")
    assert protected(tree) == {
        "pci/0000:00:01.0": ("pci_0000_01_00_0 below it: boot display",),
        "pci/0000:01:00.0": ("boot display",),
    }


def test_reasons_are_bounded_and_stay_the_same(tree: Tree) -> None:
    """A hundred mounted partitions: no more reasons than may be, each of bounded length, sorted."""
    for number in range(1, 101):
        tree.partition(DISK, number, f"8:{number}")
        tree.mount(f"8:{number}", f"/mnt/{number}{'x' * 300}")
    tree.mount("8:0", "/")
    reasons = protected(tree)["pci/0000:01:00.0/block/0"]
    assert len(reasons) == limits.REASONS_PER_DEVICE_MAX
    assert {"mounted at /", "and more"} <= set(reasons)
    assert reasons == tuple(sorted(reasons))
    assert max(map(len, reasons)) <= 160
