"""Choosing devices so that all needs are satisfied together: the first solution in a fixed order, or that none is.

Needs are satisfied in their order, each by the first of its options that leads to a solution together with all others,
each place by the first device that does. Of devices that are alike for what is still to be decided (the same values in
all constraints, wanted by the same other needs) one is tried. Where a constraint binds devices to one host, it is first
looked whether that host has enough.
"""

from collections.abc import Iterator
from enum import Enum

from leasehold.events import limits
from leasehold.events.identities import DeviceId, Principal
from leasehold.events.refusals import Refusal
from leasehold.events.scheduling import Constraint
from leasehold.projections import attributes, quotas
from leasehold.projections.declining import Declined
from leasehold.projections.pools import NOT_MEANT, Lookout, Pool, Value, Walk


class Outcome(Enum):
    """How a search, or a branch of it, ended."""

    FOUND = "found"
    NONE = "none"
    OVER_QUOTA = "over_quota"
    """There would be devices, but the tenant may not have them: other devices of these options do not help."""
    CUT_OFF = "cut_off"


class _Bound:
    """A constraint, and what the devices chosen so far make of it."""

    __slots__ = ("attribute", "is_local", "is_same", "needs", "taken", "value")

    def __init__(self, constraint: Constraint, names: list[str]) -> None:
        attribute = attributes.named(constraint.attribute)
        self.attribute = constraint.attribute
        self.is_same = constraint.kind == "same"
        self.is_local = constraint.attribute == "host" or (attribute is not None and attribute.is_local)
        """The same value means the same host."""
        self.needs = frozenset(number for number, name in enumerate(names) if name in (constraint.needs or names))
        self.value: Value = None
        """Of `same`: of all that are chosen; `None`: nothing is."""
        self.taken: set[Value] = set()
        """Of `distinct`."""

    def host_of(self, value: Value) -> str:
        """The host that a value of a local one is about."""
        return value[0] if isinstance(value, tuple) else str(value)


class Solver:
    """One search for the devices of some needs, under some constraints. `tenant`: whose quotas count; `None`: none."""

    def __init__(
        self,
        lookout: Lookout,
        pools: dict[str, list[Pool]],
        constraints: tuple[Constraint, ...],
        tenant: Principal | None = None,
    ) -> None:
        self.lookout = lookout
        self.names = list(pools)
        self.pools = list(pools.values())
        """Of each need, one for each of its options."""
        self.over_quota: Refusal | None = None
        self._tenant = tenant
        bounds = [_Bound(constraint, self.names) for constraint in constraints]
        self._bounds_of = [[each for each in bounds if number in each.needs] for number in range(len(pools))]
        for bounds_of, some in zip(self._bounds_of, self.pools, strict=True):
            is_on_one_host = any(each.is_same and each.is_local for each in bounds_of)
            for pool in some:
                pool.least_on_host = pool.count if is_on_one_host else 1
        self.option = [0] * len(pools)
        """Index of the option that each need is satisfied by."""
        self._picks: list[list[DeviceId]] = [[] for _ in pools]
        self._used: set[DeviceId] = set()
        self._short: dict[tuple[int, int, str, Value], bool] = {}
        self.alone = -1
        """Index of the first need that cannot be satisfied by itself; -1: all can."""

    def solve(self) -> Outcome:
        """Search."""
        for number in range(len(self.pools)):
            if not any(self._is_possible(number, pool) for pool in self.pools[number]):
                self.alone = number
                return Outcome.NONE
        return self._need(0)

    def chosen(self) -> list[tuple[DeviceId, ...]]:
        """Of each need, the devices that were found, sorted."""
        return [tuple(sorted(picks)) for picks in self._picks]

    def _is_possible(self, number: int, pool: Pool) -> bool:
        """Whether so many devices can be had for one need that nobody else wants any: else nothing need be tried."""
        if pool.every:
            return True
        distinct = [each for each in self._bounds_of[number] if not each.is_same]
        seen: list[set[Value]] = [set() for _ in distinct]
        walk, at, count = pool.walk(), 0, 0
        while count < pool.count or any(len(values) < pool.count for values in seen):
            device = walk.at(at)
            if device is None:
                return False
            at += 1
            has = [self.lookout.value(each.attribute, device) for each in distinct]
            is_new = any(value is not None and value not in values for value, values in zip(has, seen, strict=True))
            self.lookout.meter.visit()
            if (is_new or count < pool.count) and pool.verdict(device) == "":
                count += 1
                for value, values in zip(has, seen, strict=True):
                    if value is not None:
                        values.add(value)
        return True

    def _need(self, number: int) -> Outcome:
        """Satisfy this need and those behind it."""
        if number == len(self.pools):
            return self._solved()
        outcome = Outcome.NONE
        for index, pool in enumerate(self.pools[number]):
            self.option[number] = index
            found = self._every(number, pool) if pool.every else self._place(number, pool, pool.count, None, 0)
            if found is Outcome.FOUND:
                return found
            if found is Outcome.OVER_QUOTA:
                outcome = found
        return outcome

    def _solved(self) -> Outcome:
        """All needs have their devices: whether their tenant may have them."""
        if self._tenant is not None:
            charged = quotas.charges(self.lookout.state, self._tenant, tuple(sorted(self._used)))
            if isinstance(charged, Declined):
                self.over_quota = self.over_quota or charged.refusal
                return Outcome.OVER_QUOTA
        return Outcome.FOUND

    def _place(self, number: int, pool: Pool, left: int, before: Walk | None, start: int) -> Outcome:
        """Find `left` more devices for a need, behind place `start` of the walk `before`, and all for later needs."""
        if not left:
            return self._need(number + 1)
        walk = pool.walk(self._host_of(number))
        at = start
        if before is not None and walk is not before:
            at = walk.behind(self._picks[number][-1])
        failed: set[tuple[object, ...]] = set()
        while (device := walk.at(at)) is not None:
            at += 1
            if not self._fits(number, pool, device) or (failed and self._likeness(number, device) in failed):
                continue
            if pool.verdict(device) or not self._is_apart(pool, device):
                continue
            self.lookout.meter.step()
            values = self._choose(number, device)
            outcome = Outcome.NONE
            if self._has_enough(number, pool, left - 1, values):
                outcome = self._place(number, pool, left - 1, walk, at)
            if outcome is Outcome.FOUND:
                return outcome
            self._take_back(number, device, values)
            if outcome is Outcome.OVER_QUOTA:
                return outcome
            if not self._matters(number, device):
                return outcome
            failed.add(self._likeness(number, device))
        return Outcome.NONE

    def _host_of(self, number: int) -> str:
        """The host that what is chosen already leaves for a need; empty: any."""
        for each in self._bounds_of[number]:
            if each.is_same and each.is_local and each.value is not None:
                return each.host_of(each.value)
        return self.lookout.host

    def _fits(self, number: int, pool: Pool, device: DeviceId) -> bool:
        """Whether a device is not chosen yet, and goes together with those that are."""
        self.lookout.meter.visit()
        if device in self._used:
            return False
        for each in self._bounds_of[number]:
            value = self.lookout.value(each.attribute, device)
            if value is None or (each.value not in (None, value) if each.is_same else value in each.taken):
                if value is None:
                    pool.exclude(device, "constraint", f"it has no {each.attribute}")
                return False
        return True

    def _is_apart(self, pool: Pool, device: DeviceId) -> bool:
        """Whether it is a device beside those chosen, and not a part of one, or what one is a part of."""
        rivals = self.lookout.kin(device) & self._used if self._used else frozenset()
        if rivals:
            pool.exclude(device, "taken", f"it cannot be had apart from {min(rivals)}, which is chosen already")
        return not rivals

    def _choose(self, number: int, device: DeviceId) -> list[tuple[_Bound, Value]]:
        """The constraints of `same` that are bound by this device, with the value."""
        self._used.add(device)
        self._picks[number].append(device)
        values = []
        for each in self._bounds_of[number]:
            value = self.lookout.value(each.attribute, device)
            if not each.is_same:
                each.taken.add(value)
            elif each.value is None:
                each.value = value
                values.append((each, value))
        return values

    def _take_back(self, number: int, device: DeviceId, values: list[tuple[_Bound, Value]]) -> None:
        self._used.remove(device)
        self._picks[number].pop()
        for each in self._bounds_of[number]:
            if not each.is_same:
                each.taken.remove(self.lookout.value(each.attribute, device))
        for each, _ in values:
            each.value = None

    def _has_enough(self, number: int, pool: Pool, left: int, values: list[tuple[_Bound, Value]]) -> bool:
        """Whether the host that is now bound has enough of what is still needed from it, whoever of us gets it."""
        for each, value in values:
            if not each.is_local:
                continue
            if left and self._is_short(number, pool, each, value):
                return False
            for other in sorted(each.needs):
                if other > number and all(self._is_short(other, some, each, value) for some in self.pools[other]):
                    return False
        return True

    def _is_short(self, number: int, pool: Pool, bound: _Bound, value: Value) -> bool:
        """Whether fewer than so many devices with that value can be had for an option at all."""
        if pool.every:
            return False
        key = (number, pool.number, bound.attribute, value)
        known = self._short.get(key)
        if known is None:
            walk, at, missing = pool.walk(bound.host_of(value)), 0, pool.count
            while missing and (device := walk.at(at)) is not None:
                at += 1
                self.lookout.meter.visit()
                if self.lookout.value(bound.attribute, device) == value and pool.verdict(device) == "":
                    missing -= 1
            known = self._short[key] = missing > 0
        return known

    # --- devices that are alike

    def _matters(self, number: int, device: DeviceId) -> bool:
        """Whether it may make a difference which device was chosen in the place of this one."""
        if self._bounds_of[number] or self.lookout.kin(device):
            return True
        return any(pool.may_hold(device) for pools in self.pools[number + 1 :] for pool in pools)

    def _likeness(self, number: int, device: DeviceId) -> tuple[object, ...]:
        """What is the same of devices for which it makes no difference which of them is chosen."""
        if self.lookout.kin(device):
            return (device,)
        found: list[object] = [self.lookout.value(each.attribute, device) for each in self._bounds_of[number]]
        for rival in range(number + 1, len(self.pools)):
            wanted = [self._is_wanted(other, device) for other in self.pools[rival]]
            found += wanted
            if any(wanted):
                found += [self.lookout.value(each.attribute, device) for each in self._bounds_of[rival]]
        return tuple(found)

    def _is_wanted(self, pool: Pool, device: DeviceId) -> bool:
        """Whether a device could serve another need, or is missed by it if it wants all."""
        if not pool.may_hold(device):
            return False
        verdict = pool.verdict(device)
        return verdict not in NOT_MEANT if pool.every else not verdict

    # --- all that match

    def _every(self, number: int, pool: Pool) -> Outcome:
        """Take all that match for a need, and find all for those behind it."""
        outcome = Outcome.NONE
        for group in self._groups(number, pool):
            if len(group) < pool.count or len(group) + len(self._used) > limits.DEVICES_PER_LEASE_MAX:
                continue
            chosen: list[tuple[DeviceId, list[tuple[_Bound, Value]]]] = []
            others = frozenset(self._used)
            for device in group:
                if pool.verdict(device) or not self._fits(number, pool, device) or self.lookout.kin(device) & others:
                    break
                self.lookout.meter.step()
                chosen.append((device, self._choose(number, device)))
            if len(chosen) == len(group):
                found = self._need(number + 1)
                if found is Outcome.FOUND:
                    return found
                if found is Outcome.OVER_QUOTA:
                    outcome = found
            for device, values in reversed(chosen):
                self._take_back(number, device, values)
            if outcome is Outcome.OVER_QUOTA:
                return outcome
        return outcome

    def _groups(self, number: int, pool: Pool) -> Iterator[list[DeviceId]]:
        """Devices that match, are there and can be leased at all: all on the host that it is about, or all that go
        together, by the first of each group.
        """
        same = [each for each in self._bounds_of[number] if each.is_same]
        host = self._host_of(number)
        groups: dict[tuple[Value, ...], list[DeviceId]] = {}
        last = ""
        for device in pool.all_on(host):
            if pool.verdict(device) in NOT_MEANT:
                continue
            key = tuple(self.lookout.value(each.attribute, device) for each in same)
            if None in key or any(each.value not in (None, value) for each, value in zip(same, key, strict=True)):
                continue
            here = device.partition("/")[0]
            if here != last and any(each.is_local for each in same):
                yield from groups.values()
                groups = {}
            last = here
            groups.setdefault(key, []).append(device)
        yield from groups.values()
