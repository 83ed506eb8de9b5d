"""The gate in front of the inbox: agents report through it, and have no say in what the server does with a report."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from leasehold.events import codec, limits
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed, SourceStarts
from leasehold.services.allocator.gate import IN_WORK_PER_HOST_MAX, Gate
from leasehold.services.allocator.hint import MemoryHint
from leasehold.services.connection import Connection
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from tests.support.cluster import fresh_streams
from tests.support.damage_allocator import RunningAllocator, running_allocator
from tests.support.servers import SUBJECTS, connected, server_at

STORED = "$JS.API.STREAM.MSG.GET.OBSERVED"


def report(host: str = "h1", run: int = 1, counter: int = 0) -> bytes:
    """What an agent sends first."""
    message = Observed(
        host=HostName(host), agent="watcher", run=run, counter=counter, observations=(SourceStarts(),)
    )
    return codec.encode(message)


class Gated:
    """An allocator with its gate, and an agent in front of it."""

    def __init__(self, running: RunningAllocator, gate: Gate, agent: Connection) -> None:
        self.running = running
        self.gate = gate
        self.agent = agent

    async def send(self, host: str = "h1", body: bytes = b"", **headers: str) -> dict[str, object]:
        """Report something; the answer."""
        subject = SUBJECTS.observed(host, "watcher")
        wire_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = await self.agent.ask(subject, body or report(host), timeout_s=5, headers=wire_headers or None)
        assert reply.status == 0, reply
        answer = json.loads(reply.body)
        assert isinstance(answer, dict)
        return answer


@asynccontextmanager
async def gated(url: str) -> AsyncIterator[Gated]:
    """A decider and its gate."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_allocator(url))
        door = await stack.enter_async_context(connected(url, "door"))
        agent = await stack.enter_async_context(connected(url, "agent"))
        await running.settled()
        gate = Gate(door, SUBJECTS, running.allocator)
        await gate.start()
        await door.flush()
        try:
            yield Gated(running, gate, agent)
        finally:
            await gate.stop()


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """A server with empty streams."""
    async with server_at(tmp_path_factory.mktemp("gate")) as server:
        async with connected(server.url) as client:
            await ensure_streams(client, SUBJECTS)
        yield server


async def test_a_report_is_kept_as_it_is_and_without_its_headers(server: NatsServer) -> None:
    """The body goes into the inbox byte for byte, under headers of ours alone, and the answer says where it stands."""
    async with gated(server.url) as each:
        answer = await each.send(Nats_Msg_Id="mine", Something="else")
        assert answer["stream"] == "OBSERVED" and answer["seq"] == 1
        stored = json.loads((await each.agent.ask(STORED, b'{"seq":1}', timeout_s=5)).body)["message"]
        assert base64.b64decode(stored["data"]) == report()
        assert stored["subject"] == SUBJECTS.inbox("h1", "watcher")
        headers = base64.b64decode(stored["hdrs"]).decode()
        assert "mine" not in headers and "Something" not in headers


async def test_nobody_takes_the_place_of_anothers_report(server: NatsServer) -> None:
    """One host sends with the message id that another will use: the other's report is kept all the same."""
    async with gated(server.url) as each:
        await each.send("h1", Nats_Msg_Id="h2/watcher/1/0")
        answer = await each.send("h2", Nats_Msg_Id="h2/watcher/1/0")
        assert answer["seq"] == 2 and "duplicate" not in answer


async def test_an_agent_cannot_stop_the_inbox_of_a_cluster(shared_cluster: list[str]) -> None:
    """A header that stops a replicated stream for good, sent by one host: the reports of others are kept as before."""
    await fresh_streams(shared_cluster)
    async with gated(shared_cluster[0]) as each:
        first = await each.send("h1", Nats_Expected_Last_Msg_Id="wrong")
        second = await each.send("h2")
        assert "error" not in first and "error" not in second
        assert second["seq"] == int(str(first["seq"])) + 1


async def test_too_much_of_one_host_is_refused_before_it_is_kept(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its share a host hears why, nothing more of it is kept, and another host is not concerned."""
    monkeypatch.setattr(limits, "OBSERVED_PER_HOST_AT_ONCE", 3)
    monkeypatch.setattr(limits, "OBSERVED_PER_HOST_PER_S", 0.001)
    async with gated(server.url) as each:
        answers = [await each.send("h1") for _ in range(5)]
        assert ["error" in answer for answer in answers] == [False, False, False, True, True]
        assert "messages a second" in str(answers[-1]["error"])
        assert "error" not in await each.send("h2")
        assert each.gate.refused.count == 2
        long = await each.send("h2", b"x" * (limits.OBSERVED_BYTES_MAX + 1))
        assert f"{limits.OBSERVED_BYTES_MAX} are possible" in str(long["error"])
    assert IN_WORK_PER_HOST_MAX < 64


async def test_a_standby_leaves_reports_to_the_decider(server: NatsServer) -> None:
    """Two gates hear a report, and it is kept once."""
    async with AsyncExitStack() as stack:
        hint = MemoryHint()
        doors = [await stack.enter_async_context(connected(server.url, f"door {number}")) for number in range(2)]
        agent = await stack.enter_async_context(connected(server.url, "agent"))
        first = await stack.enter_async_context(running_allocator(server.url, "one", hint=hint))
        await first.settled()
        second = await stack.enter_async_context(running_allocator(server.url, "two", hint=hint))
        await second.until(lambda: "stands by" in second.allocator.trouble)
        for door, running in zip(doors, (first, second), strict=True):
            gate = Gate(door, SUBJECTS, running.allocator)
            await gate.start()
            stack.push_async_callback(gate.stop)
            await door.flush()
        for _ in range(3):
            await agent.ask(SUBJECTS.observed("h1", "watcher"), report(), timeout_s=5)
        assert await first.observed.last_sequence() == 3
