"""The NATS subjects: who speaks stands in the subject, where the server can check it.

| subject | what |
|---|---|
| `leasehold.<cluster>.ledger` | the ledger; only allocators write |
| `leasehold.<cluster>.obs.<host>.<agent>` | observations of one agent of one host, for the allocator that decides |
| `leasehold.<cluster>.inbox.<host>.<agent>` | the same as they are kept in the inbox; only allocators write |
| `leasehold.<cluster>.req.<principal>.<verb>` | a request, or a question, of one principal |
| `leasehold.<cluster>.alive.<host>.<agent>` | an agent's heartbeat, answered with what the ledger has of it |
| `leasehold.<cluster>.room.<server>` | how much room is left on the disk of a server of the bus |
| `leasehold.<cluster>.evt.<host>.<kind>.<device>.<lease>.<tenant>` | one event of the feed |
| `leasehold.<cluster>.told.…` | the same on its way into the feed; only feeds write |

In the feed's subjects `_` stands where an event has none: no host, device, lease or tenant. `<kind>` is the event's
type without its version (`lease_granted`), `<device>` a key with `%2E` for each dot and `%25` for each `%`, `<lease>`
like `L4352`.
"""

import re
from typing import Final

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError
from leasehold.events.position import lease_id_text, parse_lease_id

LEDGER_STREAM: Final = "LEDGER"
OBSERVED_STREAM: Final = "OBSERVED"
EVENTS_STREAM: Final = "EVENTS"
NONE: Final = "_"
"""Stands in a subject of the feed for what an event does not have."""

_CLUSTER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_REPORTING: Final = ("obs", "inbox", "alive")
_TOKEN: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


class EventSubject(msgspec.Struct, frozen=True, kw_only=True):
    """What the subject of an event of the feed says; empty where it has none. `device` is a key."""

    host: str
    kind: str
    device: str
    lease: str
    tenant: str


class Subjects(msgspec.Struct, frozen=True):
    """The subjects of one cluster."""

    cluster: str

    def __post_init__(self) -> None:
        if not _CLUSTER.fullmatch(self.cluster):
            raise InvalidInputError(
                f"{self.cluster[:80]!r} is not a cluster's name: lower-case letters, digits, - and _", field="cluster"
            )

    @property
    def ledger(self) -> str:
        """Where records are appended."""
        return f"leasehold.{self.cluster}.ledger"

    @property
    def observed_all(self) -> str:
        """All observations, as agents report them."""
        return f"leasehold.{self.cluster}.obs.*.*"

    def observed(self, host: str, agent: str) -> str:
        """Where one agent reports."""
        return f"leasehold.{self.cluster}.obs.{identities.parse_host(host)}.{_token(agent, 'agent')}"

    def inbox(self, host: str, agent: str) -> str:
        """Where what one agent reports is kept, in OBSERVED."""
        return f"leasehold.{self.cluster}.inbox.{identities.parse_host(host)}.{_token(agent, 'agent')}"

    @property
    def inbox_all(self) -> str:
        """The whole inbox."""
        return f"leasehold.{self.cluster}.inbox.*.*"

    def request(self, principal: str, verb: str) -> str:
        """Where one principal asks."""
        return f"leasehold.{self.cluster}.req.{identities.parse_principal(principal)}.{_token(verb, 'verb')}"

    def requests_all(self, verb: str) -> str:
        """What a service listens to."""
        return f"leasehold.{self.cluster}.req.*.{_token(verb, 'verb')}"

    def alive(self, host: str, agent: str) -> str:
        """Where one agent says that it lives."""
        return f"leasehold.{self.cluster}.alive.{identities.parse_host(host)}.{_token(agent, 'agent')}"

    @property
    def alive_all(self) -> str:
        """All heartbeats."""
        return f"leasehold.{self.cluster}.alive.*.*"

    def room(self, server: str) -> str:
        """Where the launcher of one server says how much room its disk has."""
        return f"leasehold.{self.cluster}.room.{identities.parse_principal(server)}"

    @property
    def room_all(self) -> str:
        """The room of all servers."""
        return f"leasehold.{self.cluster}.room.*"

    def event(self, *, host: str, kind: str, device: str, lease: str, tenant: str) -> str:
        """Where one event of the feed is told; each part may be empty (there is none) or `*` (of whatever), all but
        `kind` for a message. `device` is a key (without its host), `lease` like `L4352`.
        """
        parts = (
            host if host in ("", "*") else identities.parse_host(host),
            kind if kind == "*" else _token(kind, "kind"),
            device if device in ("", "*") else _escaped(device),
            lease if lease in ("", "*") else lease_id_text(parse_lease_id(lease)),
            tenant if tenant in ("", "*") else identities.parse_principal(tenant),
        )
        return ".".join(("leasehold", self.cluster, "evt", *(part or NONE for part in parts)))

    @property
    def events_all(self) -> str:
        """The whole feed."""
        return f"leasehold.{self.cluster}.evt.>"

    @property
    def told_all(self) -> str:
        """Where feeds tell; what the stream has taken comes out at `events_all`."""
        return f"leasehold.{self.cluster}.told.>"

    def events_of(self, host: str) -> str:
        """All that is told of one host; `""`: what is told of no host, but of the whole cluster."""
        return f"leasehold.{self.cluster}.evt.{identities.parse_host(host) if host else NONE}.>"

    def parse_event(self, subject: str) -> "EventSubject":
        """The parts of a subject of the feed, empty where it has none.

        Raises:
            InvalidInputError: it is not one of this cluster's.
        """
        parts = subject.split(".")
        if len(parts) != 8 or parts[:3] != ["leasehold", self.cluster, "evt"]:
            raise InvalidInputError(f"{subject[:120]!r} is not leasehold.{self.cluster}.evt.*.*.*.*.*", field="subject")
        host, kind, device, lease, tenant = ("" if part == NONE else part for part in parts[3:])
        return EventSubject(host=host, kind=kind, device=_unescaped(device), lease=lease, tenant=tenant)

    def parse_request(self, subject: str) -> tuple[identities.Principal, str]:
        """Principal and verb of a request's subject.

        Raises:
            InvalidInputError: it is not one of this cluster's.
        """
        principal, verb = self._last_two(subject, "req")
        return identities.parse_principal(principal), _token(verb, "verb")

    def parse_reporter(self, subject: str) -> tuple[identities.HostName, str]:
        """Host and agent of an observation's or a heartbeat's subject.

        Raises:
            InvalidInputError: it is not one of this cluster's.
        """
        parts = subject.split(".", 3)
        kind = parts[2] if len(parts) == 4 and parts[2] in _REPORTING else "obs"
        host, agent = self._last_two(subject, kind)
        return identities.parse_host(host), _token(agent, "agent")

    def _last_two(self, subject: str, kind: str) -> tuple[str, str]:
        parts = subject.split(".")
        if len(parts) != 5 or parts[:3] != ["leasehold", self.cluster, kind]:
            raise InvalidInputError(f"{subject[:120]!r} is not leasehold.{self.cluster}.{kind}.*.*", field="subject")
        return parts[3], parts[4]


def device_word(key: str) -> str:
    """A device's key as one word of a subject, in which a dot would part two. It is not looked whether it is a key."""
    return key.replace("%", "%25").replace(".", "%2E")


def _escaped(key: str) -> str:
    return device_word(identities.parse_device_key(key))


def _unescaped(text: str) -> str:
    return text.replace("%2E", ".").replace("%25", "%")


def _token(text: str, field: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise InvalidInputError(f"{text[:80]!r} cannot stand in a subject", field=field)
    return text
