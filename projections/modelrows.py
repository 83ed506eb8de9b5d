"""The rows of the read models: what they keep of the past, in tables of a file or elsewhere."""

from collections.abc import Iterable
from typing import Final

import msgspec

from leasehold.events.identities import DeviceId, DomainId, Holder, HostName, Principal, RequestId
from leasehold.events.record import GENESIS_PREV
from leasehold.projections.rows import Marks

MODELS_VERSION: Final = 5
"""Raised when the same log would make other rows, also since `nodedev` calls a bus or capability otherwise; models of
another version are built anew.
"""


class ModelsHead(msgspec.Struct, frozen=True, gc=False):
    """How far the rows go."""

    ledger_id: str = ""
    era: int = 0
    sequence: int = 0
    """Of the last record; 0: none."""
    chain: str = GENESIS_PREV
    decided_at_ns: int = 0


class DeviceRow(msgspec.Struct, gc=False):
    """A device, and where its rows are to be looked for."""

    device: DeviceId
    host: HostName
    first_position: int
    first_ns: int
    last_position: int
    """Of the last event that changed its description, presence or owner."""
    described: int
    """Position of its last description."""
    lease: int = 0
    """The lease that holds it, living or ended; 0: none."""
    held: int = 0
    """The first lease that ever held it."""
    missing: bool = False
    flaps: int = 0
    """This and the next as in its last version."""
    handed: bytes = b""


class VersionRow(msgspec.Struct, frozen=True, gc=False):
    """What a device was like from a position on, until its next row."""

    device: DeviceId
    from_position: int
    at_ns: int
    missing: bool
    described: int
    """The position whose row has its description: this one, or for a missing device an earlier one."""
    flaps: int
    """How often it was seen to go away for a moment, up to here."""
    handed: bytes = b""
    """A `Handed`, with what operators said of it; empty where nothing is to be said of that."""
    bus: str = ""
    """This and the next three as `nodedev` has them; of a description that is in an earlier row they stand there."""
    driver: str = ""
    parent: str = ""
    """A device id; none for the computer itself."""
    types: str = ""
    """Of its capabilities, each between commas."""
    body: bytes | None = None
    """A `DeviceDescription`."""


class OwnershipRow(msgspec.Struct, gc=False):
    """A device under a lease: from the grant to the evidence that it is free. Of one device no two of them overlap."""

    device: DeviceId
    from_position: int
    """The lease."""
    from_ns: int
    ended_position: int = 0
    ended_ns: int = 0
    freed_position: int = 0
    freed_ns: int = 0
    displaced_position: int = 0
    """Where another thing came into its place, if one did."""
    evidence: str = ""


class LeaseRow(msgspec.Struct, gc=False):
    """A lease."""

    lease: int
    granted_at_ns: int
    principal: Principal
    tenant: Principal
    holder: Holder
    request_id: RequestId
    devices: bytes
    """A list of device ids."""
    forced: bool
    ttl_ms: int
    expires_at_ns: int
    renewals: int = 0
    renewed_position: int = 0
    ended: str = ""
    ended_position: int = 0
    ended_ns: int = 0
    domain: str = ""
    """The uuid of the domain that it is for."""
    bond: bytes = b""
    """A `DomainBond`; empty where there is none."""
    end_reason: str = ""
    """Why it failed, or was revoked."""
    mode: str = ""
    """One of `scheduling.MODES`; only what is leased alone is owned."""
    tolerates: bytes = b""
    """A list of taints; empty where there are none."""
    queued: int = 0
    """The place in the queue at which it waited; 0: it did not."""
    reserved_for: int = 0
    """The lease that it is to stand in for, until `switched_position`."""
    switched_position: int = 0


class TenureRow(msgspec.Struct, gc=False, kw_only=True):
    """Whose a lease is from a position on: from its grant, and from each transfer. One follows the other."""

    lease: int
    from_position: int
    from_ns: int
    until_position: int = 0
    """Where it was given to the next one, if it was; behind the last one it ends with the lease."""
    until_ns: int = 0
    principal: Principal
    tenant: Principal
    holder: Holder


class SharingRow(msgspec.Struct, gc=False):
    """A device under a lease that shares it with others, or only looks at it: from its grant to its end."""

    device: DeviceId
    from_position: int
    """The lease."""
    from_ns: int
    mode: str
    """`shared` or `admin`."""
    ended_position: int = 0
    ended_ns: int = 0


class QueuedRow(msgspec.Struct, gc=False):
    """A request that waited."""

    queued: int
    """Its position, which is its place in the queue."""
    at_ns: int
    principal: Principal
    tenant: Principal
    holder: Holder
    request_id: RequestId
    asked: bytes
    """A `LeaseRequest`."""
    rank_ns: int
    until_ns: int
    why: bytes
    """A `Refusal`: why not at once."""
    outcome: str = ""
    """`granted`, `withdrawn` or `in_vain`; empty: it waits."""
    ended_position: int = 0
    ended_ns: int = 0


class KeepRow(msgspec.Struct, gc=False):
    """A device that was kept for a waiting request. Of one device no two of them overlap."""

    device: DeviceId
    from_position: int
    queued: int
    until_position: int = 0


class DomainRow(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a domain was like from a position on, until its next row."""

    domain: DomainId
    from_position: int
    at_ns: int
    host: HostName
    agent: str
    gone: bool = False
    """It is not known from here on; the rest is as it was last."""
    there: bool
    """Whether it may have devices, so that leases for it do not end."""
    name: str
    state: str
    since_position: int
    """Since when it is in its incarnation, or known."""
    since_ns: int
    body: bytes
    """A `DomainDescription`."""
    uses: bytes
    """A list of `Use`, in order."""


class DomainIdRow(msgspec.Struct, frozen=True, gc=False):
    """A domain that was ever known."""

    domain: DomainId
    host: HostName


class DomainNameRow(msgspec.Struct, frozen=True, gc=False):
    """What a domain was called at some time: name, key or uuid."""

    text: str
    domain: DomainId


class HostRow(msgspec.Struct, frozen=True, gc=False):
    """What a host was like from a position on, until its next row."""

    host: HostName
    from_position: int
    at_ns: int
    mode: str
    sources: bytes
    """An object: for each agent a `Doubt`."""
    dead: str = ""
    """Who has said that it is off, and why."""
    marks: bytes = b""
    """A `Marks`: what operators said of all of it; empty where they said nothing."""


class Doubt(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Why an agent could not be relied on, as `SourceState` has both; empty: it could."""

    stale: str = ""
    blind: str = ""
    incomplete: bool = False
    """It had yet to report all."""


_sources: Final = msgspec.json.Decoder(dict[str, Doubt])


def sources_in(body: bytes) -> dict[str, Doubt]:
    """The agents of a host, by name, as its row has them."""
    return _sources.decode(body)


_marks: Final = msgspec.json.Decoder(Marks)


def marks_in(body: bytes) -> Marks | None:
    """What operators said of a host, as its row has it."""
    return _marks.decode(body) if body else None


class RequestRow(msgspec.Struct, frozen=True, gc=False):
    """Where a request was decided; more than once only where one id was used for several."""

    request_id: RequestId
    principal: Principal
    position: int


class RefusalRow(msgspec.Struct, gc=False):
    """A refusal, and how often it was given again."""

    position: int
    at_ns: int
    principal: Principal
    request_id: RequestId
    verb: str
    holder: str
    code: str
    message: str
    about: bytes
    """A list of devices or leases."""


class OrderRow(msgspec.Struct, gc=False):
    """An order to a host."""

    ordered: int
    """Its position."""
    host: HostName
    at_ns: int
    agent: str
    principal: Principal
    request_id: RequestId
    what: bytes
    """An `Order`."""
    deadline_ns: int
    ended_position: int = 0
    late_position: int = 0
    """Where it was carried out, if its time had ended it before."""
    device: str = ""
    """What was made or taken away."""


class NameRow(msgspec.Struct, frozen=True, gc=False):
    """What a device was called at some time: key, node-device name or sysfs path."""

    text: str
    device: DeviceId


Row = (
    DeviceRow
    | VersionRow
    | OwnershipRow
    | LeaseRow
    | HostRow
    | RequestRow
    | RefusalRow
    | OrderRow
    | NameRow
    | DomainRow
    | DomainIdRow
    | DomainNameRow
    | TenureRow
    | SharingRow
    | QueuedRow
    | KeepRow
)


class Changes:
    """Rows to be put, and refusals to be counted: whatever a number of records came to."""

    def __init__(self) -> None:
        self.devices: dict[DeviceId, DeviceRow] = {}
        self.versions: list[VersionRow] = []
        self.ownerships: dict[tuple[DeviceId, int], OwnershipRow] = {}
        self.leases: dict[int, LeaseRow] = {}
        self.hosts: list[HostRow] = []
        self.requests: list[RequestRow] = []
        self.refusals: list[RefusalRow] = []
        self.orders: dict[int, OrderRow] = {}
        self.names: dict[NameRow, None] = {}
        self.domains: list[DomainRow] = []
        self.domain_ids: dict[DomainIdRow, None] = {}
        self.domain_names: dict[DomainNameRow, None] = {}
        self.tenures: dict[tuple[int, int], TenureRow] = {}
        self.sharings: dict[tuple[DeviceId, int], SharingRow] = {}
        self.queue: dict[int, QueuedRow] = {}
        self.keeps: dict[tuple[DeviceId, int], KeepRow] = {}
        self.repeated: dict[int, int] = {}
        """How often the refusal at a position has been given again."""
        self.late: dict[int, tuple[int, str]] = {}
        """Where an order was carried out that time had ended before, and the device."""

    def rows(self) -> list[Iterable[Row]]:
        """All rows, one iterable for each kind; what is still open may change behind this."""
        return [
            self.devices.values(), self.versions, self.ownerships.values(), self.leases.values(), self.hosts,
            self.requests, self.refusals, self.orders.values(), self.names, self.domains, self.domain_ids,
            self.domain_names, self.tenures.values(), self.sharings.values(), self.queue.values(), self.keeps.values(),
        ]  # fmt: skip


class Resumed(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a fold goes on from."""

    head: ModelsHead
    devices: list[DeviceRow]
    """All of them."""
    leases: list[LeaseRow]
    """The open ones: not all of their devices are free. So the next three, and what of them is open."""
    ownerships: list[OwnershipRow]
    tenures: list[TenureRow]
    sharings: list[SharingRow]
    orders: list[OrderRow]
    """The open ones."""
    queue: list[QueuedRow]
    """What waits, and what is kept for it."""
    keeps: list[KeepRow]
    hosts: list[HostRow]
    """The last row of each."""
    domains: list[DomainRow]
    """The last row of each that is there."""
