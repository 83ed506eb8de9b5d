"""Reads a stream from a sequence on and stays with it: fast, in order, and healing its own breaks.

A push consumer without acknowledgements, whose messages are taken straight from the read loop; the server's flow
control bounds what waits here (32 MiB at most), since its requests are answered only when everything before them has
been taken. Each message carries its stream sequence and its number within the consumer. If the latter skips, messages
were lost on the way and the consumer is made anew; if only the former skips, the stream itself has a gap.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple

from nats.aio.subscription import Subscription

from leasehold.events.errors import UnavailableError
from leasehold.services.connection import Connection, status_of
from leasehold.services.ledger import api

_log: Final = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1
SILENCE_S_MAX: Final = 3.0
"""Nothing, not even a heartbeat, for this long: the consumer is gone."""
PAUSE_S: Final = 0.1
_STALLED: Final = b"Nats-Consumer-Stalled:"
_LAST_CONSUMER: Final = b"Nats-Last-Consumer:"


class Arrival(NamedTuple):
    """One message of a stream."""

    sequence: int
    subject: bytes
    body: bytes
    headers: bytes = b""
    """As they came, where they were read by asking."""


class _Session:
    """One consumer: from its creation until something is lost."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._subscription: Subscription | None = None
        self._arrived: list[Arrival] = []
        self._delivered = 0
        self._last = 0
        self._asked_for_more = ""
        self._owed = ""
        self._something = asyncio.Event()
        self._broken = ""

    async def open(self, after: int) -> None:
        """Raises UnavailableError."""
        inbox = self._connection.new_inbox()
        self._connection.reconnect_listeners.add(self._reconnected)
        self._subscription = await self._connection.listen(inbox, self._take)
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_S * 10**9,
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": self._stream, "config": config}
        reply = await api.call(self._connection, f"CONSUMER.CREATE.{self._stream}", request, api.ConsumerReply)
        if reply.error is not None:
            raise UnavailableError(f"no consumer on {self._stream}: {reply.error.description}")

    async def close(self) -> None:
        self._connection.reconnect_listeners.discard(self._reconnected)
        if self._subscription is not None:
            # The server removes a consumer that nobody listens to.
            await self._connection.stop_listening(self._subscription)

    def fail(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._something.set()

    async def next_batch(self) -> list[Arrival]:
        """What has arrived; at least one message.

        Raises:
            UnavailableError: the consumer is of no use any more; what it delivered before has been returned.
        """
        await self._grant_more()
        while not self._arrived:
            if self._broken:
                raise UnavailableError(self._broken)
            if self._asked_for_more:
                self._owed, self._asked_for_more = self._asked_for_more, ""
                await self._grant_more()
            self._something.clear()
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    await self._something.wait()
            except TimeoutError:
                self.fail(f"nothing heard for {SILENCE_S_MAX:g} s")
        batch, self._arrived = self._arrived, []
        # Granted when the caller comes back, so that what it still works on counts as under way.
        self._owed, self._asked_for_more = self._asked_for_more, ""
        return batch

    async def _grant_more(self) -> None:
        if self._owed:
            owed, self._owed = self._owed, ""
            await self._connection.publish(owed)

    def _reconnected(self) -> None:
        self.fail("the connection was made anew")

    def _take(self, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        if self._broken:
            return
        if reply.startswith(b"$JS.ACK."):
            parts = reply.split(b".")
            # Servers with a domain put it, and a hash of the account, in front.
            at = 5 if len(parts) == 9 else 7
            if int(parts[at + 1]) != self._delivered + 1:
                self.fail("messages were lost on the way")
                return
            sequence = int(parts[at])
            if sequence <= self._last:
                self.fail("the server went back")
                return
            self._delivered += 1
            self._last = sequence
            self._arrived.append(Arrival(sequence, subject, body))
        else:
            self._take_control(reply, headers or b"")
        self._something.set()

    def _take_control(self, reply: bytes, headers: bytes) -> None:
        status = status_of(headers)
        if status != 100:
            self.fail(f"the server said {headers[:120]!r}")
        elif reply:
            self._asked_for_more = reply.decode()
        else:
            last = header(headers, _LAST_CONSUMER)
            if last and int(last) != self._delivered:
                self.fail("messages were lost on the way")
            self._asked_for_more = header(headers, _STALLED).decode() or self._asked_for_more


def header(headers: bytes, name: bytes) -> bytes:
    """The value of a header in raw headers, b"" if it is not there; `name` ends in a colon."""
    _, found, rest = headers.partition(b"\r\n" + name)
    return rest.partition(b"\r\n")[0].strip() if found else b""


class Tail:
    """Follows one stream for one reader."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._ended: Callable[[str], None] | None = None
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End `session` for good."""
        self._closed.set()
        if self._ended is not None:
            self._ended("closed")

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed.is_set()

    async def session(self, after: int) -> AsyncGenerator[list[Arrival], None]:
        """Batches from `after` + 1 on, in order, without loss on the way; what the stream itself lacks is skipped.

        Ends when the consumer is of no use any more, or cannot be made now: make another from where this one ended.
        """
        session = _Session(self._connection, self._stream)
        self._ended = session.fail
        try:
            await session.open(after)
            while not self.closed:
                yield await session.next_batch()
        except UnavailableError as error:
            if not self.closed:
                _log.info("reading of %s is interrupted: %s", self._stream, error)
        finally:
            self._ended = None
            await session.close()

    async def pause(self, pause_s: float = PAUSE_S) -> None:
        """Wait before the next try; `close` ends it at once.

        Raises:
            UnavailableError: the connection has been closed for good, so that no next try makes sense.
        """
        if self._connection.is_closed and not self.closed:
            raise UnavailableError("the connection to the bus is closed")
        try:
            async with asyncio.timeout(pause_s):
                await self._closed.wait()
        except TimeoutError:
            return
