"""Reads a stream by asking for its messages, so many at a time: for those who may make no consumer.

A consumer is told where to deliver, which must not be said by just anybody, and what it delivers does not cross from
one account of the server to another. Answers to a request do. The price is that news have to be asked for: twenty
times a second at first, less often while nothing comes.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from nats.aio.subscription import Subscription

from leasehold.events.errors import UnavailableError
from leasehold.services.connection import Connection, status_of
from leasehold.services.ledger.tail import SILENCE_S_MAX, Arrival, Tail, header

_log: Final = logging.getLogger(__name__)

BATCH_MESSAGES_MAX: Final = 1_000
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
POLL_S_MIN: Final = 0.05
POLL_S_MAX: Final = 0.5
_SEQUENCE: Final = b"Nats-Sequence:"
_BEFORE: Final = b"Nats-Last-Sequence:"
_PENDING: Final = b"Nats-Num-Pending:"
_END_OF_BATCH: Final = 204
_NOTHING_THERE: Final = 404


class Batch:
    """What one request is answered with."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.arrived: list[Arrival] = []
        self.settled = asyncio.Event()
        """The end was told, or something is wrong: see `broken`."""
        self.heard = 0
        self.broken = ""
        self.is_end = False
        """There was no more of it in the stream."""

    @property
    def last(self) -> int:
        """The sequence of what has arrived last."""
        return self.arrived[-1].sequence if self.arrived else self.after

    def take(self, body: bytes, headers: bytes) -> None:
        """One message of it."""
        self.heard += 1
        status = status_of(headers)
        if not status:
            sequence, before = int(header(headers, _SEQUENCE)), int(header(headers, _BEFORE))
            # The first one names none; of the others each names the one that was sent before it.
            if sequence <= self.last or (self.arrived and before != self.last):
                self.fail("messages were lost on the way")
                return
            self.arrived.append(Arrival(sequence, b"", body, headers))
        elif status == _END_OF_BATCH:
            if self.arrived and int(header(headers, _BEFORE) or 0) != self.last:
                self.fail("messages were lost on the way")
            self.is_end = header(headers, _PENDING) == b"0"
            self.settled.set()
        elif status == _NOTHING_THERE:
            self.is_end = True
            self.settled.set()
        else:
            self.fail(f"the server said {headers[:120]!r}")

    def fail(self, reason: str) -> None:
        """It is of no use any more."""
        self.broken = self.broken or reason
        self.settled.set()


class DirectTail(Tail):
    """Follows one stream for one reader, without a consumer."""

    async def session(self, after: int) -> AsyncGenerator[list[Arrival], None]:
        """As `Tail.session`."""
        asking = Asking(self._connection, self._stream)
        self._ended = asking.fail
        try:
            await asking.open()
            pause_s = POLL_S_MIN
            await asking.ask(after)
            while not self.closed:
                batch = (await asking.batch()).arrived
                if batch:
                    after, pause_s = batch[-1].sequence, POLL_S_MIN
                else:
                    await self.pause(pause_s)
                    pause_s = min(2 * pause_s, POLL_S_MAX)
                # The next one is on its way while this one is worked on.
                await asking.ask(after)
                if batch:
                    yield batch
        except UnavailableError as error:
            if not self.closed:
                _log.info("reading of %s is interrupted: %s", self._stream, error)
        finally:
            self._ended = None
            await asking.close()


class Asking:
    """One request after the other, each for what follows the one before; of subjects below `subject` only, if given."""

    def __init__(self, connection: Connection, stream: str, subject: str = "") -> None:
        self._connection = connection
        self._subject = f"{connection.api_prefix}.DIRECT.GET.{stream}"
        self._only = {"next_by_subj": subject} if subject else {}
        self._inbox = f"{connection.new_inbox()}."
        self._subscription: Subscription | None = None
        self._number = 0
        self._current = Batch(0)

    async def open(self) -> None:
        """Raises UnavailableError."""
        self._connection.reconnect_listeners.add(self._reconnected)
        self._subscription = await self._connection.listen(f"{self._inbox}*", self._take)

    async def close(self) -> None:
        """Listen to no more answers."""
        self._connection.reconnect_listeners.discard(self._reconnected)
        if self._subscription is not None:
            await self._connection.stop_listening(self._subscription)

    async def ask(self, after: int) -> None:
        """Ask for what follows. Raises UnavailableError."""
        self._number += 1
        self._current = Batch(after)
        request = {"seq": after + 1, "batch": BATCH_MESSAGES_MAX, "max_bytes": BATCH_BYTES_MAX, **self._only}
        await self._connection.publish(self._subject, msgspec.json.encode(request), f"{self._inbox}{self._number}")

    async def batch(self) -> Batch:
        """What was asked for; nothing has arrived if nothing is there yet.

        Raises:
            UnavailableError: it does not come, or not whole.
        """
        batch, heard = self._current, -1
        while not batch.settled.is_set():
            if batch.heard == heard:
                raise UnavailableError(f"nothing heard for {SILENCE_S_MAX:g} s")
            heard = batch.heard
            try:
                async with asyncio.timeout(SILENCE_S_MAX):
                    await batch.settled.wait()
            except TimeoutError:
                continue
        if batch.broken:
            raise UnavailableError(batch.broken)
        return batch

    def fail(self, reason: str) -> None:
        """Give up what was asked for last."""
        self._current.fail(reason)

    def _reconnected(self) -> None:
        self.fail("the connection was made anew")

    def _take(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        # What is left of an earlier request bears another number.
        if int(subject[len(self._inbox) :]) == self._number:
            self._current.take(body, headers or b"")
