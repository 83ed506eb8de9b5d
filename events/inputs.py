"""What goes into the allocator: requests, observations, its own notes. Each stands in the record as received.

Requests are read strictly at the door (unknown fields refused) and tolerantly from the log.
"""

from typing import Final

import msgspec

from leasehold.events.capabilities import NewDevice
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.domains import DomainDescription
from leasehold.events.identities import DeviceKey, DomainKey, Holder, HostName, Principal, RequestId
from leasehold.events.schedule_inputs import ScheduleRequest
from leasehold.events.scheduling import Constraint, Need

POLLER: Final = "poller"
"""The agent that tells of a host's domains."""
CREATOR: Final = "creator"
"""The agent that makes and destroys devices. It acts on a host and tells no picture of it."""
BINDER: Final = "binder"
"""The agent that hands devices over and takes them back. It tells how far it is, and no picture of the host."""
GONE_MS: Final = 60_000
"""For how long a domain may be gone, unless another time is said: longer than a reboot takes."""

# --- requests ---------------------------------------------------------------------------------------------------


class LeaseRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="lease.v1"
):
    """Give these devices to `holder`, all or none, until `ttl_ms` has passed without a renewal."""

    request_id: RequestId
    issued_at_ns: int
    holder: Holder
    ttl_ms: int
    devices: tuple[str, ...] = ()
    """Each a key, `host/key`, a node-device name, a PCI address or a sysfs path. Either these, or `needs`."""
    host: str = ""
    """Where to look names up, or what is needed; empty: on all hosts (a name: if only one has it)."""
    force: bool = False
    """Take it although the host itself lives on it."""
    domain: str = ""
    """The uuid of the domain that it is for, which need not exist yet. Until that domain was seen there, the lease
    expires as any other; from then on it ends when the domain has been gone for `gone_ms`, and not by time."""
    gone_ms: int = GONE_MS
    """0: at once. It counts only while the pictures of the hosts of these devices are up to date."""
    keep: bool = False
    """The domain is only named: the lease expires, or is released, as any other."""
    driver: str = ""
    """Where a binder hands over: which stub PCI functions are bound to (`hostdevs.STUBS`); empty: its own choice."""
    unmanaged: bool = False
    """They are bound to a stub already, by hand, and are to stay so: nothing is bound, only reset and checked."""
    needs: tuple[Need, ...] = ()
    """What is needed, where no device is named."""
    constraints: tuple[Constraint, ...] = ()
    mode: str = ""
    """One of `scheduling.MODES`."""
    tolerates: tuple[str, ...] = ()
    """Taints, each by its `name`, or `name=value` for one of that value; `*`: all."""
    wait_ms: int = 0
    """For how long it may wait until it can be granted; 0: it does not wait."""
    priority: int = 0
    """Each step counts like a minute of waiting longer than others: -100 to 100."""


class RenewRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="renew.v1"
):
    """Keep the lease for `ttl_ms` from now; 0: for as long as it was granted."""

    request_id: RequestId
    issued_at_ns: int
    lease: int
    token: int
    ttl_ms: int = 0


class ReleaseRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="release.v1"
):
    """Give the lease back."""

    request_id: RequestId
    issued_at_ns: int
    lease: int
    token: int


class ConfirmFreeRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="confirm_free.v1"
):
    """An operator says by name that nobody uses this device any more, where no evidence can come by itself."""

    request_id: RequestId
    issued_at_ns: int
    device: str
    reason: str
    host: str = ""


class CreateDeviceRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="create_device.v1"
):
    """Have a host make a device: a virtual HBA or a mediated device. Its agent is ordered to, if the host allows it."""

    request_id: RequestId
    issued_at_ns: int
    device: NewDevice
    host: str = ""
    """Where; it may be left out where `device.parent` says it."""
    timeout_ms: int = 60_000
    """What has not been done by then is told as failed."""


class DestroyDeviceRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="destroy_device.v1"
):
    """Have a host take away a virtual HBA or a mediated device."""

    request_id: RequestId
    issued_at_ns: int
    device: str
    """Any name of it."""
    host: str = ""
    timeout_ms: int = 60_000


class RetireAgentRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="retire_agent.v1"
):
    """An operator says by name that this agent will not come back: what only it told of the host is forgotten.

    Refused while it is heard. Without this, a host whose agent has gone for good is never granted from again.
    """

    request_id: RequestId
    issued_at_ns: int
    host: str
    agent: str
    reason: str


class PrepareRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="prepare.v1"
):
    """Lease for a domain all devices that its configuration claims, all or none; the fields as of `LeaseRequest`.

    Those that living leases hold for this domain already are left out.
    """

    request_id: RequestId
    issued_at_ns: int
    domain: str
    """By name, uuid, key or id."""
    holder: Holder
    ttl_ms: int
    host: str = ""
    bus: str = ""
    """One of `hostdevs.BUSES`; empty: both."""
    force: bool = False
    gone_ms: int = GONE_MS
    keep: bool = False
    driver: str = ""
    unmanaged: bool = False


class ReattachRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="reattach.v1"
):
    """Release all of the asker's leases that are for this domain, or those of one bus.

    Refused where a lease holds devices of both buses and only one is asked for.
    """

    request_id: RequestId
    issued_at_ns: int
    domain: str
    """Its uuid; or by name, key or id while it is known."""
    host: str = ""
    bus: str = ""


class OperateDeviceRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="operate_device.v1"
):
    """Have a host's binder unbind a device for use by others (`detach`), rebind it (`reattach`), or reset it.

    Refused while it is leased; one whose lease has ended, and that is in quarantine, can be reattached.
    """

    request_id: RequestId
    issued_at_ns: int
    device: str
    operation: str
    """One of `hostdevs.OPERATIONS`."""
    host: str = ""
    driver: str = ""
    """Of `detach`: the stub (`hostdevs.STUBS`); empty: the binder's choice."""
    timeout_ms: int = 60_000


class RevokeRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="revoke.v1"
):
    """An operator takes a lease away, whoever holds it; by force also what domains still have of one that has ended."""

    request_id: RequestId
    issued_at_ns: int
    lease: int
    reason: str
    force: bool = False
    """Take its devices even from a domain that still has them."""


class DeclareDeadRequest(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag="declare_dead.v1"
):
    """An operator says that a host is off, so that nobody waits for it any more. Refused while it is heard."""

    request_id: RequestId
    issued_at_ns: int
    host: str
    reason: str


Request = (
    LeaseRequest
    | RenewRequest
    | ReleaseRequest
    | ConfirmFreeRequest
    | CreateDeviceRequest
    | DestroyDeviceRequest
    | RetireAgentRequest
    | PrepareRequest
    | ReattachRequest
    | OperateDeviceRequest
    | RevokeRequest
    | DeclareDeadRequest
    | ScheduleRequest
)


class Asked(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="asked.v1"):
    """A request with who is authenticated (the subject says it, never the body)."""

    principal: Principal
    request: Request


# --- observations -----------------------------------------------------------------------------------------------


class SourceStarts(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_starts.v1"):
    """A new run of an agent: words of older runs that still arrive count no more."""

    manages: bool = False
    """A binder that acts on this host; else the host is only watched."""


class DeviceSeen(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_seen.v1"):
    """This device is now like this."""

    device: DeviceDescription
    how: Sighting | None = None


class DeviceGone(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="device_gone.v1"):
    """Nothing is at this key any more."""

    key: DeviceKey
    how: Sighting | None = None


class DeviceFlaps(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="device_flaps.v1"):
    """It went away, or lost its driver or link, and is as it was before."""

    key: DeviceKey
    how: Sighting


class MissedEvents(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="missed_events.v1"):
    """Events of the kernel were lost, so the agent looked at everything again; `times` since it last said so."""

    times: int


class OrderDone(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="order_done.v1"):
    """What `order` asked for is so."""

    order: int
    device: str = ""
    """Key of the device that was made or taken away."""


class OrderNotDone(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="order_not_done.v1"):
    """What `order` asked for could not be done, and nothing of it was left behind unless `reason` says so."""

    order: int
    reason: str


class DomainSeen(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="domain_seen.v1"):
    """This domain is now like this. What it uses is told apart."""

    domain: DomainDescription


class DomainGone(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="domain_gone.v1"):
    """The hypervisor does not know this domain any more, and nothing that it had is held for it."""

    key: DomainKey


class DeviceUsed(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="device_used.v1"):
    """A domain, known or told of in the same message, uses a device. `device`: a word of `events.domains`; `use`: one
    of its `USES`.
    """

    domain: DomainKey
    device: str
    use: str


class DeviceUnused(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="device_unused.v1"):
    """A domain does not use a device in this way any more."""

    domain: DomainKey
    device: str
    use: str


WORDS_OF_DOMAINS: Final = (DomainSeen, DomainGone, DeviceUsed, DeviceUnused)
"""Only the poller says them."""


class Prepared(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="prepared.v1"):
    """The device is ready for the holder of this lease. The other fields as of the event `DevicePrepared`."""

    key: DeviceKey
    lease: int
    driver: str = ""
    was_driver: str = ""
    reset: str = ""


class NotPrepared(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="not_prepared.v1"):
    """It cannot be handed over, and so nothing of this lease is on this host."""

    key: DeviceKey
    lease: int
    reason: str


class GivenBack(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="given_back.v1"):
    """The device is the host's again, and nothing of what this lease had done to it is left."""

    key: DeviceKey
    lease: int
    """0: of one that the binder does not know any more."""
    driver: str = ""


class Stuck(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="stuck.v1"):
    """The binder cannot bring it into the state that it should have. Fields as of the event `DeviceQuarantined`."""

    key: DeviceKey
    lease: int
    reason: str
    help: str


class LetGo(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="let_go.v1"):
    """The domain that this lease is for has stopped, and the host's policy is that its devices come back at once."""

    lease: int


WordOfBinder = Prepared | NotPrepared | GivenBack | Stuck | LetGo
WORDS_OF_BINDERS: Final = (Prepared, NotPrepared, GivenBack, Stuck, LetGo)
"""Only the binder says them."""


class SourceBlind(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_blind.v1"):
    """What the agent looks at does not answer, so it cannot tell what is there; what it told may be out of date."""

    reason: str


class SourceSees(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_sees.v1"):
    """It answers again, and what differs has been told."""


class PictureComplete(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="picture_complete.v1"):
    """Everything that differs from the log has been reported: the host can be granted from."""

    since: int
    """The counter of the first message of that report: it is whole only if no gap was seen from there on."""


class StillHere(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="still_here.v1"):
    """No news. Behind a lost message it makes the gap seen."""


class SourceStops(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="source_stops.v1"):
    """The agent goes away in good order; what it said will grow old."""


Observation = (
    SourceStarts
    | DeviceSeen
    | DeviceGone
    | DeviceFlaps
    | MissedEvents
    | OrderDone
    | OrderNotDone
    | DomainSeen
    | DomainGone
    | DeviceUsed
    | DeviceUnused
    | Prepared
    | NotPrepared
    | GivenBack
    | Stuck
    | LetGo
    | SourceBlind
    | SourceSees
    | PictureComplete
    | StillHere
    | SourceStops
)


class Observed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="observed.v1"):
    """One message of a source: 1 to 254 observations, in order.

    `run` is larger for each newer run of the agent on that host; `counter` goes up by one with each message of the
    run and is 0 for `SourceStarts`, which stands alone.
    """

    host: HostName
    agent: str
    run: int
    counter: int
    observations: tuple[Observation, ...]


# --- the allocator's own notes ----------------------------------------------------------------------------------


class LedgerBegins(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="ledger_begins.v1"):
    """The first input of a ledger."""

    cluster: str
    writer: str
    era: int = 0


class LedgerRestores(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="ledger_restores.v1"):
    """The records before this one were written back from an archive: the ledger goes on in a new era.

    The first input of its record; nothing else may raise the era.
    """

    cluster: str
    writer: str
    era: int
    """The one that begins: higher than that of the record before, and than any that was lost."""
    reason: str


class DeciderStarts(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag="decider_starts.v1"
):
    """An allocator begins to decide (`start`), or can reach the log again (`outage`): time stood still for holders."""

    writer: str
    reason: str
    clock_age_ms: int | None = None
    """For how long its clock has been carried on; how much time went by before that it cannot tell."""


class Tick(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="tick.v1"):
    """Time has passed. Leases that are over end, devices with evidence become free."""

    writer: str


class HostHeard(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="host_heard.v1"):
    """Whether the current run of this host's agent is heard (`alive`) or has been silent for too long."""

    host: HostName
    agent: str
    run: int
    alive: bool


Input = Asked | Observed | LedgerBegins | LedgerRestores | DeciderStarts | Tick | HostHeard
