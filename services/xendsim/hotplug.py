"""Devices of domains: added, removed, configured, as `device_create`, `device_destroy` and `device_configure` do it."""

from leasehold.events.errors import XendSimError
from leasehold.services.xendsim.configuring import (
    DISKS,
    NETWORKS,
    add,
    child,
    children,
    device_of,
    disk_number,
    function_of,
    number,
    ports_of,
)
from leasehold.services.xendsim.hypervisor import Host
from leasehold.services.xendsim.state import DEVICES_MAX, Device, Domain, Parsed, Tree


def create(host: Host, domain: Domain, tree: Parsed) -> Tree:
    """Give a domain a device, and answer with what xend names it by: `(vbd (dom 1 id 51728))`.

    Raises:
        XendSimError: it cannot be; nothing is left of it.
    """
    device = device_of(tree, domain, host.make)
    if device.kind == "pci" and _pci_of(domain) is not None:
        raise XendSimError("Device 0 (pci) is already connected.")
    add(domain, device)
    host.changes += 1
    if domain.domid < 0:
        return [device.kind, ["dom", "None", "id", "None"]]
    try:
        for function in device.functions:
            host.check_assignable(function, domain)
    except XendSimError:
        domain.devices.remove(device)
        raise
    host.bring_up(domain, device)
    return [device.kind, ["dom", domain.domid, "id", device.devid]]


def stuck(host: Host, domain: Domain) -> Device | None:
    """A disk of the domain that waits for its hotplug script in vain."""
    for each in domain.devices:
        if each.live and each.attributes.get("uname", "") in host.state.stuck:
            return each
    return None


def give_up(host: Host, domain: Domain, device: Device) -> XendSimError:
    """Take away a device that did not come up, and say so."""
    domain.devices.remove(device)
    host.changes += 1
    return XendSimError(f"Device {device.devid} ({device.kind}) could not be connected. Hotplug scripts not working.")


def destroy(host: Host, domain: Domain, kind: str, name: str, *, keep: bool) -> None:
    """Take a device away. `name`: its number, or the name of a disk, or a MAC address; `keep`: its configuration stays.

    Raises:
        XendSimError: the domain has no such device.
    """
    device, shown = _find(domain, kind, name)
    if device is None or (domain.domid >= 0 and not device.live):
        raise XendSimError(f"Device {shown} not connected")
    if keep:
        device.live = False
    else:
        domain.devices.remove(device)
    host.changes += 1


def _find(domain: Domain, kind: str, name: str) -> tuple[Device | None, str]:
    devices = [each for each in domain.devices if each.kind == kind]
    if kind in NETWORKS and ":" in name:
        found = next((each for each in devices if each.attributes.get("mac", "").lower() == name.lower()), None)
        return found, name
    devid = disk_number(name) if kind in DISKS else number(name.rpartition("/")[2])
    return next((each for each in devices if each.devid == devid), None), str(devid)


def _pci_of(domain: Domain) -> Device | None:
    return next((each for each in domain.devices if each.kind == "pci" and (each.live or domain.domid < 0)), None)


def configure(host: Host, domain: Domain, tree: Parsed, name: str) -> Tree:
    """Change a device: PCI functions in and out, what is plugged into the ports of a USB controller.

    Raises:
        XendSimError: it cannot be changed so.
    """
    kind = tree[0] if isinstance(tree, list) and tree else ""
    if kind == "pci":
        return _configure_pci(host, domain, tree)
    device, shown = _find(domain, str(kind), name)
    if device is None:
        raise XendSimError(f"Device {shown} not connected")
    if kind == "vusb":
        ports = ports_of(tree)
        unknown = [each for each in ports if each not in device.ports]
        if unknown:
            raise XendSimError(f"port {unknown[0]} of {shown} doesn't exist")
        device.ports |= ports
    else:
        device.attributes |= {
            str(each[0]): str(each[1]) for each in tree[1:] if isinstance(each, list) and len(each) == 2
        }
    host.changes += 1
    return True


def _configure_pci(host: Host, domain: Domain, tree: Parsed) -> Tree:
    device = _pci_of(domain)
    wanted = child(tree, "state")
    if device is None and wanted != "Initialising":
        raise XendSimError("Cannot detach when pci platform does not exist")
    devs = children(tree, "dev")
    if not devs:
        raise XendSimError("list index out of range", kind="python")
    function = function_of(devs[0], host.make)
    host.changes += 1
    if wanted == "Initialising":
        if domain.domid >= 0:
            host.check_assignable(function, domain)
        if device is None:
            domain.devices = [each for each in domain.devices if each.kind != "pci"]
            device = Device(kind="pci", uuid=host.make.uuid())
            add(domain, device)
        if len(device.functions) >= DEVICES_MAX:
            raise XendSimError("Invalid Configuration: too many devices")
        device.functions.append(function)
        if domain.domid >= 0:
            host.bring_up(domain, device)
        return True
    assert device is not None
    held = [each for each in device.functions if each.address == function.address]
    if not held:
        raise XendSimError("list index out of range", kind="python")
    if wanted != "Closing":
        raise XendSimError(f"Error configuring device {function.address}: invalid state '{wanted}'")
    device.functions.remove(held[0])
    if not device.functions:
        domain.devices.remove(device)
    return True
