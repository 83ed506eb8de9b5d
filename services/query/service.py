"""What listens on the bus for questions, and how many of them are in work at once."""

import asyncio
import logging
from collections import Counter
from typing import Final

import msgspec
import nats.errors
from nats import micro
from nats.micro.request import Request
from nats.micro.service import Service

from leasehold import __version__
from leasehold.events import codec
from leasehold.events.errors import InvalidInputError, LeaseholdError, UnavailableError
from leasehold.events.identities import Principal
from leasehold.events.position import end_of_record
from leasehold.events.questions import QUESTIONS, History, Reading
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection
from leasehold.services.ledger.port import Ledger
from leasehold.services.query.answering import Answerer
from leasehold.services.query.decoding import decode_question
from leasehold.services.query.past import Past
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore

_log: Final = logging.getLogger(__name__)

NAME: Final = "leasehold-query"
QUEUE_GROUP: Final = "query"
READING_BYTES_MAX: Final = 900 * 1024
FIELD_CHARS_MAX: Final = 80
MESSAGE_CHARS_MAX: Final = 500
"""What was sent is told back in part only."""
IN_WORK_MAX: Final = 256
IN_WORK_PER_PRINCIPAL_MAX: Final = 64
"""Nobody can keep all places with questions that have to wait."""
POSITION_WAIT_S: Final = 1.0
STOP_WAIT_S: Final = 2.0
_ROWS: Final = ("devices", "leases", "hosts", "history", "descriptions")


class QueryService:
    """Answers the questions of one cluster, as one of any number of services that share the load."""

    def __init__(
        self, connection: Connection, subjects: Subjects, reader: LedgerReader, ledger: Ledger, store: FoldStore
    ) -> None:
        """All of these stay their owner's; `store` is the one that `reader` keeps its index in."""
        self._connection = connection
        self._subjects = subjects
        self._reader = reader
        self._past = Past(reader, ledger, store)
        self._answerer: Answerer | None = None
        self._service: Service | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._askers: Counter[Principal] = Counter()

    async def start(self) -> None:
        """Listen; the reader must have been started, and may still be catching up.

        Raises:
            UnavailableError: the bus cannot be reached.
        """
        self._answerer = Answerer(self._reader.state)
        try:
            self._service = await micro.add_service(
                self._connection,
                name=NAME,
                version=__version__,
                description="Answers questions about devices, leases, hosts and the past",
                queue_group=QUEUE_GROUP,
            )
            for verb in QUESTIONS:
                await self._service.add_endpoint(
                    name=verb, subject=self._subjects.requests_all(verb), handler=self._take
                )
            await self._connection.flush()
        except nats.errors.Error as error:
            raise UnavailableError(f"the query service cannot listen: {error}") from error

    async def stop(self) -> None:
        """Listen no more, and finish what is in work if that takes no longer than two seconds."""
        if self._service is not None:
            stopping, self._service = asyncio.ensure_future(_stop(self._service)), None
            await asyncio.wait({stopping}, timeout=STOP_WAIT_S)
            stopping.cancel()
        if self._working:
            await asyncio.wait(self._working, timeout=STOP_WAIT_S)
        for task in tuple(self._working):
            task.cancel()

    async def _take(self, request: Request) -> None:
        """Begin to work on a question; this runs one after the other, so it must not wait for the answer."""
        try:
            asker, verb = self._subjects.parse_request(request.subject)
        except InvalidInputError as error:
            await _respond(request, _invalid(error))
            return
        if len(self._working) >= IN_WORK_MAX or self._askers[asker] >= IN_WORK_PER_PRINCIPAL_MAX:
            await _respond(request, self._unavailable("too many questions are in work: ask again later"))
            return
        task = asyncio.create_task(self._work(request, asker, verb))
        self._askers[asker] += 1
        self._working.add(task)
        task.add_done_callback(lambda done: self._done(done, asker))

    def _done(self, task: asyncio.Task[None], asker: Principal) -> None:
        self._working.discard(task)
        self._askers[asker] -= 1
        if not self._askers[asker]:
            del self._askers[asker]

    async def _work(self, request: Request, asker: Principal, verb: str) -> None:
        try:
            reading = await self._answer(asker, verb, request.data)
        except InvalidInputError as error:
            reading = _invalid(error)
        except LeaseholdError as error:
            reading = self._unavailable(str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not look like silence
            _log.exception("a question of %s (%s) could not be answered", asker, verb)
            reading = self._unavailable(f"it could not be answered: {type(error).__name__}")
        await _respond(request, reading)

    async def _answer(self, asker: Principal, verb: str, body: bytes) -> Reading:
        question = decode_question(verb, body)
        reader, answerer = self._reader, self._answerer
        assert answerer is not None
        if reader.failure is None and not reader.caught_up.is_set():
            raise UnavailableError(f"reading the log: at record {reader.state.head.sequence} of {reader.goal}")
        is_there = await reader.wait_for(question.min_position, POSITION_WAIT_S)
        if reader.failure is not None:
            raise UnavailableError(f"reading the log has stopped: {reader.failure}")
        if not is_there:
            raise UnavailableError(f"position {question.min_position} has not been read yet")
        if isinstance(question, History):
            return await self._past.answer(question)
        return answerer.answer(question, asker)

    def _unavailable(self, message: str) -> Reading:
        as_of = end_of_record(self._reader.state.head.sequence)
        return Reading(outcome="unavailable", as_of=as_of, message=message)


def _invalid(error: InvalidInputError) -> Reading:
    return Reading(outcome="invalid", field=error.field[:FIELD_CHARS_MAX], message=str(error)[:MESSAGE_CHARS_MAX])


def fitted(reading: Reading, bytes_max: int = READING_BYTES_MAX) -> bytes:
    """The answer as bytes; rows that do not fit are left for the next page."""
    body = codec.encode(reading)
    while len(body) > bytes_max:
        name = max(_ROWS, key=lambda each: len(getattr(reading, each)))
        rows = getattr(reading, name)
        if len(rows) <= 1:
            return codec.encode(Reading(outcome="unavailable", as_of=reading.as_of, message="too large to be sent"))
        keep = max(1, len(rows) * bytes_max // len(body) - 1)
        reading = msgspec.structs.replace(reading, more=True, **{name: rows[:keep]})
        body = codec.encode(reading)
    return body


async def _respond(request: Request, reading: Reading) -> None:
    try:
        await request.respond(fitted(reading))
    except (UnavailableError, nats.errors.Error, ValueError) as error:
        # Who asked hears nothing and asks again; a question without a place for the answer has none.
        _log.debug("an answer could not be sent: %s", error)


async def _stop(service: Service) -> None:
    try:
        await service.stop()
    except (nats.errors.Error, OSError) as error:
        _log.debug("the query service stopped without telling the bus: %s", error)
