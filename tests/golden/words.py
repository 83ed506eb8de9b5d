"""What the samples speak of: one host, one device, one request."""

from pathlib import Path
from typing import Final

from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceId, DeviceKey, Holder, HostName, Principal, RequestId, RequestRef
from leasehold.events.refusals import Blocker, Refusal, RefusalCode

FOLDER: Final = Path(__file__).parent
NS: Final = 1_700_000_000_000_000_000
HOST: Final = HostName("node1_example_org")
KEY: Final = DeviceKey("pci/0000:03:10.0")
DEVICE: Final = DeviceId(f"{HOST}/{KEY}")
USB: Final = DeviceId(f"{HOST}/usb/0000:00:14.0/2-1.4")
PRINCIPAL: Final = Principal("scheduler-1")
HOLDER: Final = Holder("vm:web 1")
REQUEST: Final = RequestId("r-2024.1:7")
REF: Final = RequestRef(PRINCIPAL, REQUEST, "0123456789abcdef0123456789abcdef", NS - 5)
DESCRIPTION: Final = DeviceDescription(
    key=KEY,
    name="pci_0000_03_10_0",
    kind="pci",
    sysfs_path="/sys/devices/pci0000:00/0000:00:01.0/0000:03:10.0",
    parent="pci/0000:00:01.0",
    driver="igbvf",
    pci_class=0x020000,
    vendor_id="8086",
    product_id="10ca",
    vendor_name="Intel Corporation",
    product_name="82576 Virtual Function “β”",
    serial="90-e2-ba-ff-ff-00-00-01",
    iommu_group=17,
    numa_node=0,
    physical_function="pci/0000:03:00.0",
    bridge=True,
    hub=True,
    protections=("carries the default route", "mounted at /"),
    in_use_by=("domain web1",),
    attributes={"interface": "eth0", "mac": "02:00:00:00:00:01"},
)
REFUSAL: Final = Refusal(
    code=RefusalCode.DEVICE_HELD,
    message=f"{DEVICE}: it is leased to vm:web 1 (L512)",
    blockers=(
        Blocker(
            device=DEVICE,
            rule="iommu_group",
            why="a device of its IOMMU group is not this holder's",
            because_of=USB,
            lease=512,
            holder=HOLDER,
            since_ns=NS,
            since_position=512,
            help="wait",
        ),
    ),
    help="wait for its release",
)
