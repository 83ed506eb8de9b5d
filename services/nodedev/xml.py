"""Devices as libvirt's node-device XML, for tools that read that: what `virsh nodedev-dumpxml` would say.

The order of elements, the spelling of numbers, and which of them may be left out are those of libvirt 9.0's
`nodedev.rng`, which every device satisfies but those that it has no word for: `bridge`, `vlan` and `bond` stand as
capabilities within `net`, with the elements of libvirt's interface XML; `mdev_types` at the top, `other`, and a `vdpa`
without a node are what libvirt does not describe or does not allow.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, TypeVar
from xml.etree.ElementTree import Element, SubElement
from xml.sax.saxutils import escape

from leasehold.events.capabilities import (
    Ap,
    Bond,
    Bridge,
    Capability,
    Ccw,
    Drm,
    Mdev,
    MdevParent,
    MdevType,
    Net,
    Other,
    Pci,
    PciLink,
    ScsiDevice,
    ScsiGeneric,
    ScsiHost,
    ScsiTarget,
    Storage,
    System,
    UsbDevice,
    UsbInterface,
    Vdpa,
    Vlan,
    Vpd,
)
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import PciAddress, parse_pci_address
from leasehold.events.views import DeviceView

NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Of a machine that does not tell one; the schema wants one."""
_MAC: Final = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_FEATURE: Final = re.compile(r"[a-zA-Z_-]+")
_NODE: Final = re.compile(r"/[a-zA-Z0-9_+/%-]+")
_VPD_VALUE: Final = re.compile(r"[ -_a-z]{0,255}")
_LINK_STATES: Final = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_MEDIA_DRIVES: Final = ("cdrom", "floppy", "")
"""Whose size is that of a medium; a stick or card is as large as any disk, to those who read libvirt's XML."""
_CHANNEL_DEVICE: Final = re.compile(r"([0-9a-f]{1,2})\.([0-9a-f])\.([0-9a-f]{4})")
_MDEV_APIS: Final = ("vfio-pci", "vfio-ccw", "vfio-ap")
_VPD_READ_ONLY: Final = {"EC": "change_level", "MN": "manufacture_id", "PN": "part_number", "SN": "serial_number"}
_QUOTED: Final = {"'": "&apos;", '"': "&quot;"}

C = TypeVar("C", bound=Capability)


def device_xml(view: DeviceView) -> str:
    """One device, as a document of its own without a declaration; it ends with a newline."""
    return "\n".join((*_lines(device_element(view), 0), ""))


def devices_xml(views: Iterable[DeviceView]) -> Iterator[str]:
    """Devices of any number of hosts as one document, in lines: `devices`, in it a `host` for each, in it `device`s.

    `views` have those of one host side by side.
    """
    yield "<devices>"
    for host, those in groupby(views, lambda view: view.host):
        yield f"  <host name='{_text(host)}'>"
        for view in those:
            yield from _lines(device_element(view), 2)
        yield "  </host>"
    yield "</devices>"


def device_element(view: DeviceView) -> Element:
    """One device as an element tree."""
    device = Element("device")
    _add(device, "name", view.name)
    _add(device, "path", view.sysfs_path)
    kind = "dev"
    for node in view.devnodes:
        _add(device, "devnode", node, type=kind)
        kind = "link"
    _add(device, "parent", view.parent_name)
    if view.driver and view.bus:
        # What is on no bus has its driver from what it is a function of, and libvirt says it there.
        _add(SubElement(device, "driver"), "name", view.driver)
    capability = view.capability or _told_once(view)
    described = _capability(device, view.capabilities[0] if view.capabilities else view.kind)
    writer = _WRITERS.get(type(capability))
    if writer is not None:
        writer(described, view, capability)
    return device


def _told_once(view: DeviceView) -> Capability | None:
    """What a description from before there were capabilities has in its attributes."""
    told = view.attributes

    def number(name: str, base: int = 10) -> int:
        try:
            return int(told.get(name, ""), base)
        except ValueError:
            return -1

    match view.kind:
        case "pci":
            return Pci(virtual_functions_max=max(0, number("sriov_totalvfs")))
        case "usb_device":
            return UsbDevice(bus=number("busnum"), device=number("devnum"))
        case "usb_interface":
            names = ("interface_class", "interface_subclass", "interface_protocol")
            its_class, subclass, protocol = (number(name, 16) for name in names)
            where = view.key.rpartition(".")[2]
            return UsbInterface(
                number=int(where) if where.isdecimal() else -1,
                interface_class=its_class,
                subclass=subclass,
                protocol=protocol,
                description=told.get("description", ""),
            )
        case "net":
            return Net(
                interface=told.get("interface", ""), address=told.get("mac", ""), link_state=told.get("operstate", "")
            )
        case "block":
            return Storage(
                block=told.get("devnode", ""),
                vendor=told.get("vendor", ""),
                model=told.get("model", ""),
                size_bytes=number("size_bytes"),
                logical_block_size=number("logical_block_size"),
                removable=told.get("removable") == "1",
            )
    return None


# --- one writer for each capability ---------------------------------------------------------------------------------


def _system(into: Element, _view: DeviceView, system: System) -> None:
    _add(into, "product", system.product)
    hardware, firmware = SubElement(into, "hardware"), SubElement(into, "firmware")
    _add_each(hardware, vendor=system.vendor, version=system.version, serial=system.serial)
    _add(hardware, "uuid", system.uuid or NO_UUID)
    _add_each(
        firmware, vendor=system.firmware_vendor, version=system.firmware_version, release_date=system.firmware_date
    )


def _pci(into: Element, view: DeviceView, pci: Pci) -> None:
    if view.pci_class:
        _add(into, "class", f"0x{view.pci_class}")
    address = _address_of(view.key) or PciAddress(0, 0, 0, 0)
    for name in address.__struct_fields__:
        _add(into, name, str(getattr(address, name)))
    _add_ids(into, view)
    if view.physical_function:
        _add_addresses(_capability(into, "phys_function"), [view.physical_function])
    if pci.virtual_functions_max > 0:
        functions = _capability(into, "virt_functions", maxCount=str(pci.virtual_functions_max))
        _add_addresses(functions, view.virtual_functions)
    if pci.bridge_type:
        _capability(into, pci.bridge_type)
    _add_mdev_types(into, pci.mdev_types)
    if pci.vpd is not None:
        _add_vpd(into, pci.vpd)
    if view.iommu_group >= 0:
        group = SubElement(into, "iommuGroup", number=str(view.iommu_group))
        _add_addresses(group, view.group_members or [view.key])
    if view.numa_node >= 0:
        SubElement(into, "numa", node=str(view.numa_node))
    if pci.is_express:
        express = SubElement(into, "pci-express")
        _add_link(express, "cap", pci.link_max)
        _add_link(express, "sta", pci.link_now)


def _add_link(into: Element, validity: str, link: PciLink | None) -> None:
    if link is None:
        return
    element = SubElement(into, "link", validity=validity)
    if link.port >= 0:
        element.set("port", str(link.port))
    if link.speed_mts > 0:
        element.set("speed", f"{link.speed_mts / 1_000:g}")
    element.set("width", _whole(link.width))


def _add_vpd(into: Element, vpd: Vpd) -> None:
    """Values that the schema cannot hold are left out, as libvirt leaves them out."""
    element = _capability(into, "vpd")
    _add_empty(element, "name", vpd.name if _VPD_VALUE.fullmatch(vpd.name) else "")
    for access, told in (("readonly", vpd.read_only), ("readwrite", vpd.read_write)):
        named = [(_vpd_name(access, keyword), keyword[1:], value) for keyword, value in told.items()]
        fields = [each for each in named if each[0] and _VPD_VALUE.fullmatch(each[2])]
        if fields:
            group = SubElement(element, "fields", access=access)
            for name, index, value in sorted(fields, key=lambda field: (_VPD_ORDER.index(field[0]), field[1])):
                _add_empty(group, name, value, **({"index": index} if name in _VPD_INDEXED else {}))


_VPD_INDEXED: Final = ("vendor_field", "system_field")
_VPD_ORDER: Final = (*_VPD_READ_ONLY.values(), "asset_tag", *_VPD_INDEXED)


def _vpd_name(access: str, keyword: str) -> str:
    """What libvirt calls the field; empty for one that it has no name for, like a checksum (`RV`)."""
    if re.fullmatch("V[0-9A-Z]", keyword):
        return "vendor_field"
    if access == "readonly":
        return _VPD_READ_ONLY.get(keyword, "")
    return "asset_tag" if keyword == "YA" else "system_field" if re.fullmatch("Y[0-9B-Z]", keyword) else ""


def _usb_device(into: Element, view: DeviceView, usb: UsbDevice) -> None:
    _add(into, "bus", _whole(usb.bus))
    _add(into, "device", _whole(usb.device))
    _add_ids(into, view, vendor=usb.manufacturer, product=usb.product)


def _usb_interface(into: Element, _view: DeviceView, usb: UsbInterface) -> None:
    _add(into, "number", _whole(usb.number))
    _add(into, "class", _whole(usb.interface_class))
    _add(into, "subclass", _whole(usb.subclass))
    _add(into, "protocol", _whole(usb.protocol))
    _add(into, "description", usb.description)


def _net(into: Element, view: DeviceView, net: Net) -> None:
    _add_empty(into, "interface", net.interface)
    _add(into, "address", net.address if _MAC.fullmatch(net.address) else "")
    link = SubElement(into, "link")
    if net.link_speed_mbps >= 0:
        link.set("speed", str(net.link_speed_mbps))
    if net.link_state in _LINK_STATES:
        link.set("state", net.link_state)
    for feature in net.features:
        if _FEATURE.fullmatch(feature):
            SubElement(into, "feature", name=feature)
    if net.medium:
        _capability(into, net.medium)
    if net.kind is None:
        return
    nested = _capability(into, str(net.kind.__struct_config__.tag))
    lowers: Sequence[str] = view.members
    match net.kind:
        case Bridge(stp=stp):
            _add(nested, "stp", "on" if stp else "off")
        case Bond(mode=mode, active=active, primary=primary):
            _add_each(nested, mode=mode, active=active, primary=primary)
        case Vlan(id=number, protocol=protocol):
            _add_each(nested, tag=str(number), protocol=protocol)
            lowers = [view.lower] if view.lower else []
    for name in lowers:
        SubElement(nested, "interface", name=name)


def _scsi_host(into: Element, _view: DeviceView, scsi: ScsiHost) -> None:
    _add(into, "host", _whole(scsi.host))
    if scsi.unique_id >= 0:
        _add(into, "unique_id", str(scsi.unique_id))
    fc = scsi.fc_host
    if fc is not None and fc.wwnn and fc.wwpn:
        _add_each(_capability(into, "fc_host"), wwnn=fc.wwnn, wwpn=fc.wwpn, fabric_wwn=fc.fabric_wwn)
    if scsi.vport_ops is not None:
        ops = _capability(into, "vport_ops")
        _add_each(ops, max_vports=_whole(scsi.vport_ops.max_vports), vports=_whole(scsi.vport_ops.vports))


def _scsi_target(into: Element, _view: DeviceView, scsi: ScsiTarget) -> None:
    _add_empty(into, "target", scsi.target)
    if scsi.remote_port and scsi.remote_wwpn:
        _add_each(_capability(into, "fc_remote_port"), rport=scsi.remote_port, wwpn=f"0x{scsi.remote_wwpn}")


def _scsi(into: Element, _view: DeviceView, scsi: ScsiDevice) -> None:
    for name in ("host", "bus", "target", "lun"):
        _add(into, name, _whole(getattr(scsi, name)))
    _add(into, "type", scsi.scsi_type)


def _storage(into: Element, view: DeviceView, disk: Storage) -> None:
    _add(into, "block", disk.block if _NODE.fullmatch(disk.block) else "/dev/unknown")
    # libvirt's is udev's word for it, with the model in front, which is a part of the name too.
    serial = view.attributes.get("id_serial") or view.serial
    _add_each(into, bus=disk.bus, drive_type=disk.drive_type, model=disk.model, vendor=disk.vendor, serial=serial)
    sized = into
    if disk.removable and disk.drive_type in _MEDIA_DRIVES:
        sized = _capability(into, "removable")
        _add(sized, "media_available", "1" if disk.media_available else "0")
        _add(sized, "media_size", _whole(disk.size_bytes))
        _add(sized, "media_label", disk.media_label)
    else:
        _add(sized, "size", _whole(disk.size_bytes))
    if disk.logical_block_size > 0 and disk.size_bytes >= 0:
        _add(sized, "logical_block_size", str(disk.logical_block_size))
        _add(sized, "num_blocks", str(disk.size_bytes // disk.logical_block_size))
    if disk.hotpluggable:
        _capability(into, "hotpluggable")


def _scsi_generic(into: Element, _view: DeviceView, generic: ScsiGeneric) -> None:
    _add_empty(into, "char", generic.char)


def _drm(into: Element, _view: DeviceView, drm: Drm) -> None:
    _add(into, "type", drm.drm_type)


def _mdev(into: Element, view: DeviceView, mdev: Mdev) -> None:
    SubElement(into, "type", id=mdev.mdev_type)
    _add(into, "uuid", mdev.uuid)
    parent = _address_of(view.physical_function or view.parent)
    _add(into, "parent_addr", str(parent) if parent else view.sysfs_path.rpartition("/")[0].rpartition("/")[2])
    if view.iommu_group >= 0:
        SubElement(into, "iommuGroup", number=str(view.iommu_group))


def _mdev_parent(into: Element, _view: DeviceView, parent: MdevParent) -> None:
    # Of what is nothing else libvirt nests the capability in one of the same name, which its schema does not know.
    _add_mdev_types(into, parent.mdev_types)


def _add_mdev_types(into: Element, types: Sequence[MdevType]) -> None:
    """The schema knows three interfaces only."""
    told = [each for each in types if each.device_api in _MDEV_APIS]
    if not told:
        return
    element = _capability(into, "mdev_types")
    for each in told:
        kind = SubElement(element, "type", id=each.id)
        _add_each(kind, name=each.name, deviceAPI=each.device_api, availableInstances=_whole(each.available_instances))


def _ccw(into: Element, _view: DeviceView, ccw: Ccw) -> None:
    _add_each(
        into, cssid=f"0x{max(0, ccw.cssid):x}", ssid=f"0x{max(0, ccw.ssid):x}", devno=f"0x{max(0, ccw.devno):04x}"
    )
    if matched := _CHANNEL_DEVICE.fullmatch(ccw.channel_device):
        channel = SubElement(into, "channel_dev_addr")
        _add_each(channel, cssid=f"0x{matched[1]}", ssid=f"0x{matched[2]}", devno=f"0x{matched[3]}")
    _add_mdev_types(into, ccw.mdev_types)


def _ap(into: Element, _view: DeviceView, ap: Ap) -> None:
    if ap.adapter >= 0:
        _add(into, "ap-adapter", f"0x{ap.adapter:02x}")
    if ap.domain >= 0:
        _add(into, "ap-domain", f"0x{ap.domain:04x}")


def _vdpa(into: Element, _view: DeviceView, vdpa: Vdpa) -> None:
    _add(into, "chardev", vdpa.chardev)


def _other(into: Element, view: DeviceView, other: Other) -> None:
    _add_each(into, subsystem=view.subsystem, devtype=other.devtype)
    for name, value in sorted(other.values.items()):
        _add_empty(into, "value", value, name=name)


_WRITERS: Final[dict[type, Callable[[Element, DeviceView, Any], None]]] = {
    System: _system,
    Pci: _pci,
    UsbDevice: _usb_device,
    UsbInterface: _usb_interface,
    Net: _net,
    ScsiHost: _scsi_host,
    ScsiTarget: _scsi_target,
    ScsiDevice: _scsi,
    Storage: _storage,
    ScsiGeneric: _scsi_generic,
    Drm: _drm,
    Mdev: _mdev,
    MdevParent: _mdev_parent,
    Ccw: _ccw,
    Ap: _ap,
    Vdpa: _vdpa,
    Other: _other,
}


# --- elements -------------------------------------------------------------------------------------------------------


def _capability(into: Element, kind: str, **attributes: str) -> Element:
    return SubElement(into, "capability", {"type": kind, **attributes})


def _add(into: Element, tag: str, text: str, /, **attributes: str) -> None:
    """An element that is left out if it has nothing to say."""
    if text:
        _add_empty(into, tag, text, **attributes)


def _add_empty(into: Element, tag: str, text: str, /, **attributes: str) -> None:
    SubElement(into, tag, attributes).text = text


def _add_each(into: Element, **texts: str) -> None:
    for name, text in texts.items():
        _add(into, name, text)


def _add_ids(into: Element, view: DeviceView, *, vendor: str = "", product: str = "") -> None:
    """Ids, with names that are looked up or, where there are none, as the device calls itself."""
    _add_empty(into, "product", view.product_name or product, id=f"0x{view.product_id or '0000'}")
    _add_empty(into, "vendor", view.vendor_name or vendor, id=f"0x{view.vendor_id or '0000'}")


def _add_addresses(into: Element, keys: Iterable[str]) -> None:
    """The addresses of PCI functions, in hex; what else shares a group has none."""
    for key in keys:
        address = _address_of(key)
        if address is not None:
            SubElement(
                into,
                "address",
                domain=f"0x{address.domain:04x}",
                bus=f"0x{address.bus:02x}",
                slot=f"0x{address.slot:02x}",
                function=f"0x{address.function:x}",
            )


def _address_of(key: str) -> PciAddress | None:
    """The address of a PCI function's key; none of any other key."""
    bus, _, address = key.partition("/")
    try:
        return parse_pci_address(address) if bus == "pci" else None
    except InvalidInputError:
        return None


def _whole(number: int) -> str:
    """What is not known is 0, where the schema wants a number."""
    return str(max(0, number))


# --- text -----------------------------------------------------------------------------------------------------------


def _lines(element: Element, depth: int) -> Iterator[str]:
    """As libvirt writes it: two blanks a level, single quotes, nothing that XML 1.0 forbids."""
    indent = "  " * depth
    begin = element.tag + "".join(f" {name}='{_text(value)}'" for name, value in element.attrib.items())
    if len(element):
        yield f"{indent}<{begin}>"
        for child in element:
            yield from _lines(child, depth + 1)
        yield f"{indent}</{element.tag}>"
    elif element.text:
        yield f"{indent}<{begin}>{_text(element.text)}</{element.tag}>"
    else:
        yield f"{indent}<{begin}/>"


def _text(text: str) -> str:
    printable = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return escape(printable, _QUOTED)
