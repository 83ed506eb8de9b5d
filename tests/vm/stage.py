"""What every scenario stands on: the guest, Leasehold around it, and the measuring of one change."""

import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

from leasehold.events.event_types import (
    DeviceAppeared,
    DeviceChanged,
    DeviceMissing,
    DeviceReappeared,
    DeviceReplaced,
)
from tests.vm.figures import Delay, Figures
from tests.vm.guest import Guest, Uevent
from tests.vm.watched import Heard, Watched

CAME: Final = (DeviceAppeared, DeviceReappeared, DeviceReplaced)
NS_PER_MS: Final = 1_000_000

Kind = TypeVar("Kind")


class Change(NamedTuple):
    """One change, as the kernel told it and as it came into the ledger."""

    uevent: Uevent
    heard: Heard


class Stage:
    """Given to each scenario."""

    def __init__(self, guest: Guest, watched: Watched, figures: Figures) -> None:
        self.guest = guest
        self.watched = watched
        self.figures = figures
        self.scenario = ""
        self.is_hung = False
        """Whether nobody inside answers any more: no process, however wrong, does that."""
        self.is_lost = False
        """Whether no other scenario can be played in this guest."""

    def show(self, sentence: str) -> None:
        """Say what was shown."""
        self.figures.shown.append((self.scenario, sentence))
        print(f"    {sentence}", flush=True)

    def marks(self) -> tuple[int, int]:
        """How many uevents and how many events of the ledger there are so far."""
        return len(self.guest.uevents), len(self.watched.heard)

    async def change(
        self,
        what: str,
        do: Callable[[], Awaitable[object]],
        told: Callable[[Uevent], bool],
        wanted: Callable[[Heard], bool],
    ) -> Change:
        """Have something change; wait until the kernel has told it and until it is in the ledger, and keep the delays.

        Args:
            what: its row in the table; empty: the delays are not kept.
            told: whether an event of the kernel tells of it.
            wanted: whether an event of the ledger does.
        """
        uevents, events = self.marks()
        asked_ns = time.time_ns()
        await do()
        uevent = await self.guest.uevent(lambda each: each.source == "kernel" and told(each), since=uevents)
        heard = await self.watched.event(wanted, what or repr(uevent), since=events)
        told_ns = self.guest.ours_ns(uevent.at_ns)
        if what:
            source = heard.how.source if heard.how else ""
            udevd_ms = (self._told_by_udevd_ns(uevent, uevents) - uevent.at_ns) / NS_PER_MS
            delay = Delay((told_ns - asked_ns) / NS_PER_MS, (heard.at_ns - told_ns) / NS_PER_MS, udevd_ms)
            self.figures.delay(what, source or "clock", delay)
        return Change(uevent, heard)

    def _told_by_udevd_ns(self, uevent: Uevent, since: int) -> int:
        """When udevd told the same event, by the guest's clock; before it, if it has not."""
        number = uevent.values.get("SEQNUM", "")
        for each in self.guest.uevents[since:]:
            if each.source == "udev" and each.values.get("SEQNUM") == number:
                return each.at_ns
        return uevent.at_ns - NS_PER_MS


def uevent_of(action: str, subsystem: str, name: str) -> Callable[[Uevent], bool]:
    """Whether a uevent tells this of the device whose path ends in `name`."""
    return lambda each: each.action == action and each.subsystem == subsystem and each.path.endswith(f"/{name}")


def came(name: str, kind: str = "") -> Callable[[Heard], bool]:
    """Whether a device whose sysfs path ends in `name` (and is of a kind) is now there."""

    def wanted(each: Heard) -> bool:
        device = each.device
        is_it = device is not None and device.sysfs_path.endswith(f"/{name}") and kind in ("", device.kind)
        return is_it and isinstance(each.event, CAME)

    return wanted


def went(key: str) -> Callable[[Heard], bool]:
    """Whether the device is missing now."""
    return lambda each: isinstance(each.event, DeviceMissing) and each.key == key


def became(key: str, **fields: object) -> Callable[[Heard], bool]:
    """Whether the device's description has changed to have these values."""

    def wanted(each: Heard) -> bool:
        device = each.device
        if not isinstance(each.event, DeviceChanged) or device is None or each.key != key:
            return False
        return all(getattr(device, name) == value for name, value in fields.items())

    return wanted


def kinds_of(heard: list[Heard], kind: type[Kind]) -> list[Kind]:
    """The events of one type."""
    return [each.event for each in heard if isinstance(each.event, kind)]
