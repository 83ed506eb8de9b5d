"""Scenarios: domains that begin, change, have devices and go, as a real Xen does it and as it comes into the ledger."""

import itertools
from collections.abc import Callable, Sequence
from typing import Final

from leasehold.events.domains import parse_device_word
from leasehold.events.event_types import (
    AttachmentGone,
    AttachmentSeen,
    DomainAppeared,
    DomainChanged,
    DomainStarted,
    DomainVanished,
    Event,
    SourceSeesAgain,
    SourceStarted,
    SourceWentBlind,
)
from leasehold.events.identities import uuid_of
from leasehold.events.views import DomainView
from leasehold.services.cli.common import EXIT_REFUSED
from leasehold.services.poller import xltext
from leasehold.services.poller.libxl import BACKENDS
from tests.vm.binding import BINDER
from tests.vm.stage import Stage
from tests.vm.watched import HOST, Heard
from tests.xen.guest import CARDS
from tests.xen.xl import MEMORY_MB, Xl

POLLER: Final = "poller"
_MIB: Final = 1024 * 1024
_WAIT_S: Final = 240.0
"""For what domains do under emulation, on a machine that does other things, too."""
_uuids: Final = (f"5eed0000-0000-4000-8000-{number:012x}" for number in itertools.count(1))

DomainEvent = DomainAppeared | DomainChanged | DomainStarted | DomainVanished | AttachmentSeen | AttachmentGone


def of_domain(event: Event) -> str:
    """The uuid of the domain that an event is about; empty if it is about none."""
    if isinstance(event, DomainAppeared | DomainChanged | DomainStarted):
        return uuid_of(event.domain.key)
    if isinstance(event, DomainVanished):
        return uuid_of(event.key)
    return uuid_of(event.domain) if isinstance(event, AttachmentSeen | AttachmentGone) else ""


class Told:
    """What the ledger is told of one domain, from when this was made."""

    def __init__(self, stage: Stage, uuid: str) -> None:
        self.uuid = uuid
        self._stage = stage
        self._mark = len(stage.watched.heard)

    def events(self) -> list[Event]:
        """All of it so far, in order, since `forget`."""
        return [each.event for each in self._stage.watched.heard[self._mark :] if of_domain(each.event) == self.uuid]

    def forget(self) -> None:
        """Begin anew."""
        self._mark = len(self._stage.watched.heard)

    async def until(self, kind: type[Event], fits: Callable[[Event], bool] = lambda _event: True) -> Event:
        """The first event of this type that fits."""

        def wanted(each: Heard) -> bool:
            return of_domain(each.event) == self.uuid and isinstance(each.event, kind) and fits(each.event)

        heard = await self._stage.watched.event(
            wanted, f"{kind.__name__} of {self.uuid}", since=self._mark, timeout_s=_WAIT_S
        )
        return heard.event

    async def only(self, *kinds: type[Event]) -> None:
        """Wait until the last of these has come; there are these, in this order, and nothing else."""
        await self.until(kinds[-1])
        found = [type(event) for event in self.events()]
        assert found == list(kinds), self.events()


async def begun(
    stage: Stage, name: str, *, uuid: str = "", cards: Sequence[str] = (), on_crash: str = "destroy"
) -> tuple[str, Told]:
    """Start a domain and wait until it is told as running, with its devices; its uuid."""
    uuid = uuid or next(_uuids)
    told = Told(stage, uuid)
    code, text = await Xl(stage.guest).create(name, uuid, cards=cards, on_crash=on_crash)
    assert code == 0, text
    await _shown(stage, uuid, lambda row: row.state == "running" and row.max_memory_bytes > 0)
    for card in cards:
        await told.until(AttachmentSeen, _has(card))
    assert isinstance(told.events()[0], DomainAppeared)
    assert not [event for event in told.events() if isinstance(event, DomainVanished | AttachmentGone | DomainStarted)]
    await _is_as_xl_says(stage, uuid)
    told.forget()
    return uuid, told


def _has(card: str) -> Callable[[Event], bool]:
    """Whether an event tells that a domain has (or has no more) this card."""
    word = parse_device_word(f"pci/{card}")
    return lambda event: getattr(event, "device", "") == word and getattr(event, "use", "") == "attached"


async def _shown(stage: Stage, uuid: str, fits: Callable[[DomainView], bool]) -> DomainView:
    """The domain, as soon as people are shown it like that."""
    since = 0
    while True:
        rows = [row for row in await stage.watched.client.domains(host=HOST) if row.uuid == uuid]
        if rows and fits(rows[0]):
            return rows[0]
        await stage.watched.event(
            lambda each: of_domain(each.event) == uuid, f"a change of {rows}", since=since, timeout_s=_WAIT_S
        )
        since = len(stage.watched.heard)


async def _is_as_xl_says(stage: Stage, uuid: str) -> None:
    """What people are shown of a domain is what `xl` prints of it."""
    xl = Xl(stage.guest)
    shown = await _shown(stage, uuid, lambda row: bool(row.name))
    row, detail = (await xl.rows())[uuid], (await xl.details())[uuid]
    assert (shown.name, shown.domid, shown.state) == (row.name, row.domid, row.state)
    assert (shown.memory_bytes, shown.max_memory_bytes) == (detail.memory_bytes, detail.max_memory_bytes)
    assert (shown.vcpus, shown.kind) == (1, "pv")
    attached = sorted(use.said.removeprefix("pci/") for use in shown.uses if use.use == "attached")
    assert attached == await xl.cards(row.name)


async def ended(stage: Stage, name: str, told: Told, *, cards: Sequence[str] = ()) -> None:
    """Destroy a domain; what it had goes before it does."""
    told.forget()
    await Xl(stage.guest).do("destroy", name)
    await told.until(DomainVanished)
    events = told.events()
    gone = [event.device for event in events if isinstance(event, AttachmentGone) and event.use == "attached"]
    assert sorted(gone) == sorted(f"pci/{card}" for card in cards), events
    assert isinstance(events[-1], DomainVanished)
    others = [event for event in events if not isinstance(event, AttachmentGone | DomainVanished)]
    assert all(isinstance(event, DomainChanged) and "state" in event.changed for event in others), others


async def lives(stage: Stage) -> None:
    """A domain that begins, is paused, renamed, given less memory and destroyed is told as just that."""
    xl = Xl(stage.guest)
    uuid, told = await begun(stage, "web1")
    for command, state in (("pause", "paused"), ("unpause", "running")):
        await xl.do(command, "web1")
        await told.only(DomainChanged)
        assert (await _shown(stage, uuid, lambda _row: True)).state == state
        told.forget()
    await xl.do("rename", "web1", "web2")
    await told.only(DomainChanged)
    assert [getattr(event, "changed", ()) for event in told.events()] == [("name",)]
    told.forget()
    await xl.do("mem-set", "web2", str(MEMORY_MB // 2))
    await told.only(DomainChanged)
    row = await _shown(stage, uuid, lambda _row: True)
    assert (row.memory_bytes, row.max_memory_bytes) == (MEMORY_MB // 2 * _MIB, MEMORY_MB * _MIB), row
    await _is_as_xl_says(stage, uuid)
    await ended(stage, "web2", told)
    stage.show(
        "appeared, paused, went on, got another name and less memory, vanished: each told once, and nothing else"
    )


async def reboots(stage: Stage) -> None:
    """A reboot keeps the uuid and changes the incarnation; the domain has not gone meanwhile."""
    uuid, told = await begun(stage, "web1")
    before = await _shown(stage, uuid, lambda _row: True)
    await Xl(stage.guest).do("reboot", "web1")
    await told.until(DomainStarted)
    after = await _shown(stage, uuid, lambda row: row.state == "running" and row.domid != before.domid)
    assert not [event for event in told.events() if isinstance(event, DomainVanished | DomainAppeared)], told.events()
    stage.show(f"domid {before.domid} became {after.domid}: {[type(event).__name__ for event in told.events()]}")
    await ended(stage, "web1", told)


async def crashes(stage: Stage) -> None:
    """A domain that has crashed and is preserved is shown as crashed, and has its card until it is destroyed."""
    uuid, told = await begun(stage, "gpu", cards=CARDS[:1], on_crash="preserve")
    await Xl(stage.guest).do("sysrq", "gpu", "c")
    await _shown(stage, uuid, lambda row: row.state == "crashed")
    assert not [event for event in told.events() if not isinstance(event, DomainChanged)], told.events()
    await _is_as_xl_says(stage, uuid)
    await _is_foreign(stage, CARDS[0], "gpu")
    await ended(stage, "gpu", told, cards=CARDS[:1])
    # It could not give its card back: xenstore still has that as its own, and xl gives it to the next one, which is
    # that of the next scenario.
    left = xltext.read_backends(await stage.guest.run("xenstore-ls", "-f", BACKENDS))
    assert CARDS[0] in await Xl(stage.guest).offered()
    await _is_leased(stage, CARDS[0])
    stage.show("crashed and preserved, it kept its card until it was destroyed")
    stage.show(f"xenstore then had {list(map(tuple, left))}; the card was leased")


async def devices(stage: Stage) -> None:
    """Cards that are given to a domain at its start and later are told, are foreign, and are not granted."""
    xl = Xl(stage.guest)
    uuid, told = await begun(stage, "gpu", cards=CARDS[:1])
    await _is_foreign(stage, CARDS[0], "gpu")
    code, text = await xl.run("pci-attach", "gpu", CARDS[1])
    assert code == 0, text
    await told.until(AttachmentSeen, _has(CARDS[1]))
    await _is_foreign(stage, CARDS[1], "gpu")
    await _is_as_xl_says(stage, uuid)
    told.forget()
    code, text = await xl.run("pci-detach", "gpu", CARDS[1])
    assert code == 0, text
    await told.until(AttachmentGone, _has(CARDS[1]))
    assert all(getattr(event, "device", "") == f"pci/{CARDS[1]}" for event in told.events()), told.events()
    await _is_leased(stage, CARDS[1])
    await ended(stage, "gpu", told, cards=CARDS[:1])
    stage.show("one card from the start, one plugged in and out: foreign while it had them, then one could be leased")


async def _is_leased(stage: Stage, card: str) -> None:
    """A card that no domain has is granted, and given back."""
    watched = stage.watched
    done = await watched.cli("lease", f"pci/{card}", "--host", HOST, "--for", "tester", "--ttl", "10m", "--json")
    assert done.code == 0, done.out + done.err
    lease = done.object
    done = await watched.cli("release", str(lease["lease"]), "--token", str(lease["token"]))
    assert done.code == 0, done.err


async def _is_foreign(stage: Stage, card: str, name: str) -> None:
    shown = await stage.watched.device(f"pci/{card}")
    assert shown.state == "foreign", shown
    assert [(user.name, user.use) for user in shown.used_by if user.use == "attached"] == [(name, "attached")]
    refused = await stage.watched.cli("lease", f"pci/{card}", "--host", HOST, "--for", "another", "--ttl", "10m")
    assert refused.code == EXIT_REFUSED, refused.out + refused.err
    assert name in refused.out + refused.err, refused.out + refused.err


async def refused(stage: Stage) -> None:
    """A creation that Xen refuses, as another has the card, takes nothing from the one that has it."""
    xl = Xl(stage.guest)
    uuid, told = await begun(stage, "gpu", cards=CARDS[:1])
    thief = Told(stage, next(_uuids))
    code, text = await xl.create("thief", thief.uuid, cards=CARDS[:1])
    assert code != 0, "two domains have one card"
    offered = CARDS[0] in await xl.offered()
    assert await xl.cards("gpu") == [CARDS[0]]
    # Further looks have seen all that this has left behind when they have seen another change.
    await xl.do("pause", "gpu")
    await told.until(DomainChanged)
    await xl.do("unpause", "gpu")
    await _shown(stage, uuid, lambda row: row.state == "running")
    assert all(isinstance(event, DomainChanged) for event in told.events()), told.events()
    assert not [event for event in thief.events() if isinstance(event, AttachmentSeen)], thief.events()
    await _is_foreign(stage, CARDS[0], "gpu")
    stage.show(f"xl said: {next(line for line in text.splitlines() if 'not assignable' in line)[:140]}")
    stage.show(
        f"xl then {'offered' if offered else 'did not offer'} the card that gpu had; in the ledger it stayed gpu's; "
        f"of the other: {[type(event).__name__ for event in thief.events()]}"
    )
    await ended(stage, "gpu", told, cards=CARDS[:1])


async def away(stage: Stage) -> None:
    """A poller that is killed, and an xl that is not there for a while, let nothing vanish."""
    xl, watched = Xl(stage.guest), stage.watched
    uuid, told = await begun(stage, "gpu", cards=CARDS[:1])
    mark = len(watched.heard)
    await stage.guest.ask("end", name=POLLER, number=9)
    await watched.start_agent(POLLER, "--libxl")
    await _of_poller(stage, SourceStarted, mark)
    await xl.hide()
    try:
        await _of_poller(stage, SourceWentBlind, mark)
        done = await watched.cli("lease", f"pci/{CARDS[1]}", "--host", HOST, "--for", "tester", "--ttl", "10m")
        assert done.code == EXIT_REFUSED, done.out + done.err
    finally:
        await xl.unhide()
    await _of_poller(stage, SourceSeesAgain, mark)
    assert told.events() == []
    await _is_as_xl_says(stage, uuid)
    await ended(stage, "gpu", told, cards=CARDS[:1])
    stage.show("killed and started again, then blind and seeing again; nothing was told of the domain and its card")


async def _of_poller(stage: Stage, kind: type[Event], since: int) -> None:
    await stage.watched.event(
        lambda each: isinstance(each.event, kind) and getattr(each.event, "agent", "") == POLLER,
        f"{kind.__name__} of the poller",
        since=since,
        timeout_s=_WAIT_S,
    )


async def prepare(stage: Stage) -> None:
    """The cards go to Xen's driver, and the poller begins."""
    xl = Xl(stage.guest)
    for card in CARDS:
        await xl.do("pci-assignable-add", card)
    assert await xl.offered() == sorted(CARDS)
    await stage.watched.start_watcher()
    await begin(stage)


async def begin(stage: Stage) -> None:
    """Start the poller, and wait until it has told of Domain-0."""
    since = len(stage.watched.heard)
    await stage.watched.start_agent(POLLER, "--libxl")
    try:
        await _of_poller(stage, SourceStarted, since)
        await _shown(stage, "00000000-0000-0000-0000-000000000000", lambda row: row.domid == 0)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{await stage.watched.log(POLLER)}") from None


async def recover(stage: Stage) -> None:
    """As scenarios find it, whatever one of them has left."""
    xl = Xl(stage.guest)
    await xl.unhide()
    for row in (await xl.rows()).values():
        if row.domid:
            await xl.run("destroy", str(row.domid))
    running = (await stage.guest.ask("running"))["names"]
    for name in (POLLER, BINDER):
        if name in running:
            await stage.guest.ask("end", name=name)
    await stage.watched.let_go()
    for card in CARDS:
        await xl.run("pci-assignable-add", card)
    await begin(stage)
