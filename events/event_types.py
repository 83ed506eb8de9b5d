"""What happened: the events of the ledger. Past tense, absolute, and whole enough to be read alone.

An event says neither its id nor its time: its position is its id (a grant's is the lease's id and token), and the
record says when it was decided. Tags end in a version; a type that was ever written stays readable.
"""

import msgspec

from leasehold.events.capabilities import Order
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.domains import DomainDescription
from leasehold.events.hostdev_events import HostdevEvent
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceId, DeviceKey, DomainKey, Holder, HostName, Principal, RequestRef
from leasehold.events.refusals import Refusal
from leasehold.events.schedule_events import ScheduleEvent
from leasehold.events.scheduling import Search


class LedgerStarted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="ledger_started.v1"):
    """The ledger exists."""

    ledger_id: str
    cluster: str
    era: int


class LedgerRestored(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="ledger_restored.v1"):
    """The ledger was written back from an archive. What stood in the old one behind record `through` is lost.

    Each lease has the token of the new era, each floor is in it: all older tokens are dead. Each host must report
    again. No lease expires before `until_ns`, nor before somebody has said that he decides.
    """

    writer: str
    era: int
    through: int
    """The sequence of the last record of the era before."""
    reason: str
    until_ns: int


class GraceStarted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="grace_started.v1"):
    """`writer` decides from here on; no lease expires before `until_ns`."""

    writer: str
    reason: str
    until_ns: int


class HostRegistered(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="host_registered.v1"):
    """A host is known. `mode`: `managed` (a binder acts on it) or `watched` (nobody does)."""

    host: HostName
    mode: str


class HostWentStale(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="host_went_stale.v1"):
    """What this agent told of the host may be out of date; nothing of the host is granted."""

    host: HostName
    agent: str
    reason: str


class HostCameBack(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="host_came_back.v1"):
    """What this agent told of the host is up to date again."""

    host: HostName
    agent: str


class SourceStarted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_started.v1"):
    """This run speaks for the agent from here on."""

    host: HostName
    agent: str
    run: int


class SourceStopped(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_stopped.v1"):
    """The agent went away in good order: what it told grows old, and nothing of the host is granted."""

    host: HostName
    agent: str
    run: int


class ObservationsAccepted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="observations_accepted.v1"):
    """A message of the current run was taken; the events behind it in its step follow from it."""

    host: HostName
    agent: str
    run: int
    counter: int


class ReportRequested(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="report_requested.v1"):
    """Messages of this run are missing: it must report what differs again."""

    host: HostName
    agent: str
    run: int
    counter: int
    """The counter that came instead of the expected one; what the source says from here on is taken again."""
    reason: str


class SourceWentBlind(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_went_blind.v1"):
    """What this agent looks at does not answer: what it told may be out of date, and nothing of the host is granted."""

    host: HostName
    agent: str
    reason: str


class SourceSeesAgain(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_sees_again.v1"):
    """It answers again, and what this agent told is up to date."""

    host: HostName
    agent: str


class AgentRetired(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="agent_retired.v1"):
    """An operator said that this agent will not come back: its run and the domains that it told of are forgotten, and
    its silence makes nothing stale.
    """

    request: RequestRef
    host: HostName
    agent: str
    reason: str


class PictureCompleted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="picture_completed.v1"):
    """The ledger's picture of this host is whole."""

    host: HostName
    agent: str


class DeviceAppeared(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_appeared.v1"
):
    """A device is at a key where none was known."""

    host: HostName
    device: DeviceDescription
    how: Sighting | None = None


class DeviceChanged(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_changed.v1"
):
    """The same thing is now different in `changed`; of a capability's own fields by names like `capability.link_state`.

    `was`: what its driver and the state of its link were, if they are among these.
    """

    host: HostName
    device: DeviceDescription
    changed: tuple[str, ...]
    how: Sighting | None = None
    was: dict[str, str] = {}


class DeviceReplaced(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_replaced.v1"
):
    """Another thing sits at this key. A lease of the old one does not reach it."""

    host: HostName
    device: DeviceDescription
    how: Sighting | None = None


class DeviceMissing(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_missing.v1"
):
    """The device is not there. Its lease, if any, keeps its place."""

    host: HostName
    key: DeviceKey
    how: Sighting | None = None


class DeviceReappeared(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_reappeared.v1"
):
    """The same thing is back at its key."""

    host: HostName
    device: DeviceDescription
    how: Sighting | None = None


class DeviceFlapped(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="device_flapped.v1"):
    """It went away, or lost its driver or link, `how.flaps` times, and is as it was before."""

    host: HostName
    key: DeviceKey
    how: Sighting


class EventsMissed(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="events_missed.v1"):
    """The agent lost events of the kernel `times` times, and looked at everything again each time."""

    host: HostName
    agent: str
    times: int


class DomainAppeared(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="domain_appeared.v1"):
    """A domain is there that was not known. `agent` tells of it."""

    host: HostName
    agent: str
    domain: DomainDescription


class DomainChanged(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="domain_changed.v1"
):
    """The domain, still in the same incarnation or in none, is different in `changed`. `was`: what its name and state
    were, if they are among these.
    """

    host: HostName
    domain: DomainDescription
    changed: tuple[str, ...]
    was: dict[str, str] = {}


class DomainStarted(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="domain_started.v1"):
    """The domain runs in another incarnation than before: it was started, or has rebooted. `was_domid`: the one before;
    -1: it had none.
    """

    host: HostName
    domain: DomainDescription
    was_domid: int
    changed: tuple[str, ...]


class DomainVanished(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="domain_vanished.v1"):
    """The domain is not there any more, and uses nothing."""

    host: HostName
    key: DomainKey
    name: str
    domid: int


class AttachmentSeen(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="attachment_seen.v1"
):
    """A domain claims a device (`use` is `configured`) or has it (`attached`)."""

    host: HostName
    domain: DomainKey
    device: str
    """As the hypervisor names it: a word of `events.domains`."""
    use: str
    devices: tuple[DeviceKey, ...] = ()
    """Which of the known devices that meant then; several, where two of a kind are plugged in."""
    name: str = ""
    """What the domain was called then."""


class AttachmentGone(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="attachment_gone.v1"
):
    """A domain does not claim, or does not have, a device any more. Fields as in `AttachmentSeen`."""

    host: HostName
    domain: DomainKey
    device: str
    use: str
    devices: tuple[DeviceKey, ...] = ()
    name: str = ""


class SharedPair(msgspec.Struct, frozen=True, gc=False):
    """Two devices that two leases hold although `rule` says that they cannot be owned apart."""

    device: DeviceId
    lease: int
    other: DeviceId
    other_lease: int
    rule: str


class SharingFound(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="sharing_found.v1"):
    """By what the host has become, devices of different leases cannot be owned apart any more.

    Nobody loses his lease; until one of each pair has ended, nothing more is granted of what ties them.
    """

    host: HostName
    pairs: tuple[SharedPair, ...]
    """The first ones."""
    count: int
    """How many there are."""


class DomainBond(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """For which domain a lease is."""

    uuid: str
    gone_ms: int = 0
    """So long after the domain was seen gone the lease ends."""
    keep: bool = False
    """The domain is only named: its being there or not changes nothing."""


class LeaseGranted(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_granted.v2"):
    """The devices belong to `holder`. The lease's id is the position of this event, its token the same in its era."""

    request: RequestRef
    tenant: Principal
    """Whose matter it is, by the name of the principal that asked (`identities.tenant_of`)."""
    holder: Holder
    devices: tuple[DeviceId, ...]
    ttl_ms: int
    expires_at_ns: int
    forced: bool = False
    bond: DomainBond | msgspec.UnsetType = msgspec.UNSET
    """For which domain, if it was said; written only then, as records from before there was any are decided again."""
    handover: Handover | msgspec.UnsetType = msgspec.UNSET
    """How its devices are handed over, if that was said. What follows is written only where it is so, too."""
    mode: str | msgspec.UnsetType = msgspec.UNSET
    """One of `scheduling.MODES`; unset: alone."""
    tolerates: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    charges: tuple[tuple[str, ...], ...] | msgspec.UnsetType = msgspec.UNSET
    """Of each device, against which of its tenant's quotas it counts, by their classes."""
    queued: int | msgspec.UnsetType = msgspec.UNSET
    """It waited at this place of the queue, which it leaves."""
    reserved_for: int | msgspec.UnsetType = msgspec.UNSET
    """It is to stand in for that lease, and its token opens nothing before a `LeaseSwitched`."""
    search: Search | msgspec.UnsetType = msgspec.UNSET
    """How its devices were found, where none were named."""


class LeaseRenewed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_renewed.v1"):
    """The lease lives on."""

    request: RequestRef
    lease: int
    ttl_ms: int
    expires_at_ns: int


class LeaseReleased(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_released.v1"):
    """The holder gave it back; its devices are free once there is evidence."""

    request: RequestRef
    lease: int


class LeaseExpired(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="lease_expired.v1"):
    """Its time was over and no renewal had come."""

    lease: int


class LeaseOutlived(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_outlived.v1"):
    """The domain that it was for was seen, and has been gone for its grace time."""

    lease: int
    domain: str
    gone_since_ns: int


class DeviceFreed(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, tag_field="type", tag="device_freed.v1"
):
    """There is evidence that nobody uses the device of an ended lease. `evidence` says which."""

    device: DeviceId
    lease: int
    evidence: str
    request: RequestRef | None = None
    """Of the operator who confirmed it, where one did."""


class RequestRefused(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="request_refused.v1"):
    """A request was decided against."""

    request: RequestRef
    verb: str
    about: tuple[str, ...]
    """The devices (ids where known) or the lease that it was about."""
    refusal: Refusal
    holder: str = ""


class RefusalsRepeated(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="refusals_repeated.v1"
):
    """The refusal at position `first` was given again, for the `count`-th time since."""

    request: RequestRef
    first: int
    count: int


class HostOrdered(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="host_ordered.v1"):
    """`agent` on `host` is told to do something. The position of this event is the order's id."""

    request: RequestRef
    host: HostName
    agent: str
    order: Order
    deadline_ns: int
    """What is not done by then counts as failed; it is not begun after."""


class OrderCarriedOut(
    msgspec.Struct,
    frozen=True,
    gc=False,
    omit_defaults=True,
    kw_only=True,
    tag_field="type",
    tag="order_carried_out.v1",
):
    """The host has done it."""

    host: HostName
    order: int
    device: str = ""
    """Key of the device that was made or taken away."""
    late: bool = False
    """It had been told as failed already, for its time was over."""


class OrderFailed(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="order_failed.v1"
):
    """It was not done."""

    host: HostName
    order: int
    reason: str
    timed_out: bool = False
    """Nothing was heard in time; it may still be done."""


Event = (
    LedgerStarted
    | LedgerRestored
    | GraceStarted
    | HostRegistered
    | HostWentStale
    | HostCameBack
    | SourceStarted
    | SourceStopped
    | ObservationsAccepted
    | ReportRequested
    | PictureCompleted
    | DeviceAppeared
    | DeviceChanged
    | DeviceReplaced
    | DeviceMissing
    | DeviceReappeared
    | DeviceFlapped
    | EventsMissed
    | SourceWentBlind
    | SourceSeesAgain
    | AgentRetired
    | DomainAppeared
    | DomainChanged
    | DomainStarted
    | DomainVanished
    | AttachmentSeen
    | AttachmentGone
    | SharingFound
    | LeaseGranted
    | LeaseRenewed
    | LeaseReleased
    | LeaseExpired
    | LeaseOutlived
    | DeviceFreed
    | RequestRefused
    | RefusalsRepeated
    | HostOrdered
    | OrderCarriedOut
    | OrderFailed
    | HostdevEvent
    | ScheduleEvent
)
