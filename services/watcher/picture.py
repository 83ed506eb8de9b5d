"""A full look at this machine: its node devices, from the computer itself down to what is plugged into its hardware.

A description says how a device is now and changes only when something happened: no counters, no temperatures, nothing
that the look itself would change. Whatever a device tells about itself, however odd, its description keeps the bounds
that `leasehold.events.codec` checks.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import Capability
from leasehold.events.codec import encode
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER, DeviceKey
from leasehold.services.watcher.describing import disks, net, pci, rest, scsi, usb
from leasehold.services.watcher.describing.look import NODE_NAME_CHARS_MAX, Describe, Look
from leasehold.services.watcher.essentials import find_essentials
from leasehold.services.watcher.linkkinds import LinkKinds, link_kinds
from leasehold.services.watcher.names import DeviceNames, listed_names
from leasehold.services.watcher.places import Place, find_places
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot, incarnation
from leasehold.services.watcher.udev import UdevLookup, lookup_for, udevd_runs
from leasehold.services.watcher.usage import find_users

__all__ = ["THIS_MACHINE", "HostRoot", "take_picture"]

_DESCRIBE: Final[dict[str, Describe]] = {
    "pci": pci.describe_pci,
    "usb_device": usb.describe_usb_device,
    "usb_interface": usb.describe_usb_interface,
    "scsi_host": scsi.describe_scsi_host,
    "scsi_target": scsi.describe_scsi_target,
    "scsi": scsi.describe_scsi,
    "mdev": rest.describe_mdev,
    "mdev_types": rest.describe_mdev_parent,
    "ap_matrix": rest.describe_mdev_parent,
    "ccw": rest.describe_ccw,
    "css": rest.describe_ccw,
    "ap_card": rest.describe_ap,
    "ap_queue": rest.describe_ap,
    "vdpa": rest.describe_vdpa,
    "net": net.describe_net,
    "block": disks.describe_block,
    "scsi_generic": scsi.describe_scsi_generic,
    "drm": rest.describe_drm,
    "other": rest.describe_other,
}
_NAME_MARK_CHARS: Final = 6
_CUT: Final = "cut"
"""The attribute that tells what was left out, since the whole would have been over its bound."""


def take_picture(
    host_root: HostRoot = THIS_MACHINE,
    *,
    udev: UdevLookup | None = None,
    names: DeviceNames | None = None,
    links: LinkKinds | None = None,
    needed_interfaces: Mapping[str, str] | None = None,
    known: Mapping[DeviceKey, DeviceDescription] | None = None,
) -> dict[DeviceKey, DeviceDescription]:
    """Describe all devices of a machine, by key, sorted.

    It reads some hundred small files and blocks while it does (0.1 ms a device): call it in a thread where the event
    loop must go on. A device that goes while it is read, or whose place another takes, is left out with all that is
    below it; one that can be read in part is described in part. It needs neither root nor udevd. Where udevd runs, a
    disk whose serial only udevd can tell is left out until udevd has dealt with it: shown without a serial it could not
    be told from the disk that was there before.

    Args:
        host_root: whose files are read.
        udev: what udev knows about a sysfs path; left out, libudev is asked.
        names: where names of vendors and products are looked up; left out, in this machine's lists.
        links: of what kind the network interfaces are; left out, the kernel is asked.
        needed_interfaces: network interfaces that the host needs for more than its default route, with the reason,
            like `{"eth0": "has the address that reaches the bus"}`.
        known: what the log has of this machine, at the first look of a process: what sleeps and was not asked yet is
            taken to be as it was.

    Raises UnavailableError: this process lacks file descriptors or memory, or the kernel does not answer.
    """
    places = find_places(host_root)
    picture: dict[DeviceKey, DeviceDescription] = {COMPUTER: rest.describe_system(host_root)}
    look = Look(
        root=host_root,
        udev=udev or lookup_for(host_root),
        names=names or listed_names(),
        waits_for_udevd=udevd_runs(host_root),
        places=places,
        interfaces={place.sysname: place.key for place in places.values() if place.kind == "net"},
        links=link_kinds(host_root) if links is None else links,
        described=picture,
        known=known or {},
    )
    for place in sorted(places.values(), key=_depth):
        if place.parent in picture or not place.parent:
            described = _DESCRIBE[place.kind](look, place)
            if described is not None and place.incarnation and incarnation(place.path) == place.incarnation:
                picture[place.key] = described
    protections = find_essentials(host_root, picture, places, needed_interfaces or {})
    users = find_users(host_root, picture, places)
    called = _names(picture.values())
    return {
        key: _fit(
            msgspec.structs.replace(
                picture[key],
                name=called[key],
                protections=protections.get(key, ()),
                in_use_by=users.get(key, ()),
            )
        )
        for key in sorted(picture)
    }


def _depth(place: Place) -> tuple[bool, int]:
    """Hardware before what is on it, and what is above before what is below."""
    return place.hardware != place.path, len(place.path)


def _names(devices: Iterable[DeviceDescription]) -> dict[DeviceKey, str]:
    """Names by key, no two alike: of those that libvirt would give one name (`1-4:1.1` and `1-4.1.1`) the one that is
    nearer to the hardware keeps it, and the others get a mark of their key.
    """
    order = {kind: place for place, kind in enumerate(("system", *_DESCRIBE))}
    names: dict[DeviceKey, str] = {}
    taken: set[str] = set()
    for device in sorted(devices, key=lambda each: (order[each.kind], each.key)):
        name = device.name
        if name in taken:
            mark = hashlib.sha256(device.key.encode()).hexdigest()[:_NAME_MARK_CHARS]
            name = f"{name[: NODE_NAME_CHARS_MAX - _NAME_MARK_CHARS - 1]}_{mark}"
        taken.add(name)
        names[device.key] = name
    return names


def _fit(device: DeviceDescription) -> DeviceDescription:
    """Cut a description that is over the bound of its whole, and say what was cut: attributes go first, then links and
    the last reasons, then what a capability has lists of.
    """
    while len(encode(device)) > limits.DESCRIPTION_BYTES_MAX:
        device = _smaller(device)
    return device


def _smaller(device: DeviceDescription) -> DeviceDescription:
    cut = device.attributes.get(_CUT, "")
    rest_of = {name: text for name, text in device.attributes.items() if name != _CUT}
    if rest_of:
        largest = max(rest_of, key=lambda name: (len(rest_of[name]), name))
        del rest_of[largest]
        return msgspec.structs.replace(device, attributes=_also_cut(rest_of, cut, "attributes"))
    if len(device.devnodes) > 1:
        return msgspec.structs.replace(device, devnodes=device.devnodes[:1], attributes=_also_cut({}, cut, "devnodes"))
    if len(device.protections) + len(device.in_use_by) > 2:
        return msgspec.structs.replace(
            device,
            protections=_half(device.protections),
            in_use_by=_half(device.in_use_by),
            attributes=_also_cut({}, cut, "reasons"),
        )
    if device.capability is not None and (smaller := _without_list(device.capability)):
        name, capability = smaller
        return msgspec.structs.replace(device, capability=capability, attributes=_also_cut({}, cut, name))
    return msgspec.structs.replace(device, sysfs_path="", vendor_name="", product_name="", capability=None)


def _also_cut(attributes: dict[str, str], cut: str, name: str) -> dict[str, str]:
    told = sorted({*filter(None, cut.split(", ")), name})
    return {**attributes, _CUT: ", ".join(told)}


def _without_list(capability: Capability) -> tuple[str, Capability] | None:
    """The name of its largest list or table, and the capability without it; `None` if it has none."""
    sizes = {
        name: len(encode(value))
        for name in capability.__struct_fields__
        if (value := getattr(capability, name)) and (isinstance(value, tuple | dict) or name == "vpd")
    }
    if not sizes:
        return None
    name = max(sizes, key=lambda each: (sizes[each], each))
    empty: object = {"vpd": None, "values": {}}.get(name, ())
    return name, msgspec.structs.replace(capability, **{name: empty})


def _half(reasons: tuple[str, ...]) -> tuple[str, ...]:
    """Never none out of some: one reason is enough to protect a device."""
    return reasons[: (len(reasons) + 1) // 2]
