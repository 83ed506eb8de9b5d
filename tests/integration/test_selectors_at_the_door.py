"""A selector that is none is told at the allocator's door, and stays out of the log; one that is, finds devices."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import Holder, RequestId
from leasehold.events.scheduling import Constraint, Need
from leasehold.services.ledger.streams import ensure_streams
from tests.support.damage_allocator import report_cards, running_allocator
from tests.support.servers import SUBJECTS, connected, server_at


def _asking(name: str, select: str, attribute: str = "host") -> inputs.LeaseRequest:
    return inputs.LeaseRequest(
        request_id=RequestId(name),
        issued_at_ns=time.time_ns(),
        needs=(Need(select=select, count=2),),
        constraints=(Constraint(kind="same", attribute=attribute),),
        holder=Holder("vm1"),
        ttl_ms=60_000,
    )


async def test_a_wrong_selector_stays_out_of_the_log(tmp_path: Path) -> None:
    """Who asks with a wrong selector, class or attribute hears which field, and where in it; nothing is written."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at(tmp_path / "data"))
        client = await stack.enter_async_context(connected(server.url))
        await ensure_streams(client, SUBJECTS)
        running = await stack.enter_async_context(running_allocator(server.url))
        await report_cards(client, running, 3)
        await running.until(lambda: len(running.state.devices) == 3)
        before = running.state.head.sequence
        wrong = await running.ask("alice", _asking("r1", 'device.kind == "pci" && device.numa == 0'))
        assert (wrong.outcome, wrong.field) == ("invalid", "needs[0].select")
        assert "column 25" in wrong.message
        assert "device.numa_node" in wrong.message
        other = await running.ask("alice", _asking("r2", 'device.kind == "pci"', "numa"))
        assert (other.outcome, other.field) == ("invalid", "constraints[0].attribute")
        named = schedule_inputs.SetClassRequest(
            request_id=RequestId("r3"), issued_at_ns=time.time_ns(), name="x", select="device.vendor"
        )
        assert (await running.ask("alice", named)).field == "select"
        assert running.state.head.sequence == before
        right = await running.decided("alice", _asking("r1", 'device.kind == "pci"'))
        assert (right.outcome, len(right.devices)) == ("granted", 2)
