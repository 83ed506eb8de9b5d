"""What a binder does about domains that have its devices, and devices that go, come back, or become other ones."""

import pytest

from leasehold.events import limits
from leasehold.events.event_types import DeviceMissing, DeviceReappeared, DeviceReplaced
from leasehold.events.hostdevs import Hold
from leasehold.events.inputs import GivenBack, LetGo, NotPrepared, Stuck
from leasehold.projections.handing import AGAIN_MS
from leasehold.projections.handnotes import Prepare, TakeBack
from leasehold.projections.handover import Back, Busy, Failed, NotBack
from leasehold.projections.vouching import check_token, may_have
from tests.binder.course import GPU, HOST, NIC, OTHER, SOUND, UUID, WEB, Course, describe


@pytest.fixture
def course() -> Course:
    """A host whose log is known and where nothing is leased."""
    return Course()


def test_a_domain_that_still_has_it(course: Course) -> None:
    """It is not taken from a running domain: who has it is told after a while, and when it lets go it is taken."""
    lease = course.grant(NIC, domain=UUID)
    course.settle()
    course.attach(NIC)
    course.release(lease)
    assert course.jobs() == []
    course.passes(limits.STILL_HELD_MS - 1)
    assert course.jobs() == []
    assert course.hears_us() == []
    course.passes(1)
    assert course.jobs() == []
    (stuck,) = course.hears_us()
    assert isinstance(stuck, Stuck)
    assert WEB in stuck.reason
    assert "stop it" in stuck.help
    course.detach(NIC)
    course.succeeds(course.job())
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


def test_somebody_has_it_whom_no_hypervisor_shows(course: Course) -> None:
    """The machine's own look counts, too; the time of giving back begins when nobody has it."""
    lease = course.grant(NIC)
    course.settle()
    course.release(lease)
    for _ in range(100):
        course.done(course.job(), Busy(("process 4711 (qemu)",)))
        assert course.jobs() == []
        course.passes(1_000)
    assert course.hears_us() == []
    course.done(course.job(), NotBack(NIC, "no", "do"))
    assert course.hears_us() == []
    course.passes(AGAIN_MS)
    course.done(course.job(), Back("e1000e"))
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


@pytest.mark.parametrize("force", [False, True])
def test_revoked(course: Course, force: bool) -> None:
    """Only by force it is taken from a domain that has it."""
    lease = course.grant(NIC, domain=UUID)
    course.settle()
    course.attach(NIC)
    course.revoke(lease, force=force)
    assert [job.forced for job in course.jobs() if isinstance(job, TakeBack)] == [True] * force


@pytest.mark.parametrize("is_heard", [True, False])
def test_revoked_by_force_behind_the_end(course: Course, is_heard: bool) -> None:
    """Of a lease that has ended its domain keeps the device, until it is taken by force; nothing else moves."""
    lease, other = course.grant(NIC, domain=UUID), course.grant(GPU, domain=UUID)
    course.settle()
    course.attach(NIC)
    course.release(lease)
    assert course.jobs() == []
    floor = course.handing.log.holds[NIC].floor
    course.revoke(lease, force=True)
    if not is_heard:
        assert course.sync()
    (job,) = course.jobs()
    assert isinstance(job, TakeBack)
    assert (job.key, job.forced) == (NIC, True)
    assert course.handing.log.holds[NIC].floor == floor
    assert course.handing.log.holds[GPU].lease == other
    assert not course.handing.log.holds[GPU].revoked


def test_a_lease_of_before_waits_for_what_another_left(course: Course) -> None:
    """The binder was retired, and the device given to another meanwhile: that one may not use it before what the first
    lease had done to it is undone.
    """
    course.grant(NIC, domain=UUID)
    course.settle()
    lease = course.position + 256
    token = lease
    early = Hold(key=NIC, floor=token, lease=lease, token=token, granted_at_ns=lease, domain=UUID, early=True)
    course.fold.holds[NIC] = early
    course.position = lease
    course.dies()
    assert course.sync()
    assert not course.handing.is_ready(NIC)
    assert not may_have(course.handing, UUID, "", (NIC,), course.now_ms).is_ready
    back = course.job()
    assert isinstance(back, TakeBack)
    course.succeeds(back)
    assert course.jobs() == []
    assert course.handing.is_ready(NIC)


def test_a_device_that_comes_back(course: Course) -> None:
    """The same thing is handed over again; its failing ends nothing while a domain has another part of the lease."""
    course.grant(NIC, GPU, domain=UUID)
    course.settle()
    course.attach(GPU)
    course.happens(DeviceMissing(HOST, NIC))
    assert course.jobs() == []
    course.happens(DeviceReappeared(HOST, describe(NIC)))
    for _ in range(100):
        job = course.job()
        assert isinstance(job, Prepare)
        assert (job.keys, job.all_keys) == ((NIC,), (NIC, GPU))
        course.done(job, Failed(NIC, "it went away"))
        assert not course.jobs() and not course.hears_us()
        course.passes(limits.GIVE_BACK_AGAIN_MS)
    course.settle()
    assert course.handing.is_ready(NIC)


@pytest.mark.parametrize("is_asked", [False, True])
def test_another_thing_in_its_place(course: Course, is_asked: bool) -> None:
    """The lease does not reach it, nor what comes back behind it: nothing is done or vouched for until its end."""
    lease = course.grant(NIC, domain=UUID)
    course.settle()
    course.happens(DeviceReplaced(HOST, describe(NIC, vendor_id="10de")))
    for _ in range(2):
        if is_asked:
            course.dies()
            assert course.sync()
        course.passes(10 * limits.PREPARE_TIMEOUT_MS)
        assert not course.jobs() and not course.hears_us()
        assert check_token(course.handing, NIC, lease, course.now_ms) is not None
        assert may_have(course.handing, UUID, "web1", [NIC], course.now_ms).refusal is not None
        course.happens(DeviceReplaced(HOST, describe(NIC)))
    course.release(lease)
    assert course.job().note.before is not None
    course.settle()


def test_another_thing_before_it_was_prepared(course: Course) -> None:
    """The lease fails, and says why; the new thing is not touched."""
    course.is_deaf = True
    lease = course.grant(NIC)
    course.happens(DeviceReplaced(HOST, describe(NIC, vendor_id="10de")))
    course.is_deaf = False
    assert course.sync()
    assert course.jobs() == []
    assert course.hears_us() == [NotPrepared(NIC, lease, "another thing sits in its place than was leased")]
    assert course.job().note.before is None


def test_a_domain_that_has_it_already(course: Course) -> None:
    """Nothing is bound or reset below the domain that a lease is for, for as long as it has it."""
    course.attach(NIC)
    lease = course.grant(NIC, domain=UUID)
    course.passes(10 * limits.PREPARE_TIMEOUT_MS)
    assert not course.jobs() and not course.hears_us()
    course.detach(NIC)
    assert course.job().grant.lease == lease


def test_another_domain_has_it(course: Course) -> None:
    """It is waited for, and then the lease fails, and says who."""
    course.attach(NIC, OTHER)
    course.grant(NIC, domain=UUID)
    assert course.jobs() == []
    course.passes(limits.PREPARE_TIMEOUT_MS)
    course.jobs()
    (failed,) = course.hears_us()
    assert isinstance(failed, NotPrepared)
    assert OTHER in failed.reason


def test_it_is_not_there(course: Course) -> None:
    """A leased device that is away is waited for, and then the lease fails."""
    course.happens(DeviceMissing(HOST, NIC))
    course.grant(NIC)
    assert course.jobs() == []
    course.passes(limits.PREPARE_TIMEOUT_MS)
    course.jobs()
    assert [type(word) for word in course.hears_us()] == [NotPrepared]


def test_a_domain_stops(course: Course) -> None:
    """Leases that end with it are told; those that are kept, or of which something else is held, are not."""
    first, kept = course.grant(NIC, GPU, domain=UUID), course.grant(SOUND, domain=UUID, keep=True)
    course.settle()
    assert course.handing.stopped(UUID, {NIC}) == []
    assert course.handing.stopped(UUID) == [first]
    assert course.hears_us() == [LetGo(first)]
    assert course.sync()
    assert course.hears_us() == [LetGo(first)]
    course.handing.starts(UUID)
    assert course.sync()
    assert course.hears_us() == []
    assert kept
    course.handing.stopped(UUID)
    course.release(first)
    assert LetGo(first) not in course.hears_us()
