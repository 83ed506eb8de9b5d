"""Whether devices may be handed over: looked at before anything is written. What is refused says what would help."""

import os
from collections.abc import Collection
from typing import Final

from leasehold.events.devices import DeviceDescription, same_thing
from leasehold.events.identities import DeviceKey
from leasehold.projections.handover import Before, Target
from leasehold.projections.reporting import Picture
from leasehold.services.binder import pci, usb
from leasehold.services.binder.config_space import ConfigSpace
from leasehold.services.binder.spots import (
    Spot,
    driver_at,
    interfaces_of,
    is_other,
    is_stub,
    is_vfio,
    spot_at,
    users_of,
)
from leasehold.services.binder.sriov import count_functions, read_network
from leasehold.services.binder.steps import Steps
from leasehold.services.watcher.places import Place
from leasehold.services.watcher.sysfs import linked_members, read_text

PCI_STUB: Final = "pci-stub"


def check_target(
    steps: Steps,
    target: Target,
    place: Place | None,
    picture: Picture,
    ours: Collection[DeviceKey],
    stub: str,
    *,
    is_leased: bool,
) -> Before | str:
    """What a device is before anything is written to it, or why it cannot be handed over.

    Args:
        steps: the machine.
        target: the device.
        place: where it is now; `None`: nowhere.
        picture: of the whole machine, as it is now.
        ours: the keys of all that is handed over with it.
        stub: what PCI functions are bound to unless the lease says otherwise.
        is_leased: whether a domain may use it then, so that it must be kept apart from what is not ours. An
            administrator detaches the members of a group one after the other.
    """
    now = picture.get(target.key)
    if place is None or now is None:
        return "it is not there"
    was = target.description
    if not same_thing(was, was.serial, now):
        return f"another thing is in its place now: {_called(now)}, where {_called(was)} was"
    if now.protections and not target.forced:
        return f"the host itself needs it ({', '.join(now.protections)})"
    spot = spot_at(place)
    if target.before is not None and is_other(target.before, spot):
        return "another thing is in its place now than what was handed over before"
    if target.before is None and (users := users_of(steps, spot)):
        return f"it is in use ({', '.join(users)})"
    match place.kind:
        case "pci":
            before = _check_pci(steps, target, spot, now, stub)
            if isinstance(before, str) or not is_leased:
                return before
            return _check_group(steps, spot, before.stub, ours) or before
        case "usb_device" | "usb_interface":
            return _check_usb(target, spot, now)
        case _:
            # It is used through its host driver: a disk or a network interface as such.
            return target.before or _before(target, spot, now, driver=now.driver, stub=now.driver)


def _check_pci(steps: Steps, target: Target, spot: Spot, now: DeviceDescription, stub: str) -> Before | str:
    handover = target.handover
    if now.bridge or ConfigSpace(spot.path).header_type > 0:
        return "it is a bridge: only endpoints can be handed over"
    is_unmanaged = handover is not None and handover.unmanaged
    if is_unmanaged and not is_stub(spot.driver):
        return f"it is unmanaged and bound to {spot.driver or 'nothing'}: bind it to a stub driver by hand first"
    wanted = spot.driver if is_unmanaged else (handover.driver if handover is not None else "") or stub
    before = target.before or _bound_before(steps, target, spot, now, wanted, is_unmanaged=is_unmanaged)
    if isinstance(before, str):
        return before
    return pci.load_driver(steps, spot.sysname, before.stub) or _check_twins(steps, spot, before) or before


def _bound_before(
    steps: Steps, target: Target, spot: Spot, now: DeviceDescription, stub: str, *, is_unmanaged: bool
) -> Before | str:
    network = read_network(steps, spot.path)
    if isinstance(network, str):
        return network
    driver = spot.driver
    if driver == stub:
        # Somebody has it there already, and there it stays.
        override = spot.override
        return _before(
            target, spot, now, driver=driver, override=override, stub=stub, network=network, unmanaged=is_unmanaged
        )
    if failed := pci.load_driver(steps, spot.sysname, stub):
        return failed
    return _before(
        target, spot, now, driver=driver, override=spot.override, stub=stub, network=network,
        way=pci.way_to(steps.root, spot.path, stub), virtual_functions=count_functions(spot.path),
    )  # fmt: skip


def _check_group(steps: Steps, spot: Spot, stub: str, ours: Collection[DeviceKey]) -> str:
    """Why what shares the means of isolation with it stands in the way; empty: it does not.

    vfio gives out a group only if everything in it is vfio's, pci-stub's, nobody's or a bridge (`vfio_dev_viable` of
    Linux' `drivers/vfio/vfio.c` to 5.19; since then `iommu_device_claim_dma_owner`, which drivers opt out of).
    """
    members = pci.members_of_group(steps.root, spot.path)
    if not is_vfio(stub):
        return "" if members else _check_acs(steps, spot, ours)
    for address, path in members.items():
        driver = driver_at(path)
        if address == spot.sysname or pci.key_of(address) in ours or not driver:
            continue
        if not (is_vfio(driver) or driver == PCI_STUB or _is_bridge(path)):
            group = os.path.basename(os.path.realpath(f"{spot.path}/iommu_group"))
            return (
                f"{address} is in its IOMMU group {group} and bound to {driver}, so that vfio would not give it out: "
                f"lease {address} with it, or have it detached"
            )
    return ""


def _check_acs(steps: Steps, spot: Spot, ours: Collection[DeviceKey]) -> str:
    """As libvirt's `virPCIDeviceIsBehindSwitchLackingACS`, but only where there is somebody to be reached."""
    functions = linked_members(steps.root.sys_path("bus/pci/devices"))
    known = {path for _, path in functions}
    port = spot.path
    while (port := os.path.dirname(port)) in known:
        if not ConfigSpace(port).lacks_acs:
            continue
        switch = os.path.dirname(port)
        for address, path in functions:
            is_peer = path.startswith(f"{switch}/") and not _is_bridge(path) and path != spot.path
            if is_peer and pci.key_of(address) not in ours:
                return f"it is behind a switch that lacks ACS ({os.path.basename(port)}), and so is {address}"
    return ""


def _check_twins(steps: Steps, spot: Spot, before: Before) -> str:
    if before.way != "new_id" or spot.driver == before.stub:
        return ""
    twin = pci.unbound_twin(steps.root, spot.sysname)
    return f"{twin} has the same ids and no driver, so that {before.stub} would take it, too" if twin else ""


def _is_bridge(path: str) -> bool:
    return os.path.exists(f"{path}/secondary_bus_number") or read_text(f"{path}/class").startswith("0x06")


def _check_usb(target: Target, spot: Spot, now: DeviceDescription) -> Before | str:
    if now.hub or read_text(f"{spot.path}/bDeviceClass") == usb.CLASS_HUB:
        return "it is a hub: lease what is plugged in below it"
    if target.before is not None:
        return target.before
    handover = target.handover
    is_unmanaged = handover is not None and handover.unmanaged
    interfaces = {number: driver for number, driver in interfaces_of(spot.path).items() if driver}
    return _before(target, spot, now, driver=usb.drivers_of(interfaces), interfaces=interfaces, unmanaged=is_unmanaged)


def _before(
    target: Target, spot: Spot, now: DeviceDescription, *, driver: str, stub: str = "", **rest: object
) -> Before:
    return Before(
        key=target.key, kind=now.kind, sysname=spot.sysname, vendor_id=now.vendor_id, product_id=now.product_id,
        serial=now.serial or target.description.serial, driver=driver, stub=stub, **rest,  # type: ignore[arg-type]
    )  # fmt: skip


def _called(device: DeviceDescription) -> str:
    ids = f"{device.vendor_id}:{device.product_id}" if device.vendor_id else device.kind
    return f"{ids} {device.serial}".strip()
