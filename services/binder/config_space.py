"""What a PCI function's own registers say: its header, and its capabilities.

Reading them wakes a sleeping function (`pci_read_config` of Linux' `drivers/pci/pci-sysfs.c`), so they are read only of
one that is about to be handed over, and of the bridges above it. Behind the first 64 bytes only root may read.
Layouts: PCI Local Bus 3.0, PCI Express Base; names as in Linux' `include/uapi/linux/pci_regs.h`.
"""

import os
import struct
from typing import Final

CONFIG_BYTES: Final = 4_096
CAPABILITIES_MAX: Final = 64
EXTENDED_MAX: Final = 480
"""No more fit: each takes at least 8 bytes."""

_HEADER_TYPE: Final = 0x0E
_HEADER_TYPE_MASK: Final = 0x7F
_STATUS: Final = 0x06
_STATUS_CAP_LIST: Final = 0x10
_CAPABILITY_LIST: Final = 0x34
_CAP_PM: Final = 0x01
_CAP_EXP: Final = 0x10
_CAP_AF: Final = 0x13
_PM_CTRL: Final = 4
_PM_CTRL_NO_SOFT_RESET: Final = 0x0008
_EXP_FLAGS: Final = 2
_EXP_TYPE_DOWNSTREAM: Final = 6
_EXP_DEVCAP: Final = 4
_EXP_DEVCAP_FLR: Final = 1 << 28
_AF_CAP: Final = 3
_AF_CAP_TP_AND_FLR: Final = 0x03
_EXT_ACS: Final = 0x0D
_ACS_CTRL: Final = 6
_ACS_ENABLED: Final = 0x1D
"""Source validation, request and completion redirect, upstream forwarding."""


class ConfigSpace:
    """The registers of the function at a path, as far as they can be read."""

    def __init__(self, path: str) -> None:
        self._bytes = _read(f"{path}/config")

    @property
    def header_type(self) -> int:
        """0: an endpoint; 1, 2: a bridge; -1: it cannot be read."""
        return self._bytes[_HEADER_TYPE] & _HEADER_TYPE_MASK if len(self._bytes) > _HEADER_TYPE else -1

    @property
    def resets(self) -> tuple[str, ...]:
        """How the function can be reset by itself, in the kernel's order, as far as its registers tell."""
        ways = []
        express, power, features = (self._capability(each) for each in (_CAP_EXP, _CAP_PM, _CAP_AF))
        if express and self._number(express + _EXP_DEVCAP, 4) & _EXP_DEVCAP_FLR:
            ways.append("flr")
        if features and self._number(features + _AF_CAP, 1) & _AF_CAP_TP_AND_FLR == _AF_CAP_TP_AND_FLR:
            ways.append("af_flr")
        if power and not self._number(power + _PM_CTRL, 2) & _PM_CTRL_NO_SOFT_RESET:
            ways.append("pm")
        return tuple(ways)

    @property
    def lacks_acs(self) -> bool:
        """Whether it is a port of a switch that lets what is below other ports be reached past the IOMMU."""
        express = self._capability(_CAP_EXP)
        if not express or self._number(express + _EXP_FLAGS, 2) >> 4 & 0xF != _EXP_TYPE_DOWNSTREAM:
            return False
        acs = self._extended(_EXT_ACS)
        return not acs or self._number(acs + _ACS_CTRL, 2) & _ACS_ENABLED != _ACS_ENABLED

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def _capability(self, wanted: int) -> int:
        """Offset of a capability; 0: there is none."""
        if not self._number(_STATUS, 2) & _STATUS_CAP_LIST:
            return 0
        offset = self._number(_CAPABILITY_LIST, 1) & 0xFC
        for _ in range(CAPABILITIES_MAX):
            if not offset or self._number(offset, 1) == wanted:
                return offset
            offset = self._number(offset + 1, 1) & 0xFC
        return 0

    def _extended(self, wanted: int) -> int:
        offset = 0x100
        for _ in range(EXTENDED_MAX):
            if len(self._bytes) < offset + 4:
                return 0
            (header,) = struct.unpack_from("<I", self._bytes, offset)
            if header & 0xFFFF == wanted:
                return offset
            offset = header >> 20 & 0xFFC
            if offset < 0x100:
                return 0
        return 0


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, CONFIG_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
