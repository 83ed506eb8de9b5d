"""Who is seen using a device."""

from pathlib import Path

import pytest

from leasehold.services.watcher import usage
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
XHCI = "pci0000:00/0000:00:14.0"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def users(tree: Tree) -> dict[str, tuple[str, ...]]:
    return {str(key): device.in_use_by for key, device in take_picture(tree.root).items() if device.in_use_by}


def process(tree: Tree, pid: int, command: str, *files: str) -> None:
    """A process with open files, as /proc shows it."""
    tree.table(f"{pid}/comm", f"{command}\n")
    for number, file in enumerate(files):
        link = tree.root.proc / str(pid) / "fd" / str(number)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file)


def test_an_interface_claimed_through_usbfs(tree: Tree) -> None:
    """The device and that interface are in use; the other interface and the hub above are not."""
    tree.pci(XHCI)
    tree.usb(f"{XHCI}/usb1", bDeviceClass="09")
    tree.usb(f"{XHCI}/usb1/1-1", driver="usb")
    tree.usb(f"{XHCI}/usb1/1-1/1-1:1.0", driver="usbfs")
    tree.usb(f"{XHCI}/usb1/1-1/1-1:1.1", driver="cdc_acm")
    assert users(tree) == {"usb/0000:00:14.0/2-1": ("usbfs",), "usb/0000:00:14.0/2-1/interface/1.0": ("usbfs",)}


def test_a_vfio_group_that_is_held_open(tree: Tree) -> None:
    """Both functions of the group are in use by the process that holds it; a function of another group is not."""
    tree.pci(CARD, driver="vfio-pci", group=16)
    tree.pci("pci0000:00/0000:00:01.1", driver="mlx5_vfio_pci", group=16)
    tree.pci("pci0000:00/0000:00:02.0", driver="vfio-pci", group=17)
    process(tree, 123, "qemu-system-x86", "/dev/null", "/dev/vfio/vfio", "/dev/vfio/16")
    process(tree, 124, "other", "/dev/vfio/160", "socket:[16]")
    holder = ("vfio: qemu-system-x86 (pid 123)",)
    assert users(tree) == {"pci/0000:00:01.0": holder, "pci/0000:00:01.1": holder}


def test_a_vfio_device_node_that_is_held_open(tree: Tree) -> None:
    """Newer kernels open one function without its group."""
    tree.pci(CARD, driver="vfio-pci", group=16)
    (tree.devices / CARD / "vfio-dev/vfio3").mkdir(parents=True)
    process(tree, 9, "cloud hyper\x01visor", "/dev/vfio/devices/vfio3")
    assert users(tree) == {"pci/0000:00:01.0": ("vfio: cloud hypervisor (pid 9)",)}


def test_a_group_that_nobody_holds(tree: Tree) -> None:
    """Bound to vfio-pci alone is not in use; held open without being bound is not looked for."""
    tree.pci(CARD, driver="vfio-pci", group=16)
    tree.pci("pci0000:00/0000:00:02.0", driver="igb", group=17)
    process(tree, 123, "qemu-system-x86", "/dev/vfio/17")
    assert users(tree) == {}


def test_more_open_files_than_are_looked_through(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody can say that the device is unused, and so it is not said."""
    monkeypatch.setattr(usage, "OPEN_FILES_MAX", 2)
    tree.pci(CARD, driver="vfio-pci", group=16)
    process(tree, 1, "init", "/dev/null", "/dev/null", "/dev/null")
    process(tree, 2, "qemu-system-x86", "/dev/vfio/16")
    assert users(tree) == {"pci/0000:00:01.0": (usage.NOT_LOOKED_THROUGH,)}
