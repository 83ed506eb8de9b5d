"""Servers that are cut off from each other: who is on the wrong side is told nothing that is not so."""

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.projections.appending import Lost, Said
from leasehold.services.client import Client
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.port import Entry
from tests.cluster.running import running_site
from tests.support.cluster import Cluster, running_cluster
from tests.support.servers import connected, ledger_at

OURS = b"of the cut-off side"
TIMEOUT_S = 0.9
PATIENCE_S = 40.0


async def fill(ledger: JetStreamLedger, first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        assert await ledger.append(sequence - 1, b"%d" % sequence, timeout_s=5) == (Said.STORED, sequence)


async def cut_leader_off(stack: AsyncExitStack, cluster: Cluster) -> tuple[int, int]:
    """Let the others go on without the leader; the old one and the new one."""
    clients = [await stack.enter_async_context(connected(url)) for url in cluster.urls]
    old = await cluster.leader(clients)
    cluster.cut_off(old)
    new = await cluster.leader([client for number, client in enumerate(clients) if number != old], but=old)
    assert await cluster.leader_as_told(clients[old]) == old, "it does not know yet"
    return old, new


async def test_a_leader_that_was_cut_off_is_not_believed(tmp_path: Path) -> None:
    """A leader that does not know of its successor acknowledges nothing, and neither its end of the log nor what it
    refuses counts: the log is not called shorter than it was. When it is back, what was tried there has lost.
    """
    async with running_cluster(tmp_path) as cluster, AsyncExitStack() as stack:
        before = await stack.enter_async_context(ledger_at(cluster.urls))
        await fill(before, 1, 5)
        old, new = await cut_leader_off(stack, cluster)
        ours = await stack.enter_async_context(ledger_at(cluster.urls[old]))
        theirs = await stack.enter_async_context(ledger_at(cluster.urls[new]))
        await fill(theirs, 6, 10)

        assert await ours.append(5, OURS, timeout_s=TIMEOUT_S) == (Said.NOTHING, 0)
        assert await ours.append(10, b"further on", timeout_s=TIMEOUT_S) == (Said.NOTHING, 0)
        for question in (ours.last_sequence(), ours.read(6)):
            with pytest.raises(UnavailableError):
                await question
        end = asyncio.ensure_future(append_certainly(ours, 5, OURS, timeout_s=TIMEOUT_S))
        stack.callback(end.cancel)
        async with aclosing(ours.follow(10)) as batches:
            following = asyncio.ensure_future(anext(batches))
            await asyncio.wait({end, following}, timeout=3)
            assert not end.done()
            assert not following.done()
            cluster.heal()
            async with asyncio.timeout(30):
                assert await end == Lost(6, b"6")
                await fill(theirs, 11, 11)
                assert await following == [Entry(11, b"11")]


async def test_who_is_connected_to_a_useless_server_leaves_it(tmp_path: Path) -> None:
    """With the leader cut off and not let in again, clients that are connected to it, and allocators, go to the others
    by themselves unless somebody there can still reach the log: all is decided, and no allocator takes the end that the
    cut-off server tells for a loss.
    """
    async with running_site(tmp_path) as site, AsyncExitStack() as stack:
        old = await site.leader()
        clients = [
            await stack.enter_async_context(site.client_at(old, f"worker{number}", PATIENCE_S)) for number in range(2)
        ]
        site.cluster.cut_off(old)
        cut_s = time.monotonic()

        async def use(client: Client, device: str) -> None:
            async with client.lease(device, holder="vm1") as lease:
                print(f"{client.principal}: granted {time.monotonic() - cut_s:.1f} s after the cut")
                assert lease.is_valid

        await asyncio.gather(*map(use, clients, site.devices))
        site.cluster.heal()
        assert await site.verify() == []
        assert site.ended() == []
