"""What is shown of devices, leases, hosts and the past: the rows of answers to questions."""

import msgspec

from leasehold.events.capabilities import Capability, Order
from leasehold.events.hostdevs import Truth
from leasehold.events.identities import DeviceId, DomainId, HostName


class UserView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A domain that uses a device."""

    domain: DomainId
    name: str
    use: str
    """`attached` (the hypervisor has given it the device) or `configured` (its configuration claims it)."""
    said: str
    """As the hypervisor names the device (see `events.domains`)."""


class BindingView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the handing over of a leased device is.

    `state`: `preparing`, `prepared`, `giving_back` (the lease has ended), `given_back` or `quarantined` (`reason` says
    why, `help` what to do).
    """

    state: str
    driver: str = ""
    was_driver: str = ""
    reset: str = ""
    reason: str = ""
    help: str = ""
    since_position: int = 0
    since_ns: int = 0


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A device as people see it.

    `state`: `free`, `leased`, `ending` (its lease has ended, nothing shows yet that it is free), `lost` (leased, but
    missing or replaced), `shared` (several leases have it together), `foreign` (used without a lease), `protected`,
    `missing`, `unleasable`, `stale`, `quarantined` (its host could not take it back, or it failed too often),
    `cordoned`, `tainted`, `unclean` (to be cleaned behind its last tenant), `kept` (for a request that waits),
    `blocked` (by what it cannot be owned apart from); for a functional child, the state of its physical parent.
    `reason` says why.
    """

    name: str
    key: str
    host: str
    parent: str
    driver: str
    state: str
    reason: str
    kind: str
    device: DeviceId
    lease: str = ""
    holder: str = ""
    since_ns: int = 0
    pci_class: str = ""
    vendor_id: str = ""
    product_id: str = ""
    vendor_name: str = ""
    product_name: str = ""
    serial: str = ""
    iommu_group: int = -1
    numa_node: int = -1
    physical_function: str = ""
    sysfs_path: str = ""
    in_use_by: tuple[str, ...] = ()
    attributes: dict[str, str] = {}
    subsystem: str = ""
    devnodes: tuple[str, ...] = ()
    capability: Capability | None = None
    capabilities: tuple[str, ...] = ()
    """The types of its capability and of those nested in it, in libvirt's words (`net`, `80203`; `scsi_host`,
    `fc_host`)."""
    bus: str = ""
    """What it sits on: `pci`, `usb`, `scsi`, …; empty: on none."""
    parent_name: str = ""
    """The parent's node-device name; `computer` where it has none."""
    virtual_functions: tuple[str, ...] = ()
    """Keys of those of a physical function."""
    group_members: tuple[str, ...] = ()
    """Keys of all devices in its IOMMU group."""
    members: tuple[str, ...] = ()
    """Of a bridge or bond: the interfaces that are in it, by name."""
    master: str = ""
    """The bridge or bond that an interface is in, by name."""
    lower: str = ""
    """The interface that a VLAN is on, by name."""
    used_by: tuple[UserView, ...] = ()
    """The domains that have it or claim it, at most `limits.USERS_SHOWN_MAX`; those that have it come first."""
    flaps: int = 0
    """How often it was seen to go away, or to lose its driver or link, and to come back at once."""
    binding: BindingView | None = None
    """How far it is handed over, or taken back; `None`: it is not, or nobody does so on its host."""
    drift: str = ""
    """How the three witnesses differ about it, if they do: one of `hostdevs.DRIFTS`."""


class LeaseView(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as people see it. The token is shown to its principal only."""

    lease: str
    token: int
    holder: str
    devices: tuple[DeviceId, ...]
    principal: str
    state: str
    ended: str
    granted_at_ns: int
    expires_at_ns: int
    """0: it does not end by time, for the domain that it is for has been seen."""
    ttl_ms: int
    reason: str = ""
    domain: str = ""
    """The uuid of the domain that it is for."""
    gone_ms: int = -1
    """So long after that domain was seen gone it ends; -1: its going does not end it."""
    gone_since_ns: int = 0
    """Since when that domain has been gone, as far as it counts; 0: it is there, or was not seen yet."""
    prepared: str = ""
    """`preparing`, `prepared` (all its devices are handed over) or `taking_back`; empty: nobody hands over on its
    hosts, or it is over."""
    evicts_at_ns: int = 0
    """When it ends by a taint, as `reason` says; 0: by none."""
    mode: str = ""
    """One of `scheduling.MODES`: whoever shares its devices, or only looks on, does not have them alone."""
    reserved_for: str = ""
    """The lease in whose place it will count once it is switched to; until then its token opens nothing."""


class UsedView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device that a domain uses. `said`, `use` as in `UserView`."""

    said: str
    use: str
    devices: tuple[DeviceId, ...] = ()
    """The known devices that this means; several where two of a kind are plugged in (at most
    `limits.DEVICES_MEANT_MAX`, of all that a domain uses `DEVICES_MEANT_PER_MESSAGE_MAX`), none where none is known."""
    lease: str = ""
    """The lease that holds it."""
    foreign: bool = False
    """The domain has it, and no lease that this domain may use holds it."""


class DomainView(msgspec.Struct, frozen=True, kw_only=True):
    """A domain as people see it. `state`: one of `events.domains.STATES`; `stale`: why that may be out of date."""

    domain: DomainId
    host: HostName
    hypervisor: str
    uuid: str
    name: str
    domid: int
    state: str
    kind: str
    memory_bytes: int
    max_memory_bytes: int
    vcpus: int
    agent: str
    stale: str
    uses: tuple[UsedView, ...]
    leases: tuple[str, ...]
    """Living leases that are for this domain."""
    since_position: int
    """Of the event since which it is in this incarnation."""
    since_ns: int


class HostdevView(msgspec.Struct, frozen=True, kw_only=True):
    """A device as libvirt's host device lists would show it.

    `state`: `active` (a living lease holds it, or a domain has it) or `inactive` (nobody has it, and it is bound to a
    stub).
    """

    device: DeviceId
    name: str
    """Its node-device name."""
    bus: str
    state: str
    lease: str = ""
    holder: str = ""
    hypervisor: str = ""
    """With `domain` and `domain_name`, who uses it: the domain that has it, or else the one that its lease is for."""
    domain: str = ""
    """A uuid."""
    domain_name: str = ""
    attached: bool = False
    """The hypervisor says that the domain has it."""
    driver: str = ""
    was_driver: str = ""
    """What it was bound to before it was handed over."""
    prepared: bool = False


class DriftView(msgspec.Struct, frozen=True, kw_only=True):
    """A device about which the three witnesses do not agree. `kind`: one of `DRIFTS`."""

    device: DeviceId
    kind: str
    since_position: int
    since_ns: int
    leased: Truth
    attached: Truth
    bound: Truth
    help: str
    """What to do."""


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host as people see it."""

    host: str
    mode: str
    stale: str
    devices: int
    cordoned: str = ""
    """Who said, and why, that nothing more of it is granted; empty: nobody."""
    taints: tuple[str, ...] = ()
    """Each `name` or `name=value`."""


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """What a host was told to do. `state`: `waiting`, `done`, `failed`, `timed_out`."""

    order: int
    host: str
    agent: str
    what: Order
    state: str
    asked_by: str
    request_id: str
    ordered_at_ns: int
    deadline_ns: int
    device: str = ""
    reason: str = ""


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the past: where, when, what, and the event itself."""

    position: int
    decided_at_ns: int
    type: str
    text: str
    event: msgspec.Raw


# --- the past -----------------------------------------------------------------------------------------------------


class OwnerView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who had a device, and from when to when.

    From its grant until `ended_*` the lease lives (`state` is `leased`); from there until `freed_*` nothing shows that
    the device is free, and nobody else gets it (`ending`); behind that (of a time, at its end) it is `freed`. 0 and
    empty: not yet, as far as was read. Where the lease was given to another (`transferred` at `ended_*`), that one's
    time has a row of its own.
    """

    device: DeviceId
    lease: str
    holder: str
    principal: str
    tenant: str
    state: str
    from_position: int
    from_ns: int
    ended: str = ""
    """`released`, `expired`, `outlived` (its domain was there, and has gone), `failed` (it could not be prepared) or
    `revoked`; or `transferred`."""
    ended_position: int = 0
    ended_ns: int = 0
    freed_position: int = 0
    freed_ns: int = 0
    evidence: str = ""
    forced: bool = False
    mode: str = ""
    """Empty: alone; `shared` with others; `admin`: it only looked on."""


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """What is different of one device between two places of the log.

    `what`: `owner`, `presence`, `flaps`, or the name of a field of its description, with dots for what is nested
    (`capability.link_state`); `before` and `after` as texts, empty for nothing (no owner, no device).
    """

    device: DeviceId
    what: str
    before: str
    after: str
    position: int
    """Of the last event that made it so."""
    at_ns: int


class CauseView(msgspec.Struct, frozen=True, kw_only=True):
    """One link of a chain of causes. `depth` 0 is what was asked about; each deeper one is why the one above is so."""

    depth: int
    position: int
    at_ns: int
    type: str
    text: str
    """A sentence."""
    because: str = ""
    """How it bears on the one above: `held by`, `granted by`, `freed by`, `asked by`, …"""


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a span of time a device was held, or a holder held devices.

    `leased_ns` while leases lived, `ending_ns` behind their ends; of a holder summed over its devices. `leases`: how
    many touched the span. What was shared, or only looked at, counts for nobody.
    """

    name: str
    """The device's id, or the holder."""
    from_ns: int
    to_ns: int
    leased_ns: int
    ending_ns: int
    leases: int
    devices: int
    """1 for a device; for a holder, how many different ones."""
