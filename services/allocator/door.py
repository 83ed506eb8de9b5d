"""The door: who may hand in how much, and who still waits for which answer."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.answers import Answer
from leasehold.events.identities import Principal

_log: Final = logging.getLogger(__name__)

Respond = Callable[[Answer], None]


class _Bucket:
    """Tokens of one principal: filled by time, up to a second's worth."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, now_s: float) -> None:
        self._tokens = float(limits.REQUESTS_PER_PRINCIPAL_PER_S)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        rate = limits.REQUESTS_PER_PRINCIPAL_PER_S
        self._tokens = min(rate, self._tokens + (now_s - self._at_s) * rate)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Waiter(msgspec.Struct):
    ticket: int
    principal: Principal
    request_id: str
    deadline_s: float
    respond: Respond


class Door:
    """Requests that wait for an answer. Nobody waits here for longer than a second."""

    def __init__(self) -> None:
        self._waiters: dict[int, _Waiter] = {}
        self._deadlines: deque[tuple[float, int]] = deque()
        self._waiting_of: dict[Principal, int] = {}
        self._buckets: dict[Principal, _Bucket] = {}
        self._tickets = 0
        self.counts = {"asked": 0, "answered": 0, "invalid": 0, "limited": 0, "unavailable": 0, "unknown": 0}

    def admit(self, principal: Principal, now_s: float) -> str:
        """Why this principal may not hand in a request now; empty if it may."""
        bucket = self._buckets.get(principal)
        if bucket is None:
            if len(self._buckets) >= limits.PRINCIPALS_MAX:
                self._buckets.clear()
            bucket = self._buckets[principal] = _Bucket(now_s)
        if not bucket.take(now_s):
            self.counts["limited"] += 1
            return f"{principal} asks more than {limits.REQUESTS_PER_PRINCIPAL_PER_S} times a second"
        if self._waiting_of.get(principal, 0) >= limits.REQUESTS_WAITING_PER_PRINCIPAL_MAX:
            self.counts["limited"] += 1
            return f"{limits.REQUESTS_WAITING_PER_PRINCIPAL_MAX} requests of {principal} wait already"
        return ""

    def wait(self, principal: Principal, request_id: str, now_s: float, respond: Respond) -> int:
        """Let a requester wait; its ticket."""
        self._tickets += 1
        deadline_s = now_s + limits.APPEND_TIMEOUT_MS / 1_000
        self._waiters[self._tickets] = _Waiter(self._tickets, principal, request_id, deadline_s, respond)
        self._deadlines.append((deadline_s, self._tickets))
        self._waiting_of[principal] = self._waiting_of.get(principal, 0) + 1
        self.counts["asked"] += 1
        return self._tickets

    def answer(self, ticket: int, answer: Answer) -> None:
        """Give the answer to whoever still waits with this ticket."""
        waiter = self._waiters.pop(ticket, None)
        if waiter is None:
            return
        left = self._waiting_of[waiter.principal] - 1
        if left:
            self._waiting_of[waiter.principal] = left
        else:
            del self._waiting_of[waiter.principal]
        self.counts["answered"] += 1
        waiter.respond(answer)

    def overdue(self, now_s: float) -> list[int]:
        """Tickets whose time is over."""
        found = []
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][1] not in self._waiters):
            _, ticket = self._deadlines.popleft()
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
