"""What goes wrong on the way: nobody there, silence, an answer in pieces, cut, endless, or not xend's."""

import asyncio
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from leasehold.events import limits
from leasehold.events.errors import (
    InvalidInputError,
    UnavailableError,
    XendError,
    XendFailedError,
    XendNoReplyError,
    XendNotFoundError,
    XendReplyError,
    XendUnavailableError,
    XendUnsupportedError,
)
from leasehold.services.xend import address, client
from leasehold.services.xend.address import HTTP, XMLRPC, Address
from leasehold.services.xend.client import XendClient
from tests.xend.replay import recordings, replaying

GET_WEB1 = recordings()[11].answer


def rpc_answer(value: str, wrapped: str = "params><param") -> bytes:
    """An XML-RPC answer with this value."""
    names = wrapped.split("><")
    inner = f"<value>{value}</value>"
    for name in reversed(names):
        inner = f"<{name}>{inner}</{name}>"
    body = f"<?xml version='1.0'?>\n<methodResponse>{inner}</methodResponse>".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def fault(code: int, message: str) -> bytes:
    """An XML-RPC fault, as xend writes it."""
    members = (
        f"<member><name>faultCode</name><value><int>{code}</int></value></member>"
        f"<member><name>faultString</name><value><string>{message}</string></value></member>"
    )
    return rpc_answer(f"<struct>{members}</struct>", "fault")


async def test_nobody_there(tmp_path: Path) -> None:
    """A socket that is not there, one that nobody listens at, a closed port: nothing was asked, and no time is lost."""
    left = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(left))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for each in (f"unix:{tmp_path}/none.sock", f"xmlrpc:{left}", f"http://127.0.0.1:{port}"):
        with pytest.raises(XendUnavailableError, match="cannot be reached") as caught:
            await XendClient(each).get_domains()
        assert not isinstance(caught.value, XendNoReplyError)
        assert isinstance(caught.value, UnavailableError)


async def test_silence_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Of what was to change something, it says that this may have happened; of a question it does not."""
    async with replaying(tmp_path, b"") as replay:
        x = XendClient(replay.address, timeout_s=0.2, long_timeout_s=0.2)
        with pytest.raises(XendNoReplyError, match=r"no reply .* within 0\.2 s; what was asked may have been done"):
            await x.pause("web1")
        with pytest.raises(XendNoReplyError, match=r"within 0\.2 s$"):
            await x.get_domain("web1")


async def test_a_connection_that_ends_without_an_answer_is_no_reply(tmp_path: Path) -> None:
    """What was asked may have been done."""
    async with replaying(tmp_path, b"", lingers=False) as replay:
        with pytest.raises(XendNoReplyError, match="may have been done"):
            await XendClient(replay.address).destroy("web1")


async def test_an_answer_in_pieces(tmp_path: Path) -> None:
    """Byte by byte, it is the same answer."""
    async with replaying(tmp_path, GET_WEB1, piece=1) as replay:
        assert (await XendClient(replay.address).get_domain("web1")).name == "web1"


async def test_a_cut_answer_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    """Wherever it is cut, the rest is missed: of a domain, of a list, of a text, over either protocol."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    calls: list[tuple[int, str, Any]] = [
        (11, HTTP, lambda x: x.get_domain("web1")),
        (7, HTTP, lambda x: x.get_domains("all")),
        (103, HTTP, lambda x: x.dmesg()),
        (197, XMLRPC, lambda x: x.get_domains("all")),
    ]
    for number, protocol, call in calls:
        answer = recordings()[number].answer
        for end in {0, 1, len(answer) - 1, *(chance.randrange(len(answer)) for _ in range(12))}:
            async with replaying(tmp_path, answer[:end], lingers=False, protocol=protocol) as replay:
                with pytest.raises(XendNoReplyError):
                    await call(XendClient(replay.address))


async def test_answers_that_are_not_xends(tmp_path: Path) -> None:
    """No HTTP, no end, too much, no type, a page, another server's: each is an error that says so."""
    too_much = limits.XEND_REPLY_BYTES_MAX + 1
    ok = b"HTTP/1.1 200 OK\r\n"
    cases = {
        b"220 mail.example.org ESMTP\r\n\r\n": "no HTTP",
        b"X" * 200_000: "no HTTP",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20: "no answer",
        ok + b"Content-Length: %d\r\n\r\n" % too_much: "longer than",
        ok + b"Content-Length: -5\r\n\r\n": "no HTTP",
        ok + b"Content-Length: 2\r\n\r\n()": "of no type",
        ok + b"Content-Length: 6\r\nContent-Type: text/html\r\n\r\n<html>": "a page for browsers",
        ok + b"Content-Length: 3\r\nContent-Type: application/sxp\r\n\r\n(ab": "cannot be read: byte 0",
        ok + b"Content-Length: 2\r\nContent-Type: application/sxp\r\n\r\n()": "no description of a domain",
        b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n": "no answer of xend's",
    }
    for answer, expected in cases.items():
        async with replaying(tmp_path, answer) as replay:
            with pytest.raises(XendReplyError, match=expected):
                await XendClient(replay.address).get_domain("web1")


async def test_statuses_of_errors(tmp_path: Path) -> None:
    """413 and others, and what older servers put into 202."""
    sxp = b"Content-type: application/sxp\r\n"
    cases: dict[bytes, tuple[type[XendError], str]] = {
        b"HTTP/1.1 413 Request entity too large\r\nContent-length: 0\r\n\r\n": (XendFailedError, "413 Request entity"),
        b"HTTP/1.1 500 Request failed: pause\r\n" + sxp + b"Content-length: 3\r\n\r\noh!": (XendFailedError, "oh!"),
        b"HTTP/1.1 202 Accepted\r\n" + sxp + b"Content-length: 8\r\n\r\n(failed)": (XendFailedError, "failed"),
        b"HTTP/1.1 404 Not found\r\nContent-length: 0\r\n\r\n": (XendNotFoundError, "Not found"),
        b"HTTP/1.1 501 Not implemented\r\nContent-length: 0\r\n\r\n": (XendUnsupportedError, "Not implemented"),
    }
    for answer, (expected, message) in cases.items():
        async with replaying(tmp_path, answer) as replay:
            with pytest.raises(expected, match=message) as caught:
                await XendClient(replay.address).pause("web1")
            assert caught.value.op == "pause"


async def test_an_answer_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, what comes is counted."""
    monkeypatch.setattr(limits, "XEND_REPLY_BYTES_MAX", 100_000)
    async with replaying(
        tmp_path, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n" + b"(" * 200_000
    ) as replay:
        with pytest.raises(XendReplyError, match="longer than 100000 bytes"):
            await XendClient(replay.address).get_domains()


async def test_each_request_has_a_connection_of_its_own_and_they_run_side_by_side(tmp_path: Path) -> None:
    """Fifty at once against a server that leaves each connection open, and none of ours is left open afterwards."""
    async with replaying(tmp_path, GET_WEB1) as replay:
        x = XendClient(replay.address)
        found = await asyncio.gather(*(x.get_domain("web1") for _ in range(50)))
        assert {each.name for each in found} == {"web1"}
        assert replay.connections == 50
        assert all(each.headers["connection"] == "close" for each in replay.asked)


async def test_faults(tmp_path: Path) -> None:
    """3: no such domain; 2: anything else; a method that this xend lacks; and answers that are no XML-RPC."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n"
    deep = limits.SXP_DEPTH_MAX + 2
    cases: list[tuple[bytes, type[XendError], str]] = [
        (fault(3, "nope"), XendNotFoundError, "there is no domain 'nope'"),
        (fault(2, "Cannot pause privileged domain 0"), XendFailedError, "Cannot pause privileged domain 0"),
        (fault(1, 'method "xend.domain" is not supported'), XendUnsupportedError, "is not supported"),
        (fault(2, ""), XendFailedError, "no more than that it failed"),
        (rpc_answer("<string>x</string>"), XendReplyError, "no description"),
        (rpc_answer("<base64>eA==</base64>"), XendReplyError, "no base64"),
        (rpc_answer("<double>many</double>"), XendReplyError, "cannot be read"),
        (rpc_answer("<array><data><value>" * deep + "</value></data></array>" * deep), XendReplyError, "lists within"),
        (ok + b"Content-Length: 3\r\n\r\n<a>", XendReplyError, "cannot be read"),
        (ok + b"Content-Length: 4\r\n\r\n<a/>", XendReplyError, "cannot be read: a is no methodResponse"),
        (ok + b"Content-Length: 17\r\n\r\n<methodResponse/>", XendReplyError, "cannot be read"),
        (recordings()[6].answer, XendReplyError, "no answer of xend's XML-RPC"),
    ]
    for answer, expected, message in cases:
        async with replaying(tmp_path, answer, protocol=XMLRPC) as replay:
            with pytest.raises(expected) as caught:
                await XendClient(replay.address).get_domain("nope")
            assert message in str(caught.value)
            assert type(caught.value) is expected


async def test_text_over_xmlrpc_is_as_it_was(tmp_path: Path) -> None:
    """xend sends a text that is a whole answer as Python writes it; within lists it does not."""
    shown = repr("(XEN) it's\n\ttab \\ done \x01")[1:-1] + r"\xc3\xa9"
    for protocol_text, meant in ((shown, "(XEN) it's\n\ttab \\ done \x01é"), ("", "")):
        async with replaying(tmp_path, rpc_answer(f"<string>{protocol_text}</string>"), protocol=XMLRPC) as replay:
            assert (await XendClient(replay.address).log()).decode() == meant
    names = rpc_answer(r"<array><data><value><string>a\nb</string></value><value>c</value></data></array>")
    async with replaying(tmp_path, names, protocol=XMLRPC) as replay:
        assert await XendClient(replay.address).get_domains() == [r"a\nb", "c"]


async def test_values_over_xmlrpc_read_as_from_sxp(tmp_path: Path) -> None:
    """Numbers, truth, nil and structures become what SXP has for them; what XML cannot hold is not sent."""
    async with replaying(tmp_path, rpc_answer("<boolean>1</boolean>"), protocol=XMLRPC) as replay:
        await XendClient(replay.address).pci_attach("web1", "0000:03:00.0")
        body = replay.asked[0].body
        assert b"xend.domain.device_configure" in body and b"<string>0x0000</string>" in body
        with pytest.raises(InvalidInputError, match="XML-RPC cannot send"):
            await XendClient(replay.address).virtual_device_create("web1", "disk", {"dev": "\x01"})
    async with replaying(tmp_path, rpc_answer("<boolean>0</boolean>"), protocol=XMLRPC) as replay:
        with pytest.raises(XendFailedError, match="False"):
            await XendClient(replay.address).pci_attach("web1", "0000:03:00.0")
    broken = rpc_answer("<array><data><value>odd</value></data></array>")
    async with replaying(tmp_path, broken, protocol=XMLRPC) as replay:
        with pytest.raises(XendReplyError, match="a function without an address"):
            await XendClient(replay.address).pci_assignable()


async def test_the_first_xend_that_answers_is_found(tmp_path: Path) -> None:
    """Addresses are tried in turn: nobody, somebody else, xend. If none is there, the error tells of each."""
    nobody = Address(HTTP, path=str(tmp_path / "none.sock"))
    (tmp_path / "other").mkdir()
    async with (
        replaying(tmp_path / "other", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as other,
        replaying(tmp_path, recordings()[2].answer) as replay,
    ):
        assert await client.find((nobody, other.address, replay.address)) == replay.address
        with pytest.raises(XendUnavailableError, match=r"no xend answers at unix:.*none\.sock, unix:.*Not found"):
            await client.find((nobody, other.address))


ADDRESSES = {
    "unix:/run/x.sock": Address(HTTP, path="/run/x.sock"),
    "unix:///run/x.sock": Address(HTTP, path="/run/x.sock"),
    "unix:": address.UNIX,
    "http:": address.TCP,
    "http://xen1:8001": Address(HTTP, host="xen1", port=8001),
    "http://[::1]/": Address(HTTP, host="::1", port=8000),
    "xmlrpc:": address.XMLRPC_UNIX,
    "xmlrpc:/run/y": Address(XMLRPC, path="/run/y"),
    "xmlrpc://localhost": Address(XMLRPC, host="localhost", port=8006),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_are_read_and_written(text: str) -> None:
    """Each form is read; what is written is read again as the same."""
    assert address.parse(text) == ADDRESSES[text]
    assert address.parse(str(ADDRESSES[text])) == ADDRESSES[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/x",
        "unix:x",
        "http:/x",
        "http://",
        "ftp://h",
        "http://h/p",
        "http://h:99999",
        "xmlrpc:a\0",
        "https://h",
    ],
)
def test_what_is_no_address_is_told(text: str) -> None:
    """The error names the forms there are."""
    if text == "http://":
        assert address.parse(text) == address.TCP
        return
    with pytest.raises(InvalidInputError, match=r"address: .*unix:/PATH"):
        address.parse(text)
