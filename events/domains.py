"""Domains: virtual machines, as a host's hypervisor tells of them, and the host devices that they claim or have.

A domain is `(host, hypervisor, uuid)`; one run of it, from its start to its end or reboot, is an incarnation, which Xen
and libvirt number anew each time (`domid`). A description is absolute, as that of a device is.

Devices are named as hypervisors name them, since not each of these names can be turned into a key where it is heard:

| word | what | source |
|---|---|---|
| `pci/0000:03:00.0` | a PCI function | all |
| `usb-port/1-1.4` | a USB device by the kernel's name of its port | xend's vusb |
| `usb-address/1.3` | a USB device by bus and number, new at each replug | libxl's hostbus and hostaddr, libvirt |
| `usb-id/0529:0001` | any USB device of this vendor and product | xend's and QEMU's `host:` |
| `mdev/<uuid>` | a mediated device | libvirt |
"""

import re
from typing import Final

import msgspec

from leasehold.events import identities
from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DomainKey

STATES: Final = (
    "running",
    "paused",
    "shutting_down",
    "crashed",
    "dying",
    "halted",
    "suspended",
    "unknown",
)
"""Whether a domain is on a CPU or waits at this moment is no state: both are `running`. `dying`: it is gone for its
users, and its devices may not be free yet. `halted` and `suspended` domains are known and have no incarnation."""
USES: Final = ("configured", "attached")
"""How a domain uses a device: its configuration claims it (which a halted one does too, whoever has the device), or the
hypervisor has given it the device."""

_USB_PORT: Final = re.compile(r"[1-9][0-9]{0,4}-[1-9][0-9]{0,2}(?:\.[1-9][0-9]{0,2}){0,6}")
_USB_ADDRESS: Final = re.compile(r"[1-9][0-9]{0,4}\.[1-9][0-9]{0,2}")
_USB_ID: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")


class DomainDescription(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One domain of a host, without its devices. Empty text, 0 and -1: not known, or none."""

    key: DomainKey
    name: str = ""
    """As its hypervisor has it; a dying one may have none (`xl` shows `(null)`)."""
    domid: int = -1
    """The number of its incarnation; -1: it has none. Domain-0 has 0."""
    state: str = "unknown"
    """One of `STATES`."""
    memory_bytes: int = 0
    """What it is to have now."""
    max_memory_bytes: int = 0
    """What it may grow to."""
    vcpus: int = 0
    kind: str = ""
    """How it is virtualised, in the hypervisor's word: `pv`, `hvm`, `pvh`, `kvm`, …"""


class Use(msgspec.Struct, frozen=True, gc=False, order=True):
    """That a domain uses a device. `device`: a word, see above; `use`: one of `USES`."""

    device: str
    use: str


class SeenDomain(msgspec.Struct, frozen=True, gc=False):
    """A domain with all that it uses, sorted."""

    domain: DomainDescription
    uses: tuple[Use, ...] = ()


DomainPicture = dict[DomainKey, SeenDomain]
"""All domains of a host, as one agent tells of them."""


def parse_device_word(text: str) -> str:
    """Read a hypervisor's name of a device (see above) and give it in its one spelling.

    Raises:
        InvalidInputError: it is none.
    """
    how, _, name = text.partition("/")
    name = name.lower()
    match how:
        case "pci":
            return identities.pci_key(identities.parse_pci_address(name))
        case "usb-port" if _USB_PORT.fullmatch(name):
            return f"usb-port/{name}"
        case "usb-address" if _USB_ADDRESS.fullmatch(name):
            return f"usb-address/{name}"
        case "usb-id" if _USB_ID.fullmatch(name):
            return f"usb-id/{name}"
        case "mdev":
            return f"mdev/{identities.parse_uuid(name)}"
    raise InvalidInputError(
        f"{text[:80]!r} does not name a device of a domain; such names are pci/0000:03:00.0, usb-port/1-1.4, "
        "usb-address/1.3, usb-id/0529:0001 or mdev/<uuid>",
        field="device",
    )
