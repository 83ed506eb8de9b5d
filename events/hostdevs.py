"""Words for devices that are handed out: stub drivers, ways to reset, what a domain gets, and how truths may differ."""

from typing import Final

import msgspec

from leasehold.events.errors import InvalidInputError
from leasehold.events.identities import DeviceKey

STUBS: Final = ("vfio-pci", "pciback", "pci-stub")
"""Drivers that hold a PCI function for others, as the kernel calls them; xen-pciback's is `pciback`."""
_STUB_SPELLINGS: Final = {"vfio": "vfio-pci", "xen": "pciback", "xen-pciback": "pciback"}
"""As libvirt's `nodedev-detach --driver` has them, and as the module is called."""
RESETS: Final = ("flr", "af_flr", "pm", "bus", "device_specific", "stub", "usb")
"""Function level reset (PCIe, or by advanced features), a power cycle, the bus behind a bridge, one that the kernel
knows for this device, the stub driver's own at opening, or of a USB port."""
BUSES: Final = ("pci", "usb")
OPERATIONS: Final = ("detach", "reattach", "reset")
"""What an administrator may have done to a device that nobody has leased, in virsh's words."""

DRIFTS: Final = {
    "foreign": "a domain has it, and no lease",
    "misused": "a domain has it for which it is not leased",
    "attached_twice": "several domains have it",
    "lost": "it is leased, and not there",
    "replaced": "it is leased, and another thing sits in its place",
    "driver": "it was handed over, and is bound to another driver than then",
    "not_prepared": "it is leased, and has not been handed over",
    "kept": "its lease has ended, and a domain still has it",
}
"""How the ledger, the hypervisors and the host may differ about a device."""


def parse_stub(text: str) -> str:
    """Read the name of a stub driver, in libvirt's spelling too, and give it in the kernel's.

    Raises:
        InvalidInputError: it is none that we know.
    """
    name = _STUB_SPELLINGS.get(text, text)
    if name not in STUBS:
        raise InvalidInputError(
            f"{text[:40]!r} is no stub driver; those are vfio-pci, xen-pciback and pci-stub", field="driver"
        )
    return name


class Handover(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """How the devices of a lease are handed over, where that was said."""

    driver: str = ""
    """The stub, one of `STUBS`; empty: the one that the host's binder takes."""
    unmanaged: bool = False
    """They are bound to a stub already, by hand, and stay bound to it behind the lease's end."""


class Hold(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """What the log says to a host's binder of one of its devices that is leased, or still being given back, or whose
    floor it needs: as an answer to `sync`.
    """

    key: DeviceKey
    floor: int
    """Tokens below act no more."""
    lease: int = 0
    token: int = 0
    """Of the lease, while it lives; 0: it has ended."""
    granted_at_ns: int = 0
    holder: str = ""
    domain: str = ""
    """The uuid of the domain that it is for."""
    keep: bool = False
    """That domain is only named: the lease does not end with it."""
    handover: Handover | None = None
    prepared: bool = False
    """The log knows it as prepared for this lease."""
    given_back: bool = False
    quarantined: bool = False
    revoked: bool = False
    """The lease was taken away by force: its devices are taken even from a running domain."""
    forced: bool = False
    """It was granted with force: the host itself may need what it holds."""
    reserved: bool = False
    """It is to stand in for another lease, and opens nothing before it is switched; it is prepared all the same."""
    early: bool = False
    """It was granted before anybody handed over there: its holder took the devices himself, and they are left so."""
    mates: tuple[DeviceKey, ...] = ()
    """The other devices of the lease on this host: they are prepared together, or none of them."""
    attached: tuple[str, ...] = ()
    """The domains that have it, by their keys, as the hypervisors' agents told."""


class Truth(msgspec.Struct, frozen=True, gc=False):
    """What one witness says of a device."""

    says: str
    position: int
    """Since which event; 0: since none."""
