"""Gangs that want overlapping devices: one has all, then the other; neither holds a part, or waits for ever."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leasehold.events import inputs
from leasehold.events.event_types import DeviceFreed, Event, LeaseGranted
from leasehold.events.identities import DeviceId, Holder, Principal
from leasehold.events.scheduling import Need
from leasehold.projections.replay import Replay
from tests.projections.ledger import SECOND, A, B, Ledger, device
from tests.scheduling.allocators import Allocators
from tests.scheduling.queues import MODEL, check_queue, gpu_names, ledger_with_gpus

SEEDS = range(1_000)
GANG = 4
DEVICES = 6
BATCHES = 8


def _named(rng: random.Random, half: int) -> dict[str, Any]:
    """One half of the devices and the middle of them: all of these by name."""
    names = gpu_names(range(GANG) if half == 0 else range(DEVICES - GANG, DEVICES))
    return {"devices": tuple(device(name) for name in rng.sample(names, GANG))}


def _needed(rng: random.Random, half: int) -> dict[str, Any]:
    """So many of all devices, however it is said."""
    if rng.random() < 0.5:
        return {"devices": (), "needs": (Need(select=MODEL, count=GANG),)}
    first = rng.randint(1, GANG - 1)
    needs = (Need(name="a", select=MODEL, count=first), Need(name="b", select=MODEL, count=GANG - first))
    return {"devices": (), "needs": needs}


class Gangs:
    """Two gangs ask at once, while single devices come and go; what has become of them so far."""

    def __init__(self, ledger: Ledger, seed: int, wanted: Callable[[random.Random, int], dict[str, Any]]) -> None:
        self.rng = random.Random(seed)
        self.ledger = ledger
        self.allocators = Allocators(ledger, self.rng)
        self.whole: list[str] = []
        """The gangs, as they were granted."""
        self._had: set[DeviceId] = set()
        self._wanted = wanted

    def begin(self) -> None:
        """Some devices are taken by others, then both gangs ask, at the same time and in any order."""
        for name in self.rng.sample(gpu_names(range(DEVICES)), self.rng.randint(0, DEVICES)):
            self._ask((device(name),), f"single {name}")
            self.step()
        for half in self.rng.sample((0, 1), 2):
            fields = self._wanted(self.rng, half)
            request = self.ledger.request(
                *fields.pop("devices"), **fields, holder=Holder(f"gang {half}"), wait_ms=600_000, ttl_ms=3_600_000
            )
            self.allocators.ask(request, (A, B)[half])
            if self.rng.random() < 0.5:
                self.step()

    def _ask(self, devices: tuple[DeviceId, ...], holder: str, wait_ms: int = 0) -> None:
        request = self.ledger.request(*devices, holder=Holder(holder), wait_ms=wait_ms, ttl_ms=3_600_000)
        self.allocators.ask(request, Principal("c"))

    def step(self) -> None:
        """The allocators do something; sometimes somebody new tries to come between."""
        self.allocators.now_ns += self.rng.randint(0, SECOND)
        self.ledger.now_ns = self.allocators.now_ns
        self.take(self.allocators.run())

    def newcomer(self) -> None:
        """Somebody wants one device, now or as soon as it can be."""
        name = self.rng.choice(gpu_names(range(DEVICES)))
        self._ask((device(name),), "new", self.rng.choice((0, 600_000)))

    def take(self, events: list[Event]) -> None:
        """Whole gangs only, and no device twice."""
        for event in events:
            if isinstance(event, LeaseGranted):
                assert self._had.isdisjoint(event.devices), "a device is had twice"
                self._had.update(event.devices)
                if event.holder.startswith("gang"):
                    assert len(set(event.devices)) == GANG
                    self.whole.append(event.holder)
            elif isinstance(event, DeviceFreed):
                self._had.remove(event.device)

    def release_some(self) -> None:
        """One of the living leases is given back."""
        state = self.allocators.state
        living = sorted(lease for lease, row in state.leases.items() if not row.ended)
        if living:
            lease = self.rng.choice(living)
            row = state.leases[lease]
            release = inputs.ReleaseRequest(
                request_id=self.ledger.new_id(), issued_at_ns=self.ledger.now_ns, lease=lease, token=row.token
            )
            self.allocators.ask(release, row.principal)


def _outcomes(wanted: Callable[[random.Random, int], dict[str, Any]], seeds: Iterator[int]) -> Counter[str]:
    """Of these seeds, how often which gang came first."""
    ledger = ledger_with_gpus(DEVICES)
    before = Counter[str]()
    for seed in seeds:
        gangs = Gangs(ledger, seed, wanted)
        gangs.begin()
        for _ in range(200):
            gangs.step()
            if gangs.rng.random() < 0.3 and len(gangs.whole) < 2:
                gangs.newcomer()
            gangs.release_some()
            if len(gangs.whole) == 2:
                break
        gangs.take(gangs.allocators.settle())
        assert sorted(gangs.whole) == ["gang 0", "gang 1"], f"seed {seed}: {gangs.whole}"
        before[gangs.whole[0]] += 1
        check_queue(gangs.allocators.state)
        if seed % 100 == 0:
            replay = Replay()
            for sequence, body in enumerate(gangs.allocators.bodies, 1):
                assert replay.step(sequence, body) is None, f"seed {seed}"
    return before


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("wanted", [_named, _needed])
def test_one_whole_then_the_other(wanted: Callable[[random.Random, int], dict[str, Any]], batch: int) -> None:
    """Of two gangs that together want more than there is, whatever else is asked between and however allocators change
    and lose their appends, each gets all that it wants, once and at once, and the other after it.
    """
    seeds = SEEDS[batch :: BATCHES * 2] if wanted is _named else SEEDS[batch + BATCHES :: BATCHES * 2]
    before = _outcomes(wanted, iter(seeds))
    print(f"seeds {seeds}: {dict(before)}")
    assert len(before) == 2, "which one comes first depends on the seed"
