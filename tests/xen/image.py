"""What the guest with Xen is made of: the other guest's parts, the hypervisor, its tools, and what domains boot.

- `<cache>/xen-<hash>/`: `vmlinuz`, `initrd.gz` and `disk.ext4` of dom0, and `xen.elf`;
- in dom0 `/root/u/`: `vmlinuz` and `initrd.gz` of domains, which say one line and sleep.
"""

import gzip
import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.vm import image
from tests.vm.image import Made, Parts, Recipe
from tests.vm.packages import unpack

_HYPERVISOR: Final = "xen-hypervisor-4.17-amd64"
_HYPERVISOR_PIN: Final = "4.17.7+13-g2445b30a44-0+deb12u1"
_PACKAGES: Final = "xen-utils-4.17,xenstore-utils"
_SERVE: Final = "sh /mnt/repo/tests/xen/dom0.sh"
_DISK_MB: Final = 2_000
DOMAINS_FILES: Final = "root/u"

_FRONTEND: Final = "xen-pcifront"
"""Without it a domain never takes a device over, and neither does what its owner asks for end."""

_INIT: Final = """#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
echo "this domain is up"
while true; do sleep 3600; done
"""


def parts(say: Callable[[str], None]) -> Parts:
    """Everything that the guest is started from; built where it is not there yet. Raises CannotBuildError."""
    source = image.source() + inspect.getsource(sys.modules[__name__])
    return image.parts(say, Recipe("xen", source, _PACKAGES, _SERVE, _DISK_MB, _add_xen))


def hypervisor(found: Parts) -> Path:
    """The hypervisor, as QEMU starts it."""
    return found.disk.parent / "xen.elf"


def _add_xen(made: Made) -> None:
    unpack([made.archive.alone(_HYPERVISOR, _HYPERVISOR_PIN, made.work)], made.work / "hypervisor")
    (packed,) = (made.work / "hypervisor/boot").glob("xen-4.17-amd64.gz")
    (made.into / "xen.elf").write_bytes(gzip.decompress(packed.read_bytes()))
    files = made.root / DOMAINS_FILES
    files.mkdir(parents=True)
    shutil.copy(made.into / "vmlinuz", files / "vmlinuz")
    (modules,) = (made.root / "lib/modules").iterdir()
    (files / "initrd.gz").write_bytes(image.initrd(made.root, modules, _INIT, (_FRONTEND,)))
