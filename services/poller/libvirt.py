"""libvirt as a source: its events say which domain to look at again, and from time to time everything is looked at.

What libvirt's C library does may take as long as libvirtd likes, so it is never done in the event loop: each look runs
in a thread of its own, which whoever gives the look up leaves behind. Keep-alive messages end what waits for a libvirtd
that hangs. The connection may only read.

Not told by libvirt's events, and seen at the next look at everything: devices that are put into a configuration alone,
and CPUs that are plugged in. libvirt has no word for a domain that dies slowly: while it takes devices back it keeps
the domain locked, for which a look waits, so what no domain has by its live XML is not held.

A guest that restarts by itself stays the same incarnation, with its devices; one that is stopped and started is
another. (libvirtd counts from 1 again if it is started while no guest runs: one that is stopped before and started
after that between two looks may seem the same.)
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, TypeVar

from leasehold.events import limits
from leasehold.events.domains import SeenDomain
from leasehold.events.errors import InvalidInputError, SourceUnavailableError, UnavailableError
from leasehold.projections.polling import Look
from leasehold.services.poller.domainxml import read_domain

_log: Final = logging.getLogger(__name__)

EVERYTHING_MS: Final = 30_000
"""How often everything is looked at, whatever was told."""
KEEP_ALIVE_S: Final = 3
KEEP_ALIVES: Final = 2
"""A libvirtd that does not answer this many, sent at that interval, is taken to hang: its connection is closed."""
THREADS_MAX: Final = 4
"""So many may hang at a time."""
TOLD_MAX: Final = 1_024
"""Domains that are to be looked at again; of more, all are."""
CLOSES_WITHIN_S: Final = 2.0
_NOT_THERE: Final = (
    "libvirt-python is not installed: pip install 'leasehold[libvirt]', which needs libvirt's headers and a compiler "
    "(Debian: libvirt-dev, gcc), or use the one that your distribution has built for this Python"
)
_STATES: Final = {1: "running", 2: "running", 3: "paused", 4: "shutting_down", 6: "crashed", 7: "paused"}
"""`virDomainState` of domains that are there. 2 waits for something; 7 sleeps, and keeps its devices."""
_starting: Final = threading.Lock()

T = TypeVar("T")


class LibvirtSource:
    """A libvirt, by its URI: `qemu:///system`, `xen:///system`, `test:///default`."""

    rest_ms = EVERYTHING_MS

    def __init__(self, uri: str) -> None:
        """Nothing is connected yet.

        Raises:
            UnavailableError: libvirt-python is not installed.
        """
        _binding()
        self._uri = uri
        self._session: _Session | None = None
        """That of the last look, while no look runs."""
        self._connections = 0
        self._stirred = asyncio.Event()
        """Something was told since the last look began."""
        self._threads: list[threading.Thread] = []

    @property
    def title(self) -> str:
        """What it is and where."""
        return f"libvirt at {self._uri}"

    async def look(self, watched: frozenset[str]) -> Look:
        """Look at what was told of, or at everything; libvirt shows what is held by itself."""
        loop = asyncio.get_running_loop()
        session, self._session = self._session, None
        if session is not None and session.lost:
            _leave(session)
            session = None
        if session is None:
            self._connections += 1
        generation = str(self._connections)

        def hears() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._stirred.set)

        def work() -> _Session:
            return _looked(session or _Session(self._uri, hears))

        self._stirred.clear()
        self._session = await self._aside(work, _leave)
        domains = {seen.domain.key: seen for seen in self._session.seen()}
        return Look(domains=domains, generation=generation, unclear_names=self._session.unclear)

    async def changed(self) -> None:
        """Return when libvirt has told something; where it tells nothing, after a while."""
        if self._session is not None and not self._session.tells:
            await asyncio.sleep(limits.POLL_MS_MAX / 1_000)
            return
        await self._stirred.wait()
        if self._session is not None and self._session.lost:
            raise SourceUnavailableError(f"{self.title}: {self._session.lost}")

    async def close(self) -> None:
        """Close the connection; what hangs is left behind."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(TimeoutError, SourceUnavailableError):
                async with asyncio.timeout(CLOSES_WITHIN_S):
                    await self._aside(session.close, lambda _: None)

    async def _aside(self, work: Callable[[], T], leave: Callable[[T], None]) -> T:
        """Do it in a thread. `leave`: what becomes of its result if nobody waits for it any more."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= THREADS_MAX:
            raise SourceUnavailableError(f"{self.title}: it does not answer {THREADS_MAX} earlier questions either")
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        # Whoever gives up cannot stop it, so that its result comes to `leave`.
        done.set_running_or_notify_cancel()
        # One of asyncio's would be waited for at the end of the program, however long it hangs.
        thread = threading.Thread(target=_do, args=(work, done), name=self.title, daemon=True)
        self._threads.append(thread)
        thread.start()
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            done.add_done_callback(functools.partial(_leave_result, leave))
            raise


def _do(work: Callable[[], T], done: "concurrent.futures.Future[T]") -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is told to whoever waits
        done.set_exception(error)


def _leave_result(leave: Callable[[T], None], done: "concurrent.futures.Future[T]") -> None:
    if done.exception() is None:
        leave(done.result())


class _Session:
    """One connection, and what was seen through it. Its methods may hang; no two run at a time."""

    def __init__(self, uri: str, hears: Callable[[], None]) -> None:
        """Connect, and listen.

        Raises:
            SourceUnavailableError: there is none.
        """
        self._libvirt = _binding()
        with _starting:
            _run_events()
        self._title = f"libvirt at {uri}"
        self._hears = hears
        self.lost = ""
        """Why it has ended, if it has."""
        self.unclear: frozenset[str] = frozenset()
        self._seen: dict[str, tuple[int, str, SeenDomain]] = {}
        """Number and name as listed, and the rest as read, by uuid."""
        self._told_lock = threading.Lock()
        self._told: set[str] = set()
        self._everything_due_s = 0.0
        self._handlers: list[int] = []
        try:
            self._connection = self._libvirt.openReadOnly(uri)
            self._hypervisor = "".join(filter(str.isalnum, self._connection.getType().lower()))
        except self._libvirt.libvirtError as error:
            raise self._unavailable(error) from None
        self._listen()

    def seen(self) -> Iterable[SeenDomain]:
        """All domains, as of the last look."""
        return [seen for _, _, seen in self._seen.values()]

    @property
    def tells(self) -> bool:
        """Whether libvirt tells of what happens to domains."""
        return bool(self._handlers)

    def look(self) -> None:
        """Read what may be new.

        Raises:
            SourceUnavailableError: the connection is of no use any more.
        """
        begun_s = time.monotonic()
        with self._told_lock:
            told, self._told = self._told, set()
        everything = not self.tells or begun_s >= self._everything_due_s or len(told) >= TOLD_MAX
        try:
            self._read(told, everything=everything)
        except self._libvirt.libvirtError as error:
            raise self._unavailable(error) from None
        if everything:
            # Whoever looks at rest must not do so just before it is due.
            self._everything_due_s = begun_s + EVERYTHING_MS / 2_000

    def close(self) -> None:
        """Let go of the connection, however it is."""
        errors = contextlib.suppress(self._libvirt.libvirtError)
        for handler in self._handlers:
            with errors:
                self._connection.domainEventDeregisterAny(handler)
        self._handlers.clear()
        with errors:
            self._connection.unregisterCloseCallback()
        with errors:
            self._connection.close()

    def _listen(self) -> None:
        """Have libvirt tell of domains and of the connection's end; not every driver does all of it."""
        libvirt, connection = self._libvirt, self._connection
        unsupported = contextlib.suppress(libvirt.libvirtError)
        with unsupported:
            connection.setKeepAlive(KEEP_ALIVE_S, KEEP_ALIVES)
        with unsupported:
            connection.registerCloseCallback(self._close_heard, None)
        for kind in ("LIFECYCLE", "DEVICE_ADDED", "DEVICE_REMOVED", "BALLOON_CHANGE"):
            number = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{kind}")
            with unsupported:
                self._handlers.append(connection.domainEventRegisterAny(None, number, self._event_heard, None))

    def _event_heard(self, _connection: object, domain: Any, *_details: object) -> None:
        """Runs in the thread of libvirt's events."""
        with self._told_lock:
            if len(self._told) < TOLD_MAX:
                self._told.add(domain.UUIDString())
        self._hears()

    def _close_heard(self, _connection: object, reason: int, _opaque: object) -> None:
        """Runs in the thread of libvirt's events."""
        reasons = ("an error", "libvirtd closed it", "libvirtd did not answer keep-alive messages", "we closed it")
        self.lost = f"the connection has ended: {reasons[reason] if reason < len(reasons) else reason}"
        self._hears()

    def _read(self, told: set[str], *, everything: bool) -> None:
        libvirt, connection = self._libvirt, self._connection
        listed = {domain.UUIDString(): domain for domain in connection.listAllDomains(0)}
        before, self._seen = self._seen, {}
        again = []
        for uuid, domain in listed.items():
            known = before.get(uuid)
            if known is None or everything or uuid in told or known[:2] != (domain.ID(), domain.name()):
                again.append(uuid)
            else:
                self._seen[uuid] = known
        self.unclear = frozenset()
        if not again:
            return
        persistent, saved = (
            {domain.UUIDString() for domain in connection.listAllDomains(flag)}
            for flag in (libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT, libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
        )
        for uuid in again:
            domain = listed[uuid]
            try:
                seen = self._read_one(domain, is_persistent=uuid in persistent, is_saved=uuid in saved)
            except InvalidInputError as error:
                self._keep(uuid, domain, before.get(uuid), error)
                continue
            if seen is not None:
                self._seen[uuid] = (domain.ID(), domain.name(), seen)

    def _keep(
        self, uuid: str, domain: Any, known: tuple[int, str, SeenDomain] | None, error: InvalidInputError
    ) -> None:
        """One domain cannot be read: what is known of it stays, and the next look reads it again.

        Raises:
            SourceUnavailableError: it is there, and nobody knows what it has: anything may be in use then.
        """
        trouble = f"domain {domain.name()} cannot be read: {error}"
        _log.warning("%s: %s", self._title, trouble)
        if known is not None and known[0] == domain.ID():
            self._seen[uuid] = known
        elif domain.ID() >= 0:
            raise SourceUnavailableError(f"{self._title}: {trouble}")
        else:
            self.unclear |= {domain.name()}
        with self._told_lock:
            self._told.add(uuid)

    def _read_one(self, domain: Any, *, is_persistent: bool, is_saved: bool) -> SeenDomain | None:
        """One domain; `None`: it has gone since it was listed."""
        libvirt = self._libvirt
        try:
            number = domain.state()[0]
            now = domain.XMLDesc(0)
            at_next_start = (
                domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if is_persistent and domain.ID() >= 0 else ""
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            if not self._connection.isAlive():
                raise
            raise InvalidInputError(str(error), field="domain") from None
        there = _STATES.get(number, "unknown")
        return read_domain(self._hypervisor, there, "suspended" if is_saved else "halted", now, at_next_start)

    def _unavailable(self, error: Exception) -> SourceUnavailableError:
        return SourceUnavailableError(f"{self._title}: {error}")


def _looked(session: _Session) -> _Session:
    """After a look; one that fails is closed."""
    try:
        session.look()
    except BaseException:
        session.close()
        raise
    return session


def _leave(session: _Session) -> None:
    """Close one that nobody uses, and wait for nothing."""
    threading.Thread(target=session.close, name="libvirt closes", daemon=True).start()


def _binding() -> ModuleType:
    """libvirt-python, which is optional."""
    try:
        import libvirt  # noqa: PLC0415 - all else works without it
    except ImportError:
        raise UnavailableError(_NOT_THERE) from None
    module: ModuleType = libvirt
    return module


@functools.cache
def _run_events() -> None:
    """Run libvirt's event loop, of which there is one in a process, in a thread for as long as the process lives."""
    libvirt = _binding()
    # Errors are exceptions; the library writes them to stderr, too.
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError:
                _log.exception("libvirt's events")
                time.sleep(1)

    threading.Thread(target=run, name="libvirt events", daemon=True).start()
