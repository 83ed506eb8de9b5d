"""One card on each of two hosts, of the better kind if it can be had: all or nothing."""

import asyncio

from leasehold import Client, Need, Option


async def main() -> None:
    """If it is refused, the error says which devices were looked at, and why none of them would do."""
    better = Option(select='device.pci.class == "0302" && device.numa_node == 0')
    other = Option(select='device.pci.class == "0302"')
    async with Client() as client, client.lease(
        needs=[Need(name="left", first_of=(better, other)), Need(name="right", first_of=(better, other))],
        distinct="host",
        holder="job:gang",
    ) as lease:
        print(f"L{lease.id} has {', '.join(lease.devices)}")


asyncio.run(main())
