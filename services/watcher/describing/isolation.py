"""How far a PCI bridge keeps apart what is behind it, from its registers.

Sources: PCI Express Base Specification, 7.5.3 (capability), 7.7.8 (ACS); Linux' `pci_acs_enabled`
(`drivers/pci/pci.c`), which asks for the same four controls. Its list of ports that keep devices apart without saying
so (`drivers/pci/quirks.c`) is not repeated here: where an IOMMU has made groups, those count, and nothing of this.

Only the registers that are needed are read, each by itself: some devices do not bear it if all are.
"""

import os
from collections.abc import Callable
from typing import Final

from leasehold.services.watcher.sysfs import check_means

STATUS: Final = 0x06
HAS_CAPABILITIES: Final = 0x10
CAPABILITIES: Final = 0x34
EXPRESS: Final = 0x10
EXTENDED: Final = 0x100
ACS: Final = 0x000D
ACS_CONTROL: Final = 0x06
ACS_NEEDED: Final = 0x001D
"""Source validation, request redirect, completion redirect, upstream forwarding."""
CAPABILITIES_MAX: Final = 48
EXTENDED_MAX: Final = 480

ROOT_PORT, UPSTREAM, DOWNSTREAM = 0x4, 0x5, 0x6

Word = Callable[[int, int], int]
"""The register at an offset, of so many bytes; -1: it cannot be read."""


def read_isolation(path: str) -> str:
    """`acs`, `no_acs`, `conventional` or `upstream` of the bridge at a sysfs path, as `capabilities.Pci` has it; empty:
    its registers cannot be read, as is so without root.
    """
    try:
        descriptor = os.open(f"{path}/config", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        check_means(error)
        return ""
    try:
        return isolation(lambda offset, size: _word(descriptor, offset, size))
    except OSError as error:
        check_means(error)
        return ""
    finally:
        os.close(descriptor)


def _word(descriptor: int, offset: int, size: int) -> int:
    raw = os.pread(descriptor, size, offset)
    return int.from_bytes(raw, "little") if len(raw) == size else -1


def isolation(word: Word) -> str:
    """The same from its registers."""
    express = _express(word)
    flags = word(express + 2, 2) if express > 0 else -1
    if express < 0 or (express and flags < 0):
        return ""
    if not express:
        return "conventional"
    port = flags >> 4 & 0xF
    if port == UPSTREAM:
        return "upstream"
    if port not in (ROOT_PORT, DOWNSTREAM):
        return "conventional"  # from Express to what is not, or back: all behind has the bridge's own requester id
    acs = _extended(word, ACS)
    if acs < 0:
        return ""
    control = word(acs + ACS_CONTROL, 2) if acs else 0
    return "" if control < 0 else "acs" if control & ACS_NEEDED == ACS_NEEDED else "no_acs"


def _express(word: Word) -> int:
    """Where its Express capability is; 0: it has none; -1: that cannot be read."""
    status = word(STATUS, 2)
    at = word(CAPABILITIES, 1) if status >= 0 and status & HAS_CAPABILITIES else min(status, 0)
    for _ in range(CAPABILITIES_MAX):
        if at < 0x40:
            return min(at, 0)
        head = word(at & 0xFC, 2)
        if head < 0:
            return -1
        if head & 0xFF == EXPRESS:
            return at & 0xFC
        at = head >> 8
    return -1


def _extended(word: Word, wanted: int) -> int:
    """Where an extended capability is; 0: it has none; -1: that cannot be read."""
    at = EXTENDED
    for _ in range(EXTENDED_MAX):
        head = word(at, 4)
        if head in (0, 0xFFFF_FFFF):
            return 0
        if head < 0:
            return -1
        if head & 0xFFFF == wanted:
            return at
        at = head >> 20 & 0xFFC
        if at < EXTENDED:
            return 0
    return -1
