"""No test may write to the devices of the machine that it runs on; who does so fails, and the whole run with it.

Loaded as a plugin by `tests/conftest.py`. Two see to it, each for itself:

- `children/sitecustomize.py`, in this process and, by PYTHONPATH, in each Python process below it: it refuses the write
  before it happens. It knows a real sysfs by its file system, under whatever path.
- `witness.py`, which is told by the kernel of each write, whatever program made it: a shell, a daemon, a library.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.guard.children import sitecustomize

CHILDREN: Final = Path(sitecustomize.__file__).parent
_WITNESS: Final = Path(__file__).with_name("witness.py")


class Guard:
    """What is forbidden in this run, and what was done all the same."""

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="sysfs-guard-")
        os.close(descriptor)
        self.reports = Path(name)
        self.told: list[dict[str, Any]] = []
        self._read = 0
        self._before = {name: os.environ.get(name) for name in (sitecustomize.REPORTS, "PYTHONPATH")}
        os.environ[sitecustomize.REPORTS] = name
        paths = [str(CHILDREN), *filter(None, [self._before["PYTHONPATH"]])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        sitecustomize.install()
        self._witness = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WITNESS), str(os.getpid()), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._witness.stdout is not None
        self.witness = self._witness.stdout.readline().strip()
        """`sees`, or why not."""

    def look(self) -> list[str]:
        """What was done since the last look, a line each."""
        if self.witness == "sees":
            assert self._witness.stdin is not None
            assert self._witness.stdout is not None
            self._witness.stdin.write("?\n")
            self._witness.stdin.flush()
            self._witness.stdout.readline()
        lines = self.reports.read_text(encoding="utf-8").splitlines()[self._read :]
        self._read += len(lines)
        found = [json.loads(line) for line in lines]
        self.told += found
        return [_line(each) for each in found]

    def forgive(self, path: str) -> None:
        """What was written to this path until now was meant to be."""
        self.look()
        self.told = [each for each in self.told if each["what"] != path]

    def close(self) -> None:
        """Nothing is left but the hook, which cannot be taken away."""
        self._witness.communicate(timeout=10)
        self.reports.unlink()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _line(told: dict[str, Any]) -> str:
    of = f" in {told['test']}" if told["test"] else ""
    program = f" ({told['program']})" if told["program"] else ""
    return f"{told['what']}: {told['by']}{of} by process {told['pid']}{program}"


_KEY: Final = pytest.StashKey[Guard]()


def guard_of(config: pytest.Config) -> Guard:
    """The guard of this run."""
    return config.stash[_KEY]


def pytest_configure(config: pytest.Config) -> None:
    """From here on."""
    config.stash[_KEY] = Guard()


def pytest_report_header(config: pytest.Config) -> str:
    """Whether the kernel tells of writes here."""
    return f"guard of /sys: the kernel's witness {config.stash[_KEY].witness}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail the test in which something was written, when all that it started has been ended."""
    yield
    if found := item.config.stash[_KEY].look():
        pytest.fail("writes to the machine's own /sys:\n" + "\n".join(found), pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for what no test was charged with."""
    guard = session.config.stash[_KEY]
    guard.look()
    if guard.told and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name each."""
    if told := config.stash[_KEY].told:
        terminalreporter.section("WRITTEN TO /sys", bold=True)
        for each in told:
            terminalreporter.write_line(f"WRITTEN TO /sys {_line(each)}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """At the very end."""
    if guard := config.stash.get(_KEY, None):
        guard.close()
