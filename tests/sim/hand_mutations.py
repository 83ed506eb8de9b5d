"""Deliberate faults in how devices are handed over and taken back. Each must be found, too."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events.hostdev_events import HostDeclaredDead
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import BINDER
from leasehold.projections import binderwords, bonds, conflicts, drifting, evolve, hostdevs, vouching
from leasehold.projections.handing import Handing
from leasehold.projections.handlog import HandLog
from leasehold.projections.handnotes import Note, TakeBack
from leasehold.projections.handover import Back, Busy, NotBack
from leasehold.projections.handtelling import Telling
from leasehold.projections.rows import DeviceState, SourceState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


# --- the core -------------------------------------------------------------------------------------------------------


def freed_without_the_binder() -> AbstractContextManager[Any]:
    """On a managed host, too, a device is free when nobody is seen using it."""
    original = State.evidence_of_free

    def evidence_of_free(self: State, row: DeviceState) -> str:
        is_used = row.description.in_use_by or self.attached_to(row)
        return original(self, row) or ("" if is_used or self.hosts[row.host].stale else "nobody is seen")

    return patch.object(State, "evidence_of_free", evidence_of_free)


def told_of_the_dead() -> AbstractContextManager[Any]:
    """What is told of a lease that has ended is taken as of one that lives."""
    return patch.object(binderwords.BinderWords, "_lives", lambda self, lease: lease in self._state.leases)


def quarantine_ignored() -> AbstractContextManager[Any]:
    """What a host could not bring into order is granted."""
    original = conflicts.blockers

    def blockers(*words: Any, **how: Any) -> Iterator[Any]:
        return (each for each in original(*words, **how) if each.rule != "quarantined")

    return patch.object(conflicts, "blockers", blockers)


def dead_host_believed() -> AbstractContextManager[Any]:
    """Declaring a host dead frees what has ended on it, and leaves its agents believed as they are."""
    original = evolve._HANDLERS[HostDeclaredDead]

    def declared_dead(state: State, position: int, at_ns: int, event: HostDeclaredDead) -> None:
        before = state.hosts[event.host]
        original(state, position, at_ns, event)
        sources: dict[str, SourceState] = {agent: _replace(row, stale="") for agent, row in before.sources.items()}
        bonds.put_host(state, at_ns, event.host, _replace(before, sources=sources))

    return patch.dict(evolve._HANDLERS, {HostDeclaredDead: declared_dead})


def living_host_declared_dead() -> AbstractContextManager[Any]:
    """A host may be declared dead although it is heard."""

    def declare_dead(state: State, ref: Any, request: Any) -> Any:
        declined = original(state, ref, request)
        if getattr(declined, "refusal", None) is None or request.host not in state.hosts:
            return declined
        return HostDeclaredDead(request=ref, host=request.host, reason=request.reason)

    original = hostdevs.declare_dead
    return patch.object(hostdevs, "declare_dead", declare_dead)


def back_before_it_was_looked_at() -> AbstractContextManager[Any]:
    """A dead host is believed again as soon as its watcher has reported."""

    def has_reported(self: Any) -> bool:
        return any(source.complete for agent, source in self.sources.items() if agent != BINDER)

    @contextmanager
    def both() -> Iterator[None]:
        with (
            patch("leasehold.projections.rows.HostState.has_reported", property(has_reported)),
            patch("leasehold.projections.rows.HostState.stale", property(_stale_but_for_the_binder)),
        ):
            yield

    return both()


def _stale_but_for_the_binder(self: Any) -> str:
    painting = {agent: source for agent, source in self.sources.items() if agent not in (BINDER, "creator")}
    doubts = [source.doubt for source in painting.values() if source.doubt]
    return self.dead or "; ".join(doubts) or ("" if "watcher" in painting else "nobody has reported")


def leased_device_bound_by_order() -> AbstractContextManager[Any]:
    """It does not matter to an order whether somebody has leased the device."""
    return patch("leasehold.projections.operating._device_refuses", lambda *_words: None)


def drift_stays() -> AbstractContextManager[Any]:
    """That the witnesses agree again is not told."""
    original = drifting.told

    def told(*words: Any, **how: Any) -> list[Any]:
        return [event for event in original(*words, **how) if type(event).__name__ != "DriftResolved"]

    return patch.object(drifting, "told", told)


# --- the binder -----------------------------------------------------------------------------------------------------


def notes_lost() -> AbstractContextManager[Any]:
    """What was begun is not known to the run behind one that was killed."""
    original = Handing.__init__

    def init(self: Handing, host: Any, notes: Iterable[Note] = (), **how: Any) -> None:
        original(self, host, [Note(key=note.key, floor=note.floor) for note in notes], **how)

    return patch.object(Handing, "__init__", init)


def done_before_it_was_noted() -> AbstractContextManager[Any]:
    """What a device was before is noted behind what is done to it."""
    noted, done = Handing.noted, Handing.done

    def late(self: Handing, befores: Any) -> None:
        self.__dict__.setdefault("_late", []).append(befores)

    def then(self: Handing, *words: Any) -> None:
        for befores in self.__dict__.pop("_late", []):
            noted(self, befores)
        done(self, *words)

    return patch.multiple(Handing, noted=late, done=then)


def taken_from_under_a_domain() -> AbstractContextManager[Any]:
    """Behind its lease's end a device is taken back, whoever still has it."""
    return _jobs_as(lambda _self, job: _replace(job, forced=True) if isinstance(job, TakeBack) else job)


def reset_hits_neighbours() -> AbstractContextManager[Any]:
    """A reset may hit whatever the binder has in its hands."""

    def change(self: Handing, job: Any) -> Any:
        ours = tuple(note.key for note in self.notes if note.step)
        return _replace(job, ours=ours) if isinstance(job, TakeBack) else job

    return _jobs_as(change)


def _jobs_as(change: Callable[[Handing, Any], Any]) -> AbstractContextManager[Any]:
    original = Handing.jobs
    return patch.object(Handing, "jobs", lambda self, now_ms: [change(self, job) for job in original(self, now_ms)])


def busy_taken_for_back() -> AbstractContextManager[Any]:
    """That somebody still has a device is taken for its being back."""
    return _taken_for_back(Busy)


def failure_taken_for_back() -> AbstractContextManager[Any]:
    """That a device cannot be brought back is taken for its being back."""
    return _taken_for_back(NotBack)


def _taken_for_back(kind: type[Any]) -> AbstractContextManager[Any]:
    original = Handing._taken_back

    def taken_back(self: Handing, job: TakeBack, outcome: Any, now_ms: int) -> None:
        original(self, job, Back() if isinstance(outcome, kind) else outcome, now_ms)

    return patch.object(Handing, "_taken_back", taken_back)


def prepared_over_what_is_left() -> AbstractContextManager[Any]:
    """A device is prepared although something of another lease is left of it."""
    return patch.object(Handing, "wants_back", lambda _self, _key: False)


def told_once() -> AbstractContextManager[Any]:
    """What was told once is not told again, be it lost or not."""
    return patch.object(Telling, "again", lambda _self: None)


def ends_not_heard() -> AbstractContextManager[Any]:
    """A binder does not hear that leases end, and asks only when it begins."""

    def synced(self: Handing, *words: Any, **how: Any) -> bool:
        if self.__dict__.setdefault("_asked", []):
            self.contact(how["now_ms"])
            return True
        self.__dict__["_asked"].append(True)
        return original(self, *words, **how)

    original = Handing.synced

    @contextmanager
    def both() -> Iterator[None]:
        with patch.object(Handing, "synced", synced), patch.object(HandLog, "_end", lambda *_words, **_how: None):
            yield

    return both()


def vouches_in_the_dark() -> AbstractContextManager[Any]:
    """A binder that has not heard the log for long lets in whom it knows."""
    return patch.object(Handing, "is_cut_off", lambda _self, _now_ms: False)


def any_domain_may_have_it() -> AbstractContextManager[Any]:
    """A hook lets a domain have a device that is leased, for whomever."""
    original = vouching._blocker

    def blocker(hold: Any, key: DeviceKey, uuid: str, name: str) -> Any:
        return original(hold, key, hold.domain or hold.holder if hold is not None else uuid, name)

    return patch.object(vouching, "_blocker", blocker)


MUTATIONS: Final[tuple[Callable[[], AbstractContextManager[Any]], ...]] = (
    freed_without_the_binder,
    told_of_the_dead,
    quarantine_ignored,
    dead_host_believed,
    living_host_declared_dead,
    back_before_it_was_looked_at,
    leased_device_bound_by_order,
    drift_stays,
    notes_lost,
    done_before_it_was_noted,
    taken_from_under_a_domain,
    busy_taken_for_back,
    failure_taken_for_back,
    prepared_over_what_is_left,
    told_once,
    ends_not_heard,
    vouches_in_the_dark,
    any_domain_may_have_it,
    reset_hits_neighbours,
)
