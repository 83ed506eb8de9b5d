"""Answers to questions of the past, from the read models beside an archive, and from its records."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from leasehold.events.errors import UnavailableError
from leasehold.events.identities import Principal
from leasehold.events.questions import (
    Archived,
    Blame,
    DevicesAt,
    Diff,
    DomainsAt,
    Owners,
    Question,
    Reading,
    Utilisation,
    Who,
)
from leasehold.services.archive.blame import blame
from leasehold.services.archive.differences import diff
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.lookup import Glass, Lookup
from leasehold.services.archive.owners import owners, who
from leasehold.services.archive.then import Then
from leasehold.services.archive.usage import utilisation

AT_ONCE: Final = 4
"""Questions that look at the models at the same time; others wait for their turn."""
PATIENCE_S: Final = 1.0
"""Who asks over the bus gives up soon after."""


class PastAnswerer:
    """Answers PAST_QUESTIONS from the models at `path`, which another task or process may be writing. Reads only."""

    def __init__(
        self,
        ledger: ArchivedLedger,
        path: Path,
        *,
        trouble: Callable[[], str] = lambda: "",
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`ledger` stays its owner's. `trouble` says why archiving does not go on, for the answer to `archived`.

        Args:
            patience_s: How long one answer may take, with the time until it is its turn.
        """
        self._ledger = ledger
        self._path = path
        self._trouble = trouble
        self._patience_s = patience_s
        self._room = asyncio.Semaphore(AT_ONCE)
        self._free: list[Glass] = []
        self._closed = False
        then = Then()
        self._handlers: dict[type[Question], Callable[[Lookup, Any], Awaitable[Reading]]] = {
            Owners: owners,
            DevicesAt: then.devices_at,
            DomainsAt: then.domains_at,
            Diff: diff,
            Who: who,
            Utilisation: utilisation,
        }

    async def answer(self, question: Question, asker: Principal) -> Reading:
        """The answer, in bounded time; several may be asked at once.

        Raises:
            InvalidInputError: the question cannot be answered as it is put; the field is named.
            UnavailableError: it cannot be answered now: a position that was not read yet, too many questions at once,
                or one that takes too long.
            StorageError, CorruptLedgerError: models or records cannot be read.
        """
        async with self._look() as look:
            if isinstance(question, Archived):
                view = await self._ledger.view(modelled=look.head.sequence, trouble=self._trouble())
                return Reading(outcome="ok", as_of=look.as_of, archive=view)
            if isinstance(question, Blame):
                return await blame(look, question, asker)
            return await self._handlers[type(question)](look, question)

    @asynccontextmanager
    async def _look(self) -> AsyncIterator[Lookup]:
        deadline_s = time.monotonic() + self._patience_s
        try:
            async with asyncio.timeout(self._patience_s):
                await self._room.acquire()
        except TimeoutError:
            raise UnavailableError("too many questions of the past are asked at once") from None
        try:
            glass = self._free.pop() if self._free else await Glass.open(self._path)
            is_sound = False
            try:
                async with glass.look(self._ledger, deadline_s) as look:
                    yield look
                is_sound = True
            finally:
                if is_sound and not self._closed:
                    self._free.append(glass)
                else:
                    await glass.close()
        finally:
            self._room.release()

    async def close(self) -> None:
        """Close what is open; a second time does nothing. What is being answered ends by itself."""
        self._closed = True
        while self._free:
            await self._free.pop().close()
