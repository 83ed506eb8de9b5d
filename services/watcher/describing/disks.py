"""Disks, and drives with removable media."""

import functools
import os
import re
from collections.abc import Mapping
from typing import Final

from leasehold.events.capabilities import Storage
from leasehold.events.devices import DeviceDescription
from leasehold.services.watcher.describing.look import (
    Look,
    described,
    devnodes,
    kernel_says,
    node_of,
    small_int,
    texts,
)
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import clean, read_bytes, read_int, read_text

SECTOR_BYTES: Final = 512
"""The unit of a disk's `size`, whatever its own sectors are."""
SECTORS_MAX: Final = 2**54
SECTORS_OF_NO_DISC: Final = 2_097_151
"""What the kernel's CD driver says of a drive whose disc it has not read."""
SERIALS_KEPT_MAX: Final = 1_024
SHOWN_KEPT_MAX: Final = 16_384

_DRIVE_TYPES: Final = (
    (re.compile(r"sr[0-9]+"), "cdrom"),
    (re.compile(r"fd[0-9]+"), "floppy"),
    (re.compile(r"mmcblk[0-9].*"), "sd"),
    (re.compile(r"dasd[a-z]+"), "dasd"),
)
_ATA: Final = re.compile(r"/ata[0-9]+/")
_shown: Final[dict[str, int]] = {}
"""Which disk was shown at a path without a serial, while no udevd ran."""


def describe_block(look: Look, place: Place) -> DeviceDescription | None:
    """A disk. Where udevd runs, one whose serial only udevd can tell is not shown until udevd has dealt with it."""
    path = place.path
    properties = look.properties(place)
    serial = _serial(path)
    if not (serial or "USEC_INITIALIZED" in properties or _is_shown_without(look, place)):
        return None
    node = node_of(kernel_says(path), clean(place.sysname.replace("!", "/")))
    # libvirt calls a DASD by the identifier that the kernel has of it.
    is_dasd = _drive_type(place.sysname, properties) == "dasd"
    udev_serial = read_text(f"{path}/device/uid") if is_dasd else properties.get("ID_SERIAL", "")
    return described(
        look,
        place,
        extra=udev_serial,
        driver="",
        serial=serial or clean(properties.get("ID_SERIAL_SHORT", "")),
        devnodes=devnodes(node, properties),
        attributes=texts(id_serial=clean(udev_serial)),
        capability=_capability(look, place, node, properties),
    )


def _is_shown_without(look: Look, place: Place) -> bool:
    """Whether a disk need not wait for udevd: one that was shown without a serial, by this process or the one before,
    is not gone because udevd begins to run.
    """
    known = look.known.get(place.key)
    if not look.waits_for_udevd or (known is not None and not known.serial):
        _shown[place.path] = place.incarnation
        if len(_shown) > SHOWN_KEPT_MAX:
            del _shown[next(iter(_shown))]
    return _shown.get(place.path) == place.incarnation


def _capability(look: Look, place: Place, node: str, properties: Mapping[str, str]) -> Storage:
    path = place.path
    drive_type = _drive_type(place.sysname, properties)
    sectors = read_int(f"{path}/size")
    is_removable = read_int(f"{path}/removable") == 1
    if is_removable and drive_type == "cdrom" and "USEC_INITIALIZED" in properties:
        has_media = properties.get("ID_CDROM_MEDIA") == "1"
    else:
        has_media = not is_removable or sectors not in (0, SECTORS_OF_NO_DISC)
    return Storage(
        block=node,
        bus=clean(properties.get("ID_BUS", ""), 32) or _bus(look, place),
        drive_type=drive_type,
        vendor=read_text(f"{path}/device/vendor"),
        model=read_text(f"{path}/device/model") or read_text(f"{path}/device/name"),
        size_bytes=sectors * SECTOR_BYTES if 0 <= sectors < SECTORS_MAX and has_media else -1,
        logical_block_size=small_int(f"{path}/queue/logical_block_size"),
        removable=is_removable,
        hotpluggable=_is_on_usb(look, place),
        rotational=read_int(f"{path}/queue/rotational") == 1,
        media_available=has_media,
        media_label=clean(properties.get("ID_FS_LABEL", "")) if is_removable and has_media else "",
    )


def _drive_type(sysname: str, properties: Mapping[str, str]) -> str:
    """udev's word (`cd` is `cdrom` since libvirt's HAL days), else by the name that the driver gives."""
    said = properties.get("ID_TYPE", "")
    if said in ("cd", "floppy", "sd", "disk"):
        return "cdrom" if said == "cd" else said
    return next((word for pattern, word in _DRIVE_TYPES if pattern.fullmatch(sysname)), "disk")


def _is_on_usb(look: Look, place: Place) -> bool:
    return place.hardware in look.places and look.places[place.hardware].kind.startswith("usb")


def _bus(look: Look, place: Place) -> str:
    """As udev's rules call it, for where they have not run."""
    if _is_on_usb(look, place):
        return "usb"
    if place.sysname.startswith("nvme"):
        return "nvme"
    if _ATA.search(place.path):
        return "ata"
    return "scsi" if place.sysname.startswith(("sd", "sr")) else ""


def _serial(path: str) -> str:
    """What the kernel has of it: NVMe and MMC, SCSI's page 0x80, virtio."""
    if serial := read_text(f"{path}/device/serial"):
        return serial
    page = read_bytes(f"{path}/device/vpd_pg80")
    if len(page) > 4 and page[1] == 0x80:
        return clean(page[4 : 4 + int.from_bytes(page[2:4], "big")])
    if not os.path.exists(f"{path}/serial"):
        return ""
    sequence = read_int(f"{path}/diskseq")
    return virtio_serial(path, sequence) if sequence >= 0 else read_text(f"{path}/serial")


@functools.lru_cache(maxsize=SERIALS_KEPT_MAX)
def virtio_serial(path: str, _disk_sequence: int) -> str:
    """Kept as long as the disk's sequence number is the same: each read is a request to the disk, which may hang."""
    return read_text(f"{path}/serial")
