"""Random logs of domains: started, stopped, renamed, gone, with devices and leases of them; agents blind or retired."""

import random
from collections import Counter
from typing import Final

import msgspec

from leasehold.events import codec, inputs
from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.domains import STATES, DomainDescription, Use
from leasehold.events.identities import DomainKey, HostName
from leasehold.events.inputs import POLLER, DeviceGone, DeviceSeen, Observation, Observed, SourceStarts
from tests.past.nodedevs import node
from tests.projections.ledger import SECOND, A, B, Ledger

HOSTS: Final = (HostName("h1"), HostName("h2"), HostName("h1-a"))
UUIDS: Final = tuple(f"c0ffee00-0000-4000-8000-00000000000{number}" for number in range(4))
NAMES: Final = ("web", "db", "Domain-0", UUIDS[0], "xen/odd", "h1")
CARDS: Final = ("pci/0000:01:00.0", "pci/0000:02:00.0", "pci/0000:02:00.1")
STICKS: Final = ("usb/0000:00:14.0/2-1", "usb/0000:00:14.0/2-2")
DEVICES: Final = (
    *(node(key, "pci", Pci(), iommu_group=int(key[10])) for key in CARDS),
    *(
        node(key, "usb_device", UsbDevice(bus=1, device=number), vendor_id="0403", product_id="6001",
             sysfs_path=f"/sys/devices/pci0000:00/usb1/1-{number}")
        for number, key in enumerate(STICKS, 1)
    ),
)  # fmt: skip
WORDS: Final = (*CARDS, "pci/0000:0f:00.0", "usb-port/1-1", "usb-address/1.2", "usb-id/0403:6001")


class DomainLedger(Ledger):
    """A ledger with hosts that have a watcher and a poller each."""

    def __init__(self) -> None:
        super().__init__()
        self.note(inputs.DeciderStarts("alloc", "start"))
        self._runs: Counter[tuple[HostName, str]] = Counter()
        self._said: Counter[tuple[HostName, str]] = Counter()
        for host in HOSTS:
            self.begin("watcher", host, *map(DeviceSeen, DEVICES))
            self.begin(POLLER, host)
        self.now_ns += 31 * SECOND

    def begin(self, agent: str, host: HostName, *observations: Observation) -> None:
        """A new run of an agent, with what it has to tell."""
        self._runs[host, agent] += 1
        self._said[host, agent] = 0
        self.say(agent, host, SourceStarts())
        self.say(agent, host, *observations, inputs.PictureComplete(since=1))

    def say(self, agent: str, host: HostName, *observations: Observation) -> None:
        """One message of an agent."""
        counter = self._said[host, agent]
        self._said[host, agent] += 1
        run = self._runs[host, agent]
        message = Observed(host=host, agent=agent, run=run, counter=counter, observations=observations)
        self.observe_message(codec.decode_observed(codec.encode(message)))

    def tell(self, host: HostName, *observations: Observation) -> None:
        """The poller reports."""
        self.say(POLLER, host, *observations)

    def hear(self, host: HostName, agent: str, *, alive: bool) -> None:
        """An agent is heard, or is not."""
        run = self.state.hosts[host].sources[agent].run
        self.note(inputs.HostHeard(host, agent, run, alive))

    def retire(self, host: HostName, agent: str = POLLER) -> None:
        """An agent has fallen silent, and will not come back."""
        self.hear(host, agent, alive=False)
        self.ask(
            inputs.RetireAgentRequest(
                request_id=self.new_id(), issued_at_ns=self.now_ns, host=host, agent=agent, reason="dismantled"
            )
        )


def domain(uuid: str = UUIDS[1], **fields: object) -> DomainDescription:
    """A domain of Xen that runs."""
    said = {"name": "web", "domid": 5, "state": "running", "memory_bytes": 2**30, "vcpus": 2, "kind": "hvm", **fields}
    return msgspec.convert({"key": f"xen/{uuid}", **said}, DomainDescription)


def key_of(uuid: str) -> DomainKey:
    """Its key."""
    return DomainKey(f"xen/{uuid}")


def random_log(seed: int, steps: int = 300) -> DomainLedger:
    """The log of one run."""
    rng, ledger = random.Random(seed), DomainLedger()
    for _ in range(steps):
        ledger.now_ns += rng.choice((0, 1, SECOND, 20 * SECOND))
        rng.choice(_STEPS)(ledger, rng)
    return ledger


def _see(ledger: DomainLedger, rng: random.Random) -> None:
    domid = rng.choice((-1, rng.randrange(1, 9)))
    state = rng.choice(STATES[:5] if domid >= 0 else STATES[5:])
    seen = domain(rng.choice(UUIDS), name=rng.choice(NAMES), domid=domid, state=state, vcpus=rng.randrange(1, 4))
    ledger.tell(rng.choice(HOSTS), inputs.DomainSeen(seen))


def _use(ledger: DomainLedger, rng: random.Random) -> None:
    word = rng.choice((inputs.DeviceUsed, inputs.DeviceUnused))
    use = Use(rng.choice(WORDS), rng.choice(("configured", "attached")))
    ledger.tell(rng.choice(HOSTS), word(key_of(rng.choice(UUIDS)), use.device, use.use))


def _go(ledger: DomainLedger, rng: random.Random) -> None:
    host, key = rng.choice(HOSTS), key_of(rng.choice(UUIDS))
    row = ledger.state.domains.get(f"{host}/{key}")  # type: ignore[call-overload]
    uses = [inputs.DeviceUnused(key, use.device, use.use) for use in (row.uses if row else ())]
    ledger.tell(host, *uses, inputs.DomainGone(key))


def _blink(ledger: DomainLedger, rng: random.Random) -> None:
    ledger.tell(rng.choice(HOSTS), rng.choice((inputs.SourceBlind("no answer"), inputs.SourceSees())))


def _hear(ledger: DomainLedger, rng: random.Random) -> None:
    host = rng.choice(HOSTS)
    agent = rng.choice(sorted(ledger.state.hosts[host].sources))
    if rng.random() < 0.2:
        ledger.retire(host)
    if POLLER not in ledger.state.hosts[host].sources or rng.random() < 0.2:
        ledger.begin(POLLER, host)
    elif agent in ledger.state.hosts[host].sources:
        ledger.hear(host, agent, alive=rng.random() < 0.7)


def _plug(ledger: DomainLedger, rng: random.Random) -> None:
    host, device = rng.choice(HOSTS), rng.choice(DEVICES)
    gone = ledger.state.devices[f"{host}/{device.key}"].missing  # type: ignore[index]
    ledger.say("watcher", host, DeviceSeen(device) if gone else DeviceGone(device.key))


def _lease(ledger: DomainLedger, rng: random.Random) -> None:
    bond = {"domain": rng.choice(UUIDS), "gone_ms": rng.choice((0, 30_000)), "keep": rng.random() < 0.3}
    devices = [f"{rng.choice(HOSTS)}/{device.key}" for device in rng.sample(DEVICES, rng.choice((1, 1, 2)))]
    request = ledger.request(*devices, **(bond if rng.random() < 0.7 else {}))
    ledger.ask(request, rng.choice((A, B)))


def _release(ledger: DomainLedger, rng: random.Random) -> None:
    living = [(lease, row) for lease, row in ledger.state.leases.items() if not row.ended]
    if living:
        lease, row = rng.choice(living)
        ledger.release(lease, row.principal)


def _outlive(ledger: DomainLedger, rng: random.Random) -> None:
    """A domain is seen on all hosts of a lease that is for it, and then gone from them."""
    bound = [row for row in ledger.state.leases.values() if row.is_bound and not row.ended]
    if not bound:
        return
    row = rng.choice(bound)
    assert row.bond is not None
    for host in row.hosts:
        for agent in ("watcher", POLLER):
            ledger.begin(agent, host)
        ledger.tell(host, inputs.DomainSeen(domain(row.bond.uuid)))
    for host in row.hosts:
        ledger.tell(host, inputs.DomainSeen(domain(row.bond.uuid, domid=-1, state="halted")))
    _tick(ledger, rng)


def _tick(ledger: DomainLedger, rng: random.Random) -> None:
    ledger.tick(rng.choice((1, 10, 40)))


_STEPS: Final = (
    _see, _see, _see, _use, _use, _use, _use, _go, _blink, _hear, _plug, _lease, _lease, _release, _tick, _outlive,
)  # fmt: skip
