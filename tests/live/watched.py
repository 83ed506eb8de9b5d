"""A watcher at work on real links, with a ledger of its own: for programs in a network namespace of their own.

Everything is as it is in service, but for two things: the watcher runs in the program, so that its monitor can be
reached, and the namespace has a /sys and a /run of its own (`tests/live/test_live.py` sees to that).
"""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from leasehold.events import limits
from leasehold.events.capabilities import Net
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.event_types import (
    DeviceAppeared,
    DeviceChanged,
    DeviceFlapped,
    DeviceMissing,
    DeviceReappeared,
    DeviceReplaced,
    Event,
    EventsMissed,
)
from leasehold.events.identities import DeviceKey
from leasehold.projections import evolve
from leasehold.projections.reporting import Picture
from leasehold.projections.state import State
from leasehold.projections.views import picture_of
from leasehold.services.connection import Connection
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from tests.bench.cluster import HOST, Bus, bus

WAIT_S: Final = 60.0
ASK_AGAIN_S: Final = 3.0
DeviceEvent = DeviceAppeared | DeviceChanged | DeviceReplaced | DeviceReappeared | DeviceMissing | DeviceFlapped
Links = dict[str, tuple[str, str, str]]
"""By interface: its address, its state, and what it belongs to."""


def ip(*commands: str) -> None:
    """Have iproute2 do these, in one process and in order."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=WAIT_S)


def links_of_kernel() -> Links:
    """All links of this namespace, as the kernel tells iproute2."""
    told = subprocess.run(["ip", "-json", "link", "show"], check=True, capture_output=True, timeout=WAIT_S)
    return {
        link["ifname"]: (link["address"], link["operstate"].lower(), link.get("master", ""))
        for link in json.loads(told.stdout)
    }


def links_in(picture: Picture) -> Links:
    """All links of this namespace that a picture has: those that are no part of a real device."""
    nets = [device.capability for key, device in picture.items() if key.startswith("virtual/net/")]
    return {
        net.interface: (net.address, net.link_state, net.master.rpartition("/")[2])
        for net in nets
        if isinstance(net, Net)
    }


def uevents_so_far() -> int:
    """How many events the kernel has sent since it started."""
    return int(Path("/sys/kernel/uevent_seqnum").read_text())


def key_of(event: DeviceEvent) -> DeviceKey:
    """Which device an event is about."""
    return event.key if isinstance(event, DeviceMissing | DeviceFlapped) else event.device.key


def how_of(event: DeviceEvent) -> Sighting:
    """How the watcher came to know what an event tells."""
    assert event.how is not None, event
    return event.how


def state_of(device: DeviceDescription) -> str:
    """The state of a network link."""
    assert isinstance(device.capability, Net)
    return device.capability.link_state


class Log:
    """What the ledger tells, as it is told."""

    def __init__(self, ledger: JetStreamLedger) -> None:
        self._ledger = ledger
        self._more = asyncio.Condition()
        self.state = State()
        self.events: list[Event] = []

    async def follow(self) -> None:
        """Read until cancelled."""
        async with contextlib.aclosing(self._ledger.follow(0)) as batches:
            async for entries in batches:
                async with self._more:
                    for entry in entries:
                        record = evolve.fold(self.state, entry.sequence, entry.body)
                        self.events += [event for step in record.steps for event in step.events]
                    self._more.notify_all()

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until what was read makes this true."""
        try:
            async with self._more, asyncio.timeout(WAIT_S):
                await self._more.wait_for(is_so)
        except TimeoutError:
            raise AssertionError(f"after {WAIT_S:g} s it is not so: {what}") from None

    @property
    def picture(self) -> Picture:
        """What the log knows to be there."""
        return picture_of(self.state, HOST)

    def of_devices(self, since: int = 0, name: str = "") -> list[DeviceEvent]:
        """The events about devices, from behind so many events on; of one interface without a bus, if one is named."""
        found = [event for event in self.events[since:] if isinstance(event, DeviceEvent)]
        return [event for event in found if not name or key_of(event) == f"virtual/net/{name}"]

    def missed(self) -> int:
        """How often the watcher says that it had to look at everything again."""
        return sum(event.times for event in self.events if isinstance(event, EventsMissed))


class Watched:
    """A host that is watched."""

    def __init__(self, found: Bus, log: Log) -> None:
        self._found = found
        self.log = log

    @asynccontextmanager
    async def watcher(self, interval_ms: int = limits.RESCAN_MS) -> AsyncIterator[UeventMonitor]:
        """A run of the watcher, from when the log has the whole picture; ended in good order."""
        async with self._found.connected("agent") as connection:
            monitor = UeventMonitor(interval_ms=interval_ms)
            agent = WatcherAgent(connection, self._found.subjects, HOST, monitor=monitor)
            running = asyncio.create_task(agent.run())
            try:
                async with asyncio.timeout(WAIT_S):
                    await agent.reported.wait()
                yield monitor
            finally:
                running.cancel()
                await asyncio.wait({running})

    async def until_equal(self) -> Links:
        """Wait until the log has the kernel's links, all of them as they are.

        The kernel tells a link's state late itself, so it is asked again when the log has not come to what it said.
        """
        give_up_s = time.monotonic() + WAIT_S
        while True:
            right = await asyncio.to_thread(links_of_kernel)
            try:
                async with asyncio.timeout(ASK_AGAIN_S):
                    await self.log.until(lambda: links_in(self.log.picture) == right, "equal")  # noqa: B023
            except TimeoutError:
                assert time.monotonic() < give_up_s, f"the log does not come to {len(right)} links"
            else:
                return right


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    """A ledger, what decides and answers, and a reader; no watcher yet."""
    async with (
        bus(folder, sync_always=False) as found,
        found.process("allocator"),
        found.process("query"),
        found.connected("allocator") as reading,
        _following(reading, found) as log,
    ):
        yield Watched(found, log)


@asynccontextmanager
async def _following(reading: Connection, found: Bus) -> AsyncIterator[Log]:
    ledger = JetStreamLedger(reading, found.subjects)
    log = Log(ledger)
    following = asyncio.create_task(log.follow())
    try:
        yield log
    finally:
        following.cancel()
        await asyncio.wait({following})
        await ledger.close()
