"""What stands where a binder's door would: one that answers as it is told, and several that do not."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

OK: Final = {"ok": True}
REFUSED: Final = {
    "ok": False,
    "code": "DEVICE_LEASED",
    "message": "pci/0000:03:00.0 is leased to mary (lease 773) until 2026-11-21T19:00:00Z",
    "help": "wait for it, or ask mary",
    "holder": "mary",
    "lease": 773,
    "devices": ["pci/0000:03:00.0"],
}


class Door:
    """A Unix socket whose callers are served one after another."""

    def __init__(self, path: Path, serve: Callable[["Door", socket.socket], object]) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = dict(OK)
        self.ends = threading.Event()
        self._next = threading.Event()
        self._serve = serve
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(8)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            caller, _ = self._listening.accept()
            with caller, contextlib.suppress(OSError):
                if self.ends.is_set():
                    return
                self._serve(self, caller)
                self._next.set()

    def next(self) -> threading.Event:
        """Set when somebody else has been answered."""
        self._next.clear()
        return self._next

    def close(self) -> None:
        """End it; whoever is served is left."""
        self.ends.set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.connect(str(self.path))
        self._thread.join()
        self._listening.close()
        self.path.unlink()


def answers(door: Door, caller: socket.socket) -> None:
    """As a binder does: one line, one line."""
    with caller.makefile("rb") as lines:
        door.asked.append(json.loads(lines.readline()))
    caller.sendall(json.dumps(door.answer).encode() + b"\n")


def says(text: bytes) -> Callable[[Door, socket.socket], object]:
    """Answers this, whatever it is asked."""

    def serve(_: Door, caller: socket.socket) -> None:
        caller.recv(1 << 16)
        caller.sendall(text)

    return serve


def hangs(door: Door, caller: socket.socket) -> None:
    """Takes the question, and never answers."""
    caller.recv(1 << 16)
    door.ends.wait(60)


def drips(door: Door, caller: socket.socket) -> None:
    """Answers a blank from time to time, and nothing else."""
    while not door.ends.wait(0.05):
        caller.sendall(b" ")


def floods(_: Door, caller: socket.socket) -> None:
    """Answers without an end."""
    while True:
        caller.sendall(b" " * 4096)


@contextlib.contextmanager
def a_door(path: Path, serve: Callable[[Door, socket.socket], object] = answers) -> Iterator[Door]:
    """One that is closed in the end."""
    door = Door(path, serve)
    try:
        yield door
    finally:
        door.close()
