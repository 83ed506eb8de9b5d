"""Devices as libvirt's XML: valid where its schema has a word for them, told with ours where it has none."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.capabilities import Capability, Net, Pci, ScsiHost, Storage, UsbInterface, Vpd, VportOps
from leasehold.events.devices import DeviceDescription
from leasehold.events.views import DeviceView
from leasehold.services.nodedev.xml import device_xml, devices_xml
from tests.nodedev.machine import GPU, NIC, STICK, described, everything, views_of
from tests.support import nodedev_schema

NO_WORD = {"net_br0_52_54_00_aa_bb_cc", "net_bond0", "net_eth0_5", "tty_ttyUSB0", "mtty_mtty"}
"""What libvirt's schema has no word for."""


def invalid(folder: Path, views: list[DeviceView]) -> set[str]:
    """The names of those whose XML libvirt's schema does not allow."""
    return nodedev_schema.invalid(folder, {view.name: device_xml(view) for view in views})


def xml_of(name: str, devices: list[DeviceDescription] | None = None) -> ET.Element:
    """One device's XML, read again."""
    (view,) = (view for view in views_of(devices or everything()) if view.name == name)
    return ET.fromstring(device_xml(view))


def alone(*devices: DeviceDescription) -> list[DeviceView]:
    """Views of devices that are all there is."""
    return views_of(devices)


# --- valid ----------------------------------------------------------------------------------------------------------


def test_one_of_everything_validates(tmp_path: Path) -> None:
    """All but what the schema has no word for."""
    assert invalid(tmp_path, views_of(everything())) == NO_WORD


def test_what_knows_little_validates(tmp_path: Path) -> None:
    """Devices of which next to nothing could be read: capabilities with nothing in them, or none at all."""
    bare = [_bare(device) for device in everything() if device.name not in NO_WORD]
    assert invalid(tmp_path, alone(*bare)) == set()
    old = [msgspec.structs.replace(device, capability=None) for device in bare if device.kind in _OLD_KINDS]
    assert len(old) > 10
    assert invalid(tmp_path, alone(*old)) == set()


_NOTHING = {"vendor_name": "", "product_name": "", "vendor_id": "", "product_id": "", "iommu_group": -1, "devnodes": ()}
_OLD_KINDS = ("pci", "usb_device", "usb_interface", "net", "block")


def _bare(device: DeviceDescription) -> DeviceDescription:
    """With nothing but what the schema cannot do without, which the watcher always has."""
    names = ("type", "drm_type", "chardev", "adapter", "domain")
    told = msgspec.to_builtins(device.capability)
    capability = msgspec.convert({name: told[name] for name in names if name in told}, type=Capability)
    return msgspec.structs.replace(device, capability=capability, **_NOTHING)


def test_descriptions_from_before_are_told_from_their_attributes(tmp_path: Path) -> None:
    """What an earlier watcher wrote into the log says as much as it then knew, and validates."""
    told = {
        "pci": {"sriov_totalvfs": "7"},
        "usb_device": {"busnum": "2", "devnum": "4"},
        "usb_interface": {"interface_class": "08", "interface_subclass": "06", "interface_protocol": "50"},
        "net": {"interface": "eth0", "mac": "52:54:00:aa:bb:cc", "operstate": "up"},
        "block": {"devnode": "/dev/sr0", "size_bytes": "2048", "logical_block_size": "2048", "removable": "1"},
    }
    keys = {"pci": NIC, "usb_device": STICK, "usb_interface": f"{STICK}/interface/1.3", "net": f"{NIC}/net/0"}
    views = alone(*(described(keys.get(kind, f"{NIC}/block/0"), kind, kind, attributes=told[kind]) for kind in told))
    assert invalid(tmp_path, views) == set()
    xml = {view.kind: ET.fromstring(device_xml(view)) for view in views}
    functions = xml["pci"].find("capability/capability[@type='virt_functions']")
    assert functions is not None and functions.get("maxCount") == "7"
    found = [
        xml["usb_interface"].findtext(f"capability/{name}") for name in ("number", "class", "subclass", "protocol")
    ]
    assert found == ["3", "8", "6", "80"]
    assert xml["block"].findtext("capability/capability[@type='removable']/media_size") == "2048"


_texts = st.text(max_size=20)
_numbers = st.sampled_from((-1, 0, 1, 2**31))


@given(
    st.builds(
        Net,
        interface=_texts,
        address=_texts,
        medium=st.sampled_from(("", "80203", "80211")),
        link_state=_texts | st.just("up"),
        link_speed_mbps=_numbers,
        features=st.lists(_texts | st.sampled_from(("rx", "tx-checksum-ipv4"))).map(tuple),
    )
    | st.builds(Pci, vpd=st.builds(Vpd, name=_texts, read_only=st.dictionaries(_texts | st.just("V0"), _texts)))
    | st.builds(Storage, block=_texts, vendor=_texts, size_bytes=_numbers, logical_block_size=_numbers)
    | st.builds(UsbInterface, number=_numbers, description=_texts)
    | st.builds(ScsiHost, host=_numbers, unique_id=_numbers, vport_ops=st.builds(VportOps, max_vports=_numbers))
)
def test_whatever_devices_say_it_is_xml(capability: Net | Pci | Storage | UsbInterface | ScsiHost) -> None:
    """Well-formed, with the same texts when it is read again, and numbers and words only where the schema has them."""
    kind = str(capability.__struct_config__.tag).replace("storage", "block")
    device = described("virtual/net/x", "a<b>'\"&\x00\ud800", kind, capability, sysfs_path="/sys/\x1b[2J")
    (view,) = alone(device)
    root = ET.fromstring(device_xml(view))
    assert root.findtext("name") == "a<b>'\"&\ufffd\ufffd"
    assert root.findtext("path") == "/sys/\ufffd[2J"
    for feature in root.iter("feature"):
        assert re.fullmatch("[a-zA-Z_-]+", feature.get("name", ""))
    for name in ("size", "number", "unique_id", "max_vports"):
        assert all((each.text or "").isdecimal() for each in root.iter(name))


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_card_is_written_as_libvirt_writes_it() -> None:
    """To the blank, with its functions and its group: what readers of virsh's output are used to."""
    (view,) = (view for view in views_of(everything()) if view.key == NIC)
    assert device_xml(view) == CARD


CARD = """\
<device>
  <name>pci_0000_03_00_0</name>
  <path>/sys/devices/pci/0000:03:00.0</path>
  <parent>pci_0000_00_00_0</parent>
  <driver>
    <name>igb</name>
  </driver>
  <capability type='pci'>
    <class>0x020000</class>
    <domain>0</domain>
    <bus>3</bus>
    <slot>0</slot>
    <function>0</function>
    <product id='0x1521'>I350 &lt;quad&gt;</product>
    <vendor id='0x8086'>Intel &amp; Sons</vendor>
    <capability type='virt_functions' maxCount='7'>
      <address domain='0x0000' bus='0x03' slot='0x10' function='0x0'/>
      <address domain='0x0000' bus='0x03' slot='0x10' function='0x2'/>
    </capability>
    <capability type='vpd'>
      <name>Dual NIC</name>
      <fields access='readonly'>
        <change_level>v3</change_level>
        <manufacture_id>M</manufacture_id>
        <part_number>A-1</part_number>
        <serial_number>S/N 7</serial_number>
        <vendor_field index='0'>x</vendor_field>
      </fields>
      <fields access='readwrite'>
        <asset_tag>tag</asset_tag>
        <vendor_field index='X'>y</vendor_field>
        <system_field index='0'>asked</system_field>
        <system_field index='B'>sys</system_field>
      </fields>
    </capability>
    <iommuGroup number='15'>
      <address domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>
      <address domain='0x0000' bus='0x03' slot='0x10' function='0x0'/>
      <address domain='0x0000' bus='0x03' slot='0x10' function='0x2'/>
    </iommuGroup>
    <numa node='0'/>
    <pci-express>
      <link validity='cap' port='0' speed='2.5' width='4'/>
      <link validity='sta' width='4'/>
    </pci-express>
  </capability>
</device>
"""


def test_sizes_are_of_what_disks_hold() -> None:
    """A disk with sectors of 4 KiB has as many as its size says, where libvirt multiplies by eight too much."""
    disk = xml_of("block_sda_3600").find("capability")
    assert disk is not None
    told = {name: disk.findtext(name) for name in ("size", "logical_block_size", "num_blocks", "serial")}
    assert told == {"size": "8192000", "logical_block_size": "4096", "num_blocks": "2000", "serial": "3600"}
    nodes = [(node.get("type"), node.text) for node in xml_of("block_sda_3600").iter("devnode")]
    assert nodes == [("dev", "/dev/sda"), ("link", "/dev/disk/by-id/scsi-3600")]


def test_drivers_stand_where_libvirt_has_them() -> None:
    """With what sits on a bus; an interface's driver is its card's."""
    assert xml_of("pci_0000_03_00_0").findtext("driver/name") == "igb"
    wired = described(f"{NIC}/net/0", "net_eth0", "net", Net(interface="eth0"), driver="igb")
    assert xml_of("net_eth0", [wired]).find("driver") is None


def test_what_libvirt_has_no_word_for() -> None:
    """Bridges, VLANs and bonds within `net`, with what they are made of; unknown devices with what the kernel says."""
    bridge = xml_of("net_br0_52_54_00_aa_bb_cc").find("capability/capability[@type='bridge']")
    vlan = xml_of("net_eth0_5").find("capability/capability[@type='vlan']")
    bond = xml_of("net_bond0").find("capability/capability[@type='bond']")
    other = xml_of("tty_ttyUSB0").find("capability[@type='other']")
    assert bridge is not None and vlan is not None and bond is not None and other is not None
    assert [each.get("name") for each in bridge.iter("interface")] == ["eth0", "veth0"]
    assert [each.get("name") for each in vlan.iter("interface")] == ["eth0"]
    assert (bridge.findtext("stp"), vlan.findtext("tag"), bond.findtext("mode")) == ("on", "5", "active-backup")
    assert (other.findtext("subsystem"), other.findtext("value[@name='type']")) == ("tty", "serial")


def test_slices_and_their_parents() -> None:
    """A mediated device names its parent's address; what offers them says which, and how many are left."""
    mdev = xml_of("mdev_c2177883_f1bb_47f0_914d_32a22e3a8804_0000_06_00_0").find("capability")
    offered = xml_of("pci_0000_06_00_0").find("capability/capability[@type='mdev_types']/type")
    assert mdev is not None and offered is not None
    assert (mdev.findtext("parent_addr"), mdev.findtext("uuid")) == (GPU.removeprefix("pci/"), mdev.findtext("uuid"))
    assert (offered.get("id"), offered.findtext("availableInstances")) == ("i915-GVTg_V5_4", "2")


def test_hbas_have_their_names() -> None:
    """World wide names and room for virtual HBAs."""
    host = xml_of("scsi_host2").find("capability")
    assert host is not None
    assert host.findtext("capability[@type='fc_host']/wwpn") == "10000000c9831b4b"
    assert host.findtext("capability[@type='vport_ops']/max_vports") == "255"
    assert xml_of("scsi_host2").findtext("parent") == "pci_0000_05_00_0"


def test_many_devices_are_one_document() -> None:
    """Hosts with their devices, each as it is alone."""
    views = views_of(everything(), "h1") + views_of(everything(), "h2")
    root = ET.fromstring("\n".join(devices_xml(views)))
    assert [host.get("name") for host in root] == ["h1", "h2"]
    for host in root:
        assert [device.findtext("name") for device in host] == [view.name for view in views[: len(views) // 2]]
    first = ET.fromstring(device_xml(views[0]))
    assert [each.tag for each in root[0][0].iter()] == [each.tag for each in first.iter()]
    assert "".join(devices_xml([])) == "<devices></devices>"
