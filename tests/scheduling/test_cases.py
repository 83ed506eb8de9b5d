"""Named cases of asking by need: what is granted, or why not. Modelled on the table of Kubernetes' DRA allocator."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from leasehold.events import inputs, schedule_inputs
from leasehold.events.identities import HostName, Principal
from leasehold.events.refusals import RefusalCode
from leasehold.events.scheduling import Option
from leasehold.projections.replay import Replay
from leasehold.projections.snapshots import decode_state, encode_state
from tests.projections.ledger import A, B, Ledger, pci
from tests.scheduling import words
from tests.scheduling.worlds import (
    BOB,
    CARD,
    FPGA,
    GPU,
    HOSTS,
    NIC,
    ask,
    card,
    distinct,
    named,
    need,
    same,
    take,
    world,
)

Step = Callable[[Ledger], object]
H1, H2, H3 = HOSTS


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Behind `before`, a request with these fields gets these devices, or is refused with this code."""

    name: str
    asks: dict[str, Any]
    gets: tuple[str, ...] = ()
    code: RefusalCode | None = None
    rule: str = ""
    """Of the first blocker, or of what was out of the question."""
    says: str = ""
    """Part of the refusal's message."""
    before: tuple[Step, ...] = ()
    option: int = 0
    """Of the first need."""
    by: Principal = A


def case(name: str, *needs: Any, gets: str = "", asks: dict[str, Any] | None = None, **fields: Any) -> Case:
    """A case in one line; `gets`: devices, with blanks between."""
    return Case(name=name, asks={"needs": needs, **(asks or {})}, gets=tuple(gets.split()), **fields)


def taken(*texts: str, **fields: Any) -> Step:
    """Somebody else has these."""
    return lambda ledger: take(ledger, *texts, **fields)


def changed(text: str, **fields: Any) -> Step:
    """The watcher sees a device otherwise."""

    def step(ledger: Ledger) -> None:
        before = ledger.state.devices[named(text)].description
        ledger.see(msgspec.structs.replace(before, **fields), host=HostName(text.partition(":")[0]))

    return step


def added(host: HostName, *descriptions: Any) -> Step:
    """The watcher sees more."""
    return lambda ledger: ledger.see(*descriptions, host=host)


def gone(text: str) -> Step:
    """A device is unplugged."""
    key = named(text).partition("/")[2]
    host = HostName(text.partition(":")[0])
    return lambda ledger: ledger.observe(inputs.DeviceGone(key=key), host=host)  # type: ignore[arg-type]


def stale(host: HostName) -> Step:
    """Its watcher is not heard."""
    return lambda ledger: ledger.note(inputs.HostHeard(host, "watcher", 1, alive=False))


def classed(name: str, select: str) -> Step:
    """A device class."""
    return lambda ledger: words.say(ledger, schedule_inputs.SetClassRequest, name=name, select=select)


def quota(tenant: str, devices_max: int, device_class: str = "") -> Step:
    """A quota."""
    return lambda ledger: words.say(
        ledger, schedule_inputs.SetQuotaRequest, tenant=tenant, devices_max=devices_max, device_class=device_class
    )


def cordoned(**fields: Any) -> Step:
    """An operator cordons."""
    return lambda ledger: words.cordon(ledger, **fields)


def tainted(**fields: Any) -> Step:
    """An operator taints."""
    return lambda ledger: words.taint(ledger, **fields)


def shareable(text: str, share_max: int) -> Step:
    """A device may be shared."""
    return lambda ledger: words.policy(ledger, named(text), share_max=share_max)


def cleaned_after(text: str) -> Step:
    """A device must be cleaned behind each lease, and was just given back by bob."""

    def step(ledger: Ledger) -> None:
        words.policy(ledger, named(text), clean=True)
        ledger.release(take(ledger, text), principal=BOB)

    return step


def waiting(*needs: Any, who: str = "waiter", principal: Any = B, **fields: Any) -> Step:
    """Somebody waits."""

    def step(ledger: Ledger) -> None:
        answer = ask(ledger, *needs, who=who, principal=principal, wait_ms=600_000, **fields)
        assert answer.outcome == "queued", answer

    return step


def managed(host: HostName) -> Step:
    """A binder acts there."""
    return lambda ledger: ledger.start_binder(host)


ALL_GPUS = ("h1:20", "h1:21", "h1:22", "h1:23", "h2:20", "h2:21", "h3:20", "h3:21")
VF = {"physical_function": "pci/0000:50:00.0", "vendor_id": "1172", "iommu_group": 0x51}
PF_AND_VF = added(H1, pci("50:00.0", vendor_id="1172", iommu_group=0x50), pci("50:10.0", **VF))
NO_MATCH, NOT_ENOUGH, UNMET = RefusalCode.NO_MATCH, RefusalCode.NOT_ENOUGH, RefusalCode.CONSTRAINT_UNMET
GPU_OR_NIC = (Option(select=GPU), Option(select=NIC))
CASES = (
    # --- how many, and which
    case("one", need(GPU), gets="h1:20"),
    case("two", need(GPU, 2), gets="h1:20 h1:21"),
    case("all there are", need(GPU, 8), gets=" ".join(ALL_GPUS)),
    case("more than there are", need(GPU, 9), code=NO_MATCH, says="9 needed, and there are 8"),
    case("nothing like that", need('device.vendor == "ffff"'), code=NO_MATCH, says="there are 0"),
    case("no selector", need("device.vendor =="), code=RefusalCode.SELECTOR_INVALID, says="need 1"),
    case("on a host", need(GPU), asks={"host": "h2"}, gets="h2:20"),
    case("on a host, too many", need(GPU, 3), asks={"host": "h2"}, code=NO_MATCH),
    case("on a host that nobody knows", need(GPU), asks={"host": "h9"}, code=NO_MATCH),
    case("a host by selector", need(f'{GPU} && device.host == "h3"', 2), gets="h3:20 h3:21"),
    case("a host in both", need(f'{GPU} && device.host == "h3"'), asks={"host": "h2"}, code=NO_MATCH),
    case("by id", need('device.id == "h2/pci/0000:21:00.0"'), gets="h2:21"),
    case("by address, anywhere", need('device.pci.address == "0000:30:00.0"', 2), gets="h1:30 h2:30"),
    case("by PCI class", need('device.pci.class == "0302"'), gets="h1:20"),
    case("by what is not indexed", need("device.numa_node == 1 && device.iommu_group > 0x22", 2), gets="h1:23 h1:31"),
    case("an error does not match", need(f"{GPU} && 1 / device.numa_node == 1"), gets="h1:22"),
    # --- classes
    case("of a class", need(device_class="gpu", count=2), before=(classed("gpu", GPU),), gets="h1:20 h1:21"),
    case("of a class, and matching", need("device.numa_node == 1", device_class="gpu"), before=(classed("gpu", GPU),),
         gets="h1:22"),
    case("of no class", need(device_class="gpu"), code=RefusalCode.CLASS_UNKNOWN),
    case("of a class that has none", need(device_class="x"), before=(classed("x", 'device.vendor == "ffff"'),),
         code=NO_MATCH),
    # --- what others have
    case("the first is leased", need(GPU), before=(taken("h1:20"),), gets="h1:21"),
    case("those of the first host are leased", need(GPU), before=(taken(*ALL_GPUS[:4]),), gets="h2:20"),
    case("all are leased", need(GPU), before=(taken(*ALL_GPUS),), code=NOT_ENOUGH, rule="same_device",
         says="leased to other"),
    case("one is left, two are needed", need(GPU, 2), before=(taken(*ALL_GPUS[1:]),), code=NOT_ENOUGH,
         says="1 can be had now"),
    case("one's own lease is no other than others'", need(NIC, 3), before=(taken("h2:30", who="job", principal=A),),
         code=NOT_ENOUGH, rule="same_device"),
    case("released", need(GPU), before=(lambda it: it.release(take(it, "h1:20"), principal=BOB),), gets="h1:20"),
    case("in use without a lease", need(GPU), before=(changed("h1:20", in_use_by=("domain web",)),), gets="h1:21"),
    case("all in use", need(FPGA), before=(changed("h3:40", in_use_by=("domain web",)),), code=NOT_ENOUGH,
         rule="in_use"),
    case("protected", need(GPU), before=(changed("h1:20", protections=("boot display",)),), gets="h1:21"),
    case("only protected ones", need(FPGA), before=(changed("h3:40", protections=("swap",)),), code=NO_MATCH,
         rule="protected"),
    case("protected, by force", need(GPU), asks={"force": True},
         before=(changed("h1:20", protections=("boot display",)),), gets="h1:20"),
    case("missing", need(GPU), before=(gone("h1:20"),), gets="h1:21"),
    case("the only one is missing", need(FPGA), before=(gone("h3:40"),), code=NO_MATCH, rule="missing"),
    case("a host of which nothing is heard", need(GPU), before=(stale(H1),), gets="h2:20"),
    case("no host is heard", need(FPGA), before=(stale(H3),), code=NOT_ENOUGH, rule="host_stale"),
    # --- what cannot be owned apart
    case("a group mate is another's", need(GPU), before=(changed("h1:20", iommu_group=0x30), taken("h1:30")),
         gets="h1:21"),
    case("a group mate is one's own", need(GPU), gets="h1:20",
         before=(changed("h1:20", iommu_group=0x30), taken("h1:30", who="job", principal=A))),
    case("two of one group at once", need(GPU), need(NIC), gets="h1:20 h1:30",
         before=(changed("h1:20", iommu_group=0x30),)),
    case("a part of it is another's", need('device.key == "pci/0000:50:00.0"'), code=NOT_ENOUGH,
         rule="physical_function", before=(PF_AND_VF, taken("h1:50:10.0"))),
    case("a function and its part are not two", need(FPGA, 2), before=(PF_AND_VF,), gets="h1:50:00.0 h3:40"),
    case("all that match may be one in parts", need(f'{FPGA} && device.host == "h1"', every=True),
         before=(PF_AND_VF,), gets="h1:50:00.0 h1:50:10.0"),
    case("a bridge is nobody's", need(FPGA), before=(changed("h3:40", bridge=True),), code=NO_MATCH),
    case("a part of it stands for nothing", need('device.kind == "net"'), code=NO_MATCH,
         before=(added(H1, pci("30:00.0", key="pci/0000:30:00.0/net/0", kind="net", parent="pci/0000:30:00.0")),)),
    # --- several needs
    case("a GPU and a NIC", need(GPU), need(NIC), gets="h1:20 h1:30"),
    case("the same twice", need(GPU), need(GPU), gets="h1:20 h1:21"),
    case("who is choosier comes second", need(CARD), need(GPU), asks={"host": "h2"}, before=(taken("h2:21"),),
         gets="h2:20 h2:30"),
    case("each for itself, not both", need(CARD, 2), need(GPU), asks={"host": "h2"}, before=(taken("h2:21"),),
         code=NOT_ENOUGH, says="not all of them together"),
    case("one of them is not there", need(GPU, name="card"), need('device.vendor == "ffff"', name="other"),
         code=NO_MATCH, says="need other"),
    case("sixteen needs", *(need(CARD) for _ in range(11)), gets=" ".join((*ALL_GPUS, "h1:30", "h1:31", "h2:30"))),
    # --- constraints
    case("same NUMA node", need(GPU, 2), asks={"constraints": (same("numa_node"),)}, gets="h1:20 h1:21"),
    case("same NUMA node, another one", need(GPU, 2), asks={"constraints": (same("numa_node"),)},
         before=(taken("h1:20"),), gets="h1:22 h1:23"),
    case("same NUMA node, another host", need(GPU, 2), asks={"constraints": (same("numa_node"),)},
         before=(taken("h1:20", "h1:22"),), gets="h2:20 h2:21"),
    case("nodes of one number on two hosts are two", need(GPU, 2), asks={"constraints": (same("numa_node"),)},
         before=(taken("h1:20", "h1:22", "h2:20"),), code=UNMET, says="the same numa_node"),
    case("same host", need(GPU, 3), asks={"constraints": (same("host"),)}, before=(taken("h3:20"),),
         gets="h1:20 h1:21 h1:22"),
    case("same host, too many", need(GPU, 5), asks={"constraints": (same("host"),)}, code=UNMET, says="the same host"),
    case("a GPU and a NIC of one root", need(GPU), need(NIC), asks={"constraints": (same("pcie_root"),)},
         before=(taken("h1:30"),), gets="h1:22 h1:31"),
    case("of one root, by the standard name", need(GPU), need(NIC), before=(taken("h1:30"),), gets="h1:22 h1:31",
         asks={"constraints": (same('attributes["resource.kubernetes.io"].pcieRoot'),)}),
    case("of one root on the next host", need(GPU), need(NIC), asks={"constraints": (same("pcie_root"),)},
         before=(taken("h1:30", "h1:31"),), gets="h2:20 h2:30"),
    case("no root has both", need(GPU), need(NIC), asks={"constraints": (same("pcie_root"),)}, code=UNMET,
         before=(taken("h1:30", "h1:31", "h2:20", "h2:21"),)),
    case("of some needs", need(GPU, name="g"), need(NIC, name="n"), need(FPGA, name="f"),
         asks={"constraints": (same("host", "g", "n"),)}, gets="h1:20 h1:30 h3:40"),
    case("distinct hosts", need(GPU, 3), asks={"constraints": (distinct("host"),)}, gets="h1:20 h2:20 h3:20"),
    case("distinct hosts, too many", need(GPU, 4), asks={"constraints": (distinct("host"),)}, code=UNMET,
         says="distinct host"),
    case("distinct nodes of one host", need(GPU, 2),
         asks={"constraints": (same("host"), distinct("numa_node"))}, gets="h1:20 h1:22"),
    case("distinct hosts for two needs", need(GPU), need(NIC), asks={"constraints": (distinct("host"),)},
         gets="h1:20 h2:30"),
    case("distinct hosts by going back", need(GPU), need(NIC), asks={"constraints": (distinct("host"),)},
         before=(taken("h1:30", "h1:31"),), gets="h1:20 h2:30"),
    case("distinct hosts by going further back", need(GPU), need(FPGA), asks={"constraints": (distinct("host"),)},
         before=(taken(*ALL_GPUS[:6]), changed("h2:30", vendor_id="10de")), gets="h2:30 h3:40"),
    case("the same model, whichever", need(CARD, 4), asks={"constraints": (same("vendor"),)},
         before=(taken("h1:20"),), gets="h1:21 h1:22 h1:23 h2:20"),
    case("what nothing has is not the same", need(GPU, 2), asks={"constraints": (same("serial"),)}, code=UNMET,
         rule="constraint"),
    case("no such attribute", need(GPU), asks={"constraints": (same("colour"),)},
         code=RefusalCode.SELECTOR_INVALID, says="no such attribute"),
    case("two constraints that cannot both hold", need(GPU, 2),
         asks={"constraints": (same("host"), distinct("host"))}, code=UNMET, says="the same host and distinct host"),
    # --- preferences
    case("the first option", need(first_of=GPU_OR_NIC), gets="h1:20", option=1),
    case("the second option", need(first_of=GPU_OR_NIC), before=(taken(*ALL_GPUS),), gets="h1:30", option=2),
    case("no option", need(first_of=GPU_OR_NIC), code=NOT_ENOUGH, says="option 2",
         before=(taken(*ALL_GPUS, "h1:30", "h1:31", "h2:30"),)),
    case("the first option goes with nothing else", need(first_of=(Option(select=FPGA), Option(select=GPU))),
         need(NIC), asks={"constraints": (same("host"),)}, gets="h1:20 h1:30", option=2),
    case("rather many", need(first_of=(Option(select=GPU, count=4), Option(select=GPU, count=2))),
         asks={"constraints": (same("host"),)}, gets="h1:20 h1:21 h1:22 h1:23", option=1),
    case("then fewer", need(first_of=(Option(select=GPU, count=4), Option(select=GPU, count=2))),
         asks={"constraints": (same("host"),)}, before=(taken("h1:20"),), gets="h1:21 h1:22", option=2),
    case("preference before the order of hosts", need(first_of=(Option(select=FPGA), Option(select=GPU))),
         gets="h3:40", option=1),
    # --- all
    case("all of a host", need(GPU, every=True), asks={"host": "h2"}, gets="h2:20 h2:21"),
    case("all, and one is leased", need(GPU, every=True), asks={"host": "h2"}, before=(taken("h2:21"),),
         code=NOT_ENOUGH, rule="same_device", says="all 2 that match are needed, and 1 can be had"),
    case("all, at least three", need(GPU, 3, every=True), asks={"host": "h2"}, code=NO_MATCH),
    case("all everywhere", need(NIC, every=True), gets="h1:30 h1:31 h2:30"),
    case("all of one node", need(GPU, 2, every=True), asks={"constraints": (same("numa_node"),)},
         before=(taken("h1:20"),), gets="h1:22 h1:23"),
    case("all of one vendor", need(CARD, 3, every=True), asks={"constraints": (same("vendor"),)},
         before=(taken("h1:20"),), gets="h1:30 h1:31 h2:30"),
    case("all but what is not there", need(GPU, every=True), asks={"host": "h2"}, before=(gone("h2:20"),),
         gets="h2:21"),
    case("all but what the host needs", need(GPU, every=True), asks={"host": "h2"}, gets="h2:21",
         before=(changed("h2:20", protections=("boot display",)),)),
    case("all, beside one that is chosen", need(GPU), need(GPU, every=True), asks={"host": "h2"}, code=NOT_ENOUGH),
    # --- what operators said
    case("cordoned device", need(GPU), before=(cordoned(device=named("h1:20")),), gets="h1:21"),
    case("cordoned host", need(GPU), before=(cordoned(host="h1"),), gets="h2:20"),
    case("all cordoned", need(FPGA), before=(cordoned(host="h3"),), code=NOT_ENOUGH, rule="cordoned", says="kernel"),
    case("tainted host", need(GPU), before=(tainted(host="h1"),), gets="h2:20"),
    case("tolerated by name", need(GPU), asks={"tolerates": ("broken-fan",)}, before=(tainted(host="h1"),),
         gets="h1:20"),
    case("tolerated by value", need(GPU), asks={"tolerates": ("broken-fan=2",)},
         before=(tainted(host="h1", value="2"),), gets="h1:20"),
    case("tolerated for another value", need(GPU), asks={"tolerates": ("broken-fan=1",)},
         before=(tainted(host="h1", value="2"),), gets="h2:20"),
    case("all is tolerated", need(GPU), asks={"tolerates": ("*",)}, before=(tainted(device=named("h1:20")),),
         gets="h1:20"),
    case("only tainted ones", need(FPGA), before=(tainted(device=named("h3:40")),), code=NOT_ENOUGH, rule="tainted"),
    case("not cleaned up", need(FPGA), before=(cleaned_after("h3:40"),), code=NOT_ENOUGH, rule="unclean"),
    case("not cleaned up behind oneself", need(FPGA), by=BOB, before=(cleaned_after("h3:40"),), gets="h3:40"),
    # --- together with others, or only looking on
    case("not to be shared", need(FPGA), asks={"mode": "shared"}, code=NOT_ENOUGH, rule="not_shareable"),
    case("to be shared", need(GPU), asks={"mode": "shared"}, before=(shareable("h2:21", 2),), gets="h2:21"),
    case("shared with one more", need(GPU), asks={"mode": "shared"}, gets="h2:21",
         before=(shareable("h2:21", 2), taken("h2:21", mode="shared"))),
    case("shared by enough", need(GPU), asks={"mode": "shared"}, code=NOT_ENOUGH, rule="shared",
         before=(shareable("h2:21", 2), taken("h2:21", mode="shared"), taken("h2:21", mode="shared"))),
    case("alone, and others share it", need(FPGA), code=NOT_ENOUGH, rule="shared",
         before=(shareable("h3:40", 2), taken("h3:40", mode="shared"))),
    case("shared, and another has it alone", need(FPGA), asks={"mode": "shared"}, code=NOT_ENOUGH,
         rule="same_device", before=(shareable("h3:40", 2), taken("h3:40"))),
    case("looking on at what is leased", need(FPGA), asks={"mode": "admin"}, before=(taken("h3:40"),), gets="h3:40"),
    # --- quotas
    case("within the quota", need(GPU, 2), before=(quota("a", 2),), gets="h1:20 h1:21"),
    case("over the quota", need(GPU, 2), before=(quota("a", 1),), code=RefusalCode.QUOTA_EXCEEDED),
    case("over the quota of a class, another option is not", need(first_of=GPU_OR_NIC), gets="h1:30", option=2,
         before=(classed("gpu", GPU), quota("a", 0, "gpu"))),
    case("who only looks on has no quota", need(GPU), asks={"mode": "admin"}, before=(quota("a", 0),), gets="h1:20"),
    # --- who waits
    case("kept for who waits", need(NIC), code=NOT_ENOUGH, rule="kept",
         before=(taken("h2:30"), waiting(need(NIC, 3)))),
    case("kept for who is less urgent", need(NIC), asks={"priority": 5}, gets="h1:30",
         before=(taken("h2:30"), waiting(need(NIC, 3)))),
    case("a mate of it is kept", need(GPU), gets="h1:21",
         before=(changed("h1:20", iommu_group=0x30), taken("h2:30"), waiting(need(NIC, 3)))),
    # --- handing over
    case("only where somebody hands over", need(GPU), asks={"driver": "vfio-pci"}, before=(managed(H2),),
         gets="h2:20"),
    case("nowhere is anything handed over", need(GPU), asks={"driver": "vfio-pci"}, code=NOT_ENOUGH,
         rule="host_not_managed"),
)  # fmt: skip


@pytest.mark.parametrize("given", CASES, ids=lambda given: given.name)
def test_case(given: Case) -> None:
    """It gets just these devices, and is told how they were found; or the refusal says why, and which rule it was."""
    ledger = world()
    for step in given.before:
        step(ledger)
    asks = dict(given.asks)
    answer = ask(ledger, *asks.pop("needs"), principal=given.by, **asks)
    if given.code is None:
        assert answer.outcome == "granted", answer
        assert answer.devices == tuple(sorted(map(named, given.gets)))
        assert answer.search is not None
        assert sorted(device for each in answer.search.needs for device in each.devices) == list(answer.devices)
        assert answer.search.needs[0].option == given.option
    else:
        assert answer.outcome == "refused", answer
        assert answer.refusal is not None
        assert answer.refusal.code == given.code
        assert given.says in answer.refusal.message
        assert answer.refusal.help
        if given.rule:
            search = answer.refusal.search
            assert search is not None
            rules = {each.rule for need in search.needs for each in need.excluded}
            assert given.rule in rules | {each.rule for each in answer.refusal.blockers}
    _holds(ledger)


def _holds(ledger: Ledger) -> None:
    """It is decided again to the byte, and a snapshot has the same candidates."""
    replay = Replay()
    for sequence, body in enumerate(ledger.bodies, 1):
        assert replay.step(sequence, body) is None
    again = decode_state(encode_state(ledger.state))
    assert again is not None
    for name in ("known", "free", "shareable"):
        here, there = getattr(ledger.state.candidates, name), getattr(again.candidates, name)
        assert (here.cells, here.buckets) == (there.cells, there.buckets), name


def test_there_are_enough_cases() -> None:
    """Each name once."""
    assert len({given.name for given in CASES}) == len(CASES) >= 60


def test_the_first_card_is_chosen_by_number() -> None:
    """Hosts and keys are tried in their order, whatever order they came in."""
    ledger = world({H3: (card("20"),), H1: (card("21"), card("20")), H2: (card("20"),)})
    assert ask(ledger, need(GPU, 3)).devices == tuple(map(named, ("h1:20", "h1:21", "h2:20")))
