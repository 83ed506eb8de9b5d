"""Scenarios: devices are plugged in and pulled out through QEMU's monitor."""

import functools
from typing import Final

from leasehold.events.event_types import DeviceMissing
from tests.vm.stage import Change, Stage, came, uevent_of, went

_ROUNDS: Final = 5
_DISK_ROUNDS: Final = 2
CARD_AT: Final = "0000:01:00.0"
CARD_KEY: Final = f"pci/{CARD_AT}"
_FLASH_AT: Final = "0000:05:00.0"
_DISK_BYTES: Final = 64 * 1024 * 1024
_CHILDREN_QUIET_S: Final = 1.0


async def prepare(stage: Stage) -> None:
    """What stands behind the devices: disks without content, and serial lines to nowhere."""
    for node in ("stick", "flash"):
        values = {"driver": "null-co", "node-name": node, "size": _DISK_BYTES, "read-zeroes": True}
        await stage.guest.monitor("blockdev-add", **values)
    for line in ("serial", "twin-a", "twin-b"):
        await stage.guest.monitor("chardev-add", id=f"line-{line}", backend={"type": "null", "data": {}})


async def plug_card(stage: Stage) -> Change:
    """Plug in the network card; waits until all of it is known."""
    events = len(stage.watched.heard)
    change = await stage.change(
        "PCI card in",
        lambda: stage.guest.plug("e1000e", "card", bus="port1", mac="52:54:00:aa:00:01", romfile=""),
        uevent_of("add", "pci", CARD_AT),
        came(CARD_AT, "pci"),
    )
    await stage.watched.event(lambda each: each.key.startswith(f"{CARD_KEY}/net/"), "its interface", since=events)
    await settled(stage)
    return change


async def unplug_card(stage: Stage) -> None:
    """Pull it out; waits until it is missing."""
    asked = functools.partial(stage.guest.unplug, "card")
    await stage.change("PCI card out", asked, uevent_of("remove", "pci", CARD_AT), went(CARD_KEY))
    await settled(stage)


async def plug_flash(stage: Stage) -> Change:
    """Plug in an NVMe disk; waits until its namespace is known."""
    change = await stage.change(
        "NVMe disk in",
        lambda: stage.guest.plug("nvme", "flash", bus="port5", drive="flash", serial="NV1"),
        uevent_of("add", "block", "nvme0n1"),
        came("nvme0n1"),
    )
    await settled(stage)
    return change


async def plug_stick(stage: Stage) -> Change:
    """Plug in a USB stick; waits until its disk is known."""
    values: dict[str, object] = {"bus": "usb.0", "port": "1.3", "drive": "stick", "serial": "ST1", "removable": True}
    change = await stage.change(
        "USB disk in",
        lambda: stage.guest.plug("usb-storage", "stick", **values),
        uevent_of("add", "block", "sda"),
        came("sda"),
    )
    await settled(stage)
    return change


async def plug_serial(stage: Stage, name: str, *, port: str, serial: str | None = None) -> None:
    """Plug in a serial adapter; returns when QEMU has done it. `serial`: as QEMU makes it up where none is given."""
    values: dict[str, object] = {"bus": "usb.0", "port": port, "chardev": f"line-{name}", "always-plugged": True}
    await stage.guest.plug("usb-serial", name, **values, **({} if serial is None else {"serial": serial}))


async def pci(stage: Stage) -> None:
    """A network card and an NVMe disk behind PCI Express ports appear with all that hangs on them, and go missing."""
    guest, events = stage.guest, len(stage.watched.heard)
    for _ in range(_ROUNDS):
        await plug_card(stage)
        await unplug_card(stage)
    for _ in range(_DISK_ROUNDS):
        await plug_flash(stage)
        await stage.change(
            "NVMe disk out",
            lambda: guest.unplug("flash"),
            uevent_of("remove", "pci", _FLASH_AT),
            went(f"pci/{_FLASH_AT}"),
        )
        await settled(stage)
    gone = {each.key for each in stage.watched.heard[events:] if isinstance(each.event, DeviceMissing)}
    stage.show(f"a card {_ROUNDS} times and a disk {_DISK_ROUNDS} times in and out: {', '.join(sorted(gone))}")


async def usb(stage: Stage) -> None:
    """A serial adapter, a stick and a keyboard behind a hub appear and go; a hub that is pulled takes all with it."""
    guest = stage.guest
    for _ in range(_ROUNDS):
        plugged = await stage.change(
            "USB device in",
            functools.partial(plug_serial, stage, "serial", port="1.4"),
            uevent_of("add", "usb", "1-1.4"),
            came("1-1.4", "usb_device"),
        )
        await settled(stage)
        await stage.change(
            "USB device out",
            functools.partial(guest.unplug, "serial"),
            uevent_of("remove", "usb", "1-1.4"),
            went(plugged.heard.key),
        )
        await settled(stage)
    for _ in range(_DISK_ROUNDS):
        await _stick(stage)
    below = await _hub(stage)
    stage.show(f"a serial adapter {_ROUNDS} times, a stick {_DISK_ROUNDS} times in and out; a hub took {below} along")


async def _stick(stage: Stage) -> None:
    guest, watched = stage.guest, stage.watched
    plugged = await plug_stick(stage)
    (owner,) = [key for key, row in (await watched.devices()).items() if row.sysfs_path.endswith("/1-1.3")]
    assert plugged.heard.key.startswith(owner), f"the disk {plugged.heard.key} is not below its stick {owner}"
    await stage.change("USB disk out", lambda: guest.unplug("stick"), uevent_of("remove", "usb", "1-1.3"), went(owner))
    await settled(stage)


async def _hub(stage: Stage) -> int:
    """How many devices below a hub went missing with it."""
    guest, watched = stage.guest, stage.watched
    hub = await stage.change(
        "USB hub in",
        lambda: guest.plug("usb-hub", "hub2", bus="usb.0", port="1.6"),
        uevent_of("add", "usb", "1-1.6"),
        came("1-1.6", "usb_device"),
    )
    key = hub.heard.key
    for port in ("1.6.1", "1.6.2"):
        await stage.change(
            "USB device in",
            functools.partial(guest.plug, "usb-kbd", f"keys{port.replace('.', '-')}", bus="usb.0", port=port),
            uevent_of("add", "usb", f"1-{port}"),
            came(f"1-{port}", "usb_device"),
        )
    await settled(stage)
    before = await watched.devices()
    events = len(watched.heard)
    await stage.change("USB hub out", lambda: guest.unplug("hub2"), uevent_of("remove", "usb", "1-1.6"), went(key))
    await settled(stage)
    gone = {each.key for each in watched.heard[events:] if isinstance(each.event, DeviceMissing)}
    path = before[key].sysfs_path
    pulled = {row.key for row in before.values() if f"{row.sysfs_path}/".startswith(f"{path}/")}
    assert gone == pulled, f"missing {sorted(gone)}, but pulled out were {sorted(pulled)}"
    return len(pulled) - 1


async def settled(stage: Stage) -> None:
    """Until the kernel, udevd and the watcher have nothing more to say of the last change."""
    await stage.watched.quiet(_CHILDREN_QUIET_S)
