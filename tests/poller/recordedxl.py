"""Xen's tools that print what was recorded on a real Xen (`tests/data/xl`), time after time."""

import re
from pathlib import Path
from typing import Final

from tests.poller.fakexl import FakeXen
from tests.support.tree import ROOT

CARD: Final = "pci/0000:01:00.0"
OTHER: Final = "pci/0000:02:00.0"
FIRST: Final = "5eed0000-0000-4000-8000-00000000000a"
SECOND: Final = "5eed0000-0000-4000-8000-00000000000b"
"""The domain that has the card, and the other one that gets it, or wants it."""
_RECORDINGS: Final = ROOT / "tests/data/xl"
_SERVED: Final = "ls /sys/bus/xen-backend/devices"
_TOOLS: Final = {
    "xl list -v": "list-v",
    "xl pci-assignable-list": "assignable",
    "xenstore-ls -f /local/domain/0/backend/pci": "backends",
}


class Recorded:
    """Tools that print what was recorded."""

    def __init__(self, folder: Path, recording: str) -> None:
        self.xen = FakeXen(folder, pci=(CARD, OTHER))
        parts = re.split(r"^\$ ", (_RECORDINGS / recording).read_text(), flags=re.MULTILINE)[1:]
        self.printed: dict[str, list[str]] = {}
        """By command: what it printed, each time."""
        for command, _, printed in (part.partition("\n") for part in parts):
            self.printed.setdefault(command, []).append(printed.partition("[rc=")[0])

    def play(self, time: int) -> None:
        """Print what was printed then."""
        for command, name in _TOOLS.items():
            (self.xen.tools / name).write_text(self.printed[command][time])
        for each in self.xen.served.iterdir():
            each.unlink()
        for name in self.printed[_SERVED][time].split():
            (self.xen.served / name).touch()

    def change(self, name: str, old: str, new: str) -> None:
        """Print something else."""
        text = (self.xen.tools / name).read_text()
        assert old in text
        (self.xen.tools / name).write_text(text.replace(old, new))
