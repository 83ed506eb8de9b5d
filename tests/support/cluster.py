"""Three real NATS servers on this machine, replicated three times, whose wires to each other can be cut.

Every route between two servers leads through a proxy of its own, and clients may come through one too. What a server
tells the others of its address leads nowhere, so that they have no way around the proxies.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events.errors import UnavailableError
from leasehold.events.subjects import LEDGER_STREAM
from leasehold.services import permissions
from leasehold.services.connection import Connection
from leasehold.services.credentials import Credential
from leasehold.services.ledger import api
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import ClusterPeer, NatsServer
from tests.support.proxy import Proxy, proxy_to
from tests.support.servers import SUBJECTS, TESTER, connected

SERVERS: Final = 3
STREAMS: Final = ("LEDGER", "OBSERVED", "EVENTS", "KV_HINT")
WAIT_S: Final = 60.0
_POLL_S: Final = 0.02
_ASK_S: Final = 1.0
_NOWHERE: Final = "127.0.0.1:1"
_SECRET: Final = "what-peers-show-each-other"


class _Group(msgspec.Struct, frozen=True):
    leader: str = ""


class _Info(msgspec.Struct, frozen=True):
    cluster: _Group = _Group()


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def users_of(credentials: Iterable[Credential], testers: Iterable[str]) -> dict[str, str]:
    """Users with the rights of their roles, and beside them, by their keys, some who may do everything in `ledger`."""
    users = permissions.render([each.user for each in credentials], SUBJECTS.cluster)
    unbound = "".join(f"  {{nkey: {key}}}\n" for key in testers)
    users["ledger"] = users["ledger"].replace("users: [\n", f"users: [\n{unbound}", 1)
    return users


class Cluster:
    """Three servers, `s1` to `s3`. All of them run unless they were killed."""

    def __init__(self, folder: Path, credentials: Iterable[Credential], testers: Iterable[str]) -> None:
        ports = free_ports(2 * SERVERS)
        self._folder = folder
        self._users = users_of(credentials, {TESTER.user.public_key, *testers})
        self._client_ports = ports[:SERVERS]
        self._route_ports = ports[SERVERS:]
        self._routes: dict[tuple[int, int], Proxy] = {}
        self._doors: list[Proxy] = []
        self._servers: list[NatsServer | None] = [None] * SERVERS

    # --- start and end --------------------------------------------------------------------------------------------

    async def open(self, stack: AsyncExitStack) -> None:
        """Start all, and make the streams."""
        for number in range(SERVERS):
            for other in range(SERVERS):
                if other != number:
                    to = f"nats://127.0.0.1:{self._route_ports[other]}"
                    self._routes[number, other] = await stack.enter_async_context(proxy_to(to))
            door = proxy_to(f"nats://127.0.0.1:{self._client_ports[number]}")
            self._doors.append(await stack.enter_async_context(door))
        stack.push_async_callback(self._stop)
        await self.start(*range(SERVERS))
        async with connected(self.urls[0]) as client:
            await _made_streams(client)

    async def start(self, *numbers: int) -> None:
        """Start these, and wait until they answer: so many at once that there is a majority."""
        for number in numbers:
            assert self._servers[number] is None, "it runs already"
            routes = [self._routes[number, other] for other in range(SERVERS) if other != number]
            peer = ClusterPeer(
                name=SUBJECTS.cluster,
                server_name=f"s{number + 1}",
                port=self._route_ports[number],
                routes=tuple(proxy.url.removeprefix("nats://") for proxy in routes),
                secret=_SECRET,
                advertise=_NOWHERE,
            )
            data, port = self._folder / f"s{number + 1}", self._client_ports[number]
            self._servers[number] = NatsServer(data, users=self._users, probe=TESTER, port=port, peer=peer)
        await asyncio.gather(*(self.server(number).start() for number in numbers))

    async def kill(self, *numbers: int) -> None:
        """Kill these at once (SIGKILL)."""
        for number in numbers:
            self.server(number).kill()
        for number in numbers:
            await self.server(number).wait()
            await self.server(number).stop()
            self._servers[number] = None

    async def _stop(self) -> None:
        self.heal()
        await asyncio.gather(*(server.stop() for server in self._servers if server is not None))

    def server(self, number: int) -> NatsServer:
        """One that runs."""
        server = self._servers[number]
        assert server is not None, "it was killed"
        return server

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def urls(self) -> list[str]:
        """Where clients connect, past all proxies; the same after a restart."""
        return [f"nats://127.0.0.1:{port}" for port in self._client_ports]

    @property
    def doors(self) -> list[Proxy]:
        """For clients that can be cut off from their server."""
        return self._doors

    # --- wires ----------------------------------------------------------------------------------------------------

    def cut_off(self, number: int) -> None:
        """Let nothing pass between this server and the others, and tell neither side."""
        for pair, proxy in self._routes.items():
            if number in pair:
                proxy.freeze()

    def heal(self) -> None:
        """Let everything pass; what was sent meanwhile arrives late."""
        for proxy in (*self._routes.values(), *self._doors):
            proxy.thaw()

    # --- who leads ------------------------------------------------------------------------------------------------

    async def leader(self, clients: Sequence[Connection], stream: str = LEDGER_STREAM, *, but: int = -1) -> int:
        """Which server leads the stream now; waits until one does, and it is not `but`.

        Args:
            clients: A connection to each of the servers that is asked.
        """
        async with asyncio.timeout(WAIT_S):
            while True:
                for client in clients:
                    found = await self.leader_as_told(client, stream)
                    if found not in (-1, but):
                        return found
                await asyncio.sleep(_POLL_S)

    async def leader_as_told(self, client: Connection, stream: str = LEDGER_STREAM) -> int:
        """Who leads the stream by the word of one server; -1 if it cannot say."""
        with contextlib.suppress(UnavailableError, msgspec.DecodeError):
            reply = await client.ask(f"$JS.API.STREAM.INFO.{stream}", timeout_s=_ASK_S)
            if not reply.status:
                name = msgspec.json.decode(reply.body, type=_Info).cluster.leader
                return int(name[1:]) - 1 if name else -1
        return -1

    async def step_down(self, client: Connection, stream: str = LEDGER_STREAM) -> None:
        """Have the stream's leader hand over."""
        reply = await client.ask(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", timeout_s=_ASK_S)
        assert not reply.status and b'"success":true' in reply.body, reply


@asynccontextmanager
async def running_cluster(
    folder: Path, credentials: Iterable[Credential] = (), testers: Iterable[str] = ()
) -> AsyncIterator[Cluster]:
    """Three servers with their streams, which let these in (testers by their public keys); stopped in the end."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(folder, credentials, testers)
        await cluster.open(stack)
        yield cluster


async def fresh_streams(urls: list[str]) -> None:
    """Empty streams, replicated on all three."""
    async with connected(urls[0]) as client:
        for stream in STREAMS:
            await client.ask(f"$JS.API.STREAM.DELETE.{stream}", timeout_s=api.API_TIMEOUT_S)
        await _made_streams(client)


async def _made_streams(client: Connection) -> None:
    """Make the streams. A majority that answers may still be waiting for the third."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await ensure_streams(client, SUBJECTS, replicas=SERVERS)
            except UnavailableError:
                await asyncio.sleep(_POLL_S)


async def _serve(folder: Path, tester: str) -> None:
    async with running_cluster(folder, testers=[tester]) as cluster:
        print(*cluster.urls, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
