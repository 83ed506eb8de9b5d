"""Forbids this Python process to write to the files of the machine's real devices, which are those of a sysfs.

Python itself loads this at the start of each process whose PYTHONPATH has this folder (`plugin.py` sees to that), and
`tests/__init__.py` in each program of the tests. It needs nothing but the standard library, of any Python 3.

What is forbidden raises PermissionError before the kernel hears of it. As a program may live with that, it is also told
in the file that the variable `SYSFS_GUARD` names, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

REPORTS = "SYSFS_GUARD"
"""The variable that names the file of reports."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset({"os.truncate", "os.chmod", "os.chown"})
_NAMES = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link"})
"""A name comes or goes; what it leads to does not matter."""
_PAIRS = frozenset({"os.rename", "os.symlink", "os.link"})
_STARTS = frozenset({"subprocess.Popen", "os.exec", "os.posix_spawn"})
_MODULES = frozenset({"modprobe", "insmod", "rmmod", "driverctl"})
_SYSTEM = frozenset({"/sbin", "/usr/sbin", "/bin", "/usr/bin"})
_HARMLESS = re.compile(r"/devices/virtual/[^\0]*/uevent")
"""Told again to all who listen, of a device that is none: nothing else happens."""
_MARK = "sysfs_is_guarded"
_known: dict[int, bool] = {}  # whether the file system with this number is a sysfs


def is_forbidden(path: str | bytes) -> bool:
    """Whether a write to this path would be one to a sysfs, wherever that is mounted and by whatever links it leads.

    An imitated one is a folder like any other.
    """
    real = os.path.realpath(os.fsdecode(path))
    return not _HARMLESS.search(real) and _is_sysfs(real)


def _is_sysfs(real: str) -> bool:
    while True:
        try:
            device = os.stat(real).st_dev
        except OSError:
            above = os.path.dirname(real)
            if above == real:
                return False
            real = above
            continue
        if device not in _known:
            _known[device] = device in _sysfs_devices()
        return _known[device]


def _sysfs_devices() -> set[int]:
    """The numbers of the sysfs that are mounted here: proc_pid_mountinfo(5)."""
    found = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            head, _, tail = line.partition(" - ")
            if tail.startswith("sysfs "):
                major, _, minor = head.split()[2].partition(":")
                found.add(os.makedev(int(major), int(minor)))
    return found


def _loads_modules(program: str | bytes, environment: Mapping[str, str] | None) -> bool:
    """Whether a program is one that loads modules into the running kernel, or takes drivers off devices."""
    name = os.fsdecode(program)
    if os.path.basename(name) not in _MODULES:
        return False
    found = name if "/" in name else shutil.which(name, path=(environment or os.environ).get("PATH"))
    return found is not None and os.path.dirname(found) in _SYSTEM


def _refuse(event: str, what: str) -> NoReturn:
    path = os.environ.get(REPORTS)
    if path:
        told = {"test": os.environ.get("PYTEST_CURRENT_TEST", ""), "what": what, "by": event, "pid": os.getpid()}
        told["program"] = " ".join(getattr(sys, "orig_argv", sys.argv))[:300]
        with open(path, "a", encoding="utf-8") as reports:
            reports.write(json.dumps(told) + "\n")
    raise PermissionError(1, "no test may do this to the machine that it runs on", what)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, _mode, flags = arguments
        if isinstance(flags, int) and flags & _WRITES and isinstance(path, (str, bytes)) and is_forbidden(path):
            _refuse(event, os.fsdecode(path))
    elif event in _CHANGES:
        if isinstance(arguments[0], (str, bytes)) and is_forbidden(arguments[0]):
            _refuse(event, os.fsdecode(arguments[0]))
    elif event in _NAMES:
        name = arguments[1] if event in _PAIRS else arguments[0]
        if isinstance(name, (str, bytes)) and is_forbidden(os.path.dirname(name) or b"."):
            _refuse(event, os.fsdecode(name))
    elif event in _STARTS:
        environment = arguments[-1] if isinstance(arguments[-1], dict) else None
        program = arguments[0] or (arguments[1] or [""])[0]
        if isinstance(program, (str, bytes)) and _loads_modules(program, environment):
            _refuse(event, os.fsdecode(program))


def install() -> None:
    """Once in this process, and for as long as it lives."""
    if not getattr(sys, _MARK, False):
        setattr(sys, _MARK, True)
        sys.addaudithook(_hear)


install()
