"""The watcher as an agent: looks at its host, and reports what differs from the log.

The protocol is `projections.reporting`, its wires are `services.speaking`. While the bus is away the watcher keeps
watching, and when it is back it reports the difference. What the kernel and udevd said is told with what it led to
(`projections.sightings`); devices that keep going and coming are told now and then (`projections.flapping`).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from leasehold.events.answers import Heard
from leasehold.events.devices import Sighting
from leasehold.events.identities import HostName
from leasehold.events.inputs import DeviceFlaps, MissedEvents, Observation, Observed
from leasehold.events.subjects import Subjects
from leasehold.projections.flapping import Flapping, Steadied
from leasehold.projections.reporting import Picture, Reporter
from leasehold.projections.sightings import Sightings
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.speaking import InLog, Speaker
from leasehold.services.watcher.monitor import UeventMonitor
from leasehold.services.watcher.picture import take_picture

_log: Final = logging.getLogger(__name__)

AGENT: Final = "watcher"
PAUSE_S_MAX: Final = 1.0
"""While events do not end, a look is followed by a pause as long as the look took, and at most this long."""
_START: Final = Sighting(why="start")


class Look(Protocol):
    """Takes the whole picture; it runs in a thread."""

    def __call__(self, *, known: Picture) -> Picture:
        """`known`: what the log has, at the first look of a run; nothing after that."""
        ...


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
        self._monitor = monitor or UeventMonitor()
        self._look = look
        self._seen: Picture | None = None
        self._sightings = Sightings()
        self._flapping = Flapping()
        self._alarm: asyncio.TimerHandle | None = None
        self._missed_told = 0
        self._rested_s = 0.0
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
            if self._alarm is not None:
                self._alarm.cancel()
            self._monitor.close()

    async def _watch(self) -> None:
        while True:
            signal = await self._monitor.next()
            if signal.overflow:
                _log.warning("events were lost; looking at everything again")
            self._sightings.hear(signal.words, at_ns=signal.heard_at_ns, lost_events=signal.overflow)
            await asyncio.sleep(self._rested_s - time.monotonic())
            self._speaker.wake()

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """What differs between the log and what is seen."""
        steadied = await self._take_look(in_log.picture, hold=False)
        hows = dict.fromkeys((*in_log.picture, *steadied.picture), _START) | steadied.hows
        return reporter.synced(in_log.picture, steadied.picture, hows, self._beside(steadied))

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What has changed since the last look."""
        steadied = await self._take_look(reporter.told, hold=True)
        return reporter.look(steadied.picture, steadied.hows, self._beside(steadied))

    def misses(self, known: Heard) -> bool:
        """It is told nothing that it would not see."""
        return False

    def hear(self, told: FeedEvent) -> None:
        """Nothing that is told changes what is seen."""

    async def _take_look(self, told: Picture, *, hold: bool) -> Steadied:
        begun_s = time.monotonic()
        self._sightings.look_begins()
        # Later on it is known by this run's own looks what was there, and what is another thing meanwhile.
        picture = await asyncio.to_thread(self._look, known=told if self._seen is None else {})
        self._sightings.hear(self._monitor.words_so_far())
        ended_s = time.monotonic()
        self._rested_s = ended_s + min(ended_s - begun_s, PAUSE_S_MAX)
        before, self._seen = self._seen, picture
        seen = self._sightings.look_ends(picture if before is None else before, picture)
        now_ns = time.monotonic_ns()
        steadied = self._flapping.steady(told, before or {}, picture, seen, now_ns, hold=hold)
        self._set_alarm(now_ns)
        return steadied

    def _set_alarm(self, now_ns: int) -> None:
        """Look again when a device that is held back must be told."""
        if self._alarm is not None:
            self._alarm.cancel()
        due_ns = self._flapping.due_ns()
        self._alarm = None
        if due_ns is not None:
            delay_s = max(0, due_ns - now_ns) / 1e9
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._speaker.wake)

    def _beside(self, steadied: Steadied) -> list[Observation]:
        """What is to be told beside what differs."""
        beside: list[Observation] = [DeviceFlaps(key, how) for key, how in steadied.flapped.items()]
        missed = self._monitor.overflows - self._missed_told
        if missed:
            self._missed_told += missed
            beside.append(MissedEvents(missed))
        return beside
