"""What is not as xend answers is never taken for an answer; and many calls at once all get theirs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from leasehold.events import limits
from leasehold.events.errors import (
    InvalidInputError,
    SourceUnavailableError,
    XendError,
    XendNoReplyError,
    XendReplyError,
)
from leasehold.services.poller import xendtext
from leasehold.services.poller.xend import XendSource
from leasehold.services.xend import address, sxp
from leasehold.services.xend.address import HTTP, XMLRPC
from leasehold.services.xend.client import XendClient
from leasehold.services.xend.devices import IoPorts, Vbd, ioports_sxp
from leasehold.services.xendsim.server import Options, Stand
from tests.xend.replay import recordings, replaying

AT_ONCE = 200
OK = b"HTTP/1.1 200 OK\r\n"


def xml(value: bytes, before: bytes = b"") -> bytes:
    """An answer of XML-RPC with one value."""
    body = (
        b"<?xml version='1.0'?>\n%s<methodResponse><params><param><value>%s</value></param></params></methodResponse>"
    )
    body %= (before, value)
    return OK + b"Content-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    """A stand-in, with the genuine one's queue of five."""
    made = Stand(Options(directory=tmp_path, http=("127.0.0.1", 0)))
    async with made.listening():
        yield made


@pytest.mark.parametrize("which", [0, 1, 2], ids=["unix", "xmlrpc", "tcp"])
async def test_two_hundred_at_once_all_get_their_answers(stand: Stand, which: int) -> None:
    """xend's queue has five places; who finds none waits, and is not told of a connection that broke."""
    x = XendClient(stand.addresses[which])
    found = await asyncio.gather(*(x.get_domain("Domain-0") for _ in range(AT_ONCE)))
    assert [each.domid for each in found] == [0] * AT_ONCE


@pytest.mark.parametrize("which", [0, 1], ids=["unix", "xmlrpc"])
async def test_a_full_queue_is_waited_for(stand: Stand, which: int) -> None:
    """The same from many clients, which know nothing of one another: none takes a full queue for a connection."""
    clients = [XendClient(stand.addresses[which]) for _ in range(AT_ONCE)]
    found = await asyncio.gather(*(each.get_domain("Domain-0") for each in clients))
    assert [each.domid for each in found] == [0] * AT_ONCE


def test_a_client_serves_one_loop_after_another(tmp_path: Path) -> None:
    """Waiting for a turn in one loop does not bind it to that loop."""
    x = XendClient(f"unix:{tmp_path}/none.sock")

    async def many() -> None:
        found = await asyncio.gather(*(x.pause("web1") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, XendError) for each in found), found

    for _ in range(2):
        asyncio.run(many())


@pytest.mark.parametrize("answer", [OK + b"\r\n", OK + b"Content-type: application/sxp\r\n\r\n(a b)"])
async def test_an_answer_without_a_length_is_none(tmp_path: Path, answer: bytes) -> None:
    """It would end where the connection does: cut short, it would be taken for whole."""
    async with replaying(tmp_path, answer, lingers=False) as replay:
        x = XendClient(replay.address)
        for call in (x.pause("web1"), x.get_domains("all"), x.dmesg()):
            with pytest.raises(XendReplyError, match="how long"):
                await call


async def test_an_empty_answer_to_a_question_is_none(tmp_path: Path) -> None:
    """xend says `()` for an empty list; nothing at all is not "no domains". For an order it is what xend says."""
    async with replaying(tmp_path, OK + b"Content-length: 0\r\n\r\n") as replay:
        x = XendClient(replay.address)
        await x.pause("web1")
        with pytest.raises(XendReplyError, match="the answer is empty"):
            await x.get_domains("all")
        with pytest.raises(SourceUnavailableError):
            await XendSource(str(replay.address)).look(frozenset())


async def test_a_host_without_any_domain_is_none(tmp_path: Path) -> None:
    """xend always lists Domain-0: an empty list would be believed after a while, and every attachment gone."""
    sxp_answer = OK + b"Content-type: application/sxp\r\nContent-length: 2\r\n\r\n()"
    for protocol, answer in ((XMLRPC, xml(b"<array><data></data></array>")), (HTTP, sxp_answer)):
        async with replaying(tmp_path, answer, protocol=protocol) as replay:
            with pytest.raises(SourceUnavailableError, match="not even Domain-0 is listed"):
                await XendSource(str(replay.address)).look(frozenset())


@pytest.mark.parametrize("value", [b"oops", b"<int>0</int>", b"<string></string>", b"<boolean>0</boolean>"])
async def test_what_is_no_list_is_not_no_domains(tmp_path: Path, value: bytes) -> None:
    """For the poller over both protocols, and for lists of devices."""
    sxp_answer = OK + b"Content-type: application/sxp\r\nContent-length: 4\r\n\r\noops"
    for protocol, answer in ((XMLRPC, xml(value)), (HTTP, sxp_answer)):
        async with replaying(tmp_path, answer, protocol=protocol) as replay:
            with pytest.raises(SourceUnavailableError):
                await XendSource(str(replay.address)).look(frozenset())
            with pytest.raises(XendReplyError):
                await XendClient(replay.address).virtual_devices("web1", "vbd")


@pytest.mark.parametrize(
    "answer",
    [
        xml(b"<string>" + b"&a;" * 90 + b"</string>", b"<!DOCTYPE m [<!ENTITY a '" + b"x" * 100_000 + b"'>]>"),
        OK
        + b"Content-Type: text/xml\r\nContent-Length: 240\r\n\r\n"
        + f"{'<methodResponse><params><param><value>a</value></param></params></methodResponse>':<119}".encode(
            "utf-16"
        ),
    ],
    ids=["entities", "utf-16"],
)
async def test_xml_that_xend_does_not_write(tmp_path: Path, answer: bytes) -> None:
    """Entities, by which a little becomes much, are not looked at, in whatever encoding."""
    async with replaying(tmp_path, answer, protocol=XMLRPC) as replay:
        with pytest.raises(XendReplyError, match="not XML as xend writes it"):
            await XendClient(replay.address).dmesg()


async def test_who_only_asked_changed_nothing(tmp_path: Path) -> None:
    """Over XML-RPC, where all is a POST, silence is told with the outcome only of what may have one."""
    async with replaying(tmp_path, b"", protocol=XMLRPC) as replay:
        x = XendClient(replay.address, timeout_s=0.2, long_timeout_s=0.2)
        asked = (x.get_domain("web1"), x.domains(), x.get_node(), x.virtual_devices("web1", "vif"), x.pci_assignable())
        for call in asked:
            with pytest.raises(XendNoReplyError, match=r"within 0\.2 s$"):
                await call
        with pytest.raises(XendNoReplyError, match="may have been done"):
            await x.pause("web1")


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "\udcff"])
def test_names_of_hosts_that_are_none(host: str) -> None:
    """They are refused when they are given, not by an error of Python's when they are looked up."""
    for scheme in ("http", "xmlrpc"):
        with pytest.raises(InvalidInputError, match="address"):
            address.parse(f"{scheme}://{host}:8000")
    assert str(address.parse("http://[::1]:8000")) == "http://[::1]:8000"
    assert address.parse("http://xén.example").host == "xn--xn-bja.example"


def test_ports_from_zero() -> None:
    """A range of I/O ports may begin with the first."""
    assert sxp.write(ioports_sxp(IoPorts(first=0, last=15))) == b"(ioports (from 0) (to 15))"


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ("host:001.003", "usb-address/1.3"),
        ("host:1.13", "usb-address/1.13"),
        ("host:0x05ac:0x1", "usb-id/05ac:0001"),
        ("host:5AC:1234", "usb-id/05ac:1234"),
    ],
)
def test_usb_devices_as_people_write_them(told: str, word: str) -> None:
    """QEMU takes them in more than one spelling; one that is not understood would be taken for free."""
    seen = xendtext.read_domain(
        sxp.read(
            b"(domain (domid 1) (name a) (uuid 6a1f2c3d-0b1e-4c5d-8e9f-a0b1c2d3e4f5) (status 2)"
            b" (image (hvm (usbdevice %s))))" % told.encode()
        )
    )
    assert seen is not None
    assert {each.device for each in seen.uses} == {word}


def test_bound() -> None:
    """No more at once than find a place in xend's queue."""
    assert limits.POLL_REQUESTS_MAX < 5


async def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """HTTP takes any bytes in SXP. XML-RPC cannot, and what it cannot send is refused, not sent otherwise."""
    config: sxp.Printable = ["vm", ["name", "web1"], ["description", b"\xff"]]
    async with replaying(tmp_path, OK + b"Content-length: 0\r\n\r\n") as replay:
        await XendClient(replay.address).define(config)
        assert b"%FF" in replay.asked[0].body
    async with replaying(tmp_path, xml(b"<int>0</int>"), protocol=XMLRPC) as replay:
        with pytest.raises(InvalidInputError, match="XML-RPC cannot send"):
            await XendClient(replay.address).define(config)
        assert not replay.asked


@pytest.mark.parametrize("protocol", [HTTP, XMLRPC])
async def test_text_that_is_none(tmp_path: Path, protocol: str) -> None:
    """A shell hands on bytes that are no text as lone surrogates. They are bad input, for every field."""
    odd = "/srv/\udcff"
    async with replaying(tmp_path, recordings()[11].answer, protocol=protocol) as replay:
        x = XendClient(replay.address)
        for call in (
            x.dump("web1", odd),
            x.restore(odd),
            x.get_domain(odd),
            x.rename("web1", odd),
            x.usb_add("web1", odd) if protocol == XMLRPC else x.restore(odd),
            x.vbd_create("web1", Vbd(uname=odd, dev="xvdb")),
            x.vbd_destroy("web1", odd),
            x.virtual_device_create("web1", "vbd", {"uname": odd}),
            x.create(["vm", ["name", odd]]),
        ):
            with pytest.raises(InvalidInputError):
                await call
        assert not replay.asked
