"""Keeps the read models beside an archive: follows its records, and writes what they say, in transactions of their own.

Archiving does not wait for this: the models follow the archive. What is lost of them is built again from it.
"""

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

from leasehold.events.errors import LeaseholdError, StorageError, UnavailableError
from leasehold.events.position import sequence_of
from leasehold.events.record import chain_hash
from leasehold.projections.intervals import IntervalFold
from leasehold.projections.modelrows import ModelsHead
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.models import Models, works_of
from leasehold.services.ledger.port import Entry

_log: Final = logging.getLogger(__name__)

EVENTS_PER_TRANSACTION: Final = 8_000
SLICE_NS: Final = 4_000_000
"""Folding lets the rest of the loop go on after this long."""
GATHER_S: Final = 0.05
"""From one transaction to the next, unless somebody waits: one record costs nearly as much to write as what comes in
this time."""
GATHERED_RECORDS: Final = 256
"""When so many came at once, there are more: nothing is waited for."""
AGAIN_S: Final = 1.0
"""How often is tried again what the disk did not take."""


class ModelsKeeper:
    """The one writer of a file of read models, whose process holds the archive's lock. `start` it once, `run` it (or
    let it `catch_up`), and `stop` it in the end.
    """

    def __init__(self, ledger: ArchivedLedger, path: Path) -> None:
        """`ledger` stays its owner's; `path` is the file of the models."""
        self.path = path
        self.trouble = ""
        """Why it does not go on at the moment; empty: it does."""
        self.failure: LeaseholdError | None = None
        """Why it has stopped by itself: a record that cannot follow."""
        self._ledger = ledger
        self._models: Models | None = None
        self._fold = IntervalFold()
        self._head = ModelsHead()
        self._ended = False
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._wanted = asyncio.Event()
        """Somebody waits for what is not there yet."""

    def is_in_place(self) -> bool:
        """Whether the file that is written is the one that stands at `path`: somebody may have deleted it."""
        return self._models is not None and self._models.is_in_place()

    @property
    def sequence(self) -> int:
        """Of the last record that the models have."""
        return self._head.sequence

    async def start(self) -> None:
        """Open the file, or make it. Models that were not made of this archive are emptied, to be built anew.

        Raises:
            StorageError: it cannot be opened, or the archive cannot be read.
            CorruptLedgerError: the archive is damaged.
        """
        self._models = await Models.open(self.path)
        head = await self._models.head()
        if head.sequence and not await self._fits(head):
            _log.warning("%s: made of other records than this archive's; it is built anew", self.path)
            await self._models.clear()
        self._fold = IntervalFold()
        await self._models.resume(self._fold)
        self._moved()

    async def _fits(self, head: ModelsHead) -> bool:
        if await self._ledger.last_sequence() < head.sequence:
            return False
        body = await self._ledger.read(head.sequence)
        return body is not None and chain_hash(body) == head.chain

    async def run(self) -> None:
        """Follow the archive until cancelled. A disk that is full is waited for; a record that cannot follow, and a
        damaged archive, end it, with `failure` set.
        """
        try:
            while not await self._follow():
                pass
        except LeaseholdError as error:
            _log.error("the read models have stopped at record %s: %s", self.sequence, error)
            self.failure = error
            self.trouble = str(error)
        finally:
            self._end_waiting()

    async def _follow(self) -> bool:
        """Follow until the archive cannot be read for a moment; whether its handle was closed instead."""
        try:
            async with aclosing(self._ledger.follow(self._fold.head.sequence)) as batches:
                async for batch in batches:
                    begun_s = time.monotonic()
                    await self._fold_batch(batch, patient=True)
                    if len(batch) < GATHERED_RECORDS:
                        await self._gather(begun_s + GATHER_S - time.monotonic())
        except (StorageError, UnavailableError) as error:
            await self._complain(error)
            return False
        return True

    async def _gather(self, pause_s: float) -> None:
        """Let records come together, at most for so long, and not while somebody waits for them."""
        self._wanted.clear()
        if pause_s <= 0 or not all(waiting.done() for waiting in self._waiting):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wanted.wait()

    async def catch_up(self) -> int:
        """Instead of `run`: up to the record that is the last one now, and no further; its sequence.

        Raises:
            CorruptLedgerError: a record cannot follow, or the archive is damaged.
            StorageError: the disk does not take it, or the archive cannot be read.
        """
        async with aclosing(self._ledger.follow_to_end(self._fold.head.sequence)) as batches:
            async for batch in batches:
                await self._fold_batch(batch, patient=False)
        return self.sequence

    async def _fold_batch(self, batch: list[Entry], *, patient: bool) -> None:
        begun_ns, events = time.monotonic_ns(), 0
        for entry in batch:
            events += self._fold.step(entry.sequence, entry.body)
            if events >= EVENTS_PER_TRANSACTION:
                await self._write(patient=patient)
                events = 0
            if time.monotonic_ns() - begun_ns > SLICE_NS:
                await asyncio.sleep(0)
                begun_ns = time.monotonic_ns()
        await self._write(patient=patient)

    async def _write(self, *, patient: bool) -> None:
        """Write what was folded. Nothing more is folded before it is on the disk."""
        assert self._models is not None
        works, head = works_of(self._fold.take()), self._fold.head
        while True:
            try:
                await self._models.write(works, head)
            except StorageError as error:
                if not patient:
                    raise
                await self._complain(error)
            else:
                break
        if self.trouble:
            _log.warning("the read models go on")
            self.trouble = ""
        self._moved()

    async def _complain(self, error: LeaseholdError) -> None:
        """Say once what is in the way, and wait a moment."""
        if str(error) != self.trouble:
            self.trouble = str(error)
            _log.error("the read models do not go on: %s", error)
        await asyncio.sleep(AGAIN_S)

    # --- how far it is ------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        self._head = self._fold.head
        for waiting, wanted in tuple(self._waiting.items()):
            if wanted <= self.sequence and not waiting.done():
                waiting.set_result(None)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Wait until the models have the record that holds `position`; `False` if they did not within `timeout_s`."""
        if sequence_of(position) <= self.sequence:
            return True
        if self._ended:
            return False
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = sequence_of(position)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout_s):
                await waiting
        except TimeoutError:
            return False
        finally:
            del self._waiting[waiting]
        return sequence_of(position) <= self.sequence

    def _end_waiting(self) -> None:
        self._ended = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def stop(self) -> None:
        """Close the file, behind the end of `run`. A second time does nothing."""
        self._end_waiting()
        models, self._models = self._models, None
        if models is not None:
            await models.close()


async def build(ledger: ArchivedLedger, path: Path) -> int:
    """Build or bring up to date the models at `path` from what the archive has now; up to which record they go.

    Raises:
        CorruptLedgerError: a record cannot follow, or the archive is damaged.
        StorageError: the disk does not take it, or the archive cannot be read.
    """
    keeper = ModelsKeeper(ledger, path)
    try:
        await keeper.start()
        return await keeper.catch_up()
    finally:
        await keeper.stop()
