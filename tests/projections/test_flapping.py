"""Devices that keep going and coming, and how it was learnt: on paper, against a plain model of what happened."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events import limits
from leasehold.events.capabilities import Net
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.identities import DeviceKey
from leasehold.projections import flapping, sightings
from leasehold.projections.flapping import Flapping, Steadied
from leasehold.projections.reporting import Picture
from leasehold.projections.sightings import Seen, Sightings, Told, link_place, note, told
from tests.projections.ledger import pci

MS: Final = 1_000_000
WINDOW_NS: Final = limits.FLAP_WINDOW_MS * MS
HOLD_NS: Final = limits.FLAP_HOLD_MS * MS
STICK, CARD, LINK = DeviceKey("pci/0000:01:00.0"), DeviceKey("pci/0000:02:00.0"), DeviceKey("virtual/net/br0")
STICK_THERE: Final = pci("01:00.0", driver="usb")
LINK_PATH: Final = "/sys/devices/virtual/net/br0"


def link(state: str) -> DeviceDescription:
    """A bridge whose link is so."""
    net = Net(interface="br0", link_state=state)
    return DeviceDescription(key=LINK, name="net_br0", kind="net", sysfs_path=LINK_PATH, capability=net)


class World:
    """One device that comes and goes, one that changes its driver, one whose link does; and a watcher of them."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.picture: Picture = {STICK: STICK_THERE, CARD: pci("02:00.0", driver="a"), LINK: link("up")}
        self.told: Picture = dict(self.picture)
        self.seen: Picture = dict(self.picture)
        self.words: list[tuple[str, Told]] = []
        """That were said and not heard yet."""
        self.sightings, self.flapping = Sightings(), Flapping()
        self.losses = dict.fromkeys(self.picture, 0)
        """Since the last look."""
        self.lost = dict.fromkeys(self.picture, 0)
        """Until the last look."""
        self.told_singly = dict.fromkeys(self.picture, 0)
        self.told_flaps = dict.fromkeys(self.picture, 0)
        self.tellings: list[tuple[int, DeviceKey]] = []
        self.lost_at: dict[DeviceKey, list[int]] = {key: [] for key in self.picture}

    def _say(self, place: str, *actions: str) -> None:
        for action in actions:
            self.words.append((place, told(action, "kernel", self.now_ns + 1)))

    def plug(self) -> None:
        """The first device goes, or comes."""
        path = STICK_THERE.sysfs_path
        if STICK in self.picture:
            del self.picture[STICK]
            self.losses[STICK] += 1
            self._say(path, "unbind", "remove")
        else:
            self.picture[STICK] = STICK_THERE
            self._say(path, "add", "change", "bind")

    def bind(self, driver: str) -> None:
        """The second device gets a driver, after it has lost the one it had."""
        before = self.picture[CARD]
        if before.driver:
            self.losses[CARD] += 1
            self._say(before.sysfs_path, "unbind")
        if driver:
            self._say(before.sysfs_path, "bind")
        self.picture[CARD] = msgspec.structs.replace(before, driver=driver)

    def pull(self) -> None:
        """The link goes down, or up."""
        net = self.picture[LINK].capability
        assert isinstance(net, Net)
        is_up = net.link_state == "up"
        self.losses[LINK] += is_up
        self.picture[LINK] = link("down" if is_up else "up")
        self._say(link_place("br0"), "link_down" if is_up else "link_up")

    def hear(self, count: int) -> None:
        """The first so many words arrive."""
        for place, word in self.words[:count]:
            self.sightings.hear({place: word}, at_ns=word.heard_at_ns)
        del self.words[:count]

    def look(self, late: int = 0, later: int = 0) -> Steadied:
        """What the watcher does when it is woken, and what can be counted of it.

        The last words come late: so many while it looks, and so many of those afterwards.
        """
        self.hear(max(0, len(self.words) - late))
        self.sightings.hear({}, at_ns=self.now_ns + 1)
        self.sightings.look_begins()
        self.hear(max(0, len(self.words) - later))
        before, self.seen = self.seen, dict(self.picture)
        seen = self.sightings.look_ends(before, self.seen)
        for key, losses in self.losses.items():
            self.lost[key] += losses
            self.lost_at[key] += [self.now_ns] * losses
        self.losses = dict.fromkeys(self.losses, 0)
        steadied = self.flapping.steady(self.told, before, self.seen, seen, self.now_ns)
        for key in self.losses:
            was, now = self.told.get(key), steadied.picture.get(key)
            if was != now:
                self.tellings.append((self.now_ns, key))
                self.told_singly[key] += _is_loss(was, now)
                self.told_flaps[key] += steadied.hows[key].flaps
            elif key in steadied.flapped:
                self.tellings.append((self.now_ns, key))
                self.told_flaps[key] += steadied.flapped[key].flaps
        self.told = steadied.picture
        return steadied


def _lost(device: DeviceDescription | None) -> bool:
    if device is None or (device.key == CARD and not device.driver):
        return True
    return isinstance(device.capability, Net) and device.capability.link_state != "up"


def _is_loss(was: DeviceDescription | None, now: DeviceDescription | None) -> bool:
    if was is None or now is None:
        return was is not None
    return (not _lost(was) and _lost(now)) or bool(was.driver and was.driver != now.driver)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["plug", "pull", "bind a", "bind b", "bind "]),
        st.sampled_from([0, 0, 20, 300, 2_000, 4_000, 15_000]),
        st.sampled_from([0, 0, 0, 1, 2, 3]),
        st.sampled_from([0, 0, 0, 1, 2]),
    ),
    max_size=60,
)
"""What happens; how many milliseconds later the next thing does, after 0 ms there was no look between them; how many of
the last words are heard while that look goes on; and how many of them only after it."""


def run(steps: Sequence[tuple[str, int] | tuple[str, int, int, int]]) -> World:
    """Let it happen; the watcher looks after each step, when it must tell something, and until all is told."""
    world = World()
    for name, pause_ms, *lateness in steps:
        verb, _, driver = name.partition(" ")
        if verb == "bind":
            world.bind(driver)
        else:
            getattr(world, verb)()
        end_ns = world.now_ns + pause_ms * MS
        if pause_ms:
            world.look(*lateness)
            looked(world)
        if pause_ms > 1_000:
            # What was said late has woken it again.
            world.now_ns += 500 * MS
            world.look()
            looked(world)
        while (due_ns := world.flapping.due_ns()) is not None and due_ns < end_ns:
            world.now_ns = due_ns
            world.look()
            looked(world)
        world.now_ns = end_ns
    world.look()
    while (due_ns := world.flapping.due_ns()) is not None:
        assert world.now_ns < due_ns <= world.now_ns + HOLD_NS
        world.now_ns = due_ns
        world.look()
    return world


def looked(world: World) -> None:
    """After each look: what is gone is told as gone, and what was lost seldom is told as it is."""
    for key in world.losses:
        if key not in world.picture:
            assert key not in world.told
        # What was said late is counted when it was heard.
        recent = [at for at in world.lost_at[key] if world.now_ns - at <= 3 * WINDOW_NS]
        if len(recent) <= limits.FLAP_LOSSES_MAX:
            assert world.told.get(key) == world.picture.get(key)


@given(STEPS)
def test_at_rest_all_is_told_and_every_loss_is_counted(steps: list[tuple[str, int, int, int]]) -> None:
    """The log comes to what is there within the bound, and what was lost is told one by one or as a number, once."""
    world = run(steps)
    assert world.told == world.picture
    sums = {key: world.told_singly[key] + world.told_flaps[key] for key in world.lost}
    assert sums == world.lost


@given(STEPS)
def test_what_keeps_flapping_is_told_seldom(steps: list[tuple[str, int, int, int]]) -> None:
    """Within a window at most the first losses, then one for each hold; each comes with a return or a change."""
    world = run(steps)
    calm = limits.FLAP_LOSSES_MAX + limits.FLAP_WINDOW_MS // limits.FLAP_HOLD_MS + 1
    for at, key in world.tellings:
        told_of = [each for each, other in world.tellings if other == key and at <= each <= at + WINDOW_NS]
        assert len(told_of) <= 2 * calm


def test_the_first_three_losses_are_told_and_then_how_it_is_every_three_seconds() -> None:
    """A driver that is lost and found every 200 ms for a minute: 6 tellings, then 20, with all losses in them."""
    world = run([("bind ", 100), ("bind a", 100)] * 300 + [("bind ", 100), ("bind b", 15_000)])
    assert world.lost[CARD] == 301
    assert [at // MS for at, _ in world.tellings[:8]] == [0, 100, 200, 300, 400, 500, 3_500, 6_500]
    assert len(world.tellings) == 6 + 20
    assert world.told_singly[CARD] + world.told_flaps[CARD] == 301
    assert world.told[CARD].driver == "b"


def test_what_goes_is_told_at_once_however_often() -> None:
    """Somebody may hold it: only that it is back waits."""
    world = run([("plug", 500)] * 41)
    assert STICK not in world.told
    # It goes at each full second, which `looked` finds told. When its return may be told it is gone again: then only
    # how often it came and went is.
    assert [at // MS for at, _ in world.tellings] == [0, 500, 1_000, 1_500, 2_000, 2_500, *range(3_000, 24_000, 3_000)]
    assert world.told_singly[STICK] + world.told_flaps[STICK] == 21


def test_another_thing_and_a_protection_do_not_wait() -> None:
    """Whatever else is going on with the device."""
    world = World()
    for number in range(7):
        world.bind("" if number % 2 == 0 else "a")
        world.look()
        world.now_ns += 50 * MS
    assert world.told[CARD] != world.picture[CARD]
    before = world.picture[CARD]
    for fields in ({"protections": ("mounted at /",)}, {"in_use_by": ("vm1",)}, {"product_id": "1572"}):
        world.picture[CARD] = msgspec.structs.replace(before, **fields)
        world.look()
        assert world.told[CARD] == world.picture[CARD]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More devices at once than can be followed are told each time; what is long past is forgotten."""
    monkeypatch.setattr(flapping, "TRACKED_MAX", 3)
    followed = Flapping()
    many = {device.key: device for device in (pci(f"{bus:02x}:00.0") for bus in range(5))}
    seen = Seen(dict.fromkeys(many, Sighting(why="event")), Sighting(why="event"))
    pictures: list[Picture] = [many, {}]
    told_last: Picture = {}
    for turn in range(10):
        before, after = pictures[(turn + 1) % 2], pictures[turn % 2]
        steadied = followed.steady(told_last, before, after, seen, turn)
        told_last = steadied.picture
    assert len(followed._rows) == 3
    assert told_last == {}
    followed.steady({}, {}, {}, Seen({}, Sighting(why="clock")), 20 * HOLD_NS)
    assert len(followed._rows) <= 3
    followed.steady({}, {}, {}, Seen({}, Sighting(why="clock")), 40 * HOLD_NS)
    assert not followed._rows
    assert followed.due_ns() is None


# --- how it was learnt ----------------------------------------------------------------------------------------------


def seen_after(before: Picture, after: Picture, *words: tuple[str, str], late: int = 0, **heard: Any) -> Seen:
    """What a look makes of words, the last `late` of which were heard while it went on."""
    kept = Sightings()
    told_words = [(place, told(action, "udev", at)) for at, (place, action) in enumerate(words, 1)]
    sure = told_words[: len(told_words) - late]
    for place, word in sure:
        kept.hear({place: word}, at_ns=word.heard_at_ns)
    kept.hear({}, **heard)
    kept.look_begins()
    for place, word in told_words[len(sure) :]:
        kept.hear({place: word}, at_ns=word.heard_at_ns)
    return kept.look_ends(before, after)


ONE: Final = pci("01:00.0", driver="a")
BOUND: Final = {STICK: ONE}
FREE: Final = {STICK: msgspec.structs.replace(ONE, driver="")}
PATH: Final = ONE.sysfs_path


@pytest.mark.parametrize(
    ("before", "after", "actions", "flaps"),
    [
        ({}, BOUND, ("add", "bind"), 0),
        (BOUND, {}, ("unbind", "remove"), 0),
        (BOUND, {}, ("remove", "add", "remove"), 1),
        ({}, BOUND, ("add", "remove", "add"), 1),
        (BOUND, BOUND, ("unbind", "bind"), 1),
        (BOUND, BOUND, ("unbind", "remove", "add", "bind"), 1),
        (BOUND, {STICK: msgspec.structs.replace(ONE, driver="b")}, ("unbind", "bind"), 0),
        (BOUND, {STICK: msgspec.structs.replace(ONE, driver="b")}, ("unbind", "bind", "unbind", "bind"), 1),
        (BOUND, {STICK: msgspec.structs.replace(ONE, product_id="1572")}, ("remove", "add"), 0),
        ({}, FREE, ("add", "change", "bind", "unbind"), 1),
        (FREE, FREE, ("bind", "unbind"), 1),
        (BOUND, BOUND, ("unbind",), 1),
    ],
)
def test_what_was_said_is_told_with_what_it_led_to(
    before: Picture, after: Picture, actions: tuple[str, ...], flaps: int
) -> None:
    """All words in order, who said them and since when; and how often it was lost and came back unseen."""
    seen = seen_after(before, after, *((PATH, action) for action in actions))
    assert seen.hows == {STICK: Sighting(why="event", source="udev", actions=actions, flaps=flaps, heard_at_ns=1)}


def test_what_was_said_of_the_device_above_explains_what_is_below() -> None:
    """A function below a bridge that went, of which nothing was said itself."""
    seen = seen_after(BOUND, {}, (PATH.rpartition("/")[0], "remove"))
    assert seen.hows[STICK].actions == ("remove",)


def test_what_nobody_spoke_of() -> None:
    """Without a word it was the clock, or something else that made it look; after lost events it was those."""
    assert seen_after(BOUND, FREE).hows == {STICK: Sighting(why="clock")}
    assert seen_after(BOUND, FREE, at_ns=7).hows == {STICK: Sighting(why="event", heard_at_ns=7)}
    lost = seen_after(BOUND, FREE, (PATH, "unbind"), lost_events=True)
    assert lost.hows == {STICK: Sighting(why="lost_events", source="udev", actions=("unbind",), heard_at_ns=1)}


def test_what_is_heard_meanwhile_is_told_with_what_it_fits() -> None:
    """The look saw it go, and the words came after; its return, which the look has not seen, waits for the next."""
    assert seen_after(BOUND, {}, (PATH, "remove"), late=1).hows[STICK].actions == ("remove",)
    assert seen_after(BOUND, FREE, (PATH, "unbind"), (PATH, "remove"), late=1).hows[STICK].actions == ("unbind",)
    kept = Sightings()
    kept.look_begins()
    kept.hear({PATH: told("unbind", "udev", 1).then(told("bind", "udev", 2))}, at_ns=1)
    assert not kept.look_ends(BOUND, BOUND).hows
    kept.look_begins()
    assert kept.look_ends(BOUND, BOUND).hows[STICK].flaps == 1
    kept.look_begins()
    assert not kept.look_ends(BOUND, BOUND).hows


def test_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first actions are kept and all losses counted; places beyond the bound are left out."""
    words: dict[str, Told] = {}
    for _ in range(100):
        note(words, PATH, told("unbind", "kernel", 1))
        note(words, PATH, told("bind", "kernel", 2))
    assert len(words[PATH].actions) == limits.ACTIONS_TOLD_MAX
    assert words[PATH].losses == 100
    monkeypatch.setattr(sightings, "PLACES_MAX", 1)
    note(words, "/sys/devices/other", told("add", "kernel", 3))
    assert list(words) == [PATH]
