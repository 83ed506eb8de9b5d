"""Imitated machines: /sys, /proc and /dev in a folder, built device by device, or from a recording of a real one."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from leasehold.services.watcher.sysfs import HostRoot

DATA: Final = Path(__file__).parent.parent / "data"
_ESCAPED: Final = re.compile(rb"\\(.)")


class Tree:
    """A machine under construction. Paths of devices are relative to its /sys/devices."""

    def __init__(self, folder: Path) -> None:
        self.root = HostRoot(folder / "sys", folder / "proc", folder / "dev", folder / "run")
        self.devices = self.root.sys / "devices"
        for each in (self.devices, self.root.proc / "self", self.root.proc / "net", self.root.dev, self.root.run):
            each.mkdir(parents=True)
        self.mounts: list[str] = []

    def device(self, path: str, subsystem: str = "", /, **attributes: str | bytes) -> str:
        """A device's folder with attribute files; `subsystem` like `bus/pci/devices` or `class/net` links to it."""
        (self.devices / path).mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            self.write(path, name, value)
        if subsystem:
            self.link(self.root.sys / subsystem / os.path.basename(path), self.devices / path)
        return path

    def write(self, path: str, attribute: str, value: str | bytes) -> None:
        """Set an attribute of a device."""
        file = self.devices / path / attribute
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value if isinstance(value, bytes) else value.encode() + b"\n")

    def link(self, link: Path, target: Path) -> None:
        """A relative link, as sysfs has them; one that is there is replaced."""
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))

    def pci(
        self, path: str, /, driver: str = "", group: int = -1, pci_class: str = "0x020000", **attributes: str | bytes
    ) -> str:
        """A PCI function, an Ethernet controller unless told otherwise."""
        told = {"vendor": "0x8086", "device": "0x10c9", "class": pci_class, "numa_node": "-1", **attributes}
        self.device(path, "bus/pci/devices", **told)
        if driver:
            self.driver(path, "pci", driver)
        if group >= 0:
            self.link(self.devices / path / "iommu_group", self.root.sys / f"kernel/iommu_groups/{group}")
        return path

    def driver(self, path: str, bus: str, driver: str) -> None:
        """Let a driver have a device."""
        folder = self.root.sys / f"bus/{bus}/drivers/{driver}"
        folder.mkdir(parents=True, exist_ok=True)
        self.link(self.devices / path / "driver", folder)

    def usb(self, path: str, /, driver: str = "", **attributes: str | bytes) -> str:
        """A USB device or, with a colon in its name, an interface."""
        if ":" in os.path.basename(path):
            told: dict[str, str | bytes] = {"bInterfaceClass": "ff"}
        else:
            told = {"idVendor": "0403", "idProduct": "6001", "bDeviceClass": "00", "speed": "480"}
        self.device(path, "bus/usb/devices", **{**told, **attributes})
        if driver:
            self.driver(path, "usb", driver)
        return path

    def net(self, path: str, /, lower: tuple[str, ...] = (), **attributes: str | bytes) -> str:
        """A network interface; `lower` names those that it lies on, which must be there."""
        self.device(path, "class/net", **{"dev_port": "0", "address": "02:00:00:00:00:01", **attributes})
        for name in lower:
            target = Path(os.path.realpath(self.root.sys / "class/net" / name))
            self.link(self.devices / path / f"lower_{name}", target)
        return path

    def block(self, path: str, number: str, /, slaves: tuple[str, ...] = (), **attributes: str | bytes) -> str:
        """A disk, partition or stacked block device with its number (`8:0`); `slaves` are what it lies on."""
        self.device(path, "class/block", **{"size": "2048", **attributes})
        self.link(self.root.sys / "dev/block" / number, self.devices / path)
        for slave in slaves:
            self.link(self.devices / path / "slaves" / os.path.basename(slave), self.devices / slave)
        return path

    def partition(self, disk: str, number: int, device: str) -> str:
        """A partition of a disk."""
        name = os.path.basename(disk)
        return self.block(f"{disk}/{name}{number}", device, partition=str(number))

    def mount(self, device: str, point: str, kind: str = "ext4", source: str = "/dev/root", root: str = "/") -> None:
        """Mount a block device (`8:0`)."""
        number = len(self.mounts) + 20
        self.mounts.append(f"{number} 1 {device} {root} {point} rw,relatime shared:1 - {kind} {source} rw\n")
        (self.root.proc / "self/mountinfo").write_text("".join(self.mounts))

    def table(self, below: str, text: str) -> None:
        """Write a table of /proc."""
        file = self.root.proc / below
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def default_route(self, interface: str) -> None:
        """The IPv4 default route."""
        head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        self.table("net/route", f"{head}{interface}\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")


Recorded = dict[str, str]


def read_blocks(file: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The devices of a recording (of umockdev or `udevadm info --export-db`): path and its lines by letter."""
    for block in file.read_text(encoding="latin-1").split("\n\n"):
        lines = [(line[0], line[3:]) for line in block.splitlines() if line[1:3] == ": "]
        if lines and lines[0][0] == "P":
            yield lines[0][1], lines[1:]


def read_properties(file: Path) -> dict[str, Recorded]:
    """udev's properties of each recorded device, by path below /sys."""
    return {
        path: {text.partition("=")[0]: text.partition("=")[2] for letter, text in lines if letter == "E"}
        for path, lines in read_blocks(file)
    }


class Recording:
    """A recorded machine as a tree, and what udev had to say about it."""

    def __init__(self, folder: Path, file: Path = DATA / "qemu-q35-pci-usb.umockdev") -> None:
        self.tree = Tree(folder)
        self.root = self.tree.root
        self.properties = read_properties(file)
        for path, lines in read_blocks(file):
            subsystem = self.properties[path]["SUBSYSTEM"]
            self._place(path.removeprefix("/devices/"), subsystem, lines)

    def _place(self, path: str, subsystem: str, lines: list[tuple[str, str]]) -> None:
        folder = "bus/{}/devices" if subsystem in ("pci", "usb") else "class/{}"
        self.tree.device(path, folder.format(subsystem))
        for letter, text in lines:
            name, _, value = text.partition("=")
            if letter == "A":
                plain = _ESCAPED.sub(lambda found: b"\n" if found[1] == b"n" else found[1], value.encode("latin-1"))
                self.tree.write(path, name, plain)
            elif letter == "H":
                self.tree.write(path, name, bytes.fromhex(value))
            elif letter == "L":
                link = self.tree.devices / path / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(value)

    def udev(self, path: str) -> Mapping[str, str]:
        """udev's answers, as the picture asks for them."""
        return self.properties.get(path.removeprefix("/sys"), {})
