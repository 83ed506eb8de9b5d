"""`leasehold devices` and `leasehold device` against a real `up` on this machine: now, at a moment, from an archive."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from leasehold.events.views import DeviceView
from leasehold.services.client import Client
from leasehold.services.nodedev.tree import tree_lines
from tests.support.commands import Commands
from tests.support.running import RunningUp, running_up

DIFFERENT = ("--json", "--csv", "--xml", "--tree", "--count")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningUp]:
    """An `up` that runs."""
    with running_up(tmp_path_factory.mktemp("nodedev") / "data") as up:
        yield up


@pytest.fixture
def commands(up: RunningUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    """The command line, aimed at that `up`."""
    return Commands(up.data, monkeypatch, capsys)


async def test_programs_ask_the_same(up: RunningUp) -> None:
    """The client lists, counts and looks up by all that may be said; the parts of a list are the whole."""
    async with Client(up.data) as client:
        rows = await client.devices(present=True)
        assert await client.count() == len(rows) > 1
        assert await client.devices(cap="pci") == [row for row in rows if "pci" in row.capabilities]
        buses = {row.bus for row in rows} - {""}
        for bus in buses:
            assert await client.count(bus=bus) == sum(row.bus == bus for row in rows)
        for parent in {row.parent_name for row in rows} - {""}:
            assert await client.devices(parent=parent) == [row for row in rows if row.parent_name == parent]
        for driver in {row.driver for row in rows} - {""}:
            assert await client.devices(driver=driver) == [row for row in rows if row.driver == driver]
        for name in (rows[-1].name, rows[-1].key, rows[-1].sysfs_path, rows[-1].device):
            assert await client.device(name) == rows[-1]
        assert await client.orders(ended=True) == []


def test_lists_by_what_is_said(commands: Commands) -> None:
    """Filters hold now, at a moment, and in the archive's files; `--count` says how many, and where that is of."""
    every, cards = commands.names(), commands.names("--bus", "pci")
    assert set(cards) < set(every)
    for where in ((), ("--at", "now"), ("--archive", commands.archive)):
        assert commands.names("--bus", "pci", *where) == cards
        code, out, err = commands.run("devices", "--count", "--cap", "pci", *where)
        assert (code, out) == (0, f"{len(cards)}\n")
        assert err.startswith("as of position ") == bool(where), err
    either = {*cards, *commands.names("--cap", "net")}
    assert commands.names("--cap", "pci,net") == [name for name in every if name in either]


def test_a_tree_of_names(commands: Commands, up: RunningUp) -> None:
    """Each device once, as virsh draws it, now and at a moment."""
    tree = commands.out("devices", "--tree")
    drawn = [line.split("+- ")[-1] for line in tree.splitlines() if line.strip(" |")]
    assert sorted(drawn) == sorted(commands.names())
    assert commands.out("devices", "--tree", "--at", "now").partition("\n")[2] == tree

    async def lines() -> list[str]:
        async with Client(up.data) as client:
            return list(tree_lines(await client.devices()))

    assert tree.splitlines() == asyncio.run(lines())


def test_xml_of_one_and_of_all(commands: Commands) -> None:
    """The document of all holds what each device alone says, now and at a moment; it is of one host here."""
    root = ET.fromstring(commands.out("devices", "--xml"))
    (host,) = root
    assert [each.findtext("name") for each in host] == commands.names()
    code, past, err = commands.run("devices", "--xml", "--at", "now")
    assert (code, past) == (0, commands.out("devices", "--xml"))
    assert err.startswith("as of position ")
    name = host[-1].findtext("name") or ""
    alone = commands.out("device", name, "--xml")
    assert "".join(ET.fromstring(alone).itertext()).split() == "".join(host[-1].itertext()).split()
    assert commands.out("device", name, "--xml", "--at", "now") == alone


def test_one_device_by_any_name(commands: Commands) -> None:
    """By name, key and path, now and from the archive's files; what has no such name is said."""
    shown = json.loads(commands.out("device", commands.names()[-1], "--json"))
    for name in (shown["key"], shown["sysfs_path"], shown["device"]):
        assert json.loads(commands.out("device", name, "--json")) == shown
    told = json.loads(commands.out("device", shown["name"], "--json", "--archive", commands.archive))
    del told["place"]
    assert told == shown
    table = dict(line.split(maxsplit=1) for line in commands.out("device", shown["name"]).splitlines())
    assert table["key"].strip() == shown["key"]
    for where in ((), ("--at", "now")):
        code, out, err = commands.run("device", "pci_nothing", *where)
        assert (code, out) == (2, "")
        assert "no device pci_nothing" in err


@pytest.mark.parametrize("shape", ["", "--json", "--tree", "--xml"])
def test_a_tree_and_xml_are_of_what_is_there(commands: Commands, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """They cannot say that a device is missing; the others can, and show it."""
    asked: list[bool] = []

    async def devices(_client: Client, **said: Any) -> list[DeviceView]:
        asked.append(said["present"])
        return []

    monkeypatch.setattr(Client, "devices", devices)
    commands.out("devices", *filter(None, [shape]))
    assert asked == [shape in ("--tree", "--xml")]


def test_before_everything_there_was_nothing(commands: Commands) -> None:
    """A list of the time before the first record is empty, in every form; a device was not known then."""
    assert commands.out("devices", "--at", "0", "--count") == "0\n"
    assert commands.out("devices", "--at", "0", "--xml") == "<devices>\n</devices>\n"
    assert commands.names("--at", "0") == []
    assert commands.run("device", commands.names()[0], "--at", "0")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        *(("devices", first, second) for first in DIFFERENT for second in DIFFERENT if first < second),
        ("devices", "--cap", "planet"),
        ("devices", "--bus", "isa", "--at", "now"),
        ("device", "x", "--json", "--xml"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked(commands: Commands, arguments: tuple[str, ...]) -> None:
    """Two forms at once, words that are none: refused in a line that names the option."""
    code, out, err = commands.run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert any(argument.lstrip("-") in err for argument in arguments[1:])
