"""The real streams: what the server refuses to do to the ledger, which settings are not trusted, and how gaps show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from leasehold.events.errors import CorruptLedgerError, InvalidInputError
from leasehold.projections.appending import Said
from leasehold.services.connection import Connection
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.observed import Message, ObservedReader
from leasehold.services.ledger.port import Entry
from leasehold.services.ledger.streams import ensure_streams, events_config, ledger_config, observed_config
from tests.support.servers import SUBJECTS, connected, server_at


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Connection]:
    """A connection to a server without streams."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as connection:
        yield connection


async def ask(client: Connection, subject: str, request: object) -> dict[str, object]:
    reply = await client.ask(f"$JS.API.{subject}", msgspec.json.encode(request), timeout_s=5)
    answer = msgspec.json.decode(reply.body)
    assert isinstance(answer, dict)
    return answer


async def make(client: Connection, config: dict[str, object]) -> None:
    assert "error" not in await ask(client, f"STREAM.CREATE.{config['name']}", config)


async def filled(client: Connection, count: int) -> JetStreamLedger:
    ledger = JetStreamLedger(client, SUBJECTS)
    for expected in range(count):
        assert await ledger.append(expected, b"record %d" % expected, timeout_s=5) == (Said.STORED, expected + 1)
    return ledger


async def read_all(ledger: JetStreamLedger, count: int, after: int = 0) -> list[Entry]:
    entries: list[Entry] = []
    async with asyncio.timeout(20), aclosing(ledger.follow(after)) as batches:
        while len(entries) < count:
            entries += await anext(batches)
    return entries


async def test_making_the_streams_again_changes_nothing(client: Connection) -> None:
    """At every start, and at two at once, the streams are as they were, with what they hold."""
    await asyncio.gather(ensure_streams(client, SUBJECTS), ensure_streams(client, SUBJECTS))
    ledger = await filled(client, 2)
    before = [(await api.stream_info(client, name)).config for name in ("LEDGER", "OBSERVED")]
    await ensure_streams(client, SUBJECTS)
    assert [(await api.stream_info(client, name)).config for name in ("LEDGER", "OBSERVED")] == before
    assert await ledger.last_sequence() == 2


@pytest.mark.parametrize("request_", [("STREAM.PURGE.LEDGER", {}), ("STREAM.MSG.DELETE.LEDGER", {"seq": 2})])
async def test_the_server_takes_nothing_out_of_the_ledger(
    client: Connection, request_: tuple[str, dict[str, object]]
) -> None:
    """Neither all records nor one can be deleted."""
    await ensure_streams(client, SUBJECTS)
    ledger = await filled(client, 3)
    assert "error" in await ask(client, *request_)
    assert len(await read_all(ledger, 3)) == 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_msgs", 1_000),
        ("max_bytes", 10**9),
        ("max_age", 10**15),
        ("max_msgs_per_subject", 5),
        ("max_msg_size", 1_000),
        ("deny_delete", False),
        ("deny_purge", False),
        ("discard", "old"),
        ("storage", "memory"),
        ("retention", "interest"),
        ("persist_mode", "async"),
        ("allow_msg_ttl", True),
        ("subjects", ["leasehold.test.ledger", "leasehold.test.more"]),
        ("subjects", ["leasehold.other.ledger"]),
        ("no_ack", True),
    ],
)
async def test_a_ledger_that_would_lose_records_is_refused(client: Connection, setting: str, value: object) -> None:
    """An existing stream with such a setting is not used, and the text names the setting."""
    await make(client, ledger_config(SUBJECTS, 1) | {setting: value})
    with pytest.raises(InvalidInputError, match=setting):
        await ensure_streams(client, SUBJECTS)


async def test_an_inbox_of_another_cluster_is_refused(client: Connection) -> None:
    """An OBSERVED stream that listens elsewhere is not used; one with other bounds is."""
    await make(client, observed_config(SUBJECTS, 1) | {"max_bytes": 10**6})
    await ensure_streams(client, SUBJECTS)
    assert "error" not in await ask(client, "STREAM.DELETE.OBSERVED", {})
    await make(client, observed_config(SUBJECTS, 1) | {"subjects": ["leasehold.other.inbox.*.*"]})
    with pytest.raises(InvalidInputError, match="subjects"):
        await ensure_streams(client, SUBJECTS)


@pytest.mark.parametrize("setting", ["republish", "subject_transform", "subjects"])
async def test_a_feed_that_nobody_would_hear_is_refused(client: Connection, setting: str) -> None:
    """An EVENTS stream that does not send on what it takes, or under other subjects, is not used; other bounds are."""
    config = events_config(SUBJECTS, 1)
    await make(client, config | {"max_bytes": 10**6})
    await ensure_streams(client, SUBJECTS)
    assert "error" not in await ask(client, "STREAM.DELETE.EVENTS", {})
    del config[setting]
    await make(client, config if setting != "subjects" else config | {"subjects": ["leasehold.test.evt.>"]} | NO_CYCLE)
    with pytest.raises(InvalidInputError, match=setting):
        await ensure_streams(client, SUBJECTS)


NO_CYCLE: dict[str, object] = {"republish": None, "subject_transform": None}


@pytest.mark.parametrize("missing", [1, 3, 5])
async def test_a_missing_record_stops_who_follows(client: Connection, missing: int) -> None:
    """With one record deleted, at the beginning or in the middle, what stands before is read and its number told."""
    await make(client, ledger_config(SUBJECTS, 1) | {"deny_delete": False})
    ledger = await filled(client, 6)
    assert "error" not in await ask(client, "STREAM.MSG.DELETE.LEDGER", {"seq": missing})
    entries: list[Entry] = []
    with pytest.raises(CorruptLedgerError) as caught:
        async with asyncio.timeout(20):
            async for batch in ledger.follow(0):
                entries += batch
    assert caught.value.sequence == missing
    assert [entry.sequence for entry in entries] == list(range(1, missing))
    with pytest.raises(CorruptLedgerError) as caught:
        await ledger.read(missing)
    assert caught.value.sequence == missing
    assert [entry.sequence for entry in await read_all(ledger, 6 - missing, missing)] == list(range(missing + 1, 7))


async def test_a_log_whose_beginning_is_gone_stops_who_follows(client: Connection) -> None:
    """Purged, with nothing left to deliver, the log is not taken for one that has nothing new."""
    await make(client, ledger_config(SUBJECTS, 1) | {"deny_purge": False})
    ledger = await filled(client, 4)
    assert "error" not in await ask(client, "STREAM.PURGE.LEDGER", {})
    with pytest.raises(CorruptLedgerError) as caught:
        await read_all(ledger, 1)
    assert caught.value.sequence == 1


async def test_a_log_that_is_gone_stops_who_follows(client: Connection) -> None:
    """Deleted while it is followed, the log is not waited for in silence."""
    await ensure_streams(client, SUBJECTS)
    ledger = await filled(client, 2)
    with pytest.raises(CorruptLedgerError):
        async with asyncio.timeout(30):
            async for batch in ledger.follow(0):
                assert [entry.sequence for entry in batch][-1] == 2
                assert "error" not in await ask(client, "STREAM.DELETE.LEDGER", {})


async def test_the_inbox_may_have_gaps(client: Connection) -> None:
    """What is gone of OBSERVED is skipped, its first sequence says what is left, and new messages follow."""
    await ensure_streams(client, SUBJECTS)
    reader = ObservedReader(client)
    assert (await reader.first_sequence(), await reader.last_sequence()) == (1, 0)
    subject = SUBJECTS.inbox("alpha", "watcher")
    for number in range(1, 7):
        await client.ask(subject, b"%d" % number, timeout_s=5)
    assert "error" not in await ask(client, "STREAM.PURGE.OBSERVED", {"seq": 3})
    assert "error" not in await ask(client, "STREAM.MSG.DELETE.OBSERVED", {"seq": 5})
    assert (await reader.first_sequence(), await reader.last_sequence()) == (3, 6)
    messages: list[Message] = []
    async with asyncio.timeout(20), aclosing(reader.follow(0)) as batches:
        while len(messages) < 3:
            messages += await anext(batches)
        assert messages == [(3, subject, b"3"), (4, subject, b"4"), (6, subject, b"6")]
        waiting = asyncio.ensure_future(anext(batches))
        await client.ask(subject, b"7", timeout_s=5)
        assert await waiting == [(7, subject, b"7")]
    assert "error" not in await ask(client, "STREAM.PURGE.OBSERVED", {})
    assert (await reader.first_sequence(), await reader.last_sequence()) == (8, 7)
