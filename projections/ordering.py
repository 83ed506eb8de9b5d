"""Deciding on orders to hosts: which are given, why others are not, and what agents say of those that were.

A virtual HBA or a mediated device is made on a parent: one that can have it, has room, and is not another's. What is
taken away must be one of these two, and nobody's, and neither used nor needed by the host.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from leasehold.events import event_types, inputs, limits
from leasehold.events.capabilities import (
    Ccw,
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    Mdev,
    MdevParent,
    MdevType,
    NewMdev,
    NewVirtualFunctions,
    NewVport,
    Order,
    Pci,
    ScsiHost,
    SetVirtualFunctions,
)
from leasehold.events.event_types import Event, HostOrdered
from leasehold.events.identities import DeviceId, DeviceKey, HostName, RequestRef, device_id, parse_wwn
from leasehold.events.inputs import CREATOR, Observed
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.projections import conflicts, restraints
from leasehold.projections.declining import Declined, declined
from leasehold.projections.indexes import mark_of_uuid, mark_of_wwn, marks_of
from leasehold.projections.naming import resolve, unresolved
from leasehold.projections.rows import OrderState
from leasehold.projections.state import State

_UNHEARD: Final = "nothing was heard of it in time"
_NAA_AND_OUI: Final = "5525400"
"""Format 5 (IEEE registered) and the company id that virtual machines use; 36 bits of our own follow."""


def order_for(
    state: State, ref: RequestRef, request: inputs.CreateDeviceRequest | inputs.DestroyDeviceRequest, now_ns: int
) -> HostOrdered | Declined:
    """What a host is told to do for this request."""
    if isinstance(request, inputs.DestroyDeviceRequest):
        found = _to_destroy(state, ref, request)
    elif isinstance(request.device, NewVport):
        found = _new_vport(state, ref, request.device, request.host)
    elif isinstance(request.device, NewVirtualFunctions):
        found = _new_virtual_functions(state, ref, request.device, request.host)
    else:
        found = _new_mdev(state, ref, request.device, request.host)
    if isinstance(found, Declined):
        return found
    host, order = found
    deadline_ns = now_ns + request.timeout_ms * 1_000_000
    return HostOrdered(request=ref, host=host, agent=CREATOR, order=order, deadline_ns=deadline_ns)


# --- what agents say ----------------------------------------------------------------------------------------------


def done(state: State, given: Observed, said: inputs.OrderDone) -> Event | None:
    """The host has done it: also behind its time, but not twice."""
    row = _told(state, given, said.order)
    if row is None or row.state not in ("waiting", "timed_out"):
        return None
    return event_types.OrderCarriedOut(host=row.host, order=said.order, device=said.device, late=not row.is_open)


def not_done(state: State, given: Observed, said: inputs.OrderNotDone) -> Event | None:
    """The host could not do it."""
    row = _told(state, given, said.order)
    if row is None or not row.is_open:
        return None
    return event_types.OrderFailed(host=row.host, order=said.order, reason=said.reason)


def _told(state: State, given: Observed, order: int) -> OrderState | None:
    """The order that this agent was given; nobody else can say what became of it."""
    row = state.orders.get(order)
    return row if row is not None and (row.host, row.agent) == (given.host, given.agent) else None


def overdue(state: State, now_ns: int, *, limit: int) -> list[Event]:
    """The end of orders of which nothing was heard by their deadlines, at most `limit`."""
    orders = state.deadlines.due_by(now_ns, limit=limit)
    return [
        event_types.OrderFailed(host=state.orders[order].host, order=order, reason=_UNHEARD, timed_out=True)
        for order in orders
    ]


# --- hosts and parents --------------------------------------------------------------------------------------------


def _host_forbids(state: State, host: HostName, about: tuple[str, ...]) -> Declined | None:
    """Why nothing can be asked of this host now."""
    row = state.hosts.get(host)
    if row is None:
        return declined(about, RefusalCode.HOST_FORBIDS, f"no host {host} is known", "list the hosts")
    creator = row.sources.get(CREATOR)
    help_text = f"run the creator on {host} if devices may be made there"
    if creator is None:
        return declined(about, RefusalCode.HOST_FORBIDS, f"no agent on {host} makes or destroys devices", help_text)
    if creator.stale:
        text = f"the agent on {host} that makes and destroys devices cannot be relied on ({creator.stale})"
        return declined(about, RefusalCode.HOST_FORBIDS, text, help_text)
    if row.stale:
        text = f"what is known of host {host} may be out of date ({row.stale})"
        return declined(about, RefusalCode.HOST_STALE, text, f"see that the agents on {host} run")
    if len(state.indexes.open_orders.get(host, ())) >= limits.ORDERS_OPEN_PER_HOST_MAX:
        text = f"{limits.ORDERS_OPEN_PER_HOST_MAX} orders to {host} are not over yet"
        return declined(about, RefusalCode.ORDERS_TOO_MANY, text, "wait until some are over")
    return None


def _kept_from(state: State, ref: RequestRef, device: DeviceId, parent: DeviceId | None = None) -> Declined | None:
    """Why nothing is to be done to this device now: it is not there, another's, or used without a lease; or what it
    stands for is, or its parent, or what these are parts of.
    """
    row = state.devices[device]
    forbidden = _host_forbids(state, row.host, (device,))
    if forbidden is not None:
        return forbidden
    if row.missing:
        return declined((device,), RefusalCode.DEVICE_MISSING, f"{device} is not there", "plug it in again")
    near = (device, conflicts.physical_device(device), parent or device)
    wholes = (whole for each in near for whole in conflicts.physical_function_of(state, each))
    for each in dict.fromkeys((*near, *wholes)):
        held = state.devices.get(each)
        if held is None:
            continue
        if held.lease and (held.ending or state.leases[held.lease].principal != ref.principal):
            return _held(state, device, each)
        if held.sharers:
            return _shared(state, device, each)
        users = conflicts.users_of(state, held) if not held.lease else ()
        if users:
            return _used(device, each, users)
    return None


def _held(state: State, device: DeviceId, other: DeviceId) -> Declined:
    blocker = conflicts.held(state, other, other, "same_device")
    refusal = Refusal(
        code=RefusalCode.DEVICE_HELD, message=f"{other}: {blocker.why}", blockers=(blocker,), help=blocker.help
    )
    return Declined((device,), refusal)


def _shared(state: State, device: DeviceId, other: DeviceId) -> Declined:
    blocker = restraints.shared(state, other, other, "it")
    message = f"{other}: {blocker.why}"
    refusal = Refusal(code=RefusalCode.DEVICE_SHARED, message=message, blockers=(blocker,), help=blocker.help)
    return Declined((device,), refusal)


def _used(device: DeviceId, other: DeviceId, users: tuple[str, ...]) -> Declined:
    text = f"{other} is used by {', '.join(users)}"
    return declined((device,), RefusalCode.DEVICE_IN_USE, text, "end that use first")


def _open_orders_on(state: State, device: DeviceId) -> Iterator[Order]:
    for order in state.indexes.orders_on.get(device, ()):
        yield state.orders[order].what


# --- virtual HBAs -------------------------------------------------------------------------------------------------


def _new_vport(
    state: State, ref: RequestRef, new: NewVport, host: str
) -> tuple[HostName, Order] | Declined:
    parent = _parent_of_vport(state, ref, new, host)
    if isinstance(parent, Declined):
        return parent
    row = state.devices[parent]
    wwnn, wwpn = (parse_wwn(name) if name else "" for name in (new.wwnn, new.wwpn))
    taken = _taken(state, parent, mark_of_wwn(wwpn), f"the world wide name {wwpn}") if wwpn else None
    if taken is not None:
        return taken
    order = CreateVport(
        parent=row.description.key,
        wwnn=wwnn or _made_up_wwn(state, ref, row.host, "wwnn"),
        wwpn=wwpn or _made_up_wwn(state, ref, row.host, "wwpn"),
    )
    return row.host, order


def _taken(state: State, parent: DeviceId, mark: str, name: str) -> Declined | None:
    """Why nothing can be made that is called so: something is already, or an order about such a thing is not over."""
    bearers = [device for device in state.indexes.marks.get(mark, ()) if not state.devices[device].missing]
    if bearers:
        text = f"{bearers[0]} has {name}"
    elif order := next(iter(state.indexes.ordered_marks.get(mark, ())), 0):
        text = f"order {order}, which is not over, is about what has {name}"
    else:
        return None
    return declined((parent,), RefusalCode.DEVICE_EXISTS, text, "choose another, or none: then one is made up")


def _made_up_wwn(state: State, ref: RequestRef, host: HostName, kind: str) -> str:
    """A world wide name that nothing in the log bears, from what the request is called: nothing here is chance.

    NAA 5, the company id 52:54:00, and 36 bits of the SHA-256 over cluster, host, principal, request id, `kind` and a
    counter that goes up until the name is free: far fewer are taken than there are.
    """
    counter = 0
    while True:
        wwn = f"{_NAA_AND_OUI}{_digest(state, ref, host, f'{kind} {counter}').hex()[:9]}"
        mark = mark_of_wwn(wwn)
        if mark not in state.indexes.marks and mark not in state.indexes.ordered_marks:
            return wwn
        counter += 1


def _digest(state: State, ref: RequestRef, host: HostName, what: str) -> bytes:
    words = (state.head.cluster, host, ref.principal, ref.request_id, what)
    return hashlib.sha256("\n".join(words).encode()).digest()


def _parent_of_vport(state: State, ref: RequestRef, new: NewVport, host: str) -> DeviceId | Declined:
    """The HBA that is named, or else of those that fit the one with the most room; equal ones by their ids."""
    candidates = _named_hbas(state, new, host)
    if isinstance(candidates, Declined):
        return candidates
    hosts = sorted({state.devices[device].host for device in candidates})
    if len(hosts) > 1:
        some = candidates[: limits.CANDIDATES_PER_REFUSAL_MAX]
        text = f"HBAs of several hosts fit: {', '.join(some)}"
        return declined(some, RefusalCode.DEVICE_AMBIGUOUS, text, "name the host")
    ranked = sorted(candidates, key=lambda device: (-_room_for_vports(state, device), device))
    refused: Declined | None = None
    for device in ranked:
        why_not = _kept_from(state, ref, device) or _unfit_for_vport(state, device, is_named=bool(new.parent))
        if why_not is None:
            return device
        refused = refused or why_not
    assert refused is not None
    return refused


def _named_hbas(state: State, new: NewVport, host: str) -> tuple[DeviceId, ...] | Declined:
    """The HBAs that all words of the request fit, in the order of their ids: at least one."""
    wwnn, wwpn, fabric = (
        parse_wwn(name) if name else "" for name in (new.parent_wwnn, new.parent_wwpn, new.parent_fabric_wwn)
    )
    said = {"node name": wwnn, "port name": wwpn, "fabric": fabric}
    words = " and ".join(f"the {what} {name}" for what, name in said.items() if name)
    if new.parent:
        resolved = resolve(state, new.parent, host)
        if resolved.device is None:
            return Declined((new.parent,), unresolved(resolved))
        if words and not _bears(state, resolved.device, wwnn, wwpn, fabric):
            text = f"{resolved.device} is no HBA with {words}"
            return declined((resolved.device,), RefusalCode.PARENT_UNSUITABLE, text, "name the parent in one way")
        return (resolved.device,)
    if wwnn or wwpn:
        some = state.indexes.marks.get(mark_of_wwn(wwpn or wwnn), ())
        some = tuple(device for device in some if not host or state.devices[device].host == host)
    else:
        forbidden = _host_forbids(state, HostName(host), ())
        if forbidden is not None:
            return forbidden
        some = state.indexes.hbas.get(HostName(host), ())
    found = tuple(device for device in some if _bears(state, device, wwnn, wwpn, fabric))
    if found:
        return found
    where = f" of {host}" if host else ""
    text = f"no HBA{where} with {words} is known" if words else f"no HBA{where} can have virtual HBAs"
    code = RefusalCode.DEVICE_UNKNOWN if wwnn or wwpn else RefusalCode.PARENT_UNSUITABLE
    return declined((), code, text, "list the devices with the capability vport_ops")


def _bears(state: State, device: DeviceId, wwnn: str, wwpn: str, fabric: str) -> bool:
    """Whether it is an HBA with these names, as far as they are given."""
    capability = state.devices[device].description.capability
    if not isinstance(capability, ScsiHost) or (capability.fc_host is None and (wwnn or wwpn or fabric)):
        return False
    hba = capability.fc_host
    pairs = [(wwnn, hba.wwnn), (wwpn, hba.wwpn), (fabric, hba.fabric_wwn)] if hba is not None else []
    return all(not asked or asked == has for asked, has in pairs)


def _unfit_for_vport(state: State, device: DeviceId, *, is_named: bool) -> Declined | None:
    capability = state.devices[device].description.capability
    if not isinstance(capability, ScsiHost) or capability.vport_ops is None:
        text = f"{device} cannot have virtual HBAs"
        help_text = "list the devices with the capability vport_ops"
        return declined((device,), RefusalCode.PARENT_UNSUITABLE, text, help_text)
    port_state = capability.fc_host.port_state if capability.fc_host is not None else ""
    if not is_named and port_state not in ("", "Online"):
        text = f"{device} is not online ({port_state})"
        return declined((device,), RefusalCode.PARENT_UNSUITABLE, text, "name the parent if that is meant")
    if _room_for_vports(state, device) == 0:
        text = f"{device} has no room for another virtual HBA ({capability.vport_ops.max_vports} at most)"
        return declined((device,), RefusalCode.PARENT_UNSUITABLE, text, "destroy one first, or choose another parent")
    return None


def _room_for_vports(state: State, device: DeviceId) -> int:
    """How many more virtual HBAs it can have, those counted that it is told to make; -1: it does not say."""
    capability = state.devices[device].description.capability
    ops = capability.vport_ops if isinstance(capability, ScsiHost) else None
    if ops is None or ops.max_vports < 0:
        return -1
    made = sum(isinstance(what, CreateVport) for what in _open_orders_on(state, device))
    return max(0, ops.max_vports - max(0, ops.vports) - made)


# --- mediated devices ---------------------------------------------------------------------------------------------


def _new_mdev(
    state: State, ref: RequestRef, new: NewMdev, host: str
) -> tuple[HostName, Order] | Declined:
    resolved = resolve(state, new.parent, host)
    if resolved.device is None:
        return Declined((new.parent,), unresolved(resolved))
    parent = resolved.device
    row = state.devices[parent]
    why_not = _kept_from(state, ref, parent) or _unfit_for_mdev(state, parent, new.mdev_type)
    if why_not is not None:
        return why_not
    uuid = new.uuid or _made_up_uuid(state, ref, row.host)
    taken = _taken(state, parent, mark_of_uuid(row.host, uuid), f"the UUID {uuid}")
    if taken is not None:
        return taken
    return row.host, CreateMdev(parent=row.description.key, mdev_type=new.mdev_type, uuid=uuid)


def _unfit_for_mdev(state: State, device: DeviceId, mdev_type: str) -> Declined | None:
    types = _mdev_types(state, device)
    offered = next((each for each in types if each.id == mdev_type), None)
    if offered is None:
        names = ", ".join(each.id for each in types[: limits.CANDIDATES_PER_REFUSAL_MAX])
        text = f"{device} offers no mediated devices of the type {mdev_type}"
        help_text = f"it offers {names}" if names else "list the devices with the capability mdev_types"
        return declined((device,), RefusalCode.PARENT_UNSUITABLE, text, help_text)
    made = sum(
        isinstance(what, CreateMdev) and what.mdev_type == mdev_type for what in _open_orders_on(state, device)
    )
    if 0 <= offered.available_instances <= made:
        text = f"{device} has no room for another mediated device of the type {mdev_type}"
        return declined((device,), RefusalCode.PARENT_UNSUITABLE, text, "destroy one first, or choose another parent")
    return None


def _mdev_types(state: State, device: DeviceId) -> tuple[MdevType, ...]:
    capability = state.devices[device].description.capability
    return capability.mdev_types if isinstance(capability, Pci | Ccw | MdevParent) else ()


def _made_up_uuid(state: State, ref: RequestRef, host: HostName) -> str:
    """A UUID of version 8 (RFC 9562, 5.8) from the SHA-256 over cluster, host, principal, request id and a counter that
    goes up until nothing on the host bears it.
    """
    counter = 0
    while True:
        digest = bytearray(_digest(state, ref, host, f"uuid {counter}")[:16])
        digest[6] = 0x80 | digest[6] & 0x0F
        digest[8] = 0x80 | digest[8] & 0x3F
        text = digest.hex()
        uuid = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
        mark = mark_of_uuid(host, uuid)
        if mark not in state.indexes.marks and mark not in state.indexes.ordered_marks:
            return uuid
        counter += 1


# --- virtual functions --------------------------------------------------------------------------------------------


def _new_virtual_functions(
    state: State, ref: RequestRef, new: NewVirtualFunctions, host: str
) -> tuple[HostName, Order] | Declined:
    """How many there are is set through none at all: so none that is there may be anybody's, or in use."""
    resolved = resolve(state, new.parent, host)
    if resolved.device is None:
        return Declined((new.parent,), unresolved(resolved))
    parent = resolved.device
    row = state.devices[parent]
    capability = row.description.capability
    most = capability.virtual_functions_max if isinstance(capability, Pci) else 0
    if not most:
        help_text = "list the devices with the capability virt_functions"
        return declined(
            (parent,), RefusalCode.PARENT_UNSUITABLE, f"{parent} can have no virtual functions", help_text
        )
    if new.count > most:
        text = f"{parent} can have {most} virtual functions at most"
        return declined((parent,), RefusalCode.PARENT_UNSUITABLE, text, f"ask for 0 to {most}")
    order = SetVirtualFunctions(parent=row.description.key, count=new.count)
    parts = [each for each in conflicts.virtual_functions_of(state, parent) if not state.devices[each].missing]
    why_not = _kept_from(state, ref, parent) or _ordered_on(state, parent, parts)
    why_not = why_not or next(filter(None, (_needed(state, each) for each in (parent, *parts))), None)
    return why_not or (row.host, order)


def _ordered_on(state: State, parent: DeviceId, parts: list[DeviceId]) -> Declined | None:
    for each in (parent, *parts):
        for order in state.indexes.orders_on.get(each, ()):
            text = f"order {order} about {each} is not over"
            return declined((parent,), RefusalCode.DEVICE_IN_USE, text, "wait until it is")
    return None


# --- taking away --------------------------------------------------------------------------------------------------


def _to_destroy(
    state: State, ref: RequestRef, request: inputs.DestroyDeviceRequest
) -> tuple[HostName, Order] | Declined:
    resolved = resolve(state, request.device, request.host)
    if resolved.device is None:
        return Declined((request.device,), unresolved(resolved))
    device = resolved.device
    row = state.devices[device]
    order = _order_to_destroy(state, device)
    if order is None:
        text = f"{device} is neither a virtual HBA nor a mediated device"
        return declined((device,), RefusalCode.NOT_DESTROYABLE, text, "only what was made can be destroyed")
    parent = device_id(row.host, order.parent)
    why_not = (
        _kept_from(state, ref, device, parent) or _needed(state, device) or _ordered_already(state, device, order)
    )
    return why_not or (row.host, order)


def _ordered_already(state: State, device: DeviceId, order: Order) -> Declined | None:
    """Whether it is being taken away, or is still being made for all that is told."""
    for mark in marks_of(state.devices[device].host, order):
        for other in state.indexes.ordered_marks.get(mark, ()):
            text = f"order {other} about {device} is not over"
            return declined((device,), RefusalCode.NOT_DESTROYABLE, text, "wait until it is")
    return None


def _order_to_destroy(state: State, device: DeviceId) -> DestroyMdev | DestroyVport | None:
    description = state.devices[device].description
    capability = description.capability
    parent = DeviceKey(description.physical_function or description.parent)
    if isinstance(capability, Mdev) and parent:
        return DestroyMdev(device=description.key, parent=parent, uuid=capability.uuid)
    if isinstance(capability, ScsiHost) and capability.is_vport and capability.fc_host is not None and parent:
        names = capability.fc_host
        return DestroyVport(device=description.key, parent=parent, wwnn=names.wwnn, wwpn=names.wwpn)
    return None


def _needed(state: State, device: DeviceId) -> Declined | None:
    """Why it must stay: it is leased, by whomever; used, or needed by the host, itself or what is below it."""
    row = state.devices[device]
    if row.lease:
        return _held(state, device, device)
    if row.sharers:
        return _shared(state, device, device)
    for each in (device, *conflicts.descendants(state, device)):
        below = state.devices.get(each)
        if below is None or below.missing:
            continue
        if below.description.protections:
            text = f"the host itself needs {each} ({', '.join(below.description.protections)})"
            return declined((device,), RefusalCode.DEVICE_PROTECTED, text, "free the host of it first")
        users = conflicts.users_of(state, below)
        if users:
            return _used(device, each, users)
    return None
