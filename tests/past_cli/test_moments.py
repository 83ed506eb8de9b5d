"""Moments as people write them: which place or time each form means, and which are refused."""

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import Moment
from leasehold.services.cli.moments import parse_moment
from leasehold.services.cli.values import time_text

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
HOUR_NS = 3_600 * 10**9


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone that is not UTC and whose clocks are put forward and back."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def ns(text: str) -> int:
    """ISO 8601 with a zone, by Python's own reader."""
    at = datetime.fromisoformat(text)
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("4352", 4352),
        ("L4352", 4352),
        (" 4352 ", 4352),
        ("2026", 2026),
        ("20261103", 20261103),
        (str(2**53 - 1), 2**53 - 1),
    ],
)
def test_positions(text: str, position: int) -> None:
    """Digits alone are a position, also where they look like a year or a day; a lease's id is that of its grant."""
    assert parse_moment(text, NOW, is_end=True).moment == Moment(position=position)


def test_nothing_is_before_the_beginning() -> None:
    """Position 0 is before every event, and not "as far as was read"; `now` is that."""
    beginning = parse_moment("0", NOW, is_end=True).moment
    assert beginning == Moment(ns=1)
    assert parse_moment("now", NOW, is_end=True).moment == Moment()
    assert parse_moment("now", NOW, is_end=False).moment == Moment(ns=ns("2026-11-21T08:00:00Z"))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-03T14:05Z", "2026-11-03T14:05:00+00:00"),
        ("2026-11-03t14:05z", "2026-11-03T14:05:00+00:00"),
        ("2026-11-03 14:05:06Z", "2026-11-03T14:05:06+00:00"),
        ("2026-11-03T14:05+02:00", "2026-11-03T14:05:00+02:00"),
        ("2026-11-03T14:05+0200", "2026-11-03T14:05:00+02:00"),
        ("2026-11-03 14:05 -03", "2026-11-03T14:05:00-03:00"),
        ("14:05Z", "2026-11-21T14:05:00+00:00"),
        ("-2h", "2026-11-21T06:00:00+00:00"),
        ("2h ago", "2026-11-21T06:00:00+00:00"),
        ("1h 30m ago", "2026-11-21T06:30:00+00:00"),
        ("2d ago", "2026-11-19T08:00:00+00:00"),
        ("2026-10-25T02:30+02:00", "2026-10-25T02:30:00+02:00"),
        ("2026-10-25T02:30+01:00", "2026-10-25T02:30:00+01:00"),
    ],
)
def test_times_that_are_plain(text: str, same: str) -> None:
    """A time with a zone, and one told from now, are the same everywhere, and nothing has to be said about them."""
    asked = parse_moment(text, NOW, is_end=True)
    assert (asked.moment, asked.understood) == (Moment(ns=ns(same)), "")


@pytest.mark.parametrize(
    ("text", "same", "offset"),
    [
        ("2026-11-03T14:05", "2026-11-03T14:05:00+01:00", "UTC+01:00"),
        ("2026-07-03 14:05:06", "2026-07-03T14:05:06+02:00", "UTC+02:00"),
        ("2026-07-03", "2026-07-03T00:00:00+02:00", "UTC+02:00"),
        ("14:05", "2026-11-21T14:05:00+01:00", "UTC+01:00"),
        ("today", "2026-11-21T00:00:00+01:00", "UTC+01:00"),
        ("yesterday", "2026-11-20T00:00:00+01:00", "UTC+01:00"),
    ],
)
def test_local_times(text: str, same: str, offset: str) -> None:
    """A time without a zone is this machine's, with summer time as on that day, and that is said."""
    asked = parse_moment(text, NOW, is_end=True)
    assert asked.moment == Moment(ns=ns(same))
    assert asked.understood == f"{text} is taken as local time, {offset}"


def test_the_day_is_the_local_one() -> None:
    """Late in the evening of UTC it is tomorrow already in Berlin: `today` and bare times are of that day."""
    late = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
    assert parse_moment("today", late, is_end=True).moment == Moment(ns=ns("2026-11-22T00:00:00+01:00"))
    assert parse_moment("09:00", late, is_end=True).moment == Moment(ns=ns("2026-11-22T09:00:00+01:00"))
    assert parse_moment("09:00Z", late, is_end=True).moment == Moment(ns=ns("2026-11-21T09:00:00+00:00"))


def test_a_shown_time_finds_what_was_decided_then() -> None:
    """What a table shows of a time, to the ms, stands as an end for all of that ms, as a beginning for its start."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(1_000):
        decided_ns = ns("2026-11-03T00:00:00Z") + chance.randrange(24 * HOUR_NS)
        shown = time_text(decided_ns)
        begin, end = (parse_moment(shown, NOW, is_end=is_end).moment.ns for is_end in (False, True))
        assert begin <= decided_ns <= end, shown
        assert end - begin == 10**6 - 1, shown
    whole = "2026-11-03T14:05:06Z"
    assert parse_moment(whole, NOW, is_end=True) == parse_moment(whole, NOW, is_end=False)
    exact = "2026-11-03T14:05:06.123456789Z"
    assert parse_moment(exact, NOW, is_end=True).moment.ns % 10**9 == 123456789


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-03-29T02:30", "does not exist in local time"),
        ("2026-10-25T02:30", r"comes twice in local time; write it with its zone, \+0200 or \+0100"),
        ("2026-13-03", "month"),
        ("2026-02-30T00:00Z", "day"),
        ("2026-11-03T24:00Z", "hour"),
        ("2026-11-03T14:05:60Z", "second"),
        ("2026-11-03T14:05+99:00", "timedelta|offset"),
        ("1969-12-31T23:59Z", "between the years 1970 and 2262"),
        ("2262-12-31T00:00Z", "between the years 1970 and 2262"),
        ("9999-12-31", "between the years|beyond local time"),
        ("0001-01-01", "between the years|beyond local time"),
        ("99999999d ago", "between the years 1970 and 2262"),
        ("9007199254740992", "beyond the last possible position"),
        ("99999999999999999", "a moment is"),
        ("L0", "not a lease id"),
        *((text, "a moment is") for text in (
            "", " ", "-", "ago", "-2x", "x", "tomorrow", "2026-11", "2026-W45-2", "20261103T1405Z", "2026-11-03T",
            "2026-11-03Z", "T14:05", "14:5", "14:05.5", "2026-11-0314:05", "2026-11-03T14:05:06.Z", "١٢",
            "2026-11-03T14:05:06.1234567890Z", "2026-11-03  14:05", "1h2", "\x1b[2J", "4352\n4353", "--", "- 2h",
        )),
    ],
)  # fmt: skip
def test_what_is_no_moment(text: str, why: str) -> None:
    """Everything else is refused, and the refusal says what a moment looks like or what is wrong with this one."""
    with pytest.raises(InvalidInputError, match=why):
        parse_moment(text, NOW, is_end=True)
