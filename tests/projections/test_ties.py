"""What shares a slot, an open bridge, USB ports or a function that carries it: by named cases, and against brute force
on hosts whose descriptions say anything at all.
"""

import random
from itertools import permutations
from typing import Any

import msgspec
import pytest

from leasehold.events import event_types
from leasehold.events.capabilities import Pci, UsbDevice
from leasehold.events.devices import DeviceDescription
from leasehold.events.hostdevs import STUBS
from leasehold.events.identities import DeviceId, DeviceKey, Holder, Principal, RequestId, request_key
from leasehold.events.refusals import RefusalCode
from leasehold.projections import conflicts, sharing, ties
from leasehold.projections.rows import DeviceState, HostState, LeaseState, Quarantine, SourceState
from leasehold.projections.state import State
from tests.projections.ledger import H1, A, B, Ledger, device, ledger_with_hosts, pci, refusal_of, usb

FLR, BUS_ONLY, UNTOLD = ("flr", "bus"), ("bus",), None
UHCI, OHCI, EHCI, XHCI = 0x0C0300, 0x0C0310, 0x0C0320, 0x0C0330


def function(
    address: str, resets: tuple[str, ...] | None = FLR, isolation: str = "", **fields: Any
) -> DeviceDescription:
    """A PCI function as today's watchers tell of it."""
    return pci(address, capability=Pci(resets=resets, isolation=isolation), **fields)


def bridge(address: str, isolation: str, parent: str = "") -> DeviceDescription:
    """A bridge."""
    above = f"pci/0000:{parent}" if parent else ""
    return function(address, BUS_ONLY, isolation, bridge=True, parent=above)


def behind(address: str, parent: str, **fields: Any) -> DeviceDescription:
    """A function behind a bridge."""
    return function(address, parent=f"pci/0000:{parent}", **fields)


def with_devices(*descriptions: DeviceDescription) -> Ledger:
    """The usual ledger with more devices."""
    ledger = ledger_with_hosts()
    ledger.see(*descriptions)
    return ledger


def rule_between(ledger: Ledger, held: str, asked: str) -> str:
    """By which rule `asked` is refused while a stranger has `held`; empty: it is granted. And so the other way."""
    rules = []
    for first, second in ((held, asked), (asked, held)):
        lease = ledger.granted(first, principal=B, holder=Holder("other"))
        answer = ledger.lease(second)
        if answer.outcome == "granted":
            rules.append("")
            ledger.release(answer.lease)
        else:
            refusal = refusal_of(answer)
            assert (refusal.code, refusal.blockers[0].because_of) == (RefusalCode.DEVICE_HELD, device(first))
            assert all((refusal.blockers[0].why, refusal.blockers[0].help))
            rules.append(refusal.blockers[0].rule)
        ledger.release(lease, B)
    assert rules[0] == rules[1]
    return rules[0]


@pytest.mark.parametrize(
    ("one", "other", "rule"),
    [
        (function("20:00.0"), function("20:00.1"), ""),
        (function("20:00.0", BUS_ONLY), function("20:00.1"), "slot"),
        (function("20:00.0", ()), function("20:00.1", ()), "slot"),
        (function("20:00.0", ("pm", "bus")), function("20:00.1", ("af_flr",)), ""),
        (function("20:00.0", BUS_ONLY), function("20:01.0", BUS_ONLY), ""),
        (function("20:00.0", BUS_ONLY, iommu_group=90), function("20:00.1", BUS_ONLY), ""),
        (function("20:00.0", BUS_ONLY, iommu_group=90), function("20:00.1", BUS_ONLY, iommu_group=91), ""),
        (function("20:00.0", BUS_ONLY), function("20:00.1", UNTOLD), ""),
        (function("20:00.0", UNTOLD), function("20:00.1", UNTOLD), ""),
        (function("20:00.0", BUS_ONLY), function("20:00.1", physical_function="pci/0000:30:00.0"), ""),
        (function("20:00.0", pci_class=EHCI), function("20:00.1", pci_class=UHCI), "usb_ports"),
        (function("20:00.0", pci_class=EHCI, iommu_group=90),
         function("20:00.1", pci_class=OHCI, iommu_group=91), "usb_ports"),
        (function("20:00.0", pci_class=XHCI), function("20:00.1", pci_class=XHCI), ""),
        (function("20:00.0", pci_class=EHCI), function("20:01.0", pci_class=UHCI), ""),
    ],
)  # fmt: skip
def test_one_slot(one: DeviceDescription, other: DeviceDescription, rule: str) -> None:
    """Functions of one slot are had apart where each is reset by itself, or groups keep them apart."""
    short = [each.key.removeprefix("pci/0000:") for each in (one, other)]
    assert rule_between(with_devices(one, other), *short) == rule


@pytest.mark.parametrize(
    ("bridges", "first", "second", "rule"),
    [
        ([bridge("00:1c.0", "acs")], "00:1c.0", "00:1c.0", ""),
        ([bridge("00:1c.0", "no_acs")], "00:1c.0", "00:1c.0", "acs"),
        ([bridge("00:1e.0", "conventional")], "00:1e.0", "00:1e.0", "acs"),
        ([bridge("00:1c.0", "")], "00:1c.0", "00:1c.0", ""),
        # A switch: a port upstream, two downstream. What is let through above comes down again on the other side.
        ([bridge("00:1c.0", "acs"), bridge("21:00.0", "upstream", "00:1c.0"), bridge("22:00.0", "acs", "21:00.0"),
          bridge("22:01.0", "acs", "21:00.0")], "22:00.0", "22:01.0", ""),
        ([bridge("00:1c.0", "acs"), bridge("21:00.0", "upstream", "00:1c.0"), bridge("22:00.0", "no_acs", "21:00.0"),
          bridge("22:01.0", "no_acs", "21:00.0")], "22:00.0", "22:01.0", ""),
        ([bridge("00:1c.0", "no_acs"), bridge("21:00.0", "upstream", "00:1c.0"), bridge("22:00.0", "acs", "21:00.0"),
          bridge("22:01.0", "acs", "21:00.0")], "22:00.0", "22:01.0", "acs"),
        ([bridge("00:1c.0", "no_acs"), bridge("21:00.0", "upstream", "00:1c.0"), bridge("22:00.0", "no_acs", "21:00.0"),
          bridge("22:01.0", "acs", "21:00.0")], "22:00.0", "22:01.0", "acs"),
        # Two ports that are functions of one slot.
        ([bridge("00:1c.0", "no_acs"), bridge("00:1c.1", "no_acs")], "00:1c.0", "00:1c.1", "acs"),
        ([bridge("00:1c.0", "no_acs"), bridge("00:1c.1", "acs")], "00:1c.0", "00:1c.1", ""),
        ([bridge("00:1c.0", "no_acs"), bridge("00:1d.0", "no_acs")], "00:1c.0", "00:1d.0", ""),
    ],
)  # fmt: skip
def test_bridges(bridges: list[DeviceDescription], first: str, second: str, rule: str) -> None:
    """What is behind one bridge that does not keep it apart goes to one holder, however deep it is there."""
    ledger = with_devices(*bridges, behind("30:00.0", first), behind("31:00.0", second))
    assert rule_between(ledger, "30:00.0", "31:00.0") == rule


def test_a_group_counts_more_than_bridges() -> None:
    """Where the kernel has made groups, a bridge without ACS ties nothing."""
    ports = [bridge("00:1c.0", "conventional")]
    groups = [behind("30:00.0", "00:1c.0", iommu_group=90), behind("31:00.0", "00:1c.0", iommu_group=91)]
    assert rule_between(with_devices(*ports, *groups), "30:00.0", "31:00.0") == ""


def test_one_holder_may_have_all_behind_a_bridge() -> None:
    """In one lease or in several, as of a group; a bridge itself is nobody's."""
    ledger = with_devices(bridge("00:1e.0", "conventional"), *(behind(f"3{n}:00.0", "00:1e.0") for n in range(3)))
    ledger.granted("30:00.0")
    ledger.granted("31:00.0", "32:00.0")
    assert refusal_of(ledger.lease("00:1e.0")).blockers[0].rule == "bridge"


def test_what_the_host_needs_behind_the_same_bridge() -> None:
    """A device that is let through to the host's own is protected, unless forced."""
    ledger = with_devices(
        bridge("00:1e.0", "conventional"), behind("30:00.0", "00:1e.0", protections=("mounted at /",)),
        behind("31:00.0", "00:1e.0"),
    )  # fmt: skip
    assert refusal_of(ledger.lease("31:00.0")).code == RefusalCode.DEVICE_PROTECTED
    ledger.granted("31:00.0", force=True)


def test_controllers_with_the_same_sockets() -> None:
    """What is plugged in behind one of them cannot be had while a stranger has the other: it may turn up there."""
    ledger = with_devices(
        function("04:00.1", pci_class=EHCI, iommu_group=60),
        function("04:00.0", pci_class=UHCI, iommu_group=6),
    )
    assert rule_between(ledger, "04:00.1", "2-1.1") == "usb_ports"
    assert rule_between(ledger, "04:00.1", "04:00.0") == "usb_ports"


USB3 = (
    usb("3-0", "pci/0000:04:00.0", hub=True),
    usb("3-1", "usb/0000:04:00.0/3-0", hub=True, capability=UsbDevice(peer="usb/0000:04:00.0/2-1")),
    usb("3-1.1", "usb/0000:04:00.0/3-1", capability=UsbDevice(peer="usb/0000:04:00.0/2-1.1")),
    usb("3-1.4", "usb/0000:04:00.0/3-1"),
)


@pytest.mark.parametrize(
    ("held", "asked", "rule"),
    [
        ("2-1", "3-1", "usb_ports"),
        ("2-1", "3-1.4", "usb_ports"),
        ("3-1", "2-1.2", "usb_ports"),
        ("2-1.1", "3-1.1", "usb_ports"),
        ("2-1.2", "3-1.4", ""),
        ("2-1.2", "3-1.1", ""),
        ("2-2", "3-1", ""),
        ("3-1", "3-1.4", "usb_tree"),
    ],
)
def test_halves_of_a_hub(held: str, asked: str, rule: str) -> None:
    """A USB 3 hub is on two buses: who has one half has the sockets of both, whichever half says so."""
    assert rule_between(with_devices(*USB3), held, asked) == rule


def test_hubs_behind_hubs() -> None:
    """Five hubs deep: who has any of them has all below; beside them all is free."""
    above, deep = "usb/0000:04:00.0/2-1", []
    for depth in range(2, 7):
        path = "2-1" + ".1" * (depth - 1)
        deep.append(usb(path, above, hub=depth < 6))
        deep.append(usb(f"{path[:-1]}3", above))
        above = f"usb/0000:04:00.0/{path}"
    ledger = with_devices(*deep)
    hubs = ["2-1" + ".1" * number for number in range(1, 5)]
    for hub in hubs:
        assert rule_between(ledger, hub, "2-1.1.1.1.1.1") == "usb_tree"
        assert rule_between(ledger, hub, f"{hub[:-1]}3") == ""


def test_functions_behind_a_function() -> None:
    """A storage controller that shows its disks as functions of their own has them, whatever their groups say."""
    ledger = with_devices(function("00:0e.0", iommu_group=70), behind("30:00.0", "00:0e.0", iommu_group=71))
    assert rule_between(ledger, "00:0e.0", "30:00.0") == "carried"


def test_quarantine_keeps_all_from_it() -> None:
    """A device that its host could not take back is nobody's, nor is what cannot be owned apart from it."""
    ledger = ledger_with_hosts()
    state = ledger.state
    for text in ("03:10.0", "02:00.0", "2-1.1"):
        row = state.devices[device(text)]
        stuck = Quarantine(reason="it does not answer", help="reboot the host", position=1, at_ns=1)
        state.put_device(device(text), msgspec.structs.replace(row, quarantine=stuck))
    for text in ("03:10.0", "02:00.0", "2-1.1", "03:00.0", "02:00.1", "2-1", "04:00.0"):
        refusal = refusal_of(ledger.lease(text, force=True))
        assert (refusal.code, refusal.help) == (RefusalCode.DEVICE_QUARANTINED, "reboot the host")
    ledger.granted("03:10.1")
    ledger.granted("2-1.2")


def test_a_bridge_that_turns_out_to_be_open_is_told() -> None:
    """Leases of strangers behind a bridge are found to be shared once it is seen to keep nothing apart."""
    ledger = with_devices(bridge("00:1c.0", "acs"), *(behind(f"3{n}:00.0", "00:1c.0") for n in range(3)))
    ledger.granted("30:00.0")
    ledger.granted("31:00.0", principal=B)
    ledger.see(bridge("00:1c.0", "no_acs"))
    (found,) = [event for event in ledger.events if isinstance(event, event_types.SharingFound)]
    assert [(pair.device, pair.other, pair.rule) for pair in found.pairs] == [
        (device("30:00.0"), device("31:00.0"), "acs")
    ]
    assert found.count == 1


# --- against brute force ------------------------------------------------------------------------------------------


class Hostile:
    """A host whose descriptions say anything: rings of parents, functions of themselves, peers of everything."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        slots = [f"0{slot // 3}:0{slot % 3}" for slot in range(5)]
        functions = [f"pci/0000:{slot}.{number}" for slot in slots for number in range(3)]
        ports = [f"usb/0000:00:00.0/{port}" for port in ("2-0", "2-1", "2-2", "3-1", "3-2")]
        self.keys = [DeviceKey(key) for key in (*chance.sample(functions, 9), *chance.sample(ports, 4))]
        self.descriptions = {key: self._describe(chance, key) for key in self.keys}
        self.state = State()
        source = SourceState(run=1, complete=True)
        self.state.put_host(H1, HostState(mode="watched", sources={"watcher": source}))
        for key in chance.sample(self.keys, len(self.keys)):
            self.state.put_device(self.id(key), DeviceState(host=H1, description=self.descriptions[key]))

    def _describe(self, chance: random.Random, key: DeviceKey) -> DeviceDescription:
        any_key = ["", "", "", *self.keys]
        fields: dict[str, Any] = {"key": key, "name": key, "parent": chance.choice(any_key)}
        if key.startswith("usb/"):
            peer = chance.choice(any_key)
            return DeviceDescription(**fields, kind="usb_device", capability=UsbDevice(peer=peer))
        return DeviceDescription(
            **fields,
            kind=chance.choice((*["pci"] * 9, "other")),
            pci_class=chance.choice((UHCI, EHCI, XHCI, 0x020000)),
            iommu_group=chance.choice((-1, -1, -1, 0, 1)),
            physical_function=chance.choice([*[""] * 20, *self.keys]),
            bridge=chance.random() < 0.25,
            driver=chance.choice(STUBS),
            capability=Pci(
                resets=chance.choice((FLR, BUS_ONLY, BUS_ONLY, UNTOLD)),
                isolation=chance.choice(("", "acs", "no_acs", "conventional")),
            ),
        )

    def id(self, key: str) -> DeviceId:
        return DeviceId(f"{H1}/{key}")

    def leased(self, key: DeviceKey) -> State:
        """With the device in another's hands."""
        lease = LeaseState(
            principal=Principal("b"), holder=Holder("other"), devices=(self.id(key),), token=1, ttl_ms=1,
            granted_at_ns=0, expires_at_ns=0, forced=False, grant_key=request_key(Principal("b"), RequestId("r")),
        )  # fmt: skip
        self.state.leases[1] = lease
        for each in self.keys:
            row = self.state.devices[self.id(each)]
            self.state.put_device(self.id(each), msgspec.structs.replace(row, lease=int(each == key)))
        return self.state

    # --- what is so, told once more and as simply as can be ---

    def above(self, key: DeviceKey, field: str = "parent") -> list[DeviceKey]:
        found: list[DeviceKey] = []
        at = key
        while (at := getattr(self.descriptions[at], field)) and at != key and at not in found:
            found.append(at)
        return found

    def usb_above(self, key: DeviceKey) -> list[DeviceKey]:
        if self.descriptions[key].kind != "usb_device":
            return []
        found = []
        for each in self.above(key):
            found.append(each)
            if self.descriptions[each].kind == "pci":
                break
        return found

    def carries(self, one: DeviceKey, other: DeviceKey) -> bool:
        return one in self.above(other, "physical_function") or one in self.usb_above(other)

    def is_nobodys(self, key: DeviceKey) -> bool:
        return self.descriptions[key].bridge or key.endswith("-0")

    def tells(self, key: DeviceKey) -> bool:
        return self.descriptions[key].kind == "pci" and self.fact(key, "resets") is not None

    def fact(self, key: DeviceKey, name: str) -> Any:
        return getattr(self.descriptions[key].capability, name, None)

    def peers(self, one: DeviceKey, other: DeviceKey) -> bool:
        pairs = ((one, other), (other, one))
        return any(self.fact(a, "peer") == b for a, b in pairs)

    def tied(self, one: DeviceKey, other: DeviceKey) -> bool:
        if self.is_nobodys(one) or self.is_nobodys(other) or one == other:
            return False
        first, second = self.descriptions[one], self.descriptions[other]
        if first.iommu_group == second.iommu_group >= 0:
            return True
        if not (self.tells(one) and self.tells(other)):
            return False
        same_slot = one[:-2] == other[:-2]
        if same_slot and {first.pci_class, second.pci_class} <= {UHCI, EHCI}:
            return True
        if max(first.iommu_group, second.iommu_group) >= 0:
            return False
        whole = not first.physical_function and not second.physical_function
        if same_slot and whole and BUS_ONLY in (self.fact(one, "resets"), self.fact(other, "resets")):
            return True
        return any(self._open(a) and self._open(b) and self._beside(a, b)
                   for a in self.above(one) for b in self.above(other))  # fmt: skip

    def _open(self, key: DeviceKey) -> bool:
        is_bridge = self.descriptions[key].bridge and self.tells(key)
        return is_bridge and self.fact(key, "isolation") in ("no_acs", "conventional")

    def _beside(self, one: DeviceKey, other: DeviceKey) -> bool:
        first, second = self.descriptions[one], self.descriptions[other]
        return one == other or (one[:-2] == other[:-2] and first.parent == second.parent)

    def apart(self, one: DeviceKey, other: DeviceKey) -> bool:
        """Whether both can be had by different holders."""
        for a, b in ((one, other), (other, one)):
            if self.carries(a, b) or self.peers(a, b):
                return False
            if any(self.peers(each, b) for each in self.usb_above(a)):
                return False
            carriers = [each for each in self.above(b) if self.descriptions[each].kind == "pci"]
            if self.tells(b) and a in carriers and not self.descriptions[a].bridge:
                return False
            if any(self.tied(a, each) and self.carries(each, b) for each in self.keys):
                return False
        return not self.tied(one, other)


def test_rules_are_symmetric_and_whole() -> None:
    """Whoever has one of two devices, the other is refused just where a plain look at all descriptions says so."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    counts = {True: 0, False: 0}
    for number in range(120):
        host = Hostile(seed + number)
        for held, asked in permutations(host.keys, 2):
            if host.is_nobodys(held) or host.is_nobodys(asked):
                continue
            state, wanted = host.leased(held), host.id(asked)
            found = conflicts.first_blockers(state, (wanted,), owner=("a", "vm"), force=True)
            is_apart = host.apart(held, asked)
            assert (not found) == is_apart, (seed + number, held, asked, found)
            assert all(blocker.because_of == host.id(held) for blocker in found)
            counts[is_apart] += 1
            wide = conflicts.first_blockers(state, (wanted, host.id(held)), owner=("b", "other"), force=True)
            assert {blocker.rule for blocker in wide} == {"same_device"}, "together they are not kept apart"
    assert min(counts.values()) > 1_000, counts


def test_sharing_is_found_from_both_sides() -> None:
    """What two leases share by any rule is shown at each of the two devices."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    for number in range(20):
        host = Hostile(seed + number)
        devices = [host.id(key) for key in host.keys if not host.is_nobodys(key)]
        grant = request_key(A, RequestId("r"))
        for lease, each in enumerate(devices, 1):
            host.state.leases[lease] = LeaseState(
                principal=A, holder=Holder(f"vm{lease}"), devices=(each,), token=lease, ttl_ms=1, granted_at_ns=0,
                expires_at_ns=0, forced=False, grant_key=grant,
            )  # fmt: skip
            host.state.put_device(each, msgspec.structs.replace(host.state.devices[each], lease=lease))
        pairs = {(each, found.because_of) for each in devices for found in sharing.shared(host.state, each)}
        assert all((other, each) in pairs for each, other in pairs), seed + number


# --- what it costs ------------------------------------------------------------------------------------------------

MANY = 10_000


@pytest.mark.parametrize("holder", ["", "other", "vm"])
def test_ten_thousand_behind_one_bridge(monkeypatch: pytest.MonkeyPatch, holder: str) -> None:
    """A request for 64 of them goes through the others once, whether these are free, a stranger's, or the asker's."""
    state = State()
    state.put_host(H1, HostState(mode="watched", sources={"watcher": SourceState(run=1, complete=True)}))
    conventional = bridge("00:1e.0", "conventional")
    rows = {device("00:1e.0"): DeviceState(host=H1, description=conventional)}
    for number in range(MANY):
        address = f"{128 + (number >> 8):02x}:{number >> 3 & 31:02x}.{number & 7}"
        lease = number if holder and 1_000 < number < 9_000 else 0
        rows[device(address)] = DeviceState(host=H1, description=behind(address, "00:1e.0"), lease=lease)
    state.devices.update(rows)
    for row in rows.values():
        if row.lease:
            state.leases[row.lease] = LeaseState(
                principal=A, holder=Holder(holder), devices=(), token=1, ttl_ms=1, granted_at_ns=0, expires_at_ns=0,
                forced=False, grant_key=request_key(A, RequestId("r")),
            )  # fmt: skip
    state.index_anew()
    looks = 0
    really = ties.below

    def counted(*words: Any, **how: Any) -> Any:
        nonlocal looks
        for each in really(*words, **how):
            looks += 1
            yield each

    monkeypatch.setattr(ties, "below", counted)
    free = [name for name, row in sorted(rows.items()) if not row.lease and not row.description.bridge][:64]
    found = conflicts.first_blockers(state, tuple(free), owner=("a", "vm"), force=False)
    assert bool(found) == (holder == "other")
    assert 0 < looks <= len(rows) + 64, looks
