"""What all peers have in common: a server that the bench starts on 127.0.0.1 in a directory of its own, and ends."""

import asyncio
import contextlib
import importlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

import msgspec

from leasehold.services.lifeline import tied_to_us
from tests.bench.measure import Contender

T = TypeVar("T")

TTL_MS: Final = 60_000
START_S: Final = 30.0
STOP_S: Final = 10.0
_POLL_S: Final = 0.05


class NotInstalledError(Exception):
    """The peer's server or its Python client is not on this machine; the text says which."""


class Peer(msgspec.Struct, frozen=True):
    """A peer, and what has to be said of it beside its figures."""

    name: str
    job: str
    """What stands for a lease and a release."""
    durable: str
    """The settings that make it keep what it has answered."""
    lacks: str
    """What it does not do of what ours does."""
    version: Callable[[], str]
    run: Callable[[Path, int], AbstractAsyncContextManager[Contender]]
    """Takes a directory and the largest number of requests in flight. Raises NotInstalledError."""


def client_library(name: str) -> ModuleType:
    """A Python client. Raises NotInstalledError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalledError(f"Python package {name.partition('.')[0]} (pip install 'leasehold[bench]')") from error


def program(*names: str) -> str:
    """The first of these executables that is there. Raises NotInstalledError."""
    for name in names:
        if os.access(name, os.X_OK):
            return name
    raise NotInstalledError(Path(names[0]).name)


def first_line(*command: str) -> str:
    """What a program says of itself."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_S).stdout.splitlines()[0]


def unprivileged() -> str | None:
    """As whom to run a server that refuses to be root's; `None`: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NotInstalledError("a user that is not root")


@asynccontextmanager
async def server(command: Sequence[str], folder: Path, *, user: str | None = None) -> AsyncIterator[None]:
    """A server that runs as long as this lasts; what it says goes to `server.log` in `folder`."""
    with (folder / "server.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, cwd=folder, user=user, preexec_fn=tied_to_us()
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            # PostgreSQL waits for its clients at SIGTERM; at SIGINT it ends them.
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def until_ready(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until it works; raises what it raised last if it does not within half a minute."""
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            return await attempt()
        except Exception:
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(_POLL_S)


async def command(*words: str, folder: Path, user: str | None) -> None:
    """Run a program to its end, which must be a good one."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.DEVNULL, cwd=folder, user=user, preexec_fn=tied_to_us()
    )
    assert await process.wait() == 0, f"{words[0]} failed"


def hand_over(folder: Path, user: str | None) -> None:
    """Let a directory be the other user's."""
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
