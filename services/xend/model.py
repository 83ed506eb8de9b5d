"""What xend tells of domains and of its host, as types. Memory is in bytes here, and in MiB at xend."""

import re
from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.services.xend import devices, sxp
from leasehold.services.xend.devices import IoPorts, PciFunction, UsbController, Vbd, Vif, field, number
from leasehold.services.xend.sxp import Printable, Sxp

MIB: Final = 1024 * 1024
STATES: Final = ("all", "running", "paused", "halted", "suspended", "crashed", "unknown")
"""What a list of domains can be asked for. Of any other word xend answers that there is no such domain."""
RESTARTS: Final = ("destroy", "restart", "preserve", "rename-restart")
"""What is done with a domain that powers off, reboots or crashes."""
SHUTDOWN_REASONS: Final = ("poweroff", "reboot", "suspend", "halt", "crash")
_MEMORY_BYTES_MAX: Final = 1 << 50
_NAME: Final = re.compile(r"[A-Za-z0-9_\-.:+]{1,255}")
_STATUS: Final = ("halted", "paused", "running", "suspended", "shutting_down", "crashed", "unknown")
"""By xend's number."""
_LETTERS: Final = "rbpscd"
_KINDS: Final = {"linux": "pv", "hvm": "hvm"}
_OLD_FORMAT: Final = 2
"""Before this format, a host's memory was told in pages."""


class Live(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How an incarnation of a domain fares at this moment."""

    running: bool = False
    """It is on a CPU. A domain that runs and waits for nothing need not be."""
    blocked: bool = False
    paused: bool = False
    poweroff: bool = False
    """It has shut down, and neither to reboot nor to be suspended, as far as xend tells why (3.0 did)."""
    reboot: bool = False
    suspend: bool = False
    crashed: bool = False
    dying: bool = False
    """It was destroyed and has not let go of everything. Since 3.0.4 xend no longer lists such a domain."""
    cpu_time_s: float = 0.0
    """Of all its virtual CPUs together."""
    up_time_s: float = 0.0
    """By our clock, unless xend tells it (3.0 did); 0: not known."""
    start_time_s: float = 0.0
    """Since the epoch, by the host's clock; 0: not known, as of Domain-0."""
    online_vcpus: int = 0
    vcpu_avail: int = 0
    """How many may be brought online; XML-RPC does not tell, and then this is 0."""


class Domain(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A domain, as xend describes it. Empty text and 0: not told."""

    name: str = ""
    uuid: str = ""
    domid: int = -1
    """-1: it does not run, and has no incarnation."""
    state: str = "unknown"
    """One of `leasehold.events.domains.STATES`."""
    memory_bytes: int = 0
    max_memory_bytes: int = 0
    vcpus: int = 0
    kind: str = ""
    """`pv` or `hvm`."""
    on_poweroff: str = ""
    on_reboot: str = ""
    on_crash: str = ""
    kernel: str = ""
    ramdisk: str = ""
    extra: str = ""
    """The kernel's command line."""
    usb_host: tuple[str, ...] = ()
    """What QEMU is told to hand on, by `usbdevice`: `host:0529:0001`, `host:1.3`, `tablet`. What is added to a running
    domain in that way is shown nowhere."""
    vbds: tuple[Vbd, ...] = ()
    vifs: tuple[Vif, ...] = ()
    pci: tuple[PciFunction, ...] = ()
    """Attached to a domain with a domid, and otherwise claimed, whoever may have them."""
    usb: tuple[UsbController, ...] = ()
    ioports: tuple[IoPorts, ...] = ()
    live: Live | None = None
    """None: it does not run. (xend tells the old times of a domain that ran.)"""


class Node(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A host. Empty text and 0: not told."""

    system: str = ""
    host: str = ""
    release: str = ""
    version: str = ""
    machine: str = ""
    nr_cpus: int = 0
    nr_nodes: int = 0
    sockets_per_node: int = 0
    """Computed from the others where xend (since 3.2) does not tell it."""
    cores_per_socket: int = 0
    threads_per_core: int = 0
    cpu_mhz: int = 0
    hw_caps: str = ""
    virt_caps: str = ""
    total_memory_bytes: int = 0
    free_memory_bytes: int = 0
    xen_major: int = 0
    xen_minor: int = 0
    xen_extra: str = ""
    """Text: `.4`."""
    xen_caps: str = ""
    xen_scheduler: str = ""
    xen_pagesize: int = 0
    platform_params: str = ""
    xen_changeset: str = ""
    xen_commandline: str = ""
    cc_compiler: str = ""
    cc_compile_by: str = ""
    cc_compile_domain: str = ""
    cc_compile_date: str = ""
    xend_config_format: int = 0


class Image(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a paravirtual domain boots; paths are the host's."""

    kernel: str
    ramdisk: str = ""
    root: str = ""
    """The root device, with its options: `/dev/xvda1 ro`."""
    extra: str = ""
    """The kernel's command line."""


class DomainConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a domain is made from. "" and 0: as xend chooses."""

    name: str
    memory_bytes: int
    image: Image
    vcpus: int = 1
    max_memory_bytes: int = 0
    """0: `memory_bytes`."""
    uuid: str = ""
    ssidref: int = 0
    """Known to xend up to 3.0."""
    on_poweroff: str = ""
    on_reboot: str = ""
    on_crash: str = ""
    vbds: tuple[Vbd, ...] = ()
    vifs: tuple[Vif, ...] = ()
    ioports: tuple[IoPorts, ...] = ()
    pci: tuple[PciFunction, ...] = ()
    usb: tuple[UsbController, ...] = ()


# --- reading --------------------------------------------------------------------------------------------------------


def domain_of(value: Sxp, *, now_s: float) -> Domain:
    """Read `(domain (domid 1) (name web1) … (device …) …)`; what is missing or unreadable is as if not told.

    Args:
        now_s: the time since the epoch, for `up_time_s`.

    Raises:
        InvalidInputError: it is no domain.
    """
    if not isinstance(value, list) or not value or value[0] != b"domain":
        raise InvalidInputError("this is no description of a domain", field="domain")
    told = sxp.fields(value)
    image = told.get(b"image")
    image = image if isinstance(image, list) and image else []
    found: dict[str, list[list[Sxp]]] = {}
    for kind, device in devices.devices_in(value):
        found.setdefault("vbd" if kind in {"tap", "tap2"} else kind, []).append(device)
    domid = number(told.get(b"domid"), -1)
    return Domain(
        name=sxp.text(told.get(b"name")),
        uuid=sxp.text(told.get(b"uuid")).lower(),
        domid=max(domid, -1),
        state=_state(domid, told),
        memory_bytes=_bytes(told, b"memory"),
        max_memory_bytes=_bytes(told, b"maxmem"),
        vcpus=number(told.get(b"vcpus")),
        kind=_KINDS.get(sxp.text(image[0]), "") if image else "",
        on_poweroff=sxp.text(told.get(b"on_poweroff")),
        on_reboot=sxp.text(told.get(b"on_reboot")),
        on_crash=sxp.text(told.get(b"on_crash")),
        kernel=field(image, "kernel"),
        ramdisk=field(image, "ramdisk"),
        extra=field(image, "args"),
        usb_host=tuple(sxp.text(each[1]) for each in sxp.children(image, "usbdevice") if len(each) > 1),
        vbds=tuple(map(devices.vbd_of, found.get("vbd", ()))),
        vifs=tuple(map(devices.vif_of, found.get("vif", ()))),
        pci=tuple(each for device in found.get("pci", ()) for each in devices.pci_of(device)),
        usb=tuple(map(devices.usb_of, found.get("vusb", ()))),
        ioports=tuple(
            IoPorts(first=number(sxp.child(each, "from")), last=number(sxp.child(each, "to")))
            for each in found.get("ioports", ())
        ),
        live=_live(told, now_s) if domid >= 0 else None,
    )


def _bytes(told: dict[bytes, Sxp], name: bytes) -> int:
    return _sized(told.get(name), MIB)


def _sized(value: Sxp | None, unit: int) -> int:
    return min(max(number(value), 0) * unit, _MEMORY_BYTES_MAX)


def _seconds(told: dict[bytes, Sxp], name: bytes) -> float:
    try:
        seconds = float(sxp.text(told.get(name)))
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


def _state(domid: int, told: dict[bytes, Sxp]) -> str:
    """The number counts; the letters tell what it leaves out, and stand alone before 3.0.4."""
    letters = sxp.text(told.get(b"state")) if domid >= 0 else ""
    if "d" in letters:
        return "dying"
    status = number(told.get(b"status"), -1)
    if not 0 <= status < len(_STATUS):
        order = {"c": "crashed", "s": "shutting_down", "p": "paused"}
        waiting = "running" if letters else "unknown" if domid >= 0 else "halted"
        return next((state for letter, state in order.items() if letter in letters), waiting)
    if domid >= 0 and _STATUS[status] == "halted":
        # For a moment, a domain that has shut down is not removed yet.
        return "shutting_down"
    return _STATUS[status]


def _live(told: dict[bytes, Sxp], now_s: float) -> Live:
    letters = sxp.text(told.get(b"state"))
    on = {letter: letter in letters for letter in _LETTERS}
    reason = sxp.text(told.get(b"shutdown_reason")) if on["s"] else ""
    start_s = _seconds(told, b"start_time")
    up_s = max(now_s - start_s, 0.0) if start_s else 0.0
    return Live(
        running=on["r"],
        blocked=on["b"],
        paused=on["p"],
        poweroff=on["s"] and reason not in {"reboot", "suspend", "crash"},
        reboot=reason == "reboot",
        suspend=reason == "suspend",
        crashed=on["c"] or reason == "crash",
        dying=on["d"],
        cpu_time_s=_seconds(told, b"cpu_time"),
        up_time_s=_seconds(told, b"up_time") or up_s,
        start_time_s=start_s,
        online_vcpus=number(told.get(b"online_vcpus")),
        vcpu_avail=max(number(told.get(b"vcpu_avail")), 0).bit_count(),
    )


def node_of(value: Sxp) -> Node:
    """Read `(node (system Linux) …)`; over XML-RPC, the same without its name.

    Raises:
        InvalidInputError: it is no host.
    """
    told = sxp.fields(value)
    if b"system" not in told and b"nr_cpus" not in told:
        raise InvalidInputError("this is no description of a host", field="node")
    config_format = number(told.get(b"xend_config_format"))
    unit = MIB if config_format >= _OLD_FORMAT else 4096
    found: dict[str, int | str] = {}
    for each in msgspec.structs.fields(Node):
        raw = told.get(each.encode_name.encode())
        if raw is not None:
            found[each.name] = number(raw) if each.type is int else sxp.text(raw)
    found["total_memory_bytes"] = _sized(told.get(b"total_memory"), unit)
    found["free_memory_bytes"] = _sized(told.get(b"free_memory"), unit)
    node = msgspec.convert(found, Node)
    each_socket = max(node.nr_nodes, 1) * node.cores_per_socket * node.threads_per_core
    if node.sockets_per_node or not each_socket:
        return node
    return msgspec.structs.replace(node, sockets_per_node=max(node.nr_cpus // each_socket, 1))


# --- asking ---------------------------------------------------------------------------------------------------------


def mib(value_bytes: int, field_name: str) -> int:
    """Bytes as xend counts memory. What is no whole number of MiB is refused rather than rounded.

    Raises:
        InvalidInputError: it is none, or not more than nothing.
    """
    if not 0 < value_bytes <= _MEMORY_BYTES_MAX:
        raise InvalidInputError(f"{value_bytes} is not from 1 MiB to 1 PiB", field=field_name)
    whole, rest = divmod(value_bytes, MIB)
    if rest:
        near = f"{whole * MIB} or {(whole + 1) * MIB}" if whole else str(MIB)
        raise InvalidInputError(f"{value_bytes} bytes are no whole number of MiB, as {near} would be", field=field_name)
    return whole


def check_name(name: str) -> str:
    """A name that xend would give to a domain.

    Raises:
        InvalidInputError: it would not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"{name[:80]!r}: letters, digits and _ - . : + are taken, up to 255", field="name")
    return name


def config_sxp(config: DomainConfig) -> list[Printable]:
    """`(vm (name …) (memory …) … (image (linux …)) (device …) …)`.

    Raises:
        InvalidInputError: a field is none that xend takes.
    """
    told: list[Printable] = [
        "vm",
        ["name", check_name(config.name)],
        ["memory", str(mib(config.memory_bytes, "memory_bytes"))],
        ["maxmem", str(mib(config.max_memory_bytes or config.memory_bytes, "max_memory_bytes"))],
        ["vcpus", str(check_vcpus(config.vcpus))],
    ]
    if config.max_memory_bytes and config.max_memory_bytes < config.memory_bytes:
        raise InvalidInputError("less than what the domain is to have at first", field="max_memory_bytes")
    if config.uuid:
        told.append(["uuid", config.uuid])
    if config.ssidref:
        told.append(["ssidref", str(config.ssidref)])
    for name in ("on_poweroff", "on_reboot", "on_crash"):
        action = getattr(config, name)
        if action and action not in RESTARTS:
            raise InvalidInputError(f"{action[:20]!r} is none of {', '.join(RESTARTS)}", field=name)
        told += [[name, action]] if action else []
    told.append(["image", ["linux", *_image_fields(config.image)]])
    parts: list[list[Printable]] = [
        *map(devices.vbd_sxp, config.vbds),
        *map(devices.vif_sxp, config.vifs),
        *map(devices.ioports_sxp, config.ioports),
        *map(devices.usb_sxp, config.usb),
    ]
    if config.pci:
        parts.append(["pci", *map(devices.pci_sxp, config.pci)])
    return told + [["device", part] for part in parts]


def _image_fields(image: Image) -> list[Printable]:
    if not image.kernel:
        raise InvalidInputError("the path of a kernel on the host is missing", field="image.kernel")
    pairs = {"kernel": image.kernel, "ramdisk": image.ramdisk, "root": image.root, "args": image.extra}
    return [[name, value] for name, value in pairs.items() if value]


def check_vcpus(vcpus: int) -> int:
    """A number of virtual CPUs.

    Raises:
        InvalidInputError: it is none.
    """
    if not 1 <= vcpus <= 4_096:
        raise InvalidInputError(f"{vcpus} is not from 1 to 4096", field="vcpus")
    return vcpus
