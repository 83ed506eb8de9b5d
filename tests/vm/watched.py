"""Leasehold around one guest: its watcher and its creator run inside, everything else on this machine.

A `leasehold up` here is the cluster, its bus on 127.0.0.1; the guest reaches that as 10.0.2.2, and its agents as an
address of their own loopback, since they speak with nobody else without TLS. This machine is watched, too, as host
`outside`: two hosts, one log.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlparse

import msgspec

from leasehold.events import codec
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.event_types import (
    DeviceAppeared,
    DeviceChanged,
    DeviceFlapped,
    DeviceMissing,
    DeviceReappeared,
    DeviceReplaced,
    Event,
    PictureCompleted,
)
from leasehold.events.identities import DeviceId, split_device_id
from leasehold.events.views import DeviceView
from leasehold.services import home
from leasehold.services.client import Client
from tests.support.running import Done, RunningUp, leasehold
from tests.vm.guest import UPLINK_MAC, Guest

HOST: Final = "guest"
_BUS_PORT: Final = 4222
_ADDRESS: Final = "10.0.2.15/24"
_OUTSIDE: Final = "10.0.2.2"
"""This machine's loopback, as QEMU's own network shows it to the guest."""
_WAY: Final = "way to the bus"
_KEY: Final = "/run/leasehold/guest.json"
_ENVIRONMENT: Final = {
    "PYTHONPATH": "/mnt/repo/src:/mnt/site",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
}
"""The last has an agent that is told to abort say where each of its threads is."""
_ARRIVE_S: Final = 60.0
_START_S: Final = 180.0
_QUIET_S: Final = 3.0
_POLL_S: Final = 0.1

DeviceEvent = DeviceAppeared | DeviceChanged | DeviceReplaced | DeviceMissing | DeviceReappeared | DeviceFlapped


class Heard(NamedTuple):
    """An event of the ledger that is about the guest, and when a reader here had it, by this machine's clock."""

    event: Event
    at_ns: int
    key: str
    """Of the device that it is about; empty for none."""

    @property
    def device(self) -> DeviceDescription | None:
        """The description that it carries."""
        device = getattr(self.event, "device", None)
        return device if isinstance(device, DeviceDescription) else None

    @property
    def how(self) -> Sighting | None:
        """How the watcher came to know it."""
        return getattr(self.event, "how", None)

    def __repr__(self) -> str:
        changed = getattr(self.event, "changed", ())
        return f"{type(self.event).__name__} {self.key} {','.join(changed)} {self.how or ''}"


class Watched:
    """A cluster, and the guest that is one of its hosts."""

    def __init__(self, up: RunningUp, client: Client, guest: Guest) -> None:
        self.up = up
        self.client = client
        self.guest = guest
        self.heard: list[Heard] = []
        """All events about the guest so far, in order."""
        self._moved = asyncio.Condition()

    async def follow(self) -> None:
        """Read the ledger as it grows; never returns."""
        ledger = self.client.ledger()
        try:
            async with contextlib.aclosing(ledger.follow(0)) as batches:
                async for entries in batches:
                    now_ns = time.time_ns()
                    for entry in entries:
                        record = codec.decode_record(entry.body, entry.sequence)
                        self._take([event for step in record.steps for event in step.events], now_ns)
                    async with self._moved:
                        self._moved.notify_all()
        finally:
            await ledger.close()

    def _take(self, events: list[Event], now_ns: int) -> None:
        for event in events:
            host, key = getattr(event, "host", ""), getattr(event, "key", "")
            device = getattr(event, "device", None)
            if isinstance(device, DeviceDescription):
                key = device.key
            elif not host and isinstance(device, str):
                host, key = split_device_id(DeviceId(device))
            if host == HOST:
                self.heard.append(Heard(event, now_ns, key))

    async def event(
        self, wanted: Callable[[Heard], bool], what: str, *, since: int, timeout_s: float = _ARRIVE_S
    ) -> Heard:
        """The first event behind the `since`-th that is wanted. `what`: to be told if none comes."""
        begin = since
        async with self._moved:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        for each in self.heard[begin:]:
                            if wanted(each):
                                return each
                        begin = len(self.heard)
                        await self._moved.wait()
            except TimeoutError:
                told = "\n".join(map(repr, self.heard[since:][-30:]))
                raise AssertionError(f"not in the ledger after {timeout_s:.0f} s: {what}; only:\n{told}") from None

    def of_devices(self, since: int) -> list[Heard]:
        """The events about devices behind the `since`-th."""
        return [each for each in self.heard[since:] if isinstance(each.event, DeviceEvent)]

    async def quiet(self, quiet_s: float = _QUIET_S) -> None:
        """Until nothing about the guest was heard for a while."""
        async with asyncio.timeout(_START_S):
            while True:
                count, uevents = len(self.heard), len(self.guest.uevents)
                await asyncio.sleep(quiet_s)
                if (count, uevents) == (len(self.heard), len(self.guest.uevents)):
                    return

    # --- its agents -------------------------------------------------------------------------------------------------

    async def start_agent(self, role: str, *words: str, program: tuple[str, ...] = ("-m", "leasehold")) -> None:
        """Start the guest's watcher or creator."""
        bus = ("--nats", f"nats://127.0.0.1:{_BUS_PORT}", "--credentials", _KEY)
        argv = ["python3", *program, "run", role, *bus, "--host", HOST, "--data", f"/run/leasehold/{role}", *words]
        await self.guest.ask("start", name=role, argv=argv, log=f"/run/leasehold/{role}.out", **_ENVIRONMENT)

    async def start_watcher(self, **how: Any) -> int:
        """Start the watcher, and wait until its picture is whole; how many events there were before."""
        since = len(self.heard)
        await self.start_agent("watcher", **how)
        try:
            await self.event(
                lambda each: isinstance(each.event, PictureCompleted), "the whole picture", since=since,
                timeout_s=_START_S,
            )  # fmt: skip
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.log('watcher')}") from None
        return since

    async def agents(self) -> list[str]:
        """The names of those that were started, and not ended."""
        return [name for name in (await self.guest.ask("running"))["names"] if name != _WAY]

    async def end_agent(self, role: str) -> None:
        """End it in good order."""
        code = (await self.guest.ask("end", name=role))["code"]
        assert code == 0, f"the {role} ended with code {code}:\n{await self.log(role)}"

    async def recover(self) -> None:
        """Bring the guest back to how scenarios find it, whatever one of them has left."""
        await self.guest.unplug_all()
        await self.guest.ask("tell", uevents=True)
        for name in await self.agents():
            await self.guest.ask("end", name=name)
        await self.let_go()
        await self.guest.start_udevd()
        await self.start_watcher()
        await self.quiet()

    async def let_go(self) -> None:
        """Let nobody have a lease, and the log not wait for agents that do not come back."""
        for lease in await self.client.leases():
            await self.cli("revoke", lease.lease, "--reason", "the scenario is over", "--force")
        for name in ("binder", "creator"):
            await self.cli("retire", HOST, name, "--reason", "the scenario is over")
        for device in await self.client.devices(host=HOST):
            if device.state == "ending":
                await self.cli("confirm-free", device.key, "--host", HOST, "--reason", "the scenario is over")

    @asynccontextmanager
    async def without_udevd(self, **how: Any) -> AsyncIterator[None]:
        """While neither udevd nor the watcher with it runs, but another watcher, started like that."""
        await self.end_agent("watcher")
        await self.guest.run("udevadm", "control", "--exit")
        await self.start_watcher(**how)
        await self.quiet()
        yield
        await self.end_agent("watcher")
        await self.guest.start_udevd()
        await self.start_watcher()
        await self.quiet()

    async def log(self, role: str) -> str:
        """What an agent in the guest had to say."""
        texts = (await self.output(role), await self.guest.read(f"/run/leasehold/{role}/{role}.log"))
        return "\n".join(text for text in texts if text)[-4_000:]

    async def output(self, role: str) -> str:
        """What it wrote that is not in its log."""
        return await self.guest.read(f"/run/leasehold/{role}.out") or ""

    # --- what people ask --------------------------------------------------------------------------------------------

    async def cli(self, *words: str, timeout_s: float = 90) -> Done:
        """A command of ours, as a person types it here."""
        return await asyncio.to_thread(leasehold, self.up.data, *words, timeout_s=timeout_s)

    async def devices(self) -> dict[str, DeviceView]:
        """The guest's devices that are there, by key."""
        return {row.key: row for row in await self.client.devices(host=HOST) if row.state != "missing"}

    async def device(self, name: str) -> DeviceView:
        """One of them, by any name."""
        return await self.client.device(name, host=HOST)


@asynccontextmanager
async def watched(guest: Guest, folder: Path) -> AsyncIterator[Watched]:
    """A cluster whose host the guest is; its watcher runs."""
    up = await asyncio.to_thread(RunningUp, folder / "up", host="outside")
    try:
        async with Client(up.data) as client:
            found = Watched(up, client, guest)
            following = asyncio.create_task(found.follow())
            try:
                await _let_in(found, folder)
                yield found
            finally:
                following.cancel()
                await asyncio.wait([following])
    finally:
        await asyncio.to_thread(up.stop)


async def _let_in(found: Watched, folder: Path) -> None:
    """Give the guest a key, a network, and a way to our bus."""
    key = folder / "guest.json"
    done = await found.cli("credentials", "add", "agent", HOST, "--out", str(key))
    assert done.code == 0, done.err
    guest = found.guest
    await guest.ask("write", path=_KEY, text=key.read_text(), mode=0o600)
    names = await guest.names("/sys/class/net")
    addresses = [await guest.read(f"/sys/class/net/{name}/address") for name in names]
    (uplink,) = [name for name, address in zip(names, addresses, strict=True) if UPLINK_MAC in (address or "")]
    for words in (f"link set {uplink} up", f"address add {_ADDRESS} dev {uplink}", f"route add default via {_OUTSIDE}"):
        await guest.run("ip", *words.split())
    bus = urlparse(home.read_connection(found.up.data).urls[0])
    argv = ["socat", f"TCP-LISTEN:{_BUS_PORT},bind=127.0.0.1,fork,reuseaddr", f"TCP:{_OUTSIDE}:{bus.port}"]
    await guest.ask("start", name=_WAY, argv=argv, log="/run/leasehold/socat.out")


def encoded(value: object) -> bytes:
    """For comparing what was told with what was told before."""
    return msgspec.json.encode(value)
