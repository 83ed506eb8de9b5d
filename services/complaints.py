"""Complaints in the log, so many and no more: a flood of garbage must not fill the disk, nor push out what matters."""

import logging
import time
from collections.abc import Callable
from typing import Final

WINDOW_S: Final = 10.0
LINES_PER_WINDOW: Final = 10


class Complaints:
    """Warnings of one kind: ten in ten seconds are told; of the others, how many there were."""

    def __init__(self, log: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`what` names them in the plural; `clock` tells seconds."""
        self.count = 0
        """All of them, told or not."""
        self._log = log
        self._what = what
        self._clock = clock
        self._since_s = clock()
        self._told = 0
        self._untold = 0

    def tell(self, text: str, *values: object) -> None:
        """One more; the text is only made if it is told."""
        self.count += 1
        now_s = self._clock()
        if now_s - self._since_s > WINDOW_S:
            if self._untold:
                self._log.warning("%d more %s", self._untold, self._what)
            self._since_s, self._told, self._untold = now_s, 0, 0
        if self._told < LINES_PER_WINDOW:
            self._told += 1
            self._log.warning(text, *values)
        else:
            self._untold += 1


def printable(text: str) -> str:
    """The beginning of a text from outside, in plain letters, for a line of the log."""
    return ascii(text[:120])
