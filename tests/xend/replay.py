"""A server that answers with what the genuine one answered, and takes down what it was asked."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from leasehold.services.xend.address import HTTP, Address

DIRECTORY = Path(__file__).parents[1] / "data" / "xend"
WAIT_S = 20.0


class Recording(NamedTuple):
    """One exchange with the genuine xend."""

    number: int
    name: str
    request: bytes
    answer: bytes
    lingers: bool
    """Whether the connection was left open after the answer."""

    @property
    def asked(self) -> "Asked":
        """The request, taken apart."""
        return taken_apart(self.request)

    @property
    def body(self) -> bytes:
        """The answer's body, whatever of it there is."""
        return self.answer.partition(b"\r\n\r\n")[2]


class Asked(NamedTuple):
    """A request: `fields` of the query and the form together, in order of their names."""

    method: str
    path: str
    headers: dict[str, str]
    fields: list[tuple[str, str]]
    body: bytes


@cache
def recordings() -> dict[int, Recording]:
    """All that are here, by number."""
    told = json.loads((DIRECTORY / "connection-close.json").read_text(encoding="utf-8"))
    lingering = {number for number, _, how in told if how.startswith("still open")}
    found = {}
    for path in sorted(DIRECTORY.glob("*.http")):
        number, _, name = path.stem.partition("-")
        request, _, answer = path.read_bytes().partition(b"\n=====\n")
        found[int(number)] = Recording(int(number), name, request, answer, int(number) in lingering)
    assert len(found) > 140, "the recordings were not found"
    return found


def taken_apart(request: bytes) -> Asked:
    """Read a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _version = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    parts = urlsplit(target)
    fields = parse_qsl(parts.query, keep_blank_values=True)
    if "form" in headers.get("content-type", "form"):
        fields += parse_qsl(body.decode("latin-1"), keep_blank_values=True)
    return Asked(method, parts.path, headers, sorted(fields), body)


class Replay:
    """Answers each connection with the next of `answers`, and keeps what came. The last answer goes on for ever."""

    def __init__(self, *answers: bytes, lingers: bool = True, piece: int = 1 << 20) -> None:
        self.answers = list(answers)
        self.lingers = lingers
        self.piece = piece
        self.asked: list[Asked] = []
        self.connections = 0
        self.address = Address(HTTP)
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def hang_up(self) -> None:
        """End all connections."""
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        task.add_done_callback(lambda done: self._open.pop(done, None))
        number = self.connections
        self.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            self.asked.append(taken_apart(head + body))
            answer = self.answers[min(number, len(self.answers) - 1)]
            for begin in range(0, len(answer), self.piece):
                writer.write(answer[begin : begin + self.piece])
                await writer.drain()
            if self.lingers:
                # As the genuine one, until the other side has had enough; what comes meanwhile is not answered.
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def replaying(
    path: Path, *answers: bytes, lingers: bool = True, piece: int = 1 << 20, protocol: str = HTTP
) -> AsyncIterator[Replay]:
    """A server on a Unix socket in this directory."""
    replay = Replay(*answers, lingers=lingers, piece=piece)
    socket = path / f"{protocol}.sock"
    socket.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(replay._serve, socket, limit=1 << 24)
    replay.address = Address(protocol, path=str(socket))
    try:
        yield replay
    finally:
        server.close()
        await replay.hang_up()
        await server.wait_closed()
