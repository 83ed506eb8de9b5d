"""The two allocators of `test_machine`, with a poller that may say anything of few domains, and leases for them."""

from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from leasehold.events import codec, inputs, limits
from leasehold.events.capabilities import Mdev, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.identities import DeviceId, DeviceKey, DomainId, DomainKey, Holder, Principal, split_device_id
from leasehold.events.inputs import POLLER, Observation
from leasehold.projections.auditing import Audit
from leasehold.projections.domains import domain_view, list_domains, seen_domains
from leasehold.projections.reporting import Reporter
from leasehold.projections.state import State
from tests.projections.test_machine import HOST, PRINCIPALS, TwoAllocators
from tests.sim.world import SECOND, host_devices

SMALL: dict[str, Any] = {"DOMAINS_PER_HOST_MAX": 3, "USES_PER_DOMAIN_MAX": 4}
UUIDS = tuple(f"c0ffee00-0000-4000-8000-00000000000{number}" for number in range(4))
SLICE = UUIDS[0]
WORDS = (
    "pci/0000:01:00.0",
    "pci/0000:02:00.0",
    "pci/0000:04:00.0",
    "pci/0000:0f:00.0",
    "usb-port/1-1",
    "usb-address/1.3",
    "usb-address/1.4",
    "usb-id/0529:0001",
    f"mdev/{SLICE}",
)
SLICED = DeviceDescription(
    key=DeviceKey(f"pci/0000:01:00.0/mdev/{SLICE}"),
    name="mdev_slice",
    kind="mdev",
    physical_function="pci/0000:01:00.0",
    capability=Mdev(uuid=SLICE),
)
STICK = next(key for key in sorted(host_devices()) if key.startswith("usb/") and not key.endswith("-0"))
KEYS = st.builds(lambda uuid: DomainKey(f"xen/{uuid}"), st.sampled_from(UUIDS))
USES = {"domain": KEYS, "device": st.sampled_from(WORDS), "use": st.sampled_from(("attached", "configured"))}
DESCRIPTIONS = st.builds(
    DomainDescription,
    key=KEYS,
    name=st.sampled_from(("", "web", "db", UUIDS[0])),
    domid=st.sampled_from((-1, 7, 8)),
    state=st.sampled_from(("running", "halted", "dying", "unknown")),
)
SAID: st.SearchStrategy[Observation] = st.one_of(
    st.builds(inputs.DomainSeen, DESCRIPTIONS),
    st.builds(inputs.DomainSeen, DESCRIPTIONS),
    st.builds(inputs.DeviceUsed, **USES),
    st.builds(inputs.DeviceUsed, **USES),
    st.builds(inputs.DeviceUnused, **USES),
    st.builds(inputs.DomainGone, KEYS),
    st.just(inputs.SourceBlind("no answer")),
    st.just(inputs.SourceSees()),
    st.just(inputs.SourceSees()),
)


class TwoAllocatorsWithDomains(TwoAllocators):
    """All that may come there, and what a poller says in between."""

    def __init__(self) -> None:
        self.small = patch.multiple(limits, **SMALL)
        self.small.start()
        super().__init__()
        self.poller = Reporter(HOST, POLLER, 1)
        self._hear(self.poller.starts(), *self.poller.synced({}, {}))
        self._append(0, both=False)

    def teardown(self) -> None:
        """As there; and the audit, which knows nothing of the fold, finds nothing."""
        try:
            super().teardown()
            audit = Audit()
            for sequence, body in enumerate(self.bodies, 1):
                audit.step(sequence, codec.decode_record(body, sequence))
        finally:
            self.small.stop()

    @rule(said=st.lists(SAID, min_size=1, max_size=8))
    def poll(self, said: list[Observation]) -> None:
        """The poller says something, true or not."""
        self._hear(*self.poller.tell(said))

    def _tell(self, *said: Observation) -> None:
        """The poller says what is so, and is heard."""
        source = self.reader.hosts[HOST].sources.get(POLLER)
        if source is None or source.stale:
            self._restart_poller()
        self._hear(*self.poller.tell([inputs.SourceSees(), *said]))
        self._append(0, both=True)

    def _restart_poller(self) -> None:
        self.poller = Reporter(HOST, POLLER, self.poller.run + 1)
        self._hear(self.poller.starts())
        self._append(0, both=False)
        self._hear(*self.poller.synced({}, {}))

    @rule(key=KEYS, uses=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(("attached", "configured")))))
    def start_with_devices(self, key: DomainKey, uses: list[tuple[str, str]]) -> None:
        """A domain runs, and has devices."""
        seen = inputs.DomainSeen(DomainDescription(key=key, domid=7, state="running"))
        self._tell(seen, *(inputs.DeviceUsed(key, word, use) for word, use in uses))

    @rule(which=st.integers(0, 9), goes=st.booleans())
    def let_go(self, which: int, goes: bool) -> None:
        """A domain lets go of one device, or of all and goes."""
        domains = sorted(self.reader.domains.items())
        if not domains:
            return
        _, row = domains[which % len(domains)]
        key = row.description.key
        let_go = [inputs.DeviceUnused(key, use.device, use.use) for use in row.uses]
        if goes:
            self._tell(*let_go, inputs.DomainGone(key))
        else:
            self._tell(*let_go[:1])

    @rule(
        uuid=st.sampled_from(UUIDS[:2]),
        gone_ms=st.sampled_from((0, 5_000)),
        then=st.lists(st.sampled_from(("seen", "halted", "gone", "blind", "wait", "silent")), min_size=1, max_size=8),
    )
    def live_with_a_lease(self, uuid: str, gone_ms: int, then: list[str]) -> None:
        """There is a lease for a domain, which comes and goes, while the poller sees it or not."""
        key = DomainKey(f"xen/{uuid}")
        # Who decides is known, and its grace time over, so that something can end.
        self.both[0].note(inputs.DeciderStarts("one", "start"))
        self._append(0, both=False)
        self.now_ns += 31 * SECOND
        fields: dict[str, Any] = {"holder": Holder("vm1"), "ttl_ms": 2_000, "domain": uuid, "gone_ms": gone_ms}
        self._ask(Principal("a"), inputs.LeaseRequest(**self._fields(), devices=(STICK,), **fields), 2)
        self._tell(inputs.DomainSeen(DomainDescription(key=key, domid=7, state="running")))
        for what in then:
            if what in ("seen", "halted"):
                domid = 8 if what == "seen" else -1
                self._tell(inputs.DomainSeen(DomainDescription(key=key, domid=domid, state="running")))
            elif what == "gone":
                self._tell(inputs.DomainGone(key))
            elif what == "blind":
                self._hear(*self.poller.tell([inputs.SourceBlind("no answer")]))
            elif what == "silent":
                for alive in (False, True):
                    for each in self.both:
                        each.note(inputs.HostHeard(HOST, POLLER, self.poller.run, alive))
            else:
                self.now_ns += 3 * SECOND
            self._append(0, both=True)

    @rule(alive=st.booleans())
    def hear_or_not_the_poller(self, alive: bool) -> None:
        """The poller falls silent, or is heard."""
        for each in self.both:
            each.note(inputs.HostHeard(HOST, POLLER, self.poller.run, alive))

    @rule(lost=st.booleans())
    def poller_restarts_or_loses(self, lost: bool) -> None:
        """The poller begins a new run, or a message of it is lost and it reports again."""
        if not lost:
            self._restart_poller()
            return
        self.poller.assure()
        self._hear(self.poller.assure())
        self._append(0, both=False)
        self._hear(*self.poller.synced({}, {}))

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS, who=st.integers(0, 2))
    def retire(self, principal: Any, who: int) -> Any:
        """Somebody wants the poller to be forgotten."""
        request = inputs.RetireAgentRequest(**self._fields(), host=HOST, agent=POLLER, reason="gone")
        return self._ask(principal, request, who)

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        key=st.sampled_from(("pci/0000:01:00.0", "pci/0000:02:00.0", STICK)),
        uuid=st.sampled_from(UUIDS[:2]),
        gone_ms=st.sampled_from((0, 5_000)),
        keep=st.sampled_from((False, False, True)),
    )
    def lease_for_a_domain(self, principal: Any, key: str, uuid: str, gone_ms: int, keep: bool) -> Any:
        """Somebody wants a device for a domain."""
        fields = {"holder": Holder("vm1"), "ttl_ms": 20_000, "domain": uuid, "gone_ms": gone_ms, "keep": keep}
        request = inputs.LeaseRequest(**self._fields(), devices=(key,), **fields)  # type: ignore[arg-type]
        return self._ask(principal, request, 2)

    @rule(number=st.integers(0, 255), same=st.booleans(), is_there=st.booleans())
    def replug(self, number: int, same: bool, is_there: bool) -> None:
        """A stick gets another address, or is another thing; a mediated device comes and goes."""
        stick = self.picture.get(STICK, host_devices()[STICK])
        self.picture[STICK] = msgspec.structs.replace(
            stick,
            sysfs_path=f"/sys/devices/usb1/1-{number % 2 + 1}",
            vendor_id="0529" if same else "0530",
            product_id="0001",
            capability=UsbDevice(bus=1, device=3 + number % 3),
        )
        if is_there:
            self.picture[SLICED.key] = SLICED
        else:
            self.picture.pop(SLICED.key, None)
        self._hear(*self.reporter.look(self.picture))

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def uses_agree(self) -> None:
        """Who uses a device, and what a domain uses, is what going through all of both comes to; within the bounds."""
        state = self.reader
        assert len(state.domains) <= SMALL["DOMAINS_PER_HOST_MAX"]
        for device, row in state.devices.items():
            assert sorted(state.users_of(row)) == _users(state, device)
        for domain, domain_row in state.domains.items():
            assert list(domain_row.uses) == sorted(set(domain_row.uses))
            assert len(domain_row.uses) <= SMALL["USES_PER_DOMAIN_MAX"]
            for used in domain_view(state, domain).uses:
                assert set(used.devices) == {
                    device
                    for device in state.devices
                    if split_device_id(device)[0] == HOST and used.said in _words(state, device)
                }
        assert [row.domain for row in list_domains(state)[0]] == sorted(state.domains)
        told = [(each.domain, each.uses) for each in seen_domains(state, HOST, POLLER)]
        assert told == [(row.description, row.uses) for _, row in sorted(state.domains.items())]

    @invariant()
    def evidence_agrees(self) -> None:
        """What could be freed is what nobody has, for all that a host that is up to date shows."""
        state = self.reader
        host = state.hosts[HOST]
        free = {
            device
            for device, row in state.devices.items()
            if row.ending
            and not host.stale
            and not any(use.use == "attached" for _, use in _users(state, device))
            and (row.missing or not row.description.in_use_by)
        }
        assert set(state.indexes.freeable) == free

    @invariant()
    def bonds_agree(self) -> None:
        """A living lease's clock runs if its domain was there, is not, and all hosts show that; else it does not."""
        state = self.reader
        host = state.hosts[HOST]
        due: dict[int, int] = {}
        for lease, row in state.leases.items():
            if row.ended or row.bond is None or row.bond.keep:
                continue
            there = any(
                each.description.key.endswith(row.bond.uuid)
                and (each.description.domid >= 0 or each.description.state in ("dying", "unknown"))
                for each in state.domains.values()
            )
            assert row.domain_seen or not there
            is_running = row.domain_seen and not there and not host.stale and POLLER in host.sources
            assert bool(row.gone_since_ns) == is_running
            if is_running:
                due[lease] = row.gone_since_ns + row.bond.gone_ms * 10**6
        assert sorted(state.outlived_by(2**62, limit=99)) == sorted(due)
        assert state.outlivings.next_ns() == min(due.values(), default=None)
        timed = [lease for lease, row in state.leases.items() if not row.ended and not row.domain_seen]
        assert sorted(state.expired_by(2**62, limit=99)) == sorted(timed)


def _users(state: State, device: DeviceId) -> list[tuple[DomainId, Use]]:
    words = _words(state, device)
    host, _ = split_device_id(device)
    return sorted(
        (domain, use)
        for domain, row in state.domains.items()
        for use in row.uses
        if row.host == host and use.device in words
    )


def _words(state: State, device: DeviceId) -> set[str]:
    """What a device may be called, written anew."""
    description = state.devices[device].description
    capability = description.capability
    words = set()
    if description.kind == "pci":
        words.add(str(description.key))
    if isinstance(capability, Mdev):
        words.add(f"mdev/{capability.uuid}")
    if description.kind == "usb_device":
        words |= {
            "usb-port/" + description.sysfs_path.split("/")[-1],
            f"usb-id/{description.vendor_id}:{description.product_id}",
        }
    if isinstance(capability, UsbDevice):
        words.add(f"usb-address/{capability.bus}.{capability.device}")
    return words


TestTwoAllocatorsWithDomains = TwoAllocatorsWithDomains.TestCase
TestTwoAllocatorsWithDomains.settings = settings(max_examples=80, stateful_step_count=40)
