"""What is to be made, from the XML that `virsh nodedev-create` takes: a virtual HBA or a mediated device.

    <device><parent>scsi_host5</parent><capability type='scsi_host'><capability type='fc_host'>
      <wwnn>2001001b32a9da4e</wwnn><wwpn>2101001b32a9da4e</wwpn></capability></capability></device>
    <device><parent>pci_0000_06_00_0</parent><capability type='mdev'><type id='i915-GVTg_V5_4'/></capability></device>

What a host tells of a device that is there (its number, its IOMMU group) is passed over, as libvirt does.
"""

from typing import Final
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from leasehold.events.capabilities import NewDevice, NewMdev, NewVport
from leasehold.events.errors import InvalidInputError

XML_BYTES_MAX: Final = 64 * 1024


class _Builder(TreeBuilder):
    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        """Refuse what could grow without bound, or read files: a device has no need of a document type."""
        raise InvalidInputError("a document type is not taken", field="xml")


def parse_new_device(xml: bytes) -> NewDevice:
    """Read libvirt's XML of a device to be made.

    Raises:
        InvalidInputError: it is none, or asks for what cannot be made; the text says which element.
    """
    if len(xml) > XML_BYTES_MAX:
        raise InvalidInputError(f"{len(xml)} bytes; at most {XML_BYTES_MAX}", field="xml")
    parser = XMLParser(target=_Builder())  # noqa: S314 - what is dangerous in XML comes with a document type
    try:
        parser.feed(xml)
        device: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise InvalidInputError(f"not XML ({error})", field="xml") from error
    if device.tag != "device":
        raise InvalidInputError(f"<{device.tag[:40]}> is no <device>", field="xml")
    parents, capabilities = device.findall("parent"), device.findall("capability")
    if len(parents) > 1 or len(capabilities) != 1:
        raise InvalidInputError("a device has one <capability>, and one <parent> at most", field="xml")
    parent = parents[0] if parents else Element("parent")
    kind = capabilities[0].get("type", "")
    match kind:
        case "scsi_host":
            return _new_vport(parent, capabilities[0])
        case "mdev":
            return _new_mdev(parent, capabilities[0])
    raise InvalidInputError(
        f"a device of type {kind[:40]!r} cannot be made; scsi_host (with fc_host) and mdev can", field="xml.capability"
    )


def _new_vport(parent: Element, capability: Element) -> NewVport:
    ports = [each for each in capability.findall("capability") if each.get("type") == "fc_host"]
    if len(ports) != 1:
        raise InvalidInputError("a virtual HBA has one <capability type='fc_host'>", field="xml.capability")
    named = {f"parent_{name}": (parent.get(name) or "").strip() for name in ("wwnn", "wwpn", "fabric_wwn")}
    return NewVport(parent=_text(parent), wwnn=_text(ports[0].find("wwnn")), wwpn=_text(ports[0].find("wwpn")), **named)


def _new_mdev(parent: Element, capability: Element) -> NewMdev:
    if capability.find("attr") is not None:
        raise InvalidInputError("attributes of mediated devices are not set here", field="xml.capability.attr")
    kind = capability.find("type")
    return NewMdev(
        parent=_text(parent),
        mdev_type=(kind.get("id") or "").strip() if kind is not None else "",
        uuid=_text(capability.find("uuid")).lower(),
    )


def _text(element: Element | None) -> str:
    return (element.text or "").strip() if element is not None else ""
