"""A binder of an imitated machine in a process of its own, which kills itself where it is told to.

`python -m tests.binder.running DATA MACHINE HOST DOOR WIRE [WHEN]`: `write-N` before, `wrote-N` after its N-th word to
the kernel.
"""

import asyncio
import itertools
import os
import signal
import sys
from pathlib import Path

from leasehold.events.identities import HostName
from leasehold.events.subjects import Subjects
from leasehold.services import home
from leasehold.services.binder.agent import BinderAgent
from leasehold.services.binder.machine import Machine
from leasehold.services.connection import connect, disconnect
from leasehold.services.credentials import own_credential
from leasehold.services.watcher.sysfs import HostRoot
from tests.binder.kernel import Remote


class Deadly:
    """A kernel of another process, and what is written to it before this process dies."""

    def __init__(self, remote: Remote, when: str) -> None:
        self._remote = remote
        self._dies, _, number = when.partition("-")
        self._number = int(number or 1)
        self._words = itertools.count(1)

    def write(self, path: str, text: str) -> None:
        """As `Kernel.write`."""
        # Several threads write.
        is_last = next(self._words) == self._number
        if self._dies == "write" and is_last:
            die()
        self._remote.write(path, text)
        if self._dies == "wrote" and is_last:
            die()


def die() -> None:
    """As if somebody had killed us."""
    os.kill(os.getpid(), signal.SIGKILL)


async def run(data: Path, root: HostRoot, host: str, door: Path, wire: Path, when: str) -> None:
    """Run until told to end."""
    info = home.read_connection(data)
    connection = await connect(info.urls, credential=own_credential(info, "agent"), name="binder")
    remote = Remote(wire)
    machine = Machine(root, write=Deadly(remote, when).write, run=remote.run, reset_port=remote.reset_port)
    subjects = Subjects(info.cluster)
    binder = BinderAgent(connection, subjects, HostName(host), data / "binder.json", door, machine=machine, root=root)
    running = asyncio.ensure_future(binder.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.wait({running})
    await disconnect(connection)


if __name__ == "__main__":
    data, machine, host, door, wire = sys.argv[1:6]
    folder = Path(machine)
    root = HostRoot(folder / "sys", folder / "proc", folder / "dev", folder / "run")
    asyncio.run(run(Path(data), root, host, Path(door), Path(wire), "".join(sys.argv[6:])))
