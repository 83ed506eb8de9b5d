"""An archive's directory as a source of answers about the past: without a bus, without writing anything into it."""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from leasehold.events import codec
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, StorageError, UnavailableError
from leasehold.events.questions import Archived, Question, Reading
from leasehold.services import home
from leasehold.services.archive import models
from leasehold.services.archive.answers import PastAnswerer
from leasehold.services.archive.keeper import build
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.segments import End
from leasehold.services.query.decoding import decode_question

BEHIND_S_MAX: Final = 1.0
"""How long read models that another process keeps may take to come to the archive's end, before we make our own."""
POLL_S: Final = 0.05
PATIENCE_S: Final = 300.0
"""How long one answer may take: nobody else waits for it."""


class OfflineArchive:
    """An archive in a directory, asked directly; see `past.Source`. Another process may be writing it.

    The read models beside the archive are used when they go to its end. Otherwise models are made in a temporary
    directory, which takes as long as reading all of the archive.
    """

    def __init__(self, directory: str | Path, *, say: Callable[[str], None] = lambda _text: None) -> None:
        """Nothing is opened yet. `say` hears a sentence when the answer will take longer."""
        self._directory = Path(directory)
        self._say = say
        self._opened = AsyncExitStack()
        self._ledger: ArchivedLedger | None = None
        self._answerer: PastAnswerer | None = None

    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            InvalidInputError: there is no archive.
            CorruptLedgerError: it is damaged, or less than was read of it before.
            StorageError: it cannot be read, or models cannot be made.
        """
        async with AsyncExitStack() as opening:
            self._ledger = ArchivedLedger(self._directory)
            opening.push_async_callback(self._ledger.close)
            end = await self._end(self._ledger)
            path = self._directory / models.FILE
            if not await self._is_complete(path, end):
                path = await self._built(self._ledger, end, path, opening)
            self._answerer = PastAnswerer(self._ledger, path, patience_s=PATIENCE_S)
            opening.push_async_callback(self._answerer.close)
            self._opened = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._ledger = self._answerer = None
        await self._opened.aclose()

    async def question(self, verb: str, question: Question) -> Reading:
        """See `past.Source`."""
        if self._answerer is None or self._ledger is None:
            raise UnavailableError("the archive is not open: use `async with OfflineArchive(directory)`")
        asked = decode_question(verb, codec.encode(question))
        if isinstance(asked, Archived):
            head = await models.noted_head(self._directory / models.FILE)
            view = await self._ledger.view(modelled=head.sequence if head else 0, trouble="")
            return Reading(outcome="ok", archive=view)
        reading = await self._answerer.answer(asked, home.own_principal())
        if reading.outcome in ("invalid", "not_found"):
            raise InvalidInputError(reading.message.removeprefix(f"{reading.field}: "), field=reading.field)
        if reading.outcome != "ok":
            raise UnavailableError(reading.message)
        return reading

    async def _end(self, ledger: ArchivedLedger) -> End:
        if not self._directory.is_dir():
            raise InvalidInputError(f"{self._directory} is not a directory", field="archive")
        end = await ledger.end()
        if end is None:
            inside = self._directory / "archive"
            hint = f"; there is one in {inside}" if inside.is_dir() else ", or it has no records yet"
            raise InvalidInputError(f"{self._directory} is no archive's directory{hint}", field="archive")
        return end

    async def _is_complete(self, path: Path, end: End) -> bool:
        """Whether the models at `path` are of this archive and go to its end."""
        give_up_s = time.monotonic() + BEHIND_S_MAX
        while (head := await models.noted_head(path)) is not None:
            if head.sequence == end.sequence:
                return head.chain == end.chain
            if head.sequence > end.sequence:
                return await self._has_grown(head.sequence, path)
            if time.monotonic() > give_up_s:
                return False
            await asyncio.sleep(POLL_S)
        return False

    async def _has_grown(self, sequence: int, path: Path) -> bool:
        assert self._ledger is not None
        end = await self._end(self._ledger)
        if end.sequence < sequence:
            said = f"{path} was made from records up to {sequence}, but the archive ends at {end.sequence}"
            raise CorruptLedgerError(said, sequence=end.sequence + 1)
        return True

    async def _built(self, ledger: ArchivedLedger, end: End, beside: Path, opening: AsyncExitStack) -> Path:
        """Complete models in a temporary directory, from those beside the archive as far as these go."""
        self._say(f"no read models go to the end of {self._directory}: made for this once, from {end.sequence} records")
        path = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="leasehold-"))) / models.FILE
        if await models.noted_head(beside) is not None:
            await asyncio.to_thread(_copy, beside, path)
        await build(ledger, path)
        return path


def _copy(source: Path, target: Path) -> None:
    try:
        uri = f"{source.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as readable, closing(sqlite3.connect(target)) as writable:
            readable.backup(writable)
    except sqlite3.Error as error:
        raise StorageError(f"{source} cannot be copied to {target}: {error}") from error
