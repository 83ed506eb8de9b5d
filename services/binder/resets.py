"""Resets: the kernel's own for one function, or that of a whole bus where everything on it is ours.

The kernel picks the way in the order of `reset_method` (Linux 5.15 on), which an administrator may have set; before, it
was: one made for the device, function level, a power cycle, the bus behind the bridge. It resets a bus for the sake of
one function only if that is alone there (`pci_parent_bus_reset` of `drivers/pci/pci.c`), and says ENOTTY where no way
is left. A bridge resets all below it by `reset_subordinate` (6.14 on), which asks nobody. Nothing is written to
registers from here: the kernel would not save what they held.
"""

import errno
import os
from collections.abc import Collection
from typing import Final

from leasehold.events.identities import DeviceKey
from leasehold.services.binder.config_space import ConfigSpace
from leasehold.services.binder.pci import key_of
from leasehold.services.binder.spots import driver_at, find_spot, is_stub, is_vfio, users_of
from leasehold.services.binder.steps import Steps
from leasehold.services.watcher.sysfs import linked_members, read_text

_TOLD_AS: Final = {"acpi": "device_specific", "cxl_bus": "bus"}
"""The kernel's ways that have another name in `hostdevs.RESETS`."""
NO_WAY: Final = "the kernel has no way to reset it alone, and a reset of its bus would hit others"


def reset_function(steps: Steps, path: str, ours: Collection[DeviceKey]) -> tuple[str, str]:
    """Reset the function at a path; how it was done (one of `hostdevs.RESETS`; empty: there is no way), and why a way
    that there is failed (empty: it did not).

    Args:
        steps: the machine.
        path: of the function.
        ours: which functions a reset of its bus may hit besides.
    """
    address = os.path.basename(path)
    if os.path.exists(f"{path}/reset"):
        way = _first_way(path)
        refused = steps.attempt(address, f"{path}/reset", "1")
        if refused is None:
            return way, ""
        if refused.errno != errno.ENOTTY:
            said = refused.strerror or str(refused)
            return "", f"the reset of {address} failed: {said}"
    bridge = os.path.dirname(path)
    neighbours = _below(steps, bridge, path)
    if os.path.exists(f"{bridge}/reset_subordinate") and all(_is_ours(steps, each, ours) for each in neighbours):
        refused = steps.attempt(address, f"{bridge}/reset_subordinate", "1")
        return ("bus", "") if refused is None else ("", f"the reset of its bus failed: {refused.strerror or refused}")
    # vfio resets a bus when everything on it is vfio's and its last user closes it
    # (`vfio_pci_dev_set_try_reset` of Linux' `drivers/vfio/pci/vfio_pci_core.c`).
    if is_vfio(driver_at(path)) and _has_bus(bridge) and all(is_vfio(driver_at(each)) for each in neighbours):
        return "stub", ""
    return "", ""


def _first_way(path: str) -> str:
    """Which way the kernel tries first; it goes on to the next only where there is none after all."""
    told = read_text(f"{path}/reset_method").split()
    ways = told or [*ConfigSpace(path).resets, "bus"]
    return _TOLD_AS.get(ways[0], ways[0])


def _below(steps: Steps, bridge: str, path: str) -> list[str]:
    """All other functions that a reset of the bus behind a bridge hits."""
    members = linked_members(steps.root.sys_path("bus/pci/devices"))
    return [each for _, each in members if each.startswith(f"{bridge}/") and each != path]


def _has_bus(bridge: str) -> bool:
    return os.path.exists(f"{bridge}/subordinate_bus_number") or os.path.exists(f"{bridge}/reset_subordinate")


def _is_ours(steps: Steps, path: str, ours: Collection[DeviceKey]) -> bool:
    driver, key = driver_at(path), key_of(os.path.basename(path))
    if key not in ours or (driver and not is_stub(driver)):
        return False
    spot = find_spot(steps.root, key)
    return spot is not None and not users_of(steps, spot)
