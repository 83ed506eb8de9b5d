"""Reads the NATS protocol a block at a time, for `connection.Connection`: three times as fast as nats-py does.

nats-py's parser matches each line against regular expressions in turn and makes a coroutine of each message. Here lines
of messages are split where they end, and those that somebody takes straight from the read loop go there with one call.
All else (INFO, PING, errors) is left to nats-py's parser, whose class this one extends; `tests/integration/
test_parser.py` holds the two against each other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nats.errors import ProtocolError
from nats.protocol import parser

_log: Final = logging.getLogger(__name__)

_MESSAGES: Final = (b"MSG", b"HMSG")
LINE_BYTES_MAX: Final = 64 * 1024
"""An INFO line that names many servers is the longest; a server cuts what clients send at 4 KiB."""

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply subject (or b""), body and raw headers (or None). It must not block."""
Process = Callable[[int, bytes, bytes, bytes, Any], Awaitable[None]]


class BlockParser(parser.Parser):
    """A parser that gives messages of tapped subscriptions to their handlers."""

    def __init__(self, client: Any, taps: dict[int, Handler], process: Process) -> None:
        """`taps`: handlers by subscription; `process` takes the messages of all others."""
        super().__init__(client)
        self._taps = taps
        self._process = process

    def reset(self) -> None:
        """Forget the beginning of what was never completed: it belongs to a connection that is gone."""
        super().reset()
        self._rest = bytearray()
        self._needed = 0
        self._resets = getattr(self, "_resets", 0) + 1

    async def parse(self, data: bytes = b"") -> None:
        """Take the next bytes from the socket.

        Raises:
            ProtocolError: they are not of this protocol.
        """
        data, resets = self._with_rest(data), self._resets
        at = self._take(data, 0)
        while at < len(data):
            at = await self._one(data, at)
            if resets != self._resets:
                return
            at = self._take(data, at)

    def take_from(self, reader: asyncio.StreamReader | None, is_connected: Callable[[], bool]) -> None:
        """Take tapped messages as the socket gives them. What is anything else waits for `parse`, and all behind it.

        To wake nats-py's read loop for each block costs more than to parse it.
        """
        if reader is None:
            return
        feed = reader.feed_data

        def take(data: bytes) -> None:
            waiter = getattr(reader, "_waiter", None)
            # Who waits for more has parsed all that came before.
            if waiter is not None and not waiter.done() and is_connected():
                data = self._with_rest(data)
                data = data[self._take(data, 0) :]
            if data:
                feed(data)

        reader.feed_data = take  # type: ignore[method-assign, assignment]

    def _with_rest(self, data: bytes) -> bytes:
        """What there is to parse; nothing while it is known that more is needed."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return b""
            data, self._rest, self._needed = bytes(self._rest), bytearray(), 0
        return data

    def _take(self, data: bytes, at: int) -> int:
        """Give tapped messages to their handlers, up to anything else. Returns where that begins; what has not come
        whole is kept, and then nothing is left.
        """
        taps, size_all = self._taps, len(data)
        while at < size_all:
            end = data.find(b"\r\n", at)
            if end < 0:
                if size_all - at > LINE_BYTES_MAX:
                    return at
                break
            words = data[at:end].split()
            if not words or words[0] not in _MESSAGES:
                return at
            try:
                sid, reply, headers_size, size = _numbers(words)
            except ProtocolError:
                return at
            headers_at, body_at, message_end = end + 2, end + 2 + headers_size, end + 2 + size
            if size_all < message_end + 2:
                self._needed = message_end + 2 - at
                break
            handler = taps.get(sid)
            if handler is None:
                return at
            at = message_end + 2
            try:
                handler(
                    words[1], reply, data[body_at:message_end], data[headers_at:body_at] if headers_size else None
                )
            except Exception:  # noqa: BLE001 - it would silently end the read loop, and so the connection
                _log.exception("a message at %r could not be taken", words[1])
        self._rest += data[at:]
        return size_all

    async def _one(self, data: bytes, at: int) -> int:
        """Process what `_take` has left: a line, or a message that has come whole. Returns what is behind it."""
        end = data.find(b"\r\n", at)
        if end < 0:
            raise ProtocolError
        words = data[at:end].split()
        if not words or words[0] not in _MESSAGES:
            await self._other(data[at : end + 2])
            return end + 2
        sid, reply, headers_size, size = _numbers(words)
        headers_at, body_at, message_end = end + 2, end + 2 + headers_size, end + 2 + size
        headers = data[headers_at:body_at] if headers_size else None
        await self._process(sid, words[1], reply, data[body_at:message_end], headers)
        return message_end + 2

    async def _other(self, line: bytes) -> None:
        await super().parse(line)
        if self.buf:
            raise ProtocolError


def _numbers(words: list[bytes]) -> tuple[int, bytes, int, int]:
    """Subscription, reply subject, bytes of headers and of all behind a message's first line."""
    has_headers = words[0] == b"HMSG"
    try:
        sid, size, headers_size = int(words[2]), int(words[-1]), int(words[-2]) if has_headers else 0
    except (ValueError, IndexError) as error:
        raise ProtocolError from error
    words_min = 4 + has_headers
    if not words_min <= len(words) <= words_min + 1 or not 0 <= headers_size <= size:
        raise ProtocolError
    return sid, words[3] if len(words) > words_min else b"", headers_size, size
