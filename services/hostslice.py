"""What is told of one host, as it is told: for its agents, who may listen to that and to nothing else of the feed.

They read no stream. Where something may be missing they ask the log itself again, as they do when they start (`sync`).
"""

from collections.abc import Callable
from typing import Final

from nats.aio.subscription import Subscription

from leasehold.events.identities import HostName
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent, Log, MessageReader, Wanted

OnEvent = Callable[[FeedEvent], None]
OnGap = Callable[[], None]
_OF_ALL: Final = ""


class HostSlice:
    """Gives `on_event` each event of a host, and of the whole cluster, in order, at most once.

    `on_gap` is called where one may have been missed: when an event names another one before it than the last that was
    heard, when the ledger was restored, and after each reconnection. A lost last message shows only with the next one:
    who must know it asks now and then besides.
    """

    def __init__(
        self, connection: Connection, subjects: Subjects, host: HostName, on_event: OnEvent, on_gap: OnGap
    ) -> None:
        """The connection stays its owner's. The functions must not block."""
        self._connection = connection
        self._subjects = subjects
        self._host = host
        self._messages = MessageReader(subjects, Wanted())
        self._on_event = on_event
        self._on_gap = on_gap
        self._log: Log | None = None
        self._last: dict[str, int] = {}
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Begin to listen. Raises UnavailableError."""
        self._connection.reconnect_listeners.add(self._on_gap)
        for host in (self._host, _OF_ALL):
            self._subscriptions.append(await self._connection.listen(self._subjects.events_of(host), self._hear))

    async def close(self) -> None:
        """Listen no more."""
        self._connection.reconnect_listeners.discard(self._on_gap)
        for subscription in self._subscriptions:
            await self._connection.stop_listening(subscription)
        self._subscriptions.clear()

    def _hear(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        told = self._messages.told(subject, body, headers or b"")
        if told is None:
            return
        event = self._messages.event(told)
        if event.log != self._log and not self._begins(event.log):
            return
        last = self._last.get(event.host)
        if last is not None and told.position <= last:
            # Another part of the same event, or the feed is being told anew.
            return
        self._last[event.host] = told.position
        if last is not None and told.previous != last:
            self._on_gap()
        self._on_event(event)

    def _begins(self, log: Log) -> bool:
        """Another ledger or era is heard of: whether it begins here, or something of an era before is told anew."""
        before = self._log
        if before is not None and log.ledger_id == before.ledger_id and log.era < before.era:
            return False
        # A restored ledger gives out positions again that were heard before.
        self._log = log
        self._last.clear()
        if before is not None:
            self._on_gap()
        return True
