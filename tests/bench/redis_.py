"""Redis as a lease manager: one script for each step."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench import peers
from tests.support.cluster import free_ports

_LEASE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local token = redis.call('INCR', 'token')
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. token, 'NX', 'PX', ARGV[2])
return token
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def _program() -> str:
    return peers.program("/usr/bin/redis-server", "/usr/local/bin/redis-server")


class _Redis:
    name = "Redis"

    def __init__(self, client: Any) -> None:
        self._lease = client.register_script(_LEASE)
        self._release = client.register_script(_RELEASE)

    async def lease(self, device: int) -> int | None:
        token: int = await self._lease(keys=[f"host/device-{device}"], args=["bench", peers.TTL_MS])
        return token or None

    async def release(self, device: int, held: int) -> None:
        assert await self._release(keys=[f"host/device-{device}"], args=[f"bench:{held}"]) == 1


@asynccontextmanager
async def _run(folder: Path, in_flight: int) -> AsyncIterator[_Redis]:
    redis = peers.client_library("redis.asyncio")
    port = free_ports(1)[0]
    options = {"bind": "127.0.0.1", "port": port, "dir": folder}
    options |= {"appendonly": "yes", "appendfsync": "always", "save": ""}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    async with peers.server((_program(), *words), folder):
        pool = redis.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=in_flight)
        client = redis.Redis(connection_pool=pool)
        try:
            await peers.until_ready(client.ping)
            yield _Redis(client)
        finally:
            await client.aclose()
            await pool.disconnect()


PEER: Final = peers.Peer(
    name="Redis",
    job="lease: one script (INCR for the token, SET NX PX); release: one script (compare and delete); redis-py with "
    "hiredis, a connection for each in flight",
    durable="appendonly yes, appendfsync always; what waits together shares an fsync",
    lacks="no history, refusals are not kept and have no reason, a repeated request is decided again, devices have no "
    "rules between them; a key is gone by the server's clock",
    version=lambda: peers.first_line(_program(), "--version"),
    run=_run,
)
