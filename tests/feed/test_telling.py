"""What is told of each event: subjects, parts and the chain of positions, for the real core's decisions."""

from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.capabilities import NewMdev, NewVport
from leasehold.events.cloudevents import Attributes, raw_headers, read_attributes
from leasehold.events.devices import Sighting
from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceKey, Holder
from leasehold.events.position import position_of, sequence_of
from leasehold.events.subjects import EventSubject, Subjects
from leasehold.projections import feeding
from leasehold.projections.feeding import Feeding, Message
from leasehold.projections.feedsnapshots import FEED_VERSION, decode_feeding, encode_feeding
from tests.past import domains, handed, scheduled
from tests.past.nodedevs import GPU, HOSTS, MDEV_TYPE, NIC, SCSI_HOST, NodeLedger, random_log
from tests.projections.ledger import B, Ledger, ledger_with_hosts
from tests.projections.scenario import play


def told_of(bodies: list[bytes], fold: Feeding | None = None) -> list[Message]:
    """All that is told of a log."""
    fold = fold or Feeding()
    first = fold.head.sequence + 1
    return [message for number, body in enumerate(bodies, first) for message in fold.fold(number, body)]


def attributes(message: Message) -> Attributes:
    """What a message's headers say, as a reader sees them."""
    return read_attributes(raw_headers(f"NATS/1.0\r\n{message.headers}\r\n".encode()).items())


def subject_of(message: Message, cluster: str) -> EventSubject:
    """What its subject says, as a reader sees it."""
    return Subjects(cluster).parse_event(f"leasehold.{cluster}.evt.{message.subject}")


def events_at(bodies: list[bytes]) -> dict[int, tuple[Event, bytes, int]]:
    """Each event by its position: itself, its bytes in the record, and its time; read apart from the feed."""
    found: dict[int, tuple[Event, bytes, int]] = {}
    for sequence, body in enumerate(bodies, 1):
        record = codec.decode_record(body, sequence)
        raw = [event for step in msgspec.json.decode(body)["steps"] for event in step["events"]]
        events = [event for step in record.steps for event in step.events]
        for index, (event, plain) in enumerate(zip(events, raw, strict=True)):
            found[position_of(sequence, index)] = (event, codec.encode(plain), record.decided_at_ns)
    return found


LEDGERS: list[Callable[[], Ledger]] = [
    play,
    lambda: random_log(17, steps=60),
    lambda: domains.random_log(17, steps=60),
    lambda: handed.random_log(17),
    lambda: scheduled.random_log(17, steps=60),
]
"""Leases and what becomes of them; node devices and orders to their hosts; domains, and leases for them; devices that
are handed over; requests that wait, share, and are kept away.
"""


@pytest.mark.parametrize("made", LEDGERS)
def test_each_event_is_told_whole(made: Callable[[], Ledger]) -> None:
    """Every event is told, in order, in as many parts as it says, each with its own bytes, type and time."""
    ledger = made()
    cluster = ledger.state.head.cluster
    expected = events_at(ledger.bodies)
    told = told_of(ledger.bodies)
    places = [(message.position, message.part) for message in told]
    assert places == sorted(set(places))
    assert {position for position, _ in places} == set(expected)
    parts = Counter(position for position, _ in places)
    for message in told:
        said, (event, body, at_ns) = attributes(message), expected[message.position]
        assert (said.position, said.part, said.parts) == (message.position, message.part, parts[message.position])
        assert (said.cluster, said.ledger_id, said.era) == (cluster, ledger.state.head.ledger_id, 0)
        assert (message.body, said.tag, said.at_ns) == (body, event.__struct_config__.tag, at_ns)
        assert subject_of(message, cluster).kind == said.tag.rpartition(".")[0]
        assert said.tenant == subject_of(message, cluster).tenant
    assert max(parts.values()) >= 2


@pytest.mark.parametrize("made", LEDGERS)
def test_each_message_names_the_event_before_it_of_its_host(made: Callable[[], Ledger]) -> None:
    """Who listens to one host, or to what has none, can tell from each message whether the one before was lost."""
    ledger = made()
    told = told_of(ledger.bodies)
    by_host: dict[str, list[Message]] = defaultdict(list)
    for message in told:
        by_host[subject_of(message, ledger.state.head.cluster).host].append(message)
    assert set(by_host) >= {"", "h1"}
    for messages in by_host.values():
        positions = sorted({message.position for message in messages})
        before = dict(zip(positions, [0, *positions], strict=False))
        assert [attributes(message).previous for message in messages] == [before[each.position] for each in messages]


def subjects_of(ledger: Ledger, kind: type[Event]) -> list[list[EventSubject]]:
    """The subjects of all events of one kind, event by event."""
    events = events_at(ledger.bodies)
    found: dict[int, list[EventSubject]] = defaultdict(list)
    for message in told_of(ledger.bodies):
        if isinstance(events[message.position][0], kind):
            found[message.position].append(subject_of(message, ledger.state.head.cluster))
    return list(found.values())


def test_what_the_subjects_name() -> None:
    """A lease's events name each of its devices, it and its tenant; a held device's own events do so, too."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("01:00.0", "0a:00.0", principal=B)
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:0a:00.0")), inputs.DeviceGone(DeviceKey("pci/0000:07:00.0")))
    refused = ledger.lease("01:00.0", holder=Holder("vm9"))
    assert refused.outcome == "refused"
    ledger.lease("01:00.0", holder=Holder("vm9"))
    ledger.release(lease, B)
    text = f"L{lease}"

    def row(kind: str, key: str, lease: str, tenant: str) -> EventSubject:
        return EventSubject(host="h1", kind=kind, device=f"pci/0000:{key}", lease=lease, tenant=tenant)

    both = ("01:00.0", "0a:00.0")
    assert subjects_of(ledger, event_types.LeaseGranted) == [[row("lease_granted", key, text, "b") for key in both]]
    assert subjects_of(ledger, event_types.LeaseReleased) == [[row("lease_released", key, text, "b") for key in both]]
    assert subjects_of(ledger, event_types.DeviceMissing) == [
        [row("device_missing", "0a:00.0", text, "b")],
        [row("device_missing", "07:00.0", "", "")],
    ]
    assert subjects_of(ledger, event_types.RequestRefused) == [[row("request_refused", "01:00.0", "", "a")]]
    assert subjects_of(ledger, event_types.RefusalsRepeated) == [[row("refusals_repeated", "01:00.0", "", "a")]]
    freed = subjects_of(ledger, event_types.DeviceFreed)
    assert freed and all(each.lease == text and each.tenant == "b" for (each,) in freed)
    started = subjects_of(ledger, event_types.LedgerStarted)
    assert started == [[EventSubject(host="", kind="ledger_started", device="", lease="", tenant="")]]


def test_what_the_subjects_of_orders_name() -> None:
    """An order names what is made or taken away and what that is a part of, for the tenant who asked."""
    ledger = NodeLedger()
    ledger.begin()
    made = ledger.carry_out(ledger.create(NewMdev(parent=GPU, mdev_type=MDEV_TYPE)).position)
    ledger.fail(ledger.destroy(made).position)

    def row(kind: str, device: str) -> EventSubject:
        return EventSubject(host="h1", kind=kind, device=device, lease="", tenant="a")

    assert subjects_of(ledger, event_types.HostOrdered) == [
        [row("host_ordered", GPU)], [row("host_ordered", made), row("host_ordered", GPU)],
    ]  # fmt: skip
    assert subjects_of(ledger, event_types.OrderCarriedOut) == [
        [row("order_carried_out", made), row("order_carried_out", GPU)]
    ]
    assert subjects_of(ledger, event_types.OrderFailed) == [[row("order_failed", made), row("order_failed", GPU)]]


def test_what_the_subjects_of_domains_name() -> None:
    """Domains are told of their host; what they use of each device that is meant, with the lease that holds it, and of
    the host where none is known; a lease that was outlived is told as any that ends.
    """
    ledger, host, uuid = domains.DomainLedger(), domains.HOSTS[0], domains.UUIDS[1]
    lease = ledger.ask(ledger.request("h1/pci/0000:01:00.0", domain=uuid, gone_ms=0), B).lease
    key, words = domains.key_of(uuid), ("pci/0000:01:00.0", "usb-id/0403:6001", "pci/0000:0f:00.0")
    ledger.tell(host, inputs.DomainSeen(domains.domain(uuid)))
    ledger.tell(host, *(inputs.DeviceUsed(key, word, "attached") for word in words))
    ledger.tell(host, *(inputs.DeviceUnused(key, word, "attached") for word in words))
    ledger.tell(host, inputs.DomainGone(key))
    ledger.tick(1)

    def row(kind: str, device: str = "", lease: int = 0) -> EventSubject:
        name, tenant = (f"L{lease}", "b") if lease else ("", "")
        return EventSubject(host=host, kind=kind, device=device, lease=name, tenant=tenant)

    for kind in (event_types.AttachmentSeen, event_types.AttachmentGone):
        name = str(kind.__struct_config__.tag).rpartition(".")[0]
        assert subjects_of(ledger, kind) == [
            [row(name, words[0], lease)], [row(name, stick) for stick in domains.STICKS], [row(name)],
        ]  # fmt: skip
    assert subjects_of(ledger, event_types.DomainAppeared) == [[row("domain_appeared")]]
    assert subjects_of(ledger, event_types.DomainVanished) == [[row("domain_vanished")]]
    assert subjects_of(ledger, event_types.LeaseOutlived) == [[row("lease_outlived", words[0], lease)]]
    about = {attributes(message).subject for message in told_of(ledger.bodies) if ".domain_" in message.subject}
    assert about == {f"h1/xen/{uuid}"}


def test_an_order_that_timed_out_may_still_be_carried_out() -> None:
    """Its late end names the tenant who asked, however many have timed out since, up to what a ledger remembers."""
    ledger = NodeLedger()
    ledger.begin()
    late = ledger.create(NewVport(parent=SCSI_HOST), timeout_ms=1_000)
    for _ in range(3):
        ledger.tick(40)
        ledger.create(NewMdev(parent=GPU, mdev_type=MDEV_TYPE), timeout_ms=1_000)
    ledger.tick(40)
    ledger.carry_out(late.position)
    fold = Feeding()
    told_of(ledger.bodies, fold)
    ((first, second),) = subjects_of(ledger, event_types.OrderCarriedOut)
    assert (first.tenant, second.tenant, second.device) == ("a", "a", SCSI_HOST)
    assert sum(map(len, fold.orders.values())) == 3, "what may still be carried out, and nothing else"


def test_what_flaps_is_told_of_its_lease() -> None:
    """A leased device that flaps is told with its lease and tenant; lost events of the kernel are told of the host."""
    ledger = NodeLedger()
    ledger.begin()
    lease = ledger.ask(ledger.request("h1/pci/0000:01:00.0"), B).lease
    flaps = Sighting(why="event", source="kernel", flaps=2)
    ledger.tell(HOSTS[0], inputs.DeviceFlaps(DeviceKey(NIC), flaps), inputs.MissedEvents(1))
    assert subjects_of(ledger, event_types.DeviceFlapped) == [
        [EventSubject(host="h1", kind="device_flapped", device=NIC, lease=f"L{lease}", tenant="b")]
    ]
    assert subjects_of(ledger, event_types.EventsMissed) == [
        [EventSubject(host="h1", kind="events_missed", device="", lease="", tenant="")]
    ]


def test_the_cause_is_named() -> None:
    """What a request has caused says which; what nobody asked for says nothing."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", principal=B)
    causes = {attributes(message).tag: attributes(message).cause for message in told_of(ledger.bodies)}
    assert causes["lease_granted.v2"].startswith("b/")
    assert causes["device_appeared.v1"] == ""


@pytest.mark.parametrize("made", LEDGERS)
def test_a_snapshot_and_the_tail_tell_the_same(made: Callable[[], Ledger]) -> None:
    """Cut behind any record, kept and gone on with, the feed tells what it tells from the start, byte for byte."""
    bodies = made().bodies
    whole = told_of(bodies)
    fold = Feeding()
    for cut, body in enumerate(bodies, 1):
        fold.fold(cut, body)
        kept = decode_feeding(encode_feeding(fold))
        assert kept is not None
        assert encode_feeding(kept) == encode_feeding(fold)
        assert kept.last == [(each.position, each.part) for each in whole if sequence_of(each.position) == cut][-1]
        rest = [message for message in whole if sequence_of(message.position) > cut]
        assert told_of(bodies[cut:], kept) == rest


def test_what_is_over_is_forgotten() -> None:
    """A lease whose devices are all free is not kept, nor a refusal that cannot be repeated any more."""
    ledger = ledger_with_hosts()
    for _ in range(3):
        ledger.release(ledger.granted("01:00.0", "0a:00.0", principal=B), B)
        ledger.tick(120)
    fold = Feeding()
    told_of(ledger.bodies, fold)
    live = {lease for lease in fold.devices.values() if lease}
    assert set(fold.leases) == live == set(ledger.state.leases) & live


def test_another_log_is_not_read_on() -> None:
    """A record that does not follow is refused, and so is a snapshot that is none; another version's is passed over."""
    bodies = play().bodies
    fold = Feeding()
    fold.fold(1, bodies[0])
    with pytest.raises(CorruptLedgerError, match="record 3"):
        fold.fold(3, bodies[2])
    with pytest.raises(CorruptLedgerError, match="record 2"):
        fold.fold(2, bodies[2])
    with pytest.raises(CorruptSnapshotError):
        decode_feeding(b"{}")
    old = encode_feeding(fold).replace(b'"version":%d' % FEED_VERSION, b'"version":1')
    assert decode_feeding(old.replace(b'"orders":[],', b"")) is None


def test_every_event_type_is_told_of_something() -> None:
    """No type of event is unknown to the feed: it has a host of its own, or its place in the table."""
    assert isinstance(Event, type(int | str))
    for kind in Event.__args__:
        assert kind in feeding._MOVES or "host" in kind.__struct_fields__, kind
