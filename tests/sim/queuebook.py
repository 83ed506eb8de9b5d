"""The judge's book of requests that wait: who came when, what is kept for whom, and who got it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.sim.wishes import Wish
from tests.sim.world import ViolationError

PRIORITY_STEP_NS = 60 * 10**9
FOR_EVER: tuple[int, int] = (2**63, 2**63)
"""The place of who has none: behind all who wait."""


@dataclass
class Waiting:
    """A request that waits."""

    principal: str
    request_id: str
    tenant: str
    wish: Wish
    rank_ns: int
    until_ns: int
    keeps: tuple[str, ...]


@dataclass
class QueueBook:
    """All that wait, by position."""

    waiting: dict[int, Waiting] = field(default_factory=dict)
    lost: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What is kept no more by what is being decided, and the place of whom it was kept for."""
    told: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Of each request that ever waited, by principal and id: the positions of what was decided of it."""

    def place(self, queued: int) -> tuple[int, int]:
        """Where somebody stands; who has a lower place comes first."""
        return (self.waiting[queued].rank_ns, queued) if queued in self.waiting else FOR_EVER

    def keeper_of(self, device: str, before: tuple[int, int]) -> int:
        """For whom a device is kept who comes before this place; 0: for nobody."""
        if self.lost.get(device, before) < before:
            return self.lost[device][1]
        first = min((self.place(queued) for queued, row in self.waiting.items() if device in row.keeps), default=before)
        return first[1] if first < before else 0

    # --- events -----------------------------------------------------------------------------------------------------

    def request_queued(self, position: int, event: dict[str, Any], given: dict[str, Any], now_ns: int) -> None:
        """Somebody begins to wait."""
        ref, asked = event["request"], event["asked"]
        _must(given.get("request") == asked and given["principal"] == ref["principal"], "another wish than was asked")
        _must(asked.get("wait_ms", 0) > 0, "it waits, but did not want to")
        rank_ns = now_ns - asked.get("priority", 0) * PRIORITY_STEP_NS
        _must(event["rank_ns"] == rank_ns, f"rank {event['rank_ns']}, not {rank_ns}")
        _must(event["until_ns"] == now_ns + asked["wait_ms"] * 10**6, "it waits for another time than was said")
        key = (ref["principal"], ref["request_id"])
        _must(key not in self.told, f"{key} was queued twice")
        self.told[key] = [position]
        row = Waiting(*key, event["tenant"], asked, rank_ns, event["until_ns"], tuple(event["keeps"]))
        self.waiting[position] = row
        self._check_keeps(position)

    def queued_moved(self, event: dict[str, Any]) -> None:
        """Other things are kept for it."""
        row = self._living(event["queued"])
        gone = set(row.keeps) - set(event["keeps"])
        row.keeps = tuple(event["keeps"])
        self.lost |= dict.fromkeys(gone, self.place(event["queued"]))
        self._check_keeps(event["queued"])

    def _check_keeps(self, queued: int) -> None:
        """What is kept for somebody is not kept for one before."""
        for device in self.waiting[queued].keeps:
            keeper = self.keeper_of(device, self.place(queued))
            _must(not keeper, f"{device} is kept for {queued}, but for {keeper} as well, who comes before")

    def granted(self, position: int, event: dict[str, Any]) -> Waiting:
        """Somebody waits no more, since he has it."""
        row = self._living(event["queued"])
        ref = event["request"]
        is_his = (ref["principal"], ref["request_id"]) == (row.principal, row.request_id)
        _must(is_his, "another gets what was waited for")
        self._over(event["queued"], position)
        return row

    def request_withdrawn(self, position: int, event: dict[str, Any], given: dict[str, Any]) -> None:
        """Somebody waits no more, since he or an operator does not want it."""
        row = self._living(event["queued"])
        asked = given["request"]
        if asked["type"].startswith("revoke"):
            is_asked = asked["lease"] == event["queued"]
        else:
            _must(given["principal"] == row.principal, f"{given['principal']} withdrew what is {row.principal}'s")
            is_asked = asked["type"].startswith("withdraw") and asked["queued"] == event["queued"]
        _must(is_asked, "withdrawn, but nobody asked")
        self._over(event["queued"], position)

    def waiting_ended(self, position: int, event: dict[str, Any], now_ns: int) -> None:
        """Somebody waits no more, since the time is over."""
        row = self._living(event["queued"])
        _must(now_ns >= row.until_ns, f"{event['queued']} gave up {row.until_ns - now_ns} ns before its time")
        self._over(event["queued"], position)

    def _living(self, queued: int) -> Waiting:
        _must(queued in self.waiting, f"{queued} does not wait (any more)")
        return self.waiting[queued]

    def _over(self, queued: int, position: int) -> None:
        row = self.waiting.pop(queued)
        self.told[row.principal, row.request_id].append(position)


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise ViolationError(f"queue: {text}")
