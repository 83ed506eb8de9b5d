"""`leasehold xend-sim` in one process, `leasehold up --xend` in others: what happens to domains is in the ledger.

Nothing else is. A device that a domain uses without a lease is seen as such, and is not granted.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any, Final

import pytest
import pytest_asyncio

from leasehold.events.errors import SourceUnavailableError
from leasehold.events.identities import uuid_of
from tests.poller.xenstage import XenProcess
from tests.support.running import HOST, RunningUp, leasehold, running_up, watch_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
WAIT_S: Final = 60.0
POLL_S: Final = 0.1
EVENTS: Final = frozenset(
    {
        *("domain_appeared", "domain_changed", "domain_started", "domain_vanished"),
        *("attachment_seen", "attachment_gone", "source_went_blind", "source_sees_again"),
        *("lease_outlived", "device_freed"),
    }
)


class Told:
    """What the feed tells of domains, in order."""

    def __init__(self) -> None:
        self._events: Queue[tuple[str, Any]] = Queue()

    def read(self, lines: Iterable[bytes]) -> None:
        """Take in what `leasehold watch` prints, to its end."""
        for row in map(json.loads, lines):
            name = row["type"].partition(".")[0]
            if name in EVENTS:
                self._events.put((name, row["event"]))

    async def next(self, *names: str) -> list[Any]:
        """The next ones, which must be these."""
        found = [await asyncio.to_thread(self._events.get, True, WAIT_S) for _ in names]
        assert [name for name, _ in found] == list(names)
        return [event for _, event in found]

    def rest(self) -> list[Any]:
        """Those that nobody has waited for yet."""
        return [self._events.get_nowait() for _ in range(self._events.qsize())]


def listed(up: RunningUp) -> dict[str, dict[str, Any]]:
    """What `leasehold domains` shows of guests, by name."""
    done = leasehold(up.data, "domains", "--json")
    assert done.code == 0, done.err
    return {row["name"]: row for row in done.objects if row["name"] != "Domain-0"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def xen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[XenProcess]:
    """A stand-in that runs; each test leaves it without guests."""
    stage = XenProcess(tmp_path_factory.mktemp("xen"), "xmlrpc")
    await stage.open()
    yield stage
    await stage.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, xen: XenProcess) -> Iterator[RunningUp]:
    """An `up` that polls it."""
    with running_up(tmp_path_factory.mktemp("up") / "data", "--xend", xen.url) as up:
        yield up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(up: RunningUp) -> AsyncIterator[Told]:
    """What is told from the beginning, behind Domain-0."""
    told = Told()
    with watch_process(up, since=0) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=told.read, args=(process.stdout,))
        reader.start()
        try:
            (event,) = await told.next("domain_appeared")
            assert event["domain"]["name"] == "Domain-0"
            yield told
        finally:
            process.kill()
            reader.join()


async def test_each_thing_that_happens_is_told_as_that(xen: XenProcess, up: RunningUp, told: Told) -> None:
    """A start, a reboot (the same uuid, another incarnation), another name, a hot-plug, a crash, a domain that vanishes
    between the list and the look: each gives its events, and no others.
    """
    uuid = await xen.start("web1")
    await told.next("domain_appeared")
    before = listed(up)["web1"]
    assert (before["uuid"], before["state"], before["stale"]) == (uuid, "running", "")
    await xen.reboot(uuid)
    (started,) = await told.next("domain_started")
    assert started["was_domid"] == before["domid"]
    after = listed(up)["web1"]
    assert after["domid"] > before["domid"]
    assert after["uuid"] == uuid
    await xen.rename(uuid, "web2")
    (changed,) = await told.next("domain_changed")
    assert changed["changed"] == ["name"]
    assert set(listed(up)) == {"web2"}
    gpu = xen.pci[0]
    await xen.attach(uuid, gpu)
    seen = await told.next("attachment_seen", "attachment_seen")
    assert [(event["device"], event["use"]) for event in seen] == [(gpu, "attached"), (gpu, "configured")]
    await xen.detach(uuid, gpu)
    gone = await told.next("attachment_gone", "attachment_gone")
    assert [(event["device"], event["use"]) for event in gone] == [(gpu, "attached"), (gpu, "configured")]
    await xen.crash(uuid)
    (crashed,) = await told.next("domain_changed")
    assert crashed["changed"] == ["state"]
    assert listed(up)["web2"]["state"] == "crashed"
    other = await xen.start("web3")
    await told.next("domain_appeared")
    await xen.order("vanish", other)
    (vanished,) = await told.next("domain_vanished")
    assert vanished["name"] == "web3"
    await xen.destroy(uuid)
    await told.next("domain_vanished")
    assert told.rest() == []


async def test_xend_is_killed_and_comes_back(xen: XenProcess, up: RunningUp, told: Told) -> None:
    """SIGKILL, and a start at which it knows nothing for a while: no ownership is lost, and nothing vanishes."""
    uuid = await xen.start("gpu1", devices=xen.pci[:1])
    await told.next("domain_appeared", "attachment_seen", "attachment_seen")
    before = listed(up)
    await xen.lose()
    log = up.data / "poller.log"
    await until(lambda: "cannot be reached" in log.read_text())
    await xen.find()
    await until(lambda: "answers again" in log.read_text())
    await xen.order("restart", "300", "2500")
    await until(lambda: not xen.socket.exists())
    await until(xen.socket.exists)
    await shown(xen, uuid)
    # Behind so many looks as it takes to tell the next two things, all would have vanished that was to.
    await xen.start("late1")
    await told.next("domain_appeared")
    late = listed(up)["late1"]["uuid"]
    await xen.destroy(late)
    await told.next("domain_vanished")
    assert listed(up) == before
    assert before["gpu1"]["uuid"] == uuid
    await xen.destroy(uuid)
    await told.next("attachment_gone", "attachment_gone", "domain_vanished")
    assert told.rest() == []


async def shown(xen: XenProcess, uuid: str) -> None:
    """Wait until xend lists this domain again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(SourceUnavailableError):
                # It may not have begun to listen everywhere.
                look = await xen.source().look(frozenset())
                if uuid in map(uuid_of, look.domains):
                    return
            await asyncio.sleep(POLL_S)


async def until(is_so: Callable[[], bool]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if is_so():
                return
            await asyncio.sleep(POLL_S)


async def test_a_device_that_is_used_without_a_lease(xen: XenProcess, up: RunningUp, told: Told) -> None:
    """It is foreign, not granted, and shown with its user, until it is free; a lease for a domain ends with that."""
    free = [row for row in leasehold(up.data, "devices", "--json").objects if row["state"] == "free"]
    keys = [row["key"] for row in free if row["key"].startswith("pci/") and row["key"].count("/") == 1]
    assert keys, "this machine has no PCI function that could be leased"
    key = keys[0]
    await xen.order("plug", key.removeprefix("pci/"))
    uuid = await xen.start("thief", devices=[key])
    await told.next("domain_appeared", "attachment_seen", "attachment_seen")
    device = leasehold(up.data, "device", key, "--json").object
    assert device["state"] == "foreign"
    assert {user["name"] for user in device["used_by"]} == {"thief"}
    refused = leasehold(up.data, "lease", key, "--for", "me", "--ttl", "10m")
    assert refused.code == 3
    assert "thief" in refused.err
    await xen.detach(uuid, key)
    await told.next("attachment_gone", "attachment_gone")
    granted = leasehold(up.data, "lease", key, "--for", "me", "--ttl", "10m", "--domain", uuid, "--gone", "1s")
    assert granted.code == 0, granted.err
    await xen.attach(uuid, key)
    await told.next("attachment_seen", "attachment_seen")
    assert leasehold(up.data, "device", key, "--json").object["state"] == "leased"
    await xen.destroy(uuid)
    await told.next("attachment_gone", "attachment_gone", "domain_vanished", "lease_outlived", "device_freed")
    assert leasehold(up.data, "device", key, "--json").object["state"] == "free"
    assert told.rest() == []


async def test_a_poller_that_sees_nothing_and_does_not_come_back(tmp_path: Path) -> None:
    """`up` is ready all the same and says what it means; an operator can say that no poller will come back."""
    with running_up(tmp_path / "data", "--xend", f"xmlrpc:{tmp_path}/nowhere") as up:
        assert "is granted for now: poller: " in up.text
        assert "nowhere cannot be reached" in up.text
    with running_up(tmp_path / "data") as up:
        assert "is granted for now: poller: it was stopped" in up.text
        assert f"leasehold retire {HOST} poller" in up.text
        retired = leasehold(up.data, "retire", HOST, "poller", "--reason", "it is another host's")
        assert retired.code == 0, retired.err
        (host,) = leasehold(up.data, "hosts", "--json").objects
        assert host["stale"] == ""
