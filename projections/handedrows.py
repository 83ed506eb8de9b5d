"""The part of a device's rows in the read models that tells of handing over: a part of the fold in `intervals`.

Each version of a device holds how far it was handed over or taken back from there on, why it was in quarantine, how
the witnesses differed about it, what operators said of it, and how it failed its holders.
"""

from typing import Final

import msgspec

from leasehold.events import codec
from leasehold.events.hostdev_events import (
    DeviceGivenBack,
    DevicePrepared,
    DeviceQuarantined,
    DriftDetected,
    DriftResolved,
)
from leasehold.events.identities import DeviceId, Principal, device_id
from leasehold.events.schedule_events import DeviceCleaned, DeviceHealed, PolicySet
from leasehold.projections import bindings, failing, marking
from leasehold.projections.marking import Marking
from leasehold.projections.rows import Binding, Drift, Marks, Quarantine

HandedEvent = DevicePrepared | DeviceGivenBack | DeviceQuarantined | DriftDetected | DriftResolved
_replace: Final = msgspec.structs.replace


class Handed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """As `DeviceState` has them."""

    binding: Binding | None = None
    quarantine: Quarantine | None = None
    drift: Drift | None = None
    marks: Marks | None = None


_NOTHING: Final = Handed()
_handed: Final = msgspec.json.Decoder(Handed)


def handed_in(body: bytes) -> Handed:
    """What a row says of it."""
    return _handed.decode(body) if body else _NOTHING


def _body(handed: Handed) -> bytes:
    return codec.encode(handed) if handed != _NOTHING else b""


def device_of(event: HandedEvent) -> DeviceId:
    """The device that an event is about."""
    return event.device if isinstance(event, DriftDetected | DriftResolved) else device_id(event.host, event.key)


def marked_by(event: Marking) -> DeviceId | None:
    """The device of which an operator said something; `None`: it is a whole host."""
    if isinstance(event, PolicySet | DeviceCleaned | DeviceHealed):
        return event.device
    return device_id(event.host, event.key) if event.key else None


def handed_after(body: bytes, lease: int, position: int, at_ns: int, event: HandedEvent) -> bytes:
    """What the row of a device says from this event on; `lease` holds it."""
    before = handed_in(body)
    match event:
        case DevicePrepared():
            return _body(_replace(before, binding=bindings.binding_of(event, position, at_ns)))
        case DeviceGivenBack():
            after = _replace(before, quarantine=failing.lasting(before.quarantine))
            if lease and lease == event.lease:
                after = _replace(after, binding=bindings.back_of(before.binding, event, position, at_ns))
            return _body(after)
        case DeviceQuarantined():
            marks = failing.stuck(before.marks, before.quarantine, event, position, at_ns)
            return _body(_replace(before, quarantine=bindings.quarantine_of(event, position, at_ns), marks=marks))
        case DriftDetected():
            return _body(_replace(before, drift=bindings.drift_of(event, position, at_ns)))
        case DriftResolved():
            return _body(_replace(before, drift=None))


def freed(body: bytes, *, lease: int, is_confirmed: bool, tenant: Principal, position: int) -> bytes:
    """What the row of a device says from where it was freed from `lease` (0: from none) of `tenant`; an operator's word
    ends its quarantine, too.
    """
    before = handed_in(body)
    after = _replace(before, quarantine=failing.lasting(before.quarantine)) if is_confirmed else before
    if lease:
        after = _replace(after, binding=None, marks=marking.used_by(before.marks, tenant, position))
    return _body(after)


def marked(body: bytes, position: int, event: Marking) -> bytes:
    """What the row of a device says from where an operator said something of it."""
    before = handed_in(body)
    after = _replace(before, marks=marking.marks_after(before.marks, position, event))
    if isinstance(event, DeviceHealed) and failing.lasting(before.quarantine) is not None:
        after = _replace(after, quarantine=None)
    return _body(after)


def failed(body: bytes, position: int, at_ns: int) -> bytes:
    """What the row of a device says from where it failed its holder once more."""
    before = handed_in(body)
    return _body(_replace(before, marks=failing.failed_once_more(before.marks, position, at_ns)))
