"""What a device is, as an agent sees it. A description is absolute: it says how the device is now, whole."""

import msgspec

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
    """`pci`, `usb_device`, `usb_interface`, `net`, `block`."""
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
    """Of an SR-IOV virtual function: the key of its physical function."""
    bridge: bool = False
    """A bridge of any kind (PCI class 06, or header type 1 or 2): it carries others and is never leasable."""
    hub: bool = False
    """A USB hub: what is plugged below cannot be owned apart from it."""
    protections: tuple[str, ...] = ()
    """What the host itself needs it for (`mounted at /`, `carries the default route`): never leasable unless forced."""
    in_use_by: tuple[str, ...] = ()
    """Who is seen using it (a domain, a user process through usbfs or vfio); empty: nobody is seen."""
    attributes: dict[str, str] = {}
    """What else is worth showing: interface, mac, devnode, …"""


def same_thing(before: DeviceDescription, serial: str, after: DeviceDescription) -> bool:
    """Whether both are one thing: kind, vendor and product agree, and so do the serials where both are known.

    `serial`: the last one that the thing before has told, perhaps in an earlier description.
    """
    if (before.kind, before.vendor_id, before.product_id) != (after.kind, after.vendor_id, after.product_id):
        return False
    return serial == after.serial or not serial or not after.serial


def changed_fields(before: DeviceDescription, after: DeviceDescription) -> tuple[str, ...]:
    """The names of the fields that differ, sorted."""
    names = sorted(DeviceDescription.__struct_fields__)
    return tuple(name for name in names if getattr(before, name) != getattr(after, name))
