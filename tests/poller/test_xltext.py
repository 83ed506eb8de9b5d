"""What Xen's tools print is read: on recordings of a real Xen 4.17 (`tests/data/xl/`), and on what they might print."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasehold.events.domains import STATES
from leasehold.events.errors import InvalidInputError
from leasehold.services.poller import xltext
from leasehold.services.poller.xltext import Backend, Detail, Row
from tests.poller.fakexl import DOMAIN_0, HEADINGS, FakeXen
from tests.support.tree import ROOT

_DATA: Final = ROOT / "tests/data/xl"
_SESSIONS: Final = sorted(_DATA.glob("xl-session-*.txt"))
_MIB: Final = 1024 * 1024


def _recorded(path: Path) -> Iterator[tuple[str, str]]:
    """The commands of a recording, and what they printed."""
    for part in re.split(r"^\$ ", path.read_text(), flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, re.split(r"^\[rc=", printed, flags=re.MULTILINE)[0]


def _all(pattern: str) -> list[tuple[str, str]]:
    found = [each for path in _SESSIONS for each in _recorded(path) if re.fullmatch(pattern, each[0])]
    assert found, f"no recording of {pattern}"
    return found


def test_each_list_that_was_recorded_is_read() -> None:
    """Every line of every `xl list` is a domain; the letters come to these states."""
    rows = [row for _, printed in _all("xl list(?: -v)?") for row in xltext.read_rows(printed)]
    assert len(rows) == 18
    assert {row.name for row in rows} == {"Domain-0", "u1", "u2", "u3", "web1", ""}
    assert {row.state for row in rows} == {"running", "paused", "dying"}
    assert all(row.memory_bytes == 1024 * _MIB for row in rows if row.domid == 0)
    (verbose,) = [row for row in rows if row.uuid and row.domid]
    assert verbose == Row(1, "ded34c8b-7eba-424f-b943-092e5f9736fe", "u1", 200 * _MIB, 1, "running")


def test_a_name_that_is_gone() -> None:
    """`(null)` with the letters `--ps--`: no name, and dying."""
    (row,) = [
        row for _, printed in _recorded(_DATA / "xl-session-4-owner-key.txt") if "(null)" in printed
        for row in xltext.read_rows(printed) if row.domid
    ]  # fmt: skip
    assert row == Row(7, "", "", 200 * _MIB, 0, "dying")


def test_each_detail_that_was_recorded_is_read() -> None:
    """Zero fields that are left out are zero, and `c_info.domid`, which is 4294967295, is not the domid."""
    details = [xltext.read_details(printed) for _, printed in _all("xl list -l.*")]
    uuids = ("ded34c8b-7eba-424f-b943-092e5f9736fe", "148f774d-002b-48ba-b6e6-7b35103094df")
    devices: tuple[tuple[str, ...], ...] = ((), ("pci/0000:01:00.0",))
    for found, uuid, words in zip(details, uuids, devices, strict=True):
        assert found == {1: Detail(uuid, "pv", 200 * _MIB, 200 * _MIB, 1, words)}


def test_domain_0_has_no_uuid_in_its_detail() -> None:
    """It has the one that `xl list -v` shows for it: zeros."""
    text = (_DATA / "xl-first.txt").read_text()
    found = xltext.read_details(text[text.index("[\n") : text.index("\n]\n") + 3])
    assert found == {0: Detail(xltext.NO_UUID, "pv", 1048575 << 10, 1048576 << 10, 0, ())}


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("hvm", ("pci/0000:03:00.0", "pci/0000:06:00.0", "usb-address/1.3")), ("pv", ())],
)
def test_configurations_as_xl_prints_them(kind: str, devices: tuple[str, ...]) -> None:
    """The configurations that `xl` made of files: each PCI and USB device by its word."""
    config = json.loads((_DATA / f"xl-4.17-{kind}-config.json").read_text())
    found = xltext.read_details(json.dumps([{"domid": 5, "config": config}]))
    target = config["b_info"]["target_memkb"] << 10
    assert found == {5: Detail(config["c_info"]["uuid"], kind, target, 1024 * _MIB, 2, devices)}


def test_backends_and_lists_of_free_devices_that_were_recorded() -> None:
    """`dev-0` of each backend is a device of its domain; an older xend's xenstore is read, too."""
    backends = [xltext.read_backends(printed) for _, printed in _all("xenstore-ls -f /local/domain/0/backend/pci")]
    assert backends == [[], [Backend(1, 0, False, frozenset({"pci/0000:01:00.0"}))]]
    assert xltext.read_backends((_DATA / "xenstore-dump-example.txt").read_text()) == [
        Backend(2, 0, False, frozenset({"pci/0000:03:00.0", "pci/0000:06:00.0"}))
    ]
    free = [sorted(xltext.read_assignable(printed)) for _, printed in _all("xl pci-assignable-list")]
    both, other = ["pci/0000:00:07.0", "pci/0000:01:00.0"], ["pci/0000:00:07.0"]
    assert free == [[], both, both, both, other, both, other, other, both]


@pytest.mark.parametrize(
    ("letters", "state"),
    [
        ("r-----", "running"),
        ("-b----", "running"),
        ("------", "running"),
        ("--p---", "paused"),
        ("-bp---", "paused"),
        ("---s--", "shutting_down"),
        ("---sr-", "shutting_down"),
        ("---sS-", "shutting_down"),
        ("---s?-", "shutting_down"),
        ("--psc-", "crashed"),
        ("---sw-", "crashed"),
        ("---ss-", "paused"),
        ("--ps-d", "dying"),
        ("-----d", "dying"),
    ],
)
def test_letters(letters: str, state: str) -> None:
    """On a CPU or waiting is running; why it was shut down decides; dying is dying."""
    line = (
        f"a name with spaces, and longer than the forty columns that it has     5   128     1     {letters}       0.1"
    )
    (_, row) = xltext.read_rows(f"{HEADINGS}{DOMAIN_0}{line} 11111111-2222-4333-8444-000000000001        -\n")
    assert (row.state, row.name) == (state, "a name with spaces, and longer than the forty columns that it has")
    assert row.uuid == "11111111-2222-4333-8444-000000000001"
    assert state in STATES


@given(st.text(), st.randoms(use_true_random=False))
def test_whatever_is_printed(text: str, chance: random.Random) -> None:
    """It is read, or refused as what cannot be read; nothing else is raised."""
    lines = [*(HEADINGS + DOMAIN_0).splitlines(), *text.splitlines()]
    chance.shuffle(lines)
    for read in (xltext.read_rows, xltext.read_details, xltext.read_assignable, xltext.read_backends):
        for printed in (text, HEADINGS + text, "\n".join(lines), HEADINGS + DOMAIN_0 + text):
            try:
                read(printed)
            except InvalidInputError:
                continue


def test_the_imitation_prints_as_the_recordings_do(tmp_path: Path) -> None:
    """What the imitated tools print is, but for numbers, names and spaces, what was recorded."""
    xen = FakeXen(tmp_path, pci=("pci/0000:01:00.0", "pci/0000:00:07.0"))
    xen.add("u1", ["pci/0000:01:00.0"])
    xen.write()
    (recorded,) = [printed for command, printed in _all("xl list -v") if command]
    imitated = (xen.tools / "list-v").read_text()
    assert [_shape(line) for line in imitated.splitlines()] == [_shape(line) for line in recorded.splitlines() if line]
    details = json.loads((xen.tools / "list-l").read_text())[1]
    (real,) = json.loads(_all("xl list -l.*")[1][1])
    _is_part_of(details, real)
    assert [line.split() for line in (xen.tools / "assignable").read_text().splitlines()] == [["0000:00:07.0"]]
    stored = {line.partition(" = ")[0] for line in (xen.tools / "backends").read_text().splitlines()}
    assert stored <= {
        line.partition(" = ")[0] for line in _all("xenstore-ls -f /local/domain/0/backend/pci")[1][1].splitlines()
    }


def _shape(line: str) -> str:
    """A line of `xl list -v` without what differs from one machine to another."""
    line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", line)
    return re.sub(r"\s+", " ", re.sub(r"[r-][b-]----", "STATE", re.sub(r"\b[0-9.]+\b", "0", line)))


def _is_part_of(some: object, whole: object) -> None:
    """All names that the one has, the other has, too, with values of the same type."""
    assert type(some) is type(whole), (some, whole)
    if isinstance(some, dict) and isinstance(whole, dict):
        for name, value in some.items():
            _is_part_of(value, whole[name])
    elif isinstance(some, list) and isinstance(whole, list) and some:
        _is_part_of(some[0], whole[0])
