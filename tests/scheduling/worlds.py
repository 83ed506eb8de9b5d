"""A few hosts with cards, on which requests by need are tried; and who asks for what there."""

from typing import Any

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, Holder, HostName, Principal
from leasehold.events.scheduling import Constraint, Need
from tests.projections.ledger import SECOND, A, Ledger, pci

GPU, NIC, FPGA = 'device.vendor == "10de"', 'device.vendor == "8086"', 'device.vendor == "1172"'
CARD = 'device.vendor in ["10de", "8086"]'
BOB = Principal("bob@lab")
HOSTS = (HostName("h1"), HostName("h2"), HostName("h3"))
_VENDORS = {"2": "10de", "3": "8086", "4": "1172"}
_CLASSES = {"2": 0x030200, "3": 0x020000, "4": 0x120000}


def card(slot: str, numa_node: int = 0, **fields: Any) -> DeviceDescription:
    """What its bus begins with tells what it is: 2 a GPU, 3 a NIC, 4 an FPGA. Each node has a PCIe root of its own."""
    root = f"pci0000:{numa_node * 8}0"
    given = {
        "vendor_id": _VENDORS[slot[0]],
        "pci_class": _CLASSES[slot[0]],
        "numa_node": numa_node,
        "iommu_group": int(slot, 16),
        "sysfs_path": f"/sys/devices/{root}/0000:{slot}:00.0",
    }
    return pci(f"{slot}:00.0", **{**given, **fields})


WORLD: dict[HostName, tuple[DeviceDescription, ...]] = {
    HOSTS[0]: (card("20"), card("21"), card("22", 1), card("23", 1), card("30"), card("31", 1)),
    HOSTS[1]: (card("20"), card("21"), card("30")),
    HOSTS[2]: (card("20"), card("21", 1), card("40")),
}
"""Eight GPUs, three NICs, one FPGA."""


def world(hosts: dict[HostName, tuple[DeviceDescription, ...]] | None = None) -> Ledger:
    """The ledger of that world, or of another."""
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    for host, descriptions in (hosts or WORLD).items():
        ledger.start_host(host, *descriptions)
    ledger.now_ns += 31 * SECOND
    return ledger


def named(text: str) -> DeviceId:
    """The device that `h1:20` stands for."""
    host, _, slot = text.partition(":")
    return DeviceId(f"{host}/pci/0000:{slot}:00.0" if ":" not in slot else f"{host}/pci/0000:{slot}")


def need(select: str = "", count: int = 1, **fields: Any) -> Need:
    """So many devices."""
    return Need(select=select, count=count, **fields)


def same(attribute: str, *needs: str) -> Constraint:
    """All have the same."""
    return Constraint(kind="same", attribute=attribute, needs=needs)


def distinct(attribute: str, *needs: str) -> Constraint:
    """No two have the same."""
    return Constraint(kind="distinct", attribute=attribute, needs=needs)


def ask(ledger: Ledger, *needs: Need, who: str = "job", principal: Principal = A, **fields: Any) -> Answer:
    """Ask for what is needed."""
    return ledger.ask(ledger.request(**{"needs": needs, "holder": Holder(who), **fields}), principal)


def take(ledger: Ledger, *texts: str, who: str = "other", principal: Principal = BOB, **fields: Any) -> int:
    """Somebody leases devices by name: the lease."""
    request = ledger.request(*map(named, texts), holder=Holder(who), **fields)
    answer = ledger.ask(request, principal)
    assert answer.outcome == "granted", answer
    return answer.lease
