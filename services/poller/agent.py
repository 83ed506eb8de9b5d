"""The poller as an agent: looks at its host's hypervisor, and reports what of its domains differs from the log.

What is believed, and when, is `projections.polling`; what is looked at, a `Source`. It looks at its own pace, one look
at a time, also while the bus is away; what there is to tell then, the `Speaker` fetches.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from leasehold.events import limits
from leasehold.events.answers import Heard
from leasehold.events.errors import LeaseholdError
from leasehold.events.event_types import DeviceFreed, LeaseExpired, LeaseGranted, LeaseOutlived, LeaseReleased
from leasehold.events.identities import HostName
from leasehold.events.inputs import POLLER, Observed
from leasehold.events.subjects import Subjects
from leasehold.projections.polling import REST_FACTOR, Polling
from leasehold.projections.reporting import Reporter
from leasehold.services.connection import Connection
from leasehold.services.feedevents import FeedEvent
from leasehold.services.poller.source import Source
from leasehold.services.speaking import InLog, Speaker

_log: Final = logging.getLogger(__name__)

AGENT: Final = POLLER
FIRST_LOOK_S: Final = 2.0
"""A report waits for the first look so long; if there is none, it says that nothing is seen."""
GAP_S_MIN: Final = 0.1
"""Between two looks, however much there is that something has changed."""
ALARM_LATE_S: Final = 0.01
"""So that it is time by any rounding."""
_CHANCES: Final = 1_000


class PollerAgent:
    """One run of the poller of one host."""

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        host: HostName,
        source: Source,
        *,
        chance: Callable[[], int] = lambda: random.randrange(_CHANCES),  # noqa: S311 - only keeps pollers out of step
    ) -> None:
        """`chance`: draws 0 to 999; it keeps the pollers of many hosts out of step. The source is closed in the end."""
        self._source = source
        self._chance = chance
        self._polling = Polling(rest_ms=source.rest_ms)
        self._looked = asyncio.Event()
        """Set once the first look has ended, in whatever way."""
        self._hurry = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._trouble = ""
        self._speaker = Speaker(connection, subjects, host, AGENT, self)
        self.reported = self._speaker.reported
        """Set once the log has all that is believed."""

    async def run(self) -> None:
        """Look and tell until cancelled; then say goodbye."""
        _log.info("looking at %s", self._source.title)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll())
                tasks.create_task(self._speaker.run())
        finally:
            self._set_alarm(None)
            await self._source.close()

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            begun_s = time.monotonic()
            self._polling.asks(_now_ms())
            self._set_alarm(limits.BLIND_MS / 1_000 + ALARM_LATE_S)
            trouble = await self._look()
            self._looked.set()
            self._complain(trouble)
            if self._polling.has_news(_now_ms()):
                self._speaker.wake()
            took_s = time.monotonic() - begun_s
            pause_s = self._polling.pause_ms(int(took_s * 1_000), self._chance()) / 1_000
            if trouble:
                await asyncio.sleep(pause_s)
            else:
                await self._rest(max(GAP_S_MIN, took_s * REST_FACTOR), pause_s)

    async def _look(self) -> str:
        """Take one look in; why it came to nothing, if it did."""
        try:
            async with asyncio.timeout(limits.POLL_TIMEOUT_MS / 1_000):
                look = await self._source.look(self._polling.watched)
            self._polling.saw(look, _now_ms())
        except LeaseholdError as error:
            trouble = str(error)
        except TimeoutError:
            trouble = f"{self._source.title} gave no answer in {limits.POLL_TIMEOUT_MS // 1_000} s"
        except Exception:  # noqa: BLE001 - whatever is wrong with an answer, nothing is known then
            _log.exception("the look at %s went wrong", self._source.title)
            trouble = f"the answer of {self._source.title} cannot be made sense of"
        else:
            self._set_alarm(None)
            return ""
        self._polling.failed(trouble, _now_ms())
        return trouble

    async def _rest(self, least_s: float, most_s: float) -> None:
        """Wait until it is time to look again, or something seems to have changed; at least `least_s`."""
        until_s = time.monotonic() + least_s
        told = asyncio.ensure_future(self._source.changed())
        hurried = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait({told, hurried}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            told.cancel()
            # What it has to say is said by the next look.
            await asyncio.gather(told, return_exceptions=True)
        self._hurry.clear()
        await asyncio.sleep(until_s - time.monotonic())

    def _set_alarm(self, delay_s: float | None) -> None:
        """Tell then, unless an answer comes before, that nothing is seen."""
        if delay_s is None:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = None
        elif self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._speaker.wake)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s", trouble or f"{self._source.title} answers again")

    # --- speaking ---------------------------------------------------------------------------------------------------

    async def catch_up(self, reporter: Reporter, in_log: InLog) -> Sequence[Observed]:
        """What differs between the log and what is believed; that nothing is seen is told, too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()
        return reporter.synced({}, {}, also=self._polling.sync(in_log.domains, _now_ms()))

    async def news(self, reporter: Reporter) -> Sequence[Observed]:
        """What is believed that was not told."""
        return reporter.tell(self._polling.news(_now_ms()))

    def misses(self, known: Heard) -> bool:
        """It is told nothing that it would not see."""
        return False

    def hear(self, told: FeedEvent) -> None:
        """Where leases begin and end, domains are likely to change: look soon, and often for a while."""
        if isinstance(told.event, LeaseGranted | LeaseReleased | LeaseExpired | LeaseOutlived | DeviceFreed):
            self._polling.stir()
            self._hurry.set()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
