"""How differences came to be known: what was said of a device, kept until a look has seen what came of it.

The kernel's and udevd's words only make an agent look. What a look finds is told with the words that were heard of
that device, or else of what is above it: a stick's interfaces go with the stick. Words that are heard while a look is
under way may be about what it saw, or about what came after; they stay for the next look unless they fit.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.devices import DeviceDescription, Sighting, same_thing
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture

LOST: Final = frozenset({"remove", "unbind", "offline", "link_down"})
BACK: Final = frozenset({"add", "bind", "online", "link_up"})
PLACES_MAX: Final = limits.DEVICES_PER_HOST_MAX
"""Of so many places words are kept between two looks; what happens elsewhere is seen all the same."""


class Told(msgspec.Struct, frozen=True, gc=False):
    """What was said of one place."""

    actions: tuple[str, ...]
    """The first ones, in order."""
    source: str
    """Who said the first of them: `kernel` or `udev`."""
    heard_at_ns: int
    losses: int = 0
    """How often it went away, or lost its driver or link."""
    is_lost: bool = False
    """It has not come back since."""

    @property
    def returns(self) -> int:
        """How often it was lost and came back."""
        return self.losses - self.is_lost

    def then(self, later: "Told") -> "Told":
        """This, and what was said after it."""
        again = self.is_lost and later.actions[0] in LOST
        stays = self.is_lost and not any(action in BACK for action in later.actions)
        return Told(
            (*self.actions, *later.actions)[: limits.ACTIONS_TOLD_MAX],
            self.source,
            self.heard_at_ns,
            self.losses + later.losses - again,
            later.is_lost or stays,
        )


def told(action: str, source: str, heard_at_ns: int) -> Told:
    """One word."""
    return Told((action,), source, heard_at_ns, int(action in LOST), action in LOST)


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
        for key in sorted({*before, *after}):
            was, now = before.get(key), after.get(key)
            if was != now:
                hows[key] = self._explained(otherwise, was, now)
        for key, words in self._returned(after):
            if key not in hows:
                hows[key] = _sighting(otherwise, words, max(word.returns for word in words))
        self._heard, self._meanwhile = self._meanwhile, _Heard()
        self._is_looking = False
        return Seen(hows, otherwise)

    def _explained(
        self, otherwise: Sighting, before: DeviceDescription | None, after: DeviceDescription | None
    ) -> Sighting:
        """The words about a device that differs, of which only so many are flaps as the difference does not show."""
        both = [device for device in (before, after) if device is not None]
        places = dict.fromkeys(place for device in both for place in _places_of(device))
        words = [word for place in places if (word := self._words(place, after)) is not None]
        if not words:
            above = self._words_above(next(iter(places)))
            return _sighting(otherwise, [above] if above is not None else [], 0)
        returns = max(word.returns - (before is None and word.actions[0] in LOST) for word in words)
        return _sighting(otherwise, words, max(0, returns - _is_another(before, after)))

    def _words(self, place: str, after: DeviceDescription | None) -> Told | None:
        """What was said of a place before the look, and meanwhile as far as the look has seen that."""
        word, later = self._heard.words.get(place), self._meanwhile.words.get(place)
        if later is None or not _fits(later, after):
            return word
        del self._meanwhile.words[place]
        return later if word is None else word.then(later)

    def _words_above(self, path: str) -> Told | None:
        while len(path) > 1 and path.startswith("/"):
            path = path.rpartition("/")[0]
            word = self._heard.words.get(path) or self._meanwhile.words.get(path)
            if word is not None:
                return word
        return None

    def _returned(self, after: Picture) -> Iterator[tuple[DeviceKey, list[Told]]]:
        """Devices that were lost and came back, whether or not that left a difference."""
        returned = {place: word for place, word in self._heard.words.items() if word.returns}
        if returned:
            for key, device in after.items():
                words = [returned[place] for place in _places_of(device) if place in returned]
                if words:
                    yield key, words


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
    found = otherwise
    for word in sorted(words, key=lambda each: each.heard_at_ns):
        told_of = Sighting(why=otherwise.why, source=word.source, actions=word.actions, heard_at_ns=word.heard_at_ns)
        found = told_of if found is otherwise else joined(found, told_of)
    return msgspec.structs.replace(found, flaps=flaps)


def _places_of(device: DeviceDescription) -> Iterator[str]:
    yield device.sysfs_path
    if device.kind == "net":
        yield link_place(device.sysfs_path.rpartition("/")[2])


def _fits(word: Told, after: DeviceDescription | None) -> bool:
    """Whether a device that was seen so has been through what was said of it."""
    for action in reversed(word.actions):
        match action:
            case "remove":
                return after is None
            case "add":
                return after is not None
            case "unbind":
                return after is None or not after.driver
            case "bind":
                return after is not None and bool(after.driver)
    return True


def _is_another(before: DeviceDescription | None, after: DeviceDescription | None) -> bool:
    """Whether the difference itself shows that something was lost: another thing, or another driver, is there now."""
    if before is None or after is None:
        return False
    has_another_driver = bool(before.driver and after.driver and before.driver != after.driver)
    return has_another_driver or not same_thing(before, before.serial, after)
