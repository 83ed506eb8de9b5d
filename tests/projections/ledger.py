"""A ledger in memory around the real sequencer, and a host with one device for every rule."""

from typing import Any

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.answers import Answer
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import Event
from leasehold.events.identities import DeviceId, DeviceKey, Holder, HostName, Principal, RequestId
from leasehold.events.inputs import Input, Observation, Observed, Request
from leasehold.events.refusals import Refusal
from leasehold.projections.sequencer import Sequencer
from leasehold.projections.state import State

SECOND = 10**9
START_NS = 1_700_000_000 * SECOND
H1, H2 = HostName("h1"), HostName("h2")
A, B = Principal("a"), Principal("b")


def pci(address: str, **fields: Any) -> DeviceDescription:
    """A PCI function of the first domain."""
    return DeviceDescription(
        **{
            "key": DeviceKey(f"pci/0000:{address}"),
            "name": f"pci_0000_{address.replace(':', '_').replace('.', '_')}",
            "kind": "pci",
            "sysfs_path": f"/sys/devices/pci0000:00/0000:{address}",
            "vendor_id": "8086",
            "product_id": "10c9",
            **fields,
        }
    )


def usb(path: str, parent: str, **fields: Any) -> DeviceDescription:
    """A USB device behind the controller 04:00.0."""
    return DeviceDescription(
        **{
            "key": DeviceKey(f"usb/0000:04:00.0/{path}"),
            "name": f"usb_{path.replace('-', '_').replace('.', '_')}",
            "kind": "usb_device",
            "parent": parent,
            "vendor_id": "0403",
            "product_id": "6001",
            **fields,
        }
    )


CONTROLLER, ROOT_HUB, HUB = "pci/0000:04:00.0", "usb/0000:04:00.0/2-0", "usb/0000:04:00.0/2-1"
DEVICES = (
    pci("01:00.0", iommu_group=1),
    pci("01:00.0", key=DeviceKey("pci/0000:01:00.0/net/0"), name="net_eth0", kind="net", parent="pci/0000:01:00.0",
        sysfs_path="/sys/devices/pci0000:00/0000:01:00.0/net/eth0"),
    pci("02:00.0", iommu_group=2),
    pci("02:00.1", iommu_group=2),
    pci("02:02.0", iommu_group=2, bridge=True),
    pci("03:00.0", iommu_group=3),
    pci("03:10.0", iommu_group=4, physical_function="pci/0000:03:00.0"),
    pci("03:10.1", iommu_group=5, physical_function="pci/0000:03:00.0"),
    pci("04:00.0", iommu_group=6, pci_class=0x0C0330),
    usb("2-0", CONTROLLER, hub=True),
    usb("2-1", ROOT_HUB, hub=True),
    usb("2-1.1", HUB),
    usb("2-1.2", HUB),
    usb("2-2", ROOT_HUB),
    usb("2-2", "usb/0000:04:00.0/2-2", key=DeviceKey("usb/0000:04:00.0/2-2/interface/1.0"), kind="usb_interface",
        name="usb_2_2_1_0"),
    pci("06:00.0", iommu_group=7, protections=("mounted at /",)),
    pci("06:00.1", iommu_group=7),
    pci("07:00.0", iommu_group=8, in_use_by=("domain web",)),
    pci("07:00.1", iommu_group=8),
    pci("08:00.0", iommu_group=9, protections=("carries the default route",)),
    pci("08:10.0", iommu_group=10, physical_function="pci/0000:08:00.0"),
    pci("09:00.0", iommu_group=11),
    pci("09:10.0", iommu_group=12, physical_function="pci/0000:09:00.0", protections=("swap is on it",)),
    pci("0a:00.0", iommu_group=13),
)  # fmt: skip


def device(text: str, host: HostName = H1) -> DeviceId:
    """The id that a short name stands for: `01:00.0` or `2-1.1`."""
    return DeviceId(f"{host}/usb/0000:04:00.0/{text}" if "-" in text else f"{host}/pci/0000:{text}")


class Ledger:
    """One allocator that always wins, its log, and agents of two hosts."""

    def __init__(self, writer: str = "alloc") -> None:
        self.now_ns = START_NS
        self.bodies: list[bytes] = []
        self.events: list[Event] = []
        """Of the last record, if the last thing that happened made one."""
        self.sequencer = Sequencer(State(), cluster="lab", writer=writer)
        self.counters = {H1: 0, H2: 0}
        self.binder_counters: dict[HostName, int] = {}
        self._observed = 0
        self._tickets = 0
        self._ids = 0

    @property
    def state(self) -> State:
        """Behind all that has happened."""
        return self.sequencer.state

    def commit(self) -> None:
        """Append what waits, if it is worth a record."""
        draft = self.sequencer.draft(self.now_ns)
        self.events = []
        if draft is not None:
            self.bodies.append(draft.body)
            self.events = [event for step in draft.record.steps for event in step.events]
            self.sequencer.committed()

    def note(self, given: Input) -> None:
        """A note of the allocator itself is decided."""
        self.sequencer.note(given)
        self.commit()

    def tick(self, seconds: int = 0) -> None:
        """Time passes, and is looked at."""
        self.now_ns += seconds * SECOND
        self.note(inputs.Tick(self.sequencer.writer))

    def ask(self, request: Request, principal: Principal = A) -> Answer:
        """Ask and get the answer."""
        self._tickets += 1
        assert self.sequencer.ask(self._tickets, principal, request)
        self.commit()
        (reply,) = self.sequencer.replies
        self.sequencer.replies.clear()
        assert reply.ticket == self._tickets
        return reply.answer

    def new_id(self) -> RequestId:
        """An id that was not used before."""
        self._ids += 1
        return RequestId(f"r{self._ids}")

    def request(self, *devices: str, **fields: Any) -> inputs.LeaseRequest:
        """A request for a lease of devices named in short, or in any other way."""
        return inputs.LeaseRequest(
            **{
                "request_id": self.new_id(),
                "issued_at_ns": self.now_ns,
                "devices": tuple(devices),
                "holder": Holder("vm"),
                "ttl_ms": 60_000,
                **fields,
            }
        )

    def lease(self, *devices: str, principal: Principal = A, **fields: Any) -> Answer:
        """Ask for devices by their short names."""
        return self.ask(self.request(*(device(text) for text in devices), **fields), principal)

    def granted(self, *devices: str, principal: Principal = A, **fields: Any) -> int:
        """Like `lease`, where it must be granted: the lease's id."""
        answer = self.lease(*devices, principal=principal, **fields)
        assert answer.outcome == "granted", answer
        return answer.lease

    def renew(self, lease: int, principal: Principal = A, **fields: Any) -> Answer:
        """Renew with the right token, unless told otherwise."""
        return self.ask(inputs.RenewRequest(**{**self._of(lease), **fields}), principal)

    def release(self, lease: int, principal: Principal = A, **fields: Any) -> Answer:
        """Release with the right token, unless told otherwise."""
        return self.ask(inputs.ReleaseRequest(**{**self._of(lease), **fields}), principal)

    def confirm_free(self, text: str, principal: Principal = A) -> Answer:
        """An operator says that a device is free."""
        request_id = self.new_id()
        return self.ask(
            inputs.ConfirmFreeRequest(request_id=request_id, issued_at_ns=self.now_ns, device=text, reason="I looked"),
            principal,
        )

    def _of(self, lease: int) -> dict[str, Any]:
        row = self.state.leases.get(lease)
        token = row.token if row is not None else lease
        return {"request_id": self.new_id(), "issued_at_ns": self.now_ns, "lease": lease, "token": token}

    def observe(self, *observations: Observation, host: HostName = H1, run: int = 1, skip: int = 0) -> None:
        """The host's watcher reports; `skip` messages of it are lost before."""
        starts = isinstance(observations[0], inputs.SourceStarts)
        self.counters[host] = 0 if starts else self.counters.get(host, 0) + 1 + skip
        message = Observed(
            host=host, agent="watcher", run=run, counter=self.counters[host], observations=tuple(observations)
        )
        self.observe_message(codec.decode_observed(codec.encode(message)))

    def observe_message(self, message: Observed) -> None:
        """A message arrives as it is."""
        self._observed += 1
        self.sequencer.observe(self._observed, message)
        self.commit()

    def see(self, *descriptions: DeviceDescription, host: HostName = H1) -> None:
        """The watcher sees devices."""
        self.observe(*(inputs.DeviceSeen(description) for description in descriptions), host=host)

    def change(self, text: str, **fields: Any) -> None:
        """The watcher sees a known device otherwise."""
        before = self.state.devices[device(text)].description
        self.see(msgspec.structs.replace(before, **fields))

    def bind(self, *observations: Observation, host: HostName = H1, run: int = 1) -> None:
        """The host's binder reports."""
        starts = isinstance(observations[0], inputs.SourceStarts)
        self.binder_counters[host] = counter = 0 if starts else self.binder_counters[host] + 1
        message = Observed(host=host, agent=inputs.BINDER, run=run, counter=counter, observations=tuple(observations))
        self.observe_message(codec.decode_observed(codec.encode(message)))

    def start_binder(self, host: HostName = H1, *observations: Observation, run: int = 1) -> None:
        """A binder begins to act on a host, says what it has to, and is up to date."""
        self.bind(inputs.SourceStarts(manages=True), host=host, run=run)
        self.bind(*observations, inputs.PictureComplete(since=1), host=host, run=run)

    def start_host(self, host: HostName, *descriptions: DeviceDescription, run: int = 1) -> None:
        """A whole picture of a host."""
        self.observe(inputs.SourceStarts(), host=host, run=run)
        seen = [inputs.DeviceSeen(description) for description in descriptions]
        self.observe(*seen, inputs.PictureComplete(since=1), host=host, run=run)


def ledger_with_hosts() -> Ledger:
    """A ledger that is being decided by its only allocator, past its grace time, with both hosts known."""
    ledger = Ledger()
    ledger.note(inputs.DeciderStarts("alloc", "start"))
    ledger.start_host(H1, *DEVICES)
    ledger.start_host(H2, pci("01:00.0", iommu_group=1), pci("0b:00.0", iommu_group=2))
    ledger.now_ns += 31 * SECOND
    return ledger


def refusal_of(answer: Answer) -> Refusal:
    """Why not."""
    assert answer.outcome == "refused", answer
    assert answer.refusal is not None
    assert answer.refusal.message
    return answer.refusal
