"""Folding: `evolve(state, position, decided_at_ns, event)` moves the state over one event, and never decides anything.

`fold_record` does it for a whole record after checking that it belongs where it stands.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import codec, event_types, hostdev_events, inputs, limits
from leasehold.events.devices import Sighting
from leasehold.events.errors import CorruptLedgerError
from leasehold.events.event_types import Event
from leasehold.events.identities import HostName, device_id
from leasehold.events.position import index_of, position_of, position_of_token, sequence_of, token_of
from leasehold.events.record import Record, chain_hash, event_count
from leasehold.projections import (
    bindings,
    bonds,
    classes,
    domains,
    drifting,
    failing,
    keeping,
    leasing,
    marking,
    orders,
    queueing,
    remembering,
    stirring,
)
from leasehold.projections.rows import DeviceState, Head, HostState, SourceState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace

Then = Callable[[State, int, Event], None]
"""Told of an event at a position that the state has just been moved over."""


def fold(state: State, sequence: int, body: bytes, then: Then | None = None) -> Record:
    """Check and fold the record `body` that stands at `sequence`; `then` is called behind each of its events.

    Raises:
        CorruptLedgerError: it is not the next record of this ledger; the text names it.
    """
    record = codec.decode_record(body, sequence)
    check_belongs(state, sequence, record)
    fold_record(state, sequence, record, chain_hash(body), then)
    return record


def check_belongs(state: State, sequence: int, record: Record) -> None:
    """Whether `record` is the one that follows at `sequence`.

    Raises:
        CorruptLedgerError: with what does not fit.
    """
    check_follows(state.head, sequence, record)


def check_follows(head: Head, sequence: int, record: Record) -> None:
    """As `check_belongs`, for who keeps nothing but the head."""
    if sequence != head.sequence + 1:
        raise CorruptLedgerError(f"expected record {head.sequence + 1} here", sequence=sequence)
    if record.prev != head.chain:
        raise CorruptLedgerError(
            f"it follows a record with hash {record.prev[:12]}…, but the one before has {head.chain[:12]}…",
            sequence=sequence,
        )
    if sequence > 1 and (record.ledger_id != head.ledger_id or not _is_of_era(record, head.era)):
        raise CorruptLedgerError(
            f"of ledger {record.ledger_id}, era {record.era}; not {head.ledger_id}, era {head.era}", sequence=sequence
        )
    if record.decided_at_ns < head.decided_at_ns or record.observed_through < head.observed_through:
        raise CorruptLedgerError("its time or its place in OBSERVED goes back", sequence=sequence)
    if not 1 <= event_count(record) <= limits.EVENTS_PER_RECORD_MAX:
        raise CorruptLedgerError(f"holds {event_count(record)} events", sequence=sequence)


def _is_of_era(record: Record, era: int) -> bool:
    """Whether the record's era can stand behind `era`: nothing but a restore raises it, and only in the first place."""
    restores = bool(record.steps) and isinstance(record.steps[0].input, inputs.LedgerRestores)
    return record.era > era if restores else record.era == era


def fold_record(state: State, sequence: int, record: Record, chain: str, then: Then | None = None) -> None:
    """Fold a record that belongs where it stands.

    Raises:
        CorruptLedgerError: one of its events cannot follow on this state, which is then of no use any more.
    """
    position: int = position_of(sequence, 0)
    for step in record.steps:
        position = evolve_recorded(state, position, record.decided_at_ns, step.events, then)
    seal(state, sequence, record, chain)


def evolve_recorded(
    state: State, position: int, decided_at_ns: int, events: tuple[Event, ...], then: Then | None = None
) -> int:
    """`evolve` over events that were read from a log, where anything may stand; the position behind them.

    Raises:
        CorruptLedgerError: an event cannot follow on this state; the state is then of no use any more.
    """
    state.at_ns = decided_at_ns
    for event in events:
        try:
            _HANDLERS[type(event)](state, position, decided_at_ns, event)
            if state.news:
                stirring.take_news(state, position)
        except (KeyError, AssertionError) as error:
            said = f"its event {index_of(position)} ({event.__struct_config__.tag}) cannot follow here: {error!r}"
            raise CorruptLedgerError(said, sequence=sequence_of(position)) from error
        if then is not None:
            then(state, position, event)
        position += 1
    return position


def seal(state: State, sequence: int, record: Record, chain: str) -> None:
    """Set the head to a record whose events have been folded.

    Raises:
        CorruptLedgerError: the record's era is not the one that its events have led to.
    """
    if state.head.era != record.era:
        raise CorruptLedgerError(
            f"it is of era {record.era}, but its events lead to {state.head.era}", sequence=sequence
        )
    head = state.head
    state.set_head(
        _replace(
            head,
            ledger_id=record.ledger_id,
            sequence=sequence,
            chain=chain,
            decided_at_ns=record.decided_at_ns,
            observed_through=record.observed_through,
            unlooked_since_ns=(head.unlooked_since_ns or record.decided_at_ns) if state.indexes.stirs else 0,
        )
    )


def evolve(state: State, position: int, decided_at_ns: int, event: Event) -> None:
    """Move `state` over the event at `position`, decided at `decided_at_ns`."""
    state.at_ns = decided_at_ns
    _HANDLERS[type(event)](state, position, decided_at_ns, event)
    if state.news:
        stirring.take_news(state, position)


def _ledger_started(state: State, _position: int, _at_ns: int, event: event_types.LedgerStarted) -> None:
    state.set_head(_replace(state.head, ledger_id=event.ledger_id, cluster=event.cluster, era=event.era))


def _ledger_restored(state: State, _position: int, at_ns: int, event: event_types.LedgerRestored) -> None:
    """Everybody keeps what he has, under a new token; no host is believed before it has reported again."""
    era = event.era
    assert state.head.era < era <= limits.ERA_MAX, f"era {era} after {state.head.era}"
    _decides(state, event)
    state.set_head(_replace(state.head, era=era))
    for lease, row in list(state.leases.items()):
        state.put_lease(lease, _replace(row, token=token_of(era, position_of_token(row.token))))
    for device, device_row in list(state.devices.items()):
        floor = token_of(era, position_of_token(device_row.floor))
        state.put_device(device, _replace(device_row, floor=floor))
    for host, host_row in list(state.hosts.items()):
        sources = {agent: _as_restored(source) for agent, source in host_row.sources.items()}
        bonds.put_host(state, at_ns, host, _replace(host_row, sources=sources))


def _as_restored(source: SourceState) -> SourceState:
    # What it said in the lost records is told anew, in one report or in several: none that began before counts.
    return _replace(source, gap=source.counter, complete=False, wants_report=True, stale="the ledger was restored")


def _grace_started(state: State, _position: int, _at_ns: int, event: event_types.GraceStarted) -> None:
    _decides(state, event)


def _decides(state: State, event: event_types.GraceStarted | event_types.LedgerRestored) -> None:
    """Somebody decides from here on, who has left nothing undone yet."""
    until_ns = event.until_ns
    state.set_head(_replace(state.head, decider=event.writer, grace_until_ns=until_ns, unlooked_since_ns=0))


# --- hosts and sources --------------------------------------------------------------------------------------------


def _host_registered(state: State, position: int, at_ns: int, event: event_types.HostRegistered) -> None:
    before = state.hosts.get(event.host)
    managed_since = drifting.began_to_manage(before, event.mode, position)
    after = _replace(before or HostState(mode=event.mode), mode=event.mode, managed_since=managed_since)
    bonds.put_host(state, at_ns, event.host, after)


def _put_source(state: State, at_ns: int, host: HostName, agent: str, **changes: Any) -> None:
    row = state.hosts[host]
    source = _replace(row.sources[agent], **changes)
    bonds.put_host(state, at_ns, host, _replace(row, sources={**row.sources, agent: source}))


def _host_went_stale(state: State, _position: int, at_ns: int, event: event_types.HostWentStale) -> None:
    _put_source(state, at_ns, event.host, event.agent, stale=event.reason)


def _host_came_back(state: State, _position: int, at_ns: int, event: event_types.HostCameBack) -> None:
    _put_source(state, at_ns, event.host, event.agent, stale="")


def _source_started(state: State, _position: int, at_ns: int, event: event_types.SourceStarted) -> None:
    row = state.hosts[event.host]
    source = SourceState(run=event.run, stale="it has just started")
    bonds.put_host(state, at_ns, event.host, _replace(row, sources={**row.sources, event.agent: source}))


def _source_stopped(state: State, _position: int, at_ns: int, event: event_types.SourceStopped) -> None:
    _put_source(state, at_ns, event.host, event.agent, complete=False, stale="it was stopped")


def _observations_accepted(
    state: State, _position: int, at_ns: int, event: event_types.ObservationsAccepted
) -> None:
    _put_source(state, at_ns, event.host, event.agent, counter=event.counter)


def _report_requested(state: State, _position: int, at_ns: int, event: event_types.ReportRequested) -> None:
    _put_source(
        state,
        at_ns,
        event.host,
        event.agent,
        counter=event.counter,
        gap=event.counter,
        complete=False,
        wants_report=True,
        stale=event.reason,
    )


def _picture_completed(state: State, _position: int, at_ns: int, event: event_types.PictureCompleted) -> None:
    _put_source(state, at_ns, event.host, event.agent, complete=True, wants_report=False, stale="")
    row = state.hosts[event.host]
    if row.dead and row.has_reported:
        bonds.put_host(state, at_ns, event.host, _replace(row, dead=""))


def _source_went_blind(state: State, _position: int, at_ns: int, event: event_types.SourceWentBlind) -> None:
    _put_source(state, at_ns, event.host, event.agent, blind=event.reason)


def _source_sees_again(state: State, _position: int, at_ns: int, event: event_types.SourceSeesAgain) -> None:
    _put_source(state, at_ns, event.host, event.agent, blind="")


# --- devices ------------------------------------------------------------------------------------------------------


def _device_appeared(state: State, position: int, at_ns: int, event: event_types.DeviceAppeared) -> None:
    host = state.hosts[event.host]
    state.hosts.put(event.host, _replace(host, device_count=host.device_count + 1))
    row = DeviceState(
        host=event.host,
        description=event.device,
        serial=event.device.serial,
        flaps=_flaps(event.how),
        # What was leased here in records that a restore has lost is shut out, too.
        floor=token_of(state.head.era, 0),
        since_position=position,
        since_ns=at_ns,
        described_position=position,
    )
    state.put_device(device_id(event.host, event.device.key), row)


def _device_changed(
    state: State,
    position: int,
    _at_ns: int,
    event: event_types.DeviceChanged | event_types.DeviceReappeared,
) -> None:
    device = device_id(event.host, event.device.key)
    row = state.devices[device]
    serial = event.device.serial or row.serial
    flaps = row.flaps + _flaps(event.how)
    after = _replace(
        row, description=event.device, serial=serial, missing=False, flaps=flaps, described_position=position
    )
    state.put_device(device, after)


def _device_replaced(state: State, position: int, at_ns: int, event: event_types.DeviceReplaced) -> None:
    device = device_id(event.host, event.device.key)
    row = state.devices[device]
    # The token was for the thing that is gone: it must not act on the new one.
    floor = token_of(state.head.era, position) if row.lease else row.floor
    after = _replace(
        row,
        description=event.device,
        serial=event.device.serial,
        missing=False,
        displaced=row.displaced or bool(row.lease),
        floor=floor,
        flaps=_flaps(event.how),
        described_position=position,
    )
    state.put_device(device, failing.lost(state, row, after, position, at_ns))


def _device_missing(state: State, position: int, at_ns: int, event: event_types.DeviceMissing) -> None:
    device = device_id(event.host, event.key)
    row = state.devices[device]
    flaps = row.flaps + _flaps(event.how)
    after = _replace(row, missing=True, flaps=flaps, described_position=position)
    state.put_device(device, failing.lost(state, row, after, position, at_ns))


def _device_flapped(state: State, _position: int, _at_ns: int, event: event_types.DeviceFlapped) -> None:
    device = device_id(event.host, event.key)
    row = state.devices[device]
    state.put_device(device, _replace(row, flaps=row.flaps + event.how.flaps))


def _flaps(how: Sighting | None) -> int:
    return how.flaps if how is not None else 0


def _only_told(
    _state: State, _position: int, _at_ns: int, _event: event_types.SharingFound | event_types.EventsMissed
) -> None:
    """It says nothing that the rows do not say already, or that anything depends on."""


_HANDLERS: Final[dict[type[Any], Callable[[State, int, int, Any], None]]] = {
    event_types.LedgerStarted: _ledger_started,
    event_types.LedgerRestored: _ledger_restored,
    event_types.GraceStarted: _grace_started,
    event_types.HostRegistered: _host_registered,
    event_types.HostWentStale: _host_went_stale,
    event_types.HostCameBack: _host_came_back,
    event_types.SourceStarted: _source_started,
    event_types.SourceStopped: _source_stopped,
    event_types.ObservationsAccepted: _observations_accepted,
    event_types.ReportRequested: _report_requested,
    event_types.PictureCompleted: _picture_completed,
    event_types.DeviceAppeared: _device_appeared,
    event_types.DeviceChanged: _device_changed,
    event_types.DeviceReplaced: _device_replaced,
    event_types.DeviceMissing: _device_missing,
    event_types.DeviceReappeared: _device_changed,
    event_types.DeviceFlapped: _device_flapped,
    event_types.EventsMissed: _only_told,
    event_types.SourceWentBlind: _source_went_blind,
    event_types.SourceSeesAgain: _source_sees_again,
    event_types.AgentRetired: domains.agent_retired,
    event_types.DomainAppeared: domains.appeared,
    event_types.DomainChanged: domains.changed,
    event_types.DomainStarted: domains.started,
    event_types.DomainVanished: domains.vanished,
    event_types.AttachmentSeen: domains.attachment_seen,
    event_types.AttachmentGone: domains.attachment_gone,
    event_types.SharingFound: _only_told,
    event_types.LeaseGranted: leasing.granted,
    event_types.LeaseRenewed: leasing.renewed,
    event_types.LeaseReleased: leasing.released,
    event_types.LeaseExpired: leasing.expired,
    event_types.LeaseOutlived: leasing.outlived,
    event_types.DeviceFreed: leasing.freed,
    event_types.RequestRefused: remembering.refused,
    event_types.RefusalsRepeated: remembering.repeated,
    event_types.HostOrdered: orders.ordered,
    event_types.OrderCarriedOut: orders.carried_out,
    event_types.OrderFailed: orders.failed,
    hostdev_events.DevicePrepared: bindings.prepared,
    hostdev_events.PrepareFailed: leasing.failed,
    hostdev_events.DeviceGivenBack: bindings.given_back,
    hostdev_events.DeviceQuarantined: bindings.quarantined,
    hostdev_events.LeaseRevoked: leasing.revoked,
    hostdev_events.HostDeclaredDead: bindings.declared_dead,
    hostdev_events.DriftDetected: bindings.drift_detected,
    hostdev_events.DriftResolved: bindings.drift_resolved,
    **queueing.HANDLERS,
    **keeping.HANDLERS,
    **classes.HANDLERS,
    **marking.HANDLERS,
}
