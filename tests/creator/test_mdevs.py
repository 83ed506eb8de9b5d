"""Mediated devices on an imitated machine with a played kernel."""

import errno
import threading
import time

from leasehold.services.creator import mdevs
from leasehold.services.creator.attempt import TOO_LATE, Attempt, Done, NotDone
from tests.creator.kernel import GPU, OTHER_TYPE, TYPE, Kernel

UUID = "c2177883-f1bb-47f0-914d-32a22e3a8804"
LONG_S = 60.0


def attempt(kernel: Kernel, time_s: float = LONG_S) -> Attempt:
    deadline_s = time.monotonic() + time_s
    return Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=kernel.write)


def create(kernel: Kernel, time_s: float = LONG_S, mdev_type: str = TYPE) -> Done | NotDone | None:
    return mdevs.create(attempt(kernel, time_s), kernel.path(GPU), mdev_type, UUID)


def destroy(kernel: Kernel, time_s: float = LONG_S) -> Done | NotDone | None:
    return mdevs.destroy(attempt(kernel, time_s), kernel.path(GPU), UUID)


def is_there(kernel: Kernel) -> bool:
    return (kernel.tree.devices / GPU / UUID).exists() or (kernel.root.sys / "bus/mdev/devices" / UUID).is_symlink()


def test_one_is_made_and_destroyed(kernel: Kernel) -> None:
    """It is made of the type that was asked for, and gone again; each time the kernel is told once."""
    assert create(kernel) == create(kernel) == Done(kernel.path(f"{GPU}/{UUID}"))
    assert (kernel.root.sys / "bus/mdev/devices" / UUID / "mdev_type").resolve().name == TYPE
    assert destroy(kernel) == destroy(kernel) == Done()
    assert not is_there(kernel)
    assert kernel.told == [f"create {UUID}", "remove 1"]


def test_types(kernel: Kernel) -> None:
    """A type that is not offered is named with those that are; a UUID that is there with another type is refused."""
    failed = create(kernel, mdev_type="nvidia-63")
    assert failed == NotDone(f"0000:00:06.0 offers no nvidia-63 ({TYPE}, {OTHER_TYPE})")
    for odd in ("..", "", f"../mdev_supported_types/{TYPE}"):
        assert isinstance(create(kernel, mdev_type=odd), NotDone)
    assert kernel.told == []
    create(kernel, mdev_type=OTHER_TYPE)
    other = create(kernel)
    assert other == NotDone(f"there is one of that UUID already, of type {OTHER_TYPE} on 0000:00:06.0")


def test_what_never_comes_is_taken_back(kernel: Kernel) -> None:
    """One that never comes to its bus is not left behind when the time is over."""
    kernel.hosts_come.clear()
    failed = create(kernel, time_s=0.2)
    assert isinstance(failed, NotDone) and "no mediated device came" in failed.reason
    assert kernel.told == [f"create {UUID}", "remove 1"]
    assert not is_there(kernel)


def test_refusals(kernel: Kernel) -> None:
    """What the kernel refuses is told in its words: no room, and in use."""
    kernel.refuse = {"create": errno.ENOSPC, "remove": errno.EBUSY}
    failed = create(kernel)
    assert isinstance(failed, NotDone) and "ENOSPC" in failed.reason and f"{TYPE}/create" in failed.reason
    del kernel.refuse["create"]
    create(kernel)
    failed = destroy(kernel)
    assert isinstance(failed, NotDone) and "EBUSY" in failed.reason
    assert is_there(kernel)


def test_behind_its_time_nothing_is_begun(kernel: Kernel) -> None:
    """An order whose time is over is not begun; one that is not gone in time is told so."""
    assert create(kernel, time_s=0) == NotDone(TOO_LATE)
    create(kernel)
    assert destroy(kernel, time_s=0) == NotDone(TOO_LATE)
    kernel.goes.clear()
    failed = destroy(kernel, time_s=0.2)
    assert isinstance(failed, NotDone) and "may still go" in failed.reason


def test_a_vanished_parent(kernel: Kernel) -> None:
    """A parent that goes while its device is waited for ends the wait; it offers nothing after."""
    parent = kernel.tree.devices / GPU
    kernel.hosts_come.clear()
    kernel.on_told = lambda: threading.Timer(0.1, lambda: parent.rename(parent.with_name("gone"))).start()
    assert create(kernel) == NotDone("0000:00:06.0 went away before its mediated device had come")
    assert create(kernel) == NotDone(f"0000:00:06.0 offers no {TYPE} (none at all)")
    assert destroy(kernel) == Done()


def test_somebody_else_is_faster(kernel: Kernel) -> None:
    """What another one makes between the look and the write is what was asked for, and is not undone."""
    folder = kernel.path(f"{GPU}/mdev_supported_types/{TYPE}")
    kernel.on_told = lambda: kernel._make_mdev(folder, UUID)
    assert isinstance(create(kernel), Done)
    assert kernel.told == [f"create {UUID}"]
