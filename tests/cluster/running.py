"""Three servers, two allocators in processes of their own, a host that reports, and principals who want its devices."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

from leasehold.events.identities import Principal
from leasehold.projections import replay
from leasehold.services import credentials, home
from leasehold.services.client import Client
from leasehold.services.connection import Connection
from leasehold.services.credentials import Credential, new_credential
from leasehold.services.lifeline import tied_to_us
from tests.bench.cluster import HOST, beat, paper_device, report_devices
from tests.support.cluster import Cluster, running_cluster
from tests.support.history import Load
from tests.support.servers import SUBJECTS, connected, ledger_at

ALLOCATORS: Final = 2
WORKERS: Final = 6
DEVICES: Final = 4
_STOP_S: Final = 10.0
_POLL_S: Final = 0.1


class Site:
    """All of it, running."""

    def __init__(self, folder: Path, cluster: Cluster, keys: dict[str, Credential]) -> None:
        self.cluster = cluster
        self.clients: list[Connection] = []
        """One to each server, as the tests' own user."""
        self._folder = folder
        self._keys = keys
        self._allocators: list[asyncio.subprocess.Process] = []

    def connect(self, principal: Principal) -> AbstractAsyncContextManager[Connection]:
        """A connection in this principal's name, to whichever server takes it."""
        return connected(self.cluster.urls, principal, self._keys[principal])

    @asynccontextmanager
    async def client_at(self, number: int, principal: str, patience_s: float) -> AsyncIterator[Client]:
        """The client for programs, which knows all servers and happens to be connected to this one."""
        path = self._folder / f"{principal}.json"
        credentials.write_credential(path, self._keys[Principal(principal)])
        while True:
            async with Client(credentials=path, url=",".join(self.cluster.urls), patience_s=patience_s) as client:
                if client.connection.connected_url == urlparse(self.cluster.urls[number]):
                    yield client
                    return

    @property
    def devices(self) -> list[str]:
        """What there is to lease."""
        return [f"{HOST}/{paper_device(number).key}" for number in range(DEVICES)]

    def load(self, seed: int) -> Load:
        """Workers on this site."""
        return Load(self.connect, SUBJECTS, self.devices, seed=seed, workers=WORKERS)

    async def start(self, stack: AsyncExitStack) -> None:
        for url in self.cluster.urls:
            self.clients.append(await stack.enter_async_context(connected(url)))
        stack.push_async_callback(self._stop)
        for number in range(ALLOCATORS):
            await self.start_allocator(number, self.cluster.urls)
        await self._heard_from(ALLOCATORS)
        agent = await stack.enter_async_context(self.connect(Principal(f"agent-{HOST}")))
        async with asyncio.timeout(60):
            reporter = await report_devices(agent, SUBJECTS, DEVICES)
        beating = asyncio.create_task(beat(agent, SUBJECTS, reporter))
        stack.callback(beating.cancel)

    async def _heard_from(self, count: int) -> None:
        """Wait until so many allocators answer, as micro services do."""
        writers: set[bytes] = set()
        inbox = self.clients[0].new_inbox()
        await self.clients[0].listen(inbox, lambda _subject, _reply, body, _headers: writers.add(body))
        async with asyncio.timeout(60):
            while len(writers) < count:
                await self.clients[0].publish("$SRV.PING.leasehold-allocator", reply=inbox)
                await asyncio.sleep(_POLL_S)

    async def start_allocator(self, number: int, urls: list[str]) -> None:
        """An allocator as on a machine of its own: with its own data directory."""
        data = self._folder / f"allocator-{number}"
        (data / credentials.FOLDER).mkdir(parents=True, exist_ok=True)
        info = home.ConnectionInfo(url=",".join(urls), cluster=SUBJECTS.cluster, data=str(data))
        home.write_connection(data, info)
        credentials.write_credential(credentials.path_of(info, "allocator"), self._keys["allocator"])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "leasehold.services.processes", "allocator", "--data", str(data),
            preexec_fn=tied_to_us(), env=os.environ | {"LEASEHOLD_HOST": f"host{number}"},
        )  # fmt: skip
        self._allocators.append(process)

    async def _stop(self) -> None:
        for process in self._allocators:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self._allocators:
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    def ended(self) -> list[int]:
        """The exit codes of allocators that have ended by themselves: none should."""
        return [process.returncode for process in self._allocators if process.returncode is not None]

    def log_of(self, number: int) -> str:
        """What an allocator has logged."""
        return (self._folder / f"allocator-{number}" / "allocator.log").read_text()

    async def leader(self, *, but: int = -1) -> int:
        """Which server leads the ledger by the word of the others, too."""
        return await self.cluster.leader(self.clients, but=but)

    async def verify(self) -> list[str]:
        """Fold the whole ledger and decide it again: where that comes to something else."""
        again, found = replay.Replay(), []
        async with ledger_at(self.cluster.urls) as ledger:
            last = await ledger.last_sequence()
            async with aclosing(ledger.follow(0)) as batches:
                async for entries in batches:
                    found += [again.step(entry.sequence, entry.body) for entry in entries]
                    if again.state.head.sequence >= last:
                        break
        return [str(each) for each in found if each is not None]


@asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """A site with both allocators up, and its host's devices in the ledger."""
    names = [("allocator", "allocator"), ("agent", HOST)]
    names += [("scheduler", f"worker{number}") for number in range(WORKERS)]
    keys = [new_credential(role, name, SUBJECTS.cluster) for role, name in names]
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(running_cluster(folder, keys))
        site = Site(folder, cluster, {key.principal: key for key in keys})
        await site.start(stack)
        yield site
