"""Scenarios: interfaces that the guest makes itself, and links that go down and up."""

import functools
import time
from collections.abc import Callable
from typing import Final

from leasehold.events.capabilities import Bond, Bridge, Net, Vlan
from tests.vm.figures import Delay
from tests.vm.hotplug import CARD_AT, plug_card, settled
from tests.vm.stage import NS_PER_MS, Stage, became, came, uevent_of, went
from tests.vm.watched import HOST, Heard

_LINK_ROUNDS: Final = 4
_REST_S: Final = 4.0
"""Between changes of one link: what changes more often is told now and then only."""
_MADE: Final = (
    ("trunk0", "link add trunk0 type dummy"),
    ("trunk0.10", "link add link trunk0 name trunk0.10 type vlan id 10"),
    ("port0", "link add port0 type dummy"),
    ("bond1", "link add bond1 type bond mode active-backup"),
    ("br0", "link add br0 type bridge"),
)


async def networks(stage: Stage) -> None:
    """VLANs, bonds and bridges are told with their numbers, lower interfaces and members, and go again."""
    guest, watched = stage.guest, stage.watched
    keys = {}
    for name, words in _MADE:
        change = await stage.change(
            "interface made",
            functools.partial(guest.run, "ip", *words.split()),
            uevent_of("add", "net", name),
            came(name, "net"),
        )
        keys[name] = change.heard.key
        await settled(stage)
    for words in ("set port0 master bond1", "set trunk0.10 master br0", "set br0 up", "set bond1 up"):
        await guest.run("ip", "link", *words.split())
    await watched.quiet()
    vlan, bond, bridge = [(await watched.device(keys[name])) for name in ("trunk0.10", "bond1", "br0")]
    kinds = [row.capability.kind for row in (vlan, bond, bridge) if isinstance(row.capability, Net)]
    assert isinstance(kinds[0], Vlan) and (kinds[0].id, kinds[0].protocol) == (10, "802.1Q"), kinds
    assert isinstance(kinds[1], Bond) and kinds[1].mode == "active-backup", kinds
    assert isinstance(kinds[2], Bridge), kinds
    assert (vlan.lower, vlan.master, bridge.members) == ("trunk0", "br0", ("trunk0.10",)), (vlan, bridge)
    assert bond.members == ("port0",), bond
    stage.show(
        f"{vlan.name}: VLAN {kinds[0].id} on {vlan.lower}, in {vlan.master}; {bond.name} ({kinds[1].mode}) of"
        f" {', '.join(bond.members)}; {bridge.name} of {', '.join(bridge.members)}"
    )
    for name, _ in reversed(_MADE):
        await stage.change(
            "interface deleted",
            functools.partial(guest.run, "ip", "link", "delete", name),
            uevent_of("remove", "net", name),
            went(keys[name]),
        )
        await settled(stage)


async def links(stage: Stage) -> None:
    """A cable that is pulled makes no uevent, and is told at once; a new name is told under the old key."""
    guest, watched = stage.guest, stage.watched
    await plug_card(stage)
    (name,) = await guest.names(f"/sys/bus/pci/devices/{CARD_AT}/net")
    (row,) = [row for row in (await watched.devices()).values() if row.sysfs_path.endswith(f"/net/{name}")]
    # Not back to its old name, which udevd has made an alternative name of the new one.
    for new in ("wire0", "wire1"):
        renamed = await stage.change(
            "interface renamed",
            functools.partial(guest.run, "ip", "link", "set", name, "name", new),
            uevent_of("move", "net", new),
            lambda each: became(row.key)(each) and each.device is not None and "/net/" in each.device.sysfs_path,
        )
        device = renamed.heard.device
        assert device is not None and device.sysfs_path.endswith(f"/net/{new}"), device
        await settled(stage)
        name = new
    stage.show(f"{row.key} was renamed twice under its key: {row.name}, now {(await watched.device(row.key)).name}")
    await guest.run("ip", "link", "set", name, "up")
    await watched.quiet()
    for state in ("down", "up") * _LINK_ROUNDS:
        uevents, events = stage.marks()
        asked_ns = time.time_ns()
        await guest.monitor("set_link", name="card", up=state == "up")
        heard = await watched.event(_link_is(row.key, state), f"link {state}", since=events)
        source = heard.how.source if heard.how else ""
        delay = Delay(-1, (heard.at_ns - asked_ns) / NS_PER_MS)
        stage.figures.delay(f"link {state} (from the cable)", source or "clock", delay)
        await watched.quiet(_REST_S)
        assert not [each for each in guest.uevents[uevents:] if each.path.endswith(f"/{name}")], "it made a uevent"
    shown = await watched.cli("history", row.key, "--host", HOST)
    lines = [line.strip() for line in shown.out.splitlines() if "link is down" in line]
    assert lines, shown.out
    stage.show(f"{row.name}: link down and up {_LINK_ROUNDS} times without a uevent; history says: {lines[0]}")
    await guest.unplug("card")
    await watched.quiet()


def _link_is(key: str, state: str) -> Callable[[Heard], bool]:
    """Whether the interface is told to have this link."""

    def wanted(each: Heard) -> bool:
        net = each.device.capability if each.device is not None and each.key == key else None
        return isinstance(net, Net) and (net.link_state == "up") == (state == "up")

    return wanted
