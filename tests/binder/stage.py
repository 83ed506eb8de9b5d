"""Everything between who leases and the played kernel: a real bus, allocator, query, feed, watcher and binder."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from leasehold.services.binder.agent import BinderAgent
from leasehold.services.binder.machine import Machine
from leasehold.services.client import Client
from leasehold.services.watcher.agent import WatcherAgent
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture
from tests.bench.cluster import HOST, Bus, bus
from tests.binder.kernel import Kernel
from tests.creator.stage import LOOK_MS, WAIT_S, process, running, until

__all__ = ["HOST", "WAIT_S", "Stage", "staged", "until"]
BOOT: Final = "3f0c8a52-6f5e-4f3e-9b4d-2a5d1c9e7b10\n"


class Stage:
    """What a test plays with."""

    def __init__(self, found: Bus, kernel: Kernel, folder: Path) -> None:
        self.bus = found
        self.kernel = kernel
        self.client = Client(found.data, patience_s=WAIT_S)
        self.door = folder / "d"
        self.wire = folder / "k"
        """Where the kernel of this process takes what other processes write."""
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    @asynccontextmanager
    async def binder(self, name: str = "binder") -> AsyncIterator[BinderAgent]:
        """A binder in this process; it has been heard."""
        async with self.bus.connected("agent") as connection:
            kernel, notes = self.kernel, self.bus.data / f"{name}.json"
            machine = Machine(kernel.root, write=kernel.write, run=kernel.run, reset_port=kernel.reset_port)
            subjects = self.bus.subjects
            agent = BinderAgent(connection, subjects, HOST, notes, self.door, machine=machine, root=kernel.root)
            async with running(agent.run()):
                await asyncio.wait_for(agent.reported.wait(), WAIT_S)
                yield agent

    def binder_process(self, dies: str = "") -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """A binder in a process of its own; see `tests.binder.running`."""
        machine = self.kernel.root.sys.parent
        words = (str(self.bus.data), str(machine), HOST, str(self.door), str(self.wire), dies)
        return process("-m", "tests.binder.running", *words)

    def process(self, role: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """One of the processes of `up`, with a short grace time."""
        return process("-m", "tests.creator.hasty", role, "--data", str(self.bus.data), "--host", HOST)

    async def state(self, key: str) -> str:
        """What the log says of a device."""
        return (await self.client.device(key, host=HOST)).state

    async def binding(self, key: str) -> str:
        """How far it is handed over."""
        view = (await self.client.device(key, host=HOST)).binding
        return view.state if view is not None else ""

    async def is_prepared(self, key: str) -> bool:
        """Whether the log has that."""
        return await self.binding(key) == "prepared"

    async def is_free(self, key: str) -> bool:
        """Whether the log has that."""
        return await self.state(key) == "free"

    async def has_ended(self, lease: int) -> bool:
        """Whether the log has that."""
        return f"L{lease}" in {row.lease for row in await self.client.leases(ended=True) if row.ended}

    async def is_managed(self) -> bool:
        """Whether the log counts on a binder, and has all that it told."""
        (row,) = [row for row in await self.client.hosts() if row.host == HOST]
        return row.mode == "managed" and not row.stale

    async def is_cut_off(self) -> bool:
        """Whether the binder says so."""
        return bool((await self.asks(op="status"))["code"] == "cut_off")

    async def vouches(self, key: str, token: int) -> bool:
        """Whether the binder lets this token act."""
        return bool((await self.asks(op="check", device=key, token=token))["ok"])

    async def asks(self, **question: Any) -> dict[str, Any]:
        """What the door says."""
        return await asyncio.to_thread(ask, self.door, question)


def ask(door: Path, question: dict[str, Any]) -> dict[str, Any]:
    """As a hook asks."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(WAIT_S)
        asking.connect(str(door))
        asking.sendall(json.dumps(question).encode() + b"\n")
        with asking.makefile() as answered:
            answer: dict[str, Any] = json.loads(answered.readline())
        return answer


@asynccontextmanager
async def staged(
    folder: Path, kernel: Kernel, *, roles: tuple[str, ...] = ("allocator", "query", "feed")
) -> AsyncIterator[Stage]:
    """All but the binder; the log knows the imitated machine."""
    boot = kernel.root.proc / "sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True, exist_ok=True)
    boot.write_text(BOOT)
    async with bus(folder / "bus", sync_always=False) as found, AsyncExitStack() as stack:
        stage = Stage(found, kernel, folder)
        stack.enter_context(kernel.serving(stage.wire))
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
