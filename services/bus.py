"""Our own bus: the NATS server of a data directory, with those whom it lets in, and what it refuses them."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events.errors import LeaseholdError, UnavailableError
from leasehold.services import credentials, permissions
from leasehold.services.complaints import Complaints, printable
from leasehold.services.home import write_private
from leasehold.services.natsserver import CONFIG_FOLDER, LOG_NAME, server_pid

_log: Final = logging.getLogger(__name__)

REFUSED_FILE: Final = "refused.json"
LOOK_S: Final = 1.0
LOOK_BYTES_MAX: Final = 1024 * 1024
RELOAD_WAIT_S: Final = 5.0
_POLL_S: Final = 0.02
NOBODY: Final = "nobody"
"""Who shows no key that is registered."""
_VIOLATION: Final = re.compile(
    # What a client chose itself (its name, the subject) the server quotes, so that it cannot pass for this.
    rb' - "(?:ledger|world)/nkey:(?P<key>U[A-Z2-7]{55})" - (?P<kind>Publish|Subscription) Violation - '
    rb'(?:Subject|Reply) "(?P<subject>(?:[^"\\]|\\.)*)'
)
# From the beginning of a line: a client may bear these very words as its name.
_RELOADED: Final = re.compile(rb"^\[\d+\] [\d/]+ [\d:.]+ \[INF\] Reloaded server configuration", re.MULTILINE)
_FAILED: Final = re.compile(rb"^\[\d+\] [\d/]+ [\d:.]+ \[ERR\] Failed to reload(?P<why>.*)\n", re.MULTILINE)
_NOT_LET_IN: Final = re.compile(rb"authentication error", re.IGNORECASE)


class Refused(msgspec.Struct, kw_only=True):
    """How often the server has refused one principal something, and what it was the last time."""

    count: int = 0
    last: str = ""
    at_ns: int = 0


def refused_in(data: Path) -> dict[str, Refused]:
    """What was counted, by principal; nothing if it cannot be read."""
    try:
        return msgspec.json.decode((data / REFUSED_FILE).read_bytes(), type=dict[str, Refused])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


class _LogReader:
    """What a server writes into its log from now on; it begins another one when that is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open(at_end=True)

    def _open(self, *, at_end: bool) -> int | None:
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if at_end:
            os.lseek(file, 0, os.SEEK_END)
        return file

    def read(self) -> bytes:
        """The next piece, of a bounded length; empty if there is nothing new."""
        if self._file is None:
            self._file = self._open(at_end=False)
            return os.read(self._file, LOOK_BYTES_MAX) if self._file is not None else b""
        new = os.read(self._file, LOOK_BYTES_MAX)
        if not new:
            with contextlib.suppress(FileNotFoundError):
                now, open_one = self._path.stat(), os.fstat(self._file)
                if (now.st_dev, now.st_ino) != (open_one.st_dev, open_one.st_ino):
                    # The log was full, and another took its place; the old one has been read to its end.
                    self.close()
                    return self.read()
        return new

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Refusals:
    """Reads in the server's log whom it has refused what; tells it by name, and counts it."""

    def __init__(self, data: Path) -> None:
        """Begins at the end of the log as it is now."""
        self.counts = refused_in(data)
        self._data = data
        self._log = _LogReader(data / LOG_NAME)
        self._rest = b""
        self._complaints = Complaints(_log, "refusals by the bus")

    async def run(self) -> None:
        """Look once a second until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look()
        finally:
            self.look()
            self._log.close()

    def look(self) -> None:
        """Take in what was written since the last time: so much at most, and of a flood the rest later."""
        new = self._log.read()
        if not new:
            return
        lines = (self._rest + new).split(b"\n")
        self._rest = lines.pop()[-1_024:]
        found = [line for line in lines if b"iolation" in line or b"uthentication" in line]
        if found and self._take(found):
            try:
                write_private(self._data / REFUSED_FILE, msgspec.json.encode(self.counts))
            except OSError as error:
                _log.debug("what was refused cannot be kept: %s", error)

    def _take(self, lines: list[bytes]) -> bool:
        try:
            names = {user.public_key: user.principal for user in credentials.registered(self._data).users}
        except LeaseholdError:
            names = {}
        taken = 0
        for line in lines:
            violation = _VIOLATION.search(line)
            if violation is not None:
                who = names.get(violation["key"].decode(), NOBODY)
                doing = "publishing to" if violation["kind"] == b"Publish" else "listening to"
                what = f"{doing} {violation['subject'].decode(errors='replace')}"
            elif _NOT_LET_IN.search(line):
                who, what = NOBODY, "coming in"
            else:
                continue
            counted = self.counts.setdefault(who, Refused())
            counted.count, counted.last, counted.at_ns = counted.count + 1, what[:200], time.time_ns()
            self._complaints.tell("the bus has refused %s: %s", who, printable(what))
            taken += 1
        return taken > 0


def take_up(data: Path) -> bool:
    """Let a running server of a data directory know of a changed register; whether there is one.

    Raises:
        UnavailableError: it does not take it up in time.
        InvalidInputError: a user cannot stand in its configuration.
    """
    # One at a time, from reading on: else an older register could be the last one that the server is told.
    with credentials.locked(data):
        register = credentials.registered(data)
        texts = permissions.render(register.users, register.cluster)
        pid = server_pid(data)
        if pid is None:
            return False
        log = _LogReader(data / LOG_NAME)
        try:
            write_users(data, texts)
            os.kill(pid, signal.SIGHUP)
            _until_taken_up(log, pid)
        finally:
            log.close()
    return True


def _until_taken_up(log: _LogReader, pid: int) -> None:
    said = b""
    give_up_s = time.monotonic() + RELOAD_WAIT_S
    while time.monotonic() < give_up_s:
        new = log.read()
        said += new
        failed = _FAILED.search(said)
        if failed is not None:
            raise UnavailableError(f"the server does not take it up{failed['why'].decode(errors='replace')}")
        if _RELOADED.search(said):
            return
        # A line may be there by half.
        said = said[said.rfind(b"\n") + 1 :]
        if not new:
            time.sleep(_POLL_S)
    raise UnavailableError(f"the server (pid {pid}) does not say within {RELOAD_WAIT_S:g} s that it has taken it up")


def write_users(data: Path, texts: Mapping[str, str]) -> None:
    """Write who is let in, for the server's next start or reload."""
    for account, text in texts.items():
        write_private(data / CONFIG_FOLDER / f"users-{account}.conf", text.encode())
