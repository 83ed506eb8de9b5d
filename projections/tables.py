"""Tables that can be taken back: what a record would change is undone if another's record stands in its place."""

from bisect import bisect_left, insort
from collections import deque
from typing import Any, Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M", bound=Any)

_ABSENT: Final[Any] = object()


class Journal:
    """The changes since `begin`, newest last. Outside of `begin` … `commit` nothing is written down."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        self.changes: list[tuple[Any, Any, Any]] | None = None
        """What was changed, where in it, and what stood there before; `None` while nothing is written down."""

    @property
    def is_open(self) -> bool:
        """Whether changes are being written down."""
        return self.changes is not None

    def begin(self) -> None:
        """From here on changes can be taken back."""
        assert self.changes is None
        self.changes = []

    def commit(self) -> None:
        """The changes stay."""
        assert self.changes is not None
        self.changes = None

    def roll_back(self) -> None:
        """Undo everything since `begin`."""
        assert self.changes is not None
        changes, self.changes = self.changes, None
        for changed, key, before in reversed(changes):
            changed.undo(key, before)


class Cell:
    """One value that can be taken back."""

    __slots__ = ("_journal", "value")

    def __init__(self, journal: Journal, value: Any) -> None:
        self._journal = journal
        self.value = value

    def put(self, value: Any) -> None:
        """Set it."""
        if self._journal.changes is not None:
            self._journal.changes.append((self, None, self.value))
        self.value = value

    def undo(self, _key: None, before: Any) -> None:
        """Take one change back."""
        self.value = before


class Table(dict[K, V]):
    """A dictionary whose changes go through `put` and `drop`, and so through the journal. Its order means nothing."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def put(self, key: K, value: V) -> None:
        """Set `key` to `value`."""
        changes = self._journal.changes
        if changes is not None:
            changes.append((self, key, self.get(key, _ABSENT)))
        self[key] = value

    def drop(self, key: K) -> None:
        """Remove `key`, which must be there."""
        before = self.pop(key)
        if self._journal.changes is not None:
            self._journal.changes.append((self, key, before))

    def undo(self, key: K, before: V) -> None:
        """Take one change back."""
        if before is _ABSENT:
            del self[key]
        else:
            self[key] = before


class Queue(deque[V]):
    """First in, first out, through the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def push(self, value: V) -> None:
        """Add at the end."""
        self.append(value)
        if self._journal.changes is not None:
            self._journal.changes.append((self, True, value))

    def shift(self) -> V:
        """Take from the front, where there must be something."""
        value = self.popleft()
        if self._journal.changes is not None:
            self._journal.changes.append((self, False, value))
        return value

    def undo(self, was_pushed: bool, value: V) -> None:
        """Take one change back."""
        if was_pushed:
            self.pop()
        else:
            self.appendleft(value)


class SortedLists(dict[K, list[M]]):
    """Lists, sorted and without doubles, by key; an empty one is none. Each change costs what a search in it does."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def add(self, key: K, member: M) -> None:
        """Put in `member`, which must not be there."""
        insort(self.setdefault(key, []), member)
        if self._journal.changes is not None:
            self._journal.changes.append((self, key, (True, member)))

    def remove(self, key: K, member: M) -> None:
        """Take out `member`, which must be there."""
        members = self[key]
        at = bisect_left(members, member)
        assert members[at] == member, f"{member} is not under {key}"
        del members[at]
        if not members:
            del self[key]
        if self._journal.changes is not None:
            self._journal.changes.append((self, key, (False, member)))

    def before(self, key: K, member: M) -> int:
        """How many of a list come before `member`, which need not be in it."""
        return bisect_left(self.get(key, ()), member)

    def undo(self, key: K, change: tuple[bool, M]) -> None:
        """Take one change back."""
        # What is done in the course of undoing is not written down again.
        was_added, member = change
        (self.remove if was_added else self.add)(key, member)
