"""Sees what is written to the machine's sysfs by whatever program, of ours or not, in Python or not: fanotify(7).

A process of its own: `witness.py PID FILE`. Files of devices that were written to by a descendant of that process, and
files of PCI and USB devices by whoever has ended meanwhile, are told in that file, as `sitecustomize` does. To each
line that it is sent it answers with a line, when it has read all that had happened until then. It needs root.
"""

import ctypes
import json
import os
import re
import select
import struct
import sys
from collections.abc import Iterator

FAN_MODIFY, FAN_CLOSE_WRITE = 0x2, 0x8
_FAN_NONBLOCK, _FAN_CLOEXEC = 0x2, 0x1
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")
_HARMLESS = re.compile(r"/devices/virtual/.*/uevent")
_OF_HARDWARE = re.compile(r"/devices/pci|/bus/(pci|usb|mdev)/|/module/")
ABOVE_MAX = 64


def watch(folder: str) -> int:
    """A descriptor from which writes to the files of this folder's file system can be read; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.fanotify_init(_FAN_CLOEXEC | _FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    mask = FAN_MODIFY | FAN_CLOSE_WRITE
    if libc.fanotify_mark(descriptor, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, _AT_FDCWD, os.fsencode(folder)):
        raise OSError(ctypes.get_errno(), "fanotify_mark")
    return descriptor


def is_ours(pid: int, root: int, mark: bytes) -> bool | None:
    """Whether a process descends from another, or has this in its environment; None: it has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environment:
            if mark in environment.read():
                return True
    except OSError:
        return None
    for _ in range(ABOVE_MAX):
        if pid == root:
            return True
        if pid <= 1:
            return False
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            return None
    return False


def written(descriptor: int) -> Iterator[tuple[int, str]]:
    """All that is there to be read, as (process, path)."""
    while True:
        try:
            read = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        while read:
            length, _, _, _, _, file, pid = _EVENT.unpack_from(read)
            read = read[length:]
            if file >= 0:
                path = os.readlink(f"/proc/self/fd/{file}")
                os.close(file)
                if pid != os.getpid():
                    yield pid, path


def tell(descriptor: int, root: int, reports: str) -> None:
    """Put down what is ours."""
    for pid, path in dict.fromkeys(written(descriptor)):
        ours = is_ours(pid, root, os.fsencode(reports))
        if _HARMLESS.search(path) or ours is False or (ours is None and not _OF_HARDWARE.search(path)):
            continue
        with open(reports, "a", encoding="utf-8") as file:
            file.write(json.dumps({"test": "", "what": path, "by": "witness", "pid": pid, "program": ""}) + "\n")


def main() -> None:
    """Until nobody asks any more."""
    root, reports = int(sys.argv[1]), sys.argv[2]
    try:
        descriptor = watch("/sys")
    except OSError as error:
        print(f"cannot see: {error}", flush=True)
        return
    print("sees", flush=True)
    while True:
        ready, _, _ = select.select([descriptor, 0], [], [])
        tell(descriptor, root, reports)
        if 0 in ready:
            if not os.read(0, 4096):
                return
            print("seen", flush=True)


if __name__ == "__main__":
    main()
