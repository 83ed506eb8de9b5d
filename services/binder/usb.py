"""USB devices: handed over means that no driver of the host has any of its interfaces.

The device itself stays with the driver `usb`, else it has no configuration, and nobody could claim anything of it
through usbfs. Given back, it is taken from `usb` and bound again: the kernel then takes away whatever configuration a
guest left, chooses one anew, and lets the host's drivers probe (`usb_generic_driver_disconnect` and `_probe` of Linux'
`drivers/usb/core/generic.c`). It is found by its port, never by its number on the bus, which is another one after each
replug and after some resets.
"""

import errno
import os
from typing import Final

from leasehold.projections.handover import Before
from leasehold.services.binder.spots import driver_at, interfaces_of
from leasehold.services.binder.steps import Steps
from leasehold.services.watcher.sysfs import read_int
from leasehold.services.watcher.usage import USBFS

USB: Final = "usb"
CLASS_HUB: Final = "09"
ROUNDS_MAX: Final = 3
"""A reset may make a device come anew, and its interfaces be probed again: so often they are looked at."""


def let_go(steps: Steps, path: str, *, is_reset: bool) -> str:
    """Take all interfaces of the device (or the one) at a path from the host's drivers; why not, or empty."""
    name = os.path.basename(path)
    refused = _unbind_all(steps, path)
    if refused or not is_reset or ":" in name:
        return refused
    # Taken from `usb` by a run that was killed, it has none.
    has_interfaces = bool(interfaces_of(path))
    for _ in range(ROUNDS_MAX):
        if refused := steps.reset_port(name, node_of(steps, path)):
            return refused
        if not steps.until(lambda: os.path.isdir(path) and (not has_interfaces or bool(interfaces_of(path)))):
            return f"{name} did not come back from its reset"
        if not _bound(path):
            return ""
        # It came back as another configuration, and was probed.
        if refused := _unbind_all(steps, path):
            return refused
        if not _bound(path):
            return ""
    return f"the host's drivers take {name} again and again"


def give_back(steps: Steps, path: str, before: Before) -> str:
    """Let the host's drivers have the device (or the interface) at a path again; why not, or empty."""
    name = os.path.basename(path)
    if is_back(path, before):
        return ""
    if ":" in name:
        refused = steps.tell(name, steps.root.sys_path("bus/usb/drivers_probe"), name)
    else:
        refused = _configure_anew(steps, path, name)
    if refused:
        return refused
    if steps.until(lambda: is_back(path, before) or not os.path.isdir(path)):
        return ""
    now = interfaces_of(path)
    missing = [f"{number} ({driver})" for number, driver in sorted(before.interfaces.items()) if not now.get(number)]
    if not missing:
        # All are bound, some to other drivers than before, as the kernel has chosen anew.
        return ""
    return f"the host's drivers have not taken {', '.join(missing)} of {name} again"


def is_back(path: str, before: Before) -> bool:
    """Whether the host's drivers have what they had, and the device its configuration."""
    now = interfaces_of(path)
    is_one = ":" in os.path.basename(path)
    return (is_one or driver_at(path) == USB) and all(
        now.get(number) == driver for number, driver in before.interfaces.items()
    )


def drivers_of(interfaces: dict[str, str]) -> str:
    """The drivers of interfaces in one text; empty: none has one."""
    return ",".join(sorted({driver for driver in interfaces.values() if driver}))


def node_of(steps: Steps, path: str) -> str:
    """The node of the device at a path now."""
    bus, number = (read_int(f"{path}/{name}") for name in ("busnum", "devnum"))
    return f"{steps.root.dev}/bus/usb/{bus:03}/{number:03}"


def configure_anew(steps: Steps, path: str) -> str:
    """Let the kernel choose a configuration for the device at a path, and its drivers probe; why not, or empty."""
    return _configure_anew(steps, path, os.path.basename(path))


def _configure_anew(steps: Steps, path: str, name: str) -> str:
    folder = steps.root.sys_path(f"bus/usb/drivers/{USB}")
    if driver_at(path) == USB:
        refused = steps.tell(name, f"{folder}/unbind", name, ignoring=(errno.ENODEV,))
        if refused:
            return refused
    return steps.tell(name, f"{folder}/bind", name, ignoring=(errno.EBUSY,))


def _bound(path: str) -> dict[str, str]:
    return {number: driver for number, driver in interfaces_of(path).items() if driver and driver != USBFS}


def _unbind_all(steps: Steps, path: str) -> str:
    name = os.path.basename(path).partition(":")[0]
    for number in _bound(path):
        # A driver may have several interfaces of one device, and lets go of all with the first.
        driver = _bound(path).get(number)
        if driver is None:
            continue
        attribute = steps.root.sys_path(f"bus/usb/drivers/{driver}/unbind")
        if refused := steps.tell(name, attribute, f"{name}:{number}", ignoring=(errno.ENODEV,)):
            return refused
    if steps.until(lambda: not _bound(path)):
        return ""
    return f"{name} is bound to {drivers_of(_bound(path))} still"
