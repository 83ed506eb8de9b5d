"""What a feed keeps of its fold: two files, so that it need not begin with the first record at each start.

Nothing depends on them. The older one is there for an EVENTS that has lost its end: the newer may lie behind it.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

from leasehold.events.errors import CorruptSnapshotError
from leasehold.projections.feeding import Feeding
from leasehold.projections.feedsnapshots import decode_feeding
from leasehold.services.home import write_private

_log: Final = logging.getLogger(__name__)


class FeedFiles:
    """The files of one feed: `<path>` and `<path>-before`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f"{path.name}-before")
        self._complaint = ""

    def load(self) -> list[Feeding]:
        """The folds that are there, the newest first; what is damaged is passed over with a warning."""
        found = []
        for path in (self._path, self._before):
            try:
                fold = _read(path)
            except FileNotFoundError:
                continue
            except (OSError, CorruptSnapshotError) as error:
                _log.warning("%s is of no use and is made anew: %s", path, error)
                continue
            if fold is not None:
                found.append(fold)
        return found

    def save(self, body: bytes) -> None:
        """Keep an encoded fold, and the one before. A disk that does not take it is complained of, once."""
        try:
            if self._path.exists():
                os.replace(self._path, self._before)
            write_private(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            self._complaint = ""
        except OSError as error:
            if str(error) != self._complaint:
                _log.error("the feed's fold is not kept: %s", error)
            self._complaint = str(error)

    def clear(self) -> None:
        """Forget both."""
        for path in (self._path, self._before):
            path.unlink(missing_ok=True)


def _read(path: Path) -> Feeding | None:
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CorruptSnapshotError("it is not what was written: its hash differs")
    return decode_feeding(body)
