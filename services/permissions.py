"""Who may do what on the bus, as `deploy/nats/permissions.toml` says, and as the NATS server is told.

The files of `deploy/nats` are shipped as `leasehold/nats`. `docs/permissions.md` shows the table to people.
"""

import functools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError
from leasehold.events.subjects import Subjects

ACCOUNTS: Final = ("ledger", "world")
AGENT_PREFIX: Final = "agent-"
"""How an agent's principal begins; the host's name follows. Nobody else's may begin so."""
_PUBLIC_KEY: Final = re.compile(r"U[A-Z2-7]{55}")


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the table. `sets` are shared lists of subjects to publish to; see the file for the placeholders."""

    account: str
    what: str
    sets: tuple[str, ...]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sets: dict[str, tuple[str, ...]]
    roles: dict[str, Role]


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody with a key. `name`: the host's for an agent; `since_ns`: when he was let in."""

    role: str
    name: str
    public_key: str
    since_ns: int = 0

    @property
    def principal(self) -> str:
        """Who this is in subjects and in the log."""
        return principal_of(self.role, self.name)

    @property
    def account(self) -> str:
        """In which account of the server."""
        return role_of(self.role).account


def folder() -> Path:
    """Where the server's configuration is shipped."""
    beside = Path(__file__).parents[1] / "nats"
    # Where links were unpacked as text files, or this file was reached through one, it lies at the tree's top.
    return beside if (beside / "server.conf").is_file() else Path(__file__).resolve().parents[1] / "deploy" / "nats"


@functools.cache
def _table() -> _Table:
    return msgspec.convert(tomllib.loads((folder() / "permissions.toml").read_text(encoding="utf-8")), _Table)


def roles() -> Mapping[str, Role]:
    """All roles, by name, each with its sets joined to what it may publish."""
    table = _table()
    return {
        name: msgspec.structs.replace(
            role, publish=role.publish + tuple(subject for each in role.sets for subject in table.sets[each])
        )
        for name, role in table.roles.items()
    }


def role_of(name: str) -> Role:
    """One role.

    Raises:
        InvalidInputError: there is none of that name.
    """
    found = roles().get(name)
    if found is None:
        raise InvalidInputError(f"{name[:80]!r} is none of {', '.join(roles())}", field="role")
    return found


def principal_of(role: str, name: str) -> str:
    """Who speaks: the name itself, or `agent-` and the host's name.

    Raises:
        InvalidInputError: the name cannot stand in a subject, or is an agent's without being one.
    """
    role_of(role)
    if role == "agent":
        return identities.parse_principal(f"{AGENT_PREFIX}{identities.parse_host(name)}")
    principal = identities.parse_principal(name)
    if principal.startswith(AGENT_PREFIX):
        raise InvalidInputError(f"{name!r} is how the agent of a host is called; choose another", field="name")
    return principal


def inbox_of(principal: str) -> str:
    """How the subjects begin that only this principal may listen to."""
    return f"_INBOX_{principal}"


def _filled(subjects: Iterable[str], user: User, cluster: str) -> list[str]:
    names = {"cluster": cluster, "principal": user.principal, "host": user.name}
    return [subject.format_map(names) for subject in subjects]


def publishes(user: User, cluster: str) -> list[str]:
    """Where one user may publish to."""
    return _filled(role_of(user.role).publish, user, cluster)


def permissions_of(user: User, cluster: str) -> dict[str, object]:
    """What the server is told about one user, in its own words."""
    role = role_of(user.role)
    found: dict[str, object] = {
        "publish": {"allow": publishes(user, cluster)},
        "subscribe": {"allow": _filled(role.subscribe, user, cluster)},
    }
    if role.answers:
        found["allow_responses"] = {"max": 1, "expires": "5s"}
    return found


def render(users: Iterable[User], cluster: str) -> dict[str, str]:
    """The text of `users-<account>.conf` for each account.

    Raises:
        InvalidInputError: a role, name, key or cluster cannot stand there.
    """
    Subjects(cluster)
    lines: dict[str, list[str]] = {account: [] for account in ACCOUNTS}
    for user in users:
        if not _PUBLIC_KEY.fullmatch(user.public_key):
            raise InvalidInputError(f"{user.public_key[:80]!r} is not the public key of a user", field="public_key")
        told = {"nkey": user.public_key, "permissions": permissions_of(user, cluster)}
        # The server's own form of configuration is a superset of JSON.
        lines[user.account].append(f"  # {user.role} {user.name}\n  {json.dumps(told)}\n")
    return {account: f"users: [\n{''.join(texts)}]\n" for account, texts in lines.items()}
