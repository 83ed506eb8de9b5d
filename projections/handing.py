"""What a binder is to do, and what it is to tell: its core, without its wires, its disk and its machine.

The log says what is leased (`synced`, then `hear`), the notes say what was begun on this host, and `jobs` says what to
do so that the one follows the other. What is to be told waits in `observations` until the log has it.

| of a device | is done |
|---|---|
| leased, and nothing was begun | prepared, with all others of its lease on this host, or none of them |
| leased, but something of another lease, or of an attempt that failed, is left | that is taken back first |
| its lease has ended, or the log has none, and something was begun | taken back, as soon as no domain has it |
| its lease has ended, and nothing was begun | looked at whether somebody uses it |

Each device has one job at a time. Whatever was begun stands in the notes before, so that a run which was killed at any
point is made good by the next one: what was being prepared is prepared again, what was being taken back is taken back.
A note of another boot is void, since nothing that a binder does outlives one. Floors never go back.

Time is an argument, in ms of a clock that nobody sets.
"""

from collections.abc import Collection, Iterable
from typing import Final

from msgspec.structs import replace

from leasehold.events import limits
from leasehold.events.event_types import Event
from leasehold.events.hostdevs import Hold
from leasehold.events.identities import DeviceKey, HostName, uuid_of
from leasehold.events.inputs import GivenBack, NotPrepared, Observation, Prepared, Stuck
from leasehold.events.position import lease_id_text, token_of
from leasehold.projections.handlog import HandLog, Picture
from leasehold.projections.handmemory import HandMemory
from leasehold.projections.handnotes import (
    PREPARED,
    TAKING_BACK,
    Grant,
    Note,
    Outcome,
    Prepare,
    TakeBack,
)
from leasehold.projections.handover import Back, Before, Busy, Failed, NotBack, Ready
from leasehold.projections.handtelling import Telling
from leasehold.projections.handtries import HandoverTry, Running, Try

AGAIN_MS: Final = 2_000
"""What could not be taken back is tried again after this, until its time is over; then more seldom."""
BUSY_AGAIN_MS: Final = 1_000
"""How often it is looked whether somebody has let go who tells nobody."""
JOBS_AT_ONCE_MAX: Final = 32
"""Of each kind: a thread each, and what a machine does for many at once takes longer for each."""
OVERDUE_MS: Final = 5_000
"""A job that does not come back so long after its time waits for the kernel."""
HELP_HELD: Final = "stop it, or take the device from it"
HELP_HANGS: Final = "see the host's kernel log; it may take a reboot"
HELP_AGAIN: Final = "it is tried again every 30 s"


class Handing:
    """One run of a binder of one host. Whoever drives it writes `notes` down, durably, before he begins with a job."""

    def __init__(
        self,
        host: HostName,
        notes: Iterable[Note] = (),
        *,
        boot: str = "",
        prepare_timeout_ms: int = limits.PREPARE_TIMEOUT_MS,
        give_back_timeout_ms: int = limits.GIVE_BACK_TIMEOUT_MS,
        again_ms: int = limits.GIVE_BACK_AGAIN_MS,
        held_timeout_ms: int = limits.STILL_HELD_MS,
    ) -> None:
        """`notes`: as the run before left them; `boot`: what tells this boot of the host from others."""
        self.log = HandLog(host)
        self._prepare_timeout_ms = prepare_timeout_ms
        self._give_back_timeout_ms = give_back_timeout_ms
        self._again_ms = again_ms
        self._held_timeout_ms = held_timeout_ms
        self._notes = HandMemory(notes, boot)
        self._noted_floor = self._notes.newest_floor
        """What the run before knew. What this one hears itself goes on top of an answer that is older."""
        self._numbers = 0
        self._running: dict[int, Running] = {}
        self._busy: set[DeviceKey] = set()
        self._tries: dict[DeviceKey, Try] = {}
        self._handovers: dict[Grant, HandoverTry] = {}
        self._telling = Telling(self.log)
        self._contact_ms: int | None = None
        self.complaints: list[str] = []
        """What an administrator should read; taken out by whoever writes it down."""

    # --- what the log says ------------------------------------------------------------------------------------------

    def synced(self, holds: Iterable[Hold], picture: Picture, *, as_of: int, era: int, now_ms: int) -> bool:
        """Take in the log's answer to `sync`, which has all devices of the host; false if it is older than what is
        known here: then ask again.
        """
        if self._noted_floor > token_of(era, as_of):
            self._complain(f"the log ends at {as_of} of era {era}; token {self._noted_floor} was acted on here")
            return False
        was_synced = self.log.is_synced
        if not self.log.synced(holds, picture, as_of, era):
            return False
        self.contact(now_ms)
        self._notes.raise_floors(self.log.holds.values())
        # Unheard, devices may have gone and come back; else that was heard, and what was put on top is not new.
        self._take_returned([] if was_synced else self._notes.undone(self.log.picture))
        self._telling.settle()
        self._find_forsaken()
        self._telling.again()
        return True

    def hear(self, position: int, event: Event, *, at_ns: int, era: int, now_ms: int) -> None:
        """Take in what is told of this host, or of the whole cluster: doubled, late or of an older era does no harm.

        `at_ns`: when it was decided, ns since 1970.
        """
        self.contact(now_ms)
        if not self.log.hear(position, event, at_ns, era) or not self.log.is_synced:
            return
        self._notes.raise_floors(self.log.holds.values())
        self._take_returned(self.log.returned)
        self._telling.settle()

    def _take_returned(self, keys: Iterable[DeviceKey]) -> None:
        """What was done to devices that went away and came back is undone; another thing there is left alone."""
        for key in keys:
            if not self.is_another(key):
                self._notes.void(key)
        self.log.returned.clear()

    def contact(self, now_ms: int) -> None:
        """The log was heard, and nothing of it is missing here."""
        self._contact_ms = now_ms

    def is_cut_off(self, now_ms: int) -> bool:
        """Whether the log was not heard for so long that it may say anything now."""
        is_recent = self._contact_ms is not None and now_ms - self._contact_ms <= limits.CUT_OFF_MS
        return not (is_recent and self.log.is_synced)

    def _find_forsaken(self) -> None:
        """Nothing may be granted of what is still handed over for a lease that the log does not have any more."""
        for note in self._notes.all:
            hold = self.log.holds.get(note.key)
            is_over = hold is None or (not hold.token and (not hold.lease or hold.given_back))
            if note.step and is_over:
                said = f"it is still handed over for {lease_id_text(note.lease)}, which the log does not have any more"
                self._telling.stuck(note.key, said, f"the host's binder takes it back; {HELP_AGAIN}")

    # --- what is told -----------------------------------------------------------------------------------------------

    def observations(self) -> list[Observation]:
        """What the wires have not been given yet. What is lost on the way comes again behind the next `synced`."""
        return self._telling.drain()

    @property
    def has_news(self) -> bool:
        """Whether `observations` has something."""
        return self._telling.is_waiting

    def stopped(self, uuid: str, keys: Collection[DeviceKey] | None = None) -> list[int]:
        """A hook says that the domain has stopped, or has let go of the devices of `keys`: its leases that end with it,
        or with these, which the log is asked to end now.
        """
        return self._telling.let_go(uuid, keys)

    def starts(self, uuid: str) -> bool:
        """A hook says that the domain is about to start: what its last stop asked for, and has not come to anything
        yet, is not asked any more; whether it may come to something all the same, as it is on its way.
        """
        return self._telling.keep(uuid)

    def _complain(self, complaint: str) -> None:
        if complaint not in self.complaints:
            self.complaints.append(complaint)

    # --- what is to be done -----------------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[Note, ...]:
        """What must be on disk before a job is begun; sorted by key."""
        return self._notes.all

    def note_of(self, key: DeviceKey) -> Note:
        """Of one device; an empty one if nothing was noted."""
        return self._notes.of(key)

    def noted(self, befores: Iterable[Before]) -> None:
        """A job is about to write to these devices: what they were goes into the notes, and these to disk, before."""
        for before in befores:
            self._notes.writes_to(before)

    def claim(self, key: DeviceKey) -> bool:
        """Let nothing be begun with a device before it was `operated`; false if something is being done to it."""
        if key in self._busy:
            return False
        self._busy.add(key)
        return True

    def operated(self, key: DeviceKey, *, is_attached: bool) -> None:
        """An administrator's order was done with; `is_attached`: the device is on its host driver."""
        self._busy.discard(key)
        if is_attached:
            self._notes.put(replace(self.note_of(key), detached=None))

    def hasten(self, key: DeviceKey) -> None:
        """Somebody asks that a device be taken back now."""
        if (attempt := self._tries.get(key)) is not None and key not in self._busy:
            attempt.next_ms = 0

    def jobs(self, now_ms: int) -> list[Prepare | TakeBack]:
        """What to begin with now: each once, until its `done`."""
        if not self.log.is_synced:
            return []
        self._find_overdue(now_ms)
        living = self.log.grants()
        self._handovers = {grant: each for grant, each in self._handovers.items() if grant in living}
        backs = [self._take_back(key, now_ms) for key in sorted(self._notes.keys | self.log.holds.keys())]
        prepares = [self._prepare(grant, keys, now_ms) for grant, keys in living.items()]
        return [job for job in (*backs, *prepares) if job is not None]

    def done(self, number: int, outcome: Outcome, now_ms: int) -> None:
        """What came of a job."""
        running = self._running.pop(number, None)
        if running is None:
            return
        self._busy.difference_update(running.job.keys)
        if isinstance(running.job, TakeBack):
            self._taken_back(running.job, outcome, now_ms)
        else:
            self._prepared(running.job, outcome, now_ms)

    def next_ms(self, now_ms: int) -> int | None:
        """When `jobs` may have something without that anything was heard, later than now; `None`: never."""
        times = [running.until_ms + OVERDUE_MS for running in self._running.values()]
        for key, attempt in self._tries.items():
            if key not in self._busy:
                times += (attempt.next_ms, self._held_until(attempt))
        for handover in self._handovers.values():
            times += (handover.next_ms, handover.since_ms + self._prepare_timeout_ms)
        return min((time_ms for time_ms in times if time_ms > now_ms), default=None)

    def _begin(self, job: Prepare | TakeBack, until_ms: int) -> None:
        self._running[job.number] = Running(job, until_ms)
        self._busy.update(job.keys)

    def _has_room(self, kind: type[Prepare | TakeBack]) -> bool:
        return sum(isinstance(running.job, kind) for running in self._running.values()) < JOBS_AT_ONCE_MAX

    def _preparing(self) -> list[Prepare]:
        return [running.job for running in self._running.values() if isinstance(running.job, Prepare)]

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _find_overdue(self, now_ms: int) -> None:
        said = "the kernel does not come back from what it was told"
        for running in list(self._running.values()):
            if now_ms < running.until_ms + OVERDUE_MS:
                continue
            if isinstance(running.job, TakeBack):
                self._telling.stuck(running.job.key, said, HELP_HANGS)
            elif self._is_wanted(running.job.grant):
                self._fail(running.job.grant, running.job.keys[0], said, now_ms)
            elif running.job.grant not in self.log.grants():
                for key in running.job.keys:
                    self._telling.stuck(key, said, HELP_HANGS)

    # --- taking back ------------------------------------------------------------------------------------------------

    def wants_back(self, key: DeviceKey) -> bool:
        """Whether a device must be taken back, or looked at, before anybody else gets it."""
        hold, note, living = self.log.holds.get(key), self.note_of(key), self.log.grant_of(key)
        if note.step:
            if living != note.grant or note.step == TAKING_BACK:
                return True
            handover = self._handovers.get(living)
            return handover is not None and bool(handover.failed)
        if hold is None or living is not None or self._telling.has(key, GivenBack):
            return False
        return hold.quarantined or (hold.lease != 0 and not hold.given_back)

    def _take_back(self, key: DeviceKey, now_ms: int) -> TakeBack | None:
        if not self.wants_back(key):
            self._tries.pop(key, None)
            return None
        if key in self._busy:
            return None
        attempt = self._tries.setdefault(key, Try())
        hold, note = self.log.holds.get(key), self.note_of(key)
        is_forced = hold is not None and hold.revoked and not hold.token
        domains = self.log.domains_with(key)
        if domains and not is_forced:
            self._is_held(key, attempt, [f"domain {domain}" for domain in domains], now_ms)
            return None
        if now_ms < attempt.next_ms or not self._has_room(TakeBack):
            return None
        if attempt.since_ms is None:
            attempt.since_ms = now_ms
        if note.step:
            note = self._notes.put(replace(note, step=TAKING_BACK))
        ours = [each for each in self._notes.of_grant(note.grant) if each != key and not self.log.domains_with(each)]
        job = TakeBack(number=self._number(), key=key, note=note, ours=tuple(ours), forced=is_forced)
        self._begin(job, now_ms + self._give_back_timeout_ms)
        return job

    def _is_held(self, key: DeviceKey, attempt: Try, who: Iterable[str], now_ms: int) -> None:
        """Somebody has it: its time does not run, but that is told in the end."""
        attempt.since_ms = None
        if attempt.held_since_ms is None:
            attempt.held_since_ms = now_ms
        attempt.reason, attempt.help = f"{', '.join(who)} still has it", HELP_HELD
        if now_ms >= self._held_until(attempt):
            self._telling.stuck(key, attempt.reason, attempt.help)

    def _held_until(self, attempt: Try) -> int:
        return (attempt.held_since_ms or 0) + self._held_timeout_ms

    def _taken_back(self, job: TakeBack, outcome: Outcome, now_ms: int) -> None:
        key, attempt = job.key, self._tries.setdefault(job.key, Try())
        match outcome:
            case Back(driver=driver):
                self._is_back(key, driver)
            case Busy(who=who):
                self._is_held(key, attempt, who, now_ms)
                attempt.next_ms = now_ms + BUSY_AGAIN_MS
            case NotBack(reason=reason, help=help_):
                attempt.held_since_ms = None
                attempt.reason, attempt.help = reason, help_
                since_ms = attempt.since_ms if attempt.since_ms is not None else now_ms
                is_late = now_ms - since_ms >= self._give_back_timeout_ms
                attempt.next_ms = now_ms + (self._again_ms if is_late else min(AGAIN_MS, self._again_ms))
                if is_late:
                    self._telling.stuck(key, reason, help_)
            case _:
                attempt.next_ms = now_ms + AGAIN_MS

    def _is_back(self, key: DeviceKey, driver: str) -> None:
        """Nothing is left of what any lease had done to it."""
        hold = self.log.holds.get(key)
        self._notes.clear(key)
        self._tries.pop(key, None)
        is_stuck = self._telling.has(key, Stuck) or (hold is not None and hold.quarantined)
        if hold is not None and hold.lease and not hold.token and not hold.given_back:
            self._telling.tell(GivenBack(key, hold.lease, driver))
        elif is_stuck:
            self._telling.tell(GivenBack(key, 0, driver))

    # --- preparing --------------------------------------------------------------------------------------------------

    def is_ready(self, key: DeviceKey) -> bool:
        """Whether the device is handed over for the living lease that holds it, or is none of ours to hand over."""
        note, hold = self.note_of(key), self.log.holds.get(key)
        if hold is None or not hold.token:
            return False
        if not note.step:
            return hold.early
        return note.step == PREPARED and note.grant == self.log.grant_of(key)

    def is_another(self, key: DeviceKey) -> bool:
        """Whether another thing sits in the place of what was handed over: the lease does not reach it."""
        return self.log.is_displaced(key) or self._notes.is_another(key, self.log.picture.get(key))

    def _was_displaced(self, key: DeviceKey) -> bool:
        """Whether it had been handed over before another thing took its place: nothing more is done for the lease."""
        return self.log.is_displaced(key) and (self.log.holds[key].prepared or self.is_ready(key))

    def _is_wanted(self, grant: Grant) -> bool:
        """Whether a lease lives, and has not failed."""
        handover = self._handovers.get(grant)
        return grant in self.log.grants() and not (handover is not None and handover.failed)

    def _prepare(self, grant: Grant, keys: tuple[DeviceKey, ...], now_ms: int) -> Prepare | None:
        open_keys = tuple(key for key in keys if not (self.is_ready(key) or self._was_displaced(key)))
        if not open_keys:
            self._handovers.pop(grant, None)
            self._tell_prepared(keys)
            return None
        handover = self._handovers.get(grant)
        if handover is None:
            is_again = any(self.log.holds[key].prepared or self.is_ready(key) for key in keys)
            handover = self._handovers[grant] = HandoverTry(now_ms, is_again=is_again)
        if handover.failed:
            return None
        if busy := [key for key in open_keys if key in self._busy]:
            is_late = now_ms - handover.since_ms >= self._prepare_timeout_ms
            if is_late and all(job.grant != grant for job in self._preparing()):
                self._fail(grant, busy[0], "what was begun with it before is not over", now_ms)
            return None
        hold = self.log.holds[open_keys[0]]
        uuids = {uuid_of(domain) for key in open_keys for domain in self.log.domains_with(key)}
        is_with_its_domain = uuids == {hold.domain}
        if is_with_its_domain or self.is_cut_off(now_ms) or not self._has_room(Prepare):
            # Its time does not run. What its own domain has already is not bound or reset below that.
            handover.since_ms = now_ms
            return None
        obstacle = self._obstacle(open_keys, forced=hold.forced)
        if obstacle is not None:
            key, reason, is_final = obstacle
            if is_final or now_ms - handover.since_ms >= self._prepare_timeout_ms:
                self._fail(grant, key, reason, now_ms)
            return None
        return self._begin_prepare(grant, keys, open_keys, now_ms) if now_ms >= handover.next_ms else None

    def _obstacle(self, keys: tuple[DeviceKey, ...], *, forced: bool) -> tuple[DeviceKey, str, bool] | None:
        """Which device cannot be prepared now, why, and whether that is so for good."""
        for key in keys:
            token, floor = self.log.holds[key].token, self.note_of(key).floor
            if self.log.is_displaced(key):
                return key, "another thing sits in its place than was leased", True
            if token < floor:
                return key, f"its token {token} is below the floor {floor} noted here: the log lacks what it had", True
            needs = self.log.protected(key)
            if needs and not forced:
                return key, f"the host itself needs it: {', '.join(needs)}", True
        for key in keys:
            if domains := self.log.domains_with(key):
                return key, f"domain {domains[0]} has it", False
            if self.wants_back(key):
                attempt = self._tries.get(key)
                reason = (attempt.reason if attempt is not None else "") or "that takes its time"
                return key, f"what an earlier lease left of it could not be taken back: {reason}", False
            if key not in self.log.picture:
                return key, "it is not there", False
        return None

    def _begin_prepare(
        self, grant: Grant, keys: tuple[DeviceKey, ...], open_keys: tuple[DeviceKey, ...], now_ms: int
    ) -> Prepare:
        hold = self.log.holds[keys[0]]
        for key in open_keys:
            self._notes.begin(key, grant, hold.token)
        until_ms = max(self._handovers[grant].since_ms + self._prepare_timeout_ms, now_ms + AGAIN_MS)
        job = Prepare(
            number=self._number(), grant=grant, token=hold.token, keys=open_keys, all_keys=keys,
            handover=hold.handover, forced=hold.forced, until_ms=until_ms,
            descriptions=tuple(self.log.picture[key] for key in open_keys),
            notes=tuple(map(self.note_of, open_keys)),
        )  # fmt: skip
        self._begin(job, until_ms)
        return job

    def _prepared(self, job: Prepare, outcome: Outcome, now_ms: int) -> None:
        match outcome:
            case Ready(devices=devices):
                for device in devices:
                    self._notes.put(replace(self.note_of(device.key), step=PREPARED, prepared=device))
                if self._is_wanted(job.grant):
                    self._tell_prepared(job.keys)
            case Failed(key=key, reason=reason, left=left):
                self._not_prepared(job, left, now_ms)
                if self._is_wanted(job.grant):
                    self._fail(job.grant, key, reason, now_ms)
            case _ if job.grant in self._handovers:
                self._handovers[job.grant].next_ms = now_ms + AGAIN_MS

    def _not_prepared(self, job: Prepare, left: tuple[NotBack, ...], now_ms: int) -> None:
        """Nothing of it is left, but for what could not be undone: that is tried again."""
        reasons = {each.key: each for each in left}
        for key in job.keys:
            if key in reasons:
                self._notes.put(replace(self.note_of(key), step=TAKING_BACK))
                self._tries[key] = Try(now_ms, None, now_ms + AGAIN_MS, reasons[key].reason, reasons[key].help)
            else:
                self._notes.clear(key)

    def _tell_prepared(self, keys: Iterable[DeviceKey]) -> None:
        for key in keys:
            note, hold = self.note_of(key), self.log.holds.get(key)
            is_new = hold is not None and not hold.prepared and not self._telling.has(key, Prepared)
            if note.prepared is not None and is_new:
                done = note.prepared
                self._telling.tell(Prepared(key, note.lease, done.driver, done.was_driver, done.reset))

    def _fail(self, grant: Grant, key: DeviceKey, reason: str, now_ms: int) -> None:
        """A device cannot be handed over: that ends the lease, but not below a domain that has another part of it."""
        handover = self._handovers.setdefault(grant, HandoverTry(now_ms))
        self._complain(f"{key} cannot be prepared for {lease_id_text(grant.lease)}: {reason}")
        keys = self.log.grants().get(grant, ())
        is_used = any(self.log.domains_with(each) for each in keys)
        is_late = now_ms - handover.since_ms >= self._prepare_timeout_ms
        if handover.is_again and (is_used or not is_late):
            handover.next_ms = now_ms + (self._again_ms if is_late else AGAIN_MS)
            return
        handover.failed = reason
        self._telling.failed(grant, NotPrepared(key, grant.lease, reason[: limits.REASON_CHARS_MAX]))
