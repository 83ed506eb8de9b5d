"""Ways to damage a data directory: what disks, people with an editor, and attackers do to a ledger at rest."""

import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from leasehold.events import codec
from leasehold.events.record import GENESIS_PREV, chain_hash
from leasehold.events.subjects import LEDGER_STREAM, Subjects
from leasehold.projections.appending import Said
from leasehold.services import home
from leasehold.services.connection import connect, disconnect
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from tests.support.servers import TESTER, server_at

STREAMS = Path("jetstream") / "ledger" / "streams"
STORES = ("allocator.sqlite", "query.sqlite")
_NOT_COPIED = shutil.ignore_patterns(".lock", "ports", "*.log", "nats-server.*", "nats")
_HEADER_BIT = 1 << 31
_HASH_BYTES = 8


class Stored(NamedTuple):
    """One message in a block of the server's file store; offsets are into the file."""

    sequence: int
    start: int
    """Of the message's own header: its length, sequence, time, subject."""
    body: int
    end: int
    """Behind the body, where the server's checksum of the message begins."""


def copy_of(data: Path, target: Path) -> Path:
    """A copy of what a stopped `up` has left."""
    shutil.copytree(data, target, ignore=_NOT_COPIED)
    return target


def ledger_block(data: Path) -> Path:
    """The one file that the server keeps the ledger's records in (they are few)."""
    (block,) = (data / STREAMS / LEDGER_STREAM / "msgs").glob("*.blk")
    return block


def stored_in(block: Path) -> list[Stored]:
    """Where each record lies in the block."""
    raw = block.read_bytes()
    found, at = [], 0
    while at < len(raw):
        length, sequence = struct.unpack_from("<IQ", raw, at)
        has_headers, length = bool(length & _HEADER_BIT), length & ~_HEADER_BIT
        (subject,) = struct.unpack_from("<H", raw, at + 20)
        body = at + 22 + subject
        if has_headers:
            (headers,) = struct.unpack_from("<I", raw, body)
            body += 4 + headers
        found.append(Stored(sequence, at, body, at + length - _HASH_BYTES))
        at += length
    return found


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file, as a rotting disk would."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x01
    path.write_bytes(raw)


def chained(bodies: list[bytes]) -> list[bytes]:
    """The records with their links computed anew: a forger's work that is flawless in itself."""
    done: list[bytes] = []
    for body in bodies:
        record = json.loads(body)
        record["prev"] = chain_hash(done[-1]) if done else GENESIS_PREV
        done.append(codec.encode(record))
    return done


def cut(path: Path, count: int) -> None:
    """Take `count` bytes from the end of a file."""
    raw = path.read_bytes()
    path.write_bytes(raw[:-count])


def flip_in_snapshot(store: Path) -> None:
    """Change one byte in the middle of the kept state."""
    database = sqlite3.connect(store)
    ((number, body),) = database.execute(
        "SELECT number, body FROM snapshot_piece ORDER BY length(body) DESC LIMIT 1"
    ).fetchall()
    changed = bytearray(body)
    changed[len(changed) // 2] ^= 0x01
    database.execute("UPDATE snapshot_piece SET body = ? WHERE number = ?", (bytes(changed), number))
    database.commit()
    database.close()


def noted_head(store: Path) -> int:
    """The last record that a service has noted to have read; it may be running, since a copy is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        for name in (store.name, f"{store.name}-wal"):
            if store.with_name(name).exists():
                shutil.copy(store.with_name(name), folder)
        return _head_in(Path(folder) / store.name)


def _head_in(store: Path) -> int:
    database = sqlite3.connect(store)
    rows = database.execute("SELECT sequence FROM head").fetchall()
    database.close()
    return int(rows[0][0]) if rows else 0


async def log_in(data: Path, cluster: str = home.DEFAULT_CLUSTER) -> list[bytes]:
    """All records of a data directory that nobody uses."""
    async with server_at(data) as server:
        connection = await connect(server.url, credential=TESTER, name="damage")
        try:
            ledger = JetStreamLedger(connection, Subjects(cluster))
            bodies = [await ledger.read(sequence + 1) for sequence in range(await ledger.last_sequence())]
            return [body for body in bodies if body is not None]
        finally:
            await disconnect(connection)


async def rewrite_log(
    data: Path, change: Callable[[list[bytes]], list[bytes]], cluster: str = home.DEFAULT_CLUSTER
) -> None:
    """Replace the log by a changed one, through the server itself: nothing of the server's own tells of it."""
    bodies = change(await log_in(data, cluster))
    async with server_at(data) as server:
        connection = await connect(server.url, credential=TESTER, name="damage")
        try:
            await connection.ask(f"$JS.API.STREAM.DELETE.{LEDGER_STREAM}", timeout_s=api.API_TIMEOUT_S)
            await ensure_streams(connection, Subjects(cluster))
            ledger = JetStreamLedger(connection, Subjects(cluster))
            for expected, body in enumerate(bodies):
                assert await ledger.append(expected, body, timeout_s=5) == (Said.STORED, expected + 1)
        finally:
            await disconnect(connection)
