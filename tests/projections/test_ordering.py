"""Which orders hosts are given, on what, and why others are not."""

from typing import Any

import pytest

from leasehold.events import inputs, limits
from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    MdevType,
    NewMdev,
    NewVport,
    Pci,
    ScsiHost,
    VportOps,
)
from leasehold.events.identities import DeviceKey, RequestId, parse_wwn
from tests.projections.hbas import (
    DEVICES,
    FABRIC,
    GPU,
    GVT,
    MTTY,
    OTHER_FABRIC,
    UUID,
    UUID2,
    Creator,
    HbaLedger,
    gpu,
    hba,
    hba_key,
    mdev,
    mdev_key,
    vport,
    wwn,
)
from tests.projections.ledger import H1, H2, A, B, refusal_of

PORT = wwn(0x77)


def made(ledger: HbaLedger, **fields: Any) -> CreateVport:
    """What a request for a virtual HBA has led to."""
    host = fields.pop("host", H1)
    order = ledger.ordered(ledger.create(NewVport(**fields), host=host))
    what = ledger.state.orders[order].what
    assert isinstance(what, CreateVport)
    return what


# --- who may be told ----------------------------------------------------------------------------------------------


def test_hosts_that_do_not_allow_it() -> None:
    """A host is told nothing unless its creator runs and its picture is up to date."""
    ledger = HbaLedger(with_creator=False)
    code, text = "host_forbids", "no agent on h1 makes or destroys devices"
    for answer in (
        ledger.create(NewVport()),
        ledger.create(NewVport(parent="h1/scsi_host0"), host=""),
        ledger.create(NewMdev(parent=GPU, mdev_type=GVT)),
    ):
        assert (refusal_of(answer).code, refusal_of(answer).message) == (code, text)
    assert refusal_of(ledger.create(NewVport(), host="nowhere")).code == "host_forbids"
    ledger.creator.start()
    ledger.ordered(ledger.create(NewVport()))
    ledger.note(inputs.HostHeard(H1, "creator", 1, alive=False))
    silent = refusal_of(ledger.create(NewVport()))
    assert silent.code == "host_forbids"
    assert "not been heard" in silent.message
    ledger.note(inputs.HostHeard(H1, "creator", 1, alive=True))
    ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    assert refusal_of(ledger.create(NewVport())).code == "host_stale"


def test_a_creator_that_goes_does_not_make_its_host_stale() -> None:
    """Who only acts on a host paints no picture of it: with it or without it devices are granted."""
    ledger = HbaLedger()
    ledger.note(inputs.HostHeard(H1, "creator", 1, alive=False))
    assert ledger.state.hosts[H1].stale == ""
    ledger.granted("0a:00.0")
    ledger.creator.say(inputs.SourceStops())
    assert ledger.state.hosts[H1].stale == ""
    only = Creator(ledger, H2, run=1)
    only.start()
    assert ledger.state.hosts[H2].stale == ""


def test_a_host_with_a_creator_alone_is_stale() -> None:
    """An agent that tells no picture makes no host known well enough to be granted from."""
    ledger = HbaLedger()
    creator = Creator(ledger, type(H1)("h3"))
    creator.start()
    assert ledger.state.hosts[creator.host].stale == "no agent has reported"


def test_too_many_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host has so many orders open and no more."""
    monkeypatch.setattr(limits, "ORDERS_OPEN_PER_HOST_MAX", 2)
    ledger = HbaLedger()
    first, _ = (ledger.ordered(ledger.create(NewVport())) for _ in range(2))
    assert refusal_of(ledger.create(NewVport())).code == "orders_too_many"
    ledger.creator.done(first)
    ledger.ordered(ledger.create(NewVport()))


# --- virtual HBAs -------------------------------------------------------------------------------------------------


def test_parents_are_chosen() -> None:
    """By any name, by world wide names in any spelling, by fabric, or as the one with the most room."""
    ledger = HbaLedger()
    assert made(ledger, parent="h1/scsi_host0", host="").parent == hba_key(0)
    assert made(ledger, parent=hba_key(0)).parent == hba_key(0)
    spelled = ":".join(wwn(0x21)[at : at + 2] for at in range(0, 16, 2)).upper()
    assert made(ledger, parent_wwpn=spelled).parent == hba_key(1)
    assert made(ledger, parent_wwnn=f"0x{wwn(0x10)}", parent_wwpn=wwn(0x20)).parent == hba_key(0)
    ledger = HbaLedger()
    parents = [made(ledger).parent for _ in range(8)]
    assert parents == [hba_key(number) for number in (1, 1, 0, 1, 0, 1, 0, 1)]
    assert refusal_of(ledger.create(NewVport())).code == "parent_unsuitable"


def test_parents_by_fabric() -> None:
    """A fabric chooses among the ports that are in it and online."""
    ledger = HbaLedger()
    ledger.see(hba(1, room=5, fabric=OTHER_FABRIC))
    assert made(ledger, parent_fabric_wwn=FABRIC).parent == hba_key(0)
    assert made(ledger, parent_fabric_wwn=OTHER_FABRIC).parent == hba_key(1)
    ledger.see(hba(1, room=5, fabric=OTHER_FABRIC, state="Linkdown"))
    assert made(ledger).parent == hba_key(0)
    offline = refusal_of(ledger.create(NewVport(parent_fabric_wwn=OTHER_FABRIC)))
    assert (offline.code, "Linkdown" in offline.message) == ("parent_unsuitable", True)
    assert made(ledger, parent="scsi_host1").parent == hba_key(1)
    assert refusal_of(ledger.create(NewVport(parent_fabric_wwn=wwn(1)))).code == "parent_unsuitable"


@pytest.mark.parametrize(
    ("new", "host", "code"),
    [
        (NewVport(parent="scsi_host7"), H1, "device_unknown"),
        (NewVport(parent="scsi_host0"), "", "device_ambiguous"),
        (NewVport(parent="pci_0000_0a_00_0"), H1, "parent_unsuitable"),
        (NewVport(parent="scsi_host0", parent_wwpn=wwn(0x21)), H1, "parent_unsuitable"),
        (NewVport(parent="pci_0000_0a_00_0", parent_fabric_wwn=FABRIC), H1, "parent_unsuitable"),
        (NewVport(parent_wwpn=wwn(0x55)), H1, "device_unknown"),
        (NewVport(parent_wwpn=wwn(0x20), parent_wwnn=wwn(0x11)), H1, "device_unknown"),
        (NewVport(parent_wwpn=wwn(0x20)), "", "device_ambiguous"),
        (NewVport(parent_wwpn=wwn(0x99)), H1, "device_unknown"),
        (NewVport(wwpn=wwn(0x20)), H1, "device_exists"),
        (NewVport(wwpn=wwn(0x99)), H1, "device_exists"),
        (NewMdev(parent="nothing", mdev_type=GVT), H1, "device_unknown"),
        (NewMdev(parent="pci_0000_0a_00_0", mdev_type=GVT), H1, "parent_unsuitable"),
        (NewMdev(parent=GPU, mdev_type="mtty-1"), H1, "parent_unsuitable"),
    ],
)
def test_what_is_not_made(new: NewVport | NewMdev, host: str, code: str) -> None:
    """A parent that is not there, not the only one, or not fit; a name that something bears. Each says what helps."""
    ledger = HbaLedger()
    refusal = refusal_of(ledger.create(new, host=host))
    assert refusal.code == code
    assert refusal.help
    assert not ledger.state.orders


def test_a_full_parent() -> None:
    """What is being made takes room, too; what has failed gives it back."""
    ledger = HbaLedger()
    ledger.see(hba(0, room=2, vports=1))
    order = ledger.ordered(ledger.create(NewVport(parent="scsi_host0")))
    assert refusal_of(ledger.create(NewVport(parent="scsi_host0"))).code == "parent_unsuitable"
    ledger.creator.not_done(order)
    ledger.ordered(ledger.create(NewVport(parent="scsi_host0")))
    unknown = ScsiHost(vport_ops=VportOps())
    ledger.describe(hba_key(0), capability=unknown)
    for _ in range(9):
        ledger.ordered(ledger.create(NewVport(parent="scsi_host0")))


def test_names_that_are_made_up() -> None:
    """They are well formed, differ from each other and all that is known, and are the same for the same request."""
    ledger = HbaLedger()
    names = [name for _ in range(5) for what in [made(ledger)] for name in (what.wwnn, what.wwpn)]
    assert len(set(names)) == 10
    assert all(parse_wwn(name) == name and name.startswith("5525400") for name in names)
    again = HbaLedger()
    assert made(again).wwpn == names[1]
    taken = HbaLedger()
    taken.see(vport(names[1]))
    assert made(taken).wwpn not in names
    given = HbaLedger()
    assert (made(given, wwnn=wwn(0x10)).wwnn, made(given, wwpn=PORT).wwpn) == (wwn(0x10), PORT)


def test_a_name_that_is_being_made() -> None:
    """Two orders never make one name; once the first has failed, it may be asked for again."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewVport(wwpn=PORT)))
    refusal = refusal_of(ledger.create(NewVport(wwpn=PORT.upper())))
    assert (refusal.code, f"order {order}" in refusal.message) == ("device_exists", True)
    ledger.creator.not_done(order)
    ledger.ordered(ledger.create(NewVport(wwpn=PORT, wwnn=wwn(0x78))))
    assert refusal_of(ledger.create(NewVport(wwpn=wwn(0x78)))).code == "device_exists"


# --- mediated devices ---------------------------------------------------------------------------------------------


def test_mediated_devices() -> None:
    """One is made of an offered type while there is room, with the UUID that is given or a made-up one."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewMdev(parent="h1/pci_0000_0c_00_0", mdev_type=GVT, uuid=UUID), host=""))
    assert ledger.state.orders[order].what == CreateMdev(parent=GPU, mdev_type=GVT, uuid=UUID)
    assert refusal_of(ledger.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=UUID))).code == "device_exists"
    made_up = ledger.state.orders[ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT)))].what
    assert isinstance(made_up, CreateMdev)
    assert (len(made_up.uuid), made_up.uuid[14], made_up.uuid[19] in "89ab") == (36, "8", True)
    assert refusal_of(ledger.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=UUID2))).code == "parent_unsuitable"
    types = (MdevType(id=GVT, available_instances=2), MdevType(id="small", available_instances=1))
    ledger.describe(GPU, capability=Pci(mdev_types=types))
    ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type="small")))
    assert refusal_of(ledger.create(NewMdev(parent=GPU, mdev_type="small"))).code == "parent_unsuitable"
    ledger.ordered(ledger.create(NewMdev(parent=MTTY, mdev_type="mtty-1", uuid=UUID2)))
    assert refusal_of(ledger.create(NewMdev(parent=MTTY, mdev_type="mtty-1", uuid=UUID2))).code == "device_exists"


def test_uuids_that_are_made_up() -> None:
    """One is the same for the same request, unless something on the host bears it, or is being made so."""

    def made_up(ledger: HbaLedger) -> str:
        what = ledger.state.orders[ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT)))].what
        assert isinstance(what, CreateMdev)
        return what.uuid

    first = made_up(HbaLedger())
    assert made_up(HbaLedger()) == first
    ledger = HbaLedger()
    ledger.see(mdev(first))
    assert made_up(ledger) != first
    ledger = HbaLedger()
    ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=first), request_id=RequestId("other")))
    assert made_up(ledger) != first


def test_a_mediated_device_is_leased_by_itself() -> None:
    """Its parent stays out of the lease, but cannot be another's meanwhile; nor can it be had while the parent is."""
    ledger = HbaLedger()
    device = ledger.make_mdev()
    answer = ledger.ask(ledger.request(device))
    assert answer.devices == (device,)
    refusal = refusal_of(ledger.lease("0c:00.0", principal=B))
    assert (refusal.code, refusal.blockers[0].rule, refusal.blockers[0].because_of) == (
        "device_held", "physical_function", device,
    )  # fmt: skip
    assert "mediated" in refusal.message
    ledger.release(answer.lease)
    ledger.granted("0c:00.0", principal=B)
    assert refusal_of(ledger.ask(ledger.request(device))).code == "device_held"


def test_a_parent_that_is_anothers() -> None:
    """Nothing is made on, or taken from, what another principal has leased, or what is being given back."""
    ledger = HbaLedger()
    lease = ledger.granted("0c:00.0", principal=B)
    new = NewMdev(parent=GPU, mdev_type=GVT)
    refusal = refusal_of(ledger.create(new))
    assert (refusal.code, refusal.blockers[0].lease) == ("device_held", lease)
    order = ledger.ordered(ledger.create(new, principal=B))
    ledger.creator.not_done(order)
    ledger.change("0c:00.0", in_use_by=("domain web",))
    ledger.release(lease, principal=B)
    assert refusal_of(ledger.create(new, principal=B)).code == "device_held"
    hba_lease = ledger.granted("05:00.0", principal=B)
    refusal = refusal_of(ledger.create(NewVport(parent="scsi_host0")))
    assert (refusal.code, refusal.blockers[0].lease) == ("device_held", hba_lease)
    assert made(ledger).parent == hba_key(1)


def test_a_parent_that_is_not_there_or_used() -> None:
    """A parent that is gone, or that something uses without a lease, is left alone."""
    ledger = HbaLedger()
    ledger.change("0c:00.0", in_use_by=("domain web",))
    assert refusal_of(ledger.create(NewMdev(parent=GPU, mdev_type=GVT))).code == "device_in_use"
    ledger.observe(inputs.DeviceGone(GPU), inputs.DeviceGone(hba_key(0)))
    assert refusal_of(ledger.create(NewMdev(parent=GPU, mdev_type=GVT))).code == "device_missing"
    assert refusal_of(ledger.create(NewVport(parent="scsi_host0"))).code == "device_missing"


def test_nobody_gets_what_an_order_is_about() -> None:
    """While something is made on a device, or it is taken away, it is not granted; then it is."""
    ledger = HbaLedger()
    device = ledger.make_mdev()
    orders = [
        ledger.ordered(ledger.create(NewVport(parent="scsi_host0"))),
        ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT))),
        ledger.ordered(ledger.destroy(device)),
    ]
    wanted = ["h1/pci/0000:05:00.0", f"h1/{GPU}", device]
    for name in wanted:
        refusal = refusal_of(ledger.ask(ledger.request(name)))
        assert (refusal.code, refusal.blockers[0].rule) == ("device_in_use", "ordered")
    for order in orders:
        ledger.creator.not_done(order)
    assert ledger.ask(ledger.request(*wanted)).outcome == "granted"


# --- taking away --------------------------------------------------------------------------------------------------


def test_devices_are_taken_away() -> None:
    """A virtual HBA and a mediated device, named in any way; the order says what the host needs to know."""
    ledger = HbaLedger()
    device = ledger.make_mdev()
    ledger.see(vport(PORT))
    order = ledger.ordered(ledger.destroy(f"scsi_host_{PORT}"))
    assert ledger.state.orders[order].what == DestroyVport(
        device=vport(PORT).key, parent=hba_key(0), wwnn=wwn(0x30), wwpn=PORT
    )
    refusal = refusal_of(ledger.destroy(f"scsi_host_{PORT}"))
    assert (refusal.code, f"order {order}" in refusal.message) == ("not_destroyable", True)
    gone = ledger.ordered(ledger.destroy(device))
    assert ledger.state.orders[gone].what == DestroyMdev(device=mdev_key(UUID), parent=GPU, uuid=UUID)
    ledger.observe(inputs.DeviceGone(mdev_key(UUID)))
    ledger.creator.done(gone, mdev_key(UUID))
    assert refusal_of(ledger.destroy(device)).code == "device_missing"
    ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=UUID)))


def test_orders_about_one_thing_follow_one_another() -> None:
    """What is seen before its order is over is not taken away yet; what is being taken away is not made again."""
    ledger = HbaLedger()
    order = ledger.ordered(ledger.create(NewMdev(parent=GPU, mdev_type=GVT, uuid=UUID)))
    ledger.see(mdev())
    refusal = refusal_of(ledger.destroy(mdev().name))
    assert (refusal.code, f"order {order}" in refusal.message) == ("not_destroyable", True)
    ledger.creator.done(order, mdev_key(UUID))
    order = ledger.ordered(ledger.destroy(mdev().name))
    ledger.observe(inputs.DeviceGone(mdev_key(UUID)))
    new = NewMdev(parent=GPU, mdev_type=GVT, uuid=UUID)
    assert refusal_of(ledger.create(new)).code == "device_exists"
    ledger.creator.done(order)
    ledger.ordered(ledger.create(new))


def test_a_part_of_what_is_anothers_stays() -> None:
    """Of a device that another has leased nothing is taken away, though it was made before; its holder may."""
    ledger = HbaLedger()
    ledger.see(vport(PORT))
    lease = ledger.granted("05:00.0", principal=B)
    refusal = refusal_of(ledger.destroy(vport(PORT).name))
    assert (refusal.code, refusal.blockers[0].lease) == ("device_held", lease)
    ledger.ordered(ledger.destroy(vport(PORT).name, principal=B))
    gpus = ledger.granted("0c:00.0", principal=B)
    ledger.see(mdev())
    assert refusal_of(ledger.destroy(mdev().name)).blockers[0].lease == gpus


def test_what_is_not_taken_away() -> None:
    """What was not made; what is leased, by whomever, or being given back; what is used, or needed by the host."""
    ledger = HbaLedger()
    device = ledger.make_mdev()
    for name in ("scsi_host0", "pci_0000_0c_00_0", "computer"):
        assert refusal_of(ledger.destroy(name, host=H1)).code == "not_destroyable"
    assert refusal_of(ledger.destroy("nothing")).code == "device_unknown"
    lease = ledger.ask(ledger.request(device)).lease
    for principal in (A, B):
        assert refusal_of(ledger.destroy(device, principal=principal)).blockers[0].lease == lease
    ledger.describe(mdev_key(UUID), in_use_by=("domain web",))
    ledger.release(lease)
    assert refusal_of(ledger.destroy(device)).code == "device_held"
    ledger.describe(mdev_key(UUID), in_use_by=())
    ledger.ordered(ledger.destroy(device))
    port = vport(PORT)
    disk = vport(PORT, key=DeviceKey("pci/0000:05:00.0/scsi/0"), name="scsi_9_0_0_0", kind="scsi", parent=port.key,
        capability=None)  # fmt: skip
    for changes, code in (({"in_use_by": ("a process",)}, "device_in_use"), ({"protections": ("mounted at /",)},
        "device_protected")):  # fmt: skip
        ledger.see(port, disk)
        ledger.describe(disk.key, **changes)
        refusal = refusal_of(ledger.destroy(port.name))
        assert (refusal.code, disk.key in refusal.message) == (code, True)
    ledger.observe(inputs.DeviceGone(disk.key))
    ledger.ordered(ledger.destroy(port.name))


def test_what_is_nobodys() -> None:
    """The host itself, and what sits on no bus that tells where, is never granted, and says why."""
    ledger = HbaLedger()
    for name in ("h1/computer", f"h1/{MTTY}"):
        refusal = refusal_of(ledger.ask(ledger.request(name, force=True)))
        assert (refusal.code, refusal.blockers[0].rule) == ("device_unleasable", "not_physical")


def test_devices_of_the_scenario_are_as_described() -> None:
    """The descriptions that these tests begin with are such as an agent may send."""
    ledger = HbaLedger()
    known = {row.description.key for device, row in ledger.state.devices.items() if device.startswith("h1/")}
    assert known == {description.key for description in DEVICES}
    assert mdev() != gpu()
