"""The feed: what is told of each event, under which subjects, by a light fold of its own.

An event is told once for each device that it tells of, else once for each host, and once where it has neither; each of
these messages is a *part* of it. All parts have the same position, the same body and their own subject. What is told
is a function of the log alone: whoever folds it from the start tells the same, byte for byte.

| of an event | the subjects name |
|---|---|
| of a device | its host and key; the lease that holds it, and that one's tenant, if one does |
| of a lease | the same, for each of its devices; of one that changes hands, the tenant before and the new one |
| of many leases that are renewed together | the tenant who asked |
| of a request that waits | the tenant who asked, with each device that is kept for it |
| of a refusal | each device that it is about, or of the lease that it is about; the tenant who was refused |
| of an order | the device that it takes away or has made, and the one that this is a part of; the tenant who asked |
| of a host | the host |
| of a quota | the tenant |
| of the whole ledger, of a class | nothing |

What several leases share is told of under each of them. A lease that only looks on is told of where it begins, is
renewed, changes hands and ends; what happens to its devices is told under others.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from leasehold.events import cloudevents, codec, event_types, hostdev_events, limits, schedule_events
from leasehold.events.capabilities import keys_of
from leasehold.events.cloudevents import Attributes
from leasehold.events.errors import CorruptLedgerError, InvalidInputError
from leasehold.events.event_types import Event
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    HostName,
    device_id,
    domain_id,
    physical_key,
    split_device_id,
    tenant_of,
)
from leasehold.events.position import lease_id_text, parse_lease_id, position_of, queued_id_text
from leasehold.events.record import Record, chain_hash
from leasehold.events.subjects import NONE, device_word
from leasehold.projections.evolve import check_follows
from leasehold.projections.rows import Head


class Part(msgspec.Struct, frozen=True, gc=False):
    """Of what one message tells, empty or 0 where it has none. `device` is an id (`host/key`)."""

    host: str = ""
    device: str = ""
    lease: int = 0
    tenant: str = ""


class Message(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One message of the feed. `subject`: below `told.`; `headers`: its lines, each ended; `body`: JSON."""

    position: int
    part: int
    subject: str
    headers: str
    body: bytes


class Lease(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A lease, until nothing more is told of it."""

    tenant: str
    devices: tuple[DeviceId, ...]
    mode: str = ""
    """Only what is leased alone is held until it is free; all else is forgotten at the end of the lease."""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Of what a refusal was told, and when."""

    at_ns: int
    parts: tuple[Part, ...]


class Order(msgspec.Struct, frozen=True, gc=False):
    """What a host was told to do, and by whose matter."""

    host: HostName
    tenant: str
    devices: tuple[DeviceId, ...]
    is_over: bool = False
    """Its time was over; it may still be carried out."""


class _RawStep(msgspec.Struct, frozen=True, gc=False):
    events: tuple[msgspec.Raw, ...]


class _RawRecord(msgspec.Struct, frozen=True, gc=False):
    steps: tuple[_RawStep, ...]


class _Tagged(msgspec.Struct, frozen=True, gc=False):
    type: str


_raw_decoder: Final = msgspec.json.Decoder(_RawRecord)
_tag_decoder: Final = msgspec.json.Decoder(_Tagged)


class Feeding:
    """The fold of the feed, behind some record."""

    def __init__(self) -> None:
        self.head = Head()
        self.last = (0, 0)
        """Position and part of the last message of the last record."""
        self.devices: dict[str, int] = {}
        """Each device that was ever seen, and the lease that holds it, or 0."""
        self.leases: dict[int, Lease] = {}
        """Until all devices of one are free."""
        self.sharers: dict[str, tuple[int, ...]] = {}
        """Of each device that is shared, the living leases that share it, in order."""
        self.queue: dict[int, str] = {}
        """Of each request that waits, its tenant."""
        self.refusals: dict[int, Refused] = {}
        """As long as they can be repeated, oldest first."""
        self.orders: dict[str, dict[int, Order]] = {}
        """Of each host, until nothing more can be told of one, or too many are over."""
        self.previous: dict[str, int] = {}
        """The position that was told last of each host; of no host, under the empty name."""

    def fold(self, sequence: int, body: bytes) -> list[Message]:
        """Move over the record at `sequence`: what is told of it, in order.

        Raises:
            CorruptLedgerError: it is not the next record of this ledger, or cannot follow here.
            UnknownFormatError: it was written by a newer build.
        """
        record = codec.decode_record(body, sequence)
        check_follows(self.head, sequence, record)
        raw = [event for step in _raw_decoder.decode(body).steps for event in step.events]
        cluster = self._cluster(record)
        told: list[Message] = []
        position = position_of(sequence, 0)
        for index, event in enumerate(event for step in record.steps for event in step.events):
            try:
                parts = self._move(position + index, record.decided_at_ns, event)
            except KeyError as error:
                said = f"its event {index} ({event.__struct_config__.tag}) cannot follow here: {error!r}"
                raise CorruptLedgerError(said, sequence=sequence) from error
            told += self._tell(cluster, record, position + index, event, bytes(raw[index]), parts)
        self.last = (told[-1].position, told[-1].part)
        self.head = Head(
            ledger_id=record.ledger_id,
            cluster=cluster,
            era=record.era,
            sequence=sequence,
            chain=chain_hash(body),
            decided_at_ns=record.decided_at_ns,
            observed_through=record.observed_through,
        )
        return told

    def _cluster(self, record: Record) -> str:
        first = record.steps[0].events[0] if record.steps and record.steps[0].events else None
        return first.cluster if isinstance(first, event_types.LedgerStarted) else self.head.cluster

    def _tell(
        self, cluster: str, record: Record, position: int, event: Event, body: bytes, parts: tuple[Part, ...]
    ) -> list[Message]:
        tag = _tag_decoder.decode(body).type
        kind = tag.rpartition(".")[0]
        request = getattr(event, "request", None)
        cause = f"{request.principal}/{request.request_id}" if request is not None else ""
        said_of = _ABOUT.get(type(event))
        about = said_of(event, position) if said_of is not None else ""
        before = [self.previous.get(part.host, 0) for part in parts]
        told = []
        for index, (part, previous) in enumerate(zip(parts, before, strict=True)):
            lease = lease_id_text(part.lease) if part.lease else ""
            said = Attributes(
                cluster=cluster, ledger_id=record.ledger_id, era=record.era,
                position=position, part=index, parts=len(parts), previous=previous,
                tag=tag, at_ns=record.decided_at_ns,
                subject=part.device or lease or about or part.host, tenant=part.tenant, cause=cause,
            )  # fmt: skip
            key = device_word(part.device.partition("/")[2])
            subject = f"{part.host or NONE}.{kind}.{key or NONE}.{lease or NONE}.{part.tenant or NONE}"
            headers = cloudevents.header_lines(said)
            told.append(Message(position=position, part=index, subject=subject, headers=headers, body=body))
            self.previous[part.host] = position
        return told

    def _move(self, position: int, at_ns: int, event: Event) -> tuple[Part, ...]:
        """The parts of an event, each once; 1 at least."""
        return tuple(dict.fromkeys(_MOVES.get(type(event), _of_host)(self, position, at_ns, event)))


# --- what an event tells of, and does to the fold ----------------------------------------------------------------


def _held(fold: Feeding, device: str) -> list[Part]:
    """A device with the lease that holds it, or those that share it, itself or the physical device that it is a part
    of.
    """
    host, key = split_device_id(DeviceId(device))
    physical = device_id(host, physical_key(key))
    lease = fold.devices.get(device) or fold.devices.get(physical, 0)
    leases = (lease,) if lease else fold.sharers.get(device) or fold.sharers.get(physical, ())
    rows = [(each, fold.leases[each]) for each in leases if each in fold.leases]
    return [Part(host, device, each, row.tenant) for each, row in rows] or [Part(host, device)]


def _of_lease(fold: Feeding, lease: int, devices: Iterable[str] | None = None) -> list[Part]:
    row = fold.leases[lease]
    chosen = row.devices if devices is None else devices
    return [Part(device.partition("/")[0], device, lease, row.tenant) for device in chosen]


def _described(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    device = device_id(event.host, event.device.key)
    fold.devices.setdefault(device, 0)
    return _held(fold, device)


def _of_key(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return _held(fold, device_id(event.host, event.key))


def _granted(fold: Feeding, position: int, _at_ns: int, event: event_types.LeaseGranted) -> list[Part]:
    mode = event.mode or ""
    fold.leases[position] = Lease(event.tenant, event.devices, mode)
    for device in event.devices:
        if not mode:
            fold.devices[device] = position
        elif mode == "shared":
            fold.sharers[device] = (*fold.sharers.get(device, ()), position)
    fold.queue.pop(event.queued or 0, None)
    return _of_lease(fold, position)


def _of_its_lease(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return _of_lease(fold, event.lease)


def _ended(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    parts = _of_lease(fold, event.lease)
    _forget_if_over(fold, event.lease)
    return parts


def _forget_if_over(fold: Feeding, lease: int) -> None:
    """What is not held alone is over with its lease: nothing has to be freed."""
    row = fold.leases[lease]
    if not row.mode:
        return
    del fold.leases[lease]
    for device in row.devices if row.mode == "shared" else ():
        others = tuple(each for each in fold.sharers[device] if each != lease)
        if others:
            fold.sharers[device] = others
        else:
            del fold.sharers[device]


def _revoked(fold: Feeding, _position: int, _at_ns: int, event: hostdev_events.LeaseRevoked) -> list[Part]:
    # It may have ended before, and others may have some of its devices.
    row = fold.leases[event.lease]
    parts = _of_lease(
        fold, event.lease, [device for device in row.devices if row.mode or fold.devices[device] == event.lease]
    )
    _forget_if_over(fold, event.lease)
    return parts


def _freed(fold: Feeding, _position: int, _at_ns: int, event: event_types.DeviceFreed) -> list[Part]:
    if not event.lease:
        return _held(fold, event.device)
    parts = _of_lease(fold, event.lease, (event.device,))
    if fold.devices[event.device] == event.lease:
        fold.devices[event.device] = 0
    if all(fold.devices[device] != event.lease for device in fold.leases[event.lease].devices):
        del fold.leases[event.lease]
    return parts


def _of_device(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return _held(fold, event.device)


def _attachment(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    """Of each device that is meant; what means none that is known is told of the host alone."""
    parts = [part for key in event.devices for part in _held(fold, device_id(event.host, key))]
    return parts or [Part(event.host)]


def _shared(fold: Feeding, _position: int, _at_ns: int, event: event_types.SharingFound) -> list[Part]:
    parts: list[Part] = []
    for pair in event.pairs:
        parts += _of_lease(fold, pair.lease, (pair.device,)) + _of_lease(fold, pair.other_lease, (pair.other,))
    return parts or [Part(event.host)]


def _refused(fold: Feeding, position: int, at_ns: int, event: event_types.RequestRefused) -> list[Part]:
    tenant = tenant_of(event.request.principal)
    parts: list[Part] = []
    for name in event.about:
        parts += _of_asked(fold, name, tenant)
    parts = list(dict.fromkeys(parts)) or [Part(tenant=tenant)]
    _forget_refusals(fold, at_ns)
    fold.refusals[position] = Refused(at_ns, tuple(parts))
    return parts


def _of_asked(fold: Feeding, name: str, tenant: str) -> list[Part]:
    """A refusal is about devices, known or not, or about a lease, whose tenant may be another one."""
    if name in fold.devices:
        host, _ = split_device_id(DeviceId(name))
        return [Part(host, name, 0, tenant)]
    if not name.startswith("L"):
        return []
    try:
        lease = parse_lease_id(name)
    except InvalidInputError:
        return []
    row = fold.leases.get(lease)
    devices: tuple[str, ...] = row.devices if row else ("",)
    return [Part(device.partition("/")[0], device, lease, tenant) for device in devices]


def _repeated(fold: Feeding, _position: int, at_ns: int, event: event_types.RefusalsRepeated) -> list[Part]:
    _forget_refusals(fold, at_ns)
    row = fold.refusals.get(event.first)
    return list(row.parts) if row else [Part(tenant=tenant_of(event.request.principal))]


def _forget_refusals(fold: Feeding, at_ns: int) -> None:
    while fold.refusals:
        first = next(iter(fold.refusals))
        is_fresh = at_ns - fold.refusals[first].at_ns <= limits.REFUSAL_WINDOW_NS
        if is_fresh and len(fold.refusals) < limits.REFUSALS_TRACKED_MAX:
            return
        del fold.refusals[first]


def _ordered(fold: Feeding, position: int, _at_ns: int, event: event_types.HostOrdered) -> list[Part]:
    devices = tuple(device_id(event.host, key) for key in keys_of(event.order))
    row = Order(event.host, tenant_of(event.request.principal), devices)
    fold.orders.setdefault(event.host, {})[position] = row
    return _of_order(row)


def _carried_out(fold: Feeding, _position: int, _at_ns: int, event: event_types.OrderCarriedOut) -> list[Part]:
    row = _take_order(fold, event.host, event.order)
    return _of_order(row, (device_id(event.host, DeviceKey(event.device)),) if event.device else ())


def _failed(fold: Feeding, _position: int, _at_ns: int, event: event_types.OrderFailed) -> list[Part]:
    row = _take_order(fold, event.host, event.order)
    if event.timed_out:
        orders = fold.orders.setdefault(event.host, {})
        orders[event.order] = msgspec.structs.replace(row, is_over=True)
        over = sorted(order for order, each in orders.items() if each.is_over)
        for order in over[: -limits.ORDERS_KEPT_PER_HOST_MAX]:
            del orders[order]
    return _of_order(row)


def _take_order(fold: Feeding, host: HostName, order: int) -> Order:
    orders = fold.orders.get(host, {})
    # One that was forgotten is told of its host alone.
    row = orders.pop(order, Order(host, "", ()))
    if not orders:
        fold.orders.pop(host, None)
    return row


def _of_order(row: Order, made: tuple[DeviceId, ...] = ()) -> list[Part]:
    """An order bears no lease: what it is about may have come to be another tenant's before it is over."""
    return [Part(row.host, device, 0, row.tenant) for device in (*made, *row.devices)] or [Part(row.host)]


# --- waiting, keeping, and what operators say -----------------------------------------------------------------------


def _queued(fold: Feeding, position: int, _at_ns: int, event: schedule_events.RequestQueued) -> list[Part]:
    fold.queue[position] = event.tenant
    return _of_queued(event.tenant, event.keeps)


def _moved(fold: Feeding, _position: int, _at_ns: int, event: schedule_events.QueuedMoved) -> list[Part]:
    return _of_queued(fold.queue[event.queued], event.keeps)


def _of_queued(tenant: str, keeps: tuple[DeviceId, ...]) -> list[Part]:
    """What is kept may still be another's: it bears no lease."""
    return [Part(device.partition("/")[0], device, 0, tenant) for device in keeps] or [Part(tenant=tenant)]


def _waits_no_more(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return [Part(tenant=fold.queue.pop(event.queued))]


def _of_asker(_fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return [Part(tenant=tenant_of(event.request.principal))]


def _transferred(fold: Feeding, _position: int, _at_ns: int, event: schedule_events.LeaseTransferred) -> list[Part]:
    before = _of_lease(fold, event.lease)
    fold.leases[event.lease] = msgspec.structs.replace(fold.leases[event.lease], tenant=event.tenant)
    return [*before, *_of_lease(fold, event.lease)]


def _of_tenant(_fold: Feeding, _position: int, _at_ns: int, event: schedule_events.QuotaSet) -> list[Part]:
    return [Part(tenant=event.tenant)]


def _marked(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return _held(fold, device_id(event.host, event.key)) if event.key else [Part(event.host)]


def _of_host(_fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return [Part(event.host)]


def _of_nothing(_fold: Feeding, _position: int, _at_ns: int, _event: Any) -> list[Part]:
    return [Part()]


_MOVES: Final[dict[type[Any], Callable[[Feeding, int, int, Any], list[Part]]]] = {
    event_types.LedgerStarted: _of_nothing,
    event_types.LedgerRestored: _of_nothing,
    event_types.GraceStarted: _of_nothing,
    event_types.DeviceAppeared: _described,
    event_types.DeviceChanged: _described,
    event_types.DeviceReplaced: _described,
    event_types.DeviceReappeared: _described,
    event_types.DeviceMissing: _of_key,
    event_types.DeviceFlapped: _of_key,
    event_types.AttachmentSeen: _attachment,
    event_types.AttachmentGone: _attachment,
    event_types.SharingFound: _shared,
    event_types.LeaseGranted: _granted,
    event_types.LeaseRenewed: _of_its_lease,
    event_types.LeaseReleased: _ended,
    event_types.LeaseExpired: _ended,
    event_types.LeaseOutlived: _ended,
    event_types.DeviceFreed: _freed,
    event_types.RequestRefused: _refused,
    event_types.RefusalsRepeated: _repeated,
    event_types.HostOrdered: _ordered,
    event_types.OrderCarriedOut: _carried_out,
    event_types.OrderFailed: _failed,
    hostdev_events.DevicePrepared: _of_key,
    hostdev_events.PrepareFailed: _ended,
    hostdev_events.DeviceGivenBack: _of_key,
    hostdev_events.DeviceQuarantined: _of_key,
    hostdev_events.LeaseRevoked: _revoked,
    hostdev_events.DriftDetected: _of_device,
    hostdev_events.DriftResolved: _of_device,
    schedule_events.RequestQueued: _queued,
    schedule_events.QueuedMoved: _moved,
    schedule_events.QueueLooked: _of_nothing,
    schedule_events.RequestWithdrawn: _waits_no_more,
    schedule_events.WaitingEnded: _waits_no_more,
    schedule_events.LeasesRenewed: _of_asker,
    schedule_events.LeaseTransferred: _transferred,
    schedule_events.LeaseSwitched: _of_its_lease,
    schedule_events.ClassSet: _of_nothing,
    schedule_events.ClassRemoved: _of_nothing,
    schedule_events.QuotaSet: _of_tenant,
    schedule_events.Cordoned: _marked,
    schedule_events.Uncordoned: _marked,
    schedule_events.Tainted: _marked,
    schedule_events.Untainted: _marked,
    schedule_events.PolicySet: _of_device,
    schedule_events.DeviceCleaned: _of_device,
    schedule_events.DeviceHealed: _of_device,
}
"""What an event tells of; of the host alone where it is not named here."""


_ABOUT: Final[dict[type[Any], Callable[[Any, int], str]]] = {
    event_types.DomainAppeared: lambda event, _position: domain_id(event.host, event.domain.key),
    event_types.DomainChanged: lambda event, _position: domain_id(event.host, event.domain.key),
    event_types.DomainStarted: lambda event, _position: domain_id(event.host, event.domain.key),
    event_types.DomainVanished: lambda event, _position: domain_id(event.host, event.key),
    event_types.AttachmentSeen: lambda event, _position: domain_id(event.host, event.domain),
    event_types.AttachmentGone: lambda event, _position: domain_id(event.host, event.domain),
    schedule_events.RequestQueued: lambda _event, position: queued_id_text(position),
    schedule_events.QueuedMoved: lambda event, _position: queued_id_text(event.queued),
    schedule_events.RequestWithdrawn: lambda event, _position: queued_id_text(event.queued),
    schedule_events.WaitingEnded: lambda event, _position: queued_id_text(event.queued),
}
"""The domain, or the place in the queue, that an event is about."""
