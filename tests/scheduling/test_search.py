"""Searching, held against trying everything: a solution is found if there is one, and it is the first one in the order
that is promised.
"""

import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from leasehold.events import inputs, limits
from leasehold.events.identities import DeviceId, Holder, HostName, RequestId, split_device_id
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Constraint, Need, Option
from leasehold.projections import attributes, conflicts, searching
from leasehold.projections.searching import Found
from leasehold.projections.snapshots import encode_state
from leasehold.projections.state import State
from leasehold.projections.terms import Terms
from tests.projections.ledger import Ledger, pci
from tests.scheduling.worlds import BOB, GPU, HOSTS, NIC, ask, card, distinct, need, same, take, world

OWNER = ("a", "job")
VENDORS = ("10de", "8086", "1172")
ATTRIBUTES = ("host", "numa_node", "vendor", "pcie_root", "serial")
WORLDS, REQUESTS = 30, 60
WHY_NOT = (RefusalCode.NO_MATCH, RefusalCode.NOT_ENOUGH, RefusalCode.CONSTRAINT_UNMET)


# --- trying everything --------------------------------------------------------------------------------------------


class Oracle:
    """All ways to satisfy a request on a small state, in the order in which they are promised to be tried."""

    def __init__(
        self, state: State, request: inputs.LeaseRequest, *, anyone: bool, prefer: frozenset[DeviceId]
    ) -> None:
        self.state, self.request = state, request
        rows = state.devices
        free = {device: not row.lease for device, row in rows.items()}
        self.can_be_had = {device: anyone or self._is_free(device) for device in rows}
        self.order = sorted(
            rows,
            key=lambda it: (not (it in prefer and free[it]), not free[it], it not in prefer, *split_device_id(it)),
        )
        self.names = [each.name or str(number) for number, each in enumerate(request.needs, 1)]

    def _is_free(self, device: DeviceId) -> bool:
        return not conflicts.first_blockers(self.state, (device,), owner=OWNER, force=False)

    def matches(self, option: Need | Option, device: DeviceId) -> bool:
        """The selectors here are one comparison with a vendor, and all are on a host."""
        row = self.state.devices[device]
        return row.description.vendor_id in option.select and self.request.host in ("", row.host)

    def first(self) -> list[tuple[DeviceId, ...]] | None:
        """The devices of each need, of the first solution."""
        return next(self._from(0, []), None)

    def _from(self, number: int, chosen: list[tuple[DeviceId, ...]]) -> Iterator[list[tuple[DeviceId, ...]]]:
        if number == len(self.request.needs):
            yield chosen
            return
        need = self.request.needs[number]
        for option in need.first_of or (need,):
            for some in self._sets(number, option):
                together = [*chosen, some]
                if self._goes_together(together, option):
                    yield from self._from(number + 1, together)

    def _sets(self, number: int, option: Need | Option) -> Iterator[tuple[DeviceId, ...]]:
        if not option.every:
            yield from combinations(
                [device for device in self.order if self.matches(option, device) and self.can_be_had[device]],
                option.count,
            )
            return
        own = [each for each in self.request.constraints if self._is_of(each, number)]
        same_of = [each.attribute for each in own if each.kind == "same"]
        groups: dict[tuple[Any, ...], list[DeviceId]] = {}
        for device in sorted(self.state.devices, key=split_device_id):
            if self.matches(option, device) and not self.state.devices[device].missing:
                key = tuple(attributes.value(self.state, device, attribute) for attribute in same_of)
                if None not in key:
                    groups.setdefault(key, []).append(device)
        for group in groups.values():
            if len(group) >= option.count and all(self.can_be_had[device] for device in group):
                yield tuple(group)

    def _is_of(self, constraint: Constraint, number: int) -> bool:
        return self.names[number] in (constraint.needs or self.names)

    def _goes_together(self, chosen: list[tuple[DeviceId, ...]], option: Need | Option) -> bool:
        devices = [device for some in chosen for device in some]
        if len(set(devices)) < len(devices) or len(devices) > limits.DEVICES_PER_LEASE_MAX:
            return False
        last, others = chosen[-1], [device for some in chosen[:-1] for device in some]
        for device in last:
            kin = set(conflicts.kin(self.state, device))
            if not kin.isdisjoint(others) or (not option.every and not kin.isdisjoint(last)):
                return False
        for constraint in self.request.constraints:
            values = [
                attributes.value(self.state, device, constraint.attribute)
                for number, some in enumerate(chosen)
                if self._is_of(constraint, number)
                for device in some
            ]
            is_distinct = constraint.kind == "distinct"
            if None in values or (len(set(values)) < len(values) if is_distinct else len(set(values)) > 1):
                return False
        return True


# --- worlds and requests at random --------------------------------------------------------------------------------


def random_world(rng: random.Random) -> Ledger:
    """Two or three hosts with a few cards; some are leased, some have parts, some share a group."""
    hosts = {}
    for host in HOSTS[: rng.choice((2, 2, 3))]:
        cards = []
        for slot in range(0x20, 0x20 + rng.randrange(1, 5)):
            given: dict[str, Any] = {"vendor_id": rng.choice(VENDORS), "serial": rng.choice(("", "s1", "s2"))}
            if rng.random() < 0.2:
                given["iommu_group"] = 0x20
            if rng.random() < 0.1:
                given["numa_node"] = -1
            numa_node = given.pop("numa_node", rng.randrange(2))
            cards.append(card(f"{slot:02x}", numa_node, **given))
        if rng.random() < 0.3:
            whole = rng.choice(cards)
            part = {"vendor_id": rng.choice(VENDORS), "physical_function": whole.key, "iommu_group": 0x60}
            cards.append(pci("60:10.0", numa_node=whole.numa_node, **part))
        hosts[host] = tuple(cards)
    ledger = world(hosts)
    for device in sorted(ledger.state.devices):
        if rng.random() < 0.2:
            ledger.ask(ledger.request(device, holder=Holder("other")), BOB)
    return ledger


def random_request(rng: random.Random) -> inputs.LeaseRequest:
    """One to three needs, with anything that can be said of them."""

    def words(kind: type[Any], **more: Any) -> Any:
        some = rng.sample(VENDORS, rng.choice((1, 1, 2)))
        select = f"device.vendor in {list(some)}".replace("'", '"')
        return kind(select=select, count=rng.choice((1, 1, 2, 3)), every=rng.random() < 0.15, **more)

    needs = []
    for number in range(rng.choice((1, 1, 2, 2, 3))):
        if rng.random() < 0.25:
            needs.append(Need(name=f"n{number}", first_of=tuple(words(Option) for _ in range(rng.choice((2, 3))))))
        else:
            needs.append(words(Need, name=f"n{number}"))
    names = [each.name for each in needs]
    constraints = tuple(
        Constraint(
            kind=rng.choice(("same", "distinct")),
            attribute=rng.choice(ATTRIBUTES),
            needs=() if rng.random() < 0.5 else tuple(rng.sample(names, rng.randrange(1, len(names) + 1))),
        )
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    )
    return inputs.LeaseRequest(
        request_id=RequestId("r"),
        issued_at_ns=1,
        holder=Holder("job"),
        ttl_ms=60_000,
        needs=tuple(needs),
        constraints=constraints,
        host=rng.choice(("", "", "", "h1")),
    )


@pytest.mark.parametrize("seed", range(WORLDS))
def test_the_first_solution_is_found_if_there_is_one(seed: int) -> None:
    """Just the devices that trying everything finds first, for each need; and nothing where that finds nothing."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    ledger = random_world(rng)
    found_some = 0
    for number in range(REQUESTS):
        request = random_request(rng)
        anyone = rng.random() < 0.3
        prefer = frozenset(rng.sample(sorted(ledger.state.devices), rng.choice((0, 0, 1, 2))))
        before = encode_state(ledger.state)
        found = searching.search(
            ledger.state, request, Terms(tenant=BOB), owner=OWNER, ignoring_holders=anyone, prefer=prefer
        )
        expected = Oracle(ledger.state, request, anyone=anyone, prefer=prefer).first()
        case = (number, request, found)
        if expected is None:
            assert not isinstance(found, Found), case
            assert found.refusal.code in WHY_NOT, case
            continue
        found_some += 1
        assert isinstance(found, Found), (case, expected)
        chosen = [each.devices for each in found.search.needs]
        assert chosen == [tuple(sorted(some)) for some in expected], (case, expected)
        assert found.search.steps <= limits.SEARCH_STEPS_MAX
        assert before == encode_state(ledger.state)
    assert found_some


def test_what_was_found_is_granted_and_had_by_nobody_else() -> None:
    """Asked for again and again, by two, until nothing is left: no device twice, and all of them in the end."""
    ledger = world()
    held: list[str] = []
    for number in range(12):
        answer = ask(ledger, need('device.kind == "pci"'), who=f"job{number % 2}")
        assert answer.outcome == "granted", answer
        held += answer.devices
    assert sorted(held) == sorted(ledger.state.devices)
    assert ask(ledger, need('device.kind == "pci"')).outcome == "refused"


# --- the bound ----------------------------------------------------------------------------------------------------


def many(host: str, count: int, **fields: Any) -> dict[HostName, tuple[Any, ...]]:
    """A host with so many cards of one model."""
    given = {"vendor_id": "10de", "product_id": "2684", "pci_class": 0x030200, **fields}
    cards = (pci(f"{number >> 5:02x}:{number & 31:02x}.0", iommu_group=number, **given) for number in range(count))
    return {HostName(host): tuple(cards)}


def test_a_search_that_is_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said that there is nothing; what is said more narrowly is found."""
    monkeypatch.setattr(limits, "SEARCH_STEPS_MAX", 100)
    ledger = world({**many("h1", 150), **many("h2", 1, vendor_id="8086")})
    answer = ask(ledger, need('device.attributes["x"] == "y"'))
    assert answer.refusal is not None
    assert answer.refusal.code == RefusalCode.SEARCH_CUT_OFF
    assert answer.refusal.search is not None
    assert answer.refusal.search.is_cut_off
    assert "100 steps" in answer.refusal.message
    assert ask(ledger, need('device.host == "h2"')).outcome == "granted"


def test_leased_devices_cost_no_steps() -> None:
    """However many of a model are leased, the next one is found at once; and why not is told without a look at all."""
    ledger = world(many("h1", 200))
    for start in range(0, 192, 64):
        texts = [f"h1:{number >> 5:02x}:{number & 31:02x}.0" for number in range(start, start + 64)]
        take(ledger, *texts)
    answer = ask(ledger, need(GPU, 8), who="first")
    assert answer.search is not None
    assert answer.search.steps <= 8 * 3
    answer = ask(ledger, need(GPU))
    assert answer.refusal is not None
    assert answer.refusal.search is not None
    assert answer.refusal.search.needs[0].looked <= limits.BLOCKERS_PER_REFUSAL_MAX


@pytest.mark.parametrize(
    ("needs", "constraints", "outcome"),
    [
        ((need(GPU, 40),), (distinct("host"),), "refused"),
        ((need(GPU, 39),), (distinct("host"),), "granted"),
        ((need(GPU, 2), need(NIC)), (same("numa_node"),), "granted"),
        ((need(GPU, 3),), (same("numa_node"),), "refused"),
        ((need(GPU, 2), need(GPU, 2)), (same("numa_node", "1"), same("host")), "granted"),
        ((need(GPU), need('device.vendor == "ffff"')), (), "refused"),
    ],
)
def test_what_many_hosts_have_too_little_of(
    needs: tuple[Need, ...], constraints: tuple[Constraint, ...], outcome: str
) -> None:
    """Forty hosts that look alike, and only the last but one has a NIC: it is known within the bound."""
    hosts = {HostName(f"n{number:02}"): (card("20"), card("21"), card("22", 1), card("23", 1)) for number in range(38)}
    ledger = world({**hosts, HostName("n38"): (card("20"), card("21"), card("30")), HostName("n39"): (card("40"),)})
    answer = ask(ledger, *needs, constraints=constraints)
    assert answer.outcome == outcome, answer
    search = answer.search if answer.search is not None else answer.refusal and answer.refusal.search
    assert search
    assert not search.is_cut_off
    assert search.steps < 1_000
