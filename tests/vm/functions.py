"""Scenarios: functions of a card. Virtual ones, drivers that change, and Fibre Channel ports made by order."""

import functools
import re
from collections.abc import Callable
from typing import Final

from leasehold.events.capabilities import Pci, ScsiHost
from leasehold.events.event_types import DeviceChanged, SourceStarted
from leasehold.events.views import DeviceView
from leasehold.services.cli.common import EXIT_REFUSED
from tests.support.running import Done
from tests.vm.described import validated
from tests.vm.guest import Uevent
from tests.vm.hotplug import CARD_AT, CARD_KEY, plug_card, settled, unplug_card
from tests.vm.stage import Stage, became, came, kinds_of, uevent_of, went
from tests.vm.watched import HOST

_PCI: Final = "/sys/bus/pci/devices"
_PARENT_AT: Final = "0000:02:00.0"
_PARENT: Final = f"pci/{_PARENT_AT}"
_VFS: Final = ("0000:02:10.0", "0000:02:10.2")
_DRIVER_ROUNDS: Final = 3


async def virtual_functions(stage: Stage) -> None:
    """Virtual functions that are made appear below their physical one, in IOMMU groups of their own, and go again."""
    guest, watched = stage.guest, stage.watched
    for number in range(2):
        events = len(watched.heard)
        await stage.change(
            "virtual function in",
            lambda: guest.write(f"{_PCI}/{_PARENT_AT}/sriov_numvfs", "2"),
            uevent_of("add", "pci", _VFS[0]),
            came(_VFS[0], "pci"),
        )
        await watched.event(came(_VFS[1], "pci"), "the second virtual function", since=events)
        await settled(stage)
        parent = await watched.device(_PARENT)
        rows = [await watched.device(f"pci/{address}") for address in _VFS]
        assert [row.physical_function for row in rows] == [_PARENT] * 2, rows
        assert set(parent.virtual_functions) == {row.key for row in rows}, parent.virtual_functions
        assert isinstance(parent.capability, Pci) and parent.capability.virtual_functions_max == 7, parent.capability
        assert len({parent.iommu_group, *(row.iommu_group for row in rows)}) == 3, [row.iommu_group for row in rows]
        assert all(row.driver == "igbvf" for row in rows), [row.driver for row in rows]
        if number == 0:
            await _kept_apart(stage, parent, rows[0])
        await stage.change(
            "virtual function out",
            lambda: guest.write(f"{_PCI}/{_PARENT_AT}/sriov_numvfs", "0"),
            uevent_of("remove", "pci", _VFS[0]),
            went(f"pci/{_VFS[0]}"),
        )
        await settled(stage)
    stage.show(f"2 of 7 virtual functions made twice, shown below {_PARENT} with driver igbvf, and taken away")


async def _kept_apart(stage: Stage, parent: DeviceView, child: DeviceView) -> None:
    """Who holds a virtual function keeps others from its physical one."""
    watched = stage.watched
    done = await watched.cli("lease", child.name, "--host", HOST, "--for", "tester", "--ttl", "10m", "--json")
    assert done.code == 0, done.err
    lease = done.object
    refused = await watched.cli("lease", parent.name, "--host", HOST, "--for", "another", "--ttl", "10m")
    assert refused.code != 0, refused.out
    done = await watched.cli("release", str(lease["lease"]), "--token", str(lease["token"]))
    assert done.code == 0, done.err
    stage.show(f"while {child.name} is leased, {parent.name} is not given to another: {_words(refused)}")


def _words(refused: Done) -> str:
    """The first that a command said."""
    return " ".join((refused.out + refused.err).split())[:160]


async def drivers(stage: Stage) -> None:
    """A driver that is taken away and replaced by another is told, with its name, and stands in the history."""
    guest, watched = stage.guest, stage.watched
    await guest.run("modprobe", "vfio-pci")
    await plug_card(stage)
    assert (await watched.device(CARD_KEY)).driver == "e1000e"
    events, position = len(watched.heard), 0
    for driver in ("vfio-pci", "e1000e") * _DRIVER_ROUNDS:
        await guest.write(f"{_PCI}/{CARD_AT}/driver_override", driver if driver == "vfio-pci" else "\n")
        await stage.change(
            "driver changed",
            functools.partial(_rebind, stage),
            _bound(driver),
            # A quick look may see it without any driver in between, which is told, too.
            became(CARD_KEY, driver=driver),
        )
        await settled(stage)
        if (await watched.device(CARD_KEY)).driver == "vfio-pci":
            position = watched.client.seen
    then = await watched.cli("device", CARD_KEY, "--host", HOST, "--at", str(position), "--json")
    assert then.code == 0 and then.object["driver"] == "vfio-pci", then.out + then.err
    shown = await watched.cli("history", CARD_KEY, "--host", HOST)
    lines = [line.strip() for line in shown.out.splitlines() if "is vfio-pci" in line]
    assert lines, shown.out
    changes = kinds_of([each for each in watched.heard[events:] if each.key == CARD_KEY], DeviceChanged)
    assert all(each.how is not None for each in changes), changes
    group = (await watched.device(CARD_KEY)).iommu_group
    stage.show(
        f"bound to vfio-pci and back {_DRIVER_ROUNDS} times (IOMMU group {group}), "
        f"and known as such `--at {position}`; history says: {lines[0]}"
    )
    await unplug_card(stage)


async def _rebind(stage: Stage) -> None:
    await stage.guest.write(f"{_PCI}/{CARD_AT}/driver/unbind", CARD_AT)
    await stage.guest.write("/sys/bus/pci/drivers_probe", CARD_AT)


def _bound(driver: str) -> Callable[[Uevent], bool]:
    """Whether the kernel tells that the card has this driver."""
    return lambda each: uevent_of("bind", "pci", CARD_AT)(each) and each.values.get("DRIVER") == driver


async def vports(stage: Stage) -> None:
    """A virtual HBA is made and destroyed by order on a real fc_host, and refused where the kernel refuses."""
    guest, watched = stage.guest, stage.watched
    await plug_card(stage)
    (name,) = await guest.names(f"{_PCI}/{CARD_AT}/net")
    await guest.run("ip", "link", "set", name, "up")
    await guest.run("modprobe", "fcoe")
    await stage.change(
        "FC host in",
        lambda: guest.write("/sys/bus/fcoe/ctlr_create", name),
        lambda each: each.action == "add" and each.subsystem == "fc_host",
        lambda each: each.device is not None and isinstance(each.device.capability, ScsiHost),
    )
    await watched.quiet()
    (parent,) = await watched.client.devices(host=HOST, cap="vports")
    assert isinstance(parent.capability, ScsiHost) and parent.capability.fc_host is not None, parent
    fc_host = parent.capability.fc_host
    stage.show(f"{parent.name} at {parent.key}: wwnn {fc_host.wwnn}, wwpn {fc_host.wwpn}, {fc_host.port_state}")
    refused = await watched.cli("nodedev", "create-vport", "--host", HOST)
    assert refused.code == EXIT_REFUSED, "no creator runs there, and yet it was ordered"
    stage.show(f"without a creator there: {_words(refused)}")
    await watched.start_agent("creator")
    await _creator_heard(stage)
    made = await _make_vport(stage, parent)
    again = await watched.cli("nodedev", "create-vport", "--parent", parent.name, *_names_of(made), "--host", HOST)
    assert again.code == EXIT_REFUSED, "two virtual HBAs with one name"
    stage.show(f"once more by the same names: {_words(again)}")
    await _destroy_vport(stage, made)
    orders = await watched.client.orders(host=HOST, ended=True)
    stage.show(f"orders: {', '.join(f'{type(row.what).__name__} {row.state}' for row in orders)}")
    await watched.end_agent("creator")
    await guest.write("/sys/bus/fcoe/ctlr_destroy", name)
    await settled(stage)
    await unplug_card(stage)


async def _creator_heard(stage: Stage) -> None:
    """Until the log knows that somebody acts on that host."""
    await stage.watched.event(
        lambda each: isinstance(each.event, SourceStarted) and each.event.agent == "creator",
        "the creator's start",
        since=0,
        timeout_s=120,
    )


def _names_of(row: DeviceView) -> tuple[str, str, str, str]:
    assert isinstance(row.capability, ScsiHost) and row.capability.fc_host is not None
    return "--wwnn", row.capability.fc_host.wwnn, "--wwpn", row.capability.fc_host.wwpn


async def _make_vport(stage: Stage, parent: DeviceView) -> DeviceView:
    watched, guest = stage.watched, stage.guest

    async def create() -> None:
        done = await watched.cli("nodedev", "create-vport", "--parent", parent.name, "--host", HOST, "--json")
        assert done.code == 0, f"{done.out}{done.err}\n{await watched.log('creator')}"

    change = await stage.change(
        "vport made",
        create,
        lambda each: each.action == "add" and each.subsystem == "fc_host",
        lambda each: each.device is not None and getattr(each.device.capability, "is_vport", False),
    )
    made = await watched.device(change.heard.key)
    _, wwnn, _, wwpn = _names_of(made)
    host = re.search(r"/(host\d+)$", made.sysfs_path)
    assert host is not None, made.sysfs_path
    real = str(await guest.read(f"/sys/class/fc_host/{host[1]}/port_name")).strip()
    assert real == f"0x{wwpn}", (real, wwpn)
    stage.show(f"made by order: {made.name} below {made.parent_name}, wwnn {wwnn}, wwpn {wwpn}, as the kernel says")
    stage.show(f"of HBA and virtual HBA {validated([parent, made])}")
    return made


async def _destroy_vport(stage: Stage, made: DeviceView) -> None:
    watched = stage.watched

    async def destroy() -> None:
        done = await watched.cli("nodedev", "destroy", made.key, "--host", HOST, "--json")
        assert done.code == 0, f"{done.out}{done.err}\n{await watched.log('creator')}"

    await stage.change(
        "vport destroyed",
        destroy,
        lambda each: each.action == "remove" and each.subsystem == "fc_host",
        went(made.key),
    )
    left = await stage.guest.names("/sys/class/fc_vports")
    assert not left, left
