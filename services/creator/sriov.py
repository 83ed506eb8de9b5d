"""Virtual functions (SR-IOV): slices of a PCI function, with addresses and IOMMU groups of their own.

How many there are is written to the physical function's `sriov_numvfs`; its driver makes them before the write comes
back, and each has a link `virtfn<N>` then. From one number to another it goes only through 0: else the kernel refuses
(EBUSY), and one without a driver that knows how refuses, too (ENOENT). See Linux, `drivers/pci/iov.c`.

Whether the host's own drivers take the new ones is what `sriov_drivers_autoprobe` says. It is left as the host's
administrator has set it.
"""

import os
import re
from typing import Final

from leasehold.services.creator.attempt import TOO_LATE, UNDO_S, Attempt, Done, NotDone, Outcome
from leasehold.services.watcher.sysfs import link_target, list_names, read_int

_LINK: Final = re.compile(r"virtfn[0-9]+")


def members(function: str) -> list[str]:
    """Paths of the virtual functions of the physical function at path `function`."""
    links = (f"{function}/{name}" for name in list_names(function) if _LINK.fullmatch(name))
    return [path for path in map(link_target, links) if path]


def has(function: str, count: int) -> bool:
    """Whether it has exactly `count` of them, by its own word and by what is there."""
    return _number(function) == count and len(members(function)) == count


def set_number(attempt: Attempt, function: str, count: int) -> Outcome:
    """Let the physical function at path `function` have `count` virtual functions; if that fails, as many as before."""
    name, most = os.path.basename(function), read_int(f"{function}/sriov_totalvfs")
    if most < 0:
        return NotDone(f"{name} can have no virtual functions")
    if count > most:
        return NotDone(f"{name} can have {most} virtual functions at most")
    before = max(_number(function), 0)
    if has(function, count):
        return Done(function)
    if attempt.is_over:
        return NotDone(f"its time was over; {name} has {before} virtual functions" if attempt.is_begun else TOO_LATE)
    if before not in (0, count) and (refused := _tell(attempt, function, 0)) and not has(function, count):
        return NotDone(refused)
    refused = _tell(attempt, function, count) if _number(function) != count else ""
    # What is so all the same was done by somebody else meanwhile, and is what was asked for.
    if refused and not has(function, count):
        return _undone(attempt, function, before, refused)
    if attempt.until(lambda: has(function, count) or not os.path.isdir(function)) and os.path.isdir(function):
        return Done(function)
    if attempt.has_ended:
        return None
    if not os.path.isdir(function):
        return NotDone(f"{name} went away meanwhile")
    come = f"the kernel took it, but there are {len(members(function))} virtual functions instead of {count}"
    return _undone(attempt, function, before, come)


def _undone(attempt: Attempt, function: str, before: int, reason: str) -> NotDone:
    """Make it as many as before if this order has begun it, and say what is left."""
    refused = ""
    for number in (0, before):
        if attempt.is_begun and not refused and not has(function, before) and _number(function) != number:
            refused = _tell(attempt, function, number)
    if attempt.until(lambda: has(function, before), least_s=UNDO_S):
        return NotDone(f"{reason}; there are {before} again, without their settings" if before else reason)
    left = f"{len(members(function))} virtual functions are left of {before}"
    return NotDone(f"{reason}; {left}{f' ({refused})' if refused else ''}")


def _tell(attempt: Attempt, function: str, count: int) -> str:
    return attempt.tell_kernel(f"{function}/sriov_numvfs", str(count))


def _number(function: str) -> int:
    return read_int(f"{function}/sriov_numvfs")
