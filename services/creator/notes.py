"""What the creator has begun, on disk: an order whose time is over is looked after only if it was begun here.

Else a device that somebody made by hand meanwhile would count as what was ordered, or be taken back.
"""

import fcntl
import os
import threading
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import StorageError, StoreInUseError
from leasehold.services.home import write_durably

NOTES_BYTES_MAX: Final = 1024 * 1024


class Begun(msgspec.Struct, frozen=True, order=True):
    """An order that was begun. A restored ledger may give its number again, but not at the same time."""

    order: int
    ordered_at_ns: int


class Notes:
    """A file that one creator at a time has."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self._path = path
        self._lock = threading.Lock()
        self._begun: set[Begun] = set()
        self._held = -1

    def open(self) -> None:
        """Take the file, and read it.

        Raises:
            StoreInUseError: another creator has it.
            StorageError: it cannot be read or written.
        """
        try:
            self._held = os.open(self._path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._path.exists():
                with self._path.open("rb") as file:
                    self._begun = set(msgspec.json.decode(file.read(NOTES_BYTES_MAX), type=list[Begun]))
        except BlockingIOError:
            raise StoreInUseError(f"another creator uses {self._path}") from None
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(f"{self._path} cannot be used ({error})") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def has(self, begun: Begun) -> bool:
        """Whether this was begun."""
        return begun in self._begun

    def begin(self, begun: Begun) -> None:
        """Note an order durably before it is begun. May be called on any thread. Raises OSError."""
        with self._lock:
            if begun not in self._begun:
                self._write(self._begun | {begun})

    def keep_only(self, orders: set[Begun]) -> None:
        """Forget all others: they are over. Raises OSError."""
        with self._lock:
            if self._begun - orders:
                self._write(self._begun & orders)

    def _write(self, begun: set[Begun]) -> None:
        kept = sorted(begun)[-limits.ORDERS_KEPT_PER_HOST_MAX :]
        write_durably(self._path, msgspec.json.encode(kept))
        self._begun = set(kept)
