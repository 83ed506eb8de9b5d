"""Questions that change nothing, and their answers. They are asked like requests, by the verb in the subject.

Every question may say `min_position`, the highest position that the asker has seen: a reader that is behind waits for
it (at most a second) or answers `unavailable`. Every answer says `as_of`, how far the reader had read.
"""

from typing import Final

import msgspec

from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import SeenDomain
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import HostName
from leasehold.events.refusals import Blocker
from leasehold.events.schedule_views import Broken, ClassView, Explanation, QueuedView, QuotaView, TaintView
from leasehold.events.views import (
    CauseView,
    ChangeView,
    DeviceView,
    DomainView,
    DriftView,
    HistoryRow,
    HostdevView,
    HostView,
    LeaseView,
    OrderView,
    OwnerView,
    UsageView,
)


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all questions have."""

    min_position: int = 0


class ListDevices(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices in the order of their ids, from behind `after`, at most `limit` (1 to 1,000).

    All of them, or (`present`) those that are there; or those that are there and of all that is said: with the
    capability `cap` (`net`, or one of several: `fc_host,vports`), on the bus `bus`, right below `parent` (any name of
    it; `computer` for what is below none), bound to `driver` (`none`: to no driver).
    `count_only`: the number of those that are there, and not they.
    """

    host: str = ""
    present: bool = False
    cap: str = ""
    bus: str = ""
    parent: str = ""
    driver: str = ""
    count_only: bool = False
    after: str = ""
    limit: int = 1_000


class ListLeases(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leases in the order of their grants, from behind lease `after`; ended ones only if asked for."""

    holder: str = ""
    ended: bool = False
    after: int = 0
    limit: int = 1_000


class ListHosts(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All hosts, in the order of their names, from behind `after`."""

    after: str = ""
    limit: int = 1_000


class Show(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device (by any of its names) or one lease (`L4352`)."""

    name: str
    host: str = ""


class History(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happened to a device, a domain, a lease, a holder, a host or a principal, oldest first, from behind `after`.

    `kind` says which of these `name` is; empty: found out in this order.
    """

    name: str
    kind: str = ""
    host: str = ""
    after: int = 0
    limit: int = 1_000


class Explain(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why: of a device, what would stand in the way of a lease now; of a request id, how it was decided; of a place in
    the queue (`Q4352`) or a lease, which devices were looked at, and why these.
    """

    name: str
    host: str = ""
    holder: str = ""
    """For whom a lease of the device is considered."""


class Sync(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the log knows to be on a host, and what `agent` is still to do there: asked by the host's agents, in pages
    from behind key `after`.
    """

    host: str
    agent: str = "watcher"
    after: str = ""
    limit: int = 100


class ListOrders(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What hosts were told to do, oldest first, from behind order `after`; what is over only if asked for."""

    host: str = ""
    ended: bool = False
    after: int = 0
    limit: int = 1_000


class ListDomains(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Domains in the order of their ids, from behind `after`. `domain`: only those that are so called: by name, uuid,
    key or id; `state`: only those in this state.
    """

    host: str = ""
    domain: str = ""
    state: str = ""
    after: str = ""
    limit: int = 1_000


class ListHostdevs(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that are in use, or held ready to be, in the order of their ids, from behind `after`.

    `bus`: one of `hostdevs.BUSES`; `state`: `active` or `inactive`; `domain`: only those that this domain uses, by
    name, uuid, key or id (a uuid that no domain has is taken for one that leases are for).
    """

    host: str = ""
    bus: str = ""
    state: str = ""
    domain: str = ""
    after: str = ""
    limit: int = 1_000


class ListDrifts(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices about which ledger, hypervisors and host do not agree, in the order of their ids, from behind `after`."""

    host: str = ""
    device: str = ""
    """Only this one, by any name."""
    after: str = ""
    limit: int = 1_000


class ListClasses(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Device classes with how their devices stand, in the order of their names, from behind `after`. `name`: only this.

    `free`: with the free ones, as `devices`, of the one class that is named.
    """

    name: str = ""
    free: bool = False
    after: str = ""
    limit: int = 100


class ListQuotas(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quotas in the order of tenant and class, from behind `after` (`tenant/class`)."""

    tenant: str = ""
    after: str = ""
    limit: int = 1_000


class ListQueue(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that wait, first the one that comes first, from behind `after` (`Q4352`)."""

    tenant: str = ""
    device_class: str = ""
    after: str = ""
    limit: int = 1_000


class ListTaints(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is cordoned or tainted, in the order of hosts and devices, from behind `after` (`target kind name`)."""

    host: str = ""
    after: str = ""
    limit: int = 1_000


class Consider(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request would be decided now, with nothing done: `answer`, and what would end by it as `broken`.

    `request`: its body, as it would be sent; ids and times in it need not be new.
    """

    verb: str
    request: msgspec.Raw


class Status(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it stands."""


class Moment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place in the log: behind the event at `position`, or at the time `ns` (since 1970, UTC, of the ledger's clock):
    behind the last record decided then or before. Neither: as far as it has been read; as the beginning of a time, from
    the beginning of the log. Both are too much.
    """

    position: int = 0
    ns: int = 0


class Owners(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who had which device then, in the order of device ids, from behind `after`; what had no owner is left out.

    `device`: any name that this device had then, or its id.
    """

    at: Moment = Moment()
    host: str = ""
    device: str = ""
    after: str = ""
    limit: int = 1_000


class DevicesAt(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices as they were then, by their ids, from behind `after`; with the hosts that they are of.

    `device`: only this one, by any name that it had then. The others as in `list_devices`.
    """

    at: Moment = Moment()
    host: str = ""
    device: str = ""
    present: bool = False
    cap: str = ""
    bus: str = ""
    parent: str = ""
    driver: str = ""
    count_only: bool = False
    after: str = ""
    limit: int = 1_000


class DomainsAt(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The domains as they were then, as `list_domains` gives them."""

    at: Moment = Moment()
    host: str = ""
    domain: str = ""
    state: str = ""
    after: str = ""
    limit: int = 1_000


class Diff(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was different at `to` from `since`, in the order of device ids, from behind device `after`."""

    since: Moment
    to: Moment = Moment()
    host: str = ""
    after: str = ""
    limit: int = 1_000


class Who(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who had a device between two moments, oldest first, from behind the grant at position `after`.

    `device` is read as a name that it had at the end of that time, or else at its beginning.
    """

    device: str
    host: str = ""
    since: Moment = Moment()
    to: Moment = Moment()
    after: int = 0
    limit: int = 1_000


class Blame(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chain of causes of how a request was decided. `principal`: whose request; empty: the asker's own, else the
    only one of that id.
    """

    request_id: str
    principal: str = ""
    depth: int = 8


class Utilisation(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much devices were held (`by` `device`), or holders held devices (`by` `holder`), between two moments.

    A time is cut where it is said to end, also within a record's. `every_ns` (a second or more): in spans of so much
    time each, at most 1,000 of them, else in one; `after`: behind this name (all spans of a name stand together and are
    not parted by a page). What was not held at all between the two is left out.
    """

    by: str = "device"
    since: Moment
    to: Moment = Moment()
    every_ns: int = 0
    host: str = ""
    device: str = ""
    holder: str = ""
    after: str = ""
    limit: int = 1_000


class Archived(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it stands with an archive: answered with `archive`."""


PAST_QUESTIONS: Final[dict[str, type[Question]]] = {
    "owners": Owners,
    "devices_at": DevicesAt,
    "domains_at": DomainsAt,
    "diff": Diff,
    "who": Who,
    "blame": Blame,
    "utilisation": Utilisation,
    "archived": Archived,
}
"""By the verb in the subject: answered by archives."""
QUESTIONS: Final[dict[str, type[Question]]] = {
    "list_devices": ListDevices,
    "list_leases": ListLeases,
    "list_hosts": ListHosts,
    "list_orders": ListOrders,
    "list_domains": ListDomains,
    "list_hostdevs": ListHostdevs,
    "list_drifts": ListDrifts,
    "list_classes": ListClasses,
    "list_quotas": ListQuotas,
    "list_queue": ListQueue,
    "list_taints": ListTaints,
    "consider": Consider,
    "show": Show,
    "history": History,
    "explain": Explain,
    "sync": Sync,
    "status": Status,
}
"""By the verb in the subject."""


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a question.

    `outcome`: `ok`; `not_found` (with `message`); `invalid` (with `field`, `message`); `unavailable` (with `message`).
    `more`: ask again with `after` set to the last row's id (device, domain, lease, host, key, position).
    """

    outcome: str
    as_of: int = 0
    era: int = 0
    """Of the log that `as_of` is a place in: behind a restore the same place may be another's."""
    devices: list[DeviceView] = []
    leases: list[LeaseView] = []
    hosts: list[HostView] = []
    orders: list[OrderView] = []
    domains: list[DomainView] = []
    hostdevs: list[HostdevView] = []
    drifts: list[DriftView] = []
    classes: list[ClassView] = []
    quotas: list[QuotaView] = []
    queue: list[QueuedView] = []
    taints: list[TaintView] = []
    broken: list[Broken] = []
    """The living leases that a considered request would end, or give notice of their end, exactly these."""
    explanation: Explanation | None = None
    count: int = 0
    """How many there are, where only that was asked."""
    history: list[HistoryRow] = []
    subject: str = ""
    """What a history is of, like `device h1/pci/0000:03:00.0`."""
    descriptions: list[DeviceDescription] = []
    """Of `sync`: the devices that are known to be there."""
    seen_domains: list[SeenDomain] = []
    """Of `sync`: the domains that the agent has told of."""
    holds: list[Hold] = []
    """Of `sync` by a binder: the devices of its host that are leased, being given back or in quarantine, and those
    whose floors are not the lowest."""
    source_run: int = 0
    source_counter: int = 0
    blockers: list[Blocker] = []
    answer: Answer | None = None
    status: "StatusView | None" = None
    owners: list[OwnerView] = []
    changes: list[ChangeView] = []
    causes: list[CauseView] = []
    usage: list[UsageView] = []
    at_position: int = 0
    """Which place in the log a question of the past came to: behind this position. Of two moments, the later one."""
    at_ns: int = 0
    """When the record that holds it was decided; of utilisation, where the time ends, and begins (`since_ns`)."""
    since_position: int = 0
    """Of two moments, the earlier one."""
    since_ns: int = 0
    archive: "ArchiveView | None" = None
    more: bool = False
    field: str = ""
    message: str = ""


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with a ledger."""

    cluster: str
    ledger_id: str
    era: int
    sequence: int
    chain: str
    decided_at_ns: int
    decider: str
    grace_until_ns: int
    observed_through: int
    hosts: int
    devices: int
    living_leases: int
    ending_devices: int
    hosts_stale: list[HostName]


class ArchiveView(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands with an archive."""

    ledger_id: str
    era: int
    sequence: int
    """Of the last record that it keeps."""
    chain: str
    decided_at_ns: int
    segments: int
    bytes: int
    modelled: int
    """Up to which record its read models go."""
    trouble: str
    """Why it does not go on at the moment; empty: it does."""
