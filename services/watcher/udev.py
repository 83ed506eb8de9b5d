"""What udevd knows about a device, through libudev: serials of disks and names from its hardware database."""

import functools
import stat
import threading
from collections.abc import Callable, Mapping
from typing import Final

import pyudev

from leasehold.services.watcher.sysfs import TEXT_BYTES_MAX, THIS_MACHINE, HostRoot, clean, read_table

PROPERTIES: Final = (
    "DEVLINKS",
    "ID_BUS",
    "ID_CDROM_MEDIA",
    "ID_FS_LABEL",
    "ID_MODEL_FROM_DATABASE",
    "ID_SERIAL",
    "ID_SERIAL_SHORT",
    "ID_TYPE",
    "ID_VENDOR_FROM_DATABASE",
    "USEC_INITIALIZED",
)
"""All that is asked for. `USEC_INITIALIZED` is there when udevd has dealt with the device."""
LINKS_BYTES_MAX: Final = 4_096
"""Of all of a device's links in /dev together."""

_SO_ACCEPTCON: Final = 0x10000
"""Of the flags in /proc/net/unix: it listens (`include/uapi/linux/net.h`)."""
_BYTES_MAX: Final = {"DEVLINKS": LINKS_BYTES_MAX}

UdevLookup = Callable[[str], Mapping[str, str]]
"""From a sysfs path (`/sys/devices/…`) to those of `PROPERTIES` that udev has for it, as printable texts."""


def udevd_runs(root: HostRoot) -> bool:
    """Whether udevd serves this machine: somebody listens at its control socket.

    An udevd that has ended leaves the socket's file behind, so the kernel's table of them is asked. (To connect would
    have it complain of a message without a sender.) In an imitated machine a plain file stands for the socket.
    """
    control = root.run / "udev/control"
    try:
        is_socket = stat.S_ISSOCK(control.stat().st_mode)
    except OSError:
        return False
    if not is_socket:
        return True
    lines = (line for line in read_table(root.proc / "net/unix") if line.endswith(f" {control}"))
    # Address, references, protocol, flags, type, state, inode, path: unix(7).
    return any(int(line.split()[3], 16) & _SO_ACCEPTCON for line in lines)


def lookup_for(root: HostRoot) -> UdevLookup:
    """The lookup for a root: udev's database for this machine, nothing for an imitated one."""
    return _this_machine() if root.sys == THIS_MACHINE.sys else _nothing


def _nothing(_path: str) -> Mapping[str, str]:
    return {}


@functools.cache
def _this_machine() -> UdevLookup:
    try:
        return _Database(pyudev.Context()).lookup
    except ImportError:  # pyudev's word for a machine without libudev; the plain files are enough to go on
        return _nothing


class _Database:
    """One libudev context. Making one costs 3 ms (it searches the library), and it is not for two threads at once."""

    def __init__(self, context: pyudev.Context) -> None:
        self._context = context
        self._lock = threading.Lock()

    def lookup(self, path: str) -> Mapping[str, str]:
        with self._lock:
            try:
                found = pyudev.Devices.from_sys_path(self._context, path).properties
                texts = (
                    (name, clean(found.get(name) or "", _BYTES_MAX.get(name, TEXT_BYTES_MAX))) for name in PROPERTIES
                )
                return {name: text for name, text in texts if text}
            except (pyudev.DeviceNotFoundError, OSError, UnicodeDecodeError):
                return {}
