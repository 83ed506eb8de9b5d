"""Domains of the past are as the fold had them: shown, named, with what they used and whose that was."""

import random
from pathlib import Path

from leasehold.events import event_types, inputs
from leasehold.events.domains import STATES
from leasehold.events.identities import HostName
from leasehold.events.position import sequence_of
from leasehold.events.questions import Blame, DevicesAt, DomainsAt, Moment, Owners
from leasehold.projections import domains, views
from leasehold.projections.state import State
from leasehold.services.archive.keeper import build
from leasehold.services.archive.ledger import ArchivedLedger
from tests.archive.records import writing
from tests.past.domains import HOSTS, NAMES, UUIDS, DomainLedger, domain, key_of, random_log
from tests.past.logs import Asked, archived, devices_in, events_of, folded, owners_in, seeds
from tests.past.test_keeper import MODELS, content, entries_of
from tests.past.test_oracle import places

LOGS = 2
RICH = 0
"""A log in which all that is asked for happens."""


async def test_any_place_is_as_the_fold_has_it(tmp_path: Path) -> None:
    """Domains, devices, hosts and owners at any position are those of the log folded up to there."""
    met: set[str] = set()
    for seed in (RICH, *seeds(LOGS - 1)):
        rng = random.Random(seed)
        bodies = random_log(seed).bodies
        events = events_of(bodies)
        met |= {type(event.event).__name__ for event in events}
        async with archived(tmp_path / str(seed), bodies) as past:
            last = sequence_of(events[-1].position)
            for place, state in folded(events, places(events, rng)):
                if place >= 256 and sequence_of(place) <= last:
                    await check_place(past, state, place, rng)
    assert met >= {
        "DomainAppeared", "DomainChanged", "DomainStarted", "DomainVanished", "AttachmentSeen", "AttachmentGone",
        "SourceWentBlind", "SourceSeesAgain", "AgentRetired", "LeaseOutlived", "LeaseExpired",
    }  # fmt: skip


async def check_place(past: Asked, state: State, place: int, rng: random.Random) -> None:
    """All domains, in pages of any size; those of a host, in a state, of a name; and what else a place shows."""
    at = Moment(position=place)
    known, _ = domains.list_domains(state)
    shown = await past.all(DomainsAt(at=at, limit=rng.choice((1, 2, 5, 1_000))), "domains", "domain")
    assert shown == known, place
    host, word = rng.choice(HOSTS), rng.choice(STATES)
    texts = [*NAMES, *UUIDS, UUIDS[1].upper(), key_of(UUIDS[2]), "nobody", *(row.domain for row in known)]
    for text in ["", *rng.sample(texts, 4)]:
        for of_host, in_state in (("", ""), (host if host in state.hosts else "", ""), ("", word)):
            expected, _ = domains.list_domains(state, host=of_host, domain=text, in_state=in_state)
            question = DomainsAt(at=at, host=of_host, domain=text, state=in_state, limit=rng.choice((1, 1_000)))
            assert await past.all(question, "domains", "domain") == expected, (place, text, of_host, in_state)
    page = await past.ask(DevicesAt(at=at))
    assert page.devices == devices_in(state), place
    hosts = dict.fromkeys(HostName(row.host) for row in page.devices)
    assert page.hosts == [views.host_view(state, each) for each in hosts], place
    owned = await past.all(Owners(at=at), "owners", "device")
    assert [(row.device, row.lease, row.holder, row.principal, row.state) for row in owned] == owners_in(state), place


async def test_a_host_that_was_not_known(tmp_path: Path) -> None:
    """Of a host that nobody had heard of it is said so, and not that it had no domains."""
    async with archived(tmp_path, DomainLedger().bodies) as past:
        assert (await past.ask(DomainsAt(host="h9"))).outcome == "not_found"
        page = await past.ask(DomainsAt(host="h1"))
    assert (page.outcome, page.domains) == ("ok", [])


async def test_restarts_leave_no_trace(tmp_path: Path) -> None:
    """Models that were kept by many runs, each going on where the one before was, are those built at once."""
    (seed,) = seeds(1)
    rng = random.Random(seed)
    bodies = random_log(seed).bodies
    entries = entries_of(bodies)
    bits = tmp_path / "bits"
    async with writing(bits) as writer:
        while entries:
            count = rng.randrange(1, 40)
            await writer.write(entries[:count])
            entries = entries[count:]
            assert await build(ArchivedLedger(bits), bits / MODELS) == writer.tip.sequence
    async with archived(tmp_path / "whole", bodies):
        assert content(bits / MODELS) == content(tmp_path / "whole" / "models.sqlite")


async def test_a_lease_that_was_outlived_leads_to_where_its_domain_went(tmp_path: Path) -> None:
    """Who asks why his lease is over is told which domain it was for, and what made that go, not what came before."""
    ledger, host, uuid = DomainLedger(), HOSTS[0], UUIDS[1]
    ledger.tell(HOSTS[1], inputs.DomainSeen(domain(uuid)))
    request = ledger.request("h1/pci/0000:01:00.0", domain=uuid, gone_ms=30_000)
    assert ledger.ask(request).outcome == "granted"
    ledger.tell(host, inputs.DomainSeen(domain(uuid)))
    ledger.tell(host, inputs.DomainSeen(domain(uuid, domid=-1, state="halted")))
    ledger.tell(host, inputs.DomainSeen(domain(uuid, domid=6)))
    ledger.tell(host, inputs.DomainSeen(domain(uuid, domid=-1, state="halted")))
    halted = events_of(ledger.bodies)[-1]
    assert isinstance(halted.event, event_types.DomainChanged)
    ledger.tell(host, inputs.DomainGone(key_of(uuid)))
    ledger.tell(HOSTS[1], inputs.DomainGone(key_of(uuid)))
    ledger.tick(31)
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Blame(request_id=request.request_id))
    assert [(cause.depth, cause.because, cause.type) for cause in page.causes] == [
        (0, "", "lease_granted.v2"), (1, "asked by", "lease.v1"), (1, "known by", "device_appeared.v1"),
        (0, "ended by", "lease_outlived.v1"), (1, "gone by", "domain_changed.v1"),
        (1, "granted by", "lease_granted.v2"),
    ]  # fmt: skip
    gone = next(cause for cause in page.causes if cause.because == "gone by")
    assert gone.position == halted.position
    assert f"for domain {uuid} until 30 s after it is gone" in page.causes[1].text
