"""What a feed has to tell, and has told lately: which message stands, or will stand, at which place in EVENTS.

Each message has one place, behind all before it. So messages can be sent on without waiting for the one before: each
names the place that it expects to be behind, and in that place the very same message belongs, whichever feed sent it.
What was told lately is kept, since a server that was killed may have forgotten it.
"""

from typing import Final

import msgspec

from leasehold.events.cloudevents import Attributes
from leasehold.projections.feeding import Message
from leasehold.services.commands import kept_message

CHUNK_BYTES_MAX: Final = 128 * 1024
"""Sent in one piece, of which the last message asks for an acknowledgement."""
CHUNK_MESSAGES_MAX: Final = 256
UNDER_WAY_BYTES_MAX: Final = 1024 * 1024
"""Sent, and not acknowledged yet."""
UNTOLD_BYTES_MAX: Final = 8 * 1024 * 1024
"""Waiting to be acknowledged, sent or not: when there is more, no more records are read."""
KEPT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of what was acknowledged."""
_HEADERS_BYTES: Final = 64


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Where EVENTS ends. `sequence`: of its last message, or, if it is empty, of the last one ever; `said`: by its last
    message, `None` if it is empty; `body`: that one's; `wrong`: why it is not what a feed has told.
    """

    sequence: int
    said: Attributes | None = None
    body: bytes = b""
    wrong: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """Position and part of the last message; (0, 0) is before all."""
        return (self.said.position, self.said.part) if self.said else (0, 0)


class Outbox:
    """Messages in a row, the first at place `first`: acknowledged ones, then sent ones, then such as wait."""

    def __init__(self, first: int) -> None:
        self._messages: dict[int, Message] = {}
        self.first = first
        self.last = first - 1
        """The place of the last message."""
        self.acknowledged = first - 1
        """The last place whose message EVENTS is known to have had."""
        self.sent = first - 1
        self._untold_bytes = 0
        self._kept_bytes = 0
        self._under_way_bytes = 0

    @property
    def is_full(self) -> bool:
        """Nothing more should be put in now."""
        return self._untold_bytes > UNTOLD_BYTES_MAX

    def put(self, messages: list[Message]) -> None:
        """Add what comes next."""
        for message in messages:
            self.last += 1
            self._messages[self.last] = message
            self._untold_bytes += _size(message)

    def acknowledge(self, place: int) -> None:
        """All up to `place` is in EVENTS."""
        assert place <= self.last, (place, self.last)
        while self.acknowledged < place:
            self.acknowledged += 1
            size = _size(self._messages[self.acknowledged])
            self._untold_bytes -= size
            self._kept_bytes += size
            if self.acknowledged <= self.sent:
                self._under_way_bytes -= size
        self.sent = max(self.sent, self.acknowledged)
        while self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= _size(self._messages.pop(self.first))
            self.first += 1

    def go_back_to(self, end: End) -> bool:
        """Go on behind the end that EVENTS has now, if it is known what to tell there; else `False`."""
        if not self.first <= end.sequence <= self.last:
            return False
        message = self._messages[end.sequence]
        if (message.position, message.part) != end.place or message.body != end.body:
            return False
        if end.sequence > self.acknowledged:
            self.acknowledge(end.sequence)
        while self.acknowledged > end.sequence:
            size = _size(self._messages[self.acknowledged])
            self._untold_bytes += size
            self._kept_bytes -= size
            self.acknowledged -= 1
        self.sent, self._under_way_bytes = end.sequence, 0
        return True

    def chunk(self, to: str, inbox: str) -> bytes:
        """What is to be sent next, as commands; empty if nothing waits, or enough is under way.

        Args:
            to: The beginning of the subjects, up to the dot.
            inbox: The beginning of where acknowledgements go, up to the dot; the place follows.
        """
        if self._under_way_bytes > UNDER_WAY_BYTES_MAX:
            return b""
        commands: list[bytes] = []
        size = 0
        while self.sent < self.last and size < CHUNK_BYTES_MAX and len(commands) < CHUNK_MESSAGES_MAX:
            message = self._messages[self.sent + 1]
            size += _size(message)
            is_last = self.sent + 1 == self.last or size >= CHUNK_BYTES_MAX or len(commands) + 1 == CHUNK_MESSAGES_MAX
            reply = f"{inbox}{self.sent + 1}" if is_last else ""
            headers = f"Nats-Expected-Last-Sequence: {self.sent}\r\n{message.headers}"
            commands.append(kept_message(f"{to}{message.subject}", reply, headers, message.body))
            self.sent += 1
        self._under_way_bytes += size
        return b"".join(commands)


def _size(message: Message) -> int:
    return len(message.body) + len(message.headers) + len(message.subject) + _HEADERS_BYTES
