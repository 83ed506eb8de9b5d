"""`python -m tests.xen [NAME …]`: boots a guest with a real Xen, plays all scenarios (or those named), says what was
shown. The poller, with libxl as its source, runs in dom0.

Exit code 0: all was shown; 1: something was not; 77: no guest can run here, and why.
"""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.vm import playing
from tests.vm.binding import BINDER, unmanaged
from tests.vm.figures import Figures
from tests.vm.image import Parts
from tests.vm.playing import Scenario
from tests.vm.stage import Stage
from tests.vm.watched import watched
from tests.xen import domains, handed, image
from tests.xen.guest import booted

SCENARIOS: Final[dict[str, Scenario]] = {
    "lives": domains.lives,
    "reboots": domains.reboots,
    "devices": domains.devices,
    "refused": domains.refused,
    "crashes": domains.crashes,
    "away": domains.away,
}
MANAGED: Final[dict[str, Scenario]] = {
    "handed": handed.handed_over,
    "owner-key": handed.owner_key,
}
"""With a binder, which goes on running from one to the next."""


async def _play(parts: Parts, names: list[str], figures: Figures) -> list[str]:
    return await playing.play_all(names, lambda: _staged(parts, figures), _shown)


@asynccontextmanager
async def _staged(parts: Parts, figures: Figures) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="leasehold-xen-") as made:
        folder = Path(made)
        async with booted(parts, folder) as guest, watched(guest, folder) as around:
            print(f"Xen and dom0 have booted in {guest.booted_s:.1f} s", flush=True)
            stage = Stage(guest, around, figures)
            await domains.prepare(stage)
            yield stage


async def _shown(stage: Stage, name: str) -> bool:
    async def recover() -> None:
        await domains.recover(stage)

    if name in MANAGED:
        return await playing.shown(name, MANAGED[name], stage, BINDER, recover)
    return await playing.shown(name, SCENARIOS[name], stage, domains.POLLER, recover, unmanaged)


if __name__ == "__main__":
    sys.exit(playing.main({**SCENARIOS, **MANAGED}, image.parts, _play))
