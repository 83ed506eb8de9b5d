"""What a domain leaves behind in xenstore holds its card only as long as somebody may have it.

Recorded: a PV domain with a network card crashes and is preserved, is destroyed, and the next one gets the card
(`tests/data/xl/xl-4.17-crashed-with-card.txt`, made by hand in the guest of `make test-xen`).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from leasehold.events.identities import domain_key
from leasehold.events.inputs import DeviceUnused, DeviceUsed, DomainGone, DomainSeen
from leasehold.services.poller.libxl import LibxlSource
from tests.poller.conformance import Watch
from tests.poller.recordedxl import CARD, FIRST, OTHER, SECOND, Recorded

_GPU: Final = domain_key("xen", FIRST)
_NEXT: Final = domain_key("xen", SECOND)
RUNNING, CRASHED, DESTROYED, NEXT, ENDED = range(5)
"""The times at which everything was asked."""


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """The tools, before anything was played."""
    return Recorded(tmp_path, "xl-4.17-crashed-with-card.txt")


@pytest.fixture
async def source(recorded: Recorded) -> AsyncIterator[LibxlSource]:
    """A source that asks them."""
    source = recorded.xen.source()
    yield source
    await source.close()


async def test_a_crash_its_end_and_the_next_domain(recorded: Recorded, source: LibxlSource) -> None:
    """The crashed domain has its card; destroyed, it goes; the next one has it, and goes, too."""
    watch = Watch(source)
    await watch.settle()
    recorded.play(RUNNING)
    await watch.until(DomainSeen, DeviceUsed(_GPU, CARD, "attached"))
    recorded.play(CRASHED)
    await watch.look()
    (told,) = watch.told
    assert isinstance(told, DomainSeen) and told.domain.state == "crashed"
    watch.told.clear()
    recorded.play(DESTROYED)
    await watch.until(DeviceUnused(_GPU, CARD, "attached"), DomainGone(_GPU))
    recorded.play(NEXT)
    await watch.until(DomainSeen, DeviceUsed(_NEXT, CARD, "attached"))
    recorded.play(ENDED)
    await watch.until(DeviceUnused(_NEXT, CARD, "attached"), DomainGone(_NEXT))


async def test_what_is_left_behind_is_not_held(recorded: Recorded, source: LibxlSource) -> None:
    """Xen does not list the domain, its backend is closed and dom0's kernel does not serve it: the card is not held."""
    for time in (RUNNING, CRASHED, DESTROYED, NEXT, ENDED):
        recorded.play(time)
        held = frozenset() if time in (DESTROYED, ENDED) else frozenset({CARD})
        assert (await source.look(frozenset({CARD, OTHER}))).held == held, time


async def test_each_sign_that_somebody_has_it_counts(recorded: Recorded, source: LibxlSource) -> None:
    """One is enough: the domain is listed, its backend is not closed, the kernel serves that, libxl withholds it."""
    watched = frozenset({CARD})
    recorded.play(DESTROYED)
    (recorded.xen.tools / "list-v").write_text(recorded.printed["xl list -v"][CRASHED].replace("---sc-", "--ps-d"))
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
