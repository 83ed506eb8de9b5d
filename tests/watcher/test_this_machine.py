"""The picture of the machine that the tests run on, against what other ways of looking say."""

import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import msgspec

from leasehold.events import checks
from leasehold.events.capabilities import Pci
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import COMPUTER
from leasehold.events.inputs import DeviceSeen
from leasehold.services.watcher.describing import disks
from leasehold.services.watcher.picture import take_picture

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def seen() -> dict[str, DeviceDescription]:
    return {str(key): device for key, device in take_picture().items()}


def addresses_above(path: Path) -> list[str]:
    """The PCI functions on the way to a device, outermost first."""
    return [part for part in path.resolve().parts if ADDRESS.fullmatch(part)]


def test_every_pci_function_is_there() -> None:
    """All that the kernel lists, with ids and driver, and each description passes the codec."""
    devices = seen()
    listed = sorted(Path("/sys/bus/pci/devices").iterdir()) if Path("/sys/bus/pci/devices").exists() else []
    assert [key for key in devices if re.fullmatch("pci/[^/]+", key)] == [f"pci/{each.name}" for each in listed]
    for each in listed:
        device = devices[f"pci/{each.name}"]
        assert int(device.vendor_id, 16) == int((each / "vendor").read_text(), 16)
        assert device.driver == ((each / "driver").resolve().name if (each / "driver").exists() else "")
        header = (each / "config").read_bytes()[0x0E] & 0x7F
        assert device.bridge == (header in (1, 2) or device.pci_class >> 16 == 0x06)
        checks.check_description(DeviceSeen(device))


def test_nics_and_disks_hang_below_their_functions() -> None:
    """Exactly those that have a PCI function above them in /sys, each below the nearest."""
    expected = {}
    for subsystem in ("net", "block"):
        for path in Path("/sys/class", subsystem).iterdir():
            above = addresses_above(path)
            if above and not (path / "partition").exists() and "/usb" not in str(path.resolve()):
                expected[str(path.resolve())] = f"pci/{above[-1]}"
    found = {
        device.sysfs_path: device.parent
        for device in seen().values()
        if device.kind in ("net", "block") and device.parent.startswith("pci/")
    }
    assert found == expected


def test_the_disk_under_the_root_is_protected() -> None:
    """The one whose number `stat` tells for /, its function and all above; none, where / lies on no such disk."""
    number = os.stat("/").st_dev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    needed = addresses_above(node) if node.exists() else []
    devices = seen()
    for address in needed:
        assert any(reason.endswith("mounted at /") for reason in devices[f"pci/{address}"].protections), address
    mounted = {key.split("/")[1] for key, device in devices.items() if "mounted at /" in device.protections}
    assert mounted == set(needed[-1:])


def test_the_nic_of_the_default_route_is_protected() -> None:
    """The one that `ip route` names."""
    routes = json.loads(
        subprocess.run(["ip", "-j", "route", "show", "default"], capture_output=True, check=True).stdout
    )
    devices = seen()
    for route in routes:
        for address in addresses_above(Path("/sys/class/net", route["dev"])):
            reasons = devices[f"pci/{address}"].protections
            assert any(reason.endswith("carries the default route") for reason in reasons), address


def test_two_looks_at_a_quiet_machine_are_equal() -> None:
    """Nothing in a description counts or drifts."""
    assert seen() == seen()


def open_to_all() -> bytes:
    """The picture without serial and UUID of the computer, and without the product data of cards."""
    picture = take_picture()
    del picture[COMPUTER]
    for key, device in picture.items():
        if isinstance(device.capability, Pci):
            capability = msgspec.structs.replace(device.capability, vpd=None)
            picture[key] = msgspec.structs.replace(device, capability=capability, serial="")
    return msgspec.json.encode(picture)


def test_neither_root_nor_udevd_is_needed() -> None:
    """A process of nobody sees the same devices, protections and capabilities, but for what only root may read."""
    expected = open_to_all()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no new interpreter: nobody may not be allowed to read this one's files
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            disks.virtio_serial.cache_clear()
            os.write(writer, hashlib.sha256(open_to_all()).digest())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        assert told.read() == hashlib.sha256(expected).digest()
    os.waitpid(child, 0)


def test_a_picture_is_cheap() -> None:
    """Below 20 ms for a small machine (the best of five, as others use the processor too)."""
    took_ms = []
    devices = 0
    for _ in range(5):
        start = time.perf_counter()
        devices = len(take_picture())
        took_ms.append((time.perf_counter() - start) * 1000)
        print(f"{took_ms[-1]:.1f} ms for {devices} devices")
    assert min(took_ms) < 20 + devices
