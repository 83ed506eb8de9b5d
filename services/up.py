"""`leasehold up`: everything on one machine, as one thing that starts, is watched over, and ends whole.

It starts the NATS server, then one process each for allocator, query service, archive, feed and watcher (creator and
binder, if they are allowed; poller, if there is something to poll), starts again what ends by itself, and takes
everything down.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import msgspec

from leasehold.events import identities, limits
from leasehold.events.errors import (
    CorruptLedgerError,
    InvalidInputError,
    LeaseholdError,
    ServerStartError,
    StoreInUseError,
    UnavailableError,
)
from leasehold.events.inputs import BINDER, POLLER
from leasehold.events.questions import Sync
from leasehold.events.subjects import Subjects
from leasehold.services import credentials, home, permissions
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.bus import Refusals
from leasehold.services.client import Client
from leasehold.services.connection import connect, disconnect
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Ledger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import NatsServer
from leasehold.services.processes import EXIT_CORRUPT, EXIT_FAILED, EXIT_IN_USE, ROLES
from leasehold.services.restoring import check_finished
from leasehold.services.room import keep_room
from leasehold.services.verifying.links import check_chain
from leasehold.services.verifying.witnesses import Witness, check_heads, heads_in

_log: Final = logging.getLogger(__name__)

READY_WAIT_S: Final = 30.0
RESTART_S_MIN: Final = 0.1
RESTART_S_MAX: Final = 5.0
STOP_WAIT_S: Final = 5.0
CANCEL_AGAIN_S: Final = 0.5
ALLOCATORS_MAX: Final = 8
ARCHIVE_FOLDER: Final = "archive"
CHILD: Final = "leasehold.services.processes"
"""The module that a child runs."""
SERVER_NAME: Final = "up"
"""What our own server is called where it speaks of its disk."""
CALM_S: Final = 10.0
"""A child that lived for so long is started again at once when it ends."""

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `nats`: the URLs (with commas between) of running servers to use instead of starting one;
    `credentials`: the directory of the credentials for them; `replicas`: on how many servers the log is kept;
    `allocators`: how many are started here.
    """

    data: Path
    cluster: str
    host: str
    nats: str = ""
    credentials: str = ""
    replicas: int = 1
    allocators: int = 1
    allow_create: bool = False
    """Let devices be made and destroyed on this host."""
    manage: bool = False
    """Hand leased devices of this host over, and take them back."""
    door: str = ""
    """Where hooks ask then; empty: where they look for it."""
    domains: str = ""
    """From where domains are told: a word of `services.poller.sources`; empty: they are not told."""


class Up:
    """One run of everything."""

    def __init__(self, options: Options, say: Say) -> None:
        """`say` shows a line to whoever started it."""
        if options.credentials:
            # Other commands will look for it from elsewhere.
            options = msgspec.structs.replace(options, credentials=str(Path(options.credentials).absolute()))
        self._options = options
        self._say = say
        self._server: NatsServer | None = None
        self._info = home.ConnectionInfo(url="", cluster="")
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failure: LeaseholdError | None = None
        self._started_ns = time.time_ns()

    @property
    def options(self) -> Options:
        """What was asked for."""
        return self._options

    @property
    def info(self) -> home.ConnectionInfo:
        """How the bus is reached."""
        return self._info

    async def run(self, on_ready: Callable[["Up"], Awaitable[None]]) -> None:
        """Run until told to end (SIGTERM, SIGINT), or until something cannot go on.

        Args:
            on_ready: awaited once everything answers and the devices of this host are known.

        Raises:
            LeaseholdError: it did not come up, or the log is not what it was.
        """
        _check(self._options)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            await self._start_bus()
            async with asyncio.TaskGroup() as tasks:
                working = [self._tend(title) for title in self.titles] + [self._announce(on_ready), self._check_chain()]
                if self._server is not None:
                    working += [self._tend_server(self._server), Refusals(self._options.data).run(), self._keep_room()]
                running = [tasks.create_task(self._guard(work)) for work in working]
                await self._stopping.wait()
                await _end_all(running)
        finally:
            await self._take_down()
        if self._failure is not None:
            raise self._failure

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one of the tasks; what it cannot cope with ends everything, in its own words."""
        try:
            await work
        except LeaseholdError as error:
            self._fail(error)

    # --- the bus --------------------------------------------------------------------------------------------------

    async def _start_bus(self) -> None:
        data = home.make_private_dir(self._options.data)
        check_finished(data, self._options.credentials)
        before = _known_connection(data)
        options = self._options
        if options.nats:
            url = options.nats
        else:
            credentials.ensure_own(data, cluster=options.cluster, host=options.host, operator=home.own_principal())
            credentials.ensure_launcher(data, options.cluster, SERVER_NAME)
            self._server = await _start_server(data, _port_of(before))
            url = self._server.url
        info = home.ConnectionInfo(
            url=url, cluster=options.cluster, data=str(data), own_server=not options.nats,
            credentials=options.credentials,
        )  # fmt: skip
        if options.nats:
            _check_keys(info, options.host)
        await _prepare_streams(info, data, options.replicas)
        home.write_connection(data, info)
        home.leave_pointer(data)
        self._info = info

    async def _tend_server(self, server: NatsServer) -> None:
        """Start the server again when it ends, at the same address: that is where everybody looks for it."""
        while True:
            started_s = time.monotonic()
            code = await server.wait()
            _log.error("nats-server ended with exit code %d; starting it again", code)
            await server.stop()
            if time.monotonic() - started_s < CALM_S:
                await asyncio.sleep(RESTART_S_MIN)
            port = urlparse(self._info.url).port or -1
            async with credentials.unchanged(self._options.data) as register:
                self._server = server = _server(self._options.data, register, port)
                await server.start()
            # What it has lost of the log, if anything, the readers see.

    async def _keep_room(self) -> None:
        data = self._options.data
        launcher = credentials.own_credential(self._info, "launcher")
        await keep_room(data, launcher, url=self._info.url, restart=self._restart_server)

    def _restart_server(self) -> None:
        if self._server is not None:
            self._server.terminate()

    async def _check_chain(self) -> None:
        """Go over the whole log once. The services begin at their snapshots, so what is older would go unnoticed.

        Raises:
            CorruptLedgerError: the first bad record is named.
        """
        while True:
            try:
                async with Client(self._options.data) as client:
                    ledger = client.ledger()
                    try:
                        await check_chain(ledger)
                        return
                    finally:
                        await ledger.close()
            except UnavailableError as error:
                _log.info("the log's chain cannot be gone over now: %s", error)
            await asyncio.sleep(RESTART_S_MAX)

    # --- the children ---------------------------------------------------------------------------------------------

    @property
    def titles(self) -> list[str]:
        """What is started: one of each role, and further allocators with a number behind their name."""
        further = [f"allocator-{number}" for number in range(2, self._options.allocators + 1)]
        options = self._options
        wanted = {"creator": options.allow_create, "binder": options.manage, "poller": bool(options.domains)}
        return [*(role for role in ROLES if wanted.get(role, True)), *further]

    async def _tend(self, title: str) -> None:
        pause_s = RESTART_S_MIN
        while True:
            started_s = time.monotonic()
            child = self._children[title] = await self._spawn(title)
            code = await child.wait()
            # A binder whose kernel does not let go of it is not gone when it was killed: the next one has to wait.
            if code in _HOPELESS and not (title == BINDER and code == EXIT_IN_USE):
                # Starting again would change nothing: whoever runs this has to look.
                self._fail(_HOPELESS[code](f"the {title} has stopped: {_last_words(self._options.data, title)}"))
                return
            pause_s = RESTART_S_MIN if time.monotonic() - started_s > CALM_S else min(pause_s * 2, RESTART_S_MAX)
            why = f" ({_last_words(self._options.data, title)})" if code in (EXIT_FAILED, EXIT_IN_USE) else ""
            _log.error("the %s ended with exit code %d%s; starting it again in %.1f s", title, code, why, pause_s)
            await asyncio.sleep(pause_s)

    async def _spawn(self, title: str) -> asyncio.subprocess.Process:
        role, _, name = title.partition("-")
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", CHILD, role,
            "--name", name, "--data", str(self._options.data), "--host", self._options.host,
            *(("--source", self._options.domains) if role == "poller" else ()),
            *(("--door", self._options.door) if role == "binder" else ()),
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=tied_to_us(),
            start_new_session=True,
        )  # fmt: skip

    def _fail(self, error: LeaseholdError) -> None:
        self._failure = error
        self._stopping.set()

    async def _announce(self, on_ready: Callable[["Up"], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(READY_WAIT_S):
                await self._until_ready()
        except TimeoutError:
            told = "; ".join(f"{title}: {_last_words(self._options.data, title)}" for title in self.titles)
            raise ServerStartError(f"not everything answers after {READY_WAIT_S:g} s ({told})") from None
        await on_ready(self)

    async def _until_ready(self) -> None:
        async with Client(self._options.data, patience_s=READY_WAIT_S) as client:
            while True:
                with contextlib.suppress(UnavailableError):
                    if await self._is_seen(client):
                        return
                await asyncio.sleep(0.05)

    async def _is_seen(self, client: Client) -> bool:
        """Whether our own watcher has reported: behind a crash the log still counts on the one before it."""
        host = self._options.host
        if host not in {row.host for row in await client.hosts()}:
            return False
        # Runs are times, and a run behind another is above it in any case.
        reading = await client.question("sync", Sync(host=host, limit=1))
        stale = {row.host: row.stale for row in await client.hosts()}[host]
        if not self._options.manage:
            return reading.source_run >= self._started_ns and is_stale_for_these_alone(stale, (POLLER, BINDER))
        acting = await client.question("sync", Sync(host=host, agent=BINDER, limit=1))
        is_new = min(reading.source_run, acting.source_run) >= self._started_ns
        return is_new and is_stale_for_these_alone(stale, (POLLER,))

    # --- the end --------------------------------------------------------------------------------------------------

    async def _take_down(self) -> None:
        # What was started last ends first.
        for title in reversed(self.titles):
            child = self._children.pop(title, None)
            if child is not None:
                await _end(child)
        if self._server is not None:
            await self._server.stop()
        if self._info.url:
            # Else it is another's, whom we found here.
            home.remove_pointer(self._options.data)


async def _end_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: asyncio and the NATS client lose a cancellation that comes at the wrong moment."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)


_HOPELESS: Final[dict[int, type[LeaseholdError]]] = {EXIT_CORRUPT: CorruptLedgerError, EXIT_IN_USE: StoreInUseError}


def _last_words(data: Path, role: str) -> str:
    """The last line of a child's log that says what stopped it."""
    try:
        lines = (data / f"{role}.log").read_text(errors="replace").splitlines()
    except OSError:
        return f"see {role}.log"
    said = [line for line in lines if f"the {role} stops: " in line]
    return said[-1].partition(f"the {role} stops: ")[2] if said else f"see {role}.log"


def _known_connection(data: Path) -> home.ConnectionInfo | None:
    try:
        return home.read_connection(data)
    except UnavailableError:
        return None


def _port_of(info: home.ConnectionInfo | None) -> int:
    """The port of the last run if it is free, so that clients which reconnect find us; else any."""
    port = urlparse(info.url).port if info is not None else None
    if not port:
        return -1
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return -1
    return port


def _server(data: Path, register: credentials.Register, port: int) -> NatsServer:
    keeper = credentials.own_credential(home.ConnectionInfo(url="", cluster=register.cluster, data=str(data)), "keeper")
    return NatsServer(data, users=permissions.render(register.users, register.cluster), probe=keeper, port=port)


async def _start_server(data: Path, port: int) -> NatsServer:
    async with credentials.unchanged(data) as register:
        server = _server(data, register, port)
        try:
            await server.start()
        except ServerStartError:
            if port == -1:
                raise
            server = _server(data, register, -1)
            await server.start()
    return server


def _check_keys(info: home.ConnectionInfo, host: str) -> None:
    """Raises InvalidInputError or UnavailableError unless the keys for another's server are all there, and are ours."""
    for role in credentials.OWN_ROLES:
        path, key = credentials.path_of(info, role), credentials.own_credential(info, role)
        if (key.role, key.cluster) != (role, info.cluster):
            raise InvalidInputError(
                f"{path} is a key of role {key.role} in cluster {key.cluster!r}; "
                f"needed is one of role {role} in {info.cluster!r}",
                field="credentials",
            )
        if role == "agent" and key.name != host:
            raise InvalidInputError(f"{path} is for host {key.name!r}; this one is {host!r} (--host)", field="host")


async def _prepare_streams(info: home.ConnectionInfo, data: Path, replicas: int) -> None:
    """Make the streams unless there should be some: a log that was read before is never begun anew.

    Raises:
        LeaseholdError: the log is not the one that was read before, or cannot be used.
    """
    archived = await _archived(data)
    heads = [*await heads_in(data), *archived]
    keeper = credentials.own_credential(info, "keeper")
    connection = await connect(info.urls, credential=keeper, name="up")
    subjects = Subjects(info.cluster)
    try:
        if heads:
            await _check_heads(JetStreamLedger(connection, subjects), heads, archived)
        await ensure_streams(connection, subjects, replicas=replicas)
    finally:
        await disconnect(connection)


async def _check_heads(ledger: Ledger, heads: list[Witness], archived: list[Witness]) -> None:
    try:
        await check_heads(ledger, heads)
    except CorruptLedgerError as error:
        if not archived:
            raise
        known = f"records 1 to {archived[0].sequence} stand in {ARCHIVE_FOLDER}/"
        raise CorruptLedgerError(
            f"{error} ({known}: `leasehold restore-ledger` makes the log of them again)"
        ) from error


async def _archived(data: Path) -> list[Witness]:
    """How far the archive has gone, if there is one; what is wrong with it is no reason not to go on without it."""
    directory = data / ARCHIVE_FOLDER
    if not directory.is_dir():
        return []
    try:
        view = await ArchivedLedger(directory).view()
    except LeaseholdError as error:
        _log.error("the archive cannot be read: %s", error)
        return []
    if not view.sequence:
        return []
    at = {name: getattr(view, name) for name in ("ledger_id", "era", "sequence", "chain")}
    return [Witness(name="the archive", **at)]


def _check(options: Options) -> None:
    """Raises InvalidInputError."""
    identities.parse_host(options.host)
    Subjects(options.cluster)
    home.own_principal()
    if not 1 <= options.allocators <= ALLOCATORS_MAX:
        raise InvalidInputError(f"1 to {ALLOCATORS_MAX} are possible", field="allocators")
    if bool(options.nats) != bool(options.credentials):
        raise InvalidInputError("a server that is not ours is joined with --nats and --credentials DIR", field="nats")
    try:
        for url in options.nats.split(",") if options.nats else ():
            if not urlparse(url).hostname:
                raise InvalidInputError(f"{url!r} names no server; one looks like nats://host:4222", field="nats")
            urlparse(url).port  # noqa: B018 - raises where it makes no sense
    except ValueError as error:
        raise InvalidInputError(f"{options.nats!r} cannot be read ({error})", field="nats") from error


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(STOP_WAIT_S):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def is_stale_for_these_alone(stale: str, agents: Collection[str]) -> bool:
    """Whether a host is stale, by `HostView.stale`, only as some of these see nothing, or are not heard any more; or is
    not stale at all.

    Everything else works then, and an operator can say that they will not come back.
    """
    doubts = stale.split("; ") if stale else []
    return all(doubt.partition(": ")[0] in agents for doubt in doubts)


def weaker_promises(options: Options) -> list[str]:
    """What this way of running does not promise, in sentences for people."""
    told = [
        (
            "one server keeps the log, and its archive lies on the same disk: if that is lost, both are (three servers "
            "would keep the log; `leasehold archive backup` copies the archive)"
        ),
        (
            f"host {options.host} is only watched: a device counts as free when no user of it is seen, "
            f"and that is looked at every {limits.RESCAN_MS // 1000} s at least"
        ),
        "who can read the data directory has the keys of all who run here: they are files of this user (mode 0600)",
    ]
    if options.manage:
        told[1] = (
            f"on host {options.host} leased devices are taken from their drivers, and given back behind the lease's "
            "end: who may lease acts on it"
        )
    if options.allow_create:
        told.append("operators can have virtual HBAs and mediated devices made and destroyed on this host")
    if options.nats:
        told[0] = "the given NATS server decides how safe the log is: its replicas and sync_interval are not ours"
    return told
