"""The hardware of a machine that tells where it sits: PCI functions, and USB devices with their interfaces."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey, UsbPortPath, child_key, parse_pci_address, pci_key, usb_key
from leasehold.services.watcher.sysfs import HostRoot, linked_members, read_bytes, safe_name

CONTROLLER_CHARS_MAX: Final = 63

_USB: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,3}(?:\.[0-9]{1,3})*)(?::([0-9]{1,3}\.[0-9]{1,3}))?")
_ROOT_HUB: Final = re.compile(r"usb([0-9]{1,5})")
_NOT_IN_CONTROLLER: Final = re.compile(r"[^A-Za-z0-9._:-]")


class _RootHub(msgspec.Struct, frozen=True):
    bus: int
    controller: str
    controller_path: str
    parent_path: str
    generation: int


def find_hardware(root: HostRoot) -> Iterator[tuple[str, str, str, DeviceKey]]:
    """Kind, name, path and key of each; the keys may be none."""
    for name, path, key in _pci(root):
        yield "pci", name, path, key
    for name, path, key in _usb(root):
        yield ("usb_interface" if ":" in name else "usb_device"), name, path, key


def _pci(root: HostRoot) -> Iterator[tuple[str, str, DeviceKey]]:
    for name, path in linked_members(root.sys_path("bus/pci/devices")):
        try:
            yield name, path, pci_key(parse_pci_address(name))
        except InvalidInputError:
            continue


def _usb(root: HostRoot) -> Iterator[tuple[str, str, DeviceKey]]:
    members = linked_members(root.sys_path("bus/usb/devices"))
    if not members:
        return
    hubs = dict(_told_apart(_root_hubs(root, members)))
    for name, path in members:
        matched, rooted = _USB.fullmatch(name), _ROOT_HUB.fullmatch(name)
        hub = hubs.get(int(matched[1] if matched else rooted[1] if rooted else -1))
        if hub is None:
            continue
        ports = tuple(map(int, matched[2].split("."))) if matched and matched[2] != "0" else ()
        device = usb_key(hub.controller, UsbPortPath(hub.generation, ports))
        yield (name, path, child_key(device, "interface", matched[3]) if matched and matched[3] else device)


def _root_hubs(root: HostRoot, members: list[tuple[str, str]]) -> list[_RootHub]:
    pci = {path: name for name, path in linked_members(root.sys_path("bus/pci/devices"))}
    hubs = []
    for name, path in members:
        if rooted := _ROOT_HUB.fullmatch(name):
            parent = os.path.dirname(path)
            above = parent
            while above not in pci and len(above) > 1:
                above = os.path.dirname(above)
            controller_path = above if above in pci else parent
            controller = _controller_name(pci.get(above) or os.path.basename(parent))
            hubs.append(_RootHub(int(rooted[1]), controller, controller_path, parent, _generation(path)))
    return hubs


def _controller_name(text: str) -> str:
    try:
        return str(parse_pci_address(text))
    except InvalidInputError:
        return safe_name(text, _NOT_IN_CONTROLLER, CONTROLLER_CHARS_MAX)


def _generation(path: str) -> int:
    """3 when the root hub runs at 5 Gbit/s or more; one that tells no speed is judged by its USB version."""
    for attribute, least in (("speed", 5_000.0), ("version", 3.0)):
        try:
            return 3 if float(read_bytes(f"{path}/{attribute}")[:16]) >= least else 2
        except ValueError:
            continue
    return 2


def _told_apart(hubs: list[_RootHub]) -> Iterator[tuple[int, _RootHub]]:
    """Root hubs by bus number, no two with the same controller and generation.

    One PCI function may carry several host controllers as platform devices, each with its own root hub. Their names
    go into the key then; two alike below one of them are counted in the order of their bus numbers.
    """
    alike: defaultdict[tuple[str, int], list[_RootHub]] = defaultdict(list)
    for hub in sorted(hubs, key=lambda each: (each.parent_path, each.bus)):
        alike[hub.controller, hub.generation].append(hub)
    for group in alike.values():
        taken: set[str] = set()
        for hub in group:
            name = hub.controller
            if len(group) > 1 and hub.parent_path != hub.controller_path:
                name = _controller_name(f"{name}:{os.path.basename(hub.parent_path)}")
            if name in taken:
                name = _controller_name(f"{name}.{len(taken) + 1}")
            taken.add(name)
            yield hub.bus, msgspec.structs.replace(hub, controller=name)
