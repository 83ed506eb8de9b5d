"""The watcher as an agent: looks at its host, and reports what differs from the log.

The protocol is `projections.reporting`, its wires are `services.speaking`. While the bus is away the watcher keeps
watching, and when it is back it reports the difference.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from leasehold.events.answers import Heard
from leasehold.events.identities import HostName
from leasehold.events.inputs import Observed
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Picture, Reporter
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.speaking import InLog, Speaker
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture

_log: Final = logging.getLogger(__name__)

AGENT: Final = "watcher"

Look = Callable[[], Picture]


class WatcherAgent:
    """One run of the watcher of one host."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        *,
        monitor: UeventMonitor | None = None,
        look: Look = take_picture,
    ) -> None:
        """`look` takes the whole picture; it runs in a thread."""
        self._monitor = monitor or UeventMonitor()
        self._look = look
        self._speaker = Speaker(connection, subjects, host, AGENT, self)
        self.reported = self._speaker.reported
        """Set once the log has the whole picture."""

    async def run(self) -> None:
        """Watch until cancelled; then say goodbye."""
        self._monitor.start()
        watching = asyncio.create_task(self._watch())
        try:
            await self._speaker.run()
        finally:
            watching.cancel()
            self._monitor.close()

    async def _watch(self) -> None:
        while True:
            signal = await self._monitor.next()
            if signal.overflow:
                _log.warning("events were lost; looking at everything again")
            self._speaker.wake()

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """What differs between the log and what is seen."""
        return reporter.synced(in_log.picture, await asyncio.to_thread(self._look))

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What has changed since the last look."""
        return reporter.look(await asyncio.to_thread(self._look))

    def misses(self, known: Heard) -> bool:
        """It is told nothing that it would not see."""
        return False

    def hear(self, told: FeedEvent) -> None:
        """Nothing that is told changes what is seen."""
