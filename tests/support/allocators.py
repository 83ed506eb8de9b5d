"""Real allocator processes beside each other on one real server, with the rights that allocators have."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec

from leasehold.events import codec
from leasehold.events.answers import Heard, Heartbeat
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed
from leasehold.projections.reporting import Reporter
from leasehold.services import home
from leasehold.services.allocator.hint import KvHint
from leasehold.services.connection import Connection
from leasehold.services.credentials import new_credential, write_credential
from leasehold.services.ledger import api
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import NatsServer
from tests.integration.growing import pci
from tests.support.cluster import users_of
from tests.support.history import Load
from tests.support.servers import SUBJECTS, TESTER, connected

HOST = HostName("h1")
WAIT_S = 30.0
BEAT_S = 1.0
_POLL_S = 0.005


class AllocatorProcess:
    """One allocator, started anew as often as wanted, with a data directory of its own."""

    def __init__(self, data: Path, module: str) -> None:
        self.data = data
        self._module = module
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it was not, or has ended."""
        command = [sys.executable, "-m", self._module, "allocator", "--data", str(self.data), "--host", self.data.name]
        self.process = subprocess.Popen(command, preexec_fn=tied_to_us())  # noqa: PLW1509 - one thread starts them

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """As a crash would (SIGKILL); gone when this returns."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it (SIGSTOP), every thread of it, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)
        while not self.has_ended and any(_state_of(task) != "T" for task in Path(f"/proc/{self.pid}/task").iterdir()):
            pass

    @property
    def has_ended(self) -> bool:
        """It was started, and does not run any more."""
        return self.process is not None and self.process.poll() is not None

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def end(self) -> int:
        """End it in good order; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.data / "allocator.log").read_text()


def _state_of(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


class Company:
    """Several allocators, a server, and a host with devices on paper whose watcher lives."""

    def __init__(self, url: str, client: Connection, ledger: JetStreamLedger, members: list[AllocatorProcess]) -> None:
        self.url = url
        self.client = client
        self.ledger = ledger
        self.members = members
        self.hint = KvHint(client)

    def load(self, seed: int, *, devices: int = 6, workers: int = 6, pace_s: float = 0.02) -> Load:
        """Clients that fight for so many of the devices."""
        names = [f"{HOST}/{pci(slot).key}" for slot in range(1, devices + 1)]
        return Load(lambda name: connected(self.url, name), SUBJECTS, names, seed=seed, workers=workers, pace_s=pace_s)

    async def decider(self) -> AllocatorProcess:
        """Who is said to decide; waits until it is one of ours that runs."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(UnavailableError):
                    writer = (await self.hint.look()).writer
                    for member in self.members:
                        if f".{member.pid}." in f".{writer}":
                            return member
                await asyncio.sleep(_POLL_S)


async def heard(client: Connection, reporter: Reporter) -> Heard:
    """What the ledger has of the host's watcher: asked until an allocator answers."""
    body = codec.encode(Heartbeat(run=reporter.run, counter=reporter.counter))
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(UnavailableError):
                reply = await client.ask(SUBJECTS.alive(HOST, "watcher"), body, timeout_s=BEAT_S)
                if not reply.status:
                    return msgspec.json.decode(reply.body, type=Heard)
            await asyncio.sleep(_POLL_S)


async def _say(client: Connection, message: Observed) -> None:
    """Report this, again and again until the inbox has it: as long as nobody decides, nobody passes it on."""
    while True:
        with suppress(UnavailableError):
            reply = await client.ask(SUBJECTS.observed(HOST, "watcher"), codec.encode(message), timeout_s=BEAT_S)
            if not reply.status and msgspec.json.decode(reply.body, type=api.PublishReply).seq:
                return
        await asyncio.sleep(_POLL_S)


async def _report(client: Connection, reporter: Reporter, count: int) -> None:
    """Report so many cards as a watcher would, and wait until the ledger has them."""
    async with asyncio.timeout(WAIT_S):
        await _say(client, reporter.starts())
        while (await heard(client, reporter)).run != reporter.run:
            pass
        for message in reporter.synced({}, {card.key: card for card in map(pci, range(1, count + 1))}):
            await _say(client, message)
        while not (await heard(client, reporter)).complete:
            pass


async def _beat(client: Connection, reporter: Reporter) -> None:
    while True:
        with suppress(TimeoutError):
            await heard(client, reporter)
        await asyncio.sleep(BEAT_S)


@asynccontextmanager
async def company(folder: Path, count: int, *, devices: int = 6, hint: bool = True) -> AsyncIterator[Company]:
    """So many allocators; `hint`: with the one that tells them who decides."""
    allocator = new_credential("allocator", "allocators", SUBJECTS.cluster)
    (folder / "keys").mkdir()
    write_credential(folder / "keys" / "allocator.json", allocator)
    users = users_of([allocator], [TESTER.user.public_key])
    members: list[AllocatorProcess] = []
    async with AsyncExitStack() as stack:
        server = NatsServer(folder / "nats", users=users, probe=TESTER)
        await stack.enter_async_context(server)
        client = await stack.enter_async_context(connected(server.url, "company"))
        await ensure_streams(client, SUBJECTS)
        module = "leasehold.services.processes" if hint else "tests.soak.hintless"
        for number in range(count):
            data = folder / f"a{number}"
            data.mkdir()
            info = home.ConnectionInfo(
                url=server.url, cluster=SUBJECTS.cluster, credentials=str(folder / "keys"), data=str(data)
            )
            home.write_connection(data, info)
            members.append(AllocatorProcess(data, module))
        try:
            for member in members:
                member.start()
            reporter = Reporter(HOST, "watcher", 1)
            await _report(client, reporter, devices)
            beating = asyncio.create_task(_beat(client, reporter))
            try:
                yield Company(server.url, client, JetStreamLedger(client, SUBJECTS), members)
            finally:
                beating.cancel()
                await asyncio.wait({beating})
        finally:
            for member in members:
                if member.process is not None and not member.has_ended:
                    member.kill()
