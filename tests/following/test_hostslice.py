"""A host's agent hears what the log says of its host, and acts on it at once."""

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest

from leasehold.events import codec
from leasehold.events.event_types import PictureCompleted
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed, StillHere
from leasehold.services.feed.stream import empty_events, state_of_events
from leasehold.services.feedevents import FeedEvent, wanted
from leasehold.services.hostslice import HostSlice
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.watcher.agent import WatcherAgent
from tests.bench.cluster import HOST, bus, paper_device
from tests.feed.events import expected, feeding, until, until_end, until_told
from tests.following.listening import grown, positions, turn
from tests.following.test_following import restored
from tests.support.servers import SUBJECTS, connected, server_at

WAIT_S = 60
SILENT_S = 3_600.0


async def test_a_report_that_is_wanted_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log misses a message of a watcher: it reports again without waiting for its next heartbeat."""
    async with (
        bus(tmp_path / "bus", sync_always=False) as found,
        found.process("allocator"),
        found.process("query"),
        found.process("feed"),
        found.connected("agent") as connection,
        found.connected("operator") as looking,
    ):
        picture = {paper_device(1).key: paper_device(1)}
        agent = WatcherAgent(connection, found.subjects, HOST, look=Mock(return_value=picture))
        completed = asyncio.Queue[int]()

        def hear(told: FeedEvent) -> None:
            if isinstance(told.event, PictureCompleted):
                completed.put_nowait(told.position)

        told = HostSlice(looking, found.subjects, HOST, hear, lambda: None)
        await told.open()
        running = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(WAIT_S):
                await completed.get()
                await agent.reported.wait()
                speaker = agent._speaker
                spoken, speak = asyncio.Event(), speaker._speak

                async def speaking() -> float:
                    pause_s = await speak()
                    spoken.set()
                    return SILENT_S if pause_s >= 1 else pause_s

                # From here on nothing but the feed makes it speak.
                monkeypatch.setattr(speaker, "_speak", speaking)
                speaker.wake()
                await spoken.wait()
                reporter = speaker._reporter
                assert reporter is not None
                # In the agent's name, with a number that leaves out the next ones.
                ahead = Observed(
                    host=HOST, agent="watcher", run=reporter.run, counter=reporter.counter + 3,
                    observations=(StillHere(),),
                )  # fmt: skip
                await connection.ask(found.subjects.observed(HOST, "watcher"), codec.encode(ahead), timeout_s=5)
                await completed.get()
        finally:
            running.cancel()
            await asyncio.wait({running})
            await told.close()


async def test_a_slice_is_given_in_order_and_its_gaps_are_told(tmp_path: Path) -> None:
    """An agent is given its host's events and the cluster's, each once; one that was lost on the way is noticed."""
    async with server_at(tmp_path / "nats") as server, connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
        given: list[FeedEvent] = []
        gaps: list[int] = []
        told = HostSlice(client, SUBJECTS, HostName("h1"), given.append, lambda: gaps.append(len(given)))
        await told.open()
        grower = await grown(JetStreamLedger(client, SUBJECTS), 5)
        async with feeding(client, tmp_path / "feed"):
            await turn(grower, 10)
            right = positions(grower.bodies, wanted(host="h1"))

            async def has_all() -> bool:
                return [event.position for event in given if event.host] == right

            await until(has_all)
            assert not gaps
            assert {event.host for event in given} == {"h1", ""}
            hear, lost = told._hear, 0

            def deaf(*_message: object) -> None:
                nonlocal lost
                lost += 1

            for number in client._taps:
                if client._taps[number] == hear:
                    client._taps[number] = deaf
            await turn(grower, 2)

            async def was_deaf() -> bool:
                return lost > 0

            await until(was_deaf)
            for number in client._taps:
                if client._taps[number] is deaf:
                    client._taps[number] = hear
            await turn(grower, 4)

            async def has_noticed() -> bool:
                return bool(gaps)

            await until(has_noticed)
        await told.close()


async def test_a_restored_ledger_is_heard_from_its_era_on(tmp_path: Path) -> None:
    """What a restored ledger tells at positions that were heard before is given; what it had before is not, again."""
    log, other = MemoryLog(), MemoryLog()
    grower = await grown(MemoryLedger(log), 20)
    later = await restored(grower, other, 8)
    async with server_at(tmp_path / "nats") as server, connected(server.url) as client:
        await ensure_streams(client, SUBJECTS)
        given: list[FeedEvent] = []
        gaps: list[int] = []
        told = HostSlice(client, SUBJECTS, HostName("h1"), given.append, lambda: gaps.append(len(given)))
        await told.open()
        async with feeding(client, tmp_path / "feed", MemoryLedger(log)):
            await until_told(client, len(expected(grower.bodies)))
        was = len(given)
        assert [event.position for event in given if event.host] == positions(grower.bodies, wanted(host="h1"))
        async with feeding(client, tmp_path / "feed", MemoryLedger(other)):
            await until_end(client, expected(later.bodies)[-1])
            await empty_events(client, (await state_of_events(client)).last_seq)
            await until_end(client, expected(later.bodies)[-1])
        new = [event.position for event in given[was:]]
        right = [each.position for each in expected(later.bodies) if each.said.era == 1]
        hosts = [each.subject.partition(".")[0] for each in expected(later.bodies) if each.said.era == 1]
        assert new == list(dict.fromkeys(at for at, host in zip(right, hosts, strict=True) if host in ("h1", "_")))
        assert gaps == [was]
        await told.close()
