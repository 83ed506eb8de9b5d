"""The source that asks Xen's tools, held to what all sources must do, on tools that are imitated.

That the imitation and the reading are right: `test_xltext.py`, on recordings, and `make test-xen`, on a real Xen.
"""

import asyncio
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from leasehold.events import limits
from leasehold.events.domains import Use
from leasehold.events.errors import SourceUnavailableError
from leasehold.events.inputs import DeviceUnused, DomainGone, DomainSeen
from leasehold.services.poller import libxl
from leasehold.services.poller.libxl import LibxlSource
from tests.poller.conformance import SourceSuite, Stage, Watch
from tests.poller.fakexl import DOMAIN_0, HEADINGS, MIB, FakeDomain, FakeXen

_CARD: Final = "pci/0000:01:00.0"
_OTHER: Final = "pci/0000:02:00.0"
_CANNOT: Final = "libxl knows no domain that has ended"


class XlStage:
    """What the suite makes happen, on imitated tools."""

    cannot: Mapping[str, str] = {"halt": _CANNOT, "define": _CANNOT}
    pci: Sequence[str] = (_CARD, _OTHER)
    usb: Sequence[str] = ("usb-address/1.3",)

    def __init__(self, folder: Path) -> None:
        self.xen = FakeXen(folder, pci=self.pci)

    def source(self) -> LibxlSource:
        return self.xen.source()

    async def start(self, name: str, *, devices: Sequence[str] = (), managed: bool = False) -> str:
        del managed
        return self.xen.add(name, devices).uuid

    async def define(self, name: str, *, devices: Sequence[str] = ()) -> str:
        raise NotImplementedError(name, devices)

    async def reboot(self, uuid: str) -> None:
        before = self.xen.remove(uuid)
        self.xen.add(before.name, before.devices, uuid)

    async def halt(self, uuid: str) -> None:
        raise NotImplementedError(uuid)

    async def destroy(self, uuid: str) -> None:
        self.xen.remove(uuid)

    async def destroy_slowly(self, uuid: str) -> None:
        self.xen.remove(uuid, keeps=True)

    async def let_go(self, uuid: str) -> None:
        del uuid
        self.xen.left.clear()
        self.xen.tell(libxl.BACKENDS)

    async def rename(self, uuid: str, name: str) -> None:
        self.xen.domains[uuid].name = name
        self.xen.tell("/vm")

    async def pause(self, uuid: str) -> None:
        self._letters(uuid, "--p---")

    async def unpause(self, uuid: str) -> None:
        self._letters(uuid, "r-----")

    async def crash(self, uuid: str) -> None:
        self._letters(uuid, "---sc-")

    def _letters(self, uuid: str, letters: str) -> None:
        self.xen.domains[uuid].letters = letters
        self.xen.write()

    async def set_memory(self, uuid: str, memory_bytes: int) -> None:
        self.xen.domains[uuid].memory_kib = memory_bytes >> 10
        self.xen.write()

    async def attach(self, uuid: str, device: str) -> None:
        self.xen.domains[uuid].devices.append(device)
        self.xen.tell(libxl.BACKENDS)

    async def detach(self, uuid: str, device: str) -> None:
        self.xen.domains[uuid].devices.remove(device)
        self.xen.tell(libxl.BACKENDS)

    async def lose(self) -> None:
        (self.xen.tools / "lost").touch()

    async def find(self) -> None:
        (self.xen.tools / "lost").unlink()

    async def close(self) -> None:
        pass


class TestLibxl(SourceSuite):
    """See `SourceSuite`."""

    @pytest.fixture
    async def stage(self, tmp_path: Path) -> Stage:
        """Imitated tools."""
        return XlStage(tmp_path)


@pytest.fixture
def xen(tmp_path: Path) -> FakeXen:
    """A Xen with two devices at pciback."""
    return FakeXen(tmp_path, pci=(_CARD, _OTHER))


@pytest.fixture
async def source(xen: FakeXen) -> AsyncIterator[LibxlSource]:
    """A source of it."""
    source = xen.source()
    yield source
    await source.close()


async def test_what_libxl_offers_is_no_evidence(xen: FakeXen, source: LibxlSource) -> None:
    """A device that `xl` offers as free after a refused attach stays with the domain that has it, listed or not."""
    owner = xen.add("gpu", [_CARD])
    xen.offered_wrongly.add(_CARD)
    xen.write()
    look = await source.look(frozenset({_CARD, _OTHER}))
    (has,) = [seen for seen in look.domains.values() if seen.domain.name == "gpu"]
    assert Use(_CARD, "attached") in has.uses
    assert look.held == frozenset({_CARD})
    xen.remove(owner.uuid, keeps=True)
    assert (await source.look(frozenset({_CARD, _OTHER}))).held == frozenset({_CARD})
    xen.left.clear()
    xen.offered_wrongly.clear()
    xen.write()
    assert (await source.look(frozenset({_CARD, _OTHER}))).held == frozenset()


async def test_what_libxl_withholds_is_held(xen: FakeXen, source: LibxlSource) -> None:
    """A device at pciback that `xl` does not offer is held, though no domain and no backend shows it."""
    xen.left[7] = [_CARD]
    xen.write()
    (xen.tools / "backends").write_text("")
    assert (await source.look(frozenset({_CARD, _OTHER}))).held == frozenset({_CARD})


async def test_a_domain_without_a_configuration(xen: FakeXen, source: LibxlSource) -> None:
    """One that is just being made is not told at once; it is if it stays so."""
    domain = xen.add("raw", ["usb-address/1.3"])
    domain.has_config = False
    xen.write()
    for _ in range(libxl.OBSCURE_LOOKS - 1):
        look = await source.look(frozenset())
        assert [seen.domain.name for seen in look.domains.values()] == ["Domain-0"]
        assert look.unclear_domids == {domain.domid: "running"}
        assert look.unclear_names == {"raw"}
    (seen,) = [seen for seen in (await source.look(frozenset())).domains.values() if seen.domain.domid]
    assert (seen.domain.name, seen.domain.memory_bytes) == ("raw", 64 * MIB)
    assert seen.uses == ()
    domain.has_config = True
    xen.write()
    (seen,) = [seen for seen in (await source.look(frozenset())).domains.values() if seen.domain.domid]
    assert {use.device for use in seen.uses} == {"usb-address/1.3"}


async def test_a_domain_that_has_a_device_before_a_configuration(xen: FakeXen, source: LibxlSource) -> None:
    """It is told at once: the device is not free."""
    domain = xen.add("gpu", [_CARD])
    domain.has_config = False
    xen.write()
    (seen,) = [seen for seen in (await source.look(frozenset())).domains.values() if seen.domain.domid]
    assert (seen.domain.name, seen.uses) == ("gpu", (Use(_CARD, "attached"),))


async def test_a_creation_that_is_refused(xen: FakeXen, source: LibxlSource) -> None:
    """Its domid, there for a moment and without a configuration, is told neither as begun nor as gone."""
    watch = Watch(source)
    await watch.settle()
    begun = xen.add("refused")
    begun.has_config = False
    xen.write()
    await watch.look()
    xen.remove(begun.uuid)
    await watch.settle()
    assert watch.told == []


async def test_a_name_that_goes_before_its_domain(xen: FakeXen, source: LibxlSource) -> None:
    """While a domain is destroyed `xl` shows neither name nor configuration; it is dying, and keeps what it had."""
    domain = xen.add("gpu", [_CARD])
    watch = Watch(source)
    await watch.settle()
    (key,) = [key for key in (await source.look(frozenset())).domains if domain.uuid in key]
    domain.has_config, domain.letters, domain.vcpus, domain.name = False, "--ps-d", 0, ""
    xen.write()
    await watch.look()
    (told,) = watch.told
    assert isinstance(told, DomainSeen)
    assert (told.domain.name, told.domain.state, told.domain.vcpus) == ("gpu", "dying", 1)
    watch.told.clear()
    for _ in range(30):
        await watch.look()
    assert watch.told == []
    xen.remove(domain.uuid)
    await watch.until(DeviceUnused(key, _CARD, "attached"), DomainGone(key), also=(DeviceUnused, DomainSeen))


async def test_a_reboot_without_a_configuration_at_first(xen: FakeXen, source: LibxlSource) -> None:
    """While the next incarnation is made the domain has not gone, and what it had is not free."""
    domain = xen.add("gpu", [_CARD])
    watch = Watch(source)
    await watch.settle()
    xen.remove(domain.uuid)
    again = xen.add("gpu", [], domain.uuid)
    again.has_config = False
    xen.write()
    await watch.look()
    await watch.look()
    assert not [told for told in watch.told if isinstance(told, DomainGone)]
    watch.told.clear()
    again.has_config, again.devices = True, [_CARD]
    xen.write()
    await watch.look()
    (told,) = watch.told
    assert isinstance(told, DomainSeen) and told.domain.domid == again.domid


async def test_a_list_and_a_detail_that_differ(xen: FakeXen, source: LibxlSource) -> None:
    """The details of another domain that has got the number since are not taken for this one's."""
    domain = xen.add("web1")
    (xen.tools / "list-l").write_text(
        (xen.tools / "list-l").read_text().replace(domain.uuid, "99999999-2222-4333-8444-000000000000")
    )
    look = await source.look(frozenset())
    assert look.unclear_domids == {domain.domid: "running"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list-v", "", "headings"),
        ("list-v", "Name ID Mem VCPUs State Time(s) UUID\n", "no Domain-0"),
        ("list-v", "Name ID Mem VCPUs State Time(s) UUID\nnonsense\n", "'nonsense'"),
        ("list-l", "libxl: error", "xl list -l"),
        ("list-l", '[{"domid": "one", "config": {}}]', "domid"),
        ("assignable", "no devices\n", "cannot be read"),
    ],
)
async def test_what_cannot_be_read(xen: FakeXen, source: LibxlSource, name: str, text: str, message: str) -> None:
    """It is no answer, rather than an answer of which a part is missing; and it says what is wrong."""
    (xen.tools / name).write_text(text)
    with pytest.raises(SourceUnavailableError, match=message):
        await source.look(frozenset())


async def test_why_there_is_no_answer(xen: FakeXen, source: LibxlSource) -> None:
    """The tool's own last words are told."""
    (xen.tools / "lost").touch()
    with pytest.raises(SourceUnavailableError, match=r"xl .* ended with code 1: xencall: error: Could not obtain"):
        await source.look(frozenset())
    (xen.tools / "lost").unlink()
    xen.add_tool("xenstore-ls", "#!/bin/sh\necho 'xenstore-ls: xs_open: refused' >&2; exit 1\n")
    with pytest.raises(SourceUnavailableError, match="xs_open: refused"):
        await source.look(frozenset())


async def test_tools_that_are_not_there(xen: FakeXen, source: LibxlSource) -> None:
    """Without xenstore-ls nobody can tell what is held; without xl, nothing."""
    cat = shutil.which("cat")
    assert cat is not None
    (xen.tools / "cat").symlink_to(cat)
    # Whatever is installed on this machine.
    source._environment["PATH"] = str(xen.tools)
    xen.add("gpu", [_CARD])
    (xen.tools / "xenstore-ls").unlink()
    look = await source.look(frozenset({_CARD}))
    assert look.held is None
    assert any(Use(_CARD, "attached") in seen.uses for seen in look.domains.values())
    (xen.tools / "xl").unlink()
    with pytest.raises(SourceUnavailableError, match="xl is not installed"):
        await source.look(frozenset())


@pytest.mark.parametrize("all_run", [False, True])
async def test_tools_that_do_not_end(
    xen: FakeXen, source: LibxlSource, monkeypatch: pytest.MonkeyPatch, *, all_run: bool
) -> None:
    """A look that is given up ends its children, those that it is just starting, too; and the next one is whole."""
    read, streams, all_read = libxl._read, itertools.count(1), asyncio.Event()

    async def reading(stream: asyncio.StreamReader | None, command: Sequence[str]) -> str:
        if command[0] == "xl" and next(streams) == 2 * 3:
            all_read.set()
        return await read(stream, command)

    monkeypatch.setattr(libxl, "_read", reading)
    os.mkfifo(xen.tools / "hangs")
    look = asyncio.create_task(source.look(frozenset()))
    # Each that hangs tells its pid there first.
    pids = (await asyncio.to_thread((xen.tools / "hangs").read_text)).split()
    assert pids
    if all_run:
        await all_read.wait()
    look.cancel()
    await asyncio.gather(look, return_exceptions=True)
    async with asyncio.timeout(10):
        for process in list(source._running):
            await process.wait()
    (xen.tools / "hangs").unlink()
    assert (await source.look(frozenset())).domains
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


async def test_more_than_can_be_taken(xen: FakeXen, source: LibxlSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that says more than the bound is not read on."""
    monkeypatch.setattr(limits, "XL_BYTES_MAX", 1_000)
    for number in range(20):
        xen.add(f"web{number}")
    with pytest.raises(SourceUnavailableError, match="says more than"):
        await source.look(frozenset())


async def test_a_thousand_domains(xen: FakeXen, source: LibxlSource) -> None:
    """A look at them takes less than a second of CPU, without what Xen's tools take; it is some 25 ms."""
    rows, details = [], []
    for number in range(1_000):
        devices = [_CARD] if number == 0 else []
        domain = FakeDomain(f"web{number}", f"11111111-2222-4333-8444-{number:012x}", number + 1, devices)
        rows.append(domain.row())
        details.append(domain.detail())
    (xen.tools / "list-v").write_text("".join([HEADINGS, DOMAIN_0, *rows]))
    (xen.tools / "list-l").write_text(json.dumps(details, indent=4))
    begun_s = time.process_time()
    look = await source.look(frozenset())
    taken_s = time.process_time() - begun_s
    assert len(look.domains) == 1_000
    assert taken_s < 1, taken_s


async def test_it_is_told_when_to_look(xen: FakeXen, source: LibxlSource) -> None:
    """A change wakes, also one that came while nobody waited; without one nothing does."""
    async with asyncio.timeout(10):
        await source.changed()
        await source.look(frozenset())
        waiting = asyncio.create_task(source.changed())
        assert not (await asyncio.wait([waiting], timeout=0.3))[0]
        xen.add("web1")
        await waiting
        await source.look(frozenset())
        xen.add("web2")
        await source._stirred.wait()
        await source.changed()


async def test_a_watch_that_ends_is_started_anew(xen: FakeXen, source: LibxlSource) -> None:
    """When xenstore's watch ends, the next who waits has a new one; nobody is woken for nothing."""
    async with asyncio.timeout(10):
        await source.changed()
        assert source._watcher is not None and source._watching is not None
        first = source._watcher.pid
        source._watcher.kill()
        await source._watching
        await source.look(frozenset())
        xen.add("web1")
        await source.changed()
        assert source._watcher.pid != first
