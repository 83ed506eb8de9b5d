"""`leasehold up --manage` on an imitated machine, in real processes: leases become bound devices, and ends give back.

The kernel is played by this process, so that it can be let hang in the middle of what the binder tells it.
"""

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from leasehold.services.asking import lease_request
from leasehold.services.client import Client
from tests.binder import imitated
from tests.binder.kernel import NIC, STICK, Kernel, pci, usb
from tests.binder.stage import ask, until
from tests.support.running import HOST, RunningUp, leasehold, running_up

TTL_MS: Final = 600_000


class Managed:
    """An `up` that manages an imitated machine."""

    def __init__(self, up: RunningUp, kernel: Kernel, door: Path) -> None:
        self.up = up
        self.kernel = kernel
        self.door = door

    def asks(self, **question: Any) -> dict[str, Any]:
        """What the door says."""
        return ask(self.door, question)

    def kill_binder_at(self, word: str, act: Callable[[], None]) -> None:
        """Kill the binder (SIGKILL) while its kernel does not come back from `word`, which `act` leads to."""
        hanging = self.kernel.hang(word)
        told = len(self.kernel.told)
        act()
        asyncio.run(until(lambda: word in {each.partition(" ")[0] for each in self.kernel.told[told:]}))
        self.up.kill_child("binder")
        hanging.set()


@pytest.fixture(scope="module")
def managed() -> Iterator[Managed]:
    """It is ready, and ends with nothing left over."""
    with tempfile.TemporaryDirectory(prefix="lh") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        kernel = Kernel(folder / "machine")
        boot = kernel.root.proc / "sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True, exist_ok=True)
        boot.write_text("3f0c8a52-6f5e-4f3e-9b4d-2a5d1c9e7b10\n")
        patch.setenv(imitated.MACHINE, str(folder / "machine"))
        patch.setenv(imitated.KERNEL, str(folder / "k"))
        door = folder / "d"
        words = ("--manage", "--door", str(door))
        with kernel.serving(folder / "k"), running_up(folder / "data", *words, module="tests.binder.imitated") as up:
            yield Managed(up, kernel, door)
        kernel.close()


def shown(managed: Managed, key: str) -> dict[str, Any]:
    """What the command line shows of a device."""
    done = leasehold(managed.up.data, "show", f"{HOST}/{key}", "--json")
    assert done.code == 0, done.err
    return done.object


async def leased(managed: Managed, *keys: str) -> tuple[int, int]:
    """A lease of these, and its token."""
    async with Client(managed.up.data) as client:
        answer = await client.ask(lease_request(keys, holder="vm:web1", ttl_ms=TTL_MS, host=HOST))
        return answer.lease, answer.token


async def released(managed: Managed, lease: int, token: int) -> None:
    """It is given back."""
    async with Client(managed.up.data) as client:
        await client.release(lease, token)


async def comes(managed: Managed, key: str, state: str) -> None:
    """Wait until the log says that of a device: how it is, or how far it is handed over."""
    async with Client(managed.up.data) as client:

        async def is_so() -> bool:
            view = await client.device(key, host=HOST)
            return state in (view.state, view.binding.state if view.binding is not None else "")

        await until(is_so)


def test_what_up_says(managed: Managed) -> None:
    """It names the binder, and what it means that one runs; the host is managed."""
    assert "binder" in managed.up.children()
    assert "taken from their drivers" in managed.up.text
    done = leasehold(managed.up.data, "hosts", "--json")
    assert [row["mode"] for row in done.objects] == ["managed"]


def test_a_lease_and_its_release(managed: Managed) -> None:
    """A card and a stick go to their holder and come back; the stick's driver, too."""
    keys = (pci(NIC), usb(STICK))
    lease, token = asyncio.run(leased(managed, *keys))
    for key in keys:
        asyncio.run(comes(managed, key, "prepared"))
    assert (managed.kernel.driver(NIC), managed.kernel.driver(f"{STICK}:1.0")) == ("vfio-pci", "")
    assert shown(managed, pci(NIC))["binding"]["was_driver"] == "e1000e"
    asyncio.run(released(managed, lease, token))
    for key in keys:
        asyncio.run(comes(managed, key, "free"))
    assert (managed.kernel.driver(NIC), managed.kernel.driver(f"{STICK}:1.0")) == ("e1000e", "usb-storage")


def test_kill_9_in_the_middle(managed: Managed) -> None:
    """Killed while it prepares, and again while it gives back: the next binder brings both to their ends."""
    granted: list[tuple[int, int]] = []
    managed.kill_binder_at("reset", lambda: granted.append(asyncio.run(leased(managed, pci(NIC)))))
    asyncio.run(comes(managed, pci(NIC), "prepared"))
    assert managed.kernel.driver(NIC) == "vfio-pci"
    managed.kill_binder_at("unbind", lambda: asyncio.run(released(managed, *granted[0])))
    asyncio.run(comes(managed, pci(NIC), "free"))
    assert managed.kernel.driver(NIC) == "e1000e"


def test_a_stale_token_with_the_bus_cut(managed: Managed) -> None:
    """The door refuses it at once, whether the log can be heard or not."""
    stale = asyncio.run(leased(managed, pci(NIC)))
    asyncio.run(comes(managed, pci(NIC), "prepared"))
    asyncio.run(released(managed, *stale))
    asyncio.run(comes(managed, pci(NIC), "free"))
    lease, token = asyncio.run(leased(managed, pci(NIC)))
    asyncio.run(comes(managed, pci(NIC), "prepared"))
    server = managed.up.children()["nats-server"]
    os.kill(server, signal.SIGSTOP)
    try:
        said = managed.asks(op="check", device=pci(NIC), token=stale[1])
        assert (said["ok"], said["code"]) == (False, "token_stale"), said
        assert managed.asks(op="check", device=pci(NIC), token=token)["ok"]
    finally:
        os.kill(server, signal.SIGCONT)
    asyncio.run(released(managed, lease, token))
    asyncio.run(comes(managed, pci(NIC), "free"))


def test_its_end_leaves_living_leases_alone(managed: Managed) -> None:
    """A binder that ends in good order takes nothing from anybody; the next one goes on with it."""
    lease, token = asyncio.run(leased(managed, pci(NIC)))
    asyncio.run(comes(managed, pci(NIC), "prepared"))
    told = list(managed.kernel.told)
    binder = managed.up.children()["binder"]
    os.kill(binder, signal.SIGTERM)
    asyncio.run(until(lambda: managed.up.children().get("binder", binder) != binder))
    asyncio.run(until(lambda: managed.door.exists()))
    assert managed.kernel.driver(NIC) == "vfio-pci"
    asyncio.run(released(managed, lease, token))
    asyncio.run(comes(managed, pci(NIC), "free"))
    assert json.dumps(managed.kernel.told[: len(told)]) == json.dumps(told)
