"""The rows of the read models, from events: who had what from when to when, and what devices and hosts were like.

A fold of its own, smaller than `evolve` and independent of it: it remembers what is still open, and gives out rows as
they are now, to be put in the place of what they were. The file that they are kept in is not its business.
"""

from collections.abc import Callable
from typing import Any, Final, get_args

import msgspec

from leasehold.events import codec, event_types, hostdev_events, limits, schedule_events
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, Principal, RequestRef, device_id, split_domain_id
from leasehold.events.position import index_of, position_of
from leasehold.events.record import Record, chain_hash, event_count
from leasehold.projections import handedrows, keeping, nodedev, queuerows
from leasehold.projections.domainrows import DomainEvent, DomainRows
from leasehold.projections.handedrows import HandedEvent
from leasehold.projections.hostrows import HostEvent, HostRows
from leasehold.projections.indexes import names_of_domain
from leasehold.projections.leaserows import TenureRows, lease_row
from leasehold.projections.marking import Marking
from leasehold.projections.modelrows import (
    Changes,
    DeviceRow,
    DomainIdRow,
    DomainNameRow,
    DomainRow,
    LeaseRow,
    ModelsHead,
    NameRow,
    OwnershipRow,
    RefusalRow,
    RequestRow,
    Resumed,
    VersionRow,
)
from leasehold.projections.orderrows import OrderRows
from leasehold.projections.queuerows import QueueRows
from leasehold.projections.rows import DeviceState

_Describing = (
    event_types.DeviceAppeared | event_types.DeviceChanged | event_types.DeviceReplaced | event_types.DeviceReappeared
)


_replace: Final = msgspec.structs.replace


class IntervalFold:
    """The fold. After a CorruptLedgerError it is of no use any more."""

    def __init__(self) -> None:
        self.head = ModelsHead()
        self._devices: dict[DeviceId, DeviceRow] = {}
        self._leases: dict[int, LeaseRow] = {}
        """The open ones: not all of their devices are free."""
        self._held: dict[int, dict[DeviceId, OwnershipRow]] = {}
        self._tenures = TenureRows()
        self._orders = OrderRows()
        self._queue = QueueRows()
        self._hosts = HostRows()
        self._domains = DomainRows()
        self._changes = Changes()

    def resume(self, rows: Resumed) -> None:
        """Go on from rows as they are kept."""
        self.head = rows.head
        self._devices = {row.device: row for row in rows.devices}
        self._leases = {row.lease: row for row in rows.leases}
        self._held = {lease: {} for lease in self._leases}
        for row in rows.ownerships:
            self._held[row.from_position][row.device] = row
        self._tenures.resume(rows.tenures, rows.sharings)
        self._orders.resume(rows.orders)
        self._queue.resume(rows.queue, rows.keeps)
        self._hosts.resume(rows.hosts)
        self._domains.resume(rows.domains)

    def take(self) -> Changes:
        """What has come together since the last time."""
        taken, self._changes = self._changes, Changes()
        return taken

    def step(self, sequence: int, body: bytes) -> int:
        """Fold the record at `sequence`; how many events it holds.

        Raises:
            CorruptLedgerError: it is not the next one, or one of its events cannot follow; the text names it.
        """
        record = codec.decode_record(body, sequence)
        count = event_count(record)
        self._check(sequence, record, count)
        position: int = position_of(sequence, 0)
        for step in record.steps:
            for event in step.events:
                handler = _HANDLERS.get(type(event))
                if handler is not None:
                    try:
                        handler(self, position, record.decided_at_ns, event)
                    except (KeyError, AssertionError) as error:
                        said = f"its event {index_of(position)} ({event.__struct_config__.tag}) cannot come: {error!r}"
                        raise CorruptLedgerError(said, sequence=sequence) from error
                position += 1
        chain = chain_hash(body)
        self.head = ModelsHead(record.ledger_id, record.era, sequence, chain, record.decided_at_ns)
        return count

    def _check(self, sequence: int, record: Record, count: int) -> None:
        if sequence != self.head.sequence + 1:
            raise CorruptLedgerError(f"expected record {self.head.sequence + 1} here", sequence=sequence)
        if record.prev != self.head.chain:
            said = f"it follows a record with hash {record.prev[:12]}…, but that before has {self.head.chain[:12]}…"
            raise CorruptLedgerError(said, sequence=sequence)
        if count > limits.EVENTS_PER_RECORD_MAX or record.decided_at_ns < self.head.decided_at_ns:
            raise CorruptLedgerError("it holds too many events, or its time goes back", sequence=sequence)

    # --- hosts ----------------------------------------------------------------------------------------------------

    def restored(self, position: int, at_ns: int, _event: event_types.LedgerRestored) -> None:
        """No source is believed before it has reported again."""
        self._changes.hosts += self._hosts.restored(position, at_ns)

    def host_told(self, position: int, at_ns: int, event: HostEvent) -> None:
        """A host is of another kind, or its agents can be relied on otherwise."""
        if isinstance(event, hostdev_events.HostDeclaredDead):
            self._ask(position, event.request)
        self._changes.hosts += self._hosts.move(position, at_ns, event)

    def retired(self, position: int, at_ns: int, event: event_types.AgentRetired) -> None:
        """An agent is forgotten, and what it told of domains."""
        self._ask(position, event.request)
        self._changes.hosts += self._hosts.move(position, at_ns, event)
        for row in self._domains.retire(position, at_ns, event.host, event.agent):
            self._put_domain(row)

    # --- domains --------------------------------------------------------------------------------------------------

    def domain_told(self, position: int, at_ns: int, event: DomainEvent) -> None:
        """A domain is otherwise, or uses something else."""
        self._put_domain(self._domains.move(position, at_ns, event))

    def _put_domain(self, row: DomainRow) -> None:
        self._changes.domains.append(row)
        self._changes.domain_ids[DomainIdRow(row.domain, row.host)] = None
        for text in sorted(names_of_domain(split_domain_id(row.domain)[1], row.name)):
            self._changes.domain_names[DomainNameRow(text, row.domain)] = None

    # --- devices --------------------------------------------------------------------------------------------------

    def appeared(self, position: int, at_ns: int, event: event_types.DeviceAppeared) -> None:
        """A device that was never seen before."""
        device = device_id(event.host, event.device.key)
        assert device not in self._devices, f"{device} is known already"
        self._devices[device] = DeviceRow(device, event.host, position, at_ns, position, position)
        self._describe(position, at_ns, event)

    def changed(
        self, position: int, at_ns: int, event: event_types.DeviceChanged | event_types.DeviceReappeared
    ) -> None:
        """The same thing is otherwise, or back."""
        self._describe(position, at_ns, event)

    def replaced(self, position: int, at_ns: int, event: event_types.DeviceReplaced) -> None:
        """Another thing is in its place; whoever leased the first one does not have this one."""
        row = self._devices[device_id(event.host, event.device.key)]
        row.flaps = 0
        self._lose(position, at_ns, row)
        self._describe(position, at_ns, event)
        if row.lease:
            held = self._held[row.lease][row.device]
            held.displaced_position = held.displaced_position or position
            self._changes.ownerships[row.device, row.lease] = held

    def missing(self, position: int, at_ns: int, event: event_types.DeviceMissing) -> None:
        """It is not there; what it was like is remembered."""
        row = self._touch(device_id(event.host, event.key), position, event.how)
        self._lose(position, at_ns, row)
        row.missing = True
        self._put_version(row, at_ns)

    def _lose(self, position: int, at_ns: int, row: DeviceRow) -> None:
        """A failure, if somebody has it, and its host shows well."""
        is_living = self._tenures.is_shared(row.device) or (row.lease and not self._leases[row.lease].ended)
        if is_living and not row.missing and not self._hosts.is_stale(row.host):
            row.handed = handedrows.failed(row.handed, position, at_ns)

    def flapped(self, position: int, at_ns: int, event: event_types.DeviceFlapped) -> None:
        """It was away, and is as it was."""
        self._put_version(self._touch(device_id(event.host, event.key), position, event.how), at_ns)

    def handed(self, position: int, at_ns: int, event: HandedEvent) -> None:
        """It was handed over, taken back, put aside, or its witnesses differ, or do not any more."""
        row = self._touch(handedrows.device_of(event), position)
        row.handed = handedrows.handed_after(row.handed, row.lease, position, at_ns, event)
        self._put_version(row, at_ns)

    def marked(self, position: int, at_ns: int, event: Marking) -> None:
        """An operator said something of it, or of its whole host."""
        self._ask(position, event.request)
        device = handedrows.marked_by(event)
        if device is None:
            self._changes.hosts += self._hosts.marked(position, at_ns, event)
            return
        row = self._touch(device, position)
        row.handed = handedrows.marked(row.handed, position, event)
        self._put_version(row, at_ns)

    def _describe(self, position: int, at_ns: int, event: _Describing) -> DeviceRow:
        description = event.device
        row = self._touch(device_id(event.host, description.key), position, event.how)
        row.described, row.missing = position, False
        self._put_version(row, at_ns, description)
        for text in (description.key, description.name, description.sysfs_path):
            if text:
                self._changes.names[NameRow(text, row.device)] = None
        return row

    def _put_version(self, row: DeviceRow, at_ns: int, description: DeviceDescription | None = None) -> None:
        version = VersionRow(row.device, row.last_position, at_ns, row.missing, row.described, row.flaps, row.handed)
        if description is not None:
            version = msgspec.structs.replace(
                version,
                bus=nodedev.bus_of(description),
                driver=description.driver,
                parent=nodedev.parent_of(DeviceState(host=row.host, description=description)) or "",
                types=f",{','.join(nodedev.capability_types(description))},",
                body=codec.encode(description),
            )
        self._changes.versions.append(version)

    def _touch(self, device: DeviceId, position: int, how: Sighting | None = None) -> DeviceRow:
        row = self._devices[device]
        row.last_position = position
        row.flaps += how.flaps if how is not None else 0
        self._changes.devices[device] = row
        return row

    # --- leases ---------------------------------------------------------------------------------------------------

    def granted(self, position: int, at_ns: int, event: event_types.LeaseGranted) -> None:
        """Each device has an owner from here on."""
        self._ask(position, event.request)
        self._leases[position] = self._changes.leases[position] = lease_row(position, at_ns, event)
        self._tenures.granted(self._changes, position, at_ns, event)
        self._queue.granted(self._changes, position, at_ns, event)
        held = self._held[position] = {}
        for device in event.devices if not event.mode else ():
            row = self._touch(device, position)
            assert not row.lease, f"{device} is held by L{row.lease}"
            row.lease, row.held = position, row.held or position
            held[device] = self._changes.ownerships[device, position] = OwnershipRow(device, position, at_ns)

    def renewed(self, position: int, _at_ns: int, event: event_types.LeaseRenewed) -> None:
        """It lives on."""
        self._ask(position, event.request)
        row = self._leases[event.lease]
        row.renewals += 1
        row.renewed_position, row.ttl_ms, row.expires_at_ns = position, event.ttl_ms, event.expires_at_ns
        self._changes.leases[row.lease] = row

    def many_renewed(self, position: int, at_ns: int, event: schedule_events.LeasesRenewed) -> None:
        """They live on, each for its own time."""
        self._ask(position, event.request)
        for lease in event.leases:
            row = self._leases[lease]
            row.renewals += 1
            row.renewed_position, row.expires_at_ns = position, keeping.kept_until_ns(at_ns, row.ttl_ms)
            self._changes.leases[lease] = row

    def transferred(self, position: int, at_ns: int, event: schedule_events.LeaseTransferred) -> None:
        """It is another's."""
        self._ask(position, event.request)
        self._tenures.transferred(self._changes, position, at_ns, event)
        for device in self._held[event.lease]:
            self._touch(device, position)

    def switched(self, position: int, _at_ns: int, event: schedule_events.LeaseSwitched) -> None:
        """It stands in for another from here on."""
        self._ask(position, event.request)
        row = self._leases[event.lease]
        row.switched_position = position
        self._changes.leases[event.lease] = row

    def released(self, position: int, at_ns: int, event: event_types.LeaseReleased) -> None:
        """Its holder gave it back."""
        self._ask(position, event.request)
        self._end(position, at_ns, event.lease, "released")

    def expired(self, position: int, at_ns: int, event: event_types.LeaseExpired) -> None:
        """Its time was over."""
        self._end(position, at_ns, event.lease, "expired")

    def outlived(self, position: int, at_ns: int, event: event_types.LeaseOutlived) -> None:
        """Its domain had been gone for too long."""
        self._end(position, at_ns, event.lease, "outlived")

    def prepare_failed(self, position: int, at_ns: int, event: hostdev_events.PrepareFailed) -> None:
        """One of its devices could not be handed over."""
        row = self._touch(device_id(event.host, event.key), position)
        row.handed = handedrows.failed(row.handed, position, at_ns)
        self._put_version(row, at_ns)
        self._end(position, at_ns, event.lease, "failed", f"{event.host}/{event.key}: {event.reason}")

    def revoked(self, position: int, at_ns: int, event: hostdev_events.LeaseRevoked) -> None:
        """An operator took it away; or, by force, what domains still have of one that has ended."""
        self._ask(position, event.request)
        if not self._leases[event.lease].ended:
            self._end(position, at_ns, event.lease, "revoked", f"{event.request.principal}: {event.reason}")

    def _end(self, position: int, at_ns: int, lease: int, how: str, reason: str = "") -> None:
        row = self._leases[lease]
        assert not row.ended, f"L{lease} has ended before"
        row.ended, row.ended_position, row.ended_ns, row.end_reason = how, position, at_ns, reason
        self._changes.leases[lease] = row
        for device, held in self._held[lease].items():
            self._touch(device, position)
            held.ended_position, held.ended_ns = position, at_ns
            self._changes.ownerships[device, lease] = held
        self._tenures.ended(self._changes, position, at_ns, lease)
        self._forget_if_free(lease)

    def _forget_if_free(self, lease: int) -> None:
        if not self._held[lease]:
            del self._held[lease], self._leases[lease]
            self._tenures.forget(lease)

    def freed(self, position: int, at_ns: int, event: event_types.DeviceFreed) -> None:
        """Nobody has it any more."""
        if event.request is not None:
            self._ask(position, event.request)
        row = self._touch(event.device, position)
        before = row.handed
        row.handed = handedrows.freed(
            before,
            lease=event.lease,
            is_confirmed=event.request is not None,
            tenant=self._tenures.tenant_of(event.lease) if event.lease else Principal(""),
            position=position,
        )
        if row.handed != before:
            self._put_version(row, at_ns)
        if event.lease:
            self._let_go(position, at_ns, row, event)

    def _let_go(self, position: int, at_ns: int, row: DeviceRow, event: event_types.DeviceFreed) -> None:
        assert row.lease == event.lease, f"it is not held by L{event.lease}"
        assert self._leases[event.lease].ended, f"L{event.lease} lives"
        row.lease = 0
        held = self._held[event.lease].pop(event.device)
        held.freed_position, held.freed_ns, held.evidence = position, at_ns, event.evidence
        self._changes.ownerships[event.device, event.lease] = held
        self._forget_if_free(event.lease)

    # --- requests -------------------------------------------------------------------------------------------------

    def refused(self, position: int, at_ns: int, event: event_types.RequestRefused) -> None:
        """A request was decided against."""
        ref = event.request
        self._ask(position, ref)
        self._changes.refusals.append(
            RefusalRow(
                position=position,
                at_ns=at_ns,
                principal=ref.principal,
                request_id=ref.request_id,
                verb=event.verb,
                holder=event.holder,
                code=event.refusal.code,
                message=event.refusal.message,
                about=codec.encode(event.about),
            )
        )

    def repeated(self, position: int, _at_ns: int, event: event_types.RefusalsRepeated) -> None:
        """As it was before."""
        self._ask(position, event.request)
        self._changes.repeated[event.first] = event.count

    def queued(self, position: int, at_ns: int, event: schedule_events.RequestQueued) -> None:
        """A request waits."""
        self._ask(position, event.request)
        self._queue.queued(self._changes, position, at_ns, event)

    def moved(self, position: int, _at_ns: int, event: schedule_events.QueuedMoved) -> None:
        """Other devices are kept for it."""
        self._queue.moved(self._changes, position, event)

    def withdrawn(self, position: int, at_ns: int, event: schedule_events.RequestWithdrawn) -> None:
        """It was taken back."""
        self._ask(position, event.request)
        self._queue.over(self._changes, position, at_ns, event.queued, queuerows.WITHDRAWN)

    def waited_in_vain(self, position: int, at_ns: int, event: schedule_events.WaitingEnded) -> None:
        """Its time was over."""
        self._queue.over(self._changes, position, at_ns, event.queued, queuerows.IN_VAIN)

    def asked(self, position: int, _at_ns: int, event: Any) -> None:
        """A request was decided."""
        self._ask(position, event.request)

    def _ask(self, position: int, ref: RequestRef) -> None:
        self._changes.requests.append(RequestRow(ref.request_id, ref.principal, position))

    # --- orders -------------------------------------------------------------------------------------------------

    def ordered(self, position: int, at_ns: int, event: event_types.HostOrdered) -> None:
        """A host is to do something."""
        self._ask(position, event.request)
        self._orders.ordered(self._changes, position, at_ns, event)

    def carried_out(self, position: int, _at_ns: int, event: event_types.OrderCarriedOut) -> None:
        """It has done it."""
        self._orders.carried_out(self._changes, position, event)

    def failed(self, position: int, _at_ns: int, event: event_types.OrderFailed) -> None:
        """It has not, or not in time."""
        self._orders.failed(self._changes, position, event)


_HANDLERS: Final[dict[type[Event], Callable[[IntervalFold, int, int, Any], None]]] = {
    event_types.LedgerRestored: IntervalFold.restored,
    event_types.HostRegistered: IntervalFold.host_told,
    event_types.HostWentStale: IntervalFold.host_told,
    event_types.HostCameBack: IntervalFold.host_told,
    event_types.SourceStarted: IntervalFold.host_told,
    event_types.SourceStopped: IntervalFold.host_told,
    event_types.ReportRequested: IntervalFold.host_told,
    event_types.PictureCompleted: IntervalFold.host_told,
    event_types.SourceWentBlind: IntervalFold.host_told,
    event_types.SourceSeesAgain: IntervalFold.host_told,
    event_types.AgentRetired: IntervalFold.retired,
    event_types.DomainAppeared: IntervalFold.domain_told,
    event_types.DomainChanged: IntervalFold.domain_told,
    event_types.DomainStarted: IntervalFold.domain_told,
    event_types.DomainVanished: IntervalFold.domain_told,
    event_types.AttachmentSeen: IntervalFold.domain_told,
    event_types.AttachmentGone: IntervalFold.domain_told,
    event_types.DeviceAppeared: IntervalFold.appeared,
    event_types.DeviceChanged: IntervalFold.changed,
    event_types.DeviceReappeared: IntervalFold.changed,
    event_types.DeviceReplaced: IntervalFold.replaced,
    event_types.DeviceMissing: IntervalFold.missing,
    event_types.DeviceFlapped: IntervalFold.flapped,
    event_types.LeaseGranted: IntervalFold.granted,
    event_types.LeaseRenewed: IntervalFold.renewed,
    event_types.LeaseReleased: IntervalFold.released,
    event_types.LeaseExpired: IntervalFold.expired,
    event_types.LeaseOutlived: IntervalFold.outlived,
    event_types.DeviceFreed: IntervalFold.freed,
    event_types.RequestRefused: IntervalFold.refused,
    event_types.RefusalsRepeated: IntervalFold.repeated,
    event_types.HostOrdered: IntervalFold.ordered,
    event_types.OrderCarriedOut: IntervalFold.carried_out,
    event_types.OrderFailed: IntervalFold.failed,
    hostdev_events.PrepareFailed: IntervalFold.prepare_failed,
    hostdev_events.LeaseRevoked: IntervalFold.revoked,
    hostdev_events.HostDeclaredDead: IntervalFold.host_told,
    hostdev_events.DevicePrepared: IntervalFold.handed,
    hostdev_events.DeviceGivenBack: IntervalFold.handed,
    hostdev_events.DeviceQuarantined: IntervalFold.handed,
    hostdev_events.DriftDetected: IntervalFold.handed,
    hostdev_events.DriftResolved: IntervalFold.handed,
    schedule_events.RequestQueued: IntervalFold.queued,
    schedule_events.QueuedMoved: IntervalFold.moved,
    schedule_events.WaitingEnded: IntervalFold.waited_in_vain,
    schedule_events.RequestWithdrawn: IntervalFold.withdrawn,
    schedule_events.LeasesRenewed: IntervalFold.many_renewed,
    schedule_events.LeaseTransferred: IntervalFold.transferred,
    schedule_events.LeaseSwitched: IntervalFold.switched,
    schedule_events.ClassSet: IntervalFold.asked,
    schedule_events.ClassRemoved: IntervalFold.asked,
    schedule_events.QuotaSet: IntervalFold.asked,
    **dict.fromkeys(get_args(Marking), IntervalFold.marked),
}
"""What moves a row; the other events say nothing that is asked of the past."""
