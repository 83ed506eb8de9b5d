"""What answers the questions of one cluster, from the fold and from the log."""

from typing import Final

from leasehold.events.errors import UnavailableError
from leasehold.events.identities import Principal
from leasehold.events.position import end_of_record
from leasehold.events.questions import QUESTIONS, History, Reading
from leasehold.events.subjects import Subjects
from leasehold.projections import selectors
from leasehold.services.connection import Connection
from leasehold.services.ledger.port import Ledger
from leasehold.services.query.answering import Answerer
from leasehold.services.query.decoding import decode_question
from leasehold.services.query.past import Past
from leasehold.services.questioning import Questioning
from leasehold.services.reader import LedgerReader
from leasehold.services.store import FoldStore

NAME: Final = "leasehold-query"
QUEUE_GROUP: Final = "query"
POSITION_WAIT_S: Final = 1.0


class QueryService:
    """Answers the questions of one cluster, as one of any number of services that share the load."""

    def __init__(
        self, connection: Connection, subjects: Subjects, reader: LedgerReader, ledger: Ledger, store: FoldStore
    ) -> None:
        """All of these stay their owner's; `store` is the one that `reader` keeps its index in."""
        self._reader = reader
        self._past = Past(reader, ledger, store)
        self._answerer: Answerer | None = None
        self.listening = Questioning(
            connection,
            subjects,
            name=NAME,
            what="Answers questions about devices, leases, hosts and the past",
            group=QUEUE_GROUP,
            verbs=QUESTIONS,
            answer=self._answer,
            as_of=lambda: end_of_record(reader.state.head.sequence),
            era=lambda: reader.state.head.era,
        )

    async def start(self) -> None:
        """Listen; the reader must have been started, and may still be catching up.

        Raises:
            UnavailableError: the bus cannot be reached.
        """
        selectors.load()
        self._answerer = Answerer(self._reader.state)
        await self.listening.start()

    async def stop(self) -> None:
        """Listen no more, and finish what is in work if that takes no longer than two seconds."""
        await self.listening.stop()

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
