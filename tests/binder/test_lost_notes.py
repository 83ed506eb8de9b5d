"""A binder without the notes of the one before it: nothing is guessed, and an administrator can make it good."""

from functools import partial
from pathlib import Path

import pytest

from leasehold.events.errors import StorageError
from leasehold.services.binder.notes import Notes
from tests.binder.kernel import NIC, STICK, Kernel, pci, usb
from tests.binder.stage import HOST, staged, until

KEYS = (pci(NIC), usb(STICK))


async def test_what_was_handed_over_counts_as_detached_by_hand(short: Path, kernel: Kernel) -> None:
    """It stays where it is behind its lease, is listed as held ready, and is brought back by an order."""
    async with staged(short, kernel) as stage:
        client = stage.client
        async with stage.binder("lost"):
            lease = await client.lease(*KEYS, host=HOST, holder="vm:web1", wait_prepared=True).__aenter__()
        async with stage.binder("new"):
            await lease.__aexit__(None, None, None)
            for key in KEYS:
                await until(partial(stage.is_free, key))
            assert (kernel.driver(NIC), kernel.driver(f"{STICK}:1.0")) == ("vfio-pci", "")
            assert [row.device for row in await client.inactive_pci()] == [f"{HOST}/{KEYS[0]}"]
            for key in KEYS:
                assert (await client.reattach(key, host=HOST)).state == "done"
            assert (kernel.driver(NIC), kernel.driver(f"{STICK}:1.0")) == ("e1000e", "usb-storage")


def test_notes_that_cannot_be_read(tmp_path: Path, kernel: Kernel) -> None:
    """They are named, and left as they are."""
    path = tmp_path / "binder.json"
    path.write_text('{"format":1,"devices":[{"key":')
    with pytest.raises(StorageError, match=str(path)):
        Notes(path, kernel.root).open()
    assert path.read_text().endswith('"key":')
