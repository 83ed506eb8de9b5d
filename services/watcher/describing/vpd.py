"""Vital product data of PCI functions: what a maker and an owner wrote into a card.

Source: PCI Local Bus Specification 3.0, appendix I. Only root can read it.
"""

import os
import re
from typing import Final

from leasehold.events.capabilities import Vpd
from leasehold.services.watcher.sysfs import clean

BYTES_MAX: Final = 4_096
"""Of one card; each four bytes take a card up to 0.1 ms."""
FIELDS_MAX: Final = 64

_NAME: Final = 0x82
_READ_ONLY: Final = 0x90
_READ_WRITE: Final = 0x91
_END: Final = 0x78
_KEYWORD: Final = re.compile(r"[A-Z][A-Z0-9]")
_CHECKSUM: Final = "RV"
_ROOM: Final = "RW"


def read_vpd(path: str) -> Vpd | None:
    """Of the function at `path`; `None` if it has none, or none that is in order."""
    try:
        descriptor = os.open(f"{path}/vpd", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse_vpd(_resources(descriptor))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _resources(descriptor: int) -> bytes:
    """As far as the end tag: cards answer slowly, and some wrongly behind it."""
    read = b""
    while len(read) < BYTES_MAX:
        head = os.pread(descriptor, 3, len(read))
        if len(head) < 3 or head[0] not in (_NAME, _READ_ONLY, _READ_WRITE):
            return read + head[:1]
        size = 3 + int.from_bytes(head[1:3], "little")
        part = os.pread(descriptor, min(size, BYTES_MAX - len(read)), len(read))
        if len(part) < size:
            return read
        read += part
    return read


def parse_vpd(raw: bytes) -> Vpd | None:
    """The resources: a name, then fields that can be read, then fields that can be written, then an end tag.

    What the maker wrote ends with a checksum (`RV`); where that is wrong or missing, nothing is believed.
    """
    name, is_right = "", False
    read_only: dict[str, str] = {}
    read_write: dict[str, str] = {}
    at = 0
    while at < len(raw) and raw[at] != _END:
        tag, size = raw[at], int.from_bytes(raw[at + 1 : at + 3], "little")
        body = raw[at + 3 : at + 3 + size]
        if len(body) < size:
            return None
        if tag == _NAME:
            name = clean(body)
        elif tag == _READ_ONLY:
            read_only, checksum_at = _fields(body)
            is_right = checksum_at >= 0 and sum(raw[: at + 3 + checksum_at + 1]) % 256 == 0
        elif tag == _READ_WRITE:
            read_write, _ = _fields(body)
        else:
            return None
        at += 3 + size
    if not is_right:
        return None
    return Vpd(name=name, read_only=read_only, read_write=read_write)


def _fields(body: bytes) -> tuple[dict[str, str], int]:
    """The fields by keyword, sorted, and where the checksum stands (-1: nowhere)."""
    found: dict[str, str] = {}
    checksum_at = -1
    at = 0
    while at + 3 <= len(body):
        keyword, size = body[at : at + 2].decode("latin-1"), body[at + 2]
        if keyword == _CHECKSUM:
            checksum_at = at + 3
        elif keyword != _ROOM and _KEYWORD.fullmatch(keyword) and len(found) < FIELDS_MAX:
            found[keyword] = clean(body[at + 3 : at + 3 + size])
        at += 3 + size
    return dict(sorted(found.items())), checksum_at
