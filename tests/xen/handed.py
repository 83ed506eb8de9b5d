"""Scenarios: cards that are handed to domains of a real Xen by a lease, and taken back behind its end."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from leasehold.events.event_types import DeviceFreed
from leasehold.events.hostdev_events import DeviceGivenBack
from leasehold.services.poller import xltext
from leasehold.services.poller.libxl import BACKENDS
from tests.vm.binding import PCI, Binding, managed
from tests.vm.stage import Stage, became
from tests.xen.domains import Told, begun, ended
from tests.xen.guest import CARDS
from tests.xen.xl import Xl

CARD: Final = CARDS[1]
KEY: Final = f"pci/{CARD}"
OWNER_KEY: Final = f"/libxl/pci/{CARD.replace(':', '-').replace('.', '-')}/domid"
_uuids: Final = (f"5eed0000-0000-4000-9000-{number:012x}" for number in itertools.count(1))


@asynccontextmanager
async def _of_dom0(stage: Stage) -> AsyncIterator[Binding]:
    """While dom0 itself has the card, and a binder hands it to domains; then it is offered to them as before."""
    xl, watched = Xl(stage.guest), stage.watched
    since = len(watched.heard)
    await xl.do("pci-assignable-remove", "-r", CARD)
    await watched.event(became(KEY, driver="e1000e"), "the card on its driver", since=since)
    await watched.quiet()
    async with managed(stage, "--stub", "pciback") as binding:
        yield binding
    await xl.do("pci-assignable-add", CARD)
    await watched.quiet()


async def handed_over(stage: Stage) -> None:
    """A card goes to xen-pciback by a lease, to a domain, and back to dom0 when that has let it go; there it sends."""
    xl = Xl(stage.guest)
    async with _of_dom0(stage) as binding:
        await _sends(stage)
        uuid, since = next(_uuids), len(stage.watched.heard)
        held = await binding.lease(KEY, "--domain", uuid)
        to = await binding.prepared(KEY, since=since)
        assert (to.driver, to.was_driver) == ("pciback", "e1000e"), to
        assert await binding.driver(CARD) == "pciback"
        offered = await xl.offered()
        assert CARD in offered, offered
        _, told = await begun(stage, "web1", uuid=uuid, cards=[CARD])
        assert (await stage.watched.device(KEY)).state == "leased"
        stage.show(f"leased: {to.was_driver} to {to.driver}, reset by {to.reset or 'nothing'}; the domain has it")
        await binding.release(held)
        refused = await binding.refused_lease(KEY)
        assert await binding.driver(CARD) == "pciback" and await xl.cards("web1") == [CARD]
        assert not binding.of(KEY, DeviceGivenBack, DeviceFreed, since=since)
        stage.show(f"released while the domain runs: {refused}")
        await ended(stage, "web1", told, cards=[CARD])
        back = await binding.given_back(KEY, since=since)
        assert back.driver == "e1000e" and await binding.driver(CARD) == "e1000e", back
        stage.show(f"when the domain had gone: back to {back.driver}, and {await _sends(stage)}")


async def _sends(stage: Stage) -> str:
    """Dom0's driver can use the card: what it sends goes out, and Xen's IOMMU lets it read what that is.

    Behind a domain Xen keeps a card in quarantine, from which only its tools take it. A driver binds to it there, too.
    """
    guest = stage.guest
    before = await _faults(stage)
    (name,) = await guest.names(f"{PCI}/{CARD}/net")
    counter = f"/sys/class/net/{name}/statistics/tx_packets"
    sent = int(str(await guest.read(counter)))
    await guest.run("ip", "link", "set", name, "up")
    # It tells its neighbours that it is there, as soon as its link is.
    is_known = f"[ $(cat {counter}) -gt {sent} ] || [ $(xl dmesg | grep -c DMAR:) -gt {before} ]"
    await guest.run("sh", "-c", f"until {is_known}; do sleep 0.2; done", timeout_s=60)
    await guest.run("ip", "link", "set", name, "down")
    assert await _faults(stage) == before, (await guest.run("xl", "dmesg"))[-600:]
    return f"it sends, as {name}"


async def _faults(stage: Stage) -> int:
    """How often Xen's IOMMU has kept a card from what it wanted."""
    text = await stage.guest.run("xl", "dmesg")
    return sum("DMAR:" in line for line in text.splitlines())


async def owner_key(stage: Stage) -> None:
    """libxl forgets who owns a card when it refuses it to another; the ledger does not, nor does the binder take it."""
    xl = Xl(stage.guest)
    async with _of_dom0(stage) as binding:
        uuid, since = next(_uuids), len(stage.watched.heard)
        held = await binding.lease(KEY, "--domain", uuid)
        _, told = await begun(stage, "owner", uuid=uuid, cards=[CARD])
        first = await _witnesses(stage)
        assert first.startswith("owner key 1") or "owner key none" not in first, first
        assert CARD not in await xl.offered()
        thief = Told(stage, next(_uuids))
        code, _ = await xl.create("thief", thief.uuid, cards=[CARD])
        assert code != 0, "two domains have one card"
        second = await _witnesses(stage)
        assert "owner key none" in second and CARD in await xl.offered(), second
        stage.show(f"before: {first}")
        stage.show(f"behind a refusal to another domain: {second}")
        shown = await stage.watched.device(KEY)
        assert shown.state == "leased" and [use.name for use in shown.used_by if use.use == "attached"] == ["owner"]
        stage.show(f"in the ledger: leased, with owner; to others: {await binding.refused_lease(KEY)}")
        await binding.release(held)
        shown = await stage.watched.device(KEY)
        assert shown.state == "ending" and [use.name for use in shown.used_by if use.use == "attached"] == ["owner"]
        await binding.refused_lease(KEY)
        assert await binding.driver(CARD) == "pciback"
        assert not binding.of(KEY, DeviceGivenBack, DeviceFreed, since=since)
        await ended(stage, "owner", told, cards=[CARD])
        await binding.given_back(KEY, since=since)
        assert await binding.driver(CARD) == "e1000e"
        stage.show("released, it stayed with its domain until that was gone, though libxl offered it all the time")


async def _witnesses(stage: Stage) -> str:
    """What libxl's key, its list and its backends say of the card."""
    guest = stage.guest
    done = await guest.ask("run", argv=["xenstore-read", OWNER_KEY], timeout_s=30)
    backends = xltext.read_backends(await guest.run("xenstore-ls", "-f", BACKENDS))
    offered = CARD in await Xl(guest).offered()
    owner = str(done["out"]).strip() or "none"
    return f"owner key {owner}, {'offered' if offered else 'not offered'}, backends {list(map(tuple, backends))}"
