"""What a real libvirtd makes of changes that udevd tells of, beside what we make of them."""

import sys
import time
from pathlib import Path

from leasehold.services.watcher.picture import take_picture
from tests.libvirt.daemon import running_libvirt
from tests.libvirt.machines import network

NIC = "pci0000:00/0000:00:03.0/virtio0/net/eth0"
WITHIN_S = 20.0


def test_a_new_mac_is_a_second_device_to_libvirt_only(tmp_path: Path) -> None:
    """It lists one interface under both names; we have one device, with the key that it had and the new name."""
    machine = network(tmp_path / "machine")
    (machine.root.sys.parent / "misc").mkdir()
    (machine.root.run / "udev/control").touch()  # else libudev listens to nobody
    ours = take_picture(machine.root)
    with running_libvirt(tmp_path / "machine") as libvirt:
        assert nics(libvirt.virsh("nodedev-list")) == ["net_eth0_52_54_00_12_34_56"]
        machine.write(NIC, "address", "52:54:00:00:00:99")
        told = ("SUBSYSTEM=net", "INTERFACE=eth0", "IFINDEX=4")
        libvirt.beside(sys.executable, "-m", "tests.libvirt.saying", "change", f"/devices/{NIC}", *told)
        give_up_s = time.monotonic() + WITHIN_S
        while len(theirs := nics(libvirt.virsh("nodedev-list"))) < 2:
            assert time.monotonic() < give_up_s, theirs
        assert theirs == ["net_eth0_52_54_00_00_00_99", "net_eth0_52_54_00_12_34_56"]
        paths = {libvirt.devices()[name].partition("<path>")[2].partition("<")[0] for name in theirs}
        assert paths == {f"/sys/devices/{NIC}"}
    then = take_picture(machine.root)
    assert then.keys() == ours.keys()
    assert [device.name for key, device in then.items() if device.name != ours[key].name] == [
        "net_eth0_52_54_00_00_00_99"
    ]


def nics(listed: str) -> list[str]:
    """The names of the interface that changes."""
    return sorted(name for name in listed.split() if name.startswith("net_eth0_"))
