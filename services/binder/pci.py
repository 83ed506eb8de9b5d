"""PCI functions: to a stub driver, and back to the driver that they had.

Three ways lead to a stub, and `Before.way` says which was taken:

- `override`: the driver's name in the function's `driver_override`, and then no other driver may have it (Linux 3.16
  on, `Documentation/ABI/testing/sysfs-bus-pci`).
- `slot`: xen-pciback takes the functions that its toolstack, or a line in its `new_slot`, names
  (`drivers/xen/xen-pciback/pci_stub.c`). A second line for the same function makes a second entry.
- `new_id`: where there is no `driver_override`, the function's ids in the stub's `new_id`, which takes every unbound
  function of these ids at once; so they are taken out again as soon as it is bound.

A probe says nothing of its outcome: `drivers_probe` takes the address whether a driver wants the function or not
(`bus_rescan_devices_helper` of `drivers/base/bus.c`). What counts is the `driver` link.
"""

import errno
import os
from typing import Final

from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Before
from leasehold.services.binder.spots import NO_OVERRIDE, driver_at, override_at
from leasehold.services.binder.steps import Steps
from leasehold.services.binder.xen import end_assignable, make_assignable
from leasehold.services.watcher.sysfs import HostRoot, link_target, linked_members, read_table, read_text

PCIBACK: Final = "pciback"
_MODULES: Final = {PCIBACK: "xen-pciback"}
"""Modules that are not called like their drivers."""
_NO_LINE: Final = "\n"
"""What empties `driver_override`: an empty write would not reach the kernel."""


def load_driver(steps: Steps, address: str, driver: str) -> str:
    """Have a driver loaded; why it is not, or empty."""
    folder = steps.root.sys_path(f"bus/pci/drivers/{driver}")
    if os.path.isdir(folder):
        return ""
    said = steps.run(address, "modprobe", _MODULES.get(driver, driver))
    if os.path.isdir(folder):
        return ""
    why = f": {said.strerror or said}" if isinstance(said, OSError) else ""
    return f"the driver {driver} is not loaded, and cannot be{why}"


def way_to(root: HostRoot, path: str, stub: str) -> str:
    """How the stub is made to take the function at a path."""
    if stub == PCIBACK and os.path.exists(root.sys_path(f"bus/pci/drivers/{PCIBACK}/new_slot")):
        return "slot"
    return "override" if os.path.exists(f"{path}/driver_override") else "new_id"


def unbound_twin(root: HostRoot, address: str) -> str:
    """Another function of the same ids that has no driver: `new_id` would bind it, too. Empty: there is none."""
    members = dict(linked_members(root.sys_path("bus/pci/devices")))
    ids = _ids(members.get(address, ""))
    for name, path in members.items():
        if name != address and _ids(path) == ids and not driver_at(path):
            return name
    return ""


def bind_to_stub(steps: Steps, path: str, before: Before) -> str:
    """Bind the function at a path to its stub, unless it is; why it is not, or empty."""
    address, stub = before.sysname, before.stub
    if driver_at(path) == stub:
        return ""
    match before.way:
        case "slot":
            refused = _to_pciback(steps, path, address)
        case "override":
            refused = (
                steps.tell(address, f"{path}/driver_override", stub)
                or unbind(steps, path, address)
                or steps.tell(address, steps.root.sys_path("bus/pci/drivers_probe"), address)
            )
        case _:
            refused = _by_new_id(steps, path, before)
    return refused or _see(steps, path, address, stub)


def give_up_stub(steps: Steps, path: str, before: Before) -> str:
    """Undo what made the stub take the function at a path, and take it from the stub; why not, or empty. It is bound to
    nothing then, unless it was bound to its own driver already.
    """
    address = before.sysname
    refused = ""
    if before.way == "slot" and driver_at(path) == PCIBACK:
        refused = _from_pciback(steps, path, address)
    elif driver_at(path) not in (before.driver, ""):
        refused = unbind(steps, path, address)
    return refused or clear_way(steps, path, before)


def clear_way(steps: Steps, path: str, before: Before) -> str:
    """Let nothing of the way to the stub be left, also where the function is gone (no path); why not, or empty."""
    address = before.sysname
    match before.way:
        case "slot":
            return _remove_slot(steps, address)
        case "override" if path and override_at(path) != before.override:
            refused = steps.tell(address, f"{path}/driver_override", before.override or _NO_LINE)
            if not refused and override_at(path) != before.override:
                return f"driver_override of {address} says {override_at(path) or NO_OVERRIDE} still"
            return refused
        case "new_id":
            return _remove_id(steps, before)
        case _:
            return ""


def bind_to_host(steps: Steps, path: str, address: str, driver: str) -> str:
    """Bind the function at a path to the driver that it had, unless it is; why it is not, or empty."""
    if not driver or driver_at(path) == driver:
        return ""
    if refused := load_driver(steps, address, driver):
        return refused
    # Loading it may have bound it.
    if driver_at(path) == driver:
        return ""
    refused = steps.tell(address, steps.root.sys_path(f"bus/pci/drivers/{driver}/bind"), address)
    not_seen = _see(steps, path, address, driver)
    return (refused or not_seen) if not_seen else ""


def unbind(steps: Steps, path: str, address: str) -> str:
    """Take the function at a path from whatever driver it has; why not, or empty."""
    driver = driver_at(path)
    if not driver:
        return ""
    refused = steps.tell(address, f"{path}/driver/unbind", address, ignoring=(errno.ENODEV, errno.ENOENT))
    if refused:
        return refused
    if steps.until(lambda: driver_at(path) != driver):
        return ""
    return f"the kernel took the word, but {address} is bound to {driver} still"


def probe(steps: Steps, path: str, address: str) -> str:
    """Let any driver have the function at a path; why the kernel was not asked, or empty."""
    refused = steps.tell(address, steps.root.sys_path("bus/pci/drivers_probe"), address)
    if not refused:
        steps.until(lambda: bool(driver_at(path)))
    return refused


def slots(root: HostRoot) -> list[str]:
    """The functions that xen-pciback takes when it may."""
    return read_table(root.sys / "bus/pci/drivers" / PCIBACK / "slots")


def members_of_group(root: HostRoot, path: str) -> dict[str, str]:
    """The functions of the IOMMU group of the one at a path, with their paths; none where it has no group."""
    group = link_target(f"{path}/iommu_group")
    return dict(linked_members(f"{group}/devices")) if group else {}


def key_of(address: str) -> DeviceKey:
    """Of the function at an address."""
    return DeviceKey(f"pci/{address}")


# --- pciback ----------------------------------------------------------------------------------------------------------


def _to_pciback(steps: Steps, path: str, address: str) -> str:
    if not make_assignable(steps, address) and driver_at(path) == PCIBACK:
        return ""
    folder = steps.root.sys_path(f"bus/pci/drivers/{PCIBACK}")
    refused = unbind(steps, path, address)
    if not refused and address not in slots(steps.root):
        refused = steps.tell(address, f"{folder}/new_slot", address)
    if not refused and override_at(path) not in ("", PCIBACK):
        refused = f"driver_override of {address} says {override_at(path)}, so that {PCIBACK} may not have it"
    return refused or steps.tell(address, f"{folder}/bind", address)


def _from_pciback(steps: Steps, path: str, address: str) -> str:
    cannot_ask = end_assignable(steps, address)
    if driver_at(path) != PCIBACK:
        return ""
    if not cannot_ask and read_text(steps.root.sys_path("hypervisor/type")) == "xen":
        # Taken away behind the hypervisor's back, its host driver could not use it.
        return f"xl does not take {address} from {PCIBACK}: Xen may keep it in quarantine"
    return unbind(steps, path, address)


def _remove_slot(steps: Steps, address: str) -> str:
    path = steps.root.sys_path(f"bus/pci/drivers/{PCIBACK}/remove_slot")
    # There may be several entries of one function; a removal takes one, or all of them.
    for _ in range(len(slots(steps.root))):
        if address not in slots(steps.root):
            break
        if refused := steps.tell(address, path, address, ignoring=(errno.ENOENT,)):
            return refused
    return f"{PCIBACK} has a slot for {address} still" if address in slots(steps.root) else ""


# --- new_id -----------------------------------------------------------------------------------------------------------


def _by_new_id(steps: Steps, path: str, before: Before) -> str:
    address, folder = before.sysname, steps.root.sys_path(f"bus/pci/drivers/{before.stub}")
    if refused := unbind(steps, path, address):
        return refused
    # The kernel has such ids already (EEXIST), or it takes them and binds what has no driver.
    refusal = steps.attempt(address, f"{folder}/new_id", _new_id(before))
    if refusal is not None and refusal.errno != errno.EEXIST:
        return f"the kernel refused the ids of {address} for {before.stub}: {refusal.strerror or refusal}"
    if driver_at(path) != before.stub:
        steps.tell(address, f"{folder}/bind", address)
    not_seen = _see(steps, path, address, before.stub)
    return _remove_id(steps, before) or not_seen


def _remove_id(steps: Steps, before: Before) -> str:
    path = steps.root.sys_path(f"bus/pci/drivers/{before.stub}/remove_id")
    if not os.path.exists(path):
        return ""
    return steps.tell(before.sysname, path, _new_id(before), ignoring=(errno.ENODEV,))


def _new_id(before: Before) -> str:
    return f"{before.vendor_id} {before.product_id}"


def _ids(path: str) -> tuple[str, str]:
    return read_text(f"{path}/vendor"), read_text(f"{path}/device")


def _see(steps: Steps, path: str, address: str, driver: str) -> str:
    if steps.until(lambda: driver_at(path) == driver or not os.path.isdir(path)) and os.path.isdir(path):
        return ""
    if not os.path.isdir(path):
        return f"{address} went away"
    now = driver_at(path)
    why = "" if os.path.islink(f"{path}/iommu_group") or "vfio" not in driver else "; it has no IOMMU group"
    return f"{driver} has not taken {address}, which is bound to {now or 'nothing'}; the kernel's log may say why{why}"
