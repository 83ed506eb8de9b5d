"""What listens on the bus for questions, whoever answers them, and how many of them are in work at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
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
from leasehold.events.questions import Reading
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection

_log: Final = logging.getLogger(__name__)

READING_BYTES_MAX: Final = 900 * 1024
FIELD_CHARS_MAX: Final = 80
MESSAGE_CHARS_MAX: Final = 500
"""What was sent is told back in part only."""
IN_WORK_MAX: Final = 256
IN_WORK_PER_PRINCIPAL_MAX: Final = 64
"""Nobody can keep all places with questions that have to wait."""
STOP_WAIT_S: Final = 2.0
_ROWS: Final = (
    "devices", "leases", "hosts", "history", "descriptions", "orders", "owners", "changes", "causes", "usage",
    "domains", "seen_domains",
)  # fmt: skip
_TOGETHER: Final = {"changes": "device", "usage": "name"}
"""Rows of which those that have this in common are never parted: the next page begins behind it."""

Answer = Callable[[Principal, str, bytes], Awaitable[Reading]]
"""Answers what a principal asks: the verb, and the question as it was sent. May raise errors of ours."""


class Questioning:
    """One service on the bus that answers questions; any number of equal ones share the load."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        *,
        name: str,
        what: str,
        group: str,
        verbs: Iterable[str],
        answer: Answer,
        as_of: Callable[[], int],
        era: Callable[[], int],
    ) -> None:
        """Nobody listens yet.

        Args:
            name: How it is called on the bus, like `leasehold-query`; `what` says what it does.
            group: The queue group that shares the questions.
            verbs: Which questions.
            as_of: How far is read, for answers that say that there is none.
            era: Of the log that is read; each answer says it.
        """
        self._connection = connection
        self._subjects = subjects
        self._name = name
        self._what = what
        self._group = group
        self._verbs = tuple(verbs)
        self._answer = answer
        self._as_of = as_of
        self._era = era
        self._service: Service | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._askers: Counter[Principal] = Counter()

    async def start(self) -> None:
        """Listen.

        Raises:
            UnavailableError: the bus cannot be reached.
        """
        try:
            self._service = await micro.add_service(
                self._connection, name=self._name, version=__version__, description=self._what, queue_group=self._group
            )
            for verb in self._verbs:
                await self._service.add_endpoint(
                    name=verb, subject=self._subjects.requests_all(verb), handler=self._take
                )
            await self._connection.flush()
        except nats.errors.Error as error:
            raise UnavailableError(f"{self._name} cannot listen: {error}") from error

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
        await _respond(request, msgspec.structs.replace(reading, era=self._era()))

    def _unavailable(self, message: str) -> Reading:
        return Reading(outcome="unavailable", as_of=self._as_of(), message=message)


def _invalid(error: InvalidInputError) -> Reading:
    return Reading(outcome="invalid", field=error.field[:FIELD_CHARS_MAX], message=str(error)[:MESSAGE_CHARS_MAX])


def fitted(reading: Reading, bytes_max: int = READING_BYTES_MAX) -> bytes:
    """The answer as bytes; rows that do not fit are left for the next page."""
    body = codec.encode(reading)
    while len(body) > bytes_max:
        name = max(_ROWS, key=lambda each: len(getattr(reading, each)))
        rows = getattr(reading, name)
        keep = max(1, len(rows) * bytes_max // len(body) - 1)
        while name in _TOGETHER and 0 < keep < len(rows) and _is_one(name, rows[keep - 1], rows[keep]):
            keep -= 1
        if len(rows) <= 1 or not keep:
            return codec.encode(Reading(outcome="unavailable", as_of=reading.as_of, message="too large to be sent"))
        reading = msgspec.structs.replace(reading, more=True, **{name: rows[:keep]})
        body = codec.encode(reading)
    return body


def _is_one(name: str, row: msgspec.Struct, other: msgspec.Struct) -> bool:
    shared = _TOGETHER[name]
    return bool(getattr(row, shared) == getattr(other, shared))


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
        _log.debug("a service stopped without telling the bus: %s", error)
