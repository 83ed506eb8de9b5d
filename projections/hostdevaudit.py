"""What must hold of devices that are handed out and taken back, in any log, by whichever rules: a part of the audit.

- What a binder tells stands in a message of that host's binder, word for word: that a device is prepared, or cannot be,
  for a lease that lives and holds it; that it is given back, for one that has ended, once; that it is stuck.
- On a managed host a device becomes free when it was given back for the lease that held it, or by an operator's word:
  of the device, or of the whole host, which is then dead until it has reported anew.
- Nothing is granted that is in quarantine, nor anything of a dead host.
- A lease is revoked, and a host declared dead, where just that is asked for; the host is not heard then.
- Of a device one difference between the three witnesses is told at a time, and is resolved before another is told.

Written apart from `hostdevs` and `drifting`, so that a mistake there is not made here, too.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from leasehold.events import event_types, hostdev_events, inputs
from leasehold.events.event_types import Event
from leasehold.events.hostdevs import DRIFTS, Truth
from leasehold.events.identities import DeviceId, HostName, device_id
from leasehold.events.inputs import BINDER, Asked, Input, Observed
from leasehold.events.position import lease_id_text

_TELL_NO_DEVICES: Final = (BINDER, inputs.CREATOR, inputs.POLLER)
_ByBinder = (
    hostdev_events.DevicePrepared
    | hostdev_events.PrepareFailed
    | hostdev_events.DeviceGivenBack
    | hostdev_events.DeviceQuarantined
)


class HeldBy(msgspec.Struct, frozen=True, gc=False):
    """The lease that holds a device; it lives, or has ended and the device is not free yet."""

    lease: int
    has_ended: bool


class _Agent(msgspec.Struct):
    """One that has begun to speak, and has not reported yet."""

    is_relied_on: bool = False
    has_reported: bool = False
    """All that it had to, since it last had to."""


class _Host(msgspec.Struct):
    """Of a host: who acts there, and who speaks."""

    is_managed: bool = False
    is_dead: bool = False
    agents: dict[str, _Agent] = {}

    def doubt(self) -> None:
        """All have to report anew."""
        self.agents = {agent: _Agent() for agent in self.agents}

    def has_reported(self) -> bool:
        """Whether the binder has, or where there is none, who tells of devices."""
        if BINDER in self.agents:
            return self.agents[BINDER].has_reported
        return any(each.has_reported for agent, each in self.agents.items() if agent not in _TELL_NO_DEVICES)


class HostdevAudit:
    """The devices of a log, as binders and operators tell of them."""

    TYPES: Final = frozenset(
        {
            event_types.HostRegistered,
            event_types.SourceStarted,
            event_types.SourceStopped,
            event_types.HostWentStale,
            event_types.HostCameBack,
            event_types.ReportRequested,
            event_types.PictureCompleted,
            event_types.AgentRetired,
            event_types.LedgerRestored,
            event_types.LeaseGranted,
            event_types.DeviceFreed,
            hostdev_events.DevicePrepared,
            hostdev_events.PrepareFailed,
            hostdev_events.DeviceGivenBack,
            hostdev_events.DeviceQuarantined,
            hostdev_events.LeaseRevoked,
            hostdev_events.HostDeclaredDead,
            hostdev_events.DriftDetected,
            hostdev_events.DriftResolved,
        }
    )
    """What has to be looked at; the others say nothing of it."""

    def __init__(self, held: Callable[[DeviceId], HeldBy | None]) -> None:
        """`held` tells who holds a device at the event that is looked at."""
        self.told = 0
        """How many words of binders became events."""
        self._held = held
        self._hosts: dict[HostName, _Host] = {}
        self._given_back: dict[DeviceId, int] = {}
        """For which lease, as long as that holds the device."""
        self._quarantined: set[DeviceId] = set()
        self._drifts: dict[DeviceId, tuple[str, int]] = {}
        """Kind and position of what is told and not resolved."""

    def is_quarantined(self, device: DeviceId) -> bool:
        """Whether its host could not bring it into order."""
        return device in self._quarantined

    def is_dead(self, host: HostName) -> bool:
        """Whether it was declared dead, and has not reported anew."""
        row = self._hosts.get(host)
        return row is not None and row.is_dead

    def take(self, position: int, given: Input, event: Event) -> str:
        """Look at the next event: what is wrong with it; empty: nothing."""
        match event:
            case event_types.LeaseGranted():
                return self._grant(event)
            case event_types.DeviceFreed():
                return self._free(event)
            case hostdev_events.LeaseRevoked():
                return _revoked(given, event) if not isinstance(given, inputs.Tick) else ""
            case hostdev_events.DeviceQuarantined() if event.evidence:
                return ""  # whether it failed so often is looked at elsewhere
            case hostdev_events.HostDeclaredDead():
                return self._declare_dead(given, event)
            case hostdev_events.DriftDetected() | hostdev_events.DriftResolved():
                return self._drift(position, given, event)
            case (
                hostdev_events.DevicePrepared()
                | hostdev_events.PrepareFailed()
                | hostdev_events.DeviceGivenBack()
                | hostdev_events.DeviceQuarantined()
            ):
                self.told += 1
                return self._by_binder(given, event)
        self._of_host(event)
        return ""

    # --- hosts ------------------------------------------------------------------------------------------------------

    def _of_host(self, event: Event) -> None:
        if isinstance(event, event_types.LedgerRestored):
            for each in self._hosts.values():
                each.doubt()
            return
        host = self._hosts.setdefault(getattr(event, "host"), _Host())  # noqa: B009
        match event:
            case event_types.HostRegistered():
                host.is_managed = event.mode == "managed"
            case event_types.SourceStarted() | event_types.SourceStopped() | event_types.ReportRequested():
                # It may fall silent before it has told all, and that is told of nobody: it is not relied on.
                host.agents[event.agent] = _Agent()
            case event_types.HostWentStale() | event_types.HostCameBack():
                agent = host.agents.setdefault(event.agent, _Agent())
                agent.is_relied_on = isinstance(event, event_types.HostCameBack)
            case event_types.AgentRetired():
                host.agents.pop(event.agent, None)
                # Without a binder nobody hands over there any more: who looks is believed.
                host.is_managed = host.is_managed and event.agent != BINDER
                host.is_dead = host.is_dead and not host.has_reported()
            case event_types.PictureCompleted():
                host.agents[event.agent] = _Agent(is_relied_on=True, has_reported=True)
                # Who acts there has looked at all that he had done; where nobody does, it is seen who uses what.
                host.is_dead = host.is_dead and not host.has_reported()

    def _declare_dead(self, given: Input, event: hostdev_events.HostDeclaredDead) -> str:
        request = given.request if isinstance(given, Asked) else None
        if not isinstance(request, inputs.DeclareDeadRequest) or request.host != event.host:
            return f"{event.host} is declared dead, but nobody has said so"
        host = self._hosts.get(event.host)
        if host is None:
            return f"{event.host} is declared dead, but is not known"
        heard = [agent for agent, each in host.agents.items() if each.is_relied_on]
        if heard:
            return f"{event.host} is declared dead, but its {heard[0]} is heard"
        host.doubt()
        host.is_dead = True
        return ""

    # --- devices ----------------------------------------------------------------------------------------------------

    def _by_binder(self, given: Input, event: _ByBinder) -> str:
        device = device_id(event.host, event.key)
        if not _says(given, event):
            return f"{event.__struct_config__.tag} of {device} stands here, but its host's binder has not said so"
        held = self._held(device)
        match event:
            case hostdev_events.DevicePrepared() | hostdev_events.PrepareFailed():
                if held is None or held.lease != event.lease or held.has_ended:
                    how = "prepared" if isinstance(event, hostdev_events.DevicePrepared) else "not to be prepared"
                    return f"{device} is {how} for {lease_id_text(event.lease)}, which does not live and hold it"
            case hostdev_events.DeviceGivenBack():
                if held is not None and held.lease == event.lease and not held.has_ended:
                    return f"{device} is given back, but its lease {lease_id_text(event.lease)} lives"
                is_again = event.lease and self._given_back.get(device) == event.lease
                if is_again and device not in self._quarantined:
                    return f"{device} is given back twice for {lease_id_text(event.lease)}"
                if held is not None and held.lease == event.lease:
                    self._given_back[device] = event.lease
                self._quarantined.discard(device)
            case hostdev_events.DeviceQuarantined():
                self._quarantined.add(device)
        return ""

    def _grant(self, event: event_types.LeaseGranted) -> str:
        for device in event.devices if event.mode != "admin" else ():
            if device in self._quarantined:
                return f"{device} is granted, but its host could not bring it into order"
            host = self._hosts.get(_host_of(device))
            if host is not None and host.is_dead:
                return f"{device} is granted, but its host is dead"
        return ""

    def _free(self, event: event_types.DeviceFreed) -> str:
        device, host = event.device, self._hosts.get(_host_of(event.device))
        is_back = self._given_back.pop(device, 0) == event.lease
        if not event.lease and device not in self._quarantined:
            return f"{device} becomes free of no lease, and is in no quarantine"
        if event.request is not None:
            self._quarantined.discard(device)
            return ""
        if host is not None and host.is_managed and not host.is_dead and not is_back:
            return f"{device} becomes free, but the binder of its host has not given it back"
        return ""

    # --- what does not agree ----------------------------------------------------------------------------------------

    def _drift(
        self, position: int, given: Input, event: hostdev_events.DriftDetected | hostdev_events.DriftResolved
    ) -> str:
        told = self._drifts.pop(event.device, None)
        if not isinstance(given, inputs.Tick):
            return f"{event.device} is said to be {event.kind}, or not any more, but not by time"
        if isinstance(event, hostdev_events.DriftResolved):
            if told != (event.kind, event.since_position):
                return f"that {event.device} is {event.kind} is resolved, but was not told at {event.since_position}"
            return ""
        self._drifts[event.device] = (event.kind, position)
        if event.kind not in DRIFTS:
            return f"{event.device} is said to be {event.kind}, which is no drift"
        if told is not None:
            return f"{event.device} is said to be {event.kind}, but was {told[0]} and that is not resolved"
        truths: tuple[Truth, ...] = (event.leased, event.attached, event.bound)
        if any(not 0 <= truth.position < position for truth in truths):
            return f"{event.device} is said to be {event.kind} by events that come later"
        return ""


def _host_of(device: DeviceId) -> HostName:
    return HostName(device.partition("/")[0])


def _revoked(given: Input, event: hostdev_events.LeaseRevoked) -> str:
    request = given.request if isinstance(given, Asked) else None
    if not isinstance(request, inputs.RevokeRequest) or (request.lease, request.force) != (event.lease, event.force):
        return f"lease {lease_id_text(event.lease)} is revoked, but not as it was asked for"
    return ""


def _says(given: Input, event: _ByBinder) -> bool:
    """Whether the binder of the host says just this here."""
    if not isinstance(given, Observed) or (given.host, given.agent) != (event.host, BINDER):
        return False
    if isinstance(event, hostdev_events.DeviceQuarantined) and not event.lease:
        # It may have been said of a lease that the ledger does not have.
        stuck = [word for word in given.observations if isinstance(word, inputs.Stuck)]
        return (event.key, event.reason, event.help) in ((word.key, word.reason, word.help) for word in stuck)
    return _word_of(event) in given.observations


def _word_of(event: _ByBinder) -> inputs.Observation:
    match event:
        case hostdev_events.DevicePrepared():
            return inputs.Prepared(event.key, event.lease, event.driver, event.was_driver, event.reset)
        case hostdev_events.PrepareFailed():
            return inputs.NotPrepared(event.key, event.lease, event.reason)
        case hostdev_events.DeviceGivenBack():
            return inputs.GivenBack(event.key, event.lease, event.driver)
        case hostdev_events.DeviceQuarantined():
            return inputs.Stuck(event.key, event.lease, event.reason, event.help)
