"""Leasehold with a small buffer for uevents, so that a flood of them overruns it: `small_buffer.py run watcher …`.

The buffer that libudev makes takes some 300,000 events.
"""

from typing import Any, Final

import pyudev

from leasehold.services.cli import main

BUFFER_BYTES: Final = 128 * 1024
_start: Final = pyudev.Monitor.start


def _start_small(monitor: Any) -> None:
    _start(monitor)
    monitor.set_receive_buffer_size(BUFFER_BYTES)


if __name__ == "__main__":
    pyudev.Monitor.start = _start_small
    main()
