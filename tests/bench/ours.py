"""Our own contenders: leasing through the whole path, and bare request and reply with the same client and server."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, RequestId
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import read_credential, write_credential
from leasehold.services.lifeline import tied_to_us
from tests.bench.cluster import HOST, PRINCIPAL, Bus, ask_until, paper_device
from tests.bench.peers import TTL_MS
from tests.support.tree import ROOT

ECHO: Final = "bench.echo"
_TIMEOUT_S: Final = 10.0
_decoder: Final = msgspec.json.Decoder(Answer)


def lease_request(device: str, request_id: RequestId | None = None) -> inputs.LeaseRequest:
    """A request for this device; without an id, one that nobody has used."""
    now_ns = time.time_ns()
    return inputs.LeaseRequest(
        request_id=request_id or RequestId(f"once-{now_ns}"), issued_at_ns=now_ns, devices=(device,),
        holder=Holder("bench"), ttl_ms=TTL_MS,
    )  # fmt: skip


class Ours:
    """Leases and releases devices of the bench host, as any principal does it, by request and answer."""

    def __init__(self, name: str, connection: Connection, subjects: Subjects) -> None:
        self.name = name
        self._connection = connection
        self._lease = subjects.request(PRINCIPAL, "lease")
        self._release = subjects.request(PRINCIPAL, "release")
        self._run = time.time_ns()
        self._count = 0

    def _id(self) -> RequestId:
        self._count += 1
        return RequestId(f"{self._run}-{self._count}")

    async def _ask(self, subject: str, request: inputs.Request) -> Answer:
        reply = await self._connection.ask(subject, codec.encode(request), timeout_s=_TIMEOUT_S)
        return _decoder.decode(reply.body)

    async def lease(self, device: int) -> Answer | None:
        """The grant; `None` if it was refused."""
        request = lease_request(f"{HOST}/{paper_device(device).key}", self._id())
        answer = await self._ask(self._lease, request)
        if answer.outcome == "refused":
            return None
        assert answer.outcome == "granted", answer
        return answer

    async def release(self, device: int, held: Answer) -> None:
        """Give it back."""
        request = inputs.ReleaseRequest(
            request_id=self._id(), issued_at_ns=time.time_ns(), lease=held.lease, token=held.token
        )
        answer = await self._ask(self._release, request)
        assert answer.outcome == "released", answer


class Bare:
    """Nobody decides anything, nothing is kept: one request and reply for a lease, one for a release."""

    name = "bare NATS"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lease(self, device: int) -> bytes:
        """As many bytes as a lease request has."""
        return (await self._connection.ask(ECHO, b"x" * 200, timeout_s=_TIMEOUT_S)).body

    async def release(self, device: int, held: bytes) -> None:
        """Once more."""
        await self._connection.ask(ECHO, held, timeout_s=_TIMEOUT_S)


@asynccontextmanager
async def bare(found: Bus) -> AsyncIterator[Bare]:
    """With a process that answers, as the allocator is one, through the same kind of connection."""
    path = found.data / "anybody.json"
    write_credential(path, found.anybody)
    echo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.ours", found.urls[0], str(path), cwd=ROOT, preexec_fn=tied_to_us()
    )
    try:
        async with found.connected("anybody") as connection:
            await ask_until(connection, ECHO, b"0", int)
            yield Bare(connection)
    finally:
        echo.terminate()
        await echo.wait()


async def _answer(url: str, path: Path) -> None:
    connection = await connect(url, credential=read_credential(path), name="bench echo")
    waiting: list[tuple[bytes, bytes]] = []
    something = asyncio.Event()

    def take(_subject: bytes, reply: bytes, body: bytes, _headers: bytes | None) -> None:
        waiting.append((reply, body))
        something.set()

    try:
        await connection.listen(ECHO, take)
        while True:
            await something.wait()
            something.clear()
            taken, waiting[:] = waiting[:], []
            await connection.publish_all(taken)
    finally:
        await disconnect(connection)


if __name__ == "__main__":
    asyncio.run(_answer(sys.argv[1], Path(sys.argv[2])))
