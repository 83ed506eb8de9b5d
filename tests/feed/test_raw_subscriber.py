"""A subscriber that knows only the NATS protocol misses nothing and doubles nothing, whatever is killed meanwhile."""

import asyncio
import io
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
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
from tests.feed import raw_subscriber
from tests.feed.events import expected, until, until_end
from tests.integration.growing import Grower, pci
from tests.support.cluster import users_of
from tests.support.servers import SUBJECTS, TESTER, connected

SEED: Final = 20_261_121
ROUNDS: Final = 4
TURNS: Final = 12
LIVE_S: Final = raw_subscriber.SILENCE_S / 2
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

    async def grow_until(self, over: asyncio.Event, random_: random.Random) -> None:
        """The same without a pause, until it is over."""
        while not over.is_set():
            await self.grow(1, random_)

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
            # What happens now is heard at once, and not only when it is asked for.
            async with asyncio.timeout(LIVE_S):
                await until(lambda: stage.has_heard(len(stage.wanted())))
                await stage.grow(1, random_)
                await until(lambda: stage.has_heard(len(stage.wanted())))
            over = asyncio.Event()
            growing = asyncio.create_task(stage.grow_until(over, random.Random(SEED)))
            for number in range(ROUNDS):
                seen = len(stage.heard())
                await until(lambda: stage.has_heard(seen + TURNS))  # noqa: B023 - awaited at once
                for child in random_.sample([feed, subscriber], random_.randint(1, 2)):
                    child.kill()
                    if number % 2:
                        await stage.kill_server()
                        await stage.start_server()
                    child.start()
                if is_rebuilt:
                    await until(lambda: emptied(stage.client))
            over.set()
            await growing
            last = expected(stage.grower.bodies)[-1]
            await until_end(stage.client, last)
            await until(lambda: stage.has_heard(len(stage.wanted())))
            assert stage.heard() == stage.wanted()
            assert len(stage.wanted()) > TURNS * ROUNDS
        finally:
            subscriber.kill()
            feed.kill()


class Script:
    """A server by the book: what it sends, in order; what the subscriber says to it is kept."""

    def __init__(self, *messages: raw_subscriber.Message) -> None:
        self.said: list[bytes] = []
        self._messages = messages

    def say(self, words: bytes) -> None:
        self.said.append(words)

    def messages(self) -> Iterator[raw_subscriber.Message]:
        yield from self._messages


def sent(position: int, previous: int, *, kept: int = 0, status: int = 0) -> raw_subscriber.Message:
    """A live message; or, with the number of the question, one of its answers."""
    subject = "leasehold.test.evt.h1.tick._._._"
    headers = {
        "nats-subject": subject, "nats-sequence": str(position), "ce-specversion": "1.0", "ce-type": "t",
        "ce-position": str(position), "ce-prevposition": str(previous),
    }  # fmt: skip
    to = f"{raw_subscriber.INBOX}.{kept}" if kept else subject
    return raw_subscriber.Message(to, status, {} if status else headers, b"{}")


def test_what_comes_too_early_is_read_again() -> None:
    """A live message before what is still being read, or behind one that was lost, has what is kept asked for again."""
    out = io.BytesIO()
    follower = raw_subscriber.Follower("leasehold.test.evt.h1.>", out, 1)
    end = sent(0, 0, kept=1, status=204)
    early = (sent(2, 1, kept=1), sent(5, 4), sent(3, 2, kept=1), end)
    again = (sent(4, 3, kept=2), sent(5, 4, kept=2), end._replace(subject=f"{raw_subscriber.INBOX}.2"))
    lost = (sent(6, 5), sent(8, 7), sent(7, 6, kept=3), sent(8, 7, kept=3))
    wire = Script(*early, *again, *lost)
    follower.follow(wire)  # type: ignore[arg-type]
    assert [int(line.split(b"\t")[0]) for line in out.getvalue().splitlines()] == [2, 3, 4, 5, 6, 7, 8]
    assert sum(words.startswith(b"PUB " + raw_subscriber.READING) for words in wire.said) == 3


async def emptied(client: Connection) -> bool:
    """Whether EVENTS could be emptied."""
    await empty_events(client, (await state_of_events(client)).last_seq)
    return True
