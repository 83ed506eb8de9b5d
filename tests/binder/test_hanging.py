"""Jobs from which the kernel does not come back: the device's next lease, and whoever waits for it, hear of that."""

import pytest

from leasehold.events import limits
from leasehold.events.capabilities import ResetDevice
from leasehold.events.event_types import DeviceFreed
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import device_id
from leasehold.events.inputs import GivenBack, NotPrepared, Stuck
from leasehold.projections.handing import OVERDUE_MS
from leasehold.projections.handover import Back, Done, NotBack
from tests.binder.course import HOST, NIC, Course, ready
from tests.binder.test_orders import Ordered


@pytest.fixture
def course() -> Ordered:
    """Nothing is leased or ordered."""
    return Ordered()


def free(course: Course, lease: int) -> None:
    """An operator says that nobody has it."""
    course.happens(DeviceFreed(device=device_id(HOST, NIC), lease=lease, evidence="ann says so: I looked"))


def test_a_lease_that_ends_below_a_job(course: Ordered) -> None:
    """Released, or failed, while the kernel does not come back from handing it over: it is told as stuck in its time,
    and is given back when that is over.
    """
    lease = course.grant(NIC)
    job = course.job()
    course.release(lease)
    course.passes(limits.PREPARE_TIMEOUT_MS + OVERDUE_MS - 1)
    assert course.jobs() == []
    assert course.hears_us() == []
    course.passes(1)
    assert course.jobs() == []
    (stuck,) = course.hears_us()
    assert isinstance(stuck, Stuck)
    assert (stuck.key, stuck.lease) == (NIC, lease)
    assert course.jobs() == []
    assert course.hears_us() == []
    course.begins(job)
    course.done(job, ready(job.keys))
    course.succeeds(course.job())
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]
    assert not course.fold.holds[NIC].quarantined


def test_a_failed_one_is_stuck_behind_its_end(course: Ordered) -> None:
    """First the log hears that the lease cannot be, then, as it has ended that, that the device does not come back."""
    lease = course.grant(NIC)
    course.job()
    course.passes(limits.PREPARE_TIMEOUT_MS + OVERDUE_MS)
    assert course.jobs() == []
    assert course.jobs() == []
    (failed,) = course.hears_us()
    assert isinstance(failed, NotPrepared)
    assert course.jobs() == []
    (stuck,) = course.hears_us()
    assert isinstance(stuck, Stuck)
    assert stuck.lease == lease


def test_the_next_lease_does_not_wait_for_ever(course: Ordered) -> None:
    """What hangs of an earlier lease, which an operator has ended, keeps the next one from being handed over: that
    fails in its time.
    """
    lease = course.grant(NIC)
    job = course.job()
    course.release(lease)
    free(course, lease)
    other = course.grant(NIC)
    assert course.jobs() == []
    course.passes(limits.PREPARE_TIMEOUT_MS - 1)
    assert course.jobs() == []
    assert course.hears_us() == []
    course.passes(1)
    assert course.jobs() == []
    (failed,) = course.hears_us()
    assert isinstance(failed, NotPrepared)
    assert (failed.lease, failed.key) == (other, NIC)
    assert "not over" in failed.reason
    course.begins(job)
    course.done(job, ready(job.keys))
    course.succeeds(course.job())
    assert GivenBack(NIC, other, "e1000e") in course.hears_us()


def test_an_order_that_hangs(course: Ordered) -> None:
    """What an administrator has begun with a device, and the kernel does not end, fails the lease that waits for it."""
    course.order(ResetDevice(device=NIC))
    (job,) = course.orders.jobs(course.now_ms)
    lease = course.grant(NIC)
    course.passes(limits.PREPARE_TIMEOUT_MS)
    assert course.jobs() == []
    course.passes(limits.PREPARE_TIMEOUT_MS)
    assert course.jobs() == []
    (failed,) = course.hears_us()
    assert isinstance(failed, NotPrepared)
    assert (failed.lease, failed.key) == (lease, NIC)
    course.orders.done(job, Done("e1000e", "flr"))
    course.done(course.job(), Back("e1000e"))
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


def test_what_ends_a_lease_is_not_lost_behind_a_later_word(course: Ordered) -> None:
    """That a lease cannot be handed over is told again when it got lost, though its device is stuck since."""
    course.grant(NIC)
    course.settle()
    course.fold.holds[NIC] = Hold(key=NIC, floor=course.position)
    lease = course.grant(NIC)
    assert course.sync()
    back = course.job()
    course.passes(limits.PREPARE_TIMEOUT_MS)
    assert course.jobs() == []
    lost = course.handing.observations()
    assert [type(word) for word in lost] == [NotPrepared]
    course.done(back, NotBack(NIC, "it hangs", "pull it out"))
    assert course.sync()
    ended, stuck = course.handing.observations()
    assert ended == lost[0]
    assert isinstance(ended, NotPrepared)
    assert ended.lease == lease
    assert isinstance(stuck, Stuck)
