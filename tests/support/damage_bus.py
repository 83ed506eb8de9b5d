"""Hostile bytes on the bus: what somebody with valid credentials, or with none of our client's manners, can send."""

import base64
import json
import socket
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

import nkeys
from hypothesis import strategies as st

from leasehold.services import home
from leasehold.services.credentials import Credential

CONTROL_LINE_MAX = 4096
"""What the server takes as the line before a payload."""


class RawBus:
    """A socket to the server that says what it likes."""

    def __init__(self, data: Path, credential: Credential, name: str = "") -> None:
        """Connects to the bus of the data directory, and signs in; `name` is what it calls itself."""
        info = home.read_connection(data)
        url = urlparse(info.url)
        self._socket = socket.create_connection((url.hostname or "", url.port or 0), timeout=10)
        self._file = self._socket.makefile("rb")
        told = self._file.readline()
        assert told.startswith(b"INFO ")
        signed = nkeys.from_seed(bytearray(credential.seed.encode())).sign(json.loads(told[5:])["nonce"].encode())
        options = {
            "verbose": False, "pedantic": False, "headers": True, "name": name,
            "nkey": credential.user.public_key, "sig": base64.urlsafe_b64encode(signed).decode().rstrip("="),
        }  # fmt: skip
        self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Any bytes at all."""
        self._socket.sendall(data)

    def publish(self, subject: bytes, body: bytes, reply: bytes = b"") -> None:
        """A message with any subject."""
        self.send(published(subject, body, reply))

    def publish_headed(self, subject: bytes, headers: bytes, body: bytes, reply: bytes) -> None:
        """A message with any headers; they end in an empty line."""
        sizes = b"%d %d" % (len(headers), len(headers) + len(body))
        self.send(b"HPUB %s %s %s\r\n%s%s\r\n" % (subject, reply, sizes, headers, body))

    def listen(self, subject: bytes) -> None:
        """Messages to `subject` come here from now on."""
        self.send(b"SUB %s 1\r\n" % subject)

    def take(self, count: int) -> None:
        """Wait for so many messages."""
        while count:
            line = self._file.readline()
            assert line, "the server has closed the connection"
            if line.startswith((b"MSG", b"HMSG")):
                self._file.read(int(line.split()[-1]) + 2)
                count -= 1
            elif line.startswith(b"PING"):
                self.send(b"PONG\r\n")

    def settle(self) -> None:
        """Wait until the server has taken all of it."""
        self.send(b"PING\r\n")
        while (line := self._file.readline()) != b"PONG\r\n":
            assert line, "the server has closed the connection"

    def hang_up(self) -> None:
        """End the connection, for whoever reads from it too."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def last_words(self) -> bytes:
        """What the server says until it closes the connection."""
        try:
            return self._file.read()
        except ConnectionError:
            return b""


def published(subject: bytes, body: bytes, reply: bytes = b"") -> bytes:
    """A message as it goes over the wire."""
    return b"PUB %s %s %d\r\n%s\r\n" % (subject, reply, len(body), body)


_numbers = st.one_of(
    st.integers(), st.sampled_from([-1, 0, 2**53, 2**63 - 1, 2**63, 2**64, 10**300, -(10**300)]), st.floats()
)
_texts = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["", "\x00", "a\nb", "\x1b[31m", "x" * 5_000, "../../etc", "*", ">", "a.b", "\u202e"]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=8,
)
"""Any JSON, and what Python's writer makes of NaN and Infinity, which is none."""


def bodies_like(*good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Bodies that are binary, that are no JSON, or one of `good` with something wrong in it."""
    return st.one_of(st.binary(max_size=200), json_values.map(_encoded), st.sampled_from(_SHAPES), _spoilt(good))


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


_SHAPES = [
    b"",
    b"null",
    b"NaN",
    b"{",
    b"[" * 60_000,
    b'{"a":' * 9_000 + b"1" + b"}" * 9_000,
    b'{"type":' + b"9" * 5_000 + b"}",
    b'"\xed\xa0\x80"',
    b"\xff\xfe\x00\x00",
    b'{"type":"lease.v1","type":"release.v1"}',
    b"x" * 900_000,
]


@st.composite
def _spoilt(draw: st.DrawFn, good: tuple[dict[str, Any], ...]) -> bytes:
    body = dict(draw(st.sampled_from(good)))
    what = draw(st.sampled_from(["value", "missing", "unknown", "cut"]))
    if what == "value":
        body[draw(st.sampled_from(sorted(body)))] = draw(json_values)
    elif what == "missing":
        del body[draw(st.sampled_from(sorted(body)))]
    elif what == "unknown":
        body[draw(_texts)] = draw(json_values)
    raw = _encoded(body)
    return raw[: draw(st.integers(0, len(raw)))] if what == "cut" else raw
