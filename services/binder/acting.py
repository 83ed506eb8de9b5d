"""One job of the binder, done on its machine. It blocks."""

from collections.abc import Sequence

from leasehold.events.capabilities import DetachDevice, ReattachDevice, ResetDevice
from leasehold.events.hostdevs import Handover
from leasehold.projections.handnotes import Operate, Outcome, Prepare, TakeBack
from leasehold.projections.handover import Back, Busy, Failed, Target
from leasehold.services.binder.machine import Machine, Note


def act(machine: Machine, job: Prepare | TakeBack | Operate, note: Note, now_ms: int) -> Outcome:
    """Do it; `note` makes durable what devices were before, or raises OSError."""
    match job:
        case Prepare():
            return machine.prepare(_targets(job), note=note, time_s=(job.until_ms - now_ms) / 1_000)
        case TakeBack():
            return _take_back(machine, job)
        case Operate():
            return _operate(machine, job, note)


def _targets(job: Prepare) -> Sequence[Target]:
    return tuple(
        Target(description=description, handover=job.handover, before=noted.before, forced=job.forced)
        for description, noted in zip(job.descriptions, job.notes, strict=True)
    )


def _take_back(machine: Machine, job: TakeBack) -> Outcome:
    if job.note.before is not None:
        return machine.take_back(job.note.before, ours=job.ours, forced=job.forced)
    # Nothing was written to it for any lease, so there is nothing to take it from anybody by.
    seen = machine.look(job.key)
    return Busy(seen.users) if seen.users else Back(seen.driver)


def _operate(machine: Machine, job: Operate, note: Note) -> Outcome:
    match job.what:
        case DetachDevice(device=key, driver=driver):
            if job.description is None:
                return Failed(key, "it is not there")
            return machine.detach(Target(description=job.description, handover=Handover(driver=driver)), note=note)
        case ReattachDevice(device=key):
            return machine.reattach(key, job.note.detached)
        case ResetDevice(device=key):
            return machine.reset(key)
