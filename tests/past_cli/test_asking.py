"""Asking about the past from a program: pages of one place in the log, whatever is appended meanwhile."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.position import end_of_record
from leasehold.events.questions import Moment, Utilisation
from leasehold.services import past as asking
from leasehold.services.past import Past, Rows, ns_of
from tests.past_cli.sources import SECOND_NS, GrowingSource, change, device, owner, usage

COUNT = 20
NAIVE = datetime.fromisoformat("2026-11-03T14:05")


@pytest.mark.parametrize(
    "when", [None, COUNT * 256, datetime.fromtimestamp(COUNT, UTC)], ids=["now", "position", "time"]
)
@pytest.mark.parametrize(
    ("ask", "row"),
    [
        (lambda past, when: past.owners(when), owner),
        (lambda past, when: past.devices(when), device),
        (lambda past, when: past.who("pci_1", to=when), owner),
        (lambda past, when: past.utilisation(0, when), usage),
    ],
    ids=["owners", "devices", "who", "utilisation"],
)
async def test_all_pages_are_of_one_place(
    ask: Callable[[Past, Any], Rows[Any]], row: Callable[[int], Any], when: Any
) -> None:
    """The rows of all pages together are those of the first page's place, each once, though the log has grown."""
    source = GrowingSource(COUNT)
    rows = ask(Past(source), when)
    assert not source.asked
    found = await rows.all()
    # The source grows before it answers.
    last = COUNT + 1 if when is None else COUNT
    assert found == [row(number) for number in range(1, last + 1)]
    assert len(source.asked) > COUNT // source.page
    assert rows.place is not None
    assert (rows.place.at_position, rows.place.at_ns) == (end_of_record(last), last * SECOND_NS)
    assert rows.place.as_of == end_of_record(COUNT + 1)


async def test_both_ends_of_a_diff_stay() -> None:
    """A diff from one time to now is of the same two places on each of its pages; a device's changes stay together."""
    source = GrowingSource(COUNT)
    rows = Past(source).diff(datetime.fromtimestamp(5, UTC))
    found = await rows.all()
    assert found == [change(number, what) for number in range(6, COUNT + 2) for what in ("owner", "presence")]
    assert rows.place is not None
    assert (rows.place.since_position, rows.place.at_position) == (end_of_record(5), end_of_record(COUNT + 1))


async def test_times_before_the_end_stay_times() -> None:
    """The next page asks for the same times and not for the records before them, where a span would begin and end."""
    source = GrowingSource(COUNT)
    since, to = (datetime.fromtimestamp(seconds, UTC) for seconds in (5.5, COUNT - 0.5))
    await Past(source).utilisation(since, to).all()
    assert len(source.asked) > 1
    asked = [(question.since, question.to) for question in source.asked if isinstance(question, Utilisation)]
    assert asked == [(Moment(ns=ns_of(since)), Moment(ns=ns_of(to)))] * len(source.asked)


async def test_nothing_was_there_yet() -> None:
    """Before the first record there are no rows, and the place says so; it is not taken for now."""
    for when in (0, datetime.fromtimestamp(1, UTC)):
        source = GrowingSource(0)
        rows = Past(source).owners(when)
        assert [row.device for row in await rows.all()] == [owner(1).device] * (when != 0)
        assert rows.place is not None
        assert rows.place.at_position == (end_of_record(1) if when else 0)


async def test_pages_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that always says that there is more is left in the end, with an error: nothing is cut off silently."""
    monkeypatch.setattr(asking, "PAGES_MAX", 3)
    with pytest.raises(UnavailableError, match="more than 3 pages"):
        await Past(GrowingSource(COUNT)).owners().all()


@pytest.mark.parametrize(
    ("when", "why"),
    [(NAIVE, "no zone"), (-1, "no position"), (datetime(1969, 1, 1, tzinfo=UTC), "1970")],
)
def test_moments_that_cannot_be(when: Any, why: str) -> None:
    """A time without a zone, one before 1970 and a negative position are refused before anything is asked."""
    source = GrowingSource(1)
    with pytest.raises(InvalidInputError, match=why):
        Past(source).owners(when)
    assert not source.asked


def test_moments_are_exact() -> None:
    """Times go to the archive to the microsecond, positions as they are."""
    when = datetime(2026, 11, 3, 14, 5, 6, 123_457, tzinfo=UTC)
    assert asking.moment_of(when) == Moment(ns=1_793_714_706_123_457_000)
    assert asking.moment_of(4352) == Moment(position=4352)
    assert asking.moment_of(None) == Moment()


@pytest.mark.parametrize("every_ms", [0, 999, -1, 10**15])
def test_spans_that_cannot_be(every_ms: int) -> None:
    """Spans of less than a second, or of centuries, are refused by their field."""
    with pytest.raises(InvalidInputError, match=r"^every: "):
        Past(GrowingSource(1)).utilisation(0, every_ms=every_ms)
