"""Following the feed without a hole: what was heard live, what was read from the stream, and what is to be given.

Live messages arrive within one hop, but may be lost, doubled, or told of before they are kept; what the stream keeps is
certain, but has to be asked for. Each live message names what stands before it, so that most often it can be given at
once; where it cannot be known that nothing is missing, it is held back until the stream has been read up to there.

Positions are what counts: a stream that is told anew has the same events at other sequences.
"""

import heapq
from collections import deque
from enum import Enum
from typing import Any, Final

import msgspec

from leasehold.events import limits

FIRST_POSITION: Final = limits.EVENTS_PER_RECORD_MAX
"""Of the first event of any ledger."""


class Chain(Enum):
    """How it shows that nothing is missing between two messages that were heard."""

    STREAM = "stream"
    """All is heard: the sequences of the stream follow each other."""
    HOST = "host"
    """All of one host is heard: each event names the one before it of this host."""
    NONE = "none"
    """It does not: what is heard only says that there is something to read."""


class Told(msgspec.Struct, frozen=True, gc=False):
    """One message of the feed."""

    sequence: int
    """In the stream; 0: not known."""
    position: int
    previous: int
    """The position that was told before of this host; 0: none."""
    part: int
    """0 to `parts` - 1: an event of several devices is told once for each."""
    parts: int
    wanted: bool
    """Whether it is to be given, or only shows what was heard."""
    message: Any


class Hearing:
    """What one reader has heard. It is given each position once, in order."""

    def __init__(self, chain: Chain, position: int) -> None:
        """`position`: what stands up to here is not to be given."""
        self.position = position
        """The last one that was heard or read."""
        self.after = 0
        """All of the stream up to this sequence was read, or does not matter."""
        self.needs_look = True
        """The stream must be read from behind `after`."""
        self._chain = chain
        self._given = position
        self._part = -1
        self._is_whole = True
        """All parts of the event at `position` were heard."""
        self._early: list[tuple[int, int, int, Told]] = []
        """Heard, but something may be missing before it; a heap by position and part."""
        self._heard = 0
        self._dropped_to = 0
        """Up to this sequence something came and was not taken."""
        self._ready: deque[Told] = deque()

    @property
    def missing_from(self) -> int:
        """From this position on, something may be missing that was neither heard nor read."""
        return self.position + self._is_whole

    def take(self) -> Told | None:
        """The next one to be given, if there is one."""
        return self._ready.popleft() if self._ready else None

    def hear(self, told: Told) -> None:
        """Something came live."""
        if self._chain is Chain.NONE or len(self._ready) + len(self._early) >= limits.FEED_WAITING_MAX:
            # What is dropped here is read from the stream when there is room again.
            self._dropped_to = max(self._dropped_to, told.sequence)
            self.needs_look = self.needs_look or self._dropped_to > self.after
        elif not self.needs_look and self._follows(told):
            self._know(told)
        else:
            # Once in doubt, only the stream itself settles it.
            self.needs_look = True
            self._heard += 1
            heapq.heappush(self._early, (told.position, told.part, self._heard, told))

    def read(self, batch: list[Told], *, end: int, is_end: bool) -> None:
        """The stream was read from behind `after`, and up to sequence `end` has nothing else for us. `is_end`: nor had
        it behind that, then.
        """
        for told in batch:
            self._know(told)
        self.after = max(self.after, end)
        self._is_whole = self._is_whole or (is_end and not batch)
        self._early = [each for each in self._early if self._may_be_news(each[3])]
        heapq.heapify(self._early)
        while self._early and self._follows(self._early[0][3]):
            self._know(heapq.heappop(self._early)[3])
        self.needs_look = not is_end or bool(self._early) or self._dropped_to > self.after

    def heal(self, told: Told) -> None:
        """What the stream has lost was read from the ledger instead: in order, from `missing_from` on."""
        self._know(told)

    def begin_again(self, after: int) -> None:
        """The stream is another one, or was told anew: it is to be read from behind sequence `after`."""
        self.after, self.needs_look, self._dropped_to = after, True, 0
        self._early.clear()

    def _may_be_news(self, told: Told) -> bool:
        return told.sequence > self.after or (not told.sequence and told.position > self.position)

    def _follows(self, told: Told) -> bool:
        """Whether nothing can be missing between what is known and this."""
        if told.position < self.position:
            return True
        if self._chain is Chain.STREAM:
            is_known = told.position == self.position and told.sequence <= self.after
            return is_known or told.sequence == self.after + 1
        if told.position == self.position:
            return self._is_whole or told.part <= self._part + 1
        # A part that is not the first may follow one of another host, or one that was lost.
        is_next = told.previous < self.position or (told.previous == self.position and self._is_whole)
        return told.part == 0 and is_next

    def _know(self, told: Told) -> None:
        if self._chain is Chain.HOST or told.sequence == self.after + 1:
            self.after = max(self.after, told.sequence)
        if told.position < self.position:
            return
        if told.position > self.position:
            self.position, self._part, self._is_whole = told.position, -1, False
        self._part = max(self._part, told.part)
        self._is_whole = self._is_whole or self._part == told.parts - 1
        if told.wanted and told.position > self._given:
            self._given = told.position
            self._ready.append(told)
