"""The two allocators of `test_machine`, with a host whose agent makes and destroys devices, and a small memory."""

from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from leasehold.events import inputs, limits
from leasehold.events.capabilities import NewMdev
from leasehold.events.identities import Holder, Principal
from leasehold.events.inputs import CREATOR, Observation
from leasehold.projections.orders import list_orders, open_orders
from leasehold.projections.reporting import Reporter
from tests.projections.test_machine import HOST, PRINCIPALS, TwoAllocators
from tests.sim.world import GPU, MDEV_TYPE, UUIDS, gpu, mdev

SMALL: dict[str, Any] = {"ORDERS_KEPT_PER_HOST_MAX": 3, "ORDERS_OPEN_PER_HOST_MAX": 2}


class TwoAllocatorsWithOrders(TwoAllocators):
    """All that may come there, and orders in between."""

    def __init__(self) -> None:
        self.small = patch.multiple(limits, **SMALL)
        self.small.start()
        super().__init__()
        self.picture[GPU] = gpu()
        self._hear(*self.reporter.look(self.picture))
        self.creator = Reporter(HOST, CREATOR, 1)
        self._hear(self.creator.starts(), *self.creator.synced({}, {}))
        self._append(0, both=False)

    def teardown(self) -> None:
        """As there."""
        try:
            super().teardown()
        finally:
            self.small.stop()

    @rule(
        target=TwoAllocators.sent,
        principal=PRINCIPALS,
        uuid=st.sampled_from(("", *UUIDS)),
        timeout_ms=st.sampled_from((1_000, 20_000)),
        who=st.integers(0, 2),
    )
    def make(self, principal: Any, uuid: str, timeout_ms: int, who: int) -> Any:
        """Somebody wants a device to be made."""
        device = NewMdev(parent=GPU, mdev_type=MDEV_TYPE, uuid=uuid)
        request = inputs.CreateDeviceRequest(**self._fields(), device=device, timeout_ms=timeout_ms)
        return self._ask(principal, request, who)

    @rule(target=TwoAllocators.sent, principal=PRINCIPALS, uuid=st.sampled_from(UUIDS), who=st.integers(0, 2))
    def destroy(self, principal: Any, uuid: str, who: int) -> Any:
        """Somebody wants one to be taken away."""
        request = inputs.DestroyDeviceRequest(**self._fields(), device=mdev(uuid).key, timeout_ms=5_000)
        return self._ask(principal, request, who)

    @rule(uuid=st.sampled_from(UUIDS))
    def lease_what_was_made(self, uuid: str) -> None:
        """Somebody wants what was made, or what it was made on."""
        for key in (mdev(uuid).key, GPU):
            request = inputs.LeaseRequest(**self._fields(), devices=(key,), holder=Holder("vm"), ttl_ms=20_000)
            self._ask(Principal("a"), request, 2)

    @rule(uuid=st.sampled_from(UUIDS), is_there=st.booleans())
    def see(self, uuid: str, is_there: bool) -> None:
        """A device that was made is seen, or is not there any more."""
        device = mdev(uuid)
        if is_there:
            self.picture[device.key] = device
        else:
            self.picture.pop(device.key, None)
        self._hear(*self.reporter.look(self.picture))

    @rule(which=st.integers(0, 2), is_done=st.booleans())
    def say(self, which: int, is_done: bool) -> None:
        """The creator tells what came of one of the last orders."""
        orders = sorted(self.reader.orders)
        if orders:
            order = orders[-1 - which % len(orders)]
            said: Observation = inputs.OrderDone(order) if is_done else inputs.OrderNotDone(order, "no")
            self._hear(*self.creator.tell([said]))

    @rule()
    def creator_restarts(self) -> None:
        """The creator begins a new run."""
        self.creator = Reporter(HOST, CREATOR, self.creator.run + 1)
        self._hear(self.creator.starts())
        self._append(0, both=False)
        self._hear(*self.creator.synced({}, {}))

    @invariant()
    def orders_agree(self) -> None:
        """What is remembered of orders is within its bounds, and each open one has a deadline that is watched."""
        state = self.reader
        assert len(state.orders) <= SMALL["ORDERS_KEPT_PER_HOST_MAX"]
        open_here = [order for order, row in state.orders.items() if row.is_open]
        assert len(open_here) <= SMALL["ORDERS_OPEN_PER_HOST_MAX"]
        assert {row.order for row in list_orders(state)[0]} == set(open_here)
        assert set(open_here) <= {row.order for row in open_orders(state, HOST, CREATOR)}
        assert sorted(state.deadlines.due_by(2**62, limit=9)) == sorted(open_here)
        for key, answer in state.answers.items():
            if answer.order in state.orders and answer.order:
                row = state.orders[answer.order]
                assert (answer.state, row.request) == (row.state, key)


TestTwoAllocatorsWithOrders = TwoAllocatorsWithOrders.TestCase
TestTwoAllocatorsWithOrders.settings = settings(max_examples=60, stateful_step_count=40)
