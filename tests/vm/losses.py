"""Scenarios: the watcher was away, udevd is, and events were lost."""

import signal
from typing import Final

from leasehold.events.event_types import DeviceAppeared, DeviceChanged, DeviceMissing, DeviceReappeared, EventsMissed
from tests.vm import hotplug
from tests.vm.hotplug import CARD_AT, CARD_KEY, plug_card
from tests.vm.stage import Stage, came, kinds_of
from tests.vm.watched import encoded

_SMALL_BUFFER: Final = ("/mnt/repo/tests/vm/small_buffer.py",)
_MODULES: Final = ("e1000e", "nvme", "ftdi_sio", "usb_storage", "uas", "sd_mod", "usbhid")
_FLOOD: Final = 20_000
_LOOPBACK: Final = "/sys/class/net/lo/uevent"
_ALL_PATHS: Final = """
for each in /sys/bus/usb/devices/* /sys/bus/pci/devices/* /sys/class/net/*; do [ -L $each ] && readlink -f $each; done
"""


async def restart(stage: Stage) -> None:
    """A watcher that starts again tells nothing where nothing has changed, and exactly what has changed meanwhile."""
    guest, watched = stage.guest, stage.watched
    await plug_card(stage)
    before = {key: encoded(row) for key, row in (await watched.devices()).items()}
    await watched.end_agent("watcher")
    events = await watched.start_watcher()
    await watched.quiet()
    told = watched.of_devices(events)
    assert not told, f"nothing had changed, and yet it told {told}"
    after = {key: encoded(row) for key, row in (await watched.devices()).items()}
    assert before == after, set(before.items()) ^ set(after.items())
    gone = {key for key in before if key == CARD_KEY or key.startswith(f"{CARD_KEY}/")}
    await watched.end_agent("watcher")
    uevents = len(guest.uevents)
    await guest.unplug("card")
    await guest.uevent(lambda each: each.action == "remove" and each.path.endswith(CARD_AT), since=uevents)
    await guest.run("ip", "link", "add", "meanwhile0", "type", "dummy")
    events = await watched.start_watcher()
    await watched.quiet()
    told = watched.of_devices(events)
    missing = {each.key for each in told if isinstance(each.event, DeviceMissing)}
    assert missing == gone, (missing, gone)
    (new,) = [each for each in told if isinstance(each.event, DeviceAppeared | DeviceReappeared)]
    assert came("meanwhile0")(new), new
    # Its port tells of its own link, which is down now.
    changed = [each for each in told if isinstance(each.event, DeviceChanged)]
    assert len(told) == len(missing) + 1 + len(changed), told
    assert all(each.device is not None and each.device.bridge for each in changed), changed
    assert all(each.how is not None and each.how.why == "start" for each in told), told
    stage.show(
        f"started again: no event of {len(before)} devices; after a card was pulled and an interface made meanwhile: "
        f"{len(missing)} missing, 1 new, {len(changed)} changed (its port)"
    )
    await guest.run("ip", "link", "delete", "meanwhile0")
    await watched.quiet()


async def kernel_as_source(stage: Stage) -> None:
    """Without udevd the kernel itself is heard, and the same comes into the ledger sooner."""
    # Nobody else loads what a device needs.
    await stage.guest.run("modprobe", "-a", *_MODULES)
    async with stage.watched.without_udevd():
        await hotplug.pci(stage)
        await hotplug.usb(stage)
    ours, theirs = stage.figures.all_of("kernel"), stage.figures.all_of("udev")
    assert ours, "nothing was told by the kernel"
    stage.show(f"{len(ours)} changes told by the kernel itself (by udevd: {len(theirs)})")


async def overflow(stage: Stage) -> None:
    """Events that were lost are told as lost, everything is looked at again, and the picture is the kernel's."""
    async with stage.watched.without_udevd(program=_SMALL_BUFFER):
        await _overrun(stage)


async def _overrun(stage: Stage) -> None:
    guest, watched = stage.guest, stage.watched
    events = len(watched.heard)
    await guest.ask("tell", uevents=False)
    await guest.ask("signal", name="watcher", number=int(signal.SIGSTOP))
    took_s = (await guest.ask("flood", path=_LOOPBACK, count=_FLOOD))["took_s"]
    await guest.run("ip", "link", "add", "unheard0", "type", "dummy")
    await hotplug.plug_serial(stage, "serial", port="1.4")
    await guest.run("sh", "-c", "until [ -e /sys/bus/usb/devices/1-1.4:1.0 ]; do busybox usleep 20000; done")
    await guest.ask("signal", name="watcher", number=int(signal.SIGCONT))
    await guest.ask("tell", uevents=True)
    for wanted, what in ((came("unheard0"), "the interface"), (came("1-1.4"), "the stick")):
        await watched.event(wanted, f"{what} that nobody heard of", since=events)
    await watched.quiet()
    missed = kinds_of(watched.heard[events:], EventsMissed)
    lost = [each for each in watched.of_devices(events) if each.how is not None and each.how.why == "lost_events"]
    assert missed and lost, watched.heard[events:]
    known = {row.sysfs_path for row in (await watched.devices()).values()}
    there = set((await guest.run("sh", "-c", _ALL_PATHS)).split())
    assert there <= known, there - known
    times = sum(each.times for each in missed)
    stage.show(
        f"{_FLOOD:,} events in {took_s:.1f} s into a buffer of 128 KiB: everything looked at again ({times} times), "
        f"{len(lost)} devices told with cause `lost_events`; the picture is the kernel's"
    )
    await guest.unplug("serial")
    await guest.run("ip", "link", "delete", "unheard0")
    await watched.quiet()
