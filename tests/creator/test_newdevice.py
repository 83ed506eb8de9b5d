"""What is to be made, read from libvirt's XML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.capabilities import NewMdev, NewVport
from leasehold.events.errors import InvalidInputError
from leasehold.services.nodedev.newdevice import XML_BYTES_MAX, parse_new_device

# From libvirt's documentation (formatnode, and the wiki's page on NPIV).
VPORT = """<device>
  <parent>scsi_host5</parent>
  <capability type='scsi_host'>
    <capability type='fc_host'>
      <wwnn>2001001b32a9da4e</wwnn>
      <wwpn>2101001b32a9da4e</wwpn>
    </capability>
  </capability>
</device>"""
MDEV = """<device>
  <parent>pci_0000_06_00_0</parent>
  <capability type='mdev'>
    <type id='i915-GVTg_V5_4'/>
    <uuid>C2177883-F1BB-47F0-914D-32A22E3A8804</uuid>
    <iommuGroup number='12'/>
  </capability>
</device>"""
BOMB = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]><device>&b;</device>"
FILE = "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><device/>"


def test_virtual_hbas() -> None:
    """A parent by name, by its own names, by its fabric, or none; names that are not given are left to be made up."""
    both = {"wwnn": "2001001b32a9da4e", "wwpn": "2101001b32a9da4e"}
    assert parse_new_device(VPORT.encode()) == NewVport(parent="scsi_host5", **both)
    for text, expected in (
        ("<parent wwnn='5001a4a93526d0a1' wwpn='5001a4ace3ee047d'/>",
         NewVport(parent_wwnn="5001a4a93526d0a1", parent_wwpn="5001a4ace3ee047d", **both)),
        ("<parent fabric_wwn='2002000573de9a81'/>", NewVport(parent_fabric_wwn="2002000573de9a81", **both)),
        ("", NewVport(**both)),
    ):  # fmt: skip
        assert parse_new_device(VPORT.replace("<parent>scsi_host5</parent>", text).encode()) == expected
    bare = "<device><capability type='scsi_host'><capability type='fc_host'/></capability></device>"
    assert parse_new_device(bare.encode()) == NewVport()


def test_mediated_devices() -> None:
    """Its parent, type and UUID, which is in lower case here; without one, one is made up."""
    expected = NewMdev(
        parent="pci_0000_06_00_0", mdev_type="i915-GVTg_V5_4", uuid="c2177883-f1bb-47f0-914d-32a22e3a8804"
    )
    assert parse_new_device(MDEV.encode()) == expected
    without = "\n".join(line for line in MDEV.splitlines() if "uuid" not in line)
    assert parse_new_device(without.encode()).uuid == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "xml"),
        ("<device>", "xml"),
        ("<domain/>", "xml"),
        ("<device/>", "xml"),
        (VPORT.replace("</device>", "<parent>a</parent></device>"), "xml"),
        ("<device><capability type='pci'/></device>", "xml.capability"),
        ("<device><capability type='scsi_host'/></device>", "xml.capability"),
        (MDEV.replace("<uuid>", "<attr name='assign_adapter' value='5'/><uuid>"), "xml.capability.attr"),
        (BOMB, "xml"),
        (FILE, "xml"),
        ("<device>" + " " * XML_BYTES_MAX + "</device>", "xml"),
    ],
)
def test_what_cannot_be_made(text: str, field: str) -> None:
    """Anything else is refused, with the element that cannot be taken; a document type always."""
    with pytest.raises(InvalidInputError) as raised:
        parse_new_device(text.encode())
    assert raised.value.field == field


@given(st.text() | st.binary())
def test_any_bytes(given_: str | bytes) -> None:
    """Whatever the file holds, it is read or refused."""
    body = given_ if isinstance(given_, bytes) else f"<device>{given_}</device>".encode("utf-8", "surrogatepass")
    with pytest.raises(InvalidInputError):
        parse_new_device(body)
