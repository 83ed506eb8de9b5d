"""Which domain has a card of xen-pciback, by what a real Xen 4.17 printed (`tests/data/xl`)."""

import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from leasehold.services.binder.steps import Hanging, Steps
from leasehold.services.binder.xen import UNKNOWN, domains_with
from leasehold.services.watcher.sysfs import HostRoot
from tests.poller.recordedxl import CARD, OTHER, Recorded

BACKENDS = "xenstore-ls -f /local/domain/0/backend/pci"
SERVED = "ls /sys/bus/xen-backend/devices"


class Played:
    """A dom0 at one time of a recording."""

    def __init__(self, folder: Path, recording: str) -> None:
        self.printed = Recorded(folder / "tools", recording).printed
        self.root = HostRoot(folder / "sys", folder / "proc", folder / "dev", folder / "run")
        self.asked: list[str] = []
        self.fails = False

    def has(self, card: str, time: int) -> tuple[str, ...]:
        """Who has the card then."""
        served = self.root.sys / "bus/xen-backend/devices"
        served.mkdir(parents=True, exist_ok=True)
        for each in served.iterdir():
            each.unlink()
        for name in self.printed[SERVED][time].split():
            (served / name).touch()

        def run(words: Sequence[str]) -> str:
            self.asked.append(" ".join(words))
            if self.fails:
                raise OSError(errno.ETIMEDOUT, "it took too long")
            return self.printed[self.asked[-1]][time]

        def nothing(*_words: str) -> None:
            raise AssertionError("it is only looked")

        steps = Steps(
            self.root, 60, write=nothing, run=run, reset_port=nothing, hanging=Hanging(), ends=threading.Event()
        )
        return domains_with(steps, card.removeprefix("pci/"))


def test_libxl_forgets_it(tmp_path: Path) -> None:
    """Its owner has it, also when libxl has erased that behind the refusal to another domain; then nobody."""
    played = Played(tmp_path, "xl-4.17-owner-key.txt")
    assert [played.has(CARD, time) for time in range(4)] == [(), ("xen: domain 1",), ("xen: domain 1",), ()]
    assert {played.has(OTHER, time) for time in range(4)} == {()}


def test_what_a_crashed_domain_left(tmp_path: Path) -> None:
    """What lies in xenstore of a destroyed domain holds the card no more; the next one that gets it has it alone."""
    played = Played(tmp_path, "xl-4.17-crashed-with-card.txt")
    left = [time for time, text in enumerate(played.printed[BACKENDS]) if "/pci/1/" in text]
    assert [played.has(CARD, time) for time in range(5)] == [("xen: domain 1",)] * 2 + [(), ("xen: domain 2",), ()]
    assert left == [0, 1, 2, 3, 4], "the recording has nothing that was left"


@pytest.mark.parametrize("served", [True, False])
def test_xenstore_does_not_answer(tmp_path: Path, served: bool) -> None:
    """Where dom0's kernel serves cards to domains and xenstore is silent, it is not known; else nobody has it."""
    played = Played(tmp_path, "xl-4.17-owner-key.txt")
    played.fails = True
    assert played.has(CARD, 1 if served else 0) == ((UNKNOWN,) if served else ())
    assert len(played.asked) == int(served)
