"""What the guest's scenarios stand on, without a guest."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from tests.vm import image, inside, packages, playing
from tests.vm.figures import Delay, Figures
from tests.vm.guest import Guest, GuestHungError, Uevent
from tests.vm.stage import Stage
from tests.vm.watched import Watched


def test_uevents_of_the_kernel_and_of_udevd_are_read() -> None:
    """Both forms come to the same action, path and values; what is neither comes to nothing."""
    values = b"ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=usb\0SEQNUM=7\0"
    expected = ("add", "/devices/x", {"ACTION": "add", "DEVPATH": "/devices/x", "SUBSYSTEM": "usb", "SEQNUM": "7"})
    assert inside.kernel_uevent(b"add@/devices/x\0" + values) == expected
    header = struct.pack("@8sIIII", b"libudev\0", 0, 40, 40, len(values)).ljust(40, b"\0")
    assert inside.udev_uevent(header + values) == expected
    assert inside.kernel_uevent(b"libudev\0") is None
    assert inside.udev_uevent(b"add@/devices/x\0") is None
    assert inside.udev_uevent(b"another\0" + header[8:]) is None


async def test_a_uevent_is_waited_for_from_where_it_counts() -> None:
    """One that was told before does not count; one that never comes is told with what came instead."""
    guest = Guest(Path(), create_autospec(asyncio.subprocess.Process))
    told = {"source": "kernel", "action": "add", "path": "/devices/x", "at_ns": 1, "values": {}}
    reader = asyncio.StreamReader()
    for action in ("add", "remove"):
        reader.feed_data(json.dumps({"uevent": {**told, "action": action}}).encode() + b"\n")
    reader.feed_eof()
    await guest._read(reader)

    def added(each: Uevent) -> bool:
        return each.action == "add"

    assert (await guest.uevent(added, since=0)).path == "/devices/x"
    with pytest.raises(AssertionError, match="kernel remove /devices/x"):
        await guest.uevent(added, since=1, timeout_s=0)


def test_the_table_tells_apart_who_told_the_watcher() -> None:
    """Medians and maxima stand under the source; what udevd took is of its own changes only."""
    figures = Figures()
    for ms in (10, 20, 90):
        figures.delay("card in", "udev", Delay(5, ms, 3))
    figures.delay("card in", "kernel", Delay(5, 7))
    figures.delay("link down", "kernel", Delay(-1, 8))
    lines = [[cell for cell in line.split("  ") if cell] for line in figures.table()]
    cells = {line[0]: [cell.strip() for cell in line[1:]] for line in lines}
    assert cells["card in"] == ["3, 20 ms, 90 ms", "1, 7 ms, 7 ms", "-", "3 ms", "5 ms"]
    assert cells["link down"] == ["-", "1, 8 ms, 8 ms", "-", "-", "-"]
    assert cells["all"][:2] == ["3, 20 ms, 90 ms", "2, 8 ms, 8 ms"]


def test_parts_are_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while it is built leaves nothing; what is built takes the place of what another recipe made."""
    monkeypatch.setenv(image.CACHE, str(tmp_path))

    def fails(into: Path) -> None:
        (into / "half").touch()
        raise packages.CannotBuildError("no network")

    with pytest.raises(packages.CannotBuildError):
        image._kept("part", "first", fails, print)
    assert not list(tmp_path.glob("part*"))
    first = image._kept("part", "first", lambda into: (into / "whole").touch(), print)
    assert image._kept("part", "first", fails, print) == first
    second = image._kept("part", "second", lambda into: (into / "whole").touch(), print)
    assert sorted(tmp_path.glob("part*")) == [second] and (second / "whole").exists()


class _Guests:
    """Guests that hang, are left useless or do not boot, where it is told; what was played, by guest."""

    def __init__(self, **ends: list[str]) -> None:
        self._ends = ends
        self.played: list[list[str]] = []

    @asynccontextmanager
    async def staged(self) -> AsyncIterator[Stage]:
        self.played.append([])
        if self._ends.get("boot"):
            raise GuestHungError(self._ends["boot"].pop())
        yield Stage(create_autospec(Guest), create_autospec(Watched), Figures())

    async def play(self, stage: Stage, name: str) -> bool:
        self.played[-1].append(name)
        end = self._ends[name].pop(0) if self._ends.get(name) else "shown"
        stage.is_hung = end == "hung"
        stage.is_lost = end in ("hung", "lost")
        return end == "shown"


async def test_what_a_hung_guest_has_not_shown_is_played_again_in_another() -> None:
    """Only that: what failed in a guest that answers has failed, and what was shown is shown."""
    guests = _Guests(two=["failed"], three=["hung"], four=["lost"])
    names = ["one", "two", "three", "four", "five"]
    assert await playing.play_all(names, guests.staged, guests.play) == ["two", "four"]
    assert guests.played == [["one", "two", "three"], ["three", "four"], ["five"]]


async def test_guests_that_hang_again_and_again_show_nothing() -> None:
    """So many are tried, and what was not played has not been shown."""
    guests = _Guests(boot=["hung"], one=["hung"] * 9)
    assert await playing.play_all(["one", "two"], guests.staged, guests.play) == ["one", "two"]
    assert guests.played == [[], *[["one"]] * (playing.GUESTS_MAX - 1)]


def test_where_no_guest_can_run_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Python, or no right to build, are named."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "needs root" in image.cannot_run()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("sys.version_info", (3, 13, 0))
    assert "Python is 3.11" in image.cannot_run()


def test_an_initial_file_system_is_as_the_kernel_reads_it() -> None:
    """Each member of the archive is padded to four bytes behind its name and behind its body."""
    member = image._cpio(1, "init", 0o100755, b"abc")
    assert member[:6] == b"070701" and len(member) % 4 == 0
    assert int(member[14:22], 16) == 0o100755
    assert int(member[54:62], 16) == 3
    assert int(member[94:102], 16) == len(b"init\0")
    assert member[110:115] == b"init\0" and member[116:119] == b"abc"
