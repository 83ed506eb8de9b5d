"""Where each device sits: its sysfs path, its key, and the known device above it.

Kept: PCI functions, USB devices and interfaces, all network interfaces, what is on the SCSI, mdev, vDPA, channel and
crypto buses, disks and GPUs, and whatever else has a device node and is not virtual (`other`). Left out: virtual disks
and nodes (loop0, dm-0, /dev/null), partitions, hidden paths of a multipath disk, and legacy serial ports.
"""

import os
import re
from collections import defaultdict
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey, parse_device_key, physical_key
from leasehold.services.watcher import labels
from leasehold.services.watcher.hardware import find_hardware
from leasehold.services.watcher.sysfs import (
    HostRoot,
    incarnation,
    link_name,
    link_target,
    linked_members,
    list_names,
    nearest_above,
    read_int,
)

DEVICES_MAX: Final = 65_536
"""Of one host; the design counts with 100."""

_NVME_CONTROLLER: Final = re.compile(r"nvme[0-9]+")
_SCSI_HOST: Final = re.compile(r"host[0-9]+")
_SCSI_TARGET: Final = re.compile(r"target[0-9]+:[0-9]+:[0-9]+")
_SCSI_UNIT: Final = re.compile(r"[0-9]+(:[0-9]+){3}")
_NUMBERED_VDPA: Final = re.compile(r"vdpa[0-9]+")
_LEGACY_SERIAL: Final = re.compile(r"ttyS[0-9]+")
_SUBCHANNEL_DRIVERS: Final = ("io_subchannel", "vfio_ccw")
_DRM_NODE: Final = re.compile(r"(card|renderD|controlD)[0-9]+")
_BUSES: Final = (
    ("ccw", "ccw", None),
    ("ap", "ap_card", re.compile(r"card[0-9a-f]{2,4}")),
    ("ap", "ap_queue", re.compile(r"[0-9a-f]{2,4}\.[0-9a-f]{4}")),
    ("matrix", "ap_matrix", None),
)
"""Subsystem, kind, and what names are of that kind (`None`: all)."""
_NOT_SHOWN_TWICE: Final = frozenset({"bsg", "usb_endpoint", "vfio-dev", "vhost-vdpa"})
"""Nodes that are another way to a device which is shown: a disk, an interface, a function, a data path."""


_LAST: Final = 2**31
"""Behind all numbers of interfaces."""


class Place(msgspec.Struct, frozen=True):
    """One device and where it sits."""

    kind: str
    key: DeviceKey
    path: str
    """Without links, in the root's /sys."""
    sysname: str
    parent: str
    """Key of the nearest known device above that is not `other`; empty: none."""
    subsystem: str
    hardware: str = ""
    """Path of the PCI function, USB device or interface that it is a function of; empty: of none."""
    incarnation: int = 0
    """Which of those that were ever there it is."""


Places = dict[str, Place]
"""By path; hardware first, then from buses to functions."""


def find_places(root: HostRoot) -> Places:
    """Everything that is there now. A device that goes meanwhile is left out or still in: the next look tells."""
    survey = _Survey(root)
    survey.add_hardware()
    survey.add_net()
    survey.add_scsi()
    survey.add_buses()
    survey.add_functions()
    survey.add_others()
    return survey.places


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


class _Spot(msgspec.Struct, frozen=True):
    """Where a function is."""

    base: DeviceKey
    """What its key begins with: its hardware's, `virtual` or `platform`."""
    prefix: str
    """What its label begins with. Functions of a USB device are told apart by their interface, and those of no hardware
    by the device that firmware or a hypervisor names."""
    hardware: str
    above: str
    """Key of the nearest device above."""

    def label(self, text: str) -> str:
        return f"{self.prefix}-{text}" if self.prefix else text


class _Survey:
    """One search through a machine. Whatever is added finds its parent among what was added before."""

    def __init__(self, root: HostRoot) -> None:
        self._root = root
        self._virtual = f"{root.sys}/devices/virtual/"
        self._platforms = {f"{root.sys}/devices": ""}
        """What `labels.platform_device` has found out, by path."""
        self._hardware: Places = {}
        self._parents: Places = {}
        """All but `other`."""
        self._units: dict[str, str] = {}
        """Labels of SCSI devices by path."""
        self._counts: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._keys: set[DeviceKey] = set()
        self.places: Places = {}

    # --- how a place is found ---

    def _members(self, below: str) -> list[tuple[str, str]]:
        """Name and path of what a folder of links leads to, in the order in which the kernel has found it."""
        return sorted(linked_members(self._root.sys_path(below)), key=lambda each: labels.natural(each[1]))

    def _placed(self, below: str) -> list[tuple[str, str]]:
        """The same without the virtual ones."""
        members = linked_members(self._root.sys_path(below))
        placed = [each for each in members if not each[1].startswith(self._virtual)]
        return sorted(placed, key=lambda each: labels.natural(each[1]))

    def _spot(self, path: str) -> _Spot:
        above = nearest_above(path, self._parents)
        hardware = self._hardware.get(above.hardware) if above else None
        parent = above.key if above else ""
        if hardware is not None:
            prefix = hardware.key.rpartition("/")[2] if hardware.kind == "usb_interface" else ""
            return _Spot(hardware.key, prefix, hardware.path, parent)
        if path.startswith(self._virtual):
            return _Spot(DeviceKey("virtual"), "", "", parent)
        return _Spot(DeviceKey("platform"), labels.platform_device(path, self._platforms), "", parent)

    def _add(self, kind: str, subsystem: str, path: str, spot: _Spot, *wanted: str) -> str:
        """Take the first label that is free; where there is none, count. Gives the label."""
        sysname = os.path.basename(path)
        if not (any(wanted) or spot.hardware or spot.prefix):
            wanted = (sysname,)
        segment = kind if subsystem == "scsi" else subsystem
        keys = (labels.key_in(spot.base, segment, label) for label in wanted if label)
        key = next((each for each in keys if each not in self._keys), None) or self._counted(segment, sysname, spot)
        if len(self.places) < DEVICES_MAX:
            self._keys.add(key)
            place = Place(kind, key, path, sysname, spot.above, subsystem, spot.hardware, incarnation(path))
            self.places[path] = place
            if kind != "other":
                self._parents[path] = place
        return key.rpartition("/")[2]

    def _counted(self, subsystem: str, sysname: str, spot: _Spot) -> DeviceKey:
        base, stem = physical_key(spot.base), spot.label(labels.sort_label(subsystem, sysname)).rstrip("-")
        while True:
            number = self._counts[base, subsystem, stem]
            self._counts[base, subsystem, stem] += 1
            key = labels.key_in(base, subsystem, f"{stem}-{number}" if stem else str(number))
            if key not in self._keys:
                return key

    # --- what there is ---

    def add_hardware(self) -> None:
        """PCI functions, USB devices and interfaces."""
        for kind, name, path, key in find_hardware(self._root):
            if len(self._hardware) < DEVICES_MAX and _is_key(key):
                subsystem = "pci" if kind == "pci" else "usb"
                self._hardware[path] = Place(kind, key, path, name, "", subsystem, path, incarnation(path))
        for path, place in self._hardware.items():
            above = nearest_above(path, self._hardware)
            self._hardware[path] = msgspec.structs.replace(place, parent=above.key if above else "")
        self._parents.update(self._hardware)
        self.places.update(self._hardware)
        self._keys.update(place.key for place in self._hardware.values())

    def add_scsi(self) -> None:
        """SCSI hosts, targets and devices, each labelled by the one above."""
        members = self._members("bus/scsi/devices")
        hosts: dict[str, str] = {}
        targets: dict[str, str] = {}
        for name, path in members:
            if _SCSI_HOST.fullmatch(name):
                spot = self._spot(path)
                hosts[path] = self._add("scsi_host", "scsi", path, spot, labels.host_label(path, spot.prefix))
        for name, path in members:
            if _SCSI_TARGET.fullmatch(name):
                label = labels.target_label(path, nearest_above(path, hosts) or "")
                targets[path] = self._add("scsi_target", "scsi", path, self._spot(path), label)
        for name, path in members:
            if _SCSI_UNIT.fullmatch(name):
                target, host = nearest_above(path, targets), nearest_above(path, hosts)
                label = labels.unit_label(name, target or "", host or "")
                self._units[path] = self._add("scsi", "scsi", path, self._spot(path), label)

    def add_buses(self) -> None:
        """Mediated devices and what offers them, channels, crypto adapters, and virtio data paths."""
        for _, path in self._members("bus/css/devices"):
            if link_name(f"{path}/driver") in _SUBCHANNEL_DRIVERS:
                self._add("css", "css", path, self._spot(path), os.path.basename(path))
        for bus, kind, is_one in _BUSES:
            for name, path in self._members(f"bus/{bus}/devices"):
                if path not in self.places and (is_one is None or is_one.fullmatch(name)):
                    self._add(kind, bus, path, self._spot(path), name)
        for name, path in self._members("bus/vdpa/devices"):
            self._add("vdpa", "vdpa", path, self._spot(path), "" if _NUMBERED_VDPA.fullmatch(name) else name)
        # Those that are nothing else; mediated devices of theirs stand below them.
        for name, path in self._members("class/mdev_bus"):
            if path not in self.places:
                self._add("mdev_types", link_name(f"{path}/subsystem") or "mdev_bus", path, self._spot(path), name)
        for name, path in self._members("bus/mdev/devices"):
            self._add("mdev", "mdev", path, self._spot(path), name)

    def add_functions(self) -> None:
        """Disks, pass-through nodes and GPUs."""
        self._add_block()
        for _, path in self._members("class/scsi_generic"):
            self._add("scsi_generic", "scsi_generic", path, self._spot(path), nearest_above(path, self._units) or "")
        for name, path in self._members("class/drm"):
            if _DRM_NODE.fullmatch(name):
                self._add("drm", "drm", path, self._spot(path))

    def add_net(self) -> None:
        """All network interfaces, before SCSI: a software Fibre Channel host sits below one.

        Those of hardware go by `dev_port`; of two with one number the elder (lower ifindex) has it and the other goes
        by its name, so that a monitor interface which somebody adds to a Wi-Fi card does not rename the card's own.
        """
        placed: list[tuple[int, str, str]] = []
        for name, path in linked_members(self._root.sys_path("class/net")):
            if path.startswith(self._virtual):
                self._add("net", "net", path, self._spot(path), name)
            else:
                # One that the kernel is taking away tells nothing any more: it must not take another's number.
                placed.append((read_int(f"{path}/ifindex", absent=_LAST), name, path))
        for _, name, path in sorted(placed):
            spot = self._spot(path)
            port = str(max(0, read_int(f"{path}/dev_port")))
            named = labels.safe_label(name)
            label = spot.label(port) if spot.hardware or spot.prefix else named
            self._add("net", "net", path, spot, label, named, f"{named[:48]}-named")

    def _add_block(self) -> None:
        for _, path in self._members("class/block"):
            spot = self._disk_spot(path)
            if spot is None or os.path.exists(f"{path}/partition") or read_int(f"{path}/hidden") == 1:
                continue
            label = nearest_above(path, self._units) or ""
            if not label and (namespace := labels.namespace_label(path)):
                label = spot.label(namespace)
            self._add("block", "block", path, spot, label)

    def _disk_spot(self, path: str) -> _Spot | None:
        """Of a disk behind several controllers: at the one with the lowest key, whichever was found first."""
        if not path.startswith(self._virtual):
            return self._spot(path)
        spots = [spot for each in multipath_controllers(path) if (spot := self._spot(each)).hardware]
        return min(spots, key=lambda spot: spot.base, default=None)

    def add_others(self) -> None:
        """What else has a device node and is not virtual."""
        for _, path in self._placed("dev/char"):
            if path in self.places:
                continue
            subsystem, name = link_name(f"{path}/subsystem"), os.path.basename(path)
            spot = self._spot(path)
            if subsystem in _NOT_SHOWN_TWICE or (not spot.hardware and _LEGACY_SERIAL.fullmatch(name)):
                continue
            port = labels.port_label(path) if subsystem == "tty" else ""
            self._add("other", subsystem or "unknown", path, spot, spot.label(port) if port else "")
