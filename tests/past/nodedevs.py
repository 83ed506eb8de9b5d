"""Random logs of node devices: plugged, unplugged, bound, linked, renamed, flapping, made and destroyed by orders."""

import random
from collections import Counter
from typing import Any, Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.capabilities import (
    Bond,
    Bridge,
    Capability,
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    FcHost,
    Mdev,
    MdevType,
    Net,
    NewMdev,
    NewVport,
    Order,
    Pci,
    PciLink,
    ScsiHost,
    Storage,
    System,
    UsbDevice,
    Vlan,
    VportOps,
)
from leasehold.events.devices import DeviceDescription, Sighting
from leasehold.events.identities import COMPUTER, DeviceKey, Holder, HostName, node_device_name
from leasehold.events.inputs import CREATOR, DeviceFlaps, DeviceGone, DeviceSeen, Observation, Observed
from tests.projections.ledger import SECOND, A, Ledger

HOSTS: Final = (HostName("h1"), HostName("h2"))
PF, NIC, VFS = "pci/0000:01:00.0", "pci/0000:01:00.0/net/0", ("pci/0000:01:10.0", "pci/0000:01:10.1")
HBA, SCSI_HOST = "pci/0000:02:00.0", "pci/0000:02:00.0/scsi_host/0"
GPU, STICK, DISK = "pci/0000:03:00.0", "usb/0000:00:14.0/2-1", "pci/0000:04:00.0/block/n1"
BRIDGE, BOND, VLAN = "virtual/net/br0", "virtual/net/bond0", "virtual/net/vlan5"
DRIVERS: Final = ("", "igb", "vfio-pci")
MDEV_TYPE: Final = "nvidia-35"


def node(key: str, kind: str, capability: Capability | None = None, **fields: Any) -> DeviceDescription:
    """A node device; its name follows from its key, unless it is told."""
    name = node_device_name(kind, key.rpartition("/")[2])
    made = {"name": name, "subsystem": kind, "sysfs_path": f"/sys/devices/{key}", **fields}
    return DeviceDescription(key=DeviceKey(key), kind=kind, capability=capability, **made)


def whole_host() -> dict[str, DeviceDescription]:
    """One device for everything that is told of more than itself."""
    pci: dict[str, Any] = {"vendor_id": "8086", "product_id": "10c9", "driver": "igb", "pci_class": 0x020000}
    found = [
        node(COMPUTER, "system", System(product="paper"), name="computer", sysfs_path="", subsystem=""),
        node(PF, "pci", Pci(virtual_functions_max=2, link_now=PciLink(speed_mts=5_000, width=4)), iommu_group=1, **pci),
        *(node(key, "pci", Pci(), physical_function=PF, iommu_group=group, **pci) for group, key in enumerate(VFS, 1)),
        node(NIC, "net", Net(interface="eth0", address="52:54:00:00:00:01", medium="80203", link_state="up",
             features=("rx", "sg", "tso")), parent=PF, name="net_eth0_52_54_00_00_00_01"),
        node(HBA, "pci", Pci(), iommu_group=3, **{**pci, "driver": "lpfc"}),
        node(SCSI_HOST, "scsi_host", ScsiHost(host=5, fc_host=FcHost(wwnn="20000000c9831b4b", wwpn="10000000c9831b4b"),
             vport_ops=VportOps(max_vports=4, vports=0)), parent=HBA),
        node(GPU, "pci", Pci(mdev_types=(MdevType(id=MDEV_TYPE, name="GRID", device_api="vfio-pci",
             available_instances=4),)), iommu_group=4, **{**pci, "driver": "nvidia"}),
        node(STICK, "usb_device", UsbDevice(bus=1, device=4, manufacturer="ACME"), vendor_id="0403", product_id="6001"),
        node(DISK, "block", Storage(block="/dev/nvme0n1", drive_type="disk", model="paper", size_bytes=10**9),
             devnodes=("/dev/nvme0n1",)),
        node(BRIDGE, "net", Net(interface="br0", kind=Bridge(bridge_id="8000.525400000001"))),
        node(BOND, "net", Net(interface="bond0", kind=Bond(mode="active-backup", active="eth0"))),
        node(VLAN, "net", Net(interface="vlan5", kind=Vlan(id=5, lower=NIC))),
    ]  # fmt: skip
    return {device.key: device for device in found}


class NodeLedger(Ledger):
    """A ledger with hosts of node devices, each with a watcher and a creator; and what there really is on them."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[HostName, dict[str, DeviceDescription]] = {}
        self.orders: list[int] = []
        """Of which nothing was said yet."""
        self._said: Counter[tuple[HostName, str]] = Counter()

    def begin(self) -> None:
        """All hosts are reported, and their creators run."""
        self.note(inputs.DeciderStarts("alloc", "start"))
        for host in HOSTS:
            self.there[host] = whole_host()
            for agent in ("watcher", CREATOR):
                self.say(agent, inputs.SourceStarts(), host=host)
            self.tell(host, *(DeviceSeen(device) for device in self.there[host].values()))
            for agent in ("watcher", CREATOR):
                self.say(agent, inputs.PictureComplete(since=1), host=host)
        self.now_ns += 31 * SECOND

    def say(self, agent: str, *observations: Observation, host: HostName = HOSTS[0]) -> None:
        """One message of an agent's first run."""
        counter = self._said[host, agent]
        self._said[host, agent] += 1
        message = Observed(host=host, agent=agent, run=1, counter=counter, observations=observations)
        self.observe_message(codec.decode_observed(codec.encode(message)))

    def tell(self, host: HostName, *observations: Observation) -> None:
        """The watcher reports."""
        self.say("watcher", *observations, host=host)

    def alter(self, host: HostName, key: str, how: Sighting | None = None, **fields: Any) -> None:
        """A device is otherwise; fields of its capability are named as they are there."""
        device = self.there[host][key]
        own = {name: value for name, value in fields.items() if name in DeviceDescription.__struct_fields__}
        rest = {name: value for name, value in fields.items() if name not in own}
        if rest:
            assert device.capability is not None
            own["capability"] = msgspec.structs.replace(device.capability, **rest)
        self.there[host][key] = msgspec.structs.replace(device, **own)
        self.tell(host, DeviceSeen(self.there[host][key], how))

    def pull(self, host: HostName, key: str, how: Sighting | None = None) -> None:
        """A device goes away."""
        del self.there[host][key]
        self.tell(host, DeviceGone(DeviceKey(key), how))

    def plug(self, host: HostName, device: DeviceDescription, how: Sighting | None = None) -> None:
        """A device comes."""
        self.there[host][device.key] = device
        self.tell(host, DeviceSeen(device, how))

    def create(self, new: NewVport | NewMdev, host: str = "h1", **fields: Any) -> Answer:
        """Ask for a device; what is ordered waits for `carry_out` or `fail`."""
        request = inputs.CreateDeviceRequest(
            **{"request_id": self.new_id(), "issued_at_ns": self.now_ns, "device": new, "host": host, **fields}
        )
        return self._ordered(self.ask(request, fields.pop("principal", A)))

    def destroy(self, name: str, host: str = "h1", **fields: Any) -> Answer:
        """Ask for the end of a device."""
        request = inputs.DestroyDeviceRequest(
            request_id=self.new_id(), issued_at_ns=self.now_ns, device=name, host=host, **fields
        )
        return self._ordered(self.ask(request))

    def _ordered(self, answer: Answer) -> Answer:
        if answer.outcome == "ordered":
            self.orders.append(answer.position)
        return answer

    def carry_out(self, order: int, *, seen_first: bool = True) -> str:
        """The host does what it was told, and both agents say so; the key of the device."""
        self.orders.remove(order)
        host, what = self.state.orders[order].host, self.state.orders[order].what
        key, made = _effect(what)
        for is_seen in (seen_first, not seen_first):
            if not is_seen:
                self.say(CREATOR, inputs.OrderDone(order, key), host=host)
            elif made is not None:
                self.plug(host, made)
            elif key in self.there[host]:
                self.pull(host, key)
        return key

    def fail(self, order: int, reason: str = "the host says no") -> None:
        """The host could not do it."""
        self.orders.remove(order)
        self.say(CREATOR, inputs.OrderNotDone(order, reason), host=self.state.orders[order].host)


def _effect(what: Order) -> tuple[str, DeviceDescription | None]:
    """What an order is about, and what is there when it is carried out."""
    match what:
        case CreateMdev():
            mdev = Mdev(uuid=what.uuid, mdev_type=what.mdev_type)
            key = f"{what.parent}/mdev/{what.uuid}"
            return key, node(key, "mdev", mdev, parent=what.parent, physical_function=what.parent, iommu_group=9)
        case CreateVport():
            vport = ScsiHost(host=9, fc_host=FcHost(wwnn=what.wwnn, wwpn=what.wwpn), is_vport=True)
            key = f"{HBA}/scsi_host/{what.wwpn}"
            return key, node(key, "scsi_host", vport, parent=what.parent)
        case DestroyMdev() | DestroyVport():
            return what.device, None
        case _:
            raise AssertionError(f"nobody here asks for {what}")


# --- any number of steps, each by chance ------------------------------------------------------------------------------


def random_log(seed: int, steps: int = 120) -> NodeLedger:
    """What comes of so many steps."""
    rng = random.Random(f"{seed} node devices")
    ledger = NodeLedger()
    ledger.begin()
    for _ in range(steps):
        ledger.now_ns += rng.randrange(SECOND)
        rng.choice(_STEPS)(ledger, rng, rng.choice(HOSTS))
    return ledger


def _how(rng: random.Random) -> Sighting | None:
    flaps = rng.choice((0, 0, 0, 3))
    return rng.choice((None, _told(rng, flaps), Sighting(why="clock"), Sighting(why="lost_events")))


def _told(rng: random.Random, flaps: int) -> Sighting:
    source = rng.choice(("kernel", "udev"))
    return Sighting(why="event", source=source, actions=("remove", "add"), flaps=flaps, heard_at_ns=10**18)


def _pull(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    ledger.pull(host, rng.choice(sorted(ledger.there[host])), _how(rng))


def _plug(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    """The same thing as before, or another one."""
    away = [device for key, device in whole_host().items() if key not in ledger.there[host]]
    for device in rng.sample(away, min(2, len(away))):
        if rng.random() < 0.3:
            device = msgspec.structs.replace(device, product_id="1572")
        ledger.plug(host, device, _how(rng))


def _bind(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    keys = [key for key, device in ledger.there[host].items() if device.kind == "pci"]
    if keys:
        ledger.alter(host, rng.choice(keys), _how(rng), driver=rng.choice(DRIVERS))


def _link(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    nets = [key for key, device in ledger.there[host].items() if device.kind == "net"]
    if nets:
        features = tuple(sorted(rng.sample(("rx", "sg", "tso", "gro"), rng.randrange(4))))
        changes = {
            "link_state": rng.choice(("up", "down")), "master": rng.choice(("", BRIDGE, BOND, "br-unknown")),
            "features": features, "link_speed_mbps": rng.choice((-1, 1_000)),
        }  # fmt: skip
        some = rng.sample(sorted(changes), rng.randrange(1, 4))
        ledger.alter(host, rng.choice(nets), _how(rng), **{name: changes[name] for name in some})


def _rename(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    if NIC in ledger.there[host]:
        interface = rng.choice(("eth0", "lan0"))
        ledger.alter(host, NIC, _how(rng), interface=interface, name=f"net_{interface}_52_54_00_00_00_01")


def _flap(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    """Also of what is not there, or was never known: of that nothing is told."""
    key = rng.choice((*ledger.there[host], *whole_host(), "virtual/net/never"))
    flaps = _told(rng, rng.randrange(1, 5))
    ledger.tell(host, DeviceFlaps(DeviceKey(key), flaps))


def _miss(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    ledger.tell(host, inputs.MissedEvents(rng.randrange(1, 3)))


def _lease(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    keys = sorted(ledger.there[host])
    request = ledger.request(f"{host}/{rng.choice(keys)}", holder=Holder(f"vm{rng.randrange(3)}"), ttl_ms=5_000)
    ledger.ask(request)


def _release(ledger: NodeLedger, rng: random.Random, _host: HostName) -> None:
    living = [lease for lease, row in ledger.state.leases.items() if not row.ended]
    if living:
        ledger.release(rng.choice(living))


def _create(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    new: NewVport | NewMdev = rng.choice((NewVport(), NewMdev(parent=GPU, mdev_type=MDEV_TYPE)))
    ledger.create(new, host, timeout_ms=rng.choice((1_000, 60_000)))


def _destroy(ledger: NodeLedger, rng: random.Random, host: HostName) -> None:
    made = [key for key in ledger.there[host] if key not in whole_host()]
    ledger.destroy(rng.choice(made or [PF]), host, timeout_ms=rng.choice((1_000, 60_000)))


def _obey(ledger: NodeLedger, rng: random.Random, _host: HostName) -> None:
    """Sometimes late, and sometimes never."""
    known = [order for order in ledger.orders if order in ledger.state.orders]
    if known and rng.random() < 0.8:
        ledger.carry_out(rng.choice(known), seen_first=rng.random() < 0.5)
    elif known:
        ledger.fail(rng.choice(known))


def _tick(ledger: NodeLedger, rng: random.Random, _host: HostName) -> None:
    ledger.tick(rng.choice((0, 1, 10)))


_STEPS: Final = (
    _pull, _plug, _plug, _bind, _bind, _link, _link, _rename, _flap, _flap, _miss, _lease, _lease, _release, _create,
    _create, _destroy, _destroy, _obey, _obey, _obey, _tick, _tick,
)  # fmt: skip
