"""What selectors and constraints can ask of a device: names, types, and how they are read from what is known of it.

Names are stable: one is never given another meaning. Those of Kubernetes' devices stand under
`attributes["resource.kubernetes.io"]`, as its own reference has them
(https://kubernetes.io/docs/reference/node/dra-standard-device-attributes/). For readers: `docs/selectors.md`.

A text that is not known is empty, so is a list. A number that is not known is not there, and what needs it does not
match; in the entries of a list it is 0, so that one entry does not hide the others.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import Mdev, MdevParent, Net, Pci, PciLink, Storage, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, physical_key
from leasehold.projections.rows import DeviceState
from leasehold.projections.state import State

Scalar = str | int | bool | None
Row = tuple[Scalar, ...]
Value = Scalar | tuple[str, ...] | tuple[Row, ...]

TEXT: Final = "text"
NUMBER: Final = "number"
TRUTH: Final = "yes or no"
TEXTS: Final = "list of texts"
NETS: Final = "list of NICs"
DISKS: Final = "list of disks"

FIELDS: Final[dict[str, dict[str, str]]] = {
    NETS: {"name": TEXT, "mac": TEXT, "link": TEXT, "speed_mbps": NUMBER, "type": TEXT, "driver": TEXT},
    DISKS: {
        "name": TEXT, "vendor": TEXT, "model": TEXT, "serial": TEXT, "size_bytes": NUMBER, "bus": TEXT, "type": TEXT,
        "rotational": TRUTH, "removable": TRUTH,
    },
}  # fmt: skip
"""The fields of what such a list has, in the order of a row."""

Read = Callable[[State, DeviceId, DeviceState], Value]


class Attribute(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One thing that can be asked of a device."""

    name: str
    """Behind `device.`"""
    type: str
    read: Read
    says: str
    example: str
    is_local: bool = False
    """It counts on one host only: the same there and elsewhere is not the same thing."""
    pattern: str = ""
    """What each value of it matches: another one, compared with it, is a mistake."""


def _known(number: int) -> int | None:
    return number if number >= 0 else None


def _described(read: Callable[[DeviceDescription], Value]) -> Read:
    return lambda _state, _device, row: read(row.description)


def _pci(read: Callable[[Pci], Value], nothing: Value = None) -> Read:
    def of(description: DeviceDescription) -> Value:
        return read(description.capability) if isinstance(description.capability, Pci) else nothing

    return _described(of)


def _usb(read: Callable[[UsbDevice], Value], nothing: Value = "") -> Read:
    def of(description: DeviceDescription) -> Value:
        return read(description.capability) if isinstance(description.capability, UsbDevice) else nothing

    return _described(of)


def _mdev(read: Callable[[Mdev], Value]) -> Read:
    def of(description: DeviceDescription) -> Value:
        return read(description.capability) if isinstance(description.capability, Mdev) else ""

    return _described(of)


def _of_key(description: DeviceDescription, bus: str, part: int) -> str:
    parts = description.key.split("/")
    return parts[part] if parts[0] == bus and len(parts) > part else ""


_ROOT: Final = re.compile(r"/(pci[0-9a-f]{4,8}:[0-9a-f]{2})(?:/|$)")


def _pcie_root(description: DeviceDescription) -> str:
    found = _ROOT.search(description.sysfs_path)
    return found[1] if found else ""


def pci_class(description: DeviceDescription) -> str:
    """Class and subclass, four hex digits; empty: it is no PCI function."""
    return f"{description.pci_class >> 8:04x}" if description.pci_class >= 0 else ""


def _pci_interface(description: DeviceDescription) -> str:
    return f"{description.pci_class & 0xFF:02x}" if description.pci_class >= 0 else ""


def _link(link: PciLink | None, field: str) -> int | None:
    return _known(getattr(link, field)) if link is not None else None


def _mdev_types(description: DeviceDescription) -> tuple[str, ...]:
    capability = description.capability
    types = capability.mdev_types if isinstance(capability, Pci | MdevParent) else ()
    return tuple(each.id for each in types[: limits.SELECTOR_LIST_MAX])


def _parts(state: State, device: DeviceId, row: DeviceState) -> Iterator[DeviceDescription]:
    """The functional children that stand for a physical device, not what else hangs below it."""
    waiting = [device]
    while waiting:
        for child in state.indexes.children.get(waiting.pop(), ()):
            description = state.devices[child].description
            if child != device and physical_key(description.key) == row.description.key and description.kind != "mdev":
                waiting.append(child)
                yield description


def _nets(state: State, device: DeviceId, row: DeviceState) -> Value:
    if device not in state.indexes.children:
        return ()
    rows = []
    for each in _parts(state, device, row):
        net = each.capability
        if isinstance(net, Net):
            speed_mbps = max(net.link_speed_mbps, 0)
            rows.append((net.interface, net.address, net.link_state, speed_mbps, net.device_type, each.driver))
    return tuple(sorted(rows, key=_by_name)[: limits.SELECTOR_LIST_MAX])


def _disks(state: State, device: DeviceId, row: DeviceState) -> Value:
    if device not in state.indexes.children:
        return ()
    rows = []
    for each in _parts(state, device, row):
        disk = each.capability
        if isinstance(disk, Storage):
            rows.append(
                (
                    *(disk.block, disk.vendor, disk.model, each.serial, max(disk.size_bytes, 0), disk.bus),
                    *(disk.drive_type, disk.rotational, disk.removable),
                )
            )
    return tuple(sorted(rows, key=_by_name)[: limits.SELECTOR_LIST_MAX])


def _by_name(row: Row) -> tuple[str, ...]:
    return tuple(str(each) for each in row)


_HEX_4: Final = "[0-9a-f]{4}"
_HEX_2: Final = "[0-9a-f]{2}"
_ROOT_PATTERN: Final = "pci[0-9a-f]{4,8}:[0-9a-f]{2}"
_ADDRESS_PATTERN: Final = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"


def _text(name: str, read: Read, example: str, says: str, *, is_local: bool = False, pattern: str = "") -> Attribute:
    shown = f'"{example}"'
    return Attribute(name=name, type=TEXT, read=read, says=says, example=shown, is_local=is_local, pattern=pattern)


def _number(name: str, read: Read, example: int, says: str, *, is_local: bool = False) -> Attribute:
    return Attribute(name=name, type=NUMBER, read=read, says=says, example=str(example), is_local=is_local)


def _truth(name: str, read: Read, says: str) -> Attribute:
    return Attribute(name=name, type=TRUTH, read=read, says=says, example="true")


_address: Final = _described(lambda it: _of_key(it, "pci", 1) if it.kind == "pci" else "")
_root: Final = _described(_pcie_root)
_numa: Final = _described(lambda it: _known(it.numa_node))
DRA: Final = "resource.kubernetes.io"
"""The domain of the standard names of Kubernetes' devices."""
_ALL: Final = (
    _text("id", lambda _state, device, _row: device, "h1/pci/0000:03:00.0", "its name in the cluster"),
    _text("host", lambda _state, _device, row: row.host, "h1", "where it is"),
    _text("key", _described(lambda it: it.key), "pci/0000:03:00.0", "where it sits there", is_local=True),
    _text("name", _described(lambda it: it.name), "pci_0000_03_00_0", "libvirt's name of it", is_local=True),
    _text("kind", _described(lambda it: it.kind), "pci", "`pci`, `usb_device`, `mdev`, …"),
    _text("bus", _described(lambda it: it.key.partition("/")[0]), "pci", "`pci` or `usb`", pattern="[a-z]+"),
    _text("driver", _described(lambda it: it.driver), "vfio-pci", "what it is bound to now; empty: nothing"),
    _text("vendor", _described(lambda it: it.vendor_id.lower()), "8086", "four hex digits", pattern=_HEX_4),
    _text("product", _described(lambda it: it.product_id.lower()), "10d3", "four hex digits", pattern=_HEX_4),
    _text("vendor_name", _described(lambda it: it.vendor_name), "Intel Corporation", "as udev or the tables have it"),
    _text("product_name", _described(lambda it: it.product_name), "82574L", "as udev or the tables have it"),
    _text("serial", lambda _state, _device, row: row.serial, "A1B2", "the last one that the thing here has told"),
    _number("numa_node", _numa, 0, "the memory that it is near to", is_local=True),
    _text("pcie_root", _root, "pci0000:00", "the root complex above it", is_local=True, pattern=_ROOT_PATTERN),
    _number("iommu_group", _described(lambda it: _known(it.iommu_group)), 12, "the kernel's number", is_local=True),
    _text("parent", _described(lambda it: it.parent), "pci/0000:00:1c.0", "key of what is above it", is_local=True),
    _text(
        "pci.address", _address, "0000:03:00.0", "domain, bus, slot, function", is_local=True, pattern=_ADDRESS_PATTERN
    ),
    _text("pci.class", _described(pci_class), "0302", "class and subclass", pattern=_HEX_4),
    _text("pci.interface", _described(_pci_interface), "00", "programming interface", pattern=_HEX_2),
    _text(
        "pci.subsystem_vendor",
        _pci(lambda it: it.subsystem_vendor_id.lower(), ""),
        "15d9",
        "four hex digits",
        pattern=_HEX_4,
    ),
    _text(
        "pci.subsystem_product",
        _pci(lambda it: it.subsystem_product_id.lower(), ""),
        "0f2a",
        "four hex digits",
        pattern=_HEX_4,
    ),
    _number("pci.revision", _pci(lambda it: _known(it.revision)), 2, "revision"),
    _truth(
        "pci.vf", _described(lambda it: it.kind == "pci" and bool(it.physical_function)), "it is a virtual function"
    ),
    _text(
        "pci.pf",
        _described(lambda it: it.physical_function),
        "pci/0000:03:00.0",
        "of a virtual function or mediated device: key of its whole",
        is_local=True,
    ),
    _number("pci.vfs", _pci(lambda it: it.virtual_functions), 8, "how many virtual functions it has now"),
    _number("pci.vfs_max", _pci(lambda it: it.virtual_functions_max), 64, "how many it can have"),
    _truth("pci.boot_vga", _pci(lambda it: it.boot_vga, nothing=False), "the firmware drew on it"),
    _number(
        "pci.link_mts",
        _pci(lambda it: _link(it.link_now, "speed_mts")),
        8000,
        "megatransfers a second on each lane, now",
    ),
    _number("pci.link_width", _pci(lambda it: _link(it.link_now, "width")), 16, "lanes, now"),
    _number("pci.link_mts_max", _pci(lambda it: _link(it.link_max, "speed_mts")), 16000, "what it is capable of"),
    _number("pci.link_width_max", _pci(lambda it: _link(it.link_max, "width")), 16, "what it is capable of"),
    Attribute(
        name="pci.resets",
        type=TEXTS,
        read=_pci(lambda it: it.resets or (), ()),
        says="ways to reset it, in the kernel's words",
        example='["flr", "bus"]',
    ),
    _text(
        "usb.controller",
        _described(lambda it: _of_key(it, "usb", 1)),
        "0000:00:14.0",
        "where its bus begins",
        is_local=True,
    ),
    _text("usb.port", _described(lambda it: _of_key(it, "usb", 2)), "2-1.4", "generation and ports", is_local=True),
    _text(
        "usb.class",
        _usb(lambda it: f"{it.device_class:02x}" if it.device_class >= 0 else ""),
        "08",
        "two hex digits",
        pattern=_HEX_2,
    ),
    _number("usb.speed_kbps", _usb(lambda it: _known(it.speed_kbps), None), 5_000_000, "as it runs now"),
    _text("usb.version", _usb(lambda it: it.usb_version), "3.20", "of USB, as it says"),
    _truth("usb.hub", _described(lambda it: it.hub), "it is a hub"),
    _text("mdev.type", _mdev(lambda it: it.mdev_type), "nvidia-63", "of a mediated device"),
    _text(
        "mdev.uuid",
        _mdev(lambda it: it.uuid),
        "c0ffee00-0000-4000-8000-000000000001",
        "of a mediated device",
        is_local=True,
    ),
    Attribute(
        name="mdev_types",
        type=TEXTS,
        read=_described(_mdev_types),
        says="which mediated devices it offers",
        example='["nvidia-63"]',
    ),
    Attribute(
        name="nets", type=NETS, read=_nets, says="its network interfaces", example='[{name: "eth0", link: "up", …}]'
    ),
    Attribute(
        name="disks", type=DISKS, read=_disks, says="its disks", example='[{name: "/dev/sda", model: "SSD 980", …}]'
    ),
    _text(
        f'attributes["{DRA}"].pciBusID',
        _address,
        "0000:03:00.0",
        "as `pci.address`",
        is_local=True,
        pattern=_ADDRESS_PATTERN,
    ),
    _text(f'attributes["{DRA}"].pcieRoot', _root, "pci0000:00", "as `pcie_root`", is_local=True, pattern=_ROOT_PATTERN),
    _number(f'attributes["{DRA}"].numaNode', _numa, 0, "as `numa_node`", is_local=True),
)
BY_NAME: Final = {attribute.name: attribute for attribute in _ALL}
GROUPS: Final = frozenset(name.rpartition(".")[0] for name in BY_NAME if "." in name and "[" not in name)
"""Names that only stand before others: `pci`, `usb`, `mdev`."""
_OTHER: Final = re.compile(r'attributes\["([^"\\]{1,128})"\]')


def named(name: str) -> Attribute | None:
    """The attribute of that name, written as behind `device.`; `None`: there is none.

    `attributes["x"]` is what an agent tells of a device under the name x: a text.
    """
    known = BY_NAME.get(name)
    if known is not None:
        return known
    found = _OTHER.fullmatch(name)
    if found is None or found[1] == DRA:
        return None
    key = found[1]
    return _text(name, _described(lambda it: it.attributes.get(key, "")), "…", "as its agent tells it")


def value(state: State, device: DeviceId, name: str) -> str | int | bool | tuple[str, str | int] | None:
    """What a device has of an attribute, for comparing devices with each other; `None`: nothing, or it is a list.

    What counts on one host only comes with the host in front.
    """
    attribute = named(name)
    row = state.devices.get(device)
    if attribute is None or row is None or attribute.type not in (TEXT, NUMBER, TRUTH):
        return None
    read = attribute.read(state, device, row)
    if read is None or read == "" or isinstance(read, tuple):
        return None
    return (row.host, read) if attribute.is_local else read
