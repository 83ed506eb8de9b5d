"""Virtual devices: what they are in xend's lists, and how they are asked for.

xend has them in two forms: in a domain's description (`GET` of it), which says what it was given, and in what
`op=devices` shows of xenstore, which says how that fares. The first names host devices, the second has the states.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import PciAddress
from leasehold.services.xend import sxp
from leasehold.services.xend.sxp import Printable, Sxp

MODES: Final = {"ro": "r", "rw": "w", "rw!": "w!", "r": "r", "w": "w", "w!": "w!"}
"""How a disk is exposed, in others' words and in xend's, which takes only its own. `!`: whether it is in use or not."""
TYPES: Final = {"disk": "vbd", "network": "vif"}
"""The proposal's names of types for those of xend; any other is taken as xend's own."""
CONNECTION_STATES: Final = (
    *("unknown", "initialising", "init_wait", "initialised", "connected", "closing", "closed"),
    *("reconfiguring", "reconfigured"),
)
"""What the number in `state` means (xenbus)."""
FORGOTTEN: Final = frozenset({"vbd", "tap", "tap2", "vif"})
"""Types of devices whose configuration goes with them. Of others xend takes the device away, and then fails."""
VDEVFN_AUTO: Final = 0x100
"""Any slot of the guest."""
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_BUS_ID: Final = re.compile(r"[1-9][0-9]{0,4}-[1-9][0-9]{0,2}(?:\.[1-9][0-9]{0,2}){0,6}")
_TYPE: Final = re.compile(r"[a-z][a-z0-9]{0,15}")
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_VALUE_CHARS_MAX: Final = 1_024
_PORTS_MAX: Final = 31
_NUMBER_END: Final = 1 << 63


class Vbd(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A virtual block device."""

    uname: str = ""
    """`phy:/dev/…`, `file:/…`; "": an empty drive."""
    dev: str = ""
    """Its name in the guest (`xvda`), or its number."""
    mode: str = "w"
    """`r`, `w`, or `w!`: writable although in use; `ro`, `rw` and `rw!` are taken, too."""
    backend: int = 0
    """The domid of the domain that serves it."""
    kind: str = ""
    """`disk` or `cdrom`, as far as xend tells."""
    uuid: str = ""


class Vif(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A virtual network device."""

    mac: str = ""
    """"" lets xend choose."""
    bridge: str = ""
    ip: str = ""
    script: str = ""
    vifname: str = ""
    backend: int = 0
    model: str = ""
    uuid: str = ""


class PciFunction(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A PCI function of the host that a domain has, or is configured to have."""

    address: str
    """`0000:03:00.0`."""
    vdevfn: int = VDEVFN_AUTO
    """Where the guest sees it: slot and function."""
    options: dict[str, str] = {}
    """`msitranslate`, `permissive`, …"""
    uuid: str = ""


class UsbController(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A paravirtual USB host controller (`vusb`) with the host's devices at its ports."""

    version: int = 2
    ports: dict[int, str] = {}
    """By port: the bus id of a device of the host, such as `1-1`; "": nothing is there."""
    uuid: str = ""


class IoPorts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A range of I/O ports that a domain may use. `first` and `last`: inclusive."""

    first: int
    last: int


class VirtualDevice(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Any device, as attributes that only backend and frontend understand."""

    type: str
    """As xend calls it: `vbd`, `vif`, `vusb`, `pci`, …"""
    ref: str = ""
    """What it is destroyed by: its number among those of its type."""
    attributes: dict[str, str] = {}
    """In xend's order; `bkdom-name`, the name of the domain that serves it, stands for `backend-id`."""


# --- reading --------------------------------------------------------------------------------------------------------


def number(value: Sxp | None, default: int = 0) -> int:
    """A whole number as xend writes it: `16`, `0x10`, `16.0`; of anything else, or beyond 64 bits, `default`."""
    text = sxp.text(value)
    try:
        if text[:2].lower() == "0x":
            read = int(text, 16)
        else:
            read = int(text) if text.lstrip("-").isdecimal() else int(float(text))
    except (ValueError, OverflowError):
        return default
    return read if -_NUMBER_END <= read < _NUMBER_END else default


def field(value: Sxp, name: str) -> str:
    """The text of `(name text)` in `value`; "": there is none."""
    return sxp.text(sxp.child(value, name))


def devices_in(domain: Sxp) -> Iterator[tuple[str, list[Sxp]]]:
    """The devices in a domain's description: type, and the expression that begins with it."""
    for each in sxp.children(domain, "device"):
        if len(each) > 1 and isinstance(each[1], list) and each[1]:
            yield sxp.text(each[1][0]), each[1]


def vbd_of(value: Sxp) -> Vbd:
    """Read `(vbd …)`, `(tap …)`, `(tap2 …)`."""
    dev, _, kind = field(value, "dev").removeprefix("ioemu:").partition(":")
    return Vbd(
        uname=field(value, "uname"),
        dev=dev,
        mode=field(value, "mode") or "w",
        backend=number(sxp.child(value, "backend")),
        kind=kind,
        uuid=field(value, "uuid"),
    )


def vif_of(value: Sxp) -> Vif:
    """Read `(vif …)`. One that is half removed may have nothing but its backend."""
    names = ("mac", "bridge", "ip", "script", "vifname", "model", "uuid")
    return Vif(backend=number(sxp.child(value, "backend")), **{each: field(value, each) for each in names})


def pci_of(value: Sxp) -> Iterator[PciFunction]:
    """Read `(pci (dev …) (dev …))`, of any version of xend; a `dev` without an address is left out."""
    for each in sxp.children(value, "dev"):
        found = pci_function_of(each)
        if found is not None:
            yield found


def pci_function_of(value: Sxp) -> PciFunction | None:
    """Read the fields of one function: `(domain 0x0000) (bus 0x03) (slot 0x00) (func 0x1)`, of whatever width."""
    try:
        parts = [int(field(value, name), 16) for name in ("domain", "bus", "slot", "func")]
    except ValueError:
        return None
    if any(part < 0 or part > most for part, most in zip(parts, (0xFFFFFFFF, 0xFF, 0x1F, 7), strict=True)):
        return None
    # Up to 3.4 it was the slot alone, by other names.
    slots = [number(sxp.child(value, name), -1) for name in ("vslot", "vslt")]
    older = max(slots)
    auto = VDEVFN_AUTO if older <= 0 else older << 3
    options: dict[str, str] = {}
    for pairs in sxp.children(value, "opts"):
        for pair in pairs[1:]:
            # Over SXP `(opts (a 1))`, over XML-RPC one list more.
            nested = pair if isinstance(pair, list) and pair and isinstance(pair[0], list) else [pair]
            options |= {sxp.text(each[0]): sxp.text(each[1]) for each in nested if isinstance(each, list) and each[1:]}
    return PciFunction(
        address=str(PciAddress(*parts)),
        vdevfn=number(sxp.child(value, "vdevfn"), auto),
        options=options,
        uuid=field(value, "uuid"),
    )


def usb_of(value: Sxp) -> UsbController:
    """Read `(vusb …)` in both of its shapes: `(port-1 1-1)` of a running domain, `(port (1 1-1))` of a halted one."""
    ports = {
        int(name.removeprefix("port-")): told
        for name, told in attributes_of(value).items()
        if name.startswith("port-") and name[5:].isdecimal() and len(name) < 10
    }
    return UsbController(
        version=number(sxp.child(value, "usb-ver"), 2),
        ports=dict(sorted(ports.items())),
        uuid=field(value, "uuid"),
    )


def attributes_of(value: Sxp) -> dict[str, str]:
    """All `(name value)` of a device; of `(port (1 1-1) (2 ''))`, `port-1` and `port-2`. The first of a name counts."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Sxp]] = [("", each) for each in reversed(value)] if isinstance(value, list) else []
    while waiting:
        prefix, each = waiting.pop()
        if not isinstance(each, list) or not each or not isinstance(each[0], bytes):
            continue
        name = f"{prefix}{sxp.text(each[0])}"
        nested = [inner for inner in each[1:] if isinstance(inner, list) and inner]
        if nested:
            waiting += [(f"{name}-", inner) for inner in reversed(nested)]
        else:
            found.setdefault(name, sxp.text(each[1]) if len(each) > 1 else "")
    return found


def listed(value: Sxp, kind: str) -> Iterator[VirtualDevice]:
    """Read what `op=devices` answers: `((51712 ((backend …) …)) …)`; of a halted domain `((51712 (vbd …)) …)`."""
    for each in value if isinstance(value, list) else []:
        if isinstance(each, list) and len(each) > 1:
            yield VirtualDevice(type=kind, ref=sxp.text(each[0]), attributes=attributes_of(each[1]))


# --- asking ---------------------------------------------------------------------------------------------------------


def vbd_sxp(vbd: Vbd) -> list[Printable]:
    """`(vbd (uname …) (dev …) (mode …) (backend …))`.

    Raises:
        InvalidInputError: a field is missing or none that xend takes.
    """
    mode = MODES.get(vbd.mode)
    if mode is None:
        raise InvalidInputError(f"{vbd.mode[:20]!r} is none of {', '.join(MODES)}", field="mode")
    if not vbd.dev:
        raise InvalidInputError("the name or number that the guest is to see is missing (xvda)", field="dev")
    if not vbd.uname and vbd.kind != "cdrom":
        raise InvalidInputError("what backs it is missing (phy:/dev/vg0/web1, file:/srv/web1.img)", field="uname")
    dev = f"{vbd.dev}:{vbd.kind}" if vbd.kind else vbd.dev
    return ["vbd", *_pairs(uname=vbd.uname, dev=dev, mode=mode, backend=str(vbd.backend))]


def vif_sxp(vif: Vif) -> list[Printable]:
    """`(vif (mac …) (bridge …) … (backend …))`.

    Raises:
        InvalidInputError: the MAC address is none.
    """
    if vif.mac and not _MAC.fullmatch(vif.mac):
        raise InvalidInputError(f"{vif.mac[:40]!r} is no MAC address such as 00:16:3e:11:22:33", field="mac")
    return [
        "vif",
        *_pairs(mac=vif.mac, bridge=vif.bridge, ip=vif.ip, script=vif.script, vifname=vif.vifname, model=vif.model),
        *_pairs(backend=str(vif.backend)),
    ]


def ioports_sxp(ports: IoPorts) -> list[Printable]:
    """`(ioports (from …) (to …))`, in decimal.

    Raises:
        InvalidInputError: it is no range of ports.
    """
    if not 0 <= ports.first <= ports.last <= 0xFFFF:
        raise InvalidInputError(f"{ports.first}-{ports.last} is no range from 0 to 65535", field="ioports")
    return ["ioports", *_pairs(**{"from": str(ports.first), "to": str(ports.last)})]


def pci_sxp(function: PciFunction) -> list[Printable]:
    """`(dev (domain 0x0000) (bus 0x03) …)`.

    Raises:
        InvalidInputError: the address, or where the guest is to see it, is none.
    """
    at = identities.parse_pci_address(function.address)
    if not 0 <= function.vdevfn <= VDEVFN_AUTO:
        raise InvalidInputError(f"{function.vdevfn:#x} is not from 0 to 0x100 (any)", field="vdevfn")
    told: list[Printable] = [
        "dev",
        *_pairs(domain=f"0x{at.domain:04x}", bus=f"0x{at.bus:02x}", slot=f"0x{at.slot:02x}", func=f"0x{at.function:x}"),
        *_pairs(vdevfn=f"{function.vdevfn:#x}", uuid=function.uuid),
    ]
    return told + [["opts", [name, value]] for name, value in function.options.items()]


def pci_change_sxp(function: PciFunction, state: str) -> list[Printable]:
    """What attaches (`Initialising`) or detaches (`Closing`) a function: `(pci (dev …) (state …))`."""
    return ["pci", pci_sxp(function), ["state", state]]


def usb_sxp(controller: UsbController) -> list[Printable]:
    """`(vusb (usb-ver 2) (num-ports 4) (port (1 1-1) (2 '') …))`.

    Raises:
        InvalidInputError: a port's number, or what is to be at it, is none.
    """
    if controller.version not in {1, 2}:
        raise InvalidInputError(f"{controller.version} is neither 1 nor 2", field="version")
    if not controller.ports or sorted(controller.ports) != list(range(1, len(controller.ports) + 1)):
        raise InvalidInputError("ports are numbered from 1 on, without gaps", field="ports")
    ports = [_port(port, bus_id) for port, bus_id in sorted(controller.ports.items())]
    return ["vusb", *_pairs(**{"usb-ver": str(controller.version), "num-ports": str(len(ports))}), ["port", *ports]]


def usb_port_sxp(port: int, bus_id: str) -> list[Printable]:
    """What puts a device of the host at a port, or with "" takes it away: `(vusb (port (2 1-2)))`."""
    return ["vusb", ["port", _port(port, bus_id)]]


def _port(port: int, bus_id: str) -> list[Printable]:
    if not 1 <= port <= _PORTS_MAX:
        raise InvalidInputError(f"{port} is no port from 1 to {_PORTS_MAX}", field="port")
    if bus_id and not _BUS_ID.fullmatch(bus_id):
        raise InvalidInputError(f"{bus_id[:40]!r} is no USB device's name in sysfs such as 1-1.4", field="bus_id")
    return [str(port), bus_id]


def type_of(name: str) -> str:
    """xend's name of a type of devices.

    Raises:
        InvalidInputError: it is no name.
    """
    if not _TYPE.fullmatch(name):
        raise InvalidInputError(f"{name[:40]!r} is no type such as disk, network, vbd, vif, vusb", field="type")
    return TYPES.get(name, name)


def any_sxp(kind: str, attributes: Mapping[str, str]) -> list[Printable]:
    """A device from attributes that are not looked into, but for `mode`, whose words are turned into xend's.

    Raises:
        InvalidInputError: a name or value is none.
    """
    told: list[Printable] = [kind]
    for name, value in attributes.items():
        if not _ATTRIBUTE.fullmatch(name) or len(value) > _VALUE_CHARS_MAX:
            raise InvalidInputError(f"{name[:40]!r} with {len(value)} characters is none", field="attributes")
        told.append([name, MODES.get(value, value) if name == "mode" else value])
    return told


def _pairs(**values: str) -> list[list[Printable]]:
    return [[name, value] for name, value in values.items() if value]
