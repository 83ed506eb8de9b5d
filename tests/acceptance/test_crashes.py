"""Processes are killed under load; what was answered is kept, and asking again gives the same answer."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.identities import Holder, RequestId
from leasehold.events.inputs import Request
from leasehold.events.subjects import Subjects
from leasehold.services import home
from leasehold.services.client import Client
from leasehold.services.credentials import read_credential
from tests.bench.cluster import HOST, beat, paper_device, report_devices
from tests.support.running import RunningUp, leasehold
from tests.support.servers import connected, wait_until_gone

DEVICES = 24
WORKERS = 12
MORE_ANSWERS = 120
WAIT_S = 60.0


class Load:
    """Workers that lease and release, and remember every answer."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self.answered: dict[RequestId, tuple[Request, Answer]] = {}
        self._more = asyncio.Condition()
        self._stopping = False

    async def work(self, number: int) -> None:
        """Lease a device, perhaps release it, again and again, with one's own request ids."""
        count = 0
        while not self._stopping:
            count += 1
            device = f"{HOST}/{paper_device(self._rng.randrange(DEVICES)).key}"
            lease = inputs.LeaseRequest(
                request_id=RequestId(f"w{number}-{count}"), issued_at_ns=time.time_ns(), devices=(device,),
                holder=Holder(f"worker {number}"), ttl_ms=3_600_000,
            )  # fmt: skip
            answer = await self._ask(lease)
            if answer.outcome == "granted" and self._rng.random() < 0.8:
                await self._ask(
                    inputs.ReleaseRequest(
                        request_id=RequestId(f"w{number}-{count}-r"), issued_at_ns=time.time_ns(),
                        lease=answer.lease, token=answer.token,
                    )
                )  # fmt: skip

    async def _ask(self, request: Request) -> Answer:
        answer = await self._client.answer_to(request)
        async with self._more:
            self.answered[request.request_id] = (request, answer)
            self._more.notify_all()
        return answer

    async def more(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = len(self.answered) + count
        async with asyncio.timeout(WAIT_S), self._more:
            await self._more.wait_for(lambda: len(self.answered) >= goal)

    def stop(self) -> None:
        """Ask nothing new."""
        self._stopping = True

    def living(self) -> set[int]:
        """The leases that must be living, by all that was answered."""
        granted = {answer.lease for _, answer in self.answered.values() if answer.outcome == "granted"}
        released = {answer.lease for _, answer in self.answered.values() if answer.outcome == "released"}
        return granted - released


@asynccontextmanager
async def under_load(up: RunningUp, seed: int) -> AsyncIterator[Load]:
    """Workers on devices of a host that exists on paper, beside this machine's own."""
    key = up.data.parent / "agent.json"
    added = await asyncio.to_thread(leasehold, up.data, "credentials", "add", "agent", HOST, "--out", str(key))
    assert added.code == 0, added.err
    credential = read_credential(key)
    urls = home.read_connection(up.data).urls
    async with Client(up.data, patience_s=WAIT_S) as client, connected(urls, "agent", credential) as agent:
        subjects = Subjects(credential.cluster)
        async with asyncio.timeout(WAIT_S):
            reporter = await report_devices(agent, subjects, DEVICES)
        beating = asyncio.create_task(beat(agent, subjects, reporter))
        load = Load(client, seed)
        workers = [asyncio.create_task(load.work(number)) for number in range(WORKERS)]
        try:
            await load.more(MORE_ANSWERS)
            yield load
            load.stop()
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*workers)
            await _check(client, load)
        finally:
            for task in (beating, *workers):
                task.cancel()


async def _check(client: Client, load: Load) -> None:
    living = {int(row.lease[1:]) for row in await client.leases() if row.principal == client.principal}
    assert living == load.living(), "ownership is not what was answered"
    for request, answer in load.answered.values():
        again = await client.answer_to(request)
        assert (again.outcome, again.lease, again.position) == (answer.outcome, answer.lease, answer.position)
    held: dict[str, str] = {}
    for row in await client.leases():
        for device in row.devices:
            assert held.setdefault(device, row.lease) == row.lease, f"{device} has two owners"


@pytest.mark.parametrize("role", ["allocator", "nats-server", "query", "archive", "watcher"])
async def test_a_killed_part_is_replaced(role: str, tmp_path: Path) -> None:
    """kill -9 of one process under load, three times: no answered grant is missing, and it goes on by itself."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    up = await asyncio.to_thread(RunningUp, tmp_path / "data")
    try:
        async with under_load(up, seed) as load:
            for _ in range(3):
                await asyncio.to_thread(up.kill_child, role)
                await load.more(MORE_ANSWERS)
        verified = await asyncio.to_thread(leasehold, up.data, "verify")
        assert verified.code == 0, verified.err
    finally:
        assert await asyncio.to_thread(up.stop) == 0


async def test_all_of_it_killed(tmp_path: Path) -> None:
    """kill -9 of `up` itself under load: nothing is left running, and a new one has everything that was answered."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    up = await asyncio.to_thread(RunningUp, tmp_path / "data")
    try:
        async with under_load(up, seed) as load:
            for _ in range(2):
                for pid in await asyncio.to_thread(up.kill):
                    assert await asyncio.to_thread(wait_until_gone, pid), "a child outlived `up`"
                up = await asyncio.to_thread(RunningUp, tmp_path / "data")
                await load.more(MORE_ANSWERS)
        verified = await asyncio.to_thread(leasehold, up.data, "verify")
        assert verified.code == 0, verified.err
    finally:
        assert await asyncio.to_thread(up.stop) == 0
