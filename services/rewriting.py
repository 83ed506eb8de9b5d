"""Writing an archive's records into a log again, each byte and each sequence as it was, and seeing that it was done."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final

from leasehold.events.errors import CorruptLedgerError, UnavailableError
from leasehold.projections.appending import Said
from leasehold.services.ledger.port import Entry, Ledger

IN_FLIGHT_MAX: Final = 256
IN_FLIGHT_BYTES_MAX: Final = 8 * 1024 * 1024
ROUNDS_MAX: Final = 60
"""So often in a row may writing come to a halt without having got further."""
PAUSE_S: Final = 0.5
APPEND_S: Final = 10.0
SILENCE_S: Final = 30.0
YIELD_EVERY: Final = 256

Progress = Callable[[str, int, int], None]
"""Told what is being done (`checking`, `writing`, `comparing`), and how many records of how many are."""


async def entries_of(source: Ledger, through: int, after: int = 0) -> AsyncGenerator[Entry, None]:
    """Records `after` + 1 to `through`, in order.

    Raises:
        UnavailableError: they do not come.
        CorruptLedgerError: one of them is not there.
    """
    if after >= through:
        return
    async with contextlib.aclosing(source.follow(after)) as batches:
        while after < through:
            try:
                async with asyncio.timeout(SILENCE_S):
                    batch = await anext(batches)
            except TimeoutError:
                raise UnavailableError(f"record {after + 1} is not delivered") from None
            for entry in batch[: through - after]:
                yield entry
                after = entry.sequence


async def write(ledger: Ledger, archive: Ledger, through: int, progress: Progress) -> None:
    """Append what is missing up to record `through`, many at a time: what came of it, `compare` looks at.

    Raises:
        UnavailableError: the server does not take them.
    """
    last, halts = await ledger.last_sequence(), 0
    while last < through:
        await _write_from(ledger, archive, last, through, progress)
        before = last
        # A server that is being replaced does not answer for some seconds.
        with contextlib.suppress(UnavailableError):
            last = await ledger.last_sequence()
        halts = 0 if last > before else halts + 1
        if halts >= ROUNDS_MAX:
            raise UnavailableError(f"record {last + 1} is not taken; running it again goes on from there")
        if last < through:
            await asyncio.sleep(PAUSE_S)


async def _write_from(ledger: Ledger, archive: Ledger, after: int, through: int, progress: Progress) -> None:
    """One round: until all is written, or until one of the appends is not taken."""
    waiting: deque[tuple[int, asyncio.Task[tuple[Said, int]]]] = deque()
    size, is_well = 0, True

    async def settle() -> None:
        nonlocal size, is_well
        length, append = waiting.popleft()
        said, _ = await append
        size -= length
        is_well = is_well and said is Said.STORED

    try:
        async with contextlib.aclosing(entries_of(archive, through, after)) as entries:
            async for entry in entries:
                sequence, body = entry.sequence, entry.body
                while waiting and (len(waiting) >= IN_FLIGHT_MAX or size + len(body) > IN_FLIGHT_BYTES_MAX):
                    await settle()
                if not is_well:
                    break
                append = asyncio.create_task(ledger.append(sequence - 1, body, timeout_s=APPEND_S))
                waiting.append((len(body), append))
                size += len(body)
                if sequence % YIELD_EVERY == 0:
                    progress("writing", sequence, through)
        while waiting:
            await settle()
    finally:
        for _, append in waiting:
            append.cancel()
        await asyncio.gather(*(append for _, append in waiting), return_exceptions=True)


async def compare(ledger: Ledger, archive: Ledger, through: int, progress: Progress) -> None:
    """See that the log holds the archive's records up to `through`, each byte and each sequence.

    Raises:
        CorruptLedgerError: it does not; the first record that is another is named.
    """
    last = await ledger.last_sequence()
    if last < through:
        raise UnavailableError(f"the log ends at {last}, not at {through}; running it again goes on from there")
    async with (
        contextlib.aclosing(entries_of(ledger, through)) as written,
        contextlib.aclosing(entries_of(archive, through)) as archived,
    ):
        async for entry in written:
            expected = await anext(archived)
            if entry != expected:
                raise CorruptLedgerError(
                    "it is not the archive's: somebody else writes to this log. End whoever does, and begin with an "
                    "empty one",
                    sequence=entry.sequence,
                )
            if entry.sequence % YIELD_EVERY == 0:
                progress("comparing", entry.sequence, through)
                await asyncio.sleep(0)
