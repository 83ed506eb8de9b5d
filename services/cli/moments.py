"""Moments as people write them: a place in the log, or a time. Which is which is told by the form alone.

- a **position** is digits and nothing else (`4352`), or a lease's id (`L4352`: the position of its grant); 0 is the
  beginning;
- a **time** is anything else: `2026-11-03T14:05Z`, `2026-11-03 14:05:06.123+01:00`, `2026-11-03`, `14:05` (today),
  `today`, `yesterday` (at midnight), `2h ago` or `-2h`; without a zone it is this machine's local time;
- `now` is as far as the log has been read; where a span begins, this machine's time.

A time with a fraction of a second, as tables show it, is cut off there. As the end of a span (and in `--at`) it stands
for all that begins with these digits, so that a time which was copied from a table finds what was decided then.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import click
import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.position import parse_lease_id
from leasehold.events.questions import Moment
from leasehold.services.cli.values import parse_duration, time_text
from leasehold.services.past import BEGINNING, ns_of

POSITION_MAX: Final = 2**53 - 1
NS_MAX: Final = 2**63 - 1
"""In the year 2262; times of the log are signed integers of 64 bits."""
_DIGITS: Final = re.compile(r"[0-9]{1,16}")
_TIME: Final = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})?(?:(?:^|(?<=\d)[Tt ])"
    r"(?P<clock>\d{2}:\d{2}(?::\d{2})?)(?:(?<=:\d{2}:\d{2})[.,](?P<fraction>\d{1,9}))?"
    r"\s?(?P<zone>[Zz]|[+-]\d{2}(?::?\d{2})?)?)?",
    re.ASCII,
)
_EXAMPLES: Final = (
    "a moment is a position (4352, L4352) or a time, "
    "like 2026-11-03T14:05Z, 2026-11-03, 14:05, yesterday, '2h ago' or now"
)


class Asked(msgspec.Struct, frozen=True):
    """A moment, and how it was understood where that is not plain: a sentence's end, or nothing."""

    moment: Moment
    understood: str = ""


class MomentType(click.ParamType[Asked]):
    """TIME or POSITION on the command line."""

    name = "moment"

    def __init__(self, *, is_end: bool) -> None:
        """`is_end`: whether a fraction that is cut off stands for all that begins with it, or for its first instant."""
        self._is_end = is_end

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Asked:
        """A usage error says what would be right."""
        if isinstance(value, Asked):
            return value
        try:
            return parse_moment(str(value), datetime.now(UTC), is_end=self._is_end)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


def parse_moment(text: str, now: datetime, *, is_end: bool) -> Asked:
    """What `text` means at the time `now` (with a zone); see the head of this module.

    Raises:
        InvalidInputError: it is no moment, or a local time that does not exist or exists twice.
    """
    word = text.strip()
    if word == "now":
        # As where a span begins, no moment at all would be the beginning.
        return Asked(Moment() if is_end else Moment(ns=ns_of(now)))
    if _DIGITS.fullmatch(word) or word.startswith("L"):
        return Asked(_position(word))
    ago_ms = _ago_ms(word)
    if ago_ms is not None:
        return _checked(ns_of(now) - ago_ms * 10**6, "", text)
    days_back = {"today": 0, "yesterday": 1}.get(word)
    if days_back is not None:
        return _of_local(datetime.combine(now.astimezone().date() - timedelta(days=days_back), time()), 0, text)
    return _written(word, now, is_end=is_end)


def _position(word: str) -> Moment:
    if word.startswith("L"):
        return Moment(position=parse_lease_id(word))
    position = int(word)
    if position > POSITION_MAX:
        raise InvalidInputError(f"{word} is beyond the last possible position, {POSITION_MAX}")
    return Moment(position=position) if position else BEGINNING


def _ago_ms(word: str) -> int | None:
    """How long ago `-2h` or `2h ago` is; `None` for anything else."""
    if word.startswith("-"):
        return parse_duration(word[1:])
    return parse_duration(word.removesuffix("ago").rstrip().replace(" ", "")) if word.endswith("ago") else None


def _written(word: str, now: datetime, *, is_end: bool) -> Asked:
    """A time that is written out, or a day, or a time of today."""
    match = _TIME.fullmatch(word)
    if match is None or not (match["day"] or match["clock"]):
        raise InvalidInputError(f"{word[:40]!r} is none; {_EXAMPLES}")
    fraction = match["fraction"] or ""
    behind_ns = int(fraction.ljust(9, "9" if is_end else "0")) if fraction else 0
    zone = match["zone"]
    if zone and len(zone) == len("+02"):
        zone += "00"
    try:
        clock = time.fromisoformat(match["clock"] or "00:00")
        if zone is None:
            day = date.fromisoformat(match["day"]) if match["day"] else now.astimezone().date()
            return _of_local(datetime.combine(day, clock), behind_ns, word)
        offset = UTC if zone in "Zz" else datetime.strptime(zone, "%z").tzinfo
        day = date.fromisoformat(match["day"]) if match["day"] else now.astimezone(offset).date()
        return _checked(ns_of(datetime.combine(day, clock, offset)) + behind_ns, "", word)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{word[:40]!r} is no time ({error}); {_EXAMPLES}") from None


def _of_local(naive: datetime, behind_ns: int, text: str) -> Asked:
    """A time of this machine's zone; where its clocks are put forward or back there is none, or there are two."""
    try:
        first, second = (naive.replace(fold=fold).astimezone() for fold in (0, 1))
        written_again = first.astimezone(UTC).astimezone().replace(tzinfo=None)
    except (OverflowError, ValueError):
        raise InvalidInputError(f"{text[:40]!r} is beyond local time; write it with a zone") from None
    if written_again != naive:
        raise InvalidInputError(f"{text[:40]!r} does not exist in local time: clocks are put forward over it")
    if ns_of(first) != ns_of(second):
        either = " or ".join(f"{each:%z}" for each in (first, second))
        raise InvalidInputError(f"{text[:40]!r} comes twice in local time; write it with its zone, {either}")
    offset = f"{first:%z}"
    understood = f"{text} is taken as local time, UTC{offset[:3]}:{offset[3:5]}"
    return _checked(ns_of(first) + behind_ns, understood, text)


def _checked(ns: int, understood: str, text: str) -> Asked:
    if not 0 < ns <= NS_MAX:
        raise InvalidInputError(f"{text[:40]!r} is not between the years 1970 and 2262")
    return Asked(Moment(ns=ns), understood)


def moment_text(position: int, ns: int) -> str:
    """A place in the log for people."""
    return f"position {position} ({time_text(ns)})" if position and ns else "the time before the first record"
