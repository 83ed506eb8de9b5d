"""What interfaces of this machine do by themselves, as ethtool tells it."""

from pathlib import Path

import msgspec
import pytest

from leasehold.events.capabilities import Net
from leasehold.events.identities import DeviceKey
from leasehold.projections.reporting import Picture
from leasehold.services.watcher import ethtool
from leasehold.services.watcher.describing import net
from leasehold.services.watcher.describing.kept import Kept
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


@pytest.mark.parametrize("address", ["02:00:00:00:00:01", "02:00:00:00:00:02"])
def test_what_sleeps_at_the_start_is_as_the_log_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """A watcher that starts again changes nothing; of another interface in its place nothing is known."""
    tree = Tree(tmp_path)
    card = tree.pci("pci0000:00/0000:00:01.0")
    nic = tree.net(f"{card}/net/eth0", ifindex="2")
    tree.link(tree.devices / nic / "device", tree.devices / card)
    tree.device(f"{card}/infiniband")
    monkeypatch.setattr(net, "THIS_MACHINE", tree.root)
    monkeypatch.setattr(ethtool, "_ask", lambda _interface: ("gro", "rx"))

    def look(known: Picture | None = None) -> Picture:
        return take_picture(tree.root, udev=lambda _path: {}, links={}, known=known)

    before = look()
    key = DeviceKey("pci/0000:00:01.0/net/0")
    was = before[key].capability
    assert isinstance(was, Net)
    assert was.features == ("gro", "rdma", "rx")
    monkeypatch.setattr(ethtool, "_known", Kept())
    tree.write(card, "power/runtime_status", "suspended")
    tree.write(nic, "address", address)
    told = [each[key].capability for each in (look(before), look())]
    features = was.features if address == was.address else ("rdma",)
    assert told == 2 * [msgspec.structs.replace(was, address=address, features=features)]


def test_the_picture_has_them_for_this_machine_only(tmp_path: Path) -> None:
    """An imitated lo is not asked for, though there is one here."""
    (here,) = (device for device in take_picture().values() if device.name.startswith("net_lo_"))
    assert isinstance(here.capability, Net) and "rx" in here.capability.features
    tree = Tree(tmp_path)
    tree.net("virtual/net/lo")
    (there,) = (device for device in take_picture(tree.root).values() if device.kind == "net")
    assert isinstance(there.capability, Net) and there.capability.features == ()
