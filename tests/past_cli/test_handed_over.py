"""The commands for host devices where a real binder hands them over: real processes, a played kernel."""

import asyncio
import errno
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from leasehold.services.poller.agent import PollerAgent
from tests.binder.kernel import NIC, STICK, Kernel, pci, usb
from tests.binder.stage import HOST, WAIT_S, Stage, staged, until
from tests.creator.stage import running
from tests.support.hypervisor import PaperHypervisor
from tests.support.running import Done, leasehold

WEB = "c0ffee00-0000-4000-8000-000000000001"
CARD, KEY = pci(NIC), usb(STICK)


class Shell:
    """The command line beside all of it."""

    def __init__(self, stage: Stage, kernel: Kernel) -> None:
        self.stage = stage
        self.kernel = kernel

    async def run(self, *arguments: str) -> Done:
        """To its end."""
        return await asyncio.to_thread(leasehold, self.stage.bus.data, *arguments)

    async def out(self, *arguments: str) -> str:
        """What one shows that ends well."""
        done = await self.run(*arguments)
        assert done.code == 0, done.err
        return done.out

    async def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """As `out`, with `--json`."""
        return [json.loads(line) for line in (await self.out(*arguments, "--json")).splitlines()]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """A managed host, and a domain that claims a card and a stick."""
    kernel = Kernel(tmp_path / "machine")
    hypervisor = PaperHypervisor()
    hypervisor.put(WEB, name="web1", domid=-1, state="halted", configured=(CARD, "usb-id/0781:5581"))
    with tempfile.TemporaryDirectory(prefix="lh") as short:
        async with staged(Path(short), kernel) as stage, stage.binder(), stage.bus.connected("agent") as connection:
            poller = PollerAgent(connection, stage.bus.subjects, HOST, hypervisor)
            async with running(poller.run()):
                await asyncio.wait_for(poller.reported.wait(), WAIT_S)
                await until(stage.is_managed)
                yield Shell(stage, kernel)
    kernel.close()


async def test_the_devices_of_a_domain_come_and_go(shell: Shell) -> None:
    """`prepare` ends when they are handed over; the lists name the user and both drivers; who else asks is told by whom
    they are in use; `reattach` of PCI alone takes the card back, and leaves the stick.
    """
    await shell.out("prepare", "web1", "--for", "vm:web1", "--usb")
    done = await shell.out("prepare", "web1", "--for", "vm:web1", "--pci")
    assert shell.kernel.driver(NIC) == "vfio-pci"
    assert "living, prepared" in done and f"{HOST}/{CARD} for vm:web1" in done
    header, card, stick = (await shell.out("hostdevs", "--active")).splitlines()
    for line, driver in ((card, "vfio-pci (was e1000e)"), (stick, "usb (was usb-storage)")):
        assert line.rstrip().endswith(driver) and line[header.index("used by") :].startswith("xen web1  prepared")
    shown = await shell.out("device", CARD)
    assert "prepared, bound to vfio-pci, was e1000e, reset by a function level reset, since " in shown
    refused = await shell.run("nodedev", "detach", CARD)
    assert refused.code == 3
    assert f"{HOST}/{CARD} is in use by lease L" in refused.err and "driver xen, domain web1" in refused.err
    assert (await shell.out("reattach", "web1", "--pci")).endswith("(ending, taking back)\n")
    await until(lambda: shell.stage.is_free(CARD))
    assert shell.kernel.driver(NIC) == "e1000e"
    assert [row["device"] for row in await shell.objects("hostdevs", "--domain", "web1")] == [f"{HOST}/{KEY}"]
    told = [row["type"] for row in await shell.objects("history", CARD)]
    assert [each for each in told if "lease" in each or "given" in each or "prepared" in each or "freed" in each] == [
        "lease_granted.v2", "device_prepared.v1", "lease_released.v1", "device_given_back.v1", "device_freed.v1",
    ]  # fmt: skip


async def test_what_cannot_be_handed_over(shell: Shell) -> None:
    """The command fails, and says which device and why; without waiting it is told where it stands."""
    shell.kernel.refuse[f"bind {NIC}"] = shell.kernel.refuse[f"drivers_probe {NIC}"] = errno.EBUSY
    done = await shell.run("lease", CARD, "--for", "vm:web1", "--wait-prepared")
    assert done.code == 1
    assert "was granted, and has ended (failed): " in done.err and f"{HOST}/{CARD}" in done.err
    shell.kernel.refuse.clear()
    await until(lambda: shell.stage.is_free(CARD))
    (lease,) = await shell.objects("lease", CARD, "--for", "vm:web1")
    assert lease["prepared"] in ("preparing", "prepared")


async def test_what_administrators_do(shell: Shell) -> None:
    """A card is detached to a stub, listed as ready, reset, and reattached; each is told when it is done."""
    assert await shell.out("nodedev", "detach", CARD, "--driver", "pci-stub") == f"detached: {HOST}/{CARD}\n"
    assert shell.kernel.driver(NIC) == "pci-stub"
    (row,) = await shell.objects("hostdevs", "--inactive")
    assert (row["device"], row["driver"], row["lease"]) == (f"{HOST}/{CARD}", "pci-stub", "")
    assert await shell.out("nodedev", "reset", CARD) == f"reset: {HOST}/{CARD}\n"
    assert await shell.out("nodedev", "reattach", CARD) == f"reattached: {HOST}/{CARD}\n"
    assert shell.kernel.driver(NIC) == "e1000e"
    orders = await shell.objects("nodedev", "orders", "--all")
    assert [row["state"] for row in orders] == ["done"] * 3
