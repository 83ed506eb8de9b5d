"""Scenario: how the guest's devices are described to others."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from leasehold.events.capabilities import MdevParent, Net, Other
from leasehold.events.views import DeviceView
from leasehold.services.nodedev.xml import device_xml
from tests.support.nodedev_schema import SCHEMA, invalid
from tests.vm import hotplug
from tests.vm.stage import Stage
from tests.vm.watched import HOST

_VFS: Final = "/sys/bus/pci/devices/0000:02:00.0/sriov_numvfs"


async def described(stage: Stage) -> None:
    """With everything plugged in, each device's XML is as libvirt's schema allows, but for what it has no word for."""
    guest, watched = stage.guest, stage.watched
    await hotplug.plug_card(stage)
    await hotplug.plug_flash(stage)
    await hotplug.plug_stick(stage)
    await hotplug.plug_serial(stage, "serial", port="1.4")
    await guest.write(_VFS, "2")
    await watched.quiet()
    rows = list((await watched.devices()).values())
    shown = validated(rows)
    tree = await watched.cli("devices", "--host", HOST, "--tree")
    assert tree.code == 0 and tree.out.splitlines()[0].strip() == "computer", tree.err + tree.out
    counts = {}
    for cap in ("pci", "usb_device", "usb", "net", "storage", "scsi_host", "scsi"):
        done = await watched.cli("devices", "--host", HOST, "--cap", cap, "--count")
        assert done.code == 0, done.err
        counts[cap] = int(done.out)
        assert counts[cap] == sum(cap in row.capabilities for row in rows), (cap, done.out)
    assert all(counts.values()), counts
    stage.show(f"{shown}; {', '.join(f'{cap} {count}' for cap, count in counts.items())}")
    await guest.write(_VFS, "0")
    await guest.unplug_all()
    await watched.quiet()


def validated(rows: Iterable[DeviceView]) -> str:
    """Says how many descriptions satisfy libvirt's schema; raises AssertionError if one does not that should."""
    known = {row.key: device_xml(row) for row in rows if not _has_no_word(row)}
    if shutil.which("xmllint") is None or not SCHEMA.exists():
        return "XML NOT RUN: xmllint or libvirt's nodedev.rng is not installed"
    with tempfile.TemporaryDirectory(prefix="leasehold-xml-") as folder:
        wrong = invalid(Path(folder), known)
    assert not wrong, "\n".join(known[key] for key in wrong)
    return f"the XML of {len(known)} devices validates"


def _has_no_word(row: DeviceView) -> bool:
    capability = row.capability
    return isinstance(capability, Other | MdevParent) or (isinstance(capability, Net) and capability.kind is not None)
