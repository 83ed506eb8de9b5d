"""Where each device sits: its sysfs path, its key, and the known device above it.

Kept: PCI functions, USB devices and interfaces, and the NICs and disks below one of them. Left out: virtual ones
(lo, loop0, dm-0), partitions, and hidden paths of a multipath disk.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import (
    DeviceKey,
    UsbPortPath,
    child_key,
    parse_device_key,
    parse_pci_address,
    pci_key,
    physical_key,
    usb_key,
)
from leasehold.services.watcher.sysfs import (
    HostRoot,
    link_target,
    linked_members,
    list_names,
    read_bytes,
    read_int,
    safe_name,
)

DEVICES_MAX: Final = 65_536
"""Of one host; the design counts with 100."""
CHILD_CHARS_MAX: Final = 64
CONTROLLER_CHARS_MAX: Final = 63

_USB: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,3}(?:\.[0-9]{1,3})*)(?::([0-9]{1,3}\.[0-9]{1,3}))?")
_ROOT_HUB: Final = re.compile(r"usb([0-9]{1,5})")
_NVME_CONTROLLER: Final = re.compile(r"nvme[0-9]+")
_NOT_IN_CHILD: Final = re.compile(r"[^A-Za-z0-9._:!@+-]")
_NOT_IN_CONTROLLER: Final = re.compile(r"[^A-Za-z0-9._:-]")


class Place(msgspec.Struct, frozen=True):
    """One device and where it sits."""

    kind: str
    key: DeviceKey
    path: str
    """Without links, in the root's /sys."""
    sysname: str
    parent: str
    """Key of the nearest known device above; empty: none."""


class _RootHub(msgspec.Struct, frozen=True):
    bus: int
    controller: str
    controller_path: str
    parent_path: str
    generation: int


Places = dict[str, Place]
"""By path."""


def find_places(root: HostRoot) -> Places:
    """Everything that is there now. A device that goes meanwhile is left out or still in: the next look tells."""
    places: Places = {}
    for kind, found in (("pci", _pci(root)), ("usb", _usb(root))):
        for name, path, key in found:
            if len(places) < DEVICES_MAX and _is_key(key):
                places[path] = Place(_usb_kind(name) if kind == "usb" else kind, key, path, name, "")
    for path, place in places.items():
        above = nearest_above(path, places)
        places[path] = msgspec.structs.replace(place, parent=above.key if above else "")
    physical = dict(places)
    for kind, children in (("net", _net(root, physical)), ("block", _block(root, physical))):
        for name, path, key, parent in children:
            if len(places) < DEVICES_MAX and _is_key(key):
                places[path] = Place(kind, key, path, name, parent)
    return places


def nearest_above(path: str, places: Mapping[str, Place]) -> Place | None:
    """The nearest known device above a path (a virtio device between a PCI function and its NIC is skipped)."""
    path = os.path.dirname(path)
    while len(path) > 1:
        if path in places:
            return places[path]
        path = os.path.dirname(path)
    return None


def multipath_controllers(path: str) -> list[str]:
    """The paths of the NVMe controllers behind a disk that the kernel shows once for several of them."""
    folder = os.path.dirname(path)
    if "/virtual/nvme-subsystem/" not in f"{folder}/":
        return []
    targets = (link_target(f"{folder}/{name}") for name in list_names(folder) if _NVME_CONTROLLER.fullmatch(name))
    return [target for target in targets if target]


def _is_key(key: DeviceKey) -> bool:
    try:
        return parse_device_key(key) == key
    except InvalidInputError:
        return False


def _pci(root: HostRoot) -> Iterator[tuple[str, str, DeviceKey]]:
    for name, path in linked_members(root.sys_path("bus/pci/devices")):
        try:
            yield name, path, pci_key(parse_pci_address(name))
        except InvalidInputError:
            continue


def _usb(root: HostRoot) -> Iterator[tuple[str, str, DeviceKey]]:
    members = linked_members(root.sys_path("bus/usb/devices"))
    if not members:
        return
    hubs = dict(_told_apart(_root_hubs(root, members)))
    for name, path in members:
        matched, rooted = _USB.fullmatch(name), _ROOT_HUB.fullmatch(name)
        hub = hubs.get(int(matched[1] if matched else rooted[1] if rooted else -1))
        if hub is None:
            continue
        ports = tuple(map(int, matched[2].split("."))) if matched and matched[2] != "0" else ()
        device = usb_key(hub.controller, UsbPortPath(hub.generation, ports))
        yield (name, path, child_key(device, "interface", matched[3]) if matched and matched[3] else device)


def _usb_kind(name: str) -> str:
    return "usb_interface" if ":" in name else "usb_device"


def _root_hubs(root: HostRoot, members: list[tuple[str, str]]) -> list[_RootHub]:
    pci = {path: name for name, path in linked_members(root.sys_path("bus/pci/devices"))}
    hubs = []
    for name, path in members:
        if rooted := _ROOT_HUB.fullmatch(name):
            parent = os.path.dirname(path)
            above = parent
            while above not in pci and len(above) > 1:
                above = os.path.dirname(above)
            controller_path = above if above in pci else parent
            controller = _controller_name(pci.get(above) or os.path.basename(parent))
            hubs.append(_RootHub(int(rooted[1]), controller, controller_path, parent, _generation(path)))
    return hubs


def _controller_name(text: str) -> str:
    try:
        return str(parse_pci_address(text))
    except InvalidInputError:
        return safe_name(text, _NOT_IN_CONTROLLER, CONTROLLER_CHARS_MAX)


def _generation(path: str) -> int:
    """3 when the root hub runs at 5 Gbit/s or more; one that tells no speed is judged by its USB version."""
    for attribute, least in (("speed", 5_000.0), ("version", 3.0)):
        try:
            return 3 if float(read_bytes(f"{path}/{attribute}")[:16]) >= least else 2
        except ValueError:
            continue
    return 2


def _told_apart(hubs: list[_RootHub]) -> Iterator[tuple[int, _RootHub]]:
    """Root hubs by bus number, no two with the same controller and generation.

    One PCI function may carry several host controllers as platform devices, each with its own root hub. Their names
    go into the key then; two alike below one of them are counted in the order of their bus numbers.
    """
    alike: defaultdict[tuple[str, int], list[_RootHub]] = defaultdict(list)
    for hub in sorted(hubs, key=lambda each: (each.parent_path, each.bus)):
        alike[hub.controller, hub.generation].append(hub)
    for group in alike.values():
        taken: set[str] = set()
        for hub in group:
            name = hub.controller
            if len(group) > 1 and hub.parent_path != hub.controller_path:
                name = _controller_name(f"{name}:{os.path.basename(hub.parent_path)}")
            if name in taken:
                name = _controller_name(f"{name}.{len(taken) + 1}")
            taken.add(name)
            yield hub.bus, msgspec.structs.replace(hub, controller=name)


_Child = tuple[str, str, DeviceKey, str]


def _net(root: HostRoot, places: Places) -> Iterator[_Child]:
    """NICs by `dev_port`; of two with one number the elder (lower ifindex) has it and the other goes by its name.

    So a monitor interface that somebody adds to a Wi-Fi card does not rename the card's own. Below USB the number
    stands behind the interface's, because each function of a USB device counts from 0.
    """
    taken: set[DeviceKey] = set()
    for name, path, above in sorted(
        _below(root, "net", places), key=lambda each: (read_int(f"{each[1]}/ifindex"), each[0])
    ):
        physical = physical_key(above.key)
        number = str(max(0, read_int(f"{path}/dev_port")))
        label = f"{above.key.rpartition('/')[2]}-{number}" if above.kind == "usb_interface" else number
        named = safe_name(name, _NOT_IN_CHILD, CHILD_CHARS_MAX)
        wanted = [child_key(physical, "net", each) for each in (label, named, f"{named[:48]}-named")]
        key = next((each for each in wanted if each not in taken), None)
        if key is not None:
            taken.add(key)
            yield name, path, key, above.key


def _block(root: HostRoot, places: Places) -> Iterator[_Child]:
    for name, path, above in _below(root, "block", places):
        if os.path.exists(f"{path}/partition") or read_int(f"{path}/hidden") == 1:
            continue
        label = safe_name(name.replace("/", "!"), _NOT_IN_CHILD, CHILD_CHARS_MAX)
        yield name, path, child_key(physical_key(above.key), "block", label), above.key


def _below(root: HostRoot, subsystem: str, places: Places) -> Iterator[tuple[str, str, Place]]:
    for name, path in linked_members(root.sys_path(f"class/{subsystem}")):
        controllers = multipath_controllers(path) if subsystem == "block" else []
        found = (nearest_above(each, places) for each in (path, *controllers))
        if above := next((place for place in found if place is not None), None):
            yield name, path, above
