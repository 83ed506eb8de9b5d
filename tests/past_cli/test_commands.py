"""The commands for the past against a real `up`: on the bus, and from the archive's files alone."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.services.cli.values import time_text
from leasehold.services.client import Client
from leasehold.services.past import Past
from tests.support.commands import Commands
from tests.support.running import HOST, RunningUp, leasehold, running_up

ROUNDS = 30
LATER = 2**52


class Story(NamedTuple):
    """What happened to one device: vm:a had it, vm:b was refused, then got it."""

    up: RunningUp
    name: str
    device: str
    first: dict[str, Any]
    refused: dict[str, Any]
    second: dict[str, Any]
    principal: str

    @property
    def archive(self) -> str:
        """The archive's directory."""
        return str(self.up.data / "archive")


@pytest.fixture
def commands(story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The command line, aimed at the `up` of the story."""
    return Commands(story.up.data, monkeypatch, capsys)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """An `up` that runs, with a past."""
    with running_up(tmp_path_factory.mktemp("past") / "data") as up:
        name = next(row["name"] for row in leasehold(up.data, "devices", "--json").objects if row["state"] == "free")
        first = leasehold(up.data, "lease", name, "--for", "vm:a", "--request-id", "a1", "--json").object
        refused = leasehold(up.data, "lease", name, "--for", "vm:b", "--request-id", "b1", "--json").object
        leasehold(up.data, "release", first["lease"], "--token", str(first["token"]))
        second = leasehold(up.data, "lease", name, "--for", "vm:b", "--request-id", "b2", "--json").object
        assert (first["outcome"], refused["outcome"], second["outcome"]) == ("granted", "refused", "granted")
        principal = leasehold(up.data, "leases", "--json").object["principal"]
        yield Story(up, name, first["devices"][0], first, refused, second, principal)


def test_owners_at_any_moment(story: Story, commands: Commands) -> None:
    """Who had the device, by position, by a lease's id, by a time as it was shown, now, and before everything."""
    who = commands.objects("who", story.name)
    assert [row["holder"] for row in who] == ["vm:a", "vm:b"]
    shown, exact = (time_text(who[0]["from_ns"]), f"{who[0]['from_position']}")
    for at, holders in {
        exact: ["vm:a"],
        f"{int(exact) - 1}": [],
        story.first["lease"]: ["vm:a"],
        story.second["lease"]: ["vm:b"],
        shown: ["vm:a"],
        shown.replace(" ", "T"): ["vm:a"],
        "now": ["vm:b"],
        "1d ago": [],
        "-1d": [],
        "0": [],
        "2100-01-01T00:00Z": ["vm:b"],
    }.items():
        code, out, err = commands.run("owners", "--at", at, "--json")
        assert code == 0, err
        assert [json.loads(line)["holder"] for line in out.splitlines()] == holders, at
        assert err.startswith("as of "), err


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)], ids=["table", "json", "csv"])
@pytest.mark.parametrize(
    "command",
    [
        ("owners",),
        ("devices", "--at", "now"),
        ("who", "{name}"),
        ("who", "{name}", "--between", "1h ago", "now"),
        ("diff", "--from", "0"),
        ("blame", "b1"),
        ("blame", "b2", "--principal", "{principal}"),
        ("utilisation", "--by", "holder"),
        ("utilisation", "--from", "1h ago", "--every", "20m", "--device", "{name}"),
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_each_command_in_each_form(
    story: Story, commands: Commands, command: tuple[str, ...], form: tuple[str, ...]
) -> None:
    """Every question is answered in every form, from the bus and from the archive's files, with the same rows."""
    arguments = [word.format(name=story.name, principal=story.principal) for word in command]
    asked = commands.out(*arguments, *form)
    files = commands.out(*arguments, *form, "--archive", story.archive)
    rows, again = (_rows(text, form) for text in (asked, files))
    assert rows
    # What is still held, is held for longer a moment later.
    assert len(again) == len(rows) if command[0] == "utilisation" else again == rows


def _rows(text: str, form: tuple[str, ...]) -> list[Any]:
    """The rows, without which place they are of: the log grows meanwhile."""
    if form == ("--json",):
        objects = [json.loads(line) for line in text.splitlines()]
        assert all(each.pop("place")["at_position"] for each in objects)
        assert all(set(each) == set(objects[0]) for each in objects)
        return objects
    if form == ("--csv",):
        return [{name: cell for name, cell in row.items() if not name.startswith("place_")} for row in _cells(text)]
    first, *rows = text.splitlines()
    assert first.startswith(("as of position ", "from ")), first
    assert len(rows) > 1
    return rows


def _cells(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_blame_leads_to_who_was_in_the_way(story: Story, commands: Commands) -> None:
    """A refusal is blamed on the lease that was in the way; the grant that came later on what freed the device."""
    refused = commands.objects("blame", "b1")
    assert refused[0]["position"] == story.refused["position"]
    assert int(story.first["lease"][1:]) in [row["position"] for row in refused]
    granted = commands.out("blame", "b2")
    assert "free by" in granted
    assert story.first["lease"] in granted


def test_diff_names_the_owners(story: Story, commands: Commands) -> None:
    """Between the two grants the owner of one device is what changed, and nothing else of it."""
    rows = commands.objects("diff", "--from", story.first["lease"], "--to", story.second["lease"])
    (change,) = (row for row in rows if row["device"] == story.device)
    assert change["what"] == "owner"
    assert "vm:a" in change["before"]
    assert "vm:b" in change["after"]
    assert commands.objects("diff", "--from", story.second["lease"], "--to", story.second["lease"]) == []


def test_utilisation_adds_up(story: Story, commands: Commands) -> None:
    """What the holders of the device held is what the device was held, in one span and in many."""
    end = f"{story.second['position']}"
    span = ("--from", "0", "--to", end, "--device", story.name)
    (device,) = commands.objects("utilisation", *span)
    holders = commands.objects("utilisation", "--by", "holder", *span)
    seconds = commands.objects("utilisation", "--every", "1s", *span)
    assert device["leased_ns"] > 0
    assert sum(row["leased_ns"] for row in holders) == device["leased_ns"]
    assert sum(row["leased_ns"] for row in seconds) == device["leased_ns"]


def test_history_between_moments(story: Story, commands: Commands) -> None:
    """A history begins behind a moment and ends at one, told as positions or as times."""
    whole = commands.objects("history", story.name)
    since, until = int(story.first["lease"][1:]), int(story.second["lease"][1:])
    between = [row for row in whole if since < row["position"] <= until]
    assert between
    assert commands.objects("history", story.name, "--since", f"{since}", "--until", f"{until}") == between
    times = [time_text(row["decided_at_ns"]) for row in whole if row["position"] in (since, until)]
    found = commands.objects("history", story.name, "--since", times[0], "--until", times[1])
    assert [row["position"] for row in found if row["position"] != since] == [row["position"] for row in between]
    rows = _cells(commands.out("history", story.name, "--csv"))
    assert [json.loads(row["event"]) for row in rows] == [row["event"] for row in whole]


@pytest.mark.parametrize("command", ["devices", "leases", "hosts"])
def test_lists_of_now_for_spreadsheets(commands: Commands, command: str) -> None:
    """What is listed as it is now can be had as CSV as well, with the same rows."""
    rows = _cells(commands.out(command, "--csv"))
    assert len(rows) == len(commands.objects(command)) > 0


async def test_what_was_just_answered_is_there(story: Story) -> None:
    """Who was granted a lease and asks for the owners at once finds it, though the archive only follows."""
    async with Client(story.up.data) as client:
        name = next(row.name for row in await client.devices(host=HOST) if row.state == "free")
        past = Past(client)
        for number in range(ROUNDS):
            async with client.lease(name, holder=f"vm:{number}") as lease:
                rows = past.owners(device=name)
                assert [row.holder for row in await rows.all()] == [f"vm:{number}"]
                assert rows.place is not None
                assert rows.place.as_of >= lease.id


def test_an_auditor_may_ask(story: Story, tmp_path: Path) -> None:
    """A key that may change nothing asks about the past; one that may only report does not, and hears why."""
    for role, code in (("auditor", 0), ("agent", 2)):
        key, name = tmp_path / f"{role}.json", "h9" if role == "agent" else "eve"
        made = leasehold(story.up.data, "credentials", "add", role, name, "--out", str(key))
        assert made.code == 0, made.err
        done = leasehold(None, "owners", "--json", "--credentials", str(key))
        assert done.code == code, done.err
        assert ("may not owners" in done.err) == (role == "agent")


def test_local_times_are_said(story: Story) -> None:
    """A time without a zone is taken as this machine's, and the answer says as what."""
    done = leasehold(story.up.data, "owners", "--at", "2026-01-01 14:05", TZ="Asia/Tokyo")
    assert "2026-01-01 14:05 is taken as local time, UTC+09:00" in done.out, done.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("owners", "--at", "soon"), "--at"),
        (("owners", "--at", ""), "--at"),
        (("owners", "--at", "2026-02-30"), "day"),
        (("owners", "--host", "../.."), "host"),
        (("owners", "--host", "nowhere"), "nowhere"),
        (("owners", "--device", "x" * 2_000), "device"),
        (("owners", "--device", "pci_nothing"), "pci_nothing"),
        (("owners", "--json", "--csv"), "--json and --csv"),
        (("owners", "--archive", "/nowhere"), "/nowhere"),
        (("owners", "--archive", "/tmp", "--data", "/tmp"), "without a bus"),
        (("owners", "--archive", "/tmp", "--credentials", "/tmp/x"), "without a bus"),
        (("devices", "--at", "x"), "--at"),
        (("who",), "DEVICE"),
        (("who", "pci_nothing"), "pci_nothing"),
        (("who", "a", "--between", "now"), "--between"),
        (("who", "a", "--between", "now", "x"), "--between"),
        (("who", "{name}", "--between", "now", "1d ago"), "since"),
        (("diff",), "--from"),
        (("diff", "--from", "now", "--to", "0"), "since"),
        (("blame", "no such request"), "request_id"),
        (("blame", "nobody-asked-this"), "nobody-asked-this"),
        (("blame", "a1", "--principal", "/"), "principal"),
        (("utilisation", "--every", "0s"), "every"),
        (("utilisation", "--every", "1ms"), "every"),
        (("utilisation", "--every", "9" * 30 + "d"), "every"),
        (("utilisation", "--by", "planet"), "--by"),
        (("utilisation", "--from", "2000-01-01T00:00Z", "--holder", "\n"), "holder"),
        (("history", "{name}", "--since", "x"), "--since"),
        (("history", "{name}", "--json", "--csv"), "--json and --csv"),
    ],
    ids=lambda value: " ".join(each[:16] for each in value) if isinstance(value, tuple) else None,
)
def test_bad_input(story: Story, commands: Commands, arguments: tuple[str, ...], why: str) -> None:
    """What cannot be asked is refused with exit code 2 and a line that names it, and with nothing else."""
    code, out, err = commands.run(*(word.replace("{name}", story.name) for word in arguments))
    assert code == 2, f"{out}{err}"
    assert why in err
    assert not out


async def test_a_place_that_is_not_there_yet(story: Story) -> None:
    """A position beyond the log is not answered as if it were now; how far it goes is said."""
    async with Client(story.up.data, patience_s=1.0) as client:
        with pytest.raises(UnavailableError, match=f"position {LATER} has not been read yet: the archive goes up to"):
            await Past(client).owners(LATER).all()


def test_a_reader_that_goes_away(story: Story) -> None:
    """A pipe that nobody reads to its end ends the command without a traceback."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "LEASEHOLD_DATA": str(story.up.data)}
    done = subprocess.run(
        [sys.executable, "-m", "leasehold", "diff", "--from", "0", "--csv"],
        stdout=write, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
