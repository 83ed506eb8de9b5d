"""Why a search found nothing: what there is too little of, who has it, or which constraint is in the way."""

from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import SearchCutOffError
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.events.scheduling import Constraint, Excluded
from leasehold.projections import conflicts
from leasehold.projections.pools import NOT_MEANT, Pool
from leasehold.projections.solving import Outcome, Solver

_STEPS_MAX: Final = limits.SEARCH_STEPS_MAX // 16
"""So many more does it take to say why, unless somebody asks for all of it."""


def refusal(solver: Solver, constraints: tuple[Constraint, ...], outcome: Outcome, *, thorough: bool) -> Refusal:
    """The refusal of what `solver` has not found. `thorough`: look at all that is out of the question."""
    if outcome is Outcome.OVER_QUOTA:
        assert solver.over_quota is not None
        return solver.over_quota
    if outcome is Outcome.CUT_OFF:
        return Refusal(
            code=RefusalCode.SEARCH_CUT_OFF,
            message=f"the search was given up after {limits.SEARCH_STEPS_MAX} steps: there may be a solution",
            help="say more narrowly what is needed: on which host, of which class, vendor and product",
        )
    solver.lookout.meter.allow(limits.SEARCH_STEPS_MAX if thorough else _STEPS_MAX)
    number = solver.alone if solver.alone >= 0 else _first_alone(solver, constraints)
    if number < 0:
        return _not_together(solver, constraints, range(len(solver.names)))
    pools = solver.pools[number]
    for pool in pools:
        pool.look_at_all(thorough=thorough)
    if any(_is_had(pool) for pool in pools):
        return _not_together(solver, constraints, range(number, number + 1))
    return _too_few(solver.names[number], pools)


def _is_had(pool: Pool) -> bool:
    """Whether an option could be had, if nothing had to go together."""
    return pool.had >= pool.count and (not pool.every or pool.had == pool.matched)


def _first_alone(solver: Solver, constraints: tuple[Constraint, ...]) -> int:
    """The first need that cannot be satisfied even if there were no others; -1: all can, or nobody knows."""
    if len(solver.names) == 1:
        return 0
    for number in range(len(solver.names)):
        if not _can(solver, constraints, range(number, number + 1)):
            return number
    return -1


def _can(solver: Solver, constraints: tuple[Constraint, ...], numbers: range) -> bool:
    """Whether these needs could be satisfied, if only these constraints counted."""
    names = [solver.names[number] for number in numbers]
    kept = []
    for each in constraints:
        needs = tuple(name for name in names if name in (each.needs or names))
        if needs:
            kept.append(msgspec.structs.replace(each, needs=needs))
    pools = {name: solver.pools[number] for name, number in zip(names, numbers, strict=True)}
    try:
        return Solver(solver.lookout, pools, tuple(kept)).solve() is not Outcome.NONE
    except SearchCutOffError:
        return True


def _not_together(solver: Solver, constraints: tuple[Constraint, ...], numbers: range) -> Refusal:
    """There are enough devices for each need, but they do not go together."""
    whose = f"need {solver.names[numbers[0]]}: " if len(numbers) == 1 else ""
    if constraints:
        unmet = [
            f"{'the same' if each.kind == 'same' else 'distinct'} {each.attribute}"
            for number, each in enumerate(constraints)
            if _can(solver, constraints[:number] + constraints[number + 1 :], numbers)
        ]
        how = f"with {' and '.join(unmet)}" if unmet else "so that all constraints hold"
        which = "that constraint" if len(unmet) == 1 else "one of these constraints" if unmet else "constraints"
        return Refusal(
            code=RefusalCode.CONSTRAINT_UNMET,
            message=f"{whose}enough devices can be had, but not {how}",
            blockers=_blockers(solver, numbers),
            help=f"leave {which} out, or wait until others release devices that go together",
        )
    return Refusal(
        code=RefusalCode.NOT_ENOUGH,
        message=f"{whose or 'each need could be had, but not all of them together: '}"
        "what one has is wanted by another, or cannot be had apart from it",
        blockers=_blockers(solver, numbers),
        help="ask for less, or wait until others release what is needed",
    )


def _blockers(solver: Solver, numbers: range) -> tuple[Blocker, ...]:
    found = [blocker for number in numbers for pool in solver.pools[number] for blocker in pool.blockers]
    return conflicts.by_gravity(found)


def _too_few(name: str, pools: list[Pool]) -> Refusal:
    """Of no option are there so many devices that can be had now."""
    blockers = conflicts.by_gravity([blocker for pool in pools for blocker in pool.blockers])
    texts = []
    for pool in pools:
        option = f"option {pool.number}: " if pool.number else ""
        if pool.every and pool.had >= pool.count:
            texts.append(f"{option}all {pool.matched} that match are needed, and {pool.had} can be had now")
        elif pool.matched < pool.count:
            there = f"there {'is' if pool.matched == 1 else 'are'} {pool.matched}"
            texts.append(f"{option}{pool.count} needed, and {there}")
        else:
            texts.append(f"{option}{pool.count} needed, and {pool.had} can be had now")
    is_there = any(pool.matched >= pool.count for pool in pools)
    if not is_there:  # whoever has the others is not in the way
        blockers = tuple(each for each in blockers if each.rule in NOT_MEANT)
    because = f": {blockers[0].device}: {blockers[0].why}" if blockers else ""
    return Refusal(
        code=RefusalCode.NOT_ENOUGH if is_there else RefusalCode.NO_MATCH,
        message=f"need {name}: {'; '.join(texts)}{because}",
        blockers=blockers,
        help=blockers[0].help if blockers else "ask for fewer, or say less narrowly what is needed",
    )


def excluded(pools: list[Pool]) -> tuple[Excluded, ...]:
    """How many devices were out of the question by which rule, for all options of a need: the commonest first."""
    found: dict[str, Excluded] = {}
    for pool in pools:
        for rule, each in pool.excluded().items():
            known = found.get(rule)
            found[rule] = each if known is None else msgspec.structs.replace(known, count=known.count + each.count)
    some = sorted(found.values(), key=lambda each: (-each.count, each.rule))
    return tuple(some[: limits.EXCLUDED_TOLD_MAX])
