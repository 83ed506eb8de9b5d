"""A look wakes no sleeping device, and forgets nothing of one that fell asleep."""

import os
from functools import partial
from pathlib import Path

import pytest

from leasehold.events.capabilities import Pci, PciLink
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture
from leasehold.services.watcher.describing import kept, pci
from leasehold.services.watcher.describing.kept import Kept
from leasehold.services.watcher.picture import take_picture
from tests.watcher.test_vpd import GOOD
from tests.watcher.trees import Tree

CARD = "pci0000:00/0000:00:01.0"
KEY = DeviceKey("pci/0000:00:01.0")
WAKING = ("config", "vpd", "max_link_speed", "max_link_width", "current_link_speed", "current_link_width")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the card's files that are opened from now on."""
    names: list[str] = []
    really = os.open

    def noted(path: str, *args: int, **more: int) -> int:
        if os.path.basename(os.path.dirname(path)) in ("0000:00:01.0", "power"):
            names.append(os.path.basename(path))
        return really(path, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    return names


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A card with a fast link and product data."""
    tree = Tree(tmp_path)
    tree.pci(CARD, driver="igb", max_link_speed="8.0 GT/s PCIe", max_link_width="8", config=b"\x86\x80", vpd=GOOD)
    link(tree, "5.0 GT/s PCIe", "4")
    return tree


def link(tree: Tree, speed: str, width: str) -> None:
    tree.write(CARD, "current_link_speed", speed)
    tree.write(CARD, "current_link_width", width)


def power(tree: Tree, status: str) -> None:
    tree.write(CARD, "power/runtime_status", status)


def card(tree: Tree, known: Picture | None = None) -> tuple[DeviceDescription, Pci]:
    device = take_picture(tree.root, known=known)[KEY]
    assert isinstance(device.capability, Pci)
    return device, device.capability


FULL = (PciLink(speed_mts=8_000, width=8), PciLink(speed_mts=5_000, width=4))


@pytest.mark.parametrize("status", ["suspended", "suspending", "resuming", "error"])
def test_a_sleeping_card_is_not_woken(tree: Tree, opened: list[str], status: str) -> None:
    """None of the files that wake it is opened; that it is an express card shows all the same."""
    power(tree, status)
    device, told = card(tree)
    assert set(opened).isdisjoint(WAKING)
    assert "runtime_status" in opened
    assert (told.is_express, told.link_max, told.link_now, told.vpd, device.serial) == (True, None, None, None, "")


def test_a_card_that_is_awake_is_asked_once(tree: Tree, opened: list[str]) -> None:
    """Link and product data are kept: the next look opens none of these files, and says the same."""
    power(tree, "active")
    device, told = card(tree)
    assert (told.link_max, told.link_now) == FULL
    assert told.vpd is not None
    assert device.serial == told.vpd.read_only["SN"] == "0025900EAA10"
    opened.clear()
    assert card(tree) == (device, told)
    assert set(opened).isdisjoint(WAKING)
    power(tree, "suspended")
    assert card(tree) == (device, told)


def test_a_card_that_changed_its_driver_is_asked_again(tree: Tree) -> None:
    """A driver may train the link anew; while the card sleeps, what was known stands."""
    assert card(tree)[1].link_now == FULL[1]
    link(tree, "2.5 GT/s PCIe", "1")
    assert card(tree)[1].link_now == FULL[1]
    tree.driver(CARD, "pci", "vfio-pci")
    power(tree, "suspended")
    assert card(tree)[1].link_now == FULL[1]
    power(tree, "active")
    assert card(tree)[1].link_now == PciLink(speed_mts=2_500, width=1)


def test_another_card_in_the_same_place_is_asked_itself(tree: Tree) -> None:
    """Though it has the same ids and driver: its folder is another one."""
    assert card(tree)[0].serial
    (tree.devices / CARD).rename(tree.devices / "before")
    tree.pci(CARD, driver="igb", max_link_width="8", max_link_speed="Unknown", current_link_width="0")
    device, told = card(tree)
    assert (device.serial, told.vpd, told.link_max, told.link_now) == ("", None, PciLink(width=8), None)


@pytest.fixture
def known(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Picture:
    """What a watcher told before it ended; the next one has looked at nothing yet, and the card sleeps."""
    picture = take_picture(tree.root)
    monkeypatch.setattr(pci, "_links", Kept())
    monkeypatch.setattr(pci, "_vpds", Kept())
    power(tree, "suspended")
    return picture


def test_a_card_that_sleeps_at_the_start_is_as_the_log_has_it(tree: Tree, known: Picture, opened: list[str]) -> None:
    """A watcher that starts again changes nothing, at its first look and after that; nor does it wake the card."""
    assert card(tree, known) == card(tree) == (known[KEY], known[KEY].capability)
    assert set(opened).isdisjoint(WAKING)


def test_what_the_log_has_does_not_stand_for_a_card_that_is_awake(tree: Tree, known: Picture) -> None:
    """While no watcher ran its link was trained anew, and it got another serial number."""
    link(tree, "2.5 GT/s PCIe", "1")
    tree.write(CARD, "vpd", b"")
    assert card(tree, known)[0] == known[KEY]
    power(tree, "active")
    device, told = card(tree)
    assert (device.serial, told.vpd, told.link_now) == ("", None, PciLink(speed_mts=2_500, width=1))


@pytest.mark.parametrize("attribute", ["vendor", "device", "class", "revision", "subsystem_vendor", "subsystem_device"])
def test_what_the_log_has_does_not_stand_for_another_model(tree: Tree, known: Picture, attribute: str) -> None:
    """What sits there has other ids."""
    tree.write(CARD, attribute, "0x17")
    device, told = card(tree, known)
    assert (device.serial, told.vpd, told.link_max, told.link_now) == ("", None, None, None)


def test_a_port_tells_of_its_link_anew_when_something_is_plugged_in(tree: Tree) -> None:
    """The link of an empty port is another than that of one with a card."""
    tree.write(CARD, "secondary_bus_number", "1")
    tree.write(CARD, "class", "0x060400")
    link(tree, "2.5 GT/s PCIe", "0")
    assert card(tree)[1].link_now == PciLink(speed_mts=2_500)
    tree.pci(f"{CARD}/0000:01:00.0")
    link(tree, "8.0 GT/s PCIe", "4")
    assert card(tree)[1].link_now == PciLink(speed_mts=8_000, width=4)


@pytest.mark.parametrize("gpu", ["", "/0000:01:00.0/0000:02:00.0", "sibling"])
def test_the_link_of_a_gpu_follows_its_load(tree: Tree, gpu: str) -> None:
    """Its speed now is no news, so it is not told, nor that of a card's other functions and of ports above; the width
    is.
    """
    path = CARD.replace("01.0", "01.1") if gpu == "sibling" else f"{CARD}{gpu}"
    if gpu.startswith("/"):
        tree.pci(os.path.dirname(path), pci_class="0x060400")
    tree.pci(path, driver="i915", pci_class="0x030000")
    tree.write(path, "class", "0x030000")
    assert card(tree)[1].link_now == PciLink(width=4)


def test_the_link_of_a_neighbour_is_told(tree: Tree) -> None:
    """A GPU in the next slot has another link."""
    tree.pci("pci0000:00/0000:00:02.0", pci_class="0x030000")
    assert card(tree)[1].link_now == FULL[1]


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes."""
    monkeypatch.setattr(kept, "ENTRIES_MAX", 3)
    values: Kept[int] = Kept()
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        return number

    for number in (0, 1, 2, 3, 3, 2, 0):
        assert values.of(number, str(tmp_path), partial(ask, number), -1) == number
    assert asked == [0, 1, 2, 3, 0]
