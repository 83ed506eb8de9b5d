"""The door of a host: a local socket where hypervisors' hooks and helpers ask whether a domain may have a device.

One JSON object per line is asked, and one answered. See docs/hostdevs.md for all of them. Everything is bounded: the
length of a line, how many ask at a time, and how long an answer takes. Who may open the socket may ask (mode 0660).
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, StorageError
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey, HostName, parse_uuid
from leasehold.events.position import lease_id_text
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections.handing import Handing
from leasehold.projections.indexes import words_of
from leasehold.projections.naming import spelling
from leasehold.projections.vouching import HELP_CUT_OFF, check_token, may_have

_log: Final = logging.getLogger(__name__)

IDLE_S: Final = 60.0
"""Who asks nothing for so long is sent away."""
ENDING_MS: Final = 2_000
"""A domain that stopped a moment ago may have its lease ended yet: so long that is waited for before it starts."""
_JUST_NOW: Final = (RefusalCode.LEASE_UNKNOWN, RefusalCode.LEASE_RESERVED)
GRANTED_PART: Final = 20
"""A lease may have been granted, or switched, a moment ago, and that not be heard of here yet: it is waited for, for
one part in so many of the time that an answer may take."""
DEVICES_MAX: Final = limits.USES_PER_DOMAIN_MAX
SAID_CHARS_MAX: Final = 4_096
CUT_OFF: Final = "cut_off"
_CREDENTIALS: Final = struct.Struct("3i")
_TOKEN_MAX: Final = (1 << 64) - 1


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked. `op`: `check`, `start`, `attach`, `stop`, `detach` or `status`."""

    op: str
    device: str = ""
    token: int = 0
    hypervisor: str = ""
    uuid: str = ""
    name: str = ""
    devices: tuple[str, ...] = ()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Of `status`: a device that is leased here, or is not the host's yet."""

    device: DeviceKey
    lease: str
    holder: str
    state: str
    """`preparing`, `prepared`, `giving_back`."""
    driver: str = ""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `code`: of `RefusalCode`, or `invalid`, `not_prepared`; and where nothing can be said: `cut_off`,
    `busy`, `internal`, `unavailable`.
    """

    ok: bool
    code: str = ""
    message: str = ""
    help: str = ""
    holder: str = ""
    leases: tuple[str, ...] = ()
    devices: tuple[DeviceKey, ...] = ()
    held: tuple[Held, ...] = ()


class Door:
    """The socket of one run of a binder; open while it is entered."""

    def __init__(
        self,
        path: Path,
        host: HostName,
        handing: Handing,
        changed: asyncio.Condition,
        stir: Callable[[], None],
        *,
        timeout_s: float = limits.DOOR_TIMEOUT_MS / 1_000,
    ) -> None:
        """`changed`: told when `handing` may have moved; `stir`: to be called when it was moved here."""
        self._path = path
        self._host = host
        self._handing = handing
        self._changed = changed
        self._stir = stir
        self._timeout_s = timeout_s
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Raises StorageError: it cannot be opened there."""
        try:
            listening = _listen(self._path)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listening, limit=limits.DOOR_REQUEST_BYTES_MAX
            )
        except OSError as error:
            said = error.strerror or error
            raise StorageError(f"hooks cannot be heard at {self._path} ({said}); --door names another path") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for caller in list(self._callers):
            caller.cancel()
        if self._callers:
            await asyncio.wait(self._callers)
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            if len(self._callers) > limits.DOOR_CALLERS_MAX:
                await _send(writer, Said(ok=False, code="busy", message="too many ask at a time", help="ask again"))
                return
            pid, uid = _who(writer)
            while True:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                said = await self._answer(line)
                _log.info("process %d of user %d asked %s: %s", pid, uid, line[:1_000], said)
                await _send(writer, said)
        except ValueError:
            most = limits.DOOR_REQUEST_BYTES_MAX
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, _invalid(f"a line has more than {most} bytes"))
        except (OSError, TimeoutError):
            return
        finally:
            self._callers.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Said:
        try:
            asked = msgspec.json.decode(line, type=Asked)
            async with asyncio.timeout(self._timeout_s):
                return await self._said(asked)
        except (msgspec.DecodeError, InvalidInputError, RecursionError) as error:
            return _invalid(str(error) if line.strip() else "the line is empty; ask by one JSON object")
        except TimeoutError:
            return Said(ok=False, code="unavailable", message=f"no answer could be found in {self._timeout_s:g} s")
        except Exception:  # noqa: BLE001 - a hook must hear something
            _log.exception("a question could not be answered: %s", line[:1_000])
            return Said(ok=False, code="internal", message="the binder failed at it", help="see its log")

    async def _said(self, asked: Asked) -> Said:
        if len(asked.devices) > DEVICES_MAX:
            raise InvalidInputError(f"more than {DEVICES_MAX} devices", field="devices")
        match asked.op:
            case "check":
                return self._check(asked)
            case "start" | "attach":
                return await self._start(asked)
            case "stop" | "detach":
                return self._stop(asked)
            case "status":
                return self._status()
        raise InvalidInputError("op is one of check, start, attach, stop, detach, status", field="op")

    # --- the questions ----------------------------------------------------------------------------------------------

    def _check(self, asked: Asked) -> Said:
        if not asked.device:
            raise InvalidInputError("name a device", field="device")
        if not 0 < asked.token <= _TOKEN_MAX:
            raise InvalidInputError("it is that of a lease, a number above 0", field="token")
        keys = self._keys(asked.device)
        if len(keys) > 1:
            return _refused(_ambiguous(asked.device, keys))
        # What is gone still has its floor, under its key.
        key = keys[0] if keys else DeviceKey(spelling(asked.device))
        if not (keys or key in self._handing.log.holds or self._handing.note_of(key).floor):
            return _refused(self._unknown(asked.device))
        refusal = check_token(self._handing, key, asked.token, _now_ms())
        if refusal is not None:
            return self._refused(refusal, (key,))
        hold = self._handing.log.holds[key]
        return Said(ok=True, holder=hold.holder, leases=(lease_id_text(hold.lease),), devices=(key,))

    async def _start(self, asked: Asked) -> Said:
        """Wait until all is handed over, or refuse: at once, but for what nobody has leased a moment ago."""
        uuid, name = parse_uuid(asked.uuid), asked.name[: limits.DOMAIN_NAME_CHARS_MAX]
        is_ending = self._handing.starts(uuid)
        sure_ms = _now_ms() + ENDING_MS if is_ending else 0
        begun_ms = _now_ms()
        end_ms = begun_ms + int(self._timeout_s * 900)
        while True:
            keys, refusal = self._meant(asked.devices, uuid, name)
            if refusal is not None:
                return self._refused(refusal, keys)
            verdict = may_have(self._handing, uuid, name, keys, _now_ms())
            leases = tuple(map(lease_id_text, verdict.leases))
            if verdict.refusal is not None:
                left_ms = begun_ms + int(self._timeout_s * 1_000) // GRANTED_PART - _now_ms()
                if left_ms <= 0 or verdict.refusal.code not in _JUST_NOW:
                    return self._refused(verdict.refusal, keys)
                await self._change(left_ms / 1_000)
                continue
            if verdict.is_ready and _now_ms() >= sure_ms:
                return Said(ok=True, leases=leases, devices=keys)
            left_s = (end_ms - _now_ms()) / 1_000
            if left_s <= 0 and not verdict.is_ready:
                waiting = ", ".join(key for key in keys if not self._handing.is_ready(key))
                message = f"{waiting} is leased for it, but was not handed over in {self._timeout_s:g} s"
                return Said(ok=False, code="not_prepared", message=message, help="try again", leases=leases)
            await self._change(min(max(left_s, 0.1), 1.0))

    async def _change(self, timeout_s: float) -> None:
        """Until something may be otherwise, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()

    def _stop(self, asked: Asked) -> Said:
        uuid = parse_uuid(asked.uuid)
        if not self._handing.log.is_synced:
            message = "which leases it has is not known: the log was not heard"
            return Said(ok=False, code=CUT_OFF, message=message, help=HELP_CUT_OFF)
        keys = None if asked.op == "stop" else {key for word in asked.devices for key in self._keys(word)}
        leases = self._handing.stopped(uuid, keys)
        self._stir()
        return Said(ok=True, leases=tuple(map(lease_id_text, leases)))

    def _status(self) -> Said:
        handing, now_ms = self._handing, _now_ms()
        held = []
        for note in handing.notes:
            hold = handing.log.holds.get(note.key) or Hold(key=note.key, floor=0)
            if not (hold.token or note.step):
                continue
            state = "giving_back"
            if hold.token:
                state = "prepared" if handing.is_ready(note.key) else "preparing"
            driver = note.prepared.driver if note.prepared is not None else ""
            lease = lease_id_text(hold.lease or note.lease)
            held.append(Held(device=note.key, lease=lease, holder=hold.holder, state=state, driver=driver))
        if handing.is_cut_off(now_ms):
            message = f"the log was not heard for {limits.CUT_OFF_MS // 1000} s: no token is vouched for"
            return Said(ok=False, code=CUT_OFF, message=message, help=HELP_CUT_OFF, held=tuple(held))
        return Said(ok=True, held=tuple(held))

    # --- what words mean --------------------------------------------------------------------------------------------

    def _keys(self, word: str) -> tuple[DeviceKey, ...]:
        """The devices that are there and are called so."""
        host, _, rest = word.partition("/")
        name = spelling(rest if host == self._host and rest else word)
        picture = self._handing.log.picture
        if name in picture:
            return (DeviceKey(name),)
        return tuple(
            key for key, device in sorted(picture.items()) if name == device.name or name in words_of(device)
        )

    def _meant(
        self, words: Sequence[str], uuid: str, name: str
    ) -> tuple[tuple[DeviceKey, ...], Refusal | None]:
        """What a domain is to get. A word that means several may become any of these: it needs them all."""
        found: list[DeviceKey] = []
        for word in words:
            keys = self._keys(word)
            if not keys:
                return (), self._unknown(word)
            if len(keys) > 1 and may_have(self._handing, uuid, name, keys, _now_ms()).refusal is not None:
                return keys, _ambiguous(word, keys)
            found += keys
        return tuple(dict.fromkeys(found)), None

    def _unknown(self, word: str) -> Refusal:
        if not self._handing.log.is_synced:
            return _cut_off(word)
        message = f"no device {word[:80]!r} is known on this host"
        return Refusal(code=RefusalCode.DEVICE_UNKNOWN, message=message, help="leasehold devices lists them")

    def _refused(self, refusal: Refusal, keys: Sequence[DeviceKey]) -> Said:
        holders = {hold.holder: None for key in keys if (hold := self._handing.log.holds.get(key)) and hold.token}
        return msgspec.structs.replace(_refused(refusal), holder=", ".join(holders)[:SAID_CHARS_MAX])


def _refused(refusal: Refusal) -> Said:
    code = CUT_OFF if refusal.code is RefusalCode.HOST_STALE else refusal.code.value
    # Whoever asks takes so much and no more; what he cannot take he may let through.
    return Said(ok=False, code=code, message=refusal.message[:SAID_CHARS_MAX], help=refusal.help[:SAID_CHARS_MAX])


def _ambiguous(word: str, keys: Sequence[DeviceKey]) -> Refusal:
    message = f"{word[:80]} could be {', '.join(keys[:8])}, and not all of these may be had"
    return Refusal(code=RefusalCode.DEVICE_AMBIGUOUS, message=message, help="name it by its bus and address")


def _cut_off(word: str) -> Refusal:
    return Refusal(code=RefusalCode.HOST_STALE, message=f"nothing can be said of {word[:80]}: the log was not heard")


def _invalid(message: str) -> Said:
    return Said(ok=False, code="invalid", message=message[:SAID_CHARS_MAX])


async def _send(writer: asyncio.StreamWriter, said: Said) -> None:
    writer.write(msgspec.json.encode(said) + b"\n")
    async with asyncio.timeout(IDLE_S):
        await writer.drain()


def _who(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """The process and the user that ask."""
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def _listen(path: Path) -> socket.socket:
    """A socket at `path`, mode 0660; one that a binder before has left there is taken away. Raises OSError."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            # Nobody listens there: only one binder acts on a host, and that is this one.
            path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o117)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
    except BaseException:
        listening.close()
        raise
    return listening


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
