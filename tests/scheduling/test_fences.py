"""Tokens that are handed on, in the ledger and at the hosts: whatever happens, who had a lease opens nothing with it.

The real decisions, and the real cores of two hosts' binders that hear of them, or do not.
"""

import random

import pytest

from leasehold.events import codec, inputs, limits
from leasehold.events.hostdev_events import DevicePrepared, DriftDetected
from leasehold.events.hostdevs import DRIFTS
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.events.position import position_of
from leasehold.events.refusals import RefusalCode
from leasehold.projections import bindings, fencing, vouching
from leasehold.projections.handing import Handing
from leasehold.projections.handnotes import Note, TakeBack
from leasehold.projections.handover import Back, PreparedDevice, Ready
from tests.projections.domains import UUID, Polled, described, used
from tests.projections.ledger import H1, H2, SECOND, A, Ledger, device, ledger_with_hosts, pci, refusal_of
from tests.projections.test_restore import decided_by, restored
from tests.scheduling.keeping import reserve, same_from_snapshot, switch, transfer

SEEDS = 120
STEPS = 40
WHATS = ("lease", "transfer", "transfer", "reserve", "switch", "release", "deaf", "die", "restore")
CARDS = (
    device("01:00.0"),
    device("03:00.0"),
    device("0a:00.0"),
    device("01:00.0", H2),
    device("0b:00.0", H2),
)
PICTURES = {
    H1: [pci(text, iommu_group=group) for text, group in (("01:00.0", 1), ("03:00.0", 3), ("0a:00.0", 13))],
    H2: [pci("01:00.0", iommu_group=1), pci("0b:00.0", iommu_group=2)],
}


class Site:
    """A host's binder, which does at once whatever it has to do, and tells it, as long as it hears."""

    def __init__(self, host: HostName) -> None:
        self.host = host
        self.handing = Handing(host, boot="b")
        self.disk: tuple[Note, ...] = ()
        self.is_deaf = False
        self.vouched: set[tuple[DeviceId, int]] = set()
        """What it vouched for when it heard last."""
        self._fed = 0

    def asks(self, ledger: Ledger, now_ms: int) -> bool:
        """It asks the log how things stand."""
        devices = [row.description for row in ledger.state.devices.values() if row.host == self.host]
        picture = {description.key: description for description in devices}
        head = ledger.state.head
        self._fed = head.sequence
        holds = bindings.holds_of(ledger.state, self.host)
        as_of = position_of(head.sequence, 255)
        return self.handing.synced(holds, picture, as_of=as_of, era=head.era, now_ms=now_ms)

    def hears(self, ledger: Ledger, now_ms: int) -> None:
        """What was told since, of its host and of all."""
        for sequence in range(self._fed + 1, len(ledger.bodies) + 1):
            record = codec.decode_record(ledger.bodies[sequence - 1], sequence)
            events = [event for step in record.steps for event in step.events]
            for index, event in enumerate(events):
                if getattr(event, "host", self.host) == self.host:
                    self.handing.hear(
                        position_of(sequence, index), event, at_ns=record.decided_at_ns, era=record.era, now_ms=now_ms
                    )
        self._fed = len(ledger.bodies)

    def works(self, ledger: Ledger, now_ms: int, run: int) -> None:
        """All jobs are done, and told; the notes are on disk before each."""
        for _ in range(20):
            jobs = self.handing.jobs(now_ms)
            self.disk = self.handing.notes
            for job in jobs:
                if isinstance(job, TakeBack):
                    self.handing.done(job.number, Back("e1000e"), now_ms)
                else:
                    prepared = tuple(PreparedDevice(key=key, driver="vfio-pci") for key in job.keys)
                    self.handing.done(job.number, Ready(prepared), now_ms)
            words = self.handing.observations()
            if words:
                ledger.bind(*words, host=self.host, run=run)
            self.hears(ledger, now_ms)
            if not jobs and not words:
                return
        raise AssertionError("it does not come to rest")

    def dies(self) -> None:
        """Another run begins with what is on disk."""
        self.handing = Handing(self.host, self.disk, boot="b")


class World:
    """Two managed hosts, their binders, and whoever has leases there."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.ledger.note(inputs.DeciderStarts("alloc", "start"))
        self.run = 0
        self.now_ms = 1_000
        self.sites = {host: Site(host) for host in (H1, H2)}
        self.tokens: dict[DeviceId, set[int]] = {card: set() for card in CARDS}
        self.done: dict[str, int] = {}
        self.report()
        self.ledger.now_ns += 31 * SECOND

    def report(self) -> None:
        """All hosts tell all anew."""
        self.run += 1
        for host, picture in PICTURES.items():
            self.ledger.start_host(host, *picture, run=self.run)
            self.ledger.start_binder(host, run=self.run)
            self.sites[host].is_deaf = False
            assert self.sites[host].asks(self.ledger, self.now_ms)
        self.settle()

    def settle(self) -> None:
        """Who hears does what there is to do."""
        for site in self.sites.values():
            if not site.is_deaf:
                site.hears(self.ledger, self.now_ms)
                if site.handing.log.is_synced:
                    site.works(self.ledger, self.now_ms, self.run)
        for site in self.sites.values():
            if not site.is_deaf:
                site.hears(self.ledger, self.now_ms)
        for row in self.ledger.state.leases.values():
            for card in row.devices:
                self.tokens[card].add(row.token)

    def step(self) -> None:
        """Something happens."""
        living = sorted(lease for lease, row in self.ledger.state.leases.items() if not row.ended)
        what = self.rng.choice(WHATS)
        self.ledger.now_ns += SECOND
        outcome = ""
        if what == "lease":
            cards = self.rng.sample(CARDS, self.rng.randrange(1, 3))
            outcome = self.ledger.ask(self.ledger.request(*cards, ttl_ms=3_600_000)).outcome
        elif what in ("deaf", "die"):
            site = self.rng.choice(list(self.sites.values()))
            self.fate(site, what)
            outcome = what
        elif what == "restore":
            if self.rng.random() < 0.3:
                self.ledger = decided_by(restored(self.ledger, len(self.ledger.bodies) - self.rng.randrange(4)))
                self.report()
                outcome = what
        elif living:
            lease = self.rng.choice(living)
            match what:
                case "transfer":
                    outcome = transfer(self.ledger, lease, f"vm{self.ledger.now_ns}").outcome
                case "reserve":
                    outcome = reserve(self.ledger, lease, self.rng.choice(CARDS)).outcome
                case "switch":
                    reserved = [each for each in living if self.ledger.state.leases[each].reserved_for] or living
                    outcome = switch(self.ledger, self.rng.choice(reserved)).outcome
                case _:
                    outcome = self.ledger.release(lease).outcome
        self.done[outcome] = self.done.get(outcome, 0) + 1
        self.settle()

    def fate(self, site: Site, what: str) -> None:
        """A binder hears nothing for a while, or again; or is killed."""
        if what == "die":
            site.dies()
            if not site.is_deaf:
                assert site.asks(self.ledger, self.now_ms), f"seed {self.seed}"
        else:
            site.is_deaf = not site.is_deaf
            if not site.is_deaf:
                assert site.asks(self.ledger, self.now_ms), f"seed {self.seed}"

    def check(self) -> None:
        """No token acts but the one of the living lease that has the device, anywhere."""
        for card, tokens in self.tokens.items():
            host, key = split_device_id(card)
            site = self.sites[host]
            acting = {token for token in tokens if fencing.check_token(self.ledger.state, card, token) is None}
            row = self.ledger.state.devices[card]
            lease = self.ledger.state.leases.get(row.lease)
            counts = lease is not None and not lease.ended and not lease.reserved_for
            assert acting == ({lease.token} if lease is not None and counts else set()), f"seed {self.seed}"
            vouched = {token for token in tokens if vouching.check_token(site.handing, key, token, self.now_ms) is None}
            if not site.is_deaf:
                site.vouched = {each for each in site.vouched if each[0] != card} | {(card, each) for each in vouched}
                assert vouched == acting, f"seed {self.seed}: {card}"
            else:
                assert {(card, each) for each in vouched} <= site.vouched, f"seed {self.seed}: {card}"
            late_ms = self.now_ms + 2 * limits.CUT_OFF_MS
            late = {token for token in tokens if vouching.check_token(site.handing, key, token, late_ms) is None}
            assert not late, f"seed {self.seed}: it is cut off by then"


@pytest.mark.parametrize("first", range(0, SEEDS, 40))
def test_only_the_newest_token_acts(first: int) -> None:
    """Whatever order grants, transfers, reservations, switches, ends, restores that lose some of them, deaf and killed
    binders come in: in the ledger just the token of who has the device acts, a binder that hears agrees, and one that
    does not vouches for no more than it did, and for nothing once it is cut off.
    """
    done: dict[str, int] = {}
    for seed in range(first, first + 40):
        world = World(seed)
        for _ in range(STEPS):
            world.step()
            world.check()
        assert same_from_snapshot(world.ledger), f"seed {seed}"
        for outcome, count in world.done.items():
            done[outcome] = done.get(outcome, 0) + count
    for outcome in ("granted", "transferred", "switched", "released", "restore", "die", "deaf"):
        assert done[outcome] > 2, f"{outcome} came to nothing in seeds {first} to {first + 39}: {done}"


# --- reserved, on a host where a binder acts -----------------------------------------------------------------------


def moving() -> tuple[Ledger, int, int]:
    """A lease for a domain, and one that is reserved in its place on a managed host, prepared."""
    ledger = ledger_with_hosts()
    ledger.start_binder(H2)
    source = ledger.granted("01:00.0", domain=UUID, gone_ms=0)
    target = reserve(ledger, source, device("0b:00.0", H2)).lease
    key = split_device_id(device("0b:00.0", H2))[1]
    ledger.bind(inputs.Prepared(key, target, "vfio-pci", "igb", "flr"), host=H2)
    assert any(isinstance(event, DevicePrepared) for event in ledger.events)
    return ledger, source, target


def test_a_binder_is_told_that_it_is_reserved() -> None:
    """As an answer to who asks, until the switch."""
    ledger, _, target = moving()
    assert [hold.reserved for hold in bindings.holds_of(ledger.state, H2)] == [True]
    switch(ledger, target)
    assert [hold.reserved for hold in bindings.holds_of(ledger.state, H2)] == [False]


def test_a_hook_does_not_end_what_is_reserved() -> None:
    """A word that the domain has let go of a reserved lease is of a domain that never had anything of it."""
    ledger, _, target = moving()
    ledger.bind(inputs.LetGo(target), host=H2)
    assert ledger.state.leases[target].ended == ""
    switch(ledger, target)
    ledger.bind(inputs.LetGo(target), host=H2)
    assert ledger.state.leases[target].ended == "outlived"


def test_who_has_it_before_the_switch() -> None:
    """A domain that has what is only reserved for it is told as a drift: it has gone past the door."""
    ledger, _, _ = moving()
    there = Polled(ledger, host=H2)
    there.say(inputs.DomainSeen(described()), used("pci/0000:0b:00.0"))
    ledger.tick(limits.DRIFT_MS // 1_000 + 1)
    drifts = [event.kind for event in ledger.events if isinstance(event, DriftDetected)]
    assert drifts == ["misused"]
    assert "misused" in DRIFTS


def test_who_asks_for_it_meanwhile() -> None:
    """What is reserved is held as any leased device."""
    ledger, _, target = moving()
    refused = refusal_of(ledger.ask(ledger.request(device("0b:00.0", H2)), A))
    assert (refused.code, refused.blockers[0].lease) == (RefusalCode.DEVICE_HELD, target)
