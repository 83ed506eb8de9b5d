"""Which time a decision bears: the log server's, carried on by a monotonic clock; the machine's own is only compared.

No clock is read here: the shell hands in what its clocks say.
"""

from leasehold.events import limits


class LedgerClock:
    """The time of one allocator."""

    def __init__(self) -> None:
        self._server_ns = 0
        self._monotonic_ns = 0
        self._error_ns = 0
        self._is_set = False

    def heard_server(self, *, server_ns: int, monotonic_ns: int, wall_ns: int) -> None:
        """Take the server's time, read between two looks at our clocks, with what ours said.

        A server that steps back is followed at once: the log's time then stands still until it has caught up, and
        leases last longer. One that steps forward is followed slowly: at once would end leases before their time.
        """
        elapsed_ns = monotonic_ns - self._monotonic_ns
        estimate_ns = self._server_ns + elapsed_ns
        if self._is_set and server_ns > estimate_ns:
            server_ns_taken = min(server_ns, estimate_ns + elapsed_ns // limits.CLOCK_SLEW_DIVISOR)
        else:
            server_ns_taken = server_ns
        self._error_ns = wall_ns - server_ns
        self._server_ns = server_ns_taken
        self._monotonic_ns = monotonic_ns
        self._is_set = True

    def now_ns(self, monotonic_ns: int) -> int | None:
        """The time for a decision; `None` if this machine must not decide (see `trouble`)."""
        if self.trouble:
            return None
        return self._server_ns + monotonic_ns - self._monotonic_ns

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
        return last_ns is not None and monotonic_ns - last_ns > limits.OUTAGE_MS * 1_000_000
