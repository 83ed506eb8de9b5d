"""Searching devices for what is needed: which are chosen, or why none are. It depends on nothing but the state.

Devices are tried by host and key, those that are preferred before all others; `solving` says how. So of all solutions
the first one in this order is found, and the same one each time. A search takes at most `limits.SEARCH_STEPS_MAX`
steps, one for each device looked at or tried; within that it finds a solution if there is one.
"""

from typing import Final

import msgspec

from leasehold.events.errors import SearchCutOffError
from leasehold.events.identities import DeviceId
from leasehold.events.inputs import LeaseRequest
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.schedule_checks import names_of
from leasehold.events.scheduling import Considered, Need, Option, Search
from leasehold.projections import attributes, selectors, shortfalls
from leasehold.projections.celparser import Fault
from leasehold.projections.declining import Declined
from leasehold.projections.pools import Lookout, Pool
from leasehold.projections.scheduletelling import wanted_text
from leasehold.projections.solving import Outcome, Solver
from leasehold.projections.state import State
from leasehold.projections.terms import Terms

_ABOUT_CHARS_MAX: Final = 512


class Found(msgspec.Struct, frozen=True):
    """The devices that were chosen, sorted, and how."""

    devices: tuple[DeviceId, ...]
    search: Search


def search(
    state: State,
    request: LeaseRequest,
    terms: Terms,
    *,
    owner: tuple[str, str],
    ignoring_holders: bool = False,
    prefer: frozenset[DeviceId] = frozenset(),
    thorough: bool = False,
) -> Found | Declined:
    """Devices for the needs of a request by `owner` (principal, holder), all or none.

    `ignoring_holders`: as if nobody had any now, but for those who wait and come first; quotas do not count either.
    `thorough`: of a refusal, count all devices that are out of the question, as far as the bound allows, not only some.
    """
    about = (wanted_text(request)[:_ABOUT_CHARS_MAX],)
    refusal = _unreadable(state, request)
    if refusal is not None:
        return Declined(about, refusal)
    lookout = Lookout(state, request, terms, owner, ignoring_holders=ignoring_holders, prefer=prefer)
    pools: dict[str, list[Pool]] = {}
    for name, need in zip(names_of(request.needs), request.needs, strict=True):
        options: tuple[Need | Option, ...] = need.first_of or (need,)
        pools[name] = [Pool(lookout, each, number if need.first_of else 0) for number, each in enumerate(options, 1)]
    is_free_of_charge = ignoring_holders or terms.mode == "admin"
    solver = Solver(lookout, pools, request.constraints, None if is_free_of_charge else terms.tenant)
    try:
        outcome = solver.solve()
    except SearchCutOffError:
        outcome = Outcome.CUT_OFF
    steps = lookout.meter.steps
    if outcome is Outcome.FOUND:
        chosen = solver.chosen()
        needs = tuple(
            Considered(
                need=name,
                devices=devices,
                option=some[option].number,
                looked=sum(pool.looked for pool in some),
                excluded=shortfalls.excluded(some),
            )
            for (name, some), option, devices in zip(pools.items(), solver.option, chosen, strict=True)
        )
        devices = tuple(sorted(device for those in chosen for device in those))
        return Found(devices, Search(steps=steps, needs=needs))
    refusal = shortfalls.refusal(solver, request.constraints, outcome, thorough=thorough)
    considered = tuple(
        Considered(need=name, looked=sum(pool.looked for pool in some), excluded=shortfalls.excluded(some))
        for name, some in pools.items()
    )
    told = Search(steps=steps, needs=considered, is_cut_off=outcome is Outcome.CUT_OFF)
    return Declined(about, msgspec.structs.replace(refusal, search=told))


# --- what cannot be searched for ----------------------------------------------------------------------------------


def _unreadable(state: State, request: LeaseRequest) -> Refusal | None:
    """The first thing in a request that has no meaning."""
    for name, need in zip(names_of(request.needs), request.needs, strict=True):
        for option in need.first_of or (need,):
            if option.device_class and option.device_class not in state.classes:
                return Refusal(
                    code=RefusalCode.CLASS_UNKNOWN,
                    message=f"need {name}: there is no class {option.device_class}",
                    help="list the classes, or add it",
                )
            fault = selectors.compiled(option.select) if option.select else None
            if isinstance(fault, Fault):
                return Refusal(
                    code=RefusalCode.SELECTOR_INVALID, message=f"need {name}: {fault}", help="docs/selectors.md"
                )
    for constraint in request.constraints:
        if attributes.named(constraint.attribute) is None:
            return Refusal(
                code=RefusalCode.SELECTOR_INVALID,
                message=f"constraint {constraint.kind} {constraint.attribute}: there is no such attribute",
                help="attributes are named as in selectors, without device. in front: docs/selectors.md",
            )
    return None
