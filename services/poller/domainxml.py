"""A domain as libvirt's XML tells it: what it is, and the host devices that it has or may ask for.

Source: libvirt's `formatdomain`, and what libvirt 9.0 writes. The live XML of a domain says what is attached to it, the
XML for its next start what is configured.

What hands out no whole device of the host, or none that has a word here, is left out: SCSI devices and HBAs
(`scsi`, `scsi_host`), what `lxc` takes by its node (`mode='capabilities'`), vDPA, macvtap, disks and their partitions.
A `<interface type='network'>` of a pool of virtual functions has its device in the live XML only; before the start not
even libvirt knows which it will be.
"""

from collections.abc import Iterator
from typing import Final
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from leasehold.events.domains import DomainDescription, SeenDomain, Use, parse_device_word
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import PciAddress, domain_key

_XEN_KINDS: Final = {"xen": "pv", "linux": "pv", "xenpvh": "pvh"}
_UNITS: Final = {
    "b": 1, "bytes": 1, "kb": 1000, "k": 1 << 10, "kib": 1 << 10, "mb": 10**6, "m": 1 << 20, "mib": 1 << 20,
    "gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40, "tib": 1 << 40,
}  # fmt: skip


def read_domain(hypervisor: str, there: str, halted: str, now: str, at_next_start: str = "") -> SeenDomain:
    """One domain.

    Args:
        hypervisor: the first part of its key.
        there, halted: its state if `now` shows it to be there, and if not; of `events.domains.STATES`.
        now: its XML (`virDomainGetXMLDesc` without flags): the live one, or that of its next start if it is not there.
        at_next_start: its persistent XML, if it is there and has one.

    Raises:
        InvalidInputError: it is no domain's XML, or names a device in a way that is not known.
    """
    root = _parsed(now)
    domid = _whole(root.get("id", "-1"), "id")
    words = {"attached" if domid >= 0 else "configured": _device_words(root, live=domid >= 0)}
    if at_next_start:
        words["configured"] = _device_words(_parsed(at_next_start), live=False)
    kind = root.get("type", "")
    description = DomainDescription(
        key=domain_key(hypervisor, _text(root, "uuid")),
        name=_text(root, "name"),
        domid=domid,
        state=there if domid >= 0 else halted,
        memory_bytes=_memory_bytes(root, "currentMemory") or _memory_bytes(root, "memory"),
        max_memory_bytes=_memory_bytes(root, "memory"),
        vcpus=_vcpus(root),
        kind=_XEN_KINDS.get(os_kind := root.findtext("os/type", ""), os_kind) if kind == "xen" else kind,
    )
    uses = sorted(Use(word, use) for use, those in words.items() for word in those)
    return SeenDomain(description, tuple(uses))


def _parsed(text: str) -> Element:
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirtd wrote it, and expat bounds what entities may grow to
    except ET.ParseError as error:
        raise InvalidInputError(f"not XML: {error}", field="domain") from None
    if root.tag != "domain":
        raise InvalidInputError(f"the XML is of a {root.tag[:80]!r}, not of a domain", field="domain")
    return root


def _device_words(root: Element, *, live: bool) -> set[str]:
    """The words of all host devices below `devices`."""
    devices = root.find("devices")
    if devices is None:
        return set()
    sources = [
        (each.get("type", ""), each.find("source"))
        for each in devices.iterfind("hostdev[@mode='subsystem']")
        # An optional device that was not there at the start has an entry, and nobody has it.
        if not (live and each.get("missing") == "yes")
    ]
    sources += [("", each.find("source")) for each in devices.iterfind("interface[@type='hostdev']")]
    # The controller of an NVMe disk is taken as a PCI device; it may stand anywhere in a chain of images.
    sources += [
        ("pci", source)
        for disk in devices.iterfind("disk")
        for source in disk.iter("source")
        if source.get("type") == "pci"
    ]
    return {word for bus, source in sources if source is not None for word in _words(bus, source)}


def _words(bus: str, source: Element) -> Iterator[str]:
    address = source.find("address")
    match bus or ("" if address is None else address.get("type", "")):
        case "pci":
            yield parse_device_word(f"pci/{_pci_address(_there(address))}")
        case "usb":
            yield _usb_word(source, address)
        case "mdev":
            yield parse_device_word(f"mdev/{_there(address).get('uuid', '')}")


def _there(address: Element | None) -> Element:
    if address is None:
        raise InvalidInputError("a host device has no address", field="device")
    return address


def _pci_address(address: Element) -> PciAddress:
    parts = ("domain", "bus", "slot", "function")
    return PciAddress(*(_whole(address.get(part, "0"), part) for part in parts))


def _usb_word(source: Element, address: Element | None) -> str:
    """Its address, if it has one; else what it is. A port is what newer libvirts know."""
    if address is not None:
        bus, port = _whole(address.get("bus", "0"), "bus"), address.get("port", "")
        if port:
            return parse_device_word(f"usb-port/{bus}-{port}")
        number = _whole(address.get("device", "0"), "device")
        if number:
            return parse_device_word(f"usb-address/{bus}.{number}")
    vendor, product = (_id(source, part) for part in ("vendor", "product"))
    return parse_device_word(f"usb-id/{vendor:04x}:{product:04x}")


def _id(source: Element, part: str) -> int:
    found = source.find(part)
    if found is None:
        raise InvalidInputError(f"a USB device has neither an address nor a {part}", field="device")
    return _whole(found.get("id", ""), part)


def _text(root: Element, name: str) -> str:
    text = root.findtext(name, "")
    if not text:
        raise InvalidInputError(f"the XML of a domain has no {name}", field=name)
    return text


def _memory_bytes(root: Element, name: str) -> int:
    """0: not said."""
    found = root.find(name)
    if found is None:
        return 0
    unit = found.get("unit", "KiB").lower()
    if unit not in _UNITS:
        raise InvalidInputError(f"{unit[:80]!r} is no unit of memory, like KiB", field=name)
    return _whole(found.text or "", name) * _UNITS[unit]


def _vcpus(root: Element) -> int:
    """Those that it has now, of those that it may have; 0: not said."""
    found = root.find("vcpu")
    return 0 if found is None else _whole(found.get("current", found.text or ""), "vcpu")


def _whole(text: str, name: str) -> int:
    text = text.strip()
    try:
        return int(text, 16 if text[:2] == "0x" else 10)
    except ValueError:
        raise InvalidInputError(f"{text[:80]!r} is no whole number", field=name) from None
