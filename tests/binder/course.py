"""A binder's core with a log that it hears, and somebody who does its jobs, or not."""

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import (
    AttachmentGone,
    AttachmentSeen,
    DomainBond,
    Event,
    LeaseGranted,
    LeaseReleased,
)
from leasehold.events.hostdev_events import (
    DeviceGivenBack,
    DevicePrepared,
    DeviceQuarantined,
    LeaseRevoked,
    PrepareFailed,
)
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import (
    DeviceKey,
    DomainKey,
    Holder,
    HostName,
    Principal,
    RequestId,
    RequestRef,
    device_id,
)
from leasehold.events.inputs import GivenBack, NotPrepared, Observation, Prepared, Stuck
from leasehold.projections.handing import Handing
from leasehold.projections.handlog import HandLog
from leasehold.projections.handnotes import Job, Note, Outcome, Prepare, TakeBack
from leasehold.projections.handover import Back, Before, PreparedDevice, Ready

HOST: Final = HostName("h1")
NIC: Final = DeviceKey("pci/0000:03:00.0")
GPU: Final = DeviceKey("pci/0000:04:00.0")
SOUND: Final = DeviceKey("pci/0000:04:00.1")
KEYS: Final = (NIC, GPU, SOUND)
UUID: Final = "6f6b0d4e-8e5a-4f2b-9f0c-1d2e3f4a5b6c"
WEB: Final = DomainKey(f"qemu/{UUID}")
OTHER: Final = DomainKey("qemu/00000000-0000-4000-8000-000000000001")
REF: Final = RequestRef(Principal("ann"), RequestId("r1"), "0" * 32, 1)
_STEP: Final = 256


def describe(key: DeviceKey, **said: Any) -> DeviceDescription:
    """A PCI function."""
    name = "pci_" + key.removeprefix("pci/").replace(":", "_").replace(".", "_")
    return DeviceDescription(key=key, name=name, kind="pci", **{"driver": "e1000e", "vendor_id": "8086", **said})


class Course:
    """Plays the log, the clock and the machine for one host's binder."""

    def __init__(self, *, boot: str = "b1") -> None:
        self.now_ms = 1_000
        self.position = 10 * _STEP
        self.era = 0
        self.boot = boot
        self.picture = {key: describe(key) for key in KEYS}
        self.fold = HandLog(HOST)
        """What the log has."""
        self.fold.synced([], self.picture, self.position, 0)
        self.disk: tuple[Note, ...] = ()
        self.handing = Handing(HOST, boot=boot)
        self.is_deaf = False
        """What is told does not reach the binder."""
        self.told: list[Observation] = []
        """All that reached the log."""
        assert self.sync()

    # --- the log ------------------------------------------------------------------------------------------------------

    def happens(self, event: Event) -> int:
        """It is in the log, and told."""
        self.position += _STEP
        self.fold.hear(self.position, event, self.position, self.era)
        if not self.is_deaf:
            self.tell(self.position, event)
        return self.position

    def tell(self, position: int, event: Event) -> None:
        """The feed tells it."""
        self.handing.hear(position, event, at_ns=position, era=self.era, now_ms=self.now_ms)

    def grant(
        self, *keys: DeviceKey, domain: str = "", keep: bool = False, forced: bool = False, holder: str = "web1"
    ) -> int:
        """A lease of these."""
        bond: Any = {"bond": DomainBond(uuid=domain, keep=keep)} if domain else {}
        devices = tuple(device_id(HOST, key) for key in keys)
        return self.happens(
            LeaseGranted(
                request=REF, tenant=Principal("ann"), holder=Holder(holder), devices=devices, ttl_ms=1, expires_at_ns=1,
                forced=forced, **bond,
            )
        )  # fmt: skip

    def release(self, lease: int) -> None:
        """Its holder gives it back."""
        self.happens(LeaseReleased(request=REF, lease=lease))

    def revoke(self, lease: int, *, force: bool) -> None:
        """An operator takes it away."""
        self.happens(LeaseRevoked(request=REF, lease=lease, reason="maintenance", force=force))

    def attach(self, key: DeviceKey, domain: DomainKey = WEB) -> None:
        """A hypervisor says that the domain has it."""
        self.happens(AttachmentSeen(HOST, domain, key, "attached", (key,)))

    def detach(self, key: DeviceKey, domain: DomainKey = WEB) -> None:
        """A hypervisor says that the domain does not have it any more."""
        self.happens(AttachmentGone(HOST, domain, key, "attached", (key,)))

    def holds(self) -> list[Hold]:
        """What the log says to who asks."""
        return [
            replace(hold, attached=tuple(self.fold.domains_with(key))) for key, hold in sorted(self.fold.holds.items())
        ]

    def sync(self) -> bool:
        """The binder asks the log."""
        return self.handing.synced(
            self.holds(), self.fold.picture, as_of=self.position, era=self.era, now_ms=self.now_ms
        )

    def hears_us(self) -> list[Observation]:
        """What the binder has to tell gets into the log; what it was."""
        told = self.handing.observations()
        self.told += told
        for word in told:
            event = _event(word)
            if event is not None:
                self.happens(event)
        return told

    # --- the machine --------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Prepare | TakeBack]:
        """What is to be done now; the notes are on disk by then."""
        jobs = self.handing.jobs(self.now_ms)
        self.disk = self.handing.notes
        return jobs

    def job(self) -> Any:
        """The one job that there is."""
        jobs = self.jobs()
        assert len(jobs) == 1, jobs
        return jobs[0]

    def begins(self, job: Prepare) -> None:
        """The machine is about to write: that is noted."""
        self.handing.noted(
            Before(key=each.key, kind=each.kind, sysname=each.key[4:], driver="e1000e", vendor_id=each.vendor_id,
                   product_id=each.product_id)
            for each in job.descriptions
        )  # fmt: skip
        self.disk = self.handing.notes

    def done(self, job: Prepare | TakeBack, outcome: Outcome) -> None:
        """That came of it."""
        self.handing.done(job.number, outcome, self.now_ms)
        self.disk = self.handing.notes

    def succeeds(self, job: Prepare | TakeBack) -> None:
        """It is done well, and the watcher has seen it."""
        if isinstance(job, TakeBack):
            self.done(job, Back("e1000e"))
        else:
            self.begins(job)
            self.done(job, ready(job.keys))
        driver = "e1000e" if isinstance(job, TakeBack) else "vfio-pci"
        self.fold.picture.update({key: replace(self.fold.picture[key], driver=driver) for key in job.keys})

    def settle(self) -> None:
        """Do all that there is to be done, and let the log have what is told, until nothing moves."""
        for _ in range(100):
            jobs = self.jobs()
            for job in jobs:
                self.succeeds(job)
            if not self.hears_us() and not jobs:
                return
        raise AssertionError("it does not come to rest")

    # --- fate ---------------------------------------------------------------------------------------------------------

    def passes(self, ms: int) -> None:
        """Time goes by, and the log is heard all the while."""
        self.now_ms += ms
        self.handing.contact(self.now_ms)

    def dies(self, *, boot: str = "") -> None:
        """The binder is killed, and another begins with what is on disk. `boot`: the host boots meanwhile."""
        self.boot = boot or self.boot
        self.handing = Handing(HOST, self.disk, boot=self.boot)


def ready(keys: Sequence[DeviceKey]) -> Ready:
    """They are prepared."""
    return Ready(tuple(PreparedDevice(key=key, driver="vfio-pci", was_driver="e1000e", reset="flr") for key in keys))


def kinds(jobs: Sequence[Job]) -> list[str]:
    """Of what kind they are."""
    return [type(job).__name__ for job in jobs]


def _event(word: Observation) -> Event | None:
    match word:
        case Prepared():
            return DevicePrepared(
                host=HOST, key=word.key, lease=word.lease, driver=word.driver, was_driver=word.was_driver
            )
        case NotPrepared():
            return PrepareFailed(host=HOST, key=word.key, lease=word.lease, reason=word.reason)
        case GivenBack():
            return DeviceGivenBack(host=HOST, key=word.key, lease=word.lease, driver=word.driver)
        case Stuck():
            return DeviceQuarantined(host=HOST, key=word.key, lease=word.lease, reason=word.reason, help=word.help)
    return None
