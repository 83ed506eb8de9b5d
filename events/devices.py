"""What a device is, as an agent sees it. A description is absolute: it says how the device is now, whole."""

from typing import Any, Final

import msgspec

from leasehold.events.capabilities import Capability, Storage
from leasehold.events.identities import DeviceKey


class DeviceDescription(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One device of a host.

    Numbers are as sysfs gives them; -1 stands for "none" (no IOMMU group, no NUMA node). Empty text: not known or
    not there. Lists are sorted, so that equal devices have equal descriptions.
    """

    key: DeviceKey
    name: str
    """libvirt's node-device name."""
    kind: str
    """`pci`, `usb_device`, `usb_interface`, `net`, `block`, `system`, `scsi_host`, `scsi_target`, `scsi`,
    `scsi_generic`, `drm`, `mdev`, `mdev_types`, `ccw`, `css`, `ap_card`, `ap_queue`, `ap_matrix`, `vdpa`, `other`."""
    subsystem: str = ""
    """The kernel's (`pci`, `net`, `tty`)."""
    sysfs_path: str = ""
    parent: str = ""
    """Key of the nearest device above that is known too; empty: the host itself."""
    driver: str = ""
    pci_class: int = -1
    """24 bits: class, subclass, interface."""
    vendor_id: str = ""
    """Four hex digits."""
    product_id: str = ""
    vendor_name: str = ""
    product_name: str = ""
    serial: str = ""
    iommu_group: int = -1
    numa_node: int = -1
    physical_function: str = ""
    """Of an SR-IOV virtual function, or a mediated device: the key of the function that it is a part of."""
    bridge: bool = False
    """A bridge of any kind (PCI class 06, or header type 1 or 2): it carries others and is never leasable."""
    hub: bool = False
    """A USB hub: what is plugged below cannot be owned apart from it."""
    protections: tuple[str, ...] = ()
    """What the host itself needs it for (`mounted at /`, `carries the default route`): never leasable unless forced."""
    in_use_by: tuple[str, ...] = ()
    """Who is seen using it (a domain, a user process through usbfs or vfio); empty: nobody is seen."""
    attributes: dict[str, str] = {}
    """What else is worth showing."""
    devnodes: tuple[str, ...] = ()
    """Its node in /dev, then the links that udev made for it, sorted."""
    capability: Capability | None = None
    """What it can do. Descriptions from before there were any have it in their attributes, as far as they have it."""


WHYS: Final = ("start", "event", "lost_events", "clock")
SOURCES: Final = ("kernel", "udev")


class Sighting(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How an agent came to know what it tells."""

    why: str
    """`start`: it compared what it sees with the log; `event`: it was told of something, and looked; `lost_events`: it
    looked at everything, since events were lost; `clock`: it looked again without a reason (a claim through usbfs makes
    no event)."""
    source: str = ""
    """Who told of this device: `kernel` or `udev`; empty: nobody did."""
    actions: tuple[str, ...] = ()
    """What was told of the device or of what is above it, in that order (`add`, `bind`, `move`, …, or `link_up`,
    `link_down`, `link` of a network link); the first ones."""
    flaps: int = 0
    """How often it went away, or lost its driver or its link, beside what was told each time."""
    heard_at_ns: int = 0
    """When the first of that was heard, by the host's own clock since 1970."""


def same_thing(before: DeviceDescription, serial: str, after: DeviceDescription) -> bool:
    """Whether both are one thing: kind, vendor and product agree, and the serials, or else the models of disks, where
    both are known.

    `serial`: the last one that the thing before has told, perhaps in an earlier description.
    """
    if (before.kind, before.vendor_id, before.product_id) != (after.kind, after.vendor_id, after.product_id):
        return False
    if serial and after.serial:
        return serial == after.serial
    return _model(before) == _model(after) or not _model(before) or not _model(after)


def _model(device: DeviceDescription) -> tuple[str, str] | None:
    """What a disk says it is: it has no ids."""
    storage = device.capability
    return (storage.vendor, storage.model) if isinstance(storage, Storage) and storage.model else None


def changed_fields(before: DeviceDescription, after: DeviceDescription) -> tuple[str, ...]:
    """The names of the fields that differ, sorted; of a capability that is still of the same type, which of its own
    (`capability.link_state`).
    """
    changed: list[str] = []
    for name in sorted(DeviceDescription.__struct_fields__):
        was, now = getattr(before, name), getattr(after, name)
        if was == now:
            continue
        if name == "capability" and type(was) is type(now):
            fields = sorted(was.__struct_fields__)
            changed += (f"{name}.{field}" for field in fields if getattr(was, field) != getattr(now, field))
        else:
            changed.append(name)
    return tuple(changed)


def field_of(device: DeviceDescription, name: str) -> Any:
    """The value of a field by such a name; `None` if this device has none of it."""
    value: Any = device
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
