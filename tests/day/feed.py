"""All that EVENTS holds, read by the NATS protocol alone, and held against the raw records."""

import asyncio
import json
from collections import Counter
from typing import Any

import jsonschema
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from leasehold.services.describing.messages import EVENTS
from tests.day.load import CHECKED_EACH
from tests.day.oracle import RawLog
from tests.schemas.checking import check, check_headers

GET = "leasehold-read.DIRECT.GET.EVENTS"
BATCH = 500
WAIT_S = 20.0
_TYPE_PREFIX = "org.leasehold."
_URN_PREFIX = "urn:leasehold:schema:"


async def stored(connection: NatsClient) -> list[Msg]:
    """Every message that the stream has, in its order."""
    found: list[Msg] = []
    done = 0
    while True:
        batch = await _batch(connection, done + 1)
        if not batch:
            return found
        found += batch
        done = int((batch[-1].headers or {})["Nats-Sequence"])


async def _batch(connection: NatsClient, sequence: int) -> list[Msg]:
    """The next messages from `sequence` on; none: the end."""
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    try:
        asked = {"seq": sequence, "batch": BATCH, "next_by_subj": ">"}
        await connection.publish(GET, json.dumps(asked).encode(), reply=inbox)
        found: list[Msg] = []
        while True:
            message = await subscription.next_msg(timeout=WAIT_S)
            status = (message.headers or {}).get("Status", "")
            if status in ("204", "404"):
                return found
            assert not status, f"the feed's stream answers {status}"
            found.append(message)
    finally:
        await subscription.unsubscribe()


class Told:
    """What the stream holds, event by event."""

    def __init__(self, messages: list[Msg], log: RawLog) -> None:
        self.messages = len(messages)
        self.checked: Counter[str] = Counter()
        self.problems: list[str] = []
        self._seen: Counter[tuple[int, int]] = Counter()
        self._parts: dict[int, set[int]] = {}
        self._last = (0, 0)
        for message in messages:
            self._take(message)
        self._compare(log)

    def _take(self, message: Msg) -> None:
        headers = message.headers or {}
        position, part, parts = (int(headers[f"ce-{name}"]) for name in ("position", "part", "parts"))
        self._seen[position, part] += 1
        self._parts.setdefault(position, set()).add(parts)
        if (position, part) <= self._last:
            self.problems.append(f"{position}.{part} stands behind {self._last}")
        self._last = (position, part)
        tag = headers["ce-type"].removeprefix(_TYPE_PREFIX)
        if self.checked[tag] < CHECKED_EACH:
            self.checked[tag] += 1
            self._check(tag, headers, message.data)

    def _check(self, tag: str, headers: dict[str, str], body: bytes) -> None:
        """One message against its schema, which its headers name."""
        try:
            said: dict[str, Any] = json.loads(body)
            assert said["type"] == tag == headers["ce-dataschema"].removeprefix(_URN_PREFIX), headers
            assert tag in EVENTS, tag
            check(tag, said)
            check_headers({name: text for name, text in headers.items() if name.startswith("ce-")})
        except (jsonschema.ValidationError, AssertionError, ValueError) as error:
            self.problems.append(f"{tag}: {str(error)[:300]} in {body[:300]!r}")

    def _compare(self, log: RawLog) -> None:
        doubled = [key for key, count in self._seen.items() if count > 1]
        # The cluster goes on: what came behind the log that was read is not known here.
        told = {position for position in self._parts if position <= log.positions[-1]}
        missing, more = set(log.positions) - told, told - set(log.positions)
        uneven = [position for position, parts in self._parts.items() if not self._is_whole(position, parts)]
        self.problems += [
            f"{what}: {len(found)}, the first {min(found)}"
            for what, found in (
                ("told twice", doubled), ("not told", missing), ("in no record", more), ("not all parts", uneven)
            )
            if found
        ]  # fmt: skip

    def _is_whole(self, position: int, parts: set[int]) -> bool:
        (count,) = parts if len(parts) == 1 else (0,)
        return count > 0 and all(self._seen[position, part] == 1 for part in range(count))


async def told(connection: NatsClient, log: RawLog, *, timeout_s: float = 120.0) -> Told:
    """What is told, when the feed has come to the log's end."""
    messages: list[Msg] = []
    async with asyncio.timeout(timeout_s):
        while not messages or int((messages[-1].headers or {})["ce-position"]) < log.positions[-1]:
            messages = await stored(connection)
    return Told(messages, log)
