"""xend as a source: the suite over both of its protocols, before the stand-in; and what it says in odd cases."""

import xmlrpc.client
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.events import limits
from leasehold.events.domains import Use
from leasehold.events.errors import SourceUnavailableError
from leasehold.events.inputs import DeviceUnused, DeviceUsed, DomainGone, DomainSeen
from leasehold.projections.polling import HELD_MS, MISSING_MS
from leasehold.services.poller import xend, xendtext
from leasehold.services.poller.xend import XendSource
from leasehold.services.xend import answers, http, rpc, sxp
from leasehold.services.xend.address import Address
from leasehold.services.xend.http import Reply, Request
from tests.poller.conformance import SourceSuite, Watch
from tests.poller.xenstage import NO_SYSFS, XenStage
from tests.xend.replay import recordings, replaying

GPU = "pci/0000:03:00.0"


@pytest.fixture(params=["xmlrpc", "unix"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[XenStage]:
    """One of them."""
    stage = XenStage(tmp_path, request.param)
    await stage.open()
    yield stage
    await stage.close()


@pytest.fixture
async def by_http(tmp_path: Path) -> AsyncIterator[XenStage]:
    """One that is asked over HTTP."""
    stage = XenStage(tmp_path, "unix")
    await stage.open()
    yield stage
    await stage.close()


@pytest.fixture
async def by_rpc(tmp_path: Path) -> AsyncIterator[XenStage]:
    """One that is asked over XML-RPC."""
    stage = XenStage(tmp_path, "xmlrpc")
    await stage.open()
    yield stage
    await stage.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a source asks for, in order: methods, or targets."""
    found: list[str] = []

    async def counted(address: Address, request: Request, *, timeout_s: float) -> Reply:
        found.append(request.op if request.method == "POST" else request.target)
        return await http.exchange(address, request, timeout_s=timeout_s)

    monkeypatch.setattr(xend, "exchange", counted)
    return found


class TestXend(SourceSuite):
    """Over XML-RPC and over HTTP."""


# --- how much is asked ----------------------------------------------------------------------------------------------


async def test_a_hundred_domains_take_two_requests(stage: XenStage, asked: list[str]) -> None:
    """However many run: over XML-RPC as over HTTP."""
    await stage.order("make", "100")
    look = await stage.source().look(frozenset())
    assert len(look.domains) == 101
    assert len(asked) == 2, asked


async def test_what_does_not_run_costs_a_bounded_number_of_requests(
    by_http: XenStage, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP: at first each is read, then a few at each look, and in the end all again; one that starts is seen."""
    monkeypatch.setattr(xend, "RESTING_READ_MAX", 4)
    uuids = [await by_http.define(f"cold{number}") for number in range(10)]
    source = by_http.source()
    look = await source.look(frozenset())
    assert len(look.domains) == 11
    lists = [
        "/xend/domain?state=all",
        "/xend/domain?detail=1",
        "/xend/domain?state=halted",
        "/xend/domain?state=suspended",
    ]
    assert asked[:4] == lists
    assert len(asked) == 4 + 10
    asked.clear()
    for _ in range(3):
        assert (await source.look(frozenset())).domains == look.domains
    assert asked[:4] == lists
    assert len(asked) == 3 * (4 + 4)
    assert len({target for target in asked if "?" not in target}) == 10
    await by_http.rename(uuids[0], "warm")
    names = {seen.domain.name for seen in (await source.look(frozenset())).domains.values()}
    assert "warm" in names
    assert "cold0" not in names


async def test_what_is_held_is_asked_when_something_was_taken(by_rpc: XenStage, asked: list[str]) -> None:
    """And not while the domain that had it still has it."""
    uuid = await by_rpc.start("gpu", devices=[GPU])
    source = by_rpc.source()
    await source.look(frozenset({GPU}))
    assert "xend.node.pciinfo" not in asked
    await by_rpc.order("linger", uuid, "-1")
    await by_rpc.destroy(uuid)
    assert (await source.look(frozenset({GPU, "usb-port/1-1"}))).held == frozenset({GPU})
    assert asked[-1] == "xend.node.pciinfo"
    await by_rpc.let_go(uuid)
    assert (await source.look(frozenset({GPU}))).held == frozenset()


async def test_without_knowing_what_is_held_time_must_pass(by_http: XenStage) -> None:
    """Over HTTP nobody says what Xen still holds: for half a minute a domain that has gone is dying."""
    source = by_http.source()
    watch = Watch(source)
    await watch.settle()
    uuid = await by_http.start("gpu", devices=[GPU])
    await watch.until(DomainSeen, DeviceUsed, DeviceUsed)
    await by_http.destroy(uuid)
    for _ in range(HELD_MS // MISSING_MS):
        await watch.look()
    assert [told for told in watch.told if isinstance(told, DeviceUnused) and told.use == "attached"] == []
    await watch.until(DomainGone, DeviceUnused, also=(DomainSeen, DeviceUnused))


def test_a_function_that_the_host_uses_no_domain_has(tmp_path: Path) -> None:
    """On the host itself sysfs says whose a function is: pciback's, or another driver's, or nobody's."""
    source = XendSource("xmlrpc:", sysfs=tmp_path)
    assert source._may_be_given(GPU), "without pciback this is not the host"
    for driver in ("pciback", "igb"):
        (tmp_path / "drivers" / driver).mkdir(parents=True)
    assert not source._may_be_given(GPU)
    place = tmp_path / "devices" / "0000:03:00.0"
    place.mkdir(parents=True)
    assert not source._may_be_given(GPU)
    (place / "driver").symlink_to("../../drivers/igb")
    assert not source._may_be_given(GPU)
    (place / "driver").unlink()
    (place / "driver").symlink_to("../../drivers/pciback")
    assert source._may_be_given(GPU)


# --- what goes wrong ------------------------------------------------------------------------------------------------


async def test_where_it_is_found(by_http: XenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers the next place is tried; where it was found it is looked for first; else all are named."""
    nowhere = Address("xmlrpc", path=str(by_http.socket.with_name("nowhere.sock")))
    monkeypatch.setattr(xend, "XMLRPC_UNIX", nowhere)
    monkeypatch.setattr(xend, "UNIX", by_http.http)
    monkeypatch.setattr(xend, "TCP", Address("http", path="/nonexistent"))
    source = XendSource()
    await source.look(frozenset())
    assert source.title.startswith(f"xend at {by_http.http}, ")
    await by_http.lose()
    with pytest.raises(SourceUnavailableError, match=r"nowhere.sock cannot be reached") as failed:
        await source.look(frozenset())
    assert str(by_http.socket) in str(failed.value)
    assert "/nonexistent" in str(failed.value)


async def test_silence_and_half_answers(stage: XenStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A xend that takes a request and does not answer, or breaks off, is away: that is not "no domains"."""
    await stage.start("web1")
    monkeypatch.setattr(xend, "TIMEOUT_S", 0.2)
    for trouble in ("silent", "cut"):
        await stage.order(trouble, "-1")
        with pytest.raises(SourceUnavailableError):
            await stage.source().look(frozenset())
        await stage.order(trouble, "0")
    monkeypatch.setattr(xend, "TIMEOUT_S", 10.0)
    assert len((await stage.source().look(frozenset())).domains) == 2


async def test_a_restart_is_another_generation(stage: XenStage) -> None:
    """While it runs it is the same one."""
    source = stage.source()
    first = await source.look(frozenset())
    assert (await source.look(frozenset())).generation == first.generation != ""
    await stage.lose()
    await stage.find()
    assert (await source.look(frozenset())).generation != first.generation


def rpc_answer(value: Any) -> bytes:
    """What an XML-RPC server sends."""
    body = xmlrpc.client.dumps((value,), methodresponse=True).encode()
    return b"HTTP/1.1 200 OK\r\nContent-type: text/xml\r\nContent-length: %d\r\n\r\n%b" % (len(body), body)


def sxp_answer(body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/sxp") -> bytes:
    """What xend's HTTP server sends."""
    head = b"HTTP/1.1 %b\r\nContent-length: %d\r\nContent-type: %b\r\n\r\n" % (status, len(body), kind)
    return head + body


UUID = "6a1f2c3d-0b1e-4c5d-8e9f-a0b1c2d3e4f5"
WEB1 = ["domain", ["domid", 1], ["name", "web1"], ["uuid", UUID], ["status", 2]]


async def test_what_xend_fails_to_describe_is_unclear(tmp_path: Path) -> None:
    """A domain that is among the names and not among the descriptions, or whose description says not who it is."""
    names, nobody = ["web1", "broken", "nobody"], ["domain", ["domid", 5], ["name", "nobody"]]
    async with replaying(tmp_path, rpc_answer(names), rpc_answer([WEB1, nobody]), protocol="xmlrpc") as replay:
        look = await XendSource(str(replay.address), sysfs=NO_SYSFS).look(frozenset())
    assert [seen.domain.name for seen in look.domains.values()] == ["web1"]
    assert look.unclear_names == {"broken", "nobody"}


async def test_an_older_xend_cannot_say_what_is_free(tmp_path: Path) -> None:
    """Before 3.4 there is no `pciinfo`: that is told as not known, not as nothing."""
    fault = xmlrpc.client.dumps(
        xmlrpc.client.Fault(2, 'Exception: method "xend.node.pciinfo" is not supported')
    ).encode()
    no = b"HTTP/1.1 200 OK\r\nContent-type: text/xml\r\nContent-length: %d\r\n\r\n%b" % (len(fault), fault)
    async with replaying(tmp_path, rpc_answer(["web1"]), rpc_answer([WEB1]), no, protocol="xmlrpc") as replay:
        source = XendSource(str(replay.address), sysfs=NO_SYSFS)
        assert (await source.look(frozenset({GPU}))).held is None


async def test_between_the_list_and_the_look(tmp_path: Path) -> None:
    """Over HTTP: one that has gone by then is left out, one that fails is unclear, one that is paused is read."""
    paused = b"(domain (domid 3) (name p) (uuid 6a1f2c3d-0b1e-4c5d-8e9f-000000000003) (status 1))''"
    answers_ = (
        sxp_answer(b"(gone broken p)"), sxp_answer(b"()"), sxp_answer(b"()"), sxp_answer(b"()"),
        sxp_answer(b"<Fault 3: 'gone'>", b"404 Not found", b"text/plain"),
        sxp_answer(b"(xend.err 'oh')", b"500 Request failed: get"), sxp_answer(paused),
    )  # fmt: skip
    # One connection after the other, so that each gets the answer that is meant for it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "POLL_REQUESTS_MAX", 1)
        async with replaying(tmp_path, *answers_) as replay:
            look = await XendSource(str(replay.address)).look(frozenset())
    assert [(seen.domain.name, seen.domain.state) for seen in look.domains.values()] == [("p", "paused")]
    assert look.unclear_names == {"broken"}


@pytest.mark.parametrize("answer", [sxp_answer(b"<html></html>", kind=b"text/html"), sxp_answer(b"(a"), b"garbage"])
async def test_what_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    """A page for browsers, half a list, no HTTP: nothing is known then."""
    for protocol in ("http", "xmlrpc"):
        async with replaying(tmp_path, answer, lingers=False, protocol=protocol) as replay:
            with pytest.raises(SourceUnavailableError):
                await XendSource(str(replay.address)).look(frozenset())


# --- as the genuine one says it -------------------------------------------------------------------------------------


def recorded(number: int) -> sxp.Sxp:
    """What was answered there."""
    body = recordings()[number].body
    if body.startswith(b"<?xml"):
        return rpc.value_of(Reply(200, "OK", "text/xml", body), "poll")
    return answers.value_of(Reply(200, "OK", "application/sxp", body), "poll")


@pytest.mark.parametrize(
    ("number", "state", "domid", "uses"),
    [
        (11, "running", 1, ()),
        (17, "running", 2, ("pci/0000:03:00.0", "pci/0000:06:00.0", "usb-id/0529:0001", "usb-port/1-1")),
        (199, "running", 7, ("pci/0000:03:00.0", "pci/0000:06:00.0", "usb-id/0529:0001", "usb-port/1-1")),
        (19, "halted", -1, ("pci/0000:07:00.0",)),
        (193, "halted", -1, ("pci/0000:07:00.0",)),
        (215, "halted", -1, ("pci/0000:03:00.0",)),
        (221, "crashed", 2, ("pci/0000:03:00.0", "pci/0000:06:00.0", "usb-id/0529:0001", "usb-port/1-1")),
    ],
)
def test_recorded_domains(number: int, state: str, domid: int, uses: tuple[str, ...]) -> None:
    """One that runs has what it uses, one that is halted claims it; `image/pci`, which is of its boot, says nothing."""
    seen = xendtext.read_domain(recorded(number))
    assert seen is not None
    assert (seen.domain.state, seen.domain.domid) == (state, domid)
    how = ("attached", "configured") if domid >= 0 else ("configured",)
    assert seen.uses == tuple(Use(word, use) for word in uses for use in how)


def test_recorded_lists() -> None:
    """All that run, with Domain-0; names; functions that may be given away."""
    described = recorded(22)
    assert isinstance(described, list)
    found = [xendtext.read_domain(each) for each in described]
    assert [seen.domain.name for seen in found if seen] == ["Domain-0", "web1", "gpu-hvm"]
    assert xendtext.names(recorded(7)) == ["Domain-0", "web1"]
    assert xendtext.names(recorded(197)) == ["Domain-0", "gpu-hvm"]
    assert xendtext.free_pci_words(recorded(202)) == {"pci/0000:03:00.1", "pci/0000:07:00.0"}


def test_usb_in_qemus_words() -> None:
    """By vendor and product or by address; a tablet is no device of the host."""
    told = b"host:529:1", b"host:1.3", b"host:002.010", b"host:0x5AC:0x12", b"tablet", b"host:auto:1.3", b"host:1.*"
    image = b"(image (hvm %b))" % b" ".join(b"(usbdevice %b)" % each for each in told)
    seen = xendtext.read_domain(sxp.read(b"(domain (uuid %b) (domid 4) %b)" % (UUID.encode(), image)))
    assert seen is not None
    words = {use.device for use in seen.uses}
    assert words == {"usb-id/0529:0001", "usb-address/1.3", "usb-address/2.10", "usb-id/05ac:0012"}
