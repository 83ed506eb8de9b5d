"""What a binder does and tells, whatever is told to it, whenever it dies: its core alone."""

import msgspec
import pytest

from leasehold.events import limits
from leasehold.events.event_types import AttachmentSeen, LeaseReleased, LedgerRestored
from leasehold.events.hostdev_events import HostDeclaredDead
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey
from leasehold.events.inputs import GivenBack, NotPrepared, Prepared, Stuck
from leasehold.events.position import token_of
from leasehold.projections.handing import AGAIN_MS, JOBS_AT_ONCE_MAX, OVERDUE_MS, Handing
from leasehold.projections.handnotes import Prepare, TakeBack
from leasehold.projections.handover import Failed, NotBack
from tests.binder.course import GPU, HOST, NIC, REF, SOUND, WEB, Course, describe, kinds, ready


@pytest.fixture
def course() -> Course:
    """A host whose log is known and where nothing is leased."""
    return Course()


def test_a_lease_is_prepared_as_a_whole_and_given_back_one_by_one(course: Course) -> None:
    """All devices of a lease make one job; its end makes one for each, and each is told."""
    lease = course.grant(GPU, SOUND)
    job = course.job()
    assert (job.keys, job.token) == ((GPU, SOUND), lease)
    assert [note.step for note in course.disk] == ["preparing", "preparing"]
    assert course.jobs() == []
    course.succeeds(job)
    assert course.hears_us() == [Prepared(key, lease, "vfio-pci", "e1000e", "flr") for key in (GPU, SOUND)]
    assert not course.jobs() and not course.hears_us()
    course.release(lease)
    backs = course.jobs()
    assert [(job.key, job.ours) for job in backs if isinstance(job, TakeBack)] == [(GPU, (SOUND,)), (SOUND, (GPU,))]
    course.settle()
    for back in backs:
        course.succeeds(back)
    assert course.hears_us() == [GivenBack(key, lease, "e1000e") for key in (GPU, SOUND)]
    course.settle()
    assert [(note.step, note.floor > lease) for note in course.disk] == [("", True), ("", True)]


def test_what_is_told_is_told_until_the_log_has_it(course: Course) -> None:
    """A word that was lost comes again with the next sync, and is not told once the log has it."""
    lease = course.grant(NIC)
    course.succeeds(course.job())
    assert course.handing.observations() == [Prepared(NIC, lease, "vfio-pci", "e1000e", "flr")]
    assert course.handing.observations() == []
    assert course.sync()
    assert len(course.hears_us()) == 1
    assert course.sync()
    assert course.hears_us() == []


def test_a_lease_that_ends_while_it_is_being_prepared(course: Course) -> None:
    """What is ready too late is taken back, and never told as prepared."""
    lease = course.grant(NIC)
    job = course.job()
    course.release(lease)
    assert course.jobs() == []
    course.begins(job)
    course.done(job, ready(job.keys))
    assert course.hears_us() == []
    assert kinds([course.job()]) == ["TakeBack"]


def test_one_device_of_several_that_cannot_be_prepared(course: Course) -> None:
    """The lease fails for the one, and all of it is given back; what could not be undone is tried until it can."""
    lease = course.grant(NIC, GPU)
    job = course.job()
    course.begins(job)
    course.done(job, Failed(GPU, "vfio-pci refuses it", (NotBack(NIC, "e1000e does not take it", "bind it by hand"),)))
    assert course.hears_us() == [NotPrepared(GPU, lease, "vfio-pci refuses it")]
    look = course.job()
    assert (look.key, look.note.before) == (GPU, None)
    course.succeeds(look)
    assert course.hears_us() == [GivenBack(GPU, lease, "e1000e")]
    course.passes(AGAIN_MS)
    back = course.job()
    assert back.key == NIC
    assert back.note.before is not None
    course.succeeds(back)
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


def test_words_of_the_feed_that_are_doubled_late_or_of_another_era(course: Course) -> None:
    """What was heard before changes nothing when it is told again, nor does what an older ledger told."""
    lease = course.grant(NIC)
    course.settle()
    granted = course.position - 2 * 256
    course.release(lease)
    course.settle()
    before = (course.handing.log.holds, course.handing.notes)
    ended = course.handing.log.holds[NIC]
    assert not ended.token
    course.tell(granted, LeaseReleased(request=REF, lease=lease))
    assert (course.handing.log.holds, course.handing.notes) == before
    course.era, later = -1, course.position + 256
    course.tell(later, LeaseReleased(request=REF, lease=lease))
    assert (course.handing.log.holds, course.handing.notes) == before


def test_what_an_answer_has_already(course: Course) -> None:
    """Told late, it is not taken for new."""
    course.attach(NIC)
    seen, event = course.position, AttachmentSeen(HOST, WEB, NIC, "attached", (NIC,))
    course.detach(NIC)
    course.handing = Handing(HOST)
    assert course.sync()
    course.tell(seen, event)
    assert course.handing.log.domains_with(NIC) == []


def test_an_answer_that_is_older_than_what_was_heard(course: Course) -> None:
    """What was told since is put on top of it."""
    holds, as_of = course.holds(), course.position
    lease = course.grant(NIC)
    assert course.handing.synced(holds, course.picture, as_of=as_of, era=0, now_ms=course.now_ms)
    assert course.job().grant.lease == lease


def test_an_answer_that_is_older_than_the_notes(course: Course) -> None:
    """It is not believed, nor is a log that ends before what was acted on here: nothing is done, and that is told."""
    holds, as_of = course.holds(), course.position
    course.grant(NIC)
    course.settle()
    course.dies()
    assert not course.handing.synced(holds, course.picture, as_of=as_of, era=0, now_ms=course.now_ms)
    assert "was acted on here" in course.handing.complaints[0]
    assert not course.jobs() and not course.hears_us()
    assert course.sync()


@pytest.mark.parametrize("is_noted", [False, True])
def test_killed_while_preparing(course: Course, is_noted: bool) -> None:
    """The next run prepares again, and knows what the devices were before the first one touched them."""
    course.grant(NIC)
    job = course.job()
    if is_noted:
        course.begins(job)
    course.dies()
    assert course.jobs() == []
    assert course.sync()
    again = course.job()
    assert isinstance(again, Prepare)
    assert (again.notes[0].before is not None) == is_noted
    course.succeeds(again)
    course.settle()
    assert course.fold.holds[NIC].prepared


def test_killed_when_it_was_prepared_and_not_told(course: Course) -> None:
    """It is told by the next run, and not done twice."""
    lease = course.grant(NIC)
    course.succeeds(course.job())
    course.dies()
    assert course.sync()
    assert course.jobs() == []
    assert [type(word) for word in course.hears_us()] == [Prepared]
    assert course.fold.holds[NIC].lease == lease


def test_killed_while_taking_back(course: Course) -> None:
    """The next run takes back."""
    lease = course.grant(NIC)
    course.settle()
    course.release(lease)
    assert kinds([course.job()]) == ["TakeBack"]
    course.dies()
    assert course.sync()
    back = course.job()
    assert back.note.before is not None
    course.succeeds(back)
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


def test_killed_when_it_could_not_undo_what_it_had_begun(course: Course) -> None:
    """Whether its lease lives or not, that is taken back before anything else is done."""
    course.grant(NIC)
    job = course.job()
    course.begins(job)
    course.done(job, Failed(NIC, "no reset", (NotBack(NIC, "e1000e does not take it", "bind it by hand"),)))
    course.dies()
    assert course.sync()
    back = course.job()
    assert isinstance(back, TakeBack)
    course.succeeds(back)
    again = course.job()
    assert isinstance(again, Prepare)
    assert again.notes[0].before is None


def test_a_lease_that_the_log_does_not_have_any_more(course: Course) -> None:
    """Nothing is granted of what is still handed over: that is told first, and ended when it was taken back."""
    lease = course.grant(NIC)
    course.settle()
    course.fold.holds[NIC] = Hold(key=NIC, floor=lease + 1)
    course.dies()
    assert course.sync()
    (stuck,) = course.hears_us()
    assert isinstance(stuck, Stuck)
    assert (stuck.key, stuck.lease) == (NIC, 0)
    course.succeeds(course.job())
    assert course.hears_us() == [GivenBack(NIC, 0, "e1000e")]
    assert not course.fold.holds[NIC].quarantined
    assert course.sync()
    assert not course.hears_us() and not course.jobs()


def test_a_number_that_a_restored_ledger_gave_again(course: Course) -> None:
    """It is another lease: what was prepared for the lost one is taken back first."""
    lease = course.grant(NIC)
    course.settle()
    course.era = 1
    course.tell(256, LedgerRestored(writer="w", era=1, through=1, reason="lost", until_ns=1))
    assert course.jobs() == []
    course.dies()
    token = token_of(1, lease)
    hold = Hold(key=NIC, floor=token, lease=lease, token=token, granted_at_ns=lease + 77, holder="other")
    course.fold.synced([hold], course.picture, lease, 1)
    course.position = lease
    assert course.sync()
    back = course.job()
    assert isinstance(back, TakeBack)
    course.succeeds(back)
    assert course.job().token == token


def test_words_of_a_lost_lease_are_not_said_of_another(course: Course) -> None:
    """That a lease was prepared, or cannot be, is not told of the one that has its number behind a restore."""
    for goes_well in (True, False):
        course.__init__()  # type: ignore[misc]
        lease = course.grant(NIC)
        job = course.job()
        course.begins(job)
        course.done(job, ready(job.keys) if goes_well else Failed(NIC, "no"))
        lost = course.handing.observations()
        assert [word.lease for word in lost if isinstance(word, Prepared | NotPrepared)] == [lease]
        course.era, token = 1, token_of(1, lease)
        hold = Hold(key=NIC, floor=token, lease=lease, token=token, granted_at_ns=lease + 77, holder="other")
        course.fold.synced([hold], course.picture, lease, 1)
        course.position = lease
        assert course.sync()
        assert course.handing.observations() == []
        course.settle()
        assert course.handing.is_ready(NIC)
        assert course.fold.holds[NIC].prepared


def test_a_lease_that_outlived_a_restore(course: Course) -> None:
    """It has another token, and stays prepared."""
    lease = course.grant(NIC)
    course.settle()
    token = token_of(1, lease)
    kept = msgspec.structs.replace(course.fold.holds[NIC], token=token, floor=token)
    course.era = 1
    course.fold.synced([kept], course.picture, lease, 1)
    assert course.sync()
    assert course.jobs() == []
    assert course.handing.is_ready(NIC)


def test_a_reboot(course: Course) -> None:
    """Nothing that was done is left: living leases are prepared anew, ended ones are over when nobody uses anything."""
    living = course.grant(NIC)
    ended = course.grant(GPU)
    course.settle()
    course.release(ended)
    course.jobs()
    course.dies(boot="b2")
    assert course.sync()
    look, anew = course.jobs()
    assert isinstance(look, TakeBack)
    assert (look.key, look.note.before) == (GPU, None)
    assert isinstance(anew, Prepare)
    assert (anew.keys, anew.notes[0].before, anew.grant.lease) == ((NIC,), None, living)
    assert all(note.floor for note in course.disk)


def test_what_cannot_be_taken_back(course: Course) -> None:
    """It is tried until its time is over, told then, tried more seldom, and told when it went after all."""
    lease = course.grant(NIC)
    course.settle()
    course.release(lease)
    begun_ms = course.now_ms
    while course.now_ms - begun_ms < limits.GIVE_BACK_TIMEOUT_MS:
        assert course.hears_us() == []
        course.done(course.job(), NotBack(NIC, "e1000e refuses it", "bind it by hand"))
        course.passes(AGAIN_MS)
    course.done(course.job(), NotBack(NIC, "e1000e refuses it", "bind it by hand"))
    assert course.hears_us() == [Stuck(NIC, lease, "e1000e refuses it", "bind it by hand")]
    course.passes(limits.GIVE_BACK_AGAIN_MS - 1)
    assert course.jobs() == []
    course.passes(1)
    course.succeeds(course.job())
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]
    assert not course.fold.holds[NIC].quarantined


def test_a_kernel_that_does_not_come_back(course: Course) -> None:
    """What is never answered is told as failed in its time; the device has no other job before it is."""
    lease = course.grant(NIC)
    job = course.job()
    course.passes(limits.PREPARE_TIMEOUT_MS + OVERDUE_MS)
    assert course.jobs() == []
    (failed,) = course.hears_us()
    assert isinstance(failed, NotPrepared)
    course.passes(limits.PREPARE_TIMEOUT_MS)
    assert course.jobs() == []
    course.begins(job)
    course.done(job, ready(job.keys))
    back = course.job()
    course.passes(limits.GIVE_BACK_TIMEOUT_MS + OVERDUE_MS)
    assert course.jobs() == []
    (stuck,) = course.hears_us()
    assert isinstance(stuck, Stuck)
    assert stuck.lease == lease
    course.succeeds(back)
    assert course.hears_us() == [GivenBack(NIC, lease, "e1000e")]


def test_cut_off(course: Course) -> None:
    """Who does not hear the log prepares nothing; what has ended is taken back all the same."""
    ended = course.grant(GPU)
    course.settle()
    course.release(ended)
    course.grant(NIC)
    course.now_ms += limits.CUT_OFF_MS + 1
    (back,) = course.jobs()
    assert isinstance(back, TakeBack)
    assert back.key == GPU
    course.passes(0)
    assert kinds([course.job()]) == ["Prepare"]


def test_a_log_that_lost_what_was_acted_on(course: Course) -> None:
    """A token below the floor on disk is not acted on: the lease fails, and says why."""
    course.grant(NIC)
    course.settle()
    floor = course.disk[0].floor
    course.fold.holds[NIC] = Hold(key=NIC, floor=floor - 1, lease=floor - 1, token=floor - 1, granted_at_ns=5)
    course.dies()
    assert course.sync()
    course.settle()
    failed = next(word for word in course.told if isinstance(word, NotPrepared))
    assert "floor" in failed.reason
    assert course.disk[0].floor >= floor


@pytest.mark.parametrize("forced", [False, True])
def test_what_the_host_itself_needs(course: Course, forced: bool) -> None:
    """Whatever the log says, it is not taken from the host unless the lease was forced; parts of it count."""
    child = describe(NIC, protections=("carries the default route",))
    key = DeviceKey(f"{NIC}/net/0")
    course.fold.picture[key] = msgspec.structs.replace(child, key=key, kind="net")
    assert course.sync()
    course.grant(NIC, forced=forced)
    assert kinds(course.jobs()) == ["Prepare"] * forced
    assert [type(word) for word in course.hears_us()] == [NotPrepared] * (not forced)


def test_a_lease_from_before_anybody_handed_over(course: Course) -> None:
    """Its holder has taken the device himself: it is left to him."""
    lease = course.grant(NIC)
    course.fold.holds[NIC] = msgspec.structs.replace(course.fold.holds[NIC], early=True)
    course.dies()
    assert course.sync()
    assert not course.jobs() and not course.hears_us()
    assert course.handing.is_ready(NIC)
    course.release(lease)
    assert course.job().note.before is None


def test_many_at_once(course: Course) -> None:
    """So many jobs of a kind are begun, and no more before one is done; nothing waits for ever by that."""
    keys = [DeviceKey(f"pci/0000:{bus:02x}:00.0") for bus in range(16, 16 + JOBS_AT_ONCE_MAX + 8)]
    course.fold.picture.update({key: describe(key) for key in keys})
    assert course.sync()
    leases = [course.grant(key) for key in keys]
    begun = course.jobs()
    assert len(begun) == JOBS_AT_ONCE_MAX
    course.passes(limits.PREPARE_TIMEOUT_MS)
    assert course.jobs() == []
    course.succeeds(begun[0])
    (more,) = course.jobs()
    for job in (*begun[1:], more):
        course.succeeds(job)
    course.settle()
    for lease in leases:
        course.release(lease)
    assert len(course.jobs()) == JOBS_AT_ONCE_MAX


def test_remains_of_a_lease_that_was_freed_by_hand(course: Course) -> None:
    """What an operator freed and gave to another is taken back before it is prepared for that one."""
    course.grant(NIC)
    course.settle()
    course.fold.holds[NIC] = Hold(key=NIC, floor=course.position)
    lease = course.grant(NIC)
    assert course.sync()
    back = course.job()
    assert isinstance(back, TakeBack)
    course.done(back, NotBack(NIC, "no", "do"))
    course.passes(limits.PREPARE_TIMEOUT_MS)
    course.done(course.job(), NotBack(NIC, "no", "do"))
    course.passes(1)
    course.jobs()
    told = course.hears_us()
    assert NotPrepared in {type(word) for word in told} | {type(word) for word in course.told}
    assert course.fold.holds[NIC].lease == lease


def test_a_host_that_was_declared_dead(course: Course) -> None:
    """Who hears that of himself does nothing new before he has asked the log again."""
    course.grant(NIC)
    course.happens(HostDeclaredDead(request=REF, host=HOST, reason="it burns"))
    assert course.jobs() == []
    assert course.handing.is_cut_off(course.now_ms)
    assert course.sync()
    assert kinds([course.job()]) == ["Prepare"]
