"""Steps on a machine, each of a bounded time: a word to its kernel, a run of one of its tools, a wait.

A kernel may keep who writes to it for ever: taking a function from vfio waits until its user lets go of it
(`vfio_unregister_group_dev` of Linux' `drivers/vfio/vfio_main.c`), and a driver's own end for its hardware. So every
word goes on a thread of its own. One that does not come back keeps that thread, and until it does nothing else is told
to the kernel of that device.
"""

import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from leasehold.services.creator.attempt import POLL_S_MAX, POLL_S_MIN, Write
from leasehold.services.watcher.sysfs import HostRoot, clean

TOOL_S: Final = 20.0
SETTLE_S: Final = 5.0
"""So long behind a write it may take until its effect is seen: drivers probe in the kernel's own time, too."""
SAID_CHARS_MAX: Final = 200
HANGING_MAX: Final = 64
"""So many words that the kernel has not come back from are borne; more are not begun."""
USBDEVFS_RESET: Final = ord("U") << 8 | 20
"""Linux' `include/uapi/linux/usbdevice_fs.h`: `_IO('U', 20)`."""

Run = Callable[[Sequence[str]], str]
"""Runs one of the host's own tools (`ip`, `modprobe`, `xl`, `xenstore-ls`), and gives what it wrote. Raises OSError."""
T = TypeVar("T")


def run_tool(words: Sequence[str]) -> str:
    """Run a tool of this machine within `TOOL_S` seconds, and give what it wrote.

    Raises:
        OSError: it is not there (ENOENT), failed, or took too long; with what it said.
    """
    try:
        done = subprocess.run(
            list(words), capture_output=True, timeout=TOOL_S, stdin=subprocess.DEVNULL, check=True,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{words[0]} took longer than {TOOL_S:g} s") from None
    except subprocess.CalledProcessError as error:
        raise OSError(errno.EIO, f"{words[0]}: {clean(error.stderr, SAID_CHARS_MAX) or error}") from None
    return done.stdout


def reset_usb(node: str) -> None:
    """Reset the USB device whose node is at `node` (`/dev/bus/usb/001/005`).

    Raises:
        OSError: the kernel refused.
    """
    descriptor = os.open(node, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, USBDEVFS_RESET, 0)
    finally:
        os.close(descriptor)


class Hanging:
    """Words that the kernel has not come back from, by the device that they are for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[str, tuple[float, str]] = {}

    def of(self, device: str) -> str:
        """Why nothing can be told of this device; empty: something can."""
        with self._lock:
            since = self._since.get(device)
            if since is not None:
                return f"the kernel has not come back from {since[1]} for {time.monotonic() - since[0]:.0f} s"
            return f"{HANGING_MAX} words hang in the kernel" if len(self._since) >= HANGING_MAX else ""

    def begin(self, device: str, what: str) -> None:
        """It is told."""
        with self._lock:
            self._since[device] = (time.monotonic(), what)

    def end(self, device: str) -> None:
        """The kernel came back."""
        with self._lock:
            self._since.pop(device, None)


class Steps:
    """What one call of the machine has time for."""

    def __init__(
        self,
        root: HostRoot,
        time_s: float,
        *,
        write: Write,
        run: Run,
        reset_port: Callable[[str], None],
        hanging: Hanging,
        ends: threading.Event,
    ) -> None:
        """`time_s`: from now; `ends`: ends all waits."""
        self.root = root
        self._until_s = time.monotonic() + time_s
        self._write = write
        self._run = run
        self._reset_port = reset_port
        self._hanging = hanging
        self._ends = ends

    @property
    def left_s(self) -> float:
        """Seconds; none or less: nothing new is begun."""
        return self._until_s - time.monotonic()

    def has_ended(self) -> bool:
        """Whether the agent ends."""
        return self._ends.is_set()

    def tell(self, device: str, path: str, text: str, *, ignoring: tuple[int, ...] = ()) -> str:
        """Write to an attribute, for the sake of `device` (its name in sysfs); why it was not taken, or empty.

        `ignoring`: refusals that are none, since what was wanted is so.
        """
        what = f"{text.strip() or 'an empty line'} in {self.root.shown_path(path)}"
        refused = self._bounded(device, what, lambda: self._write(path, text))
        if refused is None or refused.errno in ignoring:
            return ""
        return self._say(refused, what)

    def attempt(self, device: str, path: str, text: str) -> OSError | None:
        """The same, for who minds which refusal it is. One that did not come back is ETIMEDOUT."""
        return self._bounded(device, f"{text} in {self.root.shown_path(path)}", lambda: self._write(path, text))

    def reset_port(self, device: str, node: str) -> str:
        """Reset a USB device; why it was not, or empty."""
        what = f"the reset of {node}"
        refused = self._bounded(device, what, lambda: self._reset_port(node))
        return "" if refused is None else self._say(refused, what)

    def run(self, device: str, *words: str) -> str | OSError:
        """What a tool wrote, or why it did not."""
        written: list[str] = []
        refused = self._bounded(device, f"`{' '.join(words)}`", lambda: written.append(self._run(words)))
        return written[0] if refused is None else refused

    def until(self, is_so: Callable[[], bool]) -> bool:
        """Wait until something is so; false if it is not within `SETTLE_S`, or the time is over, or the agent ends."""
        until_s, pause_s = min(time.monotonic() + SETTLE_S, self._until_s), POLL_S_MIN
        while not is_so():
            left_s = until_s - time.monotonic()
            if left_s <= 0 or self._ends.wait(min(pause_s, left_s)):
                return False
            pause_s = min(pause_s * 1.5, POLL_S_MAX)
        return True

    def _bounded(self, device: str, what: str, work: Callable[[], object]) -> OSError | None:
        if self.has_ended():
            return OSError(errno.EINTR, "the binder ends")
        if hangs := self._hanging.of(device):
            return OSError(errno.ETIMEDOUT, hangs)
        if self.left_s <= 0:
            return OSError(errno.ETIMEDOUT, f"the time was over before {what} could be begun")
        refused: list[OSError] = []
        is_done = threading.Event()

        def do() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - what went wrong, however, was not done
                refused.append(error if isinstance(error, OSError) else OSError(errno.EIO, str(error)))
            finally:
                self._hanging.end(device)
                is_done.set()

        self._hanging.begin(device, what)
        threading.Thread(target=do, daemon=True).start()
        while not is_done.wait(min(POLL_S_MAX, max(0.0, self.left_s))):
            if self.has_ended() or self.left_s <= 0:
                return OSError(errno.ETIMEDOUT, self._hanging.of(device))
        return refused[0] if refused else None

    @staticmethod
    def _say(refused: OSError, what: str) -> str:
        said = refused.strerror or str(refused)
        if refused.errno in (errno.ETIMEDOUT, errno.EINTR):
            return said
        return f"the kernel refused {what}: {said} ({errno.errorcode.get(refused.errno or 0, '?')})"
