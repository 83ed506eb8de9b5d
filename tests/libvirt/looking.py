"""Both sides look at one machine: libvirtd and our picture, at the same time and in the same namespaces."""

import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import inputs
from leasehold.events.devices import DeviceDescription
from leasehold.events.views import DeviceView
from leasehold.projections.views import device_view
from leasehold.services.nodedev.xml import device_xml
from tests.libvirt.comparing import Difference, differences
from tests.libvirt.daemon import running_libvirt
from tests.libvirt.machine import complete_recording
from tests.libvirt.machines import MACHINES, PCI_IDS
from tests.projections.ledger import H1, Ledger
from tests.watcher.trees import Recording

THIS: Final = "this machine"
RECORDING: Final = "recorded guest"
LINKS: Final = "links of a namespace"
NAMES: Final = (THIS, LINKS, RECORDING, *MACHINES)
"""All machines that can be looked at."""
LOOKS_MAX: Final = 5
CAPABILITIES: Final = (
    *("system", "pci", "usb_device", "usb", "net", "scsi_host", "scsi_target", "scsi", "storage", "fc_host", "vports"),
    *("scsi_generic", "drm", "mdev_types", "mdev", "ccw", "css", "vdpa", "ap_card", "ap_queue", "ap_matrix", "vpd"),
)
"""libvirt's words (`virNodeDevCapType`)."""
REAL_LINKS: Final = """\
mount -t sysfs none /sys
ip link add br0 type bridge
ip link add veth0 type veth peer name veth1
ip link set veth0 master br0 up
ip link set br0 up
ip link add macvlan0 link veth1 type macvlan
ip tuntap add tap0 mode tap
"""
"""Real interfaces, in a network namespace beside this machine's other devices. One end of the pair is down."""


class Look(msgspec.Struct, frozen=True):
    """What both say of one machine."""

    machine: str
    theirs: dict[str, str]
    """libvirt's XML, by name."""
    ours: dict[str, DeviceView]
    tree: str
    """What `virsh nodedev-list --tree` shows."""
    by_capability: dict[str, list[str]]
    """What `virsh nodedev-list --cap` lists for each of its words."""

    @property
    def our_xml(self) -> dict[str, str]:
        """Our XML, by name."""
        return {name: device_xml(view) for name, view in self.ours.items()}

    def differences(self) -> list[Difference]:
        """Where they differ."""
        return list(differences(self.machine, self.theirs, self.our_xml))


def look_at(name: str) -> Look:
    """Let both look at a machine; at one that others use too, again if it changed meanwhile."""
    for _ in range(LOOKS_MAX):
        look, is_same = _look_at(name)
        if is_same:
            return look
    raise AssertionError(f"{name} changes all the time")


def _look_at(name: str) -> tuple[Look, bool]:
    with tempfile.TemporaryDirectory(prefix="leasehold-machine-") as folder:
        imitated = None if name in (THIS, LINKS) else _build(name, Path(folder) / "machine")
        with running_libvirt(imitated, REAL_LINKS if name == LINKS else "") as libvirt:
            before = libvirt.beside(sys.executable, "-m", "tests.libvirt.ours")
            theirs, tree = libvirt.devices(), libvirt.virsh("nodedev-list", "--tree")
            by_capability = libvirt.by_capability(CAPABILITIES)
            picture = libvirt.beside(sys.executable, "-m", "tests.libvirt.ours")
    ours = _views(msgspec.json.decode(picture, type=list[DeviceDescription]))
    return Look(name, theirs, ours, tree, by_capability), picture == before


def _build(name: str, folder: Path) -> Path:
    names = PCI_IDS
    if name == RECORDING:
        names = complete_recording(Recording(folder))
    else:
        MACHINES[name](folder)
    for each in ("misc", "run/udev"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    (folder / "misc/pci.ids").write_text(names)
    return folder


def _views(descriptions: list[DeviceDescription]) -> dict[str, DeviceView]:
    """The devices as a ledger shows them that was told of them by a watcher."""
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    ledger.start_host(H1, *descriptions)
    views = [device_view(ledger.state, device) for device in ledger.state.devices]
    found = {view.name: view for view in views}
    assert len(found) == len(descriptions) == len(views), "two devices have one name"
    return found
