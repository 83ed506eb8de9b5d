"""As `test_machine`, for who says what is needed, and waits; and for what operators say of devices meanwhile."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, multiple, rule

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import Holder, Principal
from leasehold.events.scheduling import Constraint, Need
from tests.projections.test_machine import HOLDERS, HOST, KEYS, PRINCIPALS, TwoAllocators
from tests.sim.wishes import CLASSES, SELECTORS

OP = Principal("op")
SELECTS = st.sampled_from(sorted(SELECTORS))
TARGETS = st.one_of(st.just({"host": HOST}), KEYS.map(lambda key: {"device": f"{HOST}/{key}"}))


class TwoAllocatorsWithAQueue(TwoAllocators):
    """What is waited for, kept, shared, marked, counted and handed on."""

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        holder=HOLDERS,
        select=SELECTS,
        count=st.integers(1, 3),
        same=st.booleans(),
        mode=st.sampled_from(("", "", "shared", "admin")),
        wait_ms=st.sampled_from((0, 20_000, 3_600_000)),
        priority=st.sampled_from((0, 0, 5, -1)),
        who=st.integers(0, 2),
    )
    def wish(
        self, principal: Principal, holder: Holder, select: str, count: int, same: bool, mode: str, wait_ms: int,
        priority: int, who: int,
    ) -> Any:  # fmt: skip
        """Somebody says what he needs."""
        request = inputs.LeaseRequest(
            **self._fields(), holder=holder, ttl_ms=20_000, needs=(Need(select=select, count=count),), mode=mode,
            constraints=(Constraint(kind="same", attribute="iommu_group"),) if same else (), wait_ms=wait_ms,
            priority=priority,
        )  # fmt: skip
        return self._ask(principal, request, who)

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS, which=st.integers(0, 3), who=st.integers(0, 2))
    def withdraw(self, principal: Principal, which: int, who: int) -> Any:
        """Somebody does not want it any more, or what another wants."""
        queue = sorted(self.reader.queue)
        if not queue:
            return multiple()
        queued = queue[which % len(queue)]
        return self._ask(principal, schedule_inputs.WithdrawRequest(**self._fields(), queued=queued), who)

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        to=PRINCIPALS,
        holder=HOLDERS,
        which=st.integers(0, 3),
        what=st.sampled_from(("give", "many", "reserve", "switch")),
        who=st.integers(0, 2),
    )
    def hand_on(self, principal: Principal, to: Principal, holder: Holder, which: int, what: str, who: int) -> Any:
        """A lease is renewed with others, goes to another, or is moved in two steps."""
        leases = sorted(self.reader.leases)[-4:]
        if not leases:
            return multiple()
        lease = leases[which % len(leases)]
        token = self.reader.leases[lease].token
        fields: dict[str, Any] = {**self._fields(), "lease": lease, "token": token}
        match what:
            case "many":
                tokens = tuple((each, self.reader.leases[each].token) for each in leases)
                return self._ask(principal, schedule_inputs.RenewManyRequest(**self._fields(), leases=tokens), who)
            case "give":
                return self._ask(
                    principal, schedule_inputs.TransferRequest(**fields, principal=to, holder=holder), who
                )
            case "reserve":
                needs = (Need(select='device.vendor == "8086"'),)
                return self._ask(
                    principal, schedule_inputs.ReserveRequest(**fields, ttl_ms=20_000, needs=needs), who
                )
        return self._ask(principal, schedule_inputs.SwitchRequest(**fields), who)

    @rule(
        target=TwoAllocators.sent,
        target_of=TARGETS,
        what=st.sampled_from(("cordon", "uncordon", "taint", "evict", "untaint")),
        who=st.integers(0, 2),
    )
    def mark(self, target_of: dict[str, str], what: str, who: int) -> Any:
        """An operator keeps others away from something, or not any more."""
        fields: dict[str, Any] = {**self._fields(), **target_of}
        match what:
            case "cordon":
                return self._ask(OP, schedule_inputs.CordonRequest(**fields, reason="it smells"), who)
            case "uncordon":
                return self._ask(OP, schedule_inputs.UncordonRequest(**fields), who)
            case "untaint":
                return self._ask(OP, schedule_inputs.UntaintRequest(**fields, name="flaky"), who)
        evicts: dict[str, Any] = {"effect": "evict", "notice_ms": 5_000} if what == "evict" else {}
        taint = schedule_inputs.TaintRequest(**fields, name="flaky", reason="it flickers", **evicts)
        return self._ask(OP, taint, who)

    @rule(
        target=TwoAllocators.sent,
        tenant=PRINCIPALS,
        name=st.sampled_from(("", *CLASSES)),
        most=st.integers(-1, 3),
        select=SELECTS,
        who=st.integers(0, 2),
    )
    def set(self, tenant: Principal, name: str, most: int, select: str, who: int) -> Any:
        """An operator says how much a tenant may have, or what is meant by a class."""
        if name and most > 1:
            return self._ask(OP, schedule_inputs.SetClassRequest(**self._fields(), name=name, select=select), who)
        request = schedule_inputs.SetQuotaRequest(
            **self._fields(), tenant=tenant, device_class=name, devices_max=most
        )
        return self._ask(OP, request, who)

    @rule(target=TwoAllocators.sent, key=KEYS, share_max=st.integers(1, 2), clean=st.booleans(), who=st.integers(0, 2))
    def policy(self, key: str, share_max: int, clean: bool, who: int) -> Any:
        """An operator says how a device is handed out, or that it was cleaned."""
        fields: dict[str, Any] = {**self._fields(), "device": f"{HOST}/{key}"}
        if clean and share_max > 1:
            return self._ask(OP, schedule_inputs.ConfirmCleanRequest(**fields, reason="wiped"), who)
        return self._ask(OP, schedule_inputs.SetPolicyRequest(**fields, share_max=share_max, clean=clean), who)

    @invariant()
    def queue_agrees(self) -> None:
        """What is kept is kept for one who waits, and for no other."""
        kept = {device: queued for queued, row in self.reader.queue.items() for device in row.keeps}
        assert len(kept) == sum(len(row.keeps) for row in self.reader.queue.values())
        assert kept == dict(self.reader.indexes.kept)
        for device, row in self.reader.devices.items():
            assert not (row.lease and row.sharers), device
            assert all(not self.reader.leases[lease].ended for lease in row.sharers)


TestTwoAllocatorsWithAQueue = TwoAllocatorsWithAQueue.TestCase
TestTwoAllocatorsWithAQueue.settings = settings(max_examples=30, stateful_step_count=30)
