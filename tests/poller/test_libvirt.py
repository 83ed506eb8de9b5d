"""libvirt as a source, on libvirt's own test driver and on real guests of a libvirtd of our own."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.events.domains import SeenDomain, Use
from leasehold.events.errors import SourceUnavailableError, UnavailableError
from leasehold.events.identities import uuid_of
from leasehold.services.poller import libvirt as source_module
from leasehold.services.poller.libvirt import LibvirtSource
from leasehold.services.poller.sources import open_source
from tests.libvirt.hypervisor import Hypervisor, running_hypervisor
from tests.poller.conformance import SourceSuite, Stage
from tests.poller.libvirtstage import QemuStage, TestDriverStage, libvirt, name_in, with_xml

STICK = "usb-address/1.4"
OTHER_STICK = "usb-address/1.6"
OTHER_STICK_BY_ID = "usb-id/0781:5581"
WITHIN_S = 20.0
QUIET_S = 0.2


class TestLibvirtTestDriver(SourceSuite):
    """See `SourceSuite`."""

    @pytest.fixture
    async def stage(self, own: TestDriverStage) -> Stage:
        """In this process."""
        return own


class TestLibvirtQemu(SourceSuite):
    """See `SourceSuite`."""

    @pytest.fixture
    async def stage(self, real: QemuStage) -> Stage:
        """Guests that run."""
        return real


@pytest.fixture
async def own() -> AsyncIterator[TestDriverStage]:
    """libvirt's test driver, without domains."""
    stage = TestDriverStage()
    yield stage
    await stage.close()


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """One for all tests here."""
    with running_hypervisor() as hypervisor:
        yield hypervisor


@pytest.fixture
async def real(hypervisor: Hypervisor) -> AsyncIterator[QemuStage]:
    """It, without domains."""
    stage = QemuStage(hypervisor)
    yield stage
    await stage.close()


async def seen(source: LibvirtSource, uuid: str) -> SeenDomain:
    """A domain as one look shows it."""
    look = await source.look(frozenset())
    (found,) = [each for key, each in look.domains.items() if uuid_of(key) == uuid]
    return found


async def told(source: LibvirtSource) -> None:
    """Wait until something was told."""
    async with asyncio.timeout(WITHIN_S):
        await source.changed()


async def quiet(source: LibvirtSource) -> None:
    """Look until nothing more is told."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            await source.look(frozenset())
            try:
                async with asyncio.timeout(QUIET_S):
                    await source.changed()
            except TimeoutError:
                return


# --- what libvirt itself says of devices ------------------------------------------------------------------------------


async def test_a_device_is_whose_libvirtd_gave_it_to(real: QemuStage) -> None:
    """One that a running domain has and a halted one asks for: libvirtd refuses the second, and both are told."""
    source = real.source()
    has = await real.start("has", devices=[STICK, OTHER_STICK_BY_ID], managed=True)
    wants = await real.define("wants", devices=[OTHER_STICK])
    with pytest.raises(libvirt.libvirtError, match="in use by driver QEMU, domain has"):
        real.domain(wants).create()
    assert (await seen(source, wants)).uses == (Use(OTHER_STICK, "configured"),)
    assert (await seen(source, has)).uses == (
        Use(STICK, "attached"),
        Use(STICK, "configured"),
        # libvirtd has found where it is.
        Use(OTHER_STICK, "attached"),
        Use(OTHER_STICK_BY_ID, "configured"),
    )
    await source.close()


async def test_a_device_that_is_taken_away_is_told_at_once(real: QemuStage) -> None:
    """libvirtd tells of it; the configuration still asks for it. What is plugged in is told, too."""
    source = real.source()
    uuid = await real.start("has", devices=[STICK], managed=True)
    assert Use(STICK, "attached") in (await seen(source, uuid)).uses
    await real.detach(uuid, STICK)
    await told(source)
    assert (await seen(source, uuid)).uses == (Use(STICK, "configured"),)
    real.domain(uuid).attachDevice("<input type='tablet' bus='usb'/>")
    await told(source)
    await source.close()


async def test_a_guest_that_starts_anew_by_itself_is_the_same(real: QemuStage) -> None:
    """It keeps its number and its devices; only one that is stopped and started is another incarnation."""
    source = real.source()
    uuid = await real.start("web1", devices=[STICK])
    before = await seen(source, uuid)
    real.domain(uuid).reset()
    assert await seen(source, uuid) == before
    await source.close()


# --- libvirtd comes and goes ------------------------------------------------------------------------------------------


async def test_guests_outlive_libvirtd(real: QemuStage) -> None:
    """A killed libvirtd is told as not answering; after its start all are as they were, by another connection."""
    source = real.source()
    runs = await real.start("runs", devices=[STICK])
    before = await source.look(frozenset())
    await real.lose()
    with pytest.raises(SourceUnavailableError, match="libvirtd closed it"):
        await told(source)
    with pytest.raises(SourceUnavailableError, match="Connection refused"):
        await source.look(frozenset())
    await real.find()
    after = await source.look(frozenset())
    assert [uuid_of(key) for key in after.domains] == [runs]
    assert after.domains == before.domains
    assert after.generation != before.generation
    await source.close()


async def test_what_ends_while_libvirtd_is_away_is_seen_to_have_ended(real: QemuStage) -> None:
    """A guest that is killed meanwhile has no incarnation afterwards, and has nothing."""
    source = real.source()
    uuid = await real.start("ends", devices=[STICK], managed=True)
    assert (await seen(source, uuid)).domain.domid > 0
    await real.lose()
    real.hypervisor.end_guest("ends")
    await real.find()
    give_up_s = time.monotonic() + WITHIN_S
    while (last := await seen(source, uuid)).domain.state != "halted":
        assert time.monotonic() < give_up_s, last
    assert last.domain.domid == -1
    assert last.uses == (Use(STICK, "configured"),)
    await source.close()


async def test_a_libvirtd_that_hangs_does_not_answer(real: QemuStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on, keep-alive messages find it out, and when it goes on all is seen again."""
    monkeypatch.setattr(source_module, "KEEP_ALIVE_S", 1)
    source = real.source()
    uuid = await real.start("web1")
    before = await seen(source, uuid)
    real.hypervisor.signal("STOP")
    try:
        with pytest.raises(SourceUnavailableError, match="did not answer keep-alive messages"):
            await told(source)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await source.look(frozenset())
    finally:
        real.hypervisor.signal("CONT")
    assert await seen(source, uuid) == before
    await source.close()


async def test_what_never_answers_is_not_asked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that are given up leave a few threads behind at most; these end when the connection does."""
    path = tmp_path / "socket"
    threads = set(threading.enumerate())
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    source = LibvirtSource(f"qemu:///system?socket={path}")
    for _ in range(source_module.THREADS_MAX):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await source.look(frozenset())
    hanging = [each for each in threading.enumerate() if each not in threads and each.name == source.title]
    assert len(hanging) == source_module.THREADS_MAX
    with pytest.raises(SourceUnavailableError, match="does not answer 4 earlier questions"):
        await source.look(frozenset())
    await source.close()
    server.close()
    for each in hanging:
        await asyncio.to_thread(each.join, WITHIN_S)
        assert not each.is_alive()


# --- what is told, and what is only looked for ------------------------------------------------------------------------


async def test_a_halted_domain_may_be_called_otherwise(own: TestDriverStage) -> None:
    """libvirt tells of it; it stays the same domain."""
    source = own.source()
    uuid = await own.define("web1")
    assert (await seen(source, uuid)).domain.name == "web1"
    await own.rename(uuid, "web2")
    await told(source)
    assert (await seen(source, uuid)).domain.name == "web2"
    await source.close()


async def test_a_domain_that_was_saved_is_suspended(own: TestDriverStage) -> None:
    """It has no incarnation until it is started again, which is another one."""
    source = own.source()
    uuid = await own.start("web1", managed=True)
    before = await seen(source, uuid)
    own.domain(uuid).managedSave()
    await told(source)
    assert (saved := (await seen(source, uuid)).domain).state == "suspended"
    assert saved.domid == -1
    own.domain(uuid).create()
    after = await seen(source, uuid)
    assert after.domain.state == "running"
    assert after.domain.domid > before.domain.domid
    await source.close()


@pytest.mark.parametrize(
    ("constant", "state"),
    [
        ("NOSTATE", "unknown"), ("RUNNING", "running"), ("BLOCKED", "running"), ("PAUSED", "paused"),
        ("SHUTDOWN", "shutting_down"), ("SHUTOFF", "unknown"), ("CRASHED", "crashed"),
        # It has put itself to sleep: it is there, with its devices.
        ("PMSUSPENDED", "paused"),
    ],
)  # fmt: skip
async def test_states(own: TestDriverStage, monkeypatch: pytest.MonkeyPatch, constant: str, state: str) -> None:
    """Each of libvirt's states of a domain that is there has one of ours; it keeps what it has in all of them."""
    number = getattr(libvirt, f"VIR_DOMAIN_{constant}")
    monkeypatch.setattr(libvirt.virDomain, "state", lambda *_: [number, 0])
    source = own.source()
    uuid = await own.start("web1", devices=own.pci[:1])
    shown = await seen(source, uuid)
    assert shown.domain.state == state
    assert shown.domain.domid > 0
    assert shown.uses == (Use(own.pci[0], "attached"),)
    await source.close()


async def test_what_is_not_told_is_seen_when_everything_is(
    own: TestDriverStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look reads only what was told of, until it is time to read everything again."""
    source = own.source()
    uuid = await own.start("web1")
    before = await seen(source, uuid)
    await own.set_memory(uuid, before.domain.memory_bytes // 2)
    assert await seen(source, uuid) == before
    monkeypatch.setattr(source_module, "EVERYTHING_MS", 0)
    again = own.source()
    assert (await seen(again, uuid)).domain.memory_bytes == before.domain.memory_bytes // 2
    await own.set_memory(uuid, before.domain.memory_bytes // 4)
    assert (await seen(again, uuid)).domain.memory_bytes == before.domain.memory_bytes // 4
    await again.close()
    await source.close()


async def test_only_what_was_told_of_is_read(own: TestDriverStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has changed no domain is read; where one has, that one; where too many were told of, all."""
    monkeypatch.setattr(source_module, "EVERYTHING_MS", 600_000)
    source = own.source()
    uuids = [await own.start(f"web{number}") for number in range(5)]
    await source.look(frozenset())
    read: list[str] = []

    def noting(xml: str) -> str:
        read.append(name_in(xml))
        return xml

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", with_xml(noting))
    await source.look(frozenset())
    assert read == []
    await own.pause(uuids[3])
    await told(source)
    assert (await seen(source, uuids[3])).domain.state == "paused"
    await quiet(source)
    assert set(read) == {"web3"}
    monkeypatch.setattr(source_module, "TOLD_MAX", 2)
    for uuid in uuids[:3]:
        await own.pause(uuid)
    await told(source)
    give_up_s = time.monotonic() + WITHIN_S
    while set(read) != {f"web{number}" for number in range(5)}:
        await source.look(frozenset())
        assert time.monotonic() < give_up_s, read
    await source.close()


async def test_a_domain_that_goes_while_it_is_read_has_gone(
    own: TestDriverStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was listed, and is not there any more: that is no failure, and all others are told."""
    source = own.source()
    stays, goes = [await own.start(name) for name in ("stays", "goes")]
    real = libvirt.virDomain.XMLDesc

    def late(domain: Any, flags: int = 0) -> str:
        if domain.name() == "goes":
            own.domain(goes).destroy()
        return str(real(domain, flags))

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", late)
    look = await source.look(frozenset())
    assert [uuid_of(key) for key in look.domains] == [stays]
    assert look.unclear_names == frozenset()
    await source.close()


def odd(xml: str) -> str:
    """That of a domain called so becomes something else."""
    return "<domain/>" if name_in(xml) == "odd" else xml


async def test_a_domain_that_cannot_be_read_any_more_stays(
    own: TestDriverStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as it was, with what it has, beside all others; it is read again in the next look."""
    source = own.source()
    uuid = await own.start("odd", devices=own.pci)
    before = await seen(source, uuid)
    with monkeypatch.context() as patched:
        patched.setattr(libvirt.virDomain, "XMLDesc", with_xml(odd))
        await own.pause(uuid)
        good = await own.start("good")
        await told(source)
        assert await seen(source, uuid) == before
        assert (await seen(source, good)).domain.state == "running"
    assert (await seen(source, uuid)).domain.state == "paused"
    await source.close()


async def test_a_domain_of_which_nothing_is_known_could_have_anything(
    own: TestDriverStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is there, that is no answer, which makes the host stale; if it is halted, it stays as the log has it."""
    uuid = await own.start("odd", managed=True)
    good = await own.start("good")
    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", with_xml(odd))
    source = own.source()
    with pytest.raises(
        SourceUnavailableError, match=r"domain odd cannot be read: uuid: the XML of a domain has no uuid"
    ):
        await source.look(frozenset())
    await own.halt(uuid)
    look = await source.look(frozenset())
    assert [uuid_of(key) for key in look.domains] == [good]
    assert look.unclear_names == frozenset({"odd"})
    await source.close()


async def test_libvirts_error_of_one_domain_is_of_that_one(
    own: TestDriverStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the connection lives, all others are told."""
    source = own.source()
    uuid = await own.start("odd")
    before = await seen(source, uuid)

    def busy(domain: Any, _flags: int = 0) -> str:
        raise libvirt.libvirtError("cannot acquire state change lock")

    await own.pause(uuid)
    await told(source)
    with monkeypatch.context() as patched:
        patched.setattr(libvirt.virDomain, "XMLDesc", busy)
        assert await seen(source, uuid) == before
    assert (await seen(source, uuid)).domain.state == "paused"
    await source.close()


async def test_a_thousand_domains_cost_little(own: TestDriverStage) -> None:
    """A look at all of them takes less than a second of CPU, one at rest a tenth of it."""
    for number in range(1_000):
        await own.start(f"web{number}", devices=own.pci)
    source = own.source()
    for bound_s in (1.0, 0.1):
        begun_s = time.process_time()
        look = await source.look(frozenset())
        took_s = time.process_time() - begun_s
        print(f"{len(look.domains)} domains: {took_s:.3f} s of CPU")
        assert len(look.domains) == 1_000
        assert took_s < bound_s
    await source.close()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt-python is optional: who asks for it without having it is told how to get it."""
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(UnavailableError, match=r"pip install 'leasehold\[libvirt\]'"):
        open_source("libvirt:test:///default")


async def test_an_address_that_is_none_is_no_answer() -> None:
    """libvirt says what is wrong with it."""
    source = LibvirtSource("nothing:///here")
    with pytest.raises(SourceUnavailableError, match=r"^libvirt at nothing:///here: [\w ]+"):
        await source.look(frozenset())
    await source.close()
