"""Have a device for as long as the block lasts: whichever fits, renewed by itself, given back at the end."""

import asyncio

from leasehold import Client


async def main() -> None:
    """In five lines."""
    async with Client() as client:
        async with client.lease(select='device.pci.class == "0302"', holder="job:five-lines") as lease:
            print(f"L{lease.id} has {', '.join(lease.devices)}")


asyncio.run(main())
