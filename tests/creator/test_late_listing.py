"""What the creator makes of an answer to `sync` that is older than what it has heard."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from leasehold.events import codec, event_types
from leasehold.events.capabilities import CreateMdev
from leasehold.events.cloudevents import Attributes, header_lines
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceKey, HostName, Principal, RequestId, RequestRef
from leasehold.events.inputs import CREATOR
from leasehold.events.subjects import Subjects
from leasehold.events.views import OrderView
from leasehold.projections.reporting import Reporter
from leasehold.services.creator.agent import CreatorAgent
from leasehold.services.feedevents import FeedEvent
from leasehold.services.speaking import InLog
from tests.creator.kernel import TYPE, Kernel

HOST = HostName("h1")
UUID = "01234567-89ab-4def-8123-456789abcdef"
ORDER = 512


def told(position: int, event: Event) -> FeedEvent:
    """An event as the feed tells it."""
    body = codec.encode(event)
    said = Attributes(
        cluster="lab", ledger_id="0123456789abcdef", era=0, position=position, part=0, parts=1, previous=0,
        tag=str(event.__struct_config__.tag), at_ns=time.time_ns(),
    )  # fmt: skip
    return FeedEvent(position, b"", body, f"NATS/1.0\r\n{header_lines(said)}\r\n".encode())


def listing(age_ns: int = 10**9) -> InLog:
    """The log before it had the outcome: the order waits."""
    order = CreateMdev(parent=DeviceKey("pci/0000:00:06.0"), mdev_type=TYPE, uuid=UUID)
    now_ns = time.time_ns() - age_ns
    view = OrderView(
        order=ORDER, host=HOST, agent=CREATOR, what=order, state="waiting", asked_by="a", request_id="r",
        ordered_at_ns=now_ns, deadline_ns=now_ns + 60 * 10**9,
    )  # fmt: skip
    return InLog({}, (view,))


@pytest.mark.parametrize("is_over", [True, False])
async def test_what_is_over_is_not_done_again(tmp_path: Path, kernel: Kernel, is_over: bool) -> None:
    """An order that was heard to be over is left alone, though the listing that arrives then has it as waiting: what it
    made may have been taken away since. One that was not is done.
    """
    connection: Any = None
    agent = CreatorAgent(connection, Subjects("lab"), HOST, tmp_path / "notes", root=kernel.root, write=kernel.write)
    agent._notes.open()
    reporter = Reporter(HOST, CREATOR, 1)
    reporter.starts()
    await agent.catch_up(reporter, InLog({}, ()))
    if is_over:
        agent.hear(told(1_024, event_types.OrderCarriedOut(host=HOST, order=ORDER)))
    await agent.catch_up(reporter, listing())
    await asyncio.gather(*agent._working.values())
    assert kernel.told == ([] if is_over else [f"create {UUID}"])
    agent._notes.close()


@pytest.mark.parametrize("is_late", [True, False])
async def test_what_is_told_late_is_not_done_again(tmp_path: Path, kernel: Kernel, is_late: bool) -> None:
    """A feed that lags, or is told anew from its beginning, tells of orders that were over when the log was asked: they
    are left alone. One that is told after the log was asked is done.
    """
    connection: Any = None
    agent = CreatorAgent(connection, Subjects("lab"), HOST, tmp_path / "notes", root=kernel.root, write=kernel.write)
    agent._notes.open()
    reporter = Reporter(HOST, CREATOR, 1)
    reporter.starts()
    (waiting,) = listing().orders
    ref = RequestRef(principal=Principal("a"), request_id=RequestId("r"), body_hash="0" * 32, issued_at_ns=1)
    ordered = event_types.HostOrdered(
        request=ref, host=HOST, agent=CREATOR, order=waiting.what, deadline_ns=waiting.deadline_ns
    )
    agent.hear(told(ORDER, ordered))
    await agent.catch_up(reporter, InLog({}, (), ORDER + 256 if is_late else ORDER - 1))
    agent.hear(told(ORDER, ordered))
    await asyncio.gather(*agent._working.values())
    assert kernel.told == ([] if is_late else [f"create {UUID}"])
    agent._notes.close()
