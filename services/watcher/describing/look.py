"""What one look at a machine has at hand, and what descriptions of all kinds have in common."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from leasehold.events import limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, node_device_name
from leasehold.services.watcher.linkkinds import LinkKinds
from leasehold.services.watcher.names import DeviceNames
from leasehold.services.watcher.places import Place, Places
from leasehold.services.watcher.sysfs import HostRoot, clean, link_name, read_bytes, read_int
from leasehold.services.watcher.udev import UdevLookup

SHOWN_PATH_BYTES_MAX: Final = 1_024
NODE_NAME_CHARS_MAX: Final = 255
DEVNODE_BYTES_MAX: Final = 128
COUNTING_LINKS: Final = "/dev/disk/by-diskseq/"
"""Another number each time that a disk is found, for the same disk."""


class Look(msgspec.Struct, frozen=True):
    """One look."""

    root: HostRoot
    udev: UdevLookup
    names: DeviceNames
    waits_for_udevd: bool
    places: Places
    interfaces: Mapping[str, DeviceKey]
    """Keys of the network interfaces, by name."""
    links: LinkKinds
    described: dict[DeviceKey, DeviceDescription]
    """What was described before: hardware before what is on it."""
    known: Mapping[DeviceKey, DeviceDescription]
    """What the log has of this host, for what sleeps; empty once this process has looked itself."""

    def properties(self, place: Place) -> Mapping[str, str]:
        """What udev has of a device."""
        return self.udev(self.root.shown_path(place.path))


Describe = Callable[[Look, Place], DeviceDescription | None]
"""`None`: not yet to be shown."""


def described(look: Look, place: Place, *, extra: str = "", name: str = "", **fields: Any) -> DeviceDescription:
    """A description with what all kinds have: key, libvirt's name, subsystem, path, parent, driver.

    Args:
        extra: what libvirt puts behind a name (a MAC, a disk's serial).
        name: the name, where it is made in another way.
    """
    return DeviceDescription(
        key=place.key,
        name=name or node_device_name(place.subsystem, place.sysname, extra)[:NODE_NAME_CHARS_MAX],
        kind=place.kind,
        subsystem=clean(place.subsystem, 64),
        sysfs_path=_shown(look, place),
        parent=place.parent,
        **{"driver": driver_of(place.path), **fields},
    )


def _shown(look: Look, place: Place) -> str:
    """The sysfs path; one too long or not printable is left out rather than shown as the path of nothing."""
    path = look.root.shown_path(place.path)
    return path if path == clean(path, SHOWN_PATH_BYTES_MAX) else ""


def driver_of(path: str) -> str:
    """The driver that a device is bound to; empty: none."""
    return clean(link_name(f"{path}/driver"))


def texts(**found: str) -> dict[str, str]:
    """Those that are not empty, sorted by name."""
    return {name: text for name, text in sorted(found.items()) if text}


def hex_id(path: str) -> str:
    """Four hex digits of an id like `0x8086`; empty when it is none."""
    number = read_int(path, 16)
    return f"{number:04x}" if 0 <= number <= 0xFFFF else ""


def small(number: int) -> int:
    """A number of at most 31 bits; else -1."""
    return number if 0 <= number < 2**31 else -1


def small_int(path: str, base: int = 10) -> int:
    """An attribute as a number of at most 31 bits; else -1."""
    return small(read_int(path, base))


def kernel_says(path: str) -> dict[str, str]:
    """The variables of a device's `uevent` file, like `DEVNAME`, `DEVTYPE`, `MAJOR`."""
    lines = read_bytes(f"{path}/uevent").decode("utf-8", "replace").split("\n")
    return {name: clean(value) for name, sign, value in (line.partition("=") for line in lines) if sign}


def node_of(says: Mapping[str, str], fallback: str = "") -> str:
    """The path of the device node that the kernel names; empty: none that can be shown."""
    name = says.get("DEVNAME", fallback)
    node = f"/dev/{name.removeprefix('/dev/')}" if name else ""
    return node if len(node.encode()) <= DEVNODE_BYTES_MAX else ""


def devnodes(node: str, properties: Mapping[str, str]) -> tuple[str, ...]:
    """The device node, then udev's links to it, sorted; none that cannot be shown, and none that only counts."""
    told = {link for link in properties.get("DEVLINKS", "").split() if not link.startswith(COUNTING_LINKS)}
    links = sorted(link for link in told if len(link.encode()) <= DEVNODE_BYTES_MAX and link.isprintable())
    return tuple([*([node] if node else []), *links][: limits.DEVNODES_PER_DEVICE_MAX])
