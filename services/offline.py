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
from leasehold.events.errors import CorruptLedgerError, InvalidInputError, UnavailableError
from leasehold.events.questions import Question, Reading
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
        self._answerer: PastAnswerer | None = None

    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            InvalidInputError: there is no archive.
            CorruptLedgerError: it is damaged, or less than was read of it before.
            StorageError: it cannot be read, or models cannot be made.
        """
        async with AsyncExitStack() as opening:
            ledger = ArchivedLedger(self._directory)
            opening.push_async_callback(ledger.close)
            end = await self._end(ledger)
            path = self._directory / models.FILE
            if not await self._is_complete(ledger, path, end):
                path = await self._built(ledger, end, path, opening)
            self._answerer = PastAnswerer(ledger, path, patience_s=PATIENCE_S)
            opening.push_async_callback(self._answerer.close)
            self._opened = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._answerer = None
        await self._opened.aclose()

    async def question(self, verb: str, question: Question) -> Reading:
        """See `past.Source`."""
        if self._answerer is None:
            raise UnavailableError("the archive is not open: use `async with OfflineArchive(directory)`")
        reading = await self._answerer.answer(decode_question(verb, codec.encode(question)), home.own_principal())
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

    async def _is_complete(self, ledger: ArchivedLedger, path: Path, end: End) -> bool:
        """Whether the models at `path` are of this archive and go to its end."""
        ledger_id = (await ledger.meta(ledger.segments()[0])).ledger_id
        give_up_s = time.monotonic() + BEHIND_S_MAX
        while (head := await models.noted_head(path)) is not None and head.ledger_id in ("", ledger_id):
            if head.sequence == end.sequence:
                return head.chain == end.chain
            if head.sequence > end.sequence:
                await self._check_growth(ledger, path, head.sequence)
                return True
            if time.monotonic() > give_up_s:
                return False
            await asyncio.sleep(POLL_S)
        return False

    async def _check_growth(self, ledger: ArchivedLedger, path: Path, sequence: int) -> None:
        """Models know more than the archive had a moment ago: it must have grown meanwhile."""
        end = await self._end(ledger)
        if end.sequence < sequence:
            said = f"{path} was made from records up to {sequence}, but the archive ends at {end.sequence}"
            raise CorruptLedgerError(said, sequence=end.sequence + 1)

    async def _built(self, ledger: ArchivedLedger, end: End, beside: Path, opening: AsyncExitStack) -> Path:
        """Complete models in a temporary directory, from those beside the archive as far as these go."""
        self._say(f"no read models go to the end of {self._directory}: made for this once, from {end.sequence} records")
        path = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="leasehold-"))) / models.FILE
        if await models.noted_head(beside) is not None:
            await asyncio.to_thread(_copy, beside, path)
        await build(ledger, path)
        return path


def _copy(source: Path, target: Path) -> None:
    """Copy models as they are in this moment; what cannot be copied is left to be made anew."""
    try:
        uri = f"{source.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as readable, closing(sqlite3.connect(target)) as writable:
            readable.backup(writable)
    except sqlite3.Error:
        models.remove(target)
