"""The stand-in answers what the genuine xend answered: byte for byte, but for what is chance or a clock there.

What is covered up: uuids and MAC addresses that xend made up, times, numbers of event channels, and dates.
"""

import ast
import asyncio
import json
import re
import xmlrpc.client
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote_plus, urlencode

import pytest

from leasehold.services.xend import sxp
from leasehold.services.xendsim.server import CONTROL_SOCKET, HTTP_SOCKET, XMLRPC_SOCKET, Options, Stand, give_order
from tests.support import tree
from tests.xendsim.script import CRASHES, MAIN, Order, Pass, Post, Step

RECORDINGS = tree.ROOT / "tests" / "data" / "xend"
WAIT_S = 10.0
LENGTH = re.compile(rb"(?i)\r\ncontent-length: ([0-9]+)")
UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAC = re.compile(rb"00:16:3e(?::[0-9a-f]{2}){3}")
COVERED = (
    (re.compile(rb"\((start_time|cpu_time|event-channel|(?:[rt]x-)?ring-ref) [^()]*\)"), rb"(\1 *)"),
    (re.compile(rb"<double>[^<]*</double>"), b"<double>0</double>"),
    (re.compile(rb"\r\nDate: [^\r]*"), b"\r\nDate: *"),
    (re.compile(rb"\r\nContent-[Ll]ength: [0-9]*"), b"\r\nContent-length: *"),
)
OTHERWISE = {
    "176-create-pv-third": "printed before the hypervisor had told xend all: no cpu_time, no console, no letter p",
    "188-create-hvm-again": "the same",
}
"""Recordings of what is chance in the genuine xend, and not imitated."""


def recording(name: str) -> tuple[bytes, bytes]:
    """What was sent, and what came back."""
    request, _, reply = (RECORDINGS / f"{name}.http").read_bytes().partition(b"=====\n")
    length = LENGTH.search(request)
    body_at = request.index(b"\r\n\r\n") + 4
    # Where a request does not end with a line, the recording has an end of line of its own.
    return (request[: body_at + int(length[1])] if length else request), reply


SENT = b"".join(
    unquote_plus(recording(each)[0].decode("latin-1")).encode("latin-1") for each in MAIN if isinstance(each, str)
)
KNOWN = {*UUID.findall(SENT), b"00000000-0000-0000-0000-000000000000"}
GIVEN = {*MAC.findall(SENT)}


def covered(data: bytes) -> bytes:
    """A reply without what is chance or a clock."""
    for pattern, instead in COVERED:
        data = pattern.sub(instead, data)
    data = UUID.sub(lambda found: found[0] if found[0] in KNOWN else b"UUID", data)
    return MAC.sub(lambda found: found[0] if found[0] in GIVEN else b"MAC", data)


def canonical(tree: object) -> object:
    """Lists of named things, whose order is arbitrary there, in one order."""
    if isinstance(tree, dict):
        return canonical([[*each] for each in tree.items()])
    if isinstance(tree, bytes) and tree.startswith(b"{'"):
        return canonical(ast.literal_eval(tree.decode()))
    if not isinstance(tree, list | tuple):
        return tree
    found = [canonical(each) for each in tree]
    named = [each for each in found if isinstance(each, list)]
    return [each for each in found if not isinstance(each, list)] + sorted(named, key=repr)


def parts(reply: bytes) -> list[object]:
    """A reply in comparable parts: status and headers as they are, and what the body says."""
    head, _, body = covered(reply).partition(b"\r\n\r\n")
    if b"text/xml" in head:
        said: object = canonical(xmlrpc.client.loads(body)[0])
    elif b"application/sxp" in head and b"HTTP/1.1" not in body and b"not implemented" not in body:
        said = [canonical(each) for each in sxp.read_all(body)]
    else:
        said = body
    return [*head.split(b"\r\n"), said]


def differences(got: object, expected: object) -> list[str]:
    """Where two things differ, as deep in them as can be."""
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        return [each for pair in zip(got, expected, strict=True) for each in differences(*pair)]
    return [] if got == expected else [f"got {got!r}, recorded {expected!r}"]


class Replay:
    """A stand-in on sockets, with a clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ms = 1_795_219_799_430
        self.stand = Stand(Options(directory=directory), now_ms=lambda: self.now_ms)
        self.stand.host.state.directories.append("/usr/lib/xen-4.4/x/run")
        self.stand.host.state.timing.hotplug_timeout_ms = 1

    async def ask(self, request: bytes, replies: int, *, rpc: bool = False) -> tuple[list[bytes], bool]:
        """The replies, and whether the connection stays open after them. The signal is the server's own."""
        keeps = self.stand.wire.keeps
        keeps.clear()
        reader, writer = await asyncio.open_unix_connection(self.directory / (XMLRPC_SOCKET if rpc else HTTP_SOCKET))
        try:
            async with asyncio.timeout(WAIT_S):
                writer.write(request)
                found = [await self._reply(reader) for _ in range(replies)]
                ends = {asyncio.ensure_future(reader.read()), asyncio.ensure_future(keeps.wait())}
                done, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for each in waiting:
                    each.cancel()
                rest = [each.result() for each in done]
                assert rest in ([b""], [True]), f"something came after the reply: {rest}"
                return found, keeps.is_set()
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        assert length is not None
        return head + await reader.readexactly(int(length[1]))

    async def take(self, step: Step) -> str:
        """One step; of a recording: how what came back differs from what is in it."""
        match step:
            case Pass(ms):
                self.now_ms += ms
                self.stand.host.advance(self.now_ms)
            case Order(words):
                await give_order(self.directory, words)
            case Post(path, fields, code):
                body = urlencode(fields).encode()
                head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
                (reply,), _ = await self.ask(request, 1)
                assert reply.startswith(b"HTTP/1.1 %d " % code), (step, reply)
            case str():
                return await self.compare(step)
        return ""

    async def compare(self, name: str) -> str:
        """How a recorded reply differs from the stand-in's."""
        self.now_ms += 37
        request, expected = recording(name)
        found, stays_open = await self.ask(request, expected.count(b"HTTP/1.1 "), rpc=b"xmlrpc" in name.encode())
        for reply in found:
            head, _, body = reply.partition(b"\r\n\r\n")
            assert f"ontent-length: {len(body)}".encode() in head.replace(b"Length", b"length"), head
        if differing := differences(parts(b"".join(found)), parts(expected)):
            return f"{name} {differing}"
        closings = {title: said for _, title, said in json.loads((RECORDINGS / "connection-close.json").read_bytes())}
        said = closings.get(name[4:])
        if said is not None and stays_open != said.startswith("still open"):
            return f"{name} {'stays open' if stays_open else 'is closed'}"
        return ""


@pytest.fixture
async def replay(tmp_path: Path) -> AsyncIterator[Replay]:
    found = Replay(tmp_path)
    async with found.stand.listening():
        assert (tmp_path / CONTROL_SOCKET).is_socket()
        yield found


@pytest.mark.parametrize("steps", [MAIN, CRASHES], ids=["main", "crashes"])
async def test_recordings(replay: Replay, steps: tuple[Step, ...]) -> None:
    """The same requests in the same order get the same status, reason, headers, body and end of the connection."""
    differing = [found for step in steps if (found := await replay.take(step))]
    expected = OTHERWISE.keys() & {each for each in steps if isinstance(each, str)}
    assert {each.split()[0] for each in differing} == expected, "\n".join(differing)
