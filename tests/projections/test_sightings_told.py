"""How agents came to know what they tell: carried into the log, counted, and told in words."""

from typing import Any

import msgspec
import pytest

from leasehold.events import codec, event_types, inputs
from leasehold.events.capabilities import Bridge, Net, Storage
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.identities import DeviceId, DeviceKey
from leasehold.events.inputs import DeviceFlaps, DeviceGone, DeviceSeen
from leasehold.events.position import position_of
from leasehold.projections.history import index_rows
from leasehold.projections.replay import Replay
from leasehold.projections.telling import tell
from tests.projections.hbas import GPU, GVT, HbaLedger, mdev_key
from tests.projections.ledger import H1, A, Ledger, device, ledger_with_hosts, pci
from tests.projections.test_requests import kinds

KEY = DeviceKey("pci/0000:0a:00.0")
HOW = Sighting(why="event", source="udev", actions=("unbind", "bind"), flaps=2, heard_at_ns=7)


def nic(link: str, **fields: Any) -> DeviceDescription:
    """A network interface."""
    return DeviceDescription(
        key=DeviceKey("virtual/net/br0"), name="net_br0", kind="net",
        capability=Net(interface="br0", link_state=link, **fields),
    )  # fmt: skip


def last(ledger: Ledger) -> Any:
    """The last event of the last record."""
    return ledger.events[-1]


@pytest.mark.parametrize(
    ("before", "says", "kind"),
    [
        ((), DeviceSeen(pci("0c:00.0"), HOW), event_types.DeviceAppeared),
        ((), DeviceSeen(pci("0a:00.0", driver="vfio-pci"), HOW), event_types.DeviceChanged),
        ((), DeviceSeen(pci("0a:00.0", product_id="1572"), HOW), event_types.DeviceReplaced),
        ((), DeviceGone(KEY, HOW), event_types.DeviceMissing),
        ((DeviceGone(KEY),), DeviceSeen(pci("0a:00.0"), HOW), event_types.DeviceReappeared),
        ((), DeviceFlaps(KEY, HOW), event_types.DeviceFlapped),
    ],
)
def test_it_is_carried_over(before: tuple[inputs.Observation, ...], says: Any, kind: type[Any]) -> None:
    """Every event about a device says how its agent came to know, and its flaps are counted with the device."""
    ledger = ledger_with_hosts()
    for each in before:
        ledger.observe(each)
    ledger.observe(says)
    assert type(last(ledger)) is kind
    assert last(ledger).how == HOW
    key = says.device.key if isinstance(says, DeviceSeen) else says.key
    assert ledger.state.devices[DeviceId(f"{H1}/{key}")].flaps == 2


def test_flaps_are_counted_until_another_thing_comes() -> None:
    """They add up over all events of a device; another thing in its place begins with its own."""
    ledger = ledger_with_hosts()
    ledger.observe(DeviceFlaps(KEY, HOW))
    ledger.observe(DeviceFlaps(KEY, HOW))
    ledger.observe(DeviceSeen(pci("0a:00.0", driver="x"), HOW))
    ledger.observe(DeviceGone(KEY))
    assert ledger.state.devices[device("0a:00.0")].flaps == 6
    ledger.observe(DeviceSeen(pci("0a:00.0", product_id="1"), msgspec.structs.replace(HOW, flaps=1)))
    assert ledger.state.devices[device("0a:00.0")].flaps == 1


def test_flaps_of_what_is_not_known() -> None:
    """They leave no word; and they stand beside what a message says of the device itself."""
    ledger = ledger_with_hosts()
    ledger.observe(DeviceFlaps(DeviceKey("pci/0000:0c:00.0"), HOW))
    assert kinds(ledger) == ["ObservationsAccepted"]
    ledger.observe(DeviceSeen(pci("0a:00.0", driver="x")), DeviceFlaps(KEY, HOW))
    assert kinds(ledger) == ["ObservationsAccepted", "DeviceChanged", "DeviceFlapped"]


def test_lost_events_are_told() -> None:
    """That the kernel's events were lost is an event, of the host's history."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.MissedEvents(3))
    assert last(ledger) == event_types.EventsMissed(H1, "watcher", 3)
    assert tell(last(ledger), 1) == (
        "watcher on h1 lost events of the kernel 3 times, and looked at everything again"
    )
    assert index_rows(ledger.state, 1, last(ledger)) == [("host", "h1", 1)]


def test_what_was_before() -> None:
    """A change of driver or link says what it was; one that is told without how says as little as it ever did."""
    ledger = ledger_with_hosts()
    ledger.see(nic("up"))
    ledger.observe(DeviceSeen(nic("down"), HOW), DeviceSeen(pci("0a:00.0", iommu_group=2, driver="e1000e"), HOW))
    link, driver = ledger.events[1:]
    assert isinstance(link, event_types.DeviceChanged)
    assert isinstance(driver, event_types.DeviceChanged)
    assert (link.changed, link.was) == (("capability.link_state",), {"capability.link_state": "up"})
    assert (driver.changed, driver.was) == (("driver", "iommu_group"), {"driver": ""})
    ledger.observe(DeviceSeen(pci("0a:00.0", iommu_group=2, driver="x" * 99), HOW))
    ledger.observe(DeviceSeen(pci("0a:00.0", iommu_group=2, driver="y"), HOW))
    assert last(ledger).was == {"driver": "x" * 64}
    ledger.see(pci("0a:00.0", iommu_group=2, driver="z"))
    assert last(ledger).was == {}
    replay = Replay()
    assert not any(replay.step(sequence, body) for sequence, body in enumerate(ledger.bodies, 1))


def change(before: DeviceDescription, after: DeviceDescription, **how: Any) -> str:
    """How a change is told."""
    ledger = ledger_with_hosts()
    ledger.see(before)
    ledger.observe(DeviceSeen(after, Sighting(**{"why": "event", **how})))
    text = tell(last(ledger), 1)
    assert text.startswith(f"h1/{after.key} changed: ")
    return text.partition(" changed: ")[2]


@pytest.mark.parametrize(
    ("before", "after", "how", "text"),
    [
        ({"driver": "e1000e"}, {"driver": "vfio-pci"}, {}, "driver was e1000e, is vfio-pci"),
        ({}, {"driver": "vfio-pci"}, {}, "driver was none, is vfio-pci"),
        (
            {"driver": "e1000e"}, {}, {"source": "udev", "actions": ("unbind",)},
            "driver was e1000e, is none (udev said: unbind)",
        ),
        (
            {"driver": "a"}, {"driver": "b"}, {"source": "kernel", "actions": ("unbind", "bind"), "flaps": 2},
            "driver was a, is b (kernel said: unbind, bind; it had gone and come back twice)",
        ),
        ({}, {"name": "x", "iommu_group": 3}, {"why": "start"}, "iommu_group is now 3, name is now x (found at start)"),
        ({"iommu_group": 3}, {}, {"why": "lost_events"}, "iommu_group is now unknown (found after events were lost)"),
        ({}, {"in_use_by": ("a", "b")}, {"why": "clock"}, "in_use_by is now a, b (found by looking again)"),
        ({}, {"bridge": True, "attributes": {"a": "b"}}, {}, "attributes, bridge is now yes"),
        ({}, {"driver": "x"}, {"source": "kernel"}, "driver was none, is x (kernel)"),
    ],
)  # fmt: skip
def test_changes_in_words(before: dict[str, Any], after: dict[str, Any], how: dict[str, Any], text: str) -> None:
    """A change says what is so now, of drivers also what was, and how it came to be known."""
    assert change(pci("0c:00.0", **before), pci("0c:00.0", **after), **how) == text


def test_links_in_words() -> None:
    """A link that goes up or down is told as such; other fields of a capability by their own names."""
    assert change(nic("up"), nic("down")) == "link is down, was up"
    assert change(nic(""), nic("up")) == "link is up"
    assert change(nic("up"), nic("")) == "link is unknown, was up"
    assert change(nic("up"), nic("up", link_speed_mbps=1_000)) == "link_speed_mbps is now 1000"
    assert change(nic("up", master="x"), nic("up")) == "master is now empty"
    assert change(nic("up"), nic("up", kind=Bridge(stp=True))) == "kind"


def test_other_devices_in_words() -> None:
    """What has no maker's name is called as the kernel calls it; going, coming and flapping say their cause."""
    ledger = ledger_with_hosts()
    ledger.observe(DeviceSeen(nic("up"), Sighting(why="start")))
    assert tell(last(ledger), 1) == "h1/virtual/net/br0 appeared: net br0 (found at start)"
    disk = pci("0c:00.0", vendor_id="", product_id="", kind="block", capability=Storage(block="/dev/vda"))
    ledger.observe(DeviceSeen(disk))
    assert tell(last(ledger), 1) == "h1/pci/0000:0c:00.0 appeared: block /dev/vda"
    gone = Sighting(why="event", source="udev", actions=("remove",))
    ledger.observe(DeviceGone(disk.key, gone))
    assert tell(last(ledger), 1) == "h1/pci/0000:0c:00.0 is not there any more (udev said: remove)"
    ledger.observe(DeviceSeen(disk, gone))
    assert tell(last(ledger), 1) == "h1/pci/0000:0c:00.0 is back: block /dev/vda (udev said: remove)"
    ledger.observe(DeviceFlaps(disk.key, msgspec.structs.replace(gone, flaps=1)))
    assert tell(last(ledger), 1) == (
        "h1/pci/0000:0c:00.0 went and came back once, and is as it was (udev said: remove)"
    )


def test_orders_in_words() -> None:
    """An order, and its end, are told with what is to be made, by whom and why not; and stand in all histories."""
    ledger = HbaLedger()
    made = ledger.make_mdev()
    texts = []
    rows: list[tuple[str, str]] = []
    for sequence, body in enumerate(ledger.bodies, 1):
        position: int = position_of(sequence, 0)
        for step in codec.decode_record(body, sequence).steps:
            for event in step.events:
                if isinstance(event, event_types.HostOrdered | event_types.OrderCarriedOut):
                    texts.append(tell(event, position))
                    rows += [(kind, name) for kind, name, _ in index_rows(ledger.state, position, event)]
                position += 1
    order = next(iter(ledger.state.orders))
    uuid = made.rpartition("/")[2]
    asked = "(asked by a, request r1)"
    assert texts == [
        f"creator on h1 is told to make the mediated device {uuid} of type {GVT} on {GPU}, order {order} {asked}",
        f"order {order} was carried out on h1: h1/{mdev_key(uuid)}",
    ]
    assert set(rows) == {("principal", A), ("host", "h1"), ("device", f"h1/{GPU}"), ("device", made)}
    failed = event_types.OrderFailed(host=H1, order=order, reason="no room", timed_out=True)
    assert tell(failed, 1) == f"order {order} to h1 timed out: no room"


def test_a_creators_coming_and_going_in_words() -> None:
    """It is told as what it is: an agent without which nothing is made."""
    stale = event_types.HostWentStale(H1, "creator", "silent")
    assert tell(stale, 1) == "creator on h1 cannot be relied on: silent; no devices are made there"
    assert tell(event_types.SourceStopped(H1, "creator", 1), 1).endswith("; no devices are made there")
    assert tell(event_types.PictureCompleted(H1, "creator"), 1) == "creator makes and destroys devices on h1"
