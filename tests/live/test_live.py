"""The watcher on real links: each scenario in a network namespace of its own, with a /sys and a /run of its own.

What they claim stands in `tests/live/scenarios.py`, which is the program that runs there.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.scenarios import UDEVD
from tests.support import tree
from tests.support.netns import Machine
from tests.support.not_run import not_run

SEED = int.from_bytes(os.urandom(2))


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A namespace without anything but its loopback."""
    if os.geteuid() != 0:
        not_run("network namespaces need root")
    try:
        machine = Machine(1)
    except (OSError, AssertionError) as error:
        not_run(f"network namespaces cannot be made here: {error}")
    try:
        for kind, folder in (("sysfs", "/sys"), ("tmpfs", "/run")):
            machine.do("mount", "-t", kind, kind, folder)
        yield machine
    finally:
        machine.close()


def run(machine: Machine, scenario: str, folder: Path) -> None:
    """Let a scenario run there, and show what it says."""
    program = [sys.executable, "-W", "error", "-m", "tests.live.scenarios", scenario, str(folder), str(SEED)]
    done = machine.ask(*program, environment={"PYTHONPATH": str(tree.ROOT)})
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0


@pytest.mark.parametrize("scenario", ["a_burst", "flaps", "overrun", "restarts", "words"])
def test_real_links(machine: Machine, scenario: str, tmp_path: Path) -> None:
    """The scenario's own claim."""
    try:
        machine.do("ip", "link", "add", "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        not_run(f"bridges cannot be made here: {error}")
    run(machine, scenario, tmp_path)


def test_udevd(machine: Machine, tmp_path: Path) -> None:
    """The scenario's own claim, with a udevd that runs in the namespace alone."""
    if not os.access(UDEVD, os.X_OK):
        not_run("udevd is not installed")
    run(machine, "udevd", tmp_path)
