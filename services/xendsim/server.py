"""The stand-in as a process: its sockets, its clock, and the file that keeps what there is.

What happened is in the file before it is told: who kills this process and starts it again finds the same domains, with
the same numbers, as one finds guests after xend was killed. What would have happened meanwhile happens then.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError, StorageError, StoreInUseError
from leasehold.services.xendsim import control
from leasehold.services.xendsim.calls import Xend
from leasehold.services.xendsim.hypervisor import Host
from leasehold.services.xendsim.state import FORMAT, State
from leasehold.services.xendsim.wire import Faults, Served, Wire

_log: Final = logging.getLogger(__name__)

STATE_FILE: Final = "hypervisor.json"
HTTP_SOCKET: Final = "xend-socket"
XMLRPC_SOCKET: Final = "xmlrpc.sock"
CONTROL_SOCKET: Final = "control.sock"
_SOCKET_PATH_MAX: Final = 107
_UNIX_PORT: Final = 8_080
"""The port that the genuine one puts into addresses when it listens on a Unix socket."""
_BACKLOG: Final = 5


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`http` and `xmlrpc`: addresses and ports beside the Unix sockets, (address, 0: any port); `seed`: of what is made
    up, for a new host; `with_http`: whether xend's HTTP server is on at all.
    """

    directory: Path
    http: tuple[str, int] | None = None
    xmlrpc: tuple[str, int] | None = None
    with_http: bool = True
    domains: int = 0
    seed: int = 0
    scenario: Path | None = None


def read_scenario(path: Path) -> tuple[State, list[list[str]]]:
    """What a scenario file begins with: fields of `State`, and `orders` to be carried out.

    Raises:
        InvalidInputError: it cannot be read.
    """

    class Scenario(State, kw_only=True):
        """A state, and what is to happen at once."""

        orders: list[list[str]] = msgspec.field(default_factory=list)

    try:
        scenario = msgspec.json.decode(path.read_bytes(), type=Scenario, strict=True)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidInputError(f"{path}: {error}", field="scenario") from error
    return scenario, scenario.orders


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Stand:
    """A host with its xend, on sockets."""

    def __init__(self, options: Options, now_ms: Callable[[], int] = _now_ms) -> None:
        self._options = options
        self._now_ms = now_ms
        self._path = options.directory / STATE_FILE
        state, orders = self._load()
        self.host = Host(state, now_ms())
        self._xend = Xend(self.host)
        self.wire = Wire(self._turn, self._save)
        self._servers: list[asyncio.Server] = []
        self._ports: dict[str, int] = {}
        self._written = -1
        self._changed = asyncio.Event()
        self._outage: asyncio.Task[None] | None = None
        self.addresses: list[str] = []
        """Where it listens, once it does."""
        if state.xend_starts == 0:
            control.make(self.host, options.domains)
            for order in orders:
                control.act(self, order)

    @property
    def faults(self) -> Faults:
        """What goes wrong on the wire."""
        return self.wire.faults

    # --- the file ---------------------------------------------------------------------------------------------------

    def _load(self) -> tuple[State, list[list[str]]]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            if self._options.scenario is not None:
                return read_scenario(self._options.scenario)
            return State(seed=self._options.seed), []
        except OSError as error:
            raise StorageError(f"{self._path}: {error}") from error
        try:
            state = msgspec.json.decode(data, type=State)
        except msgspec.MsgspecError as error:
            raise StorageError(f"{self._path} cannot be read ({error}); remove it to begin anew") from error
        if state.format != FORMAT:
            raise StorageError(f"{self._path} is of format {state.format}, not {FORMAT}; remove it to begin anew")
        return state, []

    def _save(self) -> None:
        if self._written == self.host.changes:
            return
        self._written = self.host.changes
        beside = self._path.with_suffix(".new")
        try:
            beside.write_bytes(msgspec.json.encode(self.host.state))
            beside.replace(self._path)
        except OSError as error:
            raise StorageError(f"{self._path}: {error}") from error
        self._changed.set()

    # --- time -------------------------------------------------------------------------------------------------------

    def _turn(self) -> Xend:
        self.host.advance(self._now_ms())
        return self._xend

    async def run(self) -> None:
        """Let time go on, until cancelled: what is due is written down also while nobody asks."""
        while True:
            self._turn()
            self._save()
            self._changed.clear()
            due_ms = self.host.next_ms()
            wait_s = None if due_ms is None else max(0.001, (due_ms - self._now_ms()) / 1000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    # --- sockets ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """All sockets, and the clock, for as long as this lasts."""
        guard = await self._listen_unix(CONTROL_SOCKET, self._obey)
        self.host.state.xend_starts += 1
        self.host.changes += 1
        self._turn()
        self._save()
        clock = asyncio.ensure_future(self.run())
        try:
            await self._open()
            yield
        finally:
            for task in (clock, self._outage):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            await self._close()
            guard.close()
            (self._options.directory / CONTROL_SOCKET).unlink(missing_ok=True)

    async def _open(self) -> None:
        wire, options = self.wire, self._options
        self.addresses = []
        if options.with_http:
            self._servers.append(await self._listen_unix(HTTP_SOCKET, wire.http(_UNIX_PORT)))
            self.addresses.append(f"unix:{options.directory / HTTP_SOCKET}")
        self._servers.append(await self._listen_unix(XMLRPC_SOCKET, wire.xmlrpc()))
        self.addresses.append(f"xmlrpc:{options.directory / XMLRPC_SOCKET}")
        for scheme, wanted in (("http", options.http), ("xmlrpc", options.xmlrpc)):
            if wanted is None:
                continue
            # One that was chosen freely stays the same while this process lives.
            place = wanted[0], wanted[1] or self._ports.get(scheme, 0)
            try:
                bound = socket.create_server(place, family=socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
            except OSError as error:
                raise InvalidInputError(f"cannot listen on {place[0]}:{place[1]}: {error}", field=scheme) from error
            port = self._ports.setdefault(scheme, bound.getsockname()[1])
            serve = wire.xmlrpc() if scheme == "xmlrpc" else wire.http(port)
            self._servers.append(await asyncio.start_server(serve, sock=bound, backlog=_BACKLOG))
            shown = f"[{place[0]}]" if ":" in place[0] else place[0]
            self.addresses.append(f"{scheme}://{shown}:{port}")

    async def _listen_unix(self, name: str, serve: Served) -> asyncio.Server:
        path = self._options.directory / name
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise InvalidInputError(f"{path} is longer than {_SOCKET_PATH_MAX} bytes, for a socket", field="dir")
        if await _is_served(path):
            raise StoreInUseError(f"another stand-in uses {self._options.directory}")
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(serve, path, backlog=_BACKLOG)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        await self.wire.close()
        for name in (HTTP_SOCKET, XMLRPC_SOCKET):
            (self._options.directory / name).unlink(missing_ok=True)

    def down(self, for_ms: int, empty_ms: int) -> None:
        """Close xend's sockets for a while; afterwards it shows only Domain-0 for `empty_ms`."""
        if self._outage is not None and not self._outage.done():
            raise InvalidInputError("it is down already", field="down")
        self._outage = asyncio.ensure_future(self._be_down(for_ms, empty_ms))

    async def back(self) -> None:
        """Wait until it is not down any more."""
        if self._outage is not None:
            await asyncio.wait({self._outage})

    async def _be_down(self, for_ms: int, empty_ms: int) -> None:
        await self._close()
        await asyncio.sleep(for_ms / 1000)
        self.host.empty_until_ms = self._now_ms() + empty_ms if empty_ms else 0
        await self._open()

    # --- orders -----------------------------------------------------------------------------------------------------

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), 10)
            self._turn()
            try:
                said = {"done": control.act(self, msgspec.json.decode(line, type=list[str]))}
            except (InvalidInputError, msgspec.MsgspecError) as error:
                said = {"error": str(error)}
            self._save()
            writer.write(msgspec.json.encode(said) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            _log.warning("an order was not heard: %s", error)
        finally:
            writer.close()


async def _is_served(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def give_order(directory: Path, words: list[str]) -> object:
    """Tell a stand-in that runs what to do; what it answers.

    Raises:
        InvalidInputError: it refuses, or none runs there.
    """
    path = directory / CONTROL_SOCKET
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=64 * 1024 * 1024)
    except OSError as error:
        raise InvalidInputError(f"no stand-in listens on {path} ({error.strerror})", field="dir") from error
    try:
        writer.write(msgspec.json.encode(words) + b"\n")
        async with asyncio.timeout(30):
            said = msgspec.json.decode(await reader.readline(), type=dict[str, object])
    finally:
        writer.close()
    if "error" in said:
        raise InvalidInputError(str(said["error"]))
    return said.get("done")
