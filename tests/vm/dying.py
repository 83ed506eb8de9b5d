"""Leasehold that kills itself (SIGKILL) before it writes to a file of sysfs: `dying.py NAME run binder …`.

`NAME` is how the file's path ends, like `drivers_probe` or `usb-storage/unbind`. So a run is killed in the same place
each time, whatever the machine does besides.
"""

import os
import signal
import sys
from typing import Any

from leasehold.services.cli import main


def _die_before(name: str) -> None:
    def look(event: str, values: tuple[Any, ...]) -> None:
        if event != "open":
            return
        path, _mode, flags = values
        is_it = isinstance(path, str) and path.startswith("/sys/") and path.endswith(f"/{name}")
        if is_it and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


if __name__ == "__main__":
    _die_before(sys.argv.pop(1))
    main()
