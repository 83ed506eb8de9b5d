"""The gate in front of the inbox: what agents report is put into OBSERVED by the allocator, not by themselves.

Whoever may publish to a subject of a stream also chooses the headers, and these are orders to the server. Tried with
nats-server 2.15.1: one report with a wrong `Nats-Expected-Last-Msg-Id` stops a replicated stream for good, and one with
the `Nats-Msg-Id` of another host's next report has that taken for a repetition. So an agent asks at its subject of
`obs`, and the allocator that decides passes the body on to that of `inbox`, with headers of its own, and the stream's
answer back. Reports come a few a minute; they can bear the hop.
"""

import asyncio
import logging
from collections import Counter
from typing import Final

import msgspec
import nats.errors
from nats.aio.subscription import Subscription

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, LeaseholdError, UnavailableError
from leasehold.events.identities import HostName
from leasehold.events.subjects import OBSERVED_STREAM, Subjects
from leasehold.services.allocator.intake import Intake
from leasehold.services.allocator.service import Allocator
from leasehold.services.complaints import Complaints
from leasehold.services.connection import INBOXES, Connection
from leasehold.services.ledger.api import ApiError, PublishReply

_log: Final = logging.getLogger(__name__)
PASS_TIMEOUT_S: Final = 0.8
"""An agent waits for a second."""
IN_WORK_MAX: Final = 256
IN_WORK_PER_HOST_MAX: Final = 8
_HEADERS: Final = {"Nats-Expected-Stream": OBSERVED_STREAM}
_TOO_MUCH: Final = 429


class Gate:
    """Passes reports on while its allocator decides."""

    def __init__(self, connection: Connection, subjects: Subjects, allocator: Allocator) -> None:
        """Nothing is taken before `start`."""
        self.refused = Complaints(_log, "reports were refused")
        self._connection = connection
        self._subjects = subjects
        self._allocator = allocator
        self._intake = Intake()
        self._subscription: Subscription | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._in_work: Counter[HostName] = Counter()

    async def start(self) -> None:
        """Begin to take reports. Raises UnavailableError."""
        self._subscription = await self._connection.listen(self._subjects.observed_all, self._take)

    async def stop(self) -> None:
        """Take no more, and leave what is on its way to itself."""
        if self._subscription is not None:
            await self._connection.stop_listening(self._subscription)
        for task in tuple(self._working):
            task.cancel()

    def _take(self, subject: bytes, reply: bytes, body: bytes, _headers: bytes | None) -> None:
        # All allocators hear it; one that does not decide leaves it to the one that does.
        if not self._allocator.decides or not reply.startswith(INBOXES):
            return
        try:
            host, agent = self._subjects.parse_reporter(subject.decode())
            self._check(host, len(body))
        except (InvalidInputError, UnicodeDecodeError) as error:
            self.refused.tell("a report on %r was refused: %s", subject[:120], error)
            self._answer(reply, msgspec.json.encode(PublishReply(error=ApiError(_TOO_MUCH, 0, str(error)))))
            return
        task = asyncio.create_task(self._pass_on(self._subjects.inbox(host, agent), reply, body))
        self._working.add(task)
        self._in_work[host] += 1
        task.add_done_callback(lambda done: self._done(done, host))

    def _check(self, host: HostName, size: int) -> None:
        """Raises InvalidInputError if that is too much of this host."""
        if size > limits.OBSERVED_BYTES_MAX:
            raise InvalidInputError(f"{size} bytes; {limits.OBSERVED_BYTES_MAX} are possible", field="observed")
        if len(self._working) >= IN_WORK_MAX or self._in_work[host] >= IN_WORK_PER_HOST_MAX:
            raise InvalidInputError("too many reports are on their way", field="host")
        self._intake.admit(host, size)

    def _done(self, task: asyncio.Task[None], host: HostName) -> None:
        self._working.discard(task)
        self._in_work[host] -= 1
        if not self._in_work[host]:
            del self._in_work[host]

    async def _pass_on(self, subject: str, reply: bytes, body: bytes) -> None:
        try:
            kept = await self._connection.ask(subject, body, timeout_s=PASS_TIMEOUT_S, headers=_HEADERS)
            answer = kept.body if not kept.status else _unavailable(f"the inbox does not answer ({kept.status})")
        except LeaseholdError as error:
            answer = _unavailable(str(error))
        self._answer(reply, answer)

    def _answer(self, reply: bytes, body: bytes) -> None:
        sending = asyncio.ensure_future(self._send(reply, body))
        self._working.add(sending)
        sending.add_done_callback(self._working.discard)

    async def _send(self, reply: bytes, body: bytes) -> None:
        try:
            await self._connection.publish_all([(reply, body)])
        except (UnavailableError, nats.errors.Error) as error:
            _log.debug("an agent could not be answered: %s", error)


def _unavailable(why: str) -> bytes:
    return msgspec.json.encode(PublishReply(error=ApiError(503, 0, why)))
