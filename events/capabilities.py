"""What a device can do, in libvirt's words: one capability for each kind of device, others nested in it.

Each says what no other field of a description says; what follows from other devices (a bridge's members, the virtual
functions of a physical one, the mates in an IOMMU group) is kept with those and put together where it is shown.
Numbers are integers in the unit that their name says; -1 stands for "not known", as do empty texts.

Sources of fields: sysfs and udev as libvirt 9.0 reads them (`src/node_device/node_device_udev.c`), and Linux'
`Documentation/ABI/testing`. Names of types are those of libvirt's `nodedev.rng` where it has them.
"""

import msgspec

from leasehold.events.identities import DeviceKey


class _Capability(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type"):
    pass


class System(_Capability, frozen=True, tag="system"):
    """The machine itself (`computer`), from its DMI tables."""

    product: str = ""
    vendor: str = ""
    version: str = ""
    serial: str = ""
    uuid: str = ""
    firmware_vendor: str = ""
    firmware_version: str = ""
    firmware_date: str = ""


class PciLink(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A PCI Express link. `speed_mts`: megatransfers a second on each lane (2500, 5000, 8000, …)."""

    speed_mts: int = -1
    width: int = -1
    port: int = -1


class MdevType(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """A type of mediated device that a device offers."""

    id: str
    name: str = ""
    device_api: str = ""
    available_instances: int = -1


class Vpd(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Vital product data: fields by their two-letter keyword (`PN`, `SN`, `V0`, …)."""

    name: str = ""
    read_only: dict[str, str] = {}
    read_write: dict[str, str] = {}


class Pci(_Capability, frozen=True, tag="pci"):
    """A PCI function. Class, ids, names, IOMMU group and NUMA node stand in the description."""

    subsystem_vendor_id: str = ""
    subsystem_product_id: str = ""
    revision: int = -1
    boot_vga: bool = False
    bridge_type: str = ""
    """`pci-bridge` or `cardbus-bridge`: it has a bus of its own behind it."""
    virtual_functions_max: int = 0
    virtual_functions: int = 0
    """How many are there now; which ones, they say themselves."""
    is_express: bool = False
    link_max: PciLink | None = None
    link_now: PciLink | None = None
    mdev_types: tuple[MdevType, ...] = ()
    vpd: Vpd | None = None
    resets: tuple[str, ...] | None = None
    """The ways to reset it, in the order in which the kernel tries them and in its words (`flr`, `pm`, `bus`, …);
    `None`: it was not told by an agent that tells this."""
    isolation: str = ""
    """Of a bridge: `acs` (what is behind it reaches nothing but by way of the IOMMU), `no_acs` (it reaches others),
    `conventional` (all behind it looks to the IOMMU like one device), `upstream` (that is for the ports above and below
    to say); empty: not known."""


class UsbDevice(_Capability, frozen=True, tag="usb_device"):
    """A USB device. `bus` and `device` are the kernel's numbers, which change at each replug."""

    bus: int = -1
    device: int = -1
    device_class: int = -1
    speed_kbps: int = -1
    usb_version: str = ""
    device_version: str = ""
    manufacturer: str = ""
    product: str = ""
    authorized: bool = True
    peer: str = ""
    """The key of whatever is plugged into the other half (USB 2, USB 3) of its socket."""


class UsbInterface(_Capability, frozen=True, tag="usb"):
    """One function of a USB device."""

    number: int = -1
    interface_class: int = -1
    subclass: int = -1
    protocol: int = -1
    description: str = ""


class Bridge(_Capability, frozen=True, tag="bridge"):
    """A bridge; its members name it as their master."""

    bridge_id: str = ""
    stp: bool = False
    vlan_filtering: bool = False


class Vlan(_Capability, frozen=True, tag="vlan"):
    """A VLAN on another interface. `lower`: that one's key, or its name if it is none of the devices known."""

    id: int
    lower: str = ""
    protocol: str = ""
    """`802.1Q` or `802.1ad`."""


class Bond(_Capability, frozen=True, tag="bond"):
    """A bond; its members name it as their master. `mode` as in `balance-rr`; `active`: an interface's name."""

    mode: str = ""
    active: str = ""
    primary: str = ""


class Net(_Capability, frozen=True, tag="net"):
    """A network interface."""

    interface: str = ""
    address: str = ""
    medium: str = ""
    """`80203` (Ethernet) or `80211` (Wi-Fi); empty: another."""
    link_state: str = ""
    """As RFC 2863 has it: `up`, `down`, `lowerlayerdown`, `dormant`, `unknown`, …"""
    link_speed_mbps: int = -1
    """Of a link that is up and tells it."""
    features: tuple[str, ...] = ()
    device_type: str = ""
    """`bridge`, `vlan`, `bond`, `veth`, `tun`, … as far as the kernel tells; empty: an ordinary one."""
    master: str = ""
    """Key of the bridge or bond that it belongs to, or its name if it is none of the devices known."""
    kind: Bridge | Vlan | Bond | None = None


class FcHost(_Capability, frozen=True, tag="fc_host"):
    """A Fibre Channel port of this host. World wide names are 16 hex digits, lower case."""

    wwnn: str = ""
    wwpn: str = ""
    fabric_wwn: str = ""
    port_state: str = ""
    port_type: str = ""


class VportOps(_Capability, frozen=True, tag="vport_ops"):
    """It can have virtual HBAs (NPIV)."""

    max_vports: int = -1
    vports: int = -1


class ScsiHost(_Capability, frozen=True, tag="scsi_host"):
    """A SCSI host. `host` is the kernel's number, which changes between boots."""

    host: int = -1
    unique_id: int = -1
    driver: str = ""
    """`proc_name`, like `ahci`."""
    fc_host: FcHost | None = None
    vport_ops: VportOps | None = None
    is_vport: bool = False
    """A virtual HBA, which can be destroyed."""


class ScsiTarget(_Capability, frozen=True, tag="scsi_target"):
    """A SCSI target; over Fibre Channel with its remote port."""

    target: str = ""
    remote_port: str = ""
    remote_wwpn: str = ""


class ScsiDevice(_Capability, frozen=True, tag="scsi"):
    """A SCSI logical unit. `scsi_type`: `disk`, `tape`, `cdrom`, `changer`, as the kernel numbers them."""

    host: int = -1
    bus: int = -1
    target: int = -1
    lun: int = -1
    scsi_type: str = ""


class Storage(_Capability, frozen=True, tag="storage"):
    """A disk, or a drive with removable media. `block`: its device node."""

    block: str = ""
    bus: str = ""
    drive_type: str = ""
    """`disk`, `cdrom`, `floppy`, `sd`, `dasd`."""
    vendor: str = ""
    model: str = ""
    size_bytes: int = -1
    logical_block_size: int = -1
    removable: bool = False
    """Its media can be taken out."""
    hotpluggable: bool = False
    rotational: bool = False
    media_available: bool = True
    media_label: str = ""


class ScsiGeneric(_Capability, frozen=True, tag="scsi_generic"):
    """The pass-through node of a SCSI device."""

    char: str = ""


class Drm(_Capability, frozen=True, tag="drm"):
    """A node of a GPU. `drm_type`: `primary`, `control`, `render`."""

    drm_type: str = ""


class Mdev(_Capability, frozen=True, tag="mdev"):
    """A mediated device: a slice of another, which its description names as physical function."""

    uuid: str = ""
    mdev_type: str = ""


class MdevParent(_Capability, frozen=True, tag="mdev_types"):
    """A device that is none of the other kinds and offers mediated devices (`mtty`, `matrix`)."""

    mdev_types: tuple[MdevType, ...] = ()


class Ccw(_Capability, frozen=True, tag="ccw"):
    """A channel-attached device (s390). Numbers as the address has them; `css` for a subchannel."""

    cssid: int = -1
    ssid: int = -1
    devno: int = -1
    is_subchannel: bool = False
    channel_device: str = ""
    """Of a subchannel: the address of the device on it (`0.0.1b2e`)."""
    mdev_types: tuple[MdevType, ...] = ()


class Ap(_Capability, frozen=True, tag="ap"):
    """A crypto adapter (s390): card, queue (with `domain`), or matrix (both -1)."""

    adapter: int = -1
    domain: int = -1


class Vdpa(_Capability, frozen=True, tag="vdpa"):
    """A virtio data path device. `chardev`: its vhost node, if it has one."""

    chardev: str = ""


class Other(_Capability, frozen=True, tag="other"):
    """What none of these describe: kept with what the kernel says of it. Its subsystem stands in the description."""

    devtype: str = ""
    values: dict[str, str] = {}


Capability = (
    System
    | Pci
    | UsbDevice
    | UsbInterface
    | Net
    | ScsiHost
    | ScsiTarget
    | ScsiDevice
    | Storage
    | ScsiGeneric
    | Drm
    | Mdev
    | MdevParent
    | Ccw
    | Ap
    | Vdpa
    | Other
)


# --- making some ----------------------------------------------------------------------------------------------------


class NewVport(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="vport"):
    """A virtual HBA to be made. The parent is chosen by `parent` (any name of it), by its world wide names, by its
    fabric, or, where none of these is given, it is the first on that host that has room. Names that are not given are
    made up.
    """

    parent: str = ""
    parent_wwnn: str = ""
    parent_wwpn: str = ""
    parent_fabric_wwn: str = ""
    wwnn: str = ""
    wwpn: str = ""


class NewMdev(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="mdev"):
    """A mediated device to be made on `parent` (any name of it). A `uuid` that is not given is made up."""

    parent: str
    mdev_type: str
    uuid: str = ""


class NewVirtualFunctions(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="virtual_functions"
):
    """That the physical function `parent` (any name of it) has `count` virtual functions: 0 takes them away."""

    parent: str
    count: int


NewDevice = NewVport | NewMdev | NewVirtualFunctions


class CreateVport(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="create_vport"
):
    """Make this virtual HBA on the HBA `parent`."""

    parent: DeviceKey
    wwnn: str
    wwpn: str


class DestroyVport(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="destroy_vport"
):
    """Take away the virtual HBA `device` of the HBA `parent`."""

    device: DeviceKey
    parent: DeviceKey
    wwnn: str
    wwpn: str


class CreateMdev(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="create_mdev"
):
    """Make this mediated device on `parent`."""

    parent: DeviceKey
    mdev_type: str
    uuid: str


class DestroyMdev(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="destroy_mdev"
):
    """Take away the mediated device `device` of `parent`."""

    device: DeviceKey
    parent: DeviceKey
    uuid: str


class SetVirtualFunctions(
    msgspec.Struct,
    frozen=True,
    gc=False,
    omit_defaults=True,
    kw_only=True,
    tag_field="type",
    tag="set_virtual_functions",
):
    """Let the physical function `parent` have `count` virtual functions."""

    parent: DeviceKey
    count: int


class DetachDevice(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="detach_device"
):
    """Take this device from its host driver. `driver`: the stub to bind it to (one of `hostdevs.STUBS`); empty: the
    binder's choice, and none for USB.
    """

    device: DeviceKey
    driver: str = ""


class ReattachDevice(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="reattach_device"
):
    """Give this device to its host driver."""

    device: DeviceKey


class ResetDevice(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="reset_device"
):
    """Reset this device."""

    device: DeviceKey


OrderToBinder = DetachDevice | ReattachDevice | ResetDevice
Order = CreateVport | DestroyVport | CreateMdev | DestroyMdev | SetVirtualFunctions | OrderToBinder
"""What an agent of a host is told to do there."""


def keys_of(order: Order) -> tuple[DeviceKey, ...]:
    """What an order is about: what is to be taken away, if anything is; then what it is, or is to be, a part of."""
    if isinstance(order, DestroyVport | DestroyMdev):
        return (order.device, order.parent)
    return (order.device,) if isinstance(order, OrderToBinder) else (order.parent,)
