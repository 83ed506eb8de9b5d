"""What Xen's own tools print, read: `xl list -v`, `xl list -l`, `xl pci-assignable-list`, `xenstore-ls -f`.

Source: `xl_list.c`, `xl_info.c` and `libxl_pci.c` of Xen 4.17, and recordings of it (`tests/data/xl/`). In the JSON,
what is zero, false or a default is left out.
"""

import re
from typing import Final, NamedTuple

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import parse_pci_address, pci_key

NO_NAME: Final = "(null)"
NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Domain-0's; of another domain: its builder gave it none."""
_WATCHDOG_OR_CRASH: Final = "cw"
_SUSPEND: Final = "s"

_ROW: Final = re.compile(
    r"(?P<name>.*?)\s+(?P<domid>\d{1,10})\s+(?P<mib>\d{1,15})\s+(?P<vcpus>\d{1,10})\s+"
    r"(?P<state>[r-][b-][p-][s-][a-zA-Z?-][d-])\s+\d+\.\d+\s*"
    r"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?(?:\s.*)?"
)
_BACKEND: Final = re.compile(
    r'/local/domain/\d+/backend/pci/(?P<domid>\d+)/(?P<number>\d+)/(?P<entry>state|dev-\d+) = "(?P<value>[^"]*)"'
)
_CLOSED: Final = "6"
"""XenbusStateClosed of `xen/io/xenbus.h`."""


class Row(NamedTuple):
    """One line of `xl list -v`."""

    domid: int
    uuid: str
    """Empty: not said, as in `xl list` without `-v`."""
    name: str
    """Empty: xenstore has none, as of a domain that is being made or destroyed."""
    memory_bytes: int
    vcpus: int
    """Those that run now; none of a domain that is being destroyed."""
    state: str
    """One of `events.domains.STATES`."""


class Detail(NamedTuple):
    """What `xl list -l` says of one domain. 0 and empty text: not said."""

    uuid: str
    kind: str
    memory_bytes: int
    max_memory_bytes: int
    vcpus: int
    devices: tuple[str, ...]
    """Device words: `pci/…` and `usb-address/…`."""


class Backend(NamedTuple):
    """The PCI devices that dom0's backend has for a domain. libxl makes one for each, number 0."""

    domid: int
    number: int
    is_closed: bool
    """By its state: nothing is done through it any more."""
    devices: frozenset[str]
    """Device words."""


# The part of libxl's `libxl_domain_config` that is read. Its names are libxl's.


class _Pci(msgspec.Struct):
    domain: int = 0
    bus: int = 0
    dev: int = 0
    func: int = 0


class _HostDevice(msgspec.Struct):
    hostbus: int = 0
    hostaddr: int = 0


class _Usb(msgspec.Struct):
    hostdev: _HostDevice | None = msgspec.field(default=None, name="type.hostdev")


class _Create(msgspec.Struct):
    type: str = ""
    uuid: str = NO_UUID


class _Build(msgspec.Struct):
    max_vcpus: int = 0
    avail_vcpus: list[int] = []
    max_memkb: int = 0
    target_memkb: int = 0


class _Config(msgspec.Struct):
    c_info: _Create
    b_info: _Build
    pcidevs: list[_Pci] = []
    usbdevs: list[_Usb] = []


class _Domain(msgspec.Struct):
    domid: int
    config: _Config


_decoder: Final = msgspec.json.Decoder(list[_Domain])


def read_rows(text: str) -> list[Row]:
    """The domains of `xl list -v`, of which each line tells one.

    Raises:
        InvalidInputError: a line is not as `xl` prints it, or Domain-0, which is always there, is not listed.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("Name "):
        raise InvalidInputError("xl list does not begin with its headings", field="xl list")
    rows = [_row(line) for line in lines[1:]]
    if not any(row.domid == 0 for row in rows):
        raise InvalidInputError("xl list has no Domain-0", field="xl list")
    return rows


def _row(line: str) -> Row:
    found = _ROW.fullmatch(line)
    if found is None:
        raise InvalidInputError(f"xl list has a line that cannot be read: {line[:120]!r}", field="xl list")
    name = found["name"].strip()
    name = "" if name == NO_NAME else name
    return Row(
        domid=int(found["domid"]),
        uuid=found["uuid"] or "",
        name=name,
        memory_bytes=int(found["mib"]) << 20,
        vcpus=int(found["vcpus"]),
        state=_state(found["state"], has_name=bool(name)),
    )


def _state(letters: str, *, has_name: bool) -> str:
    """What `rbps`, the reason for a shutdown, and `d` come to."""
    paused, shut_down, reason, dying = letters[2], letters[3], letters[4], letters[5]
    if dying == "d":
        return "dying"
    if shut_down == "s":
        if reason in _WATCHDOG_OR_CRASH:
            return "crashed"
        if reason == _SUSPEND:
            # By `xl save` or a migration: it goes on or goes away, and has its devices meanwhile.
            return "paused"
        return "shutting_down" if has_name else "dying"
    return "paused" if paused == "p" else "running"


def read_details(text: str) -> dict[int, Detail]:
    """What `xl list -l` says, by domid. A domain whose configuration cannot be read is not in it, and that is no error.

    Raises:
        InvalidInputError: it is not what `xl` prints.
    """
    try:
        domains = _decoder.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"xl list -l: {error}", field="xl list") from None
    return {domain.domid: _detail(domain.config) for domain in domains}


def _detail(config: _Config) -> Detail:
    build = config.b_info
    words = [f"pci/{each.domain:04x}:{each.bus:02x}:{each.dev:02x}.{each.func:x}" for each in config.pcidevs]
    words += [f"usb-address/{each.hostdev.hostbus}.{each.hostdev.hostaddr}" for each in config.usbdevs if each.hostdev]
    return Detail(
        uuid=config.c_info.uuid,
        kind=config.c_info.type,
        memory_bytes=build.target_memkb << 10,
        max_memory_bytes=build.max_memkb << 10,
        vcpus=len(build.avail_vcpus) or build.max_vcpus,
        devices=tuple(words),
    )


def read_assignable(text: str) -> frozenset[str]:
    """The device words of `xl pci-assignable-list`: devices that libxl takes to be free, which is no evidence of it."""
    return frozenset(pci_key(parse_pci_address(line.split()[0])) for line in text.splitlines() if line.strip())


def read_backends(text: str) -> list[Backend]:
    """What dom0's backend has for domains, whether they are there or not, from `xenstore-ls -f`."""
    devices: dict[tuple[int, int], set[str]] = {}
    closed: set[tuple[int, int]] = set()
    for line in text.splitlines():
        if (found := _BACKEND.fullmatch(line)) is None:
            continue
        backend = (int(found["domid"]), int(found["number"]))
        if found["entry"] != "state":
            devices.setdefault(backend, set()).add(pci_key(parse_pci_address(found["value"])))
        elif found["value"] == _CLOSED:
            closed.add(backend)
    return [Backend(*backend, backend in closed, frozenset(words)) for backend, words in devices.items()]
