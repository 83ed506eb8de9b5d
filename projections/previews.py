"""What a request would break, if it were decided now: which living leases end by it, or are given notice.

The state is moved over what would follow, and back: so a preview is as exact as the decision itself.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from leasehold.events.event_types import Event, LeaseExpired, LeaseOutlived, LeaseReleased
from leasehold.events.hostdev_events import LeaseRevoked, PrepareFailed
from leasehold.events.identities import DeviceId, device_id
from leasehold.events.position import lease_id_text
from leasehold.events.schedule_events import Tainted
from leasehold.events.schedule_views import Broken
from leasehold.projections import evictions
from leasehold.projections.evolve import evolve
from leasehold.projections.rows import LeaseState
from leasehold.projections.state import State

_ENDS: Final = (LeaseReleased, LeaseExpired, LeaseOutlived, LeaseRevoked, PrepareFailed)


def moved_over(state: State, position: int, now_ns: int, events: Iterable[Event]) -> list[Broken]:
    """Move `state` over what one request leads to, the first event at `position`, and name the living leases that end
    by it, or are given notice of their end; exactly these, each once.

    The journal must be open: the caller rolls back.
    """
    assert state.journal.is_open
    broken: dict[int, Broken] = {}
    for event in events:
        if isinstance(event, _ENDS):
            row = state.leases[event.lease]
            if not row.ended:
                broken[event.lease] = _broken(event.lease, row, row.devices, now_ns)
        evolve(state, position, now_ns, event)
        if isinstance(event, Tainted):
            broken.update((each, told) for each, told in _given_notice(state, position, event))
        position += 1
    return list(broken.values())


def _given_notice(state: State, position: int, event: Tainted) -> Iterator[tuple[int, Broken]]:
    """Whose leases the taint at `position`, and none before it, ends."""
    if event.key:
        leases: Iterable[int] = evictions.on_device(state, device_id(event.host, event.key))
    else:
        leases = evictions.on_host(state, event.host)
    for lease in leases:
        row = state.leases[lease]
        mark = evictions.first_mark(state, row)
        if mark is not None and mark.position == position:
            marks = ((device, evictions.evicting(state, device, row)) for device in row.devices)
            devices = tuple(device for device, some in marks if mark in some)
            yield lease, _broken(lease, row, devices, event.taint.evicts_at_ns)


def _broken(lease: int, row: LeaseState, devices: tuple[DeviceId, ...], ends_at_ns: int) -> Broken:
    return Broken(
        lease=lease_id_text(lease),
        holder=row.holder,
        principal=row.principal,
        devices=devices,
        domain=row.bond.uuid if row.bond is not None else "",
        ends_at_ns=ends_at_ns,
    )
