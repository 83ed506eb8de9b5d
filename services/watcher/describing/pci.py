"""PCI functions.

`config` is never read, and of the rest only what the kernel keeps in memory, while a function sleeps: reading its
registers would wake it. Links and product data stand in registers, so they are read once, when it is awake.
"""

from typing import Final

from leasehold.events.capabilities import MdevType, Pci
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import parse_pci_address, pci_key
from leasehold.services.watcher.describing.look import Look, described, devnodes, hex_id, small, small_int
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import exists, link_name, list_names, read_int, read_text, to_int

BASE_CLASS_BRIDGE: Final = 0x06
CLASS_CARDBUS_BRIDGE: Final = 0x0607
MDEV_TYPES_MAX: Final = 64


def describe_pci(look: Look, place: Place) -> DeviceDescription:
    """A PCI function."""
    path = place.path
    vendor_id, product_id = hex_id(f"{path}/vendor"), hex_id(f"{path}/device")
    properties = look.properties(place)
    vendor_name, product_name = look.names.of("pci", vendor_id, product_id, properties)
    pci_class = read_int(f"{path}/class", 16)
    has_bus_behind = exists(f"{path}/secondary_bus_number")
    return described(
        look,
        place,
        pci_class=pci_class if 0 <= pci_class < 2**24 else -1,
        vendor_id=vendor_id,
        product_id=product_id,
        vendor_name=vendor_name,
        product_name=product_name,
        iommu_group=small(to_int(link_name(f"{path}/iommu_group"))),
        numa_node=small_int(f"{path}/numa_node"),
        physical_function=_physical_function(path),
        bridge=has_bus_behind or pci_class >> 16 == BASE_CLASS_BRIDGE,
        devnodes=devnodes("", properties),
        capability=_capability(path, pci_class, has_bus_behind=has_bus_behind),
    )


def _physical_function(path: str) -> str:
    try:
        return pci_key(parse_pci_address(link_name(f"{path}/physfn")))
    except InvalidInputError:
        return ""


def _capability(path: str, pci_class: int, *, has_bus_behind: bool) -> Pci:
    """`has_bus_behind`: its header is of type 1 or 2; for those, and only those, the kernel (4.13 on) offers the number
    of the secondary bus. The header itself (`config`, byte 0x0e) is not read.
    """
    functions_max = small_int(f"{path}/sriov_totalvfs")
    bridge_type = "cardbus-bridge" if pci_class >> 8 == CLASS_CARDBUS_BRIDGE else "pci-bridge"
    return Pci(
        subsystem_vendor_id=hex_id(f"{path}/subsystem_vendor"),
        subsystem_product_id=hex_id(f"{path}/subsystem_device"),
        revision=small_int(f"{path}/revision", 16),
        boot_vga=read_int(f"{path}/boot_vga") == 1,
        bridge_type=bridge_type if has_bus_behind else "",
        virtual_functions_max=max(functions_max, 0),
        virtual_functions=max(small_int(f"{path}/sriov_numvfs"), 0) if functions_max > 0 else 0,
        is_express=exists(f"{path}/max_link_width"),
        mdev_types=mdev_types(path),
    )


def mdev_types(path: str) -> tuple[MdevType, ...]:
    """The types of mediated devices that a device offers, sorted by id."""
    folder = f"{path}/mdev_supported_types"
    return tuple(
        MdevType(
            id=name,
            name=read_text(f"{folder}/{name}/name"),
            device_api=read_text(f"{folder}/{name}/device_api"),
            available_instances=small_int(f"{folder}/{name}/available_instances"),
        )
        for name in list_names(folder)[:MDEV_TYPES_MAX]
        if name.isprintable()
    )
