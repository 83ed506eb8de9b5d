"""`leasehold up` and its children on an imitated machine: `python -m tests.binder.imitated up …`.

IMITATED_MACHINE says where the machine's files are, IMITATED_KERNEL at which socket its kernel is played.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from leasehold.events.identities import HostName
from leasehold.services import processes, up
from leasehold.services.binder.agent import BinderAgent
from leasehold.services.binder.machine import Machine
from leasehold.services.cli.main import main
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.sysfs import HostRoot
from tests.binder.kernel import Remote

MACHINE: Final = "IMITATED_MACHINE"
KERNEL: Final = "IMITATED_KERNEL"
LOOK_MS: Final = 100


def root() -> HostRoot:
    """The machine."""
    folder = Path(os.environ[MACHINE])
    return HostRoot(folder / "sys", folder / "proc", folder / "dev", folder / "run")


async def run_watcher(bus: Any, host: HostName) -> None:
    """As `processes.run_watcher`."""
    monitor = UeventMonitor(root(), interval_ms=LOOK_MS)
    look = partial(take_picture, root())
    await WatcherAgent(bus.connection, bus.subjects, host, monitor=monitor, look=look).run()


async def run_binder(bus: Any, host: HostName) -> None:
    """As `processes.run_binder`."""
    kernel = Remote(Path(os.environ[KERNEL]))
    machine = Machine(root(), write=kernel.write, run=kernel.run, reset_port=kernel.reset_port)
    notes, door = bus.store.with_suffix(".json"), Path(bus.place.door)
    await BinderAgent(bus.connection, bus.subjects, host, notes, door, machine=machine, root=root()).run()


if __name__ == "__main__":
    up.CHILD = __spec__.name  # type: ignore[misc]
    processes._RUNNERS.update(watcher=run_watcher, binder=run_binder)
    if sys.argv[1] in processes.ROLES:
        processes.leave(processes.main())
    main()
