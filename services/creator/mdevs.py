"""Mediated devices: slices of a device that its driver makes, by a UUID, of the types that it offers.

One is made by writing its UUID to the type's `create`, and taken away by writing 1 to its own `remove` (Linux,
`Documentation/driver-api/vfio-mediated-device.rst`).
"""

import os

from leasehold.services.creator.attempt import TOO_LATE, UNDO_S, Attempt, Done, NotDone, Outcome
from leasehold.services.watcher.sysfs import HostRoot, link_name, link_target, list_names


def create(attempt: Attempt, parent: str, mdev_type: str, uuid: str) -> Outcome:
    """Make a mediated device on the device at path `parent`, unless it is there; one made in vain is taken away."""
    path = f"{parent}/{uuid}"
    there = _path_of(attempt.root, uuid)
    if there and (there != path or link_name(f"{there}/mdev_type") != mdev_type):
        kind, above = link_name(f"{there}/mdev_type"), os.path.basename(os.path.dirname(there))
        return NotDone(f"there is one of that UUID already, of type {kind or 'unknown'} on {above}")
    if not os.path.isdir(path):
        offered = list_names(f"{parent}/mdev_supported_types")
        if mdev_type not in offered:
            return NotDone(f"{os.path.basename(parent)} offers no {mdev_type} ({', '.join(offered) or 'none at all'})")
        if attempt.is_over:
            return NotDone(TOO_LATE)
        refused = attempt.tell_kernel(f"{parent}/mdev_supported_types/{mdev_type}/create", uuid)
        # What is there all the same was made by somebody else meanwhile, and is what was asked for.
        if refused and not os.path.isdir(path):
            return NotDone(refused)
    attempt.until(lambda: _path_of(attempt.root, uuid) == path or not os.path.isdir(parent))
    if _path_of(attempt.root, uuid) == path:
        return Done(path)
    if attempt.has_ended:
        return None
    if not os.path.isdir(parent):
        return NotDone(f"{os.path.basename(parent)} went away before its mediated device had come")
    return _undone(attempt, path, "the kernel took it, but no mediated device came of it in time")


def destroy(attempt: Attempt, parent: str, uuid: str) -> Outcome:
    """Take a mediated device away from the device at path `parent`, unless it is gone."""
    path = f"{parent}/{uuid}"
    if not os.path.isdir(path):
        return Done()
    if attempt.is_over:
        return NotDone(TOO_LATE)
    refused = attempt.tell_kernel(f"{path}/remove", "1")
    # What is refused may be gone all the same: somebody else was faster.
    if refused and os.path.isdir(path):
        return NotDone(refused)
    if attempt.until(lambda: not _is_there(attempt.root, path, uuid)):
        return Done()
    return None if attempt.has_ended else NotDone("the kernel took it, but it was not gone in time; it may still go")


def _undone(attempt: Attempt, path: str, reason: str) -> NotDone:
    """Take away what there is of it if this order has begun it, and say what is left."""
    if not attempt.is_begun:
        return NotDone("it was there before, but no mediated device came of it in time; it is left as it was")
    refused = attempt.tell_kernel(f"{path}/remove", "1") if os.path.isdir(path) else ""
    if attempt.until(lambda: not os.path.isdir(path), least_s=UNDO_S):
        return NotDone(reason)
    return NotDone(f"{reason}; it could not be taken back ({refused or 'it does not go'})")


def _path_of(root: HostRoot, uuid: str) -> str:
    return link_target(root.sys_path(f"bus/mdev/devices/{uuid}"))


def _is_there(root: HostRoot, path: str, uuid: str) -> bool:
    return os.path.isdir(path) or _path_of(root, uuid) == path
