"""Logs made by the real core, without a network and without waiting; then put into a real stream as they are."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Final, TypedDict

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.identities import Holder, HostName, Principal, RequestId
from leasehold.events.record import event_count
from leasehold.events.subjects import Subjects
from leasehold.projections.appending import Said
from leasehold.projections.reporting import Reporter
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.services.connection import Connection
from leasehold.services.ledger.jetstream import JetStreamLedger
from tests.bench.cluster import CLUSTER, paper_device

PRINCIPALS: Final = 4
HOSTS: Final = 20
DEVICES_PER_HOST: Final = 50
TTL_MS: Final = 3_600_000
STEP_NS: Final = 10_000_000
"""Between two records; the log ends now."""
_APPEND_S: Final = 30.0


class _Begin(TypedDict):
    request_id: RequestId
    issued_at_ns: int


class _Held(msgspec.Struct, frozen=True):
    by: Principal
    device: str
    lease: int
    token: int


class LogMaker:
    """One allocator that always wins; many devices, which go from holder to holder."""

    def __init__(self, *, hosts: int, devices_per_host: int, begun_ns: int) -> None:
        self.sequencer = Sequencer(State(), cluster=CLUSTER, writer="bench-writer")
        self.now_ns = begun_ns
        self.events = 0
        self._asked = 0
        self._observed = 0
        self._hosts = [HostName(f"host-{number:04}") for number in range(hosts)]
        self._devices_per_host = devices_per_host
        self._free = deque(
            f"{host}/{paper_device(number).key}" for number in range(devices_per_host) for host in self._hosts
        )
        self._held: deque[_Held] = deque()
        self._asked_for: dict[int, tuple[Principal, str]] = {}

    def record(self) -> bytes:
        """What waits, decided and taken by the log."""
        self.now_ns += STEP_NS
        draft = self.sequencer.draft(self.now_ns)
        assert draft is not None, "nothing waits"
        self.sequencer.committed()
        self.events += event_count(draft.record)
        for reply in self.sequencer.replies:
            assert reply.answer.outcome != "refused", reply.answer
            if reply.ticket in self._asked_for:
                by, device = self._asked_for.pop(reply.ticket)
                self._held.append(_Held(by, device, reply.answer.lease, reply.answer.token))
        self.sequencer.replies.clear()
        return draft.body

    def pictures(self) -> Iterator[bytes]:
        """Records in which all hosts tell what devices they have."""
        picture = {device.key: device for device in map(paper_device, range(self._devices_per_host))}
        for host in self._hosts:
            reporter = Reporter(host, "watcher", 1)
            for message in (reporter.starts(), *reporter.synced({}, picture)):
                self._observed += 1
                # From the wire, as an allocator has it: hosts share no memory.
                self.sequencer.observe(self._observed, codec.decode_observed(codec.encode(message)))
                yield self.record()

    def work(self, requests: int) -> bytes:
        """A record of so many requests: leases, as many renewals, as many releases, in turn."""
        for _ in range(requests):
            match self._asked % 3:
                case 0:
                    self.lease()
                case 1 if self._held:
                    held = self._held[0]
                    self._ask(held.by, inputs.RenewRequest(**self._begin(), lease=held.lease, token=held.token))
                case _ if self._held:
                    self.release()
                case _:
                    self.lease()
        return self.record()

    def lease(self) -> None:
        """Let the device that was free longest be asked for."""
        device = self._free.popleft()
        request = inputs.LeaseRequest(
            **self._begin(), devices=(device,), holder=Holder(f"vm:{self._asked}"), ttl_ms=TTL_MS
        )
        by = Principal(f"scheduler-{self._asked % PRINCIPALS}")
        self._asked_for[self._ask(by, request)] = (by, device)

    def release(self) -> None:
        """Let the lease that was held longest be given back."""
        held = self._held.popleft()
        self._ask(held.by, inputs.ReleaseRequest(**self._begin(), lease=held.lease, token=held.token))
        self._free.append(held.device)

    def _begin(self) -> _Begin:
        self._asked += 1
        return {"request_id": RequestId(f"request-{self._asked}"), "issued_at_ns": self.now_ns}

    def _ask(self, principal: Principal, request: inputs.Request) -> int:
        assert self.sequencer.ask(self._asked, principal, request), "too many wait"
        return self._asked


def bodies(events: int, requests_per_record: int) -> Iterator[bytes]:
    """Records that hold at least so many events in all."""
    # No record holds fewer than three events for four requests, so the log ends before now.
    span_ns = (2 * events // requests_per_record + 10 * HOSTS) * STEP_NS
    maker = LogMaker(hosts=HOSTS, devices_per_host=DEVICES_PER_HOST, begun_ns=time.time_ns() - span_ns)
    yield from maker.pictures()
    while maker.events < events:
        yield maker.work(requests_per_record)


async def fill(connection: Connection, subjects: Subjects, records: Iterator[bytes]) -> int:
    """Append the records to an empty LEDGER as an allocator does; how many they were."""
    ledger = JetStreamLedger(connection, subjects)
    sequence = 0
    for sequence, body in enumerate(records, 1):
        said, _ = await ledger.append(sequence - 1, body, timeout_s=_APPEND_S)
        assert said is Said.STORED, said
    await ledger.close()
    return sequence
