"""Small disks, to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.not_run import not_run


@contextmanager
def small_disk_at(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of that size of its own at `folder`; the test says NOT RUN where none can be mounted."""
    if os.geteuid():
        not_run("mounting a small disk needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "leasehold-test", str(folder)],
        check=False, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        not_run(f"a small disk cannot be mounted: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
