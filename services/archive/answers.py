"""Answers to questions of the past, from the read models beside an archive, and from its records."""

from collections.abc import Callable
from pathlib import Path

from leasehold.events.identities import Principal
from leasehold.events.questions import Question, Reading
from leasehold.services.archive.ledger import ArchivedLedger


class PastAnswerer:
    """Answers PAST_QUESTIONS from the models at `path`, which another task or process may be writing. Reads only."""

    def __init__(self, ledger: ArchivedLedger, path: Path, *, trouble: Callable[[], str] = lambda: "") -> None:
        """`ledger` stays its owner's. `trouble` says why archiving does not go on, for the answer to `archived`."""
        self._ledger = ledger
        self._path = path
        self._trouble = trouble

    async def answer(self, question: Question, asker: Principal) -> Reading:
        """The answer, in bounded time; several may be asked at once.

        Raises:
            InvalidInputError: the question cannot be answered as it is put; the field is named.
            UnavailableError: it cannot be answered now: a position that was not read yet, too many questions at once,
                or one that takes too long.
            StorageError, CorruptLedgerError: models or records cannot be read.
        """
        return Reading(outcome="unavailable", message=f"{asker} asks {type(question).__name__}: not yet")

    async def close(self) -> None:
        """Close what is open; a second time does nothing."""
