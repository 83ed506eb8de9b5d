"""A binder's notes on disk: what was done to which device, and below which token nothing acts any more.

They are written durably before anything is done, so that a binder that was killed at any point knows what to make
good. One binder at a time has them, and one at a time acts on a host.
"""

import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events.errors import StorageError, StoreInUseError
from leasehold.projections.handnotes import Note
from leasehold.services.home import write_durably
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot, read_text

FORMAT: Final = 1
NOTES_BYTES_MAX: Final = 64 * 1024 * 1024


class _File(msgspec.Struct, frozen=True):
    format: int
    devices: tuple[Note, ...]


class Notes:
    """A file that one binder at a time has."""

    def __init__(self, path: Path, root: HostRoot = THIS_MACHINE) -> None:
        """Nothing is read yet. `root`: the machine that they are of."""
        self._path = path
        self._root = root
        self._lock = threading.Lock()
        self._written: tuple[Note, ...] = ()
        self._held: list[int] = []

    def open(self) -> tuple[Note, ...]:
        """Take the file, and read it.

        Raises:
            StoreInUseError: another binder has it, or acts on this host.
            StorageError: it cannot be read or written.
        """
        try:
            self._hold(self._path.with_suffix(".lock"))
            # Another one may have its notes elsewhere. Who may not write there can bind no drivers, either.
            if os.access(self._root.run, os.W_OK):
                self._hold(self._root.run / "leasehold-binder.lock")
            if self._path.exists():
                with self._path.open("rb") as file:
                    read = msgspec.json.decode(file.read(NOTES_BYTES_MAX), type=_File)
                if read.format != FORMAT:
                    raise StorageError(f"{self._path} is of format {read.format}; this build reads {FORMAT}")
                self._written = read.devices
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | msgspec.DecodeError):
                raise StorageError(f"{self._path} cannot be used ({error})") from error
            raise
        return self._written

    def _hold(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._held.append(os.open(path, flags, 0o600))
        try:
            fcntl.flock(self._held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUseError(f"another binder holds {path}") from None

    def close(self) -> None:
        """Let go of the file."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def has(self, notes: Sequence[Note]) -> bool:
        """Whether just these are on disk."""
        return tuple(notes) == self._written

    def write(self, notes: Sequence[Note]) -> None:
        """Have these on disk when it returns, and nothing else. May be called on any thread. Raises OSError."""
        with self._lock:
            if not self.has(notes):
                write_durably(self._path, msgspec.json.encode(_File(FORMAT, tuple(notes))))
                self._written = tuple(notes)


def boot_of(root: HostRoot) -> str:
    """What tells this boot of a machine from others; empty where it does not say."""
    return read_text(f"{root.proc}/sys/kernel/random/boot_id")
