"""Two cards near one NUMA node; wait for them, show how it stands meanwhile, and stop working when they are lost."""

import asyncio

from leasehold import Answer, Client


def waits(answer: Answer) -> None:
    """Called whenever something has changed while we wait."""
    why = answer.refusal.message if answer.refusal else ""
    print(f"Q{answer.queued}: {answer.ahead} ahead of us; {len(answer.kept)} devices kept for us; {why}")


async def main() -> None:
    """The lease says itself when it can be counted on no more."""
    async with Client() as client:
        two = client.lease(
            select='device.pci.class == "0302"',
            count=2,
            same="numa_node",
            holder="job:waiting",
            wait_s=600,
            on_wait=waits,
            on_lost=lambda why: print(f"lost: {why}"),
        )
        async with two as lease:
            print(f"L{lease.id} has {', '.join(lease.devices)}")
            while lease.is_valid and not await work():
                pass


async def work() -> bool:
    """A step of the work; whether that was the last one."""
    await asyncio.sleep(0.1)
    return True


asyncio.run(main())
