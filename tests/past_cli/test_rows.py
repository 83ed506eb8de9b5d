"""Rows as tables, JSON and CSV: exact for programs, safe in terminals and spreadsheets, of a moment that is said."""

import csv
import io
import json

import msgspec
import pytest

from leasehold.events.errors import InvalidInputError
from leasehold.events.questions import Moment
from leasehold.events.views import CauseView, ChangeView, DeviceView, HistoryRow, OwnerView, UsageView
from leasehold.services.cli import render, render_past
from leasehold.services.cli.moments import Asked
from leasehold.services.cli.rows import Form, csv_cells, csv_header, form_of, write, write_past
from leasehold.services.past import Past, Place
from tests.past_cli.sources import GrowingSource, change, device, owner, usage

COUNT = 7
HOUR_NS = 3_600 * 10**9


def cells(text: str) -> list[dict[str, str]]:
    """A CSV text's rows, by the column."""
    return list(csv.DictReader(io.StringIO(text)))


async def test_a_table_says_its_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """Above the rows stands the place that they are of, and how a local time was understood."""
    asked = Asked(Moment(position=COUNT * 256), "14:05 is taken as local time, UTC+01:00")
    rows = Past(GrowingSource(COUNT)).owners(asked.moment)
    await write_past(rows, OwnerView, Form.TABLE, render_past.owners, asked=[asked])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == f"as of position {COUNT * 256 + 255} (1970-01-01 00:00:07.000Z); {asked.understood}"
    assert lines[1].split() == ["device", "state", "holder", "lease", "since", "principal"]
    assert len(lines) == 2 + COUNT
    assert not shown.err


async def test_a_span_says_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """A table of what lies between two moments names both."""
    rows = Past(GrowingSource(COUNT)).diff(2 * 256, COUNT * 256)
    await write_past(rows, ChangeView, Form.TABLE, render_past.changes)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "from position 767 (1970-01-01 00:00:02.000Z) to position 2047 (1970-01-01 00:00:07.000Z)"


async def test_before_the_first_record(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer from before everything is no rows, said as that."""
    await write_past(Past(GrowingSource(0)).owners(0), OwnerView, Form.TABLE, render_past.owners)
    assert capsys.readouterr().out.splitlines()[0] == "as of the time before the first record"


@pytest.mark.parametrize("form", [Form.JSON, Form.CSV])
async def test_lines_are_rows_alone(capsys: pytest.CaptureFixture[str], form: Form) -> None:
    """JSON and CSV hold rows and nothing else; their moment is in each of them, and on standard error."""
    await write_past(Past(GrowingSource(COUNT)).owners(COUNT * 256), OwnerView, form, render_past.owners)
    shown = capsys.readouterr()
    if form is Form.CSV:
        rows = cells(shown.out)
        places = [int(row["place_at_position"]) for row in rows]
    else:
        rows = [json.loads(line) for line in shown.out.splitlines()]
        places = [json.loads(line)["place"]["at_position"] for line in shown.out.splitlines()]
    assert [row["device"] for row in rows] == [owner(number).device for number in range(1, COUNT + 1)]
    assert set(places) == {COUNT * 256 + 255}
    assert shown.err == f"as of position {COUNT * 256 + 255} (1970-01-01 00:00:07.000Z)\n"


async def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON row has every field of the row as it is, also those that are not set."""
    row = owner(1, holder='=1+1"\x1b[2J', freed_ns=1)
    write([row], OwnerView, Form.JSON, render_past.owners)
    assert msgspec.json.decode(capsys.readouterr().out, type=OwnerView) == row
    await write_past(Past(GrowingSource(1)).owners(256), OwnerView, Form.JSON, render_past.owners)
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in OwnerView.__struct_fields__} == msgspec.structs.asdict(owner(1))


@pytest.mark.parametrize("rows", [[], [device(1), device(2)]])
def test_csv_has_a_header_always(capsys: pytest.CaptureFixture[str], rows: list[DeviceView]) -> None:
    """The columns stand there also where there are no rows, and every row has as many cells."""
    write(rows, DeviceView, Form.CSV, render.devices)
    lines = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert lines[0] == csv_header(DeviceView)
    assert [len(line) for line in lines] == [len(lines[0])] * (len(rows) + 1)


def test_csv_is_for_spreadsheets() -> None:
    """Times are ISO 8601 to the ns or empty, durations are seconds; lists, attributes and events one cell each."""
    held = dict(zip(csv_header(OwnerView), csv_cells(owner(1, from_ns=1_793_714_706_123_456_789)), strict=True))
    assert held["from_utc"] == "2026-11-03T14:05:06.123456789Z"
    assert (held["ended_utc"], held["freed_utc"], held["forced"]) == ("", "", "false")
    used = dict(zip(csv_header(UsageView), csv_cells(usage(1)), strict=True))
    assert (used["from_utc"], used["leased_s"], used["ending_s"]) == ("", "3600.000000000", "0.000000001")
    seen = device(1, in_use_by=("vfio-pci", "vm:1"), attributes={"mac": "a,b"})
    shown = dict(zip(csv_header(DeviceView), csv_cells(seen), strict=True))
    assert (shown["in_use_by"], shown["attributes"], shown["iommu_group"]) == ("vfio-pci, vm:1", '{"mac":"a,b"}', "-1")
    row = HistoryRow(position=1, decided_at_ns=0, type="t", text="x", event=msgspec.Raw(b'{"a":1}'))
    assert dict(zip(csv_header(HistoryRow), csv_cells(row), strict=True))["event"] == '{"a":1}'


def test_columns_of_csv_have_names_of_their_own() -> None:
    """No two columns of a kind of row, or of its place, are called the same, and no field is a place's in JSON."""
    for kind in (OwnerView, DeviceView, ChangeView, CauseView, UsageView, HistoryRow):
        header = [*csv_header(kind), *(f"place_{column}" for column in csv_header(Place))]
        assert "place" not in header
        assert len(set(header)) == len(header), header


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-1+1|cmd", "@SUM(A1)", "\t=1", "a\n=1", "\r=1"])
def test_no_cell_is_computed_or_obeyed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """What a device says of itself becomes no formula in a spreadsheet, no second line, and no order to a terminal."""
    write([device(1, product_name=text, attributes={"model": text})], DeviceView, Form.CSV, render.devices)
    out = capsys.readouterr().out
    assert all(each.isprintable() or each == "\n" for each in out)
    assert out.count("\n") == 2
    (row,) = cells(out)
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row.values()), row
    assert row["product_name"][1:] == text or row["product_name"][0] not in "=+-@"


def test_one_form_only() -> None:
    """Asking for JSON and CSV at once is refused, not guessed at."""
    with pytest.raises(InvalidInputError, match="only one"):
        form_of(as_json=True, as_csv=True)


def test_causes_are_a_chain(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cause stands below what it is a cause of, deeper, with how it bears on it."""
    causes = [
        CauseView(
            depth=depth,
            position=256 * depth,
            at_ns=10**9,
            type="t",
            text=f"text {depth}",
            because="held by" * (depth > 0),
        )
        for depth in range(3)
    ]
    render_past.causes(causes)
    lines = capsys.readouterr().out.splitlines()
    assert [line.index("text") - line.index("Z") for line in lines] == [3, 5 + len("held by: "), 7 + len("held by: ")]
    assert "held by: text 1" in lines[1]


def test_use_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a device the part of the span is shown, of a holder how many devices on average."""
    render_past.usage_of_devices([usage(1)])
    assert " 50.0% " in capsys.readouterr().out
    three = msgspec.structs.replace(usage(1), name="vm:1", leased_ns=3 * HOUR_NS, devices=3)
    render_past.usage_of_holders([three])
    assert " 1.50 " in capsys.readouterr().out


def test_who_had_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A lease that lives has no end; one that ended says how, and on what evidence the device was free."""
    ended = {
        "state": "ended",
        "ended": "expired",
        "ended_ns": 9 * 10**9,
        "freed_ns": 10 * 10**9,
        "evidence": "not seen",
    }
    render_past.owners_of_one([owner(1), owner(2, **ended)])
    living, over = capsys.readouterr().out.splitlines()[1:]
    assert living.split()[2:4] == ["-", "-"]
    assert "00:00:09.000Z" in over
    assert "00:00:10.000Z" in over
    assert "expired (not seen)" in over


def test_changes_say_what_was_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing before (or after) is shown as such, and not as an empty column."""
    render_past.changes([change(1)])
    assert capsys.readouterr().out.splitlines()[1].split()[1:4] == ["owner", "-", "vm:1"]
