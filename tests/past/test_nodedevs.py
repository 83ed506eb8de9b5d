"""Node devices as they were: the same filters, names and counts at any moment as now, and why orders were given."""

import random
from pathlib import Path

import msgspec
import pytest

from leasehold.events import inputs
from leasehold.events.capabilities import Bridge, Net, NewMdev, NewVport, PciLink
from leasehold.events.devices import Sighting
from leasehold.events.identities import COMPUTER, DeviceKey
from leasehold.events.position import end_of_record
from leasehold.events.questions import Blame, DevicesAt, Diff, ListDevices, Moment, Reading, Show
from leasehold.events.views import DeviceView
from leasehold.projections.state import State
from leasehold.services.archive import then
from leasehold.services.archive.keeper import ModelsKeeper
from leasehold.services.archive.ledger import ArchivedLedger
from leasehold.services.query.answering import Answerer
from leasehold.services.verifying.models import check_models
from tests.past.logs import ASKER, Asked, archived, devices_in, events_of, folded, node_devices, seeds
from tests.past.nodedevs import BRIDGE, GPU, HBA, HOSTS, MDEV_TYPE, NIC, PF, SCSI_HOST, NodeLedger
from tests.projections.ledger import B, device

PLACES = 6
FILTERS = 6
CAPS = ("net", "pci", "virt_functions", "phys_function", "mdev", "mdev_types", "fc_host", "vports", "80203", "net,pci")
PARENTS = (COMPUTER, PF, "pci_0000_01_00_0", "net_eth0_52_54_00_00_00_01", GPU, HBA, "/sys/devices/pci/0000:01:00.0",
           "nothing", "h1/pci/0000:02:00.0", "h9/pci/0000:02:00.0")  # fmt: skip


def some_filter(rng: random.Random) -> dict[str, object]:
    """What a question may say, in any combination."""
    every: dict[str, object] = {
        "cap": rng.choice(CAPS), "bus": rng.choice(("pci", "usb", "scsi", "mdev")), "parent": rng.choice(PARENTS),
        "driver": rng.choice(("igb", "vfio-pci", "none")), "host": rng.choice(("h1", "h2", "h9")),
        "present": rng.random() < 0.5,
    }  # fmt: skip
    return {name: every[name] for name in rng.sample(sorted(every), rng.randrange(1, 4))}


async def test_filters_are_those_of_the_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any filter at any place gives the rows, the number, or the refusal that the query service gives of the log
    folded up to there, in pages of any size and of however many hosts.
    """
    for seed in seeds(2):
        rng = random.Random(seed)
        events = events_of(bodies := node_devices(seed))
        found = 0
        async with archived(tmp_path / str(seed), bodies) as past:
            for place, state in folded(events, [rng.choice(events).position for _ in range(PLACES)]):
                if place < 256:
                    continue
                for _ in range(FILTERS):
                    said = some_filter(rng)
                    monkeypatch.setattr(then, "BUILT_MAX", rng.choice((1, 2_000)))
                    found += await check_filter(past, state, place, said, rng.choice((2, 9, 1_000)))
        assert found > FILTERS


async def check_filter(past: Asked, state: State, place: int, said: dict[str, object], limit: int) -> int:
    """One filter, rows and number; how many there were."""
    now: Reading = Answerer(state).answer(msgspec.convert(said, ListDevices), ASKER)
    question = msgspec.convert({"at": Moment(position=place), **said}, DevicesAt)
    page = await past.ask(msgspec.structs.replace(question, limit=limit))
    counted = await past.ask(msgspec.structs.replace(question, count_only=True))
    assert page.outcome == counted.outcome == now.outcome, (place, said)
    if now.outcome != "ok":
        assert now.outcome == "not_found"
        return 0
    rows = await past.all(msgspec.structs.replace(question, limit=limit), "devices", "device")
    assert rows == now.devices, (place, said)
    expected = [row for row in devices_in(state) if is_said(state, row, said)]
    assert rows == expected, (place, said)
    assert counted.count == sum(not state.devices[row.device].missing for row in expected), (place, said)
    return len(rows)


def is_said(state: State, row: DeviceView, said: dict[str, object]) -> bool:
    """Brute force, from what is shown of a device."""
    is_filtered = set(said) - {"host", "present"} or said.get("present")
    if is_filtered and state.devices[row.device].missing:
        return False
    called = [
        each.device
        for each in devices_in(state)
        if said.get("parent") in (each.device, each.key, each.name, each.sysfs_path)
        and said.get("host", each.host) == each.host
    ]
    # Of several of one name those that are there; what is below a host's computer is so, whether that is known or not.
    there = [each for each in called if not state.devices[each].missing]
    parents = {f"{host}/{COMPUTER}" for host in HOSTS} if said.get("parent") == COMPUTER else set(there or called)
    return (
        said.get("host", row.host) == row.host
        and ("cap" not in said or not set(str(said["cap"]).split(",")).isdisjoint(row.capabilities))
        and said.get("bus", row.bus) == row.bus
        and ("driver" not in said or (row.driver or (row.bus and "none")) == said["driver"])
        and ("parent" not in said or (row.key != COMPUTER and f"{row.host}/{row.parent or COMPUTER}" in parents))
    )


async def test_one_device_then(tmp_path: Path) -> None:
    """A device at any place, by any name that it had then, is shown as it was shown then."""
    (seed,) = seeds(1)
    rng = random.Random(seed)
    events = events_of(bodies := node_devices(seed))
    async with archived(tmp_path, bodies) as past:
        for place, state in folded(events, [rng.choice(events).position for _ in range(PLACES)]):
            if place < 256:
                continue
            rows = devices_in(state)
            names = [name for row in rows for name in (row.device, row.name, row.key, row.sysfs_path) if name]
            for name in rng.sample(names, min(8, len(names))):
                for host in ("", "h1"):
                    now = Answerer(state).answer(Show(name=name, host=host), ASKER)
                    page = await past.ask(DevicesAt(at=Moment(position=place), device=name, host=host))
                    assert (page.outcome, page.devices) == (now.outcome, now.devices), (place, name, host)
                    if page.devices:
                        shown = page.devices[0]
                        other = DevicesAt(at=Moment(position=place), device=name, host=host, driver="no-such")
                        assert shown in rows
                        assert (await past.ask(other)).devices == []


async def test_models_go_on_where_they_were(tmp_path: Path) -> None:
    """Models that were written record by record, opened anew each time, are those that are made at one go."""
    (seed,) = seeds(1)
    bodies = node_devices(seed)
    async with archived(tmp_path, bodies):
        pass
    (tmp_path / "models.sqlite").unlink()
    for last in range(1, len(bodies) + 1, 5):
        keeper = ModelsKeeper(_UpTo(tmp_path, last), tmp_path / "models.sqlite")
        try:
            await keeper.start()
            await keeper.catch_up()
        finally:
            await keeper.stop()
    report = await check_models(tmp_path)
    assert report.problem == ""
    assert report.sequence > len(bodies) - 5


class _UpTo(ArchivedLedger):
    """The beginning of an archive."""

    def __init__(self, directory: Path, last: int) -> None:
        super().__init__(directory)
        self._last = last

    async def follow_to_end(self, after: int = 0):  # type: ignore[no-untyped-def]
        """Up to the last record of the beginning."""
        async for batch in super().follow_to_end(after):
            some = [entry for entry in batch if entry.sequence <= self._last]
            if some:
                yield some


def links(page: Reading) -> list[tuple[int, str, str]]:
    """Depth, link and type of each cause."""
    return [(cause.depth, cause.because, cause.type.partition(".")[0]) for cause in page.causes]


async def test_why_a_host_was_ordered_and_what_came_of_it(tmp_path: Path) -> None:
    """A request for a device leads to its order, to what it is made of, and to each outcome, also a late one."""
    ledger = NodeLedger()
    ledger.begin()
    done = ledger.create(NewMdev(parent=GPU, mdev_type=MDEV_TYPE))
    made = ledger.carry_out(done.position)
    late = ledger.create(NewVport(parent=SCSI_HOST), timeout_ms=1_000)
    ledger.tick(40)
    ledger.carry_out(late.position)
    failed = ledger.destroy(made)
    ledger.fail(failed.position)
    asked: list[tuple[str, list[tuple[int, str, str]]]] = [
        (done.request_id, [(0, "ended by", "order_carried_out")]),
        (late.request_id, [(0, "ended by", "order_failed"), (0, "ended by", "order_carried_out")]),
        (failed.request_id, [(0, "ended by", "order_failed")]),
    ]
    async with archived(tmp_path, ledger.bodies) as past:
        for request_id, outcomes in asked:
            page = await past.ask(Blame(request_id=request_id))
            verb = "destroy_device" if request_id == failed.request_id else "create_device"
            about = [(1, "asked by", verb), (1, "known by", "device_appeared")]
            by_order = [(2, "made by", "host_ordered")] if verb == "destroy_device" else []
            ends = [each for outcome in outcomes for each in (outcome, (1, "ordered by", "host_ordered"))]
            assert links(page) == [(0, "", "host_ordered"), *about, *by_order, *ends], page.causes
        assert GPU in (await past.ask(Blame(request_id=done.request_id))).causes[1].text


async def test_why_a_host_was_not_ordered(tmp_path: Path) -> None:
    """A refusal leads to the lease in its way, to the order before it, or to what was reported of the device."""
    ledger = NodeLedger()
    ledger.begin()
    ledger.ask(ledger.request(device("03:00.0")), B)
    leased = ledger.create(NewMdev(parent=GPU, mdev_type=MDEV_TYPE))
    unfit = ledger.create(NewMdev(parent=PF, mdev_type=MDEV_TYPE))
    ordered = ledger.create(NewVport(parent=SCSI_HOST))
    held_up = ledger.ask(ledger.request(device("02:00.0")))
    assert [each.outcome for each in (leased, unfit, ordered, held_up)] == ["refused", "refused", "ordered", "refused"]
    async with archived(tmp_path, ledger.bodies) as past:
        for request_id, cause in (
            (leased.request_id, "held by"), (unfit.request_id, "reported by"),
            (held_up.request_id, "ordered before by"),
        ):  # fmt: skip
            page = await past.ask(Blame(request_id=request_id))
            assert cause in [each.because for each in page.causes if each.depth == 1], page.causes


async def test_what_was_known_before_a_link_went_down(tmp_path: Path) -> None:
    """A device is shown with the link, driver and name that it had at that position, and with its flaps since."""
    ledger = NodeLedger()
    ledger.begin()
    before = end_of_record(len(ledger.bodies))
    ledger.alter(HOSTS[0], NIC, link_state="down")
    ledger.alter(HOSTS[0], PF, driver="vfio-pci")
    ledger.alter(HOSTS[0], NIC, interface="lan0", name="net_lan0_52_54_00_00_00_01")
    async with archived(tmp_path, ledger.bodies) as past:
        first = await past.ask(DevicesAt(at=Moment(position=before), device="net_eth0_52_54_00_00_00_01", host="h1"))
        last = await past.ask(DevicesAt(device="net_lan0_52_54_00_00_00_01"))
        gone = await past.ask(DevicesAt(device="net_eth0_52_54_00_00_00_01", host="h1"))
        bound = await past.ask(DevicesAt(host="h1", driver="vfio-pci"))
    states = [getattr(row.capability, "link_state", "") for row in (*first.devices, *last.devices)]
    assert states == ["up", "down"]
    assert gone.outcome == "not_found"
    assert [row.key for row in bound.devices] == [DeviceKey(PF)]


async def test_differences_are_read_thing_by_thing(tmp_path: Path) -> None:
    """What is nested is named with dots; of features those that the other side lacks are shown; what could not be told
    before is told as a whole, from where its last part came to be so.
    """
    ledger = NodeLedger()
    ledger.begin()
    ledger.alter(HOSTS[0], BRIDGE, capability=None)
    since = end_of_record(len(ledger.bodies))
    ledger.alter(HOSTS[0], NIC, link_state="down", features=("gro", "rx", "sg"))
    ledger.alter(HOSTS[0], BRIDGE, capability=Net(interface="br0", kind=Bridge(stp=True)))
    ledger.alter(HOSTS[0], BRIDGE, link_state="up")
    last = end_of_record(len(ledger.bodies) - 1) + 1
    ledger.alter(HOSTS[0], PF, link_now=PciLink(speed_mts=2_500, width=4), pci_class=0x020001)
    ledger.tell(HOSTS[0], inputs.DeviceFlaps(DeviceKey(PF), Sighting(why="event", flaps=3)))
    async with archived(tmp_path, ledger.bodies) as past:
        page = await past.ask(Diff(since=Moment(position=since)))
    assert [(row.device, row.what, row.before, row.after) for row in page.changes] == [
        (f"h1/{PF}", "flaps", "0", "3"),
        (f"h1/{PF}", "capability.link_now.speed_mts", "5000", "2500"),
        (f"h1/{PF}", "pci_class", "020000", "020001"),
        (f"h1/{NIC}", "capability.features", "tso", "gro"),
        (f"h1/{NIC}", "capability.link_state", "up", "down"),
        (f"h1/{BRIDGE}", "capability", "", "net interface=br0 link_state=up kind=(bridge stp=yes)"),
    ]
    assert page.changes[-1].position >= last
