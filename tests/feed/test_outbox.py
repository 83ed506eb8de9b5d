"""Outboxes of several feeds, and one stream that forgets its end, is emptied, and takes a message in its place only."""

import random
import re
from typing import Final

import pytest

from leasehold.events.cloudevents import Attributes
from leasehold.projections.feeding import Message
from leasehold.services.feed import outbox
from leasehold.services.feed.outbox import End, Outbox

SEEDS: Final = range(40)
STEPS: Final = 300
LEAP: Final = 1_000
_COMMAND: Final = re.compile(rb"HPUB (\S+) (?:(\S+) )?(\d+) (\d+)\r\n")


def message(number: int) -> Message:
    """Events of one to three parts, told apart by their bodies."""
    position, part = divmod(number, 3)
    return Message(position=256 + position, part=part, subject=f"s{number}", headers="", body=b"%d" % number)


def said(number: int) -> Attributes:
    """What a message says of itself."""
    told = message(number)
    return Attributes(
        cluster="lab", ledger_id="0" * 16, era=0, position=told.position, part=told.part, parts=3, previous=0,
        tag="tick.v1", at_ns=0,
    )  # fmt: skip


class Stream:
    """EVENTS, as far as it matters here: what stands at which place, and how a server takes messages."""

    def __init__(self) -> None:
        self.first = 1
        self.numbers: list[int] = []

    @property
    def last(self) -> int:
        return self.first + len(self.numbers) - 1

    def end(self) -> End:
        if not self.numbers:
            return End(sequence=self.last)
        return End(sequence=self.last, said=said(self.numbers[-1]), body=b"%d" % self.numbers[-1])

    def take(self, expected: int, number: int) -> bool:
        if expected != self.last:
            return False
        self.numbers.append(number)
        return True


class Teller:
    """A feed without a server: what it sends is on its way until the test lets it arrive."""

    def __init__(self, stream: Stream, log: int) -> None:
        self.stream = stream
        self.log = log
        self.outbox = Outbox(1)
        self.put = 0
        self.under_way: list[tuple[int, int, bool]] = []
        self.go_on()

    def go_on(self) -> None:
        """As a session begins: where EVENTS ends, what comes behind it."""
        end = self.stream.end()
        if self.outbox.go_back_to(end):
            return
        self.outbox = Outbox(end.sequence + 1)
        self.put = self.stream.numbers[-1] + 1 if self.stream.numbers else 0

    def fold(self, count: int) -> None:
        """Read more of the log."""
        numbers = range(self.put, min(self.put + count, self.log))
        self.outbox.put([message(number) for number in numbers])
        self.put = max(self.put, numbers.stop)

    def send(self) -> None:
        """Send a chunk."""
        rest = self.outbox.chunk("t.", "inbox.")
        while rest:
            match = _COMMAND.match(rest)
            assert match is not None
            head, total = int(match[3]), int(match[4])
            block, rest = rest[match.end() : match.end() + total], rest[match.end() + total + 2 :]
            expected = re.search(rb"Nats-Expected-Last-Sequence: (\d+)", block[:head])
            assert expected is not None
            if match[2]:
                assert match[2] == b"inbox.%d" % (int(expected[1]) + 1)
            self.under_way.append((int(expected[1]), int(block[head:]), bool(match[2])))

    def arrive(self) -> None:
        """The oldest message that is under way arrives, and its acknowledgement, if one was asked for."""
        if self.under_way:
            expected, number, is_asked = self.under_way.pop(0)
            is_taken = self.stream.take(expected, number)
            if is_asked and is_taken and self.outbox.acknowledged < expected + 1 <= self.outbox.sent:
                self.outbox.acknowledge(expected + 1)
            elif is_asked and not is_taken:
                self.go_on()


def step(random_: random.Random, stream: Stream, tellers: list[Teller]) -> None:
    """Something happens."""
    teller = random_.choice(tellers)
    what = random_.random()
    if what < 0.3:
        teller.fold(random_.randint(1, 9))
    elif what < 0.5:
        teller.send()
    elif what < 0.9:
        teller.arrive()
    elif what < 0.93:
        # A killed server: the end is forgotten, what is under way may be lost or not.
        del stream.numbers[max(0, len(stream.numbers) - random_.randint(1, 6)) :]
        if random_.random() < 0.5:
            teller.under_way.clear()
        teller.go_on()
    elif what < 0.95:
        # A feed is killed, and starts again with nothing.
        tellers[tellers.index(teller)] = Teller(stream, teller.log)
    elif what < 0.96:
        stream.first, stream.numbers = stream.last + LEAP, []
    else:
        teller.go_on()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_stands_where_follows_from_the_log(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever arrives late, is lost, forgotten or sent by two: the stream holds the log from its start, each message
    once and in order; and when nothing goes wrong any more, all of it.
    """
    random_ = random.Random(seed)
    print(f"seed {seed}")
    monkeypatch.setattr(outbox, "CHUNK_MESSAGES_MAX", random_.randint(1, 5))
    monkeypatch.setattr(outbox, "UNDER_WAY_BYTES_MAX", random_.choice((100, 500, 10_000)))
    monkeypatch.setattr(outbox, "KEPT_BYTES_MAX", random_.choice((0, 300, 10_000)))
    stream = Stream()
    tellers = [Teller(stream, 200) for _ in range(random_.randint(1, 3))]
    for _ in range(STEPS):
        step(random_, stream, tellers)
        assert stream.numbers == list(range(len(stream.numbers)))
    for teller in tellers:
        teller.under_way.clear()
    for teller in tellers:
        teller.go_on()
        teller.fold(teller.log)
        while teller.outbox.sent < teller.outbox.last:
            teller.send()
            while teller.under_way:
                teller.arrive()
    assert stream.numbers == list(range(200))


def has_enough(box: Outbox) -> bool:
    """Whether nothing more should be put in."""
    return box.is_full


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so much is under way, waits, or is kept."""
    monkeypatch.setattr(outbox, "CHUNK_BYTES_MAX", 1_000)
    monkeypatch.setattr(outbox, "UNDER_WAY_BYTES_MAX", 3_000)
    monkeypatch.setattr(outbox, "UNTOLD_BYTES_MAX", 5_000)
    monkeypatch.setattr(outbox, "KEPT_BYTES_MAX", 2_000)
    box = Outbox(1)
    while not has_enough(box):
        box.put([message(box.last)])
    chunks = 0
    while box.chunk("t.", "i."):
        chunks += 1
    assert 3 <= chunks <= 4
    assert box.sent < box.last
    box.acknowledge(box.sent)
    assert box.chunk("t.", "i.")
    assert not has_enough(box)
    assert 1 < box.first <= box.acknowledged
