"""A real `leasehold up` in real processes, and its command line, for tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import wait_until_gone

READY = "Ctrl-C ends it"
START_S = 60.0
HOST = "testhost"


class RunningUp:
    """One `leasehold up`, from its start to its end."""

    def __init__(self, data: Path, *arguments: str, host: str = HOST, module: str = "leasehold") -> None:
        """Starts it, and returns when it says that it is ready. `module`: what runs it."""
        self.data = data
        self.shown: list[str] = []
        self._ready = threading.Event()
        self._tick = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "up", "--data", str(data), "--host", host, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(data),
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        if not self._ready.wait(START_S):
            self.kill()
            raise AssertionError(f"up is not ready after {START_S} s:\n{self.text}")
        assert self.process.poll() is None, f"up ended:\n{self.text}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.shown.append(line)
            if READY in line:
                self._ready.set()
        self._ready.set()

    @property
    def text(self) -> str:
        """All that it has shown."""
        return "".join(self.shown)

    def children(self) -> dict[str, int]:
        """The process ids of its children: `nats-server`, `allocator`, `query`, `watcher`."""
        found: dict[str, int] = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except (OSError, ValueError):
                continue
            if parent == self.process.pid:
                role = words[3] if "-m" in words else Path(words[0]).name
                found[role] = int(folder.name)
        return found

    def kill_child(self, role: str) -> None:
        """Kill one child (SIGKILL), and wait until another has taken its place."""
        killed = self.children()[role]
        os.kill(killed, signal.SIGKILL)
        give_up_s = time.monotonic() + START_S
        while self.children().get(role, killed) == killed:
            assert time.monotonic() < give_up_s, f"the {role} does not come back:\n{self.text}"
            self._tick.wait(0.02)

    def kill(self) -> list[int]:
        """Kill it as a crash would (SIGKILL); the process ids of the children that it leaves to the kernel."""
        left = list(self.children().values())
        self.process.kill()
        self.process.wait()
        self.let_go()
        return left

    def stop(self) -> int:
        """End it in good order; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        self.let_go()
        return code

    def let_go(self) -> None:
        """Read what is left of its output, and close the pipe."""
        self._reading.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def running_up(data: Path, *arguments: str, host: str = HOST, module: str = "leasehold") -> Iterator[RunningUp]:
    """A running `up` that is ended in the end, with nothing left over."""
    up = RunningUp(data, *arguments, host=host, module=module)
    try:
        yield up
    finally:
        left = list(up.children().values())
        up.stop()
        assert all(wait_until_gone(pid) for pid in left), "up left children behind"


class Done:
    """A command that has ended."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects that it printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """The one object that it printed."""
        assert len(self.objects) == 1, f"{self.out}{self.err}"
        return self.objects[0]


def leasehold(data: Path | None, *arguments: str, timeout_s: float = 60, **environment: str) -> Done:
    """Run the command line to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "leasehold", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**_environment(data), **environment},
        check=False,
    )
    return Done(done)


@contextmanager
def watch_process(up: RunningUp, *, since: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`leasehold watch` of the events behind `since`, one JSON object a line; it is ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "leasehold", "watch", "--json", "--since", str(since)],
        stdout=subprocess.PIPE,
        env=_environment(up.data),
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def watching(up: RunningUp, *, since: int, timeout_s: float = 90) -> Iterator[dict[str, Any]]:
    """The events behind `since` as they come, from `leasehold watch`; it is ended when nobody wants more of them."""
    with watch_process(up, since=since) as process:
        assert process.stdout is not None
        ender = threading.Timer(timeout_s, process.kill)
        ender.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
            raise AssertionError(f"watch ended with code {process.wait()} (or after {timeout_s} s)")
        finally:
            ender.cancel()


def _environment(data: Path | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEASEHOLD_")}
    if data is not None:
        environment["LEASEHOLD_DATA"] = str(data)
        # The pointer of a developer's own `up` must be neither found nor replaced.
        environment["XDG_RUNTIME_DIR"] = str(data.parent)
    return environment
