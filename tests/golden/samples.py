"""One fixed value of every type that stands in a log, with every field set to something."""

from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.devices import DeviceDescription
from leasehold.events.event_types import Event, OldEvent, RequestRef
from leasehold.events.identities import DeviceId, DeviceKey, Holder, HostName, Principal, RequestId, RequestKey
from leasehold.events.inputs import Input, Observation, Request
from leasehold.events.record import Record, Step
from leasehold.events.refusals import Blocker, Refusal, RefusalCode
from leasehold.projections.snapshots import Snapshot
from leasehold.projections.state import (
    AnswerState,
    DeviceState,
    Fading,
    Head,
    HostState,
    LeaseState,
    PrincipalState,
    RecentRefusal,
    SourceState,
)

FOLDER: Final = Path(__file__).parent
NS: Final = 1_700_000_000_000_000_000
HOST: Final = HostName("node1_example_org")
KEY: Final = DeviceKey("pci/0000:03:10.0")
DEVICE: Final = DeviceId(f"{HOST}/{KEY}")
USB: Final = DeviceId(f"{HOST}/usb/0000:00:14.0/2-1.4")
PRINCIPAL: Final = Principal("scheduler-1")
HOLDER: Final = Holder("vm:web 1")
REQUEST: Final = RequestId("r-2024.1:7")
REF: Final = RequestRef(PRINCIPAL, REQUEST, "0123456789abcdef0123456789abcdef", NS - 5)
DESCRIPTION: Final = DeviceDescription(
    key=KEY,
    name="pci_0000_03_10_0",
    kind="pci",
    sysfs_path="/sys/devices/pci0000:00/0000:00:01.0/0000:03:10.0",
    parent="pci/0000:00:01.0",
    driver="igbvf",
    pci_class=0x020000,
    vendor_id="8086",
    product_id="10ca",
    vendor_name="Intel Corporation",
    product_name="82576 Virtual Function “β”",
    serial="90-e2-ba-ff-ff-00-00-01",
    iommu_group=17,
    numa_node=0,
    physical_function="pci/0000:03:00.0",
    bridge=True,
    hub=True,
    protections=("carries the default route", "mounted at /"),
    in_use_by=("domain web1",),
    attributes={"interface": "eth0", "mac": "02:00:00:00:00:01"},
)
REFUSAL: Final = Refusal(
    code=RefusalCode.DEVICE_HELD,
    message=f"{DEVICE}: it is leased to vm:web 1 (L512)",
    blockers=(
        Blocker(
            device=DEVICE,
            rule="iommu_group",
            why="a device of its IOMMU group is not this holder's",
            because_of=USB,
            lease=512,
            holder=HOLDER,
            since_ns=NS,
            since_position=512,
            help="wait",
        ),
    ),
    help="wait for its release",
)

_REQUESTS: Final[tuple[Request, ...]] = (
    inputs.LeaseRequest(
        request_id=REQUEST,
        issued_at_ns=NS,
        devices=(KEY, "usb_1_1_4"),
        holder=HOLDER,
        ttl_ms=60_000,
        host=HOST,
        force=True,
    ),
    inputs.RenewRequest(request_id=REQUEST, issued_at_ns=NS, lease=512, token=512, ttl_ms=90_000),
    inputs.ReleaseRequest(request_id=REQUEST, issued_at_ns=NS, lease=512, token=512),
    inputs.ConfirmFreeRequest(request_id=REQUEST, issued_at_ns=NS, device=KEY, reason="I pulled it out", host=HOST),
)
_OBSERVATIONS: Final[tuple[Observation, ...]] = (
    inputs.SourceStarts(manages=True),
    inputs.DeviceSeen(DESCRIPTION),
    inputs.DeviceGone(KEY),
    inputs.PictureComplete(since=3),
    inputs.StillHere(),
    inputs.SourceStops(),
)
_INPUTS: Final[tuple[Input, ...]] = (
    inputs.Asked(PRINCIPAL, _REQUESTS[0]),
    inputs.Observed(host=HOST, agent="watcher", run=NS, counter=4, observations=_OBSERVATIONS[1:]),
    inputs.LedgerBegins(cluster="lab", writer="alloc-a", era=2),
    inputs.LedgerRestores(cluster="lab", writer="restore-1", era=3, reason="the store was wiped"),
    inputs.DeciderStarts("alloc-a", "start"),
    inputs.Tick("alloc-a"),
    inputs.HostHeard(HOST, "watcher", NS, alive=False),
)
_EVENTS: Final[tuple[Event, ...]] = (
    event_types.LedgerStarted("0123456789abcdef", "lab", 2),
    event_types.LedgerRestored(
        writer="restore-1", era=3, through=41, reason="the store was wiped", until_ns=NS + 30
    ),
    event_types.GraceStarted("alloc-a", "takeover", NS + 30),
    event_types.HostRegistered(HOST, "watched"),
    event_types.HostWentStale(HOST, "watcher", "it has not been heard for 15 s"),
    event_types.HostCameBack(HOST, "watcher"),
    event_types.SourceStarted(HOST, "watcher", NS),
    event_types.SourceStopped(HOST, "watcher", NS),
    event_types.ObservationsAccepted(HOST, "watcher", NS, 4),
    event_types.ReportRequested(HOST, "watcher", NS, 9, "messages 5 to 8 of it are missing"),
    event_types.PictureCompleted(HOST, "watcher"),
    event_types.DeviceAppeared(HOST, DESCRIPTION),
    event_types.DeviceChanged(HOST, DESCRIPTION, ("driver", "in_use_by")),
    event_types.DeviceReplaced(HOST, DESCRIPTION),
    event_types.DeviceMissing(HOST, KEY),
    event_types.DeviceReappeared(HOST, DESCRIPTION),
    event_types.SharingFound(HOST, (event_types.SharedPair(DEVICE, 512, USB, 768, "iommu_group"),), 2),
    event_types.LeaseGranted(
        request=REF,
        tenant=Principal("the-tenant"),
        holder=HOLDER,
        devices=(DEVICE, USB),
        ttl_ms=60_000,
        expires_at_ns=NS + 60,
        forced=True,
    ),
    event_types.LeaseRenewed(request=REF, lease=512, ttl_ms=90_000, expires_at_ns=NS + 90),
    event_types.LeaseReleased(request=REF, lease=512),
    event_types.LeaseExpired(512),
    event_types.DeviceFreed(device=DEVICE, lease=512, evidence="scheduler-1 says so: gone", request=REF),
    event_types.RequestRefused(request=REF, verb="lease", about=(DEVICE,), refusal=REFUSAL, holder=HOLDER),
    event_types.RefusalsRepeated(request=REF, first=1_024, count=3),
)

_OLD_EVENTS: Final[tuple[OldEvent, ...]] = (
    event_types.LeaseGrantedV1(
        request=REF, holder=HOLDER, devices=(DEVICE, USB), ttl_ms=60_000, expires_at_ns=NS + 60, forced=True
    ),
)

_LATER: Final = (event_types.SharingFound, event_types.LedgerRestored, inputs.LedgerRestores)
"""Types that came later: a record that is kept stays what it is."""


def _read_now(event: Event) -> Event:
    """As the record's reader gives it: the tenant by the principal's name."""
    if isinstance(event, event_types.LeaseGranted):
        return msgspec.structs.replace(event, tenant=PRINCIPAL)
    return event


OLD_RECORD: Final = Record(
    format=1,
    ledger_id="0123456789abcdef",
    era=2,
    prev="f" * 64,
    writer="alloc-a",
    decided_at_ns=NS,
    rules_version=1,
    observed_through=41,
    steps=(
        *(Step(given, (event_types.LeaseExpired(512),)) for given in _INPUTS if not isinstance(given, _LATER)),
        *(Step(inputs.Asked(PRINCIPAL, request), ()) for request in _REQUESTS[1:]),
        Step(inputs.Tick("alloc-a"), tuple(_read_now(event) for event in _EVENTS if not isinstance(event, _LATER))),
    ),
)
"""What `record.v1` is read as: it was written by rules 1, with events of older versions."""
_RECORD: Final = msgspec.structs.replace(
    OLD_RECORD,
    rules_version=3,
    steps=(
        *(Step(given, (event_types.LeaseExpired(512),)) for given in _INPUTS),
        *(Step(inputs.Asked(PRINCIPAL, request), ()) for request in _REQUESTS[1:]),
        Step(inputs.Tick("alloc-a"), _EVENTS),
    ),
)
_KEY_OF_REQUEST: Final = RequestKey(f"{PRINCIPAL}/{REQUEST}")
_REFUSED: Final = RequestKey(f"{PRINCIPAL}/refused")
_SNAPSHOT: Final = Snapshot(
    fold_version=1,
    head=Head(
        ledger_id="0123456789abcdef",
        cluster="lab",
        era=2,
        sequence=7,
        chain="e" * 64,
        decided_at_ns=NS,
        observed_through=41,
        decider="alloc-a",
        grace_until_ns=NS + 30,
    ),
    hosts=[
        (
            HOST,
            HostState(
                mode="watched",
                sources={
                    "watcher": SourceState(
                        run=NS, counter=9, complete=True, stale="it was stopped", wants_report=True, gap=8
                    )
                },
                device_count=1,
            ),
        )
    ],
    devices=[
        (
            DEVICE,
            DeviceState(
                host=HOST,
                description=DESCRIPTION,
                missing=True,
                lease=512,
                ending=True,
                displaced=True,
                floor=768,
                since_position=768,
                since_ns=NS,
            ),
        )
    ],
    leases=[
        (
            512,
            LeaseState(
                principal=PRINCIPAL,
                holder=HOLDER,
                devices=(DEVICE,),
                token=512,
                ttl_ms=60_000,
                granted_at_ns=NS - 9,
                expires_at_ns=NS - 1,
                forced=True,
                grant_key=_KEY_OF_REQUEST,
                ended="expired",
                ended_at_ns=NS,
                ended_position=768,
                held=1,
                renewals=(_KEY_OF_REQUEST,),
                renewal_horizon_ns=NS - 8,
            ),
        )
    ],
    answers=[
        (
            _KEY_OF_REQUEST,
            AnswerState(body_hash="0" * 32, verb="lease", position=512, issued_at_ns=NS - 9, lease=512, device=DEVICE),
        ),
        (_REFUSED, AnswerState(body_hash="1" * 32, verb="lease", position=1_024, issued_at_ns=NS, refusal=REFUSAL)),
    ],
    principals=[(PRINCIPAL, PrincipalState(first=4, next=6, horizon_ns=NS - 20))],
    fading=[((PRINCIPAL, 4), Fading(_KEY_OF_REQUEST, NS + 90)), ((PRINCIPAL, 5), Fading(_REFUSED, NS + 91))],
    refusals=[(1_024, RecentRefusal("scheduler-1\nlease", REFUSAL, "lease", (DEVICE,), NS, 3))],
    orders=[],
)


def _tag(value: Any) -> str:
    return str(value.__struct_config__.tag)


UNIONS: Final[dict[Any, tuple[Any, ...]]] = {
    Request: _REQUESTS,
    Observation: _OBSERVATIONS,
    Input: _INPUTS,
    Event: _EVENTS,
    OldEvent: _OLD_EVENTS,
}
"""Samples of all members of the unions that stand in a log."""
SAMPLES: Final[dict[str, tuple[Any, Any]]] = {
    **{_tag(value): (value, union) for union, values in UNIONS.items() for value in values},
    "decider_starts.v1+clock_age_ms": (inputs.DeciderStarts("alloc-a", "start", 1_500), Input),
    "record.v1+rules_3": (_RECORD, Record),
    "snapshot.v1": (_SNAPSHOT, Snapshot),
}
"""Name of the file -> the value and the type that it is read as. Behind a plus: what came later."""
ONLY_READ: Final = frozenset({"record.v1"})
"""Files of what is no longer written as it was."""


def tags_of(union: Any) -> set[str]:
    """The tags of all members of a union."""
    return {str(member.__struct_config__.tag) for member in get_args(union) or (union,)}


def file_of(name: str) -> Path:
    """Where the sample `name` is kept."""
    return FOLDER / f"{name}.json"


def defaulted(value: msgspec.Struct) -> list[str]:
    """The fields of a sample, and of what is in it, that say nothing: an encoding that omits them is not tried."""
    found = []
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        name = f"{type(value).__name__}.{field.name}"
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if item == default:
            found.append(name)
        for inner in item if isinstance(item, tuple) else (item,):
            found += defaulted(inner) if isinstance(inner, msgspec.Struct) else []
    return found
