"""What is shown of devices, leases, hosts and the past: the rows of answers to questions."""

import msgspec

from leasehold.events.identities import DeviceId


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """A device as people see it.

    `state`: `free`, `leased`, `ending` (its lease has ended, nothing shows yet that it is free), `lost` (leased, but
    missing or replaced), `foreign` (used without a lease), `protected`, `missing`, `unleasable`, `stale`, `blocked` (by
    what it cannot be owned apart from); for a functional child, the state of its physical parent. `reason` says why.
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
    ttl_ms: int
    reason: str = ""


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host as people see it."""

    host: str
    mode: str
    stale: str
    devices: int


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the past: where, when, what, and the event itself."""

    position: int
    decided_at_ns: int
    type: str
    text: str
    event: msgspec.Raw
