"""The day's load: principals of several tenants that lease, renew and release as fast as they are answered."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import jsonschema
import msgspec

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.errors import OutcomeUnknownError, UnavailableError
from leasehold.events.identities import Holder, RequestId
from leasehold.events.inputs import Request
from leasehold.services.client import Client
from leasehold.services.connection import Connection, Reply
from leasehold.services.describing.messages import (
    ANSWER,
    ASKABLE,
    HEARD,
    HEARTBEAT,
    KEPT,
    READING,
    REPORT,
    REQUESTS,
)
from tests.day.oracle import RawLog
from tests.schemas.checking import check

WORKERS = 24
TTL_MS = 60_000
"""A decider whose clock is new lets no lease expire for the longest of these times."""
SHORT_TTL_MS = 1_000
SHORT_MAX = 8
"""Leases for each worker's principal that are left to expire: while deciders are killed, grace follows on grace."""
CHECKED_EACH = 300
"""Messages of one kind that are held against their schema."""
_EFFECT = {"granted": "lease_granted", "renewed": "lease_renewed", "released": "lease_released"}


@dataclass
class Said:
    """One request, and what was answered for good."""

    principal: str
    request: Request
    answer: Answer


class Heard:
    """Requests, questions and answers on the wire, each held against its published schema."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.problems: list[str] = []

    def listen(self, connection: Connection) -> None:
        """From here on all that is asked over this connection is looked at."""
        ask = connection.ask

        async def heard(
            subject: str, body: bytes = b"", *, timeout_s: float, headers: Mapping[str, str] | None = None
        ) -> Reply:
            asked, answered = _names_of(subject)
            self.look(asked, body)
            reply = await ask(subject, body, timeout_s=timeout_s, headers=headers)
            if not reply.status:
                self.look(answered, reply.body)
            return reply

        connection.ask = heard  # type: ignore[method-assign]

    def look(self, name: str, body: bytes) -> None:
        """Hold one message against its schema, unless enough of its kind were."""
        if not name or self.checked[name] >= CHECKED_EACH:
            return
        self.checked[name] += 1
        try:
            check(name, msgspec.json.decode(body))
        except (jsonschema.ValidationError, msgspec.DecodeError) as error:
            self.problems.append(f"{name}: {str(error)[:300]} in {body[:300]!r}")


def _names_of(subject: str) -> tuple[str, str]:
    """What a message to this subject is, and its answer."""
    words = subject.split(".")
    if words[0] != "leasehold":
        return "", ""  # of the streams, and no message of ours
    way, verb = words[2], words[4]
    if way == "req":
        return (REQUESTS[verb], ANSWER) if verb in REQUESTS else (ASKABLE[verb], READING)
    return {"obs": (REPORT, KEPT), "alive": (HEARTBEAT, HEARD)}[way]


class Load:
    """Workers of one principal, and all that they were told."""

    def __init__(self, client: Client, devices: list[str], *, seed: int, name: str) -> None:
        self.said: list[Said] = []
        self.events = 0
        """At least so many are in the log because of us."""
        self._client = client
        self._devices = devices
        self._rng = random.Random(f"{seed} {name}")
        self._name = name
        self._count = self._short = 0
        self._more = asyncio.Condition()
        self._stopping = False

    async def run(self) -> None:
        """Work until `stop`; every request that was begun is answered in the end."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._work())

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True

    async def more(self, count: int, *, timeout_s: float = 90.0) -> None:
        """Wait until so many more requests have been answered."""
        goal = len(self.said) + count
        async with asyncio.timeout(timeout_s), self._more:
            await self._more.wait_for(lambda: len(self.said) >= goal)

    async def _work(self) -> None:
        while not self._stopping:
            devices = tuple(self._rng.sample(self._devices, self._rng.choice((1, 1, 1, 2, 3))))
            is_short = self._short < SHORT_MAX and self._rng.random() < 0.02
            self._short += is_short
            lease = inputs.LeaseRequest(
                request_id=self._new_id(), issued_at_ns=time.time_ns(), devices=devices,
                holder=Holder(f"vm {self._name} {self._rng.randrange(9)}"), ttl_ms=SHORT_TTL_MS if is_short else TTL_MS,
            )  # fmt: skip
            granted = await self._ask(lease)
            if granted.outcome != "granted" or is_short:
                continue
            if self._rng.random() < 0.2:
                await self._ask(
                    inputs.RenewRequest(
                        request_id=self._new_id(), issued_at_ns=time.time_ns(),
                        lease=granted.lease, token=granted.token, ttl_ms=TTL_MS,
                    )
                )  # fmt: skip
            await self._ask(
                inputs.ReleaseRequest(
                    request_id=self._new_id(), issued_at_ns=time.time_ns(), lease=granted.lease, token=granted.token
                )
            )

    def _new_id(self) -> RequestId:
        self._count += 1
        return RequestId(f"{self._name}-{self._count}")

    async def _ask(self, request: Request) -> Answer:
        while True:
            try:
                answer = await self._client.answer_to(request)
                break
            except (UnavailableError, OutcomeUnknownError):
                continue
        self.said.append(Said(self._client.principal, request, answer))
        self.events += {"granted": 1, "renewed": 1, "released": 1 + len(answer.devices)}.get(answer.outcome, 0)
        async with self._more:
            self._more.notify_all()
        return answer

    def check(self, log: RawLog) -> list[str]:
        """What was told and is not in the log, or is there twice, in words."""
        problems = []
        for said in self.said:
            key = (said.principal, str(said.request.request_id))
            effects = log.effects.get(key, [])
            wanted = _EFFECT.get(said.answer.outcome)
            if wanted is None:
                problems += [f"{key} was refused, and did {each.type}" for each in effects if each.type in _DONE]
                continue
            done = [each for each in effects if each.type == wanted]
            if [each.position for each in done] != [said.answer.position]:
                problems.append(f"{key} was told {wanted} at {said.answer.position}; the log has it at {done}")
        return problems


_DONE = frozenset(_EFFECT.values())
