"""What sits at a key now, and who uses it: read from the machine's own files, at every step anew."""

import os
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events.devices import DeviceDescription, same_thing
from leasehold.events.hostdevs import STUBS
from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Before, Seen
from leasehold.services.binder.steps import Steps
from leasehold.services.binder.xen import domains_with
from leasehold.services.watcher.hardware import find_hardware
from leasehold.services.watcher.places import Place, Places, find_places
from leasehold.services.watcher.sysfs import HostRoot, link_name, list_names, read_text, to_int
from leasehold.services.watcher.usage import find_users

NO_OVERRIDE: Final = "(null)"
"""What `driver_override` reads when it says nothing (`driver_override_show` of Linux' `drivers/pci/pci-sysfs.c`)."""
_OTHER_STUB: Final = re.compile(r"[a-z0-9_]+[-_]vfio[-_]pci")
"""vfio drivers of one vendor's cards, like `mlx5_vfio_pci`."""


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """A device, and where it is now."""

    place: Place
    vendor_id: str = ""
    product_id: str = ""
    serial: str = ""

    @property
    def path(self) -> str:
        """In sysfs, without links."""
        return self.place.path

    @property
    def sysname(self) -> str:
        """The kernel's name of it."""
        return self.place.sysname

    @property
    def driver(self) -> str:
        """What it is bound to now; empty: to nothing."""
        return driver_at(self.place.path)

    @property
    def override(self) -> str:
        """Which driver alone may have it; empty: any."""
        return override_at(self.place.path)


def driver_at(path: str) -> str:
    """What the device at a path is bound to now; empty: to nothing, or it is gone."""
    return link_name(f"{path}/driver")


def override_at(path: str) -> str:
    """Which driver alone may have the function at a path; empty: any."""
    text = read_text(f"{path}/driver_override")
    return "" if text == NO_OVERRIDE else text


def is_stub(driver: str) -> bool:
    """Whether a driver holds functions for others."""
    return driver in STUBS or is_vfio(driver)


def is_vfio(driver: str) -> bool:
    """Whether a driver gives functions out through vfio."""
    return driver == "vfio-pci" or _OTHER_STUB.fullmatch(driver) is not None


def find_spot(root: HostRoot, key: DeviceKey) -> Spot | None:
    """What is at a key; `None`: nothing."""
    for kind, name, path, each in find_hardware(root):
        if each == key:
            return spot_at(Place(kind, key, path, name, "", "pci" if kind == "pci" else "usb", path))
    # What is no hardware itself is found by all that there is.
    place = next((each for each in find_places(root).values() if each.key == key), None)
    return None if place is None else spot_at(place)


def spot_at(place: Place) -> Spot:
    """What is at a place."""
    if place.kind == "pci":
        return Spot(
            place=place, vendor_id=_hex(f"{place.path}/vendor"), product_id=_hex(f"{place.path}/device"),
        )  # fmt: skip
    if place.kind in ("usb_device", "usb_interface"):
        device = place.path if place.kind == "usb_device" else os.path.dirname(place.path)
        return Spot(
            place=place, vendor_id=_hex(f"{device}/idVendor"), product_id=_hex(f"{device}/idProduct"),
            serial=read_text(f"{device}/serial") if place.kind == "usb_device" else "",
        )  # fmt: skip
    return Spot(place=place)


def _hex(path: str) -> str:
    number = to_int(read_text(path), 16)
    return f"{number:04x}" if number >= 0 else ""


def is_other(before: Before, spot: Spot) -> bool:
    """Whether what is there now is another thing than what was noted."""
    was = DeviceDescription(
        key=before.key, name="", kind=before.kind, vendor_id=before.vendor_id, product_id=before.product_id
    )
    now = msgspec.structs.replace(was, vendor_id=spot.vendor_id, product_id=spot.product_id, serial=spot.serial)
    return bool(before.vendor_id) and not same_thing(was, before.serial, now)


def interfaces_of(path: str) -> dict[str, str]:
    """The drivers of the interfaces of the USB device at a path, by their numbers (`1.0`); of one itself, its own."""
    name = os.path.basename(path)
    if ":" in name:
        return {name.partition(":")[2]: driver_at(path)}
    found = (each for each in list_names(path) if each.startswith(f"{name}:"))
    return {each.partition(":")[2]: driver_at(f"{path}/{each}") for each in found}


def users_of(steps: Steps, spot: Spot) -> tuple[str, ...]:
    """Who is seen using it: a process through vfio or usbfs, or a Xen domain."""
    places: Places = {place.path: place for place in _looked_at(spot)}
    picture = {
        place.key: DeviceDescription(
            key=place.key, name="", kind=place.kind, driver=driver_at(place.path), parent=place.parent,
            iommu_group=to_int(link_name(f"{place.path}/iommu_group")),
        )
        for place in places.values()
    }  # fmt: skip
    found = set(find_users(steps.root, picture, places).get(spot.place.key, ()))
    if spot.driver == "pciback":
        found.update(domains_with(steps, spot.sysname))
    return tuple(sorted(found))


def _looked_at(spot: Spot) -> Iterator[Place]:
    yield spot.place
    if spot.place.kind == "usb_device":
        for number in interfaces_of(spot.path):
            name = f"{spot.sysname}:{number}"
            key = DeviceKey(f"{spot.place.key}/interface/{number}")
            yield Place("usb_interface", key, f"{spot.path}/{name}", name, spot.place.key, "usb")


def seen(steps: Steps, key: DeviceKey) -> Seen:
    """What there is at a key now."""
    spot = find_spot(steps.root, key)
    if spot is None:
        return Seen(key=key)
    return Seen(
        key=key, path=spot.path, driver=spot.driver, override=spot.override, vendor_id=spot.vendor_id,
        product_id=spot.product_id, serial=spot.serial, users=users_of(steps, spot),
    )  # fmt: skip
