"""The rows of the state: what the ledger says of a host, device, domain, lease, request or order. They never change."""

from typing import Final

import msgspec

from leasehold.events.capabilities import Order
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.event_types import DomainBond
from leasehold.events.hostdevs import Handover, Truth
from leasehold.events.identities import (
    DeviceId,
    Holder,
    HostName,
    Principal,
    RequestKey,
    RequestRef,
    split_device_id,
)
from leasehold.events.inputs import BINDER, CREATOR, POLLER, LeaseRequest
from leasehold.events.record import GENESIS_PREV
from leasehold.events.refusals import Refusal
from leasehold.events.scheduling import Policy, Search, Taint


class Binding(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How far the binder of its host is with a device: prepared for a lease, or, behind that one's end, given back."""

    lease: int
    driver: str = ""
    """What it is bound to now."""
    was_driver: str = ""
    """What it was bound to before it was prepared."""
    reset: str = ""
    given_back: bool = False
    position: int
    at_ns: int


class Quarantine(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Why nobody gets a device: its host cannot bring it into order."""

    lease: int = 0
    """Behind whose end; 0: of one that the ledger does not know any more."""
    reason: str
    help: str
    position: int
    at_ns: int
    evidence: tuple[int, ...] = ()
    """Positions of the failures that led to it; empty: its binder could not take it back."""


class Mark(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What an operator said of a host or a device: that it is cordoned, or tainted."""

    request: RequestRef
    """By which it was said; whom a taint evicts ends by this one, too."""
    position: int
    reason: str = ""
    taint: Taint | None = None
    """`None`: it is cordoned."""

    @property
    def by(self) -> Principal:
        """Who said it."""
        return self.request.principal


class Marks(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """All that operators said of a host or a device, and what a device has done to deserve it."""

    cordon: Mark | None = None
    taints: tuple[Mark, ...] = ()
    """Sorted by name."""
    policy: Policy | None = None
    """Of a device."""
    unclean_tenant: str = ""
    """Whose lease it was that nobody has cleaned up behind yet."""
    unclean_position: int = 0
    failures: tuple[tuple[int, int], ...] = ()
    """Positions of its last failures, and when they were decided."""


def taints_of(marks: Marks | None) -> tuple[Mark, ...]:
    """The taints of a host or a device of which perhaps nothing was ever said."""
    return marks.taints if marks is not None else ()


class QueuedState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A request that waits."""

    principal: Principal
    tenant: Principal
    request: RequestKey
    body_hash: str
    asked: LeaseRequest
    rank_ns: int
    queued_at_ns: int
    until_ns: int
    keeps: tuple[DeviceId, ...] = ()
    buckets: tuple[str, ...] = ()
    why: Refusal


class ClassState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A device class."""

    select: str
    position: int
    by: str = ""


class QuotaState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How many devices of a class a tenant may have, and has."""

    devices_max: int
    devices: int = 0
    position: int
    by: str = ""

    @property
    def left(self) -> int:
        """How many more it may have; negative, if it was lowered below what there is."""
        return self.devices_max - self.devices


class Differing(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """That the witnesses of a device differ otherwise than was told of it."""

    kind: str
    """How they do; empty: they agree."""
    since_ns: int
    """0: somebody is out of date, so that it does not count."""


class Drift(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How the witnesses differ about a device, as `DriftDetected` has told it at `position`."""

    kind: str
    leased: Truth
    attached: Truth
    bound: Truth
    position: int
    at_ns: int


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
    looked_rank_ns: int = 0
    """With `looked_queued`, up to which place of the queue was looked, for the first note of what has become better."""
    looked_queued: int = 0
    unlooked_since_ns: int = 0
    """Since when who decides has left such notes as they are; 0: there are none."""


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


_TELL_OF_NO_DEVICES: Final = frozenset((CREATOR, POLLER, BINDER))


class HostState(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A host. `mode`: `managed` or `watched`."""

    mode: str
    sources: dict[str, SourceState] = {}
    device_count: int = 0
    dead: str = ""
    """Who said that it is off, and why; empty: nobody did, or it has reported anew since."""
    managed_since: int = 0
    """Position from which on what is leased of it is handed over; 0: nothing is."""
    marks: Marks | None = None

    @property
    def stale(self) -> str:
        """Why nothing of it is granted; empty: its picture is up to date. Who only acts there paints none of it."""
        if self.dead:
            return self.dead
        doubts, tells_of_devices = [], False
        for agent, source in self.sources.items():
            if agent not in _TELL_OF_NO_DEVICES:
                tells_of_devices = True
            if (source.stale or source.blind) and agent != CREATOR:
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
    marks: Marks | None = None
    """`None`: nothing was ever said of it."""
    sharers: tuple[int, ...] = ()
    """The living leases that share it, sorted."""
    charged: tuple[str, ...] = ()
    """Against which of its tenant's quotas it counts, while `lease` holds it."""


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
    tenant: Principal = Principal("")
    mode: str = ""
    """One of `scheduling.MODES`: only what is leased alone is held in the devices' rows as their `lease`."""
    tolerates: tuple[str, ...] = ()
    reserved_for: int = 0
    """It is to stand in for that lease; its token opens nothing yet."""
    successor: int = 0
    """The living lease that is reserved to stand in for it."""
    renewed_position: int = 0
    """Of the event that has said until when it is kept; 0: its grant has."""
    transferred_position: int = 0
    """Since when it is its holder's, if it was given to him; who had it before is told no token any more."""
    charges: tuple[tuple[str, ...], ...] = ()
    """Of a shared one, of each device: against which of its tenant's quotas it counts."""
    search: Search | None = None

    @property
    def has_devices(self) -> bool:
        """Whether any device is still its own, or is shared or looked at by it."""
        return not self.ended if self.mode else bool(self.held)

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
    """All that one request has ended, or renewed, if it was more than one."""
    queued: int = 0
    """It waits, or waited, at this place of the queue."""


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
