"""Empty a host for maintenance: look first who would be hit, then give notice, and take it back in the end."""

import asyncio
import sys

from leasehold import Client
from leasehold.services.schedule_asking import drain_request


async def main(host: str) -> None:
    """As an operator."""
    async with Client() as client:
        request = drain_request("new firmware", host=host, notice_ms=600_000)
        for lease in (await client.consider(request)).broken:
            print(f"{lease.lease} of {lease.holder} would end: {', '.join(lease.devices)}")
        await client.ask(request)
        print(f"drained: {[mark.target for mark in await client.taints(host=host)]}")
        await client.untaint("drain", host=host)


asyncio.run(main(sys.argv[1]))
