"""`python -m tests.vm [NAME …]`: boots a guest, plays all scenarios (or those named), and says what was shown.

Exit code 0: all was shown; 1: something was not; 77: no guest can run here, and why.
"""

import asyncio
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from tests.vm import described, functions, hotplug, identity, image, losses, networks
from tests.vm.figures import Figures
from tests.vm.guest import booted
from tests.vm.packages import CannotBuildError
from tests.vm.stage import Stage
from tests.vm.watched import watched

EXIT_NOT_RUN: Final = 77
"""As automake has it for tests that cannot run."""
SCENARIO_S: Final = 300.0

Scenario = Callable[[Stage], Awaitable[None]]
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


async def _play(parts: image.Parts, names: list[str], figures: Figures) -> list[str]:
    """Play scenarios; the names of those that have not shown what they claim."""
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
            return [name for name in names if not await _shown(name, stage)]


async def _shown(name: str, stage: Stage) -> bool:
    claim = (SCENARIOS[name].__doc__ or "").splitlines()[0]
    print(f"{name}: {claim}", flush=True)
    stage.scenario = name
    begun = time.monotonic()
    try:
        await stage.guest.set_clock()
        async with asyncio.timeout(SCENARIO_S):
            await SCENARIOS[name](stage)
    except Exception:  # the others are still worth seeing
        traceback.print_exc()
        print(f"    NOT SHOWN, after {time.monotonic() - begun:.1f} s; the watcher's last words:", flush=True)
        print((await stage.watched.log("watcher"))[-1_500:], flush=True)
        await stage.watched.recover()
        return False
    print(f"    shown in {time.monotonic() - begun:.1f} s", flush=True)
    return True


def main() -> int:
    """Exit code 0: all was shown; 1: something was not; 77: no guest can run here."""
    names = sys.argv[1:] or list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
        return 2
    reason = image.cannot_run()
    try:
        parts = None if reason else image.parts(print)
    except CannotBuildError as error:
        reason, parts = f"its parts cannot be had: {error}", None
    if parts is None:
        print(f"NOT RUN: no guest can run here: {reason}")
        return EXIT_NOT_RUN
    begun = time.monotonic()
    figures = Figures()
    # Told to end, we take everything down, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = asyncio.run(_play(parts, names, figures))
    print("\n".join(("", "what was shown", *(f"  {name}: {sentence}" for name, sentence in figures.shown))))
    print("\n".join(("", "from the kernel's event into the ledger, by who told the watcher", *figures.table())))
    print(f"\n{len(names) - len(failed)} of {len(names)} scenarios shown in {time.monotonic() - begun:.0f} s")
    if failed:
        print(f"NOT SHOWN: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
