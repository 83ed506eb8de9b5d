"""The feed on three servers: what is told stays told, whoever leads."""

from contextlib import AsyncExitStack
from pathlib import Path

from leasehold.services.feed.stream import empty_events, state_of_events
from leasehold.services.ledger import api
from leasehold.services.ledger.memory import MemoryLedger, MemoryLog
from tests.feed.events import expected, feeding, stored, until_end
from tests.feed.test_feed import grown, turn
from tests.support.cluster import fresh_streams
from tests.support.servers import connected


async def test_leaders_change_and_all_is_told(shared_cluster: list[str], tmp_path: Path) -> None:
    """With the leader of EVENTS stepped down while two feeds tell, and EVENTS emptied, it holds each event once."""
    await fresh_streams(shared_cluster)
    log = MemoryLog()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for url in shared_cluster]
        grower = await grown(MemoryLedger(log))
        for number in (0, 1):
            feed = feeding(clients[number], tmp_path / f"feed{number}", MemoryLedger(log))
            await stack.enter_async_context(feed)
        for number in range(3):
            await turn(grower, 20)
            if number == 1:
                await empty_events(clients[2], (await state_of_events(clients[2])).last_seq)
            reply = await clients[2].ask("$JS.API.STREAM.LEADER.STEPDOWN.EVENTS", timeout_s=5)
            assert b'"success":true' in reply.body, reply
            await turn(grower, 5)
            await until_end(clients[2], expected(grower.bodies)[-1])
        assert await stored(clients[2]) == expected(grower.bodies)
        config = (await api.stream_info(clients[2], "EVENTS")).config
        assert config.get("persist_mode", "") == ""
