"""Whatever happens in whatever order, a device that somebody uses is not written to, what is said to be ready is, what
failed has left nothing behind, and in the end every device is as it was at first.
"""

import errno
import random
import threading
from pathlib import Path
from typing import Final

import pytest

from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Back, Busy, Failed, Ready
from leasehold.services.binder import steps
from tests.binder.bench import Bench
from tests.binder.kernel import GPU, GPU_SOUND, NIC, SERIAL, STICK, TWIN_A, VF0, Kernel, pci, usb

SEEDS: Final = range(16)
STEPS: Final = 25
LEASES: Final = ((pci(NIC),), (pci(VF0), usb(STICK)), (pci(GPU), pci(GPU_SOUND)), (usb(TWIN_A),))
NAMES: Final = {
    pci(NIC): NIC, pci(VF0): VF0, pci(GPU): GPU, pci(GPU_SOUND): GPU_SOUND, usb(STICK): STICK, usb(TWIN_A): TWIN_A,
}  # fmt: skip
CONTROLLER: Final = "pci0000:00/0000:00:1c.3/0000:04:00.0/usb1"


class _Chance(Bench):
    """A bench on which things happen."""

    def __init__(self, kernel: Kernel, rng: random.Random) -> None:
        super().__init__(kernel)
        self.rng = rng
        self.gone: set[DeviceKey] = set()
        self.users: dict[DeviceKey, int] = {}
        """Pids of those that have it open; 0: a claim."""
        self.log: list[str] = []
        kernel.on_told = self.told

    def told(self, attribute: str, text: str) -> None:
        """Something is written: to nothing that is in use. It may go wrong."""
        for key in self.users:
            assert NAMES[key] not in text, f"{attribute} {text} while it is in use: {self.log}"
        self.kernel.refuse.clear()
        match self.rng.randrange(40):
            case 0:
                self.kernel.refuse[attribute] = errno.EIO
            case 1:
                self.ends.set()
            case 2:
                self.pull(self.rng.choice(list(NAMES)))

    def pull(self, key: DeviceKey) -> None:
        """It is pulled out, unless somebody has it open."""
        if key in self.gone or key in self.users or key in (pci(VF0), pci(GPU), pci(GPU_SOUND)):
            return
        self.log.append(f"pull {key}")
        self.gone.add(key)
        (self.kernel.pci if key == pci(NIC) else self.kernel.usb).unplug(NAMES[key])

    def plug(self, key: DeviceKey) -> None:
        """The same thing comes again."""
        if key not in self.gone:
            return
        self.log.append(f"plug {key}")
        self.gone.discard(key)
        if key == pci(NIC):
            self.kernel.pci.add(f"pci0000:00/0000:00:1c.0/{NIC}", "e1000e", "8086:10d3", "flr pm", 16)
        elif key == usb(STICK):
            self.kernel.usb.plug(f"{CONTROLLER}/{STICK}", "0781:5581", "4C530001")
        else:
            self.kernel.usb.plug(f"{CONTROLLER}/1-1/{TWIN_A}", "0403:6001", SERIAL)

    def use(self, key: DeviceKey) -> None:
        """A domain begins to use what it was handed."""
        name = NAMES[key]
        if key in self.gone or key in self.users:
            return
        if key.startswith("pci/") and self.kernel.driver(name) == "vfio-pci" and "03:00" not in name:
            self.users[key] = 100 + len(self.log)
            self.kernel.pci.hold(name, self.users[key])
        elif key.startswith("usb/") and self.kernel.driver(name) and not self.kernel.driver(f"{name}:1.0"):
            self.users[key] = 0
            self.kernel.usb.claim(f"{name}:1.0")

    def let_go(self, key: DeviceKey) -> None:
        """It ends."""
        pid = self.users.pop(key, None)
        if pid:
            self.kernel.pci.release(pid)
        elif pid == 0:
            self.kernel.usb.unclaim(f"{NAMES[key]}:1.0")

    def hand_over(self, lease: tuple[DeviceKey, ...]) -> None:
        """A lease is prepared; what is told of it is true."""
        if any(key in self.gone for key in lease):
            return
        self.again()
        outcome = self.prepare(*lease)
        self.log.append(f"prepare {lease}: {outcome}")
        if isinstance(outcome, Ready):
            assert not any(key in self.gone for key in lease), self.log
            for key in lease:
                name = NAMES[key]
                driver = self.kernel.driver(name if key.startswith("pci/") else f"{name}:1.0")
                assert driver in (("vfio-pci",) if key.startswith("pci/") else ("", "usbfs")), self.log
        elif isinstance(outcome, Failed) and not outcome.left:
            self.kernel.refuse.clear()
            for key in lease:
                assert key in self.gone or key in self.users or self.is_home(key), f"{key}: {self.log}"
                self.notes.pop(key, None)

    def give(self, key: DeviceKey) -> None:
        """A device is taken back."""
        self.again()
        ours = next(lease for lease in LEASES if key in lease)
        outcome = self.take_back(key, ours=ours)
        self.log.append(f"give {key}: {outcome}")
        assert isinstance(outcome, Busy) <= (key in self.users), self.log
        if isinstance(outcome, Back):
            assert key in self.gone or self.is_home(key), self.log
            del self.notes[key]

    def again(self) -> None:
        """Another run of the binder, if the last one was killed."""
        if self.ends.is_set():
            self.ends = threading.Event()
            self.machine = self.machine_of(self.ends)

    def is_home(self, key: DeviceKey) -> bool:
        """Whether the host's drivers have it."""
        name = NAMES[key]
        if key.startswith("usb/"):
            return self.kernel.driver(name) == "usb" and bool(self.kernel.driver(f"{name}:1.0"))
        return self.kernel.driver(name) not in ("", "vfio-pci") and not self.kernel.pci.override_of(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_by_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A course of chance, and then quiet."""
    print(f"seed {seed}")
    monkeypatch.setattr(steps, "SETTLE_S", 0.2)
    rng = random.Random(seed)
    kernel = Kernel(tmp_path / "machine")
    bench = _Chance(kernel, rng)
    first = bench.traces()
    for _ in range(STEPS):
        key = rng.choice(list(NAMES))
        match rng.randrange(6):
            case 0 | 1:
                bench.hand_over(rng.choice(LEASES))
            case 2 if key in bench.notes:
                bench.give(key)
            case 3:
                bench.use(key)
            case 4:
                bench.let_go(key)
            case 5:
                (bench.plug if rng.randrange(2) else bench.pull)(key)
    kernel.on_told = lambda *_: None
    kernel.refuse.clear()
    bench.again()
    for key in NAMES:
        bench.let_go(key)
        bench.plug(key)
    for key in list(bench.notes):
        outcome = bench.take_back(key)
        assert isinstance(outcome, Back), f"{key}: {outcome}: {bench.log}"
    assert bench.traces() == first, bench.log
    kernel.close()
