"""PCI functions.

While a function sleeps, only what the kernel keeps in memory is read of it: reading its registers would wake it. So
links and product data, which stand in registers, are read only while it is awake, and then kept. `config` is read of
bridges alone, in the same way, for whether they keep apart what is behind them.
"""

import os
import re
from functools import partial
from typing import Final

import msgspec

from leasehold.events.capabilities import MdevType, Pci, PciLink, Vpd
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import parse_pci_address, pci_key
from leasehold.services.watcher.describing.isolation import read_isolation
from leasehold.services.watcher.describing.kept import Kept
from leasehold.services.watcher.describing.look import Look, described, hex_id, small, small_int
from leasehold.services.watcher.describing.vpd import read_vpd
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import clean, incarnation, link_name, list_names, read_int, read_text, to_int

BASE_CLASS_DISPLAY: Final = 0x03
BASE_CLASS_BRIDGE: Final = 0x06
CLASS_CARDBUS_BRIDGE: Final = 0x0607
MDEV_TYPES_MAX: Final = 64
RESETS_MAX: Final = 16
LINK_WIDTH_MAX: Final = 32
LINK_SPEED_MTS_MAX: Final = 1_000_000

_SPEED: Final = re.compile(r"([0-9]{1,4})(?:\.([0-9]))? GT/s.*")
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_Links = tuple[PciLink | None, PciLink | None]
_links: Final[Kept[_Links]] = Kept()
_vpds: Final[Kept[Vpd | None]] = Kept()
_isolations: Final[Kept[str]] = Kept()


class _Function:
    """What is in a function's folder: asking for it once is cheaper than asking for each file that may be there."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files = frozenset(list_names(path))

    def link(self, name: str) -> str:
        return link_name(f"{self.path}/{name}") if name in self.files else ""

    def number(self, name: str, base: int = 10) -> int:
        return small_int(f"{self.path}/{name}", base) if name in self.files else -1

    def id(self, name: str) -> str:
        return hex_id(f"{self.path}/{name}") if name in self.files else ""

    @property
    def has_bus_behind(self) -> bool:
        """Whether its header is of type 1 or 2: for those, and only those, the kernel (4.13 on) offers the number of
        the bus behind. The header itself (`config`, byte 0x0e) is not read.
        """
        return "secondary_bus_number" in self.files


def describe_pci(look: Look, place: Place) -> DeviceDescription:
    """A PCI function."""
    function = _Function(place.path)
    vendor_id, product_id = function.id("vendor"), function.id("device")
    properties = look.properties(place)
    vendor_name, product_name = look.names.of("pci", vendor_id, product_id, properties)
    pci_class = read_int(f"{place.path}/class", 16)
    driver = clean(function.link("driver"))
    device = described(
        look,
        place,
        driver=driver,
        pci_class=pci_class if 0 <= pci_class < 2**24 else -1,
        vendor_id=vendor_id,
        product_id=product_id,
        vendor_name=vendor_name,
        product_name=product_name,
        iommu_group=small(to_int(function.link("iommu_group"))),
        numa_node=function.number("numa_node"),
        physical_function=_physical_function(function),
        bridge=function.has_bus_behind or pci_class >> 16 == BASE_CLASS_BRIDGE,
    )
    return _asked(function, device, _capability(function, pci_class), look.known.get(place.key))


def _asked(
    function: _Function, device: DeviceDescription, pci: Pci, known: DeviceDescription | None
) -> DeviceDescription:
    """With what only its registers tell. Of one that sleeps and was not asked yet, what the log has of the same model
    in the same place is taken: else it would change, and change back, when a watcher starts again.
    """
    was = known.capability if known is not None else None
    if known is None or not isinstance(was, Pci) or _model(known, was) != _model(device, pci):
        was = Pci()
    link_max, link_now = _link(function, device.driver, (was.link_max, was.link_now))
    vpd = _vpd(function, was.vpd)
    isolation = _isolation(function, device.driver, was.isolation)
    return msgspec.structs.replace(
        device,
        serial=vpd.read_only.get("SN", "") if vpd else "",
        capability=msgspec.structs.replace(
            pci, link_max=link_max, link_now=link_now, vpd=vpd, isolation=isolation
        ),
    )


def _model(device: DeviceDescription, pci: Pci) -> tuple[str | int, ...]:
    ids = (device.vendor_id, device.product_id, device.pci_class)
    return *ids, pci.subsystem_vendor_id, pci.subsystem_product_id, pci.revision


def _physical_function(function: _Function) -> str:
    try:
        return pci_key(parse_pci_address(function.link("physfn")))
    except InvalidInputError:
        return ""


def _capability(function: _Function, pci_class: int) -> Pci:
    """What the kernel has of it in memory."""
    functions_max = function.number("sriov_totalvfs")
    bridge_type = "cardbus-bridge" if pci_class >> 8 == CLASS_CARDBUS_BRIDGE else "pci-bridge"
    return Pci(
        subsystem_vendor_id=function.id("subsystem_vendor"),
        subsystem_product_id=function.id("subsystem_device"),
        revision=function.number("revision", 16),
        boot_vga=function.number("boot_vga") == 1,
        bridge_type=bridge_type if function.has_bus_behind else "",
        virtual_functions_max=max(functions_max, 0),
        virtual_functions=max(function.number("sriov_numvfs"), 0) if functions_max > 0 else 0,
        is_express="max_link_width" in function.files,
        mdev_types=mdev_types(function.path) if "mdev_supported_types" in function.files else (),
        resets=_resets(function),
    )


def _resets(function: _Function) -> tuple[str, ...]:
    """The ways to reset it, which the kernel (5.15 on) has looked for at start: none is asked for here. Of an older one
    it is not known how it resets what it can reset.
    """
    if "reset_method" not in function.files:
        return ()
    return tuple(read_text(f"{function.path}/reset_method").split()[:RESETS_MAX])


def _isolation(function: _Function, driver: str, unknown: str) -> str:
    """Of a bridge, how far it keeps apart what is behind it. What is not Express never does, which needs no asking."""
    if not function.has_bus_behind:
        return ""
    if "max_link_width" not in function.files:
        return "conventional"
    path = function.path
    return _isolations.of((path, incarnation(path)), path, partial(read_isolation, path), unknown, driver)


def _link(function: _Function, driver: str, unknown: _Links) -> _Links:
    """What its link can do at most, and what it does: read anew when its driver changes, or what is behind it."""
    if "max_link_width" not in function.files:
        return None, None
    path = function.path
    behind = tuple(sorted(filter(_ADDRESS.fullmatch, function.files)))
    return _links.of((path, incarnation(path)), path, partial(_read_link, path), unknown, (driver, behind))


def _read_link(path: str) -> _Links:
    """The speed of a GPU's link follows its load, so it is left out: of all functions of the card, and of what is above
    it.
    """
    folder, card = os.path.dirname(path), os.path.basename(path)[:-1]
    follows_load = any(_has_display(f"{folder}/{name}") for name in list_names(folder) if name.startswith(card))
    most = PciLink(
        speed_mts=_speed_mts(read_text(f"{path}/max_link_speed", 32)), width=_width(f"{path}/max_link_width")
    )
    now = PciLink(
        speed_mts=-1 if follows_load else _speed_mts(read_text(f"{path}/current_link_speed", 32)),
        width=_width(f"{path}/current_link_width"),
    )
    unknown = PciLink()
    return None if most == unknown else most, None if now == unknown else now


def _has_display(path: str) -> bool:
    if read_int(f"{path}/class", 16) >> 16 == BASE_CLASS_DISPLAY:
        return True
    return any(_has_display(f"{path}/{name}") for name in list_names(path) if _ADDRESS.fullmatch(name))


def _width(path: str) -> int:
    """In lanes; of a link that is down the kernel says 0, of one that cannot be read 255."""
    width = read_int(path)
    return width if 0 < width <= LINK_WIDTH_MAX else -1


def _speed_mts(text: str) -> int:
    """Of `2.5 GT/s PCIe` or `Unknown`."""
    matched = _SPEED.fullmatch(text)
    if matched is None:
        return -1
    speed_mts = int(matched[1]) * 1_000 + int(matched[2] or 0) * 100
    return speed_mts if 0 < speed_mts <= LINK_SPEED_MTS_MAX else -1


def _vpd(function: _Function, unknown: Vpd | None) -> Vpd | None:
    """A card takes up to seconds to tell it."""
    if "vpd" not in function.files:
        return None
    path = function.path
    return _vpds.of((path, incarnation(path)), path, partial(read_vpd, path), unknown)


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
