"""From real guests under QEMU by libvirt's events into the ledger, while libvirtd is killed, stopped and started."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from leasehold.events import limits
from leasehold.projections import polling
from leasehold.services.client import Client
from leasehold.services.poller import libvirt
from leasehold.services.poller.agent import PollerAgent
from tests.bench.cluster import HOST, bus
from tests.libvirt.hypervisor import running_hypervisor
from tests.poller.libvirtstage import QemuStage

WAIT_S: Final = 30.0
POLL_S: Final = 0.05
STICK: Final = "usb-address/1.4"


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if await is_so():
                return
            await asyncio.sleep(POLL_S)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is believed sooner, and so is that nothing answers."""
    monkeypatch.setattr(libvirt, "KEEP_ALIVE_S", 1)
    monkeypatch.setattr(limits, "BLIND_MS", 1_500)
    monkeypatch.setattr(limits, "POLL_TIMEOUT_MS", 1_000)
    for name, value in (("MISSING_MS", 300), ("WARY_MS", 1_000), ("RETRY_MS_MAX", 300)):
        monkeypatch.setattr(polling, name, value)


@pytest.mark.usefixtures("hasty")
async def test_libvirtd_comes_and_goes_and_nothing_vanishes(tmp_path: Path) -> None:
    """A guest appears with its stick, is unseen twice, gets another incarnation, halts, and goes: that is told, and
    nothing else.
    """
    with running_hypervisor() as hypervisor:
        stage = QemuStage(hypervisor)
        async with (
            bus(tmp_path / "bus", sync_always=False) as found,
            found.process("allocator"),
            found.process("query"),
            found.process("feed"),
            found.connected("agent") as connection,
            Client(found.data, patience_s=WAIT_S) as client,
        ):
            agent = PollerAgent(connection, found.subjects, HOST, stage.source(), chance=lambda: 500)
            task = asyncio.ensure_future(agent.run())
            try:
                await _a_guests_life(stage, client)
            finally:
                task.cancel()
                await asyncio.wait({task})
            assert task.cancelled()
        await stage.close()


async def _a_guests_life(stage: QemuStage, client: Client) -> None:
    async def shows(state: str, *, stale: bool = False, above: int = -2) -> bool:
        rows = [row for row in await client.domains() if row.uuid == uuid]
        if not rows or rows[0].domid <= above:
            return False
        return (rows[0].state, rows[0].stale.startswith("poller: ")) == (state, stale)

    uuid = await stage.start("web1", devices=[STICK], managed=True)
    await until(lambda: shows("running"))
    first = (await client.domains())[0].domid
    await stage.lose()
    await until(lambda: shows("running", stale=True))
    await stage.find()
    await until(lambda: shows("running"))
    stage.hypervisor.signal("STOP")
    await until(lambda: shows("running", stale=True))
    stage.hypervisor.signal("CONT")
    await until(lambda: shows("running"))
    await stage.halt(uuid)
    stage.domain(uuid).create()
    await until(lambda: shows("running", above=first))
    await stage.halt(uuid)
    await until(lambda: shows("halted"))
    stage.domain(uuid).undefine()

    async def is_gone() -> bool:
        return not await client.domains()

    await until(is_gone)
    told = [row.type.partition(".")[0] async for row in client.history(uuid, kind="domain")]
    assert told[:4] == ["domain_appeared", "attachment_seen", "attachment_seen", "domain_started"], told
    assert told[-1] == "domain_vanished", told
    # Between its two incarnations it may have been seen as halted, and without its stick.
    assert set(told[4:-1]) <= {"domain_changed", "attachment_gone", "attachment_seen"}, told
