"""Samples of what came with leases for schedulers: what is asked for without naming it, what waits, what operators
say.
"""

from typing import Any, Final

import msgspec

from leasehold.events import event_types, inputs, schedule_events, schedule_inputs
from leasehold.events.event_types import Event
from leasehold.events.hostdev_events import DeviceQuarantined
from leasehold.events.identities import Holder, Principal, RequestKey
from leasehold.events.inputs import Input, Request
from leasehold.events.refusals import Refusal, RefusalCode
from leasehold.events.scheduling import (
    Considered,
    Constraint,
    Excluded,
    Need,
    Option,
    Policy,
    Search,
    Taint,
)
from leasehold.projections.rows import ClassState, Mark, Marks, QueuedState, QuotaState
from tests.golden import hostdevs
from tests.golden.words import DEVICE, HOLDER, HOST, KEY, NS, PRINCIPAL, REF, REFUSAL, REQUEST, USB

_replace: Final = msgspec.structs.replace
_TENANT: Final = Principal("the-tenant")
_OTHER: Final = Principal("scheduler-2")
_SELECT: Final = 'device.vendor == "8086" && device.pci.class == "0200"'
_NEEDS: Final = (
    Need(name="nic", select=_SELECT, device_class="fast", count=2, every=True),
    Need(name="disk", first_of=(Option(select=_SELECT, device_class="fast", count=2, every=True),)),
)
_CONSTRAINTS: Final = (Constraint(kind="same", attribute="numa_node", needs=("nic",)),)
_SEARCH: Final = Search(
    steps=3,
    needs=(
        Considered(
            need="nic",
            devices=(DEVICE,),
            option=2,
            looked=5,
            excluded=(
                Excluded(rule="same_device", count=2, example=USB, why="it is leased to vm:web 1 (L512)", help="wait"),
            ),
        ),
    ),
    is_cut_off=True,
)
_WHY: Final = Refusal(
    code=RefusalCode.NOT_ENOUGH,
    message="need nic: 1 of 2 devices can be had",
    blockers=REFUSAL.blockers,
    help="wait for it",
    search=_SEARCH,
)
_LEASE: Final = _replace(
    hostdevs.GROWN[Request][0],
    devices=(),
    needs=_NEEDS,
    constraints=_CONSTRAINTS,
    tolerates=("slow", "drain=fans"),
    wait_ms=600_000,
    priority=-2,
)
SHARED: Final = inputs.LeaseRequest(
    request_id=REQUEST, issued_at_ns=NS, devices=(KEY,), holder=HOLDER, ttl_ms=60_000, mode="shared"
)
"""In a mode that goes with few other words."""
_ASKED: Final[dict[str, Any]] = {"request_id": REQUEST, "issued_at_ns": NS}
_OF_LEASE: Final[dict[str, Any]] = {**_ASKED, "lease": 512, "token": 768}
_OF_DEVICE: Final[dict[str, Any]] = {**_ASKED, "host": HOST, "device": KEY}
REQUESTS: Final[tuple[Request, ...]] = (
    schedule_inputs.WithdrawRequest(**_ASKED, queued=1_536, reason="it is not needed any more"),
    schedule_inputs.RenewManyRequest(**_ASKED, leases=((512, 768), (1_024, 1_024))),
    schedule_inputs.TransferRequest(**_OF_LEASE, holder=HOLDER, principal=_OTHER),
    schedule_inputs.ReserveRequest(
        **_OF_LEASE,
        ttl_ms=60_000,
        needs=_NEEDS,
        constraints=_CONSTRAINTS,
        host=HOST,
        tolerates=("slow",),
        driver="pciback",
    ),
    schedule_inputs.SwitchRequest(**_OF_LEASE),
    schedule_inputs.SetClassRequest(**_ASKED, name="fast", select=_SELECT),
    schedule_inputs.RemoveClassRequest(**_ASKED, name="fast"),
    schedule_inputs.SetQuotaRequest(**_ASKED, tenant=_TENANT, devices_max=4, device_class="fast"),
    schedule_inputs.CordonRequest(**_OF_DEVICE, reason="the fan is loud"),
    schedule_inputs.UncordonRequest(**_OF_DEVICE),
    schedule_inputs.TaintRequest(
        **_OF_DEVICE, name="drain", reason="new fans", value="fans", effect="evict", notice_ms=90_000
    ),
    schedule_inputs.UntaintRequest(**_OF_DEVICE, name="drain"),
    schedule_inputs.SetPolicyRequest(**_OF_DEVICE, share_max=4),
    schedule_inputs.ConfirmCleanRequest(**_OF_DEVICE, reason="wiped"),
    schedule_inputs.HealRequest(**_OF_DEVICE, reason="a new cable"),
)
_TAINT: Final = Taint(name="drain", value="fans", effect="evict", reason="new fans", evicts_at_ns=NS + 90)
_POLICY: Final = Policy(share_max=4, clean=True)
_BUCKETS: Final = ("class:fast", "pci_class:0200")
EVENTS: Final[tuple[Event, ...]] = (
    schedule_events.RequestQueued(
        request=REF,
        tenant=_TENANT,
        asked=_LEASE,
        rank_ns=NS + 120,
        until_ns=NS + 600,
        keeps=(DEVICE,),
        buckets=_BUCKETS,
        why=_WHY,
    ),
    schedule_events.QueuedMoved(queued=1_536, keeps=(USB,), buckets=_BUCKETS, why=_WHY),
    schedule_events.QueueLooked(through=1_500, rank_ns=NS + 120, queued=1_536),
    schedule_events.RequestWithdrawn(request=REF, queued=1_536, reason="it is not needed any more"),
    schedule_events.WaitingEnded(queued=1_536, why=_WHY),
    schedule_events.LeasesRenewed(request=REF, leases=(512, 1_024)),
    schedule_events.LeaseTransferred(
        request=REF,
        lease=512,
        principal=_OTHER,
        tenant=_TENANT,
        holder=Holder("job-7"),
        charges=(("", "fast"), ()),
    ),
    schedule_events.LeaseSwitched(request=REF, lease=1_024, source=512),
    schedule_events.ClassSet(request=REF, name="fast", select=_SELECT),
    schedule_events.ClassRemoved(request=REF, name="fast"),
    schedule_events.QuotaSet(request=REF, tenant=_TENANT, device_class="fast", devices_max=4, charged=(DEVICE,)),
    schedule_events.Cordoned(request=REF, host=HOST, key=KEY, reason="the fan is loud"),
    schedule_events.Uncordoned(request=REF, host=HOST, key=KEY),
    schedule_events.Tainted(request=REF, host=HOST, key=KEY, taint=_TAINT),
    schedule_events.Untainted(request=REF, host=HOST, key=KEY, name="drain"),
    schedule_events.PolicySet(request=REF, device=DEVICE, policy=_POLICY),
    schedule_events.DeviceCleaned(request=REF, device=DEVICE, reason="wiped"),
    schedule_events.DeviceHealed(request=REF, device=DEVICE, reason="a new cable"),
)
GROWN: Final[dict[Any, tuple[Any, ...]]] = {
    Request: (_LEASE,),
    Input: (inputs.Asked(PRINCIPAL, _LEASE),),
    Event: (
        event_types.LeaseGranted(
            request=REF,
            tenant=_TENANT,
            holder=HOLDER,
            devices=(DEVICE, USB),
            ttl_ms=60_000,
            expires_at_ns=NS + 60,
            forced=True,
            bond=hostdevs.GROWN[Event][0].bond,
            handover=hostdevs.HANDOVER,
            mode="shared",
            tolerates=("slow",),
            charges=(("", "fast"), ()),
            queued=1_536,
            reserved_for=256,
            search=_SEARCH,
        ),
        event_types.RequestRefused(request=REF, verb="lease", about=(DEVICE,), refusal=_WHY, holder=HOLDER),
        DeviceQuarantined(
            host=HOST, key=KEY, lease=512, reason="it failed 3 times", help="heal it", evidence=(700, 800, 900)
        ),
    ),
}
"""Types that were there before, with the fields that came to them."""

# --- rows ---------------------------------------------------------------------------------------------------------

_CORDON: Final = Mark(request=REF, position=1_700, reason="the fan is loud")
MARKS: Final = Marks(
    cordon=_CORDON,
    taints=(Mark(request=REF, position=1_701, reason="new fans", taint=_TAINT),),
    policy=_POLICY,
    unclean_tenant="the-tenant",
    unclean_position=1_702,
    failures=((700, NS), (800, NS)),
)
SEARCH: Final = _SEARCH
CHARGES: Final = (("", "fast"), ())
QUEUE: Final = (
    1_536,
    QueuedState(
        principal=PRINCIPAL,
        tenant=_TENANT,
        request=RequestKey(f"{PRINCIPAL}/waits"),
        body_hash="3" * 32,
        asked=_LEASE,
        rank_ns=NS + 120,
        queued_at_ns=NS,
        until_ns=NS + 600,
        keeps=(DEVICE,),
        buckets=_BUCKETS,
        why=_WHY,
    ),
)
STIRRED: Final = (1_500, ("class:fast", "tenant:the-tenant"))
CLASS: Final = ("fast", ClassState(select=_SELECT, position=1_400, by="operator"))
QUOTA: Final = ((_TENANT, "fast"), QuotaState(devices_max=4, devices=1, position=1_401, by="operator"))
