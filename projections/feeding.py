"""The feed: what is told of each event, under which subjects, by a light fold of its own.

An event is told once for each device that it tells of, else once for each host, and once where it has neither; each of
these messages is a *part* of it. All parts have the same position, the same body and their own subject. What is told
is a function of the log alone: whoever folds it from the start tells the same, byte for byte.

| of an event | the subjects name |
|---|---|
| of a device | its host and key; the lease that holds it, and that one's tenant, if one does |
| of a lease | the same, for each of its devices |
| of a refusal | each device that it is about, or of the lease that it is about; the tenant who was refused |
| of an order | the device that it takes away or has made, and the one that this is a part of; the tenant who asked |
| of a host | the host |
| of the whole ledger | nothing |
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from leasehold.events import cloudevents, codec, event_types, hostdev_events, limits
from leasehold.events.capabilities import keys_of
from leasehold.events.cloudevents import Attributes
from leasehold.events.errors import CorruptLedgerError, CorruptSnapshotError, InvalidInputError
from leasehold.events.event_types import Event
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainId,
    HostName,
    device_id,
    domain_id,
    physical_key,
    split_device_id,
    tenant_of,
)
from leasehold.events.position import lease_id_text, parse_lease_id, position_of
from leasehold.events.record import Record, chain_hash
from leasehold.events.subjects import NONE, device_word
from leasehold.projections.evolve import check_follows
from leasehold.projections.rows import Head

FEED_VERSION: Final = 4
"""Raised when the same log would be told otherwise; snapshots of another version are built anew."""


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


class _Lease(msgspec.Struct, frozen=True, gc=False):
    tenant: str
    devices: tuple[DeviceId, ...]


class _Refused(msgspec.Struct, frozen=True, gc=False):
    at_ns: int
    parts: tuple[Part, ...]


class _Order(msgspec.Struct, frozen=True, gc=False):
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
        self.leases: dict[int, _Lease] = {}
        """Until all devices of one are free."""
        self.refusals: dict[int, _Refused] = {}
        """As long as they can be repeated, oldest first."""
        self.orders: dict[str, dict[int, _Order]] = {}
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
        domain_of = _DOMAIN_OF.get(type(event))
        domain = domain_of(event) if domain_of is not None else ""
        before = [self.previous.get(part.host, 0) for part in parts]
        told = []
        for index, (part, previous) in enumerate(zip(parts, before, strict=True)):
            lease = lease_id_text(part.lease) if part.lease else ""
            said = Attributes(
                cluster=cluster, ledger_id=record.ledger_id, era=record.era,
                position=position, part=index, parts=len(parts), previous=previous,
                tag=tag, at_ns=record.decided_at_ns,
                subject=part.device or lease or domain or part.host, tenant=part.tenant, cause=cause,
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


def _held(fold: Feeding, device: str) -> Part:
    """A device with the lease that holds it, itself or the physical device that it is a part of."""
    host, key = split_device_id(DeviceId(device))
    lease = fold.devices.get(device) or fold.devices.get(device_id(host, physical_key(key)), 0)
    row = fold.leases.get(lease)
    return Part(host, device, lease, row.tenant) if row else Part(host, device)


def _of_lease(fold: Feeding, lease: int, devices: Iterable[str] | None = None) -> list[Part]:
    row = fold.leases[lease]
    chosen = row.devices if devices is None else devices
    return [Part(device.partition("/")[0], device, lease, row.tenant) for device in chosen]


def _described(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    device = device_id(event.host, event.device.key)
    fold.devices.setdefault(device, 0)
    return [_held(fold, device)]


def _of_key(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return [_held(fold, device_id(event.host, event.key))]


def _granted(fold: Feeding, position: int, _at_ns: int, event: event_types.LeaseGranted) -> list[Part]:
    fold.leases[position] = _Lease(event.tenant, event.devices)
    for device in event.devices:
        fold.devices[device] = position
    return _of_lease(fold, position)


def _of_its_lease(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return _of_lease(fold, event.lease)


def _revoked(fold: Feeding, _position: int, _at_ns: int, event: hostdev_events.LeaseRevoked) -> list[Part]:
    # It may have ended before, and others may have some of its devices.
    held = [device for device in fold.leases[event.lease].devices if fold.devices[device] == event.lease]
    return _of_lease(fold, event.lease, held)


def _freed(fold: Feeding, _position: int, _at_ns: int, event: event_types.DeviceFreed) -> list[Part]:
    if not event.lease:
        return [_held(fold, event.device)]
    parts = _of_lease(fold, event.lease, (event.device,))
    if fold.devices[event.device] == event.lease:
        fold.devices[event.device] = 0
    if all(fold.devices[device] != event.lease for device in fold.leases[event.lease].devices):
        del fold.leases[event.lease]
    return parts


def _drifted(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    return [_held(fold, event.device)]


def _attachment(fold: Feeding, _position: int, _at_ns: int, event: Any) -> list[Part]:
    """Of each device that is meant; what means none that is known is told of the host alone."""
    return [_held(fold, device_id(event.host, key)) for key in event.devices] or [Part(event.host)]


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
    fold.refusals[position] = _Refused(at_ns, tuple(parts))
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
    row = _Order(event.host, tenant_of(event.request.principal), devices)
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


def _take_order(fold: Feeding, host: HostName, order: int) -> _Order:
    orders = fold.orders.get(host, {})
    # One that was forgotten is told of its host alone.
    row = orders.pop(order, _Order(host, "", ()))
    if not orders:
        fold.orders.pop(host, None)
    return row


def _of_order(row: _Order, made: tuple[DeviceId, ...] = ()) -> list[Part]:
    """An order bears no lease: what it is about may have come to be another tenant's before it is over."""
    return [Part(row.host, device, 0, row.tenant) for device in (*made, *row.devices)] or [Part(row.host)]


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
    event_types.LeaseReleased: _of_its_lease,
    event_types.LeaseExpired: _of_its_lease,
    event_types.LeaseOutlived: _of_its_lease,
    event_types.DeviceFreed: _freed,
    event_types.RequestRefused: _refused,
    event_types.RefusalsRepeated: _repeated,
    event_types.HostOrdered: _ordered,
    event_types.OrderCarriedOut: _carried_out,
    event_types.OrderFailed: _failed,
    hostdev_events.DevicePrepared: _of_key,
    hostdev_events.PrepareFailed: _of_its_lease,
    hostdev_events.DeviceGivenBack: _of_key,
    hostdev_events.DeviceQuarantined: _of_key,
    hostdev_events.LeaseRevoked: _revoked,
    hostdev_events.DriftDetected: _drifted,
    hostdev_events.DriftResolved: _drifted,
}
"""What an event tells of; of the host alone where it is not named here."""


_DOMAIN_OF: Final[dict[type[Any], Callable[[Any], DomainId]]] = {
    event_types.DomainAppeared: lambda event: domain_id(event.host, event.domain.key),
    event_types.DomainChanged: lambda event: domain_id(event.host, event.domain.key),
    event_types.DomainStarted: lambda event: domain_id(event.host, event.domain.key),
    event_types.DomainVanished: lambda event: domain_id(event.host, event.key),
    event_types.AttachmentSeen: lambda event: domain_id(event.host, event.domain),
    event_types.AttachmentGone: lambda event: domain_id(event.host, event.domain),
}
"""The domain that an event is about."""


class _Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    head: Head
    last: tuple[int, int]
    devices: dict[str, int]
    leases: list[tuple[int, _Lease]]
    refusals: list[tuple[int, _Refused]]
    orders: list[tuple[int, _Order]] = []
    previous: dict[str, int]


_snapshot_decoder: Final = msgspec.json.Decoder(_Snapshot)


def encode_feeding(fold: Feeding) -> bytes:
    """The fold as it is now; equal folds are equal bytes."""
    snapshot = _Snapshot(
        version=FEED_VERSION,
        head=fold.head,
        last=fold.last,
        devices=fold.devices,
        leases=sorted(fold.leases.items()),
        refusals=list(fold.refusals.items()),
        orders=sorted(pair for orders in fold.orders.values() for pair in orders.items()),
        previous=fold.previous,
    )
    return codec.encode(snapshot)


def decode_feeding(body: bytes) -> Feeding | None:
    """The fold again; `None`, if another version has written it.

    Raises:
        CorruptSnapshotError: it is none.
    """
    try:
        snapshot = _snapshot_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptSnapshotError(f"not a snapshot of the feed ({error})") from error
    if snapshot.version != FEED_VERSION:
        return None
    fold = Feeding()
    fold.head, fold.last = snapshot.head, snapshot.last
    fold.devices, fold.previous = snapshot.devices, snapshot.previous
    fold.leases, fold.refusals = dict(snapshot.leases), dict(snapshot.refusals)
    for order, row in snapshot.orders:
        fold.orders.setdefault(row.host, {})[order] = row
    return fold
