"""How `up` ends what it runs, and how that ends."""

import asyncio
import subprocess
import sys
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


def test_a_thread_that_is_left_behind_holds_no_process() -> None:
    """A process whose work is over ends, though a thread in it waits for ever."""
    code = (
        "import threading; from leasehold.services import processes; "
        "threading.Thread(target=threading.Event().wait).start(); processes.leave(3)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 3
