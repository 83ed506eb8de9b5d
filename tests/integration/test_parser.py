"""The block parser says what nats-py's own says, however the bytes are cut; and our connections use it."""

import asyncio
import logging
import random
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from leasehold.services.connection import Connection
from leasehold.services.parser import LINE_BYTES_MAX, BlockParser

Said = list[tuple[Any, ...]]
TAPPED = 7


class Client:
    """Stands in for nats-py's client, and writes down what it is called with."""

    def __init__(self) -> None:
        self.said: Said = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.said.append((sid, subject, reply, data, headers))

    async def _process_ping(self) -> None:
        self.said.append(("ping",))

    async def _process_pong(self) -> None:
        self.said.append(("pong",))

    async def _process_info(self, info: object) -> None:
        self.said.append(("info", info))

    async def _process_err(self, error: str) -> None:
        self.said.append(("error", error))


def parser_of(client: Client) -> BlockParser:
    def tap(subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> None:
        client.said.append((TAPPED, subject, reply, body, headers))

    return BlockParser(client, {TAPPED: tap}, client._process_msg)


def some_traffic(chance: random.Random) -> bytes:
    """What a server may say, bodies that look like its lines among them."""
    pieces = []
    for _ in range(chance.randrange(1, 40)):
        noise = chance.randbytes(chance.randrange(3_000))
        body = chance.choice([b"", b"x", b"PING\r\n", b"MSG a 1 3\r\nabc\r\n", noise])
        headers = chance.choice([b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n"])
        sid = chance.choice([1, TAPPED, 12_345])
        reply = chance.choice([b"", b"_INBOX.a.b ", b"_R_.x  "])
        subject = chance.choice([b"a", b"leasehold.c.req.alice.lease", b"a.\xff"])
        pieces.append(
            chance.choice(
                [
                    b"MSG %b %d %b%d\r\n%b\r\n" % (subject, sid, reply, len(body), body),
                    b"MSG %b %d %b%d\r\n%b\r\n" % (subject, sid, reply, len(body), body),
                    b"HMSG %b %d %b%d %d\r\n%b%b\r\n"
                    % (subject, sid, reply, len(headers), len(headers) + len(body), headers, body),
                    b"PING\r\n",
                    b"PONG\r\n",
                    b"+OK\r\n",
                    b"-ERR 'Slow Consumer'\r\n",
                    b'INFO {"max_payload":1048576}\r\n',
                ]
            )
        )
    return b"".join(pieces)


async def test_it_says_what_the_other_says() -> None:
    """A thousand conversations, each cut in random places: the same calls in the same order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    messages = 0
    for _ in range(1_000):
        traffic = some_traffic(chance)
        ours, theirs = Client(), Client()
        parser, reference = parser_of(ours), Parser(theirs)
        await reference.parse(traffic)
        cut_bytes_max = chance.choice([3, 100, 40_000])
        at = 0
        while at < len(traffic):
            size = chance.randrange(1, cut_bytes_max + 1)
            await parser.parse(traffic[at : at + size])
            at += size
        assert ours.said == theirs.said
        assert not parser._rest
        messages += sum(isinstance(said[0], int) for said in ours.said)
    assert messages > 5_000


class BusyClient(Client):
    """Lets others go ahead while it processes what is not tapped."""

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        await asyncio.sleep(0)
        await super()._process_msg(sid, subject, reply, data, headers)


async def test_what_is_taken_at_once_overtakes_nothing() -> None:
    """Blocks as a socket gives them, beside a read loop that is mostly behind: the same calls in the same order; and a
    tapped message that finds the loop waiting is taken before `feed_data` returns.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    at_once = 0
    for _ in range(200):
        traffic = some_traffic(chance)
        ours, theirs = BusyClient(), Client()
        parser, reader = parser_of(ours), asyncio.StreamReader()
        await Parser(theirs).parse(traffic)

        async def read(parser: BlockParser, reader: asyncio.StreamReader) -> None:
            while data := await reader.read(32_768):
                await parser.parse(data)

        parser.take_from(reader, lambda: True)
        reading = asyncio.create_task(read(parser, reader))
        size_max, at = chance.choice([20, 500, 40_000]), 0
        while at < len(traffic):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            size, before = chance.randrange(1, size_max + 1), len(ours.said)
            reader.feed_data(traffic[at : at + size])
            at_once += len(ours.said) - before
            at += size
        reader.feed_eof()
        await reading
        assert ours.said == theirs.said
        assert not parser._rest
    assert at_once > 100


@pytest.mark.parametrize(
    "bad",
    [
        b"HELLO\r\n", b"\r\n", b"MSG a 1\r\n", b"MSG a x 1\r\n", b"MSG a 1 -1\r\n", b"MSG a 1 b c 3\r\n",
        b"HMSG a 1 9 3\r\n", b"x" * (LINE_BYTES_MAX + 1),
    ],
)  # fmt: skip
async def test_what_is_no_protocol_is_told(bad: bytes) -> None:
    """Lines of another protocol, numbers that are none, a line without an end: an error, and no message."""
    client = Client()
    with pytest.raises(ProtocolError):
        await parser_of(client).parse(b"PING\r\n" + bad)
    assert client.said == [("ping",)]


async def test_what_another_connection_left_is_forgotten() -> None:
    """A new connection begins at its own first byte, whatever of the one before was never completed."""
    client = Client()
    parser = parser_of(client)
    await parser.parse(b"MSG a 1 100\r\nhalf of")
    parser.reset()
    await parser.parse(b"PING\r\n")
    assert client.said == [("ping",)]


async def test_a_handler_that_fails_loses_its_message_only(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged, and what comes behind it in the same block arrives."""
    client = Client()

    def fail(*_message: object) -> None:
        raise ValueError("cannot be taken")

    parser = BlockParser(client, {1: fail}, client._process_msg)
    await parser.parse(b"MSG a 1 1\r\nx\r\nMSG b 2 1\r\ny\r\n")
    assert client.said == [(2, b"b", b"", b"y", None)]
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_our_connections_use_it() -> None:
    """nats-py keeps its parser under the name that we give ours; else all still works, but slowly."""
    assert isinstance(Connection()._ps, BlockParser)
    assert type(NatsClient()._ps) is Parser
