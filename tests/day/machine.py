"""The host of the day: devices on paper that come, go and change, a played kernel on which a creator makes some, and
domains on paper that use some.

Watcher, creator and poller are the real ones; only what they see and write to is imitated.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from leasehold.events.capabilities import Net
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Picture
from leasehold.services.connection import Connection
from leasehold.services.creator.agent import CreatorAgent
from leasehold.services.poller.agent import PollerAgent
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture
from tests.bench.cluster import HOST, paper_device
from tests.creator.kernel import Kernel
from tests.support.hypervisor import PaperHypervisor

LOOK_MS: Final = 200
"""Nothing tells of what the played kernel makes, so the watcher looks this often."""
NICS_EVERY: Final = 8
"""So many devices have one network interface between them."""
DRIVERS: Final = ("", "igb", "vfio-pci")
AGENTS: Final = ("watcher", "creator", "poller")
DOMAINS: Final = 12
GUESTS_CARDS: Final = 6
"""So many devices are there that domains may have, whoever leases them."""
WAIT_S: Final = 90.0


class Whispers(UeventMonitor):
    """What the kernel would have said."""

    def start(self) -> None:
        """Nobody speaks but us."""

    def close(self) -> None:
        """Nothing is open."""

    def _follow_udevd(self) -> None:
        pass

    def say(self, device: DeviceDescription, *actions: str) -> None:
        """Something happens to a device."""
        for action in actions:
            self._note_word(device.sysfs_path, action, "kernel")

    def lose(self) -> None:
        """Something is said, and not heard."""
        self.overflows += 1
        self._note(overflow=True)


class Machine:
    """The host, and its agents."""

    def __init__(
        self, folder: Path, connections: Sequence[Connection], subjects: Subjects, devices: int
    ) -> None:
        """`connections`: one for each agent; they stay their owner's."""
        self.kernel = Kernel(folder / "machine")
        self.steps: Counter[str] = Counter()
        self._folder = folder
        self._connections = dict(zip(AGENTS, connections, strict=True))
        self._subjects = subjects
        self._whispers = Whispers(self.kernel.root, interval_ms=LOOK_MS)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        played = take_picture(self.kernel.root)
        paper = {device.key: device for device in map(paper_device, range(devices))}
        self._paper: Picture = {key: device for key, device in paper.items() if key not in played}
        self.leasable = [f"{HOST}/{key}" for key in self._paper]
        for number, device in enumerate(list(self._paper.values())):
            if number % NICS_EVERY == 0:
                self._paper[DeviceKey(f"{device.key}/net/0")] = _nic(device)
        self._away: Picture = {}
        self.hypervisor = PaperHypervisor()
        self._domids = 0

    def picture(self, *, known: Picture | None = None) -> Picture:
        """All that is there now."""
        return self._paper | take_picture(self.kernel.root, known=known)

    # --- agents -----------------------------------------------------------------------------------------------------

    async def start(self, agent: str) -> None:
        """Start an agent anew, and wait until it is heard; one that ran before ends in good order."""
        await self.stop(agent)
        connection = self._connections[agent]
        one: WatcherAgent | CreatorAgent | PollerAgent
        if agent == "watcher":
            one = WatcherAgent(connection, self._subjects, HOST, monitor=self._whispers, look=self.picture)
        elif agent == "poller":
            one = PollerAgent(connection, self._subjects, HOST, self.hypervisor)
        else:
            kernel, notes = self.kernel, self._folder / "creator.json"
            one = CreatorAgent(connection, self._subjects, HOST, notes, root=kernel.root, write=kernel.write)
        self._tasks[agent] = asyncio.create_task(one.run())
        await asyncio.wait_for(one.reported.wait(), WAIT_S)

    async def stop(self, agent: str) -> None:
        """End an agent, if it runs."""
        task = self._tasks.pop(agent, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def close(self) -> None:
        """End all."""
        for agent in AGENTS:
            await self.stop(agent)
        await asyncio.to_thread(self.kernel.close)

    # --- what happens -----------------------------------------------------------------------------------------------

    async def churn(self, more: Callable[[int], Awaitable[None]], seed: int) -> None:
        """One thing after the other until cancelled; `more` waits until so much has been done by others."""
        rng = random.Random(f"{seed} machine")
        while True:
            step = rng.choice(
                (
                    self._unplug, self._plug, self._plug, self._bind, self._link, self._flap, self._lose,
                    self._run_domain, self._halt_domain, self._drop_domain,
                )
            )  # fmt: skip
            step(rng)
            self.steps[step.__name__.strip("_")] += 1
            await more(rng.randint(1, 20))

    def _some(self, rng: random.Random, kind: str = "pci") -> DeviceDescription:
        return rng.choice([device for device in self._paper.values() if device.kind == kind])

    def _unplug(self, rng: random.Random) -> None:
        if len(self._away) < len(self.leasable) // 8:
            gone = self._some(rng)
            for key in [key for key in self._paper if f"{key}/".startswith(f"{gone.key}/")]:
                self._away[key] = self._paper.pop(key)
                self._whispers.say(self._away[key], "remove")

    def _plug(self, rng: random.Random) -> None:
        """The same thing comes back, or another one in its place."""
        if self._away:
            one = rng.choice([device for device in self._away.values() if device.kind == "pci"])
            other = {"product_id": rng.choice(("10c9", "1572"))} if rng.random() < 0.3 else {}
            for key in [key for key in self._away if f"{key}/".startswith(f"{one.key}/")]:
                self._paper[key] = msgspec.structs.replace(self._away.pop(key), **other)
                self._whispers.say(self._paper[key], "add", "bind")

    def _bind(self, rng: random.Random) -> None:
        self._alter(self._some(rng), "unbind", "bind", driver=rng.choice(DRIVERS))

    def _link(self, rng: random.Random) -> None:
        nic = self._some(rng, "net")
        net = msgspec.structs.replace(nic.capability, link_state=rng.choice(("up", "down")))  # type: ignore[type-var]
        self._alter(nic, "change", capability=net)

    def _alter(self, device: DeviceDescription, *actions: str, **fields: Any) -> None:
        self._paper[device.key] = msgspec.structs.replace(device, **fields)
        self._whispers.say(device, *actions)

    def _flap(self, rng: random.Random) -> None:
        self._whispers.say(self._some(rng), "remove", "add")

    def _run_domain(self, rng: random.Random) -> None:
        """One starts, or begins anew, or is called otherwise, with other devices than before."""
        number = rng.randrange(DOMAINS)
        cards = [key.partition("/")[2] for key in self.leasable[:GUESTS_CARDS]]
        words = tuple(rng.sample(cards, rng.choice((0, 0, 1, 2))))
        self._domids += 1
        name = f"guest{number}{rng.choice(('', '', '-renamed'))}"
        self.hypervisor.put(_uuid(number), name=name, domid=self._domids, configured=words, attached=words[:1])

    def _halt_domain(self, rng: random.Random) -> None:
        number = rng.randrange(DOMAINS)
        self.hypervisor.put(_uuid(number), name=f"guest{number}", domid=-1, state="halted")

    def _drop_domain(self, rng: random.Random) -> None:
        if self.hypervisor.domains:
            self.hypervisor.drop(rng.choice(sorted(self.hypervisor.domains)).partition("/")[2])

    def _lose(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            self._whispers.lose()


def _uuid(number: int) -> str:
    return f"c0ffee00-0000-4000-8000-{number:012d}"


def _nic(device: DeviceDescription) -> DeviceDescription:
    name = device.name.removeprefix("pci_")
    net = Net(interface=f"en{name}"[:15], address="52:54:00:00:00:01", medium="80203", link_state="up")
    return DeviceDescription(
        key=DeviceKey(f"{device.key}/net/0"), name=f"net_{name}", kind="net", subsystem="net", parent=device.key,
        sysfs_path=f"{device.sysfs_path}/net/{net.interface}", capability=net,
    )  # fmt: skip


