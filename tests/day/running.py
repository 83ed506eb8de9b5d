"""A whole `leasehold up`, with a second allocator and a second archive beside it, and what is done to them."""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

from leasehold.events.subjects import Subjects
from leasehold.services import home
from leasehold.services.client import Client
from leasehold.services.credentials import read_credential
from leasehold.services.lifeline import tied_to_us
from tests.bench.cluster import HOST
from tests.day.load import Heard, Load
from tests.day.machine import AGENTS, Machine
from tests.day.orders import Orders
from tests.support.running import RunningUp, leasehold
from tests.support.servers import connected

SECOND = "second"
PRINCIPALS = ("mill@north", "harbour@south")
OWN = ("allocator", "archive", "feed", "nats-server", "query")
"""What `up` runs, and starts again."""
OTHERS = ("allocator", "archive")
"""What runs a second time beside it."""
START_S = 60.0
EXPIRED_S = 240.0
"""Behind the last start of a decider, with its grace."""
SETTLE_S = 120.0
"""Until all that was asked is answered."""


class Second:
    """Another process of a role in the same data directory, started anew by us."""

    def __init__(self, data: Path, role: str) -> None:
        self._command = [
            *(sys.executable, "-m", "leasehold.services.processes", role),
            *("--data", str(data), "--name", SECOND, "--host", HOST),
        ]
        self.role = role
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        # One thread starts them: nobody else holds a lock in the child.
        self._process = subprocess.Popen(self._command, preexec_fn=tied_to_us())  # noqa: PLW1509

    def kill(self) -> None:
        """As a crash would (SIGKILL); gone when this returns."""
        assert self._process is not None
        assert self._process.poll() is None, f"the second {self.role} has ended with {self._process.returncode}"
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it in good order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(START_S)


class Day:
    """What runs."""

    def __init__(
        self,
        up: RunningUp,
        clients: list[Client],
        loads: list[Load],
        seconds: list[Second],
        machine: Machine,
        seed: int,
    ) -> None:
        self.up = up
        self.client = clients[0]
        self.loads = loads
        self.machine = machine
        self.orders = Orders(clients[0], seed)
        self.seed = seed
        self.heard = Heard()
        self.killed: Counter[str] = Counter()
        self.longest_silence_s = 0.0
        """From a kill to the first 50 answers behind it."""
        self._seconds = {second.role: second for second in seconds}

    @property
    def archives(self) -> list[Path]:
        """Where the two archives are."""
        return [self.up.data / "archive", self.up.data / f"archive-{SECOND}"]

    @property
    def events(self) -> int:
        """At least so many events are in the log."""
        return sum(load.events for load in self.loads)

    async def kill(self, role: str, *, second: bool = False) -> None:
        """Kill one part (an agent of the host ends in good order); return when somebody has its place, and requests are
        answered.
        """
        began_s = time.monotonic()
        if role in AGENTS:
            await self.machine.start(role)
        elif second:
            self._seconds[role].kill()
            self._seconds[role].start()
        else:
            await asyncio.to_thread(self.up.kill_child, role)
        self.killed[f"{role} ({SECOND})" if second else role] += 1
        await self.more(50)
        self.longest_silence_s = max(self.longest_silence_s, time.monotonic() - began_s)

    async def more(self, count: int) -> None:
        """Wait until each principal's workers have been answered so often again."""
        await asyncio.gather(*(load.more(count) for load in self.loads))


@asynccontextmanager
async def running(data: Path, *, seed: int, devices: int) -> AsyncIterator[Day]:
    """Everything started, a host of so many devices reported, and the loads ready to run."""
    up = await asyncio.to_thread(RunningUp, data)
    seconds = [Second(data, role) for role in OTHERS]
    try:
        for second in seconds:
            second.start()
        async with _started(up, seconds, seed, devices) as day:
            yield day
    finally:
        for second in seconds:
            await asyncio.to_thread(second.end)
        assert await asyncio.to_thread(up.stop) == 0, up.text


@asynccontextmanager
async def _started(up: RunningUp, seconds: list[Second], seed: int, devices: int) -> AsyncIterator[Day]:
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Client(up.data, patience_s=START_S))
        clients = [operator]
        for name in PRINCIPALS:
            key = await _key(up, "scheduler", name)
            clients.append(await stack.enter_async_context(Client(credentials=key, patience_s=START_S)))
        credential = read_credential(await _key(up, "agent", HOST))
        urls = home.read_connection(up.data).urls
        agents = [await stack.enter_async_context(connected(urls, "agent", credential)) for _ in AGENTS]
        subjects = Subjects(credential.cluster)
        machine = Machine(up.data.parent, agents, subjects, devices)
        stack.push_async_callback(machine.close)
        loads = [Load(client, machine.leasable, seed=seed, name=f"p{number}") for number, client in enumerate(clients)]
        day = Day(up, clients, loads, seconds, machine, seed)
        for connection in (*agents, *(client.connection for client in clients)):
            day.heard.listen(connection)
        for agent in AGENTS:
            await machine.start(agent)
        yield day


async def _key(up: RunningUp, role: str, name: str) -> Path:
    path = up.data.parent / f"{role}-{name}.json"
    done = await asyncio.to_thread(leasehold, up.data, "credentials", "add", role, name, "--out", str(path))
    assert done.code == 0, done.err
    return path


async def work(day: Day, *, events: int, disturb: Callable[[], AsyncIterator[None]]) -> None:
    """Let the loads work, and disturb, until there are so many events and every part was killed."""
    working: list[Load | Orders] = [*day.loads, day.orders]
    tasks = [asyncio.create_task(load.run()) for load in working]
    churning = asyncio.create_task(day.machine.churn(day.loads[0].more, day.seed))
    try:
        await day.more(20)
        async for _ in disturb():
            if day.events >= events and len(day.killed) == len(OWN) + len(OTHERS) + len(AGENTS):
                break
            assert not any(task.done() for task in (*tasks, churning)), "a load has ended by itself"
    finally:
        churning.cancel()
        for load in working:
            load.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), SETTLE_S)


async def expired(day: Day) -> None:
    """Wait until some lease has expired."""
    ledger = day.client.ledger()
    try:
        async with asyncio.timeout(EXPIRED_S), aclosing(ledger.follow(0)) as batches:
            async for batch in batches:
                if any(b'"type":"lease_expired.' in entry.body for entry in batch):
                    return
    finally:
        await ledger.close()
