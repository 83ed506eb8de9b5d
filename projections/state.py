"""The state: what the ledger says at one position. Rows are immutable, tables change only through `evolve`."""

from typing import Final

from leasehold.events import limits
from leasehold.events.domains import Use
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainId,
    HostName,
    Principal,
    RequestKey,
    device_id,
)
from leasehold.events.inputs import POLLER
from leasehold.events.record import RULES_VERSION
from leasehold.projections import drifting, evictions, failing
from leasehold.projections.candidates import Candidates
from leasehold.projections.dues import Dues
from leasehold.projections.indexes import Indexes, held_up_by, made_of, words_of
from leasehold.projections.rows import (
    AnswerState,
    ClassState,
    DeviceState,
    DomainState,
    Fading,
    Head,
    HostState,
    LeaseState,
    OrderState,
    PrincipalState,
    QueuedState,
    QuotaState,
    RecentRefusal,
    taints_of,
)
from leasehold.projections.tables import Cell, Journal, Table

FOLD_VERSION: Final = 5
"""Raised when the same log would fold to another state; snapshots of another version are built anew."""

_GIVEN_BACK: Final = "the host's binder has given it back, and no domain has it"


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
        self.domains: Table[DomainId, DomainState] = Table(journal)
        self.queue: Table[int, QueuedState] = Table(journal)
        """By position."""
        self.stirred: Table[int, tuple[str, ...]] = Table(journal)
        """What has become better for those who wait, and was not looked at yet: the buckets of those who may care
        (`buckets`), by the position of the event that made it so."""
        self.classes: Table[str, ClassState] = Table(journal)
        self.quotas: Table[tuple[Principal, str], QuotaState] = Table(journal)
        """By tenant and class."""
        self.expiries: Dues[int, LeaseState] = Dues(journal, self.leases, _expiry_ns)
        self.deadlines: Dues[int, OrderState] = Dues(journal, self.orders, _deadline_ns)
        self.outlivings: Dues[int, LeaseState] = Dues(journal, self.leases, _outliving_ns)
        self.drifts: Dues[DeviceId, DeviceState] = Dues(journal, self.devices, drifting.due_ns)
        self.waitings: Dues[int, QueuedState] = Dues(journal, self.queue, _until_ns)
        self.failing: Dues[DeviceId, DeviceState] = Dues(journal, self.devices, failing.due_ns)
        self.indexes = Indexes(journal)
        self.candidates = Candidates(journal)
        self.evictions: Dues[int, int] = Dues(journal, self.indexes.evictions, evictions.due_ns)
        self.at_ns = 0
        """When that was decided which is being folded."""
        self.news: list[str] = []
        """What the event that is being folded has changed for those who wait: words of `stirring`, which takes them."""
        self.rules_version = RULES_VERSION
        """By which rules it is decided; only who decides old records again sets others."""

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
        if self.queue and _is_news(before, row):
            self.tell(f"device:{device}")
            if before is not None and made_of(before.description) != made_of(row.description):
                self.tell(f"host:{row.host}")  # what it was tied to before is not told by what it is tied to now
        if before is None or before.description is not row.description:
            self.indexes.describe(device, row.host, before.description if before else None, row.description)
            self.candidates.follow(device, before, row)
        elif before.marks is not None or row.marks is not None:
            self.candidates.follow(device, before, row)
        elif not before.lease or not row.lease:
            self.candidates.follow_lease(device, row)
        if row.marks is not None or (before is not None and before.marks is not None):
            self._note_marks(device, before, row)
        was_ending = before is not None and before.ending
        if row.ending or was_ending:
            self._note_ending(device, row, was_ending=was_ending)
        if drifting.may_differ(self, row):
            drifting.follow_device(self, device, before, row)

    def _note_marks(self, device: DeviceId, before: DeviceState | None, row: DeviceState) -> None:
        was = before.marks if before is not None else None
        if was is not row.marks:
            self.indexes.note_marks(row.host, device, was, row.marks)
            if taints_of(was) != taints_of(row.marks):
                evictions.follow_device(self, row)
        due_ns = failing.due_ns(row)
        if due_ns is not None and (before is None or failing.due_ns(before) != due_ns):
            self.failing.push(due_ns, device)

    def put_host(self, host: HostName, row: HostState) -> None:
        """Set a host's row, which decides what can be freed there."""
        before = self.hosts.get(host)
        self.hosts.put(host, row)
        if self.queue and not row.stale and (before is None or _grants(before) != _grants(row)):
            self.tell(f"host:{host}")
        was = before.marks if before is not None else None
        if was is not row.marks:
            self.indexes.note_marks(host, host, was, row.marks)
            if taints_of(was) != taints_of(row.marks):
                evictions.follow_host(self, host)
        if before is not None and (before.stale, before.mode) != (row.stale, row.mode):
            for device in self.indexes.ending.get(host, ()):
                self._note_ending(device, self.devices[device], was_ending=True)
            drifting.follow_host(self, host)

    def put_lease(self, lease: int, row: LeaseState) -> None:
        """Set a lease's row; its expiry is watched while it lives."""
        before = self.leases.get(lease)
        self.leases.put(lease, row)
        if self.queue and before is not None and (before.holder, before.principal) != (row.holder, row.principal):
            self.tell(*(f"device:{device}" for device in row.devices))
        if not row.ended and (before is None or before.expires_at_ns != row.expires_at_ns):
            self.expiries.push(row.expires_at_ns, lease)
        if self.indexes.marked and (
            before is None or before.ended != row.ended or before.tolerates != row.tolerates
        ):
            evictions.follow_lease(self, lease, row)
        if row.bond is not None:
            self._note_bond(lease, before, row)
        if before is None or before.held != row.held or row.mode or before.tenant != row.tenant:
            self._note_holding(lease, before, row)

    def drop_lease(self, lease: int) -> None:
        """Forget a lease, which must have ended."""
        before = self.leases[lease]
        self.leases.drop(lease)
        self._note_holding(lease, before, None)

    def _note_holding(self, lease: int, before: LeaseState | None, after: LeaseState | None) -> None:
        was = before.tenant if before is not None and before.has_devices else None
        now = after.tenant if after is not None and after.has_devices else None
        if was == now:
            return
        if was is not None:
            self.indexes.leases_of.remove(was, lease)
        if now is not None:
            self.indexes.leases_of.add(now, lease)

    def put_class(self, name: str, row: ClassState) -> None:
        """Set a device class."""
        self.classes.put(name, row)
        # Other devices count against its quotas now, also of who names them, and does not wait for the class.
        self.tell(f"class:{name}", *(f"tenant:{tenant}" for tenant in self.indexes.quotas_on.get(name, ())))

    def put_quota(self, tenant: Principal, name: str, row: QuotaState) -> None:
        """Set a tenant's quota of a class, or how much of it is used."""
        before = self.quotas.get((tenant, name))
        self.quotas.put((tenant, name), row)
        if before is None:
            self.indexes.quotas_of.add(tenant, name)
            self.indexes.quotas_on.add(name, tenant)
        # A quota of which more is left than anybody can ask for keeps nobody waiting.
        if before is None or (row.left != before.left and min(row.left, before.left) < limits.DEVICES_PER_LEASE_MAX):
            self.tell(f"tenant:{tenant}")

    def drop_quota(self, tenant: Principal, name: str) -> None:
        """A tenant may have as many devices of a class as there are."""
        self.quotas.drop((tenant, name))
        self.indexes.quotas_of.remove(tenant, name)
        self.indexes.quotas_on.remove(name, tenant)
        self.tell(f"tenant:{tenant}")

    def _note_bond(self, lease: int, before: LeaseState | None, row: LeaseState) -> None:
        assert row.bond is not None
        was_living = before is not None and not before.ended
        if was_living == bool(row.ended):
            hosts = row.hosts if row.is_bound else ()
            self.indexes.note_bond(lease, row.bond.uuid, hosts, is_living=not row.ended)
        due_ns = _outliving_ns(row)
        if due_ns is not None and (before is None or _outliving_ns(before) != due_ns):
            self.outlivings.push(due_ns, lease)

    def put_domain(self, domain: DomainId, row: DomainState) -> None:
        """Set a domain's row, and follow what it uses."""
        before = self.domains.get(domain)
        self.domains.put(domain, row)
        self._note_domain(domain, before, row)

    def drop_domain(self, domain: DomainId) -> None:
        """A domain is not known any more, and uses nothing."""
        before = self.domains[domain]
        self.domains.drop(domain)
        self._note_domain(domain, before, None)

    def _note_domain(self, domain: DomainId, before: DomainState | None, after: DomainState | None) -> None:
        self.indexes.name_domain(domain, before.description if before else None, after.description if after else None)
        row = after or before
        assert row is not None
        uses = [each.uses if each is not None else () for each in (before, after)]
        for word in self.indexes.note_uses(domain, *uses):
            for device in self.named(row.host, word):
                self.tell(f"device:{device}")
                if self.devices[device].ending:
                    self._note_ending(device, self.devices[device], was_ending=True)
            drifting.follow_word(self, row.host, word)

    def named(self, host: HostName, word: str) -> tuple[DeviceId, ...]:
        """The known devices of a host that a hypervisor means by `word`; of some words perhaps only one of them."""
        known = device_id(host, DeviceKey(word))
        if known in self.devices:
            return (known,)
        return self.indexes.words.get((host, word), ())

    def users_of(self, row: DeviceState) -> list[tuple[DomainId, Use]]:
        """The domains that claim a device or have it, or one that cannot be told from it."""
        users = self.indexes.users
        return [
            (domain, use)
            for word in words_of(row.description)
            for domain in users.get((row.host, word), ())
            for use in self.domains[domain].uses
            if use.device == word
        ]

    def attached_to(self, row: DeviceState) -> list[DomainId]:
        """The domains to which a device is attached, for all that is known, each once."""
        if not self.indexes.users:
            return []
        return list(dict.fromkeys(domain for domain, use in self.users_of(row) if use.use == "attached"))

    def put_order(self, order: int, row: OrderState) -> None:
        """Set an order's row; its deadline is watched while it is open."""
        before = self.orders.get(order)
        self.orders.put(order, row)
        if before is None:
            self.indexes.list_order(order, row.host)
        if row.is_open and before is None:
            self.deadlines.push(row.deadline_ns, order)
        if row.is_open != (before is not None and before.is_open):
            self.indexes.note_open(order, row.host, row.what, is_open=row.is_open)
            if not row.is_open:
                self.tell(*(f"device:{device}" for device in held_up_by(row.host, row.what)))

    def drop_order(self, order: int) -> None:
        """Forget an order, which must be over."""
        row = self.orders[order]
        assert not row.is_open
        self.orders.drop(order)
        self.indexes.unlist_order(order, row.host)

    def tell(self, *words: str) -> None:
        """Note what is new for those who wait, in words of `stirring`."""
        if self.queue:
            self.news += words

    def put_queued(self, queued: int, row: QueuedState) -> None:
        """Set a waiting request's row. What it keeps from here on, nobody else may keep any more."""
        before = self.queue.get(queued)
        self.queue.put(queued, row)
        if before is None:
            self.waitings.push(row.until_ns, queued)
        self.indexes.note_queued(queued, before, row)

    def drop_queued(self, queued: int) -> None:
        """Nobody waits there any more, and nothing is kept for him."""
        before = self.queue[queued]
        self.queue.drop(queued)
        self.indexes.note_queued(queued, before, None)

    def keeper_before(self, device: DeviceId, rank_ns: int, queued: int) -> int:
        """For whom a device is kept who comes before that place in the queue (`queued` 0: of somebody who does not
        wait); 0: for nobody.
        """
        keeper = self.indexes.kept.get(device, 0)
        if not keeper or keeper == queued:
            return 0
        return keeper if (self.queue[keeper].rank_ns, keeper) < (rank_ns, queued or 2**63) else 0

    def index_anew(self) -> None:
        """Derive from all rows what putting each of them derives from it; nothing is yet."""
        assert not self.indexes.lookup and not self.expiries.entries
        self.indexes.describe_all((device, row.host, row.description) for device, row in self.devices.items())
        for domain, domain_row in sorted(self.domains.items()):
            self.indexes.name_domain(domain, None, domain_row.description)
            self.indexes.note_uses(domain, (), domain_row.uses)
        for device, row in self.devices.items():
            if row.ending:
                self._note_ending(device, row, was_ending=False)
        for host, host_row in self.hosts.items():
            self.indexes.note_marks(host, host, None, host_row.marks)
        for device, row in self.devices.items():
            self.indexes.note_marks(row.host, device, None, row.marks)
        self.failing.fill(self.devices.items())
        evictions.index_anew(self)
        self.candidates.fill(self.devices.items())
        drifting.index_anew(self)
        self.expiries.fill(self.leases.items())
        self.deadlines.fill(self.orders.items())
        for tenant, name in sorted(self.quotas):
            self.indexes.quotas_of.add(tenant, name)
            self.indexes.quotas_on.add(name, tenant)
        for lease, lease_row in sorted(self.leases.items()):
            self._note_holding(lease, None, lease_row)
            if lease_row.bond is not None:
                self._note_bond(lease, None, lease_row)
        for order, order_row in sorted(self.orders.items()):
            self.indexes.list_order(order, order_row.host)
            if order_row.is_open:
                self.indexes.note_open(order, order_row.host, order_row.what, is_open=True)
        self.waitings.fill(self.queue.items())
        for queued, queued_row in sorted(self.queue.items()):
            self.indexes.note_queued(queued, None, queued_row)
        for position in sorted(self.stirred):
            self.indexes.stirs.push(position)
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

        On a managed host, that its binder has given it back; on a watched one, that a fresh picture shows no user. Of
        a host that is off nothing is in use.
        """
        host = self.hosts.get(row.host)
        if host is None:
            return ""
        if host.dead:
            return host.dead
        is_stuck = row.quarantine is not None and failing.is_stuck(row.quarantine)
        if host.mode != "watched":
            is_back = row.binding is not None and row.binding.given_back and row.binding.lease == row.lease
            return _GIVEN_BACK if is_back and not is_stuck and not self.attached_to(row) else ""
        if host.stale or is_stuck or self.attached_to(row):
            return ""
        if row.missing:
            return "the device is not there"
        if row.description.in_use_by:
            return ""
        if POLLER in host.sources:
            return "no user is seen by the host's watcher, and no domain has it"
        return "no user is seen by the host's watcher"

    def next_expiry_ns(self) -> int | None:
        """When the next living lease ends unless renewed, of those that end by time."""
        return self.expiries.next_ns()

    def expired_by(self, now_ns: int, *, limit: int) -> list[int]:
        """Living leases whose time is over at `now_ns`, oldest first, at most `limit`."""
        return self.expiries.due_by(now_ns, limit=limit)

    def outlived_by(self, now_ns: int, *, limit: int) -> list[int]:
        """Living leases whose domains have been gone for long enough at `now_ns`, oldest first, at most `limit`."""
        return self.outlivings.due_by(now_ns, limit=limit)

    def roll_back(self) -> None:
        """Undo all since the journal began."""
        self.journal.roll_back()


def _expiry_ns(row: LeaseState) -> int | None:
    return None if row.ended or row.domain_seen else row.expires_at_ns


def _outliving_ns(row: LeaseState) -> int | None:
    if row.ended or row.bond is None or not row.gone_since_ns:
        return None
    return row.gone_since_ns + row.bond.gone_ms * 1_000_000


def _until_ns(row: QueuedState) -> int:
    return row.until_ns


def _is_news(before: DeviceState | None, row: DeviceState) -> bool:
    """Whether those who wait may be told something else of a device now."""
    if before is None or before.description is not row.description or before.marks is not row.marks:
        return True
    is_freed = before.lease != row.lease and not row.lease
    is_shared_less = len(row.sharers) < len(before.sharers)
    return is_freed or is_shared_less or (before.missing, before.quarantine) != (row.missing, row.quarantine)


def _grants(row: HostState) -> tuple[object, ...]:
    """What decides about all devices of a host."""
    return row.stale, row.mode, row.marks


def _deadline_ns(row: OrderState) -> int | None:
    return row.deadline_ns if row.is_open else None
