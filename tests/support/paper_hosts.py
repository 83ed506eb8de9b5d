"""Hosts on paper beside a real `up`: the real watcher, with a picture that a test sets, in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Picture
from leasehold.services import home
from leasehold.services.credentials import read_credential
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from tests.support.running import RunningUp, leasehold
from tests.support.servers import connected

WAIT_S = 60.0
LOOK_MS = 100


def card(slot: int, *, root: int = 0, numa: int = -1, **fields: Any) -> DeviceDescription:
    """A display controller at `0000:<root>:<slot>.0`, behind a PCIe root of that number, near that NUMA node."""
    address = f"0000:{root:02x}:{slot:02x}.0"
    given: dict[str, Any] = {
        "key": DeviceKey(f"pci/{address}"),
        "name": f"pci_{address.translate(str.maketrans(':.', '__'))}",
        "kind": "pci",
        "subsystem": "pci",
        "sysfs_path": f"/sys/devices/pci0000:{root:02x}/{address}",
        "pci_class": 0x030200,
        "vendor_id": "10de",
        "product_id": "2330",
        "numa_node": numa,
    }
    return DeviceDescription(**given | fields)


class _NoEvents(UeventMonitor):
    """Hears nothing: the watcher looks again now and then."""

    def start(self) -> None:
        """There is nothing to listen to."""

    def _follow_udevd(self) -> None:
        """No daemon either."""


class PaperHosts:
    """Hosts, each with the devices that it is said to have."""

    def __init__(self, up: RunningUp, hosts: dict[str, list[DeviceDescription]]) -> None:
        self._up = up
        self._pictures: dict[str, Picture] = {
            host: {device.key: device for device in devices} for host, devices in hosts.items()
        }
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Returns when the log has all of them."""
        for host in self._pictures:
            done = leasehold(self._up.data, "credentials", "add", "agent", host, "--out", str(self._key(host)))
            assert done.code == 0, done.err
        self._thread.start()
        assert self._ready.wait(WAIT_S), "the hosts have not reported"

    def stop(self) -> None:
        """End the watchers in good order."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])
            self._thread.join(WAIT_S)
        self._loop.close()

    def put(self, host: str, device: DeviceDescription) -> None:
        """A device of a host is like this from now on."""
        self._pictures[host] = {**self._pictures[host], device.key: device}

    def drop(self, host: str, device: DeviceDescription) -> None:
        """A device is not there any more."""
        self._pictures[host] = {key: each for key, each in self._pictures[host].items() if key != device.key}

    def _key(self, host: str) -> Path:
        return self._up.data.parent / f"agent-{host}.json"

    async def _run(self) -> None:
        info = home.read_connection(self._up.data)
        async with AsyncExitStack() as stack:
            agents = []
            for host in self._pictures:
                credential = read_credential(self._key(host))
                connection = await stack.enter_async_context(connected(info.urls, f"watcher {host}", credential))
                agents.append(
                    WatcherAgent(
                        connection,
                        Subjects(credential.cluster),
                        HostName(host),
                        monitor=_NoEvents(interval_ms=LOOK_MS),
                        look=lambda *, known, host=host: self._pictures[host],  # noqa: ARG005
                    )
                )
            self._tasks = [asyncio.create_task(agent.run()) for agent in agents]
            for agent in agents:
                await agent.reported.wait()
            self._ready.set()
            await asyncio.wait(self._tasks)


@contextmanager
def paper_hosts(up: RunningUp, hosts: dict[str, list[DeviceDescription]]) -> Iterator[PaperHosts]:
    """Hosts that are there from the beginning to the end."""
    made = PaperHosts(up, hosts)
    made.start()
    try:
        yield made
    finally:
        made.stop()
