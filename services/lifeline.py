"""No orphans: a child process ends when the process that started it does, however that ends."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


def tied_to_us() -> Callable[[], None]:
    """What a child must call between fork and exec (`preexec_fn`): the kernel then sends it SIGTERM when we end.

    The tie is to the thread that starts the child, so that must be the main one.
    """
    launcher = os.getpid()

    def tie() -> None:
        if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            os._exit(126)
        if os.getppid() != launcher:
            # It died before the kernel knew that we want to be told.
            os._exit(125)

    return tie
