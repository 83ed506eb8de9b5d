"""Archives of logs made by the real core, written by the real writer, and ways to damage them."""

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from leasehold.events.record import chain_hash
from leasehold.services.archive import segments
from leasehold.services.archive.segments import Segment
from leasehold.services.archive.writer import ArchiveWriter, Limits
from leasehold.services.ledger.port import Entry
from leasehold.services.verifying.archives import ArchiveFiles
from leasehold.services.verifying.checks import Report, check_archive
from tests.projections.ledger import SECOND, Ledger, ledger_with_hosts

CLUSTER = "lab"
SEGMENT_RECORDS = 12


def some_log(pairs: int = 20) -> Ledger:
    """Grants, renewals, releases and refusals over two days."""
    ledger = ledger_with_hosts()
    for number in range(pairs):
        lease = ledger.granted("01:00.0", "03:10.0")
        ledger.lease("01:00.0", holder=f"late {number}")
        ledger.renew(lease)
        ledger.release(lease)
        ledger.now_ns += (7 if number % 5 else 3_600 * 8) * SECOND
    return ledger


async def archived(bodies: Iterable[bytes], directory: Path) -> Path:
    """An archive of these records, in several segments."""
    bounds = Limits(records_max=SEGMENT_RECORDS, reserve_bytes=0)
    writer = ArchiveWriter(directory, CLUSTER, bounds)
    await writer.lock()
    try:
        await writer.load()
        await writer.write([Entry(sequence, body) for sequence, body in enumerate(bodies, 1)])
    finally:
        await writer.close()
    return directory


def copy_of(directory: Path, target: Path) -> Path:
    """Another archive, the same to the byte."""
    shutil.copytree(directory, target)
    return target


async def checked(directory: Path) -> Report:
    """What `verify` finds in an archive alone."""
    return await check_archive(await ArchiveFiles.open(directory), lambda _done, _all: None)


def holding(directory: Path, sequence: int) -> Segment:
    """The segment in which a record stands."""
    return [each for each in segments.segments_in(directory) if each.first <= sequence][-1]


@contextmanager
def forging(segment: Segment) -> Iterator[sqlite3.Connection]:
    """A segment in the hands of somebody who may write to it: its triggers are dropped, and put back afterwards."""
    segment.path.chmod(0o600)
    with closing(sqlite3.connect(segment.path)) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        yield database
        for _, sql in triggers:
            database.execute(sql)
        database.commit()
    segment.path.chmod(0o400)


def forge(directory: Path, sequence: int, sql: str, *parameters: Any) -> None:
    """Run a statement where record `sequence` stands."""
    with forging(holding(directory, sequence)) as database:
        database.execute(sql, parameters)


def put(directory: Path, sequence: int, body: bytes) -> None:
    """Another body for a record, with the hash that fits to it."""
    sql = "UPDATE records SET body = ?, chain = ? WHERE sequence = ?"
    forge(directory, sequence, sql, body, bytes.fromhex(chain_hash(body)), sequence)


def body_at(directory: Path, sequence: int) -> bytes:
    """As it stands there."""
    with closing(sqlite3.connect(holding(directory, sequence).path)) as database:
        ((body,),) = database.execute("SELECT body FROM records WHERE sequence = ?", [sequence]).fetchall()
    assert isinstance(body, bytes)
    return body


def flip_in_record(directory: Path, sequence: int) -> None:
    """Change one byte of the file, in a record: where it reads like no other."""
    path = holding(directory, sequence).path
    body = body_at(directory, sequence)
    raw = path.read_bytes()
    pieces = (body[start : start + 60] for start in range(len(body) // 2, len(body) - 60))
    piece = next((each for each in pieces if raw.count(each) == 1), None)
    assert piece is not None, "the record lies in pieces, or reads like others"
    flip(path, raw.find(piece) + 30)


def flip(path: Path, at: int) -> None:
    """Change one byte of a file, as a rotting disk would."""
    path.chmod(0o600)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x01
    path.write_bytes(raw)
    path.chmod(0o400)


def rows_of(directory: Path) -> list[tuple[Any, ...]]:
    """All records of an archive, as whoever reads it without looking closely gets them."""
    found: list[tuple[Any, ...]] = []
    for segment in segments.segments_in(directory):
        with closing(sqlite3.connect(f"{segment.path.as_uri()}?mode=ro", uri=True)) as database:
            found += database.execute("SELECT sequence, decided_at_ns, body FROM records ORDER BY sequence").fetchall()
    return found


def contents(directory: Path) -> dict[str, bytes]:
    """All that an archive keeps; SQLite may lay empty files of its own beside that for a reader."""
    kept = [segments.HEAD_FILE, *(segment.name for segment in segments.segments_in(directory))]
    return {name: (directory / name).read_bytes() for name in kept}


Damage = Callable[[Path, Path], int]
"""Damages an archive (there is an older copy of it, too), and says which is the first record that is bad."""
