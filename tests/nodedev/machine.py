"""A machine that has one of everything, as its watcher would describe it; and views of it."""

from collections.abc import Iterable

import msgspec

from leasehold.events.capabilities import (
    Ap,
    Bond,
    Bridge,
    Capability,
    Ccw,
    Drm,
    FcHost,
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
    VportOps,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, HostName, device_id, node_device_name
from leasehold.events.views import DeviceView
from leasehold.projections.rows import DeviceState, HostState, SourceState
from leasehold.projections.state import State
from leasehold.projections.views import device_view

UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
TYPES = (MdevType(id="i915-GVTg_V5_4", name="GVTg V5 4", device_api="vfio-pci", available_instances=2),)
NIC, HBA, GPU = "pci/0000:03:00.0", "pci/0000:05:00.0", "pci/0000:06:00.0"
STICK = "usb/0000:00:14.0/2-1"
BRIDGE = "virtual/net/br0"
MAC = "52:54:00:aa:bb:cc"
IDS = {"vendor_id": "8086", "product_id": "1521", "vendor_name": "Intel & Sons", "product_name": "I350 <quad>"}


def described(
    key: str, name: str, kind: str, capability: Capability | None = None, **fields: object
) -> DeviceDescription:
    """A device; its sysfs path is made of its key."""
    given: dict[str, object] = {"sysfs_path": f"/sys/devices/{key}", "capability": capability}
    return DeviceDescription(key=DeviceKey(key), name=name, kind=kind, **given | fields)  # type: ignore[arg-type]


def everything() -> list[DeviceDescription]:
    """One of everything, and of what belongs together all of it."""
    return [
        described("computer", "computer", "system", System(product="Box", vendor="Maker", uuid=UUID), sysfs_path=""),
        *functions(),
        *interfaces(),
        *fibre_channel(),
        *on_usb(),
        *graphics(),
        *rare(),
    ]


def functions() -> list[DeviceDescription]:
    """PCI functions: a bridge, below it a network card with two of seven virtual functions, and an HBA."""
    vpd = Vpd(
        name="Dual NIC",
        read_only={"PN": "A-1", "SN": "S/N 7", "EC": "v3", "MN": "M", "V0": "x", "RV": "\u0001", "V1": "no|pipe"},
        read_write={"YA": "tag", "Y0": "asked", "YB": "sys", "VX": "y"},
    )
    card = Pci(
        virtual_functions_max=7,
        virtual_functions=2,
        is_express=True,
        link_max=PciLink(speed_mts=2_500, width=4, port=0),
        link_now=PciLink(width=4),
        vpd=vpd,
    )
    above = {"parent": "pci/0000:00:00.0"}
    placed = {"pci_class": 0x020000, "iommu_group": 15, "numa_node": 0}
    return [
        described("pci/0000:00:00.0", "pci_0000_00_00_0", "pci", Pci(bridge_type="pci-bridge"), pci_class=0x060400),
        described(NIC, "pci_0000_03_00_0", "pci", card, driver="igb", **above, **placed, **IDS),
        *(_virtual_function(number) for number in (0, 2)),
        described(HBA, "pci_0000_05_00_0", "pci", Pci(), driver="lpfc", vendor_id="10df", product_id="f100"),
    ]


def _virtual_function(number: int) -> DeviceDescription:
    return described(
        f"pci/0000:03:10.{number}",
        f"pci_0000_03_10_{number}",
        "pci",
        Pci(),
        parent="pci/0000:00:00.0",
        driver="igbvf" if number else "",
        physical_function=NIC,
        iommu_group=15,
        **IDS,
    )


def interfaces() -> list[DeviceDescription]:
    """Network interfaces: of the card, without hardware, and what is made of others."""
    features = ("rx", "tx", "tx-nocache")
    wired = Net(interface="eth0", address=MAC, medium="80203", link_state="up", link_speed_mbps=1_000)
    veth = Net(interface="veth0", address="02:00:00:00:00:01", medium="80203", link_state="lowerlayerdown")
    return [
        net(msgspec.structs.replace(wired, features=features, master=BRIDGE), NIC),
        net(Net(interface="wlan0", address="00:13:02:b9:f9:d3", medium="80211", link_state="up"), "pci/0000:00:00.0"),
        net(Net(interface="lo", address="00:00:00:00:00:00", link_state="unknown")),
        net(Net(interface="br0", address=MAC, medium="80203", kind=Bridge(stp=True))),
        net(msgspec.structs.replace(veth, device_type="veth", master=BRIDGE)),
        net(Net(interface="eth0.5", medium="80203", kind=Vlan(id=5, lower=f"{NIC}/net/0", protocol="802.1Q"))),
        net(Net(interface="bond0", medium="80203", kind=Bond(mode="active-backup", active="wlan0"))),
        net(Net(interface="ib0", address=":".join(["80", *["00"] * 18, "01"]), master="gone0")),
    ]


def net(capability: Net, parent: str = "") -> DeviceDescription:
    """A network interface, below `parent` or without hardware."""
    key = f"{parent}/net/0" if parent else f"virtual/net/{capability.interface}"
    name = node_device_name("net", capability.interface, capability.address)
    return described(key, name, "net", capability, parent=parent)


def fibre_channel() -> list[DeviceDescription]:
    """An HBA that can have virtual ones, and a disk with sectors of 4 KiB behind it."""
    names = FcHost(wwnn="20000000c9831b4b", wwpn="10000000c9831b4b", fabric_wwn="1000000533f8ba00")
    host = ScsiHost(host=2, unique_id=1, driver="lpfc", vport_ops=VportOps(max_vports=255, vports=1), fc_host=names)
    target = ScsiTarget(target="target2:0:0", remote_port="rport-2:0-0", remote_wwpn="10000000c9831b4c")
    unit = ScsiDevice(host=2, bus=0, target=0, lun=0, scsi_type="disk")
    disk = Storage(
        block="/dev/sda",
        bus="scsi",
        drive_type="disk",
        vendor="DELL",
        model="MD3000",
        size_bytes=8_192_000,
        logical_block_size=4_096,
    )
    of_disk = {"serial": "3600", "devnodes": ("/dev/sda", "/dev/disk/by-id/scsi-3600")}
    at = f"{HBA}/scsi/0"
    return [
        described(f"{HBA}/scsi_host/0", "scsi_host2", "scsi_host", host, parent=HBA),
        described(f"{HBA}/scsi_target/0", "scsi_target2_0_0", "scsi_target", target, parent=f"{HBA}/scsi_host/0"),
        described(at, "scsi_2_0_0_0", "scsi", unit, parent=f"{HBA}/scsi_target/0", driver="sd"),
        described(f"{HBA}/scsi_generic/0", "scsi_generic_sg0", "scsi_generic", ScsiGeneric(char="/dev/sg0"), parent=at),
        described(f"{HBA}/block/0", "block_sda_3600", "block", disk, parent=at, **of_disk),
    ]


def on_usb() -> list[DeviceDescription]:
    """A stick with a drive whose medium can be taken out, and something that there is no word for."""
    ids = {"vendor_id": "0781", "product_id": "5530", "vendor_name": "SanDisk", "driver": "usb"}
    part = UsbInterface(number=0, interface_class=8, subclass=6, protocol=80, description="Mass 'Storage'")
    drive = Storage(
        block="/dev/sr0",
        drive_type="cdrom",
        size_bytes=2_048,
        logical_block_size=2_048,
        removable=True,
        hotpluggable=True,
        media_label="INSTALL",
    )
    below = {"parent": f"{STICK}/interface/1.0"}
    serial = Other(values={"type": "serial"})
    return [
        described(STICK, "usb_2_1", "usb_device", UsbDevice(bus=2, device=4), parent="pci/0000:00:00.0", **ids),
        described(f"{STICK}/interface/1.0", "usb_2_1_1_0", "usb_interface", part, parent=STICK, driver="usb-storage"),
        described(f"{STICK}/block/0", "block_sr0", "block", drive, **below),
        described(f"{STICK}/tty/0", "tty_ttyUSB0", "other", serial, subsystem="tty", **below),
    ]


def graphics() -> list[DeviceDescription]:
    """A graphics card that can be had in slices, and one of these."""
    slice_ = Mdev(uuid=UUID, mdev_type=TYPES[0].id)
    name = node_device_name("mdev", UUID, "0000:06:00.0")
    group = {"iommu_group": 20}
    return [
        described(GPU, "pci_0000_06_00_0", "pci", Pci(mdev_types=TYPES), driver="i915", **group),
        described(f"{GPU}/drm/0", "drm_renderD128", "drm", Drm(drm_type="render"), parent=GPU),
        described(f"{GPU}/mdev/{UUID}", name, "mdev", slice_, parent=GPU, physical_function=GPU, **group),
    ]


def rare() -> list[DeviceDescription]:
    """What other machines have."""
    types = (MdevType(id="vfio_ccw-io", device_api="vfio-ccw", available_instances=1),)
    channel = Ccw(cssid=0, ssid=0, devno=0x52, is_subchannel=True, channel_device="0.0.1b2e", mdev_types=types)
    return [
        described("virtual/mtty/mtty", "mtty_mtty", "mdev_types", MdevParent(mdev_types=TYPES)),
        described("platform/ccw/0", "ccw_0_0_ffff", "ccw", Ccw(cssid=0, ssid=0, devno=0xFFFF), driver="virtio_ccw"),
        described("platform/css/0", "css_0_0_0052", "css", channel, driver="vfio_ccw"),
        described("platform/ap/0", "ap_card07", "ap_card", Ap(adapter=7)),
        described("platform/ap/1", "ap_07_0038", "ap_queue", Ap(adapter=7, domain=0x38)),
        described("virtual/matrix/matrix", "ap_matrix", "ap_matrix", MdevParent(mdev_types=TYPES)),
        described("virtual/vdpa/vdpa0", "vdpa_vdpa0", "vdpa", Vdpa(chardev="/dev/vhost-vdpa-0"), driver="vhost_vdpa"),
    ]


def state_of(hosts: dict[str, Iterable[DeviceDescription]], missing: frozenset[str] = frozenset()) -> State:
    """A state with these devices on these hosts; those of the ids `missing` are not there."""
    state = State()
    for host, devices in hosts.items():
        state.hosts.put(HostName(host), HostState(mode="watched", sources={"watcher": SourceState(run=1)}))
        for device in devices:
            known = device_id(HostName(host), device.key)
            state.put_device(known, DeviceState(host=HostName(host), description=device, missing=str(known) in missing))
    return state


def views_of(devices: Iterable[DeviceDescription], host: str = "h1") -> list[DeviceView]:
    """How these devices of one host are shown."""
    state = state_of({host: devices})
    return [device_view(state, device) for device in sorted(state.devices)]
