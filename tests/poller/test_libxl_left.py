"""What a domain leaves behind in xenstore holds its card only as long as somebody may have it.

Recorded: a PV domain with a network card crashes and is preserved, is destroyed, and the next one gets the card
(`tests/data/xl/xl-4.17-crashed-with-card.txt`, made by hand in the guest of `make test-xen`).
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from leasehold.events.identities import domain_key
from leasehold.events.inputs import DeviceUnused, DeviceUsed, DomainGone, DomainSeen
from leasehold.services.poller.libxl import LibxlSource
from tests.poller.conformance import Watch
from tests.poller.fakexl import FakeXen
from tests.support.tree import ROOT

_RECORDING: Final = ROOT / "tests/data/xl/xl-4.17-crashed-with-card.txt"
_CARD: Final = "pci/0000:01:00.0"
_OTHER: Final = "pci/0000:02:00.0"
_GPU: Final = domain_key("xen", "5eed0000-0000-4000-8000-00000000000a")
_NEXT: Final = domain_key("xen", "5eed0000-0000-4000-8000-00000000000b")
_TOOLS: Final = {
    "xl list -v": "list-v",
    "xl pci-assignable-list": "assignable",
    "xenstore-ls -f /local/domain/0/backend/pci": "backends",
}
RUNNING, CRASHED, DESTROYED, NEXT, ENDED = range(5)
"""The times at which everything was asked."""


class _Recorded:
    """Tools that print what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.xen = FakeXen(folder, pci=(_CARD, _OTHER))
        parts = re.split(r"^\$ ", _RECORDING.read_text(), flags=re.MULTILINE)[1:]
        self._printed: dict[str, list[str]] = {}
        for command, _, printed in (part.partition("\n") for part in parts):
            self._printed.setdefault(command, []).append(printed.partition("[rc=")[0])

    def play(self, time: int) -> None:
        """Print what was printed then."""
        for command, name in _TOOLS.items():
            (self.xen.tools / name).write_text(self._printed[command][time])
        for each in self.xen.served.iterdir():
            each.unlink()
        for name in self._printed["ls /sys/bus/xen-backend/devices"][time].split():
            (self.xen.served / name).touch()

    def change(self, name: str, old: str, new: str) -> None:
        """Print something else."""
        text = (self.xen.tools / name).read_text()
        assert old in text
        (self.xen.tools / name).write_text(text.replace(old, new))


@pytest.fixture
def recorded(tmp_path: Path) -> _Recorded:
    """The tools, before anything was played."""
    return _Recorded(tmp_path)


@pytest.fixture
async def source(recorded: _Recorded) -> AsyncIterator[LibxlSource]:
    """A source that asks them."""
    source = recorded.xen.source()
    yield source
    await source.close()


async def test_a_crash_its_end_and_the_next_domain(recorded: _Recorded, source: LibxlSource) -> None:
    """The crashed domain has its card; destroyed, it goes; the next one has it, and goes, too."""
    watch = Watch(source)
    await watch.settle()
    recorded.play(RUNNING)
    await watch.until(DomainSeen, DeviceUsed(_GPU, _CARD, "attached"))
    recorded.play(CRASHED)
    await watch.look()
    (told,) = watch.told
    assert isinstance(told, DomainSeen) and told.domain.state == "crashed"
    watch.told.clear()
    recorded.play(DESTROYED)
    await watch.until(DeviceUnused(_GPU, _CARD, "attached"), DomainGone(_GPU))
    recorded.play(NEXT)
    await watch.until(DomainSeen, DeviceUsed(_NEXT, _CARD, "attached"))
    recorded.play(ENDED)
    await watch.until(DeviceUnused(_NEXT, _CARD, "attached"), DomainGone(_NEXT))


async def test_what_is_left_behind_is_not_held(recorded: _Recorded, source: LibxlSource) -> None:
    """Xen does not list the domain, its backend is closed and dom0's kernel does not serve it: the card is not held."""
    for time in (RUNNING, CRASHED, DESTROYED, NEXT, ENDED):
        recorded.play(time)
        held = frozenset() if time in (DESTROYED, ENDED) else frozenset({_CARD})
        assert (await source.look(frozenset({_CARD, _OTHER}))).held == held, time


async def test_each_sign_that_somebody_has_it_counts(recorded: _Recorded, source: LibxlSource) -> None:
    """One is enough: the domain is listed, its backend is not closed, the kernel serves that, libxl withholds it."""
    watched = frozenset({_CARD})
    recorded.play(DESTROYED)
    (recorded.xen.tools / "list-v").write_text(recorded._printed["xl list -v"][CRASHED].replace("---sc-", "--ps-d"))
    assert (await source.look(watched)).held == watched
    for state in "12345":
        recorded.play(DESTROYED)
        recorded.change("backends", '/state = "6"', f'/state = "{state}"')
        assert (await source.look(watched)).held == watched, state
    recorded.play(DESTROYED)
    recorded.change("backends", '/state = "6"', '/said = "6"')
    assert (await source.look(watched)).held == watched
    recorded.play(DESTROYED)
    (recorded.xen.served / "pci-1-0").touch()
    assert (await source.look(watched)).held == watched
    recorded.play(DESTROYED)
    recorded.change("assignable", "0000:01:00.0 \n", "")
    assert (await source.look(watched)).held == watched
