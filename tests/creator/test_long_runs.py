"""A creator that runs for long: its clock, what it remembers of orders, and whose things it takes back."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from leasehold.events import event_types, limits
from leasehold.events.capabilities import CreateMdev, DestroyMdev
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import CREATOR, OrderNotDone
from leasehold.events.subjects import Subjects
from leasehold.projections.reporting import Reporter
from leasehold.services.creator import mdevs, vports
from leasehold.services.creator.agent import CreatorAgent, LedgerClock, _Task
from leasehold.services.creator.attempt import Attempt, NotDone
from leasehold.services.creator.carrying import carry_out
from leasehold.services.creator.notes import Begun
from leasehold.services.speaking import InLog
from tests.creator.kernel import GPU, HBA, TYPE, Kernel
from tests.creator.test_late_listing import HOST, ORDER, UUID, listing, told

S = 10**9
DAY_S = 86_400
NODE, PORT = "5525400aaaaaaaa1", "5525400aaaaaaaa2"
GPU_KEY = DeviceKey("pci/0000:00:06.0")


def agent_of(folder: Path, kernel: Kernel) -> CreatorAgent:
    """One that is not connected to anything."""
    connection: Any = None
    return CreatorAgent(connection, Subjects("lab"), HOST, folder / "notes", root=kernel.root, write=kernel.write)


def test_its_clock_follows_a_log_whose_time_goes_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose quartz is quick by 100 parts in a million is not minutes ahead of the log after weeks: it would
    take all orders for over.
    """
    clock, now_ns = LedgerClock(), 0
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: now_ns)
    log_ns = 0
    for now_ns in range(0, 30 * DAY_S * S, 600 * S):
        log_ns = now_ns - now_ns // 10_000
        clock.heard(log_ns)
    assert 0 <= clock.now_ns() - log_ns < S


def test_its_clock_keeps_to_what_came_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that lags for a moment does not set it back."""
    clock, now_ns = LedgerClock(), 0
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: now_ns)
    clock.heard(1_000 * S)
    now_ns = 30 * S
    clock.heard(1_002 * S)
    assert clock.now_ns() == 1_030 * S


def test_its_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that waited for its turn when the machine fell asleep is over when it wakes up an hour later."""
    clock = LedgerClock()
    clock.heard(1_000 * S)
    before_ns, read = clock.now_ns(), time.clock_gettime_ns
    monkeypatch.setattr(
        time, "clock_gettime_ns", lambda clock: read(clock) + (3_600 * S if clock == time.CLOCK_BOOTTIME else 0)
    )
    assert clock.now_ns() - before_ns >= 3_600 * S


async def test_many_results_that_nobody_took(tmp_path: Path, kernel: Kernel) -> None:
    """More results than are kept, the newest of the oldest order: what is kept of them can be told."""
    agent = agent_of(tmp_path, kernel)
    agent._notes.open()
    reporter = Reporter(HOST, CREATOR, 1)
    reporter.starts()
    await agent.catch_up(reporter, InLog({}, ()))
    for order in range(1, limits.ORDERS_KEPT_PER_HOST_MAX + 1):
        agent._results[Begun(ORDER + order, 1)] = OrderNotDone(ORDER + order, "no")
    (waiting,) = listing().orders
    agent._take(_Task(Begun(ORDER, waiting.ordered_at_ns), waiting.what, waiting.deadline_ns))
    await asyncio.gather(*agent._working.values())
    await agent.news(reporter)
    assert len(agent._results) == limits.ORDERS_KEPT_PER_HOST_MAX
    agent._notes.close()


async def test_a_number_that_a_restored_ledger_gives_again(tmp_path: Path, kernel: Kernel) -> None:
    """An order is done though one of that number was heard to be over, before the ledger was restored unheard."""
    agent = agent_of(tmp_path, kernel)
    agent._notes.open()
    reporter = Reporter(HOST, CREATOR, 1)
    reporter.starts()
    await agent.catch_up(reporter, InLog({}, ()))
    agent.hear(told(ORDER + 256, event_types.OrderCarriedOut(host=HOST, order=ORDER)))
    await agent.catch_up(reporter, listing(age_ns=0))
    await asyncio.gather(*agent._working.values())
    assert kernel.told == [f"create {UUID}"]
    agent._notes.close()


@pytest.mark.parametrize("is_ours", [True, False])
def test_what_somebody_else_began_is_not_taken_back(kernel: Kernel, is_ours: bool) -> None:
    """A port, or a device, that was there before the order and does not come to life in its time is left where it is;
    what an earlier run of the creator had begun for this order is taken back.
    """
    kernel.hosts_come.clear()
    kernel.write(kernel.path(f"{HBA}/fc_host/host5/vport_create"), f"{PORT}:{NODE}")
    kernel.write(kernel.path(f"{GPU}/mdev_supported_types/{TYPE}/create"), UUID)
    deadline_s = time.monotonic() + 0.2

    def attempt() -> Attempt:
        return Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=kernel.write, is_begun=is_ours)

    found = (
        vports.create(attempt(), kernel.path(HBA), NODE, PORT),
        mdevs.create(attempt(), kernel.path(GPU), TYPE, UUID),
    )
    assert all(isinstance(each, NotDone) for each in found), found
    assert len(kernel.told) == (4 if is_ours else 2)


@pytest.mark.parametrize("uuid", [f"../0000:00:06.0/{UUID}", ".", UUID.upper()])
def test_a_uuid_that_leads_elsewhere(kernel: Kernel, uuid: str) -> None:
    """Whatever a watcher said the UUID of a mediated device is: only a UUID becomes a part of a path."""
    kernel.write(kernel.path(f"{GPU}/mdev_supported_types/{TYPE}/create"), UUID)
    kernel.told.clear()
    for order in (
        DestroyMdev(device=DeviceKey(f"{GPU_KEY}/mdev/{UUID}"), parent=GPU_KEY, uuid=uuid),
        CreateMdev(parent=GPU_KEY, mdev_type=TYPE, uuid=uuid),
    ):
        result = carry_out(Attempt(kernel.root, lambda: 60.0, write=kernel.write), ORDER, order)
        assert isinstance(result, OrderNotDone)
        assert "UUID" in result.reason
    assert kernel.told == []
