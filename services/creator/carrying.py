"""Carrying out an order: where its devices are on this machine, whether it may be done now, and what came of it."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from leasehold.events import limits
from leasehold.events.capabilities import (
    CreateMdev,
    CreateVport,
    DestroyMdev,
    DestroyVport,
    Order,
    OrderToBinder,
    SetVirtualFunctions,
)
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import OrderDone, OrderNotDone
from leasehold.projections.reporting import Picture
from leasehold.services.creator import mdevs, sriov, vports
from leasehold.services.creator.attempt import Attempt, Done, NotDone, Outcome
from leasehold.services.watcher.picture import take_picture
from leasehold.services.watcher.places import find_places
from leasehold.services.watcher.sysfs import HostRoot, clean

Look = Callable[[HostRoot], Picture]
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def carry_out(
    attempt: Attempt, number: int, order: Order, *, look: Look = take_picture
) -> OrderDone | OrderNotDone | None:
    """Do what is ordered, unless it is so already; `None` if the agent ends before it is known. It blocks.

    Args:
        attempt: the machine, and the time that is left.
        number: the order's id.
        order: what to do.
        look: takes the whole picture, for who uses what is to be destroyed.
    """
    outcome = _carry_out(attempt, order, look)
    if isinstance(outcome, NotDone):
        return OrderNotDone(number, clean(outcome.reason, limits.REASON_CHARS_MAX))
    if outcome is None:
        return None
    if isinstance(order, CreateVport | CreateMdev):
        return OrderDone(number, _key_at(attempt.root, outcome.path))
    return OrderDone(number, order.parent if isinstance(order, SetVirtualFunctions) else order.device)


def _carry_out(attempt: Attempt, order: Order, look: Look) -> Outcome:
    if isinstance(order, CreateMdev | DestroyMdev) and not _UUID.fullmatch(order.uuid):
        # It becomes a part of a path, and for what is to be taken away nobody but a watcher has said it.
        return NotDone(f"{order.uuid!r} is not a UUID")
    if isinstance(order, OrderToBinder):
        return NotDone("this is for the host's binder")
    parent = _path_of(attempt.root, order.parent)
    match order:
        case CreateVport() | CreateMdev() if not parent:
            return NotDone(f"{order.parent} is not there")
        case CreateVport():
            return vports.create(attempt, parent, order.wwnn, order.wwpn)
        case CreateMdev():
            return mdevs.create(attempt, parent, order.mdev_type, order.uuid)
        case DestroyVport() | DestroyMdev() if not parent:
            # What was a part of it went with it.
            return Done()
        case DestroyVport():
            path = vports.host_of(attempt.root, parent, order.wwnn, order.wwpn)
            return _in_use(attempt.root, [path], look) or vports.destroy(attempt, parent, order.wwnn, order.wwpn)
        case DestroyMdev():
            path = f"{parent}/{order.uuid}"
            return _in_use(attempt.root, [path], look) or mdevs.destroy(attempt, parent, order.uuid)
        case SetVirtualFunctions() if not parent:
            return NotDone(f"{order.parent} is not there") if order.count else Done()
        case SetVirtualFunctions():
            # From one number to another, those that are there go first.
            goes = [] if sriov.has(parent, order.count) else sriov.members(parent)
            return _in_use(attempt.root, goes, look) or sriov.set_number(attempt, parent, order.count)


def _in_use(root: HostRoot, paths: Sequence[str], look: Look) -> NotDone | None:
    """Why these cannot be taken away now: since it was decided, somebody may have begun to use what is at or below."""
    there = tuple(f"{path}/" for path in paths if path and os.path.isdir(path))
    if not there:
        return None
    below = {place.key for each, place in find_places(root).items() if f"{each}/".startswith(there)}
    picture = look(root)
    for device in (picture[key] for key in sorted(below) if key in picture):
        if reasons := (*device.in_use_by, *device.protections):
            return NotDone(f"{device.name} is in use ({', '.join(reasons)})")
    return None


def _path_of(root: HostRoot, key: DeviceKey) -> str:
    return next((path for path, place in find_places(root).items() if place.key == key), "")


def _key_at(root: HostRoot, path: str) -> str:
    place = find_places(root).get(path)
    return place.key if place is not None else ""
