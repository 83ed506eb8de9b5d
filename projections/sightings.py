"""How differences came to be known: what was said of a device, kept until a look has seen what came of it.

The kernel's and udevd's words only make an agent look. What a look finds is told with the words that were heard of
that device, or else of what is above it: a stick's interfaces go with the stick. Words that are heard while a look is
under way may be about what it saw, or about what came after; they stay for the next look unless they fit.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.capabilities import Net
from leasehold.events.devices import DeviceDescription, Sighting, same_thing
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture

LOST: Final = frozenset({"remove", "unbind", "offline", "link_down"})
BACK: Final = frozenset({"add", "bind", "online", "link_up"})
PLACES_MAX: Final = limits.DEVICES_PER_HOST_MAX
"""Of so many places words are kept between two looks; what happens elsewhere is seen all the same."""
GONE_MAX: Final = 1_024
"""Of so many devices that went it is known where they were: one that comes and goes between two looks is counted."""
OWED_MAX: Final = 1_024
_LATE_NS: Final = limits.RESCAN_MS * 1_000_000


class Told(msgspec.Struct, frozen=True, gc=False):
    """What was said of one place."""

    actions: tuple[str, ...]
    """The first ones, in order."""
    source: str
    """Who said the first of them: `kernel` or `udev`."""
    heard_at_ns: int
    losses: int = 0
    """How often it went away, or lost its driver or link, going by these words."""
    first: str = ""
    """The first word about that it was lost, or back; empty: there was none."""
    last: str = ""
    """The last one."""

    def then(self, later: "Told") -> "Told":
        """This, and what was said after it."""
        again = self.last in LOST and later.first in LOST
        return Told(
            (*self.actions, *later.actions)[: limits.ACTIONS_TOLD_MAX],
            self.source,
            self.heard_at_ns,
            self.losses + later.losses - again,
            self.first or later.first,
            later.last or self.last,
        )


def _is_lost(device: DeviceDescription | None, word: str) -> bool:
    if device is None:
        return True
    match word:
        case "bind" | "unbind":
            return not device.driver
        case "link_up" | "link_down":
            return not is_up(device)
    return False


def told(action: str, source: str, heard_at_ns: int) -> Told:
    """One word."""
    turn = action if action in LOST or action in BACK else ""
    return Told((action,), source, heard_at_ns, int(action in LOST), turn, turn)


def is_up(device: DeviceDescription) -> bool:
    """Whether it is a network interface whose link is up, as far as it tells."""
    return isinstance(device.capability, Net) and device.capability.link_state in ("up", "unknown")


def is_loss(before: DeviceDescription | None, after: DeviceDescription | None) -> bool:
    """Whether it went, or lost its driver or its link."""
    if before is None or after is None:
        return before is not None
    return bool(before.driver and before.driver != after.driver) or (is_up(before) and not is_up(after))


def link_place(interface: str) -> str:
    """Where words about a network link are kept: they name the interface and not its path."""
    return f"link {interface}"


def note(words: dict[str, Told], place: str, word: Told) -> None:
    """Add to the words of a place."""
    before = words.get(place)
    if before is not None:
        words[place] = before.then(word)
    elif len(words) < PLACES_MAX:
        words[place] = word


class _Heard:
    """What was heard in some time."""

    def __init__(self) -> None:
        self.words: dict[str, Told] = {}
        self.first_ns = 0
        self.lost_events = False


class Sightings:
    """What was heard since the last look, and while one is under way."""

    def __init__(self) -> None:
        self._heard = _Heard()
        self._meanwhile = _Heard()
        self._is_looking = False
        self._gone: dict[str, DeviceKey] = {}
        """By path: what went last."""
        self._owed: dict[DeviceKey, tuple[int, int]] = {}
        """Losses that were seen and not yet said, and since when (ns)."""
        self._lost: dict[str, bool] = {}
        """Places of which it was said last that something was lost."""

    def hear(self, words: Mapping[str, Told], *, at_ns: int = 0, lost_events: bool = False) -> None:
        """Keep what was heard. `at_ns`: when the first of it was, 0 if nothing was; `lost_events`: there was more."""
        heard = self._meanwhile if self._is_looking else self._heard
        for place, word in words.items():
            note(heard.words, place, word)
        heard.first_ns = heard.first_ns or at_ns
        heard.lost_events |= lost_events

    def look_begins(self) -> None:
        """What has been heard so far has happened before the look."""
        self._is_looking = True

    def look_ends(self, before: Picture, after: Picture) -> "Seen":
        """How it was learnt what differs between this look and the one before; what explains it is used up."""
        heard = self._heard
        why = "lost_events" if heard.lost_events else "event" if heard.first_ns else "clock"
        otherwise = Sighting(why=why, heard_at_ns=heard.first_ns)
        hows: dict[DeviceKey, Sighting] = {}
        self._forget_owed(heard)
        for key in sorted({*before, *after}):
            was, now = before.get(key), after.get(key)
            if was != now:
                hows[key] = self._explained(otherwise, key, was, now)
                self._remember_gone(key, was, now)
        turned = {place for place, word in heard.words.items() if word.first}
        for key, device in after.items() if turned else ():
            if key not in hows and any(place in turned for place in _places_of(device)):
                how = self._explained(otherwise, key, device, device)
                if how.flaps:
                    hows[key] = how
        for path, key in self._gone.items() if turned else ():
            if key not in hows and path in turned:
                # It may have come and gone between two looks.
                word = self._words(path, None)
                flaps = self._flaps(key, word, None, None)
                if word is not None and flaps:
                    hows[key] = _sighting(otherwise, [word], flaps)
        self._heard, self._meanwhile = self._meanwhile, _Heard()
        self._is_looking = False
        return Seen(hows, otherwise)

    def _explained(
        self,
        otherwise: Sighting,
        key: DeviceKey,
        before: DeviceDescription | None,
        after: DeviceDescription | None,
    ) -> Sighting:
        """The words about a device, and how many losses there were of which the difference does not tell."""
        both = [device for device in (before, after) if device is not None]
        places = dict.fromkeys(place for device in both for place in _places_of(device))
        words = [word for place in places if (word := self._words(place, after)) is not None]
        most = max(words, key=lambda word: word.losses, default=None)
        flaps = self._flaps(key, most, before, after)
        if not words:
            above = self._words_above(next(iter(places)))
            words = [above] if above is not None else []
        return _sighting(otherwise, words, flaps)

    def _flaps(
        self, key: DeviceKey, word: Told | None, before: DeviceDescription | None, after: DeviceDescription | None
    ) -> int:
        """How often it was lost without a difference that shows it.

        What is seen before it is said is remembered, so that its words count for nothing when they come.
        """
        owed = self._owed.pop(key, (0, 0))[0] + (is_loss(before, after) or _is_another(before, after))
        owed -= word.losses if word is not None else 0
        if owed > 0 and len(self._owed) < OWED_MAX:
            self._owed[key] = owed, self._heard.first_ns
        return max(0, -owed)

    def _forget_owed(self, heard: _Heard) -> None:
        """Words that are to come do so soon, and not after events were lost."""
        oldest_ns = heard.first_ns - _LATE_NS
        is_over = heard.lost_events or not heard.first_ns
        self._owed = {} if is_over else {key: owed for key, owed in self._owed.items() if owed[1] >= oldest_ns}

    def _remember_gone(self, key: DeviceKey, before: DeviceDescription | None, after: DeviceDescription | None) -> None:
        if before is not None:
            self._gone.pop(before.sysfs_path, None)
        if after is not None:
            self._gone.pop(after.sysfs_path, None)
        elif before is not None:
            if len(self._gone) >= GONE_MAX:
                del self._gone[next(iter(self._gone))]
            self._gone[before.sysfs_path] = key

    def _words(self, place: str, after: DeviceDescription | None) -> Told | None:
        """What was said of a place before the look, and meanwhile as far as the look has seen that."""
        word, later = self._heard.words.get(place), self._meanwhile.words.get(place)
        if later is not None and _fits(later, after):
            del self._meanwhile.words[place]
            word = later if word is None else word.then(later)
        if word is None or not word.last:
            return word
        was_lost = self._lost.pop(place, False)
        if word.last in LOST and len(self._lost) < OWED_MAX:
            self._lost[place] = True
        if was_lost and word.first in LOST:
            # A device loses its driver before it goes: that is one loss, also when a look came between the two.
            return msgspec.structs.replace(word, losses=word.losses - 1)
        return word

    def _words_above(self, path: str) -> Told | None:
        while len(path) > 1 and path.startswith("/"):
            path = path.rpartition("/")[0]
            word = self._heard.words.get(path) or self._meanwhile.words.get(path)
            if word is not None:
                return word
        return None


class Seen(msgspec.Struct, frozen=True):
    """How it was learnt what a look has found."""

    hows: dict[DeviceKey, Sighting]
    """Of each device that differs from the look before, and of those that flapped without leaving a difference."""
    otherwise: Sighting
    """Of all else."""


def joined(first: Sighting, then: Sighting) -> Sighting:
    """Two differences told as one; their flaps are for the caller to count."""
    return msgspec.structs.replace(
        first,
        source=first.source or then.source,
        actions=(*first.actions, *then.actions)[: limits.ACTIONS_TOLD_MAX],
        heard_at_ns=first.heard_at_ns or then.heard_at_ns,
    )


def _sighting(otherwise: Sighting, words: list[Told], flaps: int) -> Sighting:
    """`words`: of the device itself before those of its link."""
    if not words:
        return msgspec.structs.replace(otherwise, flaps=flaps)
    in_order = sorted(words, key=lambda word: word.heard_at_ns)
    return Sighting(
        # What was spoken of while the clock made it look was told all the same.
        why="event" if otherwise.why == "clock" else otherwise.why,
        source=words[0].source,
        actions=tuple(action for word in in_order for action in word.actions)[: limits.ACTIONS_TOLD_MAX],
        flaps=flaps,
        heard_at_ns=in_order[0].heard_at_ns,
    )


def _places_of(device: DeviceDescription) -> Iterator[str]:
    yield device.sysfs_path
    if device.kind == "net":
        yield link_place(device.sysfs_path.rpartition("/")[2])


def _fits(word: Told, after: DeviceDescription | None) -> bool:
    """Whether a device that was seen so has been through what was said of it."""
    return not word.last or (word.last in LOST) == _is_lost(after, word.last)


def _is_another(before: DeviceDescription | None, after: DeviceDescription | None) -> bool:
    """Whether another thing, or another driver, is there now: it was lost, and is not any more."""
    if before is None or after is None:
        return False
    has_another_driver = bool(before.driver and after.driver and before.driver != after.driver)
    return has_another_driver or not same_thing(before, before.serial, after)
