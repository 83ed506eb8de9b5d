"""`python -m tests.bench.core`: what the core costs by itself: no bus, no disk, one thread.

CPU time of this process, the best of some rounds, so that a busy neighbour counts little. The real sequencer makes the
logs.
"""

import argparse
import gc
import resource
import time
from collections.abc import Callable

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, DeviceKey, Holder, HostName, Principal, RequestId
from leasehold.events.inputs import Observation, Observed, Request
from leasehold.projections import evolve, views
from leasehold.projections.history import IndexRow, index_rows
from leasehold.projections.replay import Replay
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.snapshots import decode_state, encode_state
from leasehold.projections.state import State
from leasehold.services.allocator.hearing import Hearing

NS = 10**9
ROUNDS = 7
PRINCIPAL = Principal("bench")


def device(number: int, group: int | None = None) -> DeviceDescription:
    """A PCI function as a watcher describes it."""
    address = f"{number >> 16:04x}:{(number >> 8) & 255:02x}:{(number >> 3) & 31:02x}.{number & 7}"
    return DeviceDescription(
        key=DeviceKey(f"pci/{address}"),
        name=f"pci_{address.replace(':', '_').replace('.', '_')}",
        kind="pci",
        sysfs_path=f"/sys/devices/pci0000:00/{address}",
        driver="vfio-pci",
        pci_class=0x020000,
        vendor_id="8086",
        product_id="10ca",
        vendor_name="Intel Corporation",
        product_name="82576 Virtual Function",
        iommu_group=number if group is None else group,
        attributes={"subsystem_vendor": "8086", "revision": "01"},
    )


class Bench:
    """The real sequencer, whose every append succeeds at once."""

    def __init__(self, *, in_flight: int = 64) -> None:
        self.sequencer = Sequencer(State(), cluster="bench", writer="alloc")
        self.bodies: list[bytes] = []
        self.now_ns = 1_700_000_000 * NS
        self.in_flight = in_flight
        self._observed = 0
        self._ids = 0
        self._counters: dict[str, int] = {}
        self.leases: list[int] = []
        """Of the last answers, in order; 0 for a refusal."""
        self.sequencer.note(inputs.DeciderStarts("alloc", "start"))
        self.commit()

    def commit(self) -> list[bytes]:
        """Append what waits; the encoded answers."""
        self.now_ns += 1_000_000
        draft = self.sequencer.draft(self.now_ns)
        if draft is not None:
            self.bodies.append(draft.body)
            self.sequencer.committed()
        answers = [codec.encode(reply.answer) for reply in self.sequencer.replies]
        self.leases = [reply.answer.lease for reply in self.sequencer.replies]
        self.sequencer.replies.clear()
        return answers

    def observe(self, host: str, *observations: Observation) -> None:
        """The host's watcher reports."""
        self._observed += 1
        starts = isinstance(observations[0], inputs.SourceStarts)
        counter = self._counters[host] = 0 if starts else self._counters[host] + 1
        message = Observed(
            host=HostName(host), agent="watcher", run=1, counter=counter, observations=tuple(observations)
        )
        self.sequencer.observe(self._observed, message)
        self.commit()

    def add_host(self, host: str, descriptions: list[DeviceDescription]) -> None:
        """A whole picture."""
        self.observe(host, inputs.SourceStarts())
        for start in range(0, len(descriptions), 200):
            self.observe(host, *map(inputs.DeviceSeen, descriptions[start : start + 200]))
        self.observe(host, inputs.PictureComplete(since=1))

    def request_id(self) -> RequestId:
        """An id that was not used before."""
        self._ids += 1
        return RequestId(f"bench-{self._ids}")

    def lease(self, *devices: str, holder: str = "worker") -> inputs.LeaseRequest:
        """A request for devices."""
        return inputs.LeaseRequest(
            request_id=self.request_id(), issued_at_ns=self.now_ns, devices=devices, holder=Holder(holder),
            ttl_ms=60_000,
        )  # fmt: skip

    def release(self, lease: int) -> inputs.ReleaseRequest:
        """Its end."""
        return inputs.ReleaseRequest(request_id=self.request_id(), issued_at_ns=self.now_ns, lease=lease, token=lease)

    def take(self, verb: str, request: Request) -> None:
        """As the door takes it: bytes."""
        assert self.sequencer.ask(1, PRINCIPAL, codec.decode_request(verb, codec.encode(request)))

    def pairs(self, count: int, names: list[str], *, changes_every: int = 0) -> None:
        """So many leases and their releases, `in_flight` of them in each record; a device changes now and then."""
        for number in range(count // self.in_flight):
            some = [names[(number * self.in_flight + each) % len(names)] for each in range(self.in_flight)]
            for name in some:
                self.take("lease", self.lease(name))
            self.commit()
            leases = self.leases
            for lease in leases:
                self.take("release", self.release(lease))
            self.commit()
            if changes_every and number % changes_every == 0:
                driver = ("igbvf", "vfio-pci")[number // changes_every % 2]
                host, _, _ = names[number % len(names)].partition("/")
                row = self.sequencer.state.devices[DeviceId(names[number % len(names)])]
                self.observe(host, inputs.DeviceSeen(msgspec.structs.replace(row.description, driver=driver)))


def spent(work: Callable[[], object]) -> float:
    """CPU seconds, the least of some rounds: what is above it is the neighbours'."""
    took = []
    for _ in range(ROUNDS):
        gc.collect()
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return min(took)


def fold(bodies: list[bytes]) -> State:
    """The state behind a log."""
    state = State()
    for sequence, body in enumerate(bodies, 1):
        evolve.fold(state, sequence, body)
    return state


def fold_indexed(bodies: list[bytes]) -> None:
    """As a reader folds: with the rows of the index."""
    state = State()
    rows: list[IndexRow] = []

    def note(state: State, position: int, event: Event) -> None:
        nonlocal rows
        rows += index_rows(state, position, event)

    for sequence, body in enumerate(bodies, 1):
        evolve.fold(state, sequence, body, note)


def load(body: bytes) -> None:
    """As a store loads a snapshot: nothing that is made is garbage."""
    gc.disable()
    decode_state(body)
    gc.enable()


def decide_again(bodies: list[bytes]) -> None:
    """As `verify` does."""
    replay = Replay()
    for sequence, body in enumerate(bodies, 1):
        assert replay.step(sequence, body) is None


def measure_log(in_flight: int, pairs: int) -> None:
    """Folding, and what a request costs."""
    bench = Bench(in_flight=in_flight)
    descriptions = [device(number) for number in range(128)]
    bench.add_host("node1", descriptions)
    names = [f"node1/{each.key}" for each in descriptions]
    bench.pairs(pairs, names, changes_every=16)
    bodies = bench.bodies
    records = [codec.decode_record(body, 1) for body in bodies]
    events = sum(len(step.events) for record in records for step in record.steps)
    print(f"\n{in_flight} in flight: {len(bodies)} records, {events} events, {sum(map(len, bodies)) / 1e6:.1f} MB")

    def evolve_only() -> None:
        state = State()
        for sequence, record in enumerate(records, 1):
            evolve.fold_record(state, sequence, record, "")

    for what, work in (
        ("decode", lambda: [codec.decode_record(body, 1) for body in bodies]),
        ("evolve", evolve_only),
        ("decode, check, fold", lambda: fold(bodies)),
        ("the same with the index", lambda: fold_indexed(bodies)),
        ("the same deciding again", lambda: decide_again(bodies)),
    ):
        took = spent(work)
        print(f"  {what:<26} {events / took:>9.0f} events/s {len(bodies) / took:>9.0f} records/s")
    some = pairs // 4
    took = spent(lambda: bench.pairs(some, names))
    print(f"  request to answer          {took / some / 2 * 1e6:>9.1f} us/request (encoding the request counted in)")


def timed(work: Callable[[], object], count: int) -> str:
    """p50 and p99 in microseconds."""
    took = []
    for _ in range(count):
        begun = time.perf_counter_ns()
        work()
        took.append((time.perf_counter_ns() - begun) / 1_000)
    took.sort()
    return f"p50 {took[count // 2]:>8.0f} us  p99 {took[count * 99 // 100]:>8.0f} us"


class Sized:
    """A state of many hosts, and what decisions on it take."""

    def __init__(self, hosts: int, per_host: int) -> None:
        self.bench = Bench()
        self.hosts = hosts
        for host in range(hosts):
            # The last host has one IOMMU group with all of its devices.
            shared = 0 if host == hosts - 1 else None
            self.bench.add_host(f"node{host}", [device(number, shared) for number in range(per_host)])
        self.state = self.bench.sequencer.state

    def names(self, host: int, count: int) -> list[str]:
        """The ids of the first devices of a host."""
        return [f"node{host}/{device(number).key}" for number in range(count)]

    def pair(self, names: list[str]) -> Callable[[], None]:
        """A lease and its release, each in a record of its own."""

        def work() -> None:
            self.bench.take("lease", self.bench.lease(*names))
            self.bench.commit()
            (lease,) = self.bench.leases
            self.bench.take("release", self.bench.release(lease))
            self.bench.commit()

        return work

    def ask_ambiguously(self) -> None:
        """By a name that all hosts have."""
        self.bench.take("lease", self.bench.lease(device(0).name))
        self.bench.commit()

    def lease_many(self, count: int) -> None:
        """Leave so many leases behind."""
        names = list(self.state.devices)[:count]
        for start in range(0, count, 64):
            for name in names[start : start + 64]:
                self.bench.take("lease", self.bench.lease(name))
            self.bench.commit()

    def expire_all(self) -> list[float]:
        """Let all leases expire; how long each record took, in microseconds."""
        self.bench.now_ns += 120 * NS
        took = []
        while self.bench.sequencer.has_work(self.bench.now_ns):
            begun_ns = time.perf_counter_ns()
            self.bench.commit()
            took.append((time.perf_counter_ns() - begun_ns) / 1_000)
        return sorted(took)


def measure_size(hosts: int, per_host: int) -> None:
    """What the number of devices costs: memory, snapshot, decisions."""
    sized = Sized(hosts, per_host)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    print(f"\n{hosts} hosts x {per_host} devices, {memory_mb:.0f} MB at most")
    state, bench = sized.state, sized.bench
    body = encode_state(state)
    written_s, read_s = spent(lambda: encode_state(state)), spent(lambda: load(body))
    print(f"  snapshot of {len(body) / 1e6:.1f} MB: written in {written_s * 1e3:.0f} ms, read in {read_s * 1e3:.0f} ms")
    one = sized.names(0, 1)
    ids = iter(state.devices)
    for what, work, count in (
        ("lease + release of one device", sized.pair(one), 300),
        ("lease + release of 64 devices", sized.pair(sized.names(1, min(64, per_host))), 100),
        ("lease + release, all in one group", sized.pair(sized.names(hosts - 1, min(64, per_host))), 100),
        ("a name that all hosts have", sized.ask_ambiguously, 100),
        ("a message of a watcher", lambda: bench.observe("node2", inputs.StillHere()), 300),
        ("view of a device", lambda: views.device_view(state, next(ids)), min(500, len(state.devices))),
        ("who is silent", lambda: list(Hearing().notes(state, 1)), 100),
    ):
        print(f"  {what:<34} {timed(work, count)}")
    sized.lease_many(min(20_000, (hosts - 2) * per_host))
    last = sized.names(hosts - 2, 1)
    print(f"  {f'the first, beside {len(state.leases)} leases':<34} {timed(sized.pair(last), 300)}")
    took = sized.expire_all()
    print(f"  their expiry: {len(took)} records, p50 {took[len(took) // 2]:.0f} us, most {took[-1]:.0f} us")


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12_800)
    parser.add_argument("--hosts", type=int, default=1_000)
    given = parser.parse_args()
    for in_flight in (1, 8, 64):
        measure_log(in_flight, given.pairs // (1 if in_flight > 1 else 2))
    measure_size(given.hosts, 100)


if __name__ == "__main__":
    main()
