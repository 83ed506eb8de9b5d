"""The state: what the ledger says at one position. Rows are immutable, tables change only through `evolve`."""

from typing import Final

import msgspec

from leasehold.events.capabilities import Order
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.event_types import DomainBond
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainId,
    Holder,
    HostName,
    Principal,
    RequestKey,
    device_id,
    split_device_id,
)
from leasehold.events.inputs import BINDER, CREATOR, POLLER
from leasehold.events.record import GENESIS_PREV, RULES_VERSION
from leasehold.events.refusals import Refusal
from leasehold.projections import drifting
from leasehold.projections.dues import Dues
from leasehold.projections.indexes import Indexes, words_of
from leasehold.projections.rows import (
    Binding,
    Differing,
    Drift,
    Fading,
    PrincipalState,
    Quarantine,
    RecentRefusal,
)
from leasehold.projections.tables import Cell, Journal, Table

FOLD_VERSION: Final = 4
"""Raised when the same log would fold to another state; snapshots of another version are built anew."""

_GIVEN_BACK: Final = "the host's binder has given it back, and no domain has it"


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


class SourceState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One agent of a host: its current run, the last counter taken, and why it cannot be relied on (empty: it can)."""

    run: int
    counter: int = 0
    complete: bool = False
    stale: str = ""
    wants_report: bool = False
    gap: int = 0
    """The counter behind the last gap: what was said up to there is not known to be whole."""
    blind: str = ""
    """Why it cannot tell what is there, although it is heard; empty: it can."""

    @property
    def doubt(self) -> str:
        """Why what it told may be out of date."""
        return self.stale or self.blind


class HostState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A host. `mode`: `managed` or `watched`."""

    mode: str
    sources: dict[str, SourceState] = {}
    device_count: int = 0
    dead: str = ""
    """Who said that it is off, and why; empty: nobody did, or it has reported anew since."""
    managed_since: int = 0
    """Position from which on what is leased of it is handed over; 0: nothing is."""

    @property
    def stale(self) -> str:
        """Why nothing of it is granted; empty: its picture is up to date. Who only acts there paints none of it."""
        if self.dead:
            return self.dead
        doubts, tells_of_devices = [], False
        for agent, source in self.sources.items():
            if agent != CREATOR:
                tells_of_devices = tells_of_devices or agent not in (POLLER, BINDER)
                if source.stale or source.blind:
                    doubts.append(f"{agent}: {source.doubt}")
        if doubts:
            return "; ".join(sorted(doubts))
        if tells_of_devices:
            return ""
        return "no agent tells of its devices" if self.sources.keys() & {POLLER, BINDER} else "no agent has reported"

    @property
    def has_reported(self) -> bool:
        """Whether who acts there, or where nobody does, who tells of its devices, has reported since it last had to."""
        binder = self.sources.get(BINDER)
        if binder is not None:
            return binder.complete
        return any(source.complete for agent, source in self.sources.items() if agent not in (CREATOR, POLLER))

    @property
    def shows_domains(self) -> bool:
        """Whether it is known which domains are there, and which are not."""
        return POLLER in self.sources and not self.stale


class DeviceState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
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
    described_position: int = 0
    """Of the event that told last what is here, or that nothing is."""
    binding: Binding | None = None
    """How far its binder is with the lease that holds it; `None`: nothing is told of that, or nobody holds it."""
    quarantine: Quarantine | None = None
    drift: Drift | None = None
    """How the witnesses differ about it, as it was told."""
    differing: Differing | None = None


class DomainState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A domain: what is known of it, and by whom."""

    host: HostName
    agent: str
    description: DomainDescription
    uses: tuple[Use, ...] = ()
    """Sorted."""
    used_since: tuple[int, ...] = ()
    """Of each use, the position of the event that told it."""
    since_position: int = 0
    """Of the event since which it is in this incarnation, or known."""
    since_ns: int = 0


class LeaseState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
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
    """Empty while it lives, then `released`, `expired`, `outlived`, `failed` or `revoked`."""
    ended_at_ns: int = 0
    ended_position: int = 0
    held: int = 0
    """How many of its devices are not free yet."""
    renewals: tuple[RequestKey, ...] = ()
    """The last ones, whose answers are remembered."""
    renewal_horizon_ns: int = 0
    """Renewals issued up to here may have been forgotten, so unknown ones are refused as too old."""
    bond: DomainBond | None = None
    """For which domain it is."""
    domain_seen: bool = False
    """That domain has been there: from then on the lease ends with it, and not by time."""
    gone_since_ns: int = 0
    """Since when that domain has not been there, for all that its hosts show; 0: it is there, was not seen yet, or
    nobody can tell.
    """
    handover: Handover | None = None
    """How its devices are handed over, if that was said."""
    end_reason: str = ""
    """Why it failed, or was revoked."""
    is_forced_off: bool = False
    """Its devices are taken back even from a domain that still has them."""

    @property
    def is_bound(self) -> bool:
        """Whether it ends with a domain."""
        return self.bond is not None and not self.bond.keep

    @property
    def hosts(self) -> tuple[HostName, ...]:
        """Those of its devices, each once."""
        return tuple(dict.fromkeys(split_device_id(device)[0] for device in self.devices))


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
    leases: tuple[int, ...] = ()
    """All that one request has ended, if it was more than one."""


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
        self.expiries: Dues[int, LeaseState] = Dues(journal, self.leases, _expiry_ns)
        self.deadlines: Dues[int, OrderState] = Dues(journal, self.orders, _deadline_ns)
        self.outlivings: Dues[int, LeaseState] = Dues(journal, self.leases, _outliving_ns)
        self.drifts: Dues[DeviceId, DeviceState] = Dues(journal, self.devices, drifting.due_ns)
        self.indexes = Indexes(journal)
        self.at_ns = 0
        """When that was decided which is being folded."""
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
        if before is None or before.description is not row.description:
            self.indexes.describe(device, row.host, before.description if before else None, row.description)
        was_ending = before is not None and before.ending
        if row.ending or was_ending:
            self._note_ending(device, row, was_ending=was_ending)
        if drifting.may_differ(self, row):
            drifting.follow_device(self, device, before, row)

    def put_host(self, host: HostName, row: HostState) -> None:
        """Set a host's row, which decides what can be freed there."""
        before = self.hosts.get(host)
        self.hosts.put(host, row)
        if before is not None and (before.stale, before.mode) != (row.stale, row.mode):
            for device in self.indexes.ending.get(host, ()):
                self._note_ending(device, self.devices[device], was_ending=True)
            drifting.follow_host(self, host)

    def put_lease(self, lease: int, row: LeaseState) -> None:
        """Set a lease's row; its expiry is watched while it lives."""
        before = self.leases.get(lease)
        self.leases.put(lease, row)
        if not row.ended and (before is None or before.expires_at_ns != row.expires_at_ns):
            self.expiries.push(row.expires_at_ns, lease)
        if row.bond is not None:
            self._note_bond(lease, before, row)

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

    def drop_order(self, order: int) -> None:
        """Forget an order, which must be over."""
        row = self.orders[order]
        assert not row.is_open
        self.orders.drop(order)
        self.indexes.unlist_order(order, row.host)

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
        drifting.index_anew(self)
        self.expiries.fill(self.leases.items())
        self.deadlines.fill(self.orders.items())
        for lease, lease_row in sorted(self.leases.items()):
            if lease_row.bond is not None:
                self._note_bond(lease, None, lease_row)
        for order, order_row in sorted(self.orders.items()):
            self.indexes.list_order(order, order_row.host)
            if order_row.is_open:
                self.indexes.note_open(order, order_row.host, order_row.what, is_open=True)
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
        if host.mode != "watched":
            is_back = row.binding is not None and row.binding.given_back and row.binding.lease == row.lease
            return _GIVEN_BACK if is_back and not row.quarantine and not self.attached_to(row) else ""
        if host.stale or row.quarantine or self.attached_to(row):
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


def _deadline_ns(row: OrderState) -> int | None:
    return row.deadline_ns if row.is_open else None
