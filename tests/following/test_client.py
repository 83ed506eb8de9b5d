"""`client.events` and `client.snapshot` through a real cluster, with the rights that roles have."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError
from leasehold.services import home
from leasehold.services.client import Client
from leasehold.services.credentials import own_credential, write_credential
from leasehold.services.feedevents import FeedEvent
from tests.support.running import HOST, leasehold, running_up

WAIT_S = 60


def key(data: Path, role: str, name: str) -> Path:
    """A credential of this role."""
    path = data.parent / f"{name}.json"
    done = leasehold(data, "credentials", "add", role, name, "--out", str(path))
    assert done.code == 0, done.err
    return path


async def until_count(client: Client, count: int, since: object, **chosen: str) -> list[FeedEvent]:
    """So many events."""
    given: list[FeedEvent] = []
    async with asyncio.timeout(WAIT_S), aclosing(client.events(since, **chosen)) as events:  # type: ignore[arg-type]
        async for event in events:
            given.append(event)
            if len(given) == count:
                break
    return given


async def test_a_snapshot_and_what_follows(tmp_path: Path) -> None:
    """A snapshot, and the events behind it, come to how it is now, for an operator and for a subscriber; an agent may
    not follow, and is told so.
    """
    data = tmp_path / "data"
    with running_up(data):
        subscriber = await asyncio.to_thread(key, data, "subscriber", "sub1")
        async with Client(data) as client, Client(credentials=subscriber) as listener:
            snapshot = await listener.snapshot(host=HOST)
            assert not snapshot.owners
            device = next(row.device for row in snapshot.devices if row.state == "free")
            async with client.lease(device, holder="vm1", ttl_ms=60_000) as lease:
                chosen = {"host": HOST, "kind": "lease_granted"}
                (granted,) = await until_count(listener, 1, snapshot, **chosen)
                assert [granted] == await until_count(client, 1, snapshot, **chosen)
                assert (granted.position, granted.device, granted.lease) == (lease.id, device, f"L{lease.id}")
                now = await listener.snapshot(host=HOST)
                assert [row.device for row in now.owners] == [device]
                assert now.position >= granted.position
                assert now.position // limits.EVENTS_PER_RECORD_MAX == granted.position // limits.EVENTS_PER_RECORD_MAX
            given = await until_count(listener, 2, granted, device=device)
            assert [event.type for event in given] == ["lease_released.v1", "device_freed.v1"]
            for bad in (-1, 2**53, 1.5, "256", True):
                with pytest.raises(InvalidInputError, match="since"):
                    await until_count(listener, 1, bad)
            with pytest.raises(InvalidInputError, match="tenant: '_' is no tenant"):
                await until_count(listener, 1, 0, tenant="_")
        info, path = home.read_connection(data), tmp_path / "agent.json"
        write_credential(path, own_credential(info, "agent"))
        async with Client(credentials=path, url=info.url) as agent:
            with pytest.raises(InvalidInputError, match="role agent"):
                await until_count(agent, 1, None)
