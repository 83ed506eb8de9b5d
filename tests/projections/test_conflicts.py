"""Which devices can be leased beside which: a table of named cases. The host that they play on is in `ledger.py`."""

from itertools import combinations
from typing import NamedTuple

import pytest

from leasehold.events import inputs
from leasehold.events.identities import DeviceKey, Holder, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.projections import conflicts
from tests.projections.ledger import H1, H2, A, B, device, ledger_with_hosts, refusal_of, usb

MINE = (A, "vm")


class Case(NamedTuple):
    """`asks` for devices by MINE, while `held` are leased. `refused`: rule and the device in the way; none: granted."""

    name: str
    asks: tuple[str, ...]
    held: tuple[tuple[tuple[str, str], tuple[str, ...]], ...] = ()
    refused: tuple[str, str] | None = None
    force: bool = False


SAME_PRINCIPAL, SAME_HOLDER, STRANGER = (A, "other"), (B, "vm"), (B, "other")
CASES = (
    # --- one device -----------------------------------------------------------------------------------------------
    Case("a free device is granted", ("01:00.0",)),
    Case("several free devices are granted at once", ("01:00.0", "0a:00.0", "2-2")),
    Case("a device of a stranger is not", ("01:00.0",), ((STRANGER, ("01:00.0",)),), ("same_device", "")),
    Case("nor one that the same holder has already", ("01:00.0",), ((MINE, ("01:00.0",)),), ("same_device", "")),
    Case("nor one of the same principal's other holder", ("01:00.0",), ((SAME_PRINCIPAL, ("01:00.0",)),),
         ("same_device", "")),
    Case("nor one of another principal's holder of the same name", ("01:00.0",), ((SAME_HOLDER, ("01:00.0",)),),
         ("same_device", "")),
    Case("force takes nothing from anybody", ("01:00.0",), ((STRANGER, ("01:00.0",)),), ("same_device", ""), True),
    Case("a child stands for its parent", ("01:00.0/net/0",)),
    Case("a child of a leased parent is leased", ("01:00.0/net/0",), ((STRANGER, ("01:00.0",)),), ("same_device", "")),
    Case("a parent of a leased child is leased", ("01:00.0",), ((STRANGER, ("01:00.0/net/0",)),), ("same_device", "")),
    Case("an interface stands for its USB device", ("2-2",), ((STRANGER, ("2-2/interface/1.0",)),),
         ("same_device", "")),
    # --- IOMMU groups ---------------------------------------------------------------------------------------------
    Case("a group mate of a stranger's is not granted", ("02:00.1",), ((STRANGER, ("02:00.0",)),),
         ("iommu_group", "02:00.0")),
    Case("nor one of the same principal's other holder", ("02:00.1",), ((SAME_PRINCIPAL, ("02:00.0",)),),
         ("iommu_group", "02:00.0")),
    Case("nor one of another principal's holder of that name", ("02:00.1",), ((SAME_HOLDER, ("02:00.0",)),),
         ("iommu_group", "02:00.0")),
    Case("a group mate of the same holder's is", ("02:00.1",), ((MINE, ("02:00.0",)),)),
    Case("a whole group is, and its bridge is no obstacle", ("02:00.0", "02:00.1")),
    Case("a group mate of the host's own is not", ("06:00.1",), (), ("protected", "06:00.0")),
    Case("unless by force", ("06:00.1",), (), None, True),
    Case("a group mate of one in use is not", ("07:00.1",), (), ("in_use", "07:00.0")),
    Case("not even by force", ("07:00.1",), (), ("in_use", "07:00.0"), True),
    # --- SR-IOV ---------------------------------------------------------------------------------------------------
    Case("a physical function of a stranger's virtual one is not", ("03:00.0",), ((STRANGER, ("03:10.0",)),),
         ("physical_function", "03:10.0")),
    Case("a virtual function of a stranger's physical one is not", ("03:10.0",), ((STRANGER, ("03:00.0",)),),
         ("physical_function", "03:00.0")),
    Case("nor of the same holder's other lease, down", ("03:10.0",), ((MINE, ("03:00.0",)),),
         ("physical_function", "03:00.0")),
    Case("nor of the same holder's other lease, up", ("03:00.0",), ((MINE, ("03:10.1",)),),
         ("physical_function", "03:10.1")),
    Case("both in one lease are", ("03:00.0", "03:10.0", "03:10.1")),
    Case("both without the virtual one that a stranger has are not", ("03:00.0", "03:10.0"),
         ((STRANGER, ("03:10.1",)),), ("physical_function", "03:10.1")),
    Case("two virtual functions go to two holders", ("03:10.0",), ((STRANGER, ("03:10.1",)),)),
    Case("a virtual function of a protected physical one is granted", ("08:10.0",)),
    Case("a physical function of a protected virtual one is not", ("09:00.0",), (), ("protected", "09:10.0")),
    Case("unless by force, then", ("09:00.0",), (), None, True),
    # --- USB ------------------------------------------------------------------------------------------------------
    Case("a controller above a stranger's device is not", ("04:00.0",), ((STRANGER, ("2-1.1",)),),
         ("usb_tree", "2-1.1")),
    Case("a device below a stranger's controller is not", ("2-1.1",), ((STRANGER, ("04:00.0",)),),
         ("usb_tree", "04:00.0")),
    Case("a hub above a stranger's device is not", ("2-1",), ((STRANGER, ("2-1.2",)),), ("usb_tree", "2-1.2")),
    Case("a device below a stranger's hub is not", ("2-1.2",), ((STRANGER, ("2-1",)),), ("usb_tree", "2-1")),
    Case("nor below the same holder's hub, in another lease", ("2-1.2",), ((MINE, ("2-1",)),), ("usb_tree", "2-1")),
    Case("two devices of one hub go to two holders", ("2-1.1",), ((STRANGER, ("2-1.2",)),)),
    Case("a device beside a stranger's hub is granted", ("2-2",), ((STRANGER, ("2-1",)),)),
    Case("a hub with all below it is granted", ("2-1", "2-1.1", "2-1.2")),
    Case("a controller with a part of what is below is granted", ("04:00.0", "2-2")),
    # --- what nobody gets -----------------------------------------------------------------------------------------
    Case("a bridge is not", ("02:02.0",), (), ("bridge", "")),
    Case("not even by force, a bridge", ("02:02.0",), (), ("bridge", ""), True),
    Case("a root hub is not", ("2-0",), (), ("bridge", "")),
    Case("what the host lives on is not", ("06:00.0",), (), ("protected", "")),
    Case("but is by force", ("06:00.0",), (), None, True),
    Case("what is used without a lease is not", ("07:00.0",), (), ("in_use", "")),
    Case("not even by force, used without a lease", ("07:00.0",), (), ("in_use", ""), True),
    # --- several --------------------------------------------------------------------------------------------------
    Case("all or none: one leased", ("0a:00.0", "01:00.0"), ((STRANGER, ("01:00.0",)),), ("same_device", "")),
    Case("all or none: one protected", ("0a:00.0", "06:00.0"), (), ("protected", "")),
    Case("all or none: one with a mate", ("0a:00.0", "02:00.0"), ((STRANGER, ("02:00.1",)),),
         ("iommu_group", "02:00.1")),
    Case("the gravest rule names the refusal", ("01:00.0", "02:02.0", "06:00.0"), ((STRANGER, ("01:00.0",)),),
         ("bridge", "")),
    Case("a device that is named twice is one", ("01:00.0", "01:00.0/net/0", "01:00.0")),
)  # fmt: skip
CODES = {
    "same_device": RefusalCode.DEVICE_HELD,
    "iommu_group": RefusalCode.DEVICE_HELD,
    "physical_function": RefusalCode.DEVICE_HELD,
    "usb_tree": RefusalCode.DEVICE_HELD,
    "protected": RefusalCode.DEVICE_PROTECTED,
    "in_use": RefusalCode.DEVICE_IN_USE,
    "bridge": RefusalCode.DEVICE_UNLEASABLE,
    "missing": RefusalCode.DEVICE_MISSING,
    "host_stale": RefusalCode.HOST_STALE,
}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Case) -> None:
    """The request is granted, or refused for this reason; a refusal leaves all devices as they were."""
    ledger = ledger_with_hosts()
    for (principal, holder), devices in case.held:
        ledger.granted(*devices, principal=Principal(principal), holder=Holder(holder))
    leases = {name: row.lease for name, row in ledger.state.devices.items()}
    answer = ledger.lease(*case.asks, holder=Holder(MINE[1]), force=case.force)
    if case.refused is None:
        assert answer.outcome == "granted", answer
        assert set(answer.devices) == {device(parent_of(text)) for text in case.asks}
        assert all(ledger.state.devices[device(text)].lease == answer.lease for text in map(parent_of, case.asks))
        return
    refusal = refusal_of(answer)
    rule, because_of = case.refused
    first = refusal.blockers[0]
    assert (first.rule, first.because_of) == (rule, device(because_of) if because_of else "")
    assert refusal.code == CODES[rule]
    assert all((first.why, first.help, refusal.help, first.device in refusal.message))
    assert {name: row.lease for name, row in ledger.state.devices.items()} == leases


def parent_of(text: str) -> str:
    return text.partition("/")[0]


def test_what_is_held_is_told() -> None:
    """A refusal over a lease says whose it is, which one, and since when and where in the log."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("02:00.0", principal=B, holder=Holder("vm:web"))
    at_ns = ledger.now_ns
    ledger.now_ns += 5
    first = refusal_of(ledger.lease("02:00.1")).blockers[0]
    assert (first.lease, first.holder, first.since_ns, first.since_position) == (lease, "vm:web", at_ns, lease)


def test_everything_in_the_way_is_told() -> None:
    """Of several obstacles all are named, the gravest rule first, within a bound."""
    ledger = ledger_with_hosts()
    ledger.granted("01:00.0", "2-1.1", principal=B)
    refusal = refusal_of(ledger.lease("01:00.0", "04:00.0", "06:00.0", "07:00.0"))
    assert [(blocker.rule, blocker.device.rpartition("/")[2]) for blocker in refusal.blockers] == [
        ("protected", "0000:06:00.0"),
        ("same_device", "0000:01:00.0"),
        ("usb_tree", "0000:04:00.0"),
        ("in_use", "0000:07:00.0"),
    ]


def test_what_is_not_free_yet_stays_held() -> None:
    """A device of an ended lease, without evidence, blocks itself and what cannot be owned apart from it."""
    ledger = ledger_with_hosts()
    lease = ledger.granted("02:00.0", "03:10.0", "2-1.1", principal=B)
    for text in ("02:00.0", "03:10.0", "2-1.1"):
        ledger.change(text, in_use_by=("vm",))
    ledger.release(lease, B)
    for text, rule in (
        ("02:00.0", "same_device"),
        ("02:00.1", "iommu_group"),
        ("03:00.0", "physical_function"),
        ("2-1", "usb_tree"),
        ("04:00.0", "usb_tree"),
    ):
        refusal = refusal_of(ledger.lease(text))
        assert refusal.blockers[0].rule == rule
        assert "being given back" in refusal.blockers[0].why


def test_missing() -> None:
    """A device that is not there is refused, and granted once it is back."""
    ledger = ledger_with_hosts()
    ledger.observe(inputs.DeviceGone(DeviceKey("pci/0000:01:00.0")))
    assert refusal_of(ledger.lease("01:00.0")).code == RefusalCode.DEVICE_MISSING
    ledger.change("01:00.0")
    ledger.granted("01:00.0")


@pytest.mark.parametrize("how", ["silent", "stopped", "gap", "new run"])
def test_stale(how: str) -> None:
    """Nothing of a host is granted while its picture may be out of date; another host's devices are."""
    ledger = ledger_with_hosts()
    if how == "silent":
        ledger.note(inputs.HostHeard(H1, "watcher", 1, alive=False))
    elif how == "stopped":
        ledger.observe(inputs.SourceStops())
    elif how == "gap":
        ledger.observe(inputs.StillHere(), skip=1)
    else:
        ledger.observe(inputs.SourceStarts(), run=2)
    refusal = refusal_of(ledger.lease("01:00.0"))
    assert refusal.code == RefusalCode.HOST_STALE
    assert "watcher" in refusal.blockers[0].why
    assert ledger.ask(ledger.request(device("01:00.0", H2))).outcome == "granted"


def test_new_device_below_a_leased_hub() -> None:
    """What is plugged in below a leased hub belongs to whoever has the hub."""
    ledger = ledger_with_hosts()
    ledger.granted("2-1", principal=B)
    ledger.see(usb("2-1.3", "usb/0000:04:00.0/2-1"))
    assert refusal_of(ledger.lease("2-1.3")).blockers[0].rule == "usb_tree"


def test_forced_is_written_down() -> None:
    """A grant says that it was forced only where force was needed."""
    ledger = ledger_with_hosts()
    forced = ledger.granted("06:00.0", force=True)
    needless = ledger.granted("01:00.0", force=True)
    assert ledger.state.leases[forced].forced
    assert not ledger.state.leases[needless].forced


@pytest.mark.parametrize("held", [(), ("02:00.1",), ("03:10.0",), ("2-1.1",), ("0a:00.0", "01:00.0")])
def test_a_group_is_walked_through_once(held: tuple[str, ...]) -> None:
    """Of devices asked for together, a group found clear for one is not looked at again: with the same outcome."""
    ledger = ledger_with_hosts()
    # Groups of functions with what they carry, and one of devices that carry nothing.
    for text, group in (("03:00.0", 50), ("01:00.0", 50), ("0a:00.0", 50), ("04:00.0", 51), ("09:00.0", 51)):
        ledger.change(text, iommu_group=group)
    for text in held:
        ledger.granted(text, principal=B)
    state = ledger.state
    free = 0
    for some in combinations(sorted(state.devices), 2):
        together, owner = frozenset(some), ("a", "vm")
        each = [tuple(conflicts.blockers(state, one, owner=owner, together=together, force=False)) for one in some]
        found = conflicts.first_blockers(state, some, owner=owner, force=False)
        assert bool(found) == any(each), some
        free += not found
    assert free > 10
