"""The door, asked by tokens and domains of leases that have gone on to another, or are only reserved."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from leasehold.events.schedule_events import LeaseSwitched
from tests.binder.course import NIC, REF
from tests.binder.test_door import START, WAIT_S, Played
from tests.binder.test_handed_on import given, granted, reserved


@pytest.fixture
def played() -> Iterator[Played]:
    """A door that is not open yet."""
    with tempfile.TemporaryDirectory(prefix="lh") as folder:
        yield Played(Path(folder) / "door" / "d")


async def test_a_token_that_was_given_on(played: Played) -> None:
    """The token before a transfer is refused at the socket as soon as it is heard of, and behind a restart of the
    binder that hears nothing; the new one is let in.
    """
    course = played.course
    async with played.opened():
        lease = course.grant(NIC)
        course.settle()
        assert (await played.asks(op="check", device=NIC, token=lease))["ok"]
        token = given(course, lease)
        assert (await played.asks(op="check", device=NIC, token=lease))["code"] == "token_stale"
        said = await played.asks(op="check", device=NIC, token=token)
        assert (said["ok"], said["holder"], said["leases"]) == (True, "web2", [f"L{lease}"])
    course.jobs()
    course.dies()
    again = Played(played.path)
    again.course = course
    async with again.opened():
        assert (await again.asks(op="check", device=NIC, token=lease))["code"] == "token_stale"
        assert (await again.asks(op="check", device=NIC, token=token))["code"] == "cut_off"


async def test_a_token_that_is_only_reserved(played: Played) -> None:
    """It opens nothing before the switch, and says what would help; its domain does not start with the device."""
    async with played.opened():
        lease = reserved(played.course, NIC)
        played.course.settle()
        said = await played.asks(op="check", device=NIC, token=lease)
        assert (said["ok"], said["code"]) == (False, "lease_reserved")
        assert f"leasehold switch L{lease}" in said["help"]
    async with played.opened(timeout_s=0.2):
        said = await played.asks(**START, devices=[NIC])
        assert (said["ok"], said["code"]) == (False, "lease_reserved")


async def test_a_start_right_behind_a_switch(played: Played) -> None:
    """A switch of a moment ago, which is not heard of here yet, is waited for."""
    course = played.course
    async with played.opened():
        lease = reserved(course, NIC)
        course.settle()
        asked = asyncio.create_task(played.asks(**START, devices=[NIC]))
        assert (await played.asks(op="status"))["ok"]
        assert not asked.done()
        course.happens(LeaseSwitched(request=REF, lease=lease, source=512))
        async with played.changed:
            played.changed.notify_all()
        said = await asyncio.wait_for(asked, WAIT_S)
        assert (said["ok"], said["leases"]) == (True, [f"L{lease}"])


@pytest.mark.parametrize("mode", ["shared", "admin"])
async def test_a_token_of_who_has_it_not_alone(played: Played, mode: str) -> None:
    """It opens nothing."""
    async with played.opened():
        lease = granted(played.course, NIC, mode=mode)
        assert (await played.asks(op="check", device=NIC, token=lease))["code"] == "token_stale"
