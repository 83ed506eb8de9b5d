"""Filters of lists: the index that a query service keeps against a plain walk over the state, while that changes."""

import random

import msgspec
import pytest

from leasehold.events.identities import DeviceId, HostName, device_id
from leasehold.events.questions import ListDevices
from leasehold.projections.nodedev import UNBOUND, Wanted, is_wanted, parents_named, wanted_by
from leasehold.projections.rows import DeviceState, HostState
from leasehold.projections.state import State
from leasehold.services.query import lists
from leasehold.services.query.lists import DeviceFilters
from tests.nodedev.machine import HBA, NIC, everything, state_of

HOSTS = ("h1", "h10", "h2")
SEED = 20261121


def brute(state: State, wanted: Wanted, host: str) -> list[DeviceId]:
    """What a walk over all devices finds."""
    rows = sorted(state.devices.items())
    return [device for device, row in rows if (not host or row.host == host) and is_wanted(wanted, row)]


def paged(filters: DeviceFilters, state: State, wanted: Wanted, host: str, limit: int) -> list[DeviceId]:
    """All pages."""
    found: list[DeviceId] = []
    more = True
    while more:
        page, more = filters.page(state, wanted, host=host, after=found[-1] if found else "", limit=limit)
        assert len(page) == limit or not more
        found += page
    return found


def some_wanted(rng: random.Random, state: State) -> tuple[Wanted, str]:
    """A question that says one thing or several."""
    host = rng.choice(("", *HOSTS))
    words: dict[str, tuple[str, ...]] = {
        "cap": ("net", "pci", "vports", "storage,usb", "80203,80203", "fc_host,bridge", "other,pci,net"),
        "bus": ("pci", "usb", "mdev", "scsi"),
        "driver": ("igb", "vfio-pci", UNBOUND),
        "parent": ("computer", "pci_0000_00_00_0", f"h1/{HBA}", NIC),
    }
    said = {name: rng.choice(words[name]) for name in rng.sample(sorted(words), rng.choice((0, 1, 1, 1, 2, 3)))}
    question = msgspec.structs.replace(ListDevices(host=host, present=rng.random() < 0.2), **said)
    return wanted_by(state, question), host


def change(rng: random.Random, state: State) -> None:
    """A device gets another driver or parent, goes, comes back, or appears."""
    host = HostName(rng.choice(HOSTS))
    device = rng.choice(everything())
    known = device_id(host, device.key)
    row = state.devices.get(known)
    if row is None:
        state.put_device(known, DeviceState(host=host, description=device))
        return
    fields = rng.choice(({"driver": "vfio-pci"}, {"driver": ""}, {"parent": ""}, {"parent": NIC}, {"parent": HBA}))
    description = msgspec.structs.replace(row.description, **fields)
    state.put_device(known, msgspec.structs.replace(row, description=description, missing=rng.random() < 0.3))


@pytest.mark.parametrize("at_once", [0, 3, 64])
def test_pages_and_counts_are_what_a_walk_finds(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind each of many changes, whether they are followed one by one or all anew."""
    monkeypatch.setattr(lists, "INSERTED_ONE_BY_ONE_MAX", at_once)
    monkeypatch.setattr(lists, "REBUILT_SHARE", 10**6)
    rng = random.Random(SEED + at_once)
    print(f"seed {SEED + at_once}")
    state = state_of({"h1": everything()[::2]})
    for host in HOSTS:
        state.hosts.put(HostName(host), HostState(mode="watched"))
    filters = DeviceFilters()
    found = 0
    for turn in range(150):
        for _ in range(rng.choice((0, 1, 2, 8))):
            change(rng, state)
        state.set_head(msgspec.structs.replace(state.head, sequence=turn + 1))
        for _ in range(4):
            wanted, host = some_wanted(rng, state)
            expected = brute(state, wanted, host)
            assert paged(filters, state, wanted, host, rng.choice((1, 2, 1_000))) == expected, wanted
            assert filters.count(state, wanted, host=host) == len(expected), wanted
            found += len(expected)
    assert found > 1_000


def test_what_is_missing_is_in_the_list_of_all_only() -> None:
    """Nothing said: all. Anything said, or counted: what is there."""
    state = state_of({"h1": everything()}, missing=frozenset({f"h1/{NIC}"}))
    assert wanted_by(state, ListDevices()).is_all
    for question in (ListDevices(present=True), ListDevices(count_only=True), ListDevices(cap="pci")):
        wanted = wanted_by(state, question)
        assert not wanted.is_all
        assert DeviceId(f"h1/{NIC}") not in brute(state, wanted, "")
    assert DeviceFilters().count(state, Wanted(), host="") == len(everything()) - 1


def test_a_parent_by_any_name_on_any_host() -> None:
    """A name that each host has leads to all of them, an id or a host to one; `computer` to what is below none."""
    state = state_of({host: everything() for host in HOSTS})
    names = (NIC, "pci_0000_03_00_0", "0000:03:00.0", f"/sys/devices/{NIC}")
    for name in names:
        assert parents_named(state, name) == {f"{host}/{NIC}" for host in HOSTS}, name
        assert parents_named(state, name, "h10") == {f"h10/{NIC}"}
    assert parents_named(state, f"h2/{NIC}") == {f"h2/{NIC}"}
    assert parents_named(state, "nothing") == frozenset()
    tops = brute(state, wanted_by(state, ListDevices(parent="computer", host="h1")), "h1")
    assert tops == sorted(f"h1/{each.key}" for each in everything() if not each.parent and each.key != "computer")


def test_no_driver_is_of_those_that_could_have_one() -> None:
    """`none` leads to what sits on a bus without a driver, and not to interfaces or disks, which never have any."""
    state = state_of({"h1": everything()})
    found = brute(state, wanted_by(state, ListDevices(driver=UNBOUND)), "")
    assert "h1/pci/0000:03:10.0" in found
    assert all(state.devices[device].description.kind not in ("net", "block", "other") for device in found)
