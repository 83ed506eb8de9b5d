"""A subscriber that knows the NATS protocol and docs/feed.md, and nothing else: a socket, JSON, and a signature.

`python raw_subscriber.py HOST:PORT KEY-FILE FILTER OUT`: follows one host's slice of the feed for ever, and
writes each event as a line of OUT: position, subject, type, and the event itself. Where OUT ends, it goes on. It
connects again when it is cut off. What it has missed meanwhile it reads from the stream.
"""

import base64
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import nkeys

INBOX = f"_INBOX_dash.{secrets.token_hex(16)}"
"""Whoever knew it could have the server answer there."""
SILENCE_S = 20.0
PAUSE_S = 0.05
BATCH = 16
READING = b"leasehold-read.DIRECT.GET.EVENTS"


class Message(NamedTuple):
    """What the server sends. `status`: in the first line of its headers, 0 if there is none."""

    subject: str
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection, from its greeting on."""

    def __init__(self, address: str, seed: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=SILENCE_S)
        self._stream = self.socket.makefile("rb")
        info = json.loads(self._line().removeprefix(b"INFO "))
        pair = nkeys.from_seed(bytearray(seed))
        signature = base64.urlsafe_b64encode(pair.sign(info["nonce"].encode())).rstrip(b"=").decode()
        hello = {
            "verbose": False, "pedantic": False, "lang": "raw", "version": "1", "protocol": 1,
            "headers": True, "no_responders": True, "nkey": bytes(pair.public_key).decode(), "sig": signature,
        }  # fmt: skip
        self.say(b"CONNECT " + json.dumps(hello).encode() + b"\r\nPING\r\n")

    def say(self, words: bytes) -> None:
        self.socket.sendall(words)

    def messages(self) -> Iterator[Message]:
        """All that arrives; ends with ConnectionError, when nothing is heard or the server goes away."""
        asked_s = time.monotonic()
        while True:
            if time.monotonic() - asked_s > SILENCE_S / 3:
                # Else a server that says nothing could not be told from one that has nothing to say.
                self.say(b"PING\r\n")
                asked_s = time.monotonic()
            line = self._line()
            verb, *words = line.split()
            if verb == b"PING":
                self.say(b"PONG\r\n")
            elif verb == b"-ERR":
                raise ConnectionError(line.decode())
            elif verb == b"MSG":
                yield Message(words[0].decode(), 0, {}, self._block(int(words[-1])))
            elif verb == b"HMSG":
                size, total = int(words[-2]), int(words[-1])
                block = self._block(total)
                first, *lines = block[:size].decode().split("\r\n")
                status = int(first[9:12]) if first[9:12].isdigit() else 0
                pairs = (one.partition(":") for one in lines)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                yield Message(words[0].decode(), status, headers, block[size:])

    def _line(self) -> bytes:
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise ConnectionError("silence") from None
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server has gone away")
        return line

    def _block(self, size: int) -> bytes:
        block = self._stream.read(size + 2)
        if len(block) != size + 2:
            raise ConnectionError("the server has gone away")
        return block[:-2]


class Follower:
    """What one subscriber has, and how it goes on: first what is kept, then what comes, and again what is kept, when
    something that came names a predecessor that was never seen.
    """

    def __init__(self, wanted: str, out: IO[bytes], position: int) -> None:
        self.wanted = wanted
        self.out = out
        self.position = position
        self.sequence = 0
        """Where in the stream the last event stood; 0: not known."""
        self.is_catching_up = False
        self.is_behind = False
        """Something came that can only be taken when what is before it has been read."""
        self.round = 0

    def follow(self, wire: Wire) -> None:
        """Until the connection breaks (ConnectionError)."""
        wire.say(b"SUB %b 1\r\nSUB %b.* 2\r\n" % (self.wanted.encode(), INBOX.encode()))
        # The stream may have been told anew while we were away, so its numbers mean nothing: only positions do.
        self.sequence = 0
        self.catch_up(wire)
        for message in wire.messages():
            if message.subject.startswith(INBOX):
                if message.subject == f"{INBOX}.{self.round}":
                    self.take_kept(wire, message)
            elif message.headers.get("nats-subject") == message.subject:
                # Only what the stream has sent says under which subject it is kept.
                self.take_live(wire, message)

    def catch_up(self, wire: Wire) -> None:
        """Ask for what is kept behind what was seen."""
        self.is_catching_up, self.is_behind = True, False
        self.round += 1
        asked = {"seq": self.sequence + 1, "batch": BATCH, "next_by_subj": self.wanted}
        body = json.dumps(asked).encode()
        words = (READING, f"{INBOX}.{self.round}".encode(), len(body), body)
        wire.say(b"PUB %b %b %d\r\n%b\r\n" % words)

    def take_kept(self, wire: Wire, message: Message) -> None:
        if message.status in (204, 404):
            self.is_catching_up = False
            if self.is_behind or int(message.headers.get("nats-num-pending", "0")):
                self.catch_up(wire)
        elif message.status:
            raise ConnectionError(f"{message.status}")
        else:
            self.take(message._replace(subject=message.headers["nats-subject"]))

    def take_live(self, wire: Wire, message: Message) -> None:
        if int(message.headers["ce-prevposition"]) > self.position:
            # One was lost, or is still being read.
            self.is_behind = True
            if not self.is_catching_up:
                self.catch_up(wire)
        else:
            self.take(message)

    def take(self, message: Message) -> None:
        """Write an event down, unless it was; further parts of the same one say nothing new to who has no filter."""
        self.sequence = max(self.sequence, int(message.headers["nats-sequence"]))
        position = int(message.headers["ce-position"])
        if position <= self.position:
            return
        assert message.headers["ce-specversion"] == "1.0", message.headers
        line = [str(position).encode(), message.subject.encode(), message.headers["ce-type"].encode(), message.body]
        self.out.write(b"\t".join(line) + b"\n")
        self.out.flush()
        self.position = position


def last_position(out: Path) -> int:
    """The position in the last whole line; what was written by half is cut away."""
    body = out.read_bytes() if out.exists() else b""
    whole = body[: body.rfind(b"\n") + 1]
    if whole != body:
        os.truncate(out, len(whole))
    return int(whole.splitlines()[-1].split(b"\t")[0]) if whole else 0


def main() -> None:
    """Follow until killed."""
    address, key, wanted, path = sys.argv[1:]
    seed = json.loads(Path(key).read_text())["seed"].encode()
    position = last_position(Path(path))
    with Path(path).open("ab") as out:
        follower = Follower(wanted, out, position)
        while True:
            with contextlib.suppress(OSError):
                follower.follow(Wire(address, seed))
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
