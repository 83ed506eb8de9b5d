"""Kernels in the simulator: which driver each device of a managed host has, and for whom; they fail as kernels do.

What a binder does to a device takes several steps, between which it may be killed. Beside that stands the judge's own
book, `handed`: for which lease something was done to a device that has not been undone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from leasehold.events.identities import DeviceKey, device_id
from tests.sim.world import SECOND, SimHost, ViolationError

if TYPE_CHECKING:
    from tests.sim.hypervisors import SimHypervisor
    from tests.sim.simulation import Simulation

STUB: Final = "vfio-pci"
STUBS: Final = (STUB, "pciback", "pci-stub")
_replace: Final = msgspec.structs.replace


def host_driver(key: DeviceKey) -> str:
    """What the host itself runs a device with."""
    return "usb" if key.startswith("usb/") else "igb"


@dataclass
class SimKernel:
    """A host's kernel, as far as drivers go."""

    sim: Simulation
    host: SimHost
    hypervisor: SimHypervisor | None = None
    handed: dict[DeviceKey, int] = field(default_factory=dict)
    ready: dict[DeviceKey, int] = field(default_factory=dict)
    """For which lease all was done."""
    failed: set[int] = field(default_factory=set)
    """Leases that the binder has given up: what was done for them it undoes."""
    broken_until_ns: dict[DeviceKey, int] = field(default_factory=dict)
    """Up to then a device's driver does not take it back."""
    newest: dict[DeviceKey, int] = field(default_factory=dict)
    """The newest lease that something was done for."""
    detached: set[DeviceKey] = field(default_factory=set)
    """By an operator's order, for use by hand."""
    boots: int = 0
    _settled: bool = False

    def __post_init__(self) -> None:
        for key in [*self.host.devices, *self.host.absent]:
            self._plug(key)

    # --- what happens -----------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Time goes on: nothing is left of what was unplugged; now and then something is done by hand, or breaks."""
        rng = self.sim.binder_rng
        # What was plugged out, and what was made and is taken away.
        for key in sorted({*self.host.absent, *(self.handed.keys() - self.host.devices.keys())}):
            self._plug(key)
        if self._settled:
            return
        if rng.random() < 0.01:
            key = rng.choice(sorted(self.host.devices))
            self.broken_until_ns[key] = self.sim.now_ns + rng.choice((3, 20, 60)) * SECOND
        if self.handed and rng.random() < 0.01:
            # Somebody gives it to another driver, although it is handed over.
            key = rng.choice(sorted(self.handed))
            if not self.users(key):
                self._bind(key, rng.choice(("", host_driver(key))))

    def boot(self) -> None:
        """The machine starts anew: nothing is left of what was done."""
        self.boots += 1
        for key in [*self.host.devices, *self.host.absent]:
            self._plug(key)
        self.host.users.clear()
        self.detached.clear()

    def break_down(self, until_ns: int) -> None:
        """Up to then the host's own drivers do not take back what is handed over now."""
        self.broken_until_ns.update(dict.fromkeys(self.handed, until_ns))

    def settle(self) -> None:
        """From now on it does what it is told."""
        self._settled = True
        self.broken_until_ns.clear()

    def _plug(self, key: DeviceKey) -> None:
        self.handed.pop(key, None)
        self.ready.pop(key, None)
        self.detached.discard(key)
        for devices in (self.host.devices, self.host.absent):
            if key in devices:
                devices[key] = _replace(devices[key], driver=host_driver(key))

    # --- what is seen -----------------------------------------------------------------------------------------------

    def is_there(self, key: DeviceKey) -> bool:
        """Whether it is plugged in."""
        return key in self.host.devices

    def driver(self, key: DeviceKey) -> str:
        """What it is bound to."""
        return self.host.devices[key].driver

    def users(self, key: DeviceKey) -> tuple[str, ...]:
        """Who has it open: domains, be they dying, and processes."""
        domains = self.hypervisor.all() if self.hypervisor is not None else []
        having = {each.uuid for each in domains if key in each.attached.values()}
        return (*sorted(having), *self.host.users.get(key, ()))

    def is_broken(self, key: DeviceKey) -> bool:
        """Whether its driver does not take it."""
        return self.sim.now_ns < self.broken_until_ns.get(key, 0)

    # --- what a binder does -----------------------------------------------------------------------------------------

    def hand_over(self, key: DeviceKey, lease: int, driver: str) -> None:
        """A step of preparing: bind it to this driver (empty: to none) for this lease."""
        if not self.is_there(key):
            return
        self._judge_hand_over(key, lease)
        self.handed[key] = self.newest[key] = lease
        self._bind(key, driver)

    def take_back(self, key: DeviceKey, lease: int, driver: str, *, forced: bool, rolls_back: bool = False) -> None:
        """A step of taking back: bind it to this driver (empty: to none)."""
        if not self.is_there(key):
            return
        self._judge_take_back(key, lease, forced=forced, rolls_back=rolls_back)
        if forced:
            self._push_off(key)
        if driver == "" or driver in STUBS or not self.is_broken(key):
            self._bind(key, driver)

    def _push_off(self, key: DeviceKey) -> None:
        """Whoever has it loses it."""
        self.host.users.pop(key, None)
        if self.hypervisor is not None:
            self.hypervisor.lose(key, self.sim.now_ns)

    def reset(self, key: DeviceKey, ours: Collection[DeviceKey]) -> None:
        """A step of either: the other functions in its slot are reset with it, if that may be."""
        for mate in _mates(key):
            if mate not in ours or not self.is_there(mate):
                continue
            lease = self.handed.get(mate, 0)
            row = self.sim.oracle.leases.get(lease)
            if self.users(mate) or (lease != self.handed.get(key, 0) and row is not None and not row.ended):
                raise ViolationError(f"handing: a reset of {key} hits {mate}, which {lease} has")

    def is_ready(self, key: DeviceKey, lease: int) -> bool:
        """Whether it can be used for this lease."""
        return self.ready.get(key) == self.handed.get(key) == lease and self.driver(key) in ("", *STUBS)

    def is_back(self, key: DeviceKey, lease: int) -> None:
        """Nothing is left of what was done for this lease."""
        if self.handed.get(key) == lease:
            del self.handed[key]
            self.ready.pop(key, None)

    def order(self, key: DeviceKey, driver: str) -> None:
        """An operator's order: bind it to this driver."""
        if not self.is_there(key):
            return
        oracle, device = self.sim.oracle, device_id(self.host.name, key)
        lease = oracle.leases.get(oracle.devices[device].lease)
        if lease is not None and not lease.ended:
            raise ViolationError(f"handing: {device} was given to {driver} by order, but is leased")
        if self.users(key):
            raise ViolationError(f"handing: {device} was given to {driver} by order, but {self.users(key)} has it")
        self._bind(key, driver)
        (self.detached.add if driver in STUBS else self.detached.discard)(key)

    def _bind(self, key: DeviceKey, driver: str) -> None:
        self.host.devices[key] = _replace(self.host.devices[key], driver=driver)

    # --- judging ----------------------------------------------------------------------------------------------------

    def _judge_hand_over(self, key: DeviceKey, lease: int) -> None:
        device, before = device_id(self.host.name, key), self.handed.get(key, 0)
        if before not in (0, lease):
            raise ViolationError(f"handing: {device} is prepared for {lease}, but {before}'s hands are still on it")
        if lease < self.newest.get(key, 0):
            raise ViolationError(f"handing: {device} is prepared for {lease}, but {self.newest[key]} came later")
        if self.users(key):
            raise ViolationError(f"handing: {device} is taken from under {self.users(key)} for {lease}")
        row = self.sim.oracle.devices[device]
        if row.lease != lease and not self.sim.oracle.hands.was_freed_by_word(device, lease):
            raise ViolationError(f"handing: {device} is prepared for {lease}, but is {row.lease}'s")

    def _judge_take_back(self, key: DeviceKey, lease: int, *, forced: bool, rolls_back: bool) -> None:
        device, before = device_id(self.host.name, key), self.handed.get(key, 0)
        if before not in (0, lease):
            raise ViolationError(f"handing: {device} is taken back from {lease}, but is in {before}'s hands")
        row = self.sim.oracle.leases.get(lease)
        if row is not None and not row.ended and not rolls_back and lease not in self.failed:
            raise ViolationError(f"handing: {device} is taken back, but its lease {lease} lives")
        if self.users(key) and not forced:
            raise ViolationError(f"handing: {device} is taken back from under {self.users(key)}")
        if forced and lease not in self.sim.oracle.hands.forced:
            raise ViolationError(f"handing: {device} is taken back by force, but nobody has said so of {lease}")


def _mates(key: DeviceKey) -> list[DeviceKey]:
    """The other functions in a PCI function's slot."""
    slot, _, function = key.rpartition(".")
    return [DeviceKey(f"{slot}.{other}") for other in "01" if key.startswith("pci/") and other != function]
