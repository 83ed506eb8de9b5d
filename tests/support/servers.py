"""Real NATS servers and connections for tests."""

import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from leasehold.events.subjects import Subjects
from leasehold.services import connection
from leasehold.services.connection import Connection
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.natsserver import USER, NatsServer

SECRET = "a-secret-for-tests"
SUBJECTS = Subjects("test")


def server_at(data: Path, *, sync_always: bool = False, port: int = -1, lock_wait_s: float = 5.0) -> NatsServer:
    """A server that is not started yet, with the password that `connected` uses."""
    return NatsServer(data, secret=SECRET, sync_always=sync_always, port=port, lock_wait_s=lock_wait_s)


@asynccontextmanager
async def connected(url: str, name: str = "test") -> AsyncIterator[Connection]:
    """A connection that is closed in the end."""
    client = await connection.connect(url, user=USER, password=SECRET, name=name)
    try:
        yield client
    finally:
        await connection.disconnect(client)


@asynccontextmanager
async def ledger_at(url: str, name: str = "test") -> AsyncIterator[JetStreamLedger]:
    """A ledger through a connection of its own."""
    async with connected(url, name) as client:
        ledger = JetStreamLedger(client, SUBJECTS)
        try:
            yield ledger
        finally:
            await ledger.close()


def wait_until_gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Wait, without polling, for the end of any process; False if it still lives after `timeout_s`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([fd], [], [], timeout_s)
        return bool(ready)
    finally:
        os.close(fd)
