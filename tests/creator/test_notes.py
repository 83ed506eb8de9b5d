"""What the creator has begun, on disk."""

import os
from pathlib import Path

import pytest

from leasehold.events import limits
from leasehold.events.errors import StorageError, StoreInUseError
from leasehold.services.creator.notes import Begun, Notes


def opened(path: Path) -> Notes:
    notes = Notes(path)
    notes.open()
    return notes


def test_what_was_begun_is_known_to_the_next_run(tmp_path: Path) -> None:
    """What was noted is there after the process was killed; what was forgotten is not; numbers alone are not enough."""
    path = tmp_path / "creator.json"
    first = opened(path)
    first.begin(Begun(256, 1))
    first.begin(Begun(512, 2))
    first.keep_only({Begun(512, 2), Begun(1024, 4)})
    first.close()
    second = opened(path)
    assert second.has(Begun(512, 2))
    assert not any(second.has(each) for each in (Begun(256, 1), Begun(1024, 4), Begun(512, 3)))
    second.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_creator_at_a_time(tmp_path: Path) -> None:
    """A second creator with the same notes ends at once, and says why; they are free again when the first has ended."""
    first = opened(tmp_path / "creator.json")
    with pytest.raises(StoreInUseError):
        opened(tmp_path / "creator.json")
    first.close()
    opened(tmp_path / "creator.json").close()


def test_notes_that_cannot_be_read(tmp_path: Path) -> None:
    """Notes that hold something else, or a folder that is not there, are told, and nothing is begun without them."""
    (tmp_path / "creator.json").write_text("{")
    with pytest.raises(StorageError):
        opened(tmp_path / "creator.json")
    with pytest.raises(StorageError):
        opened(tmp_path / "absent" / "creator.json")
    assert not os.path.exists(tmp_path / "absent")


def test_notes_do_not_grow(tmp_path: Path) -> None:
    """As many are kept as the log keeps orders of a host, the newest ones."""
    notes = opened(tmp_path / "creator.json")
    for number in range(limits.ORDERS_KEPT_PER_HOST_MAX + 5):
        notes.begin(Begun(number, 1))
    assert not notes.has(Begun(4, 1)) and notes.has(Begun(5, 1))
    notes.close()
