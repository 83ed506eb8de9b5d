"""A played Xen below the kernel: its toolstack's way to pciback, and what it keeps in quarantine.

As seen with Xen 4.17: `xl pci-assignable-add` puts a function under pciback and into quarantine, also when it is under
pciback already; a domain that had one leaves it in quarantine; `xl pci-assignable-remove` takes it out of both, and is
refused for what is not in quarantine; both are refused while a domain has it. `xl pci-detach -f` takes it from that.
"""

import errno
from collections.abc import Sequence
from pathlib import Path

from tests.binder.pcibus import PciBus

BACKENDS = "/local/domain/0/backend/pci"


class Xen:
    """The hypervisor and its toolstack. Not for use by itself: see `kernel.Kernel.boot_xen`."""

    def __init__(self, sys: Path, pci: PciBus) -> None:
        """It runs now, with its toolstack."""
        self.sys = sys
        self.pci = pci
        self.quarantine: set[str] = set()
        """Functions that no driver of the host can use: it gets no access to memory."""
        self.assigned: dict[str, int] = {}
        """By address: the domain that has it."""
        (sys / "hypervisor").mkdir(parents=True)
        (sys / "hypervisor/type").write_text("xen\n")

    def give(self, address: str, domain: int) -> None:
        """pciback gives a function to a domain."""
        self.assigned[address] = domain
        (self.sys / f"bus/xen-backend/devices/pci-{domain}-0").mkdir(parents=True)

    def take(self, address: str) -> None:
        """The domain lets go of it."""
        domain = self.assigned.pop(address)
        self.quarantine.add(address)
        (self.sys / f"bus/xen-backend/devices/pci-{domain}-0").rmdir()

    def xenstore(self) -> str:
        """As `xenstore-ls -f` of the backends."""
        lines = []
        for number, (address, domain) in enumerate(sorted(self.assigned.items())):
            folder = f"{BACKENDS}/{domain}/0"
            lines += [f'{folder}/state = "4"', f'{folder}/dev-{number} = "{address}"']
        return "\n".join(lines)

    def xl(self, words: Sequence[str]) -> str:
        """As `xl`; its way to the driver is the kernel's."""
        verb, *_, address = words
        if verb == "pci-detach":
            self.take(address)
            return ""
        if address in self.assigned:
            raise OSError(errno.EIO, f"xl: failed to {'de-' if 'remove' in verb else ''}quarantine {address}")
        driver = self.pci.driver_of(address)
        if verb == "pci-assignable-add":
            if driver != "pciback":
                if driver:
                    self.pci.unbind(driver, address)
                if address not in self.pci.slots():
                    self.pci.write_driver("pciback", "new_slot", address)
                self.pci.write_driver("pciback", "bind", address)
            self.quarantine.add(address)
            return ""
        if address not in self.quarantine:
            raise OSError(errno.EIO, f"xl: failed to de-quarantine {address}")
        self.quarantine.discard(address)
        if driver == "pciback":
            self.pci.unbind(driver, address)
            self.pci.write_driver("pciback", "remove_slot", address)
        return ""
