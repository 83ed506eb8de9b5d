"""What a reader of the feed is given, whatever happens to the live messages and to the stream that keeps them."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leasehold.events import limits
from leasehold.projections.hearing import Chain, Hearing, Told

HOSTS = ("a", "b")
OURS = "a"
BATCH = 3


class Message:
    """One message of the feed, wherever it stands in a stream."""

    def __init__(self, position: int, previous: int, part: int, parts: int, host: str, name: str) -> None:
        self.position, self.previous, self.part, self.parts = position, previous, part, parts
        self.host, self.name = host, name

    def told(self, sequence: int, chain: Chain) -> Told:
        wanted = self.is_for(chain)
        return Told(sequence, self.position, self.previous, self.part, self.parts, wanted, self)

    def is_for(self, chain: Chain) -> bool:
        """Whether the reader wants it: all; of one host the devices x; the devices x of all hosts."""
        return chain is Chain.STREAM or (self.name == "x" and (chain is Chain.NONE or self.host == OURS))

    def is_heard(self, chain: Chain) -> bool:
        """Whether its subject is listened to."""
        return self.host == OURS if chain is Chain.HOST else self.is_for(chain)


class Reader(RuleBasedStateMachine):
    """A feed, a stream, a wire that loses, doubles and reorders, and one reader."""

    chain = Chain.STREAM

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.last_of: dict[str, int] = {}
        self.position = limits.EVENTS_PER_RECORD_MAX - 1
        self.made, self.first, self.stream = 0, 1, list[Message]()
        self.to_tell = 0
        self.wire: list[Told] = []
        self.given: list[int] = []
        self.since = 0

    @initialize(since=st.integers(0, 6), events=st.integers(0, 6))
    def begin(self, since: int, events: int) -> None:
        for _ in range(events):
            self.happens([(OURS, "x"), ("b", "y")])
        self.since = self.position - since if since else 0
        self.hearing = Hearing(self.chain, self.since)
        self.known_as = self.made

    @rule(parts=st.lists(st.tuples(st.sampled_from(HOSTS), st.sampled_from("xy")), min_size=1, max_size=4))
    def happens(self, parts: list[tuple[str, str]]) -> None:
        """One event, told once for each of its devices."""
        self.position += 1
        before = dict(self.last_of)
        for number, (host, name) in enumerate(parts):
            message = Message(self.position, before.get(host, 0), number, len(parts), host, name)
            self.messages.append(message)
            self.last_of[host] = self.position

    @property
    def last(self) -> int:
        return self.first + len(self.stream) - 1

    @rule(count=st.integers(1, 8), lost=st.sets(st.integers(0, 7)))
    def tell(self, count: int, lost: set[int]) -> None:
        """The feed goes on; some of it does not arrive."""
        for number, message in enumerate(self.messages[self.to_tell : self.to_tell + count]):
            self.stream.append(message)
            self.to_tell += 1
            if message.is_heard(self.chain) and number not in lost:
                self.wire.append(message.told(self.last, self.chain))

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), doubled=st.booleans())
    def arrive(self, data: st.DataObject, doubled: bool) -> None:
        """Mostly the first that is under way, sometimes another; sometimes twice."""
        at = data.draw(st.sampled_from((0, 0, 0, len(self.wire) - 1)))
        self.hearing.hear(self.wire[at] if doubled else self.wire.pop(at))

    @rule()
    def arrive_all(self) -> None:
        for told in self.wire:
            self.hearing.hear(told)
        self.wire.clear()

    @rule(count=st.integers(1, 4))
    def forget(self, count: int) -> None:
        """The server is killed, and has lost what it had acknowledged last; who was connected notices that."""
        del self.stream[len(self.stream) - min(count, len(self.stream)) :]
        self.to_tell = self.messages.index(self.stream[-1]) + 1 if self.stream else 0
        self.hearing.needs_look = True

    @rule()
    def rebuild(self) -> None:
        """The stream is emptied and told anew, behind the sequences that it had."""
        self.first, self.stream, self.to_tell = self.last + 1, [], 0

    @rule()
    def restore(self) -> None:
        """The stream is made anew; who was connected notices that."""
        self.made, self.first, self.stream, self.to_tell = self.made + 1, 1, [], 0
        self.wire.clear()
        self.hearing.needs_look = True

    @rule(count=st.integers(1, 5))
    def grow_old(self, count: int) -> None:
        """The oldest go; the last one stays."""
        count = max(0, min(count, len(self.stream) - 1))
        self.first, self.stream = self.first + count, self.stream[count:]

    @rule()
    def look(self) -> None:
        """What `services/following.py` does, in one step."""
        hearing = self.hearing
        if self.made != self.known_as or self.last < hearing.after or self.first > hearing.after + 1:
            self._find_place()
            return
        rest = self.stream[hearing.after + 1 - self.first :]
        found = [
            message.told(hearing.after + 1 + at, self.chain)
            for at, message in enumerate(rest)
            if message.is_heard(self.chain)
        ]
        is_end = len(found) <= BATCH
        hearing.read(found[:BATCH], end=self.last if is_end else found[BATCH - 1].sequence, is_end=is_end)

    def _find_place(self) -> None:
        if not self.stream:
            return
        self.known_as = self.made
        missing, oldest = self.hearing.missing_from, self.stream[0].position
        if self.stream[0] is self.messages[0] or (oldest, self.stream[0].part) <= (missing, 0):
            place = max((at for at, each in enumerate(self.stream) if each.position < missing), default=-1)
            self.hearing.begin_again(self.first + place)
            return
        for message in self.messages:
            if missing <= message.position <= oldest and message.is_for(self.chain):
                self.hearing.heal(message.told(0, self.chain))
        self.hearing.begin_again(self.first - 1)

    @rule()
    def take(self) -> None:
        while (told := self.hearing.take()) is not None:
            self.given.append(told.position)

    def wanted(self) -> list[int]:
        found = [each.position for each in self.messages if each.is_for(self.chain) and each.position > self.since]
        return list(dict.fromkeys(found))

    @invariant()
    def nothing_is_missed_or_doubled(self) -> None:
        assert self.given == self.wanted()[: len(self.given)]

    def teardown(self) -> None:
        """In the end, when the stream is told again and is read, everything was given."""
        if not hasattr(self, "hearing"):
            return
        self.tell(len(self.messages) + 1, set(range(len(self.messages) + 1)))
        for _ in range(len(self.messages) + 4):
            self.take()
            self.look()
        self.take()
        assert not (self.stream and self.hearing.needs_look)
        assert self.given == self.wanted()


@pytest.mark.parametrize("chain", Chain, ids=lambda chain: chain.value)
def test_nothing_is_missed_doubled_or_out_of_order(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """With messages lost, doubled and reordered, and a stream that forgets, grows old, is told anew and made anew, a
    reader is given each event that it wants once and in order; also when hardly anything may wait for it.
    """
    monkeypatch.setattr(limits, "FEED_WAITING_MAX", 4)
    kind: Any = type(f"Reader_{chain.value}", (Reader,), {"chain": chain})
    machine = kind.TestCase
    machine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
    machine().runTest()


def told(sequence: int, position: int, previous: int = 0) -> Told:
    return Told(sequence, position, previous, 0, 1, wanted=True, message=None)


@pytest.mark.parametrize("chain", [Chain.STREAM, Chain.HOST])
def test_in_good_times_nothing_is_asked(chain: Chain) -> None:
    """While nothing is lost each live event is given at once, and the stream is not read."""
    hearing = Hearing(chain, 300)
    hearing.begin_again(7)
    hearing.read([], end=9, is_end=True)
    for number in range(1, 2_000):
        hearing.hear(told(9 + number, 300 + number, 299 + number))
        given = hearing.take()
        assert given is not None and given.position == 300 + number
        assert not hearing.needs_look


@pytest.mark.parametrize("chain", Chain)
def test_what_waits_is_bounded(chain: Chain) -> None:
    """However much arrives while nobody takes anything, no more than the bound is kept; the rest is read later."""
    hearing = Hearing(chain, 0)
    hearing.read([], end=0, is_end=True)
    for number in range(1, limits.FEED_WAITING_MAX + 500):
        hearing.hear(told(number, 300 + number, 299 + number if number > 1 else 0))
    given = 0
    while hearing.take() is not None:
        given += 1
    assert given <= limits.FEED_WAITING_MAX
    assert hearing.needs_look


def placed(chain: Chain, position: int) -> Hearing:
    """A reader that has read all up to `position`, at sequence 9."""
    hearing = Hearing(chain, position)
    hearing.read([], end=9, is_end=True)
    return hearing


def test_a_part_that_was_lost_is_missed() -> None:
    """An event of two devices whose second telling was lost is not taken for whole: neither when the next event comes,
    nor when the stream has to be searched for the place.
    """
    hearing = placed(Chain.HOST, 300)
    hearing.hear(Told(10, 301, 300, 0, 2, wanted=False, message=None))
    assert hearing.missing_from == 301
    hearing.hear(told(12, 302, 301))
    assert hearing.needs_look and hearing.take() is None


def test_a_first_part_that_was_lost_is_missed() -> None:
    """A telling that is not the first of its event shows that the first one was lost."""
    hearing = placed(Chain.HOST, 300)
    hearing.hear(Told(11, 301, 300, 1, 2, wanted=False, message=None))
    assert hearing.needs_look


def test_in_doubt_only_the_stream_counts() -> None:
    """After a reconnection the stream may be another one: what comes live is not given before the stream was read."""
    hearing = placed(Chain.STREAM, 300)
    hearing.needs_look = True
    hearing.hear(told(10, 305))
    assert hearing.take() is None
    hearing.begin_again(3)
    hearing.read([told(4, 301), told(5, 305)], end=5, is_end=True)
    assert [given.position for given in iter(hearing.take, None)] == [301, 305]
    assert not hearing.needs_look
