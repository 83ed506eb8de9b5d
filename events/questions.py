"""Questions that change nothing, and their answers. They are asked like requests, by the verb in the subject.

Every question may say `min_position`, the highest position that the asker has seen: a reader that is behind waits for
it (at most a second) or answers `unavailable`. Every answer says `as_of`, how far the reader had read.
"""

from typing import Final

import msgspec

from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import HostName
from leasehold.events.refusals import Blocker
from leasehold.events.views import DeviceView, HistoryRow, HostView, LeaseView


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all questions have."""

    min_position: int = 0


class ListDevices(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices in the order of their ids, from behind `after`, at most `limit` (1 to 1,000)."""

    host: str = ""
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
    """What happened to a device, a lease, a holder, a host or a principal, oldest first, from behind `after`.

    `kind` says which of these `name` is; empty: found out in this order.
    """

    name: str
    kind: str = ""
    host: str = ""
    after: int = 0
    limit: int = 1_000


class Explain(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why: of a device, what would stand in the way of a lease now; of a request id, how it was decided."""

    name: str
    host: str = ""
    holder: str = ""
    """For whom a lease of the device is considered."""


class Sync(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the log knows to be on a host: asked by the host's agents, in pages from behind key `after`."""

    host: str
    agent: str = "watcher"
    after: str = ""
    limit: int = 100


class Status(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it stands."""


QUESTIONS: Final[dict[str, type[Question]]] = {
    "list_devices": ListDevices,
    "list_leases": ListLeases,
    "list_hosts": ListHosts,
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
    `more`: ask again with `after` set to the last row's id (device, lease, host, key, position).
    """

    outcome: str
    as_of: int = 0
    devices: list[DeviceView] = []
    leases: list[LeaseView] = []
    hosts: list[HostView] = []
    history: list[HistoryRow] = []
    subject: str = ""
    """What a history is of, like `device h1/pci/0000:03:00.0`."""
    descriptions: list[DeviceDescription] = []
    source_run: int = 0
    source_counter: int = 0
    blockers: list[Blocker] = []
    answer: Answer | None = None
    status: "StatusView | None" = None
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
