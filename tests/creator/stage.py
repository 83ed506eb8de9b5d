"""Everything between who orders and the played kernel: a real bus, allocator, query service, feed, watcher, creator."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from leasehold.events.answers import Answer
from leasehold.events.capabilities import NewDevice
from leasehold.events.inputs import CreateDeviceRequest
from leasehold.events.views import OrderView
from leasehold.services.asking import create_device_request
from leasehold.services.client import Client
from leasehold.services.creator.agent import CreatorAgent
from leasehold.services.lifeline import tied_to_us
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture
from tests.bench.cluster import HOST, Bus, bus
from tests.creator.kernel import Kernel

WAIT_S: Final = 60.0
POLL_S: Final = 0.02
LOOK_MS: Final = 100
"""Nothing tells of changes in an imitated sysfs, so the watcher looks this often."""
ROOT: Final = Path(__file__).parents[2]


class Stage:
    """What a test plays with."""

    def __init__(self, found: Bus, kernel: Kernel) -> None:
        self.bus = found
        self.kernel = kernel
        self.client = Client(found.data, patience_s=WAIT_S)
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    @asynccontextmanager
    async def creator(self, name: str = "creator") -> AsyncIterator[CreatorAgent]:
        """A creator in this process, whose words to the kernel can be refused; it has been heard."""
        async with self.bus.connected("agent") as connection:
            notes = self.bus.data / f"{name}.json"
            subjects, kernel = self.bus.subjects, self.kernel
            agent = CreatorAgent(connection, subjects, HOST, notes, root=kernel.root, write=kernel.write)
            async with running(agent.run()):
                await asyncio.wait_for(agent.reported.wait(), WAIT_S)
                yield agent

    def process(self, role: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """One of the processes of `up`, with a short grace time."""
        return process("-m", "tests.creator.hasty", role, "--data", str(self.bus.data), "--host", HOST)

    def creator_process(self, dies: str = "") -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """A creator in a process of its own; see `tests.creator.running`."""
        machine = self.kernel.root.sys.parent
        return process("-m", "tests.creator.running", str(self.bus.data), str(machine), HOST, dies)

    async def ordered(self, device: NewDevice, timeout_ms: int = 30_000) -> CreateDeviceRequest:
        """Order a device as soon as somebody there makes some, and do not wait for it."""
        request = create_device_request(device, host=HOST, timeout_ms=timeout_ms)
        async with asyncio.timeout(WAIT_S):
            while (await self.client.answer_to(request)).outcome == "refused":
                await asyncio.sleep(POLL_S)
                request = create_device_request(device, host=HOST, timeout_ms=timeout_ms)
        return request

    async def settled(self, request: CreateDeviceRequest) -> Answer:
        """What became of it."""
        return await asyncio.wait_for(self.client.order(request), WAIT_S)

    async def order(self, answer: Answer) -> OrderView:
        """The order behind an answer."""
        return next(row for row in await self.client.orders(host=HOST, ended=True) if row.order == answer.order)

    async def is_state(self, request: CreateDeviceRequest, state: str) -> bool:
        """Whether the order stands so."""
        return (await self.client.answer_to(request)).state == state

    async def knows(self, key: str) -> bool:
        """Whether the log has a device of this key that is there."""
        return any(row.key == key and row.state != "missing" for row in await self.client.devices(host=HOST))

    async def leasehold(self, *words: str) -> tuple[int, str, str]:
        """A command: its exit code and what it wrote."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold", *words, "--data", str(self.bus.data),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


async def until(is_so: Callable[[], Awaitable[bool] | bool]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = is_so()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    """Let it run beside; what ended it too early is raised."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def process(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process; ended in good order."""
    started = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT, preexec_fn=tied_to_us())
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


@asynccontextmanager
async def staged(
    folder: Path, kernel: Kernel, *, roles: tuple[str, ...] = ("allocator", "query", "feed")
) -> AsyncIterator[Stage]:
    """All but the creator; the log knows the imitated machine."""
    async with bus(folder / "bus", sync_always=False) as found, AsyncExitStack() as stack:
        stage = Stage(found, kernel)
        for role in roles:
            stage.processes[role] = await stack.enter_async_context(stage.process(role))
        connection = await stack.enter_async_context(found.connected("agent"))
        watcher = WatcherAgent(
            connection, found.subjects, HOST,
            monitor=UeventMonitor(kernel.root, interval_ms=LOOK_MS), look=partial(take_picture, kernel.root),
        )  # fmt: skip
        await stack.enter_async_context(running(watcher.run()))
        await stack.enter_async_context(stage.client)
        await asyncio.wait_for(watcher.reported.wait(), WAIT_S)
        yield stage
