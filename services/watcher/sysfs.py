"""Reading the machine's own files. What cannot be read is empty, -1 or an empty list. Only while this process lacks the
means to read anything (file descriptors, memory) nothing is known, and every reader raises UnavailableError.

Attributes are read as plain files, because libudev keeps an attribute for the life of its device object and a
watcher must see it as it is now. Nothing wakes sleeping hardware: `config` of a PCI function, its links and its product
data would, so they are read only while it is awake, and the first of bridges alone.
"""

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from leasehold.events.errors import UnavailableError

TEXT_BYTES_MAX: Final = 256
"""Of one text that a device tells about itself: a USB string has up to 126 characters of up to three bytes."""
ATTRIBUTE_READ_BYTES_MAX: Final = 4_096
"""One sysfs attribute is at most one page."""
TABLE_READ_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of one table in /proc: some 100,000 mounts."""
ENTRIES_MAX: Final = 65_536
"""Of one directory."""
_MEANS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

T = TypeVar("T")


class HostRoot(msgspec.Struct, frozen=True):
    """Where a machine's files are: this machine's by default, an imitated one's in tests.

    udev's database is asked only for this machine's /sys, because libudev knows no other.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")

    def sys_path(self, below: str) -> str:
        """The path of `below` in this root's /sys."""
        return f"{self.sys}/{below}"

    def shown_path(self, path: str) -> str:
        """A path in this root's /sys as the machine itself would write it."""
        return f"/sys{path.removeprefix(str(self.sys))}"


THIS_MACHINE: Final = HostRoot()


def check_means(error: Exception) -> None:
    """Raise `UnavailableError` if something could not be read for want of file descriptors or memory: a device must not
    seem to be gone, or to be another, because we could not look.
    """
    if isinstance(error, OSError) and error.errno in _MEANS:
        raise UnavailableError(f"this machine cannot be looked at now: {error.strerror}") from error


def read_bytes(path: str) -> bytes:
    """An attribute as it stands; empty when it cannot be read."""
    return _read(path, ATTRIBUTE_READ_BYTES_MAX, once=True)


def _read(path: str, bytes_max: int, *, once: bool) -> bytes:
    """sysfs gives an attribute in one read, /proc a table in many."""
    chunks: list[bytes] = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        check_means(error)
        return b""
    try:
        while bytes_max > 0 and (chunk := os.read(descriptor, min(bytes_max, 1 << 16))):
            chunks.append(chunk)
            bytes_max = 0 if once else bytes_max - len(chunk)
    except OSError as error:
        check_means(error)
        return b""
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def incarnation(path: str) -> int:
    """Which of the devices that were ever at a path is there: the files of each have inode numbers of their own.

    0: none, or one on its way out. Of all that a device tells, its `uevent` file comes first and goes first
    (`device_add`, `device_del` of Linux' `drivers/base/core.c`), so as long as that is there, all of it is.
    """
    try:
        return os.stat(f"{path}/uevent").st_ino
    except (OSError, ValueError) as error:
        check_means(error)
        return 0


def read_text(path: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """An attribute as a printable text of at most `bytes_max` bytes."""
    return clean(read_bytes(path), bytes_max)


def read_table(path: Path) -> list[str]:
    """The lines of a table in /proc; bytes that are no UTF-8 are kept as surrogates, as in file names."""
    return os.fsdecode(_read(str(path), TABLE_READ_BYTES_MAX, once=False)).split("\n")


def read_int(path: str, base: int = 10, absent: int = -1) -> int:
    """An attribute as a number; `absent` when there is none."""
    return to_int(read_bytes(path), base, absent)


def to_int(raw: bytes | str, base: int = 10, absent: int = -1) -> int:
    """A text of at most 32 characters as a number that fits 64 bits; `absent` when it is none."""
    try:
        number = int(raw[:33].strip(), base)
    except ValueError:
        return absent
    return number if len(raw) <= 33 and -(2**63) <= number < 2**63 else absent


def clean(raw: bytes | str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """A text without anything unprintable, without blanks around it, in at most `bytes_max` bytes of UTF-8."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    text = text.strip()[:bytes_max]
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore").strip()


def list_names(directory: str) -> list[str]:
    """The sorted names in a directory; empty when there is none."""
    try:
        return sorted(os.listdir(directory))[:ENTRIES_MAX]
    except (OSError, ValueError) as error:
        check_means(error)
        return []


def link_target(path: str) -> str:
    """Where a symbolic link points to, as an absolute path; empty when it is none.

    The folder that holds the link must be a path without links itself.
    """
    try:
        return os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    except (OSError, ValueError):
        return ""


def link_name(path: str) -> str:
    """The last part of where a link points to, like a driver's name; empty when there is no link."""
    return os.path.basename(link_target(path))


def linked_members(directory: str) -> list[tuple[str, str]]:
    """Name and target of every link in a directory, as in /sys/bus/pci/devices, sorted by name."""
    found = ((name, link_target(f"{directory}/{name}")) for name in list_names(directory))
    return [(name, target) for name, target in found if target]


def nearest_above(path: str, known: Mapping[str, T]) -> T | None:
    """What is known of the nearest folder above a path; `None` when nothing is."""
    while len(path := os.path.dirname(path)) > 1:
        if path in known:
            return known[path]
    return None


def safe_name(text: str, forbidden: re.Pattern[str], chars_max: int) -> str:
    """`text` if it can stand in a key, else a spelling that can, made unique by a hash of the text."""
    spelled = forbidden.sub("-", text)
    if spelled == text and len(text) <= chars_max and text[:1].isalnum():
        return text
    mark = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
    return f"x{spelled}"[: chars_max - len(mark) - 1] + f"-{mark}"
