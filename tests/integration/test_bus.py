"""What the bus refuses is read from the server's log: whole, bounded, by the right name; and three servers by `run`."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from leasehold.events.errors import UnavailableError
from leasehold.projections.appending import Said
from leasehold.services import connection, credentials, home, permissions
from leasehold.services.bus import LOOK_BYTES_MAX, Refusals, take_up
from leasehold.services.credentials import changing, let_in, new_credential
from leasehold.services.ledger.jetstream import JetStreamLedger
from leasehold.services.ledger.streams import make_streams
from leasehold.services.natsserver import LOG_NAME, NatsServer, server_pid
from leasehold.services.permissions import User
from leasehold.services.up import _start_server
from tests.integration.test_permissions import SUBJECTS, bus_at
from tests.support.cluster import free_ports
from tests.support.damage_bus import RawBus, published
from tests.support.servers import wait_until_gone

WAIT_S = 60.0
KEY = "U" + "A" * 55


def line(key: str = KEY, subject: str = "a.b", client: str = "v2:python3:x") -> bytes:
    """What the server writes about a refused message."""
    quoted = client.replace("\\", "\\\\").replace('"', '\\"')
    text = f'[1] 2026/11/21 04:42:32.1 [ERR] 127.0.0.1:1 - cid:1 - "{quoted}" - "world/nkey:{key}" - Publish Violation'
    return f'{text} - Subject "{subject}"\n'.encode()


def test_a_log_is_read_across_its_turns(tmp_path: Path) -> None:
    """Half a line waits for its other half; a log that gives way to another is read to its end; counts outlive us."""
    log = tmp_path / LOG_NAME
    log.write_bytes(line())
    refusals = Refusals(tmp_path)
    refusals.look()
    assert not refusals.counts, "what was there before is not ours to count"
    with log.open("ab") as file:
        file.write(line()[:50])
    refusals.look()
    assert not refusals.counts
    with log.open("ab") as file:
        file.write(line()[50:] + line())
    log.rename(tmp_path / "older.log")
    log.write_bytes(line(subject="c.d"))
    refusals.look()
    refusals.look()
    assert refusals.counts["nobody"].count == 3
    assert refusals.counts["nobody"].last == "publishing to c.d"
    assert Refusals(tmp_path).counts["nobody"].count == 3


def test_a_flood_is_read_in_pieces(tmp_path: Path) -> None:
    """One look takes a bounded piece of a flooded log; nothing of it is missed in the end."""
    log = tmp_path / LOG_NAME
    log.touch()
    refusals = Refusals(tmp_path)
    count = 2 * LOOK_BYTES_MAX // len(line())
    log.write_bytes(line() * count)
    refusals.look()
    assert 0 < refusals.counts["nobody"].count <= LOOK_BYTES_MAX // len(line()) + 1
    for _ in range(3):
        refusals.look()
    assert refusals.counts["nobody"].count == count


async def test_nobody_is_blamed_for_another(tmp_path: Path) -> None:
    """A client that calls itself like a line of the log, or publishes to such a subject, is blamed itself."""
    async with bus_at(tmp_path / "data") as bus:
        victim = bus.credentials["operator"].user.public_key
        name = f'x" - "world/nkey:{victim}" - Publish Violation - Subject "y'
        client = await connection.connect(bus.server.url, credential=bus.credentials["auditor"], name=name)
        await client.publish(f'a"-"world/nkey:{victim}"-', b"")
        for _ in range(2):
            await client.flush()
        await connection.disconnect(client)
        bus.refusals.look()
        assert {who: counted.count for who, counted in bus.refusals.counts.items()} == {"audit": 1}


async def test_three_servers_by_themselves(tmp_path: Path) -> None:
    """`run nats` three times, with one register: a replicated log, written as an allocator, which outlives a server."""
    ports = free_ports(6)
    keeper, allocator = (new_credential(role, role, "test") for role in ("keeper", "allocator"))
    urls = [f"nats://127.0.0.1:{port}" for port in ports[:3]]
    running: list[subprocess.Popen[bytes]] = []
    async with AsyncExitStack() as stack:
        for number in range(3):
            data = tmp_path / f"n{number}"
            data.mkdir()
            with changing(data, "test") as register:
                let_in(register, keeper.user)
                let_in(register, allocator.user)
            routes = [f"--cluster-route=127.0.0.1:{port}" for port in ports[3:] if port != ports[3 + number]]
            command = [
                sys.executable, "-m", "leasehold", "run", "nats", "--data", str(data), "--server-name", f"n{number}",
                "--listen", f"127.0.0.1:{ports[number]}", "--cluster-listen", f"127.0.0.1:{ports[3 + number]}", *routes,
            ]  # fmt: skip
            environment = {**os.environ, "LEASEHOLD_CLUSTER_SECRET": "for-a-test-only"}
            running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))  # noqa: ASYNC220
            stack.callback(_end, running[-1])
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await make_streams(keeper, urls, replicas=3)
                    break
                except UnavailableError:
                    # They have not found each other yet.
                    continue
            client = await connection.connect(urls, credential=allocator, name="writer")
            stack.push_async_callback(connection.disconnect, client)
            ledger = JetStreamLedger(client, SUBJECTS)
            assert await ledger.append(0, b"one", timeout_s=5) == (Said.STORED, 1)
            pid = server_pid(tmp_path / "n0")
            assert pid is not None
            running[0].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(wait_until_gone, pid)
            said = Said.NOTHING
            while said is Said.NOTHING:
                said, _ = await ledger.append(1, b"two", timeout_s=1)
            # An append whose answer was lost while they elected has been stored: asked again it is refused, rightly.
            assert await ledger.read(2) == b"two", said


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


async def test_who_is_removed_while_a_server_starts(tmp_path: Path) -> None:
    """A server that starts has read the register before somebody was removed: he is not let in all the same."""
    data = tmp_path / "data"
    data.mkdir()
    keys = credentials.ensure_own(data, cluster="test", host="h1", operator="olga")
    gone = new_credential("scheduler", "gone", "test")
    with changing(data) as register:
        let_in(register, gone.user)
    users = permissions.render(keys.users, "test")
    async with AsyncExitStack() as stack:
        before = NatsServer(data, users=users)
        await before.start()
        stack.push_async_callback(before.stop)
        # It waits until the one before it has let go of the store.
        starting = asyncio.ensure_future(_start_server(data, -1))
        await asyncio.wait({starting}, timeout=0.1)
        removing = asyncio.ensure_future(asyncio.to_thread(_remove, data, "gone"))
        await asyncio.wait({removing}, timeout=0.5)
        await before.stop()
        server = await starting
        stack.push_async_callback(server.stop)
        assert await removing
        with pytest.raises(UnavailableError, match="does not let 'gone' in"):
            await connection.connect(server.url, credential=gone, name="gone")


def _remove(data: Path, name: str) -> bool:
    with changing(data) as register:
        register.users = [user for user in register.users if user.name != name]
    return take_up(data)


async def test_changes_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who adds somebody is slow with telling the server, another removes somebody meanwhile: the removal stays."""
    async with bus_at(tmp_path / "data") as bus:
        reading, go_on = threading.Event(), threading.Event()
        render = permissions.render

        def slow(users: Iterable[User], cluster: str) -> dict[str, str]:
            if not reading.is_set():
                users = list(users)
                reading.set()
                go_on.wait(WAIT_S)
            return render(users, cluster)

        monkeypatch.setattr(permissions, "render", slow)
        adding = asyncio.ensure_future(asyncio.to_thread(take_up, bus.data))
        await asyncio.to_thread(reading.wait, WAIT_S)
        removing = asyncio.ensure_future(asyncio.to_thread(_remove, bus.data, "sched"))
        await asyncio.wait({removing}, timeout=0.5)
        go_on.set()
        assert await adding and await removing
        with pytest.raises(UnavailableError, match="does not let 'sched' in"):
            await connection.connect(bus.server.url, credential=bus.credentials["scheduler"], name="sched")


async def test_the_servers_word_and_nobody_elses(tmp_path: Path) -> None:
    """A client that is called as the server speaks, and is refused without a pause: what it says is not believed, and
    what the server says behind a megabyte of it is heard.
    """
    async with bus_at(tmp_path / "data") as bus:
        home.write_connection(bus.data, home.ConnectionInfo(url=bus.server.url, cluster="test"))
        words = "Failed to reload [1] 2026/11/21 00:00:00.0 [ERR] Failed to reload"
        with RawBus(bus.data, bus.credentials["scheduler"], name=words) as raw:
            refused = published(b"x" * 2_000, b"") * 200
            stop = threading.Event()

            def flood() -> None:
                while not stop.is_set():
                    raw.send(refused)
                    raw.settle()

            flooding = asyncio.ensure_future(asyncio.to_thread(flood))
            try:
                for _ in range(5):
                    assert await asyncio.to_thread(take_up, bus.data)
            finally:
                stop.set()
                await flooding
        said = (bus.data / LOG_NAME).read_bytes()
        assert words.encode() in said
