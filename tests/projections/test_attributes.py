"""Attributes: what devices are compared by, and that each is written down for readers."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leasehold.events import limits
from leasehold.events.capabilities import Net
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName
from leasehold.projections import attributes, selectors
from leasehold.projections.attributes import DISKS, NETS, NUMBER, TEXT, TRUTH
from leasehold.projections.selectors import Selector
from tests.projections.selecting import DISK, GPU, MDEV, NIC, STICK, VF, add, descriptions, world
from tests.support import tree

_GUIDE = Path(tree.ROOT, "docs", "selectors.md")


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        (NIC, "numa_node", ("h1", 0)),
        (DISK, "numa_node", None),
        (NIC, "pcie_root", ("h1", "pci0000:00")),
        (GPU, 'attributes["resource.kubernetes.io"].pcieRoot', ("h1", "pci0000:40")),
        (STICK, "pcie_root", ("h1", "pci0000:00")),
        (NIC, "iommu_group", ("h1", 12)),
        (NIC, "pci.address", ("h1", "0000:03:00.0")),
        (MDEV, "pci.address", None),
        (NIC, "host", "h1"),
        (GPU, "vendor", "10de"),
        (NIC, "pci.vf", False),
        (VF, "pci.vf", True),
        (NIC, "pci.subsystem_vendor", "15d9"),
        (VF, "driver", None),
        (NIC, "nets", None),
        (NIC, 'attributes["rack"]', "b4"),
        (GPU, 'attributes["rack"]', None),
        (NIC, "nothing", None),
        ("pci/0000:ff:00.0", "host", None),
    ],
)
def test_what_devices_are_compared_by(key: str, name: str, value: object) -> None:
    """What counts on one host only comes with that host; what is not known, and lists, compare with nothing."""
    assert attributes.value(world(), DeviceId(f"h1/{key}"), name) == value


def test_same_numbers_on_two_hosts_are_not_the_same() -> None:
    """NUMA node 0 of one host is another than that of the other; a vendor is the same everywhere."""
    state = world("h1", "h2")
    for name, is_same in (
        ("numa_node", False),
        ("pcie_root", False),
        ("key", False),
        ("vendor", True),
        ("host", False),
    ):
        values = {attributes.value(state, DeviceId(f"{host}/{NIC}"), name) for host in ("h1", "h2")}
        assert (len(values) == 1) == is_same, name


def test_every_attribute_can_be_asked_for() -> None:
    """Each attribute, with the example of its own table, is a selector that is understood, of the type it says."""
    state = world()
    for name, attribute in attributes.BY_NAME.items():
        asked = {
            TEXT: f"device.{name} == {attribute.example}",
            NUMBER: f"device.{name} == {attribute.example}",
            TRUTH: f"device.{name} == {attribute.example}",
        }.get(attribute.type, f"device.{name}.size() > 0")
        selector = selectors.compiled(asked)
        assert isinstance(selector, Selector), selector
        for device, row in state.devices.items():
            value = attribute.read(state, device, row)
            expected = {TEXT: str, NUMBER: int | None, TRUTH: bool}.get(attribute.type, tuple)
            assert isinstance(value, expected), (name, value)
            assert isinstance(selector.matches(state, device), bool) or attribute.type == NUMBER
            if attribute.pattern and value:
                assert re.fullmatch(attribute.pattern, str(value)), (name, value)


def test_a_device_shows_its_own_parts_only() -> None:
    """What is plugged in below a device is not among its own interfaces and disks."""
    state = world()
    wifi = DeviceDescription(
        key=DeviceKey(f"{STICK}/net/0"), name="net_wlan0", kind="net", parent=STICK, capability=Net(interface="wlan0")
    )
    add(state, HostName("h1"), wifi)
    stick = next(each for each in descriptions() if each.key == STICK)
    add(state, HostName("h1"), msgspec.structs.replace(stick, parent=NIC))

    def names(key: str) -> list[object]:
        device = DeviceId(f"h1/{key}")
        rows: Any = attributes.BY_NAME["nets"].read(state, device, state.devices[device])
        return [row[0] for row in rows]

    assert (names(NIC), names(STICK), names(DISK)) == (["eth0", "eth1"], ["wlan0"], [])


def test_no_more_parts_are_seen_than_are_priced() -> None:
    """Of a device with more interfaces than a selector reckons with, the first ones by name are seen."""
    state = world()
    for number in range(limits.SELECTOR_LIST_MAX + 5):
        key = DeviceKey(f"{GPU}/net/{number}")
        net = Net(interface=f"n{number:03}")
        add(
            state,
            HostName("h1"),
            DeviceDescription(key=key, name=net.interface, kind="net", parent=GPU, capability=net),
        )
    device = DeviceId(f"h1/{GPU}")
    rows: Any = attributes.BY_NAME["nets"].read(state, device, state.devices[device])
    assert [row[0] for row in rows] == [f"n{number:03}" for number in range(limits.SELECTOR_LIST_MAX)]


def test_the_guide_has_every_attribute() -> None:
    """docs/selectors.md has each attribute with its type and its text, and no other."""
    rows = {}
    for line in _GUIDE.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| `device\.(.*?)` \| (.*?) \| (.*?) \| (.*?) \|$", line)
        if match is not None:
            rows[match[1]] = (match[2], match[3], match[4])
    assert list(rows) == list(attributes.BY_NAME)
    for name, attribute in attributes.BY_NAME.items():
        kind = f"{attribute.type} ⌂" if attribute.is_local else attribute.type
        assert rows[name] == (kind, attribute.says, f"`{attribute.example}`"), name


@pytest.mark.parametrize("entries", [NETS, DISKS])
def test_the_guide_has_every_field_of_a_list(entries: str) -> None:
    """docs/selectors.md names each field of the entries of a list."""
    fields = ", ".join(f"`{name}`" for name in attributes.FIELDS[entries])
    assert fields in _GUIDE.read_text(encoding="utf-8")
