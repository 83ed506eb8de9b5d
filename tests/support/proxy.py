"""A wire between a client and a server on this machine that can be cut, stalled, or made to lose one direction."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from urllib.parse import urlparse

WAIT_S = 20.0


class Flow(Enum):
    """What a direction does with what it is given."""

    PASS = "pass"
    HOLD = "hold"
    DROP = "drop"


class Direction:
    """One direction of all links: `up` from client to server, `down` the other way."""

    def __init__(self) -> None:
        self.flow = Flow.PASS
        self.seen = bytearray()
        """Everything that came in while `flow` was not PASS."""
        self._changed = asyncio.Condition()

    async def note(self, data: bytes) -> None:
        """Remember `data`."""
        async with self._changed:
            self.seen += data
            self._changed.notify_all()

    async def wait_for(self, text: bytes) -> None:
        """Wait until `text` has been held or dropped."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: text in self.seen)


class Link:
    """One client's connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.held_up = bytearray()
        self.held_down = bytearray()
        self.answered = bytearray()
        """What the server sent since the client was cut off alone."""
        self.client_gone = False
        self._answer = asyncio.Event()

    def abort(self) -> None:
        """Break it at both ends."""
        self.client.transport.abort()
        self.server.transport.abort()

    async def take_answer(self, data: bytes) -> None:
        """Keep what nobody reads any more."""
        self.answered += data
        self._answer.set()

    async def send_late(self, answer: bytes) -> None:
        """Send on what was held for the server, and wait until it has said `answer` to it (the client is gone)."""
        self.server.write(bytes(self.held_up))
        self.held_up.clear()
        async with asyncio.timeout(WAIT_S):
            while answer not in self.answered:
                self._answer.clear()
                await self._answer.wait()


class Proxy:
    """Listens on a port of its own and passes everything on, until told otherwise."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.up = Direction()
        self.down = Direction()
        self.links: list[Link] = []
        """Those that have not been cut."""
        self._all_links: list[Link] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Event()
        self._moving.set()
        self._cut_after: list[int] = []
        """Bytes that the server may still send before each of the cuts to come."""

    async def serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        await self._moving.wait()
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            client.close()
            return
        link = Link(client, server)
        self.links.append(link)
        self._all_links.append(link)
        up = asyncio.create_task(self._carry(client_reader, link, self.up))
        down = asyncio.create_task(self._carry(server_reader, link, self.down))
        self._tasks |= {up, down}
        await asyncio.wait({up, down})
        self._tasks -= {up, down}

    async def _carry(self, reader: asyncio.StreamReader, link: Link, direction: Direction) -> None:
        upward = direction is self.up
        try:
            while data := await reader.read(65_536):
                await self._moving.wait()
                if not upward and link.client_gone:
                    await link.take_answer(data)
                elif direction.flow is Flow.PASS:
                    (link.server if upward else link.client).write(data)
                    if not upward and self._is_cut_due(len(data)):
                        self.cut()
                else:
                    if direction.flow is Flow.HOLD:
                        (link.held_up if upward else link.held_down).extend(data)
                    await direction.note(data)
        except ConnectionError:
            pass
        if not (upward and link.client_gone):
            link.client.close()
            link.server.close()

    def freeze(self) -> None:
        """Carry nothing, and take no new connection, as a network that is down: who sends hears neither yes nor no."""
        self._moving.clear()

    def thaw(self) -> None:
        """Carry on. What was sent meanwhile arrives late."""
        self._moving.set()

    def cut(self) -> None:
        """Break all connections at both ends, and pass everything from now on."""
        self.up.flow = self.down.flow = Flow.PASS
        for link in self.links:
            link.abort()
        self.links.clear()

    def cut_each(self, size: int, times: int) -> None:
        """Cut `times` times, each time when the server has sent `size` bytes more: where that falls, it falls."""
        self._cut_after = [size] * times

    @property
    def cuts_to_come(self) -> int:
        """How many of them have not been made yet."""
        return len(self._cut_after)

    def _is_cut_due(self, sent: int) -> bool:
        if not self._cut_after:
            return False
        self._cut_after[0] -= sent
        if self._cut_after[0] > 0:
            return False
        del self._cut_after[0]
        return True

    def cut_client_off(self) -> Link:
        """Break the only connection at the client's end alone: what is held for the server can still be sent."""
        (link,) = self.links
        self.links.clear()
        self.up.flow = self.down.flow = Flow.PASS
        link.client_gone = True
        link.client.transport.abort()
        return link

    async def close(self) -> None:
        """End what still runs."""
        for link in self._all_links:
            link.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server at `url`."""
    port = urlparse(url).port
    assert port is not None
    proxy = Proxy(port)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()
        await listener.wait_closed()
