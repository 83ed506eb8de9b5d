"""Many clients, one device, a real server, a real allocator process."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, RequestId
from leasehold.events.subjects import Subjects
from leasehold.services.connection import Connection
from tests.bench.cluster import HOST, cluster, paper_device

CLIENTS = 64
ROUNDS = 200


async def _ask(connection: Connection, subjects: Subjects, principal: str, request: inputs.Request) -> Answer:
    subject = subjects.request(principal, codec.verb_of(request))
    reply = await connection.ask(subject, codec.encode(request), timeout_s=10)
    return msgspec.json.decode(reply.body, type=Answer)


async def test_one_winner_each_round(tmp_path: Path) -> None:
    """64 clients with a connection and a principal each race for one device, 200 times: exactly one wins each time."""
    device = f"{HOST}/{paper_device(0).key}"
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(cluster(tmp_path / "data", 2))
        clients = [await stack.enter_async_context(found.connected("anybody")) for _ in range(CLIENTS)]
        for number in range(ROUNDS):
            await _race(clients, found.subjects, device, number)


async def _race(clients: list[Connection], subjects: Subjects, device: str, number: int) -> None:
    requests = [
        inputs.LeaseRequest(
            request_id=RequestId(f"round-{number}"),
            issued_at_ns=time.time_ns(),
            devices=(device,),
            holder=Holder(f"client {index}"),
            ttl_ms=60_000,
        )
        for index in range(len(clients))
    ]
    answers = await asyncio.gather(
        *(
            _ask(client, subjects, f"p{index}", request)
            for index, (client, request) in enumerate(zip(clients, requests, strict=True))
        )
    )
    winners = [index for index, answer in enumerate(answers) if answer.outcome == "granted"]
    assert len(winners) == 1, f"round {number}: {[answers[index] for index in winners]}"
    (winner,) = winners
    for index, answer in enumerate(answers):
        if index != winner:
            assert answer.refusal is not None, answer
            assert answer.refusal.code == "device_held"
            assert answer.refusal.blockers[0].holder == f"client {winner}"
    release = inputs.ReleaseRequest(
        request_id=RequestId(f"release-{number}"),
        issued_at_ns=time.time_ns(),
        lease=answers[winner].lease,
        token=answers[winner].token,
    )
    released = await _ask(clients[winner], subjects, f"p{winner}", release)
    assert released.outcome == "released"
