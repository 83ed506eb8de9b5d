"""The computer itself, GPU nodes, mediated devices, s390's channels and crypto, virtio data paths, and all others."""

import re
from typing import Final

from leasehold.events.capabilities import Ap, Ccw, Drm, Mdev, MdevParent, Other, System, Vdpa
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER, DeviceKey
from leasehold.services.watcher.describing.look import (
    Look,
    described,
    devnodes,
    kernel_says,
    node_of,
    small,
    texts,
)
from leasehold.services.watcher.describing.pci import mdev_types
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import HostRoot, clean, link_name, list_names, read_text, to_int

VALUES_MAX: Final = 16
DRM_TYPES: Final = ("primary", "control", "render")
"""By the minor number, 64 each: `drm_minor_type` of the kernel."""

_TOLD_ELSEWHERE: Final = frozenset(
    {"MAJOR", "MINOR", "DEVNAME", "DEVTYPE", "DEVMODE", "DEVUID", "DEVGID", "DRIVER", "MODALIAS"}
)
_CCW: Final = re.compile(r"([0-9a-f]{1,2})\.([0-9a-f])\.([0-9a-f]{4})")
_AP: Final = re.compile(r"(?:card)?([0-9a-f]{2,4})(?:\.([0-9a-f]{4}))?")


def describe_system(root: HostRoot) -> DeviceDescription:
    """The computer, from its DMI tables; serial and UUID can be read by root only."""
    folder = root.sys_path("devices/virtual/dmi/id")
    return DeviceDescription(
        key=COMPUTER,
        name=COMPUTER,
        kind="system",
        capability=System(
            product=read_text(f"{folder}/product_name"),
            vendor=read_text(f"{folder}/sys_vendor"),
            version=read_text(f"{folder}/product_version"),
            serial=read_text(f"{folder}/product_serial"),
            uuid=read_text(f"{folder}/product_uuid").lower(),
            firmware_vendor=read_text(f"{folder}/bios_vendor"),
            firmware_version=read_text(f"{folder}/bios_version"),
            firmware_date=read_text(f"{folder}/bios_date"),
        ),
    )


def describe_drm(look: Look, place: Place) -> DeviceDescription:
    """A node of a GPU."""
    says = kernel_says(place.path)
    sort = to_int(read_text(f"{place.path}/dev", 32).rpartition(":")[2]) >> 6
    return described(
        look,
        place,
        devnodes=devnodes(node_of(says), look.properties(place)),
        capability=Drm(drm_type=DRM_TYPES[sort] if 0 <= sort < len(DRM_TYPES) else ""),
    )


def describe_mdev(look: Look, place: Place) -> DeviceDescription:
    """A mediated device; libvirt puts its parent's address behind its name."""
    above = look.described.get(DeviceKey(place.parent))
    extra = above.sysfs_path.rpartition("/")[2] if above else ""
    return described(
        look,
        place,
        extra=extra,
        physical_function=place.parent,
        iommu_group=small(to_int(link_name(f"{place.path}/iommu_group"))),
        capability=Mdev(uuid=clean(place.sysname, 64), mdev_type=clean(link_name(f"{place.path}/mdev_type"))),
    )


def describe_mdev_parent(look: Look, place: Place) -> DeviceDescription:
    """What is nothing else and offers mediated devices; s390's crypto matrix among them."""
    name = "ap_matrix" if place.kind == "ap_matrix" else ""
    return described(look, place, name=name, capability=MdevParent(mdev_types=mdev_types(place.path)))


def describe_ccw(look: Look, place: Place) -> DeviceDescription:
    """A channel-attached device or a subchannel; one that is offline is shown, and says so."""
    matched = _CCW.fullmatch(place.sysname)
    numbers = [int(part, 16) for part in matched.groups()] if matched else [-1, -1, -1]
    is_subchannel = place.kind == "css"
    channel_device = read_text(f"{place.path}/dev_busid", 16) if is_subchannel else ""
    return described(
        look,
        place,
        attributes={} if is_subchannel else texts(online=read_text(f"{place.path}/online", 8)),
        capability=Ccw(
            cssid=numbers[0],
            ssid=numbers[1],
            devno=numbers[2],
            is_subchannel=is_subchannel,
            channel_device=channel_device if _CCW.fullmatch(channel_device) else "",
            mdev_types=mdev_types(place.path) if is_subchannel else (),
        ),
    )


def describe_ap(look: Look, place: Place) -> DeviceDescription:
    """A crypto card or one of its queues."""
    matched = _AP.fullmatch(place.sysname)
    adapter, domain = (int(part, 16) if part else -1 for part in matched.groups()) if matched else (-1, -1)
    return described(look, place, capability=Ap(adapter=adapter, domain=domain))


def describe_vdpa(look: Look, place: Place) -> DeviceDescription:
    """A virtio data path, with the node through which a guest can have it."""
    node = next((name for name in list_names(place.path) if name.startswith("vhost-vdpa")), "")
    chardev = f"/dev/{clean(node, 64)}" if node else ""
    return described(look, place, devnodes=devnodes(chardev, {}), capability=Vdpa(chardev=chardev))


def describe_other(look: Look, place: Place) -> DeviceDescription:
    """What has a device node and is none of the others.

    It has the ids of the hardware that it is a function of, so that another thing in the same place makes others.
    """
    says = kernel_says(place.path)
    values = {clean(name, 64): text for name, text in sorted(says.items()) if name not in _TOLD_ELSEWHERE}
    hardware = look.described.get(look.places[place.hardware].key) if place.hardware in look.places else None
    return described(
        look,
        place,
        vendor_id=hardware.vendor_id if hardware else "",
        product_id=hardware.product_id if hardware else "",
        driver=clean(link_name(f"{place.path}/device/driver")),
        devnodes=devnodes(node_of(says, place.sysname), look.properties(place)),
        capability=Other(devtype=says.get("DEVTYPE", ""), values=dict(list(values.items())[:VALUES_MAX])),
    )
