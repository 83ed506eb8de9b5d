"""The guard of the machine's own /sys bites: each of these runs a suite of one test that does what it may not.

What they touch is harmless all the same: files that are not there, or files that are opened and not written to.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.guard.children import sitecustomize
from tests.guard.plugin import guard_of
from tests.support.not_run import not_run

ROOT: Final = Path(__file__).parents[2]
NOWHERE: Final = "/sys/bus/pci/devices/ffff:ff:1f.7/driver_override"
HARMLESS: Final = "/sys/devices/virtual/net/lo/ifalias"

BY_OPEN: Final = f"open('{NOWHERE}', 'w')"
BY_OS_OPEN: Final = f"os.open('{NOWHERE}', os.O_WRONLY)"
BY_PATH: Final = f"pathlib.Path('{NOWHERE}').write_text('vfio-pci')"
BY_LINK: Final = f"os.symlink('/sys', tmp_path / 'sys'); open(tmp_path / 'sys' / '{NOWHERE[5:]}', 'w')"
BY_HERE: Final = f"os.chdir('/sys/bus'); open('{NOWHERE[9:]}', 'a')"
BY_CHILD: Final = f"subprocess.run([sys.executable, '-c', '''{BY_OPEN}'''])"
BY_MODPROBE: Final = "subprocess.run(['/sbin/modprobe', '--dry-run', 'vfio-pci'])"


def run(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    """A suite of one test that goes on whatever befalls it, under the guard alone."""
    (folder / "test_case.py").write_text(
        "import contextlib, os, pathlib, subprocess, sys\n"
        f"def test_case(tmp_path):\n    with contextlib.suppress(OSError):\n        {body}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != sitecustomize.REPORTS}
    command = [sys.executable, "-m", "pytest", "-p", "tests.guard.plugin", "--rootdir", str(folder), "-c", "/dev/null"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--import-mode=importlib", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


@pytest.mark.parametrize(
    "body", [BY_OPEN, BY_OS_OPEN, BY_PATH, BY_LINK, BY_HERE, BY_CHILD], ids=lambda body: body.partition("(")[0]
)
def test_a_write_fails_the_test_and_the_run(tmp_path: Path, body: str) -> None:
    """However it is written and by whichever process, even if the program lives with the refusal: test and path are
    named.
    """
    done = run(tmp_path, body)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("WRITTEN TO /sys ")]
    assert NOWHERE[9:] in line
    assert "in test_case.py::test_case" in line
    assert "1 passed, 1 error" in done.stdout


def test_a_write_is_refused_before_it_happens(tmp_path: Path) -> None:
    """The kernel never hears of it, though the file is there, and would take it from root."""
    done = run(tmp_path, f"with open('{HARMLESS}', 'a'): raise AssertionError('it was opened')")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "it was opened" not in done.stdout
    assert f"WRITTEN TO /sys {HARMLESS}: open in test_case.py::test_case" in done.stdout


def test_a_module_is_not_loaded(tmp_path: Path) -> None:
    """A test that would load a module into the running kernel fails before it does."""
    done = run(tmp_path, BY_MODPROBE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRITTEN TO /sys /sbin/modprobe: subprocess.Popen in test_case.py::test_case" in done.stdout


def test_what_is_no_python_is_seen(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The kernel tells of a shell's write; so the test in which it happened fails."""
    if os.geteuid() != 0:
        not_run("only root is told of all writes to a file system")
    # Opened for writing and closed again, by a shell that stays, so that it can be asked whose child it is.
    script = f"exec 3>>{HARMLESS}; exec 3>&-; echo done; read _"
    body = f"global shell; shell = subprocess.Popen(['sh', '-c', '{script}'], stdin=-1, stdout=-1)"
    done = run(tmp_path, f"{body}; shell.stdout.readline()")
    guard_of(request.config).forgive(HARMLESS)  # our own witness has seen it, too
    assert "the kernel's witness sees" in done.stdout
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"WRITTEN TO /sys {HARMLESS}: witness" in done.stdout


def test_what_may_be_done(tmp_path: Path) -> None:
    """Reading, an imitated tree, and the word that makes the kernel tell of its loopback again are let through."""
    imitated = "(tmp_path / 'sys').mkdir(); (tmp_path / 'sys/driver_override').write_text('vfio-pci')"
    again = "pathlib.Path('/sys/devices/virtual/net/lo/uevent').open('w').close() if os.geteuid() == 0 else None"
    done = run(tmp_path, f"{imitated}; {again}; os.listdir('/sys/bus'); open('/sys/devices/virtual/net/lo/mtu').read()")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRITTEN" not in done.stdout


def test_this_run_is_guarded(request: pytest.FixtureRequest) -> None:
    """The whole suite runs under it, and so does each Python process below."""
    assert request.config.pluginmanager.has_plugin("tests.guard.plugin")
    for python in (sys.executable, "python3"):
        program = [python, "-c", "import sys; print(sys.sysfs_is_guarded)"]
        assert subprocess.run(program, capture_output=True, check=True).stdout == b"True\n"
