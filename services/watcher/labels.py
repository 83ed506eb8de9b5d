"""How what sits below a PCI function or a USB device is told apart there: labels that outlive reboots and renumbering.

Physical words come first: a port's number, a namespace's id, a world wide name, an interface's number. What has none is
counted among its like in the same place. The kernel's own numbers (`sda`, `host8`, `ttyUSB0`) never stand in a label
below hardware, since they go by the order in which things were found.
"""

import os
import re
from typing import Final

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey, child_key, parse_wwn, physical_key
from leasehold.services.watcher.sysfs import link_target, read_int, read_text, safe_name

LABEL_CHARS_MAX: Final = 64
SUBSYSTEM_CHARS_MAX: Final = 32

_NOT_IN_LABEL: Final = re.compile(r"[^A-Za-z0-9._:!@+-]")
_NOT_IN_SUBSYSTEM: Final = re.compile(r"[^a-z0-9_]")
_DIGITS: Final = re.compile(r"([0-9]+)")
_TARGET: Final = re.compile(r"target[0-9]+:([0-9]+:[0-9]+)")
_UNIT: Final = re.compile(r"[0-9]+:([0-9]+:[0-9]+):([0-9]+)")
_ATA_PORT: Final = re.compile(r"ata[0-9]+")
_REMOTE_PORT: Final = re.compile(r"rport-[0-9]+:[0-9]+-[0-9]+")
_NAMESPACE: Final = re.compile(r"nvme[0-9]+n([0-9]+)")
_SOUND: Final = re.compile(r"([A-Za-z]+)C[0-9]+(D[0-9]+[cp]?)?")
_NUMBERING_BUSES: Final = frozenset({"hid", "i2c", "mmc", "scsi", "sdio", "serial", "serial-base", "serio", "virtio"})
"""Buses that number their devices as they are found: a place is not named by one of those."""
_MANY_SORTS: Final = frozenset({"drm", "input", "misc", "sound", "usbmisc"})
"""Subsystems with nodes of several sorts, which are counted apart."""


def safe_label(text: str) -> str:
    """`text` if a key can hold it, else a spelling that it can."""
    return safe_name(text, _NOT_IN_LABEL, LABEL_CHARS_MAX)


def natural(text: str) -> list[tuple[int, str]]:
    """For sorting: numbers within a text by their value, so that `tty10` comes after `tty2`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(text)]


def key_in(base: DeviceKey, subsystem: str, label: str) -> DeviceKey:
    """The key of `label` in a place: below hardware (any key of it), or in `virtual` or `platform`."""
    spelled = _NOT_IN_SUBSYSTEM.sub("_", subsystem.lower())[:SUBSYSTEM_CHARS_MAX]
    if not spelled[:1].isalpha():
        spelled = f"x{spelled}"[:SUBSYSTEM_CHARS_MAX]
    return child_key(physical_key(base), spelled, safe_label(label))


def platform_device(path: str, known: dict[str, str]) -> str:
    """The device above `path` that firmware or a hypervisor names (`fe340000.mmc`, `vbd-51712`, `0.0.0200`); empty:
    none.

    Args:
        path: below /sys/devices.
        known: what was found for folders before; it has /sys/devices, where the search ends, and grows.
    """
    folder = os.path.dirname(path)
    if folder not in known:
        bus = link_target(f"{folder}/subsystem")
        is_named = "/bus/" in bus and os.path.basename(bus) not in _NUMBERING_BUSES
        is_top = folder == os.path.dirname(folder)
        known[folder] = os.path.basename(folder) if is_named else "" if is_top else platform_device(folder, known)
    return known[folder]


def world_wide_name(path: str) -> str:
    """An attribute like `0x2000525400123456` as 16 hex digits; empty when it is none (all zero or all one)."""
    try:
        name = parse_wwn(read_text(path, 32))
    except InvalidInputError:
        return ""
    return "" if name == "f" * 16 else name


def remote_port(path: str) -> str:
    """The path of the Fibre Channel port that a SCSI target or device is reached through; empty: none."""
    while len(path := os.path.dirname(path)) > 1:
        if _REMOTE_PORT.fullmatch(os.path.basename(path)):
            return path
    return ""


def remote_wwpn(port_path: str) -> str:
    """The world wide name of a remote port."""
    return world_wide_name(f"{port_path}/fc_remote_ports/{os.path.basename(port_path)}/port_name")


def host_label(path: str, prefix: str) -> str:
    """A Fibre Channel host by its own name, an ATA port by its number on the controller; empty: neither."""
    name, above = os.path.basename(path), os.path.dirname(path)
    if wwpn := world_wide_name(f"{path}/fc_host/{name}/port_name"):
        return wwpn
    port = os.path.basename(above)
    number = read_int(f"{above}/ata_port/{port}/port_no") if _ATA_PORT.fullmatch(port) else -1
    return "-".join(part for part in (prefix, f"port-{number}") if part) if number >= 0 else ""


def target_label(path: str, host: str) -> str:
    """Below its host's label: the remote port's name, else channel and target."""
    port = remote_port(path)
    wwpn = remote_wwpn(port) if port else ""
    matched = _TARGET.fullmatch(os.path.basename(path))
    return f"{host}:{wwpn or (matched[1] if matched else os.path.basename(path))}"


def unit_label(name: str, target: str, host: str) -> str:
    """Of `0:0:1:5`: below its target's label the logical unit's number, below its host's channel and target, too."""
    matched = _UNIT.fullmatch(name)
    if matched is None:
        return f"{target or host}:{name}"
    return f"{target}:{matched[2]}" if target else f"{host}:{matched[1]}:{matched[2]}"


def namespace_label(path: str) -> str:
    """The id of an NVMe namespace; empty when it is none."""
    matched = _NAMESPACE.fullmatch(os.path.basename(path))
    if matched is None:
        return ""
    number = read_int(f"{path}/nsid")
    return str(number) if number > 0 else matched[1]


def port_label(path: str) -> str:
    """The number of a serial adapter's port (`port_number` of the device above); empty when it tells none."""
    number = read_int(f"{os.path.dirname(os.path.dirname(path))}/port_number")
    return str(number) if number >= 0 else ""


def sort_label(subsystem: str, sysname: str) -> str:
    """What sort of node it is where a subsystem has several: `event`, `pcm-D0p`, `render`; empty where it has one."""
    if subsystem not in _MANY_SORTS:
        return ""
    if subsystem == "sound" and (matched := _SOUND.fullmatch(sysname)):
        return "-".join(part for part in matched.groups() if part)
    stem = sysname.rstrip("0123456789")
    return (
        {"card": "primary", "renderD": "render", "controlD": "control"}.get(stem, stem) if subsystem == "drm" else stem
    )
