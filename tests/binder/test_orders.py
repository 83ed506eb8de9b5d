"""What administrators order: begun once, not beside what the binder does itself, and told until the log has it."""

import pytest

from leasehold.events.capabilities import DetachDevice, OrderToBinder, ReattachDevice, ResetDevice
from leasehold.events.event_types import HostOrdered, OrderCarriedOut, OrderFailed
from leasehold.events.inputs import BINDER, OrderDone, OrderNotDone
from leasehold.events.views import OrderView
from leasehold.projections.handorders import HandOrders
from leasehold.projections.handover import Back, Before, Busy, Done, Failed, NotBack, PreparedDevice, Ready
from tests.binder.course import GPU, HOST, NIC, REF, Course

BEFORE = Before(key=NIC, kind="pci", sysname="0000:03:00.0", driver="e1000e")
READY = Ready((PreparedDevice(key=NIC, driver="vfio-pci"),))


class Ordered(Course):
    """A course with orders."""

    def __init__(self) -> None:
        super().__init__()
        self.orders = HandOrders(self.handing)

    def order(self, what: OrderToBinder) -> int:
        """An administrator orders this; which order it is."""
        event = HostOrdered(request=REF, host=HOST, agent=BINDER, order=what, deadline_ns=2**62)
        number = self.happens(event)
        self.orders.hear(number, event, at_ns=number)
        return number

    def view(self, number: int, what: OrderToBinder, state: str = "waiting") -> OrderView:
        """The same, as the log lists it."""
        return OrderView(
            order=number, host=HOST, agent=BINDER, what=what, state=state, asked_by="ann", request_id="r",
            ordered_at_ns=number, deadline_ns=2**62,
        )  # fmt: skip


@pytest.fixture
def course() -> Ordered:
    """Nothing is leased or ordered."""
    return Ordered()


def test_detached_and_reattached(course: Ordered) -> None:
    """What the device was before is noted until it is that again, whatever leases come between."""
    number = course.order(DetachDevice(device=NIC))
    (job,) = course.orders.jobs(course.now_ms)
    assert course.orders.jobs(course.now_ms) == []
    course.handing.noted([BEFORE])
    course.orders.done(job, READY)
    assert course.orders.observations() == [OrderDone(number, NIC)]
    assert course.orders.observations() == []
    course.release(course.grant(NIC))
    course.settle()
    assert course.handing.note_of(NIC).detached == BEFORE
    course.order(ReattachDevice(device=NIC))
    (job,) = course.orders.jobs(course.now_ms)
    assert job.note.detached == BEFORE
    course.orders.done(job, Back("e1000e"))
    assert course.handing.note_of(NIC).detached is None


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Done("e1000e", "flr"), ""),
        (Busy(("process 7",)), "it is in use by process 7"),
        (Failed(NIC, "no way"), "no way"),
        (NotBack(NIC, "no way", "switch it off and on"), "no way (switch it off and on)"),
    ],
)
def test_outcomes(course: Ordered, outcome: Done | Busy | Failed | NotBack, said: str) -> None:
    """Each is told, as done or with its reason."""
    number = course.order(ResetDevice(device=NIC))
    (job,) = course.orders.jobs(course.now_ms)
    course.orders.done(job, outcome)
    assert course.orders.observations() == [OrderNotDone(number, said) if said else OrderDone(number, NIC)]


def test_beside_a_lease(course: Ordered) -> None:
    """One device has one job; what is leased by now is left alone, and the order says so."""
    course.order(ResetDevice(device=NIC))
    (job,) = course.orders.jobs(course.now_ms)
    course.grant(NIC)
    assert course.jobs() == []
    course.orders.done(job, Done())
    prepare = course.job()
    number = course.order(ResetDevice(device=NIC))
    assert course.orders.jobs(course.now_ms) == []
    (told,) = [word for word in course.orders.observations() if word.order == number]  # type: ignore[union-attr]
    assert isinstance(told, OrderNotDone)
    course.succeeds(prepare)


def test_a_reattach_of_what_cannot_be_taken_back(course: Ordered) -> None:
    """It makes the binder try at once; what comes of that is the order's outcome."""
    lease = course.grant(NIC)
    course.settle()
    course.release(lease)
    course.done(course.job(), NotBack(NIC, "no", "do"))
    assert course.jobs() == []
    number = course.order(ReattachDevice(device=NIC))
    assert course.orders.jobs(course.now_ms) == []
    again = course.job()
    course.succeeds(again)
    course.orders.taken_back(NIC, Back("e1000e"))
    assert course.orders.observations() == [OrderDone(number, NIC)]


def test_orders_that_are_told_late_twice_or_not_at_all(course: Ordered) -> None:
    """An answer to `sync` brings those that were missed, and not again those that are over."""
    what = ResetDevice(device=NIC)
    course.orders.synced([course.view(3_000, what)], as_of=4_000)
    (job,) = course.orders.jobs(course.now_ms)
    course.orders.hear(3_000, HostOrdered(request=REF, host=HOST, agent=BINDER, order=what, deadline_ns=1), at_ns=3_000)
    assert course.orders.jobs(course.now_ms) == []
    course.orders.done(job, Done())
    assert course.orders.observations() == [OrderDone(3_000, NIC)]
    course.orders.synced([course.view(3_000, what)], as_of=4_000)
    assert course.orders.observations() == [OrderDone(3_000, NIC)]
    course.orders.hear(5_000, OrderCarriedOut(host=HOST, order=3_000), at_ns=5_000)
    course.orders.synced([course.view(3_000, what)], as_of=4_500)
    assert course.orders.jobs(course.now_ms) == []
    assert course.orders.observations() == []


def test_an_order_whose_time_is_over(course: Ordered) -> None:
    """It is not begun any more."""
    number = course.order(ResetDevice(device=GPU))
    course.orders.hear(9_999, OrderFailed(host=HOST, order=number, reason="late", timed_out=True), at_ns=9_999)
    assert course.orders.jobs(course.now_ms) == []
    course.orders.synced([course.view(number, ResetDevice(device=GPU), "timed_out")], as_of=10_000)
    assert course.orders.jobs(course.now_ms) == []


def test_cut_off(course: Ordered) -> None:
    """Nothing that is ordered is begun, nor before the log is known."""
    course.order(ResetDevice(device=NIC))
    course.now_ms += 60_000
    assert course.orders.jobs(course.now_ms) == []
    course.passes(0)
    assert len(course.orders.jobs(course.now_ms)) == 1
