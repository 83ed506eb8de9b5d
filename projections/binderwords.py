"""Deciding on what a binder says of the devices that it hands over and takes back.

Words of one message are taken in order, each on what those before it will have made of the leases: that one cannot be
handed over, and that its devices are the host's again, come together. Words of leases that are over, or were never
there, of devices that are not known, and of others than the binder of a managed host, are left out. What is known
already makes no event, and no word makes more than one.
"""

from typing import Any

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.event_types import Event
from leasehold.events.hostdev_events import DeviceGivenBack, DevicePrepared, DeviceQuarantined, PrepareFailed
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.projections import failing
from leasehold.projections.rows import Binding, DeviceState, Quarantine
from leasehold.projections.state import State


class _Device:
    """A device as it will be behind the words that were taken."""

    def __init__(self, row: DeviceState) -> None:
        self.lease = row.lease
        self.binding = row.binding
        self.quarantine = row.quarantine if failing.is_stuck(row.quarantine) else None
        """That of its binder; what has failed too often may still be told to be stuck, and not to be any more."""


class BinderWords:
    """What one message of a host's agent says of handing over and taking back."""

    def __init__(self, state: State, host: HostName, agent: str, now_ns: int) -> None:
        self._state = state
        self._host = host
        self._now_ns = now_ns
        self._counts = agent == inputs.BINDER and state.hosts[host].mode == "managed"
        self._devices: dict[DeviceId, _Device] = {}
        self._ended: set[int] = set()

    def take(self, word: Any) -> Event | None:
        """What follows from the next word, one of `inputs.WORDS_OF_BINDERS`; `None` if nothing does."""
        if not self._counts:
            return None
        if isinstance(word, inputs.LetGo):
            return self._let_go(word.lease)
        device = self._device(word.key)
        if device is None:
            return None
        match word:
            case inputs.Prepared():
                return self._prepared(device, word)
            case inputs.NotPrepared():
                return self._not_prepared(device, word)
            case inputs.GivenBack():
                return self._given_back(device, word)
            case _:
                return self._stuck(device, word)

    def _device(self, key: DeviceKey) -> _Device | None:
        device = device_id(self._host, key)
        known = self._devices.get(device)
        if known is None:
            row = self._state.devices.get(device)
            if row is None:
                return None
            known = self._devices[device] = _Device(row)
        return known

    def _lives(self, lease: int) -> bool:
        row = self._state.leases.get(lease)
        return row is not None and not row.ended and lease not in self._ended

    def _prepared(self, device: _Device, word: inputs.Prepared) -> Event | None:
        if device.lease != word.lease or not self._lives(word.lease):
            return None
        said = Binding(
            lease=word.lease, driver=word.driver, was_driver=word.was_driver, reset=word.reset, position=0, at_ns=0
        )
        if device.binding is not None and _same(device.binding, said):
            return None
        device.binding = said
        return DevicePrepared(
            host=self._host,
            key=word.key,
            lease=word.lease,
            driver=word.driver,
            was_driver=word.was_driver,
            reset=word.reset,
        )

    def _not_prepared(self, device: _Device, word: inputs.NotPrepared) -> Event | None:
        if device.lease != word.lease or not self._lives(word.lease):
            return None
        self._ended.add(word.lease)
        return PrepareFailed(host=self._host, key=word.key, lease=word.lease, reason=word.reason)

    def _given_back(self, device: _Device, word: inputs.GivenBack) -> Event | None:
        holds = bool(word.lease) and device.lease == word.lease
        quarantine, binding = device.quarantine, device.binding
        if holds and self._lives(word.lease):
            return None
        if holds:
            if quarantine is None and binding is not None and binding.given_back:
                return None
            before = binding or Binding(lease=word.lease, position=0, at_ns=0)
            device.binding = msgspec.structs.replace(before, driver=word.driver, given_back=True)
        elif quarantine is None or not _ends(word.lease, quarantine, held_by=device.lease):
            return None
        device.quarantine = None
        return DeviceGivenBack(host=self._host, key=word.key, lease=word.lease, driver=word.driver)

    def _stuck(self, device: _Device, word: inputs.Stuck) -> Event | None:
        lease = word.lease if word.lease in self._state.leases else 0
        said = Quarantine(lease=lease, reason=word.reason, help=word.help, position=0, at_ns=0)
        before = device.quarantine
        if before is not None and (before.lease, before.reason, before.help) == (lease, word.reason, word.help):
            return None
        device.quarantine = said
        return DeviceQuarantined(host=self._host, key=word.key, lease=lease, reason=word.reason, help=word.help)

    def _let_go(self, lease: int) -> Event | None:
        row = self._state.leases.get(lease)
        if row is None or not self._lives(lease) or not row.is_bound or row.hosts != (self._host,) or row.reserved_for:
            return None
        assert row.bond is not None
        self._ended.add(lease)
        return event_types.LeaseOutlived(lease=lease, domain=row.bond.uuid, gone_since_ns=self._now_ns)


def _same(known: Binding, said: Binding) -> bool:
    """Whether both say the same of a device that is prepared, whenever it was said."""
    return msgspec.structs.replace(known, position=0, at_ns=0) == said


def _ends(lease: int, quarantine: Quarantine, *, held_by: int) -> bool:
    """Whether a device's being given back behind this lease ends a quarantine that another lease, or none, has led to:
    of what holds the device now its binder must speak by name.
    """
    if lease == quarantine.lease or not quarantine.lease:
        return True
    return not lease and quarantine.lease != held_by
