"""The real poller of a hypervisor on paper beside a real `up`, and commands that are asked until something shows."""

import asyncio
import json
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from leasehold.events.identities import HostName
from leasehold.events.subjects import Subjects
from leasehold.services import home
from leasehold.services.client import Client
from leasehold.services.credentials import own_credential
from leasehold.services.poller.agent import PollerAgent
from tests.support.commands import Commands
from tests.support.hypervisor import PaperHypervisor
from tests.support.running import HOST, RunningUp
from tests.support.servers import connected

WAIT_S = 60.0


class Poller:
    """The real poller of a hypervisor on paper, in a thread of its own, for commands that are run beside it."""

    def __init__(self, data: Path) -> None:
        self.hypervisor = PaperHypervisor()
        self._data = data
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Returns when the log has what is on paper."""
        self._thread.start()
        assert self._ready.wait(WAIT_S), "the poller has not reported"

    def stop(self) -> None:
        """End it in good order, if it runs."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
        self._thread.join(WAIT_S)
        self._loop.close()

    def put(self, uuid: str, **said: Any) -> None:
        """A domain is like this from now on."""
        self._loop.call_soon_threadsafe(lambda: self.hypervisor.put(uuid, **said))

    async def _run(self) -> None:
        info = home.read_connection(self._data)
        async with AsyncExitStack() as stack:
            credential = own_credential(info, "agent")
            connection = await stack.enter_async_context(connected(info.urls, "poller", credential))
            agent = PollerAgent(connection, Subjects(credential.cluster), HostName(HOST), self.hypervisor)
            self._task = asyncio.create_task(agent.run())
            await agent.reported.wait()
            self._ready.set()
            await asyncio.wait({self._task})


class Story(NamedTuple):
    """An `up`, its poller, and devices that nobody had."""

    up: RunningUp
    poller: Poller
    devices: list[str]

    @classmethod
    def of(cls, up: RunningUp) -> Self:
        """The poller has yet to be started."""

        async def free() -> list[str]:
            async with Client(up.data) as client:
                return [row.key for row in await client.devices(bus="pci") if row.state == "free"]

        return cls(up, Poller(up.data), asyncio.run(free()))


def until(commands: Commands, *arguments: str, **wanted: object) -> dict[str, Any]:
    """Ask for a list until a row of it is like this; that there is none yet, as the archive may say, is no end."""
    give_up_s = time.monotonic() + WAIT_S
    while True:
        code, out, err = commands.run(*arguments, "--json")
        for row in map(json.loads, out.splitlines() if code == 0 else ()):
            if wanted.items() <= row.items():
                return dict(row)
        assert time.monotonic() < give_up_s, out + err
