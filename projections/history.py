"""The index beside the state: which positions tell of a device, a lease, a holder, a host or a principal.

History is answered from it without a walk through the log.
"""

from collections.abc import Iterator
from typing import NamedTuple

from leasehold.events import event_types
from leasehold.events.errors import InvalidInputError
from leasehold.events.event_types import Event, RequestRef
from leasehold.events.identities import DeviceId, device_id
from leasehold.events.position import lease_id_text, parse_lease_id
from leasehold.projections.state import State


class IndexRow(NamedTuple):
    """`name` of `kind` (`device`, `lease`, `holder`, `host`, `principal`) is told of at `position`."""

    kind: str
    name: str
    position: int


def index_rows(state: State, position: int, event: Event) -> Iterator[IndexRow]:
    """The rows for an event that `state` has just been moved over."""
    for kind, name in dict.fromkeys(_subjects(state, position, event)):
        yield IndexRow(kind, name, position)


def _subjects(state: State, position: int, event: Event) -> Iterator[tuple[str, str]]:
    ref = getattr(event, "request", None)
    if isinstance(ref, RequestRef):
        yield "principal", ref.principal
    match event:
        case event_types.LeaseGranted():
            yield from _of_lease(state, position, event.devices)
        case event_types.LeaseRenewed() | event_types.LeaseReleased() | event_types.LeaseExpired():
            yield from _of_lease(state, event.lease, state.leases[event.lease].devices)
        case event_types.DeviceFreed():
            yield from _of_lease(state, event.lease, (event.device,))
        case event_types.RequestRefused():
            yield from _of_refusal(state, event.about)
            if event.holder:
                yield "holder", event.holder
        case event_types.RefusalsRepeated():
            yield from _of_refusal(state, state.refusals[event.first].about)
        case event_types.DeviceMissing():
            yield from _of_device(device_id(event.host, event.key))
        case (
            event_types.DeviceAppeared()
            | event_types.DeviceChanged()
            | event_types.DeviceReplaced()
            | event_types.DeviceReappeared()
        ):
            yield from _of_device(device_id(event.host, event.device.key))
        case event_types.LedgerStarted() | event_types.GraceStarted() | event_types.ObservationsAccepted():
            return
        case _:
            yield "host", event.host


def _of_device(device: DeviceId) -> Iterator[tuple[str, str]]:
    yield "device", device
    yield "host", device.partition("/")[0]


def _of_lease(state: State, lease: int, devices: tuple[DeviceId, ...]) -> Iterator[tuple[str, str]]:
    yield "lease", lease_id_text(lease)
    row = state.leases.get(lease)
    if row is not None:
        yield "holder", row.holder
    for device in devices:
        yield from _of_device(device)


def _of_refusal(state: State, about: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in about:
        if name in state.devices:
            yield from _of_device(DeviceId(name))
        elif name.startswith("L"):
            yield from _of_asked_lease(state, name)


def _of_asked_lease(state: State, name: str) -> Iterator[tuple[str, str]]:
    """A refusal may be about a lease, or about a device that somebody called as leases are called."""
    try:
        lease = parse_lease_id(name)
    except InvalidInputError:
        return
    yield "lease", lease_id_text(lease)
    row = state.leases.get(lease)
    for device in row.devices if row else ():
        yield "device", device
