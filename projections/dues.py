"""What is due when, of the rows of a table that bear a time."""

import heapq
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from leasehold.projections.tables import Journal, Table

K = TypeVar("K", bound=Any)
V = TypeVar("V")

_ENTRIES_SPARE: Final = 1_024


class Dues(Generic[K, V]):
    """The rows of `table` by the time that `when` says of each; `None`: no time is set for it (any more).

    It is a heap that only ever holds too much, so what is taken back in the table needs no undoing here.
    """

    __slots__ = ("_journal", "_table", "_when", "entries")

    def __init__(self, journal: Journal, table: Table[K, V], when: Callable[[V], int | None]) -> None:
        self._journal = journal
        self._table = table
        self._when = when
        self.entries: list[tuple[int, K]] = []
        """Times and keys; those that hold no longer stay until they come to the top."""

    def push(self, due_ns: int, key: K) -> None:
        """The row at `key` is due then."""
        heapq.heappush(self.entries, (due_ns, key))

    def fill(self, rows: Iterable[tuple[K, V]]) -> None:
        """All that is due of `rows`; nothing is pushed yet."""
        dues = ((self._when(row), key) for key, row in rows)
        self.entries[:] = sorted((due_ns, key) for due_ns, key in dues if due_ns is not None)

    def holds(self, entry: tuple[int, K]) -> bool:
        """Whether the row is still due at that time."""
        row = self._table.get(entry[1])
        return row is not None and self._when(row) == entry[0]

    def next_ns(self) -> int | None:
        """When the next row is due."""
        if not self._journal.is_open:
            self._tidy()
            return self.entries[0][0] if self.entries else None
        due = self.due_by(2**63, limit=1)
        return self._when(self._table[due[0]]) if due else None

    def due_by(self, now_ns: int, *, limit: int) -> list[K]:
        """The keys of what is due at `now_ns`, oldest first, at most `limit`. Changes nothing.

        Walks the heap from its top without popping: what is decided now may still be taken back.
        """
        found: dict[K, None] = {}
        frontier = [(self.entries[0], 0)] if self.entries else []
        while frontier and len(found) < limit:
            entry, at = heapq.heappop(frontier)
            if entry[0] > now_ns:
                break
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(self.entries):
                    heapq.heappush(frontier, (self.entries[child], child))
            if self.holds(entry):
                found[entry[1]] = None
        return list(found)

    def _tidy(self) -> None:
        """Drop what holds no longer."""
        while self.entries and not self.holds(self.entries[0]):
            heapq.heappop(self.entries)
        if len(self.entries) > 2 * len(self._table) + _ENTRIES_SPARE:
            self.entries[:] = sorted({entry for entry in self.entries if self.holds(entry)})
