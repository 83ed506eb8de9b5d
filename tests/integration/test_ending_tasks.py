"""A process that is told to end, while something in it does not care about being cancelled."""

import asyncio
import subprocess
import sys

from leasehold.services.processes import EXIT_FAILED, end_tasks


async def _deaf(times: int, deaf: asyncio.Event) -> None:
    """Swallows so many cancellations."""
    deaf.set()
    while times:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            times -= 1


async def test_cancelled_until_it_ends() -> None:
    """What swallows a few cancellations is cancelled again, until nothing runs but who asked for it."""
    deaf = asyncio.Event()
    task = asyncio.create_task(_deaf(3, deaf))
    await deaf.wait()
    await end_tasks()
    assert task.done()


async def test_failures_are_no_matter() -> None:
    """That one of them fails meanwhile ends nothing else."""

    async def failing() -> None:
        raise ValueError("not now")

    tasks = [asyncio.create_task(failing()), asyncio.create_task(asyncio.Event().wait())]
    await end_tasks()
    assert all(task.done() for task in tasks)


def test_what_never_ends_is_left() -> None:
    """The process ends all the same, with a code that says that it did not end well."""
    program = (
        "import asyncio; from leasehold.services import processes\n"
        "from tests.integration.test_ending_tasks import _deaf\n"
        "async def main():\n"
        "    deaf = asyncio.Event(); task = asyncio.create_task(_deaf(10**9, deaf)); await deaf.wait()\n"
        "    processes.END_ATTEMPTS_MAX = 2; await processes.end_tasks()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True)
    assert done.returncode == EXIT_FAILED, done.stderr
