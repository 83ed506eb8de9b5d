"""The index beside the state: which positions tell of a device, a domain, a lease, a place in the queue, and others.

History is answered from it without a walk through the log. Of a domain the log tells under its id, and also under its
uuid and name, by which one that has vanished is still known; of leases that are for a domain under its uuid.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from leasehold.events import event_types, hostdev_events, schedule_events
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import Event
from leasehold.events.identities import (
    DeviceId,
    DeviceKey,
    DomainId,
    DomainKey,
    HostName,
    device_id,
    domain_id,
    uuid_of,
)
from leasehold.events.position import lease_id_text, parse_lease_id, parse_queued_id, queued_id_text
from leasehold.projections.indexes import devices_of
from leasehold.projections.state import State

IndexRow = tuple[str, str, int]
"""Of kind `device`, `domain`, `lease`, `queued`, `holder`, `host`, `class` or `principal`; its name; the position that
tells of it.
"""
_Named = list[tuple[str, str]]


def index_rows(state: State, position: int, event: Event) -> list[IndexRow]:
    """The rows for an event that `state` has just been moved over, each once."""
    named = _SUBJECTS.get(type(event), _host)(state, position, event)
    return [(kind, name, position) for kind, name in dict.fromkeys(named)]


def _host(_state: State, _position: int, event: Any) -> _Named:
    return [("host", event.host)]


def _nothing(_state: State, _position: int, _event: Any) -> _Named:
    return []


def _restored(state: State, _position: int, _event: event_types.LedgerRestored) -> _Named:
    leases = [("lease", lease_id_text(lease)) for lease in sorted(state.leases)]
    return [*(("host", host) for host in sorted(state.hosts)), *leases]


def _granted(state: State, position: int, event: event_types.LeaseGranted) -> _Named:
    waited: _Named = [("queued", queued_id_text(event.queued))] if event.queued else []
    stands_in: _Named = [("lease", lease_id_text(event.reserved_for))] if event.reserved_for else []
    named = _of_lease(state, position, event.devices)
    return [("principal", event.request.principal), *named, *waited, *stands_in]


def _renewed(
    state: State,
    _position: int,
    event: event_types.LeaseRenewed | event_types.LeaseReleased | hostdev_events.LeaseRevoked,
) -> _Named:
    devices = state.leases[event.lease].devices
    return [("principal", event.request.principal), *_of_lease(state, event.lease, devices)]


def _expired(
    state: State,
    _position: int,
    event: event_types.LeaseExpired | event_types.LeaseOutlived | hostdev_events.PrepareFailed,
) -> _Named:
    return _of_lease(state, event.lease, state.leases[event.lease].devices)


def _freed(state: State, _position: int, event: event_types.DeviceFreed) -> _Named:
    asked: _Named = [("principal", event.request.principal)] if event.request is not None else []
    return asked + _of_device(state, event.lease, event.device)


def _refused(state: State, _position: int, event: event_types.RequestRefused) -> _Named:
    named = [("principal", event.request.principal), *_of_refusal(state, event.about)]
    return [*named, ("holder", event.holder)] if event.holder else named


def _repeated(state: State, _position: int, event: event_types.RefusalsRepeated) -> _Named:
    return [("principal", event.request.principal), *_of_refusal(state, state.refusals[event.first].about)]


def _queued(_state: State, position: int, event: schedule_events.RequestQueued) -> _Named:
    asked = [("principal", event.request.principal), ("holder", event.asked.holder)]
    return [*asked, ("queued", queued_id_text(position)), *_of_devices(event.keeps)]


def _moved(_state: State, _position: int, event: schedule_events.QueuedMoved) -> _Named:
    return [("queued", queued_id_text(event.queued)), *_of_devices(event.keeps)]


def _waits_no_more(
    _state: State, _position: int, event: schedule_events.RequestWithdrawn | schedule_events.WaitingEnded
) -> _Named:
    by = event.request.principal if isinstance(event, schedule_events.RequestWithdrawn) else ""
    return [("queued", queued_id_text(event.queued)), *([("principal", by)] if by else [])]


def _many_renewed(state: State, _position: int, event: schedule_events.LeasesRenewed) -> _Named:
    """Of the leases alone: it says nothing more of their devices than that all stays as it is."""
    named: _Named = [("principal", event.request.principal)]
    for lease in event.leases:
        named += _of_lease(state, lease, ())
    return named


def _transferred(state: State, _position: int, event: schedule_events.LeaseTransferred) -> _Named:
    """Of both principals; who held it before is told of by what stands before this in the lease's history."""
    named = [("principal", event.request.principal), ("principal", event.principal)]
    return [*named, *_of_lease(state, event.lease, state.leases[event.lease].devices)]


def _switched(state: State, _position: int, event: schedule_events.LeaseSwitched) -> _Named:
    named = _of_lease(state, event.lease, state.leases[event.lease].devices)
    return [("principal", event.request.principal), *named, ("lease", lease_id_text(event.source))]


def _of_class(
    _state: State, _position: int, event: schedule_events.ClassSet | schedule_events.ClassRemoved
) -> _Named:
    return [("principal", event.request.principal), ("class", event.name)]


def _of_quota(_state: State, _position: int, event: schedule_events.QuotaSet) -> _Named:
    of: _Named = [("class", event.device_class)] if event.device_class else []
    return [("principal", event.request.principal), ("principal", event.tenant), *of]


def _marked(
    _state: State,
    _position: int,
    event: schedule_events.Cordoned
    | schedule_events.Uncordoned
    | schedule_events.Tainted
    | schedule_events.Untainted,
) -> _Named:
    device = _of_devices([device_id(event.host, event.key)]) if event.key else [("host", event.host)]
    return [("principal", event.request.principal), *device]


def _said_of_device(
    _state: State,
    _position: int,
    event: schedule_events.PolicySet | schedule_events.DeviceCleaned | schedule_events.DeviceHealed,
) -> _Named:
    return [("principal", event.request.principal), *_of_devices([event.device])]


def _missing(_state: State, _position: int, event: event_types.DeviceMissing | event_types.DeviceFlapped) -> _Named:
    return [("device", device_id(event.host, event.key)), ("host", event.host)]


def _ordered(state: State, position: int, event: event_types.HostOrdered) -> _Named:
    return [("principal", event.request.principal), *_of_order(state, event.host, position)]


def _over(state: State, _position: int, event: event_types.OrderCarriedOut | event_types.OrderFailed) -> _Named:
    made = getattr(event, "device", "")
    named = _of_devices([device_id(event.host, DeviceKey(made))] if made else ())
    return named + _of_order(state, event.host, event.order)


def _of_order(state: State, host: HostName, order: int) -> _Named:
    row = state.orders.get(order)
    return [("host", host), *_of_devices(devices_of(row.host, row.what) if row is not None else ())]


def _described(
    _state: State,
    _position: int,
    event: event_types.DeviceAppeared
    | event_types.DeviceChanged
    | event_types.DeviceReplaced
    | event_types.DeviceReappeared,
) -> _Named:
    return [("device", device_id(event.host, event.device.key)), ("host", event.host)]


def called(name: str) -> str:
    """The index's name of all domains that were ever called so; a host's name, with which ids begin, has no blank."""
    return f"name {name}"


def of_uuid(uuid: str) -> str:
    """The index's name of the domains of a uuid, on any host."""
    return f"uuid {uuid}"


def leases_for(uuid: str) -> str:
    """The index's name of the leases that are for the domain of a uuid."""
    return f"leases {uuid}"


def _of_domain(host: HostName, key: DomainKey, *names: str) -> _Named:
    texts = (domain_id(host, key), of_uuid(uuid_of(key)), *map(called, filter(None, names)))
    return [("host", host), *(("domain", text) for text in texts)]


def _domain(
    _state: State,
    _position: int,
    event: event_types.DomainAppeared | event_types.DomainChanged | event_types.DomainStarted,
) -> _Named:
    before = event.was.get("name", "") if isinstance(event, event_types.DomainChanged) else ""
    return _of_domain(event.host, event.domain.key, event.domain.name, before)


def _vanished(_state: State, _position: int, event: event_types.DomainVanished) -> _Named:
    return _of_domain(event.host, event.key, event.name)


def _attached(state: State, _position: int, event: event_types.AttachmentSeen | event_types.AttachmentGone) -> _Named:
    row = state.domains[domain_id(event.host, event.domain)]
    devices = [device_id(event.host, key) for key in event.devices]
    return [*_of_domain(event.host, event.domain, row.description.name), *_of_devices(devices)]


def _handed(
    state: State,
    _position: int,
    event: hostdev_events.DevicePrepared | hostdev_events.DeviceGivenBack | hostdev_events.DeviceQuarantined,
) -> _Named:
    return _of_device(state, event.lease, device_id(event.host, event.key))


def _drifted(
    state: State, _position: int, event: hostdev_events.DriftDetected | hostdev_events.DriftResolved
) -> _Named:
    row = state.devices.get(event.device)
    return _of_device(state, row.lease if row is not None else 0, event.device)


def _retired(
    _state: State, _position: int, event: event_types.AgentRetired | hostdev_events.HostDeclaredDead
) -> _Named:
    return [("principal", event.request.principal), ("host", event.host)]


def _shared(state: State, _position: int, event: event_types.SharingFound) -> _Named:
    named: _Named = [("host", event.host)]
    for pair in event.pairs:
        named += _of_lease(state, pair.lease, (pair.device,)) + _of_lease(state, pair.other_lease, (pair.other,))
    return named


def _of_devices(devices: Iterable[str]) -> _Named:
    named: _Named = []
    for device in devices:
        named += (("device", device), ("host", device.partition("/")[0]))
    return named


def _of_lease(state: State, lease: int, devices: tuple[DeviceId, ...]) -> _Named:
    named: _Named = [("lease", lease_id_text(lease))]
    row = state.leases.get(lease)
    if row is not None:
        named.append(("holder", row.holder))
        if row.bond is not None:
            named.append(("domain", leases_for(row.bond.uuid)))
    return named + _of_devices(devices)


def _of_device(state: State, lease: int, device: DeviceId) -> _Named:
    """A device, under a lease or (0) none."""
    return _of_lease(state, lease, (device,)) if lease else _of_devices((device,))


def _of_refusal(state: State, about: tuple[str, ...]) -> _Named:
    named: _Named = []
    for name in about:
        if name in state.devices:
            named += _of_devices((name,))
        elif name in state.hosts:
            named.append(("host", name))
        elif name in state.domains:
            row = state.domains[DomainId(name)]
            named += _of_domain(row.host, row.description.key, row.description.name)
        elif name.startswith("L"):
            named += _of_asked_lease(state, name)
        elif name.startswith("Q"):
            named += _of_asked_place(name)
    return named


def _of_asked_lease(state: State, name: str) -> _Named:
    """A refusal may be about a lease, or about a device that somebody called as leases are called."""
    try:
        lease = parse_lease_id(name)
    except InvalidInputError:
        return []
    row = state.leases.get(lease)
    return [("lease", lease_id_text(lease)), *(("device", device) for device in (row.devices if row else ()))]


def _of_asked_place(name: str) -> _Named:
    try:
        return [("queued", queued_id_text(parse_queued_id(name)))]
    except InvalidInputError:
        return []


_SUBJECTS: Final[dict[type[Any], Callable[[State, int, Any], _Named]]] = {
    event_types.LedgerStarted: _nothing,
    event_types.LedgerRestored: _restored,
    event_types.GraceStarted: _nothing,
    event_types.ObservationsAccepted: _nothing,
    event_types.DeviceAppeared: _described,
    event_types.DeviceChanged: _described,
    event_types.DeviceReplaced: _described,
    event_types.DeviceReappeared: _described,
    event_types.DeviceMissing: _missing,
    event_types.DeviceFlapped: _missing,
    event_types.AgentRetired: _retired,
    event_types.DomainAppeared: _domain,
    event_types.DomainChanged: _domain,
    event_types.DomainStarted: _domain,
    event_types.DomainVanished: _vanished,
    event_types.AttachmentSeen: _attached,
    event_types.AttachmentGone: _attached,
    event_types.SharingFound: _shared,
    event_types.LeaseGranted: _granted,
    event_types.LeaseRenewed: _renewed,
    event_types.LeaseReleased: _renewed,
    event_types.LeaseExpired: _expired,
    event_types.LeaseOutlived: _expired,
    event_types.DeviceFreed: _freed,
    event_types.RequestRefused: _refused,
    event_types.RefusalsRepeated: _repeated,
    event_types.HostOrdered: _ordered,
    event_types.OrderCarriedOut: _over,
    event_types.OrderFailed: _over,
    hostdev_events.DevicePrepared: _handed,
    hostdev_events.PrepareFailed: _expired,
    hostdev_events.DeviceGivenBack: _handed,
    hostdev_events.DeviceQuarantined: _handed,
    hostdev_events.LeaseRevoked: _renewed,
    hostdev_events.HostDeclaredDead: _retired,
    hostdev_events.DriftDetected: _drifted,
    hostdev_events.DriftResolved: _drifted,
    schedule_events.RequestQueued: _queued,
    schedule_events.QueuedMoved: _moved,
    schedule_events.QueueLooked: _nothing,
    schedule_events.RequestWithdrawn: _waits_no_more,
    schedule_events.WaitingEnded: _waits_no_more,
    schedule_events.LeasesRenewed: _many_renewed,
    schedule_events.LeaseTransferred: _transferred,
    schedule_events.LeaseSwitched: _switched,
    schedule_events.ClassSet: _of_class,
    schedule_events.ClassRemoved: _of_class,
    schedule_events.QuotaSet: _of_quota,
    schedule_events.Cordoned: _marked,
    schedule_events.Uncordoned: _marked,
    schedule_events.Tainted: _marked,
    schedule_events.Untainted: _marked,
    schedule_events.PolicySet: _said_of_device,
    schedule_events.DeviceCleaned: _said_of_device,
    schedule_events.DeviceHealed: _said_of_device,
}
"""What an event tells of; of the host alone where it is not named here."""
