"""An allocator's contact with the log: its time, and whether we have looked there lately."""

import time
from collections.abc import Awaitable, Callable

from leasehold.events import limits
from leasehold.projections.rows import Head
from leasehold.projections.timekeeping import Contact, LedgerClock
from leasehold.services.clocknote import ClockKeeper

ServerTime = Callable[[], Awaitable[int]]
"""Asks the log's server for its time, ns since 1970."""
_NS_PER_MS = 1_000_000


def monotonic_ns() -> int:
    """The clock that all of an allocator goes by. Unlike CLOCK_MONOTONIC it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LogContact:
    """Made once a second, by the decider and by standbys."""

    def __init__(
        self, server_time: ServerTime, wall_ns: Callable[[], int], *, clock: LedgerClock, clocks: ClockKeeper | None
    ) -> None:
        """Args:
            wall_ns: This machine's own clock, which is only compared with the server's.
            clocks: Keeps `clock` over a restart; without it the next process takes the server's time as it is.
        """
        self.clock = clock
        self._server_time = server_time
        self._wall_ns = wall_ns
        self._clocks = clocks
        self._contact = Contact()
        self._made_ns = 0
        self._known_ns = 0
        self._was_cut_off = False

    @property
    def is_due(self) -> bool:
        """It was not made for a second, or is wanted at once (`want`)."""
        return monotonic_ns() - self._made_ns >= limits.CONTACT_MS * _NS_PER_MS

    def want(self) -> None:
        """Whatever happened, the clock and the log are looked at anew before the next decision."""
        self._made_ns = 0

    async def hear_time(self, head: Head) -> None:
        """Set the clock by the server's.

        Raises:
            UnavailableError: the log does not answer.
        """
        before_ns = monotonic_ns()
        server_ns = await self._server_time()
        after_ns = monotonic_ns()
        self.clock.heard_server(
            server_ns=server_ns + (after_ns - before_ns) // 2,
            monotonic_ns=after_ns,
            wall_ns=self._wall_ns(),
            log_ns=head.decided_at_ns,
        )
        self._was_cut_off = self._contact.reached(after_ns) or self._was_cut_off
        if self._clocks is not None:
            await self._clocks.keep(self.clock, head.ledger_id)
        self.proved(before_ns)

    def made(self) -> None:
        """All of it is done: the next one is due in a second."""
        self._made_ns = monotonic_ns()

    def proved(self, asked_ns: int) -> None:
        """The log answered a question of `asked_ns`."""
        self._known_ns = max(self._known_ns, asked_ns)

    def was_cut_off(self) -> bool:
        """Whether the log was out of reach for so long that holders may have been unable to renew; told once."""
        was, self._was_cut_off = self._was_cut_off, False
        return was

    @property
    def stale(self) -> str:
        """Why nothing can be said about the log as it is now; empty if it was looked at just before.

        A process that was stopped has an old picture, and must look before it says anything.
        """
        age_ms = (monotonic_ns() - self._known_ns) // _NS_PER_MS
        return f"the log has not been looked at for {age_ms} ms" if age_ms > 2 * limits.CONTACT_MS else ""

    @property
    def trouble(self) -> str:
        """Why we could not decide if it were our turn; empty if we could."""
        return self.clock.trouble or self.stale
