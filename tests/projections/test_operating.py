"""What administrators may have done to a device that nobody has: detach, reattach, reset; and virtual functions."""

from typing import Any

import pytest

from leasehold.events import capabilities, codec, inputs, limits
from leasehold.events.answers import Answer
from leasehold.events.capabilities import (
    DetachDevice,
    NewVirtualFunctions,
    Pci,
    ReattachDevice,
    ResetDevice,
    SetVirtualFunctions,
)
from leasehold.events.event_types import HostOrdered, OrderCarriedOut
from leasehold.events.hostdevs import OPERATIONS
from leasehold.events.identities import DeviceKey, Holder
from leasehold.events.inputs import BINDER, GivenBack, OrderDone, OrderNotDone, Stuck
from leasehold.events.refusals import RefusalCode
from leasehold.projections import conflicts
from leasehold.projections.orders import open_orders
from tests.projections.domains import UUID, Polled, used
from tests.projections.hbas import Creator
from tests.projections.ledger import H1, SECOND, B, Ledger, device, ledger_with_hosts, refusal_of
from tests.projections.test_hostdevs import kinds, managed, silence

NIC = DeviceKey("pci/0000:01:00.0")
CARD = device("01:00.0")


def operate(ledger: Ledger, text: str, operation: str = "detach", **fields: Any) -> Answer:
    """An administrator asks."""
    request = inputs.OperateDeviceRequest(
        request_id=ledger.new_id(), issued_at_ns=ledger.now_ns, device=text, operation=operation, **fields
    )
    return ledger.ask(codec.decode_request("operate_device", codec.encode(request)), B)


ORDERS: dict[str, capabilities.OrderToBinder] = {
    "detach": DetachDevice(device=NIC),
    "reattach": ReattachDevice(device=NIC),
    "reset": ResetDevice(device=NIC),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("text", ["pci_0000_01_00_0", "0000:01:00.0", "/sys/bus/pci/devices/0000:01:00.0"])
def test_a_free_device_is_operated_on(operation: str, text: str) -> None:
    """By any name; the binder is told, and what it says of it is the answer."""
    ledger = managed()
    answer = operate(ledger, text, operation, host=H1)
    assert (answer.outcome, answer.state, answer.what) == ("ordered", "waiting", ORDERS[operation])
    (event,) = ledger.events
    assert isinstance(event, HostOrdered)
    assert (event.host, event.agent, event.deadline_ns) == (H1, BINDER, ledger.now_ns + 60 * SECOND)
    assert [row.order for row in open_orders(ledger.state, H1, BINDER)] == [answer.order]
    assert refusal_of(ledger.lease("01:00.0")).blockers[0].rule == "ordered"
    assert refusal_of(operate(ledger, CARD, "reset")).code == RefusalCode.DEVICE_IN_USE
    ledger.bind(OrderDone(answer.order, NIC))
    assert kinds(ledger) == ["OrderCarriedOut"]
    assert ledger.granted("01:00.0")


def test_the_stub_may_be_said() -> None:
    """The one to bind to; of a USB device there is none."""
    ledger = managed()
    assert operate(ledger, CARD, driver="pciback").what == DetachDevice(device=NIC, driver="pciback")
    assert refusal_of(operate(ledger, device("2-2"), driver="pciback")).code == RefusalCode.DEVICE_UNLEASABLE
    assert operate(ledger, device("2-2")).outcome == "ordered"


def test_another_agent_cannot_say_how_it_went() -> None:
    """The order is the binder's; its failing is told with its reason."""
    ledger = managed()
    order = operate(ledger, CARD).order
    ledger.observe(OrderDone(order, NIC))
    assert not kinds(ledger)
    ledger.bind(OrderNotDone(order, "igb does not let go"))
    assert kinds(ledger) == ["OrderFailed"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_in_use_is_named(operation: str) -> None:
    """A leased device is refused: which lease, and the hypervisor and domain that have it."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    ledger.start_binder(H1)
    lease = ledger.granted("01:00.0", domain=UUID)
    refusal = refusal_of(operate(ledger, CARD, operation))
    assert refusal.code == RefusalCode.DEVICE_HELD
    assert refusal.message == f"{CARD} is in use by lease L{lease} of vm, domain {UUID}"
    poller.see()
    poller.say(used(NIC))
    assert refusal_of(operate(ledger, CARD, operation)).message == (
        f"{CARD} is in use by lease L{lease} of vm, driver xen, domain web"
    )
    ledger.release(lease)
    assert "(ended: released; not free yet), driver xen, domain web" in (
        refusal_of(operate(ledger, CARD, operation)).message
    )


def test_used_without_a_lease() -> None:
    """What a domain has, or somebody on the host, is not touched."""
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    ledger.start_binder(H1)
    poller.see()
    poller.say(used(NIC))
    refusal = refusal_of(operate(ledger, CARD))
    assert refusal.code == RefusalCode.DEVICE_IN_USE
    assert "web" in refusal.message
    assert refusal_of(operate(ledger, device("07:00.0"))).code == RefusalCode.DEVICE_IN_USE


@pytest.mark.parametrize(
    ("text", "leased", "code"),
    [
        ("02:00.0", "02:00.1", RefusalCode.DEVICE_HELD),
        ("03:00.0", "03:10.0", RefusalCode.DEVICE_HELD),
        ("03:10.0", "03:00.0", RefusalCode.DEVICE_HELD),
        ("04:00.0", "2-2", RefusalCode.DEVICE_HELD),
        ("2-1", "2-1.1", RefusalCode.DEVICE_HELD),
        ("02:02.0", "", RefusalCode.DEVICE_UNLEASABLE),
        ("06:00.0", "", RefusalCode.DEVICE_PROTECTED),
        ("08:00.0", "", RefusalCode.DEVICE_PROTECTED),
        ("1f:00.0", "", RefusalCode.DEVICE_UNKNOWN),
    ],
    ids=["group mate", "PF", "VF", "controller", "hub", "bridge", "mounted", "route", "unknown"],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nor_what_is_tied_to_it(text: str, leased: str, code: RefusalCode, operation: str) -> None:
    """Neighbours of what is leased, bridges, and what the host lives on, whoever asks, and whosever lease it is."""
    ledger = managed()
    if leased:
        ledger.granted(leased, principal=B, holder=Holder("vm"))
    assert refusal_of(operate(ledger, device(text), operation)).code == code


def test_a_part_stands_for_the_whole() -> None:
    """An interface of a USB device is the device; a mediated device has no driver that could be changed."""
    ledger = managed()
    interface = f"{H1}/usb/0000:04:00.0/2-2/interface/1.0"
    assert operate(ledger, interface).what == DetachDevice(device=DeviceKey("usb/0000:04:00.0/2-2"))
    computer = ledger.state.devices[CARD].description
    ledger.see(type(computer)(key=DeviceKey("computer"), name="computer", kind="system"))
    assert refusal_of(operate(ledger, "computer", host=H1)).code == RefusalCode.DEVICE_UNLEASABLE


def test_without_a_binder_nothing_is_done() -> None:
    """On a host that is watched only; and where the binder, or the watcher, is not heard."""
    ledger = ledger_with_hosts()
    assert refusal_of(operate(ledger, CARD)).code == RefusalCode.HOST_NOT_MANAGED
    ledger.start_binder(H1)
    silence(ledger, BINDER)
    assert refusal_of(operate(ledger, CARD)).code == RefusalCode.HOST_STALE
    ledger.start_binder(H1, run=2)
    silence(ledger, "watcher")
    assert refusal_of(operate(ledger, CARD)).code == RefusalCode.HOST_STALE


def test_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host is told so much at a time."""
    monkeypatch.setattr(limits, "ORDERS_OPEN_PER_HOST_MAX", 1)
    ledger = managed()
    operate(ledger, CARD)
    assert refusal_of(operate(ledger, device("0a:00.0"))).code == RefusalCode.ORDERS_TOO_MANY


def test_out_of_quarantine() -> None:
    """What is stuck is not touched but by reattaching it, also while its ended lease holds it; what came of it, the
    binder says.
    """
    ledger = managed()
    lease = ledger.granted("01:00.0")
    ledger.bind(Stuck(NIC, lease, "igb does not bind", "load igb"))
    assert refusal_of(operate(ledger, CARD, "reattach")).code == RefusalCode.DEVICE_HELD
    ledger.bind(Stuck(NIC, 0, "igb does not bind", "load igb"), GivenBack(NIC, 0))
    ledger.release(lease)
    assert refusal_of(operate(ledger, CARD, "reattach")).code == RefusalCode.DEVICE_HELD
    ledger.bind(Stuck(NIC, lease, "igb does not bind", "load igb"))
    for operation in ("detach", "reset"):
        assert refusal_of(operate(ledger, CARD, operation)).code == RefusalCode.DEVICE_HELD
    order = operate(ledger, CARD, "reattach").order
    ledger.bind(OrderDone(order, NIC), GivenBack(NIC, lease, "igb"))
    assert kinds(ledger) == ["OrderCarriedOut", "DeviceGivenBack", "DeviceFreed"]
    ledger.bind(Stuck(NIC, 0, "left over", "load igb"))
    for operation in ("detach", "reset"):
        refusal = refusal_of(operate(ledger, CARD, operation))
        assert (refusal.code, refusal.help) == (RefusalCode.DEVICE_QUARANTINED, "load igb")
    assert operate(ledger, CARD, "reattach").outcome == "ordered"


# --- virtual functions --------------------------------------------------------------------------------------------


def _with_virtual_functions(count: int = 2) -> tuple[Ledger, Creator]:
    ledger = ledger_with_hosts()
    ledger.change("03:00.0", capability=Pci(virtual_functions_max=7, virtual_functions=count))
    creator = Creator(ledger)
    creator.start()
    return ledger, creator


def make(ledger: Ledger, count: int, parent: str = "03:00.0") -> Answer:
    """An administrator wants so many virtual functions."""
    request = inputs.CreateDeviceRequest(
        request_id=ledger.new_id(),
        issued_at_ns=ledger.now_ns,
        device=NewVirtualFunctions(parent=device(parent), count=count),
    )
    return ledger.ask(codec.decode_request("create_device", codec.encode(request)), B)


@pytest.mark.parametrize("count", [0, 7])
def test_virtual_functions_are_made_and_taken_away(count: int) -> None:
    """The creator is told; until that is over neither the function nor its parts are granted."""
    ledger, creator = _with_virtual_functions()
    answer = make(ledger, count)
    assert answer.what == SetVirtualFunctions(parent=DeviceKey("pci/0000:03:00.0"), count=count)
    for text in ("03:00.0", "03:10.0"):
        assert refusal_of(ledger.lease(text)).code == RefusalCode.DEVICE_IN_USE
    assert refusal_of(make(ledger, 3)).code == RefusalCode.DEVICE_IN_USE
    creator.done(answer.order, "")
    assert any(isinstance(event, OrderCarriedOut) for event in ledger.events)
    assert ledger.granted("03:10.0")


@pytest.mark.parametrize("leased", ["03:10.1", "03:00.0"])
def test_not_while_one_is_leased(leased: str) -> None:
    """Setting another number takes all away first: not from anybody who has one, or the whole; nor from the asker."""
    ledger, _ = _with_virtual_functions()
    lease = ledger.granted(leased, principal=B)
    assert refusal_of(make(ledger, 4)).code == RefusalCode.DEVICE_HELD
    ledger.release(lease, principal=B)
    assert make(ledger, 4).outcome == "ordered"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"in_use_by": ("domain web",)}, RefusalCode.DEVICE_IN_USE),
        ({"protections": ("carries the default route",)}, RefusalCode.DEVICE_PROTECTED),
    ],
)
@pytest.mark.parametrize("which", ["03:10.0", "03:00.0"])
def test_nor_while_one_is_used(fields: dict[str, Any], code: RefusalCode, which: str) -> None:
    """By somebody without a lease, or by the host itself."""
    ledger, _ = _with_virtual_functions()
    ledger.change(which, **fields)
    assert refusal_of(make(ledger, 4)).code == code


def test_more_than_there_can_be() -> None:
    """And on what can have none."""
    ledger, _ = _with_virtual_functions()
    refusal = refusal_of(make(ledger, 8))
    assert (refusal.code, refusal.help) == (RefusalCode.PARENT_UNSUITABLE, "ask for 0 to 7")
    assert refusal_of(make(ledger, 1, "01:00.0")).code == RefusalCode.PARENT_UNSUITABLE
    assert refusal_of(make(ledger, 1, "1f:00.0")).code == RefusalCode.DEVICE_UNKNOWN


def test_a_refused_lease_names_driver_and_domain() -> None:
    """Who asks for what another has reads by which hypervisor and domain it is used, or for which domain it is; by
    rules of before, nothing of these.
    """
    ledger = ledger_with_hosts()
    poller = Polled(ledger)
    lease = ledger.granted("01:00.0", domain=UUID)
    assert refusal_of(ledger.lease("01:00.0", principal=B)).message == (
        f"{CARD}: it is leased to vm (L{lease}), for domain {UUID}"
    )
    poller.see()
    poller.say(used(NIC))
    assert refusal_of(ledger.lease("01:00.0", principal=B)).message == (
        f"{CARD}: it is leased to vm (L{lease}), used by driver xen, domain web"
    )
    ledger.release(lease)
    assert "not known to be free yet, used by driver xen, domain web" in (
        refusal_of(ledger.lease("01:00.0", principal=B)).message
    )
    ledger.state.rules_version = 3
    assert "web" not in conflicts.held(ledger.state, CARD, CARD, "same_device").why
