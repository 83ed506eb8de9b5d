"""Virtual functions on an imitated machine with a played kernel."""

import errno
import os
import shutil
import threading
import time

import pytest

from leasehold.events.capabilities import DetachDevice, Order, SetVirtualFunctions
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import OrderDone, OrderNotDone
from leasehold.services.creator import sriov
from leasehold.services.creator.attempt import TOO_LATE, Attempt, Done, NotDone
from leasehold.services.creator.carrying import carry_out
from tests.creator.kernel import FUNCTIONS_MAX, GPU, NIC, Kernel, function_at

LONG_S = 60.0
KEY = DeviceKey("pci/0000:00:07.0")


def attempt(kernel: Kernel, time_s: float = LONG_S, *, is_begun: bool = False) -> Attempt:
    deadline_s = time.monotonic() + time_s
    return Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=kernel.write, is_begun=is_begun)


def set_number(kernel: Kernel, count: int, time_s: float = LONG_S, *, is_begun: bool = False) -> Done | NotDone | None:
    return sriov.set_number(attempt(kernel, time_s, is_begun=is_begun), kernel.path(NIC), count)


def carried(kernel: Kernel, order: Order) -> OrderDone | OrderNotDone | None:
    return carry_out(attempt(kernel), 512, order)


def there(kernel: Kernel) -> list[str]:
    return sorted(os.path.basename(path) for path in sriov.members(kernel.path(NIC)))


def functions(count: int) -> list[str]:
    return [function_at(number) for number in range(count)]


def test_they_are_made_and_taken_away(kernel: Kernel) -> None:
    """As many as were asked for are there, told once to the kernel; another number goes through 0."""
    done = Done(kernel.path(NIC))
    assert set_number(kernel, 2) == set_number(kernel, 2) == done
    assert there(kernel) == functions(2)
    assert set_number(kernel, 3) == done
    assert there(kernel) == functions(3)
    assert set_number(kernel, 0) == set_number(kernel, 0) == done
    assert there(kernel) == []
    assert kernel.told == [f"sriov_numvfs {number}" for number in (2, 0, 3, 0)]


def test_who_can_have_none_or_not_so_many(kernel: Kernel) -> None:
    """A function without SR-IOV has none; more than the hardware offers are refused before the kernel is asked."""
    assert set_number(kernel, FUNCTIONS_MAX + 1) == NotDone("0000:00:07.0 can have 4 virtual functions at most")
    failed = sriov.set_number(attempt(kernel), kernel.path(GPU), 1)
    assert failed == NotDone("0000:00:06.0 can have no virtual functions")
    assert kernel.told == []


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EBUSY, errno.ENOMEM])
def test_refusals(kernel: Kernel, error: int) -> None:
    """What the kernel refuses is told in its words, and those that were there stay."""
    set_number(kernel, 2)
    kernel.refuse["sriov_numvfs"] = error
    failed = set_number(kernel, 3)
    assert isinstance(failed, NotDone) and errno.errorcode[error] in failed.reason, failed
    assert "again" not in failed.reason and "are left" not in failed.reason
    assert there(kernel) == functions(2)


def test_the_former_ones_are_made_again(kernel: Kernel) -> None:
    """If there cannot be so many after all, there are as many as before, and it is told that they are new."""
    set_number(kernel, 2)
    refused = []

    def refuse_three(path: str, text: str) -> None:
        if text == "3":
            refused.append(path)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        kernel.write(path, text)

    deadline_s = time.monotonic() + LONG_S
    trying = Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=refuse_three)
    failed = sriov.set_number(trying, kernel.path(NIC), 3)
    assert isinstance(failed, NotDone) and "ENOMEM" in failed.reason
    assert failed.reason.endswith("; there are 2 again, without their settings")
    assert refused and there(kernel) == functions(2)


def test_what_never_comes_is_taken_back(kernel: Kernel) -> None:
    """Those that do not come in time are not left half made."""
    kernel.hosts_come.clear()
    failed = set_number(kernel, 2, time_s=0.2)
    assert failed == NotDone("the kernel took it, but there are 0 virtual functions instead of 2")
    assert kernel.told == ["sriov_numvfs 2", "sriov_numvfs 0"]
    assert there(kernel) == []


def test_what_does_not_go(kernel: Kernel) -> None:
    """Those that stay though the kernel took it are told so, with how many are left."""
    set_number(kernel, 2)
    kernel.goes.clear()
    failed = set_number(kernel, 0, time_s=0.2)
    assert isinstance(failed, NotDone) and failed.reason.startswith(
        "the kernel took it, but there are 2 virtual functions instead of 0"
    )


def test_behind_its_time(kernel: Kernel) -> None:
    """Nothing is begun behind its time; one that an earlier run has begun says what there is, or is done."""
    assert set_number(kernel, 2, time_s=0) == NotDone(TOO_LATE)
    assert kernel.told == []
    failed = set_number(kernel, 2, time_s=0, is_begun=True)
    assert failed == NotDone("its time was over; 0000:00:07.0 has 0 virtual functions")
    set_number(kernel, 2)
    assert set_number(kernel, 2, time_s=0, is_begun=True) == Done(kernel.path(NIC))


def test_killed_between_two_numbers(kernel: Kernel) -> None:
    """A run that ended between 0 and the new number is made good by the next."""
    set_number(kernel, 2)
    kernel.write(f"{kernel.path(NIC)}/sriov_numvfs", "0")
    assert set_number(kernel, 3, is_begun=True) == Done(kernel.path(NIC))
    assert there(kernel) == functions(3)


def test_the_card_goes_meanwhile(kernel: Kernel) -> None:
    """A card that is pulled while its functions are waited for ends the wait."""
    kernel.hosts_come.clear()
    folder = kernel.tree.devices / NIC
    pulling = threading.Timer(0.1, lambda: shutil.rmtree(folder))
    kernel.on_told = pulling.start
    assert set_number(kernel, 2) == NotDone("0000:00:07.0 went away meanwhile")
    pulling.join()


def test_somebody_else_is_faster(kernel: Kernel) -> None:
    """What another one makes between the look and the write is what was asked for, and is not undone."""

    def write(path: str, text: str) -> None:
        kernel.write(path, text)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    deadline_s = time.monotonic() + LONG_S
    trying = Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=write)
    assert sriov.set_number(trying, kernel.path(NIC), 2) == Done(kernel.path(NIC))
    assert kernel.told == ["sriov_numvfs 2"]


def test_one_that_is_open_keeps_all(kernel: Kernel) -> None:
    """Not one goes while a process has one of them open, though the log did not know that yet; then all may."""
    assert carried(kernel, SetVirtualFunctions(parent=KEY, count=2)) == OrderDone(512, KEY)
    process = kernel.root.proc / "4711"
    (process / "fd").mkdir(parents=True)
    (process / "comm").write_text("qemu-system-x86\n")
    (process / "fd/9").symlink_to("/dev/vfio/21")
    kernel.tree.driver(f"pci0000:00/{function_at(1)}", "pci", "vfio-pci")
    for count in (0, 3):
        refused = carried(kernel, SetVirtualFunctions(parent=KEY, count=count))
        assert isinstance(refused, OrderNotDone) and "qemu-system-x86 (pid 4711)" in refused.reason, refused
    assert carried(kernel, SetVirtualFunctions(parent=KEY, count=2)) == OrderDone(512, KEY)
    (process / "fd/9").unlink()
    assert carried(kernel, SetVirtualFunctions(parent=KEY, count=0)) == OrderDone(512, KEY)
    assert kernel.told == ["sriov_numvfs 2", "sriov_numvfs 0"]


def test_orders_of_others(kernel: Kernel) -> None:
    """Where the card has gone none can be made, and all are gone; what is the binder's is not done here."""
    absent = DeviceKey("pci/0000:99:00.0")
    refused = carried(kernel, SetVirtualFunctions(parent=absent, count=1))
    assert refused == OrderNotDone(512, f"{absent} is not there")
    assert carried(kernel, SetVirtualFunctions(parent=absent, count=0)) == OrderDone(512, absent)
    assert isinstance(carried(kernel, DetachDevice(device=KEY)), OrderNotDone)
    assert kernel.told == []
