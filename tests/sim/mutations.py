"""Deliberate faults of the core. Each must be found by the simulator within so many seeds, or the simulator is blind.

`python -m tests.sim.mutations` prints which seed finds each.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events.event_types import LedgerRestored, PictureCompleted
from leasehold.events.identities import DeviceId, request_key
from leasehold.events.inputs import Asked, Observed, PictureComplete, Tick
from leasehold.projections import conflicts, decide, evolve, fencing, observing
from leasehold.projections.answers import answer_for
from leasehold.projections.appending import Action, Append, Appender, Read, Said, Won
from leasehold.projections.rows import HostState
from leasehold.projections.sequencer import Draft, Reply, Sequencer
from leasehold.projections.state import State
from tests.sim import domain_mutations, hand_mutations, order_mutations, schedule_mutations, shell_mutations
from tests.sim.run import simulate

_replace: Final = msgspec.structs.replace
SEEDS_MAX: Final = 1_500


Mutate = Callable[[Callable[..., Any], State, Any, int], Any]


def _decider(kind: type[Any], mutate: Mutate) -> AbstractContextManager[Any]:
    """Replace how one kind of input is decided."""
    original = decide._DECIDERS[kind]
    return patch.dict(decide._DECIDERS, {kind: lambda state, given, now_ns: mutate(original, state, given, now_ns)})


def missing_fence() -> AbstractContextManager[Any]:
    """A refused append is sent again behind the foreign record, without deciding again."""

    def found(self: Appender, body: bytes | None) -> Action:
        assert isinstance(self.action, Read)
        if body is None or body == self._body:
            self.action = Won(self._expected + 1) if body else Append(self._expected, self._body)
        else:
            self._expected += 1
            self.action = Append(self._expected, self._body)
        return self.action

    return patch.object(Appender, "found", found)


def timeout_taken_for_done() -> AbstractContextManager[Any]:
    """An append without an answer counts as stored."""
    original = Appender.answered

    def answered(self: Appender, said: Said, sequence: int = 0) -> Action:
        if said is Said.NOTHING:
            self.action = Won(self._expected + 1)
            return self.action
        return original(self, said, sequence)

    return patch.object(Appender, "answered", answered)


def answer_before_commit() -> AbstractContextManager[Any]:
    """Answers go out when the record is drafted, before the log has it."""
    original = Sequencer.draft

    def draft(self: Sequencer, now_ns: int) -> Draft | None:
        made = original(self, now_ns)
        for pending, _ in self._drafted:
            answer = answer_for(self.state, pending.key)
            if answer is not None:
                self.replies.append(Reply(pending.ticket, answer))
        return made

    return patch.object(Sequencer, "draft", draft)


def lost_draft_stays() -> AbstractContextManager[Any]:
    """What a lost record would have changed is not undone."""
    return patch.object(State, "roll_back", lambda self: self.journal.commit())


def early_free() -> AbstractContextManager[Any]:
    """A device is free as soon as its lease has ended."""
    return patch.object(State, "evidence_of_free", lambda _self, _row: "because")


def stale_host_granted() -> AbstractContextManager[Any]:
    """It does not matter whether a host's picture is up to date."""
    return patch.object(HostState, "stale", property(lambda _self: ""))


def stale_token_accepted() -> AbstractContextManager[Any]:
    """Whatever token comes with a renewal or a release, it is taken."""

    def of_lease(state: State, principal: Any, lease: int, token: int) -> Any:
        row = state.leases.get(lease)
        if row is None or row.ended or row.principal != principal:
            return original(state, principal, lease, token)
        return original(state, principal, lease, row.token)

    original = fencing.of_lease
    return patch.object(fencing, "of_lease", of_lease)


def others_lease_released() -> AbstractContextManager[Any]:
    """The token gives the right, whoever shows it."""

    def of_lease(state: State, principal: Any, lease: int, token: int) -> Any:
        row = state.leases.get(lease)
        return original(state, row.principal if row else principal, lease, token)

    original = fencing.of_lease
    return patch.object(fencing, "of_lease", of_lease)


def ended_token_let_in() -> AbstractContextManager[Any]:
    """The door asks whether a token was ever the device's lease, not whether that lease lives."""

    def check(state: State, device: DeviceId, token: int) -> Any:
        row = state.devices[device]
        return None if row.lease == token else original(state, device, token)

    original = fencing.check_token
    return patch("tests.sim.simulation.check_token", check)


def expiry_without_grace() -> AbstractContextManager[Any]:
    """Leases expire in the middle of a grace time."""

    def tick(original: Callable[..., Any], state: State, given: Tick, now_ns: int) -> Any:
        head = state.head
        state._head.value = _replace(head, grace_until_ns=0)
        try:
            return original(state, given, now_ns)
        finally:
            state._head.value = head

    return _decider(Tick, tick)


def expiry_by_anyone() -> AbstractContextManager[Any]:
    """An allocator that did not decide before lets leases expire without a grace time of its own."""

    def tick(original: Callable[..., Any], state: State, given: Tick, now_ns: int) -> Any:
        head = state.head
        state._head.value = _replace(head, decider=given.writer)
        try:
            return original(state, given, now_ns)
        finally:
            state._head.value = head

    return _decider(Tick, tick)


def early_expiry() -> AbstractContextManager[Any]:
    """Leases expire three seconds before their time."""
    original = State.expired_by
    return patch.object(
        State, "expired_by", lambda self, now_ns, *, limit: original(self, now_ns + 3 * 10**9, limit=limit)
    )


def intake_repeats() -> AbstractContextManager[Any]:
    """A message of a source that comes again is taken again."""

    def observed(original: Callable[..., Any], state: State, given: Observed, now_ns: int) -> Any:
        events = original(state, given, now_ns)
        host = state.hosts.get(given.host)
        source = host.sources.get(given.agent) if host else None
        if events is None and source is not None and given.run == source.run and 0 < given.counter <= source.counter:
            again = original(state, _replace(given, counter=source.counter + 1), now_ns)
            return [_replace(again[0], counter=given.counter), *again[1:]]
        return events

    return _decider(Observed, observed)


def old_runs_count() -> AbstractContextManager[Any]:
    """Late words of an older run are taken as the new one's."""

    def observed(original: Callable[..., Any], state: State, given: Observed, now_ns: int) -> Any:
        host = state.hosts.get(given.host)
        source = host.sources.get(given.agent) if host else None
        if source is not None and given.run < source.run and given.counter:
            events = original(state, _replace(given, run=source.run, counter=source.counter + 1), now_ns)
            return [_replace(events[0], run=given.run), *events[1:]] if events else events
        return original(state, given, now_ns)

    return _decider(Observed, observed)


def whole_in_spite_of_a_gap() -> AbstractContextManager[Any]:
    """A picture counts as whole although a part of its report was lost."""

    def complete(_state: State, given: Observed, _said: PictureComplete) -> Any:
        return PictureCompleted(given.host, given.agent)

    return patch.dict(observing._HANDLERS, {PictureComplete: complete})


def no_idempotency() -> AbstractContextManager[Any]:
    """A request that comes again is decided again."""

    def asked(original: Callable[..., Any], state: State, given: Asked, now_ns: int) -> Any:
        key = request_key(given.principal, given.request.request_id)
        known = state.answers.pop(key, None)
        try:
            return original(state, given, now_ns)
        finally:
            if known is not None:
                state.answers[key] = known

    return _decider(Asked, asked)


def protected_granted() -> AbstractContextManager[Any]:
    """Devices that the host lives on are given away."""
    original = conflicts.first_blockers
    return patch.object(conflicts, "first_blockers", lambda *args, **how: original(*args, **{**how, "force": True}))


def same_device_twice() -> AbstractContextManager[Any]:
    """A device that is leased, or not free yet, is no obstacle."""

    def blockers(state: State, device: DeviceId, **how: Any) -> Iterator[Any]:
        return (each for each in found(state, device, **how) if each.rule != "same_device")

    found = conflicts.blockers
    return patch.object(conflicts, "blockers", blockers)


def no_iommu_rule() -> AbstractContextManager[Any]:
    """IOMMU group mates go to different holders."""
    return patch.object(conflicts, "group_mates", lambda _state, _device: iter(()))


@contextmanager
def _without(*names: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(conflicts, name, lambda _state, _device: iter(())))
        yield


def no_function_rule() -> AbstractContextManager[Any]:
    """A physical function and its virtual functions go to different leases."""
    return _without("physical_function_of", "virtual_functions_of")


def no_usb_rule() -> AbstractContextManager[Any]:
    """A USB controller and what is plugged below go to different leases."""
    return _without("usb_above", "usb_below")


def _restoring(mutate: Callable[[State, State], None]) -> AbstractContextManager[Any]:
    """What a restore does to the state is done, and then changed; `mutate` is given the state before, too."""
    original = evolve._HANDLERS[LedgerRestored]

    def restored(state: State, position: int, at_ns: int, event: LedgerRestored) -> None:
        before = State()
        before.devices.update(state.devices)
        before.hosts.update(state.hosts)
        original(state, position, at_ns, event)
        mutate(state, before)

    return patch.dict(evolve._HANDLERS, {LedgerRestored: restored})


def tokens_without_era() -> AbstractContextManager[Any]:
    """A token is the position of its grant, in whatever era."""
    return patch.object(evolve, "token_of", lambda _era, position: position)


def floors_stay_in_their_era() -> AbstractContextManager[Any]:
    """A restore gives leases new tokens, but leaves the floors where they are."""

    def mutate(state: State, before: State) -> None:
        for device, row in before.devices.items():
            state.put_device(device, _replace(state.devices[device], floor=row.floor))

    return _restoring(mutate)


def ended_leases_live_again() -> AbstractContextManager[Any]:
    """A restore takes what waits for evidence for leased."""

    def mutate(state: State, before: State) -> None:
        for device in before.devices:
            state.put_device(device, _replace(state.devices[device], ending=False))
        for lease, row in list(state.leases.items()):
            state.put_lease(lease, _replace(row, ended=""))

    return _restoring(mutate)


def hosts_believed_behind_a_restore() -> AbstractContextManager[Any]:
    """What hosts had told of themselves counts on, although the log may have lost what came after."""

    def mutate(state: State, before: State) -> None:
        for host, row in before.hosts.items():
            state.put_host(host, row)

    return _restoring(mutate)


MUTATIONS: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    mutation.__name__: mutation
    for mutation in (
        missing_fence,
        timeout_taken_for_done,
        answer_before_commit,
        lost_draft_stays,
        early_free,
        stale_host_granted,
        stale_token_accepted,
        others_lease_released,
        ended_token_let_in,
        expiry_without_grace,
        expiry_by_anyone,
        early_expiry,
        intake_repeats,
        old_runs_count,
        whole_in_spite_of_a_gap,
        no_idempotency,
        protected_granted,
        same_device_twice,
        no_iommu_rule,
        no_function_rule,
        no_usb_rule,
        tokens_without_era,
        floors_stay_in_their_era,
        ended_leases_live_again,
        hosts_believed_behind_a_restore,
        *shell_mutations.MUTATIONS,
        *order_mutations.MUTATIONS,
        *domain_mutations.MUTATIONS,
        *hand_mutations.MUTATIONS,
        *schedule_mutations.MUTATIONS,
    )
}


def caught_by(name: str, seeds_max: int = SEEDS_MAX) -> tuple[int, str] | None:
    """The first seed that finds a mutation, and what it says; `None` if none of so many does."""
    with MUTATIONS[name]():
        for seed in range(seeds_max):
            outcome = simulate(seed)
            if outcome.failure:
                return seed, outcome.failure
    return None


def main() -> int:
    """Try all mutations; exit non-zero if one is not found."""
    missed = 0
    for name in MUTATIONS:
        caught = caught_by(name)
        missed += caught is None
        print(f"{name:26} {'NOT FOUND' if caught is None else f'seed {caught[0]:3}  {caught[1][:90]}'}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} mutations found within {SEEDS_MAX} seeds each")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
