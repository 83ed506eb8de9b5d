"""Who is seen using a device on this host.

Two things can be seen without asking a hypervisor: an interface of a USB device that a process has claimed through
usbfs (its driver link says `usbfs`; the kernel makes no event for it), and a PCI function on a vfio driver, or a
mediated device, whose group or device node a process holds open. What xen-pciback has given to a guest stands in
xenstore and not in sysfs.

Other users' processes can be looked into by root only: without it nobody is seen behind vfio.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from leasehold.events import limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.services.watcher.places import Places
from leasehold.services.watcher.sysfs import HostRoot, list_names, read_text

OPEN_FILES_MAX: Final = 200_000
"""How many open files of all processes one look goes through: about half a second."""
USBFS: Final = "usbfs"
NOT_LOOKED_THROUGH: Final = "vfio: unknown, more files are open than are looked through"

_VFIO_DRIVER: Final = re.compile(r"vfio-pci|[a-z0-9_]+[-_]vfio[-_]pci")


def find_users(
    root: HostRoot, picture: Mapping[DeviceKey, DeviceDescription], places: Places
) -> dict[DeviceKey, tuple[str, ...]]:
    """The users of each device that has any, sorted, by key: `usbfs`, `vfio: qemu-system-x86 (pid 123)`."""
    users: defaultdict[DeviceKey, set[str]] = defaultdict(set)
    nodes: defaultdict[str, list[DeviceKey]] = defaultdict(list)
    for path, place in places.items():
        device = picture.get(place.key)
        if device is None:
            continue
        if device.kind == "usb_interface" and device.driver == USBFS:
            users[place.key].add(USBFS)
            users[DeviceKey(device.parent)].add(USBFS)
        elif device.kind == "mdev" or (device.kind == "pci" and _VFIO_DRIVER.fullmatch(device.driver)):
            for node in _vfio_nodes(path, device):
                nodes[node].append(place.key)
    if nodes:
        for node, text in _holders(root, nodes):
            for key in nodes[node]:
                users[key].add(text)
    return {key: tuple(sorted(texts)[: limits.REASONS_PER_DEVICE_MAX]) for key, texts in users.items()}


def _vfio_nodes(path: str, device: DeviceDescription) -> Iterator[str]:
    """The nodes through which a function can be used: its group's, and its own where the kernel has one (6.6 on)."""
    if device.iommu_group >= 0:
        yield f"/dev/vfio/{device.iommu_group}"
        yield f"/dev/vfio/noiommu-{device.iommu_group}"
    for name in list_names(f"{path}/vfio-dev"):
        yield f"/dev/vfio/devices/{name}"


def _holders(root: HostRoot, nodes: Mapping[str, list[DeviceKey]]) -> Iterator[tuple[str, str]]:
    left = OPEN_FILES_MAX
    for process in list_names(str(root.proc)):
        if not process.isdecimal():
            continue
        folder = f"{root.proc}/{process}/fd"
        for name in list_names(folder):
            left -= 1
            try:
                node = os.readlink(f"{folder}/{name}")
            except OSError:
                continue
            if node in nodes:
                command = read_text(f"{root.proc}/{process}/comm", 64) or "a process"
                yield node, f"vfio: {command} (pid {process})"
        if left <= 0:
            yield from ((node, NOT_LOOKED_THROUGH) for node in nodes)
            return
