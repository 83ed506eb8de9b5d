"""Sentences about devices that are handed over and taken back, and about truths that differ: a part of `telling`."""

from collections.abc import Callable
from typing import Any, Final

from leasehold.events import hostdev_events, hostdevs
from leasehold.events.hostdevs import Handover, Truth
from leasehold.projections.state import State
from leasehold.projections.wording import asked_text, lease_text


def handover_text(handover: Handover) -> str:
    """How the devices of a lease are to be handed over."""
    if handover.unmanaged:
        return "unmanaged: they are on a stub driver already, and stay there"
    return f"to be bound to {handover.driver}" if handover.driver else ""


def reset_text(reset: str) -> str:
    """How a device was reset; empty: it was not."""
    return _RESETS.get(reset, reset) if reset else ""


_RESETS: Final = {
    "flr": "a function level reset",
    "af_flr": "a function level reset (AF)",
    "pm": "a power cycle of the function",
    "bus": "a reset of its bus",
    "device_specific": "a reset of its own kind",
    "stub": "the stub's own reset",
    "usb": "a reset of its port",
}


def _device_prepared(event: hostdev_events.DevicePrepared, _position: int, state: State | None) -> str:
    before = f", was {event.was_driver}" if event.was_driver and event.was_driver != event.driver else ""
    bound = f"bound to {event.driver}{before}" if event.driver else f"off its host drivers{before}"
    reset = f"reset by {reset_text(event.reset)}" if event.reset else "not reset"
    return f"{event.host}/{event.key} is prepared for {lease_text(event.lease, state)}: {bound}, {reset}"


def _prepare_failed(event: hostdev_events.PrepareFailed, _position: int, state: State | None) -> str:
    what = f"{event.host}/{event.key} could not be prepared: {event.reason}"
    return f"{lease_text(event.lease, state)} ended, for {what}"


def _device_given_back(event: hostdev_events.DeviceGivenBack, _position: int, state: State | None) -> str:
    behind = f" by {lease_text(event.lease, state)}" if event.lease else ", whoever had it"
    now = f"it is on {event.driver} now" if event.driver else "it is on no driver, as before"
    return f"{event.host}/{event.key} was given back{behind}: {now}"


def _device_quarantined(event: hostdev_events.DeviceQuarantined, _position: int, state: State | None) -> str:
    behind = f" behind {lease_text(event.lease, state)}" if event.lease else ""
    way_out = f" (what helps: {event.help})" if event.help else ""
    return f"{event.host}/{event.key} is in quarantine{behind}: {event.reason}{way_out}"


def _lease_revoked(event: hostdev_events.LeaseRevoked, _position: int, state: State | None) -> str:
    force = ", its devices are taken even from a domain that has them" if event.force else ""
    return f"{lease_text(event.lease, state)} revoked{force}: {event.reason} ({asked_text(event.request)})"


def _host_declared_dead(event: hostdev_events.HostDeclaredDead, _position: int, _state: State | None) -> str:
    return (
        f"host {event.host} is declared dead: {event.reason}; what its ended leases held is free, and nothing of it is "
        f"granted before it has reported anew ({asked_text(event.request)})"
    )


def _drift_detected(event: hostdev_events.DriftDetected, _position: int, _state: State | None) -> str:
    truths = "; ".join(
        f"{who}: {truth_text(truth)}"
        for who, truth in (("ledger", event.leased), ("hypervisors", event.attached), ("host", event.bound))
    )
    return f"{event.device} is not as it should be, {hostdevs.DRIFTS.get(event.kind, event.kind)} ({truths})"


def truth_text(truth: Truth) -> str:
    """What a witness says, and since which event."""
    return f"{truth.says}, since position {truth.position}" if truth.position else truth.says


def _drift_resolved(event: hostdev_events.DriftResolved, _position: int, _state: State | None) -> str:
    what = hostdevs.DRIFTS.get(event.kind, event.kind)
    return f"{event.device}: it is over that {what} (told at position {event.since_position})"


TELLERS: Final[dict[type[Any], Callable[[Any, int, State | None], str]]] = {
    hostdev_events.DevicePrepared: _device_prepared,
    hostdev_events.PrepareFailed: _prepare_failed,
    hostdev_events.DeviceGivenBack: _device_given_back,
    hostdev_events.DeviceQuarantined: _device_quarantined,
    hostdev_events.LeaseRevoked: _lease_revoked,
    hostdev_events.HostDeclaredDead: _host_declared_dead,
    hostdev_events.DriftDetected: _drift_detected,
    hostdev_events.DriftResolved: _drift_resolved,
}
