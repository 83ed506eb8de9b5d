"""Reads the NATS protocol a block at a time, for `connection.Connection`: three times as fast as nats-py does.

nats-py's parser matches each line against regular expressions in turn and makes a coroutine of each message. Here lines
of messages are split where they end, and those that somebody takes straight from the read loop go there with one call.
All else (INFO, PING, errors) is left to nats-py's parser, whose class this one extends; `tests/integration/
test_parser.py` holds the two against each other.
"""

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
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data, self._rest, self._needed = bytes(self._rest), bytearray(), 0
        taps, resets, at = self._taps, self._resets, 0
        while (end := data.find(b"\r\n", at)) >= 0:
            words = data[at:end].split()
            if not words or words[0] not in _MESSAGES:
                await self._other(data[at : end + 2])
                at = end + 2
                if resets != self._resets:
                    return
                continue
            body_at = end + 2
            sid, reply, headers_size, size = _numbers(words)
            if len(data) < body_at + size + 2:
                self._needed = body_at + size + 2 - at
                break
            at = body_at + size + 2
            headers = data[body_at : body_at + headers_size] if headers_size else None
            body = data[body_at + headers_size : body_at + size]
            handler = taps.get(sid)
            if handler is None:
                await self._process(sid, words[1], reply, body, headers)
                if resets != self._resets:
                    return
                continue
            try:
                handler(words[1], reply, body, headers)
            except Exception:  # noqa: BLE001 - it would silently end the read loop, and so the connection
                _log.exception("a message at %r could not be taken", words[1])
        if not self._needed and len(data) - at > LINE_BYTES_MAX:
            raise ProtocolError
        self._rest += data[at:]

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
