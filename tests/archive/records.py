"""Records for archives: chained as the real ones are, and with nothing in them that an archive does not look at."""

import asyncio
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from leasehold.events import codec
from leasehold.events.record import FORMAT, GENESIS_PREV, RULES_VERSION, Record, chain_hash
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.archive.writer import ArchiveWriter, Limits
from leasehold.services.ledger.memory import MemoryLog
from leasehold.services.ledger.port import Entry

SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
START_NS = 1_767_225_600 * SECOND_NS
"""2026-01-01, the first moment of that day (UTC)."""
LEDGER_ID = "0123456789abcdef"
NO_RESERVE = Limits(reserve_bytes=0)


def record(
    prev: str, at_ns: int, *, era: int = 0, ledger_id: str = LEDGER_ID, writer: str = "w", padding: int = 0
) -> bytes:
    """One record without steps."""
    return codec.encode(
        Record(
            format=FORMAT, ledger_id=ledger_id, era=era, prev=prev, writer=writer + "." * padding, decided_at_ns=at_ns,
            rules_version=RULES_VERSION, observed_through=0, steps=(),
        )
    )  # fmt: skip


def chained(times_ns: Sequence[int], *, prev: str = GENESIS_PREV, first: int = 1, padding: int = 0) -> list[Entry]:
    """Records decided at these times, each behind the one before."""
    entries = []
    for sequence, at_ns in enumerate(times_ns, first):
        body = record(prev, at_ns, padding=padding)
        prev = chain_hash(body)
        entries.append(Entry(sequence, body))
    return entries


def seconds(count: int, *, every_s: int = 1, start_ns: int = START_NS) -> list[int]:
    """So many times, one behind the other."""
    return [start_ns + index * every_s * SECOND_NS for index in range(count)]


def log_of(entries: Sequence[Entry]) -> MemoryLog:
    """A ledger in memory that holds these."""
    log = MemoryLog()
    for entry in entries:
        log.append(entry.body)
    return log


@asynccontextmanager
async def writing(directory: Path, bounds: Limits = NO_RESERVE) -> AsyncIterator[ArchiveWriter]:
    """A writer that knows where to go on."""
    writer = ArchiveWriter(directory, "test", bounds)
    await writer.lock(wait_s=0)
    try:
        await writer.load()
        yield writer
    finally:
        await writer.close()


async def made(directory: Path, entries: Sequence[Entry], bounds: Limits = NO_RESERVE) -> Path:
    """An archive of these records that nobody writes to."""
    async with writing(directory, bounds) as writer:
        await writer.write(entries)
    return directory


async def held(directory: Path, after: int = 0) -> list[Entry]:
    """All that the archive holds behind `after`."""
    found: list[Entry] = []
    async with asyncio.timeout(60), aclosing(ArchivedLedger(directory).follow_to_end(after)) as batches:
        async for batch in batches:
            assert batch
            found += batch
    return found


def names(directory: Path) -> list[str]:
    """Its segments, as the directory lists them."""
    return sorted(path.name for path in directory.glob("*.sqlite") if path.name[0].isdigit())


def remount(disk: Path, options: str) -> None:
    """Give a small disk other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def tamper(path: Path, *statements: str) -> None:
    """Change a segment behind its triggers, as somebody could who may write the file."""
    path.chmod(0o600)
    with sqlite3.connect(path) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)
    database.close()
