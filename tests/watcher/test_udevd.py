"""Whether udevd runs, seen without speaking to it."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.services.watcher.sysfs import HostRoot
from leasehold.services.watcher.udev import udevd_runs


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """For a `/run`; its path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="run-") as made:
        (Path(made) / "udev").mkdir()
        yield Path(made)


def test_the_socket_that_an_ended_udevd_leaves_behind(run_folder: Path) -> None:
    """It runs while somebody listens at its socket, and not by the mere file, which stays when it has ended."""
    root = HostRoot(run=run_folder)
    assert not udevd_runs(root)
    control = run_folder / "udev/control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(control))
        assert not udevd_runs(root)
        listening.listen()
        assert udevd_runs(root)
    assert control.is_socket()
    assert not udevd_runs(root)


def test_an_imitated_machine(run_folder: Path) -> None:
    """Where a machine is imitated, a plain file says that udevd runs there."""
    (run_folder / "udev/control").touch()
    assert udevd_runs(HostRoot(run=run_folder))
