"""A host with a poller beside its watcher, and domains on it."""

from typing import Any

from leasehold.events import codec, inputs
from leasehold.events.capabilities import Mdev, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription
from leasehold.events.identities import DeviceKey, DomainId, DomainKey, HostName, domain_id
from leasehold.events.inputs import Observation, Observed
from tests.projections.ledger import H1, Ledger, ledger_with_hosts, usb

UUID = "c0ffee00-0000-4000-8000-000000000001"
OTHER = "c0ffee00-0000-4000-8000-000000000002"
MDEV_UUID = "c0ffee00-0000-4000-8000-00000000000d"


def key(uuid: str = UUID) -> DomainKey:
    """Of a domain of Xen."""
    return DomainKey(f"xen/{uuid}")


def domain(uuid: str = UUID, host: HostName = H1) -> DomainId:
    """The id of a domain of Xen."""
    return domain_id(host, key(uuid))


def described(uuid: str = UUID, **fields: Any) -> DomainDescription:
    """A domain that runs."""
    return DomainDescription(**{"key": key(uuid), "name": "web", "domid": 7, "state": "running", **fields})


def used(word: str, uuid: str = UUID, use: str = "attached") -> inputs.DeviceUsed:
    """A domain has a device."""
    return inputs.DeviceUsed(key(uuid), word, use)


def unused(word: str, uuid: str = UUID, use: str = "attached") -> inputs.DeviceUnused:
    """A domain has a device no more."""
    return inputs.DeviceUnused(key(uuid), word, use)


STICK = usb(
    "2-3",
    "usb/0000:04:00.0/2-0",
    sysfs_path="/sys/devices/pci0000:00/0000:04:00.0/usb1/1-3",
    vendor_id="0529",
    product_id="0001",
    capability=UsbDevice(bus=1, device=3),
)
TWIN = usb(
    "2-4",
    "usb/0000:04:00.0/2-0",
    sysfs_path="/sys/devices/pci0000:00/0000:04:00.0/usb1/1-4",
    vendor_id="0529",
    product_id="0001",
    capability=UsbDevice(bus=1, device=4),
)
SLICE = DeviceDescription(
    key=DeviceKey(f"pci/0000:0a:00.0/mdev/{MDEV_UUID}"),
    name="mdev_slice",
    kind="mdev",
    parent="pci/0000:0a:00.0",
    physical_function="pci/0000:0a:00.0",
    capability=Mdev(uuid=MDEV_UUID),
)


class Polled:
    """The poller of a host, which says what it is told to."""

    def __init__(self, ledger: Ledger, host: HostName = H1) -> None:
        self.ledger = ledger
        self.host = host
        self.run = 0
        self.counter = 0
        self.start()

    def start(self) -> None:
        """A new run, whose picture is whole."""
        self.run += 1
        self.counter = -1
        self.say(inputs.SourceStarts())
        self.say(inputs.PictureComplete(since=1))

    def say(self, *observations: Observation) -> None:
        """One message, as it would come through the gate."""
        self.counter += 1
        message = Observed(
            host=self.host, agent="poller", run=self.run, counter=self.counter, observations=observations
        )
        self.ledger.observe_message(codec.decode_observed(codec.encode(message)))

    def see(self, uuid: str = UUID, **fields: Any) -> None:
        """A domain is so."""
        self.say(inputs.DomainSeen(described(uuid, **fields)))

    def gone(self, uuid: str = UUID) -> None:
        """A domain is there no more, which uses nothing."""
        self.say(inputs.DomainGone(key(uuid)))

    def hear(self, *, alive: bool) -> None:
        """Whether the poller is heard."""
        self.ledger.note(inputs.HostHeard(self.host, "poller", self.run, alive))


def polled_ledger() -> tuple[Ledger, Polled]:
    """Two hosts past the grace time, the first with a poller; on it two sticks of a kind and a mediated device."""
    ledger = ledger_with_hosts()
    ledger.see(STICK, TWIN, SLICE)
    return ledger, Polled(ledger)
