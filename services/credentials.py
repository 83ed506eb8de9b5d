"""Keys: who may come to the bus, and with what he shows that it is he.

A credential is a file of mode 0600 that holds one principal's secret key. The data directory holds only public keys, in
`principals.json`, from which the server's users are made.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import nkeys

from leasehold.events import identities, limits
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.identities import Principal
from leasehold.services import permissions
from leasehold.services.home import ConnectionInfo, write_private
from leasehold.services.permissions import User

_log: Final = logging.getLogger(__name__)

FOLDER: Final = "credentials"
REGISTER_FILE: Final = "principals.json"
CREDENTIAL_BYTES_MAX: Final = 64 * 1024
_SEED_BYTES: Final = 32
LOCK_WAIT_S: Final = 10.0
_POLL_S: Final = 0.02
OWN_ROLES: Final = ("keeper", "allocator", "query", "archive", "feed", "agent", "operator")
"""Whose credentials `up` makes and keeps in its data directory."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What one principal shows to the bus of one cluster. `seed` is secret; `ca_pem`: whose certificates to believe."""

    role: str
    name: str
    cluster: str
    urls: tuple[str, ...]
    seed: str
    ca_pem: str = ""

    @property
    def principal(self) -> str:
        """Who this is in subjects and in the log."""
        return permissions.principal_of(self.role, self.name)

    @property
    def user(self) -> User:
        """The public half."""
        return User(role=self.role, name=self.name, public_key=public_key_of(self.seed))


def new_seed() -> str:
    """The secret key of a user: 256 random bits in the server's own form."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)).decode()


def public_key_of(seed: str) -> str:
    """The public key that belongs to a seed.

    Raises:
        InvalidInputError: it is not the seed of a user.
    """
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        public = bytes(pair.public_key).decode()
    except (nkeys.NkeysError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError("not the seed of a user", field="seed") from error
    if not public.startswith("U"):
        raise InvalidInputError("not the seed of a user", field="seed")
    return public


def new_credential(role: str, name: str, cluster: str, *, urls: tuple[str, ...] = (), ca_pem: str = "") -> Credential:
    """A new key for a principal; nobody knows it yet.

    Raises:
        InvalidInputError: there is no such role, or the name cannot stand in a subject, or no tenant behind its `@`.
    """
    tenant = identities.tenant_of(Principal(permissions.principal_of(role, name)))
    if not tenant[0].isalnum():
        # `_` alone stands for none in the feed's subjects.
        raise InvalidInputError(f"{name!r}: a tenant, as {tenant!r}, begins with a letter or digit", field="name")
    return Credential(role=role, name=name, cluster=cluster, urls=urls, seed=new_seed(), ca_pem=ca_pem)


def write_credential(path: Path, credential: Credential) -> None:
    """Write a credential that only its owner can read.

    Raises:
        InvalidInputError: it cannot be written there.
    """
    try:
        write_private(path, msgspec.json.format(msgspec.json.encode(credential)) + b"\n")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written ({error.strerror})", field="credentials") from error


def read_credential(path: Path) -> Credential:
    """A credential from its file.

    Raises:
        UnavailableError: there is no such file, or it cannot be read.
        InvalidInputError: it holds no credential.
    """
    try:
        with path.open("rb") as file:
            body = file.read(CREDENTIAL_BYTES_MAX)
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be read ({error.strerror}): name a file made by `leasehold credentials add`"
        ) from error
    try:
        credential = msgspec.json.decode(body, type=Credential)
        permissions.principal_of(credential.role, credential.name)
        public_key_of(credential.seed)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidInputError) as error:
        raise InvalidInputError(f"{path} holds no credential ({error})", field="credentials") from error
    return credential


def path_of(info: ConnectionInfo, role: str) -> Path:
    """Where the credential of one of an `up`'s own roles lies."""
    return (Path(info.credentials) if info.credentials else Path(info.data) / FOLDER) / f"{role}.json"


def own_credential(info: ConnectionInfo, role: str) -> Credential:
    """The credential of one of an `up`'s own roles. Raises as `read_credential` does."""
    return read_credential(path_of(info, role))


# --- the register ---------------------------------------------------------------------------------------------------


class Register(msgspec.Struct, kw_only=True):
    """Who is let in to one cluster, in the order in which they came. It holds nothing secret."""

    cluster: str
    users: list[User] = []


def registered(data: Path) -> Register:
    """The register of a data directory.

    Raises:
        UnavailableError: there is none, or it cannot be read.
    """
    path = data / REGISTER_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Register)
    except (FileNotFoundError, NotADirectoryError):
        raise UnavailableError(f"{data} holds no {REGISTER_FILE}: nobody was registered there") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnavailableError(f"{path} cannot be read ({error})") from error


@contextlib.contextmanager
def changing(data: Path, cluster: str = "") -> Iterator[Register]:
    """The register, to be changed in place; written at the end, unless something was raised. One at a time.

    Args:
        cluster: Of a register that is begun now; of one that is there, it can only be the same.

    Raises:
        UnavailableError: there is none, and `cluster` is not given; or it cannot be read or written.
        InvalidInputError: it is another cluster's.
    """
    with locked(data):
        is_new = bool(cluster) and not (data / REGISTER_FILE).exists()
        register = Register(cluster=cluster) if is_new else registered(data)
        if cluster and register.cluster != cluster:
            raise InvalidInputError(f"{data} belongs to cluster {register.cluster!r}, not {cluster!r}", field="cluster")
        before = msgspec.json.encode(register)
        yield register
        if is_new or msgspec.json.encode(register) != before:
            _write_register(data / REGISTER_FILE, register)


def _write_register(path: Path, register: Register) -> None:
    try:
        write_private(path, msgspec.json.format(msgspec.json.encode(register)) + b"\n")
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written ({error.strerror})") from error


def _open_lock(data: Path) -> int:
    return os.open(data / f".{REGISTER_FILE}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """Nobody else changes the register of a data directory, or has a server take it up."""
    lock = _open_lock(data)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def unchanged(data: Path) -> AsyncIterator[Register]:
    """The register, and while a server starts with it, nobody changes it: whoever does so later finds the server, and
    has it take up the change. Somebody who keeps it locked for very long is not waited for.

    Raises:
        UnavailableError: there is none, or it cannot be read.
    """
    lock = _open_lock(data)
    try:
        give_up_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    _log.warning("%s is kept locked by somebody; a server starts with it as it is", REGISTER_FILE)
                    break
            await asyncio.sleep(_POLL_S)
        yield registered(data)
    finally:
        os.close(lock)


def let_in(register: Register, user: User) -> None:
    """Register somebody.

    Raises:
        InvalidInputError: there is one of that name already, or there are too many.
    """
    if any(each.principal == user.principal and each.account == user.account for each in register.users):
        raise InvalidInputError(f"{user.principal} is there already; remove it first for a new key", field="name")
    if len(register.users) >= limits.PRINCIPALS_MAX:
        raise InvalidInputError(f"{len(register.users)} principals are the most that are possible", field="name")
    register.users.append(msgspec.structs.replace(user, since_ns=time.time_ns()))


def ensure_own(data: Path, *, cluster: str, host: str, operator: str) -> Register:
    """Make the credentials that an `up` needs, unless they are there, and see that the register has them.

    A role whose name has changed (another host's name, another person) gets a new key; the old one is let in no more.

    Raises:
        InvalidInputError: it is another cluster's data directory, a name is taken, or a file holds no credential.
        UnavailableError: a file cannot be read or written.
    """
    names = {"agent": host, "operator": operator}
    (data / FOLDER).mkdir(mode=0o700, exist_ok=True)
    info = ConnectionInfo(url="", cluster=cluster, data=str(data))
    with changing(data, cluster) as register:
        for role in OWN_ROLES:
            _ensure(register, path_of(info, role), role, names.get(role, role), cluster)
        return register


def ensure_launcher(data: Path, cluster: str, server: str) -> Credential:
    """Make the credential with which the launcher of a server tells of its disk. Raises as `ensure_own` does."""
    (data / FOLDER).mkdir(mode=0o700, exist_ok=True)
    with changing(data, cluster) as register:
        path = path_of(ConnectionInfo(url="", cluster=cluster, data=str(data)), "launcher")
        return _ensure(register, path, "launcher", server, cluster)


def _ensure(register: Register, path: Path, role: str, name: str, cluster: str) -> Credential:
    found = credential = read_credential(path) if path.exists() else None
    if credential is None or (credential.role, credential.name, credential.cluster) != (role, name, cluster):
        credential = new_credential(role, name, cluster)
        write_credential(path, credential)
    _replace(register, found, credential)
    return credential


def _replace(register: Register, old: Credential | None, new: Credential) -> None:
    """Let `new` in, and no more what it takes the place of."""
    if any(each.public_key == new.user.public_key for each in register.users):
        return
    gone = {(new.role, new.name)} | ({(old.role, old.name)} if old is not None else set())
    register.users = [each for each in register.users if (each.role, each.name) not in gone]
    let_in(register, new.user)
