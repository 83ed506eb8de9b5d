"""What is read of a device once and then kept, because reading it would wake the device, or takes long."""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from leasehold.services.watcher.sysfs import read_bytes

ENTRIES_MAX: Final = 16_384
_NOT_ASKED: Final = object()
"""The mark of what was not asked in this process: no other is like it."""
AWAKE: Final = (b"", b"active", b"unsupported")
"""What `runtime_status` says of a device that does not sleep; empty: of one that cannot."""

T = TypeVar("T")


class Kept(Generic[T]):
    """Values of devices, each as long as the device is the same and what it hangs on is the same."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, T]] = {}

    def of(self, device: Hashable, folder: str, read: Callable[[], T], unknown: T, mark: Hashable = None) -> T:
        """The value of a device. One that sleeps is not asked: what it has told before stands, else `unknown`.

        Args:
            device: what is no more the same once another device has its place.
            folder: where in sysfs it says whether it sleeps.
            read: asks it.
            unknown: what is said until it is asked: what an earlier process was told, perhaps. Only the first counts.
            mark: once it differs, the device is asked again.
        """
        before = self._known.get(device)
        if before is not None and before[0] == mark:
            return before[1]
        if is_awake(folder):
            return self._keep(device, mark, read())
        return before[1] if before is not None else self._keep(device, _NOT_ASKED, unknown)

    def _keep(self, device: Hashable, mark: Hashable, value: T) -> T:
        self._known.pop(device, None)
        if len(self._known) >= ENTRIES_MAX:
            del self._known[next(iter(self._known))]
        self._known[device] = (mark, value)
        return value


def is_awake(folder: str) -> bool:
    """Whether a device can be asked without waking it."""
    return read_bytes(f"{folder}/power/runtime_status").strip() in AWAKE
