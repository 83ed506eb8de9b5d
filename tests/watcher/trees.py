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
        self.vlans: list[str] = []

    def device(self, path: str, subsystem: str = "", /, **attributes: str | bytes) -> str:
        """A device's folder with attribute files; `subsystem` like `bus/pci/devices` or `class/net` links to it."""
        (self.devices / path).mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            self.write(path, name, value)
        if subsystem:
            if not (self.devices / path / "uevent").exists():
                self.uevent(path)
            self.link(self.root.sys / subsystem / os.path.basename(path), self.devices / path)
            self.link(self.devices / path / "subsystem", self.root.sys / subsystem.removesuffix("/devices"))
        return path

    def uevent(self, path: str, **variables: str) -> str:
        """What the kernel says of a device when it tells of it."""
        self.write(path, "uevent", "\n".join(f"{name}={value}" for name, value in variables.items()))
        return path

    def node(self, path: str, subsystem: str, number: str, name: str = "", /, **attributes: str | bytes) -> str:
        """A device with a character node (`188:0`), `/dev/<name>`; its own name unless told otherwise."""
        self.device(path, subsystem, dev=number, **attributes)
        self.link(self.root.sys / "dev/char" / number, self.devices / path)
        major, _, minor = number.partition(":")
        return self.uevent(path, MAJOR=major, MINOR=minor, DEVNAME=name or os.path.basename(path))

    def tty(self, path: str, number: str, /, **attributes: str | bytes) -> str:
        """A serial port's node below what drives it (`…/1-1:1.0/ttyUSB0`)."""
        if attributes:
            self.device(path, "", **attributes)
        return self.node(f"{path}/tty/{os.path.basename(path)}", "class/tty", number)

    def scsi_host(self, path: str, /, **attributes: str | bytes) -> str:
        """A SCSI host; attributes are those of its class."""
        name = os.path.basename(path)
        self.device(path, "bus/scsi/devices")
        self.device(f"{path}/scsi_host/{name}", "class/scsi_host", **{"unique_id": "1", **attributes})
        return self.uevent(path, DEVTYPE="scsi_host")

    def fc_host(self, path: str, wwnn: str, wwpn: str, /, *, vports_max: int = 0, **attributes: str | bytes) -> str:
        """A Fibre Channel host; one that can have virtual HBAs (`vports_max`) has the files to make them."""
        self.scsi_host(path, proc_name="lpfc")
        told = {"node_name": f"0x{wwnn}", "port_name": f"0x{wwpn}", "fabric_name": "0x100000051e000001"}
        if vports_max:
            told |= {"vport_create": "", "vport_delete": "", "npiv_vports_inuse": "0"}
            told["max_npiv_vports"] = str(vports_max)
        told["port_state"] = "Online"
        self.device(f"{path}/fc_host/{os.path.basename(path)}", "class/fc_host", **{**told, **attributes})
        return path

    def vport(self, host: str, number: int, wwnn: str, wwpn: str) -> str:
        """A virtual HBA `host<number>` of a Fibre Channel host."""
        above = os.path.basename(host).removeprefix("host")
        return self.fc_host(f"{host}/vport-{above}:0-{number}/host{number}", wwnn, wwpn)

    def remote_port(self, host: str, index: int, wwpn: str) -> str:
        """A port that a Fibre Channel host sees."""
        name = f"rport-{os.path.basename(host).removeprefix('host')}:0-{index}"
        self.device(f"{host}/{name}/fc_remote_ports/{name}", "class/fc_remote_ports", port_name=f"0x{wwpn}")
        return f"{host}/{name}"

    def scsi_target(self, above: str, number: str) -> str:
        """A target (`0:0:0`) below a host or a remote port."""
        path = self.device(f"{above}/target{number}", "bus/scsi/devices")
        return self.uevent(path, DEVTYPE="scsi_target")

    def scsi_device(self, target: str, lun: int = 0, /, **attributes: str | bytes) -> str:
        """A logical unit below a target."""
        name = f"{os.path.basename(target).removeprefix('target')}:{lun}"
        told = {"type": "0", "vendor": "ATA", "model": "WDC WD40", **attributes}
        path = self.device(f"{target}/{name}", "bus/scsi/devices", **told)
        return self.uevent(path, DEVTYPE="scsi_device")

    def scsi_disk(self, unit: str, name: str, number: str, /, generic: str = "", **attributes: str | bytes) -> str:
        """The disk (or drive) of a logical unit, with its pass-through node (`sg0`) if one is named."""
        disk = self.block(f"{unit}/block/{name}", number, slaves=(), **attributes)
        self.uevent(disk, DEVNAME=name, DEVTYPE="disk")
        self.link(self.devices / disk / "device", self.devices / unit)
        if generic:
            self.node(f"{unit}/scsi_generic/{generic}", "class/scsi_generic", f"21:{generic.removeprefix('sg')}")
        return disk

    def mdev_types(self, path: str, /, **available: int) -> None:
        """Let a device offer types of mediated devices, with how many of each can still be made."""
        for kind, count in available.items():
            folder = f"mdev_supported_types/{kind}"
            self.write(path, f"{folder}/name", kind.upper())
            self.write(path, f"{folder}/device_api", "vfio-pci")
            self.write(path, f"{folder}/available_instances", str(count))
        self.link(self.root.sys / "class/mdev_bus" / os.path.basename(path), self.devices / path)

    def mdev(self, parent: str, uuid: str, kind: str, group: int = -1) -> str:
        """A mediated device of a type that its parent offers."""
        path = self.device(f"{parent}/{uuid}", "bus/mdev/devices")
        self.link(self.devices / path / "mdev_type", self.devices / parent / "mdev_supported_types" / kind)
        self.driver(path, "mdev", "vfio_mdev")
        if group >= 0:
            self.link(self.devices / path / "iommu_group", self.root.sys / f"kernel/iommu_groups/{group}")
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
        self.device(path, "class/net", **{"dev_port": "0", "type": "1", "address": "02:00:00:00:00:01", **attributes})
        for name in lower:
            self.link(self.devices / path / f"lower_{name}", self._interface(name))
        return path

    def _interface(self, name: str) -> Path:
        return Path(os.path.realpath(self.root.sys / "class/net" / name))

    def bridge(self, name: str, members: tuple[str, ...] = (), /, **attributes: str | bytes) -> str:
        """A bridge over interfaces that are there."""
        path = self.net(f"virtual/net/{name}", lower=members, **attributes)
        for file, value in (("bridge_id", "8000.020000000001"), ("stp_state", "0"), ("vlan_filtering", "0")):
            self.write(path, f"bridge/{file}", value)
        return self._mastered(path, members, "bridge")

    def bond(self, name: str, members: tuple[str, ...] = (), mode: str = "balance-rr 0") -> str:
        """A bond of interfaces that are there; the first is the active one."""
        path = self.net(f"virtual/net/{name}", lower=members)
        self.write(path, "bonding/mode", mode)
        self.write(path, "bonding/active_slave", members[0] if members else "")
        self.write(path, "bonding/primary", "")
        return self._mastered(path, members, "bond")

    def _mastered(self, path: str, members: tuple[str, ...], kind: str) -> str:
        for member in members:
            self.link(self._interface(member) / "master", self.devices / path)
        return self.uevent(path, DEVTYPE=kind, INTERFACE=os.path.basename(path))

    def vlan(self, lower: str, number: int) -> str:
        """A VLAN of an interface that is there, with its line in /proc."""
        name = f"{lower}.{number}"
        path = self.net(f"virtual/net/{name}", lower=(lower,))
        head = "VLAN Dev name    | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n"
        self.vlans.append(f"{name:<15}| {number}  | {lower}\n")
        self.table("net/vlan/config", head + "".join(self.vlans))
        return self.uevent(path, DEVTYPE="vlan", INTERFACE=name)

    def wlan(self, path: str, **attributes: str | bytes) -> str:
        """A Wi-Fi interface."""
        self.net(path, lower=(), **attributes)
        self.link(self.devices / path / "phy80211", self.devices / os.path.dirname(path) / "ieee80211/phy0")
        return self.uevent(path, DEVTYPE="wlan", INTERFACE=os.path.basename(path))

    def drm(self, card: str, name: str, minor: int) -> str:
        """A node of a GPU (`card0` with 0, `renderD128` with 128)."""
        return self.node(f"{card}/drm/{name}", "class/drm", f"226:{minor}", f"dri/{name}")

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


class Export:
    """A recorded machine from `udevadm info --export-db`: no attributes, but all that udev had in its database."""

    _BUSES: Final = ("pci", "usb", "scsi", "platform", "pnp", "acpi", "hid", "serio", "virtio", "mdev")
    _BY_KERNEL: Final = ("MAJOR", "MINOR", "DEVNAME", "DEVTYPE", "DRIVER", "INTERFACE", "IFINDEX")

    def __init__(self, folder: Path, file: Path = DATA / "qemu-q35-export-db.txt") -> None:
        self.tree = Tree(folder)
        self.root = self.tree.root
        self.properties = read_properties(file)
        for path, said in self.properties.items():
            self._place(path.removeprefix("/devices/"), said)

    def _place(self, path: str, said: Mapping[str, str]) -> None:
        subsystem = said["SUBSYSTEM"]
        bus = "bus/{}/devices" if subsystem in self._BUSES else "class/{}"
        self.tree.device(path, bus.format(subsystem))
        variables = {name: said[name].removeprefix("/dev/") for name in self._BY_KERNEL if name in said}
        self.tree.uevent(path, **variables)
        if "DRIVER" in said:
            self.tree.driver(path, subsystem, said["DRIVER"])
        if "MAJOR" in said:
            sort = "block" if subsystem == "block" else "char"
            number = f"{said['MAJOR']}:{said['MINOR']}"
            self.tree.write(path, "dev", number)
            self.tree.link(self.root.sys / "dev" / sort / number, self.tree.devices / path)
        if "IFINDEX" in said:
            self.tree.write(path, "ifindex", said["IFINDEX"])

    def udev(self, path: str) -> Mapping[str, str]:
        """udev's answers, as the picture asks for them."""
        return self.properties.get(path.removeprefix("/sys"), {})


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
