"""Devices that go, or give way to others, during a look, and looks that fail: nothing is told that never was.

Each change is made at every moment of a look in turn: just before its first file is opened, its second, and so on.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.projections.reporting import Picture
from leasehold.services.watcher.describing import net
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
STICK = f"{CARD}/usb1/1-1"
NICS = [f"{CARD}/net/eth{number}" for number in range(2)]


class Moments:
    """Looks at a machine, with something happening to it in the middle."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, monkeypatch

    def look(self, tree: Tree, change: Callable[[], None] = lambda: None, at: int = -1) -> tuple[Picture, int]:
        """The picture, and how many files were opened for it; the `at`-th of them after the change."""
        opened = 0
        really = os.open

        def counted(path: Any, *args: int, **more: int) -> int:
            nonlocal opened
            if str(path).startswith(str(tree.root.sys)):
                if opened == at:
                    with self._patch.context() as patch:
                        patch.setattr(os, "open", really)
                        change()
                opened += 1
            return really(path, *args, **more)

        with self._patch.context() as patch:
            patch.setattr(os, "open", counted)
            return take_picture(tree.root, udev=lambda _path: {}, links={}), opened

    def all(self, make: Callable[[Tree], None], change: Callable[[Tree], None]) -> Iterator[tuple[int, Picture]]:
        """The picture of a machine that changed at each of the moments."""
        still = Tree(self._folder / "still")
        make(still)
        _, count = self.look(still)
        assert count > 10
        for at in range(count):
            tree = Tree(self._folder / f"{at}")
            make(tree)
            yield at, self.look(tree, lambda tree=tree: change(tree), at)[0]  # type: ignore[misc]


@pytest.fixture
def moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moments:
    """To look at."""
    return Moments(tmp_path, monkeypatch)


def plug(tree: Tree, **ids: str) -> None:
    """A serial adapter with two ports."""
    tree.usb(STICK, **ids)
    tree.usb(f"{STICK}/1-1:1.0")
    for number in range(2):
        tree.tty(f"{STICK}/1-1:1.0/ttyUSB{number}", f"188:{number}", port_number=str(number))


def with_stick(tree: Tree) -> None:
    tree.pci(CARD)
    tree.usb(f"{CARD}/usb1")
    plug(tree, idVendor="0403", idProduct="6001", serial="A")


def told_of_stick(picture: Picture) -> dict[str, tuple[str, ...]]:
    """What the picture says of the stick and of what is below it."""
    devices = {key: device for key, device in picture.items() if "/2-1" in key}
    return {str(key): (each.vendor_id, each.product_id, each.serial, each.parent) for key, each in devices.items()}


def test_a_stick_that_another_takes_the_place_of(moments: Moments, tmp_path: Path) -> None:
    """All that is told is of the one or of the other, each part, and no part is told without what it is on."""

    def change(tree: Tree) -> None:
        # Kept, since this file system would use its inode numbers again; sysfs counts on.
        (tree.devices / STICK).rename(tree.devices / "before")
        plug(tree, idVendor="1a86", idProduct="7523", serial="B")

    before, after = Tree(tmp_path / "before"), Tree(tmp_path / "after")
    for tree in (before, after):
        with_stick(tree)
    change(after)
    one, other = (told_of_stick(moments.look(tree)[0]) for tree in (before, after))
    assert len(one) == 4
    assert all(one[key] != other[key] for key in one)
    seen = set()
    for at, picture in moments.all(with_stick, change):
        told = told_of_stick(picture)
        assert all(told[key] in (one[key], other[key]) for key in told), (at, told)
        assert all(device.parent in ("", *picture) for device in picture.values()), (at, told)
        seen.add(tuple(sorted(told.items())))
    assert {tuple(sorted(other.items())), ()} <= seen


def test_a_device_that_the_kernel_is_taking_away(moments: Moments) -> None:
    """What is below it goes first. Its folder stays until its driver has let it go; its attributes are gone by then,
    and the first of them was `uevent`.
    """

    def change(tree: Tree) -> None:
        shutil.rmtree(tree.devices / STICK / "1-1:1.0")
        (tree.devices / STICK / "uevent").unlink()
        for name in ("idVendor", "idProduct", "serial", "bDeviceClass", "speed"):
            (tree.devices / STICK / name).unlink()

    still = set()
    for at, picture in moments.all(with_stick, change):
        told = told_of_stick(picture)
        assert all(ids[:2] == ("0403", "6001") for ids in told.values()), (at, told)
        still.add(len(told))
    assert still == {0, 1, 2, 3}


def test_an_interface_that_the_kernel_is_taking_away(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are there and cannot be read. As that is asked last, it is not told, and it takes no other's number."""
    really, gone = os.open, False

    def refused(path: Any, *args: Any, **more: Any) -> Any:
        if gone and str(path).endswith(tuple(f"eth1/{name}" for name in ("ifindex", "dev_port", "address", "type"))):
            raise OSError(errno.EINVAL, "Invalid argument")
        is_low = bool(args) and isinstance(args[0], int)
        return really(path, *args, **more) if is_low else open(path, *args, **more)

    def make(tree: Tree) -> None:
        nonlocal gone
        gone = False
        tree.pci(CARD)
        for number, path in enumerate(NICS):
            tree.net(path, ifindex=str(number + 2), dev_port=str(number), address=f"02:00:00:00:00:0{number}")

    def change(_tree: Tree) -> None:
        nonlocal gone
        gone = True

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(net, "open", refused, raising=False)
    for at, picture in moments.all(make, change):
        told = {str(key): device.name for key, device in picture.items() if device.kind == "net"}
        assert told.pop("pci/0000:00:01.0/net/0") == "net_eth0_02_00_00_00_00_00", (at, told)
        assert told == {}, (at, told)


def test_a_look_that_lacks_file_descriptors(moments: Moments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file cannot be opened for it, there is no picture: nothing seems to be gone, or to be another thing."""
    tree = Tree(tmp_path / "tree")
    with_stick(tree)
    _, count = moments.look(tree)

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    for at in range(count):
        with pytest.raises(UnavailableError, match="Too many open files"):
            moments.look(tree, fail, at)
    really = os.listdir

    def listed(path: str) -> list[str]:
        if path.endswith("bus/usb/devices"):
            fail()
        return really(path)

    monkeypatch.setattr(os, "listdir", listed)
    with pytest.raises(UnavailableError, match="Too many open files"):
        moments.look(tree)
