"""Time in the simulator: the log server's clock, and machines with clocks of their own. Both can jump."""

import random
from dataclasses import dataclass, field

from leasehold.events import limits
from leasehold.projections.rows import Head
from leasehold.projections.timekeeping import ClockNote, LedgerClock
from tests.sim.world import SECOND

HOUR = 3_600 * SECOND


def margin_ns(ttl_ms: int) -> int:
    """By how much a holder gives up before its time: what clocks that count as equal may differ by."""
    return ttl_ms * 1_000 + limits.CLOCK_TOLERANCE_NS


@dataclass
class SimServerClock:
    """The log server's clock. The machines' clocks follow it, as they would one source of time that is wrong."""

    error_ns: int = 0
    forward_ns: int = 0
    """How far it has stepped forward in all."""

    def step_forward(self) -> None:
        """Step forward by an hour."""
        self.error_ns += HOUR
        self.forward_ns += HOUR

    def jump(self, rng: random.Random) -> None:
        """Step back or forth, at most to an hour beside the truth."""
        step_ns = rng.choice((-HOUR, -30 * SECOND, -SECOND, SECOND // 2, 30 * SECOND, HOUR, -self.error_ns))
        before_ns = self.error_ns
        self.error_ns = max(-HOUR, min(HOUR, before_ns + step_ns))
        self.forward_ns += max(0, self.error_ns - before_ns)


@dataclass
class SimMachine:
    """What an allocator runs on: it keeps the note of the clock, and counts time since its boot."""

    rng: random.Random
    boots: int = 0
    skew_ns: int = 0
    """What its own clock is beside the server's."""
    note: ClockNote | None = None
    _booted_ns: int = field(default=0, init=False)

    def boot(self, now_ns: int) -> None:
        """Start anew. How long it has been up when the allocator starts is anybody's guess."""
        self.boots += 1
        self._booted_ns = now_ns - self.rng.randrange(1, 3_000) * SECOND

    @property
    def boot_id(self) -> str:
        """Which boot this is."""
        return str(self.boots)

    def monotonic_ns(self, now_ns: int) -> int:
        """Time since boot, sleep and all."""
        return now_ns - self._booted_ns

    def clock(self, head: Head, now_ns: int) -> LedgerClock:
        """The clock of the allocator that ran here before, if it may be carried on; else a new one."""
        clock = LedgerClock()
        monotonic_ns = self.monotonic_ns(now_ns)
        if self.note and not self.note.refused(boot_id=self.boot_id, head=head, monotonic_ns=monotonic_ns):
            clock.resume(self.note)
        return clock

    def keep(self, clock: LedgerClock, ledger_id: str, writer: str) -> None:
        """Write the clock down where the note is not true any more."""
        if clock.trouble or not ledger_id:
            return
        note = clock.note(boot_id=self.boot_id, ledger_id=ledger_id, writer=writer)
        old = self.note
        if old is not None and (old.boot_id, old.writer, old.since_ns) == (note.boot_id, writer, note.since_ns):
            drift_ns = note.ledger_ns - old.ledger_ns - (note.monotonic_ns - old.monotonic_ns)
            if abs(drift_ns) <= limits.CLOCK_TOLERANCE_NS:
                return
        self.note = note
