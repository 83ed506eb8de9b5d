"""Who and what: PCI addresses, USB port paths, device keys, node-device names, hosts, principals, holders.

A device is `(host, key)`. Keys are physical and stable:

- `pci/0000:03:00.0`
- `usb/0000:00:14.0/2-1.4`: controller, then `generation-ports`. The generation (2 or 3) tells the two root hubs of
  one xHCI controller apart, which number their ports from 1 both; the kernel's bus number changes between boots.
  `2-0` is the root hub itself. A controller that is no PCI device stands there by its sysfs name.
- functional children below their physical parent: `pci/0000:00:03.0/net/0`, `usb/0000:00:14.0/2-1.4/interface/1.0`.
- mediated devices below the device that they are a part of, but owned by themselves: `pci/0000:06:00.0/mdev/<uuid>`.
- what is on neither bus, by subsystem and name: `virtual/net/br0`, `platform/scsi_host/0`; `computer` is the host.
"""

import re
from typing import Final, NewType

import msgspec

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError

HostName = NewType("HostName", str)
DeviceKey = NewType("DeviceKey", str)
DeviceId = NewType("DeviceId", str)
"""`host/key`, the one name of a device in a cluster."""
DomainKey = NewType("DomainKey", str)
"""`hypervisor/uuid`: a domain on its host."""
DomainId = NewType("DomainId", str)
"""`host/hypervisor/uuid`, the one name of a domain in a cluster. Domain-0 has the same uuid on all hosts of Xen."""
Principal = NewType("Principal", str)
Holder = NewType("Holder", str)
RequestId = NewType("RequestId", str)
RequestKey = NewType("RequestKey", str)
"""`principal/request id`: what makes asking again safe."""

_PCI: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)
_USB_PORTS: Final = re.compile(r"([23])-(0|[1-9][0-9]{0,2}(?:\.[1-9][0-9]{0,2})*)")
_CONTROLLER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_CHILD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}/[A-Za-z0-9._:!@+-]{1,64}")
_WWN: Final = re.compile(r"[0-9a-f]{16}")
_WWN_PARTED: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){6}")
_HYPERVISOR: Final = re.compile(r"[a-z][a-z0-9]{1,15}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HOST: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_@-]{0,62}")
_HOLDER: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{{0,{limits.HOLDER_CHARS_MAX - 1}}}")
AGENT_PATTERN: Final = r"[a-z][a-z0-9_-]{0,31}"
"""What the name of an agent matches as a whole."""
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:-]{{0,{limits.REQUEST_ID_CHARS_MAX - 1}}}")
COMPUTER: Final = DeviceKey("computer")
"""The host itself: above everything, and nobody's."""
_PLACELESS: Final = ("virtual", "platform")
"""How keys begin of what sits on no bus that tells where: below /sys/devices/virtual, and elsewhere."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9]")
NAME_PATTERNS: Final = {
    HostName: _HOST.pattern,
    Principal: _PRINCIPAL.pattern,
    Holder: _HOLDER.pattern,
    RequestId: _REQUEST_ID.pattern,
}
"""What a name matches as a whole, for those who describe it to others."""


class RequestRef(msgspec.Struct, frozen=True, gc=False):
    """Which request an event answers. `body_hash`: 32 hex digits over the body without its time of issue."""

    principal: Principal
    request_id: RequestId
    body_hash: str
    issued_at_ns: int


class PciAddress(msgspec.Struct, frozen=True, gc=False, order=True):
    """A PCI function: domain (up to 32 bits: VMD numbers its own), bus, slot, function."""

    domain: int
    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        """As sysfs writes it: `0000:03:00.0`."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


class UsbPortPath(msgspec.Struct, frozen=True, gc=False, order=True):
    """Where a USB device is plugged in: the root hub's generation (2 or 3) and the ports from there on.

    No ports: the root hub itself.
    """

    generation: int
    ports: tuple[int, ...]

    def __str__(self) -> str:
        """As it stands in a key: `2-1.4`, or `2-0` for the root hub."""
        return f"{self.generation}-{'.'.join(map(str, self.ports)) or '0'}"


def parse_pci_address(text: str) -> PciAddress:
    """Read `0000:03:00.0`; the domain must be written out, upper case is taken.

    Raises:
        InvalidInputError: the text is no full PCI address.
    """
    match = _PCI.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{text[:80]!r} is not a PCI address; one looks like 0000:03:00.0", field="device")
    domain, bus, slot, function = (int(part, 16) for part in match.groups())
    return PciAddress(domain, bus, slot, function)


def parse_usb_port_path(text: str) -> UsbPortPath:
    """Read `2-1.4` (generation, ports) or `2-0`.

    Raises:
        InvalidInputError: the text is none, a port is over 255 or the path deeper than USB allows.
    """
    match = _USB_PORTS.fullmatch(text)
    ports = () if match is None or match[2] == "0" else tuple(map(int, match[2].split(".")))
    if match is None or len(ports) > limits.USB_PORT_DEPTH_MAX or any(port > 255 for port in ports):
        raise InvalidInputError(f"{text[:80]!r} is not a USB port path; one looks like 2-1.4", field="device")
    return UsbPortPath(int(match[1]), ports)


def pci_key(address: PciAddress) -> DeviceKey:
    """The key of a PCI function."""
    return DeviceKey(f"pci/{address}")


def usb_key(controller: str, path: UsbPortPath) -> DeviceKey:
    """The key of a USB device behind `controller` (a PCI address, else the controller's sysfs name)."""
    return DeviceKey(f"usb/{controller}/{path}")


def child_key(parent: DeviceKey, subsystem: str, name: str) -> DeviceKey:
    """The key of a functional child (`net`, `block`, `interface`, …) below its physical parent."""
    return DeviceKey(f"{parent}/{subsystem}/{name}")


def physical_key(key: DeviceKey) -> DeviceKey:
    """The key of the physical device that `key` stands for: itself, or the parent of a functional child.

    A mediated device stands for itself: it is made to be handed out without the rest of its parent.
    """
    parts = key.split("/")
    depth = 2 if parts[0] == "pci" else 3
    if len(parts) <= depth or parts[depth] == "mdev" or parts[0] in _PLACELESS:
        return key
    return DeviceKey("/".join(parts[:depth]))


def is_physical(key: DeviceKey) -> bool:
    """Whether it is on a bus that tells where it sits, or a part of what is; all else cannot be handed out."""
    return key.partition("/")[0] in ("pci", "usb")


def parse_device_key(text: str) -> DeviceKey:
    """Read a key and give it in its one spelling (lower-case address).

    Raises:
        InvalidInputError: the text is no key.
    """
    parts = text.split("/")
    try:
        if len(text) > limits.KEY_CHARS_MAX:
            raise InvalidInputError("too long", field="device")
        if parts[0] == "pci" and len(parts) >= 2:
            head, rest = pci_key(parse_pci_address(parts[1])), parts[2:]
        elif parts[0] == "usb" and len(parts) >= 3:
            head, rest = usb_key(_controller(parts[1]), parse_usb_port_path(parts[2])), parts[3:]
        elif parts[0] in _PLACELESS and len(parts) == 3:
            head, rest = DeviceKey(parts[0]), parts[1:]
        elif text == COMPUTER:
            head, rest = COMPUTER, []
        else:
            raise InvalidInputError("unknown bus", field="device")
        if rest and not (len(rest) == 2 and _CHILD.fullmatch("/".join(rest))):
            raise InvalidInputError("not a child", field="device")
    except InvalidInputError:
        raise InvalidInputError(
            f"{text[:80]!r} is not a device key; they look like pci/0000:03:00.0, usb/0000:00:14.0/2-1.4, "
            "pci/0000:03:00.0/net/0 or virtual/net/br0",
            field="device",
        ) from None
    return DeviceKey("/".join([head, *rest]))


def _controller(text: str) -> str:
    if _PCI.fullmatch(text):
        return str(parse_pci_address(text))
    if _CONTROLLER.fullmatch(text):
        return text
    raise InvalidInputError(f"{text[:80]!r} is not a USB controller", field="device")


def device_id(host: HostName, key: DeviceKey) -> DeviceId:
    """The name of a device in the cluster."""
    return DeviceId(f"{host}/{key}")


def split_device_id(device: DeviceId) -> tuple[HostName, DeviceKey]:
    """Host and key of a device id."""
    host, _, key = device.partition("/")
    return HostName(host), DeviceKey(key)


def request_key(principal: Principal, request_id: RequestId) -> RequestKey:
    """The key under which an answer is remembered."""
    return RequestKey(f"{principal}/{request_id}")


def principal_of(key: RequestKey) -> Principal:
    """Whose request an answer is remembered of."""
    return Principal(key.partition("/")[0])


def parse_wwn(text: str, field: str = "wwn") -> str:
    """A Fibre Channel world wide name in its one spelling: 16 hex digits, lower case, not all zero.

    `0x` in front and colons or dashes between bytes are taken away.
    """
    digits = text.lower().removeprefix("0x")
    if _WWN_PARTED.fullmatch(digits):
        digits = re.sub("[:-]", "", digits)
    if not _WWN.fullmatch(digits) or not int(digits, 16):
        raise InvalidInputError(
            f"{text[:80]!r} is not a world wide name: 16 hex digits, like 2101001b32a9da4e", field=field
        )
    return digits


def parse_uuid(text: str, field: str = "uuid") -> str:
    """A UUID in its one spelling: lower case, with its four dashes, which may be missing in what is read."""
    digits = text.lower()
    if len(digits) == 32:
        digits = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    if not _UUID.fullmatch(digits):
        raise InvalidInputError(f"{text[:80]!r} is not a uuid, like c0ffee00-0000-4000-8000-000000000001", field=field)
    return digits


def domain_key(hypervisor: str, uuid: str) -> DomainKey:
    """The key of a domain on its host.

    Raises:
        InvalidInputError: one of the two is not what it should be.
    """
    if not _HYPERVISOR.fullmatch(hypervisor):
        raise InvalidInputError(f"{hypervisor[:80]!r} is not a hypervisor's name, like xen or qemu", field="domain")
    return DomainKey(f"{hypervisor}/{parse_uuid(uuid, 'domain')}")


def parse_domain_key(text: str) -> DomainKey:
    """Read `hypervisor/uuid` and give it in its one spelling."""
    hypervisor, _, uuid = text.partition("/")
    return domain_key(hypervisor, uuid)


def domain_id(host: HostName, key: DomainKey) -> DomainId:
    """The name of a domain in the cluster."""
    return DomainId(f"{host}/{key}")


def split_domain_id(domain: DomainId) -> tuple[HostName, DomainKey]:
    """Host and key of a domain id."""
    host, _, key = domain.partition("/")
    return HostName(host), DomainKey(key)


def uuid_of(key: DomainKey) -> str:
    """The uuid in a domain's key."""
    return key.partition("/")[2]


def node_device_name(subsystem: str, sysname: str, extra: str = "") -> str:
    """libvirt's name of a node device: parts joined by `_`, everything but letters and digits made `_`.

    `extra` is the MAC of a NIC or the serial of a disk. Names collide (`1-4:1.1` and `1-4.1.1`), so they are shown
    and looked up, and are never the key. Source: libvirt 9.0 `udevGenerateDeviceName`.
    """
    return _NOT_IN_NAMES.sub("_", "_".join(part for part in (subsystem, sysname, extra) if part))


def _named(text: str, pattern: re.Pattern[str], field: str, example: str) -> str:
    if pattern.fullmatch(text) is None:
        shown = repr(text)[:80]
        raise InvalidInputError(f"{shown} cannot be taken; {example}", field=field)
    return text


def parse_host(text: str) -> HostName:
    """A host's name: lower-case letters, digits, `-` and `_`, at most 63 (dots cannot stand in a NATS subject)."""
    return HostName(_named(text, _HOST, "host", "a host is lower-case letters, digits, - and _, like node1_lan"))


def host_from_hostname(hostname: str) -> HostName:
    """A machine's host name as our host: dots become `_`, which no host name may hold, so no two names meet."""
    return parse_host(hostname.lower().rstrip(".").replace(".", "_"))


def parse_principal(text: str) -> Principal:
    """Who is authenticated: letters, digits, `_`, `@`, `-`; it stands in subjects."""
    return Principal(_named(text, _PRINCIPAL, "principal", "a principal is letters, digits, _@-, like scheduler-1"))


def tenant_of(principal: Principal) -> Principal:
    """The tenant that a principal's holders belong to: what stands behind the `@` of its name, else itself."""
    name, _, tenant = principal.rpartition("@")
    return Principal(tenant) if name and tenant else principal


def parse_holder(text: str) -> Holder:
    """For whom a lease is: a domain, a job, a person."""
    return Holder(_named(text, _HOLDER, "holder", "a holder is up to 128 letters, digits, blanks, ._:/@+-"))


def parse_request_id(text: str) -> RequestId:
    """A requester's own name for its request."""
    return RequestId(_named(text, _REQUEST_ID, "request_id", "a request id is up to 64 letters, digits and ._:-"))
