"""What carrying out an order is made of: a look whether it is so already, one write to the kernel, and a wait.

An attempt runs on a thread of its own, since the kernel answers a write when it likes. All waits end: by what is waited
for, by the order's time, or by the agent's end.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.services.watcher.sysfs import HostRoot

POLL_S_MIN: Final = 0.01
POLL_S_MAX: Final = 0.25
"""sysfs tells nobody that something has appeared in it, so it is looked at: often at first."""
UNDO_S: Final = 1.0
"""So long what is taken back may take to be gone."""
TOO_LATE: Final = "its time was over before it could be begun"

Write = Callable[[str, str], None]
"""Puts a text into an attribute's path. Raises OSError as the kernel refuses it."""


class Done(msgspec.Struct, frozen=True):
    """What was asked for is so. `path`: of the device that was made; empty: it is gone."""

    path: str = ""


class NotDone(msgspec.Struct, frozen=True):
    """It could not be done. `reason` says so, too, if something of it was left behind."""

    reason: str


Outcome = Done | NotDone | None
"""`None`: the agent ends before it is known. The order stays open, and the next run looks again."""


def write_attribute(path: str, text: str) -> None:
    """Put a text into an attribute that is there; it may take as long as the kernel likes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


class Attempt:
    """One order being carried out: whose machine it is, how much time is left, and how the kernel is told."""

    def __init__(
        self,
        root: HostRoot,
        left_s: Callable[[], float],
        *,
        write: Write = write_attribute,
        begins: Callable[[], None] = lambda: None,
        is_begun: bool = False,
        ends: threading.Event | None = None,
    ) -> None:
        """`begins` notes before each write that there is one, or raises OSError; `is_begun`: an earlier run did so;
        `ends`: set at the agent's end.
        """
        self.root = root
        self._left_s = left_s
        self._write = write
        self._begins = begins
        self.is_begun = is_begun
        """Whether the kernel took something for this order, or may have: what is there may be ours to take back."""
        self._ends = ends or threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether its time is over, so that nothing new is begun."""
        return self._left_s() <= 0

    @property
    def has_ended(self) -> bool:
        """Whether the agent ends."""
        return self._ends.is_set()

    def tell_kernel(self, path: str, text: str) -> str:
        """Write `text` to an attribute; why the kernel refused it, or empty."""
        if self.has_ended:
            return "the creator ends"
        try:
            self._begins()
        except OSError as error:
            return f"it was not begun, since that cannot be noted here ({error})"
        try:
            self._write(path, text)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown error")
            return f"the kernel refused {text} in {self.root.shown_path(path)}: {error.strerror or error} ({name})"
        self.is_begun = True
        return ""

    def until(self, is_so: Callable[[], bool], *, least_s: float = 0.0) -> bool:
        """Wait until something is so; false if the time is over (but not within `least_s`), or the agent ends."""
        waited_s, pause_s = 0.0, POLL_S_MIN
        while not is_so():
            left_s = max(self._left_s(), least_s - waited_s)
            if left_s <= 0 or self._ends.wait(min(pause_s, left_s)):
                return False
            waited_s += min(pause_s, left_s)
            pause_s = min(pause_s * 1.5, POLL_S_MAX)
        return True
