"""Rows of an answer as a table, as JSON or as CSV, and which places in the log they are of.

JSON is exact: one object a line, times and durations in ns. CSV is for spreadsheets: times as ISO 8601 in UTC to the
ns, durations in seconds, and a text that a spreadsheet would compute (beginning with `=`, `+`, `-` or `@`) behind a
`'`, since names come from hardware and from other people.
"""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, TypeVar

import click
import msgspec

from leasehold.events import codec
from leasehold.events.errors import InvalidInputError
from leasehold.services.cli import render
from leasehold.services.cli.moments import Asked, moment_text
from leasehold.services.past import Place, Rows

Row = TypeVar("Row", bound=msgspec.Struct)
_DURATIONS: Final = frozenset({"leased_ns", "ending_ns"})
_COMPUTED: Final = ("=", "+", "-", "@")
"""What the cells begin with that spreadsheets take for formulas (OWASP, "CSV Injection"; tabs do not come this far)."""


class Form(Enum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def form_of(*, as_json: bool, as_csv: bool) -> Form:
    """What `--json` and `--csv` say.

    Raises:
        InvalidInputError: both were given.
    """
    if as_json and as_csv:
        raise InvalidInputError("only one of --json and --csv can be had", field="csv")
    return Form.JSON if as_json else Form.CSV if as_csv else Form.TABLE


def write(rows: Iterable[Row], kind: type[Row], form: Form, table: Callable[[list[Row]], None]) -> None:
    """Rows that are of now, in any form; `table` writes them for people."""
    if form is Form.TABLE:
        table(list(rows))
    elif form is Form.JSON:
        for row in rows:
            render.json_line(row)
    else:
        _csv_line(csv_header(kind))
        for row in rows:
            _csv_line(csv_cells(row))


async def write_each(rows: AsyncIterator[Row], kind: type[Row], form: Form, line: Callable[[Row], None]) -> None:
    """Rows of now as they come, in any form; `line` writes one for people."""
    if form is Form.CSV:
        _csv_line(csv_header(kind))
    async for row in rows:
        if form is Form.TABLE:
            line(row)
        elif form is Form.JSON:
            render.json_line(row)
        else:
            _csv_line(csv_cells(row))


async def write_past(
    rows: Rows[Row], kind: type[Row], form: Form, table: Callable[[list[Row]], None], *, asked: Sequence[Asked] = ()
) -> None:
    """Rows of the past in any form, as their pages come, with the places in the log that they are of.

    For people the places stand above the table, else in each row, and on standard error.
    """
    if form is Form.TABLE:
        found = await rows.all()
        render.line(place_text(rows.place, asked))
        table(found)
        return
    await _write_lines(rows, kind, form)
    render.line(place_text(rows.place, asked), err=True)


async def _write_lines(rows: Rows[Row], kind: type[Row], form: Form) -> None:
    if form is Form.CSV:
        _csv_line([*csv_header(kind), *(f"place_{column}" for column in csv_header(Place))])
    async for row in rows:
        assert rows.place is not None
        if form is Form.JSON:
            render.json_line({**msgspec.structs.asdict(row), "place": rows.place})
        else:
            _csv_line([*csv_cells(row), *csv_cells(rows.place)])


def place_text(place: Place | None, asked: Sequence[Asked]) -> str:
    """Which places in the log an answer is of, and how the times that were asked for were understood."""
    assert place is not None
    text = f"as of {moment_text(place.at_position, place.at_ns)}"
    if place.since_position or len(asked) > 1:
        text = f"from {moment_text(place.since_position, place.since_ns)} to {text.removeprefix('as of ')}"
    return "; ".join([text, *(each.understood for each in asked if each.understood)])


# --- CSV ------------------------------------------------------------------------------------------------------------


def csv_header(kind: type[msgspec.Struct]) -> list[str]:
    """The columns of rows of this kind."""
    return [_column(field) for field in kind.__struct_fields__]


def csv_cells(row: msgspec.Struct) -> list[str]:
    """A row's cells."""
    return [_cell(field, getattr(row, field)) for field in row.__struct_fields__]


def _column(field: str) -> str:
    if field in _DURATIONS:
        return f"{field.removesuffix('_ns')}_s"
    return f"{field.removesuffix('_ns')}_utc" if field.endswith("_ns") else field


def _cell(field: str, value: Any) -> str:
    if isinstance(value, str):
        text = render.shown(value)
        return f"'{text}" if text.startswith(_COMPUTED) else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _number_text(field, value)
    if value is None:
        return ""
    if isinstance(value, tuple | list) and all(isinstance(each, str) for each in value):
        return _cell(field, ", ".join(value))
    return render.shown(codec.encode(value).decode())


def _number_text(field: str, value: int) -> str:
    if field in _DURATIONS:
        return f"{value // 10**9}.{value % 10**9:09d}"
    if field.endswith("_ns"):
        return (
            f"{datetime.fromtimestamp(value // 10**9, tz=UTC):%Y-%m-%dT%H:%M:%S}.{value % 10**9:09d}Z" if value else ""
        )
    return str(value)


def _csv_line(cells: Sequence[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    click.echo(text.getvalue(), nl=False)
