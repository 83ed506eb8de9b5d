"""Handing over and taking back, as the log knows it: what events make of it, what binders are told, how it is shown.

What binders say is judged in `binderwords`, what people ask for in `hostdevs` and `operating`.
"""

from typing import Final

import msgspec

from leasehold.events.hostdev_events import (
    DeviceGivenBack,
    DevicePrepared,
    DeviceQuarantined,
    DriftDetected,
    DriftResolved,
    HostDeclaredDead,
)
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceId, HostName, device_id, split_device_id, split_domain_id
from leasehold.events.position import position_of_token
from leasehold.events.views import BindingView
from leasehold.projections import bonds, failing, remembering
from leasehold.projections.rows import AnswerState, Binding, DeviceState, Drift, LeaseState, Quarantine, SourceState
from leasehold.projections.state import State

_replace: Final = msgspec.structs.replace
_NO_MORE: Final = 2**53 - 1
"""As if a source had said all that it ever can: no word of that run counts any more."""


# --- what an event says of a device -------------------------------------------------------------------------------


def binding_of(event: DevicePrepared, position: int, at_ns: int) -> Binding:
    """How it was handed over."""
    return Binding(
        lease=event.lease,
        driver=event.driver,
        was_driver=event.was_driver,
        reset=event.reset,
        position=position,
        at_ns=at_ns,
    )


def back_of(before: Binding | None, event: DeviceGivenBack, position: int, at_ns: int) -> Binding:
    """How it was taken back from the lease that holds it; `before`: how it had been handed over, if it had."""
    was = before or Binding(lease=event.lease, position=position, at_ns=at_ns)
    return _replace(was, driver=event.driver, given_back=True, position=position, at_ns=at_ns)


def quarantine_of(event: DeviceQuarantined, position: int, at_ns: int) -> Quarantine:
    """Why nobody gets it."""
    return Quarantine(
        lease=event.lease,
        reason=event.reason,
        help=event.help,
        position=position,
        at_ns=at_ns,
        evidence=event.evidence or (),
    )


def drift_of(event: DriftDetected, position: int, at_ns: int) -> Drift:
    """How the witnesses differ about it."""
    return Drift(
        kind=event.kind,
        leased=event.leased,
        attached=event.attached,
        bound=event.bound,
        position=position,
        at_ns=at_ns,
    )


# --- folding ------------------------------------------------------------------------------------------------------


def prepared(state: State, position: int, at_ns: int, event: DevicePrepared) -> None:
    """A device of a living lease is ready for its holder."""
    device = device_id(event.host, event.key)
    row = state.devices[device]
    assert row.lease == event.lease, f"{device} is not held by lease {event.lease}"
    state.put_device(device, _replace(row, binding=binding_of(event, position, at_ns)))


def given_back(state: State, position: int, at_ns: int, event: DeviceGivenBack) -> None:
    """A device is its host's again."""
    device = device_id(event.host, event.key)
    row = state.devices[device]
    binding = row.binding
    if row.lease and row.lease == event.lease:
        binding = back_of(binding, event, position, at_ns)
    state.put_device(device, _replace(row, binding=binding, quarantine=failing.lasting(row.quarantine)))


def quarantined(state: State, position: int, at_ns: int, event: DeviceQuarantined) -> None:
    """Nobody gets it."""
    device = device_id(event.host, event.key)
    row = state.devices[device]
    marks = failing.stuck(row.marks, row.quarantine, event, position, at_ns)
    state.put_device(device, _replace(row, quarantine=quarantine_of(event, position, at_ns), marks=marks))


def declared_dead(state: State, position: int, at_ns: int, event: HostDeclaredDead) -> None:
    """Nothing of the host is believed but what new runs of its agents report: what is on its way is too late."""
    ref, row = event.request, state.hosts[event.host]
    dead = f"declared dead by {ref.principal}: {event.reason}"
    sources = {
        agent: SourceState(run=source.run, counter=_NO_MORE, stale="the host was declared dead")
        for agent, source in row.sources.items()
    }
    bonds.put_host(state, at_ns, event.host, _replace(row, sources=sources, dead=dead))
    answer = AnswerState(
        body_hash=ref.body_hash, verb="declare_dead", position=position, issued_at_ns=ref.issued_at_ns
    )
    remembering.remember_ended(state, at_ns, ref, answer)


def drift_detected(state: State, position: int, at_ns: int, event: DriftDetected) -> None:
    """The witnesses differ about a device."""
    state.put_device(event.device, _replace(state.devices[event.device], drift=drift_of(event, position, at_ns)))


def drift_resolved(state: State, _position: int, _at_ns: int, event: DriftResolved) -> None:
    """They do not differ in this way any more."""
    state.put_device(event.device, _replace(state.devices[event.device], drift=None))


# --- reading ------------------------------------------------------------------------------------------------------


def hold_of(state: State, device: DeviceId) -> Hold | None:
    """What a binder needs to know of a device of its host; `None`: it was never leased, and is in no quarantine."""
    row = state.devices[device]
    lease = state.leases.get(row.lease) if row.lease else None
    is_stuck = failing.is_stuck(row.quarantine)
    if lease is None:
        if not position_of_token(row.floor) and not is_stuck:
            return None
        return Hold(key=row.description.key, floor=row.floor, quarantined=is_stuck)
    binding = row.binding
    bond = lease.bond
    return Hold(
        key=row.description.key,
        floor=row.floor,
        lease=row.lease,
        token=0 if lease.ended else lease.token,
        granted_at_ns=lease.granted_at_ns,
        holder=lease.holder,
        domain=bond.uuid if bond is not None else "",
        keep=bond is not None and bond.keep,
        handover=lease.handover,
        prepared=binding is not None and not binding.given_back,
        given_back=binding is not None and binding.given_back,
        quarantined=is_stuck,
        revoked=lease.is_forced_off,
        forced=lease.forced,
        reserved=bool(lease.reserved_for),
        early=row.lease < state.hosts[row.host].managed_since,
        mates=tuple(
            key for host, key in map(split_device_id, lease.devices) if host == row.host and key != row.description.key
        ),
        attached=tuple(split_domain_id(domain)[1] for domain in state.attached_to(row)),
    )


def holds_of(state: State, host: HostName) -> list[Hold]:
    """What a host's binder needs to know of its devices, in the order of their ids. It walks over all devices."""
    prefix = f"{host}/"
    found = (hold_of(state, device) for device in sorted(state.devices) if device.startswith(prefix))
    return [hold for hold in found if hold is not None]


def binding_view(state: State, row: DeviceState) -> BindingView | None:
    """How far a physical device is handed over, or taken back; `None`: it is not, or nobody does so on its host."""
    binding, quarantine = row.binding, row.quarantine
    if quarantine is None and binding is None and not _is_binders(state, row):
        return None
    state_word = "quarantined" if quarantine is not None else _state_word(row)
    told = quarantine or binding
    return BindingView(
        state=state_word,
        driver=binding.driver if binding is not None else "",
        was_driver=binding.was_driver if binding is not None else "",
        reset=binding.reset if binding is not None else "",
        reason=quarantine.reason if quarantine is not None else "",
        help=quarantine.help if quarantine is not None else "",
        since_position=told.position if told is not None else row.since_position,
        since_ns=told.at_ns if told is not None else row.since_ns,
    )


def _state_word(row: DeviceState) -> str:
    if row.binding is not None and row.binding.given_back:
        return "given_back"
    if row.ending:
        return "giving_back"
    return "prepared" if row.binding is not None else "preparing"


def prepared_word(state: State, lease: LeaseState) -> str:
    """How far the devices of a lease are handed over: `preparing`, `prepared`, `taking_back`; empty: nobody hands over
    on its hosts, or it is over.
    """
    if lease.ended and not lease.held:
        return ""
    rows = [
        row
        for row in [state.devices[device] for device in lease.devices]
        if state.leases.get(row.lease) is lease and _is_binders(state, row)
    ]
    if not rows:
        return ""
    if lease.ended:
        return "taking_back"
    return "prepared" if all(row.binding is not None for row in rows) else "preparing"


def _is_binders(state: State, row: DeviceState) -> bool:
    """Whether a leased device is in a binder's hands; one leased before there was a binder its holder has already, and
    it comes into these hands by the lease's end.
    """
    host = state.hosts.get(row.host)
    if not row.lease or host is None or host.mode != "managed":
        return False
    return row.ending or row.binding is not None or row.lease >= host.managed_since
