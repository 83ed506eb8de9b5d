"""A binder whose disk is full: what cannot be noted is not done, and is said; with room again everything goes on."""

import errno
import os
from pathlib import Path

import pytest

from leasehold.events.errors import LeaseLostError
from tests.binder.kernel import NIC, Kernel, pci
from tests.binder.stage import HOST, staged, until
from tests.support.disks import small_disk_at

KEY = pci(NIC)


def _fill(path: Path) -> None:
    """Leave no byte on the disk of `path`."""
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


async def test_nothing_is_done_that_cannot_be_noted(short: Path, kernel: Kernel) -> None:
    """A lease fails before anything is written to the host, and names the full disk. A device of a lease that ends
    stays where it is, and is nobody else's, until its way back can be noted.
    """
    async with staged(short, kernel) as stage:
        disk, client = stage.bus.data / "full", stage.client
        disk.mkdir()
        with small_disk_at(disk, 1):
            async with stage.binder("full/binder"):
                _fill(disk / "ballast")
                told = list(kernel.told)
                with pytest.raises(LeaseLostError, match="it cannot be noted on this host"):
                    async with client.lease(KEY, host=HOST, holder="vm:web1", wait_prepared=True):
                        pass
                assert kernel.told == told
                (disk / "ballast").unlink()
                await until(lambda: stage.is_free(KEY))
                async with client.lease(KEY, host=HOST, holder="vm:web1", wait_prepared=True):
                    assert kernel.driver(NIC) == "vfio-pci"
                    _fill(disk / "ballast")
                assert await stage.state(KEY) == "ending"
                assert kernel.driver(NIC) == "vfio-pci"
                (disk / "ballast").unlink()
                await until(lambda: stage.is_free(KEY))
                assert kernel.driver(NIC) == "e1000e"
