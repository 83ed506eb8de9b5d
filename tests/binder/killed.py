"""A machine in a process of its own that kills itself at one of its words to the kernel of another process.

`python -m tests.binder.killed FOLDER NOTES prepare|take_back WORD before|after KEY`: the kernel's socket and machine
are in FOLDER; before or behind the effect of word number WORD, from 1.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Before, Target
from leasehold.services.binder.machine import Machine
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.sysfs import HostRoot
from tests.binder.kernel import Remote


def main(folder: Path, notes: Path, verb: str, at: int, moment: str, key: DeviceKey) -> None:
    """Do it, as far as it comes."""
    remote, words = Remote(folder / "socket"), 0

    def write(path: str, text: str) -> None:
        nonlocal words
        words += 1
        if words == at and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        remote.write(path, text)
        if words == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(befores: Sequence[Before]) -> None:
        notes.write_bytes(msgspec.json.encode(befores))

    machine = folder / "machine"
    root = HostRoot(machine / "sys", machine / "proc", machine / "dev", machine / "run")
    binder = Machine(root, write=write, run=remote.run, reset_port=remote.reset_port)
    if verb == "prepare":
        binder.prepare([Target(description=take_picture(root)[key])], note=note)
    else:
        (before,) = msgspec.json.decode(notes.read_bytes(), type=list[Before])
        binder.take_back(before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5], DeviceKey(sys.argv[6]))
