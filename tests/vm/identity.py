"""Scenarios: which thing is it? Identical ones, others in the same place, and users that make no event."""

from typing import Final

from leasehold.events.event_types import DeviceReappeared, DeviceReplaced
from leasehold.events.views import DeviceView
from tests.vm.hotplug import plug_serial, settled
from tests.vm.stage import Stage, came, kinds_of, uevent_of, went
from tests.vm.watched import HOST

_USB: Final = "/sys/bus/usb/devices"
_PORTS: Final = {"a": "1.4", "b": "1.5"}
_CLAIM: Final = """
import fcntl, os, signal, struct, sys
usb = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(usb, 0x8004550F, struct.pack("I", 0))
signal.pause()
"""
"""USBDEVFS_CLAIMINTERFACE, as libusb does; held until the process ends."""


async def twins(stage: Stage) -> None:
    """Identical sticks, with the same serial and with none, are told apart by port, though ttyUSB0 and ttyUSB1 swap."""
    for serial in ("SAME", ""):
        told = f"serial {serial!r}" if serial else "no serial"
        for name in _PORTS:
            await _plug(stage, name, serial)
        first = await _lines(stage)
        assert len({row.key for row, _ in first.values()}) == 2, first
        assert {row.serial for row, _ in first.values()} == {serial}, [row.serial for row, _ in first.values()]
        events = len(stage.watched.heard)
        await _swap(stage)
        second = await _lines(stage)
        assert [row.key for row, _ in first.values()] == [row.key for row, _ in second.values()]
        assert [line for _, line in second.values()] == [line for _, line in first.values()][::-1], (first, second)
        stage.show(
            f"{told}: {first['a'][0].name} had {first['a'][1]}, {first['b'][0].name} {first['b'][1]}; "
            f"after both were authorized again {second['a'][1]} and {second['b'][1]}, keys as before"
        )
        for name in _PORTS:
            await _unplug(stage, name)
        for name in reversed(_PORTS):
            assert await _plug(stage, name, serial) is DeviceReappeared
        assert not kinds_of(stage.watched.heard[events:], DeviceReplaced), "taken for other things"
        stage.show(f"{told}: pulled out and plugged in again, the second first: each is the same as before at its port")
        for name in _PORTS:
            await _unplug(stage, name)


async def _plug(stage: Stage, name: str, serial: str) -> type:
    """Plug in a stick at its port; how the ledger calls that."""
    at = f"1-{_PORTS[name]}"
    change = await stage.change(
        "USB device in",
        lambda: plug_serial(stage, f"twin-{name}", port=_PORTS[name], serial=serial),
        uevent_of("add", "usb", at),
        came(at, "usb_device"),
    )
    await settled(stage)
    return type(change.heard.event)


async def _unplug(stage: Stage, name: str) -> None:
    at = f"1-{_PORTS[name]}"
    (key,) = [row.key for row in (await stage.watched.devices()).values() if row.sysfs_path.endswith(f"/{at}")]
    await stage.change(
        "USB device out", lambda: stage.guest.unplug(f"twin-{name}"), uevent_of("remove", "usb", at), went(key)
    )
    await settled(stage)


async def _lines(stage: Stage) -> dict[str, tuple[DeviceView, str]]:
    """Each stick as it is shown, and the device node of its serial line."""
    rows = (await stage.watched.devices()).values()
    found = {}
    for name, port in _PORTS.items():
        (stick,) = [row for row in rows if row.sysfs_path.endswith(f"/1-{port}")]
        (line,) = [
            node for row in rows if row.key.startswith(f"{stick.key}/") for node in row.devnodes if "/ttyUSB" in node
        ]
        found[name] = (stick, line)
    return found


async def _swap(stage: Stage) -> None:
    """Have the kernel number them the other way round: it takes the first free number for whoever comes first."""
    for switch, order in (("0", "ab"), ("1", "ba")):
        for name in order:
            await stage.guest.write(f"{_USB}/1-{_PORTS[name]}/authorized", switch)
            await settled(stage)


async def another_in_the_same_port(stage: Stage) -> None:
    """A lease of a stick is lost when it is pulled out, resumes with the same one, and not with another in its port."""
    watched = stage.watched
    await _plug(stage, "a", "FIRST")
    (row,) = [row for row in (await watched.devices()).values() if row.sysfs_path.endswith("/1-1.4")]
    key = row.key
    done = await watched.cli("lease", row.name, "--host", HOST, "--for", "tester", "--ttl", "10m", "--json")
    assert done.code == 0, done.err
    lease = done.object
    states = [(await watched.device(key)).state]
    events = len(watched.heard)
    for serial in ("FIRST", "SECOND"):
        await _unplug(stage, "a")
        states.append((await watched.device(key)).state)
        await _plug(stage, "a", serial)
        states.append((await watched.device(key)).state)
    assert states == ["leased", "lost", "leased", "lost", "lost"], states
    told = [type(each.event) for each in watched.heard[events:] if each.key == key]
    assert told.count(DeviceReappeared) == 1 and told.count(DeviceReplaced) == 1, told
    done = await watched.cli("release", str(lease["lease"]), "--token", str(lease["token"]))
    assert done.code == 0, done.err
    await _unplug(stage, "a")
    stage.show("a leased stick pulled out: lost; the same again: leased; pulled out, another in its port: still lost")


async def claimed_through_usbfs(stage: Stage) -> None:
    """A program that claims an interface through usbfs makes no event, and is seen at the next look by the clock."""
    guest, watched = stage.guest, stage.watched
    plugged = await stage.change(
        "USB device in",
        lambda: guest.plug("usb-ccid", "reader", bus="usb.0", port="1.7"),
        uevent_of("add", "usb", "1-1.7"),
        came("1-1.7", "usb_device"),
    )
    await watched.quiet()
    bus, device = [str(await guest.read(f"{_USB}/1-1.7/{name}")).strip() for name in ("busnum", "devnum")]
    node = f"/dev/bus/usb/{int(bus):03}/{int(device):03}"
    uevents, events = stage.marks()
    await guest.ask("start", name="claimer", argv=["python3", "-c", _CLAIM, node], log="/run/claimer.out")
    heard = await watched.event(
        lambda each: each.device is not None and each.device.driver == "usbfs", "a claim through usbfs", since=events
    )
    assert heard.how is not None and heard.how.why == "clock", heard
    told = [each for each in guest.uevents[uevents:] if "/1-1.7" in each.path]
    assert not told, f"it made events: {told}"
    users = (await watched.device(plugged.heard.key)).in_use_by
    await guest.ask("end", name="claimer", number=9)
    await watched.event(
        lambda each: each.key == heard.key and each.device is not None and not each.device.driver,
        "the end of the claim",
        since=events,
    )
    await guest.unplug("reader")
    await watched.quiet(1.0)
    stage.show(f"a claim through usbfs: no uevent; driver `usbfs` at the next look by the clock, in use by {users}")
