"""How a binder begins on a machine: which stub it takes, where hooks find it."""

import logging
import os
import threading
from pathlib import Path
from typing import Final

from leasehold.events.identities import HostName
from leasehold.events.subjects import Subjects
from leasehold.services.binder.agent import BinderAgent
from leasehold.services.binder.machine import Machine
from leasehold.services.connection import Connection
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot, read_text

_log: Final = logging.getLogger(__name__)

DOOR: Final = "leasehold/binder.sock"
"""Below /run, where hooks look for it."""


def binder_of(
    connection: Connection,
    subjects: Subjects,
    host: HostName,
    store: Path,
    *,
    stub: str = "",
    door: str = "",
    root: HostRoot = THIS_MACHINE,
) -> BinderAgent:
    """The binder of a machine.

    Args:
        connection: it stays its owner's.
        subjects: of the cluster.
        host: the machine's name.
        store: how its own files are called, with another suffix.
        stub: what PCI functions are bound to; empty: what suits the machine.
        door: where hooks are heard; empty: where they look, or beside its files if it may not make that.
        root: the machine.
    """
    if os.geteuid() != 0:
        _log.warning("the binder does not run as root: the kernel will refuse what it is told")
    ends = threading.Event()
    machine = Machine(root, stub=stub or stub_of(root), ends=ends)
    notes = store.with_suffix(".json")
    at = Path(door) if door else door_of(root, store)
    return BinderAgent(connection, subjects, host, notes, at, machine=machine, root=root, ends=ends)


def stub_of(root: HostRoot) -> str:
    """What a machine's hypervisor takes devices from."""
    return "pciback" if read_text(root.sys_path("hypervisor/type")) == "xen" else "vfio-pci"


def door_of(root: HostRoot, store: Path) -> Path:
    """Where hooks look, if that can be made."""
    door = root.run / DOOR
    return door if os.access(root.run, os.W_OK) else store.with_suffix(".sock")
