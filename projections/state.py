"""The state: what the ledger says at one position. Rows are immutable, tables change only through `evolve`."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    Mdev,
    Net,
    Order,
    ScsiHost,
    ScsiTarget,
    keys_of,
)
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    Holder,
    HostName,
    Principal,
    RequestKey,
    device_id,
    physical_key,
    split_device_id,
)
from leasehold.events.inputs import CREATOR
from leasehold.events.record import GENESIS_PREV
from leasehold.events.refusals import Refusal
from leasehold.projections.dues import Dues
from leasehold.projections.tables import Cell, Journal, Queue, Table

K = TypeVar("K")
M = TypeVar("M", bound=Any)

FOLD_VERSION: Final = 2
"""Raised when the same log would fold to another state; snapshots of another version are built anew."""


class Head(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How far the log has been folded, and what holds for all of it."""

    ledger_id: str = ""
    cluster: str = ""
    era: int = 0
    sequence: int = 0
    """Of the last record folded; 0: the ledger is empty."""
    chain: str = GENESIS_PREV
    decided_at_ns: int = 0
    observed_through: int = 0
    decider: str = ""
    grace_until_ns: int = 0


class SourceState(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One agent of a host: its current run, the last counter taken, and why it cannot be relied on (empty: it can)."""

    run: int
    counter: int = 0
    complete: bool = False
    stale: str = ""
    wants_report: bool = False
    gap: int = 0
    """The counter behind the last gap: what was said up to there is not known to be whole."""


class HostState(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A host. `mode`: `managed` or `watched`."""

    mode: str
    sources: dict[str, SourceState] = {}
    device_count: int = 0

    @property
    def stale(self) -> str:
        """Why nothing of it is granted; empty: its picture is up to date. Who only acts there paints none of it."""
        reporting = [(agent, source.stale) for agent, source in self.sources.items() if agent != CREATOR]
        stale = [each for each in reporting if each[1]]
        if stale:
            agent, reason = min(stale)
            return f"{agent}: {reason}"
        return "" if reporting else "no agent has reported"


class DeviceState(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A device: what is known of it, and who has it."""

    host: HostName
    description: DeviceDescription
    serial: str = ""
    """The last one that the thing here has told; a look that finds none does not make it another thing."""
    missing: bool = False
    lease: int = 0
    """The lease that holds it (0: none), living or ended but not yet freed."""
    ending: bool = False
    """Its lease has ended; nobody gets it before there is evidence."""
    displaced: bool = False
    """Another thing sits here than the one that was leased."""
    floor: int = 0
    """Token of the last grant, end or replacement, in today's era: a token below acts no more."""
    since_position: int = 0
    since_ns: int = 0
    flaps: int = 0
    """How often the thing here went away, or lost its driver or its link, and was back before that was told."""


class LeaseState(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A lease, living or ended. Its id is the position of the grant; so is its token, in the ledger's era."""

    principal: Principal
    holder: Holder
    devices: tuple[DeviceId, ...]
    token: int
    ttl_ms: int
    granted_at_ns: int
    expires_at_ns: int
    forced: bool
    grant_key: RequestKey
    ended: str = ""
    """Empty while it lives, then `released` or `expired`."""
    ended_at_ns: int = 0
    ended_position: int = 0
    held: int = 0
    """How many of its devices are not free yet."""
    renewals: tuple[RequestKey, ...] = ()
    """The last ones, whose answers are remembered."""
    renewal_horizon_ns: int = 0
    """Renewals issued up to here may have been forgotten, so unknown ones are refused as too old."""


class AnswerState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What is remembered of a request: enough to answer it again."""

    body_hash: str
    verb: str
    position: int
    issued_at_ns: int
    lease: int = 0
    device: str = ""
    """The id of what was confirmed free, or of what an order has made or taken away."""
    refusal: Refusal | None = None
    order: int = 0
    state: str = ""
    """Of the order, as in its row, which is forgotten earlier than this may be."""
    reason: str = ""


class OrderState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a host was told to do. `state`: `waiting`, `done`, `failed`, `timed_out`."""

    host: HostName
    agent: str
    what: Order
    request: RequestKey
    ordered_at_ns: int
    deadline_ns: int
    state: str = "waiting"
    device: str = ""
    """Key of the device that was made or taken away."""
    reason: str = ""
    """Why it was not done."""

    @property
    def is_open(self) -> bool:
        """Whether its outcome is awaited."""
        return self.state == "waiting"


class PrincipalState(msgspec.Struct, frozen=True, gc=False):
    """How much is remembered of one principal's ended matters: entries `first` to `next` - 1 of `fading`."""

    first: int = 0
    next: int = 0
    horizon_ns: int = 0
    """Requests issued up to here may have been forgotten, so unknown ones are refused as too old."""


class Fading(msgspec.Struct, frozen=True, gc=False):
    """An answer that may be forgotten from `forget_at_ns` on."""

    key: RequestKey
    forget_at_ns: int


class RecentRefusal(msgspec.Struct, frozen=True, gc=False):
    """A refusal told lately: equal ones are counted on it."""

    fingerprint: str
    refusal: Refusal
    verb: str
    about: tuple[str, ...]
    at_ns: int
    count: int


class State:
    """All tables of one ledger. Nothing in it depends on insertion order."""

    def __init__(self) -> None:
        journal = Journal()
        self.journal = journal
        self._head = Cell(journal, Head())
        self.hosts: Table[HostName, HostState] = Table(journal)
        self.devices: Table[DeviceId, DeviceState] = Table(journal)
        self.leases: Table[int, LeaseState] = Table(journal)
        self.answers: Table[RequestKey, AnswerState] = Table(journal)
        self.principals: Table[Principal, PrincipalState] = Table(journal)
        self.fading: Table[tuple[Principal, int], Fading] = Table(journal)
        self.refusals: Table[int, RecentRefusal] = Table(journal)
        self.orders: Table[int, OrderState] = Table(journal)
        """By position."""
        self.expiries: Dues[LeaseState] = Dues(journal, self.leases, _expiry_ns)
        self.deadlines: Dues[OrderState] = Dues(journal, self.orders, _deadline_ns)
        self.indexes = Indexes(journal)

    @property
    def head(self) -> Head:
        """How far the log has been folded."""
        head: Head = self._head.value
        return head

    def set_head(self, head: Head) -> None:
        """Move on."""
        self._head.put(head)

    def put_device(self, device: DeviceId, row: DeviceState) -> None:
        """Set a device's row and what is derived from it."""
        before = self.devices.get(device)
        self.devices.put(device, row)
        if before is None or before.description is not row.description:
            self.indexes.describe(device, row.host, before.description if before else None, row.description)
        was_ending = before is not None and before.ending
        if row.ending or was_ending:
            self._note_ending(device, row, was_ending=was_ending)

    def put_host(self, host: HostName, row: HostState) -> None:
        """Set a host's row; its being stale or not decides what can be freed."""
        before = self.hosts.get(host)
        self.hosts.put(host, row)
        if before is not None and before.stale != row.stale:
            for device in self.indexes.ending.get(host, ()):
                self._note_ending(device, self.devices[device], was_ending=True)

    def put_lease(self, lease: int, row: LeaseState) -> None:
        """Set a lease's row; its expiry is watched while it lives."""
        before = self.leases.get(lease)
        self.leases.put(lease, row)
        if not row.ended and (before is None or before.expires_at_ns != row.expires_at_ns):
            self.expiries.push(row.expires_at_ns, lease)

    def put_order(self, order: int, row: OrderState) -> None:
        """Set an order's row; its deadline is watched while it is open."""
        before = self.orders.get(order)
        self.orders.put(order, row)
        if before is None:
            self.indexes.list_order(order, row)
        if row.is_open and before is None:
            self.deadlines.push(row.deadline_ns, order)
        if row.is_open != (before is not None and before.is_open):
            self.indexes.note_open(order, row, is_open=row.is_open)

    def drop_order(self, order: int) -> None:
        """Forget an order, which must be over."""
        row = self.orders[order]
        assert not row.is_open
        self.orders.drop(order)
        self.indexes.unlist_order(order, row)

    def index_anew(self) -> None:
        """Derive from all rows what putting each of them derives from it; nothing is yet."""
        assert not self.indexes.lookup and not self.expiries.entries
        self.indexes.describe_all(self.devices)
        for device, row in self.devices.items():
            if row.ending:
                self._note_ending(device, row, was_ending=False)
        self.expiries.fill(self.leases.items())
        self.deadlines.fill(self.orders.items())
        for order, order_row in sorted(self.orders.items()):
            self.indexes.list_order(order, order_row)
            if order_row.is_open:
                self.indexes.note_open(order, order_row, is_open=True)
        for position, refusal in sorted(self.refusals.items()):
            self.indexes.refusal_prints.put(refusal.fingerprint, position)
            self.indexes.refusal_queue.push(position)

    def _note_ending(self, device: DeviceId, row: DeviceState, *, was_ending: bool) -> None:
        if row.ending != was_ending:
            self.indexes.note_ending(row.host, device, ending=row.ending)
        freeable = row.ending and bool(self.evidence_of_free(row))
        if freeable != (device in self.indexes.freeable):
            if freeable:
                self.indexes.freeable.put(device, row.lease)
            else:
                self.indexes.freeable.drop(device)

    def evidence_of_free(self, row: DeviceState) -> str:
        """What shows that nobody uses the device; empty: nothing does (yet).

        On a watched host, that a fresh picture shows no user. On a managed host only its binder can tell.
        """
        host = self.hosts.get(row.host)
        if host is None or host.mode != "watched" or host.stale:
            return ""
        if row.missing:
            return "the device is not there"
        return "" if row.description.in_use_by else "no user is seen by the host's watcher"

    def next_expiry_ns(self) -> int | None:
        """When the next living lease ends unless renewed."""
        return self.expiries.next_ns()

    def expired_by(self, now_ns: int, *, limit: int) -> list[int]:
        """Living leases whose time is over at `now_ns`, oldest first, at most `limit`."""
        return self.expiries.due_by(now_ns, limit=limit)

    def roll_back(self) -> None:
        """Undo all since the journal began."""
        self.journal.roll_back()


def _expiry_ns(row: LeaseState) -> int | None:
    return None if row.ended else row.expires_at_ns


def _deadline_ns(row: OrderState) -> int | None:
    return row.deadline_ns if row.is_open else None


class Indexes:
    """What is derived from the rows: never stored, built anew with them."""

    DESCRIBED: Final = ("lookup", "groups", "children", "virtual_functions", "members", "marks", "hbas")
    """Those that follow from descriptions alone."""

    def __init__(self, journal: Journal) -> None:
        self.lookup: Table[str, tuple[DeviceId, ...]] = Table(journal)
        """Key, node-device name or sysfs path -> devices, over all hosts."""
        self.groups: Table[tuple[HostName, int], tuple[DeviceId, ...]] = Table(journal)
        self.children: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        self.virtual_functions: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        self.members: Table[DeviceId, tuple[DeviceId, ...]] = Table(journal)
        """Of a bridge or a bond."""
        self.ending: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        self.freeable: Table[DeviceId, int] = Table(journal)
        self.refusal_prints: Table[str, int] = Table(journal)
        self.refusal_queue: Queue[int] = Queue(journal)
        self.orders: Table[HostName, tuple[int, ...]] = Table(journal)
        """All that are remembered of a host, oldest first."""
        self.open_orders: Table[HostName, tuple[int, ...]] = Table(journal)
        self.orders_on: Table[DeviceId, tuple[int, ...]] = Table(journal)
        """The open ones that are about a device: the parent, what is to be taken away, and what both stand for."""
        self.marks: Table[str, tuple[DeviceId, ...]] = Table(journal)
        """What bears a world wide name, or a UUID on its host."""
        self.ordered_marks: Table[str, tuple[int, ...]] = Table(journal)
        """The open orders to make, or to take away, what bears one."""
        self.hbas: Table[HostName, tuple[DeviceId, ...]] = Table(journal)
        """Those of a host that can have virtual ones."""

    def describe(
        self, device: DeviceId, host: HostName, before: DeviceDescription | None, after: DeviceDescription
    ) -> None:
        """Follow a device's new description."""
        if before is not None and _listed(before) == _listed(after):
            return
        old = _entries(device, host, before) if before is not None else []
        new = _entries(device, host, after)
        for entry in old:
            if entry not in new:
                _remove(self._table(entry[0]), entry[1], device)
        for entry in new:
            if entry not in old:
                _insert(self._table(entry[0]), entry[1], device)

    def describe_all(self, devices: dict[DeviceId, DeviceState]) -> None:
        """What `describe` would make of all these devices, in their order; nothing is described yet."""
        members: dict[str, dict[object, list[DeviceId]]] = {}
        for device, row in devices.items():
            for table, key in _entries(device, row.host, row.description):
                members.setdefault(table, {}).setdefault(key, []).append(device)
        for table, lists in members.items():
            self._table(table).update((key, tuple(sorted(some))) for key, some in lists.items())

    def _table(self, name: str) -> Table[object, tuple[DeviceId, ...]]:
        table: Table[object, tuple[DeviceId, ...]] = getattr(self, name)
        return table

    def note_ending(self, host: HostName, device: DeviceId, *, ending: bool) -> None:
        """Follow whether a device waits for evidence."""
        (_insert if ending else _remove)(self.ending, host, device)

    def list_order(self, order: int, row: OrderState) -> None:
        """An order is remembered from here on."""
        _insert(self.orders, row.host, order)

    def unlist_order(self, order: int, row: OrderState) -> None:
        """An order is forgotten."""
        _remove(self.orders, row.host, order)

    def note_open(self, order: int, row: OrderState, *, is_open: bool) -> None:
        """Follow whether an order's outcome is awaited."""
        change: Callable[[Table[Any, tuple[int, ...]], Any, int], None] = _insert if is_open else _remove
        change(self.open_orders, row.host, order)
        for device in _held_up_by(row):
            change(self.orders_on, device, order)
        for mark in dict.fromkeys(marks_of(row.host, row.what)):
            change(self.ordered_marks, mark, order)


def _entries(device: DeviceId, host: HostName, description: DeviceDescription) -> list[tuple[str, object]]:
    """Under which key of which table the device stands; each once."""
    texts = (description.key, description.name, description.sysfs_path)
    entries: list[tuple[str, object]] = [("lookup", text) for text in dict.fromkeys(texts) if text]
    if description.iommu_group >= 0:
        entries.append(("groups", (host, description.iommu_group)))
    if description.parent:
        entries.append(("children", device_id(host, DeviceKey(description.parent))))
    if description.physical_function:
        entries.append(("virtual_functions", device_id(host, DeviceKey(description.physical_function))))
    match description.capability:
        case Net(master=master) if master:
            entries.append(("members", device_id(host, DeviceKey(master))))
        case ScsiHost(fc_host=port, vport_ops=ops):
            names = (port.wwnn, port.wwpn) if port is not None else ()
            entries += (("marks", mark_of_wwn(name)) for name in dict.fromkeys(names) if name)
            if ops is not None:
                entries.append(("hbas", host))
        case ScsiTarget(remote_wwpn=name) if name:
            entries.append(("marks", mark_of_wwn(name)))
        case Mdev(uuid=uuid):
            entries.append(("marks", mark_of_uuid(host, uuid)))
    return entries


def _listed(description: DeviceDescription) -> tuple[object, ...]:
    """All that the entries of a device, which has one key, are made of."""
    capability = description.capability
    return (
        description.name,
        description.sysfs_path,
        description.iommu_group,
        description.parent,
        description.physical_function,
        capability if isinstance(capability, Net | ScsiHost | ScsiTarget | Mdev) else None,
    )


def devices_of(row: OrderState) -> tuple[DeviceId, ...]:
    """The devices that an order is about: what is to be taken away, and the parent."""
    return tuple(device_id(row.host, key) for key in keys_of(row.what))


def _held_up_by(row: OrderState) -> tuple[DeviceId, ...]:
    """What nobody is to be given while the order is open."""
    devices = devices_of(row)
    physical = (device_id(row.host, physical_key(split_device_id(device)[1])) for device in devices)
    return tuple(dict.fromkeys((*devices, *physical)))


def mark_of_wwn(wwn: str) -> str:
    """Under what bearers of a world wide name are found."""
    return f"wwn {wwn}"


def mark_of_uuid(host: HostName, uuid: str) -> str:
    """Under what the bearer of a UUID is found on its host."""
    return f"uuid {host} {uuid}"


def marks_of(host: HostName, order: Order) -> tuple[str, ...]:
    """What the device bears that is to be made or taken away. Node names are shared by the ports of an HBA."""
    match order:
        case CreateVport():
            return mark_of_wwn(order.wwpn), mark_of_wwn(order.wwnn)
        case DestroyVport():
            return (mark_of_wwn(order.wwpn),)
        case CreateMdev() | DestroyMdev():
            return (mark_of_uuid(host, order.uuid),)


def _insert(table: Table[K, tuple[M, ...]], key: K, member: M) -> None:
    members: tuple[M, ...] = table.get(key, ())
    at: int = bisect_left(members, member)
    if at == len(members) or members[at] != member:
        table.put(key, (*members[:at], member, *members[at:]))


def _remove(table: Table[K, tuple[M, ...]], key: K, gone: M) -> None:
    members = tuple(member for member in table[key] if member != gone)
    if members:
        table.put(key, members)
    else:
        table.drop(key)
