"""On which terms somebody asks for devices: what rules look at beside who he is."""

from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.identities import Principal
from leasehold.events.scheduling import Taint


class Terms(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Of a request, new or waiting."""

    tenant: Principal = Principal("")
    tolerates: tuple[str, ...] = ()
    mode: str = ""
    rank_ns: int = 2**63 - 1
    """Its place in the queue, if it waited: who comes before it is served before it."""
    queued: int = 0
    """Where it waits; 0: it does not (yet), and comes behind all of its rank that do."""


STRANGER: Final = Terms()
"""Somebody new, who tolerates nothing and comes behind all others."""


def rank_ns(now_ns: int, priority: int) -> int:
    """The place in the queue of who asks at `now_ns`: lower ones come first."""
    return now_ns - priority * limits.PRIORITY_STEP_NS


def tolerated(taint: Taint, tolerates: tuple[str, ...]) -> bool:
    """Whether who `tolerates` these (each `name` or `name=value`, `*`: all) is not kept away by a taint."""
    return "*" in tolerates or taint.name in tolerates or f"{taint.name}={taint.value}" in tolerates
