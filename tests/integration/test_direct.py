"""Reading the ledger without a consumer, as everybody outside of its account does: whole, in order, and healing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from leasehold.events.errors import CorruptLedgerError
from leasehold.events.subjects import LEDGER_STREAM
from leasehold.services import permissions
from leasehold.services.connection import Connection
from leasehold.services.credentials import new_credential
from leasehold.services.ledger.direct import BATCH_MESSAGES_MAX, DirectTail
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Entry
from leasehold.services.ledger.streams import ensure_streams, ledger_config
from leasehold.services.natsserver import NatsServer
from tests.support.proxy import Proxy, proxy_to
from tests.support.servers import SUBJECTS, TESTER, connected, users_for

WAIT_S = 30.0


@asynccontextmanager
async def reading_at(data: Path) -> AsyncIterator[tuple[Connection, JetStreamLedger, Proxy]]:
    """A writer beside the streams, and an auditor who reads through a wire that can be cut."""
    auditor = new_credential("auditor", "audit", SUBJECTS.cluster)
    users = {**permissions.render([auditor.user], SUBJECTS.cluster), "ledger": users_for(TESTER)["ledger"]}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(data, users=users, probe=TESTER, sync_always=False))
        writer = await stack.enter_async_context(connected(server.url))
        await ensure_streams(writer, SUBJECTS)
        proxy = await stack.enter_async_context(proxy_to(server.url))
        reader = await stack.enter_async_context(connected(proxy.url, "audit", auditor))
        ledger = JetStreamLedger(reader, SUBJECTS, tail=DirectTail)
        stack.push_async_callback(ledger.close)
        yield writer, ledger, proxy


async def write(writer: Connection, first: int, last: int) -> None:
    """Records with these numbers."""
    for number in range(first, last + 1):
        await writer.ask(SUBJECTS.ledger, b"record %d" % number, timeout_s=5)


async def taken(ledger: JetStreamLedger, after: int, last: int) -> list[Entry]:
    """What is read up to `last`."""
    entries: list[Entry] = []
    async with asyncio.timeout(WAIT_S), aclosing(ledger.follow(after)) as batches:
        async for batch in batches:
            assert batch
            entries += batch
            if entries[-1].sequence >= last:
                break
    return entries


def expected(after: int, last: int) -> list[Entry]:
    return [Entry(number, b"record %d" % number) for number in range(after + 1, last + 1)]


async def test_more_than_one_batch(tmp_path: Path) -> None:
    """From the beginning and from within, over several batches, each record once and in order."""
    last = 2 * BATCH_MESSAGES_MAX + 7
    async with reading_at(tmp_path / "data") as (writer, ledger, _):
        await write(writer, 1, last)
        for after in (0, 5, BATCH_MESSAGES_MAX, last - 1):
            assert await taken(ledger, after, last) == expected(after, last)
        assert await ledger.last_sequence() == last


async def test_news_and_a_cut_wire(tmp_path: Path) -> None:
    """What is written later arrives, also after the wire was cut in between."""
    async with reading_at(tmp_path / "data") as (writer, ledger, proxy):
        reading = asyncio.ensure_future(taken(ledger, 0, 30))
        await write(writer, 1, 10)
        proxy.cut()
        await write(writer, 11, 20)
        proxy.cut()
        await write(writer, 21, 30)
        assert await reading == expected(0, 30)


async def test_a_missing_record_is_named(tmp_path: Path) -> None:
    """A record that the log lacks ends the reading with its sequence, after all before it; so does a log too short."""
    async with reading_at(tmp_path / "data") as (writer, ledger, _):
        config = {**ledger_config(SUBJECTS, 1), "deny_delete": False}
        for subject, body in (("DELETE", {}), ("CREATE", config)):
            api = f"$JS.API.STREAM.{subject}.{LEDGER_STREAM}"
            asked = await writer.ask(api, json.dumps(body).encode(), timeout_s=5)
            assert b'"error"' not in asked.body, asked.body
        await write(writer, 1, 9)
        gone = await writer.ask(f"$JS.API.STREAM.MSG.DELETE.{LEDGER_STREAM}", b'{"seq":5}', timeout_s=5)
        assert b'"error"' not in gone.body
        read: list[Entry] = []
        with pytest.raises(CorruptLedgerError) as corrupt:
            async with asyncio.timeout(WAIT_S), aclosing(ledger.follow(0)) as batches:
                async for batch in batches:
                    read += batch
        assert corrupt.value.sequence == 5
        assert read == expected(0, 4)
        with pytest.raises(CorruptLedgerError, match="ends at 9"):
            await taken(ledger, 20, 21)


async def test_close_ends_it(tmp_path: Path) -> None:
    """`close` ends a reading that waits for news."""
    async with reading_at(tmp_path / "data") as (writer, ledger, _):
        await write(writer, 1, 3)
        read: list[Entry] = []
        async with asyncio.timeout(WAIT_S):
            async for batch in ledger.follow(0):
                read += batch
                await ledger.close()
        assert read == expected(0, 3)
