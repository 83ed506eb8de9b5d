"""What ledger, hypervisors and host say of a device is compared as they speak: told when they have differed for some
time, resolved when they agree again, and never told of what comes and goes.
"""

import random
from typing import Any

import msgspec
import pytest

from leasehold.events import inputs, limits
from leasehold.events.event_types import GraceStarted
from leasehold.events.hostdev_events import DriftDetected, DriftResolved
from leasehold.events.hostdevs import DRIFTS
from leasehold.events.identities import DeviceId, DeviceKey
from leasehold.events.inputs import Observation, Observed
from leasehold.projections import drifting
from leasehold.projections.decide import decide
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from tests.projections.domains import OTHER, STICK, TWIN, UUID, Polled, domain, polled_ledger, unused, used
from tests.projections.ledger import H1, SECOND, Ledger, device, ledger_with_hosts, pci

CARD, WORD = "01:00.0", "pci/0000:01:00.0"
DRIFT_S = limits.DRIFT_MS // 1_000
PREPARE_S = limits.PREPARE_TIMEOUT_MS // 1_000
Told = list[tuple[str, str, str]]


def told(ledger: Ledger) -> Told:
    """What the last record tells of drift: how it changes, the device's last part, the kind."""
    return [
        ("told" if isinstance(event, DriftDetected) else "resolved", event.device.rpartition("/")[2], event.kind)
        for event in ledger.events
        if isinstance(event, DriftDetected | DriftResolved)
    ]


def comes_due(ledger: Ledger, seconds: int = DRIFT_S) -> Told:
    """What is told when the time is over, of which nothing is told a moment before."""
    ledger.now_ns += seconds * SECOND - 1
    ledger.tick()
    assert told(ledger) == []
    ledger.now_ns += 1
    ledger.tick()
    return told(ledger)


class Bound:
    """The binder of the first host."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.counter = -1
        self.say(inputs.SourceStarts(manages=True))
        self.say(inputs.PictureComplete(since=1))

    def say(self, *observations: Observation) -> None:
        """One message."""
        self.counter += 1
        self.ledger.observe_message(
            Observed(host=H1, agent="binder", run=1, counter=self.counter, observations=observations)
        )

    def prepared(self, lease: int, driver: str = "vfio-pci") -> None:
        """The card is handed over, and the watcher sees its driver."""
        self.say(inputs.Prepared(DeviceKey(WORD), lease, driver, "igb", "flr"))
        self.ledger.change(CARD, driver=driver)


def managed() -> tuple[Ledger, Polled, Bound]:
    """The usual host with a poller and a binder."""
    ledger, polled = polled_ledger()
    return ledger, polled, Bound(ledger)


# --- each kind ----------------------------------------------------------------------------------------------------


def test_foreign() -> None:
    """A domain that has a device without a lease; when it lets go, that is told too. All three witnesses are named."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used(WORD))
    assert comes_due(ledger) == [("told", "0000:01:00.0", "foreign")]
    (event,) = ledger.events
    assert isinstance(event, DriftDetected)
    assert (event.leased.says, event.bound.says) == ("it is nobody's", "it is there, bound to no driver")
    assert event.attached.says == f"web ({domain()}) has it"
    row = ledger.state.devices[device(CARD)]
    assert event.attached.position > row.described_position == event.bound.position > 0
    (view,), _ = drifting.list_drifts(ledger.state, host=H1)
    assert (view.device, view.kind, view.attached) == (device(CARD), "foreign", event.attached)
    assert view.help
    assert row.drift is not None
    assert view.since_position == row.drift.position
    polled.say(unused(WORD))
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "foreign")]
    assert drifting.list_drifts(ledger.state) == ([], False)


def test_misused() -> None:
    """A domain has a device that is leased for another; one that is leased for it may have it, and one for nobody."""
    ledger, polled = polled_ledger()
    polled.see(OTHER)
    polled.say(used(WORD, OTHER))
    ledger.release(ledger.granted("0a:00.0", domain=UUID))
    polled.say(unused(WORD, OTHER))
    ledger.granted(CARD, domain=UUID, gone_ms=60_000, ttl_ms=600_000)
    ledger.granted("0a:00.0", ttl_ms=600_000)
    polled.say(used(WORD, OTHER), used("pci/0000:0a:00.0", OTHER))
    assert comes_due(ledger) == [("told", "0000:01:00.0", "misused")]
    polled.see()
    polled.say(unused(WORD, OTHER), used(WORD))
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "misused")]


def test_attached_twice() -> None:
    """Two domains have one device: that is worse than that neither has a lease."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.see(OTHER)
    polled.say(used(WORD), used(WORD, OTHER))
    assert comes_due(ledger) == [("told", "0000:01:00.0", "attached_twice")]
    polled.say(unused(WORD, OTHER))
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "attached_twice"), ("told", "0000:01:00.0", "foreign")]


def test_kept() -> None:
    """A lease has ended, and the domain still has the device."""
    ledger, polled = polled_ledger()
    lease = ledger.granted(CARD, domain=UUID)
    polled.see()
    polled.say(used(WORD))
    ledger.release(lease)
    assert comes_due(ledger) == [("told", "0000:01:00.0", "kept")]
    polled.say(unused(WORD))
    ledger.tick()
    assert ledger.state.devices[device(CARD)].lease == 0
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "kept")]


def test_lost_and_replaced() -> None:
    """A leased device goes; the same thing comes back; another thing comes into its place."""
    ledger = ledger_with_hosts()
    ledger.granted(CARD, ttl_ms=600_000)
    ledger.observe(inputs.DeviceGone(DeviceKey(WORD)))
    assert comes_due(ledger) == [("told", "0000:01:00.0", "lost")]
    ledger.see(pci(CARD, iommu_group=1))
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "lost")]
    ledger.see(pci(CARD, iommu_group=1, product_id="9999"))
    assert comes_due(ledger) == [("told", "0000:01:00.0", "replaced")]
    (view,), _ = drifting.list_drifts(ledger.state)
    assert "8086:9999" in view.bound.says


def test_driver() -> None:
    """Somebody binds a handed over device to another driver by hand, and back."""
    ledger, _, bound = managed()
    lease = ledger.granted(CARD, ttl_ms=600_000)
    bound.prepared(lease)
    ledger.tick(PREPARE_S)
    assert told(ledger) == []
    ledger.change(CARD, driver="igb")
    assert comes_due(ledger) == [("told", "0000:01:00.0", "driver")]
    ledger.change(CARD, driver="vfio-pci")
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "driver")]


def test_not_prepared() -> None:
    """What a managed host does not hand over is told when a binder would have given up; of what was leased before the
    host was managed, nothing is.
    """
    ledger, _ = polled_ledger()
    ledger.granted("0a:00.0", ttl_ms=600_000)
    bound = Bound(ledger)
    lease = ledger.granted(CARD, ttl_ms=600_000)
    assert comes_due(ledger, PREPARE_S) == [("told", "0000:01:00.0", "not_prepared")]
    bound.prepared(lease)
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "not_prepared")]


def test_nobody_hands_over_any_more() -> None:
    """When a host's binder has gone for good, nothing is missed of it."""
    ledger, _, bound = managed()
    ledger.granted(CARD, ttl_ms=600_000)
    bound.say(inputs.SourceStops())
    ledger.ask(
        inputs.RetireAgentRequest(
            request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, host=H1, agent="binder", reason="gone"
        )
    )
    ledger.tick(PREPARE_S)
    assert told(ledger) == []


# --- what is not told ---------------------------------------------------------------------------------------------


def test_what_comes_and_goes_is_not_told() -> None:
    """A difference that ends, or becomes another, before its time is over is not told: time begins anew each time."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.see(OTHER)
    for _ in range(5):
        polled.say(used(WORD))
        ledger.tick(DRIFT_S - 1)
        polled.say(used(WORD, OTHER))
        ledger.tick(DRIFT_S - 1)
        polled.say(unused(WORD), unused(WORD, OTHER))
        ledger.tick(DRIFT_S - 1)
        assert told(ledger) == []
        assert ledger.state.devices[device(CARD)].drift is None
    ledger.tick(100)
    assert told(ledger) == []
    polled.say(used(WORD))
    comes_due(ledger)
    for _ in range(3):
        polled.say(unused(WORD))
        ledger.tick(DRIFT_S - 1)
        polled.say(used(WORD))
        ledger.tick(DRIFT_S + 1)
        assert told(ledger) == []


def test_who_is_out_of_date_is_not_listened_to() -> None:
    """While a host's picture may be old nothing is told or resolved; when it is fresh, time begins anew."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used(WORD))
    ledger.tick(DRIFT_S - 1)
    polled.hear(alive=False)
    ledger.tick(100)
    assert told(ledger) == []
    polled.hear(alive=True)
    assert comes_due(ledger) == [("told", "0000:01:00.0", "foreign")]
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:0b:00.0")))
    polled.say(unused(WORD))
    polled.hear(alive=False)
    ledger.tick(100)
    assert told(ledger) == []
    polled.hear(alive=True)
    assert comes_due(ledger) == [("resolved", "0000:01:00.0", "foreign")]


def test_twins_are_not_accused() -> None:
    """A word that means two devices accuses neither; when one of them is called otherwise, it accuses the other."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used("usb-id/0529:0001"))
    ledger.tick(100)
    assert told(ledger) == []
    ledger.see(msgspec.structs.replace(TWIN, product_id="0002"))
    assert comes_due(ledger) == [("told", "2-3", "foreign")]
    ledger.see(TWIN)
    assert comes_due(ledger) == [("resolved", "2-3", "foreign")]


def test_configured_is_no_drift() -> None:
    """A domain may claim what it likes."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used(WORD, use="configured"))
    ledger.granted(CARD, domain=OTHER, ttl_ms=600_000)
    ledger.tick(100)
    assert told(ledger) == []


def test_a_lease_that_ends_by_the_same_tick() -> None:
    """What a tick changes is not told of as it was before."""
    ledger = ledger_with_hosts()
    ledger.granted(CARD, ttl_ms=limits.DRIFT_MS)
    ledger.observe(inputs.DeviceGone(DeviceKey(WORD)))
    ledger.tick(DRIFT_S)
    assert ledger.state.devices[device(CARD)].lease == 0
    assert told(ledger) == []
    ledger.tick(100)
    assert told(ledger) == []


def test_only_the_decider_tells() -> None:
    """Another allocator waits, and takes over from one that leaves it undone."""
    ledger, polled = polled_ledger()
    polled.see()
    polled.say(used(WORD))
    due_ns = ledger.sequencer.next_work_ns()
    assert due_ns == ledger.now_ns + limits.DRIFT_MS * 1_000_000
    other = inputs.Tick("other")
    assert not decide(ledger.state, other, due_ns + limits.TAKEOVER_MS * 1_000_000 - 1)
    takes_over = decide(ledger.state, other, due_ns + limits.TAKEOVER_MS * 1_000_000)
    assert [type(event) for event in takes_over or ()] == [GraceStarted]
    ledger.now_ns = due_ns
    ledger.tick()
    assert told(ledger) == [("told", "0000:01:00.0", "foreign")]


# --- bounds -------------------------------------------------------------------------------------------------------


def test_many_at_once() -> None:
    """A thousand leased devices that vanish are told in ticks of a bound each, the eldest first, and each once."""
    many = 1_000
    addresses = (f"{64 + (number >> 5):02x}:{number & 31:02x}.0" for number in range(many))
    cards = [pci(address, iommu_group=100 + number) for number, address in enumerate(addresses)]
    ledger = ledger_with_hosts()
    for start in range(0, many, 200):
        ledger.see(*cards[start : start + 200])
    shorts = [card.key.removeprefix("pci/0000:") for card in cards]
    for start in range(0, many, 50):
        ledger.granted(*shorts[start : start + 50], ttl_ms=600_000)
    for start in range(0, many, 200):
        ledger.observe(*(inputs.DeviceGone(card.key) for card in cards[start : start + 200]))
    ledger.now_ns += 2 * limits.DRIFT_MS * 1_000_000
    seen: list[str] = []
    while ledger.sequencer.next_work_ns() is not None and len(seen) < many:
        events = decide(ledger.state, inputs.Tick("alloc"), ledger.now_ns)
        assert 0 < len(events or ()) <= drifting.TOLD_AT_ONCE_MAX
        ledger.tick()
        now = told(ledger)
        seen += [name for _, name, _ in now]
    assert sorted(seen) == sorted(card.key.rpartition("/")[2] for card in cards)
    page, more = drifting.list_drifts(ledger.state, limit=300)
    assert (len(page), more) == (300, True)
    rest, more = drifting.list_drifts(ledger.state, after=page[-1].device, limit=700)
    assert (len(rest), more) == (700, False)
    assert [row.device for row in (*page, *rest)] == sorted(row.device for row in (*page, *rest))


# --- against brute force ------------------------------------------------------------------------------------------


def plain_kind(state: State, name: DeviceId) -> str:
    """How the witnesses differ, told once more and as simply as can be."""
    row = state.devices[name]
    having = {
        user.partition("/")[2]
        for user, domain_row in state.domains.items()
        for use in domain_row.uses
        if use.use == "attached" and domain_row.host == row.host and state.named(row.host, use.device) == (name,)
    }
    uuids = {key.partition("/")[2] for key in having}
    lease = state.leases.get(row.lease)
    host = state.hosts[row.host]
    binding = row.binding
    is_over = binding is not None and (binding.given_back or binding.lease != row.lease)
    found = {
        "attached_twice": len(uuids) > 1,
        "foreign": bool(uuids) and lease is None,
        "kept": bool(uuids) and lease is not None and bool(lease.ended),
        "misused": lease is not None and not lease.ended and lease.bond is not None and bool(uuids - {lease.bond.uuid}),
    }
    if lease is not None and not lease.ended:
        found |= {
            "lost": row.missing,
            "replaced": row.displaced,
            "not_prepared": (binding is None or is_over) and host.mode == "managed" and row.lease > host.managed_since,
            "driver": binding is not None and not is_over and binding.driver != row.description.driver,
        }
    return next((kind for kind, is_so in found.items() if is_so), "")


class Watch:
    """Follows a ledger: what is so, since when, and what was told."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.since: dict[DeviceId, tuple[str, int]] = {}
        self.told: dict[DeviceId, tuple[str, int]] = {}
        self.count = 0

    def look(self) -> None:
        """Behind each record: what was told was due, and what differs is followed."""
        state, ledger = self.ledger.state, self.ledger
        fresh = not state.hosts[H1].stale
        for event in ledger.events:
            if isinstance(event, DriftResolved):
                assert self.told.pop(event.device)[0] == event.kind
                self.count += 1
            elif isinstance(event, DriftDetected):
                assert event.device not in self.told
                kind, since_ns = self.since[event.device]
                wait_ms = limits.PREPARE_TIMEOUT_MS if kind == "not_prepared" else limits.DRIFT_MS
                assert kind == event.kind
                assert ledger.now_ns - since_ns >= wait_ms * 1_000_000
                self.told[event.device] = (event.kind, since_ns)
                self.count += 1
        for name, row in state.devices.items():
            kind = plain_kind(state, name)
            assert drifting.kind_of(state, row) == kind, name
            assert (row.drift.kind if row.drift is not None else "") == self.told.get(name, ("", 0))[0]
            if not fresh:
                self.since.pop(name, None)
            elif self.since.get(name, ("?", 0))[0] != kind:
                self.since[name] = (kind, ledger.now_ns)
            differs = kind != self.told.get(name, ("", 0))[0]
            assert (row.differing is not None) == differs, name
            if differs and fresh:
                assert row.differing is not None
                assert row.differing.kind == kind
                # Later, where the words of one message changed it and changed it back.
                assert self.since[name][1] <= row.differing.since_ns <= ledger.now_ns
            assert (name in state.indexes.drifting.get(row.host, ())) == (differs or row.drift is not None)

    def settle(self) -> None:
        """Behind enough quiet time, what was told is what is so."""
        for _ in range(40):
            self.ledger.tick(PREPARE_S)
            self.look()
        for name in self.ledger.state.devices:
            assert self.told.get(name, ("", 0))[0] == plain_kind(self.ledger.state, name)


def _step(chance: random.Random, ledger: Ledger, polled: Polled, bound: Bound, leases: list[int]) -> None:
    cards = (CARD, "0a:00.0", "03:10.0")
    words = (WORD, "pci/0000:0a:00.0", "usb-id/0529:0001", "usb-port/1-3", "usb-address/1.4")
    card, word, uuid = chance.choice(cards), chance.choice(words), chance.choice((UUID, OTHER))
    match chance.randrange(12):
        case 0 | 1:
            polled.see(uuid)
            polled.say(used(word, uuid))
        case 2:
            polled.say(unused(word, uuid))
        case 3 | 4:
            fields: dict[str, Any] = {"domain": uuid, "keep": True} if chance.random() < 0.7 else {}
            answer = ledger.lease(card, ttl_ms=1_000_000, **fields)
            if answer.outcome == "granted":
                leases.append(answer.lease)
        case 5:
            if leases:
                ledger.release(leases.pop(chance.randrange(len(leases))))
        case 6:
            ledger.observe(inputs.DeviceGone(DeviceKey(f"pci/0000:{card}")))
        case 7:
            ledger.change(card, driver=chance.choice(("vfio-pci", "igb")), product_id=chance.choice(("10c9", "10ca")))
        case 8:
            models = ("0001", "0002")
            ledger.see(*(msgspec.structs.replace(each, product_id=chance.choice(models)) for each in (STICK, TWIN)))
        case 9:
            lease = ledger.state.devices[device(card)].lease
            said: Observation = inputs.Prepared(DeviceKey(f"pci/0000:{card}"), lease, "vfio-pci", "igb", "flr")
            if chance.random() < 0.4:
                said = inputs.GivenBack(DeviceKey(f"pci/0000:{card}"), lease, "igb")
            bound.say(said)
        case 10:
            polled.hear(alive=chance.random() < 0.7)
        case _:
            ledger.tick(chance.choice((0, 1, 3, 6, 70)))


@pytest.mark.parametrize("number", range(8))
def test_what_is_told_is_what_a_look_at_all_devices_finds(number: int) -> None:
    """Whatever happens: what is followed is what all rows and all attachments say, nothing is told before its time, and
    behind quiet everything is. Deciding the log again comes to the same bytes, and so does a snapshot.
    """
    seed = random.SystemRandom().randrange(2**32) + number
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger, polled, bound = managed()
    watch, leases = Watch(ledger), list[int]()
    for _ in range(150):
        ledger.events = []
        _step(chance, ledger, polled, bound, leases)
        watch.look()
    polled.hear(alive=True)
    watch.look()
    watch.settle()
    assert watch.count
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
    body = encode_state(ledger.state)
    assert body == encode_state(replay.state)
    loaded = decode_state(body)
    assert loaded is not None
    assert loaded.indexes.drifting == ledger.state.indexes.drifting
    assert loaded.drifts.next_ns() == ledger.state.drifts.next_ns()


def test_every_kind_is_known() -> None:
    """Each kind of drift has a text, and what to do about it."""
    assert drifting.HELP.keys() == DRIFTS.keys()
