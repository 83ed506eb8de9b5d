"""What functions, bridges and sockets share is told as the kernel has it, and nothing is woken for it."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.identities import DeviceKey
from leasehold.services.watcher.describing import pci
from leasehold.services.watcher.describing.isolation import isolation, read_isolation
from leasehold.services.watcher.describing.kept import Kept
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree

PORT = "pci0000:00/0000:00:1c.0"
PORT_KEY = DeviceKey("pci/0000:00:1c.0")
ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, FROM_PCI = 4, 5, 6, 7, 8
ALL_NEEDED = 0x1D


def config(port: int = -1, acs: int = -1, *, pad: int = 1, size: int = 4_096) -> bytes:
    """The registers of a bridge: of which kind its port is, and what its ACS controls say (-1: it has none).

    `pad`: how many other capabilities stand before each.
    """
    raw = bytearray(4_096)
    raw[0x06] = 0x10
    places = [0x40 + 0x10 * number for number in range(pad)] + ([0x90] if port >= 0 else [])
    raw[0x34] = places[0] if places else 0
    for at, following in zip(places, [*places, 0][1:], strict=True):
        raw[at : at + 2] = bytes((0x10 if at == 0x90 else 0x05, following))
    if port >= 0:
        raw[0x92:0x94] = struct.pack("<H", port << 4 | 2)
    heads = [0x100 + 0x40 * number for number in range(pad)] + ([0x300] if acs >= 0 else [])
    if heads and heads[0] != 0x100:
        heads.insert(0, 0x100)
    for at, following in zip(heads, [*heads, 0][1:], strict=True):
        raw[at : at + 4] = struct.pack("<I", following << 20 | 1 << 16 | (0x0D if at == 0x300 else 0x01))
    if acs >= 0:
        raw[0x306:0x308] = struct.pack("<H", acs)
    return bytes(raw[:size])


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (config(ROOT_PORT, ALL_NEEDED), "acs"),
        (config(DOWNSTREAM, ALL_NEEDED | 0x40), "acs"),
        (config(ROOT_PORT, 0), "no_acs"),
        (config(ROOT_PORT, ALL_NEEDED & ~0x4), "no_acs"),
        (config(DOWNSTREAM), "no_acs"),
        (config(DOWNSTREAM, pad=0), "no_acs"),
        (config(ROOT_PORT, ALL_NEEDED, pad=0), "acs"),
        (config(UPSTREAM), "upstream"),
        (config(TO_PCI), "conventional"),
        (config(FROM_PCI), "conventional"),
        (config(), "conventional"),
        (config(pad=0), "conventional"),
        (config(ROOT_PORT, ALL_NEEDED, size=64), ""),
        (config(ROOT_PORT, ALL_NEEDED, size=256), ""),
        (config(UPSTREAM, size=256), "upstream"),
        (b"", ""),
        (b"\xff" * 4_096, ""),
    ],
)
def test_registers(tmp_path: Path, raw: bytes, told: str) -> None:
    """A port keeps devices apart if all four controls are on; what cannot be read says nothing."""
    (tmp_path / "config").write_bytes(raw)
    assert read_isolation(str(tmp_path)) == told


def test_hostile_registers() -> None:
    """Lists that run in circles, and noise, come to an end and to one of the known words."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    known = {"", "acs", "no_acs", "conventional", "upstream"}
    for _ in range(300):
        raw = bytearray(config(ROOT_PORT, ALL_NEEDED))
        for _ in range(chance.randrange(1, 64)):
            raw[chance.choice((0x34, 0x41, 0x91, 0x101, 0x102, 0x103, chance.randrange(4_096)))] = chance.randrange(256)
        asked = 0

        def word(offset: int, size: int, raw: bytes = bytes(raw)) -> int:
            nonlocal asked
            asked += 1
            part = raw[offset : offset + size]
            return int.from_bytes(part, "little") if len(part) == size else -1

        assert isolation(word) in known
        assert asked < 600


def bridge(tree: Tree, **attributes: Any) -> Pci:
    """What is told of a bridge."""
    if not (tree.devices / PORT).exists():
        tree.pci(PORT, pci_class="0x060400", secondary_bus_number="1", **attributes)
    told = take_picture(tree.root)[PORT_KEY].capability
    assert isinstance(told, Pci)
    return told


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has looked at nothing yet."""
    monkeypatch.setattr(pci, "_isolations", Kept())


def test_a_bridge_is_asked_once_and_only_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it sleeps its registers are not opened; awake they are, once; asleep again what it told stands."""
    opened: list[str] = []
    really = os.open

    def noted(path: str, *args: int, **more: int) -> int:
        opened.append(str(path))
        return really(path, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    tree = Tree(tmp_path)
    express: dict[str, Any] = {"max_link_width": "8", "config": config(ROOT_PORT, ALL_NEEDED)}
    tree.pci(PORT, pci_class="0x060400", secondary_bus_number="1", **express)
    tree.write(PORT, "power/runtime_status", "suspended")
    assert bridge(tree).isolation == ""
    assert not [path for path in opened if path.endswith(f"{PORT}/config")]
    tree.write(PORT, "power/runtime_status", "active")
    assert bridge(tree).isolation == bridge(tree).isolation == "acs"
    assert len([path for path in opened if path.endswith(f"{PORT}/config")]) == 1
    tree.write(PORT, "power/runtime_status", "suspended")
    assert bridge(tree).isolation == "acs"


def test_what_is_not_express_is_not_asked(tmp_path: Path) -> None:
    """A bridge without an Express link is a conventional one; a device that is no bridge says nothing of it."""
    tree = Tree(tmp_path)
    assert bridge(tree, config=config(ROOT_PORT, ALL_NEEDED)).isolation == "conventional"
    tree.pci(f"{PORT}/0000:01:00.0", max_link_width="8", config=config(ROOT_PORT, ALL_NEEDED))
    told = take_picture(tree.root)[DeviceKey("pci/0000:01:00.0")].capability
    assert isinstance(told, Pci)
    assert told.isolation == ""


@pytest.mark.parametrize(("text", "resets"), [("flr bus\n", ("flr", "bus")), ("\n", ()), (None, ())])
def test_resets(tmp_path: Path, text: str | None, resets: tuple[str, ...]) -> None:
    """The kernel's list in its order; where it has none, that too is told."""
    tree = Tree(tmp_path)
    attributes: dict[str, Any] = {"reset_method": text} if text is not None else {}
    tree.pci(PORT, **attributes)
    assert bridge(tree).resets == resets


def test_peers(tmp_path: Path) -> None:
    """Two halves of a hub, and of a socket behind it, name each other; what is in a port of one half only, nothing."""
    tree = Tree(tmp_path)
    controller = tree.pci("pci0000:00/0000:00:14.0", pci_class="0x0c0330")
    buses = {"1": "480", "2": "5000"}
    for bus, speed in buses.items():
        tree.usb(f"{controller}/usb{bus}", speed=speed)
        tree.usb(f"{controller}/usb{bus}/{bus}-4", bDeviceClass="09")
        tree.usb(f"{controller}/usb{bus}/{bus}-4/{bus}-4.2")
    tree.usb(f"{controller}/usb1/1-5")
    for bus, other in (("1", "2"), ("2", "1")):
        hub, peers = (f"{controller}/usb{each}/{each}-0:1.0/usb{each}-port4" for each in (bus, other))
        tree.link(tree.devices / hub / "peer", tree.devices / peers)
        tree.link(tree.devices / f"{controller}/usb{bus}/{bus}-4/port", tree.devices / hub)
        below = f"{controller}/usb{{0}}/{{0}}-4/{{0}}-4:1.0/{{0}}-4-port2"
        tree.link(tree.devices / below.format(bus) / "peer", tree.devices / below.format(other))
        tree.link(tree.devices / f"{controller}/usb{bus}/{bus}-4/{bus}-4.2/port", tree.devices / below.format(bus))
    tree.link(
        tree.devices / f"{controller}/usb1/1-5/port", tree.devices / f"{controller}/usb1/1-0:1.0/usb1-port5"
    )
    picture = take_picture(tree.root)
    told = {
        key.rpartition("/")[2]: device.capability.peer.rpartition("/")[2]
        for key, device in picture.items()
        if isinstance(device.capability, UsbDevice)
    }
    assert told == {"2-0": "", "3-0": "", "2-4": "3-4", "3-4": "2-4", "2-4.2": "3-4.2", "3-4.2": "2-4.2", "2-5": ""}
    assert all(
        device.capability.peer in ("", *picture)
        for device in picture.values()
        if isinstance(device.capability, UsbDevice)
    )
