"""The few requests to JetStream that the ledger needs, with answers as values."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import msgspec

from leasehold.events.errors import UnavailableError
from leasehold.services.connection import Connection

API_TIMEOUT_S: Final = 2.0
IN_TOUCH_S: Final = 1.0

LEADER_DEAF_NS_MAX: Final = 3 * 10**9
"""Followers answer their leader each second, and choose another after four at the earliest (2.15: `raft.go`)."""

STREAM_NOT_FOUND: Final = 10_059
STREAM_EXISTS_OTHERWISE: Final = 10_058
MESSAGE_NOT_FOUND: Final = 10_037
WRONG_LAST_SEQUENCE: Final = 10_071
WRONG_LAST_SEQUENCE_IN_FLIGHT: Final = 10_164
"""A replicated stream has another append with an expectation under way; the text does not name the last sequence."""


class ApiError(msgspec.Struct, frozen=True):
    """Why the server refused."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds: sequences `first_seq` to `last_seq`, some of which may be gone."""

    first_seq: int = 0
    last_seq: int = 0
    messages: int = 0
    bytes: int = 0


class Replica(msgspec.Struct, frozen=True):
    """Another server that keeps the stream, as its leader sees it. `active`: ns since the leader heard it last."""

    active: int = 0


class Group(msgspec.Struct, frozen=True):
    """The servers that keep a stream; `leader` is empty while there is none."""

    leader: str = ""
    replicas: tuple[Replica, ...] = ()

    @property
    def has_quorum(self) -> bool:
        """Whether a leader speaks that hears enough of the others to be still the one."""
        heard = 1 + sum(each.active < LEADER_DEAF_NS_MAX for each in self.replicas)
        return bool(self.leader) and 2 * heard > 1 + len(self.replicas)


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream as the server has it; `config` keeps the server's own names."""

    state: StreamState = StreamState()
    config: dict[str, object] = {}
    created: str = ""
    """When it was made; a stream that was made anew has another time."""
    cluster: Group | None = None
    """`None` from a server that is alone."""
    ts: datetime | None = None
    """The server's time."""
    error: ApiError | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message read back; its body and headers are base64 on the wire."""

    seq: int = 0
    data: bytes = b""
    hdrs: bytes = b""


class StoredReply(msgspec.Struct, frozen=True):
    """The answer to a read."""

    message: StoredMessage = StoredMessage()
    error: ApiError | None = None


class PublishReply(msgspec.Struct, frozen=True):
    """The answer to an append."""

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class ConsumerReply(msgspec.Struct, frozen=True):
    """The answer to the creation of a consumer."""

    name: str = ""
    error: ApiError | None = None


class PurgeReply(msgspec.Struct, frozen=True):
    """The answer to a purge."""

    success: bool = False
    error: ApiError | None = None


Kind = TypeVar("Kind", StreamInfo, StoredReply, ConsumerReply, PurgeReply)


async def call(connection: Connection, subject: str, request: object, kind: type[Kind]) -> Kind:
    """Ask JetStream: `$JS.API.<subject>`, or what leads there from the account that the connection is in.

    Raises:
        UnavailableError: no answer, or one that only says that the server cannot answer now.
    """
    try:
        return await _call(connection, subject, request, kind)
    except UnavailableError:
        await connection.note(well=False)
        raise


async def _call(connection: Connection, subject: str, request: object, kind: type[Kind]) -> Kind:
    body = b"" if request is None else msgspec.json.encode(request)
    reply = await connection.ask(f"{connection.api_prefix}.{subject}", body, timeout_s=API_TIMEOUT_S)
    if reply.status:
        raise UnavailableError(f"nobody answers {subject} (status {reply.status})")
    try:
        answer = msgspec.json.decode(reply.body, type=kind)
    except msgspec.DecodeError as error:
        raise UnavailableError(f"{subject} was answered with {reply.body[:200]!r}") from error
    if answer.error is not None and answer.error.code not in (400, 404):
        raise UnavailableError(f"{subject}: {answer.error.description} ({answer.error.err_code})")
    return answer


async def stream_info(connection: Connection, stream: str) -> StreamInfo:
    """The stream's settings and state, from its leader; `error` is set if there is no such stream.

    Raises:
        UnavailableError: it cannot be known now. A server that was cut off from the others goes on answering: for up to
            twenty seconds as the leader that it was, then as none. Neither is believed.
    """
    info = await call(connection, f"STREAM.INFO.{stream}", None, StreamInfo)
    is_led = info.error is not None or info.cluster is None or info.cluster.has_quorum
    await connection.note(well=is_led)
    if not is_led:
        raise UnavailableError(f"{stream} has no leader now that the other servers listen to")
    return info


async def stay_in_touch(connection: Connection, stream: str) -> None:
    """Until cancelled, see once a second that the stream's leader can be reached: for a connection that else only
    listens, and would do so for ever at a server that was cut off from the others.
    """
    while True:
        with contextlib.suppress(UnavailableError):
            await stream_info(connection, stream)
        await asyncio.sleep(IN_TOUCH_S)


async def server_time_ns(connection: Connection, stream: str) -> int:
    """The time of the server that leads `stream`, ns since 1970 (to the microsecond).

    Raises:
        UnavailableError: it cannot be known now.
    """
    info = await stream_info(connection, stream)
    if info.ts is None:
        raise UnavailableError(f"the server does not tell its time with the state of {stream}")
    return (info.ts - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1_000
