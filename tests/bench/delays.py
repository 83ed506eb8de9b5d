"""How long a kernel's event takes into the ledger, on real links: `python -m tests.bench.delays <folder>`.

It runs in a network namespace of its own, with a /sys and a /run of its own, and prints one object of figures in
milliseconds by what happened. The clock begins when an ear of its own has the kernel's event (not udevd's, also where
udevd runs), and ends when a reader of the ledger has the record.
"""

import asyncio
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from leasehold.events.event_types import DeviceAppeared, DeviceChanged, DeviceMissing
from leasehold.services.watcher.links import RTMGRP_LINK, links_in
from tests.live.watched import WAIT_S, Watched, how_of, ip, state_of, watched

ROUNDS: Final = 20
PAUSE_S: Final = 0.3
NETLINK_KOBJECT_UEVENT: Final = 15
BLOCK_BYTES: Final = 1 << 18


class Ear(threading.Thread):
    """Notes when the kernel first says something: `add br0`, `remove br0`, `up v0`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._heard_s: dict[str, float] = {}
        self._more = threading.Condition()
        self._sockets = []
        for protocol, group in ((NETLINK_KOBJECT_UEVENT, 1), (socket.NETLINK_ROUTE, RTMGRP_LINK)):
            ear = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
            ear.bind((0, group))
            self._sockets.append(ear)

    def run(self) -> None:
        """Listen until the program ends."""
        while True:
            for ear in select.select(self._sockets, [], [])[0]:
                block, now_s = ear.recv(BLOCK_BYTES), time.perf_counter()
                with self._more:
                    for word in self._uevent(block) if ear is self._sockets[0] else self._links(block):
                        self._heard_s.setdefault(word, now_s)
                    self._more.notify_all()

    def _uevent(self, block: bytes) -> list[str]:
        action, _, path = block.partition(b"\0")[0].decode().partition("@")
        return [f"{action} {path.rpartition('/')[2]}"]

    def _links(self, block: bytes) -> list[str]:
        return [f"up {link.name}" for link in links_in(block) if link.is_up]

    def when_s(self, word: str) -> float:
        """When it was heard; a look that something else caused may have found it before."""
        with self._more:
            assert self._more.wait_for(lambda: word in self._heard_s, WAIT_S), f"the kernel does not say {word!r}"
            return self._heard_s[word]


async def measure(host: Watched) -> dict[str, list[float]]:
    """New links, links that come up, links that go; by what happened, and who told the watcher."""
    found: dict[str, list[float]] = {"appears": [], "comes up": [], "goes": []}
    sources: dict[str, set[str]] = {what: set() for what in found}
    ear = Ear()
    ear.start()

    async def take(what: str, word: str, name: str, command: str, is_told: Callable[[object], bool]) -> None:
        await asyncio.sleep(PAUSE_S)
        since = len(host.log.events)
        await asyncio.to_thread(ip, command)
        await host.log.until(lambda: any(map(is_told, host.log.of_devices(since, name))), f"{name}: {what}")
        arrived_s = time.perf_counter()
        found[what].append((arrived_s - await asyncio.to_thread(ear.when_s, word)) * 1_000)
        sources[what].add(how_of(host.log.of_devices(since, name)[-1]).source)

    async with host.watcher():
        for number in range(ROUNDS):
            v, w = f"v{number}", f"w{number}"
            command = f"link add {v} type veth peer name {w}"
            await take("appears", f"add {v}", v, command, lambda event: isinstance(event, DeviceAppeared))
            await asyncio.to_thread(ip, f"link set {v} up")
            await take("comes up", f"up {v}", v, f"link set {w} up", _is_up)
            await take("goes", f"remove {v}", v, f"link del {v}", lambda event: isinstance(event, DeviceMissing))
    return {f"{what}, told by {' and '.join(sorted(sources[what] - {''}))}": took_ms for what, took_ms in found.items()}


def _is_up(event: object) -> bool:
    return isinstance(event, DeviceChanged) and state_of(event.device) == "up"


async def main(folder: Path) -> None:
    """Measure and print."""
    async with watched(folder) as host:
        print(json.dumps(await measure(host)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
