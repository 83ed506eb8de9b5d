"""What the host itself lives on: mounted disks, swap, the NIC of its default route, its boot display.

Each device that carries such a thing gets the reason, and so does every device above it (`block_vda below it: mounted
at /`), since taking a controller takes its disks.

Disks are found by the device number in mountinfo, so `/dev/root` and UUIDs do not matter, and followed through
partitions, device-mapper and md (`slaves`), loop and zram files, btrfs members and NVMe multipath. Filesystems that
another mount namespace holds are known from /sys/fs. What cannot be known: the disks of a ZFS pool and of a network
filesystem (nothing in /sys leads to them), the layers of an overlay (the filesystems that they lie on are seen by
themselves), and a NIC that carries the default route only through a tunnel.
"""

import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import Pci
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.services.watcher.places import Places, multipath_controllers
from leasehold.services.watcher.sysfs import (
    HostRoot,
    clean,
    link_target,
    linked_members,
    list_names,
    nearest_above,
    read_bytes,
    read_table,
    read_text,
)

REASON_BYTES_MAX: Final = 160
MOUNTS_MAX: Final = 100_000
STACK_MAX: Final = 256
"""How many block devices or network interfaces may lie between a mount or route and its hardware."""
ROUTE_UP: Final = 0x0001
ROUTE_REJECT: Final = 0x0200

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_DELETED: Final = " (deleted)"
_FILESYSTEMS_BY_DISK: Final = ("ext4", "f2fs", "xfs")
"""Those that have a folder in /sys/fs for each mounted disk, in whatever namespace."""

Need = tuple[str, str, tuple[str, ...]]
"""Sysfs path of the device, why it is needed, and what lies between."""


class Mount(msgspec.Struct, frozen=True):
    """A line of mountinfo."""

    device: str
    """`major:minor`; major 0 for filesystems without a disk of their own (btrfs among them)."""
    root: str
    point: str
    filesystem: str
    source: str


def find_essentials(
    root: HostRoot, picture: Mapping[DeviceKey, DeviceDescription], places: Places, needed_interfaces: Mapping[str, str]
) -> dict[DeviceKey, tuple[str, ...]]:
    """The reasons why the host needs its devices, sorted, by key; a device that it does not need is not there.

    Args:
        root: whose files are read.
        picture: the devices that are known.
        places: where they are, by sysfs path.
        needed_interfaces: network interfaces that are needed, with the reason, besides the default route's.
    """
    storage = Storage(root)
    reasons: defaultdict[DeviceKey, set[str]] = defaultdict(set)
    for path, reason, between in (
        *storage.needs(),
        *_network_needs(root, needed_interfaces),
        *_display_needs(picture, places),
    ):
        above = [place.key for each in multipath_controllers(path) if (place := nearest_above(each, places))]
        place = places.get(path)
        if place is None or place.key not in picture:  # a disk that is not shown: what is above it stands for it
            place = nearest_above(path, places)
            between = (*between, os.path.basename(path))
        text = reason + (f" (through {', '.join(between)})" if between else "")
        for start in [place.key] if place else above:
            for key, told in _spread(picture, start, above, text):
                reasons[key].add(clean(told, REASON_BYTES_MAX))
    return {key: _bounded(texts) for key, texts in reasons.items()}


def _spread(
    picture: Mapping[DeviceKey, DeviceDescription], start: DeviceKey, also_above: list[DeviceKey], reason: str
) -> Iterator[tuple[DeviceKey, str]]:
    """The device itself, all above it, and the physical function of a virtual one with all above that."""
    name = picture[start].name[:64] if start in picture else start[:64]
    waiting = deque([(start, ""), *((key, "below it") for key in also_above)])
    seen: set[DeviceKey] = set()
    while waiting:
        key, where = waiting.popleft()
        if key in seen:
            continue
        seen.add(key)
        yield key, f"{name} {where}: {reason}" if where else reason
        if device := picture.get(key):
            for above, how in ((device.parent, "below it"), (device.physical_function, "on its virtual function")):
                if above:
                    waiting.append((DeviceKey(above), how))


def _bounded(texts: set[str]) -> tuple[str, ...]:
    """At most as many reasons as a description may have; the shortest stay (`mounted at /` among them)."""
    if len(texts) <= limits.REASONS_PER_DEVICE_MAX:
        return tuple(sorted(texts))
    kept = sorted(texts, key=lambda text: (len(text), text))[: limits.REASONS_PER_DEVICE_MAX - 1]
    return tuple(sorted([*kept, "and more"]))


def _display_needs(picture: Mapping[DeviceKey, DeviceDescription], places: Places) -> Iterator[Need]:
    for path, place in places.items():
        device = picture.get(place.key)
        if device is not None and isinstance(device.capability, Pci) and device.capability.boot_vga:
            yield path, "boot display", ()


# --- disks ------------------------------------------------------------------------------------------------------


class Storage:
    """Mounts and swap of one look, and the way from them to disks."""

    def __init__(self, root: HostRoot) -> None:
        self._root = root
        self._mounts = read_mounts(root)
        self._blocks = dict(linked_members(root.sys_path("class/block")))

    def needs(self) -> list[Need]:
        """Every disk that the host has mounted or swaps on, with why."""
        needs: list[Need] = []
        held: set[str] = set()
        for mount in _one_per_filesystem(self._mounts):
            paths = self._paths_of(mount)
            held.update(paths)
            needs.extend(self._down(paths, f"mounted at {clean(mount.point)}"))
        for file in self._swaps():
            needs.extend(self._down(self._paths_of_file(file), "swap"))
        for filesystem, path in self._mounted_anywhere():
            if path not in held:
                needs.extend(self._down([path], f"mounted as {filesystem} in another namespace"))
        return needs

    def _down(self, paths: Iterable[str], reason: str) -> Iterator[Need]:
        """Follow block devices down to what they lie on."""
        waiting: deque[tuple[str, tuple[str, ...]]] = deque((path, ()) for path in paths)
        seen: set[str] = set()
        while waiting and len(seen) < STACK_MAX:
            path, between = waiting.popleft()
            if path in seen:
                continue
            seen.add(path)
            below = self._below(path)
            if below:
                waiting.extend((each, (*between, self._called(path))) for each in below)
            else:
                yield path, reason, between

    def _below(self, path: str) -> list[str]:
        if os.path.exists(f"{path}/partition"):
            return [os.path.dirname(path)]
        if slaves := [target for _, target in linked_members(f"{path}/slaves")]:
            return slaves
        for attribute in ("loop/backing_file", "backing_dev"):
            file = os.fsdecode(read_bytes(f"{path}/{attribute}")).rstrip("\n")
            if file.startswith("/"):
                return self._paths_of_file(file)
        return []

    def _called(self, path: str) -> str:
        return read_text(f"{path}/dm/name", 64) or clean(os.path.basename(path), 64)

    def _paths_of(self, mount: Mount) -> list[str]:
        """The block devices of a mount. btrfs and bcachefs have no device number there, only a source."""
        if not mount.device.startswith("0:"):
            target = link_target(self._root.sys_path(f"dev/block/{mount.device}"))
            return [target] if target else []
        if not mount.source.startswith("/dev/"):
            return []
        paths = {path for part in mount.source.split(":") if (path := self._path_of_node(part))}
        if mount.filesystem == "btrfs":  # one whose source cannot be found may be any of them
            paths.update(*(members for members in self._btrfs() if not paths or not members.isdisjoint(paths)))
        return sorted(paths)

    def _btrfs(self) -> Iterator[set[str]]:
        """The members of each mounted btrfs."""
        base = self._root.sys_path("fs/btrfs")
        for uuid in list_names(base):
            yield {target for _, target in linked_members(f"{base}/{uuid}/devices")}

    def _mounted_anywhere(self) -> Iterator[tuple[str, str]]:
        for filesystem in _FILESYSTEMS_BY_DISK:
            for name in list_names(self._root.sys_path(f"fs/{filesystem}")):
                if name in self._blocks:
                    yield filesystem, self._blocks[name]
        for members in self._btrfs():
            yield from (("btrfs", path) for path in sorted(members))

    def _path_of_node(self, node: str) -> str:
        """The block device behind a node like /dev/mapper/root: by its number, else by its name."""
        below = os.path.join(self._root.dev, node.removeprefix("/dev/"))
        try:
            status = os.stat(below)
            if stat.S_ISBLK(status.st_mode):
                number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
                return link_target(self._root.sys_path(f"dev/block/{number}"))
        except (OSError, ValueError):
            pass
        name = os.path.realpath(below).removeprefix(f"{os.path.realpath(self._root.dev)}/").replace("/", "!")
        return self._blocks.get(name, "")

    def _paths_of_file(self, file: str) -> list[str]:
        """The block devices that a file lies on, or the block device itself."""
        if file.startswith("/dev/") and (path := self._path_of_node(file)):
            return [path]
        over = [mount for mount in self._mounts if f"{file}/".startswith(f"{mount.point.rstrip('/')}/")]
        # Of two mounts at one point the later one lies on top.
        return self._paths_of(max(reversed(over), key=lambda mount: len(mount.point))) if over else []

    def _swaps(self) -> Iterator[str]:
        for line in read_table(self._root.proc / "swaps")[1:]:
            if file := _unescaped(line.split(" ", 1)[0].split("\t", 1)[0]).removesuffix(_DELETED):
                yield file


def read_mounts(root: HostRoot) -> list[Mount]:
    """The mounts that this process sees, then those of process 1, which may live in another namespace."""
    tables = [read_table(root.proc / process / "mountinfo") for process in ("self", "1")]
    lines = tables[0] if tables[0] == tables[1] else [*tables[0], *tables[1]]
    return [mount for line in lines[:MOUNTS_MAX] if (mount := _parse_mount(line)) is not None]


def _parse_mount(line: str) -> Mount | None:
    """`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`: proc(5)."""
    before, dash, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(rest) < 2:
        return None
    return Mount(fields[2], _unescaped(fields[3]), _unescaped(fields[4]), rest[0], _unescaped(rest[1]))


def _unescaped(text: str) -> str:
    """Blank, tab, newline and backslash stand as three octal digits in the tables of /proc."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8) & 0x7F), text) if "\\" in text else text


def _one_per_filesystem(mounts: list[Mount]) -> list[Mount]:
    """Of each filesystem its main mount: hundreds of bind mounts of a container host are one reason and no news."""
    best: dict[tuple[str, str], Mount] = {}
    for mount in mounts:
        of = (mount.device, mount.source if mount.device.startswith("0:") else "")
        known = best.get(of)
        if known is None or _mainness(mount) < _mainness(known):
            best[of] = mount
    return list(best.values())


def _mainness(mount: Mount) -> tuple[bool, int, str]:
    return mount.root != "/", len(mount.point), mount.point


# --- networks ---------------------------------------------------------------------------------------------------


def _network_needs(root: HostRoot, needed_interfaces: Mapping[str, str]) -> Iterator[Need]:
    wanted = [(interface, "carries the default route") for interface in sorted(default_route_interfaces(root))]
    for interface, reason in (*wanted, *sorted(needed_interfaces.items())):
        for path, between in interfaces_below(root, interface):
            yield path, reason, between


def default_route_interfaces(root: HostRoot) -> set[str]:
    """The interfaces of the default routes of IPv4 and IPv6 in the main table."""
    found: set[str] = set()
    for line in read_table(root.proc / "net/route")[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "00000000" and fields[7] == "00000000" and _leads_on(fields[3]):
            found.add(fields[0])
    for line in read_table(root.proc / "net/ipv6_route"):
        fields = line.split()
        if len(fields) >= 10 and fields[0] == "0" * 32 and fields[1] == "00" and _leads_on(fields[8]):
            found.add(fields[9])
    return found


def _leads_on(flags: str) -> bool:
    try:
        return int(flags, 16) & (ROUTE_UP | ROUTE_REJECT) == ROUTE_UP
    except ValueError:
        return False


def interfaces_below(root: HostRoot, interface: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Sysfs path of every interface that carries `interface`, itself included, with the interfaces between.

    Bridges, bonds, teams, VLANs and macvlans link to what they lie on (`lower_…`). Virtual interfaces are left out.
    """
    known = dict(linked_members(root.sys_path("class/net")))
    waiting: deque[tuple[str, tuple[str, ...]]] = deque([(interface, ())])
    seen: set[str] = set()
    while waiting and len(seen) < STACK_MAX:
        name, between = waiting.popleft()
        path = known.get(name)
        if path is None or name in seen:
            continue
        seen.add(name)
        if "/devices/virtual/" not in path:
            yield path, between
        lower = [each.removeprefix("lower_") for each in list_names(path) if each.startswith("lower_")]
        waiting.extend((each, (*between, clean(name, 64))) for each in (*lower, *list_names(f"{path}/brif")))
