"""One fixed value of every type that stands in a log, with every field set to something."""

from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from leasehold.events import event_types, inputs
from leasehold.events.event_types import Event
from leasehold.events.identities import Principal, RequestKey
from leasehold.events.inputs import Input, Observation, Request
from leasehold.events.old_events import LeaseGrantedV1, OldEvent
from leasehold.events.record import Record, Step
from leasehold.projections.rows import (
    AnswerState,
    DeviceState,
    Fading,
    Head,
    HostState,
    LeaseState,
    OrderState,
    PrincipalState,
    RecentRefusal,
    SourceState,
)
from leasehold.projections.snapshots import Snapshot
from tests.golden import domains, hostdevs, nodedevs, schedules
from tests.golden.words import DESCRIPTION, DEVICE, FOLDER, HOLDER, HOST, KEY, NS, PRINCIPAL, REF, REFUSAL, REQUEST, USB

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
    event_types.LedgerRestored(writer="restore-1", era=3, through=41, reason="the store was wiped", until_ns=NS + 30),
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
    LeaseGrantedV1(
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
_RECORD_OF_NODE_DEVICES: Final = msgspec.structs.replace(
    OLD_RECORD,
    rules_version=3,
    steps=(
        Step(nodedevs.OBSERVED, nodedevs.EVENTS),
        *(Step(inputs.Asked(PRINCIPAL, request), (nodedevs.EVENTS[-1],)) for request in nodedevs.REQUESTS),
    ),
)
_RECORD_OF_DOMAINS: Final = msgspec.structs.replace(
    OLD_RECORD,
    rules_version=3,
    steps=(
        Step(
            inputs.Observed(host=HOST, agent="poller", run=NS, counter=5, observations=domains.OBSERVATIONS),
            domains.EVENTS,
        ),
        *(Step(given, domains.GROWN[Event]) for given in domains.GROWN[Input]),
    ),
)
_RECORD_OF_HOST_DEVICES: Final = msgspec.structs.replace(
    OLD_RECORD,
    rules_version=4,
    steps=(
        Step(
            inputs.Observed(host=HOST, agent="binder", run=NS, counter=5, observations=hostdevs.OBSERVATIONS),
            hostdevs.EVENTS,
        ),
        *(Step(given, hostdevs.GROWN[Event]) for given in hostdevs.GROWN[Input]),
        *(Step(inputs.Asked(PRINCIPAL, request), hostdevs.EVENTS[4:5]) for request in hostdevs.REQUESTS),
    ),
)
_RECORD_OF_SCHEDULES: Final = msgspec.structs.replace(
    OLD_RECORD,
    rules_version=5,
    steps=(
        Step(inputs.Tick("alloc-a"), schedules.EVENTS),
        *(Step(given, schedules.GROWN[Event]) for given in schedules.GROWN[Input]),
        *(Step(inputs.Asked(PRINCIPAL, request), schedules.EVENTS[-1:]) for request in schedules.REQUESTS),
    ),
)
_KEY_OF_REQUEST: Final = RequestKey(f"{PRINCIPAL}/{REQUEST}")
_ORDERED: Final = RequestKey(f"{PRINCIPAL}/ordered")
_REFUSED: Final = RequestKey(f"{PRINCIPAL}/refused")
_SNAPSHOT: Final = Snapshot(
    fold_version=5,
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
        looked_rank_ns=NS + 100,
        looked_queued=1_600,
        unlooked_since_ns=NS + 20,
    ),
    hosts=[
        (
            HOST,
            HostState(
                mode="watched",
                sources={
                    "watcher": SourceState(
                        run=NS,
                        counter=9,
                        complete=True,
                        stale="it was stopped",
                        wants_report=True,
                        gap=8,
                        blind="it does not answer",
                    )
                },
                device_count=1,
                dead="declared dead by operator: it burnt",
                managed_since=256,
                marks=schedules.MARKS,
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
                flaps=2,
                described_position=690,
                binding=hostdevs.BINDING,
                quarantine=hostdevs.QUARANTINE,
                drift=hostdevs.DRIFT,
                differing=hostdevs.DIFFERING,
                marks=schedules.MARKS,
                sharers=(512,),
                charged=("", "fast"),
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
                bond=domains.BOND,
                domain_seen=True,
                gone_since_ns=NS - 90,
                handover=hostdevs.HANDOVER,
                end_reason="it does not bind",
                is_forced_off=True,
                tenant=Principal("the-tenant"),
                mode="shared",
                tolerates=("slow",),
                reserved_for=256,
                successor=1_024,
                renewed_position=600,
                transferred_position=700,
                charges=schedules.CHARGES,
                search=schedules.SEARCH,
            ),
        )
    ],
    answers=[
        (
            _ORDERED,
            AnswerState(
                body_hash="2" * 32,
                verb="create_device",
                position=1_280,
                issued_at_ns=NS - 9,
                device=nodedevs.VPORT,
                order=1_280,
                state="timed_out",
                reason="nothing was heard of it in time",
            ),
        ),
        (
            _KEY_OF_REQUEST,
            AnswerState(
                body_hash="0" * 32,
                verb="lease",
                position=512,
                issued_at_ns=NS - 9,
                lease=512,
                device=DEVICE,
                leases=(512, 768),
                queued=1_536,
            ),
        ),
        (_REFUSED, AnswerState(body_hash="1" * 32, verb="lease", position=1_024, issued_at_ns=NS, refusal=REFUSAL)),
    ],
    principals=[(PRINCIPAL, PrincipalState(first=4, next=6, horizon_ns=NS - 20))],
    fading=[((PRINCIPAL, 4), Fading(_KEY_OF_REQUEST, NS + 90)), ((PRINCIPAL, 5), Fading(_REFUSED, NS + 91))],
    refusals=[(1_024, RecentRefusal("scheduler-1\nlease", REFUSAL, "lease", (DEVICE,), NS, 3))],
    queue=[schedules.QUEUE],
    stirred=[schedules.STIRRED],
    classes=[schedules.CLASS],
    quotas=[schedules.QUOTA],
    orders=[
        (
            1_280,
            OrderState(
                host=HOST,
                agent="creator",
                what=nodedevs.ORDERS[0],
                request=_ORDERED,
                ordered_at_ns=NS - 9,
                deadline_ns=NS - 1,
                state="timed_out",
                device=nodedevs.VPORT,
                reason="nothing was heard of it in time",
            ),
        )
    ],
    domains=[domains.ROW],
)


def _tag(value: Any) -> str:
    return str(value.__struct_config__.tag)


UNIONS: Final[dict[Any, tuple[Any, ...]]] = {
    Request: (*_REQUESTS, *nodedevs.REQUESTS[:2], *domains.REQUESTS, *hostdevs.REQUESTS, *schedules.REQUESTS),
    Observation: (*_OBSERVATIONS, *nodedevs.NEW_OBSERVATIONS, *domains.OBSERVATIONS, *hostdevs.OBSERVATIONS),
    Input: _INPUTS,
    Event: (*_EVENTS, *nodedevs.NEW_EVENTS, *domains.EVENTS, *hostdevs.EVENTS, *schedules.EVENTS),
    OldEvent: _OLD_EVENTS,
}
"""Samples of all members of the unions that stand in a log."""
PARTS: Final[dict[tuple[str, Any], tuple[Any, ...]]] = {
    part: (*values, *hostdevs.PARTS.get(part, ())) for part, values in nodedevs.PARTS.items()
}
"""The same of unions that stand within others."""
SAMPLES: Final[dict[str, tuple[Any, Any]]] = {
    **{_tag(value): (value, union) for union, values in UNIONS.items() for value in values},
    "decider_starts.v1+clock_age_ms": (inputs.DeciderStarts("alloc-a", "start", 1_500), Input),
    **{f"{_tag(value)}+node_devices": (value, union) for union, values in nodedevs.GROWN.items() for value in values},
    **{f"{_tag(value)}+domain": (value, union) for union, values in domains.GROWN.items() for value in values},
    **{f"{kind}.{_tag(value)}": (value, union) for (kind, union), values in PARTS.items() for value in values},
    **{f"{_tag(value)}+host_devices": (value, union) for union, values in hostdevs.GROWN.items() for value in values},
    **{
        f"{kind}.{_tag(value)}+host_devices": (value, union)
        for (kind, union), values in hostdevs.PARTS_GROWN.items()
        for value in values
    },
    "lease.v1+shared": (schedules.SHARED, Request),
    **{f"{_tag(value)}+scheduling": (value, union) for union, values in schedules.GROWN.items() for value in values},
    "record.v1+rules_3": (_RECORD, Record),
    "record.v1+node_devices": (_RECORD_OF_NODE_DEVICES, Record),
    "record.v1+domains": (_RECORD_OF_DOMAINS, Record),
    "record.v1+host_devices": (_RECORD_OF_HOST_DEVICES, Record),
    "record.v1+scheduling": (_RECORD_OF_SCHEDULES, Record),
    "snapshot.v5": (_SNAPSHOT, Snapshot),
}
"""Name of the file -> the value and the type that it is read as. Behind a plus: what came later."""
ONLY_READ: Final = frozenset({"record.v1", "snapshot.v1", "snapshot.v2", "snapshot.v3", "snapshot.v4"})
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
