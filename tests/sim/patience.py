"""Whether those who wait wait for a reason: found by trying out, on the judge's own books."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.sim.schedulebook import Asker
from tests.sim.wishes import choices, tied_to
from tests.sim.world import ViolationError

if TYPE_CHECKING:
    from tests.sim.oracle import Oracle
    from tests.sim.simulation import Simulation

LOOK_EVERY_S = 4
PATIENCE_LOOKS = 8
"""So many looks at a world without faults may it take until somebody has what he waits for, and is free."""


def _asker(oracle: Oracle, queued: int) -> Asker:
    row = oracle.schedule.queue.waiting[queued]
    wish = row.wish
    return Asker(
        row.principal, wish["holder"], row.tenant, tuple(wish.get("tolerates", ())), wish.get("mode", ""),
        oracle.schedule.queue.place(queued),
    )  # fmt: skip


def found_for(
    oracle: Oracle, queued: int, *, whoever_has_it: bool = False, whatever_counts: bool = False
) -> tuple[str, ...] | None:
    """Devices that a waiting request could be granted; `None`: there are none. `whoever_has_it`: if nobody but those
    before it had anything; `whatever_counts`: and nothing of that counted against quotas.
    """
    book, asker = oracle.schedule, _asker(oracle, queued)
    if asker.mode == "admin":
        return None
    wish, owner = book.queue.waiting[queued].wish, (asker.principal, asker.holder)

    def can_have(device: str) -> bool:
        if book.obstacle(device, asker) or oracle.hands.row(device).quarantine:
            return False
        if device.partition("/")[0] in oracle.hands.dead:
            return False
        share_max = book.policies.get(device, (1, False))[0]
        sharers = len(book.sharers(device))
        if asker.mode and (share_max < 2 or (sharers >= share_max and not whoever_has_it)):
            return False
        if not asker.mode and sharers and not whoever_has_it:
            return False
        everything = tuple(book.descriptions)
        return not oracle.obstacle(device, owner, everything, whoever_has_it=whoever_has_it, shares=bool(asker.mode))

    for devices in choices(wish, can_have, book.classes, book.descriptions, book.missing()):
        if _is_beyond_quota(oracle, asker, devices, whatever_counts=whatever_counts):
            return None  # others would do, perhaps, but nobody searches for those that count for less
        apart = any(
            oracle.obstacle(each, owner, devices, whoever_has_it=whoever_has_it, shares=bool(asker.mode))
            for each in devices
        )
        stuck = any(_is_tied_to_what_is_stuck(oracle, asker, each, devices) for each in devices)
        if not apart and not stuck:
            return devices
    return None


def _is_tied_to_what_is_stuck(oracle: Oracle, asker: Asker, device: str, together: tuple[str, ...]) -> bool:
    """Whether something that cannot be owned apart from it is in use, in quarantine, or kept for somebody before."""
    book = oracle.schedule
    return any(
        oracle.hands.row(other).quarantine
        or other in book.sick
        or oracle.devices[other].users
        or book.queue.keeper_of(other, asker.place)
        for other, _ in tied_to(device, book.descriptions)
        if other not in together
    )


def _is_beyond_quota(oracle: Oracle, asker: Asker, devices: tuple[str, ...], *, whatever_counts: bool) -> bool:
    book = oracle.schedule
    for (tenant, device_class), most in book.quotas.items():
        if tenant == asker.tenant:
            more = sum(book.is_of(device, device_class) for device in devices)
            used = 0 if whatever_counts else book.used(tenant, device_class)
            if more and used + more > most:
                return True
    return False


def is_hopeless(oracle: Oracle, queued: int) -> bool:
    """Whether nothing that is there will ever do, whoever gives something back."""
    return found_for(oracle, queued, whoever_has_it=True, whatever_counts=True) is None


@dataclass
class Patience:
    """For how many looks somebody has been waiting for what is free, or nothing is kept for him that could be."""

    looks: dict[tuple[int, str], int] = field(default_factory=dict)

    def look(self, sim: Simulation) -> None:
        """Once for every few looks in which nothing fails.

        Raises:
            ViolationError: somebody waits for no reason.
        """
        oracle, before, self.looks = sim.oracle, self.looks, {}
        for queued, row in oracle.schedule.queue.waiting.items():
            reasons = []
            if found_for(oracle, queued) is not None:
                reasons.append("what it waits for is free")
            if not row.keeps and found_for(oracle, queued, whoever_has_it=True) is not None:
                # Of who has as much as he may nothing more is kept from others.
                reasons.append("nothing is kept for it, although nobody before it wants that")
            for reason in reasons:
                looks = self.looks[queued, reason] = before.get((queued, reason), 0) + 1
                if looks > PATIENCE_LOOKS:
                    raise ViolationError(f"patience: {queued} waits, but {reason}: {row.wish}")
        late = [(0, f"{device} is to be in quarantine") for device in oracle.schedule.too_often()]
        late += [
            (queued, "its time is over")
            for queued, row in oracle.schedule.queue.waiting.items()
            if max(row.until_ns, oracle.grace[1]) <= oracle.decided_at_ns
        ]
        for each in late:
            looks = self.looks[each] = before.get(each, 0) + 1
            if looks > PATIENCE_LOOKS:
                raise ViolationError(f"patience: {each}, and nothing happens")
