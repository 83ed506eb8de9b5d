"""Tells when to look again: the kernel's and udevd's word that a device changed, links, mounts, and the clock.

What changed is never taken from an event. Events only wake the watcher, which takes the whole picture again, so that
a lost, doubled or late event cannot make it wrong; what they said is told along, as an explanation. Nothing of what is
watched here costs anything while it is still.

Two things make no event and are seen at the next look by the clock: claims through usbfs, and routes.
"""

import asyncio
import os
import select
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Self

import msgspec
import pyudev

from leasehold.events import limits
from leasehold.events.errors import UnavailableError
from leasehold.projections import sightings
from leasehold.projections.sightings import Told
from leasehold.services.watcher.links import LINKS_KNOWN_MAX, LinkEvents
from leasehold.services.watcher.sysfs import THIS_MACHINE, HostRoot, clean, to_int
from leasehold.services.watcher.udev import udevd_runs

NOISE: Final = frozenset(
    {
        *("acpi", "backlight", "bdi", "bus", "class", "clockevents", "clocksource", "cpu", "cpuid", "devfreq"),
        *("devlink", "drivers", "edac", "event_source", "firmware", "gpio", "hwmon", "iommu", "leds", "machinecheck"),
        *("mem", "memory", "memory_tiering", "module", "msr", "node", "powercap", "power_supply", "ptp", "queues"),
        *("regulator", "rfkill", "rtc", "slab", "thermal", "vc", "vtconsole", "wakeup", "watchdog", "workqueue"),
    }
)
"""Subsystems whose events do not wake: nothing of theirs is shown, and some tell of themselves all the time (a
battery), or a hundred times with each real change (a NIC's queues)."""
QUIET_MS: Final = 4
"""After this long without another event the change is taken as done: one plugged-in stick makes some 15 events."""
DELAY_MS_MAX: Final = 20
"""A change that goes on is looked at this long after its first event."""
EVENTS_PER_WAKE_MAX: Final = 128
"""Read at once, about 2 ms; the loop comes back for the rest."""
ACTION_CHARS_MAX: Final = 32
REOPEN_MS_MIN: Final = 100
REOPEN_MS_MAX: Final = 10_000
"""Between attempts to open a monitor again where the system has no sockets left."""


class LookAgain(msgspec.Struct, frozen=True):
    """Something may have changed.

    `words` help to explain; they do not bound what changed.
    """

    words: Mapping[str, Told] = {}
    """What was said of which place: a sysfs path (`/sys/devices/…`), or a link (`sightings.link_place`)."""
    overflow: bool = False
    """Events were lost."""
    mounts: bool = False
    """The mounts or the swap areas changed."""
    by_clock: bool = False
    """Nothing was heard for the whole interval."""
    first_event_ns: int = 0
    """When the first of the events was read, on the monotonic clock; by the clock alone: now."""
    heard_at_ns: int = 0
    """The same by the host's clock since 1970; by the clock alone: 0."""


class UeventMonitor:
    """Listens on the running event loop; `start` it before the first picture is taken.

    An overrun of the socket's buffer makes pyudev's monitor raise for ever, so the monitor is replaced by a new one
    first and the overflow told after, when nothing can be missed any more. The buffer is left as libudev sets it
    (128 MiB as root): setting it could only shrink it.

    Args:
        host_root: where `udev/control` tells that udevd runs, and whose mounts are watched.
        interval_ms: look again at least this often.
    """

    def __init__(self, host_root: HostRoot = THIS_MACHINE, *, interval_ms: int = limits.RESCAN_MS) -> None:
        self._root = host_root
        self._interval_s = interval_ms / 1000
        self._monitor: Any = None
        self._source = ""
        self._links: LinkEvents | None = None
        self._told_links: set[int] = set()
        """Those of which an event told, by their index."""
        self._tables: _ChangingTables | None = None
        self._reopening: asyncio.TimerHandle | None = None
        self._reopen_ms = REOPEN_MS_MIN
        self._heard = asyncio.Event()
        self._words: dict[str, Told] = {}
        self._overflow = self._mounts = False
        self._first_event_ns = self._last_event_ns = self._heard_at_ns = 0
        self.overflows = 0
        """How often everything had to be looked at again, since events may have been lost."""

    @property
    def source(self) -> str:
        """Who is listened to: `udev`, `kernel`, or nobody (empty) while no monitor can be opened."""
        return self._source if self._monitor is not None else ""

    def fileno(self) -> int:
        """The socket that is listened to at the moment, -1 for none."""
        return -1 if self._monitor is None else int(self._monitor.fileno())

    def start(self) -> None:
        """Begin to listen. What happens from here on is told.

        Where no monitor can be opened (`source` is empty then) it is tried again, and meanwhile the clock tells.
        """
        self._open_or_try_later()
        self._tables = _ChangingTables(self._root)
        if self._tables.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._tables.fileno(), self._on_tables)

    def close(self) -> None:
        """Stop listening. May be called again."""
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        self._let_go(self._monitor)
        self._monitor = None
        self._close_links()
        if self._tables is not None:
            if self._tables.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(self._tables.fileno())
            self._tables.close()
            self._tables = None

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Close."""
        self.close()

    async def __aiter__(self) -> AsyncIterator[LookAgain]:
        """A signal for each change, and one whenever the interval passed without any; never ends."""
        while True:
            yield await self.next()

    async def next(self) -> LookAgain:
        """Wait for the next reason to look: at most 20 ms after a first event, at most the interval without one.

        What is heard while nobody waits here is kept and told by the next call at once.
        """
        self._follow_udevd()
        try:
            async with asyncio.timeout(self._interval_s):
                await self._heard.wait()
        except TimeoutError:
            return LookAgain(by_clock=True, first_event_ns=time.monotonic_ns())
        await self._settle()
        signal = LookAgain(self._words, self._overflow, self._mounts, False, self._first_event_ns, self._heard_at_ns)
        self._words, self._overflow, self._mounts = {}, False, False
        self._heard.clear()
        return signal

    def words_so_far(self) -> dict[str, Told]:
        """Take the words that were heard since the last signal, or wait to be read. The signal comes all the same."""
        if self._monitor is not None:
            self._on_events()
        if self._links is not None:
            self._on_links()
        words, self._words = self._words, {}
        return words

    async def _settle(self) -> None:
        while True:
            now = time.monotonic_ns()
            quiet = self._last_event_ns + QUIET_MS * 1_000_000
            due = min(quiet, self._first_event_ns + DELAY_MS_MAX * 1_000_000)
            if now >= due:
                return
            await asyncio.sleep((due - now) / 1e9)

    def _note(self, *, overflow: bool = False, mounts: bool = False) -> None:
        self._last_event_ns = time.monotonic_ns()
        if not self._heard.is_set():
            self._first_event_ns, self._heard_at_ns = self._last_event_ns, time.time_ns()
            self._heard.set()
        self._overflow |= overflow
        self._mounts |= mounts

    def _note_word(self, place: str, action: str, source: str) -> None:
        self._note()
        sightings.note(self._words, place, sightings.told(action, source, time.time_ns()))

    # --- the netlink socket -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Listen through a new monitor, and only then let the old one go."""
        source = self._right_source()
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        monitor.start()
        before, self._monitor, self._source = self._monitor, monitor, source
        self._let_go(before)
        asyncio.get_running_loop().add_reader(monitor.fileno(), self._on_events)

    def _let_go(self, monitor: Any) -> None:
        """The socket is closed with the last reference to its monitor."""
        if monitor is not None:
            asyncio.get_running_loop().remove_reader(monitor.fileno())

    def _right_source(self) -> str:
        try:
            return "udev" if udevd_runs(self._root) else "kernel"
        except UnavailableError:
            return self._source or "kernel"

    def _follow_udevd(self) -> None:
        """udevd may start or stop after us: its group is silent without it, the kernel's comes before its answers."""
        if self._monitor is not None and self._source != self._right_source():
            # What happened since udevd stopped was told by the kernel only; what the kernel told, udevd tells again.
            self._replace(lost=self._source == "udev")

    def _on_events(self) -> None:
        try:
            for _ in range(EVENTS_PER_WAKE_MAX):
                device = self._monitor.poll(0)
                if device is None:
                    return
                self._on_event(device)
        except (OSError, UnicodeDecodeError):
            self._replace()

    def _on_event(self, device: Any) -> None:
        if device.subsystem in NOISE:
            return
        action = clean(device.action or "change", ACTION_CHARS_MAX)
        if device.subsystem == "net":
            self._note_link(action, to_int(device.properties.get("IFINDEX") or ""))
        self._note_word(clean(device.sys_path, limits.DEVICE_TEXT_CHARS_MAX), action, self._source)
        if action == "move":
            # What is known of the device is known of its old path.
            before = device.properties.get("DEVPATH_OLD") or ""
            self._note_word(clean(f"/sys{before}", limits.DEVICE_TEXT_CHARS_MAX), action, self._source)

    def _note_link(self, action: str, index: int) -> None:
        if action == "remove":
            self._told_links.discard(index)
        elif len(self._told_links) < LINKS_KNOWN_MAX:
            self._told_links.add(index)

    def _replace(self, *, lost: bool = True) -> None:
        """Open a new monitor. What the old one still held counts as lost: the whole picture is taken anyway."""
        self._open_or_try_later()
        self.overflows += lost
        self._note(overflow=lost)

    def _open_or_try_later(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
            self._reopening = None
        try:
            self._open()
            if self._links is None:
                self._open_links()
            else:
                # Of some links the new monitor will never hear that they came.
                self._links.begin_anew()
            self._reopen_ms = REOPEN_MS_MIN
        except (OSError, ImportError):  # ImportError is pyudev's word for a machine without libudev
            # A broken monitor must not stay: it would wake the loop for ever.
            self._let_go(self._monitor)
            self._monitor = None
            self._reopening = asyncio.get_running_loop().call_later(self._reopen_ms / 1000, self._try_again)
            self._reopen_ms = min(2 * self._reopen_ms, REOPEN_MS_MAX)

    def _try_again(self) -> None:
        self._open_or_try_later()
        if self._monitor is not None:
            # Nobody listened meanwhile.
            self.overflows += 1
            self._note(overflow=True)

    # --- links, mounts ------------------------------------------------------------------------------------------

    def _open_links(self) -> None:
        self._links = LinkEvents()
        asyncio.get_running_loop().add_reader(self._links.fileno(), self._on_links)

    def _close_links(self) -> None:
        if self._links is not None:
            asyncio.get_running_loop().remove_reader(self._links.fileno())
            self._links.close()
            self._links = None

    def _on_links(self) -> None:
        assert self._links is not None
        try:
            heard = self._links.read()
        except OSError:
            self._close_links()
            self._replace()
            return
        for news in heard.news:
            if news.is_new and news.index not in self._told_links:
                continue  # udevd may still have to name it, and tells when it has
            place = sightings.link_place(clean(news.name, limits.DEVICE_TEXT_CHARS_MAX))
            self._note_word(place, news.action, "kernel")
        if heard.lost:
            self.overflows += 1
            self._note(overflow=True)

    def _on_tables(self) -> None:
        if self._tables is not None:
            self._tables.seen()
        self._note(mounts=True)


class _ChangingTables:
    """The tables of mounts and swap areas, which tell a change as an exceptional condition (proc(5)).

    They are always readable too, so the event loop cannot watch them itself. An epoll of their own asks for the
    exceptional condition alone, and is in turn readable exactly when one of them changed.
    """

    def __init__(self, root: HostRoot) -> None:
        self._epoll = select.epoll()
        self._descriptors: list[int] = []
        for table in ("self/mountinfo", "swaps"):
            self._watch(str(root.proc / table))

    def _watch(self, path: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # the look by the clock sees its changes
        try:
            self._epoll.register(descriptor, select.EPOLLPRI)
        except OSError:  # an imitated table is a plain file, which cannot be waited for
            os.close(descriptor)
        else:
            self._descriptors.append(descriptor)

    def fileno(self) -> int:
        """What the event loop watches; -1 when no table can be."""
        return self._epoll.fileno() if self._descriptors else -1

    def seen(self) -> None:
        """Take the changes as told."""
        self._epoll.poll(0, maxevents=8)

    def close(self) -> None:
        """Close all descriptors."""
        self._epoll.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
