"""What happened to requests that wait, to leases that change hands, and to what operators said of devices and hosts.

See `event_types` for all other events.
"""

import msgspec

from leasehold.events.identities import DeviceId, DeviceKey, Holder, HostName, Principal, RequestRef
from leasehold.events.inputs import LeaseRequest
from leasehold.events.refusals import Refusal
from leasehold.events.scheduling import Policy, Taint

# --- waiting ------------------------------------------------------------------------------------------------------


class RequestQueued(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="request_queued.v1"):
    """The request cannot be granted now, and waits. The position of this event is the id of its place in the queue."""

    request: RequestRef
    tenant: Principal
    asked: LeaseRequest
    rank_ns: int
    """Its place: who has a lower one comes first, then who came first. Each step of priority is worth
    `limits.PRIORITY_STEP_NS` of waiting."""
    until_ns: int
    keeps: tuple[DeviceId, ...]
    """Devices that nobody behind it gets while it waits, although it cannot have all that it needs yet."""
    buckets: tuple[str, ...]
    """Under what it is found when a device becomes free: `projections.buckets`."""
    why: Refusal
    """Why not now."""


class QueuedMoved(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="queued_moved.v1"):
    """Other devices are kept for a waiting request than before, or it is found under others. Fields as above."""

    queued: int
    keeps: tuple[DeviceId, ...]
    buckets: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """If they are others than before: who has all his devices taken by another one changes many of these at once."""
    why: Refusal | msgspec.UnsetType = msgspec.UNSET
    """Why not now, if that is another reason than before."""


class QueueLooked(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="queue_looked.v1"):
    """It was looked who waits for what has become better: all that was noted up to `through` is done, and of what comes
    next, all who wait up to the place (`rank_ns`, `queued`); 0, 0: nobody yet.
    """

    through: int
    rank_ns: int = 0
    queued: int = 0


class RequestWithdrawn(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="request_withdrawn.v1"
):
    """It waits no more: who asked, or an operator, took it back."""

    request: RequestRef
    queued: int
    reason: str


class WaitingEnded(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="waiting_ended.v1"):
    """It waits no more: its time was over. `why`: the last reason."""

    queued: int
    why: Refusal


# --- keeping ------------------------------------------------------------------------------------------------------


class LeasesRenewed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="leases_renewed.v1"):
    """These leases live on, each for its own time from now: asked for by one request."""

    request: RequestRef
    leases: tuple[int, ...]


class LeaseTransferred(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_transferred.v1"
):
    """The lease has another holder, and with the position of this event another token: the old one acts no more."""

    request: RequestRef
    lease: int
    principal: Principal
    tenant: Principal
    holder: Holder
    charges: tuple[tuple[str, ...], ...] | msgspec.UnsetType = msgspec.UNSET
    """As of a grant."""


class LeaseSwitched(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_switched.v1"):
    """A reserved lease counts from here on, with the position of this event as its token. `source`, in whose place it
    stands, has ended.
    """

    request: RequestRef
    lease: int
    source: int


# --- classes and quotas -------------------------------------------------------------------------------------------


class ClassSet(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="class_set.v1"):
    """A device class: a named selector."""

    request: RequestRef
    name: str
    select: str


class ClassRemoved(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="class_removed.v1"):
    """There is no such class any more."""

    request: RequestRef
    name: str


class QuotaSet(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="quota_set.v1"):
    """A tenant may have at most so many devices of a class at a time."""

    request: RequestRef
    tenant: Principal
    device_class: str
    """Empty: of all classes together."""
    devices_max: int
    """-1: as many as there are; the quota is taken away."""
    charged: tuple[DeviceId, ...] = ()
    """What the tenant has of that class already."""


# --- what operators say of devices and hosts -----------------------------------------------------------------------


class Cordoned(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="cordoned.v1"):
    """Nothing more of it is granted. Leases stay. `key` empty: the whole host."""

    request: RequestRef
    host: HostName
    key: DeviceKey
    reason: str


class Uncordoned(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="uncordoned.v1"):
    """It is granted from again."""

    request: RequestRef
    host: HostName
    key: DeviceKey


class Tainted(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="tainted.v1"):
    """Whoever does not tolerate this is kept away. One of the same name there is replaced. `key` as in `Cordoned`."""

    request: RequestRef
    host: HostName
    key: DeviceKey
    taint: Taint


class Untainted(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="untainted.v1"):
    """The taint of this name is gone; who was to be evicted by it and has not been yet, stays."""

    request: RequestRef
    host: HostName
    key: DeviceKey
    name: str


class PolicySet(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="policy_set.v1"):
    """How a device may be handed out from now on; leases stay as they are."""

    request: RequestRef
    device: DeviceId
    policy: Policy


class DeviceCleaned(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="device_cleaned.v1"):
    """Somebody confirmed by name that it was cleaned up behind its last lease: any tenant may have it."""

    request: RequestRef
    device: DeviceId
    reason: str


class DeviceHealed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="device_healed.v1"):
    """An operator confirmed that it works again: its failures are forgotten. A quarantine for which they were
    the reason is over.
    """

    request: RequestRef
    device: DeviceId
    reason: str


ScheduleEvent = (
    RequestQueued
    | QueuedMoved
    | QueueLooked
    | RequestWithdrawn
    | WaitingEnded
    | LeasesRenewed
    | LeaseTransferred
    | LeaseSwitched
    | ClassSet
    | ClassRemoved
    | QuotaSet
    | Cordoned
    | Uncordoned
    | Tainted
    | Untainted
    | PolicySet
    | DeviceCleaned
    | DeviceHealed
)
