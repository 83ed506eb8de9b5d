"""Buckets: what can be asked for has some, and a request is found under those of whatever could satisfy it."""

import random
from typing import Any

import pytest

from leasehold.events import limits
from leasehold.events.identities import DeviceId, DeviceKey, Principal, device_id
from leasehold.events.scheduling import Need, Option
from leasehold.projections import buckets, candidates, selectors
from leasehold.projections.rows import ClassState
from leasehold.projections.selectors import Selector
from tests.projections.ledger import CONTROLLER, DEVICES, H1, HUB, ROOT_HUB, Ledger, ledger_with_hosts
from tests.projections.selecting import GPU, NIC, Chance, world

LAB = Principal("lab")


def _of(needs: tuple[Need, ...] = (), *devices: str, host: str = "") -> tuple[str, ...]:
    state = world("h1", "h2")
    state.put_class("gpu", ClassState(select='device.pci.class == "0302"', position=1))
    request = Ledger().request(*devices, needs=needs, host=host)
    return buckets.of_request(state, request, LAB)


@pytest.mark.parametrize(
    ("needs", "host", "found"),
    [
        ((Need(select="true"),), "", ("any",)),
        ((Need(select="true"),), "h1", ("host:h1",)),
        ((Need(device_class="gpu"),), "", ("class:gpu", "pci_class:0302")),
        ((Need(device_class="gpu", select='device.vendor == "10de" && device.product == "20b0"'),), "",
         ("class:gpu", "model:10de:20b0")),
        ((Need(device_class="gpu"), Need(select='device.key == "pci/0000:03:00.0"')), "h1",
         ("class:gpu", "device:h1/pci/0000:03:00.0", "pci_class:0302")),
        ((Need(first_of=(Option(device_class="gpu"), Option(select='device.host == "h2"'))),), "",
         ("class:gpu", "host:h2", "pci_class:0302")),
        ((Need(device_class="none"),), "", ("any", "class:none")),
    ],
)  # fmt: skip
def test_under_what_needs_are_found(needs: tuple[Need, ...], host: str, found: tuple[str, ...]) -> None:
    """Each option of a request is found under its narrowest buckets, its class, and its tenant."""
    assert _of(needs, host=host) == (*found, "tenant:lab")


def test_under_what_named_devices_are_found() -> None:
    """Who names devices is found under these, or what they stand for; if a name is not known, under all."""
    named = (f"h1/{NIC}/net/0", f"h2/{GPU}")
    assert _of((), *named) == (f"device:h1/{NIC}", f"device:h2/{GPU}", "tenant:lab")
    assert _of((), "h1/pci/0000:ff:00.0") == ("any", "tenant:lab")


def test_who_is_found_under_very_much_is_found_under_all() -> None:
    """A request that would stand under more buckets than one may, stands under that of all devices."""
    needs = tuple(
        Need(select=" || ".join(f'device.host == "n{need}x{host}"' for host in range(20)))
        for need in range(limits.NEEDS_PER_REQUEST_MAX)
    )
    assert _of(needs) == ("any", "tenant:lab")


def test_what_can_be_asked_for_has_buckets() -> None:
    """Children, bridges and root hubs are never asked for; everything else on PCI and USB is found by what it is."""
    state = ledger_with_hosts().state
    found = {
        each.key: buckets.of_device(device_id(H1, each.key), state.devices[device_id(H1, each.key)]) for each in DEVICES
    }
    without = {str(key) for key, own in found.items() if not own}
    assert without == {
        "pci/0000:01:00.0/net/0", "pci/0000:02:02.0", ROOT_HUB, "usb/0000:04:00.0/2-2/interface/1.0",
    }  # fmt: skip
    assert found[DeviceKey(HUB)] == ("any", "kind:usb_device", "host:h1", "model:0403:6001", f"device:h1/{HUB}")
    assert "pci_class:0c03" in found[DeviceKey(CONTROLLER)]


def test_a_device_that_could_satisfy_a_request_shares_a_bucket_with_it() -> None:
    """Whatever a need made by chance could take, is in a bucket of the request, and in each set it is narrowed to."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    state, taken = world("h1", "h2"), 0
    for number in range(600):
        chance = Chance(seed + number)
        select, other = chance.truth(1)[0], chance.truth(1)[0]
        if any(not isinstance(selectors.compiled(text), Selector) for text in (select, other)):
            continue
        state.put_class("some", ClassState(select=other, position=1))
        host = random.Random(seed + number).choice(["", "h1"])
        need = Need(select=select, device_class="some")
        request: Any = Ledger().request(needs=(need,), host=host)
        found = set(buckets.of_request(state, request, LAB))
        for device, row in state.devices.items():
            own = set(buckets.of_device(device, row))
            if not own or (host and row.host != host) or not _matches(state, device, select, other):
                continue
            taken += 1
            assert own & found, (select, other, device)
            assert all(own & set(each) for each in buckets.of_option(state, need, host)), (select, other, device)
    assert taken > 100


def _matches(state: Any, device: DeviceId, *texts: str) -> bool:
    found = [selectors.compiled(text) for text in texts]
    return all(isinstance(each, Selector) and each.matches(state, device) is True for each in found)


def test_devices_are_listed_under_their_buckets() -> None:
    """What the state lists as known under a bucket is just what has that bucket, and can be asked for."""
    state = ledger_with_hosts().state
    having: dict[str, list[DeviceId]] = {}
    for device, row in state.devices.items():
        for bucket in buckets.of_device(device, row):
            having.setdefault(bucket, []).append(device)
    assert len(having) > 20
    for bucket, devices in having.items():
        sets = [frozenset((bucket,))]
        listed = candidates.named(sets) or candidates.devices(state.candidates.known, sets)
        assert sorted(listed) == sorted(devices), bucket
