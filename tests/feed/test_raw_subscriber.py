"""A subscriber that knows only the NATS protocol misses nothing and doubles nothing, whatever is killed meanwhile."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from leasehold.events.cloudevents import TYPE_PREFIX
from leasehold.events.identities import HostName
from leasehold.projections.appending import Said, Won
from leasehold.services import home
from leasehold.services.connection import Connection
from leasehold.services.credentials import new_credential, write_credential
from leasehold.services.feed.stream import empty_events, state_of_events
from leasehold.services.ledger.appends import append_certainly
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.lifeline import tied_to_us
from leasehold.services.natsserver import NatsServer
from tests.feed.events import expected, until, until_end
from tests.integration.growing import Grower, pci
from tests.support.cluster import users_of
from tests.support.servers import SUBJECTS, TESTER, connected

SEED: Final = 20_261_121
ROUNDS: Final = 6
TURNS: Final = 12
HOST: Final = HostName("h1")


class Patient(JetStreamLedger):
    """Appends as an allocator does: it comes back when it is certain that the record stands there."""

    async def append(self, expected: int, body: bytes, *, timeout_s: float) -> tuple[Said, int]:
        """As `JetStreamLedger.append`."""
        assert timeout_s
        assert isinstance(await append_certainly(Once(self), expected, body), Won)
        return Said.STORED, expected + 1


class Once(JetStreamLedger):
    """The same ledger, whose appends may end in doubt."""

    def __init__(self, patient: Patient) -> None:
        super().__init__(patient._connection, SUBJECTS)


class Child:
    """A process of the test, killed and started as often as wanted."""

    def __init__(self, *command: str) -> None:
        self._command = [sys.executable, *command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, preexec_fn=tied_to_us())  # noqa: PLW1509 - one thread

    def kill(self) -> None:
        """As a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Stage:
    """A server with the real configuration and rights, a feed's process, a log that grows, and one who listens."""

    server: NatsServer
    client: Connection
    grower: Grower

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self._port = -1
        self._feed = new_credential("feed", "feed", SUBJECTS.cluster)
        self._dash = new_credential("subscriber", "dash", SUBJECTS.cluster)

    async def start_server(self) -> None:
        users = users_of([self._feed, self._dash], [TESTER.user.public_key])
        self.server = NatsServer(self.folder / "nats", users=users, probe=TESTER, port=self._port)
        await self.server.start()
        self._port = int(self.server.url.rpartition(":")[2])

    async def kill_server(self) -> None:
        self.server.kill()
        await self.server.wait()
        await self.server.stop()

    def feed(self) -> Child:
        write_credential(self.folder / "feed.json", self._feed)
        data = home.make_private_dir(self.folder / "feed")
        info = home.ConnectionInfo(url=self.server.url, cluster="test", credentials=str(self.folder), data=str(data))
        home.write_connection(data, info)
        return Child("-m", "leasehold.services.processes", "feed", "--data", str(data))

    def subscriber(self) -> Child:
        write_credential(self.folder / "dash.json", self._dash)
        script = Path(__file__).with_name("raw_subscriber.py")
        address, key = self.server.url.removeprefix("nats://"), self.folder / "dash.json"
        return Child(str(script), address, str(key), SUBJECTS.events_of(HOST), str(self.out))

    async def grow(self, turns: int, random_: random.Random) -> None:
        """Devices of both hosts change hands."""
        for _ in range(turns):
            device = f"{random_.choice(('h1', 'h1', 'h2'))}/pci/0000:00:0{random_.randint(1, 4)}.0"
            await self.grower.turn(device, principal=f"p{random_.randint(1, 3)}@team")

    def heard(self) -> list[tuple[int, str, str, bytes]]:
        """What was written down; a line that is being written does not count."""
        body = self.out.read_bytes() if self.out.exists() else b""
        rows = [line.split(b"\t", 3) for line in body[: body.rfind(b"\n") + 1].splitlines()]
        return [(int(row[0]), row[1].decode(), row[2].decode(), row[3]) for row in rows]

    def wanted(self) -> list[tuple[int, str, str, bytes]]:
        """What should be: each event of the host once, under the subject of its first part there."""
        found: dict[int, tuple[int, str, str, bytes]] = {}
        for told in expected(self.grower.bodies):
            if told.subject.startswith(f"{HOST}."):
                row = (told.position, f"leasehold.test.evt.{told.subject}", TYPE_PREFIX + told.said.tag, told.body)
                found.setdefault(told.position, row)
        return list(found.values())

    async def has_heard(self, count: int) -> bool:
        return len(self.heard()) >= count


@asynccontextmanager
async def stage_at(folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(folder)
    await stage.start_server()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(lambda: stage.server.stop())
        stage.client = await stack.enter_async_context(connected(stage.server.url))
        await ensure_streams(stage.client, SUBJECTS)
        stage.grower = Grower(Patient(stage.client, SUBJECTS))
        await stage.grower.start()
        for host in ("h1", "h2"):
            await stage.grower.report(host, *(pci(slot) for slot in range(1, 5)))
        yield stage


@pytest.mark.parametrize("is_rebuilt", [False, True], ids=["killed", "killed-and-rebuilt"])
async def test_nothing_is_missed_and_nothing_doubled(tmp_path: Path, is_rebuilt: bool) -> None:
    """Feed, server and subscriber are killed by turns while the log grows: one host's events arrive whole, each once,
    in order. Where the feed is also emptied and told again under the subscriber, he notices nothing of it.
    """
    print(f"seed {SEED}")
    random_ = random.Random(SEED)
    async with stage_at(tmp_path) as stage:
        feed, subscriber = stage.feed(), stage.subscriber()
        try:
            feed.start()
            subscriber.start()
            await stage.grow(TURNS, random_)
            await until(lambda: stage.has_heard(TURNS))
            for number in range(ROUNDS):
                growing = asyncio.create_task(stage.grow(TURNS, random_))
                seen = len(stage.heard())
                await until(lambda: stage.has_heard(seen + 3))  # noqa: B023 - awaited at once
                for child in random_.sample([feed, subscriber], random_.randint(1, 2)):
                    child.kill()
                    if number % 2:
                        await stage.kill_server()
                        await stage.start_server()
                    child.start()
                if is_rebuilt:
                    await until(lambda: emptied(stage.client))
                await growing
            last = expected(stage.grower.bodies)[-1]
            await until_end(stage.client, last)
            await until(lambda: stage.has_heard(len(stage.wanted())))
            assert stage.heard() == stage.wanted()
            assert len(stage.wanted()) > TURNS * ROUNDS
        finally:
            subscriber.kill()
            feed.kill()


async def emptied(client: Connection) -> bool:
    """Whether EVENTS could be emptied."""
    await empty_events(client, (await state_of_events(client)).last_seq)
    return True
