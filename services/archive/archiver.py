"""Brings the ledger into the archive: catches up, stays with it, and goes on by itself behind trouble with the disk."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import CorruptLedgerError, LeaseholdError, StorageError, StoreInUseError, UnavailableError
from leasehold.events.record import chain_hash
from leasehold.services.archive.chain import tip_of
from leasehold.services.archive.writer import ArchiveWriter
from leasehold.services.ledger.port import Ledger, last_beyond_doubt

_log: Final = logging.getLogger(__name__)

RETRY_S: Final = 1.0
NOTE_S: Final = limits.HEAD_NOTE_MS / 1_000


class Archiver:
    """Follows one ledger with one writer, which must be locked, and stays its owner's, as the ledger does."""

    def __init__(self, ledger: Ledger, writer: ArchiveWriter, on_written: Callable[[], None]) -> None:
        """`on_written` is called whenever there is more in the archive."""
        self.trouble = ""
        """Why nothing is archived at the moment; empty: it is."""
        self.has_looked = False
        """Whether the archive was held against the ledger, or cannot be; before that nothing may be told from it."""
        self.is_of_another_past = False
        """Whether the ledger was restored without what is archived here: whoever asks would be told what never was."""
        self._ledger = ledger
        self._writer = writer
        self._on_written = on_written
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Archive until cancelled.

        Raises:
            CorruptLedgerError: the ledger is not the one that was archived, or a record does not fit; it is named.
        """
        noting = asyncio.create_task(self._note())
        try:
            while True:
                try:
                    await self._work()
                except (StorageError, StoreInUseError, UnavailableError) as error:
                    self._say(error)
                await asyncio.sleep(RETRY_S)
        finally:
            noting.cancel()
            await asyncio.wait({noting})

    async def _work(self) -> None:
        """From the archive's end on, until something goes wrong."""
        await self._writer.load()
        self._on_written()
        last = await self._check_ledger()
        async with aclosing(self._ledger.follow(self._writer.tip.sequence)) as batches:
            if last == self._writer.tip.sequence:
                self._go_on()
            async for batch in batches:
                try:
                    await self._writer.write(batch)
                finally:
                    self._moved.set()
                    self._on_written()
                self._go_on()
        raise UnavailableError("the ledger was closed under its archive")

    async def _check_ledger(self) -> int:
        """Whether the ledger is the one that was archived; its last sequence.

        Raises:
            CorruptLedgerError: it is another one, or shorter; the first record that is wrong is named.
            StorageError: it was restored, but not from all that stands here.
            UnavailableError: it cannot be read now.
        """
        tip, vouched = self._writer.tip, self._writer.vouched
        known = vouched.sequence if vouched else tip.sequence
        last = await last_beyond_doubt(self._ledger, known)
        found = await self._read(tip.sequence) if 0 < tip.sequence <= last else b""
        fits = not found or chain_hash(found) == tip.chain
        was_restored = last > 0 and tip_of(last, await self._read(last)).era > tip.era
        self.is_of_another_past = not (fits and last >= (tip.sequence if was_restored else known))
        if not self.is_of_another_past:
            self.has_looked = True
            return last
        if was_restored:
            raise StorageError(
                f"the ledger was restored from less than the {tip.sequence} records in {self._writer.directory}: move "
                "that directory to where it can be kept, and the archive is made anew from the ledger"
            )
        if last < known:
            raise CorruptLedgerError(f"missing: the log ends at {last}, but {known} are archived", sequence=last + 1)
        raise CorruptLedgerError(
            f"its hash is {chain_hash(found)[:12]}…, but {tip.chain[:12]}… is archived", sequence=tip.sequence
        )

    async def _read(self, sequence: int) -> bytes:
        body = await self._ledger.read(sequence)
        if body is None:
            raise CorruptLedgerError("it is not there any more", sequence=sequence)
        return body

    async def _note(self) -> None:
        """Note how far the archive goes, twice a second at most."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                await self._writer.note()
            except StorageError as error:
                _log.warning("how far the archive goes is not noted: %s", error)
            await asyncio.sleep(NOTE_S)

    def _say(self, error: LeaseholdError) -> None:
        if str(error) != self.trouble:
            _log.error("nothing is archived behind record %d: %s", self._writer.tip.sequence, error)
        self.trouble = str(error)
        self.has_looked = True

    def _go_on(self) -> None:
        if self.trouble:
            _log.warning("archiving goes on behind record %d", self._writer.tip.sequence)
        self.trouble = ""
