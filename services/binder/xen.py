"""xen-pciback: which domain has a function, and how its toolstack puts functions under the driver and takes them away.

Which domain has one stands in xenstore, where the backend lies, and nowhere in sysfs. xl's own note of that,
`/libxl/pci/ADDRESS/domid`, is no witness: the refused attach of a second domain erases it while the first still has the
function (seen with Xen 4.17).

Xen keeps what a domain has had in quarantine. A function that is taken from pciback by sysfs alone then has its host
driver, and no access to memory (seen with Xen 4.17: "context entry not present"). `xl pci-assignable-add` puts it under
pciback and into quarantine, or only there if it is under pciback, and `xl pci-assignable-remove` takes it out of both;
the latter fails for what is not in quarantine (`libxl__device_pci_assignable_remove` of Xen's
`tools/libs/light/libxl_pci.c`). What xl says of its success is not to be relied on: the driver link is.
"""

import errno
from typing import Final

from leasehold.services.binder.steps import Steps
from leasehold.services.poller import xltext
from leasehold.services.watcher.sysfs import list_names

UNKNOWN: Final = "xen: unknown, xenstore does not answer"
_BACKENDS: Final = "/local/domain/0/backend/pci"
_DOMAIN: Final = "xen: domain "


def domains_with(steps: Steps, address: str) -> tuple[str, ...]:
    """The domains that pciback has given a function to, as `xen: domain 5`.

    What a domain that crashed has left in xenstore holds nothing: it is closed, and the kernel serves it no more.
    """
    served = list_names(steps.root.sys_path("bus/xen-backend/devices"))
    if not any(name.startswith("pci-") for name in served):
        return ()
    said = steps.run(address, "xenstore-ls", "-f", _BACKENDS)
    if isinstance(said, OSError):
        return (UNKNOWN,)
    had = (each for each in xltext.read_backends(said) if f"pci/{address}" in each.devices)
    lives = (each for each in had if not each.is_closed or f"pci-{each.domid}-{each.number}" in served)
    return tuple(sorted({f"{_DOMAIN}{each.domid}" for each in lives}))


def take_from_domains(steps: Steps, address: str) -> None:
    """Have the toolstack take a function from the domains that have it, whether they agree or not. Look for what came
    of it.
    """
    for each in domains_with(steps, address):
        if each.startswith(_DOMAIN):
            _xl(steps, address, "pci-detach", "-f", each.removeprefix(_DOMAIN))


def make_assignable(steps: Steps, address: str) -> str:
    """Put a function under pciback by the toolstack; why it cannot be asked, or empty. Look for what came of it."""
    return _xl(steps, address, "pci-assignable-add")


def end_assignable(steps: Steps, address: str) -> str:
    """Take a function from pciback by the toolstack; why it cannot be asked, or empty. Look for what came of it."""
    # One that no domain has had is not in quarantine unless the toolstack put it there, and is refused.
    return _xl(steps, address, "pci-assignable-add") or _xl(steps, address, "pci-assignable-remove")


def _xl(steps: Steps, address: str, *words: str) -> str:
    said = steps.run(address, "xl", *words, address)
    if isinstance(said, OSError) and said.errno in (errno.ENOENT, errno.ETIMEDOUT, errno.EINTR):
        return said.strerror or str(said)
    return ""
