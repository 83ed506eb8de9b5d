"""Where a search looks: the devices that could satisfy what is needed, each looked at once, when it is its turn.

A pool belongs to one way to satisfy a need. It knows of each device why it is out of the question, and keeps count of
that for whoever asks why.
"""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import msgspec

from leasehold.events import limits
from leasehold.events.errors import SearchCutOffError
from leasehold.events.hostdevs import Handover
from leasehold.events.identities import DeviceId, HostName, split_device_id
from leasehold.events.inputs import LeaseRequest
from leasehold.events.refusals import Blocker
from leasehold.events.scheduling import Excluded, Need, Option
from leasehold.projections import attributes, buckets, candidates, conflicts, restraints, selectors
from leasehold.projections.indexes import EVERYBODY
from leasehold.projections.selectors import Selector
from leasehold.projections.state import State
from leasehold.projections.terms import Terms

HOLDERS_RULES: Final = frozenset(
    (
        *("same_device", "iommu_group", "acs", "slot", "physical_function", "carried", "usb_tree", "usb_ports"),
        *("shared", "unclean", "ordered"),
    )
)
"""Rules that stand in the way of who wants a device now, and not of who waits for it."""
NOT_MEANT: Final = frozenset(("selector", "selector_error", "class", "bridge", "not_physical", "protected", "missing"))
"""Rules of devices that are not among all that match and are there."""
_VISITS_PER_STEP: Final = 16
"""So many devices that were looked at before cost as much as a look."""
_COST_OF_VISIT: Final = 64
"""So many steps of a selector's evaluation take as long as a visit."""
_UNKNOWN: Final = object()

Value = str | int | bool | tuple[str, str | int] | None


class Meter:
    """How many steps a search may still take."""

    __slots__ = ("_left", "_most")

    def __init__(self, steps: int) -> None:
        self._most = self._left = steps * _VISITS_PER_STEP

    @property
    def steps(self) -> int:
        """How many were taken."""
        return -(-(self._most - self._left) // _VISITS_PER_STEP)

    def step(self, more: int = 0) -> None:
        """A device is looked at, or tried. `more`: what that costs beside, in visits."""
        self._spend(_VISITS_PER_STEP + more)

    def visit(self) -> None:
        """A device is met that was looked at before."""
        self._spend(1)

    def _spend(self, visits: int) -> None:
        if self._left < visits:
            raise SearchCutOffError
        self._left -= visits

    def pass_over(self, count: int) -> None:
        """So many devices were left for later; only each sixteenth costs anything."""
        if count % _VISITS_PER_STEP == 0:
            self._spend(1)

    def allow(self, steps: int) -> None:
        """So many more from now on, and no more than these."""
        taken = self._most - self._left
        self._left = steps * _VISITS_PER_STEP
        self._most = taken + self._left


class Lookout:
    """What all pools of one search have in common: who asks, on which terms, and what is to be left out of account."""

    def __init__(
        self,
        state: State,
        request: LeaseRequest,
        terms: Terms,
        owner: tuple[str, str],
        *,
        ignoring_holders: bool,
        prefer: frozenset[DeviceId],
    ) -> None:
        self.state = state
        self.host = request.host
        self.meter = Meter(limits.SEARCH_STEPS_MAX)
        self.ignoring_holders = ignoring_holders
        self.preferred = sorted((device for device in prefer if device in state.devices), key=split_device_id)
        self._force = request.force
        is_said = request.driver or request.unmanaged
        self._handover = Handover(driver=request.driver, unmanaged=request.unmanaged) if is_said else None
        self._terms = terms
        self._owner = owner
        self._around = conflicts.Around(state)
        self.queued = terms.queued
        self.kept = state.indexes.kept
        places = state.indexes.queued.get(EVERYBODY, [])
        self.may_have_kept = bool(places) and places[-1] > (terms.rank_ns, terms.queued or 2**63)
        """Whether somebody waits who comes behind these terms: what is kept for him, they may have."""
        self._values: dict[tuple[str, DeviceId], Value] = {}
        self._barred: dict[HostName, Blocker | None] = {}
        self._kin: dict[DeviceId, frozenset[DeviceId]] = {}
        lists = state.candidates
        looks_at_all = request.force or terms.mode == "admin"
        self.first = lists.known if looks_at_all else lists.shareable if terms.mode else lists.free
        """Where to look first, and mostly only: whoever is not in it is refused by a rule."""
        self.knows_more = ignoring_holders and self.first is not lists.known

    def value(self, attribute: str, device: DeviceId) -> Value:
        """What a device has of an attribute."""
        key = (attribute, device)
        found = self._values.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            found = self._values[key] = attributes.value(self.state, device, attribute)
        return found  # type: ignore[return-value]

    def kin(self, device: DeviceId) -> frozenset[DeviceId]:
        """What is not had apart from it."""
        found = self._kin.get(device)
        if found is None:
            found = self._kin[device] = frozenset(conflicts.kin(self.state, device))
        return found

    def barred(self, host: HostName, device: DeviceId) -> Blocker | None:
        """Why nothing of a host can be had; `device`: one of it."""
        if host not in self._barred:
            those = () if self._terms.mode == "admin" else restraints.by_host(self.state, device, host, self._terms)
            self._barred[host] = next(iter(those), None)
        return self._barred[host]

    def blocker(self, device: DeviceId) -> Blocker | None:
        """What stands in the way of a lease of this device, if anything does."""
        those = conflicts.blockers(
            self.state,
            device,
            owner=self._owner,
            together=frozenset((device,)),
            force=self._force,
            around=self._around,
            terms=self._terms,
        )
        found = next((each for each in those if not self.ignoring_holders or each.rule not in HOLDERS_RULES), None)
        if found is None and self._handover is not None:
            return restraints.not_handed_over(self.state, device, self._handover)
        return found


class Walk:
    """The devices of a pool in the order in which they are tried, as far as anybody has got."""

    __slots__ = ("_found", "_source")

    def __init__(self, source: Iterator[DeviceId]) -> None:
        self._found: list[DeviceId] = []
        self._source = source

    def at(self, number: int) -> DeviceId | None:
        """The device at that place, from 0; `None`: there are not so many."""
        while len(self._found) <= number:
            device = next(self._source, None)
            if device is None:
                return None
            self._found.append(device)
        return self._found[number]

    def behind(self, device: DeviceId) -> int:
        """The place behind a device, which must be in it."""
        number = 0
        while self.at(number) != device:
            number += 1
        return number + 1


class Pool:
    """The devices that could satisfy one option of a need."""

    def __init__(self, lookout: Lookout, option: Need | Option, number: int) -> None:
        state = lookout.state
        self.count = option.count
        self.every = option.every
        self.number = number
        """Which of the need's options it is, from 1; 0: it has none."""
        self.looked = 0
        self.least_on_host = 1
        """Hosts that have fewer devices of it are passed over."""
        self.blockers: list[Blocker] = []
        """Of devices that match: the first ones that stand in the way."""
        self.matched = 0
        """How many matching ones that are there were looked at, whether they can be had or not."""
        self.had = 0
        """How many of these can be had."""
        self._lookout = lookout
        self._sets = [frozenset(names) for names in buckets.of_option(state, option, lookout.host)]
        self._named = candidates.named(self._sets)
        texts = (("class", state.classes[option.device_class].select if option.device_class else ""),)
        self._tests = [
            (rule, selector)
            for rule, text in (*texts, ("selector", option.select))
            if text and isinstance(selector := selectors.compiled(text), Selector)
        ]
        self._visits_per_look = sum(selector.cost for _, selector in self._tests) // _COST_OF_VISIT
        self._verdicts: dict[DeviceId, str] = {}
        self._excluded: dict[str, Excluded] = {}
        self._walks: dict[tuple[str, int], Walk] = {}
        self._passed: dict[HostName, tuple[Blocker, int]] = {}
        """Hosts that were passed over as a whole, why, and how many devices they have of it."""
        self._noted: set[tuple[DeviceId, str]] = set()

    # --- the order in which devices are tried

    def walk(self, host: str = "") -> Walk:
        """Those that may be had, on one host or on all: what is preferred and free, what else is free, all others; of
        each of the last two what is kept for others last.
        """
        key = (host, self.least_on_host)
        found = self._walks.get(key)
        if found is None:
            found = self._walks[key] = Walk(self._source(host))
        return found

    def all_on(self, host: str = "") -> Iterator[DeviceId]:
        """All of one host, or of all hosts, whether they can be had or not, by host and key."""
        if self._named is not None:
            return (device for device in self._named if self._is_known(device, host))
        return candidates.devices(self._lookout.state.candidates.known, self._sets, host)

    def _is_known(self, device: DeviceId, host: str) -> bool:
        cell = self._lookout.state.candidates.cell_of(device)
        return cell is not None and host in ("", cell[0])

    def _source(self, host: str) -> Iterator[DeviceId]:
        lookout = self._lookout
        preferred = [device for device in lookout.preferred if self._is_known(device, host)]
        if self._named is not None:
            return iter(dict.fromkeys(device for device in self._named if self._is_known(device, host)))
        at_once = [device for device in preferred if self._is_first(device)]
        those = chain(at_once, self._first_of(host, frozenset(at_once)))
        if not lookout.knows_more:
            return those
        seen = frozenset(preferred)
        others = self._kept_last(self.all_on(host))
        rest = (device for device in others if device not in seen and not self._is_first(device))
        return chain(those, (device for device in preferred if device not in at_once), rest)

    def _kept_last(self, devices: Iterable[DeviceId]) -> Iterator[DeviceId]:
        """What is kept for others comes behind all else, and only for who comes before some of them."""
        kept, own, late = self._lookout.kept, self._lookout.queued, []
        for device in devices:
            if kept.get(device, own) != own:
                late.append(device)
                self._lookout.meter.pass_over(len(late))
            else:
                yield device
        if self._lookout.may_have_kept:
            yield from late

    def _is_first(self, device: DeviceId) -> bool:
        cell = self._lookout.state.candidates.cell_of(device)
        return cell is not None and self._lookout.first.has(cell, device)

    def _first_of(self, host: str, but: frozenset[DeviceId]) -> Iterator[DeviceId]:
        those = self._in_order(host)
        return self._kept_last((device for device in those if device not in but) if but else those)

    def _in_order(self, host: str) -> Iterator[DeviceId]:
        lookout = self._lookout
        for name, lists in candidates.cells(lookout.first, self._sets, host):
            size = sum(map(len, lists))
            barred = lookout.barred(name, lists[0][0])
            if barred is None and size < self.least_on_host and not lookout.knows_more and not lookout.preferred:
                why = f"host {name} has no {self.least_on_host} of them that could be had"
                barred = Blocker(device=lists[0][0], rule="constraint", why=why)
            if barred is not None:
                lookout.meter.visit()
                self._passed[name] = (barred, size)
            else:
                yield from candidates.in_order(lists)

    # --- looking at them

    def verdict(self, device: DeviceId) -> str:
        """The rule by which a device is out of the question; empty: it can be had."""
        known = self._verdicts.get(device)
        if known is None:
            self._lookout.meter.step(self._visits_per_look)
            self.looked += 1
            known = self._verdicts[device] = self._judged(device)
        else:
            self._lookout.meter.visit()
        return known

    def _judged(self, device: DeviceId) -> str:
        for rule, selector in self._tests:
            found = selector.matches(self._lookout.state, device)
            if found is not True:
                rule, why = ("selector_error", found) if found else (rule, "")
                self._exclude(Blocker(device=device, rule=rule, why=why))
                return rule
        blocker = self._lookout.blocker(device)
        if blocker is None:
            self.matched += 1
            self.had += 1
            return ""
        self.matched += blocker.rule not in NOT_MEANT
        self._exclude(blocker)
        if len(self.blockers) < limits.BLOCKERS_PER_REFUSAL_MAX:
            self.blockers.append(blocker)
        return blocker.rule

    def may_hold(self, device: DeviceId) -> bool:
        """Whether it could be one of these, by its buckets alone."""
        if self._named is not None:
            return device in self._named
        cell = self._lookout.state.candidates.cell_of(device)
        return cell is not None and candidates.is_in_all(candidates.buckets_of(cell), self._sets)

    def look_at_all(self, *, thorough: bool) -> None:
        """Look at devices that a search passed over, too, as far as the bound allows; unless `thorough`, until it is
        known that there are enough, and what is in the way of some.
        """
        with contextlib.suppress(SearchCutOffError):
            for device in self.all_on(self._lookout.host):
                is_enough = self.matched >= self.count and len(self.blockers) >= limits.BLOCKERS_PER_REFUSAL_MAX
                if is_enough and not thorough:
                    return
                self._passed.pop(split_device_id(device)[0], None)
                self.verdict(device)

    def exclude(self, device: DeviceId, rule: str, why: str) -> None:
        """It could be had, but not here."""
        if (device, rule) not in self._noted:
            self._noted.add((device, rule))
            self._exclude(Blocker(device=device, rule=rule, why=why))

    def _exclude(self, blocker: Blocker) -> None:
        _count(self._excluded, blocker, 1)

    def excluded(self) -> dict[str, Excluded]:
        """How many were out of the question, by rule."""
        found = dict(self._excluded)
        for blocker, count in self._passed.values():
            _count(found, blocker, count)
        return found


def _count(found: dict[str, Excluded], blocker: Blocker, count: int) -> None:
    known = found.get(blocker.rule)
    if known is None:
        found[blocker.rule] = Excluded(
            rule=blocker.rule,
            count=count,
            example=blocker.device,
            why=_cut(blocker.why),
            help=_cut(blocker.help),
        )
    else:
        found[blocker.rule] = msgspec.structs.replace(known, count=known.count + count)


def _cut(text: str) -> str:
    return text if len(text) <= limits.EXCLUDED_CHARS_MAX else f"{text[: limits.EXCLUDED_CHARS_MAX - 1]}…"
