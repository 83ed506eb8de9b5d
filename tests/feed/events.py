"""EVENTS as a test reads it, and what should stand there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from leasehold.events.cloudevents import Attributes, raw_headers, read_attributes
from leasehold.events.errors import UnavailableError
from leasehold.projections.feeding import Feeding, Message
from leasehold.services.connection import Connection
from leasehold.services.feed.keeping import FeedFiles
from leasehold.services.feed.service import Feed
from leasehold.services.feed.stream import end_of_events, state_of_events
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Ledger
from tests.support.servers import SUBJECTS

WAIT_S = 30.0
POLL_S = 0.02


class Told(NamedTuple):
    """One message, from EVENTS or as it should be there: subject behind `evt.`, and everything that is ours in it."""

    position: int
    part: int
    subject: str
    said: Attributes
    body: bytes


class _Stored(msgspec.Struct, frozen=True):
    subject: str = ""
    seq: int = 0
    data: bytes = b""
    hdrs: bytes = b""


class _Reply(msgspec.Struct, frozen=True):
    message: _Stored = _Stored()
    error: api.ApiError | None = None


def _told(subject: str, headers: bytes, body: bytes) -> Told:
    said = read_attributes(raw_headers(headers).items())
    return Told(said.position, said.part, subject.split(".", 3)[3], said, body)


def expected(bodies: Sequence[bytes]) -> list[Told]:
    """What is to be told of a log."""
    fold = Feeding()
    messages: list[Message] = []
    for number, body in enumerate(bodies, 1):
        messages += fold.fold(number, body)
    return [
        _told(f"leasehold.test.evt.{each.subject}", f"NATS/1.0\r\n{each.headers}\r\n".encode(), each.body)
        for each in messages
    ]


async def stored(client: Connection) -> list[Told]:
    """All that stands in EVENTS now, one by one, from the stream's leader."""
    state = await state_of_events(client)
    found = []
    for sequence in range(state.first_seq, state.last_seq + 1) if state.messages else ():
        reply = await client.ask("$JS.API.STREAM.MSG.GET.EVENTS", b'{"seq":%d}' % sequence, timeout_s=5)
        message = msgspec.json.decode(reply.body, type=_Reply).message
        assert message.seq == sequence, reply.body
        found.append(_told(message.subject, message.hdrs, message.data))
    return found


async def until_told(client: Connection, count: int) -> None:
    """Wait until EVENTS holds so many messages."""
    await until(lambda: _holds(client, count))


async def _holds(client: Connection, count: int) -> bool:
    return (await state_of_events(client)).messages >= count


async def until_end(client: Connection, last: Told) -> None:
    """Wait until EVENTS ends in this message."""
    await until(lambda: _ends(client, last))


async def _ends(client: Connection, last: Told) -> bool:
    return (await end_of_events(client)).said == last.said


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes. While the server does not answer, it is no."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(UnavailableError):
                if await is_so():
                    return
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def feeding(client: Connection, path: Path, ledger: Ledger | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """A feed in this process, ended when the context ends; its failure is raised then."""
    ledger = ledger or JetStreamLedger(client, SUBJECTS)
    running = asyncio.create_task(Feed(client, SUBJECTS, ledger, FeedFiles(path)).run())
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()
