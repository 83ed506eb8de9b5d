"""Deliberate faults in what is believed of domains, and in what follows from it. Each must be found, too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from leasehold.events import event_types
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DomainKey, domain_id, uuid_of
from leasehold.events.inputs import POLLER
from leasehold.events.refusals import RefusalCode
from leasehold.projections import bonds, conflicts, decide, evolve, indexes, polling, state
from leasehold.projections.domainwords import DomainWords
from leasehold.projections.polling import Look, Polling
from leasehold.projections.rows import DeviceState, HostState, LeaseState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace


# --- devices --------------------------------------------------------------------------------------------------------


def foreign_device_granted() -> AbstractContextManager[Any]:
    """It does not matter to a lease which domain has a device."""
    return patch.object(conflicts, "named", lambda _state, _domains: [])


def foreign_relative_ignored() -> AbstractContextManager[Any]:
    """It does not matter to a lease which domain has what cannot be owned apart from a device."""
    return patch.object(conflicts, "users_seen", lambda _state, row: row.description.in_use_by)


def freed_from_under_a_domain() -> AbstractContextManager[Any]:
    """No user on the host is taken for evidence, whatever domain has the device."""
    original = State.evidence_of_free

    def evidence_of_free(self: State, row: DeviceState) -> str:
        with patch.object(State, "attached_to", lambda _self, _row: []):
            return original(self, row)

    return patch.object(State, "evidence_of_free", evidence_of_free)


def only_keys_understood() -> AbstractContextManager[Any]:
    """A hypervisor's name of a device counts only where it is the device's key."""
    original = indexes.words_of

    def keys_of(description: DeviceDescription) -> tuple[str, ...]:
        return tuple(word for word in original(description) if word == description.key)

    return patch.object(state, "words_of", keys_of)


def claimed_is_taken_for_free() -> AbstractContextManager[Any]:
    """That a domain has a device is taken down as a mere claim."""
    original = DomainWords._used

    def used(self: DomainWords, word: Any) -> Any:
        return original(self, _replace(word, use="configured"))

    return patch.object(DomainWords, "_used", used)


def blind_source_believed() -> AbstractContextManager[Any]:
    """A poller that is heard is believed, although it sees nothing."""

    def stale(self: HostState) -> str:
        seeing = {agent: _replace(source, blind="") for agent, source in self.sources.items()}
        return str(original(_replace(self, sources=seeing)))

    original = HostState.stale.fget  # type: ignore[attr-defined]
    return patch.object(HostState, "stale", property(stale))


# --- what is told of domains ----------------------------------------------------------------------------------------


def reboot_is_a_change() -> AbstractContextManager[Any]:
    """Another incarnation is told as a change of the one before."""
    original = DomainWords._seen

    def seen(self: DomainWords, after: Any) -> Any:
        event = original(self, after)
        if isinstance(event, event_types.DomainStarted):
            return event_types.DomainChanged(event.host, event.domain, event.changed)
        return event

    return patch.object(DomainWords, "_seen", seen)


@contextmanager
def domain_goes_with_its_uses() -> Iterator[None]:
    """A domain may vanish while it is known to use something."""

    def gone(self: DomainWords, key: DomainKey) -> Any:
        known = self._domain(key)
        if known is None or known.description is None:
            return None
        before, known.description, known.uses = known.description, None, set()
        return event_types.DomainVanished(self._host, key, before.name, before.domid)

    def vanished(on: State, _position: int, at_ns: int, event: event_types.DomainVanished) -> None:
        on.drop_domain(domain_id(event.host, event.key))
        bonds.look_at_domain(on, uuid_of(event.key), at_ns)

    # Uses that end are not told before.
    with (
        patch.object(DomainWords, "_unused", lambda _self, _word: None),
        patch.object(DomainWords, "_gone", gone),
        patch.dict(evolve._HANDLERS, {event_types.DomainVanished: vanished}),
    ):
        yield


def heard_agent_retired() -> AbstractContextManager[Any]:
    """An agent may be retired although it is heard."""

    def not_retired(on: State, request: Any) -> Any:
        refusal = original(on, request)
        return None if refusal is not None and refusal.code == RefusalCode.AGENT_ALIVE else refusal

    original = decide._not_retired
    return patch.object(decide, "_not_retired", not_retired)


def retired_words_stay() -> AbstractContextManager[Any]:
    """The domains that a retired agent told of stay."""
    return patch.object(State, "drop_domain", _unless_retiring(State.drop_domain))


def _unless_retiring(original: Callable[..., None]) -> Callable[..., None]:
    def drop_domain(self: State, domain: Any) -> None:
        row = self.domains[domain]
        if row.agent in self.hosts[row.host].sources:
            original(self, domain)

    return drop_domain


# --- leases for domains ---------------------------------------------------------------------------------------------


def never_seen_is_gone() -> AbstractContextManager[Any]:
    """A domain that does not exist yet is taken for one that has gone."""
    look = bonds.look

    def look_at(on: State, lease: int, at_ns: int) -> None:
        row = on.leases[lease]
        if row.is_bound and not row.domain_seen:
            on.put_lease(lease, _replace(row, domain_seen=True))
        look(on, lease, at_ns)

    return patch.object(bonds, "look", look_at)


def missed_on_a_stale_host() -> AbstractContextManager[Any]:
    """Domains are taken for gone while nobody can tell."""
    return patch.object(HostState, "shows_domains", property(lambda self: POLLER in self.sources))


def missed_where_nobody_looks() -> AbstractContextManager[Any]:
    """Domains are taken for gone where no poller tells of any."""
    return patch.object(HostState, "shows_domains", property(lambda self: not self.stale))


def time_goes_on_in_the_dark() -> AbstractContextManager[Any]:
    """Behind a time in which nobody could tell, a domain has been gone since before it."""
    look, since = bonds.look, dict[tuple[int, int], int]()

    def look_at(on: State, lease: int, at_ns: int) -> None:
        look(on, lease, at_ns)
        row = on.leases[lease]
        if not row.is_bound or bonds.is_there(on, row):
            since.pop((id(on), lease), None)
        elif row.gone_since_ns:
            first_ns = since.setdefault((id(on), lease), row.gone_since_ns)
            if first_ns < row.gone_since_ns:
                on.put_lease(lease, _replace(row, gone_since_ns=first_ns))

    return patch.object(bonds, "look", look_at)


def outlived_early() -> AbstractContextManager[Any]:
    """Leases end three seconds before their domain's grace time is over."""
    original = State.outlived_by
    return patch.object(
        State, "outlived_by", lambda self, now_ns, *, limit: original(self, now_ns + 3 * 10**9, limit=limit)
    )


def expired_under_a_domain() -> AbstractContextManager[Any]:
    """A lease expires although its domain is there."""

    def expiry_ns(row: LeaseState) -> int | None:
        return None if row.ended else row.expires_at_ns

    original = State.__init__

    def made(self: State) -> None:
        original(self)
        self.expiries._when = expiry_ns

    return patch.object(State, "__init__", made)


def halted_is_there() -> AbstractContextManager[Any]:
    """A domain that is known is there, although it does not run."""
    return patch.object(bonds, "has_devices", lambda _domain: True)


def kept_leases_end() -> AbstractContextManager[Any]:
    """A lease that only names a domain ends with it."""

    def granted(on: State, position: int, at_ns: int, event: event_types.LeaseGranted) -> None:
        if event.bond is not msgspec.UNSET:
            event = _replace(event, bond=_replace(event.bond, keep=False))
        original(on, position, at_ns, event)

    original = evolve._HANDLERS[event_types.LeaseGranted]
    return patch.dict(evolve._HANDLERS, {event_types.LeaseGranted: granted})


# --- what is believed -----------------------------------------------------------------------------------------------


def one_look_is_enough() -> AbstractContextManager[Any]:
    """What one look does not show has gone."""

    def is_gone(self: Polling, missing: Any, _least_ms: int = 0) -> bool:
        missing.looks, missing.since_ms = polling.LOOKS, self._now_ms - polling.HELD_MS
        return original(self, missing)

    original = Polling._is_gone
    return patch.object(Polling, "_is_gone", is_gone)


def fresh_daemon_believed() -> AbstractContextManager[Any]:
    """What a daemon that has just begun does not list has gone."""
    return patch.multiple(polling, WARY_LOOKS=0, WARY_MS=0)


def no_answer_is_an_empty_one() -> AbstractContextManager[Any]:
    """A hypervisor that does not answer has no domains."""
    return patch.object(Polling, "failed", lambda self, _reason, now_ms: self.saw(Look(domains={}), now_ms))


def held_devices_forgotten() -> AbstractContextManager[Any]:
    """What is not listed with a domain is not given to it any more, whatever is said to be held."""
    return _seen_as(lambda look: _replace(look, held=frozenset()))


def unclear_is_gone() -> AbstractContextManager[Any]:
    """A domain that vanished between the list and the detail has gone."""
    return _seen_as(lambda look: _replace(look, unclear_names=frozenset(), unclear_domids={}))


def _seen_as(change: Callable[[Look], Look]) -> AbstractContextManager[Any]:
    original = Polling.saw
    return patch.object(Polling, "saw", lambda self, look, now_ms: original(self, change(look), now_ms))


def never_blind() -> AbstractContextManager[Any]:
    """However long nothing is seen, that is not told."""
    return patch.object(Polling, "is_blind", lambda _self, _now_ms: False)


def log_not_compared() -> AbstractContextManager[Any]:
    """A poller that begins tells what it sees, and not what the log has beside that."""
    original = Polling.sync
    return patch.object(Polling, "sync", lambda self, _in_log, now_ms: original(self, {}, now_ms))


def sight_told_once() -> AbstractContextManager[Any]:
    """That something is seen again is told once, be that lost or not."""

    def sync(self: Polling, in_log: Any, now_ms: int) -> Any:
        told_blind = self._told_blind
        told = original(self, in_log, now_ms)
        if not told_blind:
            told = [each for each in told if type(each).__name__ != "SourceSees"]
        return told

    original = Polling.sync
    return patch.object(Polling, "sync", sync)


MUTATIONS: Final[tuple[Callable[[], AbstractContextManager[Any]], ...]] = (
    foreign_device_granted,
    foreign_relative_ignored,
    freed_from_under_a_domain,
    only_keys_understood,
    claimed_is_taken_for_free,
    blind_source_believed,
    reboot_is_a_change,
    domain_goes_with_its_uses,
    heard_agent_retired,
    retired_words_stay,
    never_seen_is_gone,
    missed_on_a_stale_host,
    missed_where_nobody_looks,
    time_goes_on_in_the_dark,
    outlived_early,
    expired_under_a_domain,
    halted_is_there,
    kept_leases_end,
    one_look_is_enough,
    fresh_daemon_believed,
    no_answer_is_an_empty_one,
    held_devices_forgotten,
    unclear_is_gone,
    never_blind,
    log_not_compared,
    sight_told_once,
)
