"""Many leases of one program: renewed together, with one request for all."""

import asyncio

from leasehold import Client


async def main() -> None:
    """What is left at the end is released."""
    async with Client() as client, client.keeper() as keeper:
        for number in range(3):
            lease = await keeper.take(client.lease(select='device.pci.class == "0302"', holder=f"job:{number}"))
            print(f"L{lease.id} has {', '.join(lease.devices)}")
        await keeper.let_go(keeper.leases[0])
        print(f"{len(keeper.leases)} are kept")


asyncio.run(main())
