"""A creator of an imitated machine in a process of its own, which kills itself where it is told to.

`python -m tests.creator.running DATA MACHINE HOST [before|after|done]`: before or after its first word to the kernel,
or when it knows what came of it and has not told yet.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from leasehold.events.identities import HostName
from leasehold.events.subjects import Subjects
from leasehold.services import home
from leasehold.services.connection import connect, disconnect
from leasehold.services.creator import agent
from leasehold.services.creator.attempt import write_attribute
from leasehold.services.creator.carrying import carry_out
from leasehold.services.credentials import own_credential
from leasehold.services.watcher.sysfs import HostRoot


def die() -> None:
    """As if somebody had killed us."""
    os.kill(os.getpid(), signal.SIGKILL)


async def run(data: Path, machine: Path, host: str, dies: str) -> None:
    """Run until told to end."""

    def write(path: str, text: str) -> None:
        if dies == "before":
            die()
        write_attribute(path, text)
        if dies == "after":
            die()

    def carry_out_and_die(*given: Any) -> Any:
        carry_out(*given)
        die()

    if dies == "done":
        patch.object(agent, "carry_out", carry_out_and_die).start()
    info = home.read_connection(data)
    connection = await connect(info.urls, credential=own_credential(info, "agent"), name="creator")
    root = HostRoot(machine / "sys", machine / "proc", machine / "dev", machine / "run")
    notes = data / "creator.json"
    creator = agent.CreatorAgent(connection, Subjects(info.cluster), HostName(host), notes, root=root, write=write)
    running = asyncio.ensure_future(creator.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.wait({running})
    await disconnect(connection)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], "".join(sys.argv[4:])))
