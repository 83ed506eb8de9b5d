"""Which time a decision bears: the log server's, carried on by a monotonic clock; the machine's own is only compared.

No clock is read here: the shell hands in what its clocks say. Why it is so: `docs/adr/0011-which-time-counts.md`.
"""

import msgspec

from leasehold.events import limits
from leasehold.projections.rows import Head

_NS_PER_MS = 1_000_000


class ClockNote(msgspec.Struct, frozen=True):
    """A clock as it can be carried on after a restart: the pair stays true for as long as the machine runs."""

    boot_id: str
    """Of the boot whose monotonic clock is meant: another boot counts from zero."""
    ledger_id: str
    writer: str
    """Who kept that clock."""
    monotonic_ns: int
    ledger_ns: int
    """The ledger's time at `monotonic_ns`."""
    since_ns: int
    """Monotonic: since when the clock has been carried on without a break."""

    def refused(self, *, boot_id: str, head: Head, monotonic_ns: int) -> str:
        """Why the clock cannot be carried on from here behind `head`; empty if it can."""
        if self.boot_id != boot_id or monotonic_ns < self.monotonic_ns:
            return "the machine was started anew since"
        if self.ledger_id != head.ledger_id:
            return "it is another ledger's"
        if self.writer != head.decider:
            return f"{head.decider} has decided since"
        return ""


class LedgerClock:
    """The time of one allocator."""

    def __init__(self) -> None:
        self._offset_ns = 0
        """The ledger's time less the monotonic clock's."""
        self._heard_ns = 0
        """Monotonic: when the offset was last compared with the server."""
        self._silence_ns = 0
        """How long the server had not been heard before that."""
        self._since_ns = 0
        self._error_ns = 0
        self._is_carried = False
        self._is_set = False

    def resume(self, note: ClockNote) -> None:
        """Carry on the clock of a process before this one, instead of taking the server's time as it is."""
        self._offset_ns = note.ledger_ns - note.monotonic_ns
        self._heard_ns = note.monotonic_ns
        self._since_ns = note.since_ns
        self._is_carried = True

    def heard_server(self, *, server_ns: int, monotonic_ns: int, wall_ns: int, log_ns: int = 0) -> None:
        """Take the server's time, read between two looks at our clocks, with what ours said.

        A server that steps back is followed at once: the log's time then stands still until it has caught up, and
        leases last longer. One that steps forward is followed slowly: at once would end leases before their time.
        But where the log itself stands already (`log_ns`: when its last record was decided), its time has come.
        """
        elapsed_ns = monotonic_ns - self._heard_ns
        estimate_ns = monotonic_ns + self._offset_ns
        if self._is_carried and server_ns > estimate_ns:
            slewed_ns = estimate_ns + elapsed_ns // limits.CLOCK_SLEW_DIVISOR
            taken_ns = min(server_ns, max(slewed_ns, log_ns))
        else:
            taken_ns = server_ns
        if not self._is_carried:
            self._since_ns = monotonic_ns
        self._silence_ns = elapsed_ns if self._is_set else 0
        self._error_ns = wall_ns - server_ns
        self._offset_ns = taken_ns - monotonic_ns
        self._heard_ns = monotonic_ns
        self._is_carried = self._is_set = True

    def heard_record(self, *, decided_at_ns: int, monotonic_ns: int) -> None:
        """Another allocator's record was read, decided by its clock: ours may not run before it.

        What was appended while we listened was decided just now. What we find after a silence may be of any age and
        says nothing of the time: then our clock counts as new.
        """
        silence_ns = max(self._silence_ns, monotonic_ns - self._heard_ns)
        if silence_ns > limits.OUTAGE_MS * _NS_PER_MS:
            self._since_ns = monotonic_ns
        elif monotonic_ns + self._offset_ns > decided_at_ns + limits.CLOCK_TOLERANCE_NS:
            self._offset_ns = decided_at_ns - monotonic_ns

    def now_ns(self, monotonic_ns: int) -> int | None:
        """The time for a decision; `None` if this machine must not decide (see `trouble`)."""
        if self.trouble:
            return None
        return monotonic_ns + self._offset_ns

    def age_ms(self, monotonic_ns: int) -> int:
        """For how long this clock has been carried on: it cannot tell how much time went by before that."""
        return (monotonic_ns - self._since_ns) // _NS_PER_MS if self._is_carried else 0

    def note(self, *, boot_id: str, ledger_id: str, writer: str) -> ClockNote:
        """This clock, to be resumed by a later process."""
        ledger_ns = self._heard_ns + self._offset_ns
        return ClockNote(boot_id, ledger_id, writer, self._heard_ns, ledger_ns, self._since_ns)

    @property
    def trouble(self) -> str:
        """Why this machine must not decide; empty if it may."""
        if not self._is_set:
            return "the server's time is not known yet"
        if abs(self._error_ns) > limits.CLOCK_ERROR_NS_MAX:
            return f"this machine's clock differs from the server's by {self._error_ns // 1_000_000} ms"
        return ""


class Contact:
    """Whether the log was out of reach for so long that holders may have been unable to renew."""

    def __init__(self) -> None:
        self._last_ns: int | None = None

    def reached(self, monotonic_ns: int) -> bool:
        """Note that the log answered; `True` if it had not for longer than an outage takes."""
        last_ns, self._last_ns = self._last_ns, monotonic_ns
        return last_ns is not None and monotonic_ns - last_ns > limits.OUTAGE_MS * _NS_PER_MS
