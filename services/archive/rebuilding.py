"""Having the read models built anew: whoever archives does it, or whoever asks for it when nobody does.

What is asked for stands as a file beside the segments, so it is done also if the process that was to do it is killed.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from leasehold.events.errors import StorageError
from leasehold.services.archive.writer import LOCK_FILE

MODELS_FILE: Final = "models.sqlite"
REBUILD_FILE: Final = "rebuild"


def is_asked(directory: Path) -> bool:
    """Whether the models of the archive in `directory` are to be built anew."""
    return (directory / REBUILD_FILE).exists()


def remove_if_asked(directory: Path) -> None:
    """Remove the models, if that is asked for. Nobody may have them open.

    Raises:
        StorageError: they cannot be removed.
    """
    if not is_asked(directory):
        return
    try:
        for path in directory.glob(f"{MODELS_FILE}*"):
            path.unlink(missing_ok=True)
        (directory / REBUILD_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the read models in {directory} cannot be removed ({error.strerror})") from error


def ask(directory: Path) -> bool:
    """Have the models built anew; `True` if a process is there that does it now, `False`: the next one will.

    Raises:
        StorageError: it cannot be asked for.
    """
    try:
        (directory / REBUILD_FILE).touch(mode=0o600)
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written to ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        remove_if_asked(directory)
        return False
    finally:
        os.close(lock)
