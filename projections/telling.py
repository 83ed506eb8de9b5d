"""Events as sentences: one line of English for each, as people read it in a history."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from leasehold.events import event_types
from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    DetachDevice,
    Mdev,
    Net,
    Order,
    ReattachDevice,
    ResetDevice,
    SetVirtualFunctions,
    Storage,
)
from leasehold.events.devices import DeviceDescription, Sighting, field_of
from leasehold.events.domains import DomainDescription
from leasehold.events.event_types import DomainBond, Event
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DomainKey, HostName, domain_id
from leasehold.events.inputs import CREATOR
from leasehold.events.position import lease_id_text
from leasehold.projections import hostdevtelling, scheduletelling
from leasehold.projections.hostdevtelling import handover_text
from leasehold.projections.state import State
from leasehold.projections.wording import asked_text, lease_text, span_text

TEXT_CHARS_MAX: Final = 1_000
_WITHOUT_EVENT: Final = {
    "start": "found at start",
    "lost_events": "found after events were lost",
    "clock": "found by looking again",
}
_SIZES: Final = {"memory_bytes": "memory", "max_memory_bytes": "memory at most"}
_MIB: Final = 1024 * 1024


def tell(event: Event, position: int, state: State | None = None) -> str:
    """What happened at `position`. A `state` of any later position adds whose lease it was, if it is still known."""
    teller: Callable[[Any, int, State | None], str] = _TELLERS[type(event)]
    text = teller(event, position, state)
    if not text.isprintable():
        # Agents pass on what devices say of themselves; none of it may end the line or steer a terminal.
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"


# --- the ledger and its hosts -------------------------------------------------------------------------------------


def _ledger_started(event: event_types.LedgerStarted, _position: int, _state: State | None) -> str:
    return f"ledger {event.ledger_id} of cluster {event.cluster} began (era {event.era})"


def _ledger_restored(event: event_types.LedgerRestored, _position: int, _state: State | None) -> str:
    return (
        f"the ledger was restored up to record {event.through} ({event.reason}): era {event.era} begins, all tokens "
        "from before are dead, and all hosts must report again"
    )


def _grace_started(event: event_types.GraceStarted, _position: int, _state: State | None) -> str:
    return f"{event.writer} decides from here on ({event.reason}); nothing expires before a grace time is over"


def _host_registered(event: event_types.HostRegistered, _position: int, _state: State | None) -> str:
    how = "managed: a binder hands its devices over" if event.mode == "managed" else "watched: nobody acts on it"
    return f"host {event.host} is {how}"


def _host_went_stale(event: event_types.HostWentStale, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} cannot be relied on: {event.reason}; {_without(event.agent)}"


def _host_came_back(event: event_types.HostCameBack, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} is heard again"


def _source_started(event: event_types.SourceStarted, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} started (run {event.run})"


def _source_stopped(event: event_types.SourceStopped, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} stopped in good order; {_without(event.agent)}"


def _without(agent: str) -> str:
    return "no devices are made there" if agent == CREATOR else "nothing of the host is granted"


def _observations_accepted(event: event_types.ObservationsAccepted, _position: int, _state: State | None) -> str:
    return f"message {event.counter} of {event.agent} on {event.host} was taken"


def _report_requested(event: event_types.ReportRequested, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} must report again: {event.reason}"


def _picture_completed(event: event_types.PictureCompleted, _position: int, _state: State | None) -> str:
    if event.agent == CREATOR:
        return f"{event.agent} makes and destroys devices on {event.host}"
    return f"{event.agent} has told all about {event.host}"


def _source_went_blind(event: event_types.SourceWentBlind, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} cannot see what is there: {event.reason}; {_without(event.agent)}"


def _source_sees_again(event: event_types.SourceSeesAgain, _position: int, _state: State | None) -> str:
    return f"{event.agent} on {event.host} sees again what is there"


def _agent_retired(event: event_types.AgentRetired, _position: int, _state: State | None) -> str:
    return (
        f"{event.agent} on {event.host} will not come back ({event.reason}), and what only it told of is forgotten "
        f"({asked_text(event.request)})"
    )


# --- devices ------------------------------------------------------------------------------------------------------


def _thing(event: event_types.DeviceAppeared | event_types.DeviceReplaced | event_types.DeviceReappeared) -> str:
    device = event.device
    words = (device.vendor_name or device.vendor_id, device.product_name or device.product_id)
    return " ".join(word for word in words if word) or f"{device.kind} {_own_name(device)}".strip()


def _own_name(device: DeviceDescription) -> str:
    """What the kernel calls what has no maker's name; mostly empty."""
    match device.capability:
        case Net():
            return device.capability.interface
        case Storage():
            return device.capability.block
        case Mdev():
            return device.capability.uuid
        case _:
            return ""


def _device_appeared(event: event_types.DeviceAppeared, _position: int, _state: State | None) -> str:
    return f"{event.host}/{event.device.key} appeared: {_thing(event)}{_cause(event.how)}"


def _device_changed(event: event_types.DeviceChanged, _position: int, _state: State | None) -> str:
    changes = ", ".join(_change(event, field) for field in event.changed)
    return f"{event.host}/{event.device.key} changed: {changes}{_cause(event.how)}"


def _change(event: event_types.DeviceChanged, field: str) -> str:
    value = field_of(event.device, field)
    if field == "driver" and field in event.was:
        return f"driver was {event.was[field] or 'none'}, is {value or 'none'}"
    if field == "capability.link_state":
        before = event.was.get(field, "")
        return f"link is {value or 'unknown'}" + (f", was {before}" if before else "")
    name = field.rpartition(".")[2]
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    if not isinstance(value, str | int):
        return name
    return f"{name} is now {_known(value)}"


def _known(value: str | int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return {"": "empty", -1: "unknown"}.get(value, str(value))


def _cause(how: Sighting | None) -> str:
    """How it came to be known, in brackets."""
    if how is None:
        return ""
    said = f"{how.source} said: {', '.join(how.actions)}" if how.source and how.actions else how.source
    causes = [_WITHOUT_EVENT.get(how.why, said)]
    if how.flaps:
        causes.append(f"it had gone and come back {_times(how.flaps)}")
    return f" ({'; '.join(cause for cause in causes if cause)})" if any(causes) else ""


def _device_replaced(event: event_types.DeviceReplaced, _position: int, _state: State | None) -> str:
    return f"another thing sits at {event.host}/{event.device.key}: {_thing(event)}{_cause(event.how)}"


def _device_missing(event: event_types.DeviceMissing, _position: int, _state: State | None) -> str:
    return f"{event.host}/{event.key} is not there any more{_cause(event.how)}"


def _device_reappeared(event: event_types.DeviceReappeared, _position: int, _state: State | None) -> str:
    return f"{event.host}/{event.device.key} is back: {_thing(event)}{_cause(event.how)}"


def _sharing_found(event: event_types.SharingFound, _position: int, state: State | None) -> str:
    pairs = "; ".join(
        f"{pair.device} ({lease_text(pair.lease, state)}) and {pair.other} ({lease_text(pair.other_lease, state)})"
        for pair in event.pairs
    )
    more = f" and {event.count - len(event.pairs)} more pairs" if event.count > len(event.pairs) else ""
    return f"cannot be owned apart any more, and nothing more of it is granted: {pairs}{more}"


# --- domains ------------------------------------------------------------------------------------------------------


def _domain(host: HostName, key: DomainKey, state: State | None, name: str = "") -> str:
    """Its name, if it is known, and its id."""
    row = state.domains.get(domain_id(host, key)) if state is not None and not name else None
    name = row.description.name if row is not None else name
    return f"{name} ({host}/{key})" if name else f"{host}/{key}"


def _domain_appeared(event: event_types.DomainAppeared, _position: int, _state: State | None) -> str:
    domain = event.domain
    facts = (
        domain.state,
        f"domid {domain.domid}" if domain.domid >= 0 else "",
        domain.kind,
        f"memory {_bytes_text(domain.memory_bytes)}" if domain.memory_bytes else "",
        f"vcpus {domain.vcpus}" if domain.vcpus else "",
    )
    return f"{_domain(event.host, domain.key, None, domain.name)} appeared: {', '.join(filter(None, facts))}"


def _domain_changed(event: event_types.DomainChanged, _position: int, _state: State | None) -> str:
    return f"{_domain(event.host, event.domain.key, None, event.domain.name)} changed: {_domain_changes(event)}"


def _domain_changes(event: event_types.DomainChanged) -> str:
    return ", ".join(_domain_change(event.domain, field, event.was.get(field)) for field in event.changed)


def _domain_change(domain: DomainDescription, field: str, was: str | None) -> str:
    value = getattr(domain, field)
    text = _bytes_text(value) if field in _SIZES else _known(value)
    before = f", was {was or 'empty'}" if was is not None else ""
    return f"{_SIZES.get(field, field)} is now {text}{before}"


def _bytes_text(size: int) -> str:
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size} bytes"


def _domain_started(event: event_types.DomainStarted, _position: int, _state: State | None) -> str:
    domain = event.domain
    before = f" again; it was domid {event.was_domid} before" if event.was_domid >= 0 else ""
    others = [_domain_change(domain, field, None) for field in event.changed if field not in ("domid", "state")]
    said = "".join(f", {each}" for each in others)
    name = _domain(event.host, domain.key, None, domain.name)
    return f"{name} started as domid {domain.domid} ({domain.state}){before}{said}"


def _domain_vanished(event: event_types.DomainVanished, _position: int, _state: State | None) -> str:
    before = f" (it was domid {event.domid})" if event.domid >= 0 else ""
    return f"{_domain(event.host, event.key, None, event.name)} is not there any more{before}"


def _attachment_seen(event: event_types.AttachmentSeen, _position: int, state: State | None) -> str:
    how = "has" if event.use == "attached" else "is configured with"
    return f"{_domain(event.host, event.domain, state, event.name)} {how} {_used(event)}"


def _attachment_gone(event: event_types.AttachmentGone, _position: int, state: State | None) -> str:
    how = "does not have" if event.use == "attached" else "is not configured with"
    return f"{_domain(event.host, event.domain, state, event.name)} {how} {_used(event)} any more"


def _used(event: event_types.AttachmentSeen | event_types.AttachmentGone) -> str:
    """The device as the hypervisor names it, and which that is, where its name does not say it."""
    keys = [key for key in event.devices if key != event.device]
    return f"{event.device} ({', '.join(keys)})" if keys else event.device


# --- leases -------------------------------------------------------------------------------------------------------


def _lease_granted(event: event_types.LeaseGranted, position: int, state: State | None) -> str:
    forced = ", although the host itself needs it (forced)" if event.forced else ""
    bond = f", {bond_text(event.bond)}" if isinstance(event.bond, DomainBond) else ""
    how = handover_text(event.handover) if isinstance(event.handover, Handover) else ""
    more = f"{f', {how}' if how else ''}{scheduletelling.granted_text(event, state)}"
    return (
        f"granted to {event.holder} as {lease_id_text(position)}: {', '.join(event.devices)}, "
        f"for {span_text(event.ttl_ms)}{bond}{more}{forced} ({asked_text(event.request)})"
    )


def bond_text(bond: DomainBond) -> str:
    """For which domain a lease is, and what its going means for it."""
    if bond.keep:
        return f"for domain {bond.uuid} by name only"
    return f"for domain {bond.uuid} until {span_text(bond.gone_ms)} after it is gone"


def _lease_renewed(event: event_types.LeaseRenewed, _position: int, state: State | None) -> str:
    return f"{lease_text(event.lease, state)} renewed for {span_text(event.ttl_ms)} ({asked_text(event.request)})"


def _lease_released(event: event_types.LeaseReleased, _position: int, state: State | None) -> str:
    return f"{lease_text(event.lease, state)} released ({asked_text(event.request)})"


def _lease_expired(event: event_types.LeaseExpired, _position: int, state: State | None) -> str:
    return f"{lease_text(event.lease, state)} expired: its time was over and no renewal had come"


def _lease_outlived(event: event_types.LeaseOutlived, _position: int, state: State | None) -> str:
    return (
        f"{lease_text(event.lease, state)} ended: its domain {event.domain} was there, and has been gone for too long"
    )


def _device_freed(event: event_types.DeviceFreed, _position: int, _state: State | None) -> str:
    by = f" (request {event.request.request_id})" if event.request is not None else ""
    of = f"freed from {lease_id_text(event.lease)}" if event.lease else "free of its quarantine"
    return f"{event.device} {of}: {event.evidence}{by}"


def _request_refused(event: event_types.RequestRefused, _position: int, _state: State | None) -> str:
    whom = event.holder or event.request.principal
    return f"{event.verb} refused to {whom}: {event.refusal.message} ({asked_text(event.request)})"


def _refusals_repeated(event: event_types.RefusalsRepeated, _position: int, _state: State | None) -> str:
    times = "once more" if event.count == 1 else f"{event.count} times more by now"
    return f"refused as at position {event.first}, {times} ({asked_text(event.request)})"


def _device_flapped(event: event_types.DeviceFlapped, _position: int, _state: State | None) -> str:
    what = f"{event.host}/{event.key} went and came back {_times(event.how.flaps)}, and is as it was"
    return what + _cause(msgspec.structs.replace(event.how, flaps=0))


def _events_missed(event: event_types.EventsMissed, _position: int, _state: State | None) -> str:
    times = _times(event.times)
    return f"{event.agent} on {event.host} lost events of the kernel {times}, and looked at everything again"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


# --- orders -------------------------------------------------------------------------------------------------------


def _host_ordered(event: event_types.HostOrdered, position: int, _state: State | None) -> str:
    what = order_text(event.order)
    return f"{event.agent} on {event.host} is told to {what}, order {position} ({asked_text(event.request)})"


def order_text(order: Order) -> str:
    """What a host is told to do."""
    match order:
        case CreateVport():
            return f"make the virtual HBA {order.wwpn} (node {order.wwnn}) on {order.parent}"
        case DestroyVport():
            return f"take away the virtual HBA {order.wwpn} ({order.device})"
        case CreateMdev():
            return f"make the mediated device {order.uuid} of type {order.mdev_type} on {order.parent}"
        case DestroyMdev():
            return f"take away the mediated device {order.uuid} ({order.device})"
        case SetVirtualFunctions():
            return f"let {order.parent} have {order.count or 'no'} virtual function{'' if order.count == 1 else 's'}"
        case DetachDevice():
            return f"take {order.device} from its driver{f', to {order.driver}' if order.driver else ''}"
        case ReattachDevice():
            return f"give {order.device} to its driver again"
        case ResetDevice():
            return f"reset {order.device}"


def _order_carried_out(event: event_types.OrderCarriedOut, _position: int, _state: State | None) -> str:
    late = ", later than it was to be" if event.late else ""
    device = f": {event.host}/{event.device}" if event.device else ""
    return f"order {event.order} was carried out on {event.host}{late}{device}"


def _order_failed(event: event_types.OrderFailed, _position: int, _state: State | None) -> str:
    how = "timed out" if event.timed_out else "failed"
    return f"order {event.order} to {event.host} {how}: {event.reason}"


_TELLERS: Final[dict[type[Any], Callable[[Any, int, State | None], str]]] = {
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
    event_types.SourceWentBlind: _source_went_blind,
    event_types.SourceSeesAgain: _source_sees_again,
    event_types.AgentRetired: _agent_retired,
    event_types.DeviceAppeared: _device_appeared,
    event_types.DeviceChanged: _device_changed,
    event_types.DeviceReplaced: _device_replaced,
    event_types.DeviceMissing: _device_missing,
    event_types.DeviceReappeared: _device_reappeared,
    event_types.DomainAppeared: _domain_appeared,
    event_types.DomainChanged: _domain_changed,
    event_types.DomainStarted: _domain_started,
    event_types.DomainVanished: _domain_vanished,
    event_types.AttachmentSeen: _attachment_seen,
    event_types.AttachmentGone: _attachment_gone,
    event_types.SharingFound: _sharing_found,
    event_types.LeaseGranted: _lease_granted,
    event_types.LeaseRenewed: _lease_renewed,
    event_types.LeaseReleased: _lease_released,
    event_types.LeaseExpired: _lease_expired,
    event_types.LeaseOutlived: _lease_outlived,
    event_types.DeviceFreed: _device_freed,
    event_types.RequestRefused: _request_refused,
    event_types.RefusalsRepeated: _refusals_repeated,
    event_types.DeviceFlapped: _device_flapped,
    event_types.EventsMissed: _events_missed,
    event_types.HostOrdered: _host_ordered,
    event_types.OrderCarriedOut: _order_carried_out,
    event_types.OrderFailed: _order_failed,
    **hostdevtelling.TELLERS,
    **scheduletelling.TELLERS,
}
