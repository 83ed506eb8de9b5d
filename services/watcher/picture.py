"""A full look at this machine: every PCI function, USB device and interface, and the NICs and disks below them.

A description says how a device is now and changes only when something happened: no counters, no temperatures, nothing
that the look itself would change. Whatever a device tells about itself, however odd, its description keeps the bounds
that `leasehold.events.codec` checks.
"""

import functools
import os
from collections.abc import Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.codec import encode
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey, node_device_name, parse_pci_address, pci_key
from leasehold.services.watcher.essentials import find_essentials
from leasehold.services.watcher.names import DeviceNames, listed_names
from leasehold.services.watcher.places import Place, Places, find_places
from leasehold.services.watcher.sysfs import (
    THIS_MACHINE,
    HostRoot,
    clean,
    link_name,
    read_bytes,
    read_int,
    read_text,
    to_int,
)
from leasehold.services.watcher.udev import UdevLookup, lookup_for, udevd_runs
from leasehold.services.watcher.usage import find_users

__all__ = ["THIS_MACHINE", "HostRoot", "take_picture"]

SHOWN_PATH_BYTES_MAX: Final = 1_024
NODE_NAME_CHARS_MAX: Final = 255
SECTOR_BYTES: Final = 512
"""The unit of a disk's `size`, whatever its own sectors are."""
PCI_BASE_CLASS_BRIDGE: Final = 0x06
USB_HUB_CLASS: Final = 0x09
SERIALS_KEPT_MAX: Final = 1_024


class _Look(msgspec.Struct, frozen=True):
    """What one look has at hand."""

    root: HostRoot
    udev: UdevLookup
    names: DeviceNames
    waits_for_udevd: bool


def take_picture(
    host_root: HostRoot = THIS_MACHINE,
    *,
    udev: UdevLookup | None = None,
    names: DeviceNames | None = None,
    needed_interfaces: Mapping[str, str] | None = None,
) -> dict[DeviceKey, DeviceDescription]:
    """Describe all devices of a machine, by key, sorted.

    It reads some hundred small files and blocks while it does (0.2 ms a device): call it in a thread where the event
    loop must go on. A device that goes while it is read is left out; one that can be read in part is described in
    part. It needs neither root nor udevd. Where udevd runs, a disk whose serial only udevd can tell is left out until
    udevd has dealt with it: shown without a serial it could not be told from the disk that was there before.

    Args:
        host_root: whose files are read.
        udev: what udev knows about a sysfs path; left out, libudev is asked.
        names: where names of vendors and products are looked up; left out, in this machine's lists.
        needed_interfaces: network interfaces that the host needs for more than its default route, with the reason,
            like `{"eth0": "has the address that reaches the bus"}`.
    """
    look = _Look(host_root, udev or lookup_for(host_root), names or listed_names(), udevd_runs(host_root))
    places = find_places(host_root)
    picture: dict[DeviceKey, DeviceDescription] = {}
    for path, place in places.items():
        described = _describe(look, place, places)
        if described is not None and os.path.exists(path):
            picture.setdefault(place.key, described)
    protections = find_essentials(host_root, picture, places, needed_interfaces or {})
    users = find_users(host_root, picture, places)
    return {
        key: _fit(
            msgspec.structs.replace(picture[key], protections=protections.get(key, ()), in_use_by=users.get(key, ()))
        )
        for key in sorted(picture)
    }


def _describe(look: _Look, place: Place, places: Places) -> DeviceDescription | None:
    match place.kind:
        case "pci":
            return _describe_pci(look, place)
        case "usb_device":
            return _describe_usb_device(look, place)
        case "usb_interface":
            return _describe_usb_interface(look, place)
        case "net":
            return _describe_net(look, place)
        case _:
            return _describe_block(look, place)


def _name(subsystem: str, sysname: str, extra: str = "") -> str:
    return node_device_name(subsystem, sysname, extra)[:NODE_NAME_CHARS_MAX]


def _shown(look: _Look, place: Place) -> str:
    """The sysfs path; one too long or not printable is left out rather than shown as the path of nothing."""
    path = look.root.shown_path(place.path)
    return path if path == clean(path, SHOWN_PATH_BYTES_MAX) else ""


def _attributes(**texts: str) -> dict[str, str]:
    return {name: text for name, text in sorted(texts.items()) if text}


def _hex_id(path: str) -> str:
    """Four hex digits of an id like `0x8086`; empty when it is none."""
    number = read_int(path, 16)
    return f"{number:04x}" if 0 <= number <= 0xFFFF else ""


def _small(number: int) -> int:
    return number if 0 <= number < 2**31 else -1


def _describe_pci(look: _Look, place: Place) -> DeviceDescription:
    path = place.path
    vendor_id, product_id = _hex_id(f"{path}/vendor"), _hex_id(f"{path}/device")
    vendor_name, product_name = look.names.of("pci", vendor_id, product_id, look.udev(look.root.shown_path(path)))
    pci_class = read_int(f"{path}/class", 16)
    return DeviceDescription(
        key=place.key,
        name=_name("pci", place.sysname),
        kind=place.kind,
        sysfs_path=_shown(look, place),
        parent=place.parent,
        driver=clean(link_name(f"{path}/driver")),
        pci_class=pci_class if 0 <= pci_class < 2**24 else -1,
        vendor_id=vendor_id,
        product_id=product_id,
        vendor_name=vendor_name,
        product_name=product_name,
        iommu_group=_small(to_int(link_name(f"{path}/iommu_group"))),
        numa_node=_small(read_int(f"{path}/numa_node")),
        physical_function=_physical_function(path),
        bridge=_is_bridge(path, pci_class),
        attributes=_pci_attributes(path),
    )


def _physical_function(path: str) -> str:
    try:
        return pci_key(parse_pci_address(link_name(f"{path}/physfn")))
    except InvalidInputError:
        return ""


def _is_bridge(path: str, pci_class: int) -> bool:
    """Whether it carries others: all of class 06 (host, ISA and PCI bridges), and whatever has a header of type 1 or 2.

    For those, and only those, the kernel (4.13 on) offers the secondary bus number. The header itself (`config`, byte
    0x0e) is not read: that would wake a sleeping GPU at every look.
    """
    return os.path.exists(f"{path}/secondary_bus_number") or pci_class >> 16 == PCI_BASE_CLASS_BRIDGE


def _pci_attributes(path: str) -> dict[str, str]:
    functions_max = read_int(f"{path}/sriov_totalvfs")
    return _attributes(
        subsystem_vendor_id=_hex_id(f"{path}/subsystem_vendor"),
        subsystem_product_id=_hex_id(f"{path}/subsystem_device"),
        revision=read_text(f"{path}/revision"),
        boot_vga="1" if read_int(f"{path}/boot_vga") == 1 else "",
        sriov_totalvfs=str(functions_max) if functions_max > 0 else "",
        sriov_numvfs=read_text(f"{path}/sriov_numvfs") if functions_max > 0 else "",
    )


def _describe_usb_device(look: _Look, place: Place) -> DeviceDescription:
    path = place.path
    vendor_id, product_id = _hex_id(f"{path}/idVendor"), _hex_id(f"{path}/idProduct")
    properties = look.udev(look.root.shown_path(path))
    vendor_name, product_name = look.names.of("usb", vendor_id, product_id, properties)
    return DeviceDescription(
        key=place.key,
        name=_name("usb", place.sysname),
        kind=place.kind,
        sysfs_path=_shown(look, place),
        parent=place.parent,
        driver=clean(link_name(f"{path}/driver")),
        vendor_id=vendor_id,
        product_id=product_id,
        vendor_name=vendor_name,
        product_name=product_name,
        serial=read_text(f"{path}/serial"),
        hub=read_int(f"{path}/bDeviceClass", 16) == USB_HUB_CLASS,
        attributes=_attributes(
            busnum=read_text(f"{path}/busnum"),
            devnum=read_text(f"{path}/devnum"),
            speed_mbit=read_text(f"{path}/speed"),
            usb_version=read_text(f"{path}/version"),
            device_version=read_text(f"{path}/bcdDevice"),
            device_class=read_text(f"{path}/bDeviceClass"),
            manufacturer=read_text(f"{path}/manufacturer"),
            product=read_text(f"{path}/product"),
        ),
    )


def _describe_usb_interface(look: _Look, place: Place) -> DeviceDescription:
    """An interface has the ids of its device, so that another device in the same port makes other interfaces."""
    path = place.path
    device = os.path.dirname(path)
    return DeviceDescription(
        key=place.key,
        name=_name("usb", place.sysname),
        kind=place.kind,
        sysfs_path=_shown(look, place),
        parent=place.parent,
        driver=clean(link_name(f"{path}/driver")),
        vendor_id=_hex_id(f"{device}/idVendor"),
        product_id=_hex_id(f"{device}/idProduct"),
        attributes=_attributes(
            interface_class=read_text(f"{path}/bInterfaceClass"),
            interface_subclass=read_text(f"{path}/bInterfaceSubClass"),
            interface_protocol=read_text(f"{path}/bInterfaceProtocol"),
            description=read_text(f"{path}/interface"),
        ),
    )


def _describe_net(look: _Look, place: Place) -> DeviceDescription:
    path = place.path
    mac = read_text(f"{path}/address")
    operstate = read_text(f"{path}/operstate")
    # Drivers ask their firmware for the speed, so a link that is down is not asked.
    speed_mbps = read_int(f"{path}/speed") if operstate == "up" else -1
    return DeviceDescription(
        key=place.key,
        name=_name("net", place.sysname, mac),
        kind=place.kind,
        sysfs_path=_shown(look, place),
        parent=place.parent,
        driver=clean(link_name(f"{path}/device/driver")),
        attributes=_attributes(
            interface=clean(place.sysname),
            mac=mac,
            operstate=operstate,
            speed_mbps=str(speed_mbps) if speed_mbps > 0 else "",
        ),
    )


def _describe_block(look: _Look, place: Place) -> DeviceDescription | None:
    path = place.path
    properties = look.udev(look.root.shown_path(path))
    serial = _disk_serial(path)
    if not serial and look.waits_for_udevd and "USEC_INITIALIZED" not in properties:
        return None
    sectors = read_int(f"{path}/size")
    return DeviceDescription(
        key=place.key,
        name=_name("block", place.sysname, properties.get("ID_SERIAL", "")),
        kind=place.kind,
        sysfs_path=_shown(look, place),
        parent=place.parent,
        serial=serial or properties.get("ID_SERIAL_SHORT", ""),
        attributes=_attributes(
            devnode=clean(f"/dev/{place.sysname.replace('!', '/')}"),
            size_bytes=str(sectors * SECTOR_BYTES) if sectors >= 0 else "",
            logical_block_size=read_text(f"{path}/queue/logical_block_size"),
            removable=read_text(f"{path}/removable"),
            rotational=read_text(f"{path}/queue/rotational"),
            model=read_text(f"{path}/device/model"),
            vendor=read_text(f"{path}/device/vendor"),
        ),
    )


def _disk_serial(path: str) -> str:
    """What the kernel has of it: NVMe and MMC, SCSI's page 0x80, virtio."""
    if serial := read_text(f"{path}/device/serial"):
        return serial
    page = read_bytes(f"{path}/device/vpd_pg80")
    if len(page) > 4 and page[1] == 0x80:
        return clean(page[4 : 4 + int.from_bytes(page[2:4], "big")])
    if not os.path.exists(f"{path}/serial"):
        return ""
    sequence = read_int(f"{path}/diskseq")
    return _virtio_serial(path, sequence) if sequence >= 0 else read_text(f"{path}/serial")


@functools.lru_cache(maxsize=SERIALS_KEPT_MAX)
def _virtio_serial(path: str, _disk_sequence: int) -> str:
    """Kept as long as the disk's sequence number is the same: each read is a request to the disk, which may hang."""
    return read_text(f"{path}/serial")


def _fit(device: DeviceDescription) -> DeviceDescription:
    """Cut a description that is over the bound of its whole: attributes go first, then the last reasons."""
    while len(encode(device)) > limits.DESCRIPTION_BYTES_MAX:
        if device.attributes:
            largest = max(device.attributes, key=lambda name: (len(device.attributes[name]), name))
            rest = {name: text for name, text in device.attributes.items() if name != largest}
            device = msgspec.structs.replace(device, attributes=rest)
        elif len(device.protections) + len(device.in_use_by) > 2:
            device = msgspec.structs.replace(
                device, protections=_half(device.protections), in_use_by=_half(device.in_use_by)
            )
        else:
            device = msgspec.structs.replace(device, sysfs_path="", vendor_name="", product_name="")
    return device


def _half(reasons: tuple[str, ...]) -> tuple[str, ...]:
    """Never none out of some: one reason is enough to protect a device."""
    return reasons[: (len(reasons) + 1) // 2]
