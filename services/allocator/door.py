"""The door: who still waits for which answer."""

from collections.abc import Callable
from heapq import heappop, heappush

import msgspec

from leasehold.events import limits
from leasehold.events.answers import Answer

Respond = Callable[[Answer], None]


class _Waiter(msgspec.Struct):
    request_id: str
    respond: Respond


class Door:
    """Requests that wait for an answer. Nobody waits here for longer than a second; `turns` bounds how many do."""

    def __init__(self) -> None:
        self._waiters: dict[int, _Waiter] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._tickets = 0
        self.counts = {"asked": 0, "answered": 0, "invalid": 0, "limited": 0, "unavailable": 0, "unknown": 0,
                       "no_room": 0}  # fmt: skip

    def wait(self, request_id: str, arrived_s: float, respond: Respond) -> int:
        """Let a requester wait; its ticket."""
        self._tickets += 1
        self._waiters[self._tickets] = _Waiter(request_id, respond)
        # Those who come in turn have not arrived in that order.
        heappush(self._deadlines, (arrived_s + limits.APPEND_TIMEOUT_MS / 1_000, self._tickets))
        self.counts["asked"] += 1
        return self._tickets

    def answer(self, ticket: int, answer: Answer) -> None:
        """Give the answer to whoever still waits with this ticket."""
        waiter = self._waiters.pop(ticket, None)
        if waiter is None:
            return
        self.counts["answered"] += 1
        waiter.respond(answer)

    def forget(self, ticket: int) -> None:
        """Nothing is to be said to who waits with this ticket: another allocator has answered."""
        self._waiters.pop(ticket, None)

    def overdue(self, now_s: float) -> list[int]:
        """Tickets whose time is over."""
        found = []
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][1] not in self._waiters):
            _, ticket = heappop(self._deadlines)
            if ticket in self._waiters:
                found.append(ticket)
        return found

    def give_up(self, ticket: int, outcome: str, why: str) -> None:
        """Tell who waits with this ticket that no answer will come in time."""
        waiter = self._waiters.get(ticket)
        if waiter is None:
            return
        self.counts["unknown" if outcome == "outcome_unknown" else "unavailable"] += 1
        self.answer(ticket, Answer(outcome=outcome, request_id=waiter.request_id, message=why, retry_after_ms=200))

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)
