"""How a binder keeps up with the log: what it asks for, when, and what it then says."""

from pathlib import Path
from typing import Any

import pytest

from leasehold.events.answers import Heard
from leasehold.events.devices import DeviceDescription
from leasehold.events.errors import UnavailableError
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import PictureComplete, Stuck
from leasehold.events.subjects import Subjects
from leasehold.projections.handing import Handing
from leasehold.projections.handmemory import HandMemory
from leasehold.projections.handnotes import PREPARED, Note
from leasehold.projections.handover import Before, PreparedDevice
from leasehold.projections.reporting import Reporter
from leasehold.services.binder import agent as agents
from leasehold.services.binder.agent import REFRESH_MS, BinderAgent
from leasehold.services.speaking import InLog
from leasehold.services.watcher.sysfs import HostRoot
from tests.binder.course import HOST, NIC, describe

STICK = DeviceKey("usb/0000:04:00.0/2-2")
PORT = DeviceKey(f"{STICK}/interface/1.0")


def heard(**said: Any) -> Heard:
    """An answer to a heartbeat."""
    return Heard(run=1, counter=0, complete=True, wants_report=False, **said)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ms, to be set."""
    now = [1_000_000]
    monkeypatch.setattr(agents, "_now_ms", lambda: now[0])
    return now


@pytest.fixture
def binder(tmp_path: Path) -> BinderAgent:
    """One that speaks to nobody."""
    root = HostRoot(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev", tmp_path / "run")
    nobody: Any = None
    return BinderAgent(nobody, Subjects("c"), HOST, tmp_path / "binder.json", tmp_path / "d", root=root)


async def test_the_log_is_asked_now_and_then(binder: BinderAgent, clock: list[int]) -> None:
    """Where nothing is known to be missing, that makes no words; where the log wants a report, it gets a whole one."""
    reporter = Reporter(HOST, "binder", 1, manages=True)
    assert binder.misses(heard())
    in_log = InLog({NIC: describe(NIC)}, (), 256)
    (report,) = await binder.catch_up(reporter, in_log)
    assert isinstance(report.observations[-1], PictureComplete)
    clock[0] += REFRESH_MS - 1
    assert not binder.misses(heard())
    assert not binder.handing.is_cut_off(clock[0])
    clock[0] += 1
    assert binder.misses(heard())
    assert await binder.catch_up(reporter, in_log) == []
    assert not binder.misses(heard())
    assert len(await binder.catch_up(reporter, in_log)) == 1


async def test_what_was_missed(binder: BinderAgent, clock: list[int]) -> None:
    """An order that was not heard of, and a gap in what is told, are asked after at once."""
    reporter = Reporter(HOST, "binder", 1, manages=True)
    binder.misses(heard())
    await binder.catch_up(reporter, InLog({}, (), 256))
    assert binder.misses(heard(order=300))
    await binder.catch_up(reporter, InLog({}, (), 256))
    assert not binder.misses(heard())
    binder._speaker.gaps += 1
    assert binder.misses(heard())
    await binder.catch_up(reporter, InLog({}, (), 256))
    assert not binder.misses(heard())
    assert clock


async def test_what_nobody_may_have_is_told_before_all_else_is(binder: BinderAgent, clock: list[int]) -> None:
    """What is still handed over stands in the report before its end, so that nothing of it is granted meanwhile."""
    note = Note(key=NIC, floor=100, step=PREPARED, lease=100, granted_at_ns=5, token=100)
    binder._handing = Handing(HOST, [note])
    (report,) = await binder.catch_up(Reporter(HOST, "binder", 1), InLog({NIC: describe(NIC)}, (), 256))
    assert [type(word) for word in report.observations] == [Stuck, PictureComplete]
    assert clock


async def test_an_answer_that_cannot_be_used(binder: BinderAgent, clock: list[int]) -> None:
    """The speaker hears that, and asks again; nothing is done or told meanwhile."""
    binder._handing = Handing(HOST, [Note(key=NIC, floor=1_000)])
    with pytest.raises(UnavailableError):
        await binder.catch_up(Reporter(HOST, "binder", 1), InLog({}, (), 256))
    assert binder.misses(heard())
    assert clock


@pytest.mark.parametrize(("driver", "is_undone"), [("", False), ("usbfs", False), ("usb-storage", True)])
def test_a_stick_that_came_back_while_nobody_listened(driver: str, is_undone: bool) -> None:
    """Its interfaces are with their drivers again."""
    before = Before(key=STICK, kind="usb_device", sysname="1-2", interfaces={"1.0": "usb-storage"})
    note = Note(key=STICK, step=PREPARED, lease=1, before=before, prepared=PreparedDevice(key=STICK))
    stick = DeviceDescription(key=STICK, name="usb_1_2", kind="usb_device", driver="usb")
    port = DeviceDescription(key=PORT, name="usb_1_2_1_0", kind="usb_interface", driver=driver)
    assert HandMemory([note], "").undone({STICK: stick, PORT: port}) == [STICK] * is_undone
    handing = Handing(HOST, [note])
    hold = Hold(key=STICK, floor=1, lease=1, token=1, prepared=True)
    assert handing.synced([hold], {STICK: stick, PORT: port}, as_of=256, era=0, now_ms=1)
    assert len(handing.jobs(1)) == is_undone
