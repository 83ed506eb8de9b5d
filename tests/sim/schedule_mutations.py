"""Deliberate faults in waiting, sharing, marks, quotas, and in leases that change hands. Each must be found."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events import limits
from leasehold.events.event_types import LedgerRestored
from leasehold.events.position import token_of
from leasehold.events.schedule_events import LeaseTransferred, RequestWithdrawn
from leasehold.events.schedule_inputs import WithdrawRequest
from leasehold.projections import (
    conflicts,
    decide,
    evictions,
    evolve,
    failing,
    fencing,
    handingon,
    keeping,
    leasing,
    marking,
    outlooks,
    restraints,
    stirring,
    waiting,
)
from leasehold.projections.rows import QuotaState
from leasehold.projections.selectors import Selector
from leasehold.projections.solving import Solver
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


# --- what may be granted --------------------------------------------------------------------------------------------


def _without(rule: str) -> AbstractContextManager[Any]:
    """Nothing is kept from anybody by this rule, neither of a host nor of a device."""
    original = conflicts.blockers

    def blockers(*words: Any, **how: Any) -> Iterator[Any]:
        return (each for each in original(*words, **how) if each.rule != rule)

    return _all(
        patch.object(conflicts, "blockers", blockers),
        _filtered(restraints, "by_host", lambda each: each.rule != rule),
    )


def _filtered(module: Any, name: str, keep: Callable[[Any], bool]) -> AbstractContextManager[Any]:
    original = getattr(module, name)
    return patch.object(module, name, lambda *words, **how: (each for each in original(*words, **how) if keep(each)))


@contextmanager
def _all(*managers: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in managers:
            stack.enter_context(each)
        yield


def cordon_ignored() -> AbstractContextManager[Any]:
    """What is cordoned is granted."""
    return _without("cordoned")


def taint_ignored() -> AbstractContextManager[Any]:
    """What is tainted is granted to anybody."""
    return _without("tainted")


def unclean_granted() -> AbstractContextManager[Any]:
    """It does not matter who had a device before, and whether it was cleaned."""
    return _without("unclean")


def kept_for_nobody() -> AbstractContextManager[Any]:
    """What is kept for who waits is given to whoever comes."""
    return _without("kept")


def shared_given_to_one() -> AbstractContextManager[Any]:
    """What is shared is given to somebody alone, or to more than may share it."""
    return _without("shared")


def everything_shared() -> AbstractContextManager[Any]:
    """It does not matter whether a device is to be shared."""
    return _without("not_shareable")


def failures_forgotten() -> AbstractContextManager[Any]:
    """It does not matter how often a device has failed."""
    return patch.object(failing, "has_failed", lambda _row: False)


# --- what is chosen -------------------------------------------------------------------------------------------------


def any_device_matches() -> AbstractContextManager[Any]:
    """A selector matches whatever is there."""
    return patch.object(Selector, "matches", lambda _self, _state, _device: True)


def constraints_ignored() -> AbstractContextManager[Any]:
    """What is to hold across devices is not looked at."""
    original = Solver.__init__

    def begin(self: Solver, lookout: Any, pools: Any, _constraints: Any, tenant: Any = None) -> None:
        original(self, lookout, pools, (), tenant)

    return patch.object(Solver, "__init__", begin)


def half_a_gang() -> AbstractContextManager[Any]:
    """One device fewer is enough."""
    original = Solver._place

    def place(self: Solver, number: int, pool: Any, left: int, *rest: Any) -> Any:
        return original(self, number, pool, left - 1 if left == pool.count > 1 else left, *rest)

    return patch.object(Solver, "_place", place)


def quota_ignored() -> AbstractContextManager[Any]:
    """A tenant may have more than its quotas say."""
    return patch.object(QuotaState, "left", property(lambda _self: 1_000))


def quota_never_given_back() -> AbstractContextManager[Any]:
    """What a tenant has given back still counts."""
    original = leasing.count

    def count(state: State, tenant: Any, classes: Any, by: int) -> None:
        if by > 0:
            original(state, tenant, classes, by)

    return patch.object(leasing, "count", count)


# --- waiting --------------------------------------------------------------------------------------------------------


def nobody_hears_of_news() -> AbstractContextManager[Any]:
    """That something is free is not noted for those who wait for it."""
    return patch.object(stirring, "stir", lambda *_words, **_how: None)


def nothing_is_kept() -> AbstractContextManager[Any]:
    """For who waits nothing is kept."""
    return patch.object(outlooks, "_keeps", lambda *_words: ((), 0))


def last_comes_first() -> AbstractContextManager[Any]:
    """Who is less urgent comes first."""
    return patch.object(waiting, "rank_ns", lambda now_ns, priority: now_ns + priority * limits.PRIORITY_STEP_NS)


def keeps_of_earlier_ones_taken() -> AbstractContextManager[Any]:
    """What is kept is kept from nobody who waits, whoever came first."""
    original = State.keeper_before

    def keeper_before(self: State, device: Any, rank_ns: int, queued: int) -> int:
        return 0 if queued else original(self, device, rank_ns, queued)

    return patch.object(State, "keeper_before", keeper_before)


def waits_for_ever() -> AbstractContextManager[Any]:
    """Nobody gives up."""
    return patch.object(waiting, "ended", lambda *_words, **_how: [])


def gives_up_early() -> AbstractContextManager[Any]:
    """Who waits gives up ten seconds before his time."""
    original = waiting.ended
    return patch.object(waiting, "ended", lambda state, now_ns, *, limit: original(state, now_ns + 10**10, limit=limit))


def others_may_withdraw() -> AbstractContextManager[Any]:
    """Anybody may take back what another waits for."""
    original = decide._SCHEDULE_DECIDERS[WithdrawRequest]

    def withdraw(state: State, ref: Any, request: Any, now_ns: int) -> Any:
        row = state.queue.get(request.queued)
        if row is None or row.principal == ref.principal:
            return original(state, ref, request, now_ns)
        return [RequestWithdrawn(request=ref, queued=request.queued, reason=request.reason)]

    return patch.dict(decide._SCHEDULE_DECIDERS, {WithdrawRequest: withdraw})


# --- what operators say ---------------------------------------------------------------------------------------------


def drains_forgotten() -> AbstractContextManager[Any]:
    """No lease ends because of a taint."""
    return patch.object(evictions, "due", lambda *_words, **_how: iter(()))


def the_tolerating_are_evicted() -> AbstractContextManager[Any]:
    """A taint ends the leases of those who tolerate it, too."""
    return patch.object(evictions, "tolerated", lambda _taint, _tolerates: False)


def no_notice() -> AbstractContextManager[Any]:
    """Leases end at once by a taint, whatever time was given."""
    original = evictions.due
    return patch.object(evictions, "due", lambda state, now_ns, **how: original(state, now_ns + 60 * 10**9, **how))


def never_unclean() -> AbstractContextManager[Any]:
    """Behind a lease nothing has to be cleaned."""
    return patch.object(marking, "used_by", lambda marks, _tenant, _position: marks)


def one_failure_is_too_many() -> AbstractContextManager[Any]:
    """A device is in quarantine behind its first failure."""
    return _all(
        patch.object(failing, "has_failed", lambda row: bool(row.marks and row.marks.failures)),
        patch.object(failing, "why", lambda _row: "it failed"),
    )


# --- keeping and handing on -----------------------------------------------------------------------------------------


def renewals_promise_too_much() -> AbstractContextManager[Any]:
    """Every renewal is answered as if the lease were kept for long enough."""
    return patch.object(handingon, "is_covered", lambda _row, _ttl_ms, _now_ns: True)


def all_of_many_renewed() -> AbstractContextManager[Any]:
    """Of many leases all are renewed, whosever they are and with whatever token."""

    def of_lease(state: State, principal: Any, lease: int, token: int) -> Any:
        row = state.leases.get(lease)
        return original(state, principal, lease, token) if row is None or row.ended else None

    original = fencing.of_lease
    return patch.object(fencing, "of_lease", of_lease)


def token_survives_a_transfer() -> AbstractContextManager[Any]:
    """Who gave a lease away goes on with its token."""
    return _transferring(lambda before, after: _replace(after, token=before.token))


def _transferring(mutate: Callable[[Any, Any], Any]) -> AbstractContextManager[Any]:
    original = evolve._HANDLERS[LeaseTransferred]

    def transferred(state: State, position: int, at_ns: int, event: LeaseTransferred) -> None:
        before = state.leases[event.lease]
        floors = {device: state.devices[device].floor for device in before.devices}
        original(state, position, at_ns, event)
        state.put_lease(event.lease, mutate(before, state.leases[event.lease]))
        for device, floor in floors.items():
            state.put_device(device, _replace(state.devices[device], floor=floor))

    return patch.dict(evolve._HANDLERS, {LeaseTransferred: transferred})


def anothers_lease_given_away() -> AbstractContextManager[Any]:
    """A lease goes to another holder, and stays its giver's."""
    return _transferring(lambda before, after: _replace(after, principal=before.principal, tenant=before.tenant))


def restore_forgets_transfers() -> AbstractContextManager[Any]:
    """Behind a restore the token of a lease is made of its grant again."""
    original = evolve._HANDLERS[LedgerRestored]

    def restored(state: State, position: int, at_ns: int, event: LedgerRestored) -> None:
        original(state, position, at_ns, event)
        for lease, row in list(state.leases.items()):
            state.put_lease(lease, _replace(row, token=token_of(event.era, lease)))

    return patch.dict(evolve._HANDLERS, {LedgerRestored: restored})


def uncleaned_handed_on() -> AbstractContextManager[Any]:
    """What has to be cleaned between tenants goes from one to the other."""
    return patch.object(handingon, "_not_clean", lambda *_words: None)


def reserved_acts() -> AbstractContextManager[Any]:
    """The token of what is only reserved is let in."""
    return patch.object(fencing, "reserved", lambda *_words: None)


def switched_while_used() -> AbstractContextManager[Any]:
    """A switch does not wait until the source has let go."""
    return patch.object(handingon, "_still_has", lambda *_words: None)


def kept_for_too_short_a_time() -> AbstractContextManager[Any]:
    """Many renewed at once are kept for half of their time."""
    return patch.object(keeping, "kept_until_ns", lambda now_ns, ttl_ms: now_ns + ttl_ms * 500_000)


MUTATIONS: Final = (
    cordon_ignored,
    taint_ignored,
    unclean_granted,
    kept_for_nobody,
    shared_given_to_one,
    everything_shared,
    failures_forgotten,
    any_device_matches,
    constraints_ignored,
    half_a_gang,
    quota_ignored,
    quota_never_given_back,
    nobody_hears_of_news,
    nothing_is_kept,
    last_comes_first,
    keeps_of_earlier_ones_taken,
    waits_for_ever,
    gives_up_early,
    others_may_withdraw,
    drains_forgotten,
    the_tolerating_are_evicted,
    no_notice,
    never_unclean,
    one_failure_is_too_many,
    renewals_promise_too_much,
    all_of_many_renewed,
    token_survives_a_transfer,
    anothers_lease_given_away,
    restore_forgets_transfers,
    uncleaned_handed_on,
    reserved_acts,
    switched_while_used,
    kept_for_too_short_a_time,
)
