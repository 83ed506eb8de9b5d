"""What every hint must do, whatever keeps it: `services/allocator/hint.py`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from leasehold.projections.leading import Seat
from leasehold.services.allocator.hint import HINT_SUBJECT, Hint, KvHint, MemoryHint
from leasehold.services.ledger.streams import HINT_STREAM, ensure_streams
from tests.support.servers import SUBJECTS, connected, server_at


@pytest.fixture(params=["memory", "bucket", "lost bucket"])
async def hint(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hint]:
    """An empty hint."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryHint()
            return
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        if request.param == "lost bucket":
            await client.ask(f"$JS.API.STREAM.DELETE.{HINT_STREAM}", timeout_s=5)
        yield KvHint(client)


async def test_compare_and_set(hint: Hint) -> None:
    """Nobody at first; a name is put in only behind the revision that is named, and each one makes a higher one."""
    assert await hint.look() == Seat()
    first = await hint.put(0, "one")
    assert first
    assert await hint.look() == Seat(first, "one")
    assert await hint.put(0, "two") is None
    assert await hint.put(first + 1, "two") is None
    assert await hint.look() == Seat(first, "one")
    second = await hint.put(first, "one")
    assert second
    assert second > first
    third = await hint.put(second, "")
    assert third
    assert await hint.look() == Seat(third, "")
    assert await hint.put(third, "two")


async def test_the_bucket_can_be_trusted_at_the_next_start(tmp_path: Path) -> None:
    """It is made at a start, accepted at the next, and holds one message however often it is written."""
    async with server_at(tmp_path / "data") as server, connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
        hint, revision = KvHint(client), 0
        for _ in range(20):
            revision = await hint.put(revision, "one") or 0
            assert revision
        await ensure_streams(client, SUBJECTS)
        reply = await client.ask(f"$JS.API.STREAM.INFO.{HINT_STREAM}", timeout_s=5)
        assert b'"messages":1,' in reply.body
        assert HINT_SUBJECT.startswith("$KV.HINT.")
