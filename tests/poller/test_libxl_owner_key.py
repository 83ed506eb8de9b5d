"""libxl forgets who owns a card when it refuses it to another domain; what we say of it does not follow that.

Recorded: a PV domain gets a network card, a second one is refused it, and the first is destroyed
(`tests/data/xl/xl-4.17-owner-key.txt`, made by hand in the guest of `make test-xen`; its scenario `owner-key` shows it
again).
"""

from pathlib import Path
from typing import Final

import pytest

from leasehold.events.identities import domain_key
from leasehold.events.inputs import DeviceUnused, DeviceUsed, DomainGone, DomainSeen
from tests.poller.conformance import Watch
from tests.poller.recordedxl import CARD, FIRST, OTHER, Recorded

_OWNER: Final = domain_key("xen", FIRST)
_OWNER_KEY: Final = '/libxl/pci/0000-01-00-0/domid = "1"'
OFFERED, OWNED, REFUSED, DESTROYED = range(4)
"""The times at which everything was asked."""


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """The tools, before anything was played."""
    return Recorded(tmp_path, "xl-4.17-owner-key.txt")


def test_what_libxl_forgets(recorded: Recorded) -> None:
    """The recording shows it: the owner's key is gone behind the refusal and the card is offered; its owner has it."""
    says = recorded.printed
    keys = [_OWNER_KEY in text for text in says["xenstore-ls -f /libxl/pci"][: DESTROYED + 1]]
    assert keys == [False, True, False, False]
    offered = ["0000:01:00.0" in text for text in says["xl pci-assignable-list"][: DESTROYED + 1]]
    assert offered == [True, False, True, True]
    had = ["0000:01:00.0" in text for text in says["xl pci-list gpu"]]
    assert had == [False, True, True, False]
    assert "is not assignable" in says["xl create /run/thief.cfg"][0]


async def test_its_owner_keeps_it(recorded: Recorded) -> None:
    """Behind the refusal nothing is told, and the card is held; it is not when its owner has gone."""
    source = recorded.xen.source()
    try:
        watch = Watch(source)
        await watch.settle()
        recorded.play(OWNED)
        await watch.until(DomainSeen, DeviceUsed(_OWNER, CARD, "attached"))
        for time, has in ((OWNED, True), (REFUSED, True), (DESTROYED, False)):
            recorded.play(time)
            held = (await source.look(frozenset({CARD, OTHER}))).held
            assert held == (frozenset({CARD}) if has else frozenset()), time
        recorded.play(REFUSED)
        await watch.look()
        assert not [word for word in watch.told if isinstance(word, DeviceUnused | DomainGone)], watch.told
        recorded.play(DESTROYED)
        await watch.until(DeviceUnused(_OWNER, CARD, "attached"), DomainGone(_OWNER))
    finally:
        await source.close()
