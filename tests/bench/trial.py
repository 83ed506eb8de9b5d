"""What is asked of a cluster on paper (`crowd`) and timed: one run, in a process of its own, printed as JSON.

`python -m tests.bench.trial HOSTS WAITERS TIMES`
"""

import gc
import sys
import time
from typing import Final

import msgspec

from leasehold.events import inputs, limits, schedule_inputs
from leasehold.events.event_types import LeaseGranted
from leasehold.events.identities import Principal
from leasehold.events.scheduling import DRAIN, Need
from leasehold.projections import evolve, selectors
from leasehold.projections.snapshots import decode_state, encode_state
from tests.bench.crowd import (
    DISKS,
    GPU,
    GPUS,
    NICS,
    OPERATOR,
    PER_HOST,
    Crowd,
    Timed,
    device_of,
    distinct,
    granted,
    resident_mb,
    same,
    scheduler,
)

BARE, BARE_RELEASE = "lease by name, no leases and nobody waiting yet", "its release"
NAMED: Final = "lease by name"
UNWAITED: Final = "release that nobody waits for"
USELESS: Final = "release of two, of use to nobody who waits for such"
FREED: Final = "release, until one who waits has it"
GATHERED: Final = "release, of one that is kept for who needs more"
ONE: Final = "one of a model"
PAIR: Final = "two of a class on one NUMA node"
GANG: Final = "two and two, each over two hosts"
UNNARROWED: Final = "by what no index has, and there are such"
CUT_OFF: Final = "by what no index has, and there is none (cut off)"
REFUSED_BY_NAME: Final = "refused by name: it is leased"
REFUSED: Final = "refused by need: all are leased, with reasons"
NONE_SUCH: Final = "refused by need: there is no such model"
FIRST, LAST = "the first ten that wait", "the last ten that wait"
WAITS: Final = {0: "let in to wait for any GPU", 4: "for a GPU by name", 9: "for a GPU and four NICs of its host"}
"""By what the number of who waits ends with (`Crowd.wanted`)."""
WITHDRAWN: Final = "withdrawn"
LOOK: Final = "one look at those who wait"
SERVED_BYTES: Final = "bytes of the log: one waits, another releases, the first has it"
WRITTEN, COVERED = "renewal that is written", "renewal that is covered"
MANY_WRITTEN, MANY_COVERED = "renew_many that is written, each lease", "renew_many that is covered, each lease"
DRAIN_ANSWERED: Final = "drain of a host with 100 leases: until its answer"
DRAINED: Final = "drain of a host with 100 leases: until all is looked at"
UNDRAINED: Final = "drain taken back"
_SELDOM: Final = 10
_DISK: Final = 'device.vendor == "144d" && device.product == "a808"'
_NOBODYS: Final = 'device.vendor == "144d" && device.product == "ffff"'


class Found(msgspec.Struct, kw_only=True):
    """What one run has found: times in us, memory in MB, sizes in bytes."""

    us: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    counts: dict[str, float] = {}

    def note(self, what: str, timed: Timed) -> Timed:
        """How long it took."""
        self.us.setdefault(what, []).append(timed.us)
        return timed


class Trial:
    """All that is asked of one crowd, by turns."""

    def __init__(self, hosts: int, waiters: int) -> None:
        self.found = Found()
        self._waiters = waiters
        self.found.memory["empty"] = resident_mb()
        self.crowd = Crowd(hosts)
        self.crowd.picture()
        self.found.memory["devices"] = resident_mb()

    def run(self, times: int) -> Found:
        """All of it."""
        for number in range(times):
            self._by_name(number, BARE, BARE_RELEASE)
        self.crowd.lease_gpus()
        self.found.memory["leases"] = resident_mb()
        self.crowd.add_classes()
        before_mb = resident_mb()
        entering = [self.crowd.wait(number).us for number in range(self._waiters)]
        self.found.us[FIRST] = entering[:10]
        self.found.us[LAST] = entering[-10:]
        self.found.memory["waiting"] = resident_mb() - before_mb
        self.found.memory["whole"] = resident_mb()
        self.found.counts["kept"] = len(self.crowd.state.indexes.kept)
        snapshot = self._snapshot()
        self.crowd.bodies = []
        for number in range(times):
            self._lease(number)
            self._wait(number)
            self._renew(number)
            if number % _SELDOM == 0:
                self._seldom(number)
        for number in range(3):
            self._drain(number)
        self._fold(snapshot)
        return self.found

    def _settle(self) -> list[Timed]:
        """Let those who wait be looked at, for as long as something is new for them."""
        records = list(self.crowd.settle())
        for timed in records:
            if timed.looks:
                self.found.us.setdefault(LOOK, []).append(timed.us / timed.looks)
        return records

    # --- leases

    def _by_name(self, number: int, lease: str, release: str) -> None:
        host = self.crowd.hosts[number * 7 % len(self.crowd.hosts)]
        device = device_of(host, DISKS[number % len(DISKS)])
        by = scheduler(number)
        self._release(granted(self.found.note(lease, self.crowd.ask(self.crowd.lease(device), by))), release)

    def _release(self, lease: int, what: str = "") -> list[Timed]:
        timed = self.crowd.ask(*self.crowd.release(lease))
        if what:
            self.found.note(what, timed)
        return [timed, *self._settle()]

    def _lease(self, number: int) -> None:
        by, crowd = scheduler(number), self.crowd
        self._by_name(number, NAMED, UNWAITED)
        disk, nics = Need(select=_DISK), Need(device_class="nic", count=2)
        on_two = (
            msgspec.structs.replace(disk, name="disks", count=2),
            msgspec.structs.replace(nics, name="nics"),
        )
        asked = {
            ONE: crowd.need(disk),
            PAIR: crowd.need(nics, constraints=(same("numa_node"),)),
            GANG: crowd.need(*on_two, constraints=(distinct("host", "disks"), distinct("host", "nics"))),
            UNNARROWED: crowd.need(Need(select="device.numa_node == 1")),
        }
        for what, request in asked.items():
            lease = granted(self.found.note(what, crowd.ask(request, by)))
            self._release(lease, USELESS if what == PAIR else "")
        taken = device_of(crowd.hosts[number % len(crowd.hosts)], GPUS[0])
        self._refused(REFUSED_BY_NAME, crowd.lease(taken), by)
        self._refused(REFUSED, crowd.need(GPU), by)
        self._refused(NONE_SUCH, crowd.need(Need(select=_NOBODYS)), by)

    def _refused(self, what: str, request: inputs.LeaseRequest, by: Principal) -> None:
        timed = self.found.note(what, self.crowd.ask(request, by))
        assert timed.answer is not None and timed.answer.outcome == "refused", timed.answer

    # --- waiting

    def _wait(self, number: int) -> None:
        for kind, what in WAITS.items():
            timed = self.found.note(what, self.crowd.wait(number * 10 + kind))
            assert timed.answer is not None
            request = schedule_inputs.WithdrawRequest(**self.crowd.begin(), queued=timed.answer.queued)
            self.found.note(WITHDRAWN, self.crowd.ask(request, scheduler(number * 10 + kind)))
            self._settle()
        self._serve(number)

    def _serve(self, number: int) -> None:
        """A lease ends, and who waited for it has it; somebody else waits instead."""
        crowd = self.crowd
        assert crowd.bodies is not None
        before = len(crowd.bodies)
        leased = crowd.hosts[number * 13 % len(crowd.hosts) :] + crowd.hosts
        devices = (device_of(host, GPUS[number % len(GPUS)]) for host in leased)
        row = next(row for device in devices if (row := crowd.state.devices[device]).lease)
        us, served = 0.0, 0
        for timed in self._release(row.lease):
            us += 0.0 if served else timed.us
            served += sum(isinstance(event, LeaseGranted) for event in timed.events)
        # Who comes first may need more than this one: then it is kept for him, and nobody has it.
        self.found.us.setdefault(FREED if served else GATHERED, []).append(us)
        for again in range(served):
            crowd.wait(number + again)
        if served:
            self.found.us.setdefault(SERVED_BYTES, []).append(sum(map(len, crowd.bodies[before:])) / served)

    # --- keeping

    def _renew(self, number: int) -> None:
        """A lease that was not renewed yet: the first time is written, the second is covered by that."""
        lease = self.crowd.state.devices[device_of(self.crowd.hosts[number % len(self.crowd.hosts)], GPUS[1])].lease
        if not lease or (row := self.crowd.state.leases[lease]).renewed_position:
            return
        for what in (WRITTEN, COVERED):
            request = inputs.RenewRequest(**self.crowd.begin(), lease=lease, token=row.token)
            timed = self.found.note(what, self.crowd.ask(request, row.principal))
            assert bool(timed.events) == (what == WRITTEN)

    def _seldom(self, number: int) -> None:
        """What takes long, or can be asked only once by each."""
        crowd, by = self.crowd, scheduler(number // _SELDOM)
        self._refused(CUT_OFF, crowd.need(Need(select='device.serial == "none such"')), by)
        mine = [lease for lease, row in crowd.state.leases.items() if row.principal == by and not row.ended]
        pairs = tuple((lease, crowd.state.leases[lease].token) for lease in mine[: limits.RENEWALS_PER_REQUEST_MAX])
        for what in (MANY_WRITTEN, MANY_COVERED):
            timed = crowd.ask(schedule_inputs.RenewManyRequest(**crowd.begin(), leases=pairs), by)
            if bool(timed.events) == (what == MANY_WRITTEN):
                self.found.us.setdefault(what, []).append(timed.us / len(pairs))

    # --- operators

    def _drain(self, number: int) -> None:
        """A host, all of whose devices are leased."""
        crowd = self.crowd
        host = crowd.hosts[-1 - number]
        for each in (*NICS, *DISKS, *range(DISKS[-1] + 1, PER_HOST)):
            device = device_of(host, each)
            if not crowd.state.devices[device].lease:
                crowd.ask(crowd.lease(device, priority=100), scheduler(each))
        # A GPU of it may be free, and kept.
        living = sum(bool(crowd.state.devices[device].lease) for device in crowd.state.indexes.on_host[host])
        self.found.counts["leases on a drained host"] = living
        begun = {**crowd.begin(), "name": DRAIN, "host": host}
        timed = crowd.ask(schedule_inputs.TaintRequest(**begun, reason="kernel update", effect="evict"), OPERATOR)
        records = [timed, *self._settle()]
        left = sum(bool(crowd.state.devices[device].lease) for device in crowd.state.indexes.on_host[host])
        assert left == 0, f"{left} leases are left"
        self.found.us.setdefault(DRAINED, []).append(sum(each.us for each in records))
        self.found.note(DRAIN_ANSWERED, timed)
        self.found.counts["records of a drain"] = len(records)
        undone = schedule_inputs.UntaintRequest(**crowd.begin(), name=DRAIN, host=host)
        self.found.note(UNDRAINED, crowd.ask(undone, OPERATOR))
        self._settle()

    # --- the state as bytes, and from the log

    def _snapshot(self) -> bytes:
        begun_s = time.thread_time()
        snapshot = encode_state(self.crowd.state)
        self.found.counts["snapshot s"] = time.thread_time() - begun_s
        self.found.counts["snapshot MB"] = len(snapshot) / 1e6
        return snapshot

    def _fold(self, snapshot: bytes) -> None:
        bodies, self.crowd.bodies = self.crowd.bodies or [], None
        sequence = self.crowd.state.head.sequence - len(bodies)
        wanted = encode_state(self.crowd.state)
        begun_s = time.thread_time()
        state = decode_state(snapshot)
        self.found.counts["from the snapshot s"] = time.thread_time() - begun_s
        assert state is not None
        events = 0
        begun_s = time.thread_time()
        for number, body in enumerate(bodies, 1):
            record = evolve.fold(state, sequence + number, body)
            events += sum(len(step.events) for step in record.steps)
        took_s = time.thread_time() - begun_s
        assert encode_state(state) == wanted, "folded, it is another state"
        self.found.counts["fold events/s"] = events / took_s
        self.found.counts["fold records/s"] = len(bodies) / took_s


def main() -> None:
    """Print what was found."""
    # As the processes of ours have it.
    gc.set_threshold(100_000, 50, 100)
    selectors.load()
    hosts, waiters, times = map(int, sys.argv[1:])
    print(msgspec.json.encode(Trial(hosts, waiters).run(times)).decode())


if __name__ == "__main__":
    main()
