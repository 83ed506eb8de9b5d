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
import re
from typing import Final

from leasehold.services.binder.steps import Steps
from leasehold.services.watcher.sysfs import list_names

UNKNOWN: Final = "xen: unknown, xenstore does not answer"
_BACKENDS: Final = "/local/domain/0/backend/pci"
_DEVICE: Final = re.compile(rf'{_BACKENDS}/([0-9]+)/[0-9]+/dev-[0-9]+ = "([0-9a-f:.]+)"')


def domains_with(steps: Steps, address: str) -> tuple[str, ...]:
    """The domains that pciback has given a function to, as `xen: domain 5`."""
    backends = list_names(steps.root.sys_path("bus/xen-backend/devices"))
    if not any(name.startswith("pci-") for name in backends):
        return ()
    said = steps.run(address, "xenstore-ls", "-f", _BACKENDS)
    if isinstance(said, OSError):
        return (UNKNOWN,)
    found = (_DEVICE.match(line) for line in said.splitlines())
    return tuple(sorted({f"xen: domain {each[1]}" for each in found if each is not None and each[2] == address}))


def make_assignable(steps: Steps, address: str) -> str:
    """Put a function under pciback by the toolstack; why it cannot be asked, or empty. Look for what came of it."""
    return _xl(steps, "pci-assignable-add", address)


def end_assignable(steps: Steps, address: str) -> str:
    """Take a function from pciback by the toolstack; why it cannot be asked, or empty. Look for what came of it."""
    # One that no domain has had is not in quarantine unless the toolstack put it there, and is refused.
    return _xl(steps, "pci-assignable-add", address) or _xl(steps, "pci-assignable-remove", address)


def _xl(steps: Steps, verb: str, address: str) -> str:
    said = steps.run(address, "xl", verb, address)
    if isinstance(said, OSError) and said.errno in (errno.ENOENT, errno.ETIMEDOUT, errno.EINTR):
        return said.strerror or str(said)
    return ""
