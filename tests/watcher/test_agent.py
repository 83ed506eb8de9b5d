"""The watcher's own part, without its wires: what it looks at, and what it makes of it."""

from unittest.mock import Mock

import pytest

from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import UnavailableError
from leasehold.events.identities import DeviceKey, HostName
from leasehold.events.inputs import DeviceGone, DeviceSeen
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Picture, Reporter
from leasehold.services.connection import Connection
from leasehold.services.speaking import InLog
from leasehold.services.watcher.agent import AGENT, WatcherAgent

HOST = HostName("h1")


async def test_only_the_first_look_goes_by_the_log() -> None:
    """After that a watcher knows itself what was there, and what is another thing."""
    key = DeviceKey("pci/0000:00:01.0")
    picture: Picture = {key: DeviceDescription(key=key, name="card", kind="pci")}
    given: list[Picture] = []

    def look(*, known: Picture) -> Picture:
        given.append(known)
        return picture

    agent = WatcherAgent(Mock(spec=Connection), Subjects("c"), HOST, look=look)
    reporter = Reporter(HOST, AGENT, 1)
    await agent.catch_up(reporter, InLog(picture, ()))
    await agent.news(reporter)
    await agent.catch_up(reporter, InLog(picture, ()))
    assert given == [picture, {}, {}]


async def test_a_look_that_fails_tells_nothing() -> None:
    """The next one tells all that happened meanwhile."""
    keys = [DeviceKey("pci/0000:00:01.0"), DeviceKey("pci/0000:00:02.0")]
    one, other = (DeviceDescription(key=key, name=key, kind="pci") for key in keys)
    looks = Mock(side_effect=[{one.key: one}, UnavailableError("no more files"), {other.key: other}])
    agent = WatcherAgent(Mock(spec=Connection), Subjects("c"), HOST, look=looks)
    reporter = Reporter(HOST, AGENT, 1)
    await agent.catch_up(reporter, InLog({}, ()))
    with pytest.raises(UnavailableError):
        await agent.news(reporter)
    (message,) = await agent.news(reporter)
    gone, seen = message.observations
    assert isinstance(gone, DeviceGone)
    assert isinstance(seen, DeviceSeen)
    assert (gone.key, seen.device) == (one.key, other)
