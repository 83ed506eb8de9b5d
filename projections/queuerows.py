"""The rows of the read models that tell of requests which waited, and of what was kept for them: a part of the fold in
`intervals`.
"""

from collections.abc import Iterable
from typing import Final

from leasehold.events import codec
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import DeviceId
from leasehold.events.schedule_events import QueuedMoved, RequestQueued
from leasehold.projections.modelrows import Changes, KeepRow, QueuedRow

GRANTED: Final = "granted"
WITHDRAWN: Final = "withdrawn"
IN_VAIN: Final = "in_vain"


class QueueRows:
    """All requests that wait, each as its row has it, and what is kept for them."""

    def __init__(self) -> None:
        self._waiting: dict[int, QueuedRow] = {}
        self._kept: dict[DeviceId, KeepRow] = {}
        self._keeps: dict[int, tuple[DeviceId, ...]] = {}
        """Of each, what may be kept for it still: others may have taken some of it."""

    def resume(self, waiting: Iterable[QueuedRow], kept: Iterable[KeepRow]) -> None:
        """Go on from all requests that wait, and what is kept for them."""
        self._waiting = {row.queued: row for row in waiting}
        self._kept = {row.device: row for row in kept}
        self._keeps = dict.fromkeys(self._waiting, ())
        for row in self._kept.values():
            self._keeps[row.queued] += (row.device,)

    def queued(self, changes: Changes, position: int, at_ns: int, event: RequestQueued) -> None:
        """A request waits from here on."""
        self._waiting[position] = changes.queue[position] = QueuedRow(
            queued=position,
            at_ns=at_ns,
            principal=event.request.principal,
            tenant=event.tenant,
            holder=event.asked.holder,
            request_id=event.request.request_id,
            asked=codec.encode(event.asked),
            rank_ns=event.rank_ns,
            until_ns=event.until_ns,
            why=codec.encode(event.why),
        )
        self._keep(changes, position, position, event.keeps)

    def moved(self, changes: Changes, position: int, event: QueuedMoved) -> None:
        """Other devices are kept for it. Raises KeyError if it does not wait."""
        if event.why:
            row = self._waiting[event.queued]
            row.why = codec.encode(event.why)
            changes.queue[event.queued] = row
        self._keep(changes, position, event.queued, event.keeps)

    def granted(self, changes: Changes, position: int, at_ns: int, event: LeaseGranted) -> None:
        """Nobody keeps its devices any more; who waited for it waits no more."""
        if event.mode != "admin":
            for device in event.devices:
                self._let_go(changes, position, device)
        if event.queued:
            self.over(changes, position, at_ns, event.queued, GRANTED)

    def over(self, changes: Changes, position: int, at_ns: int, queued: int, outcome: str) -> None:
        """It waits no more. Raises KeyError if it does not wait."""
        row = self._waiting.pop(queued)
        self._keep(changes, position, queued, ())
        del self._keeps[queued]
        row.outcome, row.ended_position, row.ended_ns = outcome, position, at_ns
        changes.queue[queued] = row

    def _keep(self, changes: Changes, position: int, queued: int, devices: tuple[DeviceId, ...]) -> None:
        """These are kept for it, and nothing else; who kept one of them before does not any more."""
        wanted = set(devices)
        for device in self._keeps.get(queued, ()):
            if device not in wanted and self._kept.get(device, _NONE).queued == queued:
                self._let_go(changes, position, device)
        for device in devices:
            if self._kept.get(device, _NONE).queued != queued:
                self._let_go(changes, position, device)
                self._kept[device] = changes.keeps[device, position] = KeepRow(device, position, queued)
        self._keeps[queued] = devices

    def _let_go(self, changes: Changes, position: int, device: DeviceId) -> None:
        row = self._kept.pop(device, None)
        if row is not None:
            row.until_position = position
            changes.keeps[device, row.from_position] = row


_NONE: Final = KeepRow(DeviceId(""), 0, 0)
