"""Deciding on what agents report: which words count, and what they mean for what is known already."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events import devices, event_types, inputs, limits
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import Event
from leasehold.events.identities import device_id
from leasehold.events.inputs import HostHeard, Observed
from leasehold.projections import binderwords, domainwords, ordering, sharing
from leasehold.projections.rows import HostState, SourceState
from leasehold.projections.state import State

Decision = list[Event] | None
_TOLD_BEFORE: Final[tuple[str, ...]] = ("driver", "capability.link_state")
"""Fields of which a change says what was before: people ask for that."""
_TOLD_CHARS_MAX: Final = 64


def observed(state: State, given: Observed, now_ns: int) -> Decision:
    """Take a message of a source: nothing for old runs and old counters, a request to report again after a gap."""
    host = state.hosts.get(given.host)
    source = host.sources.get(given.agent) if host else None
    if isinstance(given.observations[0], inputs.SourceStarts):
        return _source_starts(state, given, given.observations[0], host, source)
    if source is None or given.run != source.run or given.counter <= source.counter:
        return None
    if given.counter > source.counter + 1:
        reason = f"messages {source.counter + 1} to {given.counter - 1} of it are missing"
        return [event_types.ReportRequested(given.host, given.agent, given.run, given.counter, reason)]
    accepted = event_types.ObservationsAccepted(given.host, given.agent, given.run, given.counter)
    events: list[Event] = [accepted]
    # Words are absolute and all of one message meet the same state: of several about one device the last counts.
    last_words = {_key_of(observation) or place: observation for place, observation in enumerate(given.observations)}
    domains = domainwords.DomainWords(state, given.host, given.agent)
    bindings = binderwords.BinderWords(state, given.host, given.agent, now_ns)
    room = limits.DEVICES_PER_HOST_MAX - state.hosts[given.host].device_count
    for observation in last_words.values():
        if isinstance(observation, inputs.WORDS_OF_DOMAINS):
            event = domains.take(observation)
        elif isinstance(observation, inputs.WORDS_OF_BINDERS):
            event = bindings.take(observation)
        else:
            handler: Callable[[State, Observed, Any], Event | None] = _HANDLERS[type(observation)]
            event = handler(state, given, observation)
        if isinstance(event, event_types.DeviceAppeared):
            room -= 1
            if room < 0:
                continue
        if event is not None:
            events.append(event)
    found = sharing.arisen(state, given.host, events)
    if found is not None and len(events) < limits.EVENTS_PER_RECORD_MAX:
        events.append(found)
    return events


def _key_of(observation: inputs.Observation) -> str:
    """What it is about; empty for a word about domains, or of a binder, each of which counts."""
    if isinstance(observation, inputs.WORDS_OF_DOMAINS + inputs.WORDS_OF_BINDERS):
        return ""
    if isinstance(observation, inputs.SourceBlind | inputs.SourceSees):
        return "sight"
    if isinstance(observation, inputs.DeviceSeen):
        return observation.device.key
    if isinstance(observation, inputs.OrderDone | inputs.OrderNotDone):
        return f"order {observation.order}"
    if isinstance(observation, inputs.DeviceFlaps):
        # It does not take the place of what is said of the device itself.
        return f"flaps {observation.key}"
    return observation.key if isinstance(observation, inputs.DeviceGone) else type(observation).__name__


def _source_starts(
    state: State, given: Observed, starts: inputs.SourceStarts, host: HostState | None, source: SourceState | None
) -> Decision:
    if source is not None and given.run <= source.run:
        return None
    is_new_agent = host is not None and source is None
    if (host is None and len(state.hosts) >= limits.HOSTS_MAX) or (
        is_new_agent and host is not None and len(host.sources) >= limits.AGENTS_PER_HOST_MAX
    ):
        return None
    mode = "managed" if starts.manages or (host is not None and host.mode == "managed") else "watched"
    events: list[Event] = []
    if host is None or host.mode != mode:
        events.append(event_types.HostRegistered(given.host, mode))
    events.append(event_types.SourceStarted(given.host, given.agent, given.run))
    return events


def _device_seen(state: State, given: Observed, seen: inputs.DeviceSeen) -> Event | None:
    after = seen.device
    row = state.devices.get(device_id(given.host, after.key))
    if row is None:
        return event_types.DeviceAppeared(given.host, after, seen.how)
    if not devices.same_thing(row.description, row.serial, after):
        return event_types.DeviceReplaced(given.host, after, seen.how)
    if row.missing:
        return event_types.DeviceReappeared(given.host, after, seen.how)
    changed = devices.changed_fields(row.description, after)
    if not changed:
        return None
    # What agents told before they said how they came to know it is written as it was then.
    was = {name: _text_of(row.description, name) for name in _TOLD_BEFORE if name in changed} if seen.how else {}
    return event_types.DeviceChanged(given.host, after, changed, seen.how, was)


def _text_of(description: DeviceDescription, field: str) -> str:
    return str(devices.field_of(description, field))[:_TOLD_CHARS_MAX]


def _device_gone(state: State, given: Observed, gone: inputs.DeviceGone) -> Event | None:
    row = state.devices.get(device_id(given.host, gone.key))
    if row is None or row.missing:
        return None
    return event_types.DeviceMissing(given.host, gone.key, gone.how)


def _device_flaps(state: State, given: Observed, flaps: inputs.DeviceFlaps) -> Event | None:
    if device_id(given.host, flaps.key) not in state.devices:
        return None
    return event_types.DeviceFlapped(given.host, flaps.key, flaps.how)


def _missed_events(_state: State, given: Observed, missed: inputs.MissedEvents) -> Event | None:
    return event_types.EventsMissed(given.host, given.agent, missed.times)


def _source_blind(state: State, given: Observed, said: inputs.SourceBlind) -> Event | None:
    if state.hosts[given.host].sources[given.agent].blind:
        return None
    return event_types.SourceWentBlind(given.host, given.agent, said.reason)


def _source_sees(state: State, given: Observed, _said: inputs.SourceSees) -> Event | None:
    if not state.hosts[given.host].sources[given.agent].blind:
        return None
    return event_types.SourceSeesAgain(given.host, given.agent)


def _picture_complete(state: State, given: Observed, complete: inputs.PictureComplete) -> Event | None:
    if complete.since <= state.hosts[given.host].sources[given.agent].gap:
        return None
    return event_types.PictureCompleted(given.host, given.agent)


def _source_stops(_state: State, given: Observed, _stops: inputs.SourceStops) -> Event | None:
    return event_types.SourceStopped(given.host, given.agent, given.run)


def host_heard(state: State, given: HostHeard, _now_ns: int) -> Decision:
    """Take note that an agent is silent, or heard again."""
    host = state.hosts.get(given.host)
    source = host.sources.get(given.agent) if host else None
    if source is None or source.run != given.run or not source.complete:
        return None
    if given.alive and source.stale:
        return [event_types.HostCameBack(given.host, given.agent)]
    if not given.alive and not source.stale:
        reason = f"it has not been heard for {limits.HOST_SILENT_MS // 1000} s"
        return [event_types.HostWentStale(given.host, given.agent, reason)]
    return None


_HANDLERS: Final[dict[type[Any], Callable[[State, Observed, Any], Event | None]]] = {
    inputs.DeviceSeen: _device_seen,
    inputs.DeviceGone: _device_gone,
    inputs.DeviceFlaps: _device_flaps,
    inputs.MissedEvents: _missed_events,
    inputs.OrderDone: ordering.done,
    inputs.OrderNotDone: ordering.not_done,
    inputs.SourceBlind: _source_blind,
    inputs.SourceSees: _source_sees,
    inputs.PictureComplete: _picture_complete,
    inputs.SourceStops: _source_stops,
    inputs.StillHere: lambda _state, _given, _observation: None,
    inputs.SourceStarts: lambda _state, _given, _observation: None,
}
