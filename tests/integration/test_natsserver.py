"""The launcher on a real server: one server for one store, no orphans, and nothing lost when it is killed."""

import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlparse

import pytest

from leasehold.events.errors import InvalidInputError, ServerStartError, StoreInUseError, UnavailableError
from leasehold.projections.appending import Said
from leasehold.services import connection
from leasehold.services.credentials import new_credential
from leasehold.services.ledger.port import Entry
from leasehold.services.ledger.streams import ensure_streams
from leasehold.services.natsserver import NatsServer
from tests.support.servers import SUBJECTS, connected, ledger_at, server_at, wait_until_gone

LAUNCHER = """
import asyncio, sys
from pathlib import Path
from leasehold.services.natsserver import NatsServer

async def main():
    async with NatsServer(Path(sys.argv[1]), users={"ledger": "users: []\\n", "world": "users: []\\n"}) as server:
        print(server.pid, flush=True)
        await server.wait()

asyncio.run(main())
"""
PIDS_AHEAD = 2_000


def launch(data: Path) -> tuple[subprocess.Popen[str], int]:
    """A launcher in a process of its own, and the process id of its server."""
    command = [sys.executable, "-c", LAUNCHER, str(data)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    return launcher, int(launcher.stdout.readline())


def kill(launcher: subprocess.Popen[str]) -> None:
    """Kill it with -9."""
    launcher.kill()
    launcher.wait()
    assert launcher.stdout is not None
    launcher.stdout.close()


async def test_a_server_answers_and_ends(tmp_path: Path) -> None:
    """A started server answers, keeps its files from others, and is gone after stop; it can be started again."""
    data = tmp_path / "data"
    server = server_at(data)
    for _ in range(2):
        await server.start()
        pid = server.pid
        async with connected(server.url) as client:
            assert client.is_connected
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        for path in (data / "nats").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        await server.stop()
        assert wait_until_gone(pid, 0.0)
    await server.stop()


async def test_a_second_server_on_the_same_store_is_refused(tmp_path: Path) -> None:
    """While one server has the store, another start fails and names the process that has it."""
    async with server_at(tmp_path / "data") as server:
        with pytest.raises(StoreInUseError, match=f"nats-server pid {server.pid}"):
            await server_at(tmp_path / "data", lock_wait_s=0.1).start()
        async with connected(server.url) as client:
            assert client.is_connected


async def test_a_start_waits_for_a_dying_predecessor(tmp_path: Path) -> None:
    """A start during the stop of the server before succeeds as soon as that has let go."""
    first, second = server_at(tmp_path / "data"), server_at(tmp_path / "data", lock_wait_s=20)
    await first.start()
    starting = asyncio.ensure_future(second.start())
    await asyncio.sleep(0)
    await first.stop()
    await starting
    async with connected(second.url) as client:
        assert client.is_connected
    await second.stop()


async def test_a_killed_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    """Killed with -9, the launcher takes its server along, and the store is free again."""
    launcher, pid = launch(tmp_path / "data")
    kill(launcher)
    assert wait_until_gone(pid), "the server outlived its launcher"
    async with server_at(tmp_path / "data"):
        pass


async def test_a_server_that_still_drains_keeps_the_store(tmp_path: Path) -> None:
    """The launcher is dead but its server is not: nobody else gets the store before it is."""
    launcher, pid = launch(tmp_path / "data")
    os.kill(pid, signal.SIGSTOP)
    try:
        kill(launcher)
        with pytest.raises(StoreInUseError, match=f"nats-server pid {pid}"):
            await server_at(tmp_path / "data", lock_wait_s=0.1).start()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_until_gone(pid)
    async with server_at(tmp_path / "data"):
        pass


async def test_an_early_death_is_reported_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends at once is reported with its exit code and what it said, and the store is free again."""
    fake = tmp_path / "fake-server"
    fake.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    fake.chmod(0o700)
    monkeypatch.setenv("NATS_SERVER", str(fake))
    with pytest.raises(ServerStartError, match=r"(?s)exit code 3.*the disk is on fire"):
        await server_at(tmp_path / "data").start()
    monkeypatch.setenv("NATS_SERVER", str(tmp_path / "nothing-here"))
    with pytest.raises(ServerStartError, match="not an executable file"):
        await server_at(tmp_path / "data").start()
    monkeypatch.delenv("NATS_SERVER")
    async with server_at(tmp_path / "data") as server:
        with pytest.raises(ServerStartError, match="address already in use"):
            await server_at(tmp_path / "other", port=urlparse(server.url).port or 0).start()


async def test_a_stale_ports_file_is_not_believed(tmp_path: Path) -> None:
    """Files of earlier runs, under every name that the new server could get, lead to another server: not believed."""
    async with server_at(tmp_path / "decoy") as decoy:
        ports = tmp_path / "data" / "ports"
        ports.mkdir(parents=True)
        for pid in range(os.getpid(), os.getpid() + PIDS_AHEAD):
            (ports / f"nats-server_{pid}.ports").write_text(f'{{"nats": ["{decoy.url}"]}}')
        async with server_at(tmp_path / "data") as server:
            assert server.url != decoy.url
            assert [path.name for path in ports.iterdir()] == [f"nats-server_{server.pid}.ports"]


async def test_a_killed_server_has_everything_when_it_is_back(tmp_path: Path) -> None:
    """After kill -9 the exit is told, and a new start at the same port has every acknowledged record."""
    server = server_at(tmp_path / "data", sync_always=True)
    await server.start()
    url = server.url
    async with connected(url) as client:
        await ensure_streams(client, SUBJECTS)
    async with ledger_at(url) as ledger:
        for expected in range(100):
            said = await ledger.append(expected, b"record %d" % expected, timeout_s=5)
            assert said == (Said.STORED, expected + 1)
    server.kill()
    assert await server.wait() == -signal.SIGKILL
    await server.stop()
    async with server_at(tmp_path / "data", port=urlparse(url).port or 0) as again, ledger_at(again.url) as ledger:
        assert again.url == url
        entries: list[Entry] = []
        async with aclosing(ledger.follow(0)) as batches:
            while len(entries) < 100:
                entries += await anext(batches)
        assert entries == [Entry(number + 1, b"record %d" % number) for number in range(100)]


async def test_nobody_gets_in_without_a_key(tmp_path: Path) -> None:
    """Without a key, or with one that is not registered, a connection is refused at once; a raw one may not publish."""
    async with server_at(tmp_path / "data") as server:
        with pytest.raises(UnavailableError, match=r"(?i)authorization violation"):
            await connection.connect(server.url, credential=new_credential("keeper", "test", "test"), name="intruder")
        reader, writer = await asyncio.open_connection("127.0.0.1", urlparse(server.url).port)
        writer.write(b'CONNECT {"verbose":false}\r\nPUB leasehold.test.ledger 1\r\nx\r\n')
        told = await asyncio.wait_for(reader.read(), 20)
        assert b"Authorization Violation" in told
        writer.close()
        await writer.wait_closed()


def test_a_name_that_could_not_stand_in_a_configuration_is_refused(tmp_path: Path) -> None:
    """A directory whose name the server would read as something else."""
    with pytest.raises(InvalidInputError):
        NatsServer(tmp_path / "new\nline", users={})


async def test_the_lock_names_no_one_when_it_cannot(tmp_path: Path) -> None:
    """A lock taken by someone who did not sign it is respected all the same."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreInUseError, match="an unknown process"):
            await server_at(tmp_path / "data", lock_wait_s=0.1).start()
