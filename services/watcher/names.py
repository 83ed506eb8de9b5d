"""Names of vendors and products: from udev's database, else from the lists pci.ids and usb.ids, else none.

The names that a USB device gives itself are attributes of its description and never stand here. pyudev 0.24 has no
access to the hardware database (hwdb.bin) by itself; where udevd runs its answers are in the device's properties.
"""

import functools
import mmap
import os
import re
from collections.abc import Mapping
from typing import Final

from leasehold.services.watcher.sysfs import check_means, clean

NAME_BYTES_MAX: Final = 160
NAMES_KEPT_MAX: Final = 4_096
LIST_BYTES_MAX: Final = 64 * 1024 * 1024
LIST_FOLDERS: Final = ("/usr/share/hwdata", "/usr/share/misc", "/var/lib/pciutils", "/var/lib/usbutils")
"""Fedora, Debian, and where update-pciids and update-usbids write."""

_VENDOR_ENDS: Final = re.compile(rb"\n[^\t#\n]")
_ID: Final = re.compile(r"[0-9a-f]{4}")


class DeviceNames:
    """Looks names up; what was looked up once is kept, the lists themselves are not.

    Args:
        folders: where `pci.ids` and `usb.ids` may be; the first that has the list is used.
    """

    def __init__(self, folders: tuple[str, ...] = LIST_FOLDERS) -> None:
        self._folders = folders
        self._listed = functools.lru_cache(maxsize=NAMES_KEPT_MAX)(self._look_up)

    def of(self, bus: str, vendor_id: str, product_id: str, properties: Mapping[str, str]) -> tuple[str, str]:
        """Vendor's and product's name of a device on `pci` or `usb`; empty texts when nobody knows them."""
        vendor = clean(properties.get("ID_VENDOR_FROM_DATABASE", ""), NAME_BYTES_MAX)
        product = clean(properties.get("ID_MODEL_FROM_DATABASE", ""), NAME_BYTES_MAX)
        if (vendor and product) or not (_ID.fullmatch(vendor_id) and _ID.fullmatch(product_id)):
            return vendor, product
        listed_vendor, listed_product = self._listed(bus, vendor_id, product_id)
        return vendor or listed_vendor, product or listed_product

    def _look_up(self, bus: str, vendor_id: str, product_id: str) -> tuple[str, str]:
        for folder in self._folders:
            try:
                with open(f"{folder}/{bus}.ids", "rb") as file:
                    return _search(file.fileno(), vendor_id.encode(), product_id.encode())
            except (OSError, ValueError) as error:
                check_means(error)
                continue
        return "", ""


def _search(descriptor: int, vendor_id: bytes, product_id: bytes) -> tuple[str, str]:
    """Search a list as it lies on disk: a vendor's line starts with its id, its products follow after one tab."""
    size = min(os.fstat(descriptor).st_size, LIST_BYTES_MAX)
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as text:
        start = 0 if text[:6] == vendor_id + b"  " else text.find(b"\n" + vendor_id + b"  ") + 1
        if start == 0 and text[:6] != vendor_id + b"  ":
            return "", ""
        end = _VENDOR_ENDS.search(text, start)
        block = text[start : end.start() if end else size]
    vendor = block[6:].split(b"\n", 1)[0]
    _, found, rest = block.partition(b"\n\t" + product_id + b"  ")
    product = rest.split(b"\n", 1)[0] if found else b""
    return clean(vendor, NAME_BYTES_MAX), clean(product, NAME_BYTES_MAX)


@functools.cache
def listed_names() -> DeviceNames:
    """The names of this machine's lists, kept for the life of the process."""
    return DeviceNames()
