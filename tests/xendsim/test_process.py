"""`leasehold xend-sim` as a process: killed and started again, ordered about, misused."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leasehold.services.xend import sxp
from leasehold.services.xendsim.server import HTTP_SOCKET, give_order
from tests.xendsim.test_wire import WAIT_S

LEASEHOLD = Path(sys.executable).with_name("leasehold")


@contextmanager
def running(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A stand-in, and where it listens."""
    command = [str(LEASEHOLD), "xend-sim", "--dir", str(directory), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = []
        while (line := process.stdout.readline()) != "ready\n":
            assert line, f"it ended with {process.wait(WAIT_S)}"
            said.append(line.split()[-1])
        yield process, said
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def ordered(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(LEASEHOLD), "xend-sim", "do", "--dir", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def shown(directory: Path) -> dict[str, tuple[str, int, int]]:
    """uuid, number and status of each domain, by name."""
    said = asyncio.run(give_order(directory, ["show"]))
    assert isinstance(said, dict)
    return {each["name"]: (each["uuid"], each["domid"], each["status"]) for each in said["domains"]}


def test_killed_and_started_again(tmp_path: Path) -> None:
    """Who kills it finds the same domains after it was started again, with the same numbers; and what xend does after
    a crash it does then.
    """
    with running(tmp_path, "--domains", "3", "--seed", "7") as (process, said):
        assert f"xmlrpc:{tmp_path}/xmlrpc.sock" in said
        for name, ms in (("crash_ms", "1500"), ("restart_after_ms", "0")):
            asyncio.run(give_order(tmp_path, ["timing", name, ms]))
        before = shown(tmp_path)
        assert ordered(tmp_path, "crash", "guest2").stdout == "done\n"
        crashed = shown(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
    assert ordered(tmp_path, "show").returncode != 0
    with running(tmp_path, "--domains", "3"):
        after = shown(tmp_path)
        assert {name: after[name] for name in before if name != "guest2"} == {
            name: before[name] for name in before if name != "guest2"
        }
        assert crashed["guest2"][:2] == before["guest2"][:2]
        assert crashed["guest2"][2] == 5
        while "guest2" not in after or after["guest2"][2] != 2:
            after = shown(tmp_path)
        assert after["guest2"][0] == before["guest2"][0]
        assert after["guest2"][1] > max(domid for _, domid, _ in before.values())


def test_ended(tmp_path: Path) -> None:
    """Told to end it does, and takes its sockets away."""
    with running(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    assert not [each for each in os.listdir(tmp_path) if "sock" in each]


def test_ports(tmp_path: Path) -> None:
    """It says on which port it listens; there curl finds SXP if it says so, and a page if it does not."""
    with running(tmp_path, "--domains", "1", "--http", "127.0.0.1:0") as (_, said):
        url = next(each for each in said if each.startswith("http://")) + "/xend/domain/guest1"
        page = subprocess.run(["curl", "-s", "-m", "10", url], capture_output=True, check=True)
        assert page.stdout.startswith(b"<html>")
        command = ["curl", "-s", "-m", "10", "-H", "Accept: application/sxp", url]
        data = subprocess.run(command, capture_output=True, check=True).stdout
        domain, tail = sxp.read_all(data)
        assert sxp.text(sxp.child(domain, "name")) == "guest1"
        assert tail == b""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--http", "0.0.0.0:8000"], "http: 0.0.0.0 is no address of this machine alone"),
        (["--http", "nowhere:8000"], "http: 'nowhere:8000' is not ADDRESS:PORT"),
        (["--xmlrpc", "127.0.0.1:x"], "xmlrpc: '127.0.0.1:x' is not ADDRESS:PORT"),
        (["--scenario", "/nowhere.json"], "scenario: /nowhere.json: "),
    ],
)
def test_misuse(tmp_path: Path, options: list[str], said: str) -> None:
    """What cannot be is refused with the option's name, and nothing is made."""
    command = [str(LEASEHOLD), "xend-sim", "--dir", str(tmp_path), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert not (tmp_path / "hypervisor.json").exists()


def test_orders(tmp_path: Path) -> None:
    """All orders are listed; a wrong one says what would be right, and where nobody listens that is said."""
    assert "crash DOM" in ordered(tmp_path, "help").stdout
    nobody = ordered(tmp_path, "crash", "web1")
    assert nobody.returncode == 2
    assert "no stand-in listens" in nobody.stderr
    with running(tmp_path, "--no-http") as (_, said):
        assert [each.partition(":")[0] for each in said] == ["xmlrpc"]
        assert not (tmp_path / HTTP_SOCKET).exists()
        wrong = ordered(tmp_path, "linger", "web1")
        assert wrong.returncode == 2
        assert "`linger DOM MS` is how it is said" in wrong.stderr
