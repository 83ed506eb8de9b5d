"""Tables that can be taken back: what a record would change is undone if another's record stands in its place."""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

_Undo = Callable[[], object]


class Journal:
    """The changes since `begin`, newest last. Outside of `begin` … `commit` nothing is written down."""

    def __init__(self) -> None:
        self._undo: list[_Undo] | None = None

    @property
    def is_open(self) -> bool:
        """Whether changes are being written down."""
        return self._undo is not None

    def begin(self) -> None:
        """From here on changes can be taken back."""
        assert self._undo is None
        self._undo = []

    def commit(self) -> None:
        """The changes stay."""
        assert self._undo is not None
        self._undo = None

    def roll_back(self) -> None:
        """Undo everything since `begin`."""
        assert self._undo is not None
        undo, self._undo = self._undo, None
        for each in reversed(undo):
            each()

    def note(self, undo: _Undo) -> None:
        """Write down how to undo a change that is about to be made."""
        if self._undo is not None:
            self._undo.append(undo)


class Table(dict[K, V]):
    """A dictionary whose changes go through `put` and `drop`, and so through the journal. Its order means nothing."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def put(self, key: K, value: V) -> None:
        """Set `key` to `value`."""
        if self._journal.is_open:
            if key in self:
                before = self[key]
                self._journal.note(lambda: self.__setitem__(key, before))
            else:
                self._journal.note(lambda: self.pop(key))
        self[key] = value

    def drop(self, key: K) -> None:
        """Remove `key`, which must be there."""
        before = self.pop(key)
        if self._journal.is_open:
            self._journal.note(lambda: self.__setitem__(key, before))


class Queue(deque[V]):
    """First in, first out, through the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def push(self, value: V) -> None:
        """Add at the end."""
        self.append(value)
        self._journal.note(self.pop)

    def shift(self) -> V:
        """Take from the front, where there must be something."""
        value = self.popleft()
        self._journal.note(lambda: self.appendleft(value))
        return value
