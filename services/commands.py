"""Commands of the NATS protocol, as bytes: what `connection.Connection` sends often is put together here, at once."""

from collections.abc import Mapping, Sequence
from typing import Final

from nats.errors import BadSubjectError

SUBJECTS_KEPT: Final = 4_096
"""Beginnings of commands that are kept ready, one for each subject that was asked at."""


def publications(messages: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Messages without a reply subject, (subject, body) each. The subjects are ones that came over the wire."""
    return b"".join([b"PUB %b %d\r\n%b\r\n" % (to, len(body), body) for to, body in messages])


def kept_message(subject: str, reply: str, headers: str, body: bytes) -> bytes:
    """A message with headers (lines, each ended), and where the stream's acknowledgement goes, if one is wanted."""
    head = f"NATS/1.0\r\n{headers}\r\n".encode()
    to = f"HPUB {subject} {reply} " if reply else f"HPUB {subject} "
    return b"%b%d %d\r\n%b%b\r\n" % (to.encode(), len(head), len(head) + len(body), head, body)


class Questions:
    """Messages that name where the answer goes."""

    def __init__(self) -> None:
        self._beginnings: dict[str, bytes] = {}

    def command(self, subject: str, inbox: bytes, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """Names and values of `headers` are our own: they are not checked.

        Raises:
            BadSubjectError: the server would take it for the end of our protocol.
        """
        beginning = self._beginnings.get(subject) or self._meet(subject)
        if headers is None:
            return b"%b%b %d\r\n%b\r\n" % (beginning, inbox, len(body), body)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        return b"H%b%b %d %d\r\n%b%b\r\n" % (beginning, inbox, len(head), len(head) + len(body), head, body)

    def _meet(self, subject: str) -> bytes:
        encoded = subject.encode()
        # Only what is a space in bytes ends a word on the wire.
        if encoded.split() != [encoded]:
            raise BadSubjectError
        if len(self._beginnings) >= SUBJECTS_KEPT:
            self._beginnings.clear()
        self._beginnings[subject] = beginning = b"PUB %b " % encoded
        return beginning
