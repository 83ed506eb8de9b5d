"""Move a domain with its card: hold one at the target, move, and switch when the source has let go."""

import asyncio
import sys

from leasehold import Client


async def main(source: str, target: str, domain: str) -> None:
    """Until the switch the token of the new lease opens nothing; behind it, that of the old one."""
    async with Client() as client, client.lease(
        select='device.pci.class == "0302"', host=source, domain=domain, holder="vm:moving"
    ) as lease:
        there = await client.reserve(
            lease.id, lease.token, select='device.pci.class == "0302"', host=target, ttl_ms=60_000
        )
        print(f"L{there.lease} holds {', '.join(there.devices)} for it")
        # Here the hypervisor moves the domain. Then the old lease is over, and nobody needs to keep it.
        moved = await client.switch(there.lease, there.token)
        lease.forget()
        print(f"L{moved.lease} counts, with token {moved.token}")
        await client.release(moved.lease, moved.token)


asyncio.run(main(*sys.argv[1:4]))
