"""Samples of what came with node devices: capabilities, how something was learnt, orders to hosts."""

from typing import Any, Final

import msgspec

from leasehold.events import capabilities, event_types, inputs
from leasehold.events.capabilities import Capability, NewDevice, Order
from leasehold.events.devices import Sighting
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import Input, Observation, Request
from tests.golden.words import DESCRIPTION, HOST, KEY, NS, REF, REQUEST

HBA: Final = DeviceKey("pci/0000:05:00.0/scsi_host/0")
VPORT: Final = DeviceKey("pci/0000:05:00.0/scsi_host/vport-5525400deadbeef0")
MDEV: Final = DeviceKey("pci/0000:06:00.0/mdev/c2177883-f1bb-47f0-914d-32a22e3a8804")
UUID: Final = "c2177883-f1bb-47f0-914d-32a22e3a8804"
WWNN, WWPN, FABRIC = "2001001b32a9da4e", "2101001b32a9da4e", "2001000dec9877c1"
_NEW_WWNN, _NEW_WWPN = "5525400deadbeef0", "5525400deadbeef1"
_MDEV_TYPE: Final = capabilities.MdevType(
    id="i915-GVTg_V5_4", name="GVTg_V5_4", device_api="vfio-pci", available_instances=3
)
_KINDS: Final = (
    capabilities.Bridge(bridge_id="8000.525400123456", stp=True, vlan_filtering=True),
    capabilities.Vlan(id=42, lower="pci/0000:03:00.0/net/0", protocol="802.1Q"),
    capabilities.Bond(mode="active-backup", active="eth0", primary="eth1"),
)
_CAPABILITIES: Final[tuple[Capability, ...]] = (
    capabilities.System(
        product="Z690", vendor="ASUS", version="1.0", serial="M80-1", uuid=UUID, firmware_vendor="AMI",
        firmware_version="2103", firmware_date="09/30/2022",
    ),
    capabilities.Pci(
        subsystem_vendor_id="8086",
        subsystem_product_id="a03c",
        revision=1,
        boot_vga=True,
        bridge_type="pci-bridge",
        virtual_functions_max=8,
        virtual_functions=2,
        is_express=True,
        link_max=capabilities.PciLink(speed_mts=8_000, width=8, port=3),
        link_now=capabilities.PciLink(speed_mts=5_000, width=4, port=3),
        mdev_types=(_MDEV_TYPE,),
        vpd=capabilities.Vpd(name="a card", read_only={"PN": "82576"}, read_write={"V0": "x"}),
    ),
    capabilities.UsbDevice(
        bus=1, device=7, device_class=9, speed_kbps=480_000, usb_version="2.00", device_version="6.00",
        manufacturer="FTDI", product="FT232R", authorized=False,
    ),
    capabilities.UsbInterface(number=1, interface_class=3, subclass=1, protocol=2, description="a keyboard"),
    capabilities.Net(
        interface="eth0", address="02:00:00:00:00:01", medium="80203", link_state="up", link_speed_mbps=1_000,
        features=("rx", "tx"), device_type="bridge", master="virtual/net/br0", kind=_KINDS[0],
    ),
    capabilities.ScsiHost(
        host=8,
        unique_id=5,
        driver="lpfc",
        fc_host=capabilities.FcHost(
            wwnn=WWNN, wwpn=WWPN, fabric_wwn=FABRIC, port_state="Online", port_type="NPort (fabric via point-to-point)"
        ),
        vport_ops=capabilities.VportOps(max_vports=164, vports=5),
        is_vport=True,
    ),
    capabilities.ScsiTarget(target="target8:0:0", remote_port="rport-8:0-0", remote_wwpn="9d73bc45f0e21a86"),
    capabilities.ScsiDevice(host=8, bus=0, target=1, lun=2, scsi_type="disk"),
    capabilities.Storage(
        block="/dev/sr0", bus="ata", drive_type="cdrom", vendor="QEMU", model="QEMU_DVD-ROM", size_bytes=4_096,
        logical_block_size=2_048, removable=True, hotpluggable=True, rotational=True, media_available=False,
        media_label="DEBIAN",
    ),
    capabilities.ScsiGeneric(char="/dev/sg0"),
    capabilities.Drm(drm_type="render"),
    capabilities.Mdev(uuid=UUID, mdev_type="i915-GVTg_V5_4"),
    capabilities.MdevParent(mdev_types=(_MDEV_TYPE,)),
    capabilities.Ccw(
        cssid=254, ssid=1, devno=0x1502, is_subchannel=True, channel_device="0.0.1b2e", mdev_types=(_MDEV_TYPE,)
    ),
    capabilities.Ap(adapter=1, domain=0x2E),
    capabilities.Vdpa(chardev="/dev/vhost-vdpa-0"),
    capabilities.Other(devtype="usb_port", values={"DEVNAME": "/dev/ttyUSB0"}),
)  # fmt: skip
ORDERS: Final[tuple[Order, ...]] = (
    capabilities.CreateVport(parent=HBA, wwnn=WWNN, wwpn=WWPN),
    capabilities.DestroyVport(device=VPORT, parent=HBA, wwnn=WWNN, wwpn=WWPN),
    capabilities.CreateMdev(parent=DeviceKey("pci/0000:06:00.0"), mdev_type="i915-GVTg_V5_4", uuid=UUID),
    capabilities.DestroyMdev(device=MDEV, parent=DeviceKey("pci/0000:06:00.0"), uuid=UUID),
)
_NEW_DEVICES: Final[tuple[NewDevice, ...]] = (
    capabilities.NewVport(
        parent="scsi_host8",
        parent_wwnn=WWNN,
        parent_wwpn=WWPN,
        parent_fabric_wwn=FABRIC,
        wwnn=_NEW_WWNN,
        wwpn=_NEW_WWPN,
    ),
    capabilities.NewMdev(parent="pci_0000_06_00_0", mdev_type="i915-GVTg_V5_4", uuid=UUID),
)
_HOW: Final = Sighting(
    why="event", source="udev", actions=("remove", "add", "bind"), flaps=1, heard_at_ns=NS - 3_000_000
)
_DESCRIPTION: Final = msgspec.structs.replace(
    DESCRIPTION, subsystem="pci", devnodes=("/dev/vfio/17", "/dev/vfio/by-id/nic"), capability=_CAPABILITIES[1]
)
_SEEN: Final[tuple[Observation, ...]] = (inputs.DeviceSeen(_DESCRIPTION, _HOW), inputs.DeviceGone(KEY, _HOW))
NEW_OBSERVATIONS: Final[tuple[Observation, ...]] = (
    inputs.DeviceFlaps(KEY, _HOW),
    inputs.MissedEvents(2),
    inputs.OrderDone(1_280, VPORT),
    inputs.OrderNotDone(1_280, "the HBA says: no more room"),
)
OBSERVED: Final = inputs.Observed(
    host=HOST, agent="watcher", run=NS, counter=5, observations=(*_SEEN, *NEW_OBSERVATIONS)
)
REQUESTS: Final[tuple[Request, ...]] = (
    inputs.CreateDeviceRequest(
        request_id=REQUEST, issued_at_ns=NS, device=_NEW_DEVICES[0], host=HOST, timeout_ms=90_000
    ),
    inputs.DestroyDeviceRequest(request_id=REQUEST, issued_at_ns=NS, device="scsi_host9", host=HOST, timeout_ms=90_000),
    inputs.CreateDeviceRequest(
        request_id=REQUEST, issued_at_ns=NS, device=_NEW_DEVICES[1], host=HOST, timeout_ms=90_000
    ),
)
_CHANGED: Final[tuple[Event, ...]] = (
    event_types.DeviceAppeared(HOST, _DESCRIPTION, _HOW),
    event_types.DeviceChanged(HOST, _DESCRIPTION, ("capability.boot_vga", "driver"), _HOW, {"driver": "e1000e"}),
    event_types.DeviceReplaced(HOST, _DESCRIPTION, _HOW),
    event_types.DeviceMissing(HOST, KEY, _HOW),
    event_types.DeviceReappeared(HOST, _DESCRIPTION, _HOW),
)
NEW_EVENTS: Final[tuple[Event, ...]] = (
    event_types.DeviceFlapped(HOST, KEY, _HOW),
    event_types.EventsMissed(HOST, "watcher", 2),
    event_types.HostOrdered(request=REF, host=HOST, agent="creator", order=ORDERS[0], deadline_ns=NS + 60),
    event_types.OrderCarriedOut(host=HOST, order=1_280, device=VPORT, late=True),
    event_types.OrderFailed(host=HOST, order=1_280, reason="nothing was heard of it in time", timed_out=True),
)
EVENTS: Final = (*_CHANGED, *NEW_EVENTS)
GROWN: Final[dict[Any, tuple[Any, ...]]] = {
    Observation: _SEEN,
    Input: (OBSERVED,),
    Event: _CHANGED,
}
"""Types that were there before, with the fields that came to them."""
PARTS: Final[dict[tuple[str, Any], tuple[Any, ...]]] = {
    ("capability", Capability): _CAPABILITIES,
    ("net", capabilities.Bridge | capabilities.Vlan | capabilities.Bond): _KINDS,
    ("order", Order): ORDERS,
    ("new_device", NewDevice): _NEW_DEVICES,
}
"""Unions that stand within others: a word for each, and a sample of every member."""
