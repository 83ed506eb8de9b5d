"""`make bench`: prints one table. Rates are medians of several rounds, taken by turns; ratios matter, not rates."""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, RequestId
from leasehold.events.subjects import Subjects
from leasehold.projections import evolve
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.services.connection import Connection, connect
from leasehold.services.ledger.jetstream import JetStreamLedger
from tests.bench.cluster import HOST, cluster, paper_device
from tests.support.servers import TESTER

ROUNDS = 5
ROUND_S = 1.0
IN_FLIGHT = (1, 16, 64)
DEVICES = 128

Work = Callable[[int], Awaitable[None]]
"""Does one thing as worker number so-and-so."""


async def _rate(work: Work, in_flight: int) -> tuple[float, list[float]]:
    """Things done per second by so many workers, and how long each took (ms)."""
    took_ms: list[float] = []
    end_s = time.monotonic() + ROUND_S

    async def worker(number: int) -> None:
        while (begun_s := time.monotonic()) < end_s:
            await work(number)
            took_ms.append((time.monotonic() - begun_s) * 1_000)

    begun_s = time.monotonic()
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return len(took_ms) / (time.monotonic() - begun_s), took_ms


class _Leasing:
    """Leases and releases devices of the bench host."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection = connection
        self._lease = subjects.request("bench", "lease")
        self._release = subjects.request("bench", "release")
        self._count = 0

    def _id(self) -> RequestId:
        self._count += 1
        return RequestId(f"bench-{self._count}")

    async def _ask(self, subject: str, request: inputs.Request) -> Answer:
        reply = await self._connection.ask(subject, codec.encode(request), timeout_s=5.0)
        return msgspec.json.decode(reply.body, type=Answer)

    async def pair(self, worker: int, devices: int = DEVICES) -> None:
        device = f"{HOST}/{paper_device(worker % devices).key}"
        lease = inputs.LeaseRequest(
            request_id=self._id(), issued_at_ns=time.time_ns(), devices=(device,),
            holder=Holder(f"worker {worker}"), ttl_ms=60_000,
        )  # fmt: skip
        granted = await self._ask(self._lease, lease)
        if granted.outcome != "granted":
            return
        release = inputs.ReleaseRequest(
            request_id=self._id(), issued_at_ns=time.time_ns(), lease=granted.lease, token=granted.token
        )
        await self._ask(self._release, release)


async def _bare(connection: Connection) -> Work:
    """Request and reply through the same client and server, with nobody deciding anything: two for each pair."""
    responder = await connect_like(connection)

    def respond(_subject: bytes, reply: bytes, body: bytes, _headers: bytes | None) -> None:
        replies.put_nowait((reply.decode(), body))

    replies: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=4_096)
    await responder.listen("bench.echo", respond)

    async def answer() -> None:
        while True:
            reply, body = await replies.get()
            await responder.publish(reply, body)

    answering = asyncio.create_task(answer())
    _keep.append(answering)

    async def work(_worker: int) -> None:
        for _ in range(2):
            await connection.ask("bench.echo", b"x" * 200, timeout_s=5.0)

    return work


_keep: list[asyncio.Task[None]] = []


async def connect_like(connection: Connection) -> Connection:
    """Another connection to the same server."""
    url = f"nats://{connection.connected_url.netloc}" if connection.connected_url else ""
    return await connect(url, credential=TESTER, name="bench responder")


async def _measure_requests(connection: Connection, subjects: Subjects) -> None:
    leasing = _Leasing(connection, subjects)
    bare = await _bare(connection)
    print(f"{'in flight':>9} {'bare pairs/s':>13} {'lease+release/s':>16} {'ratio':>6} {'p50 ms':>7} {'p99 ms':>7}"
          f" {'all for 10/s':>13}")
    for in_flight in IN_FLIGHT:
        rates: dict[str, list[float]] = {"bare": [], "lease": [], "fight": []}
        took: list[float] = []
        for _ in range(ROUNDS):
            rates["bare"].append((await _rate(bare, in_flight))[0])
            rate, took_ms = await _rate(leasing.pair, in_flight)
            rates["lease"].append(rate)
            took += took_ms
            rates["fight"].append((await _rate(lambda worker: leasing.pair(worker, 10), in_flight))[0])
        ratio = statistics.median(lease / free for lease, free in zip(rates["lease"], rates["bare"], strict=True))
        took.sort()
        print(f"{in_flight:>9} {statistics.median(rates['bare']):>13.0f} {statistics.median(rates['lease']):>16.0f}"
              f" {ratio:>6.2f} {took[len(took) // 2]:>7.2f} {took[len(took) * 99 // 100]:>7.2f}"
              f" {statistics.median(rates['fight']):>13.0f}")


async def _measure_replay(connection: Connection, subjects: Subjects) -> None:
    ledger = JetStreamLedger(connection, subjects)
    last = await ledger.last_sequence()
    begun_s = time.monotonic()
    bodies: list[bytes] = []
    async for entries in ledger.follow(0):
        bodies += [entry.body for entry in entries]
        if len(bodies) >= last:
            break
    read_s = time.monotonic() - begun_s
    state, begun_s = State(), time.monotonic()
    for sequence, body in enumerate(bodies, 1):
        evolve.fold(state, sequence, body)
    fold_s = time.monotonic() - begun_s
    replay, begun_s = Replay(), time.monotonic()
    for sequence, body in enumerate(bodies, 1):
        replay.step(sequence, body)
    replay_s = time.monotonic() - begun_s
    events = replay.events
    print(f"\nlog of {last} records, {events} events, {sum(map(len, bodies)) / 1e6:.1f} MB")
    print(f"  read from the server   {last / read_s:>10.0f} records/s")
    print(f"  decode and fold        {events / fold_s:>10.0f} events/s")
    print(f"  fold and decide again  {events / replay_s:>10.0f} events/s")
    body = encode_state(state)
    begun_s = time.monotonic()
    decode_state(body)
    print(f"  snapshot               {len(body) / 1e6:.1f} MB, read in {(time.monotonic() - begun_s) * 1_000:.0f} ms")


async def _main() -> None:
    with tempfile.TemporaryDirectory(prefix="leasehold-bench-") as folder:
        async with cluster(Path(folder), DEVICES) as (connection, subjects):
            print("lease and release through the whole path, each answered after fsync; medians of "
                  f"{ROUNDS} rounds of {ROUND_S:g} s")
            await _measure_requests(connection, subjects)
            await _measure_replay(connection, subjects)
            for task in _keep:
                task.cancel()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
