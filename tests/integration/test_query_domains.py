"""What the query service answers about domains, on a real server."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from leasehold.events import inputs
from leasehold.events.domains import STATES, DomainDescription, SeenDomain
from leasehold.events.identities import HostName
from leasehold.events.inputs import POLLER, Observation, Observed
from leasehold.events.questions import Explain, History, ListDomains, Reading, Show, Sync
from leasehold.events.views import DomainView
from leasehold.projections import domains
from tests.integration.asking import Running, asking_at
from tests.past.domains import UUIDS, domain, key_of

CARD, OTHER = "pci/0000:00:05.0", "pci/0000:00:06.0"
HOSTS = ("h1", "h1-a", "h2")


class Pollers:
    """What the pollers of the hosts say."""

    def __init__(self, running: Running) -> None:
        self._grower = running.grower
        self._said: dict[str, int] = {}

    async def tell(self, host: str, *observations: Observation) -> None:
        """One message."""
        counter = self._said.get(host, 0)
        self._said[host] = counter + 1
        self._grower.sequencer.observe(
            10_000 + sum(self._said.values()),
            Observed(host=HostName(host), agent=POLLER, run=1, counter=counter, observations=observations),
        )
        await self._grower.commit()

    async def see(self, host: str, *seen: DomainDescription) -> None:
        """Domains are like this."""
        await self.tell(host, *map(inputs.DomainSeen, seen))

    async def use(self, host: str, uuid: str, word: str, use: str = "attached") -> None:
        """A domain has a device, or claims it."""
        await self.tell(host, inputs.DeviceUsed(key_of(uuid), word, use))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with asking_at(tmp_path) as running:
        yield running


@pytest.fixture
async def pollers(running: Running) -> Pollers:
    """A poller on each host, and domains of which some are called alike."""
    pollers = Pollers(running)
    for host in HOSTS:
        await pollers.tell(host, inputs.SourceStarts())
        await pollers.tell(host, inputs.PictureComplete(since=1))
        await pollers.see(
            host,
            domain(UUIDS[0], name="Domain-0", domid=0),
            domain(UUIDS[1], name=f"web-{host}", domid=7),
            domain(UUIDS[2], name="db", domid=-1, state="halted"),
        )
    return pollers


async def all_of(running: Running, question: ListDomains) -> list[DomainView]:
    """All pages."""
    rows: list[DomainView] = []
    more = True
    while more:
        reading = await running.ok(msgspec.structs.replace(question, after=rows[-1].domain if rows else ""))
        rows, more = rows + reading.domains, reading.more
    return rows


@pytest.mark.usefixtures("pollers")
async def test_lists_by_what_is_said(running: Running) -> None:
    """All, of a host, in a state, and by each of their names, in pages of any size: what a walk over all finds."""
    state = running.grower.state
    known = [domains.domain_view(state, each) for each in sorted(state.domains)]
    assert len(known) == 9
    named = ("Domain-0", "web-h2", UUIDS[2], UUIDS[2].upper(), f"xen/{UUIDS[1]}", f"h1-a/xen/{UUIDS[1]}", "nobody")
    questions = [ListDomains(), *(ListDomains(host=host) for host in HOSTS)]
    questions += [ListDomains(state=each) for each in STATES] + [ListDomains(domain=text) for text in named]
    questions += [ListDomains(host="h1", domain="Domain-0"), ListDomains(state="halted", domain="Domain-0")]
    for question in questions:
        text = question.domain.lower()
        expected = [
            row
            for row in known
            if question.host in ("", row.host)
            and question.state in ("", row.state)
            and text in ("", row.name.lower(), row.uuid, f"xen/{row.uuid}", row.domain)
        ]
        for limit in (1, 2, 1_000):
            assert await all_of(running, msgspec.structs.replace(question, limit=limit)) == expected, question


async def test_who_uses_what(running: Running, pollers: Pollers) -> None:
    """A device that a domain has without a lease is foreign, and names it; one that it has by a lease for it is not;
    what is only configured is shown, and stays free.
    """
    grower, web, other = running.grower, UUIDS[1], UUIDS[3]
    await pollers.see("h1", domain(other, name="other", domid=9))
    request = msgspec.structs.replace(grower.lease(f"h1/{CARD}", holder="web"), domain=web)
    granted = await grower.ask("alice", request)
    await pollers.use("h1", web, CARD)
    await pollers.use("h1", web, OTHER)
    await pollers.use("h1", other, CARD, "configured")
    (row,) = (await running.ok(ListDomains(host="h1", domain=web))).domains
    assert row.leases == (f"L{granted.lease}",)
    shown = [(use.said, use.use, use.devices, use.lease, use.foreign) for use in row.uses]
    assert shown == [
        (CARD, "attached", (f"h1/{CARD}",), f"L{granted.lease}", False),
        (OTHER, "attached", (f"h1/{OTHER}",), "", True),
    ]
    states = []
    for key in (CARD, OTHER, "pci/0000:00:07.0"):
        (device,) = (await running.ok(Show(name=f"h1/{key}"))).devices
        states.append((device.state, [(user.name, user.use) for user in device.used_by]))
    assert states == [
        ("leased", [("web-h1", "attached"), ("other", "configured")]), ("foreign", [("web-h1", "attached")]),
        ("free", []),
    ]  # fmt: skip
    why = await running.ok(Explain(name=f"h1/{OTHER}"))
    assert [blocker.rule for blocker in why.blockers] == ["in_use"]
    assert "web-h1" in why.message
    (lease,) = (await running.ok(Show(name=f"L{granted.lease}"))).leases
    assert (lease.domain, lease.gone_ms, lease.expires_at_ns, lease.gone_since_ns) == (web, 60_000, 0, 0)
    await pollers.see("h1", domain(web, name="web-h1", domid=-1, state="halted"))
    (lease,) = (await running.ok(Show(name=f"L{granted.lease}"))).leases
    assert lease.gone_since_ns == grower.now_ns


async def test_histories(running: Running, pollers: Pollers) -> None:
    """A domain's history tells what it was and used, and of leases for it; a device's of its users. One that vanished
    is found by all that it was called.
    """
    grower, web = running.grower, UUIDS[1]
    granted = await grower.ask("alice", msgspec.structs.replace(grower.lease(f"h1/{CARD}", holder="w"), domain=web))
    await pollers.use("h1", web, CARD)
    await pollers.see("h1", domain(web, name="renamed", domid=8))
    expected = ["domain_appeared", "lease_granted", "attachment_seen", "domain_started"]
    for name in ("renamed", f"xen/{web}", web):
        reading = await running.ok(History(name=name, host="h1"))
        assert _types(reading) == expected, name
    reading = await running.ok(History(name=f"h1/xen/{web}", kind="domain"))
    assert (reading.subject, _types(reading)) == (f"domain h1/xen/{web}", expected)
    assert "attachment_seen" in _types(await running.ok(History(name=f"h1/{CARD}")))
    assert f"L{granted.lease}" in reading.history[1].text and web in reading.history[1].text
    await pollers.tell("h1", inputs.DeviceUnused(key_of(web), CARD, "attached"), inputs.DomainGone(key_of(web)))
    expected += ["attachment_gone", "domain_vanished"]
    assert _types(await running.ok(History(name=f"h1/xen/{web}"))) == expected
    assert _types(await running.ok(History(name="renamed"))) == expected[3:]
    on_all = _types(await running.ok(History(name="web-h2")))
    assert on_all == ["domain_appeared", "lease_granted"]
    await pollers.tell("h2", inputs.DomainGone(key_of(web)))
    await pollers.tell("h1-a", inputs.DomainGone(key_of(web)))
    by_uuid = _types(await running.ok(History(name=web)))
    assert sorted(by_uuid) == sorted([*expected, *(["domain_appeared", "domain_vanished"] * 2)])
    several = await running.ask(History(name="Domain-0"))
    assert several.outcome == "not_found"
    assert all(f"{host}/xen/{UUIDS[0]}" in several.message for host in HOSTS)
    unknown = await running.ask(History(name="nobody", kind="domain"))
    assert (unknown.outcome, unknown.message) == ("not_found", "nothing is known of domain nobody")


async def test_a_domain_called_like_something_else(running: Running, pollers: Pollers) -> None:
    """It takes the name of no host and of no lease; whoever means the domain says so."""
    grower = running.grower
    granted = await grower.ask("alice", grower.lease(f"h1/{CARD}", holder="w"))
    for name, kind in (("h1", "host"), (f"L{granted.lease}", "lease")):
        await pollers.see("h1", domain(UUIDS[1], name=name))
        assert (await running.ok(History(name=name))).subject == f"{kind} {name}"
        reading = await running.ok(History(name=name, kind="domain"))
        assert reading.subject == f"domain h1/xen/{UUIDS[1]}"


def _types(reading: Reading) -> list[str]:
    return [row.type.rpartition(".")[0] for row in reading.history]


async def test_what_a_poller_has_told(running: Running, pollers: Pollers) -> None:
    """A poller that asks what the log has is given its domains with what they use, in pages, and no devices."""
    await pollers.use("h1", UUIDS[1], CARD)
    expected = domains.seen_domains(running.grower.state, HostName("h1"), POLLER)
    assert len(expected) == 3 and expected[1].uses
    for limit in (1, 2, 100):
        found: list[SeenDomain] = []
        more, pages = True, 0
        while more:
            after = found[-1].domain.key if found else ""
            reading = await running.ok(Sync(host="h1", agent=POLLER, after=after, limit=limit))
            assert (reading.descriptions, reading.source_run) == ([], 1)
            found, more, pages = found + reading.seen_domains, reading.more, pages + 1
            assert pages <= len(expected)
        assert (found, pages) == (expected, -(-3 // limit))
    watcher = await running.ok(Sync(host="h1"))
    assert watcher.descriptions and not watcher.seen_domains


@pytest.mark.usefixtures("pollers")
async def test_what_cannot_be_asked(running: Running) -> None:
    """A state that is none, and a host that is not known, are named."""
    wrong = await running.ask(ListDomains(state="asleep"))
    assert (wrong.outcome, wrong.field) == ("invalid", "state")
    assert all(state in wrong.message for state in STATES)
    nowhere = await running.ask(ListDomains(host="nowhere"))
    assert nowhere.outcome == "not_found" and "nowhere" in nowhere.message
