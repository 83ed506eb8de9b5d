"""The NATS subjects: who speaks stands in the subject, where the server can check it.

| subject | what |
|---|---|
| `leasehold.<cluster>.ledger` | the ledger; only allocators write |
| `leasehold.<cluster>.obs.<host>.<agent>` | observations of one agent of one host, for the allocator that decides |
| `leasehold.<cluster>.inbox.<host>.<agent>` | the same as they are kept in the inbox; only allocators write |
| `leasehold.<cluster>.req.<principal>.<verb>` | a request, or a question, of one principal |
| `leasehold.<cluster>.alive.<host>.<agent>` | an agent's heartbeat, answered with what the ledger has of it |
| `leasehold.<cluster>.room.<server>` | how much room is left on the disk of a server of the bus |
"""

import re
from typing import Final

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError

LEDGER_STREAM: Final = "LEDGER"
OBSERVED_STREAM: Final = "OBSERVED"

_CLUSTER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_REPORTING: Final = ("obs", "inbox", "alive")
_TOKEN: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


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


def _token(text: str, field: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise InvalidInputError(f"{text[:80]!r} cannot stand in a subject", field=field)
    return text
