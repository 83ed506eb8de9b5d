"""What must hold of waiting, sharing, quotas and operators' words on devices, in any log: a part of the audit.

- Who waits has asked for that, stands where age and priority put him, and ends once: by a grant of what he asked for,
  by his own or an operator's word, or by time. What is kept for him nobody behind him gets.
- What is shared is shared by no more than its policy says, and by nobody while one has it alone, nor the other way.
- Nothing is granted to who does not wait through: a cordon, a taint that he does not tolerate, a clean-up that is owed
  to another tenant, a quarantine for failures. Who only looks on is kept away by none of these.
- A quota is not exceeded by a grant, counted as the grants say.
- A lease ends by a taint when that says so, and does not tolerate it. A quarantine names failures that there were.
- Of each need so many devices are granted as were asked for, and each device for one need. Whether they match is not
  looked at: selectors are read by nobody here.

Written apart from `conflicts`, `waiting`, `quotas` and `marking`, so that a mistake there is not made here, too.
"""

from typing import Final

import msgspec

from leasehold.events import event_types, hostdev_events, inputs, limits, schedule_events, schedule_inputs
from leasehold.events.event_types import Event, LeaseGranted
from leasehold.events.identities import DeviceId, HostName, Principal, RequestRef, device_id
from leasehold.events.inputs import Asked, Input, LeaseRequest
from leasehold.events.position import lease_id_text
from leasehold.events.scheduling import Need, Option, Policy, Taint

_NS_PER_MS: Final = 1_000_000
_LAST: Final = 2**63
"""Of those who have one rank, who does not wait comes behind all who do."""


class _Queued(msgspec.Struct, kw_only=True):
    """A request that waits."""

    request: RequestRef
    asked: LeaseRequest
    place: tuple[int, int]
    until_ns: int
    keeps: tuple[DeviceId, ...]


class _Lease(msgspec.Struct, kw_only=True):
    """A lease that lives, or still holds something."""

    tenant: Principal
    mode: str
    tolerates: tuple[str, ...]
    devices: tuple[DeviceId, ...]
    held: int
    charges: dict[DeviceId, tuple[str, ...]]
    reserved_for: int = 0


class _Taint(msgspec.Struct, frozen=True):
    """A taint, and the request that put it there."""

    taint: Taint
    request: RequestRef


class ScheduleAudit:
    """What of a log is about scheduling."""

    def __init__(self) -> None:
        self.queued = 0
        """How many requests have waited so far."""
        self._queue: dict[int, _Queued] = {}
        self._keeping: dict[DeviceId, set[int]] = {}
        self._leases: dict[int, _Lease] = {}
        self._sharers: dict[DeviceId, set[int]] = {}
        self._alone: dict[DeviceId, int] = {}
        self._quotas: dict[tuple[Principal, str], int] = {}
        self._used: dict[tuple[Principal, str], int] = {}
        self._classes: set[str] = set()
        self._cordoned: set[str] = set()
        """Hosts and devices."""
        self._taints: dict[str, dict[str, _Taint]] = {}
        self._policies: dict[DeviceId, Policy] = {}
        self._unclean: dict[DeviceId, Principal] = {}
        self._failures: dict[DeviceId, dict[int, int]] = {}
        self._sick: set[DeviceId] = set()
        self._given: Input | None = None
        """What is being decided."""
        self._lost: dict[DeviceId, tuple[int, int]] = {}
        """What by that is not kept any more, and for whom it was, by his place."""
        self._at_ns = 0

    def asked_for(self, queued: int) -> LeaseRequest | None:
        """What somebody wants who waits there."""
        row = self._queue.get(queued)
        return row.asked if row is not None else None

    def stands_in_for(self, lease: int) -> int:
        """For which other a lease is reserved, and does not count yet; 0: for none."""
        row = self._leases.get(lease)
        return row.reserved_for if row is not None else 0

    def take(self, position: int, at_ns: int, given: Input, event: Event) -> str:
        """Look at the next event: what is wrong with it; empty: nothing."""
        self._at_ns = at_ns
        if given is not self._given:
            self._given, self._lost = given, {}
        match event:
            case LeaseGranted():
                return self._grant(position, given, event)
            case event_types.LeaseReleased() | event_types.LeaseExpired() | event_types.LeaseOutlived():
                self._end(event.lease)
            case hostdev_events.LeaseRevoked():
                wrong = self._evicted(event) if isinstance(given, inputs.Tick) else ""
                self._end(event.lease)
                return wrong
            case hostdev_events.PrepareFailed():
                self._fail(position, device_id(event.host, event.key))
                self._end(event.lease)
            case hostdev_events.DeviceQuarantined():
                return self._quarantine(position, given, event)
            case event_types.DeviceMissing():
                self._lose(position, device_id(event.host, event.key))
            case event_types.DeviceReplaced():
                self._lose(position, device_id(event.host, event.device.key))
            case event_types.DeviceFreed():
                self._free(event)
            case _:
                return self._of_queue(position, given, event) or self._of_operators(event)
        return ""

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _of_queue(self, position: int, given: Input, event: Event) -> str:
        match event:
            case schedule_events.RequestQueued():
                return self._wait(position, given, event)
            case schedule_events.QueuedMoved():
                row = self._queue.get(event.queued)
                if row is None:
                    return f"something is kept for {event.queued}, where nobody waits"
                self._lost.update(dict.fromkeys(set(row.keeps) - set(event.keeps), row.place))
                self._keep(event.queued, row, event.keeps)
                return self._kept_twice(row.place, event.keeps)
            case schedule_events.RequestWithdrawn():
                return self._withdraw(given, event.queued)
            case schedule_events.WaitingEnded():
                row = self._queue.get(event.queued)
                if row is not None and self._at_ns < row.until_ns:
                    return f"{event.queued} waits no more before its time"
                return self._leave(event.queued)
        return ""

    def _wait(self, position: int, given: Input, event: schedule_events.RequestQueued) -> str:
        self.queued += 1
        asked = given.request if isinstance(given, Asked) else None
        if asked != event.asked or not event.asked.wait_ms:
            return f"request {event.request.request_id} waits, but not as it was asked for"
        rank_ns = self._at_ns - event.asked.priority * limits.PRIORITY_STEP_NS
        if (event.rank_ns, event.until_ns) != (rank_ns, self._at_ns + event.asked.wait_ms * _NS_PER_MS):
            return f"request {event.request.request_id} waits, but in another place or for another time"
        row = _Queued(
            request=event.request, asked=event.asked, place=(rank_ns, position), until_ns=event.until_ns, keeps=()
        )
        self._queue[position] = row
        self._keep(position, row, event.keeps)
        return self._kept_twice(row.place, event.keeps)

    def _withdraw(self, given: Input, queued: int) -> str:
        """One's own is withdrawn; an operator revokes anybody's."""
        request, row = given.request if isinstance(given, Asked) else None, self._queue.get(queued)
        match request:
            case schedule_inputs.WithdrawRequest() if request.queued == queued:
                if row is not None and isinstance(given, Asked) and given.principal != row.request.principal:
                    return f"{given.principal} withdraws what {row.request.principal} waits for"
            case inputs.RevokeRequest() if request.lease == queued:
                pass
            case _:
                return f"{queued} is withdrawn, but nobody asked for that"
        return self._leave(queued)

    def _keep(self, queued: int, row: _Queued, keeps: tuple[DeviceId, ...]) -> None:
        for device in row.keeps:
            keepers = self._keeping[device]
            keepers.remove(queued)
            if not keepers:
                del self._keeping[device]
        row.keeps = tuple(dict.fromkeys(keeps))
        for device in row.keeps:
            self._keeping.setdefault(device, set()).add(queued)

    def _keeper(self, device: DeviceId, place: tuple[int, int]) -> int:
        """For whom a device is kept who comes before this place; 0: for nobody."""
        places = (self._queue[queued].place for queued in self._keeping.get(device, ()))
        first = min(places, default=place)
        return first[1] if first < place else 0

    def _kept_twice(self, place: tuple[int, int], keeps: tuple[DeviceId, ...]) -> str:
        for device in keeps:
            keeper = self._keeper(device, place)
            if keeper:
                return f"{device} is kept for {place[1]}, but {keeper} comes before, for whom it is kept"
        return ""

    def _leave(self, queued: int) -> str:
        row = self._queue.get(queued)
        if row is None:
            return f"{queued} waits no more, but nobody waited there"
        self._keep(queued, row, ())
        del self._queue[queued]
        return ""

    # --- grants -----------------------------------------------------------------------------------------------------

    def _grant(self, position: int, given: Input, event: LeaseGranted) -> str:
        asked, mode = given.request if isinstance(given, Asked) else None, event.mode or ""
        if event.queued:
            row = self._queue.get(event.queued)
            if row is None or not isinstance(given, inputs.Tick):
                return f"{event.queued} is granted a lease, but nobody waits there, or not by time"
            if row.request != event.request:
                return f"what {event.queued} has waited for is granted to another"
            place, asked = row.place, row.asked
            self._leave(event.queued)
        else:
            # Behind those who wait and have this place.
            place = (self._at_ns - getattr(asked, "priority", 0) * limits.PRIORITY_STEP_NS, _LAST)
        tolerates, wanted = event.tolerates or (), getattr(asked, "mode", "")
        if mode != wanted or (isinstance(asked, LeaseRequest) and tolerates != asked.tolerates):
            return f"a lease for {event.holder} is granted in another mode, or with other tolerations, than was asked"
        wrong = _counted(event, getattr(asked, "needs", ()))
        charges = event.charges or ((),) * len(event.devices)
        if len(charges) != len(event.devices):
            return f"a lease of {len(event.devices)} devices is charged for {len(charges)}"
        lease = _Lease(
            tenant=event.tenant, mode=mode, tolerates=tolerates, devices=event.devices,
            held=0 if mode else len(event.devices), charges=dict(zip(event.devices, charges, strict=True)),
            reserved_for=event.reserved_for or 0,
        )  # fmt: skip
        for device in event.devices if mode != "admin" else ():
            wrong = wrong or self._kept_away(device, lease, place) or self._not_shared(device, mode)
        self._leases[position] = lease
        for device in event.devices:
            if mode == "shared":
                self._sharers.setdefault(device, set()).add(position)
            elif not mode:
                self._alone[device] = position
        return wrong or self._charge(lease)

    def _kept_away(self, device: DeviceId, lease: _Lease, place: tuple[int, int]) -> str:
        if not self._cordoned.isdisjoint(_targets(device)):
            return f"{device} is granted, but it or its host is cordoned"
        for target in _targets(device):
            for each in self._taints.get(target, {}).values():
                if not _is_tolerated(each.taint, lease.tolerates):
                    return f"{device} is granted to who does not tolerate the taint {each.taint.name} of {target}"
        if device in self._sick:
            return f"{device} is granted, but it is in quarantine for its failures"
        if self._unclean.get(device, lease.tenant) != lease.tenant:
            return f"{device} is granted to {lease.tenant}, but was not cleaned behind {self._unclean[device]}"
        keeper = self._keeper(device, place) or (self._lost[device][1] if self._lost.get(device, place) < place else 0)
        return f"{device} is granted, but it is kept for {keeper}, who waits and comes before" if keeper else ""

    def _not_shared(self, device: DeviceId, mode: str) -> str:
        sharers = self._sharers.get(device, set())
        if mode == "" and sharers:
            return f"{device} is granted alone, but {lease_id_text(min(sharers))} shares it"
        if mode == "shared":
            if device in self._alone:
                return f"{device} is to be shared, but {lease_id_text(self._alone[device])} has it alone"
            share_max = self._policies.get(device, Policy()).share_max
            if share_max < 2 or len(sharers) >= share_max:
                return f"{device} is to be shared by {len(sharers) + 1}, but may be by {share_max}"
        return ""

    # --- quotas -----------------------------------------------------------------------------------------------------

    def _charge(self, lease: _Lease) -> str:
        wrong = ""
        for classes in lease.charges.values():
            for name in classes:
                key = (lease.tenant, name)
                self._used[key] = self._used.get(key, 0) + 1
                if key not in self._quotas:
                    wrong = f"a lease of {lease.tenant} is charged to {name or 'all classes'}, of which it has no quota"
                elif self._used[key] > self._quotas[key]:
                    has, most = self._used[key], self._quotas[key]
                    wrong = f"{lease.tenant} has {has} of {name or 'all classes'}, and may have {most}"
        return wrong

    def _uncharge(self, lease: _Lease, device: DeviceId) -> None:
        for name in lease.charges.pop(device, ()):
            self._used[lease.tenant, name] -= 1

    def _set_quota(self, event: schedule_events.QuotaSet) -> str:
        key = (event.tenant, event.device_class)
        if key in self._quotas and event.devices_max >= 0:
            self._quotas[key] = event.devices_max
            return "what is had is counted again for a quota that there was" if event.charged else ""
        charged, used = set(event.charged), 0
        for lease in self._leases.values():
            if lease.tenant == event.tenant and lease.mode != "admin":
                for device, classes in list(lease.charges.items()):
                    rest = tuple(name for name in classes if name != event.device_class)
                    lease.charges[device] = (*rest, event.device_class) if device in charged else rest
                    used += device in charged
        self._quotas.pop(key, None)
        self._used.pop(key, None)
        if event.devices_max >= 0:
            self._quotas[key], self._used[key] = event.devices_max, used
        return ""

    # --- ends -------------------------------------------------------------------------------------------------------

    def _end(self, lease: int) -> None:
        row = self._leases.get(lease)
        if row is None or not row.mode:
            return
        for device in row.devices:
            self._uncharge(row, device)
            if row.mode == "shared":
                self._sharers[device].discard(lease)
        del self._leases[lease]

    def _free(self, event: event_types.DeviceFreed) -> None:
        row = self._leases.get(event.lease)
        if row is None:
            return
        self._alone.pop(event.device, None)
        self._uncharge(row, event.device)
        if self._policies.get(event.device, Policy()).clean:
            self._unclean[event.device] = row.tenant
        row.held -= 1
        if not row.held:
            del self._leases[event.lease]

    def _evicted(self, event: hostdev_events.LeaseRevoked) -> str:
        row = self._leases.get(event.lease)
        targets = {target for device in row.devices for target in _targets(device)} if row is not None else set()
        for target in sorted(targets):
            for each in self._taints.get(target, {}).values():
                is_due = 0 < each.taint.evicts_at_ns <= self._at_ns
                if row is not None and row.mode != "admin" and each.request == event.request and is_due:
                    return "a lease ends that tolerates the taint" if _is_tolerated(each.taint, row.tolerates) else ""
        return f"lease {lease_id_text(event.lease)} ends by a taint, but none of its devices has such a one that is due"

    # --- what operators say -----------------------------------------------------------------------------------------

    def _of_operators(self, event: Event) -> str:
        match event:
            case schedule_events.ClassSet():
                self._classes.add(event.name)
            case schedule_events.ClassRemoved():
                if event.name not in self._classes or any(name == event.name for _, name in self._quotas):
                    return f"class {event.name} is removed, but is not known, or a quota names it"
                self._classes.remove(event.name)
            case schedule_events.QuotaSet():
                return self._set_quota(event)
            case schedule_events.Cordoned():
                self._cordoned.add(_target(event.host, event.key))
            case schedule_events.Uncordoned():
                self._cordoned.discard(_target(event.host, event.key))
            case schedule_events.Tainted():
                target = _target(event.host, event.key)
                self._taints.setdefault(target, {})[event.taint.name] = _Taint(event.taint, event.request)
            case schedule_events.Untainted():
                target = _target(event.host, event.key)
                if self._taints.get(target, {}).pop(event.name, None) is None:
                    return f"the taint {event.name} of {target} is taken away, but was not there"
            case schedule_events.PolicySet():
                self._policies[event.device] = event.policy
                if not event.policy.clean:
                    self._unclean.pop(event.device, None)
            case schedule_events.DeviceCleaned():
                if self._unclean.pop(event.device, None) is None:
                    return f"{event.device} is cleaned, but did not have to be"
            case schedule_events.DeviceHealed():
                self._sick.discard(event.device)
                self._failures.pop(event.device, None)
            case schedule_events.LeaseTransferred():
                return self._transfer(event)
            case schedule_events.LeaseSwitched():
                row = self._leases.get(event.lease)
                if row is None or row.reserved_for != event.source:
                    return f"lease {lease_id_text(event.lease)} is switched, but was not reserved for that"
                row.reserved_for = 0
        return ""

    def _transfer(self, event: schedule_events.LeaseTransferred) -> str:
        row = self._leases.get(event.lease)
        if row is None or row.mode or row.reserved_for:
            return f"lease {lease_id_text(event.lease)} is given to another, but is shared, looked at, or reserved"
        if event.tenant == row.tenant:
            return ""
        for device in row.devices:
            if self._policies.get(device, Policy()).clean:
                return f"{device} goes to {event.tenant} without having been cleaned behind {row.tenant}"
        for device in row.devices:
            self._uncharge(row, device)
        row.tenant = event.tenant
        charges = event.charges or ((),) * len(row.devices)
        row.charges = dict(zip(row.devices, charges, strict=False))
        return self._charge(row)

    # --- failures ---------------------------------------------------------------------------------------------------

    def _fail(self, position: int, device: DeviceId) -> None:
        self._failures.setdefault(device, {})[position] = self._at_ns

    def _lose(self, position: int, device: DeviceId) -> None:
        if device in self._alone or self._sharers.get(device):
            self._fail(position, device)

    def _quarantine(self, position: int, given: Input, event: hostdev_events.DeviceQuarantined) -> str:
        device = device_id(event.host, event.key)
        if not isinstance(given, inputs.Tick):
            self._fail(position, device)
            return ""
        known = self._failures.get(device, {})
        times = [known[each] for each in dict.fromkeys(event.evidence or ()) if each in known]
        if len(times) < limits.FAILURES_MAX or max(times) - min(times) > limits.FAILURE_WINDOW_NS:
            return f"{device} is in quarantine for {len(times)} failures that there were"
        self._sick.add(device)
        return ""


def _counted(event: LeaseGranted, needs: tuple[Need, ...]) -> str:
    """What is wrong with how many devices a lease has for each need."""
    if not needs:
        return ""
    considered = event.search.needs if event.search else ()
    chosen = [device for each in considered for device in each.devices]
    if len(considered) != len(needs) or sorted(chosen) != sorted(event.devices):
        return f"a lease for {event.holder} has other devices than were chosen for its needs"
    for need, each in zip(needs, considered, strict=True):
        wanted: Need | Option = need.first_of[each.option - 1] if need.first_of else need
        if len(each.devices) < wanted.count or (len(each.devices) > wanted.count and not wanted.every):
            return f"{len(each.devices)} devices are granted for need {each.need}, which wants {wanted.count}"
    return ""


def _is_tolerated(taint: Taint, tolerates: tuple[str, ...]) -> bool:
    return any(each in ("*", taint.name, f"{taint.name}={taint.value}") for each in tolerates)


def _targets(device: DeviceId) -> tuple[str, str]:
    return device, device.partition("/")[0]


def _target(host: HostName, key: str) -> str:
    return f"{host}/{key}" if key else host
