"""Hosts whose machines are imitated, and nothing else.

Each has its own played kernel, looked at by the real watcher's eyes, written to by the real binder's hands
(`Machine`), which does what its real core (`Handing`) says, with its real notes on disk, and asked at its real door.
What is played is the hypervisor: it starts domains, holds their devices open, and its poller tells of it.
"""

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.capabilities import UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription
from leasehold.events.event_types import Event
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainKey,
    HostName,
    device_id,
    split_device_id,
)
from leasehold.events.inputs import BINDER, Observation, Observed
from leasehold.events.position import position_of
from leasehold.events.views import DeviceView
from leasehold.projections.bindings import holds_of
from leasehold.projections.handing import Handing
from leasehold.projections.handnotes import Operate, TakeBack
from leasehold.projections.handorders import HandOrders
from leasehold.projections.handover import Before
from leasehold.projections.orders import open_orders
from leasehold.projections.views import device_view, picture_of
from leasehold.services.binder.acting import act
from leasehold.services.binder.door import Door, Said
from leasehold.services.binder.machine import Machine
from leasehold.services.binder.notes import Notes, boot_of
from leasehold.services.binder.spots import is_stub
from tests.binder.kernel import Kernel

if TYPE_CHECKING:
    from tests.hostdevs.cluster import Cluster

PER_MESSAGE: Final = 100


class Host:
    """One host: its kernel, its agents, its domains."""

    def __init__(self, cluster: "Cluster", name: str, folder: Path, *, hypervisor: str, stub: str) -> None:
        self.cluster = cluster
        self.name = HostName(name)
        self.hypervisor = hypervisor
        self.folder = folder
        self.kernel = Kernel(folder / "machine")
        self._stub = stub
        self._ends = threading.Event()
        self.is_cut_off = False
        self._reported: dict[DeviceKey, DeviceDescription] = {}
        self._runs = {"watcher": 0, "poller": 0, BINDER: 0}
        self._counters = dict(self._runs)
        self._pids = itertools.count(4_000)
        self.is_off = False
        self._shown: dict[DeviceKey, DeviceDescription] = {}
        self._protected: dict[DeviceKey, tuple[str, ...]] = {}
        self._running: dict[str, tuple[int, tuple[str, ...]]] = {}
        """By uuid: the process, and the words of what it has."""
        self._notes: Notes | None = None
        self.handing: Handing | None = None
        self._orders: HandOrders | None = None
        self.set_boot("boot-1")

    # --- speaking -----------------------------------------------------------------------------------------------------

    def say(self, agent: str, *words: Observation) -> None:
        """One message of an agent, as it would come through the gate."""
        if isinstance(words[0], inputs.SourceStarts):
            self._runs[agent] += 1
            self._counters[agent] = -1
        self._counters[agent] += 1
        message = Observed(
            host=self.name, agent=agent, run=self._runs[agent], counter=self._counters[agent], observations=words
        )
        self.cluster.observe_message(codec.decode_observed(codec.encode(message)))

    def start_watching(self) -> None:
        """A watcher and a poller begin."""
        for agent in ("watcher", "poller"):
            self.say(agent, inputs.SourceStarts())
        self._reported = {}
        self.watch()
        for agent in ("watcher", "poller"):
            self.say(agent, inputs.PictureComplete(since=1))

    def watch(self) -> bool:
        """The watcher looks, and tells what differs; whether anything does."""
        if self.is_off:
            return False
        found = {
            key: msgspec.structs.replace(device, protections=self._protected.get(key, device.protections))
            for key, device in self.kernel.picture().items()
        }
        found |= self._shown
        words: list[Observation] = [inputs.DeviceGone(key) for key in self._reported if key not in found]
        words += [inputs.DeviceSeen(device) for key, device in found.items() if self._reported.get(key) != device]
        self._reported = found
        for start in range(0, len(words), PER_MESSAGE):
            self.say("watcher", *words[start : start + PER_MESSAGE])
        return bool(words)

    def silence(self, *agents: str) -> None:
        """These agents are not heard any more."""
        for agent in agents:
            self.cluster.note(inputs.HostHeard(self.name, agent, self._runs[agent], alive=False))

    # --- the binder ---------------------------------------------------------------------------------------------------

    def start_binder(self) -> None:
        """A run of it, which knows what the notes say, and asks the log for the rest."""
        kernel, self._ends = self.kernel, threading.Event()
        self.machine = Machine(
            kernel.root, write=kernel.write, run=kernel.run, reset_port=kernel.reset_port, stub=self._stub,
            ends=self._ends,
        )  # fmt: skip
        self._notes = Notes(self.folder / "notes.json", self.kernel.root)
        self.handing = Handing(self.name, self._notes.open(), boot=boot_of(self.kernel.root))
        self._orders = HandOrders(self.handing)
        self.say(BINDER, inputs.SourceStarts(manages=True))
        self.sync()
        self.say(BINDER, *self._words(), inputs.PictureComplete(since=1))

    def sync(self) -> None:
        """It asks the log."""
        assert self.handing is not None
        assert self._orders is not None
        state = self.cluster.state
        head = state.head
        as_of = position_of(head.sequence, 255)
        assert self.handing.synced(
            holds_of(state, self.name),
            picture_of(state, self.name),
            as_of=as_of,
            era=head.era,
            now_ms=self.cluster.now_ms,
        )
        self._orders.synced(open_orders(state, self.name, BINDER), as_of)

    def kill_binder(self) -> None:
        """It is gone, with all that it had in mind; its notes stay."""
        assert self._notes is not None
        self._notes.close()
        self._notes = self.handing = self._orders = None

    def kill_at(self, write: int) -> None:
        """Let nothing of the binder come behind this write of its own, counted from 0: neither another nor a word."""
        left = itertools.count(write, -1)

        def told(_attribute: str, _text: str) -> None:
            if next(left) == 0:
                self._ends.set()

        self.kernel.on_told = told

    def hear(self, position: int, event: Event) -> None:
        """Something is told of this host."""
        if self.handing is None or self.is_cut_off or getattr(event, "host", self.name) != self.name:
            return
        assert self._orders is not None
        at_ns = self.cluster.state.at_ns
        now_ms, era = self.cluster.now_ms, self.cluster.state.head.era
        self.handing.hear(position, event, at_ns=at_ns, era=era, now_ms=now_ms)
        self._orders.hear(position, event, at_ns=at_ns)

    def work(self) -> bool:
        """Whatever is to be done and told now; whether there was anything."""
        if self.handing is None:
            return False
        assert self._orders is not None
        if not self.is_cut_off:
            self.handing.contact(self.cluster.now_ms)
        jobs = [*self.handing.jobs(self.cluster.now_ms), *self._orders.jobs(self.cluster.now_ms)]
        for job in jobs:
            self._write_notes()
            outcome = act(self.machine, job, self._note, self.cluster.now_ms)
            if self._ends.is_set():
                self.kill_binder()
                return False
            if isinstance(job, Operate):
                self._orders.done(job, outcome)
            else:
                self.handing.done(job.number, outcome, self.cluster.now_ms)
            if isinstance(job, TakeBack):
                self._orders.taken_back(job.key, outcome)
        self._write_notes()
        words = [] if self.is_cut_off else self._words()
        if words:
            self.say(BINDER, *words)
        return bool(jobs or words)

    def _words(self) -> list[Observation]:
        assert self.handing is not None
        assert self._orders is not None
        return [*self.handing.observations(), *self._orders.observations()]

    def _note(self, befores: Sequence[Before]) -> None:
        assert self.handing is not None
        self.handing.noted(befores)
        self._write_notes()

    def _write_notes(self) -> None:
        assert self._notes is not None
        assert self.handing is not None
        self._notes.write(self.handing.notes)

    def set_boot(self, name: str) -> None:
        """What the kernel says of which boot this is."""
        path = self.kernel.root.proc / "sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    # --- the hypervisor -----------------------------------------------------------------------------------------------

    def ask(self, op: str, uuid: str, *words: str, **more: Any) -> Said:
        """What a hook hears at the door."""
        self.cluster.asked_s = time.monotonic()
        asked = {"op": op, "hypervisor": self.hypervisor, "uuid": uuid, "devices": words, **more}

        async def answered() -> Said:
            assert self.handing is not None
            door = Door(self.folder / "door", self.name, self.handing, asyncio.Condition(), lambda: None, timeout_s=0.3)
            return await door._answer(msgspec.json.encode(asked))

        return asyncio.run(answered())

    def start(self, uuid: str, *words: str, name: str = "", hooked: bool = True) -> Said:
        """Start a domain with these devices, if its hook lets it; without one (`hooked`), whatever the ledger says."""
        said = self.ask("start", uuid, *words, name=name) if hooked else Said(ok=True)
        if said.ok:
            self.attach(uuid, *words, name=name)
            self.cluster.settle()
        return said

    def attach(self, uuid: str, *words: str, name: str = "") -> None:
        """The hypervisor gives a domain devices, and its poller sees it."""
        pid, had = self._running.get(uuid, (next(self._pids), ()))
        self._running[uuid] = (pid, (*had, *words))
        for word in words:
            self._open(word, pid)
        key = DomainKey(f"{self.hypervisor}/{uuid}")
        told = DomainDescription(key=key, name=name or f"vm-{uuid[-2:]}", domid=pid, state="running")
        self.say("poller", inputs.DomainSeen(told), *(inputs.DeviceUsed(key, word, "attached") for word in words))

    def configure(self, uuid: str, *words: str, name: str = "") -> None:
        """A domain is defined, and claims devices; it does not run."""
        key = DomainKey(f"{self.hypervisor}/{uuid}")
        told = DomainDescription(key=key, name=name or f"vm-{uuid[-2:]}", state="halted")
        self.say("poller", inputs.DomainSeen(told), *(inputs.DeviceUsed(key, word, "configured") for word in words))
        self.cluster.settle()

    def stop(self, uuid: str, *, hooked: bool = True) -> None:
        """The domain ends, and lets go of everything."""
        pid, words = self._running.pop(uuid)
        self._close(words, pid)
        key = DomainKey(f"{self.hypervisor}/{uuid}")
        self.say("poller", *(inputs.DeviceUnused(key, word, "attached") for word in words), inputs.DomainGone(key))
        if hooked and self.handing is not None:
            self.ask("stop", uuid)
        self.cluster.settle()

    def let_go(self, uuid: str) -> None:
        """The domain's process closes its functions, as its guest was asked to; the domain runs on."""
        pid, _ = self._running.get(uuid, (0, ()))
        if pid and (self.kernel.root.proc / str(pid)).exists():
            self.kernel.pci.release(pid)

    def _open(self, word: str, pid: int) -> None:
        for key in self._meant(word):
            if key.startswith("pci/"):
                if key.count("/") == 1 and self.driver(key) == "vfio-pci":
                    self.kernel.pci.hold(key.removeprefix("pci/"), pid)
            else:
                for interface in self._interfaces(key):
                    self.kernel.usb.claim(interface)

    def _close(self, words: Sequence[str], pid: int) -> None:
        if (self.kernel.root.proc / str(pid)).exists():
            self.kernel.pci.release(pid)
        for word in words:
            for key in self._meant(word):
                for interface in self._interfaces(key):
                    if self.kernel.driver(interface) == "usbfs":
                        self.kernel.usb.unclaim(interface)

    def _meant(self, word: str) -> list[DeviceKey]:
        return [split_device_id(device)[1] for device in self.cluster.state.named(self.name, word)]

    def _interfaces(self, key: DeviceKey) -> list[str]:
        found = self.kernel.picture()
        return [
            device.sysfs_path.rpartition("/")[2]
            for each, device in found.items()
            if each.startswith(f"{key}/") and device.kind == "usb_interface"
        ]

    def check(self, key: DeviceKey, token: int) -> Said:
        """What who shows a token hears at the door."""
        return self.ask("check", "", device=key, token=token)

    def is_running(self, uuid: str) -> bool:
        """Whether nobody has ended the domain."""
        return uuid in self._running

    # --- by hand ------------------------------------------------------------------------------------------------------

    def bind_by_hand(self, key: DeviceKey, driver: str) -> None:
        """Somebody binds a function to a driver past everybody."""
        address = key.removeprefix("pci/")
        if self.driver(key):
            self.kernel.pci.unbind(self.driver(key), address)
        self.kernel.pci.write_device(address, "driver_override", driver if is_stub(driver) else "\n")
        if driver:
            self.kernel.pci.probe(address)
        self.cluster.settle()

    def protect(self, key: DeviceKey, why: str) -> None:
        """The watcher has seen what the host needs a device for."""
        self._protected[key] = (why,)
        self.watch()

    def show_child(self, key: DeviceKey, name: str, kind: str) -> DeviceKey:
        """The watcher sees a functional child of a function: a disk, a namespace."""
        child = DeviceKey(f"{key}/{name}")
        sysfs_path = f"{self._reported[key].sysfs_path}/{name}"
        self._shown[child] = DeviceDescription(
            key=child, name=re.sub(r"[^a-z0-9]", "_", f"{kind}_{name}"), kind=kind, parent=key, sysfs_path=sysfs_path
        )
        self.cluster.settle()
        return child

    def make_mdev(self, key: DeviceKey, uuid: str) -> DeviceKey:
        """A mediated device comes, carried by a function."""
        tree, card = self.kernel.tree, self.kernel.pci.folder(key.removeprefix("pci/"))
        below = str(card.relative_to(tree.devices))
        tree.mdev_types(below, vgpu=2)
        tree.uevent(f"{below}/{uuid}")
        tree.link(card / uuid / "mdev_type", card / "mdev_supported_types/vgpu")
        tree.link(self.kernel.root.sys / "bus/mdev/devices" / uuid, card / uuid)
        self.cluster.settle()
        return DeviceKey(f"{key}/mdev/{uuid}")

    # --- looking ------------------------------------------------------------------------------------------------------

    def id(self, key: DeviceKey) -> DeviceId:
        """Of one of its devices."""
        return device_id(self.name, key)

    def address(self, key: DeviceKey) -> str:
        """A USB device's word by its bus and number, as it is now."""
        capability = self.kernel.describe(key).capability
        assert isinstance(capability, UsbDevice)
        return f"usb-address/{capability.bus}.{capability.device}"

    def view(self, key: DeviceKey) -> DeviceView:
        """What people see of a device."""
        return device_view(self.cluster.state, self.id(key))

    def word(self, key: DeviceKey) -> str:
        """`free`, `leased`, …, and how far it is handed over, if it is."""
        view = self.view(key)
        return f"{view.state} {view.binding.state}" if view.binding is not None else view.state

    def driver(self, key: DeviceKey) -> str:
        """What a function is bound to."""
        return self.kernel.driver(key.removeprefix("pci/"))
