"""The two allocators of `test_machine_domains`, with a binder that may say anything, and all that is asked of one.

Whatever comes, nothing of a managed host is free before its binder has given it back, or an operator has said so.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from leasehold.events import codec, event_types, hostdev_events, inputs
from leasehold.events.answers import Heard
from leasehold.events.domains import DomainDescription
from leasehold.events.identities import DeviceId, DeviceKey, DomainKey, Holder, Principal, device_id
from leasehold.events.inputs import BINDER, POLLER, Observation
from leasehold.projections import evolve
from leasehold.projections.answers import heard
from leasehold.projections.bindings import binding_view, hold_of, prepared_word
from leasehold.projections.reporting import Need, Reporter
from leasehold.projections.state import State
from leasehold.projections.views import picture_of
from tests.projections.test_machine import HOST, PRINCIPALS, TwoAllocators
from tests.projections.test_machine_domains import STICK, UUIDS, TwoAllocatorsWithDomains

KEYS = tuple(
    DeviceKey(key)
    for key in ("pci/0000:01:00.0", "pci/0000:02:00.0", "pci/0000:02:00.1", STICK, "pci/0000:1f:00.0")
)
TEXTS = st.sampled_from(("igb", "vfio-pci", ""))
WHICH = st.integers(0, 5)
"""Which lease a word is about: none, one of the newest, or one that is not known."""
FORTH, BACK = ("prepared", "failed"), ("back", "stuck")
SAYINGS = st.lists(
    st.tuples(
        st.sampled_from((*FORTH, *BACK, "let go", "order")), st.sampled_from(KEYS), WHICH, TEXTS
    ),
    min_size=1,
    max_size=8,
)


class TwoAllocatorsWithBinder(TwoAllocatorsWithDomains):
    """All that may come there, and what a binder says in between."""

    def __init__(self) -> None:
        super().__init__()
        self.binder: Reporter | None = None

    def teardown(self) -> None:
        """As there; and of each freeing the log says why."""
        try:
            _check_freeings(self.bodies)
        finally:
            super().teardown()

    def _word(self, what: str, key: DeviceKey, which: int, text: str) -> Observation:
        leases = sorted(self.reader.leases)
        lease = 4_711 if which > len(leases) else leases[-which] if which else 0
        match what:
            case "prepared":
                return inputs.Prepared(key, lease or 1, text, "igb", "flr")
            case "failed":
                return inputs.NotPrepared(key, lease or 1, "no")
            case "back":
                return inputs.GivenBack(key, lease, text)
            case "stuck":
                return inputs.Stuck(key, lease, f"it hangs {text}", "reboot")
            case "order":
                orders = sorted(self.reader.orders)
                order = orders[-1] if orders else 1
                return inputs.OrderDone(order, key) if text else inputs.OrderNotDone(order, "no")
            case _:
                return inputs.LetGo(lease or 1)

    @rule(said=SAYINGS)
    def bind(self, said: list[tuple[str, DeviceKey, int, str]]) -> None:
        """The binder says something, true or not."""
        if self.binder is not None and self.binder.is_synced:
            self._hear(*self.binder.tell([self._word(*each) for each in said]))

    @rule(key=st.sampled_from(KEYS), steps=st.lists(st.sampled_from(FORTH + BACK), max_size=6))
    def follow_a_lease(self, key: DeviceKey, steps: list[str]) -> None:
        """The binder speaks of the lease that a device has, as one would."""
        for what in steps:
            row = self.reader.devices.get(device_id(HOST, key))
            if self.binder is None or not self.binder.is_synced or row is None or not row.lease:
                return
            words: dict[str, Observation] = {
                "prepared": inputs.Prepared(key, row.lease, "vfio-pci", "igb", "flr"),
                "failed": inputs.NotPrepared(key, row.lease, "no"),
                "back": inputs.GivenBack(key, row.lease, "igb"),
                "stuck": inputs.Stuck(key, row.lease, "it hangs", "reboot"),
            }
            self._hear(*self.binder.tell([words[what]]))
            self._append(0, both=True)

    @rule(said=SAYINGS | st.just([]))
    def begin_to_bind(self, said: list[tuple[str, DeviceKey, int, str]]) -> None:
        """A binder begins a run, and says something before it is up to date."""
        run = self.binder.run + 1 if self.binder is not None else 1
        self.binder = Reporter(HOST, BINDER, run, manages=True)
        self._hear(self.binder.starts())
        self._append(0, both=False)
        self._hear(*self.binder.synced({}, {}, also=[self._word(*each) for each in said]))

    @rule(alive=st.booleans(), agent=st.sampled_from((BINDER, BINDER, "watcher", POLLER)))
    def hear_or_not_an_agent(self, alive: bool, agent: str) -> None:
        """An agent falls silent, or is heard."""
        source = self.reader.hosts[HOST].sources.get(agent)
        for each in self.both:
            if source is not None:
                each.note(inputs.HostHeard(HOST, agent, source.run, alive))

    @rule()
    def who_is_shut_out_begins_anew(self) -> None:
        """Agents that the log counts on no more hear of it, and begin new runs."""
        known: Heard = heard(self.reader, HOST, "watcher")
        if self.reporter.need(known) is Need.SUPERSEDED:
            self.reporter = Reporter(HOST, "watcher", known.run + 1)
            self._hear(self.reporter.starts())
            self._append(0, both=False)
            self._hear(*self.reporter.synced(picture_of(self.reader, HOST), self.picture))

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS, silently=st.booleans())
    def declare_dead(self, principal: Principal, silently: bool) -> Any:
        """An operator says that the host is off, mostly when none of its agents is heard."""
        if silently:
            for agent in self.reader.hosts[HOST].sources:
                self.hear_or_not_an_agent(alive=False, agent=agent)
            self._append(0, both=True)
        return self._ask(principal, inputs.DeclareDeadRequest(**self._fields(), host=HOST, reason="off"), 2)

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS)
    def retire_the_binder(self, principal: Principal) -> Any:
        """An operator says that no binder will come back."""
        request = inputs.RetireAgentRequest(**self._fields(), host=HOST, agent=BINDER, reason="gone")
        return self._ask(principal, request, 2)

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS, which=st.integers(1, 4), force=st.booleans())
    def revoke(self, principal: Principal, which: int, force: bool) -> Any:
        """An operator takes one of the last leases away."""
        lease = ([1, *sorted(self.reader.leases)])[-which:][0]
        request = inputs.RevokeRequest(**self._fields(), lease=lease, reason="needed", force=force)
        return self._ask(principal, request, 2)

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        uuid=st.sampled_from(UUIDS[:2]),
        bus=st.sampled_from(("", "pci", "usb")),
        unmanaged=st.booleans(),
        is_prepare=st.booleans(),
    )
    def prepare_or_reattach(self, principal: Principal, uuid: str, bus: str, unmanaged: bool, is_prepare: bool) -> Any:
        """Somebody wants all that a domain claims, or gives it back."""
        fields: dict[str, Any] = {**self._fields(), "domain": uuid, "bus": bus}
        if not is_prepare:
            return self._ask(principal, inputs.ReattachRequest(**fields), 2)
        fields.update(holder=Holder("vm1"), ttl_ms=20_000, unmanaged=unmanaged)
        return self._ask(principal, inputs.PrepareRequest(**fields), 2)

    @rule(uuid=st.sampled_from(UUIDS[:2]), keys=st.lists(st.sampled_from(KEYS[:3]), min_size=1, unique=True))
    def live_prepared(self, uuid: str, keys: list[DeviceKey]) -> None:
        """A domain's devices are leased, and given back by its leaving, by a hook's word."""
        key = DomainKey(f"xen/{uuid}")
        runs = inputs.DomainSeen(DomainDescription(key=key, domid=7, state="running"))
        self._tell(runs, *(inputs.DeviceUsed(key, each, "configured") for each in keys))
        self.prepare_or_reattach(Principal("a"), uuid, "pci", unmanaged=False, is_prepare=True)
        self._append(0, both=True)
        if self.binder is not None and self.binder.is_synced:
            self._hear(*self.binder.tell([inputs.LetGo(lease) for lease in sorted(self.reader.leases)[-2:]]))

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        key=st.sampled_from(KEYS),
        operation=st.sampled_from(("detach", "reattach", "reset")),
    )
    def operate(self, principal: Principal, key: DeviceKey, operation: str) -> Any:
        """An administrator has something done to one device."""
        request = inputs.OperateDeviceRequest(
            **self._fields(), device=key, operation=operation, timeout_ms=5_000
        )
        return self._ask(principal, request, 2)

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def evidence_agrees(self) -> None:
        """What could be freed: on a host that is off, all that has ended; where a binder acts, what it has given back
        for just this lease and no domain has; where nobody does, what nobody is seen to use. Nothing in quarantine.
        """
        state = self.reader
        host = state.hosts[HOST]
        free = set()
        for device, row in state.devices.items():
            if not row.ending:
                continue
            if host.dead:
                free.add(device)
            elif row.quarantine is not None or state.attached_to(row):
                continue
            elif host.mode == "managed":
                if row.binding is not None and (row.binding.lease, row.binding.given_back) == (row.lease, True):
                    free.add(device)
            elif not host.stale and (row.missing or not row.description.in_use_by):
                free.add(device)
        assert set(state.indexes.freeable) == free

    @invariant()
    def bindings_agree(self) -> None:
        """A binding is of the lease that holds the device; a dead host is stale; all can be shown and told."""
        state = self.reader
        host = state.hosts[HOST]
        assert not host.dead or host.stale == host.dead
        assert (host.mode == "managed") == (BINDER in host.sources)
        for device, row in state.devices.items():
            assert row.binding is None or (row.lease and row.binding.lease == row.lease)
            assert row.binding is None or not row.binding.given_back or row.ending
            hold = hold_of(state, device)
            view = binding_view(state, row)
            assert (view is not None and view.state == "quarantined") == (row.quarantine is not None)
            if row.lease:
                assert hold is not None
                assert bool(hold.token) == (not row.ending)
                assert not hold.token or hold.token >= hold.floor or row.displaced
        for lease in state.leases.values():
            assert prepared_word(state, lease) in ("", "preparing", "prepared", "taking_back")


def _check_freeings(bodies: list[bytes]) -> None:
    """Written apart from the fold: what was freed of a managed host had been given back by its binder behind the end of
    the lease, or its host was said to be dead, or an operator said so by name.
    """
    state, back, dead = State(), set[tuple[DeviceId, int]](), False
    for sequence, body in enumerate(bodies, 1):
        managed = HOST in state.hosts and state.hosts[HOST].mode == "managed"
        for step in codec.decode_record(body, sequence).steps:
            for event in step.events:
                match event:
                    case event_types.HostRegistered(mode=mode):
                        managed = mode == "managed"
                    case event_types.AgentRetired(agent=agent):
                        managed = managed and agent != BINDER
                    case hostdev_events.HostDeclaredDead():
                        dead = True
                    case event_types.PictureCompleted(agent=agent):
                        dead = dead and managed and agent != BINDER
                    case hostdev_events.DeviceGivenBack():
                        back.add((device_id(event.host, event.key), event.lease))
                    case event_types.DeviceFreed() if managed and event.request is None:
                        assert dead or (event.device, event.lease) in back, event
        evolve.fold(state, sequence, body)


TestTwoAllocatorsWithBinder = TwoAllocatorsWithBinder.TestCase
TestTwoAllocatorsWithBinder.settings = settings(max_examples=60, stateful_step_count=50)
