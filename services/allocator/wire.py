"""The allocator on the bus: requests through a discoverable service, heartbeats, and replies in order."""

import asyncio
import logging
from collections import deque
from typing import Final

import msgspec
import nats.errors
import nats.micro
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig

import leasehold
from leasehold.events import codec, limits
from leasehold.events.answers import Answer, Heartbeat
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.subjects import Subjects
from leasehold.projections.answers import heard
from leasehold.services.allocator.service import Allocator
from leasehold.services.complaints import Complaints, printable
from leasehold.services.connection import Connection

_log: Final = logging.getLogger(__name__)
STOP_WAIT_S: Final = 2.0
_HEARTBEATS_WAITING_MAX: Final = limits.HOSTS_MAX


class Wire:
    """Connects one allocator to the bus."""

    def __init__(self, connection: Connection, subjects: Subjects, allocator: Allocator, *, name: str) -> None:
        """`name`: this allocator's own queue group, so that every allocator hears every request."""
        self._connection = connection
        self._subjects = subjects
        self._allocator = allocator
        self._name = name
        self._service: Service | None = None
        self._heartbeats: Subscription | None = None
        self._replies: deque[tuple[str, bytes]] = deque()
        self._something = asyncio.Event()
        self._unheard: deque[tuple[str, str]] = deque(maxlen=_HEARTBEATS_WAITING_MAX)
        self.dropped = Complaints(_log, "messages were dropped")
        allocator.on_settled = self.answer_heartbeats

    async def start(self) -> None:
        """Begin to take requests and heartbeats."""
        config = ServiceConfig(
            name="leasehold-allocator",
            version=leasehold.__version__,
            description="Decides requests for host devices",
            metadata={"cluster": self._subjects.cluster, "writer": self._allocator.sequencer.writer},
            stats_handler=self._stats,
        )
        self._service = await nats.micro.add_service(self._connection, config)
        for verb in codec.VERBS:
            endpoint = EndpointConfig(
                name=verb, handler=self._take, subject=self._subjects.requests_all(verb), queue_group=self._name
            )
            await self._service.add_endpoint(endpoint)
        self._heartbeats = await self._connection.subscribe(self._subjects.alive_all, cb=self._take_heartbeat)

    async def stop(self) -> None:
        """Take nothing more."""
        stopping = asyncio.ensure_future(self._stop())
        await asyncio.wait({stopping}, timeout=STOP_WAIT_S)
        stopping.cancel()

    async def _stop(self) -> None:
        try:
            if self._service is not None:
                await self._service.stop()
            if self._heartbeats is not None:
                await self._heartbeats.unsubscribe()
        except (nats.errors.Error, OSError) as error:
            _log.debug("nothing left to stop: %s", error)

    def _stats(self, _endpoint: EndpointStats) -> dict[str, int | str]:
        return self._allocator.status()

    async def _take(self, request: Request) -> None:
        reply = request._msg.reply  # noqa: SLF001 - who waits for nothing must be told apart before it is decided
        if not _is_inbox(reply):
            self.dropped.tell("a request on %s was dropped: no inbox for its answer", printable(request.subject))
            return
        try:
            principal, verb = self._subjects.parse_request(request.subject)
        except InvalidInputError as error:
            self._send(reply, Answer(outcome="invalid", field=error.field, message=str(error)))
            return
        self._allocator.ask(principal, verb, request.data, lambda answer: self._send(reply, answer))

    async def _take_heartbeat(self, message: Msg) -> None:
        try:
            host, agent = self._subjects.parse_reporter(message.subject)
            heartbeat = msgspec.json.decode(message.data, type=Heartbeat)
        except (InvalidInputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.dropped.tell("a heartbeat on %s was dropped: %s", printable(message.subject), error)
            return
        self._allocator.hear(host, agent, heartbeat.run)
        if _is_inbox(message.reply):
            self._unheard.append((message.subject, message.reply))
            self.answer_heartbeats()

    def answer_heartbeats(self) -> None:
        """Answer from what is certain: not while a record is in flight."""
        if self._allocator.sequencer.in_flight is not None or self._allocator.trouble:
            return
        while self._unheard:
            subject, reply = self._unheard.popleft()
            host, agent = self._subjects.parse_reporter(subject)
            self._replies.append((reply, codec.encode(heard(self._allocator.sequencer.state, host, agent))))
            self._something.set()

    def _send(self, reply: str, answer: Answer) -> None:
        self._replies.append((reply, codec.encode(answer)))
        self._something.set()

    async def send_replies(self) -> None:
        """Send answers until cancelled. Each requester waits a second at most, so the queue is bounded by the door."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._replies:
                reply, body = self._replies.popleft()
                try:
                    await self._connection.publish(reply, body)
                except (UnavailableError, nats.errors.Error) as error:
                    _log.debug("an answer could not be sent: %s", error)


def _is_inbox(reply: str) -> bool:
    """Whether an answer may be sent there. We may write the ledger, so nobody may have us write where he says."""
    return reply.startswith("_INBOX")
