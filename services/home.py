"""Where things lie: the data directory of an `up`, how the others find it, and how they connect.

In the data directory, `connection.json` (mode 0600) says where the bus is; the keys to it lie beside it, in
`credentials/`. An `up` that runs leaves a pointer to its directory where only the same user can write, so that nobody
has to name it.
"""

import contextlib
import getpass
import logging
import os
import re
import secrets
import socket
import stat
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.identities import HostName, Principal

_log: Final = logging.getLogger(__name__)

CONNECTION_FILE: Final = "connection.json"
DEFAULT_CLUSTER: Final = "local"
_POINTER: Final = "up"
_NOT_IN_PRINCIPALS: Final = re.compile(r"[^A-Za-z0-9_@-]")


class ConnectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a bus. `url`: one address, or several with commas between them; `credentials`: the directory of the
    keys, if they are not in `data`; `data`: the directory that this was found in; `own_server`: the log is kept there,
    too.
    """

    url: str
    cluster: str
    credentials: str = ""
    data: str = ""
    own_server: bool = True

    @property
    def urls(self) -> list[str]:
        """The addresses, one by one."""
        return self.url.split(",")


def default_data_dir() -> Path:
    """Where `up` keeps everything unless told otherwise: `$XDG_STATE_HOME/leasehold` or `~/.local/state/leasehold`.

    Raises:
        InvalidInputError: the user has no home.
    """
    base = os.environ.get("XDG_STATE_HOME")
    if not base:
        try:
            base = str(Path.home() / ".local" / "state")
        except RuntimeError as error:
            raise InvalidInputError("this user has no home directory; name one with --data", field="data") from error
    return (Path(base) / "leasehold").absolute()


def chosen_data_dir(given: str | None) -> Path | None:
    """The data directory that was named (`--data`, else `LEASEHOLD_DATA`), if one was."""
    named = given or os.environ.get("LEASEHOLD_DATA")
    return Path(named).absolute() if named else None


def make_private_dir(path: Path) -> Path:
    """Make a directory that only its owner can enter.

    Raises:
        InvalidInputError: it cannot be made, or belongs to somebody else.
    """
    if not str(path).isprintable():
        raise InvalidInputError(f"{str(path)!r} has characters that cannot be shown", field="data")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be used ({error.strerror})", field="data") from error
    if status.st_uid != os.geteuid():
        raise InvalidInputError(f"{path} belongs to another user", field="data")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidInputError(f"others can write to {path}, where keys lie: chmod go-w", field="data")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InvalidInputError(f"{path} cannot be written to", field="data")
    return path


def write_private(path: Path, body: bytes) -> None:
    """Write a file of mode 0600, all or nothing."""
    # A name that nobody can foresee: in a directory like /tmp another user could lay a file or a link of his there.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_durably(path: Path, body: bytes) -> None:
    """As `write_private`; and that the file took another's place is on disk, too, when it returns."""
    write_private(path, body)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_connection(data: Path, info: ConnectionInfo) -> None:
    """Say how this bus is reached, for those who may read the data directory."""
    write_private(data / CONNECTION_FILE, msgspec.json.format(msgspec.json.encode(info)))


def read_connection(data: Path) -> ConnectionInfo:
    """How the bus of a data directory is reached.

    Raises:
        UnavailableError: nothing ever ran there, or it cannot be read.
    """
    path = data / CONNECTION_FILE
    try:
        info = msgspec.json.decode(path.read_bytes(), type=ConnectionInfo)
        for url in info.urls:
            urlparse(url).port  # noqa: B018 - raises where it makes no sense
    except (FileNotFoundError, NotADirectoryError):
        raise UnavailableError(f"{data} holds no {CONNECTION_FILE}: nothing was started there") from None
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise UnavailableError(f"{path} cannot be read ({error})") from error
    return msgspec.structs.replace(info, data=str(data))


def _runtime_dir() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir() and os.access(base, os.W_OK):
        return Path(base) / "leasehold"
    return Path("/tmp") / f"leasehold-{os.geteuid()}"  # noqa: S108 - made 0700 and its owner is checked


def leave_pointer(data: Path) -> None:
    """Let the same user's commands find this `up`; where that cannot be, they have to be told."""
    try:
        write_private(make_private_dir(_runtime_dir()) / _POINTER, f"{data}\n".encode())
    except (OSError, InvalidInputError) as error:
        # Somebody else may sit on a name in /tmp: no reason not to run.
        _log.warning("other commands must name --data %s, since no pointer to it could be left (%s)", data, error)


def remove_pointer(data: Path) -> None:
    """Take the pointer away, if it is still ours."""
    pointer = _runtime_dir() / _POINTER
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if pointer.read_text().strip() == str(data):
            pointer.unlink()


def find_data_dir(given: str | None) -> Path:
    """The data directory to use: the named one, else that of this user's running `up`, else the default one.

    Raises:
        UnavailableError: none of them is there.
    """
    chosen = chosen_data_dir(given)
    if chosen is not None:
        return chosen
    directory = _runtime_dir()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        state = directory.lstat()
        if state.st_uid == os.geteuid() and stat.S_ISDIR(state.st_mode) and not state.st_mode & 0o022:
            return Path((directory / _POINTER).read_text().strip())
    if (default_data_dir() / CONNECTION_FILE).exists():
        return default_data_dir()
    raise UnavailableError("no running `leasehold up` of this user was found; start one, or name its --data directory")


def own_principal() -> Principal:
    """The principal of the person at the keyboard: the user's name, with what cannot stand in a subject as `-`."""
    named = os.environ.get("LEASEHOLD_PRINCIPAL")
    if named:
        return identities.parse_principal(named)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.geteuid()}"
    return identities.parse_principal(_NOT_IN_PRINCIPALS.sub("-", user).lstrip("_@-")[:63] or "nobody")


def checked_principal(ours: str, named: str | None = None) -> Principal:
    """The credential's principal, if nobody names another one (`LEASEHOLD_PRINCIPAL`, where `named` is not given).

    Raises:
        InvalidInputError: the bus would refuse to be spoken to in that name.
    """
    expected = named or os.environ.get("LEASEHOLD_PRINCIPAL")
    if expected and identities.parse_principal(expected) != ours:
        raise InvalidInputError(
            f"the credential is {ours}'s, so nothing can be asked in the name of {expected}; "
            f"`leasehold credentials add` makes one for {expected}",
            field="principal",
        )
    return Principal(ours)


def own_host() -> HostName:
    """This machine's name as a host."""
    named = os.environ.get("LEASEHOLD_HOST")
    return identities.parse_host(named) if named else identities.host_from_hostname(socket.gethostname())
