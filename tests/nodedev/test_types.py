"""What devices can do and sit on, in libvirt's words, and what follows from other devices."""

import msgspec
import pytest

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.projections import nodedev
from leasehold.projections.nodedev import BUSES, CAPABILITY_TYPES, bus_of, capability_type, capability_types
from leasehold.projections.views import device_view
from tests.nodedev.machine import BRIDGE, GPU, HBA, NIC, described, everything, state_of, views_of


def known(host: str, key: str) -> DeviceId:
    """A device's id."""
    return device_id(HostName(host), DeviceKey(key))


EXPECTED = {
    "computer": ("", "system"),
    "pci_0000_00_00_0": ("pci", "pci pci-bridge"),
    "pci_0000_03_00_0": ("pci", "pci virt_functions vpd"),
    "pci_0000_03_10_0": ("pci", "pci phys_function"),
    "pci_0000_06_00_0": ("pci", "pci mdev_types"),
    "net_eth0_52_54_00_aa_bb_cc": ("", "net 80203"),
    "net_wlan0_00_13_02_b9_f9_d3": ("", "net 80211"),
    "net_lo_00_00_00_00_00_00": ("", "net"),
    "net_br0_52_54_00_aa_bb_cc": ("", "net 80203 bridge"),
    "net_eth0_5": ("", "net 80203 vlan"),
    "net_bond0": ("", "net 80203 bond"),
    "scsi_host2": ("scsi", "scsi_host fc_host vports"),
    "scsi_target2_0_0": ("scsi", "scsi_target fc_remote_port"),
    "scsi_2_0_0_0": ("scsi", "scsi"),
    "scsi_generic_sg0": ("", "scsi_generic"),
    "block_sda_3600": ("", "storage"),
    "block_sr0": ("", "storage removable hotpluggable"),
    "usb_2_1": ("usb", "usb_device"),
    "usb_2_1_1_0": ("usb", "usb"),
    "tty_ttyUSB0": ("", "other"),
    "drm_renderD128": ("", "drm"),
    "mdev_c2177883_f1bb_47f0_914d_32a22e3a8804_0000_06_00_0": ("mdev", "mdev"),
    "mtty_mtty": ("", "mdev_types"),
    "ccw_0_0_ffff": ("ccw", "ccw"),
    "css_0_0_0052": ("css", "css mdev_types"),
    "ap_card07": ("ap", "ap_card"),
    "ap_07_0038": ("ap", "ap_queue"),
    "ap_matrix": ("ap", "ap_matrix mdev_types"),
    "vdpa_vdpa0": ("vdpa", "vdpa"),
}


def test_each_kind_has_its_types_and_its_bus() -> None:
    """Own types first, then the nested ones; and every bus and type that may be asked for is some device's."""
    views = {view.name: view for view in views_of(everything())}
    for name, (bus, types) in EXPECTED.items():
        assert (views[name].bus, " ".join(views[name].capabilities)) == (bus, types), name
    shown = {each for view in views.values() for each in view.capabilities}
    assert shown <= set(CAPABILITY_TYPES)
    assert set(CAPABILITY_TYPES) - shown == {"cardbus-bridge"}
    assert {view.bus for view in views.values()} - {""} == set(BUSES)


def test_descriptions_from_before_have_their_types() -> None:
    """Without a capability the kind says what a device is."""
    for kind, types in {"block": "storage", "usb_interface": "usb", "net": "net", "usb_device": "usb_device"}.items():
        assert capability_types(described("virtual/net/x", "x", kind)) == (types,)
    part = described("pci/0000:03:10.0", "x", "pci", physical_function=NIC)
    assert capability_types(part) == ("pci", "phys_function")
    assert bus_of(part) == "pci"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("vport_ops", "vports"), ("block", "storage"), ("net", "net"), ("Net", ""), ("", ""), ("usb_interface", "usb")],
)
def test_other_words_for_a_type(word: str, meant: str) -> None:
    """What libvirt's XML calls it and what we call the kind is understood; nothing else is."""
    assert capability_type(word) == meant


def test_what_follows_from_other_devices() -> None:
    """Parents' names, virtual functions (no slices), group mates, members of a bridge, and what a VLAN is on."""
    views = {view.key: view for view in views_of(everything())}
    assert views[NIC].virtual_functions == ("pci/0000:03:10.0", "pci/0000:03:10.2")
    assert views[NIC].group_members == (NIC, "pci/0000:03:10.0", "pci/0000:03:10.2")
    assert views[GPU].virtual_functions == ()
    assert views[BRIDGE].members == ("eth0", "veth0")
    assert views[f"{NIC}/net/0"].master == "br0"
    assert views["virtual/net/ib0"].master == "gone0"
    assert views["virtual/net/eth0.5"].lower == "eth0"
    assert views[f"{HBA}/scsi_host/0"].parent_name == "pci_0000_05_00_0"
    assert views[HBA].parent_name == "computer"
    assert views["computer"].parent_name == ""


def test_what_is_gone_belongs_to_nothing() -> None:
    """A missing virtual function, group mate or member is not shown with what it belonged to; another host's never."""
    gone = frozenset({"h1/pci/0000:03:10.0", f"h1/{NIC}/net/0"})
    state = state_of({"h1": everything(), "h2": everything()}, missing=gone)
    card, bridge = (device_view(state, known("h1", key)) for key in (NIC, BRIDGE))
    assert card.virtual_functions == ("pci/0000:03:10.2",)
    assert card.group_members == (NIC, "pci/0000:03:10.2")
    assert bridge.members == ("veth0",)
    other = device_view(state, known("h2", BRIDGE))
    assert other.members == ("eth0", "veth0")


def test_members_follow_a_change_of_master() -> None:
    """An interface that is taken out of a bridge is shown in it no more, and one that is put in is."""
    state = state_of({"h1": everything()})

    def put(device: DeviceDescription, master: str) -> None:
        assert device.capability is not None
        after = msgspec.structs.replace(device, capability=msgspec.structs.replace(device.capability, master=master))
        place = known("h1", device.key)
        state.put_device(place, msgspec.structs.replace(state.devices[place], description=after))

    devices = {device.name: device for device in everything()}
    put(devices["net_veth0_02_00_00_00_00_01"], "")
    put(devices["net_lo_00_00_00_00_00_00"], BRIDGE)
    bridge = known("h1", BRIDGE)
    assert nodedev.members(state, bridge) == ("eth0", "lo")
