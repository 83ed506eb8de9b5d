"""Real NATS servers and connections for tests."""

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from leasehold.events.errors import UnavailableError
from leasehold.events.subjects import Subjects
from leasehold.services import connection
from leasehold.services.connection import Connection
from leasehold.services.credentials import Credential, new_credential
from leasehold.services.home import read_connection
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.natsserver import ClusterPeer, NatsServer

SUBJECTS = Subjects("test")
TESTER: Final = new_credential("keeper", "test", "test")
"""May do everything in account `ledger`, on the servers of `server_at`: see `users_for`."""


def users_for(*all_powerful: Credential) -> Mapping[str, str]:
    """Users of account `ledger` without any bound, which nobody has outside of tests."""
    keys = "".join(f"  {{nkey: {each.user.public_key}}}\n" for each in all_powerful)
    return {"ledger": f"users: [\n{keys}]\n", "world": "users: []\n"}


def server_at(
    data: Path, *, sync_always: bool = False, port: int = -1, lock_wait_s: float = 5.0, peer: ClusterPeer | None = None
) -> NatsServer:
    """A server that is not started yet, and lets in whom `connected` comes as."""
    return NatsServer(
        data, users=users_for(TESTER), probe=TESTER,
        sync_always=sync_always, port=port, lock_wait_s=lock_wait_s, peer=peer,
    )  # fmt: skip


async def let_in(data: Path, pid: int, credential: Credential) -> None:
    """Give a credential all of account `ledger` on a server that `up` runs as process `pid`, until it restarts."""
    users = data / "nats" / "users-ledger.conf"
    more = f"users: [\n  {{nkey: {credential.user.public_key}}}\n"
    users.write_text(users.read_text().replace("users: [\n", more, 1))
    os.kill(pid, signal.SIGHUP)
    url = read_connection(data).url
    async with asyncio.timeout(20):
        # The server says nothing when it has read its configuration: it is asked until it lets us in.
        while True:
            with suppress(UnavailableError):
                async with connected(url, credential=credential):
                    return


@asynccontextmanager
async def connected(
    url: str | list[str], name: str = "test", credential: Credential = TESTER
) -> AsyncIterator[Connection]:
    """A connection that is closed in the end."""
    client = await connection.connect(url, credential=credential, name=name)
    try:
        yield client
    finally:
        await connection.disconnect(client)


@asynccontextmanager
async def ledger_at(url: str | list[str], name: str = "test") -> AsyncIterator[JetStreamLedger]:
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
