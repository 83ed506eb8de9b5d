"""The hint who decides, as it goes wrong: silent, lost, told late, and told to two at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leasehold.projections.leading import Leading, Seat

if TYPE_CHECKING:
    from tests.sim.world import Faults


class SilentError(Exception):
    """The hint's store does not answer."""


@dataclass
class SimHint:
    """A key with a revision, written by compare-and-set, kept in memory only."""

    rng: random.Random
    faults: Faults
    seats: list[Seat] = field(default_factory=lambda: [Seat()])
    """As it stood, one after the other."""
    silent_until_ns: int = 0

    def disturb(self, now_ns: int) -> None:
        """Fall silent for a while, or lose everything."""
        if self.rng.random() < self.faults.hint_silent:
            self.silent_until_ns = now_ns + self.rng.randrange(1, 20) * 10**9
        if self.rng.random() < self.faults.hint_lost:
            self.seats.append(Seat())

    def look(self, now_ns: int) -> Seat:
        """What stands there, or what stood there before."""
        if now_ns < self.silent_until_ns:
            raise SilentError
        if self.rng.random() < self.faults.hint_stale:
            return self.rng.choice(self.seats[-5:])
        return self.seats[-1]

    def put(self, expected: int, writer: str, now_ns: int) -> int | None:
        """Write; sometimes one is told that it was done when another was faster, or nothing though it was done."""
        if now_ns < self.silent_until_ns:
            raise SilentError
        if self.seats[-1].revision != expected:
            return expected + 1 if self.rng.random() < self.faults.hint_doubled else None
        self.seats.append(Seat(expected + 1, writer))
        if self.rng.random() < self.faults.hint_silent:
            raise SilentError
        return expected + 1


def look_once(leading: Leading, hint: SimHint, *, now_ns: int, monotonic_ns: int, able: bool) -> None:
    """Look, and put the name in if that is called for, as `services/allocator/hint.py` does."""
    try:
        seat = hint.look(now_ns)
        expected = leading.looked(seat, asked_ns=monotonic_ns, answered_ns=monotonic_ns, able=able)
        if expected is not None:
            revision = hint.put(expected, leading.writer, now_ns)
            leading.put(revision, asked_ns=monotonic_ns, answered_ns=monotonic_ns)
    except SilentError:
        leading.silent(monotonic_ns)
