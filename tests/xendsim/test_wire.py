"""The stand-in's sockets: the traps that clients of the genuine one fall into, and the faults that can be ordered."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from leasehold.events.errors import InvalidInputError, StorageError, StoreInUseError
from leasehold.services.xendsim.server import HTTP_SOCKET, STATE_FILE, XMLRPC_SOCKET, Options, Stand, give_order

WAIT_S = 10.0
GET = b"GET /xend/domain HTTP/1.1\r\nHost: h\r\n\r\n"
PAUSE = b"POST /xend/domain/guest1?op=pause HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    """One with two domains, on a Unix socket and a port."""
    made = Stand(Options(directory=tmp_path, domains=2, http=("127.0.0.1", 0)))
    async with made.listening():
        yield made


async def connect(stand: Stand) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = next(each for each in stand.addresses if each.startswith("http://"))
    host, _, port = address.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(stand: Stand, request: bytes) -> bytes:
    """All that comes until the server closes."""
    reader, writer = await connect(stand)
    async with asyncio.timeout(WAIT_S):
        writer.write(request)
        found = await reader.read()
        writer.close()
    return found


async def test_second_request_is_not_heard(stand: Stand) -> None:
    """After most POSTs the connection stays open, and a second request on it hears nothing at all."""
    stand.host.state.timing.linger_ms = 200
    reader, writer = await connect(stand)
    async with asyncio.timeout(WAIT_S):
        writer.write(PAUSE)
        reply = await reader.readuntil(b"\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 200 OK\r\nContent-length: 0\r\n")
        await stand.wire.keeps.wait()
        writer.write(GET)
        # Until the server, in the end, closes it.
        assert await reader.read() == b""
    writer.close()


async def test_no_reply(stand: Stand) -> None:
    """A save that names no file is never answered, and the connection stays open."""
    reader, writer = await connect(stand)
    async with asyncio.timeout(WAIT_S):
        writer.write(PAUSE.replace(b"op=pause", b"op=save"))
        await stand.wire.keeps.wait()
    assert not reader.at_eof()
    writer.close()


@pytest.mark.parametrize(
    ("request_", "begins"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 Bad request\r\nContent-length: 0\r\n"),
        (b"GET /xend/domain HTTP/1.1\n\n", b"HTTP/1.1 200 OK\r\n"),
        (b"HEAD /xend/domain HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nExpires: -1\r\nContent-type: application/sxp\r\n"),
        (b"GET /xend/domain//guest1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET /xend/domain/%67uest1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET /xend/domain/gue+st HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not found\r\n"),
        (b"DELETE /xend/domain/guest1 HTTP/1.1\r\n\r\n", b"HTTP/1.1 501 Not implemented\r\n"),
    ],
)
async def test_requests(stand: Stand, request_: bytes, begins: bytes) -> None:
    """What a request may look like, and how the reply begins."""
    assert (await ask(stand, request_)).startswith(begins)


async def test_lists_too_deep_for_it(stand: Stand, tmp_path: Path) -> None:
    """A configuration in XML-RPC that is deeper than Python goes is a fault, as any other error of Python's."""
    deep = b"<value><array><data>" * 3_000 + b"</data></array></value>" * 3_000
    body = b"<methodCall><methodName>xend.domain.new</methodName><params><param>%s</param></params></methodCall>" % deep
    reader, writer = await asyncio.open_unix_connection(tmp_path / XMLRPC_SOCKET)
    async with asyncio.timeout(WAIT_S):
        writer.write(b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        assert b"<fault>" in await reader.read()
    writer.close()


@pytest.mark.parametrize(("memory", "said"), [("-5", "memory_static_min must be less"), ("0", "greater than zero")])
async def test_memory_that_is_none(stand: Stand, memory: str, said: str) -> None:
    """Neither a new domain nor one that runs can have it."""
    config = f"(vm (name a) (memory {memory}) (vcpus 1))"
    for path, fields in (
        ("/xend/domain", {"op": "create", "config": config}),
        ("/xend/domain", {"op": "new", "config": config}),
        ("/xend/domain/guest1", {"op": "mem_target_set", "target": memory}),
    ):
        head = f"POST {path}?{urlencode(fields)} HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
        stand.host.state.timing.linger_ms = 0
        reply = await ask(stand, head.encode())
        assert reply.startswith(b"HTTP/1.1 500 Request failed: ") and said.encode() in reply
    assert [each.name for each in stand.host.shown()] == ["Domain-0", "guest1", "guest2"]


async def test_names_that_are_not_ascii(stand: Stand) -> None:
    """Of a domain that there is not, the name is shown as Python 2 shows bytes."""
    reply = await ask(stand, b"GET /xend/domain/x%C3%A9 HTTP/1.1\r\n\r\n")
    assert reply.endswith(rb"<Fault 3: 'x\xc3\xa9'>")


async def test_too_large(stand: Stand) -> None:
    """A body of more than 10,000 bytes is refused before it is read, and the connection is reset."""
    reader, writer = await connect(stand)
    async with asyncio.timeout(WAIT_S):
        writer.write(b"POST /xend/domain HTTP/1.1\r\nContent-Length: 10001\r\n\r\n" + b"x" * 10_001)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 Request entity too large\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_locations(stand: Stand) -> None:
    """Addresses are built with the port of TCP, and with 8080 on a Unix socket, whatever the request names."""
    port = int(stand.addresses[-1].rpartition(":")[2])
    request = PAUSE.replace(b"op=pause", b"op=sysrq&key=104")
    assert f"\r\nLocation: http://h:{port}/xend/domain/guest1/..\r\n".encode() in await ask(stand, request)


async def test_ordered_faults(stand: Stand, tmp_path: Path) -> None:
    """Replies that are cut, or do not come: as many as were ordered."""
    whole = await ask(stand, GET)
    await give_order(tmp_path, ["cut", "1"])
    assert await ask(stand, GET) == whole[: len(whole) // 2]
    assert await ask(stand, GET) == whole
    await give_order(tmp_path, ["silent", "1"])
    reader, writer = await connect(stand)
    async with asyncio.timeout(WAIT_S):
        writer.write(GET)
        await stand.wire.keeps.wait()
    assert not reader.at_eof()
    writer.close()
    assert await ask(stand, GET) == whole


async def test_down(stand: Stand, tmp_path: Path) -> None:
    """While it is down there are no sockets; afterwards it may show less than there is, for a while, and then all."""
    whole = await ask(stand, GET)
    await give_order(tmp_path, ["restart", "50", "86400000"])
    assert not (tmp_path / HTTP_SOCKET).exists() or not stand.addresses
    async with asyncio.timeout(WAIT_S):
        await stand.back()
    assert b"(Domain-0)" in await ask(stand, GET)
    stand.host.empty_until_ms = 0
    assert await ask(stand, GET) == whole
    assert (tmp_path / XMLRPC_SOCKET).is_socket()


async def test_two_in_one_directory(stand: Stand, tmp_path: Path) -> None:
    """A second one in the same directory does not start, and does not disturb the first."""
    whole = await ask(stand, GET)
    file = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(StoreInUseError):
        async with Stand(Options(directory=tmp_path)).listening():
            pass
    assert (tmp_path / STATE_FILE).read_bytes() == file
    assert await ask(stand, GET) == whole


async def test_broken_file(tmp_path: Path) -> None:
    """A file that cannot be read is told, and left as it is."""
    (tmp_path / STATE_FILE).write_bytes(b"{")
    with pytest.raises(StorageError, match="remove it to begin anew"):
        Stand(Options(directory=tmp_path))
    assert (tmp_path / STATE_FILE).read_bytes() == b"{"


async def test_scenario(tmp_path: Path) -> None:
    """A scenario is fields of the state, and orders; one that is wrong says where."""
    scenario = tmp_path / "scenario.json"
    scenario.write_text('{"pci": {"0000:41:00.0": "pciback"}, "orders": [["make", "2", "db"], ["crash", "db1"]]}')
    made = Stand(Options(directory=tmp_path, scenario=scenario))
    assert [each.name for each in made.host.shown()] == ["Domain-0", "db1", "db2"]
    assert list(made.host.assignable()) == ["0000:41:00.0"]
    scenario.write_text('{"cpus": "many"}')
    with pytest.raises(InvalidInputError, match=r"scenario: .*\$\.cpus"):
        Stand(Options(directory=tmp_path, scenario=scenario))


async def test_bounds(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than there may be are closed; those that are open go on."""
    monkeypatch.setattr("leasehold.services.xendsim.wire.CONNECTIONS_MAX", 3)
    held = [await connect(stand) for _ in range(3)]
    async with asyncio.timeout(WAIT_S):
        for reader, writer in held[1:]:
            writer.write(GET.replace(b"Host: h", b"Connection: keep-alive"))
            await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await ask(stand, GET) == b""
    for _, writer in held:
        writer.close()


async def test_long_directory(tmp_path: Path) -> None:
    """A directory whose name is too long for sockets is refused by name."""
    deep = tmp_path / ("x" * 110)
    os.mkdir(deep)
    with pytest.raises(InvalidInputError, match=r"dir: .* longer than 107 bytes"):
        async with Stand(Options(directory=deep)).listening():
            pass
