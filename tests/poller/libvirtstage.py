"""What the suite of sources makes happen on a libvirt: its own test driver, or real guests under QEMU."""

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET

from leasehold.services.poller.libvirt import LibvirtSource
from tests.libvirt.hypervisor import Hypervisor
from tests.support.not_run import not_run

try:
    libvirt: Any = importlib.import_module("libvirt")
except ImportError:
    not_run("libvirt-python is not installed: pip install '.[libvirt]', with libvirt-dev and gcc")

_SLOWLY: Final = "libvirt has no word for a domain that dies slowly"
_RENAME: Final = "libvirt renames only what is halted"


def hostdev(word: str) -> str:
    """The XML of a host device."""
    kind, _, name = word.partition("/")
    if kind == "pci":
        domain, bus, rest = name.split(":")
        slot, function = rest.split(".")
        source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
    elif kind == "usb-address":
        bus, number = name.split(".")
        source = f"<address bus='{bus}' device='{number}'/>"
    else:
        vendor, product = name.split(":")
        source = f"<vendor id='0x{vendor}'/><product id='0x{product}'/>"
    return f"<hostdev mode='subsystem' type='{kind[:3]}' managed='yes'><source>{source}</source></hostdev>"


class LibvirtStage:
    """Domains of a libvirt, through a connection of its own that may do everything."""

    usb: Sequence[str] = ("usb-address/1.4",)

    def __init__(self, uri: str, uri_to_read: str, kind: str, emulator: str) -> None:
        self.uri = uri
        self.connection: Any = libvirt.open(uri)
        self.pci: Sequence[str] = ()
        self.cannot: Mapping[str, str] = {}
        self._uri_to_read = uri_to_read
        self._kind = kind
        self._emulator = f"<emulator>{emulator}</emulator>" if emulator else ""
        self._clean()

    def source(self) -> LibvirtSource:
        return LibvirtSource(self._uri_to_read)

    def xml(self, name: str, devices: Sequence[str] = (), more: str = "") -> str:
        """Of a domain."""
        return f"""<domain type='{self._kind}'><name>{name}</name>{more}
            <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os>
            <devices>{self._emulator}<controller type='usb' model='qemu-xhci' ports='8'/>
            {"".join(map(hostdev, devices))}</devices></domain>"""

    def domain(self, uuid: str) -> Any:
        """As libvirt-python has it."""
        return self.connection.lookupByUUIDString(uuid)

    async def start(self, name: str, *, devices: Sequence[str] = (), managed: bool = False) -> str:
        if not managed:
            return str(self.connection.createXML(self.xml(name, devices)).UUIDString())
        uuid = await self.define(name, devices=devices)
        self.domain(uuid).create()
        return uuid

    async def define(self, name: str, *, devices: Sequence[str] = ()) -> str:
        return str(self.connection.defineXML(self.xml(name, devices)).UUIDString())

    async def reboot(self, uuid: str) -> None:
        domain = self.domain(uuid)
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        domain.destroy()
        self.connection.createXML(xml)

    async def halt(self, uuid: str) -> None:
        self.domain(uuid).destroy()

    async def destroy(self, uuid: str) -> None:
        self.domain(uuid).destroy()

    async def destroy_slowly(self, uuid: str) -> None:
        raise NotImplementedError(uuid)

    async def let_go(self, uuid: str) -> None:
        raise NotImplementedError(uuid)

    async def rename(self, uuid: str, name: str) -> None:
        self.domain(uuid).rename(name)

    async def pause(self, uuid: str) -> None:
        self.domain(uuid).suspend()

    async def unpause(self, uuid: str) -> None:
        self.domain(uuid).resume()

    async def crash(self, uuid: str) -> None:
        raise NotImplementedError(uuid)

    async def set_memory(self, uuid: str, memory_bytes: int) -> None:
        self.domain(uuid).setMemory(memory_bytes >> 10)

    async def attach(self, uuid: str, device: str) -> None:
        raise NotImplementedError(uuid, device)

    async def detach(self, uuid: str, device: str) -> None:
        self.domain(uuid).detachDeviceFlags(hostdev(device), libvirt.VIR_DOMAIN_AFFECT_LIVE)

    async def lose(self) -> None:
        raise NotImplementedError

    async def find(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self._clean()
        self.connection.close()

    def _clean(self) -> None:
        for domain in self.connection.listAllDomains(0):
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            with contextlib.suppress(libvirt.libvirtError):
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


class TestDriverStage(LibvirtStage):
    """libvirt's test driver, which lives in our process: it does not look at the devices that it is given."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__("test:///default", "test:///default", "test", "")
        self.pci = ("pci/0000:01:00.0", "pci/0000:02:00.0")
        self.cannot = {
            "attach": "libvirt's test driver plugs nothing in",
            "crash": "what crashes in libvirt's test driver is halted",
            "destroy_slowly": _SLOWLY,
            "lose": "libvirt's test driver lives in the source's process",
            "rename": _RENAME,
            "set_memory": "libvirt's test driver does not tell of it",
        }


class QemuStage(LibvirtStage):
    """Real guests."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        super().__init__(hypervisor.uri, hypervisor.uri_to_read, "qemu", str(hypervisor.emulator))
        self.hypervisor = hypervisor
        self.cannot = {
            "attach": "what is imitated cannot be plugged into a real guest",
            "crash": "a guest would have to do it",
            "destroy_slowly": _SLOWLY,
            "rename": _RENAME,
            "set_memory": "a guest would have to give it back",
        }

    async def lose(self) -> None:
        self.hypervisor.signal("KILL")

    async def find(self) -> None:
        self.hypervisor.start()
        self.connection = libvirt.open(self.uri)


def with_xml(change: Callable[[str], str]) -> Callable[..., str]:
    """In place of libvirt-python's `virDomain.XMLDesc`: what it gives, changed."""
    real = libvirt.virDomain.XMLDesc

    def changed(domain: Any, flags: int = 0) -> str:
        return change(real(domain, flags))

    return changed


def name_in(xml: str) -> str:
    """Of the domain whose XML this is."""
    return ET.fromstring(xml).findtext("name", "")
