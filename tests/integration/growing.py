"""A log that grows by the real core's decisions, for tests of those that read it: no allocator runs, time is given."""

from leasehold.events import inputs
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.identities import DeviceKey, Holder, HostName, Principal, RequestId
from leasehold.events.inputs import Input, Request
from leasehold.projections.appending import Said
from leasehold.projections.reporting import Picture, Reporter
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State
from leasehold.services.ledger.port import Ledger

SECOND_NS = 10**9
START_NS = 1_700_000_000 * SECOND_NS


def pci(slot: int, **fields: object) -> DeviceDescription:
    """A network card at `0000:00:<slot>.0`."""
    address = f"0000:00:{slot:02x}.0"
    given: dict[str, object] = {
        "key": DeviceKey(f"pci/{address}"),
        "name": f"pci_{address.translate(str.maketrans(':.', '__'))}",
        "kind": "pci",
        "sysfs_path": f"/sys/devices/pci0000:00/{address}",
        "vendor_id": "8086",
        "product_id": "10c9",
    }
    return DeviceDescription(**given | fields)  # type: ignore[arg-type]


class Grower:
    """One decider on one log; what it does stands in the log when the call returns."""

    def __init__(self, ledger: Ledger, *, cluster: str = "test", writer: str = "alloc1") -> None:
        self.ledger = ledger
        self.now_ns = START_NS
        self.sequencer = Sequencer(State(), cluster=cluster, writer=writer)
        self.bodies: list[bytes] = []
        self._writer = writer
        self._observed = 0
        self._asked = 0
        self._reporters: dict[str, tuple[Reporter, Picture]] = {}

    @property
    def state(self) -> State:
        """What the log says."""
        return self.sequencer.state

    async def commit(self) -> None:
        """Append what waits, as often as it takes."""
        while (draft := self.sequencer.draft(self.now_ns)) is not None:
            said = await self.ledger.append(draft.expected, draft.body, timeout_s=5)
            assert said == (Said.STORED, draft.expected + 1)
            self.bodies.append(draft.body)
            self.sequencer.committed()

    async def note(self, given: Input) -> None:
        self.sequencer.note(given)
        await self.commit()

    async def start(self) -> None:
        """Begin to decide; the grace time is over when this returns."""
        await self.note(inputs.DeciderStarts(self._writer, "start"))
        self.now_ns = self.state.head.grace_until_ns + SECOND_NS

    async def report(self, host: str, *devices: DeviceDescription) -> None:
        """All devices of a host, as its watcher sees them."""
        reporter, told = self._reporters.get(host, (Reporter(HostName(host), "watcher", 1), {}))
        picture: Picture = {device.key: device for device in devices}
        messages = reporter.look(picture) if reporter.is_synced else [reporter.starts(), *reporter.synced({}, picture)]
        self._reporters[host] = (reporter, told)
        for message in messages:
            self._observed += 1
            self.sequencer.observe(self._observed, message)
        await self.commit()

    async def ask(self, principal: str, request: Request) -> Answer:
        """Decide a request."""
        (answer,) = await self.ask_all(principal, request)
        return answer

    async def ask_all(self, principal: str, *requests: Request) -> list[Answer]:
        """Decide several at once, packed into as few records as it takes."""
        self.sequencer.replies.clear()
        for ticket, request in enumerate(requests):
            assert self.sequencer.ask(ticket, Principal(principal), request)
        await self.commit()
        return [reply.answer for reply in sorted(self.sequencer.replies, key=lambda reply: reply.ticket)]

    def lease(self, *devices: str, holder: str, ttl_ms: int = 60_000, request_id: str = "") -> inputs.LeaseRequest:
        return inputs.LeaseRequest(
            request_id=self._id(request_id),
            issued_at_ns=self.now_ns,
            devices=devices,
            holder=Holder(holder),
            ttl_ms=ttl_ms,
        )

    def release(self, answer: Answer, request_id: str = "") -> inputs.ReleaseRequest:
        return inputs.ReleaseRequest(
            request_id=self._id(request_id), issued_at_ns=self.now_ns, lease=answer.lease, token=answer.token
        )

    async def turn(self, device: str, holder: str = "vm1", principal: str = "alice") -> None:
        """Lease a device and give it back."""
        granted = await self.ask(principal, self.lease(device, holder=holder))
        assert granted.outcome == "granted", granted
        released = await self.ask(principal, self.release(granted))
        assert released.outcome == "released", released

    async def pass_time(self, seconds: int) -> None:
        """Let time pass, and do what is then due."""
        self.now_ns += seconds * SECOND_NS
        await self.note(inputs.Tick(self._writer))

    def _id(self, given: str) -> RequestId:
        self._asked += 1
        return RequestId(given or f"r{self._asked}")
