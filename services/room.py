"""Room on the disk that holds the log, watched where the log's server runs.

What nats-server 2.15.1 does on a full disk was tried: after one failed write it answers no append any more, silently,
until it is started again, whatever room there is by then; what it had acknowledged is all there. So it must not come to
that: while less than a reserve is left, allocators take only releases (they hear of it in `RoomNotice`), and a ballast
file, which is removed when the disk fills up all the same, leaves room for these.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import LeaseholdError
from leasehold.events.subjects import Subjects
from leasehold.services.connection import connect, disconnect
from leasehold.services.credentials import Credential

_log: Final = logging.getLogger(__name__)

BALLAST_FILE: Final = "ballast"
_MIB: Final = 1024 * 1024
_TELL_WAIT_S: Final = 2.0
_BALLAST_SHARE: Final = 4
"""The ballast is one part in so many of the reserve."""
_CRITICAL_SHARE: Final = 16
"""Less than one part in so many of the reserve: the next append may fail."""


RELEASING: Final = frozenset({"release", "confirm_free", "withdraw"})
"""Verbs of the requests that are taken without room: they lead to there being less in the log's state, not more."""


class RoomNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher of a server says of its disk, every few seconds, to allocators."""

    server: str
    free_bytes: int
    reserve_bytes: int
    low: bool
    path: str
    """Where room has to be made."""

    @property
    def told(self) -> str:
        """What whoever wants more than a release is told."""
        return (
            f"the log's disk is nearly full ({self.free_bytes // _MIB} MiB free, the last {self.reserve_bytes // _MIB} "
            f"are kept): only releases are taken until there is room again at {self.path} (server {self.server})"
        )


class Step(Enum):
    """What has to be done now."""

    NOTHING = "nothing"
    DROP_BALLAST = "drop the ballast and start the server again"
    LAY_BALLAST = "lay the ballast"
    RESTART = "start the server again"


def reserve_of(disk_bytes: int) -> int:
    """How much of a disk of this size is kept for releases: a tenth, and not more than `ROOM_RESERVE_BYTES`."""
    return min(limits.ROOM_RESERVE_BYTES, disk_bytes // 10)


class Room:
    """The room of one data directory, and its ballast."""

    def __init__(self, data: Path, server: str) -> None:
        """Nothing is looked at or written yet; `server` names whose disk it is."""
        self.is_low = False
        self._is_stuck = False
        self._data = data
        self._server = server
        self._ballast = data / BALLAST_FILE

    def look(self, free_bytes: int | None = None, disk_bytes: int | None = None) -> tuple[RoomNotice, Step]:
        """How it stands, and what has to be done about it.

        Args:
            free_bytes: Given only to try what would be said; else the disk is asked.
        """
        status = os.statvfs(self._data)
        free = status.f_bavail * status.f_frsize if free_bytes is None else free_bytes
        reserve = reserve_of(status.f_blocks * status.f_frsize if disk_bytes is None else disk_bytes)
        ballast = reserve // _BALLAST_SHARE
        has_ballast = self._ballast.exists()
        # Once low, it takes more than the reserve to be so no longer: it must not change with every record.
        self.is_low = free < (reserve + ballast if self.is_low else reserve)
        is_critical = free < reserve // _CRITICAL_SHARE
        step = Step.NOTHING
        if is_critical:
            step = Step.DROP_BALLAST if has_ballast else Step.NOTHING
            # Without a ballast there is no way out now; and the server may have given up a stream.
            self._is_stuck = not has_ballast
        elif self._is_stuck and free >= ballast:
            self._is_stuck, step = False, Step.RESTART
        elif not has_ballast and free > reserve + ballast:
            step = Step.LAY_BALLAST
        notice = RoomNotice(
            server=self._server, free_bytes=free, reserve_bytes=reserve, low=self.is_low, path=str(self._data)
        )
        return notice, step

    def lay_ballast(self) -> None:
        """Take the ballast's place on the disk; if the disk has none, do without."""
        status = os.statvfs(self._data)
        size = reserve_of(status.f_blocks * status.f_frsize) // _BALLAST_SHARE
        beside = self._ballast.with_suffix(".new")
        with contextlib.suppress(OSError):
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                # Real blocks: a file with a hole keeps nothing free.
                os.posix_fallocate(descriptor, 0, max(size, 1))
            except OSError:
                beside.unlink()
                raise
            finally:
                os.close(descriptor)
            beside.replace(self._ballast)

    def drop_ballast(self) -> None:
        """Give the ballast's place back to the disk."""
        self._ballast.unlink(missing_ok=True)


class RoomKeeper:
    """Watches the room of a server's disk, and tells allocators while there is little of it."""

    def __init__(
        self, room: Room, *, tell: Callable[[RoomNotice], Awaitable[None]], restart: Callable[[], None]
    ) -> None:
        """Nothing is done before `run`.

        Args:
            tell: Sends a notice on; trouble with that is its own.
            restart: Ends the server, so that it is started again: it writes no more after a write that failed.
        """
        self._room = room
        self._tell = tell
        self._restart = restart

    async def run(self) -> None:
        """Look once a second until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(limits.ROOM_NOTICE_MS / 1_000)

    async def look(self) -> None:
        """Look once, do what has to be done, and tell of it."""
        was_low = self._room.is_low
        notice, step = self._room.look()
        if step is Step.LAY_BALLAST:
            await asyncio.to_thread(self._room.lay_ballast)
        elif step is Step.DROP_BALLAST:
            _log.error("the disk is full; the ballast is dropped for releases, and the server started again")
            self._room.drop_ballast()
            self._restart()
        elif step is Step.RESTART:
            _log.error("the disk was full, and there was no ballast left: the server is started again")
            self._restart()
        if notice.low and not was_low:
            _log.error("%s", notice.told)
        elif was_low and not notice.low:
            _log.warning("there is room again at %s", notice.path)
        if notice.low or was_low:
            await self._tell(notice)


async def keep_room(data: Path, launcher: Credential, *, url: str, restart: Callable[[], None]) -> None:
    """Watch the disk of our own server until cancelled; see `RoomKeeper`.

    Args:
        launcher: Who tells of it; its name is the server's.
        url: Where the server is, also after it was started again.
    """
    subject = Subjects(launcher.cluster).room(launcher.name)

    async def tell(notice: RoomNotice) -> None:
        # Each time anew: it is rarely needed, and the server may just have been started again.
        try:
            connection = await connect(url, credential=launcher, name="room", timeout_s=_TELL_WAIT_S)
        except LeaseholdError as error:
            _log.info("it cannot be told: %s", error)
            return
        try:
            await connection.publish(subject, msgspec.json.encode(notice))
        except LeaseholdError as error:
            _log.info("it cannot be told: %s", error)
        finally:
            await disconnect(connection)

    await RoomKeeper(Room(data, launcher.name), tell=tell, restart=restart).run()


class Notices:
    """What an allocator has heard of room, of every server of the cluster; what is old counts no more."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, RoomNotice]] = {}

    def hear(self, notice: RoomNotice, now_s: float) -> None:
        """A notice arrived; `now_s` by a monotonic clock."""
        if notice.server in self._heard or len(self._heard) < limits.SERVERS_MAX:
            self._heard[notice.server] = (now_s, notice)

    def low(self, now_s: float) -> RoomNotice | None:
        """One of a server whose disk is nearly full, if there is such a server."""
        for at_s, notice in self._heard.values():
            if notice.low and now_s - at_s < limits.ROOM_SILENT_MS / 1_000:
                return notice
        return None
