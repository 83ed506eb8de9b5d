"""What must hold in any log, whoever decided it and by whichever rules: told from the events alone, without the fold.

- No two leases hold a device at the same time; a device is held from its grant until it is freed.
- At no grant was a device held that cannot be owned apart from the granted one, as far as the log tells: what is above
  or below it (a physical function, the hubs and the controller of a USB device), and, under another holder, what its
  IOMMU group ties to it. What came to be shared later, by what a host did to its devices, is no fault.
- A lease is renewed and ended by its own principal with its token, or with all of the principal's for one domain; by
  time when that is over, never in a grace time; by a binder that cannot hand it over, or by an operator. It ends once,
  and a device becomes free behind the end of the lease that held it.
- Whatever answers a request stands in the step of that request: same principal, same id, same body. But what was waited
  for is granted by time, and so is a lease ended that a taint evicts.
- Orders to hosts are what was asked for, and end once (`orderaudit`).
- Leases for domains end with them, and what a domain has is nobody else's (`domainaudit`).
- What binders and operators say of devices that are handed out is what follows from it (`hostdevaudit`).
- Who waits, shares, or is kept away by an operator's word gets what he may, in his turn (`scheduleaudit`).

Written apart from `conflicts` and `evolve`, so that a mistake there is not made here, too. Where the order of two
grants matters to these rules, the milder reading is taken: what is found here is wrong by all of them.
"""

from typing import Final, TypeVar

import msgspec

from leasehold.events import codec, event_types, hostdev_events, schedule_events
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, DeviceKey, HostName, RequestRef, device_id
from leasehold.events.inputs import (
    Asked,
    Input,
    LeaseRequest,
    PrepareRequest,
    ReattachRequest,
    ReleaseRequest,
    RenewRequest,
    Tick,
)
from leasehold.events.position import lease_id_text, position_of, sequence_of, token_of
from leasehold.events.record import Record
from leasehold.events.schedule_inputs import RenewManyRequest, ReserveRequest, SwitchRequest, TransferRequest
from leasehold.projections.domainaudit import DomainAudit
from leasehold.projections.hostdevaudit import HeldBy, HostdevAudit
from leasehold.projections.orderaudit import Holding, OrderAudit
from leasehold.projections.scheduleaudit import ScheduleAudit

_LINEAGE_MAX: Final = 64
_ACT_ON_LEASES = RenewRequest | ReleaseRequest | ReattachRequest | TransferRequest | SwitchRequest
_NS_PER_MS: Final = 1_000_000

K = TypeVar("K")
Group = tuple[HostName, int]


class _Ties(msgspec.Struct, frozen=True, gc=False):
    """Of a device, what ties it to others."""

    group: int
    parent: str
    physical_function: str
    is_usb: bool
    is_pci: bool
    carries_only: bool
    """A bridge or a root hub, which nobody is given."""


class _Lease(msgspec.Struct, kw_only=True):
    """A lease that lives, or still holds something."""

    principal: str
    holder: str
    held: int
    expires_at_ns: int
    ttl_ms: int
    token: int
    """The position that its token is made of."""
    has_ended: bool = False
    is_forced: bool = False
    """Domains lose what they still have of it."""


class _Hold(msgspec.Struct, frozen=True):
    """A device that is held, and where it is found by what is tied to it."""

    lease: int
    group: Group | None
    carriers: tuple[DeviceId, ...]
    carriers_groups: tuple[Group, ...]


class Audit:
    """A walk through a ledger's records, from its beginning. It keeps what is known of devices, and what is held."""

    def __init__(self) -> None:
        self.granted = 0
        """How many leases were granted so far."""
        self.answered = 0
        """How many events answered a request."""
        self.hostdevs = HostdevAudit(self._held_by)
        self.orders = OrderAudit(self._holding, self._carriers)
        self.schedule = ScheduleAudit()
        self._domains = DomainAudit(self.hostdevs.is_dead, self.schedule.asked_for)
        self._ties: dict[DeviceId, _Ties] = {}
        self._leases: dict[int, _Lease] = {}
        self._holds: dict[DeviceId, _Hold] = {}
        self._by_group: dict[Group, dict[DeviceId, None]] = {}
        self._by_carrier: dict[DeviceId, dict[DeviceId, None]] = {}
        self._by_carriers_group: dict[Group, dict[DeviceId, None]] = {}
        self._grace_until_ns = 0
        self._at_ns = 0
        self._era = 0

    def step(self, sequence: int, record: Record) -> None:
        """Look at the next record, which stands at `sequence`.

        Raises:
            CorruptLedgerError: something in it cannot be; the text says what.
        """
        position: int = position_of(sequence, 0)
        self._at_ns, self._era = record.decided_at_ns, record.era
        for step in record.steps:
            for event in step.events:
                self._take(position, step.input, event)
                position += 1

    def _take(self, position: int, given: Input, event: Event) -> None:
        ref: RequestRef | None = getattr(event, "request", None)
        if ref is not None:
            self._check_request(position, given, event, ref)
        if type(event) in DomainAudit.TYPES:
            wrong = self._domains.take(position, self._at_ns, given, event, grace_until_ns=self._grace_until_ns)
            if wrong:
                raise _wrong(position, wrong)
        if type(event) in HostdevAudit.TYPES:
            wrong = self.hostdevs.take(position, given, event)
            if wrong:
                raise _wrong(position, wrong)
        self._of_leases(position, given, event)
        wrong = self.schedule.take(position, self._at_ns, given, event)
        if wrong:
            raise _wrong(position, wrong)
        match event:
            case (
                event_types.DeviceAppeared()
                | event_types.DeviceChanged()
                | event_types.DeviceReplaced()
                | event_types.DeviceReappeared()
            ):
                self._describe(event.host, event.device)
            case event_types.GraceStarted() | event_types.LedgerRestored():
                self._grace_until_ns = event.until_ns
            case event_types.HostOrdered() | event_types.OrderCarriedOut() | event_types.OrderFailed():
                wrong = self.orders.take(position, self._at_ns, given, event, grace_until_ns=self._grace_until_ns)
                if wrong:
                    raise _wrong(position, wrong)

    def _of_leases(self, position: int, given: Input, event: Event) -> None:
        match event:
            case event_types.LeaseGranted():
                self._grant(position, given, event)
            case event_types.LeaseRenewed():
                lease = self._living(position, given, event.lease)
                lease.expires_at_ns, lease.ttl_ms = event.expires_at_ns, event.ttl_ms
            case schedule_events.LeasesRenewed():
                self._renew_many(position, given, event)
            case schedule_events.LeaseTransferred():
                lease = self._living(position, given, event.lease)
                lease.principal, lease.holder, lease.token = event.principal, event.holder, position
            case schedule_events.LeaseSwitched():
                self._switch(position, given, event)
            case event_types.LeaseReleased():
                self._living(position, given, event.lease)
                self._end(position, event.lease, "is released")
            case event_types.LeaseExpired():
                self._expire(position, event)
            case event_types.LeaseOutlived():
                self._end(position, event.lease, "ends with its domain")
            case hostdev_events.PrepareFailed():
                self._end(position, event.lease, "fails")
            case hostdev_events.LeaseRevoked():
                self._revoke(position, event)
            case event_types.DeviceFreed():
                self._free(position, event)

    def _holding(self, device: DeviceId) -> Holding | None:
        hold = self._holds.get(device)
        lease = self._leases[hold.lease] if hold is not None else None
        is_stuck = self.hostdevs.is_quarantined(device)
        return Holding(lease.principal, lease.has_ended, is_stuck) if lease is not None else None

    def _held_by(self, device: DeviceId) -> HeldBy | None:
        hold = self._holds.get(device)
        return HeldBy(hold.lease, self._leases[hold.lease].has_ended) if hold is not None else None

    # --- requests -------------------------------------------------------------------------------------------------

    def _check_request(self, position: int, given: Input, event: Event, ref: RequestRef) -> None:
        self.answered += 1
        by_time = isinstance(event, event_types.LeaseGranted) and event.queued
        if isinstance(given, Tick) and (by_time or isinstance(event, hostdev_events.LeaseRevoked)):
            return  # which request it is that is answered so late is looked at with what waits, or evicts
        what = event.__struct_config__.tag
        if not isinstance(given, Asked):
            raise _wrong(position, f"{what} answers request {ref.request_id} of {ref.principal}, but nobody asked here")
        asked = (given.principal, given.request.request_id, given.request.issued_at_ns)
        if asked != (ref.principal, ref.request_id, ref.issued_at_ns):
            raise _wrong(
                position,
                f"{what} answers request {ref.request_id} of {ref.principal}, but asked was {given.request.request_id} "
                f"by {given.principal}",
            )
        if ref.body_hash != codec.body_hash(given.request):
            raise _wrong(position, f"{what} answers another request under the id {ref.request_id} than was asked here")

    # --- leases ---------------------------------------------------------------------------------------------------

    def _grant(self, position: int, given: Input, event: event_types.LeaseGranted) -> None:
        self.granted += 1
        if self._asked_for(given, event) != (event.holder, event.ttl_ms):
            raise _wrong(position, f"a lease for {event.holder} is granted, but not as it was asked for")
        if not event.devices or len(set(event.devices)) != len(event.devices):
            raise _wrong(position, f"a lease of the devices {event.devices} is granted")
        self._leases[position] = _Lease(
            principal=event.request.principal,
            holder=event.holder,
            held=0 if event.mode else len(event.devices),
            expires_at_ns=event.expires_at_ns,
            ttl_ms=event.ttl_ms,
            token=position,
        )
        if event.mode:
            return
        holds = {device: self._hold(position, device) for device in event.devices}
        for device, hold in holds.items():
            self._check_free(position, device, hold)
        for device, hold in holds.items():
            self._put(device, hold)

    def _asked_for(self, given: Input, event: event_types.LeaseGranted) -> tuple[str, int] | None:
        """For whom and for how long it was asked for: now, or when somebody began to wait, or in place of a lease."""
        request = given.request if isinstance(given, Asked) else None
        if event.queued:
            request = self.schedule.asked_for(event.queued)
        if isinstance(request, ReserveRequest) and event.reserved_for == request.lease:
            source = self._leases.get(request.lease)
            is_his = source is not None and source.principal == event.request.principal
            return (source.holder, request.ttl_ms) if source is not None and is_his else None
        return (request.holder, request.ttl_ms) if isinstance(request, LeaseRequest | PrepareRequest) else None

    def _check_free(self, position: int, device: DeviceId, hold: _Hold) -> None:
        """Raises CorruptLedgerError if somebody holds `device`, or what cannot be owned apart from it."""
        if device in self._holds:
            raise self._held(position, device, device, "")
        for other in (*hold.carriers, *self._by_carrier.get(device, ())):
            if other in self._holds:
                raise self._held(position, device, other, "is above or below it")
        tied = [
            *(self._by_group.get(hold.group, ()) if hold.group else ()),
            *(self._by_carriers_group.get(hold.group, ()) if hold.group else ()),
            *(other for group in hold.carriers_groups for other in self._by_group.get(group, ())),
        ]
        mine = self._leases[position]
        for other in tied:
            theirs = self._leases[self._holds[other].lease]
            if (theirs.principal, theirs.holder) != (mine.principal, mine.holder):
                raise self._held(position, device, other, "is tied to it by an IOMMU group")

    def _held(self, position: int, device: DeviceId, other: DeviceId, how: str) -> CorruptLedgerError:
        lease = self._holds[other].lease
        held_by = f"held by {self._leases[lease].holder} ({lease_id_text(lease)}) and not free"
        which = f"{other}, which {how}, is" if how else "it is"
        granted = f"{device} is granted to {self._leases[position].holder} ({lease_id_text(position)})"
        return _wrong(position, f"{granted}, but {which} {held_by}")

    def _living(self, position: int, given: Input, lease: int) -> _Lease:
        """The lease that is acted on, by whom and with what it must be."""
        row, name = self._leases.get(lease), lease_id_text(lease)
        if row is None or row.has_ended:
            raise _wrong(position, f"lease {name} is renewed or released, but does not live")
        if not isinstance(given, Asked) or not isinstance(given.request, _ACT_ON_LEASES):
            raise _wrong(position, f"lease {name} is renewed or released, but nobody asked for that")
        if given.principal != row.principal:
            raise _wrong(position, f"{given.principal} acts on lease {name}, which is {row.principal}'s")
        if isinstance(given.request, ReattachRequest):
            return row  # for which domain it is, is looked at with the domains
        acted = lease
        if isinstance(given.request, SwitchRequest) and given.request.lease != lease:
            acted = given.request.lease  # another stands in for it: by that one's token
            if self.schedule.stands_in_for(acted) != lease or acted not in self._leases:
                raise _wrong(position, f"lease {name} ends by a switch to one that was not reserved for it")
        if (given.request.lease, given.request.token) != (acted, token_of(self._era, self._leases[acted].token)):
            raise _wrong(position, f"lease {name} is acted on with token {given.request.token}")
        return row

    def _renew_many(self, position: int, given: Input, event: schedule_events.LeasesRenewed) -> None:
        request = given.request if isinstance(given, Asked) else None
        tokens = dict(request.leases) if isinstance(request, RenewManyRequest) else {}
        for lease in event.leases:
            row, name = self._leases.get(lease), lease_id_text(lease)
            if row is None or row.has_ended or not isinstance(given, Asked) or given.principal != row.principal:
                raise _wrong(position, f"lease {name} is renewed, but does not live, or is another's")
            if tokens.get(lease) != token_of(self._era, row.token):
                raise _wrong(position, f"lease {name} is renewed with token {tokens.get(lease)}")
            # At least so long; by how much longer it is kept depends on the rules.
            row.expires_at_ns = max(row.expires_at_ns, self._at_ns + row.ttl_ms * _NS_PER_MS)

    def _switch(self, position: int, given: Input, event: schedule_events.LeaseSwitched) -> None:
        row, source = self._living(position, given, event.lease), self._leases.get(event.source)
        if source is not None and not source.has_ended:
            raise _wrong(position, f"lease {lease_id_text(event.lease)} counts, but what it stands in for lives")
        row.token = position

    def _expire(self, position: int, event: event_types.LeaseExpired) -> None:
        row = self._leases.get(event.lease)
        if row is None or row.has_ended:
            raise _wrong(position, f"lease {lease_id_text(event.lease)} expires, but does not live")
        if self._at_ns < max(row.expires_at_ns, self._grace_until_ns):
            raise _wrong(position, f"lease {lease_id_text(event.lease)} expires before its time, or in a grace time")
        self._end(position, event.lease, "expires")

    def _end(self, position: int, lease: int, how: str) -> None:
        row = self._leases.get(lease)
        if row is None or row.has_ended:
            raise _wrong(position, f"lease {lease_id_text(lease)} {how}, but does not live")
        row.has_ended = True
        if not row.held:
            del self._leases[lease]  # it was shared, or looked at

    def _revoke(self, position: int, event: hostdev_events.LeaseRevoked) -> None:
        row = self._leases.get(event.lease)
        if row is None or not (row.has_ended and event.force and not row.is_forced):
            self._end(position, event.lease, "is revoked")
        if event.lease in self._leases:
            self._leases[event.lease].is_forced = event.force

    def _free(self, position: int, event: event_types.DeviceFreed) -> None:
        if not event.lease and event.request is not None and event.device not in self._holds:
            return  # out of a quarantine for what the ledger knows no lease of
        hold = self._holds.get(event.device)
        if hold is None or hold.lease != event.lease:
            raise _wrong(
                position, f"{event.device} becomes free of {lease_id_text(event.lease)}, which does not hold it"
            )
        row = self._leases[event.lease]
        if not row.has_ended:
            raise _wrong(position, f"{event.device} becomes free, but its lease {lease_id_text(event.lease)} lives")
        self._drop(event.device)
        row.held -= 1
        if not row.held:
            del self._leases[event.lease]

    # --- what is tied to what -------------------------------------------------------------------------------------

    def _describe(self, host: HostName, description: DeviceDescription) -> None:
        device = device_id(host, description.key)
        is_usb = description.kind == "usb_device"
        ties = _Ties(
            group=description.iommu_group,
            parent=description.parent,
            physical_function=description.physical_function,
            is_usb=is_usb,
            is_pci=description.kind == "pci",
            carries_only=description.bridge or (is_usb and description.key.endswith("-0")),
        )
        if self._ties.get(device) == ties:
            return
        self._ties[device] = ties
        moved = [device] if device in self._holds else []
        for other in (*moved, *self._by_carrier.get(device, ())):
            lease = self._holds[other].lease
            self._drop(other)
            self._put(other, self._hold(lease, other))

    def _hold(self, lease: int, device: DeviceId) -> _Hold:
        carriers = self._carriers(device)
        groups = [self._group(each) for each in carriers if each in self._ties and not self._ties[each].carries_only]
        return _Hold(lease, self._group(device), carriers, tuple(dict.fromkeys(each for each in groups if each)))

    def _group(self, device: DeviceId) -> Group | None:
        ties = self._ties.get(device)
        return (_host_of(device), ties.group) if ties is not None and ties.group >= 0 else None

    def _carriers(self, device: DeviceId) -> tuple[DeviceId, ...]:
        """What a virtual function or a mediated device is a part of; the hubs and the controller of a USB device."""
        ties = self._ties.get(device)
        if ties is None:
            return ()
        host = _host_of(device)
        found: list[DeviceId] = []
        whole: _Ties | None = ties
        while whole is not None and whole.physical_function and len(found) < _LINEAGE_MAX:
            found.append(device_id(host, DeviceKey(whole.physical_function)))
            whole = self._ties.get(found[-1])
        for _ in range(_LINEAGE_MAX if ties.is_usb else 0):
            if ties is None or not ties.parent:
                break
            above = device_id(host, DeviceKey(ties.parent))
            found.append(above)
            ties = self._ties.get(above)
            if ties is not None and ties.is_pci:
                break
        return tuple(dict.fromkeys(each for each in found if each != device))

    def _put(self, device: DeviceId, hold: _Hold) -> None:
        self._holds[device] = hold
        if hold.group is not None:
            self._by_group.setdefault(hold.group, {})[device] = None
        for carrier in hold.carriers:
            self._by_carrier.setdefault(carrier, {})[device] = None
        for group in hold.carriers_groups:
            self._by_carriers_group.setdefault(group, {})[device] = None

    def _drop(self, device: DeviceId) -> None:
        hold = self._holds.pop(device)
        if hold.group is not None:
            _discard(self._by_group, hold.group, device)
        for carrier in hold.carriers:
            _discard(self._by_carrier, carrier, device)
        for group in hold.carriers_groups:
            _discard(self._by_carriers_group, group, device)


def _host_of(device: DeviceId) -> HostName:
    return HostName(device.partition("/")[0])


def _discard(members: dict[K, dict[DeviceId, None]], key: K, device: DeviceId) -> None:
    del members[key][device]
    if not members[key]:
        del members[key]


def _wrong(position: int, text: str) -> CorruptLedgerError:
    return CorruptLedgerError(f"at position {position}, {text}", sequence=sequence_of(position))
