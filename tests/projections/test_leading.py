"""Who decides: the machine that each allocator runs on what it sees of the hint."""

import random

from leasehold.events import limits
from leasehold.projections.leading import Leading, Seat

MS = 1_000_000
STILL_MS = limits.HINT_STILL_MS
TAKEOVER_MS_MAX = 3_000


class Store:
    """The hint, and when it was written last."""

    def __init__(self) -> None:
        self.seat = Seat()

    def put(self, expected: int, writer: str) -> int | None:
        if self.seat.revision != expected:
            return None
        self.seat = Seat(expected + 1, writer)
        return self.seat.revision


def look(leading: Leading, store: Store, at_ms: int, *, able: bool = True) -> None:
    """One look, as the shell does it, that takes no time."""
    at_ns = at_ms * MS
    expected = leading.looked(store.seat, asked_ns=at_ns, answered_ns=at_ns, able=able)
    if expected is not None:
        leading.put(store.put(expected, leading.writer), asked_ns=at_ns, answered_ns=at_ns)


def test_one_takes_it_and_the_other_waits_until_it_stands_still() -> None:
    """The first takes an empty seat; the other decides only when the seat was not refreshed for its time."""
    store, one, two = Store(), Leading("one"), Leading("two")
    look(one, store, 0)
    look(two, store, 1)
    assert (one.decides(0), two.decides(1)) == (True, False)
    for at_ms in range(250, 5_001, 250):
        look(one, store, at_ms)
        look(two, store, at_ms + 1)
        assert (one.decides(at_ms * MS), two.decides(at_ms * MS)) == (True, False)
    took = 5_000
    while not two.decides(took * MS):
        took += 250
        look(two, store, took)
    assert STILL_MS <= took - 5_000 <= STILL_MS + 500
    assert not one.decides(took * MS)
    look(one, store, took + 1)
    assert not one.decides((took + 1) * MS)


def test_a_killed_one_is_replaced_in_time() -> None:
    """Whenever it is killed and whenever the others look: less than three seconds, and only one of them takes it."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(40):
        store, dead = Store(), Leading("dead")
        others = [Leading("a"), Leading("b")]
        killed_ms = chance.randrange(1_000, 3_000)
        next_ms = {each.writer: chance.randrange(limits.HINT_LOOK_MS) for each in (dead, *others)}
        took_ms = 0
        for at_ms in range(7_000):
            for each in (dead, *others):
                if at_ms != next_ms[each.writer] or (each is dead and at_ms > killed_ms):
                    continue
                look(each, store, at_ms)
                next_ms[each.writer] = at_ms + limits.HINT_LOOK_MS
            if at_ms > killed_ms and any(each.decides(at_ms * MS) for each in others):
                took_ms = took_ms or at_ms - killed_ms
                assert sum(each.decides(at_ms * MS) for each in others) == 1
        assert 0 < took_ms < TAKEOVER_MS_MAX


def test_who_was_stopped_decides_nothing_before_another_look() -> None:
    """By its own clock the refresh is too old, whatever was true before it was stopped."""
    store, one, two = Store(), Leading("one"), Leading("two")
    look(one, store, 0)
    assert one.decides((STILL_MS - 1) * MS)
    assert not one.decides(STILL_MS * MS)
    look(one, store, STILL_MS)
    assert one.decides(STILL_MS * MS), "nobody took it meanwhile"
    for at_ms in range(STILL_MS, 10_000, 250):
        look(two, store, at_ms)
    assert two.decides(9_900 * MS)
    look(one, store, 10_000)
    assert not one.decides(10_000 * MS)


def test_who_cannot_decide_neither_takes_nor_refreshes() -> None:
    """A wrong clock or a log out of reach: the seat goes to another, and back at once when it is given back."""
    store, one, two = Store(), Leading("one"), Leading("two")
    look(one, store, 0, able=False)
    assert store.seat == Seat()
    look(one, store, 1)
    for at_ms in range(250, 3_000, 250):
        look(one, store, at_ms, able=False)
        look(two, store, at_ms)
    assert not one.decides(2_900 * MS)
    assert two.decides(2_900 * MS)
    revision = two.give_back()
    assert revision is not None
    assert store.put(revision, "")
    assert not two.decides(2_900 * MS)
    assert one.give_back() is None
    look(one, store, 3_000)
    assert one.decides(3_000 * MS)


def test_where_the_store_is_silent_everybody_decides() -> None:
    """Who held it goes on; another begins when it was silent for as long as a hint may stand still; then one again."""
    store, one, two = Store(), Leading("one"), Leading("two")
    look(one, store, 0)
    look(two, store, 0)
    for at_ms in range(250, 4_000, 250):
        one.silent(at_ms * MS)
        two.silent(at_ms * MS)
        assert one.decides(at_ms * MS)
        assert two.decides(at_ms * MS) == (at_ms - 250 >= STILL_MS)
    look(two, store, 4_000)
    look(one, store, 4_001)
    assert [one.decides(4_001 * MS), two.decides(4_001 * MS)].count(True) == 1


def test_a_lost_answer_to_our_own_refresh() -> None:
    """The store took our name and the answer went lost: the next look shows that it is ours, and we go on."""
    store, one = Store(), Leading("one")
    look(one, store, 0)
    assert store.put(store.seat.revision, "one")
    one.silent(600 * MS)
    look(one, store, 850)
    assert one.decides(850 * MS)
    assert store.seat.revision == 3
    store.seat = Seat()
    look(one, store, 1_500)
    assert store.seat == Seat(1, "one"), "the bucket was made anew"
    assert one.decides(1_500 * MS)
