"""The allocator on the bus: requests through a discoverable service, heartbeats, and replies in order.

Requests are taken straight from the read loop and handed over at once, as long as there are no more than the next
records hold. The others wait here, as bytes, until it is their principal's turn: a flood takes the flooder's places.
"""

import asyncio
import logging
import time
from collections import deque
from functools import partial
from itertools import islice
from typing import Final

import msgspec
import nats.errors
import nats.micro
from nats.aio.subscription import Subscription
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig

import leasehold
from leasehold.events import codec, limits
from leasehold.events.answers import Answer, Heartbeat
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.identities import HostName, Principal
from leasehold.events.subjects import Subjects
from leasehold.projections.answers import heard
from leasehold.services.allocator.buckets import Buckets
from leasehold.services.allocator.gate import Gate
from leasehold.services.allocator.service import Allocator
from leasehold.services.allocator.turns import Turns, Waiting
from leasehold.services.complaints import Complaints, printable
from leasehold.services.connection import INBOXES, Connection
from leasehold.services.room import RoomNotice

_log: Final = logging.getLogger(__name__)
STOP_WAIT_S: Final = 2.0
HANDED_MAX: Final = 128
"""Requests behind the door at a time, in flight and for the next record. More of them make no more a second, only
longer records: while one is drafted nothing is read, and what a flood keeps waiting in the server delays others there.
"""
PAUSE_S: Final = 0.003
"""Within it no more than HANDED_MAX requests are handed over, unless a record has been settled: what is invalid takes
no place in one, and is decoded no faster than this.
"""
DEAF_S: Final = 0.005
"""So long nothing is heard of a principal whose surplus is not even told: counting costs a tenth of refusing."""
REPLIES_WAITING_MAX: Final = 4 * limits.REQUESTS_WAITING_MAX
REPLIES_AT_ONCE: Final = 256
LOOK_S: Final = 0.05
"""While somebody waits for his turn, it is looked this often whether his time is over."""
PATIENCE_S: Final = limits.APPEND_TIMEOUT_MS / 1_000
_NAMES_KEPT: Final = 4 * limits.PRINCIPALS_MAX


class _Asker:
    __slots__ = ("deaf_until_s", "principal", "verb")

    def __init__(self, principal: Principal, verb: str) -> None:
        self.principal = principal
        self.verb = verb
        self.deaf_until_s = 0.0


class Wire:
    """Connects one allocator to the bus."""

    def __init__(self, connection: Connection, subjects: Subjects, allocator: Allocator, *, name: str) -> None:
        """`name`: this allocator's own queue group, so that every allocator hears every request."""
        self._connection = connection
        self._subjects = subjects
        self._allocator = allocator
        self._name = name
        self._service: Service | None = None
        self._listening: list[Subscription] = []
        self._askers: dict[bytes, _Asker] = {}
        self._reporters: dict[bytes, tuple[HostName, str]] = {}
        self._turns = Turns()
        self._told = Buckets[Principal](
            rate_per_s=limits.LIMITED_ANSWERS_PER_PRINCIPAL_PER_S,
            burst=limits.LIMITED_ANSWERS_PER_PRINCIPAL_PER_S,
            keys_max=limits.PRINCIPALS_MAX,
        )
        self._call: asyncio.Handle | None = None
        self._paused_until_s = 0.0
        self._straight = 0
        """How many may still be handed over until then as they come."""
        self._timer: asyncio.TimerHandle | None = None
        self._replies: deque[tuple[bytes, bytes]] = deque()
        self._something = asyncio.Event()
        self._unheard: dict[bytes, bytes] = {}
        self._heard = dict.fromkeys(codec.VERBS, 0)
        self._untold = 0
        self.dropped = Complaints(_log, "messages were dropped")
        self._gate = Gate(connection, subjects, allocator)
        allocator.on_settled = self._settled

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
            subject = self._subjects.requests_all(verb)
            endpoint = EndpointConfig(name=verb, handler=self._take_slowly, subject=subject, queue_group=self._name)
            # Its handler makes a task's work of each request; it stays for a client that subscribes in another way.
            self._connection.tap(subject, self._take)
            await self._service.add_endpoint(endpoint)
        self._listening = [
            await self._connection.listen(self._subjects.alive_all, self._take_heartbeat),
            await self._connection.listen(self._subjects.room_all, self._take_room),
        ]
        await self._gate.start()

    async def stop(self) -> None:
        """Take nothing more."""
        for timer in (self._timer, self._call):
            if timer is not None:
                timer.cancel()
        stopping = asyncio.ensure_future(self._stop())
        await asyncio.wait({stopping}, timeout=STOP_WAIT_S)
        stopping.cancel()

    async def _stop(self) -> None:
        try:
            if self._service is not None:
                await self._service.stop()
            await self._gate.stop()
            for subscription in self._listening:
                await self._connection.stop_listening(subscription)
        except (nats.errors.Error, OSError) as error:
            _log.debug("nothing left to stop: %s", error)

    def _stats(self, endpoint: EndpointStats) -> dict[str, int | str]:
        endpoint.num_requests = self._heard.get(endpoint.name, 0)
        return self.status()

    def status(self) -> dict[str, int | str]:
        """Figures for whoever asks the service: the allocator's, and what was dropped here."""
        return {
            **self._allocator.status(),
            "queued": len(self._turns),
            "dropped_messages": self.dropped.count + self._connection.dropped.count,
            "dropped_unanswered": self._untold,
            "refused_reports": self._gate.refused.count,
        }

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _take_slowly(self, request: Request) -> None:
        self._take(request.subject.encode(), request._msg.reply.encode(), request.data, None)  # noqa: SLF001

    def _take(self, subject: bytes, reply: bytes, body: bytes, _headers: bytes | None) -> None:
        """From the read loop, for each request of a flood too: nothing here may cost much."""
        asker = self._askers.get(subject) or self._meet(subject, reply)
        if asker is None:
            return
        now_s = time.monotonic()
        if now_s < asker.deaf_until_s:
            self._untold += 1
            return
        self._heard[asker.verb] += 1
        if not reply.startswith(INBOXES):
            # Who waits for nothing is told apart before anything is decided; and nobody has us write where he says.
            self.dropped.tell("a request on %r was dropped: no inbox for its answer", subject[:120])
            return
        if not self._turns and self._has_place(now_s):
            self._allocator.ask(asker.principal, asker.verb, body, partial(self._send, reply), now_s)
        elif self._turns.put(Waiting(asker.principal, asker.verb, body, reply, now_s)):
            self._call_hand_over(now_s)
        else:
            self._turn_away(asker, reply, now_s)

    def _has_place(self, now_s: float) -> bool:
        """Whether what comes now may go behind the door at once, nobody being before it; it is counted, then."""
        if now_s >= self._paused_until_s:
            self._paused_until_s, self._straight = now_s + PAUSE_S, HANDED_MAX
        is_full = self._allocator.sequencer.waiting >= HANDED_MAX or len(self._replies) >= REPLIES_WAITING_MAX
        if is_full or not self._straight:
            return False
        self._straight -= 1
        return True

    def _meet(self, subject: bytes, reply: bytes) -> _Asker | None:
        try:
            asker = _Asker(*self._subjects.parse_request(subject.decode()))
        except UnicodeDecodeError:
            self.dropped.tell("a request on %r was dropped: not a subject of ours", subject[:120])
            return None
        except InvalidInputError as error:
            if reply.startswith(INBOXES) and self._may_refuse():
                self._send(reply, Answer(outcome="invalid", field=error.field, message=str(error)))
            return None
        if len(self._askers) >= _NAMES_KEPT:
            self._askers.clear()
        self._askers[subject] = asker
        return asker

    def _turn_away(self, asker: _Asker, reply: bytes, now_s: float) -> None:
        """Too much of this principal waits: some are told so, the rest of a flood is not worth an answer."""
        if not self._may_refuse() or not self._told.take(asker.principal, now_s):
            self._untold += 1
            asker.deaf_until_s = now_s + DEAF_S
            return
        self._allocator.door.counts["limited"] += 1
        said = f"too many requests of {asker.principal} wait already"
        self._send(reply, Answer(outcome=self._allocator.not_done, message=said, retry_after_ms=1_000))

    def _may_refuse(self) -> bool:
        """Whether to refuse what is not decided here: a standby does not, another hears it, too; nor without room."""
        is_alone = self._allocator.not_done == "unavailable"
        return (is_alone or self._allocator.decides) and len(self._replies) < REPLIES_WAITING_MAX

    def _call_hand_over(self, now_s: float) -> None:
        if self._call is None:
            pause_s, loop = self._paused_until_s - now_s, asyncio.get_running_loop()
            self._call = loop.call_later(pause_s, self._hand_over) if pause_s > 0 else loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """Hand over whose turn it is, as far as there is room behind the door."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        now_s = time.monotonic()
        self._paused_until_s, self._straight = now_s + PAUSE_S, 0
        sequencer, patience_from_s = self._allocator.sequencer, now_s - PATIENCE_S
        for _ in range(HANDED_MAX):
            if sequencer.waiting >= HANDED_MAX or len(self._replies) >= REPLIES_WAITING_MAX:
                break
            waiting = self._turns.take()
            if waiting is None:
                return
            if waiting.arrived_s < patience_from_s:
                self._give_up(waiting)
                continue
            respond = partial(self._send, waiting.reply)
            self._allocator.ask(waiting.principal, waiting.verb, waiting.body, respond, waiting.arrived_s)
        if self._turns and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        if self._turns and sequencer.waiting < HANDED_MAX:
            self._call_hand_over(now_s)

    def _look(self) -> None:
        self._timer = None
        for waiting in self._turns.overdue(time.monotonic() - PATIENCE_S):
            self._give_up(waiting)
        self._hand_over()

    def _give_up(self, waiting: Waiting) -> None:
        if not self._may_refuse():
            self._untold += 1
            return
        outcome, said = self._allocator.not_done, "too much waits to be decided"
        self._allocator.door.counts["unknown" if outcome == "outcome_unknown" else "unavailable"] += 1
        self._send(waiting.reply, Answer(outcome=outcome, message=said, retry_after_ms=200))

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def _take_heartbeat(self, subject: bytes, reply: bytes, body: bytes, _headers: bytes | None) -> None:
        try:
            host, agent = self._reporters.get(subject) or self._meet_reporter(subject)
            heartbeat = msgspec.json.decode(body, type=Heartbeat)
        except (InvalidInputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = printable(subject.decode(errors="replace"))
            self.dropped.tell("a heartbeat on %s was dropped: %s", said, error)
            return
        self._allocator.hear(host, agent, heartbeat.run)
        if reply.startswith(INBOXES) and (subject in self._unheard or len(self._unheard) < limits.HOSTS_MAX):
            # One answer for each agent: who sends many has its own last one answered, and takes nobody's place.
            self._unheard[subject] = reply
            self.answer_heartbeats()

    def _meet_reporter(self, subject: bytes) -> tuple[HostName, str]:
        reporter = self._subjects.parse_reporter(subject.decode())
        if len(self._reporters) >= _NAMES_KEPT:
            self._reporters.clear()
        self._reporters[subject] = reporter
        return reporter

    def answer_heartbeats(self) -> None:
        """Answer from what is certain: not while a record is in flight."""
        if not self._unheard or self._allocator.sequencer.in_flight is not None or self._allocator.trouble:
            return
        for subject, reply in self._unheard.items():
            if len(self._replies) >= REPLIES_WAITING_MAX:
                break
            host, agent = self._reporters.get(subject) or self._meet_reporter(subject)
            self._replies.append((reply, codec.encode(heard(self._allocator.sequencer.state, host, agent))))
            self._something.set()
        self._unheard.clear()

    # --- room ---------------------------------------------------------------------------------------------------------

    def _take_room(self, subject: bytes, _reply: bytes, body: bytes, _headers: bytes | None) -> None:
        try:
            notice = msgspec.json.decode(body, type=RoomNotice)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.dropped.tell("a notice of room at %r was dropped: %s", subject[:120], error)
            return
        self._allocator.hear_room(notice)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _settled(self) -> None:
        self.answer_heartbeats()
        self._send_at_once()
        if self._turns:
            self._hand_over()
        self._paused_until_s = 0.0

    def _send(self, reply: bytes, answer: Answer) -> None:
        self._replies.append((reply, codec.encode(answer)))
        # Those of a record are sent by `_settled`; but others may have to go while those wait for a word of the log.
        self._something.set()

    def _send_at_once(self) -> None:
        """Without a turn of the loop, if the socket is free: whoever asks alone waits for just this."""
        try:
            while self._replies and self._connection.publish_at_once(self._next_replies()):
                for _ in range(min(REPLIES_AT_ONCE, len(self._replies))):
                    self._replies.popleft()
        except UnavailableError as error:
            _log.debug("answers could not be sent: %s", error)
        if self._replies:
            self._something.set()

    def _next_replies(self) -> list[tuple[bytes, bytes]]:
        return list(islice(self._replies, REPLIES_AT_ONCE))

    async def send_replies(self) -> None:
        """Send answers until cancelled, many in one piece."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._replies:
                batch = self._next_replies()
                for _ in batch:
                    self._replies.popleft()
                try:
                    await self._connection.publish_all(batch)
                except (UnavailableError, nats.errors.Error) as error:
                    _log.debug("answers could not be sent: %s", error)
