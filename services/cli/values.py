"""What people type and what they see: durations, times, leases."""

import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from leasehold.events.errors import InvalidInputError
from leasehold.events.position import parse_lease_id, parse_queued_id

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?")
_DURATION_CHARS_MAX: Final = 32
_UNIT_MS: Final = (86_400_000, 3_600_000, 60_000, 1_000, 1)


class Duration(click.ParamType[int]):
    """`90s`, `30m`, `1h30m`, `2d`, `500ms`: to milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Milliseconds; a usage error names what would be right."""
        if isinstance(value, int):
            return value
        ms = parse_duration(value)
        if ms is None:
            self.fail(f"{value[:40]!r} is not a duration; one looks like 90s, 30m, 1h30m or 2d", param, ctx)
        return ms


class LeaseId(click.ParamType[int]):
    """`L4352` or `4352`."""

    name = "lease"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The lease's number; a usage error says what one looks like."""
        try:
            return parse_lease_id(str(value))
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class LeaseOrQueuedId(click.ParamType[int]):
    """`L4352`, `Q4352` or `4352`."""

    name = "lease"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; a usage error says what one looks like."""
        kind = QueuedId() if str(value).startswith("Q") else LeaseId()
        return kind.convert(value, param, ctx)


class QueuedId(click.ParamType[int]):
    """`Q4352` or `4352`."""

    name = "queued"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The place's number; a usage error says what one looks like."""
        try:
            return parse_queued_id(str(value))
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


def parse_duration(text: str) -> int | None:
    """A duration's milliseconds; `None` if it is none."""
    match = _DURATION.fullmatch(text) if len(text) <= _DURATION_CHARS_MAX else None
    if match is None or not any(match.groups()):
        return None
    return sum(int(part) * unit for part, unit in zip(match.groups(), _UNIT_MS, strict=True) if part)


def time_text(at_ns: int) -> str:
    """A time of the log for people: UTC, to the millisecond."""
    moment = datetime.fromtimestamp(at_ns // 10**9, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{at_ns // 10**6 % 1000:03d}Z"


def duration_text(ms: int) -> str:
    """A duration for people, to the second: `1h 30m`; one that is shorter to the millisecond."""
    seconds = ms // 1000
    parts = [(seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    return " ".join(f"{number}{unit}" for number, unit in parts if number) or (f"{ms}ms" if ms else "0s")
