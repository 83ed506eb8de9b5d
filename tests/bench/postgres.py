"""PostgreSQL as a lease manager: one statement for each step, a history row in the same statement."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tests.bench import peers
from tests.support.cluster import free_ports

_BIN: Final = "/usr/lib/postgresql/{}/bin/{}"
_VERSIONS: Final = (18, 17, 16, 15, 14)
_CONFIG: Final = """
fsync = on
synchronous_commit = on
full_page_writes = on
max_connections = {connections}
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
"""
_SCHEMA: Final = """
CREATE SEQUENCE token;
CREATE TABLE lease (
    device text PRIMARY KEY, holder text NOT NULL, token bigint NOT NULL, expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE history (
    at timestamptz NOT NULL, what text NOT NULL, device text NOT NULL, holder text NOT NULL, token bigint NOT NULL
);
"""
_LEASE: Final = """
WITH taken AS (
    INSERT INTO lease AS l VALUES ($1, $2, nextval('token'), now() + $3)
    ON CONFLICT (device) DO UPDATE
        SET holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at
        WHERE l.expires_at <= now()
    RETURNING device, holder, token
), told AS (INSERT INTO history SELECT now(), 'granted', device, holder, token FROM taken)
SELECT token FROM taken
"""
_RELEASE: Final = """
WITH ended AS (
    UPDATE lease SET expires_at = '-infinity' WHERE device = $1 AND token = $2 AND expires_at > now()
    RETURNING device, holder, token
), told AS (INSERT INTO history SELECT now(), 'released', device, holder, token FROM ended)
SELECT token FROM ended
"""


def _program(name: str) -> str:
    return peers.program(*(_BIN.format(version, name) for version in _VERSIONS))


class _Postgres:
    name = "PostgreSQL"

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._ttl = timedelta(milliseconds=peers.TTL_MS)

    async def lease(self, device: int) -> int | None:
        token: int | None = await self._pool.fetchval(_LEASE, f"host/device-{device}", "bench", self._ttl)
        return token

    async def release(self, device: int, held: int) -> None:
        token = await self._pool.fetchval(_RELEASE, f"host/device-{device}", held)
        assert token == held


@asynccontextmanager
async def _run(folder: Path, in_flight: int) -> AsyncIterator[_Postgres]:
    asyncpg = peers.client_library("asyncpg")
    user = peers.unprivileged()
    initdb, postgres = _program("initdb"), _program("postgres")
    data, port = folder / "data", free_ports(1)[0]
    peers.hand_over(folder, user)
    await peers.command(initdb, "-D", str(data), "-U", "bench", "--auth=trust", "-E", "UTF8", user=user, folder=folder)
    with (data / "postgresql.conf").open("a") as config:
        config.write(_CONFIG.format(port=port, connections=in_flight + 10))
    async with peers.server((postgres, "-D", str(data)), folder, user=user):
        address = {"host": "127.0.0.1", "port": port, "user": "bench", "database": "postgres"}
        first = await peers.until_ready(lambda: asyncpg.connect(**address))
        await first.execute(_SCHEMA)
        await first.close()
        async with asyncpg.create_pool(**address, min_size=in_flight, max_size=in_flight) as pool:
            yield _Postgres(pool)


PEER: Final = peers.Peer(
    name="PostgreSQL",
    job="lease: one INSERT … ON CONFLICT DO UPDATE … WHERE expired RETURNING, with a token from a sequence and a row "
    "of history in the same statement; release: one UPDATE with a row of history; asyncpg, a connection for each in "
    "flight",
    durable="fsync=on, synchronous_commit=on, full_page_writes=on; commits that wait together share an fsync",
    lacks="refusals are not kept and have no reason, a repeated request is decided again, devices have no rules "
    "between them, nothing tells that a row was altered",
    version=lambda: peers.first_line(_program("postgres"), "--version"),
    run=_run,
)
