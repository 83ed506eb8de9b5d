"""Orders on an imitated machine: what they are about is found by its key, and nothing that is needed is taken away."""

import time

from leasehold.events.capabilities import CreateMdev, CreateVport, DestroyMdev, DestroyVport, Order
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import OrderDone, OrderNotDone
from leasehold.services.creator.attempt import Attempt
from leasehold.services.creator.carrying import carry_out
from tests.creator.kernel import HBA, TYPE, WWPN, Kernel

NODE, PORT = "5525400aaaaaaaa1", "5525400aaaaaaaa2"
HBA_KEY = DeviceKey(f"pci/0000:00:05.0/scsi_host/{WWPN}")
KEY = DeviceKey(f"pci/0000:00:05.0/scsi_host/{PORT}")
GPU_KEY = DeviceKey("pci/0000:00:06.0")
UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
MDEV_KEY = DeviceKey(f"{GPU_KEY}/mdev/{UUID}")
CREATE = CreateVport(parent=HBA_KEY, wwnn=NODE, wwpn=PORT)
DESTROY = DestroyVport(device=KEY, parent=HBA_KEY, wwnn=NODE, wwpn=PORT)


def carried(kernel: Kernel, order: Order) -> OrderDone | OrderNotDone | None:
    deadline_s = time.monotonic() + 60
    return carry_out(Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=kernel.write), 512, order)


def test_by_their_keys(kernel: Kernel) -> None:
    """What is made is told by the key that the watcher gives it; what is taken away by the one in the order."""
    assert carried(kernel, CREATE) == OrderDone(512, KEY)
    assert carried(kernel, DESTROY) == OrderDone(512, KEY)
    assert carried(kernel, CreateMdev(parent=GPU_KEY, mdev_type=TYPE, uuid=UUID)) == OrderDone(512, MDEV_KEY)
    assert carried(kernel, DestroyMdev(device=MDEV_KEY, parent=GPU_KEY, uuid=UUID)) == OrderDone(512, MDEV_KEY)
    assert len(kernel.told) == 4


def test_a_parent_that_is_not_there(kernel: Kernel) -> None:
    """Nothing is made on a parent that has gone; what was a part of it is gone with it."""
    carried(kernel, CREATE)
    kernel.remove_hba()
    assert carried(kernel, CREATE) == OrderNotDone(512, f"{HBA_KEY} is not there")
    assert carried(kernel, DESTROY) == OrderDone(512, KEY)
    absent = DeviceKey("pci/0000:99:00.0")
    assert carried(kernel, CreateMdev(parent=absent, mdev_type=TYPE, uuid=UUID)) == OrderNotDone(
        512, "pci/0000:99:00.0 is not there"
    )
    assert len(kernel.told) == 1


def test_a_disk_behind_it_is_mounted(kernel: Kernel) -> None:
    """A virtual HBA through which the host itself has mounted a disk stays, though the log did not know that yet."""
    carried(kernel, CREATE)
    tree = kernel.tree
    port = tree.remote_port(f"{HBA}/vport-5:0-6/host6", 0, "50060e801049cfd1")
    tree.scsi_disk(tree.scsi_device(tree.scsi_target(port, "6:0:0")), "sdb", "8:16")
    tree.mount("8:16", "/srv")
    refused = carried(kernel, DESTROY)
    assert isinstance(refused, OrderNotDone)
    assert "is in use" in refused.reason and "mounted at /srv" in refused.reason
    tree.mounts.clear()
    tree.mount("0:1", "/proc", kind="proc")
    assert carried(kernel, DESTROY) == OrderDone(512, KEY)
    assert len(kernel.told) == 2
