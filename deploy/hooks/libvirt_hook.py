#!/usr/bin/python3
"""libvirt's hook: a domain does not start with a host device that it has no lease for.

libvirt calls it by the name of its driver, `/etc/libvirt/hooks/qemu`, `lxc` or `libxl` (or as any file in `qemu.d/` …),
with the domain's name, an operation and two words more; the domain's XML is on standard input. At `prepare`, before
libvirt has touched anything, it asks; at `release`, when libvirt has given everything back, it tells. At all else it
does nothing. libvirt has no such moment for what is plugged into a running domain.
"""

import os
import sys
import syslog
from collections.abc import Iterator, Sequence
from typing import Any
from xml.parsers import expat

from asking import UUID, AskingFailedError, Settings, decided, has_ended, may_have, note, settings_of_this_host

XML_BYTES_MAX = 16 << 20
DEPTH_MAX = 1_024
"""libvirt itself takes chains of 200 images."""
TEXT_CHARS_MAX = 4_096
DEVICES_MAX = 256
HYPERVISORS = {"qemu": "qemu", "lxc": "lxc", "libxl": "xen"}
"""By the name of libvirt's hook; the first part of a domain's key."""
ENDS_FOR_GOOD = frozenset({"qemu"})
"""Whose `release` is an end. The others release a domain that only reboots, too, and prepare it at once (libvirt's
`virLXCProcessReboot`, `libxlDomainShutdownHandleRestart`): it would find its lease ended.
"""


class DomainXml:
    """What libvirt's XML of a domain says of host devices. Elements are taken as they come; no tree is built."""

    def __init__(self) -> None:
        self.uuid = ""
        self.name = ""
        self.words: set[str] = set()
        self._path: list[str] = []
        self._device: dict[str, Any] = {}
        self._disk_pci = False
        self._text = ""
        self._bytes = 0

    def read(self, file: Any) -> None:
        """Take it all in.

        Raises:
            AskingFailedError: it is no domain's XML, too large, or names a device in a way that is not known.
        """
        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._characters
        # libvirt writes none, and entities are how small texts become large ones.
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            while True:
                part = file.read(1 << 16)
                self._bytes += len(part)
                if self._bytes > XML_BYTES_MAX:
                    raise AskingFailedError(f"the domain's XML has more than {XML_BYTES_MAX} bytes")
                parser.Parse(part, not part)
                if not part:
                    break
        except expat.ExpatError as error:
            raise AskingFailedError(f"the domain's XML cannot be read: {error}") from None
        if not UUID.fullmatch(self.uuid):
            raise AskingFailedError("the domain's XML has no uuid")

    def _doctype(self, *_: Any) -> None:
        raise AskingFailedError("the domain's XML has a DOCTYPE, which libvirt never writes")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > DEPTH_MAX:
            raise AskingFailedError(f"the domain's XML is deeper than {DEPTH_MAX}")
        if len(self._path) == 1 and tag != "domain":
            raise AskingFailedError(f"the XML is of a {tag[:80]!r}, not of a domain")
        self._text = ""
        path = "/".join(self._path[1:])
        if path in ("devices/hostdev", "devices/interface"):
            self._device = dict(attributes)
        elif path.startswith("devices/disk/") and tag == "source":
            self._disk_pci = attributes.get("type") == "pci"
        elif tag == "address" and self._path[-2] == "source":
            if path.startswith("devices/disk/") and self._disk_pci:
                self._take({"type": "pci"}, attributes)
            elif self._path[1:-2] in (["devices", "hostdev"], ["devices", "interface"]):
                self._device["address"] = attributes
        elif path in ("devices/hostdev/source/vendor", "devices/hostdev/source/product"):
            self._device[tag] = attributes.get("id", "")

    def _characters(self, text: str) -> None:
        if self._path[1:] in (["uuid"], ["name"]) and len(self._text) < TEXT_CHARS_MAX:
            self._text += text

    def _end(self, tag: str) -> None:
        path = "/".join(self._path[1:])
        if path == "uuid":
            self.uuid = self._text.strip().lower()
        elif path == "name":
            self.name = self._text
        elif path == "devices/hostdev":
            if self._device.get("mode") == "subsystem":
                self._take(self._device, self._device.get("address"))
        elif path == "devices/interface" and self._device.get("type") == "hostdev":
            address = self._device.get("address")
            self._take({"type": (address or {}).get("type", "pci")}, address)
        self._path.pop()

    def _take(self, device: dict[str, Any], address: dict[str, str] | None) -> None:
        try:
            self.words.update(_words(device, address))
        except (KeyError, ValueError) as error:
            kind = device.get("type")
            raise AskingFailedError(f"the domain's XML has a {kind} device without {error}") from None
        if len(self.words) > DEVICES_MAX:
            raise AskingFailedError(f"the domain has more than {DEVICES_MAX} host devices")


def _words(device: dict[str, Any], address: dict[str, str] | None) -> Iterator[str]:
    """The word of one device, as pollers have it (docs/domains.md); none of what hands out no device of that kind."""
    kind = device.get("type", "")
    if kind == "pci":
        if address is None:
            raise KeyError("address")
        domain, bus, slot, function = (_whole(address, part) for part in ("domain", "bus", "slot", "function"))
        yield f"pci/{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    elif kind == "usb":
        bus = 0 if address is None else _whole(address, "bus")
        if address is not None and address.get("port"):
            yield "usb-port/{}-{}".format(bus, address["port"])
        elif address is not None and _whole(address, "device"):
            yield "usb-address/{}.{}".format(bus, _whole(address, "device"))
        else:
            vendor, product = (_whole(device, part) for part in ("vendor", "product"))
            yield f"usb-id/{vendor:04x}:{product:04x}"
    elif kind == "mdev":
        if address is None:
            raise KeyError("address")
        yield "mdev/{}".format(address["uuid"].lower())


def _whole(values: dict[str, Any], name: str) -> int:
    text = values[name] if name in ("vendor", "product") else values.get(name, "0")
    return int(text, 16 if text[:2].lower() == "0x" else 10)


def libvirt(settings: Settings, hook: str, arguments: Sequence[str]) -> None:
    """As libvirt calls it: the domain's name, an operation, and two words more; the XML is on standard input."""
    operation = arguments[1] if len(arguments) > 1 else ""
    if operation != "prepare" and not (operation == "release" and hook in ENDS_FOR_GOOD):
        return
    read = DomainXml()
    try:
        read.read(sys.stdin.buffer)
    except AskingFailedError as error:
        if operation == "release":
            note(syslog.LOG_WARNING, f"that {arguments[0]} has ended cannot be told: {error}")
            return
        raise
    domain = {"hypervisor": HYPERVISORS[hook], "uuid": read.uuid, "name": read.name or arguments[0]}
    if operation == "release":
        has_ended(settings, domain)
        return
    may_have(settings, "start", domain, sorted(read.words))


def hook_of(path: str) -> str:
    """Whose hook this is called as: by its own name, or that of the folder `qemu.d`; empty: nobody's."""
    name, folder = os.path.basename(path), os.path.basename(os.path.dirname(os.path.abspath(path)))
    hook = folder[:-2] if folder.endswith(".d") else name
    return hook if hook in HYPERVISORS else ""


def main() -> int:
    """0: it goes on; 1: libvirt shall not start the domain."""
    hook = hook_of(sys.argv[0])
    if not hook:
        print(f"leasehold: this is to be called as libvirt's hook {' or '.join(HYPERVISORS)}", file=sys.stderr)
        return 2
    settings = settings_of_this_host()
    return 0 if decided(settings, lambda: libvirt(settings, hook, sys.argv[1:])) else 1


if __name__ == "__main__":
    sys.exit(main())
