"""Scenarios: devices of a real kernel that are handed over by a lease, and taken back behind its end."""

import json
from typing import Final

from leasehold.events.event_types import DeviceFreed, DeviceMissing
from leasehold.events.hostdev_events import DeviceGivenBack, DevicePrepared, DriftDetected, DriftResolved, PrepareFailed
from tests.vm.binding import CREATOR, PCI, Binding, managed
from tests.vm.hotplug import CARD_AT, CARD_KEY, plug_card, plug_stick, settled, unplug_card
from tests.vm.stage import Stage, uevent_of, went
from tests.vm.watched import HOST

_PARENT_AT: Final = "0000:02:00.0"
_PARENT: Final = f"pci/{_PARENT_AT}"
_VF_AT: Final = "0000:02:10.0"
_VF: Final = f"pci/{_VF_AT}"
_VF_MAC: Final = "52:54:00:bb:00:01"
_HOLDER_MAC: Final = "52:54:00:bb:00:99"
_USER: Final = "user of the group"
_HOLD: Final = """
import fcntl, os, signal, struct, sys
group = os.open(sys.argv[1], os.O_RDWR)
status = fcntl.ioctl(group, 0x3B67, struct.pack("II", 8, 0))
print(struct.unpack("II", status)[1] & 1, flush=True)
signal.pause()
"""
"""Opens a group of vfio and says whether it is viable (VFIO_GROUP_GET_STATUS); held until the process ends."""
_MARK: Final = """
import mmap, os, struct, sys
path, sets = sys.argv[1], len(sys.argv) > 2
config = os.open(f"{path}/config", os.O_RDWR)
os.pwrite(config, struct.pack("<H", struct.unpack("<H", os.pread(config, 2, 4))[0] | 2), 4)
memory = mmap.mmap(os.open(f"{path}/resource0", os.O_RDWR | os.O_SYNC), 0x8000)
if sets:
    memory[0x53FC:0x5400] = b"MARK"
print(memory[0x53FC:0x5400] == b"MARK")
"""
"""Puts a mark into the last word of an Intel card's table of multicast addresses, or looks whether it is there."""


async def handed_over(stage: Stage) -> None:
    """A network card goes to vfio-pci by a lease and back by its release, reset each time; not while it is in use."""
    await plug_card(stage)
    async with managed(stage) as binding:
        await binding.count_resets()
        since = len(stage.watched.heard)
        held = await binding.lease(CARD_KEY)
        prepared = await binding.prepared(CARD_KEY, since=since)
        assert (prepared.driver, prepared.was_driver) == ("vfio-pci", "e1000e"), prepared
        assert await binding.driver(CARD_AT) == "vfio-pci"
        resets = await binding.resets()
        assert resets["reset"], f"{prepared.reset} is told, and the kernel has reset nothing"
        stage.show(f"leased: {prepared.was_driver} to {prepared.driver}, reset by {prepared.reset}: {resets}")
        group = await _opened(binding, CARD_AT)
        await binding.release(held)
        refused = await binding.refused_lease(CARD_KEY)
        assert await binding.driver(CARD_AT) == "vfio-pci"
        stage.show(f"released while a process has group {group} open: {refused}")
        assert not binding.of(CARD_KEY, DeviceGivenBack, DeviceFreed, since=since)
        await stage.guest.ask("end", name=_USER, number=9)
        back = await binding.given_back(CARD_KEY, since=since)
        assert back.driver == "e1000e", back
        await binding.is_as_before(CARD_AT, "e1000e")
        assert await stage.guest.names(f"{PCI}/{CARD_AT}/net"), "the driver has it, and there is no interface"
        again = await binding.resets()
        assert again["reset"] > resets["reset"], (resets, again)
        await binding.stop_counting()
        stage.show(f"when the process had ended: back to {back.driver}, with its interface, reset: {again}")
        await settled(stage)
    await unplug_card(stage)


async def _opened(binding: Binding, address: str) -> str:
    """Have a process open the device's group, as a hypervisor does; nobody else can open it then. The group."""
    guest = binding.guest
    group = await guest.link(f"{PCI}/{address}/iommu_group")
    argv = ["python3", "-c", _HOLD, f"/dev/vfio/{group}"]
    log = f"/run/group-{group}.out"
    await guest.ask("write", path=log, text="")
    await guest.ask("start", name=_USER, argv=argv, log=log)
    await guest.run("sh", "-c", f"until grep -q . {log}; do sleep 0.05; done")
    assert str(await guest.read(log)).strip() == "1", f"group {group} is not viable"
    second = await guest.ask("run", argv=["python3", "-c", _HOLD, f"/dev/vfio/{group}"], timeout_s=30)
    assert "Device or resource busy" in second["err"], second
    return group


async def operated(stage: Stage) -> None:
    """`nodedev detach`, `reset` and `reattach` do so to the card itself: a mark in its memory goes with the reset."""
    guest = stage.guest
    async with managed(stage) as binding:
        await _operate(binding, "detach")
        assert await binding.driver(_PARENT_AT) == "vfio-pci"
        # vfio lets a card sleep that nobody uses, and one that sleeps answers nothing.
        await guest.write(f"{PCI}/{_PARENT_AT}/power/control", "on")
        argv = ("python3", "-c", _MARK, f"{PCI}/{_PARENT_AT}")
        assert (await guest.run(*argv, "set")).strip() == (await guest.run(*argv)).strip() == "True"
        await _operate(binding, "reset")
        assert (await guest.run(*argv)).strip() == "False", "the card was told to be reset, and was not"
        await _operate(binding, "reattach")
        await binding.is_as_before(_PARENT_AT, "igb")
        await settled(stage)
        since = len(stage.watched.heard)
        held = await binding.lease(_PARENT)
        refused = await binding.refused("nodedev", "reset", _PARENT, "--host", HOST)
        await binding.release(held)
        await binding.given_back(_PARENT, since=since)
        stage.show(f"detached, marked, reset: the mark is gone; reattached; while leased: {refused}")
        await settled(stage)


async def _operate(binding: Binding, operation: str) -> None:
    done = await binding.watched.cli("nodedev", operation, _PARENT, "--host", HOST, "--json", timeout_s=120)
    assert done.code == 0 and done.object["state"] == "done", f"{operation}: {done.out}{done.err}"


async def ordered_functions(stage: Stage) -> None:
    """Virtual functions are made by order; one is handed over and taken back with its settings, and its card is not."""
    guest, watched = stage.guest, stage.watched
    (name,) = await guest.names(f"{PCI}/{_PARENT_AT}/net")
    async with managed(stage, creator=True) as binding:
        await _functions(binding, 2)
        await guest.run("ip", "link", "set", name, "vf", "0", "mac", _VF_MAC)
        before = await _network(binding, name)
        since = len(watched.heard)
        held = await binding.lease(_VF)
        assert await binding.driver(_VF_AT) == "vfio-pci"
        refused = await binding.refused_lease(_PARENT)
        kept = await binding.refused("nodedev", "vfs", _PARENT, "0", "--host", HOST)
        assert await guest.names(f"{PCI}/{_VF_AT}"), "a leased function was taken away"
        # Whoever has it, or its host, gives it another address.
        await guest.run("ip", "link", "set", name, "vf", "0", "mac", _HOLDER_MAC)
        await binding.release(held)
        back = await binding.given_back(_VF, since=since)
        assert back.driver == "igbvf", back
        await binding.is_as_before(_VF_AT, "igbvf")
        assert await _network(binding, name) == before
        to = await binding.prepared(_VF, since=since)
        stage.show(f"of 2 made by order, {_VF} to {to.driver} (reset: {to.reset}) and back to {back.driver}")
        stage.show(f"meanwhile its card: {refused}")
        stage.show(f"and taken away: {kept}; its address is again {_VF_MAC}")
        await settled(stage)
        since = len(watched.heard)
        await _functions(binding, 0)
        await binding.told(DeviceMissing, _VF, since=since)
        await settled(stage)


async def _functions(binding: Binding, count: int) -> None:
    words = ("nodedev", "vfs", _PARENT, str(count), "--host", HOST, "--json")
    done = await binding.watched.cli(*words, timeout_s=120)
    assert done.code == 0, f"{done.out}{done.err}\n{await binding.watched.log(CREATOR)}"
    links = [name for name in await binding.guest.names(f"{PCI}/{_PARENT_AT}") if name.startswith("virtfn")]
    assert len(links) == count, links
    await binding.watched.quiet()


async def _network(binding: Binding, name: str) -> object:
    """What the physical function has set for its first virtual one."""
    (link,) = json.loads(await binding.guest.run("ip", "-j", "link", "show", name))
    return link["vfinfo_list"][0]


async def stick(stage: Stage) -> None:
    """A USB stick is taken from the host by a lease, disk and all, and is the host's again behind its release."""
    guest, watched = stage.guest, stage.watched
    plugged = await plug_stick(stage)
    (key,) = [key for key, row in (await watched.devices()).items() if row.sysfs_path.endswith("/1-1.3")]
    interface = "/sys/bus/usb/devices/1-1.3:1.0"
    was = await guest.link(f"{interface}/driver")
    async with managed(stage) as binding:
        since = len(watched.heard)
        held = await binding.lease(key)
        assert await guest.link(f"{interface}/driver") == "", "a driver of the host still has it"
        assert await guest.names("/sys/bus/usb/devices/1-1.3"), "the device itself has gone"
        await binding.told(DeviceMissing, plugged.heard.key, since=since)
        refused = await binding.refused_lease(key)
        await binding.release(held)
        await binding.given_back(key, since=since)
        assert await guest.link(f"{interface}/driver") == was
        await guest.run("sh", "-c", "until [ -e /sys/class/block/sda ]; do sleep 0.05; done", timeout_s=30)
        stage.show(f"leased: no driver has it, and its disk has gone ({refused}); released: {was} and its disk again")
        await settled(stage)
    await stage.change("", lambda: guest.unplug("stick"), uevent_of("remove", "usb", "1-1.3"), went(key))
    await settled(stage)


async def killed(stage: Stage) -> None:
    """A binder that is killed in the middle of handing over, or of taking back, ends right when it runs again."""
    await plug_card(stage)
    async with managed(stage) as binding:
        # Without any driver, and on the stub and not reset; then the other way.
        for to, back in (("drivers_probe", "driver/unbind"), ("reset", "e1000e/bind")):
            since = len(stage.watched.heard)
            await binding.dies_before(to)
            held = await binding.grant(CARD_KEY)
            found = await _killed(binding)
            assert not binding.of(CARD_KEY, DevicePrepared, PrepareFailed, since=since)
            await binding.start()
            await binding.told(DevicePrepared, CARD_KEY, since=since)
            assert await binding.driver(CARD_AT) == "vfio-pci"
            stage.show(f"killed before `{to}` of handing over ({found}): it was handed over")
            await binding.dies_before(back)
            await binding.release(held)
            found = await _killed(binding)
            assert not binding.of(CARD_KEY, DeviceGivenBack, DeviceFreed, since=since)
            refused = await binding.refused_lease(CARD_KEY)
            await binding.start()
            await binding.given_back(CARD_KEY, since=since)
            await binding.is_as_before(CARD_AT, "e1000e")
            stage.show(f"killed before `{back}` of taking back ({found}): {refused}; then it was back")
    await settled(stage)
    await unplug_card(stage)


async def _killed(binding: Binding) -> str:
    """Until it has killed itself; what the card is bound to then."""
    await binding.until_killed()
    return f"bound to {await binding.driver(CARD_AT) or 'nothing'}"


async def drift(stage: Stage) -> None:
    """A driver that is changed by hand under a lease is told as drift, with what the witnesses say, and as resolved."""
    watched = stage.watched
    await plug_card(stage)
    async with managed(stage) as binding:
        held = await binding.lease(CARD_KEY)
        since = len(watched.heard)
        await _by_hand(binding, "e1000e")
        heard = await binding.told(DriftDetected, CARD_KEY, since=since)
        event = heard.event
        assert isinstance(event, DriftDetected) and event.kind == "driver", event
        assert "e1000e" in event.bound.says and event.leased.position and event.bound.position, event
        listed = await watched.cli("drift", "--host", HOST)
        assert listed.code == 0 and "e1000e" in listed.out, listed.out + listed.err
        stage.show(f"bound to e1000e by hand: {event.leased.says}; {event.attached.says}; {event.bound.says}")
        since = len(watched.heard)
        await _by_hand(binding, "vfio-pci")
        await binding.told(DriftResolved, CARD_KEY, since=since)
        await binding.release(held)
        await binding.given_back(CARD_KEY, since=since)
        await binding.is_as_before(CARD_AT, "e1000e")
        stage.show("bound to vfio-pci by hand again: resolved; released, it came back")
        await settled(stage)
    await unplug_card(stage)


async def _by_hand(binding: Binding, driver: str) -> None:
    guest = binding.guest
    await guest.write(f"{PCI}/{CARD_AT}/driver_override", driver)
    await guest.write(f"{PCI}/{CARD_AT}/driver/unbind", CARD_AT)
    await guest.write("/sys/bus/pci/drivers_probe", CARD_AT)
    assert await binding.driver(CARD_AT) == driver
