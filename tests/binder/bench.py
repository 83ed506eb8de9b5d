"""A played kernel, a machine on it, and what was noted: what tests of the machine have in common."""

import threading
import time
from collections.abc import Sequence
from typing import Final

from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Back, Before, Busy, Failed, NotBack, Ready, Target
from leasehold.services.binder.machine import Machine
from tests.binder.kernel import Kernel

TIME_S: Final = 20.0


class Bench:
    """One machine, used as the agent uses it."""

    def __init__(self, kernel: Kernel, stub: str = "vfio-pci") -> None:
        self.kernel = kernel
        self.ends = threading.Event()
        self.stub = stub
        self.ahead_s = 0.0
        """By so much its clock is ahead."""
        self.machine = self.machine_of(self.ends)
        self.notes: dict[DeviceKey, Before] = {}
        """What was made durable, by key."""

    def machine_of(self, ends: threading.Event) -> Machine:
        """A machine as another run of the binder would have it."""
        kernel = self.kernel
        return Machine(
            kernel.root, write=kernel.write, run=kernel.run, reset_port=kernel.reset_port, stub=self.stub, ends=ends
        )

    def monotonic(self) -> float:
        """Its clock."""
        return time.monotonic() + self.ahead_s

    def hang(self, attribute: str) -> threading.Event:
        """Let the kernel not come back from this until the event is set, and all time be over as soon as it is told."""

        def told(said: str, text: str) -> None:
            if attribute in (said, f"{said} {text}"):
                self.ahead_s += 2 * TIME_S

        self.kernel.on_told = told
        return self.kernel.hang(attribute)

    def note(self, befores: Sequence[Before]) -> None:
        """As the binder's notes."""
        assert not self.kernel.told, f"written before it was noted: {self.kernel.told}"
        self.notes |= {before.key: before for before in befores}

    def targets(self, *keys: DeviceKey, handover: Handover | None = None, forced: bool = False) -> list[Target]:
        """Devices as a watcher saw them, with what was noted of them."""
        picture = self.kernel.picture()
        return [
            Target(description=picture[key], handover=handover, before=self.notes.get(key), forced=forced)
            for key in keys
        ]

    def prepare(
        self, *keys: DeviceKey, handover: Handover | None = None, forced: bool = False
    ) -> Ready | Failed | None:
        """Hand over."""
        targets = self.targets(*keys, handover=handover, forced=forced)
        self.kernel.told.clear()
        return self.machine.prepare(targets, note=self.note, time_s=TIME_S)

    def ready(self, *keys: DeviceKey, handover: Handover | None = None) -> Ready:
        """Hand over what can be."""
        outcome = self.prepare(*keys, handover=handover)
        assert isinstance(outcome, Ready), outcome
        return outcome

    def failed(self, *keys: DeviceKey, handover: Handover | None = None) -> Failed:
        """Hand over what cannot be."""
        outcome = self.prepare(*keys, handover=handover)
        assert isinstance(outcome, Failed), outcome
        return outcome

    def take_back(
        self, key: DeviceKey, *, ours: Sequence[DeviceKey] = (), forced: bool = False
    ) -> Back | Busy | NotBack | None:
        """Give it to the host again, as it was noted."""
        self.kernel.told.clear()
        return self.machine.take_back(self.notes[key], ours=ours, forced=forced, time_s=TIME_S)

    def drivers(self) -> dict[str, str]:
        """Of all functions and interfaces that there are."""
        root = self.kernel.root.sys
        names = [each.name for each in (root / "bus/usb/devices").iterdir() if "-" in each.name]
        return {name: self.kernel.driver(name) for name in sorted((*self.kernel.pci.addresses(), *names))}

    def traces(self) -> dict[str, object]:
        """All that a binder could have left behind: drivers, overrides, ids and slots."""
        pci = self.kernel.pci
        return {
            **self.drivers(),
            "overrides": [name for name in pci.addresses() if pci.override_of(name)],
            "ids": {driver: ids for driver, ids in pci.added_ids.items() if ids},
            "slots": pci.slots() if "pciback" in pci.ids else [],
            "vfs": {number: dict(told) for number, told in self.kernel.vfs.items()},
        }
