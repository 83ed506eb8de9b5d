"""Reading OBSERVED, the inbox: like following the ledger, but what was deleted from its beginning may be missing."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from leasehold.events.errors import UnavailableError
from leasehold.events.subjects import OBSERVED_STREAM
from leasehold.services.connection import Connection
from leasehold.services.ledger import api
from leasehold.services.ledger.tail import Tail

Message = tuple[int, str, bytes]
"""Sequence in OBSERVED, subject, body."""


class ObservedReader:
    """One handle on the stream OBSERVED, through a connection that stays its owner's."""

    def __init__(self, connection: Connection) -> None:
        """`streams.ensure_streams` must have made the stream before."""
        self._connection = connection
        self._tails: set[Tail] = set()
        self._closed = False

    async def first_sequence(self) -> int:
        """The lowest sequence that is still there; one above the last one ever given out if there is nothing.

        Raises:
            UnavailableError: it cannot be known now.
        """
        state = await self._state()
        return state.first_seq if state.messages else state.last_seq + 1

    async def last_sequence(self) -> int:
        """The last sequence given out; 0 if there has been none.

        Raises:
            UnavailableError: it cannot be known now.
        """
        return (await self._state()).last_seq

    async def _state(self) -> api.StreamState:
        info = await api.stream_info(self._connection, OBSERVED_STREAM)
        if info.error is not None:
            raise UnavailableError(f"no state of {OBSERVED_STREAM}: {info.error.description}")
        return info.state

    async def move_past(self, through: int) -> None:
        """Let the next message get a sequence above `through`, and drop what stands up to there.

        For an inbox that has lost its end: what it gave out again below `through` would count as read already.

        Raises:
            UnavailableError: it cannot be done now.
        """
        request = {"seq": through + 1}
        reply = await api.call(self._connection, f"STREAM.PURGE.{OBSERVED_STREAM}", request, api.PurgeReply)
        if reply.error is not None or not reply.success:
            raise UnavailableError(f"{OBSERVED_STREAM} cannot be moved on: {reply.error}")

    async def follow(self, after: int) -> AsyncGenerator[list[Message], None]:
        """What is there from `after` + 1 on, in order, then for ever the new ones, until `close`.

        Batches are never empty; a sequence that is skipped is gone for good. If the stream has been made anew and ends
        before `after`, nothing comes until it is longer: compare `last_sequence`.
        """
        tail = Tail(self._connection, OBSERVED_STREAM)
        self._tails.add(tail)
        if self._closed:
            tail.close()
        try:
            while not tail.closed:
                async with aclosing(tail.session(after)) as batches:
                    async for batch in batches:
                        news = [(each.sequence, each.subject.decode(errors="replace"), each.body) for each in batch]
                        news = [message for message in news if message[0] > after]
                        if news:
                            after = news[-1][0]
                            yield news
                await tail.pause()
        finally:
            self._tails.discard(tail)

    async def close(self) -> None:
        """End what follows through this handle."""
        self._closed = True
        for tail in tuple(self._tails):
            tail.close()
