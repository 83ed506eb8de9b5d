"""Configurations, as clients send them, read into domains and devices."""

import random
import re
import uuid
from typing import Final

from leasehold.events.errors import SxpError, XendSimError
from leasehold.services.xend import sxp
from leasehold.services.xendsim.state import DEVICES_MAX, Device, Domain, Parsed, PciFunction, State, Tree

DEVICE_TYPES: Final = (
    *("vbd", "tap", "tap2", "vif", "vif2", "pci", "vusb", "vscsi", "vfb", "vkbd", "console", "ioports", "irq"),
)
VCPUS_MAX: Final = 512
_PORTS_MAX: Final = 31
DISKS: Final = ("vbd", "tap", "tap2")
NETWORKS: Final = ("vif", "vif2")
SCRIPT: Final = "/usr/lib/xen-4.4/x/scripts/vif-bridge"
_NAME: Final = re.compile(r"[A-Za-z0-9_\-.:+]+")
_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]+\s*")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
_DISK: Final = re.compile(r"(?:/dev/)?(xvd|hd|sd)([a-z]{1,2})([0-9]{0,3})")
_MODES: Final = ("r", "w", "w!", "!")
_HD_MAJORS: Final = (3, 22, 33, 34, 56, 57, 88, 89, 90, 91)


def number(text: Tree) -> int:
    """A whole number, by the rules and with the words of Python 2's `int`.

    Raises:
        XendSimError: it is none.
    """
    if isinstance(text, int | float):
        return int(text)
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise XendSimError(f"invalid literal for int() with base 10: {text!r}", kind="python")
    return int(text)


def parsed(data: str) -> list[Parsed]:
    """What xend reads in a text; nothing of a list that does not end.

    Raises:
        XendSimError: it reads an error.
    """
    try:
        return [_as_text(each) for each in sxp.read_all(data.encode("latin-1"), as_xend=True)]
    except SxpError as error:
        raise XendSimError(error.message) from error


def _as_text(value: sxp.Sxp) -> Parsed:
    return value.decode("latin-1") if isinstance(value, bytes) else [_as_text(each) for each in value]


def child(tree: Parsed, name: str) -> Parsed | None:
    """What stands behind `name` in the first `(name …)` of a list."""
    for each in children(tree, name):
        return each[1] if len(each) > 1 else ""
    return None


def children(tree: Parsed, name: str) -> list[list[Parsed]]:
    """All `(name …)` of a list."""
    return [each for each in tree if isinstance(each, list) and each[:1] == [name]] if isinstance(tree, list) else []


def check_memory(memory_mib: int) -> int:
    """What a domain is to have; xend checks it in this order."""
    if memory_mib < 0:
        raise XendSimError("Invalid Configuration: memory_static_min must be less than or equal to memory_dynamic_min")
    if memory_mib == 0:
        raise XendSimError("Invalid Configuration: memory_dynamic_max must be greater than zero")
    return memory_mib


def check_vcpus(vcpus: int) -> None:
    """Raises XendSimError if no domain can have so many."""
    if vcpus < 1:
        raise XendSimError("Zero VCPUs is invalid")
    if vcpus > VCPUS_MAX:
        raise XendSimError("(22, 'Invalid argument')")


def check_name(name: str) -> None:
    """Raises XendSimError if no domain can be called so."""
    if not _NAME.fullmatch(name):
        raise XendSimError("Invalid VM Name")


class Maker:
    """Makes up uuids and MAC addresses: the same in the same order for the same seed."""

    def __init__(self, state: State) -> None:
        self._state = state

    def _chance(self) -> random.Random:
        self._state.serial += 1
        return random.Random(f"{self._state.seed}/{self._state.serial}")  # noqa: S311 - no secret

    def uuid(self) -> str:
        """A uuid as xend makes it: 16 random bytes, of no version."""
        return str(uuid.UUID(bytes=self._chance().randbytes(16)))

    def mac(self) -> str:
        """An address of Xen's own range."""
        low, *rest = self._chance().randbytes(3)
        return ":".join(("00:16:3e", f"{low & 0x7F:02x}", *(f"{each:02x}" for each in rest)))


def domain_of(tree: Parsed, maker: Maker) -> Domain:
    """A domain from `(vm (name …) …)`.

    Raises:
        XendSimError: something is missing or wrong in it.
    """
    scalars = {
        str(each[0]): each[1]
        for each in (tree if isinstance(tree, list) else [])
        if isinstance(each, list) and len(each) == 2 and each[0] not in {"device", "image"}
    }
    for key in ("vcpus", "memory", "name"):
        if not isinstance(scalars.get(key), str):
            raise XendSimError(f"'{key}'", kind="python")
    words = {key: value for key, value in scalars.items() if isinstance(value, str)}
    check_name(words["name"])
    memory_mib = check_memory(number(words["memory"]))
    domain = Domain(
        uuid=words.get("uuid") or maker.uuid(),
        name=words["name"],
        vcpus=number(words["vcpus"]),
        memory_mib=memory_mib,
        maxmem_mib=max(memory_mib, number(words.get("maxmem", "0"))),
        weight=number(words.get("cpu_weight", "256")),
        cap=number(words.get("cpu_cap", "0")),
        on_poweroff=words.get("on_poweroff", "destroy"),
        on_reboot=words.get("on_reboot", "restart"),
        on_crash=words.get("on_crash", "restart"),
    )
    check_vcpus(domain.vcpus)
    image = children(tree, "image")
    if image and len(image[0]) > 1:
        _read_image(domain, image[0][1])
    for device in children(tree, "device"):
        if len(device) > 1:
            add(domain, device_of(device[1], domain, maker))
    if domain.hvm and "vnc" in domain.image and not any(each.kind == "vfb" for each in domain.devices):
        kept: dict[str, str] = {key: str(domain.image[key]) for key in ("vncunused", "vnc") if key in domain.image}
        add(domain, Device(kind="vfb", uuid=maker.uuid(), attributes=kept))
    return domain


def _read_image(domain: Domain, tree: Parsed) -> None:
    if not isinstance(tree, list) or not tree:
        return
    domain.hvm = tree[0] == "hvm"
    given = {str(each[0]): each[1] for each in tree[1:] if isinstance(each, list) and len(each) == 2}
    if domain.hvm:
        given["loader"] = given.pop("kernel", given.get("loader", "hvmloader"))
    else:
        root, arguments = given.pop("root", None), given.pop("args", "")
        line = f"root={root} {arguments}" if isinstance(root, str) else str(arguments)
        if line:
            given["args"] = line
    domain.image = given


def add(domain: Domain, device: Device) -> None:
    """Give a domain a device, in its configuration.

    Raises:
        XendSimError: it has it already, or too many.
    """
    if len(domain.devices) >= DEVICES_MAX:
        raise XendSimError("Invalid Configuration: too many devices")
    for each in domain.devices:
        if each.kind != device.kind:
            continue
        for key, name in (("uname", "file"), ("dev", "device"), ("mac", "mac")):
            value = device.attributes.get(key, "").partition(":disk")[0]
            if value and each.attributes.get(key, "").partition(":disk")[0] == value:
                said = "used" if key == "uname" else "defined"
                shown = value.partition(":")[2] if key == "uname" else value
                raise XendSimError(f'Invalid Configuration: The {name} "{shown}" is already {said}')
    if device.kind not in DISKS:
        device.devid = _free_devid(domain, device.kind)
    domain.devices.append(device)


def _free_devid(domain: Domain, kind: str) -> int:
    used = {each.devid for each in domain.devices if each.kind == kind}
    return next(each for each in range(DEVICES_MAX + 1) if each not in used)


def device_of(tree: Parsed, domain: Domain, maker: Maker) -> Device:
    """A device from `(vbd (uname …) …)`.

    Raises:
        XendSimError: there is no such kind of device, or something is wrong in it.
    """
    kind = tree[0] if isinstance(tree, list) and tree else tree
    if not isinstance(tree, list) or kind not in DEVICE_TYPES:
        shown = kind if isinstance(kind, str) else ""
        raise XendSimError(f"Invalid Configuration: XendConfig: {shown} not a valid device type")
    attributes = {
        str(each[0]): each[1]
        for each in tree[1:]
        if isinstance(each, list) and len(each) == 2 and isinstance(each[1], str)
    }
    device = Device(kind=str(kind), uuid=attributes.pop("uuid", "") or maker.uuid(), attributes=attributes)
    if kind == "pci":
        attributes.clear()
        device.functions = [function_of(each, maker) for each in children(tree, "dev")]
    elif kind == "vusb":
        attributes.pop("port", None)
        ports = number(attributes.get("num-ports", "8"))
        if not 1 <= ports <= _PORTS_MAX:
            raise XendSimError(f"Invalid Configuration: num-ports {ports}")
        device.ports = dict.fromkeys(range(1, ports + 1), "")
        device.ports |= ports_of(tree)
    elif kind in DISKS:
        if attributes.get("mode", "r") not in _MODES:
            raise XendSimError("Invalid mode")
        device.devid = disk_number(attributes.get("dev", ""))
        attributes["bootable"] = "0" if any(each.kind in DISKS for each in domain.devices) else "1"
    elif kind in NETWORKS:
        attributes["mac"] = attributes.get("mac", "") or maker.mac()
        if not _MAC.fullmatch(attributes["mac"]):
            raise XendSimError("MAC address is not valid!")
    attributes.pop("backend", None)
    return device


def ports_of(tree: Parsed) -> dict[int, str]:
    """The ports in `(vusb (port (1 1-1) (2 '')))`: what is plugged into each.

    Raises:
        XendSimError: a port has no number.
    """
    return {
        number(str(each[0])): str(each[1])
        for port in children(tree, "port")
        for each in port[1:]
        if isinstance(each, list) and len(each) == 2
    }


def function_of(tree: Parsed, maker: Maker) -> PciFunction:
    """A PCI function from `(dev (domain 0x0000) (bus 0x03) …)`.

    Raises:
        XendSimError: it names none.
    """
    words = {key: str(child(tree, key) or "") for key in ("domain", "bus", "slot", "func", "vdevfn", "key", "uuid")}
    function = PciFunction(
        domain=words["domain"] or "0x0000",
        bus=words["bus"],
        slot=words["slot"],
        func=words["func"],
        vdevfn=words["vdevfn"] or "0x100",
        uuid=words["uuid"] or maker.uuid(),
        opts=[[str(word) for word in each[1]] for each in children(tree, "opts") if isinstance(each[-1], list)],
    )
    try:
        function.key = words["key"] or function.address[5:]
        int(function.vdevfn, 16)
    except ValueError as error:
        wrong = next((value for value in words.values() if not _is_hex(value)), "")
        raise XendSimError(f"invalid literal for int() with base 16: {wrong!r}", kind="python") from error
    return function


def _is_hex(text: str) -> bool:
    try:
        int(text, 16)
    except ValueError:
        return False
    return True


def disk_number(name: str) -> int:
    """The number of a virtual disk: 51712 of `xvda`, 768 of `hda`, 51728 of `51728` and of `vbd/51728`.

    Raises:
        XendSimError: it is no name of a disk.
    """
    name = name.partition(":")[0].rpartition("/")[2] if not name.startswith("/dev/") else name.partition(":")[0]
    if name.isascii() and name.isdigit():
        return int(name)
    match = _DISK.fullmatch(name)
    if match is None:
        raise XendSimError(f"Unable to find number for device ({name})")
    kind, letters, part = match[1], match[2], int(match[3] or 0)
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    if kind == "hd" and disk < 2 * len(_HD_MAJORS):
        return _HD_MAJORS[disk // 2] * 256 + disk % 2 * 64 + part
    if disk < 16 and part < 16 and kind != "hd":
        return (202 if kind == "xvd" else 8) * 256 + disk * 16 + part
    return 1 << 28 | disk << 8 | part
