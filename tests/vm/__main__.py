"""`python -m tests.vm [NAME …]`: boots a guest, plays all scenarios (or those named), and says what was shown.

Exit code 0: all was shown; 1: something was not; 77: no guest can run here, and why.
"""

import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.vm import described, functions, handed, hotplug, identity, image, losses, networks, playing
from tests.vm.binding import unmanaged
from tests.vm.figures import Figures
from tests.vm.guest import booted
from tests.vm.playing import Scenario
from tests.vm.stage import Stage
from tests.vm.watched import watched

SCENARIOS: Final[dict[str, Scenario]] = {
    "pci": hotplug.pci,
    "usb": hotplug.usb,
    "described": described.described,
    "twins": identity.twins,
    "another": identity.another_in_the_same_port,
    "virtual-functions": functions.virtual_functions,
    "drivers": functions.drivers,
    "vports": functions.vports,
    "networks": networks.networks,
    "links": networks.links,
    "usbfs": identity.claimed_through_usbfs,
    "restart": losses.restart,
    "kernel": losses.kernel_as_source,
    "overflow": losses.overflow,
}
MANAGED: Final[dict[str, Scenario]] = {
    "handed": handed.handed_over,
    "operated": handed.operated,
    "functions": handed.ordered_functions,
    "stick": handed.stick,
    "killed": handed.killed,
    "drift": handed.drift,
}
"""With a binder, which goes on running from one to the next."""


async def _play(parts: image.Parts, names: list[str], figures: Figures) -> list[str]:
    return await playing.play_all(names, lambda: _staged(parts, figures), _shown)


@asynccontextmanager
async def _staged(parts: image.Parts, figures: Figures) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="leasehold-vm-") as made:
        folder = Path(made)
        async with booted(parts, folder) as guest, watched(guest, folder) as around:
            known_ms = guest.clock_error_ns / 1e6
            print(f"the guest has booted in {guest.booted_s:.1f} s; its clock is known to {known_ms:.1f} ms")
            begun = time.monotonic()
            stage = Stage(guest, around, figures)
            await hotplug.prepare(stage)
            await around.start_watcher()
            print(f"its watcher has reported after {time.monotonic() - begun:.1f} s", flush=True)
            yield stage


async def _shown(stage: Stage, name: str) -> bool:
    if name in MANAGED:
        return await playing.shown(name, MANAGED[name], stage, "binder", stage.watched.recover)
    return await playing.shown(name, SCENARIOS[name], stage, "watcher", stage.watched.recover, unmanaged)


def _told(figures: Figures) -> list[str]:
    return ["", "from the kernel's event into the ledger, by who told the watcher", *figures.table()]


if __name__ == "__main__":
    sys.exit(playing.main({**SCENARIOS, **MANAGED}, image.parts, _play, _told))
