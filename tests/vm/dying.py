"""Leasehold that kills itself (SIGKILL) before it writes to a file of sysfs: `dying.py FILE run binder …`.

What `FILE` says then is how the path of that file of sysfs ends, like `drivers_probe` or `e1000e/bind`; nothing: it
lives. So a run is killed in the same place each time, whatever the machine does besides.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from leasehold.services.cli import main


def _die_as_told(told: Path) -> None:
    def look(event: str, values: tuple[Any, ...]) -> None:
        if event != "open":
            return
        path, _mode, flags = values
        if not (isinstance(path, str) and path.startswith("/sys/") and isinstance(flags, int)):
            return
        if flags & (os.O_WRONLY | os.O_RDWR) and (name := told.read_text().strip()) and path.endswith(f"/{name}"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    _die_as_told(Path(sys.argv.pop(1)))
    main()
