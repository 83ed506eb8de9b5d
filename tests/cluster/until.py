"""`python -m tests.cluster.until KEY NAME=WORD...` waits for these states of devices, and for hosts fresh or stale.

A program of its own, because it must run where the bus can be reached: on another machine.
"""

import asyncio
import sys

from leasehold.services.client import Client

_POLL_S = 0.1


async def _until(key: str, wanted: dict[str, str]) -> None:
    async with Client(credentials=key) as client:
        while True:
            found = {str(row.device): row.state for row in await client.devices()}
            found |= {str(row.host): "stale" if row.stale else "fresh" for row in await client.hosts()}
            if all(found.get(name) == word for name, word in wanted.items()):
                return
            await asyncio.sleep(_POLL_S)


if __name__ == "__main__":
    asyncio.run(_until(sys.argv[1], dict(each.split("=") for each in sys.argv[2:])))
