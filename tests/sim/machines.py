"""What a binder's machine does in the simulator: each job in steps, between which its binder may be killed.

Each is a generator that yields behind each step and returns what came of it, as `services.binder.machine` does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from leasehold.events.capabilities import DetachDevice, ReattachDevice
from leasehold.events.identities import DeviceKey
from leasehold.projections.handnotes import Job, Operate, Outcome, Prepare, TakeBack
from leasehold.projections.handover import Back, Before, Busy, Done, Failed, NotBack, PreparedDevice, Ready
from tests.sim.kernels import STUB, STUBS, SimKernel, host_driver

Steps = Generator[None, None, Outcome]
NoteBefore = Callable[[Sequence[Before]], None]
"""Makes durable what devices were, before anything is done to them."""
_HELP = "look at the host"


def carry_out(kernel: SimKernel, job: Job, note: NoteBefore) -> Steps:
    """The steps of a job."""
    match job:
        case Prepare():
            return _prepare(kernel, job, note)
        case TakeBack():
            return _take_back(kernel, job)
        case Operate():
            return _operate(kernel, job, note)


def _prepare(kernel: SimKernel, job: Prepare, note: NoteBefore) -> Steps:
    noted = {each.key: each.before for each in job.notes if each.before is not None}
    befores: dict[DeviceKey, Before] = {}
    for key in job.keys:
        unfit = _unfit(kernel, job, key)
        if unfit:
            return Failed(key, unfit, left=(yield from _roll_back(kernel, job, noted)))
        befores[key] = noted.get(key) or _before(kernel, job, key)
    note(tuple(befores.values()))
    for key, before in befores.items():
        for driver in (before.stub,) if before.unmanaged else ("", before.stub):
            yield
            if kernel.users(key):
                return Failed(key, f"{kernel.users(key)[0]} has it", left=(yield from _roll_back(kernel, job, befores)))
            kernel.hand_over(key, job.grant.lease, driver)
        kernel.reset(key, job.all_keys)
    yield
    for key, before in befores.items():
        is_refused = kernel.sim.binder_rng.random() < kernel.sim.faults.kernel_refuses
        if is_refused or not kernel.is_there(key) or kernel.driver(key) != before.stub:
            return Failed(key, "it is not bound to its stub", left=(yield from _roll_back(kernel, job, befores)))
    kernel.ready.update(dict.fromkeys(befores, job.grant.lease))
    prepared = [PreparedDevice(key=key, driver=each.stub, was_driver=each.driver) for key, each in befores.items()]
    return Ready(tuple(prepared))


def _unfit(kernel: SimKernel, job: Prepare, key: DeviceKey) -> str:
    if not kernel.is_there(key):
        return "it is not there"
    if kernel.users(key):
        return f"{kernel.users(key)[0]} has it"
    if job.handover is not None and job.handover.unmanaged and key.startswith("pci/"):
        return "" if kernel.driver(key) in STUBS else "it is not on a stub"
    return ""


def _before(kernel: SimKernel, job: Prepare, key: DeviceKey) -> Before:
    handover, driver = job.handover, kernel.driver(key)
    is_unmanaged = handover is not None and handover.unmanaged
    stub = (handover.driver if handover else "") or STUB if key.startswith("pci/") else ""
    return Before(
        key=key,
        kind="pci" if key.startswith("pci/") else "usb_device",
        sysname=key.rpartition("/")[2],
        driver=driver,
        stub=driver if is_unmanaged else stub,
        unmanaged=is_unmanaged,
    )


def _roll_back(
    kernel: SimKernel, job: Prepare, befores: dict[DeviceKey, Before]
) -> Generator[None, None, tuple[NotBack, ...]]:
    left = []
    for key, before in befores.items():
        lease = job.grant.lease
        if kernel.handed.get(key) != lease:
            continue
        yield
        if kernel.users(key):
            left.append(NotBack(key, f"{kernel.users(key)[0]} has it", _HELP))
            continue
        kernel.take_back(key, lease, before.driver, forced=False, rolls_back=True)
        if kernel.is_there(key) and kernel.driver(key) != before.driver:
            left.append(NotBack(key, f"{before.driver} does not take it", _HELP))
        else:
            kernel.is_back(key, lease)
    return tuple(left)


def _take_back(kernel: SimKernel, job: TakeBack) -> Steps:
    key, before, lease = job.key, job.note.before, job.note.lease
    yield
    if not kernel.is_there(key):
        return Back()
    if kernel.users(key) and not job.forced:
        return Busy(kernel.users(key))
    if before is None:
        return Back(kernel.driver(key))
    kernel.reset(key, job.ours)
    for driver in (before.stub,) if before.unmanaged else ("", before.driver):
        yield
        if kernel.users(key) and not job.forced:
            return Busy(kernel.users(key))
        kernel.take_back(key, lease, driver, forced=job.forced)
    if kernel.is_there(key) and kernel.driver(key) != (before.stub if before.unmanaged else before.driver):
        return NotBack(key, f"{before.driver} does not take it", _HELP)
    kernel.is_back(key, lease)
    return Back(kernel.driver(key) if kernel.is_there(key) else "")


def _operate(kernel: SimKernel, job: Operate, note: NoteBefore) -> Steps:
    what = job.what
    key = what.device
    yield
    if not kernel.is_there(key):
        return NotBack(key, "it is not there", _HELP)
    if kernel.users(key):
        return Busy(kernel.users(key))
    match what:
        case DetachDevice():
            stub = what.driver or STUB
            note((Before(key=key, kind="pci", sysname=key.rpartition("/")[2], driver=kernel.driver(key), stub=stub),))
            yield
            kernel.order(key, stub)
            return Ready((PreparedDevice(key=key, driver=stub),))
        case ReattachDevice():
            kernel.order(key, host_driver(key))
            if kernel.driver(key) != host_driver(key):
                return NotBack(key, "its driver does not take it", _HELP)
            return Back(kernel.driver(key))
    return Done(kernel.driver(key))
