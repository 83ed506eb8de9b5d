"""How `up` ends what it runs."""

import asyncio
from contextlib import suppress

from leasehold.services import up


async def test_a_lost_cancellation_is_given_again() -> None:
    """A task that loses its first cancellation, as the client's handshake can, ends all the same; so do the others."""
    never = asyncio.Event()

    async def waits() -> None:
        await never.wait()

    async def loses_one() -> None:
        with suppress(asyncio.CancelledError):
            await never.wait()
        await never.wait()

    tasks = [asyncio.create_task(loses_one()), asyncio.create_task(waits())]
    await asyncio.sleep(0)
    await up._end_all(tasks)
    assert all(task.cancelled() for task in tasks)
