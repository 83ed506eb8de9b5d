"""Deliberate faults of what is around the core: clocks, takeovers, queues. Each must be found, too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events import limits
from leasehold.events.identities import Principal, RequestId, RequestKey, request_key
from leasehold.events.inputs import DeciderStarts
from leasehold.projections import decide, leasing, sequencer, standby
from leasehold.projections.rows import Head
from leasehold.projections.sequencer import Draft, Pending, Sequencer
from leasehold.projections.standby import Standby
from leasehold.projections.timekeeping import ClockNote, Contact, LedgerClock
from tests.sim.allocators import SimAllocator
from tests.sim.world import SimLog

_replace: Final = msgspec.structs.replace


def _starts(mutate: Callable[[Any, DeciderStarts, int, Any], Any]) -> AbstractContextManager[Any]:
    """Replace how the beginning of a decider is decided: `mutate(state, given, now_ns, original)`."""
    original = decide._DECIDERS[DeciderStarts]
    return patch.dict(
        decide._DECIDERS, {DeciderStarts: lambda state, given, now_ns: mutate(state, given, now_ns, original)}
    )


def hint_instead_of_fence() -> AbstractContextManager[Any]:
    """Who holds the hint appends at the end of the log, wherever that is."""
    original = SimLog.append
    return patch.object(SimLog, "append", lambda self, _expected, body: original(self, len(self.bodies), body))


def standby_does_not_catch_up() -> AbstractContextManager[Any]:
    """A standby takes over with the picture that it began with, announces nothing, and answers from that picture.

    Any one of these alone is mended by the next append, which is refused.
    """

    def catch_up(self: SimAllocator, sequencer: Sequencer) -> bool:
        return original(self, sequencer) if self.decides else True

    original = SimAllocator._catch_up
    return _all(
        patch.object(SimAllocator, "_catch_up", catch_up),
        patch.object(SimAllocator, "_look_before_answering", lambda _self, _sequencer: None),
        _unannounced(lambda _sequencer: True),
    )


def standby_forgets() -> AbstractContextManager[Any]:
    """A standby keeps nothing of what it hears."""
    return patch.object(Standby, "hear", lambda *_args: None)


def deposed_drops_what_waits() -> AbstractContextManager[Any]:
    """A decider that becomes a standby throws away what waits."""

    def give_up(self: Sequencer) -> list[Pending]:
        original(self)
        return []

    original = Sequencer.give_up_requests
    return patch.object(Sequencer, "give_up_requests", give_up)


def deposed_forgets_an_outage() -> AbstractContextManager[Any]:
    """Who decides again, nobody else having decided meanwhile, starts no grace time."""
    return _unannounced(lambda sequencer: sequencer.state.head.decider == sequencer.writer)


def _unannounced(when: Callable[[Sequencer], bool]) -> AbstractContextManager[Any]:
    def decide_from_here(self: SimAllocator, sequencer: Sequencer, reason: str) -> None:
        is_silent = when(sequencer)
        with patch.object(Sequencer, "note", lambda *_args: None) if is_silent else nullcontext():
            original(self, sequencer, reason)

    original = SimAllocator._decide_from_here
    return patch.object(SimAllocator, "_decide_from_here", decide_from_here)


def no_grace_at_takeover() -> AbstractContextManager[Any]:
    """Who takes over lets leases expire at once."""

    def starts(_state: Any, given: DeciderStarts, now_ns: int, original: Any) -> Any:
        events = original(_state, given, now_ns)
        return [_replace(events[0], until_ns=now_ns)] if given.reason == "takeover" else events

    return _starts(starts)


def unannounced_without_room() -> AbstractContextManager[Any]:
    """Who begins to decide while only releases are taken says so when there is room again."""
    original = Sequencer._pack_notes
    return patch.object(
        Sequencer, "_pack_notes", lambda self, packing: None if self.releases_only else original(self, packing)
    )


def no_grace_at_outage() -> AbstractContextManager[Any]:
    """That the log was out of reach is not noticed."""
    return patch.object(Contact, "reached", lambda _self, _now_ns: False)


def short_grace_replaces_a_long_one() -> AbstractContextManager[Any]:
    """Who takes over ends the longer grace time of the one before."""

    def starts(state: Any, given: DeciderStarts, now_ns: int, original: Any) -> Any:
        head = state.head
        state._head.value = _replace(head, grace_until_ns=0)
        try:
            return original(state, given, now_ns)
        finally:
            state._head.value = head

    return _starts(starts)


def clock_taken_at_once() -> AbstractContextManager[Any]:
    """A server's clock that steps forward is followed at once."""
    return patch.object(limits, "CLOCK_SLEW_DIVISOR", 10**-9)


def new_clock_counts_as_old() -> AbstractContextManager[Any]:
    """Who starts with the server's time as it is trusts it as if it had watched it."""
    return patch.object(LedgerClock, "age_ms", lambda _self, _monotonic_ns: 10**9)


def clock_runs_before_the_log() -> AbstractContextManager[Any]:
    """A standby does not care for the time by which the decider decides."""
    return patch.object(LedgerClock, "heard_record", lambda _self, **_heard: None)


def clock_of_another_boot() -> AbstractContextManager[Any]:
    """A clock is carried on over a reboot, as if the monotonic clock were the same."""

    def refused(self: ClockNote, *, boot_id: str, head: Head, monotonic_ns: int) -> str:
        return original(_replace(self, boot_id=boot_id), boot_id=boot_id, head=head, monotonic_ns=monotonic_ns)

    original = ClockNote.refused
    return patch.object(ClockNote, "refused", refused)


def machine_time_decides() -> AbstractContextManager[Any]:
    """Decisions bear the time of the machine that makes them."""

    def heard_server(self: LedgerClock, *, wall_ns: int, monotonic_ns: int, **_heard: int) -> None:
        original(self, server_ns=wall_ns, monotonic_ns=monotonic_ns, wall_ns=wall_ns)
        self._offset_ns = wall_ns - monotonic_ns

    original = LedgerClock.heard_server
    return patch.object(LedgerClock, "heard_server", heard_server)


def log_time_goes_back() -> AbstractContextManager[Any]:
    """A decision may bear an earlier time than the one before it."""

    def draft(self: Sequencer, now_ns: int) -> Draft | None:
        head = self.state.head
        self.state._head.value = _replace(head, decided_at_ns=0)
        try:
            made = original(self, now_ns)
        except BaseException:
            self.state._head.value = head
            raise
        if made is None:
            self.state._head.value = head
        return made

    original = Sequencer.draft
    return patch.object(Sequencer, "draft", draft)


def requests_named_by_id_alone() -> AbstractContextManager[Any]:
    """Whoever knows another's request id is told what became of that request."""

    def key(_principal: Principal, request_id: RequestId) -> RequestKey:
        return request_key(Principal("all"), request_id)

    return _all(*(patch.object(module, "request_key", key) for module in (decide, leasing, sequencer, standby)))


def time_of_request_ignored() -> AbstractContextManager[Any]:
    """It does not matter when a request says that it was issued."""
    return patch.object(decide, "_untimely", lambda *_args: None)


def queue_without_bound() -> AbstractContextManager[Any]:
    """However much waits already, more may."""

    def ask(self: Sequencer, *asked: Any) -> bool:
        with patch.object(limits, "REQUESTS_WAITING_MAX", 10**9):
            return original(self, *asked)

    original = Sequencer.ask
    return patch.object(Sequencer, "ask", ask)


@contextmanager
def _all(*patches: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield


MUTATIONS: Final = (
    hint_instead_of_fence,
    standby_does_not_catch_up,
    standby_forgets,
    deposed_drops_what_waits,
    deposed_forgets_an_outage,
    no_grace_at_takeover,
    unannounced_without_room,
    no_grace_at_outage,
    short_grace_replaces_a_long_one,
    clock_taken_at_once,
    new_clock_counts_as_old,
    clock_runs_before_the_log,
    clock_of_another_boot,
    machine_time_decides,
    log_time_goes_back,
    requests_named_by_id_alone,
    time_of_request_ignored,
    queue_without_bound,
)
RARE: Final = frozenset(
    {
        "deposed_forgets_an_outage",
        "failures_forgotten",
        "quarantine_ignored",
        "short_grace_replaces_a_long_one",
        "woken_answers_from_old_state",
    }
)
"""Those that need several things to come together, and so more seeds than a short run has."""
