"""What interfaces of this machine do by themselves, as ethtool tells it."""

from pathlib import Path

import pytest

from leasehold.events.capabilities import Net
from leasehold.services.watcher import ethtool
from leasehold.services.watcher.ethtool import features_of
from leasehold.services.watcher.picture import take_picture
from tests.watcher.trees import Tree


def test_the_loopback_sums_for_itself() -> None:
    """lo has checksums, scatter-gather and segmentation in every kernel; libvirt's words, sorted."""
    found = features_of("/sys/class/net/lo")
    assert {"rx", "tx", "sg", "tso", "gso"} <= set(found)
    assert list(found) == sorted(found)


def test_what_is_no_interface_has_none() -> None:
    """Neither one that went away nor a name that no interface can have."""
    assert features_of("/sys/class/net/nothing-here") == ()
    assert features_of(f"/sys/class/net/{'x' * 40}") == ()


def test_what_sleeps_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last answer of before is kept; of an interface that was never awake, or is another, nothing is known."""
    asked: list[str] = []

    def ask(interface: str) -> tuple[str, ...]:
        asked.append(interface)
        return ("rx",)

    monkeypatch.setattr(ethtool, "_ask", ask)
    tree = Tree(tmp_path)
    path = f"{tree.devices}/{tree.net('pci/net/eth7', ifindex='7')}"
    power = "pci/net/eth7/device/power"
    tree.write(power, "runtime_status", "suspended")
    assert features_of(path) == ()
    tree.write(power, "runtime_status", "active")
    assert features_of(path) == ("rx",)
    tree.write(power, "runtime_status", "suspended")
    assert features_of(path) == ("rx",)
    tree.write("pci/net/eth7", "ifindex", "8")
    assert features_of(path) == ()
    assert asked == ["eth7"]


def test_the_picture_has_them_for_this_machine_only(tmp_path: Path) -> None:
    """An imitated lo is not asked for, though there is one here."""
    (here,) = (device for device in take_picture().values() if device.name.startswith("net_lo_"))
    assert isinstance(here.capability, Net) and "rx" in here.capability.features
    tree = Tree(tmp_path)
    tree.net("virtual/net/lo")
    (there,) = (device for device in take_picture(tree.root).values() if device.kind == "net")
    assert isinstance(there.capability, Net) and there.capability.features == ()
