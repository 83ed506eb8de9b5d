"""One request to xend, and its answer: HTTP as xend speaks it.

xend says HTTP/1.1 and answers one request a connection. It never says that it is done with a connection, often leaves
it open, and does not answer a second request on it. So each request has a connection of its own, its answer ends where
`Content-Length` says, and all that is waited for has its time.

h11 reads and writes the HTTP, and takes all that the genuine server was seen to send: header names like
`Content-length`, reasons like `Request failed: pause`, bodies of no length. What it does not do (connections, time,
bounds) is here.
"""

import asyncio
import random
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

import h11

from leasehold.events import limits
from leasehold.events.errors import XendNoReplyError, XendReplyError, XendUnavailableError
from leasehold.services.xend.address import Address

CONNECT_TIMEOUT_S: Final = 5.0
_QUEUE_FULL_S: Final = 0.02
"""How long to wait, on average, before a full queue is tried again."""
_READ_BYTES: Final = 256 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_INFORMATIONAL_MAX: Final = 8


class Request(NamedTuple):
    """What is sent: `target` is a path, with its query; `op`: what it is for, in errors."""

    op: str
    method: str
    target: str
    body: bytes = b""
    content_type: str = "application/x-www-form-urlencoded"
    accept: str = "application/sxp"
    """Who has a User-Agent and accepts anything gets pages for browsers. We send the one header and not the other."""
    only_asks: bool = False
    """Nothing changes by it, whatever its method; XML-RPC has but one."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    reason: str
    content_type: str
    """"" where there is no body; pages for browsers have none either."""
    body: bytes


async def exchange(address: Address, request: Request, *, timeout_s: float) -> Reply:
    """Send a request on a connection of its own, and read the answer to its end.

    Raises:
        XendUnavailableError: nobody answers there; nothing was asked.
        XendNoReplyError: the request was sent, and the answer, or the rest of it, did not come in time.
        XendReplyError: what came is no HTTP, or longer than `XEND_REPLY_BYTES_MAX`.
    """
    sent = False
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            async with asyncio.timeout(min(timeout_s, CONNECT_TIMEOUT_S)):
                reader, writer = await _connected(address)
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
            data = _written(connection, address, request)
            sent = True
            writer.write(data)
            return await _answer(connection, reader, request.op)
    except TimeoutError as error:
        if sent:
            raise XendNoReplyError(
                f"no reply from {address} within {timeout_s:g} s{_outcome(request)}", op=request.op
            ) from error
        raise XendUnavailableError(f"{address} does not take the connection in time", op=request.op) from error
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        if sent:
            raise XendNoReplyError(
                f"the connection to {address} broke ({why}){_outcome(request)}", op=request.op
            ) from error
        raise XendUnavailableError(f"{address} cannot be reached: {why}", op=request.op) from error
    finally:
        if writer is not None:
            # Nothing more is to be said, and a server that lingers is not waited for.
            writer.transport.abort()


def _outcome(request: Request) -> str:
    return "" if request.only_asks or request.method == "GET" else "; what was asked may have been done"


async def _connected(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not address.path:
        return await asyncio.open_connection(address.host, address.port)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        await _connect_unix(connection, address.path)
        return await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


async def _connect_unix(connection: socket.socket, path: str) -> None:
    """Connect, also where the server's queue, which at xend has five places, is full: asyncio takes that for a
    connection that is on its way, and then for one that broke after something was sent.
    """
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:
            await asyncio.sleep(_QUEUE_FULL_S * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        else:
            return


def _written(connection: h11.Connection, address: Address, request: Request) -> bytes:
    headers = [
        # On a Unix socket libxend named itself so, too.
        ("Host", f"{address.host or 'localhost'}:{address.port or 8000}"),
        ("Accept-Encoding", "identity"),
        ("Accept", request.accept),
        ("Connection", "close"),
    ]
    if request.method == "POST":
        headers += [("Content-Type", request.content_type), ("Content-Length", str(len(request.body)))]
    parts: Sequence[h11.Event] = (
        h11.Request(method=request.method, target=request.target, headers=headers),
        *([h11.Data(data=request.body)] if request.body else []),
        h11.EndOfMessage(),
    )
    return b"".join(connection.send(each) or b"" for each in parts)


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader, op: str) -> Reply:
    head: h11.Response | None = None
    body = bytearray()
    ended = False
    informational = 0
    while True:
        try:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(_READ_BYTES)
                ended = not data
                connection.receive_data(data)
                continue
        except h11.RemoteProtocolError as error:
            if ended:
                raise ConnectionResetError(f"it ended within the answer, after {len(body)} bytes of it") from error
            raise XendReplyError(f"what came back is no HTTP: {error}", op=op) from error
        match event:
            case h11.Response():
                head = event
                headers = dict(event.headers)
                if not headers.keys() & {b"content-length", b"transfer-encoding"}:
                    # It would end where the connection does, wherever that broke.
                    raise XendReplyError("what came back does not say how long it is", op=op)
                if int(headers.get(b"content-length", b"0")) > limits.XEND_REPLY_BYTES_MAX:
                    raise _too_long(op)
            case h11.Data():
                body += event.data
                if len(body) > limits.XEND_REPLY_BYTES_MAX:
                    raise _too_long(op)
            case h11.EndOfMessage():
                assert head is not None
                return _reply(head, bytes(body))
            case h11.ConnectionClosed():
                raise ConnectionResetError("it ended before an answer")
            case _:
                informational += 1
                if informational > _INFORMATIONAL_MAX:
                    raise XendReplyError("what came back is no answer", op=op)


def _reply(head: h11.Response, body: bytes) -> Reply:
    content_type = dict(head.headers).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    return Reply(head.status_code, head.reason.decode("latin-1"), content_type, body)


def _too_long(op: str) -> XendReplyError:
    return XendReplyError(f"the answer is longer than {limits.XEND_REPLY_BYTES_MAX} bytes", op=op)
