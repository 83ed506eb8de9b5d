"""xend's sockets: how it frames replies, forgets to close connections, and does not reply at all.

Each connection has its task. What the genuine one keeps open until a collection of garbage is kept open for
`linger_ms`, and nothing is read from it: a second request on it hears nothing.
"""

import asyncio
import contextlib
import email.utils
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from leasehold.events import limits
from leasehold.services.xendsim import rpc, web
from leasehold.services.xendsim.calls import Xend

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None] | None]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CONNECTIONS_MAX: Final = 512
IDLE_S: Final = 300.0
_HEADERS_MAX: Final = 200
_RPC_BYTES_MAX: Final = 4 * 1024 * 1024
_METHODS_IN_RPC: Final = ("POST",)
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: what is closed is reset."""


class Faults(msgspec.Struct):
    """What goes wrong by order. Counts: so many of the next replies; -1: all of them."""

    slow_ms: int = 0
    silent: int = 0
    cut: int = 0

    def spend(self, name: str) -> bool:
        """Whether this reply is one of them."""
        count: int = getattr(self, name)
        if count > 0:
            setattr(self, name, count - 1)
        return count != 0


class Wire:
    """Connections of both protocols. `turn`: lets time go on and gives xend; `done`: writes down what has changed."""

    def __init__(self, turn: Callable[[], Xend], done: Callable[[], None]) -> None:
        self._turn = turn
        self._done = done
        self._open: set[asyncio.Task[None]] = set()
        self.faults = Faults()
        self.keeps = asyncio.Event()
        """A connection is kept open on which nothing will be said any more."""

    # --- connections ------------------------------------------------------------------------------------------------

    def http(self, port: int) -> Served:
        """Serves HTTP; `port`: what the server believes to be its own."""
        return lambda reader, writer: self._begin(lambda: self._serve_http((reader, writer), port), writer)

    def xmlrpc(self) -> Served:
        """Serves XML-RPC."""
        return lambda reader, writer: self._begin(lambda: self._serve_rpc((reader, writer)), writer)

    def _begin(self, serve: Callable[[], Coroutine[Any, Any, None]], writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.ensure_future(self._serve(serve, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    @staticmethod
    async def _serve(serve: Callable[[], Coroutine[Any, Any, None]], writer: asyncio.StreamWriter) -> None:
        try:
            await serve()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def close(self) -> None:
        """End all connections."""
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _serve_http(self, stream: Stream, port: int) -> None:
        keep = True
        while keep:
            head = await _head(stream[0])
            if head is None:
                return
            line, headers = head
            words = line.split()
            if len(words) != 3 or not words[2].startswith("HTTP/") or not words[1].startswith("/"):
                await self._send(stream, _framed(web.Reply(code=400, reason="Bad request"), keep=False))
                return
            request = web.Request(method=words[0], uri=words[1], headers=headers, port=port)
            request.hostname = socket.gethostname()
            if request.method == "POST" and not await _read_body(stream[0], request):
                refusal = web.Reply(code=413, reason="Request entity too large")
                await self._send(stream, _framed(refusal, keep=False))
                _reset(stream[1])
                return
            keep = headers.get("connection", "").lower() == "keep-alive"
            if not await self._answer_http(stream, request, keep=keep):
                keep = False

    async def _answer_http(self, stream: Stream, request: web.Request, *, keep: bool) -> bool:
        """Whether another request may follow."""
        if not await self._goes_on(stream):
            return False
        xend = self._turn()
        reply = web.answer(xend, request)
        self._done()
        if reply.then is not None:
            await asyncio.sleep(reply.after_ms / 1000)
            self._turn()
            reply = reply.then()
            self._done()
        linger_s = xend.host.state.timing.linger_ms / 1000
        if reply.silent:
            await self._until_closed(stream[0], linger_s)
            return False
        data = _framed(reply, keep=keep, head=request.method == "HEAD", seed=xend.host.state.seed)
        if not await self._send(stream, data):
            return False
        if reply.lingers and not keep:
            await self._until_closed(stream[0], linger_s)
        return True

    async def _goes_on(self, stream: Stream) -> bool:
        """Slow down by order; or say nothing, and hold the connection."""
        await asyncio.sleep(self.faults.slow_ms / 1000)
        if self.faults.spend("silent"):
            await self._until_closed(stream[0], IDLE_S)
            return False
        return True

    async def _until_closed(self, reader: asyncio.StreamReader, for_s: float) -> None:
        """Keep a connection open until its other end closes it; nothing that comes is looked at."""
        self.keeps.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                while await reader.read(4_096):
                    pass

    async def _send(self, stream: Stream, data: bytes) -> bool:
        """Whether all of it was sent."""
        cut = self.faults.spend("cut")
        stream[1].write(data[: len(data) // 2] if cut else data)
        await stream[1].drain()
        return not cut

    # --- XML-RPC ----------------------------------------------------------------------------------------------------

    async def _serve_rpc(self, stream: Stream) -> None:
        keep = True
        while keep:
            head = await _head(stream[0])
            if head is None:
                return
            line, headers = head
            method, path, version = (*line.split(), "", "", "")[:3]
            if method not in _METHODS_IN_RPC:
                await self._send(stream, _plain(501, f"Unsupported method ({method!r})"))
                return
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= _RPC_BYTES_MAX:
                return
            body = await stream[0].readexactly(length)
            if path not in {"/", "/RPC2"}:
                await self._send(stream, _plain(404, "No such page"))
                return
            if not await self._goes_on(stream):
                return
            reply = rpc.answer(self._turn(), body)
            self._done()
            if reply.then is not None:
                await asyncio.sleep(reply.after_ms / 1000)
                self._turn()
                reply.body = reply.then()
                self._done()
            asked = headers.get("connection", "").lower()
            keep = asked == "keep-alive" if version == "HTTP/1.0" else asked != "close"
            keep = await self._send(stream, _framed_rpc(200, "OK", "text/xml", reply.body)) and keep


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """The request line, and the headers; None at the end."""
    async with asyncio.timeout(IDLE_S):
        line = (await reader.readline()).decode("latin-1").rstrip("\r\n")
        if not line:
            return None
        headers: dict[str, str] = {}
        for _ in range(_HEADERS_MAX):
            row = (await reader.readline()).decode("latin-1").rstrip("\r\n")
            if not row:
                return line, headers
            name, colon, value = row.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return line, headers


async def _read_body(reader: asyncio.StreamReader, request: web.Request) -> bool:
    """Read a POST's body, if it says how long it is; whether it is short enough."""
    given = request.headers.get("content-length", "")
    if not given.isdigit():
        return True
    if int(given) > limits.XEND_POST_BYTES_MAX:
        return False
    async with asyncio.timeout(IDLE_S):
        request.body = await reader.readexactly(int(given))
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def _framed(reply: web.Reply, *, keep: bool, head: bool = False, seed: int = 0) -> bytes:
    """A reply with its headers, spelled and ordered as the genuine one does."""
    first = [] if head else [("Content-length", str(len(reply.body)))]
    kind = [("Content-type", reply.content_type)] if reply.content_type else []
    extra = [*reply.extra.items(), *([("Connection", "keep-alive")] if keep else [])]
    cache = [("Pragma", "no-cache"), ("Cache-control", "no-cache")]
    headers = [*first, ("Expires", "-1"), *([*extra, *cache, *kind] if extra else [*kind, *cache])]
    if seed:
        random.Random(seed).shuffle(headers)  # noqa: S311 - no secret
    rows = [f"HTTP/1.1 {reply.code} {reply.reason}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(rows).encode("latin-1", "replace") + (b"" if head else reply.body)


def _framed_rpc(code: int, reason: str, content_type: str, body: bytes) -> bytes:
    rows = [f"HTTP/1.1 {code} {reason}", "Server: BaseHTTP/0.3 Python/2.7.18"]
    rows += [f"Date: {email.utils.formatdate(usegmt=True)}"]
    rows += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(rows).encode("latin-1") + body


def _plain(code: int, said: str) -> bytes:
    return _framed_rpc(code, said, "text/plain", said.encode("latin-1", "replace"))
