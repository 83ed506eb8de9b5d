"""What lies around the core in the simulator: time, the log, the inbox, and hosts with devices. All of it can fail."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from leasehold.events.capabilities import Mdev, MdevType, Pci, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, HostName, device_id
from leasehold.projections.appending import Said
from leasehold.projections.reporting import Picture

SECOND = 10**9


class ViolationError(AssertionError):
    """A promise was broken."""


@dataclass
class Faults:
    """How likely each thing goes wrong; all zero once the world has healed."""

    ack_lost: float = 0.07
    publish_lost: float = 0.05
    publish_late: float = 0.05
    killed_after_append: float = 0.03
    killed: float = 0.004
    paused: float = 0.01
    reply_lost: float = 0.1
    request_lost: float = 0.1
    observed_lost: float = 0.06
    observed_late: float = 0.05
    observed_twice: float = 0.05
    watcher_killed: float = 0.01
    creator_killed: float = 0.015
    poller_killed: float = 0.01
    binder_killed: float = 0.03
    told_lost: float = 0.03
    host_lost: float = 0.006
    kernel_refuses: float = 0.1
    kernel_slow: float = 0.35
    clock_jumps: float = 0.003
    server_jumps: float = 0.003
    power_lost: float = 0.001
    log_down: float = 0.004
    host_cut_off: float = 0.005
    hint_silent: float = 0.004
    hint_lost: float = 0.004
    hint_stale: float = 0.05
    hint_doubled: float = 0.05
    flood: float = 0.0

    def heal(self) -> None:
        """From now on nothing fails."""
        for name in self.__dataclass_fields__:
            setattr(self, name, 0.0)


@dataclass
class SimLog:
    """A log with compare-and-set, as the stream's leader does it."""

    bodies: list[bytes] = field(default_factory=list)
    stored: Callable[[int, bytes], None] = lambda _sequence, _body: None
    down_until_ns: int = 0

    def is_reached(self, now_ns: int) -> bool:
        """Whether it answers at all."""
        return now_ns >= self.down_until_ns

    def append(self, expected: int, body: bytes) -> tuple[Said, int]:
        """Store `body` if `expected` is the last sequence."""
        if len(self.bodies) != expected:
            return Said.REFUSED, len(self.bodies)
        self.bodies.append(body)
        self.stored(len(self.bodies), body)
        return Said.STORED, len(self.bodies)

    def read(self, sequence: int) -> bytes | None:
        """The record at `sequence`."""
        return self.bodies[sequence - 1] if sequence <= len(self.bodies) else None


def _pci(key: str, **changes: object) -> DeviceDescription:
    values: dict[str, object] = {
        "key": DeviceKey(key),
        "name": "pci_" + key.partition("/")[2].replace(":", "_").replace(".", "_"),
        "kind": "pci",
        "vendor_id": "8086",
        "product_id": "10c9",
    }
    return DeviceDescription(**{**values, **changes})  # type: ignore[arg-type]


def _usb(key: str, parent: str, **changes: object) -> DeviceDescription:
    values: dict[str, object] = {
        "key": DeviceKey(key),
        "name": "usb_" + key.replace("/", "_").replace(":", "_").replace(".", "_").replace("-", "_"),
        "kind": "usb_device",
        "vendor_id": "0403",
        "product_id": "6001",
        "parent": parent,
    }
    return DeviceDescription(**{**values, **changes})  # type: ignore[arg-type]


STICK = DeviceKey("usb/0000:04:00.0/2-1")


def host_devices() -> Picture:
    """A small host: a plain device, two group mates, a PF with a VF, a USB tree, a bridge, and a protected disk."""
    devices = [
        _pci("pci/0000:01:00.0", iommu_group=1),
        _pci("pci/0000:02:00.0", iommu_group=2),
        _pci("pci/0000:02:00.1", iommu_group=2),
        _pci("pci/0000:03:00.0", iommu_group=3),
        _pci("pci/0000:03:10.0", iommu_group=4, physical_function="pci/0000:03:00.0"),
        _pci("pci/0000:04:00.0", iommu_group=5, pci_class=0x0C0330),
        _usb("usb/0000:04:00.0/2-0", "pci/0000:04:00.0", hub=True),
        _usb(
            STICK,
            "usb/0000:04:00.0/2-0",
            sysfs_path="/sys/devices/pci0000:00/0000:04:00.0/usb2/2-1",
            capability=UsbDevice(bus=2, device=3),
        ),
        _pci("pci/0000:05:00.0", bridge=True),
        _pci("pci/0000:06:00.0", iommu_group=6, protections=("mounted at /",)),
    ]
    return {device.key: device for device in devices}


MDEV_TYPE = "sim-1"
UUIDS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")
GPU = DeviceKey("pci/0000:07:00.0")


def gpu() -> DeviceDescription:
    """A device that can have mediated ones."""
    return _pci(GPU, iommu_group=7, capability=Pci(mdev_types=(MdevType(id=MDEV_TYPE),)))


def mdev(uuid: str) -> DeviceDescription:
    """A mediated device of it."""
    return DeviceDescription(
        key=DeviceKey(f"{GPU}/mdev/{uuid}"),
        name=f"mdev_{uuid.replace('-', '_')}",
        kind="mdev",
        parent=GPU,
        physical_function=GPU,
        capability=Mdev(uuid=uuid, mdev_type=MDEV_TYPE),
    )


LEASABLE = ("01:00.0", "02:00.0", "02:00.1", "03:00.0", "03:10.0", "04:00.0", "2-1")
"""Ends of the keys that may be leased at some time; only these are unplugged."""
APART = {
    frozenset({"02:00.0", "02:00.1"}): "holder",
    frozenset({"03:00.0", "03:10.0"}): "lease",
    frozenset({"04:00.0", "2-1"}): "lease",
    **{frozenset({"07:00.0", uuid}): "lease" for uuid in UUIDS},
}
"""Pairs on one host that two holders (or two leases) cannot have at once; the simulator's own knowledge."""


def words_of(key: str, vendor_id: str, product_id: str) -> tuple[str, ...]:
    """How hypervisors name a device; the simulator's own knowledge, too."""
    if key == STICK:
        return ("usb-port/2-1", "usb-address/2.3", f"usb-id/{vendor_id}:{product_id}")
    return (key,) if short(key) in LEASABLE else ()


def short(device: str) -> str:
    """The end of a device's key, as the tables above name it."""
    tail = device.rsplit("/", 1)[1]
    return tail.removeprefix("0000:")


@dataclass
class SimHost:
    """A host as it really is."""

    name: HostName
    devices: Picture = field(default_factory=host_devices)
    absent: Picture = field(default_factory=dict)
    users: dict[DeviceKey, list[str]] = field(default_factory=dict)

    def picture(self) -> Picture:
        """What a look at it shows."""
        return {
            key: DeviceDescription(
                **{
                    **{name: getattr(device, name) for name in device.__struct_fields__},
                    "in_use_by": tuple(sorted(self.users.get(key, ()))),
                }
            )
            for key, device in self.devices.items()
        }

    def use(self, key: DeviceKey, user: str) -> None:
        """A holder begins to use a device."""
        if key in self.devices:
            self.users.setdefault(key, []).append(user)

    def stop_using(self, key: DeviceKey, user: str) -> None:
        """A holder lets go."""
        users = self.users.get(key, [])
        if user in users:
            users.remove(user)

    def shuffle(self, rng: random.Random) -> None:
        """Something is unplugged, plugged in again, or replaced by another thing."""
        key = rng.choice(sorted({**self.devices, **self.absent}))
        if key in self.absent:
            device = self.absent.pop(key)
            if rng.random() < 0.3:
                device = DeviceDescription(
                    **{
                        **{name: getattr(device, name) for name in device.__struct_fields__},
                        "product_id": rng.choice(("10ca", "1572")),
                    }
                )
            self.devices[key] = device
        elif short(key) in LEASABLE:
            self.absent[key] = self.devices.pop(key)
            self.users.pop(key, None)

    def ids(self) -> list[DeviceId]:
        """All that is asked for; what is protected, or a bridge, must be refused."""
        return [device_id(self.name, key) for key in sorted({**self.devices, **self.absent})]
