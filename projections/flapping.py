"""Devices that keep going and coming: told now and then, with how often, and not each time.

All is told at once, until a device has been lost (it went, or lost its driver or its link) more often than
`FLAP_LOSSES_MAX` within `FLAP_WINDOW_MS`. From then on it is told as it was told last, and as it is only every
`FLAP_HOLD_MS`, with the number of losses that were not told one by one. Three things never wait: that a device is gone
(somebody may hold a lease of it), that another thing is in its place, and what it is protected for or used by.

Time is an argument, on a clock that does not go back.
"""

from collections import deque
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.devices import DeviceDescription, Sighting, same_thing
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture
from leasehold.projections.sightings import Seen, is_loss, joined

TRACKED_MAX: Final = limits.DEVICES_PER_HOST_MAX
"""Of more devices that are lost within the window, the others are told each time."""
_WINDOW_NS: Final = limits.FLAP_WINDOW_MS * 1_000_000
_HOLD_NS: Final = limits.FLAP_HOLD_MS * 1_000_000


class Steadied(msgspec.Struct, frozen=True):
    """What to tell of a look."""

    picture: Picture
    """As it is seen, but for devices that are told later."""
    hows: dict[DeviceKey, Sighting]
    """Of what differs from what was told."""
    flapped: dict[DeviceKey, Sighting]
    """Of what flapped and is as it was told last."""


class _Row:
    """A device that was lost not long ago."""

    def __init__(self) -> None:
        self.last: deque[int] = deque(maxlen=limits.FLAP_LOSSES_MAX + 1)
        """When it was."""
        self.untold = 0
        """Losses that were not told yet."""
        self.how: Sighting | None = None
        """Of what was not told yet; none if all was."""
        self.told_ns = -_HOLD_NS

    def is_flapping(self, now_ns: int) -> bool:
        """Whether it was lost too often within the window."""
        return len(self.last) > limits.FLAP_LOSSES_MAX and now_ns - self.last[0] <= _WINDOW_NS

    def is_over(self, now_ns: int) -> bool:
        """Whether all of it has been told, and is long past."""
        return self.how is None and now_ns - self.last[-1] > _WINDOW_NS


class Flapping:
    """What is remembered of the devices of one host that were lost not long ago."""

    def __init__(self) -> None:
        self._rows: dict[DeviceKey, _Row] = {}

    def due_ns(self) -> int | None:
        """When the next device must be told; none if nothing waits."""
        return min((row.told_ns + _HOLD_NS for row in self._rows.values() if row.how is not None), default=None)

    def steady(
        self, told: Picture, before: Picture, after: Picture, seen: Seen, now_ns: int, *, hold: bool = True
    ) -> Steadied:
        """What to tell of a look.

        Args:
            told: what was told last.
            before: the look before.
            after: this look.
            seen: how the difference between the two was learnt.
            now_ns: on a clock that does not go back.
            hold: whether anything may wait.
        """
        found = Steadied(dict(after), {}, {})
        for key in sorted(seen.hows):
            self._note(key, before.get(key), after.get(key), seen.hows[key], now_ns)
            if key not in self._rows:
                found.hows[key] = seen.hows[key]
        for key in sorted(self._rows):
            row = self._rows[key]
            was_told, now = told.get(key), after.get(key)
            if row.is_over(now_ns):
                del self._rows[key]
            elif row.how is None:
                continue
            elif hold and row.is_flapping(now_ns) and now_ns < row.told_ns + _HOLD_NS and _can_wait(was_told, now):
                _put(found.picture, key, was_told)
            else:
                _tell(found, key, row, was_told, now)
                row.told_ns = now_ns
        return found

    def _note(
        self,
        key: DeviceKey,
        before: DeviceDescription | None,
        after: DeviceDescription | None,
        how: Sighting,
        now_ns: int,
    ) -> None:
        row = self._rows.get(key)
        losses = how.flaps + is_loss(before, after)
        if row is None:
            if not losses or len(self._rows) >= TRACKED_MAX:
                return
            row = self._rows[key] = _Row()
        row.last.extend([now_ns] * min(losses, limits.FLAP_LOSSES_MAX + 1))
        row.untold += losses
        row.how = how if row.how is None else joined(row.how, how)


def _tell(
    found: Steadied, key: DeviceKey, row: _Row, was_told: DeviceDescription | None, now: DeviceDescription | None
) -> None:
    assert row.how is not None
    differs = was_told != now
    flaps = row.untold - (differs and is_loss(was_told, now))
    how = msgspec.structs.replace(row.how, flaps=flaps)
    if differs:
        found.hows[key] = how
    elif flaps:
        found.flapped[key] = how
    row.how, row.untold = None, 0


def _put(picture: Picture, key: DeviceKey, device: DeviceDescription | None) -> None:
    if device is None:
        picture.pop(key, None)
    else:
        picture[key] = device


def _can_wait(told: DeviceDescription | None, now: DeviceDescription | None) -> bool:
    if told is None or now is None:
        return told is None
    is_as_needed = (told.protections, told.in_use_by) == (now.protections, now.in_use_by)
    return is_as_needed and same_thing(told, told.serial, now)
