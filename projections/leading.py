"""Who decides: a hint that several allocators share, so that one does the work and the others stand by.

It is a hint and no lock. Safety is in the append: two that both believe they decide lose speed and nothing else. So
where the hint's store is silent, everybody decides.

No clock is read here: the shell looks at the hint now and then and hands in what it saw, with its own monotonic clock.
Nobody compares two machines' clocks: a hint is taken when it stood still for long enough before one's own eyes.
"""

import msgspec

from leasehold.events import limits

_NS_PER_MS = 1_000_000
_STILL_NS = limits.HINT_STILL_MS * _NS_PER_MS
_REFRESH_NS = limits.HINT_REFRESH_MS * _NS_PER_MS


class Seat(msgspec.Struct, frozen=True):
    """The hint as it stands: who decides (empty: nobody), and a number that rises with each refresh (0: never)."""

    revision: int = 0
    writer: str = ""


class Leading:
    """What one allocator knows of the hint."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.seat = Seat()
        self._seen_ns = 0
        """When the seat's revision was first seen."""
        self._held_ns: int | None = None
        """When the refresh that was taken last had been sent; `None`: it is not ours."""
        self._silent_ns: int | None = None
        """Since when the store has not answered."""

    def looked(self, seat: Seat, *, asked_ns: int, answered_ns: int, able: bool) -> int | None:
        """Take what a look showed. The revision behind which our name is to be put now, or `None`.

        Args:
            able: Whether we could decide: clock good, log at hand. Who cannot neither takes the hint nor refreshes it.
        """
        self._silent_ns = None
        if seat.revision != self.seat.revision:
            self._seen_ns = answered_ns
        self.seat = seat
        if seat.writer == self.writer:
            is_due = self._held_ns is None or asked_ns - self._held_ns >= _REFRESH_NS
            return seat.revision if able and is_due else None
        self._held_ns = None
        stood_still = asked_ns - self._seen_ns >= _STILL_NS
        return seat.revision if able and (stood_still or not seat.writer) else None

    def put(self, revision: int | None, *, asked_ns: int, answered_ns: int) -> None:
        """Our name was put in, with this revision; `None`: another was faster."""
        self._silent_ns = None
        if revision is None:
            self._held_ns = None
        else:
            self.seat, self._seen_ns, self._held_ns = Seat(revision, self.writer), answered_ns, asked_ns

    def silent(self, now_ns: int) -> None:
        """The store did not answer a look, or what it did with our name is not known."""
        if self._silent_ns is None:
            self._silent_ns = now_ns

    def decides(self, now_ns: int) -> bool:
        """Whether to decide, as far as is known. After a pause of ours (a stopped process): not before another look."""
        if self._held_ns is not None and now_ns - self._held_ns < _STILL_NS:
            return True
        if self._silent_ns is None:
            return False
        # Who held it goes on; the others wait as long as for a hint that stands still.
        return self._held_ns is not None or now_ns - self._silent_ns >= _STILL_NS

    def give_back(self) -> int | None:
        """We stop deciding: the revision behind which an empty name is to be put, `None` if it is not ours."""
        is_ours, self._held_ns = self._held_ns is not None, None
        return self.seat.revision if is_ours else None
