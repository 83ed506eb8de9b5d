"""Host devices as libvirt's lists have them: active ones, which a living lease holds or a domain has, and inactive
ones, which nobody has and which are bound to a stub driver, ready to be had. Of all hosts and hypervisors, or of one
domain.
"""

import contextlib
import heapq
from collections.abc import Iterable
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError
from leasehold.events.hostdevs import STUBS
from leasehold.events.identities import DeviceId, DomainId, parse_uuid, split_domain_id, uuid_of
from leasehold.events.position import lease_id_text
from leasehold.events.views import HostdevView
from leasehold.projections import domains, nodedev
from leasehold.projections.rows import DeviceState, LeaseState
from leasehold.projections.state import State

ACTIVE: Final = "active"
INACTIVE: Final = "inactive"


def list_hostdevs(
    state: State,
    *,
    host: str = "",
    bus: str = "",
    in_state: str = "",
    domain: str = "",
    after: str = "",
    limit: int = limits.LIST_ROWS_MAX,
) -> tuple[list[HostdevView], bool]:
    """Host devices behind `after` in the order of their ids, at most `limit`; and whether there are more.

    `bus`: one of `hostdevs.BUSES`; `in_state`: `active` or `inactive`; `domain`: only those that this domain has or
    that are leased for it: by name, uuid, key or id; a uuid that no domain has is taken for one that leases are for.
    Empty: all.
    """
    only = _Users.called(state, domain) if domain else None
    devices: Iterable[DeviceId] = state.devices if only is None else only.devices(state)
    prefix = f"{host}/" if host else ""
    behind = (device for device in devices if device > after and device.startswith(prefix))
    found = (device for device in behind if _is_listed(state, state.devices[device], bus, in_state, only))
    ids = heapq.nsmallest(limit + 1, found)
    return [hostdev_view(state, device) for device in ids[:limit]], len(ids) > limit


class _Users(msgspec.Struct, frozen=True):
    """The domains that are meant by a text."""

    domains: frozenset[DomainId]
    uuids: frozenset[str]

    @classmethod
    def called(cls, state: State, text: str) -> "_Users":
        found = frozenset(domains.all_named(state, text))
        uuids = {_uuid(each) for each in found}
        if not found:
            with contextlib.suppress(InvalidInputError):
                uuids.add(parse_uuid(text))
        return cls(found, frozenset(uuids))

    def devices(self, state: State) -> frozenset[DeviceId]:
        """All that they may have, or that is leased for them."""
        devices: set[DeviceId] = set()
        for domain in self.domains:
            row = state.domains[domain]
            for use in row.uses:
                devices.update(state.named(row.host, use.device))
        for uuid in self.uuids:
            for lease in state.indexes.bonds.get(uuid, ()):
                devices.update(state.leases[lease].devices)
        return frozenset(devices)


def _is_listed(state: State, row: DeviceState, bus: str, in_state: str, only: _Users | None) -> bool:
    if bus and nodedev.bus_of(row.description) != bus:
        return False
    if row.description.kind == "usb_interface":
        return False  # its device stands for it
    lease = _living(state, row)
    attached = state.attached_to(row)
    if only is not None:
        is_for = lease is not None and lease.bond is not None and lease.bond.uuid in only.uuids
        if not is_for and only.domains.isdisjoint(attached):
            return False
    if lease is not None or attached:
        return in_state != INACTIVE
    return in_state != ACTIVE and row.description.driver in STUBS and not row.missing


def _living(state: State, row: DeviceState) -> LeaseState | None:
    return state.leases[row.lease] if row.lease and not row.ending else None


def hostdev_view(state: State, device: DeviceId) -> HostdevView:
    """One host device."""
    row = state.devices[device]
    lease = _living(state, row)
    attached = state.attached_to(row)
    user = attached[0] if attached else _for_whom(state, row, lease)
    binding = row.binding
    return HostdevView(
        device=device,
        name=row.description.name,
        bus=nodedev.bus_of(row.description),
        state=ACTIVE if lease is not None or attached else INACTIVE,
        lease=lease_id_text(row.lease) if lease is not None else "",
        holder=lease.holder if lease is not None else "",
        hypervisor=split_domain_id(user)[1].partition("/")[0] if user is not None else "",
        domain=_uuid(user) if user is not None else lease.bond.uuid if lease is not None and lease.bond else "",
        domain_name=state.domains[user].description.name if user is not None else "",
        attached=bool(attached),
        driver=row.description.driver,
        was_driver=binding.was_driver if binding is not None and not binding.given_back else "",
        prepared=lease is not None and binding is not None and not binding.given_back and binding.lease == row.lease,
    )


def _for_whom(state: State, row: DeviceState, lease: LeaseState | None) -> DomainId | None:
    """The known domain that a lease is for, on the host of the device."""
    if lease is None or lease.bond is None:
        return None
    called = state.indexes.domain_names.get(lease.bond.uuid, ())
    own = (each for each in called if state.domains[each].host == row.host and _uuid(each) == lease.bond.uuid)
    return next(own, None)


def _uuid(domain: DomainId) -> str:
    return uuid_of(split_domain_id(domain)[1])
