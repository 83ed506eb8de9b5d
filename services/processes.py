"""The processes behind `leasehold up`: allocator, query service, watcher; each can also be started alone.

`python -m leasehold.services.processes ROLE --data DIR` is what `leasehold run ROLE` does.
"""

import argparse
import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import CorruptLedgerError, LeaseholdError, StorageError, StoreInUseError
from leasehold.events.identities import HostName
from leasehold.events.subjects import LEDGER_STREAM, Subjects
from leasehold.projections.state import State
from leasehold.services import home
from leasehold.services.allocator.service import Allocator
from leasehold.services.allocator.wire import Wire
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.observed import ObservedReader
from leasehold.services.ledger.port import Ledger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore

_log: Final = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_CORRUPT: Final = 5
EXIT_IN_USE: Final = 6
LOG_BYTES_MAX: Final = 8 * 1024 * 1024
CONNECT_WAIT_S: Final = 10.0


class _Bus:
    """A process's connection, and what hangs on it."""

    def __init__(self, data: Path, connection: Connection, subjects: Subjects) -> None:
        self.data = data
        self.connection = connection
        self.subjects = subjects


async def run_allocator(bus: _Bus, _host: HostName) -> None:
    """Decide until cancelled."""
    ledger = JetStreamLedger(bus.connection, bus.subjects)
    store = await FoldStore.open(bus.data / "allocator.sqlite")
    try:
        state = await _read_state(ledger, store)
        keeper = _Keeper(store)
        writer = f"{home.own_host()}.{os.getpid()}.{time.time_ns()}"
        allocator = Allocator(
            ledger=ledger,
            observed=ObservedReader(bus.connection),
            subjects=bus.subjects,
            server_time=lambda: api.server_time_ns(bus.connection, LEDGER_STREAM),
            state=state,
            writer=writer,
            on_record=keeper.after_record,
        )
        wire = Wire(bus.connection, bus.subjects, allocator, name=f"allocator-{os.getpid()}")
        await wire.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(allocator.run())
                tasks.create_task(wire.send_replies())
                tasks.create_task(_beat(wire))
        finally:
            await wire.stop()
            if allocator.sequencer.in_flight is None:
                await store.save_snapshot(state)
    finally:
        await store.close()


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


async def _beat(wire: Wire) -> None:
    while True:
        await asyncio.sleep(limits.HEARTBEAT_ANSWER_MS / 1_000)
        wire.answer_heartbeats()


class _Keeper:
    """Keeps the allocator's fold: the head often, the whole state now and then."""

    def __init__(self, store: FoldStore) -> None:
        self._store = store
        self._noted_s = 0.0
        self._saved_s = time.monotonic()
        self._saved_sequence = 0
        self._complaint = ""

    async def after_record(self, state: State) -> None:
        """Keep what is due. A disk that does not take it stops no decision: the log itself is what counts."""
        try:
            await self._keep(state)
        except StorageError as error:
            if str(error) != self._complaint:
                _log.error("the fold is not kept: %s", error)
            self._complaint = str(error)

    async def _keep(self, state: State) -> None:
        now_s = time.monotonic()
        head = state.head
        is_many = head.sequence - self._saved_sequence >= limits.SNAPSHOT_RECORDS
        if is_many and now_s - self._saved_s > limits.SNAPSHOT_INTERVAL_MS / 1_000:
            await self._store.save_snapshot(state)
            self._saved_s, self._saved_sequence = now_s, head.sequence
        elif now_s - self._noted_s > limits.HEAD_NOTE_MS / 1_000:
            await self._store.note(head)
            self._noted_s = now_s


async def run_query(bus: _Bus, _host: HostName) -> None:
    """Answer questions until cancelled."""
    from leasehold.services.query.service import QueryService  # noqa: PLC0415 - each process loads only what it needs

    ledger = JetStreamLedger(bus.connection, bus.subjects)
    store = await FoldStore.open(bus.data / "query.sqlite")
    try:
        reader = LedgerReader(ledger, store)
        service = QueryService(bus.connection, bus.subjects, reader, ledger, store)
        try:
            await reader.start()
            await service.start()
            await reader.ended.wait()
            if reader.failure is not None:
                raise reader.failure
        finally:
            await service.stop()
            await reader.stop()
    finally:
        await store.close()


async def run_watcher(bus: _Bus, host: HostName) -> None:
    """Watch this machine until cancelled."""
    from leasehold.services.watcher.agent import WatcherAgent  # noqa: PLC0415 - each process loads only what it needs

    await WatcherAgent(bus.connection, bus.subjects, host).run()


_RUNNERS: Final[dict[str, Callable[[_Bus, HostName], Awaitable[None]]]] = {
    "allocator": run_allocator,
    "query": run_query,
    "watcher": run_watcher,
}
ROLES: Final = tuple(_RUNNERS)
"""In the order in which they are started."""


async def _run(role: str, data: Path, host: HostName) -> None:
    info = home.read_connection(data)
    connection = await connect(
        info.url, user=info.user, password=info.password, name=f"{role} {host}", timeout_s=CONNECT_WAIT_S
    )
    try:
        bus = _Bus(data, connection, Subjects(info.cluster))
        await ensure_streams(connection, bus.subjects)
        running = asyncio.ensure_future(_RUNNERS[role](bus, host))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await disconnect(connection)


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=1)
    os.chmod(path, 0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _cause(error: BaseException) -> BaseException:
    """The first of what a task group has gathered."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main(arguments: list[str] | None = None) -> int:
    """Run one role; the exit code says how it ended: 5 the log is corrupt, 6 its store is in use."""
    parser = argparse.ArgumentParser(prog="leasehold-process", description="Run one of Leasehold's processes.")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--data", type=Path, required=True, help="the data directory of the `up` to join")
    parser.add_argument("--host", default="", help="this host's name")
    options = parser.parse_args(arguments)
    _log_to(options.data / f"{options.role}.log")
    try:
        asyncio.run(_run(options.role, options.data, HostName(options.host) if options.host else home.own_host()))
    except BaseException as error:  # noqa: BLE001 - whatever ended it must stand in its log
        cause = _cause(error)
        if isinstance(cause, KeyboardInterrupt):
            return 0
        _log.critical("the %s stops: %s", options.role, cause, exc_info=not isinstance(cause, LeaseholdError))
        if isinstance(cause, CorruptLedgerError):
            return EXIT_CORRUPT
        return EXIT_IN_USE if isinstance(cause, StoreInUseError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
