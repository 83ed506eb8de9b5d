"""Virtual HBAs on an imitated machine with a played kernel."""

import errno
import threading
import time

import pytest

from leasehold.services.creator import vports
from leasehold.services.creator.attempt import TOO_LATE, Attempt, Done, NotDone
from tests.creator.kernel import HBA, WWNN, WWPN, Kernel

NODE, PORT = "5525400aaaaaaaa1", "5525400aaaaaaaa2"
LONG_S = 60.0
TOLD = f"{PORT}:{NODE}"


def attempt(kernel: Kernel, time_s: float = LONG_S, ends: threading.Event | None = None) -> Attempt:
    deadline_s = time.monotonic() + time_s
    return Attempt(kernel.root, lambda: deadline_s - time.monotonic(), write=kernel.write, ends=ends)


def create(kernel: Kernel, time_s: float = LONG_S, wwnn: str = NODE, wwpn: str = PORT) -> Done | NotDone | None:
    return vports.create(attempt(kernel, time_s), kernel.path(HBA), wwnn, wwpn)


def destroy(kernel: Kernel, time_s: float = LONG_S) -> Done | NotDone | None:
    return vports.destroy(attempt(kernel, time_s), kernel.path(HBA), NODE, PORT)


def is_there(kernel: Kernel) -> bool:
    return bool(kernel._port_names("fc_vports", PORT) or kernel._port_names("fc_host", PORT))


def test_one_is_made_and_destroyed(kernel: Kernel) -> None:
    """The names go to the kernel as it wants them, port first; the SCSI host that comes is told, and it goes again."""
    made = create(kernel)
    assert made == Done(kernel.path(f"{HBA}/vport-5:0-6/host6"))
    assert vports.host_of(kernel.root, kernel.path(HBA), NODE, PORT) == kernel.path(f"{HBA}/vport-5:0-6/host6")
    assert destroy(kernel) == Done()
    assert not is_there(kernel)
    assert kernel.told == [f"vport_create {TOLD}", f"vport_delete {TOLD}"]


def test_what_is_so_is_left_so(kernel: Kernel) -> None:
    """Made a second time, and destroyed a second time, nothing is told to the kernel: each had its effect before."""
    first, second = create(kernel), create(kernel)
    assert first == second
    assert kernel.told == [f"vport_create {TOLD}"]
    assert (destroy(kernel), destroy(kernel)) == (Done(), Done())
    assert kernel.told == [f"vport_create {TOLD}", f"vport_delete {TOLD}"]


def test_a_host_that_comes_late_is_waited_for(kernel: Kernel) -> None:
    """The kernel takes the names, and the SCSI host comes when the driver has got so far."""
    kernel.hosts_come.clear()
    kernel.on_told = lambda: threading.Timer(0.2, kernel.hosts_come.set).start()
    assert isinstance(create(kernel), Done)


def test_what_never_comes_is_taken_back(kernel: Kernel) -> None:
    """A port without a SCSI host is not left behind when the time is over, and the reason says what was missing."""
    kernel.hosts_come.clear()
    failed = create(kernel, time_s=0.3)
    assert isinstance(failed, NotDone)
    assert "no SCSI host came" in failed.reason and "taken back" not in failed.reason
    assert kernel.told == [f"vport_create {TOLD}", f"vport_delete {TOLD}"]
    assert not is_there(kernel)


def test_what_is_left_behind_is_said(kernel: Kernel) -> None:
    """What can neither be finished nor taken back is told as such, with what the kernel said."""
    kernel.hosts_come.clear()
    kernel.refuse["vport_delete"] = errno.EBUSY
    failed = create(kernel, time_s=0.2)
    assert isinstance(failed, NotDone)
    assert "it could not be taken back" in failed.reason and "EBUSY" in failed.reason
    assert is_there(kernel)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EINVAL, errno.EPERM, errno.EIO])
def test_a_refusal_is_told_as_the_kernel_says_it(kernel: Kernel, error: int) -> None:
    """What the kernel refuses has failed at once, in its own words; nothing is left, and nothing is tried again."""
    kernel.refuse["vport_create"] = error
    failed = create(kernel)
    assert isinstance(failed, NotDone)
    assert errno.errorcode[error] in failed.reason
    assert f"/sys/devices/{HBA}/fc_host/host5/vport_create" in failed.reason
    assert kernel.told == [f"vport_create {TOLD}"]


def test_a_name_that_another_port_has(kernel: Kernel) -> None:
    """A port name that the HBA itself has, or a virtual one with another node name, is not given twice."""
    own = create(kernel, wwnn=WWNN, wwpn=WWPN)
    assert own == NotDone(f"host5 has the port name {WWPN} already")
    assert isinstance(create(kernel), Done)
    other = create(kernel, wwnn="5525400bbbbbbbb1")
    assert isinstance(other, NotDone) and f"has the port name {PORT} already" in other.reason
    assert kernel.told == [f"vport_create {TOLD}"]


def test_a_vanished_hba(kernel: Kernel) -> None:
    """An HBA that goes while its virtual one is waited for ends the wait; nothing that it had is left."""
    kernel.hosts_come.clear()
    kernel.on_told = lambda: threading.Timer(0.1, kernel.remove_hba).start()
    failed = create(kernel)
    assert failed == NotDone("host5 went away before its virtual HBA had come")
    assert create(kernel) == NotDone("host5 can have no virtual HBAs")
    assert destroy(kernel) == Done()


def test_behind_its_time_nothing_is_begun(kernel: Kernel) -> None:
    """An order whose time is over is not begun; but what is so already is told as done."""
    assert create(kernel, time_s=0) == NotDone(TOO_LATE)
    assert kernel.told == []
    create(kernel)
    assert isinstance(create(kernel, time_s=0), Done)
    assert destroy(kernel, time_s=0) == NotDone(TOO_LATE)


def test_what_does_not_go_in_time(kernel: Kernel) -> None:
    """A virtual HBA that the kernel lets go of too late is told as not gone."""
    create(kernel)
    kernel.goes.clear()
    failed = destroy(kernel, time_s=0.2)
    assert isinstance(failed, NotDone) and "may still go" in failed.reason


def test_in_use(kernel: Kernel) -> None:
    """What the kernel does not let go of stays, and is told as in use."""
    create(kernel)
    kernel.refuse["vport_delete"] = errno.EBUSY
    failed = destroy(kernel)
    assert isinstance(failed, NotDone) and "EBUSY" in failed.reason
    assert is_there(kernel)


def test_somebody_else_is_faster(kernel: Kernel) -> None:
    """What another one makes, or takes away, between the look and the write is what was asked for, and not undone."""
    kernel.on_told = lambda: kernel._make_vport(NODE, PORT) if not is_there(kernel) else None
    assert isinstance(create(kernel), Done)
    assert kernel.told == [f"vport_create {TOLD}"]
    kernel.on_told = lambda: kernel.remove_vport(PORT)
    kernel.refuse["vport_delete"] = errno.ENODEV
    assert destroy(kernel) == Done()


def test_the_agent_ends(kernel: Kernel) -> None:
    """At the agent's end it is not known what becomes of an order: nothing is told, taken back, or begun."""
    ends = threading.Event()
    kernel.hosts_come.clear()
    kernel.on_told = lambda: ends.set()
    assert vports.create(attempt(kernel, ends=ends), kernel.path(HBA), NODE, PORT) is None
    assert kernel.told == [f"vport_create {TOLD}"]
    assert isinstance(vports.create(attempt(kernel, ends=ends), kernel.path(HBA), "5" * 16, "6" * 16), NotDone)
    assert kernel.told == [f"vport_create {TOLD}"]


def test_drivers_that_have_it_with_the_scsi_host(kernel: Kernel) -> None:
    """Some drivers offer `vport_create` with the SCSI host and not with the port."""
    folder = kernel.tree.devices / HBA
    for name in ("vport_create", "vport_delete"):
        (folder / "fc_host/host5" / name).rename(folder / "scsi_host/host5" / name)
    assert isinstance(create(kernel), Done)
    assert destroy(kernel) == Done()
