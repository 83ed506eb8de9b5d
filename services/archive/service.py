"""The archive's process: writes the ledger's records down, keeps the read models beside them, and answers questions."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from leasehold.events.errors import LeaseholdError, StorageError, UnavailableError
from leasehold.events.identities import Principal
from leasehold.events.position import end_of_record
from leasehold.events.questions import PAST_QUESTIONS, Archived, ArchiveView, Reading
from leasehold.events.subjects import Subjects
from leasehold.services.archive.answers import PastAnswerer
from leasehold.services.archive.archiver import Archiver
from leasehold.services.archive.keeper import ModelsKeeper
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.rebuilding import MODELS_FILE, is_asked, remove_if_asked
from leasehold.services.archive.writer import ArchiveWriter
from leasehold.services.connection import Connection
from leasehold.services.ledger.port import Ledger
from leasehold.services.query.decoding import decode_question
from leasehold.services.questioning import Questioning

_log: Final = logging.getLogger(__name__)

NAME: Final = "leasehold-archive"
QUEUE_GROUP: Final = "archive"
POSITION_WAIT_S: Final = 1.0
RETRY_S: Final = 1.0


class ArchiveService:
    """One archive of one cluster; several, each in its own directory, share the questions."""

    def __init__(self, connection: Connection, subjects: Subjects, ledger: Ledger, directory: Path) -> None:
        """`connection` and `ledger` stay their owner's. Nothing is touched yet."""
        self._writer = ArchiveWriter(directory, subjects.cluster)
        self._archived = ArchivedLedger(directory)
        self._archiver = Archiver(ledger, self._writer, on_written=self._archived.wake)
        self._models: _Models | None = None
        self._models_trouble = ""
        self.listening = Questioning(
            connection,
            subjects,
            name=NAME,
            what="Keeps the ledger's records, and answers questions about the past",
            group=QUEUE_GROUP,
            verbs=PAST_QUESTIONS,
            answer=self._answer,
            as_of=self._as_of,
            era=lambda: self._writer.tip.era,
        )

    @property
    def trouble(self) -> str:
        """What is wrong at the moment, with the records or with the models; empty: nothing."""
        models = self._models_trouble or (self._models.keeper.trouble if self._models else "")
        return "; ".join(each for each in (self._archiver.trouble, models and f"the read models: {models}") if each)

    async def run(self) -> None:
        """Archive, and answer, until cancelled.

        Raises:
            StoreInUseError: another process archives into this directory.
            CorruptLedgerError: the ledger is not the one that was archived.
            UnavailableError: the bus cannot be reached.
        """
        await self._writer.lock()
        try:
            await self.listening.start()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._archiver.run())
                tasks.create_task(self._keep_models())
        finally:
            await self.listening.stop()
            await self._archived.close()
            try:
                await self._writer.close()
            except StorageError as error:
                _log.warning("how far the archive goes is not noted: %s", error)

    # --- models -------------------------------------------------------------------------------------------------

    async def _keep_models(self) -> None:
        """Keep the models until cancelled; trouble with them stops nothing else."""
        directory, complaint = self._archived.directory, ""
        while True:
            models = _Models(self._archived, directory / MODELS_FILE, trouble=lambda: self.trouble)
            try:
                remove_if_asked(directory)
                await models.keeper.start()
                self._models, self._models_trouble = models, ""
                await models.run_until(lambda: is_asked(directory))
            except LeaseholdError as error:
                self._models_trouble = str(error)
                if complaint != str(error):
                    _log.error("the read models are not kept: %s", error)
                complaint = str(error)
            finally:
                self._models = None
                await models.stop()
            await asyncio.sleep(RETRY_S)

    # --- answers ------------------------------------------------------------------------------------------------

    def _as_of(self) -> int:
        sequence = self._models.keeper.sequence if self._models else 0
        return end_of_record(sequence) if sequence else 0

    async def _answer(self, asker: Principal, verb: str, body: bytes) -> Reading:
        question = decode_question(verb, body)
        models = self._models
        if isinstance(question, Archived):
            return Reading(outcome="ok", as_of=self._as_of(), archive=await self._view())
        if self._archiver.is_of_another_past:
            raise UnavailableError(f"this archive's past is not the ledger's: {self._archiver.trouble}")
        if not self._archiver.has_looked or models is None or not models.keeper.is_in_place():
            raise UnavailableError(self.trouble or "the read models are being opened: ask again")
        if question.min_position and not await models.keeper.wait_for(question.min_position, POSITION_WAIT_S):
            raise UnavailableError(f"position {question.min_position} has not been archived and read yet")
        return await models.answerer.answer(question, asker)

    async def _view(self) -> ArchiveView:
        """How it stands, whatever is wrong: that above all has to be told."""
        modelled = self._models.keeper.sequence if self._models else 0
        try:
            return await self._archived.view(modelled=modelled, trouble=self.trouble)
        except LeaseholdError as error:
            tip = self._writer.tip
            return ArchiveView(
                ledger_id=tip.ledger_id, era=tip.era, sequence=tip.sequence, chain=tip.chain,
                decided_at_ns=tip.decided_at_ns, segments=0, bytes=0, modelled=modelled,
                trouble=self.trouble or str(error),
            )  # fmt: skip


class _Models:
    """One opening of the read models: who writes them, and who answers from them."""

    def __init__(self, archived: ArchivedLedger, path: Path, *, trouble: Callable[[], str]) -> None:
        self.keeper = ModelsKeeper(archived, path)
        self.answerer = PastAnswerer(archived, path, trouble=trouble)

    async def run_until(self, is_over: Callable[[], bool]) -> None:
        """Keep them until it is over or they were taken away, looked at once a second, or they cannot be kept: then the
        error is raised.
        """
        running = asyncio.create_task(self.keeper.run())
        try:
            while not running.done() and not is_over() and self.keeper.is_in_place():
                await asyncio.wait({running}, timeout=RETRY_S)
            if running.done():
                running.result()
                raise self.keeper.failure or UnavailableError("nobody keeps them")
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def stop(self) -> None:
        """Close everything."""
        await self.answerer.close()
        await self.keeper.stop()
