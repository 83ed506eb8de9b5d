"""The processes behind `leasehold up`: allocator, query, archive, feed, the agents of a host; each can run alone.

`python -m leasehold.services.processes ROLE --data DIR` is what `leasehold run ROLE` does.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import logging.handlers
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from leasehold.events import identities, limits
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, LeaseholdError, StorageError, StoreInUseError
from leasehold.events.identities import HostName
from leasehold.events.subjects import LEDGER_STREAM, Subjects
from leasehold.projections.rows import Head
from leasehold.projections.snapshots import Frozen, freeze
from leasehold.projections.state import State
from leasehold.services import home
from leasehold.services.allocator.contact import monotonic_ns
from leasehold.services.allocator.hint import KvHint
from leasehold.services.allocator.service import Allocator
from leasehold.services.allocator.wire import Wire
from leasehold.services.clocknote import ClockKeeper
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import Credential, own_credential, read_credential
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.observed import ObservedReader
from leasehold.services.ledger.port import Ledger
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore, encode_gently

_log: Final = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_CORRUPT: Final = 5
EXIT_IN_USE: Final = 6
LOG_BYTES_MAX: Final = 8 * 1024 * 1024
CONNECT_WAIT_S: Final = 10.0
END_ATTEMPTS_MAX: Final = 50
END_ATTEMPT_S: Final = 0.1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process runs, and as what.

    `name` tells apart several of one role in one data directory; `nats` (one or several URLs with commas between them)
    and `credentials` (a file) lead to a bus that no `up` has written down in `data`.
    """

    role: str
    data: Path
    host: str = ""
    name: str = ""
    nats: str = ""
    credentials: str = ""
    source: str = ""
    """What a poller looks at: a word of `services.poller.sources`."""
    stub: str = ""
    """What a binder binds PCI functions to: one of `hostdevs.STUBS`; empty: what suits the host."""
    door: str = ""
    """Where a binder hears hooks; empty: where they look for it."""

    @property
    def title(self) -> str:
        """How its files begin: `allocator`, or `allocator-2`."""
        return f"{self.role}-{self.name}" if self.name else self.role


class _Bus:
    """A process's connection, and what hangs on it."""

    def __init__(
        self, place: Place, info: home.ConnectionInfo, credential: Credential, connection: Connection
    ) -> None:
        self.store = place.data / f"{place.title}.sqlite"
        self.place = place
        self.connection = connection
        self.subjects = Subjects(info.cluster)
        self._info = info
        self._credential = credential

    async def another(self, name: str) -> Connection:
        """A connection of its own, to be closed by whoever asked for it."""
        return await connect(self._info.urls, credential=self._credential, name=name, timeout_s=CONNECT_WAIT_S)


async def run_allocator(bus: _Bus, _host: HostName) -> None:
    """Decide until cancelled."""
    ledger = JetStreamLedger(bus.connection, bus.subjects)
    store = await FoldStore.open(bus.store)
    try:
        state = await _read_state(ledger, store)
        keeper = Keeper(store)
        writer = f"{home.own_host()}.{os.getpid()}.{time.time_ns()}"
        clocks = ClockKeeper(bus.store.with_suffix(".clock"), writer)
        allocator = Allocator(
            ledger=ledger,
            observed=ObservedReader(bus.connection),
            subjects=bus.subjects,
            server_time=lambda: api.server_time_ns(bus.connection, LEDGER_STREAM),
            state=state,
            writer=writer,
            on_record=keeper.after_record,
            hint=KvHint(bus.connection),
            clock=clocks.clock(state.head, monotonic_ns()),
            clocks=clocks,
        )
        # What the log says must not stand in line behind a flood of requests.
        asked_on = await bus.another(f"allocator's door {os.getpid()}")
        wire = Wire(asked_on, bus.subjects, allocator, name=f"allocator-{writer.replace('.', '-')}")
        try:
            await _decide(allocator, wire, keeper, asked_on)
        except asyncio.CancelledError:
            # Told to end: the state is whole. After a failure it may lie within a record, and is not kept.
            if allocator.sequencer.in_flight is not None:
                state.roll_back()
            # Of a log that was not begun nothing was read: a note of that would miss its first record ever after.
            if state.head.sequence:
                await store.save_snapshot(state)
            raise
        finally:
            await keeper.note()
            await disconnect(asked_on)
    finally:
        await store.close()


async def _decide(allocator: Allocator, wire: Wire, keeper: "Keeper", asked_on: Connection) -> None:
    await wire.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(allocator.run())
            tasks.create_task(wire.send_replies())
            tasks.create_task(keeper.run())
            tasks.create_task(keeper.save())
            tasks.create_task(api.stay_in_touch(asked_on, LEDGER_STREAM))
    finally:
        await wire.stop()


async def _read_state(ledger: Ledger, store: FoldStore) -> State:
    """The state behind the log's last record, from the snapshot on; checked against what was read before."""
    reader = LedgerReader(ledger, store)
    await reader.start()
    try:
        caught_up = asyncio.ensure_future(reader.caught_up.wait())
        ended = asyncio.ensure_future(reader.ended.wait())
        await asyncio.wait({caught_up, ended}, return_when=asyncio.FIRST_COMPLETED)
        caught_up.cancel()
        ended.cancel()
    finally:
        await reader.stop()
    if reader.failure is not None:
        raise reader.failure
    return reader.state


class Keeper:
    """Keeps the allocator's fold: the head soon after each record, the whole state now and then.

    A disk that does not take it stops no decision: the log itself is what counts.
    """

    def __init__(self, store: FoldStore) -> None:
        self._store = store
        self._head = Head()
        self._noted = 0
        self._moved = asyncio.Event()
        self._saved_s = time.monotonic()
        self._saved_sequence = 0
        self._frozen: Frozen | None = None
        self._is_due = asyncio.Event()
        self._complaint = ""

    async def after_record(self, state: State) -> None:
        """A record has been folded, and nothing is in flight."""
        self._head = state.head
        self._moved.set()
        is_many = self._head.sequence - self._saved_sequence >= limits.SNAPSHOT_RECORDS
        is_time = time.monotonic() - self._saved_s > limits.SNAPSHOT_INTERVAL_MS / 1_000
        if is_many and is_time and self._frozen is None:
            self._frozen = freeze(state)
            self._is_due.set()

    async def save(self) -> None:
        """Write down the whole state when that is due, until cancelled. It takes seconds: decisions go on meanwhile."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            assert self._frozen is not None
            await self._try(self._save(self._frozen))
            # Counted from its end, so that most of the time none is being written.
            self._saved_s, self._saved_sequence, self._frozen = time.monotonic(), self._frozen.head.sequence, None

    async def _save(self, frozen: Frozen) -> None:
        await self._store.save_frozen(frozen.head, await encode_gently(frozen))

    async def run(self) -> None:
        """Note the head until cancelled: the last record, too, that nothing follows for a long time."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self.note()
            await asyncio.sleep(limits.HEAD_NOTE_MS / 1_000)

    async def note(self) -> None:
        """Write down how far the log has been read."""
        head = self._head
        if head.sequence > self._noted:
            await self._try(self._store.note(head))
            self._noted = head.sequence

    async def _try(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StorageError as error:
            if str(error) != self._complaint:
                _log.error("the fold is not kept: %s", error)
            self._complaint = str(error)


async def run_query(bus: _Bus, _host: HostName) -> None:
    """Answer questions until cancelled."""
    from leasehold.services.query.service import QueryService  # noqa: PLC0415 - each process loads only what it needs

    ledger = JetStreamLedger(bus.connection, bus.subjects)
    store = await FoldStore.open(bus.store)
    try:
        reader = LedgerReader(ledger, store)
        service = QueryService(bus.connection, bus.subjects, reader, ledger, store)
        in_touch = asyncio.create_task(api.stay_in_touch(bus.connection, LEDGER_STREAM))
        try:
            await reader.start()
            await service.start()
            await reader.ended.wait()
            if reader.failure is not None:
                raise reader.failure
        finally:
            in_touch.cancel()
            await service.stop()
            await reader.stop()
    finally:
        await store.close()


async def run_archive(bus: _Bus, _host: HostName) -> None:
    """Archive the ledger, and answer questions of the past, until cancelled."""
    from leasehold.services.archive.service import ArchiveService  # noqa: PLC0415 - as above

    ledger = JetStreamLedger(bus.connection, bus.subjects)
    in_touch = asyncio.create_task(api.stay_in_touch(bus.connection, LEDGER_STREAM))
    try:
        await ArchiveService(bus.connection, bus.subjects, ledger, bus.store.with_suffix("")).run()
    finally:
        in_touch.cancel()


async def run_feed(bus: _Bus, _host: HostName) -> None:
    """Tell the ledger's events until cancelled."""
    from leasehold.services.feed.keeping import FeedFiles  # noqa: PLC0415 - each process loads only what it needs
    from leasehold.services.feed.service import Feed  # noqa: PLC0415 - as above

    ledger = JetStreamLedger(bus.connection, bus.subjects)
    await Feed(bus.connection, bus.subjects, ledger, FeedFiles(bus.store.with_suffix(".snapshot"))).run()


async def run_watcher(bus: _Bus, host: HostName) -> None:
    """Watch this machine until cancelled."""
    from leasehold.services.watcher.agent import WatcherAgent  # noqa: PLC0415 - each process loads only what it needs

    await WatcherAgent(bus.connection, bus.subjects, host).run()


async def run_creator(bus: _Bus, host: HostName) -> None:
    """Make and destroy devices on this machine, as it is ordered, until cancelled."""
    from leasehold.services.creator.agent import CreatorAgent  # noqa: PLC0415 - each process loads only what it needs

    await CreatorAgent(bus.connection, bus.subjects, host, bus.store.with_suffix(".json")).run()


async def run_binder(bus: _Bus, host: HostName) -> None:
    """Hand devices of this machine over, and take them back, until cancelled."""
    from leasehold.services.binder.starting import binder_of  # noqa: PLC0415 - each process loads only what it needs

    await binder_of(bus.connection, bus.subjects, host, bus.store, stub=bus.place.stub, door=bus.place.door).run()


async def run_poller(bus: _Bus, host: HostName) -> None:
    """Tell of this machine's domains until cancelled."""
    from leasehold.services.poller.agent import PollerAgent  # noqa: PLC0415 - each process loads only what it needs
    from leasehold.services.poller.sources import open_source  # noqa: PLC0415 - as above

    await PollerAgent(bus.connection, bus.subjects, host, open_source(bus.place.source)).run()


_RUNNERS: Final[dict[str, Callable[[_Bus, HostName], Awaitable[None]]]] = {
    "allocator": run_allocator,
    "query": run_query,
    "archive": run_archive,
    "feed": run_feed,
    "watcher": run_watcher,
    "creator": run_creator,
    "binder": run_binder,
    "poller": run_poller,
}
ROLES: Final = tuple(_RUNNERS)
"""In the order in which they are started."""
_CREDENTIALS: Final = dict.fromkeys(("watcher", "creator", "binder", "poller"), "agent")
"""Whose credential a process has, where it is not named as the process is."""


def _reached(place: Place) -> tuple[home.ConnectionInfo, Credential]:
    """Where the bus is, and who we are there."""
    if not place.credentials:
        info = home.read_connection(place.data)
        return info, own_credential(info, _CREDENTIALS.get(place.role, place.role))
    credential = read_credential(Path(place.credentials))
    wanted = _CREDENTIALS.get(place.role, place.role)
    if credential.role != wanted:
        raise InvalidInputError(
            f"{place.credentials} is for {credential.role!r}; the {place.role} needs one for {wanted!r}",
            field="credentials",
        )
    url = place.nats or ",".join(credential.urls)
    if not url:
        raise InvalidInputError(f"{place.credentials} names no address of a bus; name one", field="nats")
    return home.ConnectionInfo(url=url, cluster=credential.cluster, data=str(place.data)), credential


def _host_of(place: Place, credential: Credential) -> HostName:
    if credential.role != "agent":
        return identities.parse_host(place.host) if place.host else home.own_host()
    if place.host and place.host != credential.name:
        raise InvalidInputError(
            f"the credential is for the agent of {credential.name}, so nothing can be reported of {place.host[:80]!r}",
            field="host",
        )
    return HostName(credential.name)


async def _run(place: Place) -> None:
    role = place.role
    info, credential = _reached(place)
    host = _host_of(place, credential)
    title = f"{place.title} {host}"
    connection = await connect(info.urls, credential=credential, name=title, timeout_s=CONNECT_WAIT_S)
    try:
        bus = _Bus(place, info, credential, connection)
        running = asyncio.ensure_future(_RUNNERS[role](bus, host))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await disconnect(connection)
        await end_tasks()


async def end_tasks() -> None:
    """End what still runs beside the caller, whatever it does with a cancellation.

    The client of the bus swallows one in some places, while it looks for a server that is gone, say; asyncio cancels
    each task once, and would then wait for it without end. What never ends is left to the end of the process.
    """
    for _ in range(END_ATTEMPTS_MAX):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        for task in left:
            task.cancel()
        done, _ = await asyncio.wait(left, timeout=END_ATTEMPT_S)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                _log.debug("ended with %r", task.exception())
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _log.warning("does not end, and is left: %s", ", ".join(sorted(repr(task.get_coro()) for task in left)))
        leave(EXIT_FAILED)


def _log_to(path: Path) -> None:
    # Also of the files that take the log's place when it is full.
    os.umask(0o077)
    try:
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=1)
        os.chmod(path, 0o600)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _cause(error: BaseException) -> BaseException:
    """The first of what a task group has gathered."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def run_role(place: Place) -> None:
    """Run one role until it is told to end (SIGTERM, SIGINT); what it has to say goes to its log in the data directory.

    Raises:
        LeaseholdError: what ended it.
    """
    if place.host:
        identities.parse_host(place.host)
    if place.name and not _NAME.fullmatch(place.name):
        raise InvalidInputError(f"{place.name[:80]!r} is not 1 to 32 of a-z, 0-9, - and _", field="name")
    if place.credentials:
        home.make_private_dir(place.data)
    # Rows and records make no cycles: looking for some, a large state would be walked again and again.
    gc.set_threshold(100_000, 50, 100)
    _log_to(place.data / f"{place.title}.log")
    try:
        asyncio.run(_run(place))
    except KeyboardInterrupt:
        return
    except BaseException as error:  # noqa: BLE001 - whatever ended it must stand in its log
        cause = _cause(error)
        is_ours = isinstance(cause, LeaseholdError)
        _log.critical("the %s stops: %s", place.title, cause if is_ours else repr(cause), exc_info=not is_ours)
        raise cause from None


def main(arguments: list[str] | None = None) -> int:
    """Run one role as a child of `up`; the exit code says how it ended: 5 the log is corrupt, 6 its store is in use."""
    parser = argparse.ArgumentParser(prog="leasehold-process", description="Run one of Leasehold's processes.")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--data", type=Path, required=True, help="the data directory of the `up` to join")
    parser.add_argument("--host", default="", help="this host's name")
    parser.add_argument("--name", default="", help="tells it apart from others of its role in the same directory")
    parser.add_argument("--source", default="", help="what a poller looks at")
    parser.add_argument("--stub", default="", help="what a binder binds PCI functions to")
    parser.add_argument("--door", default="", help="where a binder hears hooks")
    options = parser.parse_args(arguments)
    try:
        run_role(
            Place(
                role=options.role, data=options.data, host=options.host, name=options.name, source=options.source,
                stub=options.stub, door=options.door,
            )
        )
    except CorruptLedgerError:
        return EXIT_CORRUPT
    except StoreInUseError:
        return EXIT_IN_USE
    except Exception:  # noqa: BLE001 - its log has it
        return EXIT_FAILED
    return 0


def leave(code: int) -> NoReturn:
    """End this process now, whatever threads are left.

    An archive that was told to end has been seen to leave a thread of aiosqlite behind; how, is not known. Python would
    wait for it without end, with all locks held.
    """
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
