"""Leases that become bound devices, and ends that give them back, through real servers and a played kernel."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.binder.kernel import NIC, STICK, Kernel, pci, usb
from tests.binder.stage import HOST, staged, until

NIC_KEY, STICK_KEY = pci(NIC), usb(STICK)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a short name: sockets have no room for long ones."""
    with tempfile.TemporaryDirectory(prefix="lh") as folder:
        yield Path(folder)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """An imitated machine of its own."""
    kernel = Kernel(tmp_path / "machine")
    yield kernel
    kernel.close()


async def test_a_lease_is_handed_over_and_given_back(short: Path, kernel: Kernel) -> None:
    """A card goes to vfio-pci by its lease, and back to its driver by the release; only then is it free."""
    async with staged(short, kernel) as stage, stage.binder():
        async with stage.client.lease(NIC_KEY, host=HOST, holder="vm:web1", wait_prepared=True) as lease:
            assert (await stage.binding(NIC_KEY), kernel.driver(NIC)) == ("prepared", "vfio-pci")
            said = await stage.asks(op="check", device=NIC_KEY, token=lease.token)
            assert said["ok"], said
            assert said["holder"] == "vm:web1"
        await until(lambda: stage.is_free(NIC_KEY))
        assert kernel.driver(NIC) == "e1000e"
        said = await stage.asks(op="check", device=NIC_KEY, token=lease.token)
        assert (said["ok"], said["code"]) == (False, "token_stale"), said
