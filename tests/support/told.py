"""What clients under load were told, and what came of a run."""

import time
from collections import Counter
from dataclasses import dataclass, field

from leasehold.events.answers import Answer
from leasehold.events.identities import Principal
from leasehold.events.inputs import Request
from tests.sim.linear import Operation

NOT_FINAL = ("unavailable", "outcome_unknown")


@dataclass
class Told:
    """An answer that came to a client, and when the attempt that it answers was sent."""

    sent_ns: int
    told_ns: int
    answer: Answer


@dataclass
class Asked:
    """One request under one id, however often it was sent."""

    principal: Principal
    request: Request
    operation: Operation | None
    """For the check of one device's history; a renewal has none."""
    called_ns: int = field(default_factory=time.monotonic_ns)
    told: list[Told] = field(default_factory=list)
    unwritten: set[tuple[object, ...]] = field(default_factory=set)
    """Answers to a renewal that changed nothing, and so stands nowhere: asked again, it is decided anew."""

    @property
    def final(self) -> Answer | None:
        """The first decision that was told."""
        return next((each.answer for each in self.told if each.answer.outcome not in NOT_FINAL), None)


@dataclass
class Figures:
    """What came of a run."""

    asked: int
    answered: int
    """Requests with a decision."""
    undecided: int
    lost: int
    """Decisions that were told and are not in the ledger."""
    doubled: int
    """Requests that were told two different decisions, or have two effects."""
    outcomes: Counter[str]
    longest_gap_s: float
    """The longest time in which nobody was told a decision."""
    longest_wait_s: float
    """The longest that anybody waited for the first word to one sending: a decision, or that there is none now."""
    silent: int
    """Sendings over a connection that held, to which no word came at all."""

    def __str__(self) -> str:
        return (
            f"asked {self.asked}, answered {self.answered}, undecided {self.undecided}, lost {self.lost}, "
            f"doubled {self.doubled}, longest gap {self.longest_gap_s:.2f} s, "
            f"longest wait {self.longest_wait_s:.2f} s, silent {self.silent}, {dict(self.outcomes)}"
        )
