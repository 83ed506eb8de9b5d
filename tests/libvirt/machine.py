"""A machine as the kernel and udevd show it: /sys with its links and `uevent` files, and udev's database.

`tests.watcher.trees` builds what our own readers read. Other programs find devices through libudev, which wants more:
each device's subsystem, its `uevent` file, and udev's answers in /run/udev/data.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.watcher.trees import Recording, Tree

BUSES: Final = frozenset({"ap", "ccw", "css", "matrix", "mdev", "pci", "platform", "scsi", "usb", "vdpa", "virtio"})
"""Subsystems that are buses; all others are classes."""
Attributes = Mapping[str, str | bytes]
"""Files in a device's folder, by their path there."""
NOTHING: Final[Attributes] = {}
EXPRESS_ENDPOINT: Final = 0
EXPRESS_ROOT_PORT: Final = 4
EXPRESS_IN_ROOT_COMPLEX: Final = 9
_TYPE_1: Final = 1
_PCIE_AT: Final = 0x40
_GENERATIONS: Final = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}


class Machine(Tree):
    """A machine under construction, for every program that reads /sys. Paths are relative to /sys/devices."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.database = self.root.run / "udev/data"
        self.database.mkdir(parents=True)

    def add(
        self,
        path: str,
        subsystem: str,
        attributes: Attributes = NOTHING,
        /,
        *,
        uevent: Mapping[str, str] | None = None,
        udev: Mapping[str, str] | None = None,
        links: tuple[str, ...] = (),
        node: str = "",
        number: str = "",
        driver: str = "",
    ) -> str:
        """A device.

        Args:
            path: where; its last part is the name.
            subsystem: a bus or class.
            attributes: files in its folder.
            uevent: what the kernel says of it, besides what the other arguments tell.
            udev: what udevd adds to that.
            links: what udevd links to its node, below /dev.
            node: its device node below /dev.
            number: of that node, `8:0`.
            driver: who has it.
        """
        name = os.path.basename(path)
        base = self.root.sys / (f"bus/{subsystem}" if subsystem in BUSES else f"class/{subsystem}")
        self.device(path)
        for attribute, value in attributes.items():
            self.write(path, attribute, value)
        members = base / "devices" if subsystem in BUSES else base
        self.link(members / name, self.devices / path)
        self.link(self.devices / path / "subsystem", base)
        if driver:
            self.driver(path, subsystem, driver)
        major, _, minor = number.partition(":")
        told = {"DRIVER": driver, "MAJOR": major, "MINOR": minor, "DEVNAME": node, **(uevent or {})}
        self.write(path, "uevent", "\n".join(f"{key}={value}" for key, value in told.items() if value))
        if number:
            self.write(path, "dev", number)
            self.link(
                self.root.sys / f"dev/{'block' if subsystem == 'block' else 'char'}" / number, self.devices / path
            )
            (self.root.dev / node).parent.mkdir(parents=True, exist_ok=True)
            (self.root.dev / node).touch()
        self._into_database(path, subsystem, told, udev, links)
        return path

    def _into_database(
        self, path: str, subsystem: str, told: Mapping[str, str], udev: Mapping[str, str] | None, links: tuple[str, ...]
    ) -> None:
        if udev is None and not links:
            return
        if told.get("MAJOR"):
            label = f"{'b' if subsystem == 'block' else 'c'}{told['MAJOR']}:{told['MINOR']}"
        elif told.get("IFINDEX"):
            label = f"n{told['IFINDEX']}"
        else:
            label = f"+{subsystem}:{os.path.basename(path)}"
        lines = [f"S:{link}" for link in links] + ["I:1000000"]
        lines += [f"E:{key}={value}" for key, value in (udev or {}).items()] + ["V:1"]
        (self.database / label).write_text("\n".join(lines) + "\n")

    def function(
        self,
        path: str,
        attributes: Attributes = NOTHING,
        /,
        *,
        vendor: int = 0x8086,
        device: int = 0x10C9,
        pci_class: int = 0x020000,
        driver: str = "",
        group: int = -1,
        header: int = 0,
        link: "Speeds | None" = None,
        express_type: int = -1,
    ) -> str:
        """A PCI function.

        Args:
            path: where; its last part is the address.
            attributes: files in its folder.
            vendor: its id.
            device: its id.
            pci_class: of 24 bits.
            driver: who has it.
            group: its IOMMU group.
            header: its type, 0 to 2.
            link: speed and width that it can have and has, as in `("8.0", 4, "5.0", 4)`.
            express_type: what kind of PCI Express device it is; it need not be told of one with a link.
        """
        if link and express_type < 0:
            express_type = EXPRESS_ROOT_PORT if header == _TYPE_1 else EXPRESS_ENDPOINT
        told: Attributes = {
            "vendor": f"0x{vendor:04x}",
            "device": f"0x{device:04x}",
            "class": f"0x{pci_class:06x}",
            "numa_node": "-1",
            "power/runtime_status": "active",
            "config": configuration(vendor, device, pci_class, header, express_type, link),
        }
        self.add(
            path,
            "pci",
            {**told, **attributes},
            driver=driver,
            uevent={
                "PCI_CLASS": f"{pci_class:X}",
                "PCI_ID": f"{vendor:04X}:{device:04X}",
                "PCI_SLOT_NAME": os.path.basename(path),
            },
        )
        if header:
            self.write(path, "secondary_bus_number", "1")
        if link:
            for name, speed, width in (("max", link[0], link[1]), ("current", link[2], link[3])):
                self.write(path, f"{name}_link_speed", f"{speed} GT/s PCIe")
                self.write(path, f"{name}_link_width", str(width))
        if group >= 0:
            folder = self.root.sys / f"kernel/iommu_groups/{group}"
            self.link(self.devices / path / "iommu_group", folder)
            self.link(folder / "devices" / os.path.basename(path), self.devices / path)
        return path

    def virtual_function(self, physical: str, number: int, path: str) -> None:
        """Say that the function at `path` is the virtual one with this number of another."""
        self.link(self.devices / path / "physfn", self.devices / physical)
        self.link(self.devices / physical / f"virtfn{number}", self.devices / path)

    def usb_device(
        self,
        path: str,
        bus: int,
        number: int,
        /,
        *,
        ids: str = "0403:6001",
        device_class: str = "00",
        serial: str = "",
        known: bool = True,
        speed: str = "480",
        names: tuple[str, str] = ("", ""),
    ) -> str:
        """A USB device; `known`: udevd has dealt with it; `names`: how it calls its maker and itself."""
        vendor, _, product = ids.partition(":")
        maker, itself = names
        told = {"ID_VENDOR_ID": vendor, "ID_MODEL_ID": product, "ID_BUS": "usb", "ID_SERIAL_SHORT": serial}
        said = {
            "idVendor": vendor,
            "idProduct": product,
            "bDeviceClass": device_class,
            "speed": speed,
            "busnum": str(bus),
            "devnum": str(number),
            "version": " 2.00",
            "bcdDevice": "0600",
            "authorized": "1",
            "devpath": os.path.basename(path).partition("-")[2] or "0",
            "serial": serial,
            "manufacturer": maker,
            "product": itself,
        }
        return self.add(
            path,
            "usb",
            {key: value for key, value in said.items() if value},
            driver="usb",
            node=f"bus/usb/{bus:03}/{number:03}",
            number=f"189:{(bus - 1) * 128 + number - 1}",
            uevent={
                "DEVTYPE": "usb_device",
                "PRODUCT": f"{int(vendor, 16):x}/{int(product, 16):x}/600",
                "TYPE": f"{int(device_class, 16)}/0/0",
                "BUSNUM": f"{bus:03}",
                "DEVNUM": f"{number:03}",
            },
            udev={key: value for key, value in told.items() if value} if known else None,
        )

    def usb_interface(self, path: str, /, *, driver: str = "", kind: str = "ff/ff/ff", description: str = "") -> str:
        """A USB interface; `kind`: class, subclass and protocol in hex."""
        parts = kind.split("/")
        told = {
            "bInterfaceNumber": f"{int(path.rpartition('.')[2]):02x}",
            "bInterfaceClass": parts[0],
            "bInterfaceSubClass": parts[1],
            "bInterfaceProtocol": parts[2],
        }
        return self.add(
            path,
            "usb",
            {**told, **({"interface": description} if description else {})},
            driver=driver,
            uevent={"DEVTYPE": "usb_interface", "INTERFACE": "/".join(str(int(part, 16)) for part in parts)},
        )

    def interface(
        self,
        path: str,
        index: int,
        address: str,
        attributes: Attributes = NOTHING,
        /,
        *,
        device_type: str = "",
        state: str = "up",
        speed: str = "1000",
    ) -> str:
        """A network interface."""
        told: Attributes = {
            "address": address,
            "addr_len": "6",
            "operstate": state,
            "speed": speed,
            "ifindex": str(index),
            "type": "1",
            "dev_port": "0",
            "flags": "0x1003",
            "iflink": str(index),
        }
        return self.add(
            path,
            "net",
            {**told, **attributes},
            uevent={"INTERFACE": os.path.basename(path), "IFINDEX": str(index), "DEVTYPE": device_type},
            udev={"ID_NET_NAME": os.path.basename(path)},
        )

    def host_adapter(self, above: str, number: int, unique_id: int, driver: str) -> str:
        """A SCSI host with its class device."""
        path = self.add(f"{above}/host{number}", "scsi", uevent={"DEVTYPE": "scsi_host"})
        self.add(f"{path}/scsi_host/host{number}", "scsi_host", {"unique_id": str(unique_id), "proc_name": driver})
        return path

    def logical_unit(self, target: str, lun: int, generic: int, /, *, kind: int = 0, driver: str = "sd") -> str:
        """A logical unit of a target (which is made), with its pass-through node."""
        name = os.path.basename(target).removeprefix("target")
        if not (self.devices / target / "uevent").exists():
            self.add(target, "scsi", uevent={"DEVTYPE": "scsi_target"})
        path = self.add(
            f"{target}/{name}:{lun}",
            "scsi",
            {"type": str(kind), "vendor": "ATA     ", "model": "QEMU HARDDISK   "},
            driver=driver,
            uevent={"DEVTYPE": "scsi_device", "MODALIAS": f"scsi:t-0x{kind:02x}"},
        )
        self.add(f"{path}/scsi_generic/sg{generic}", "scsi_generic", node=f"sg{generic}", number=f"21:{generic}")
        return path

    def disk(
        self,
        path: str,
        number: str,
        attributes: Attributes = NOTHING,
        /,
        *,
        sectors: int,
        block_bytes: int = 512,
        udev: Mapping[str, str] | None = None,
        links: tuple[str, ...] = (),
    ) -> str:
        """A disk of so many units of 512 bytes."""
        told: Attributes = {
            "size": str(sectors),
            "queue/logical_block_size": str(block_bytes),
            "removable": "0",
            "ro": "0",
            "queue/rotational": "0",
            "diskseq": "1",
            "ext_range": "256",
            "hidden": "0",
        }
        self.add(
            path,
            "block",
            {**told, **attributes},
            node=os.path.basename(path),
            number=number,
            uevent={"DEVTYPE": "disk"},
            udev=udev,
            links=links,
        )
        above = self.devices / os.path.dirname(path)
        self.link(self.devices / path / "device", above.parent if above.name == "block" else above)
        return path

    def mdev_type(self, path: str, name: str, /, *, instances: int = 2, label: str = "", api: str = "vfio-pci") -> None:
        """A type of mediated device that the device at `path` offers."""
        folder = f"mdev_supported_types/{name}"
        self.write(path, f"{folder}/available_instances", str(instances))
        self.write(path, f"{folder}/device_api", api)
        if label:
            self.write(path, f"{folder}/name", label)
        self.write(path, f"{folder}/create", "")
        (self.devices / path / folder / "devices").mkdir(exist_ok=True)
        self.link(self.root.sys / "class/mdev_bus" / os.path.basename(path), self.devices / path)


Speeds = tuple[str, int, str, int]
"""Of a PCI Express link: gigatransfers a second and lanes that it can have, and that it has."""


def configuration(
    vendor: int, device: int, pci_class: int, header: int, express_type: int, link: Speeds | None
) -> bytes:
    """The configuration space of a function; with a PCI Express capability if it has a type of that."""
    space = bytearray(256)
    space[0:2] = vendor.to_bytes(2, "little")
    space[2:4] = device.to_bytes(2, "little")
    space[8:12] = (pci_class << 8).to_bytes(4, "little")
    space[0x0E] = header
    if express_type >= 0:
        space[0x06] = 0x10  # status: there is a list of capabilities
        space[0x34] = _PCIE_AT
        space[_PCIE_AT : _PCIE_AT + 4] = bytes((0x10, 0, 2 | express_type << 4, 0))
    if link:
        can = _GENERATIONS[link[0]] | link[1] << 4
        has = _GENERATIONS[link[2]] | link[3] << 4
        space[_PCIE_AT + 0x0C : _PCIE_AT + 0x10] = can.to_bytes(4, "little")
        space[_PCIE_AT + 0x12 : _PCIE_AT + 0x14] = has.to_bytes(2, "little")
    return bytes(space)


def product_data(name: str, read_only: Mapping[str, str], read_write: Mapping[str, str]) -> bytes:
    """Vital product data as the PCI specification (3.0, appendix I) lays it out."""
    fields = _vpd_fields(read_only)
    head = _resource(0x82, name.encode()) + b"\x90" + (len(fields) + 4).to_bytes(2, "little") + fields + b"RV\x01"
    checksum = -sum(head) & 0xFF
    return head + bytes((checksum,)) + _resource(0x91, _vpd_fields(read_write)) + b"\x78"


def _resource(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + len(content).to_bytes(2, "little") + content


def _vpd_fields(fields: Mapping[str, str]) -> bytes:
    return b"".join(key.encode() + bytes((len(text),)) + text.encode() for key, text in fields.items())


def complete_recording(recording: Recording) -> str:
    """Make a recorded machine readable for libudev: subsystem links and `uevent` files, drivers, IOMMU groups.

    Returns the names of its PCI functions as a `pci.ids`.
    """
    groups = recording.root.sys / "kernel/iommu_groups"
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path, said in recording.properties.items():
        place = path.removeprefix("/devices/")
        subsystem = said["SUBSYSTEM"]
        base = recording.root.sys / (f"bus/{subsystem}" if subsystem in BUSES else f"class/{subsystem}")
        recording.tree.link(recording.tree.devices / place / "subsystem", base)
        kept = {key: value for key, value in said.items() if key not in ("DEVPATH", "SUBSYSTEM", "DEVLINKS", "TAGS")}
        text = "\n".join(f"{key}={value}" for key, value in kept.items())
        recording.tree.write(place, "uevent", text)
        if said.get("DRIVER"):
            recording.tree.driver(place, subsystem, said["DRIVER"])
        group = recording.tree.devices / place / "iommu_group"
        if group.is_symlink():
            members = groups / group.readlink().name / "devices"
            recording.tree.link(members / os.path.basename(place), recording.tree.devices / place)
        if "PCI_ID" in said:
            vendor, _, product = said["PCI_ID"].lower().partition(":")
            vendor_name, name = (said.get(f"ID_{each}_FROM_DATABASE", "") for each in ("VENDOR", "MODEL"))
            names[f"{vendor}  {vendor_name}"].append(f"\t{product}  {name}")
    return "".join("\n".join((vendor, *sorted(set(names[vendor])), "")) for vendor in sorted(names))
