"""The guest with Xen: what QEMU is told, so that Xen boots under emulation and passes devices through.

Sources: what was tried. With interrupt remapping dom0 hangs; without an IOMMU nothing can be given to a domain; a PV
dom0 reaches virtio devices only with `iommu_platform`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.vm import guest
from tests.vm.guest import Guest
from tests.vm.image import Parts
from tests.xen import image

CARDS: Final = ("0000:01:00.0", "0000:02:00.0")
"""Network cards, each in a port of its own, to be given to domains."""
VIRTIO: Final = ",iommu_platform=on,disable-legacy=on"
_MEMORY_MB: Final = 2_304
_DOM0_MB: Final = 1_024
_XEN_WORDS: Final = (
    f"dom0_mem={_DOM0_MB}M,max:{_DOM0_MB}M dom0_max_vcpus=2 dom0=pv iommu=verbose,no-intremap,no-qinval loglvl=info "
    "com1=115200,8n1 console=com1 noreboot"
)


def machine(parts: Parts) -> list[str]:
    """The machine as QEMU is told it."""
    modules = f"{parts.kernel} console=hvc0 quiet loglevel=4 panic=-1,{parts.initrd}"
    words = ["-cpu", "max,xsave=off", "-m", str(_MEMORY_MB), "-kernel", str(image.hypervisor(parts))]
    words += ["-append", _XEN_WORDS, "-initrd", modules, "-device", "intel-iommu,intremap=off"]
    words += guest.ports(len(CARDS))
    for number in range(1, len(CARDS) + 1):
        words += ["-device", f"e1000e,bus=port{number},id=card{number},romfile="]
    return words


@asynccontextmanager
async def booted(parts: Parts, folder: Path) -> AsyncIterator[Guest]:
    """One that has booted, whose dom0 serves us; it is ended in the end."""
    async with guest.booted(parts, folder, machine(parts), VIRTIO) as found:
        yield found


def main() -> None:
    """Boot one, for a look: `python -m tests.xen.guest 'xl list'`."""
    parts = image.parts(print)
    guest.look(parts, machine(parts), VIRTIO)


if __name__ == "__main__":
    main()
