"""Samples of what came with domains: what pollers say, leases for domains, agents that are retired."""

from typing import Any, Final

from leasehold.events import event_types, inputs
from leasehold.events.domains import DomainDescription, Use
from leasehold.events.event_types import DomainBond, Event
from leasehold.events.identities import DomainId, DomainKey, Principal, split_device_id
from leasehold.events.inputs import Input, Observation, Request
from leasehold.projections.rows import DomainState
from tests.golden.words import DEVICE, HOLDER, HOST, KEY, NS, PRINCIPAL, REF, REQUEST, USB

_UUID: Final = "c0ffee00-0000-4000-8000-000000000001"
_DOMAIN: Final = DomainKey(f"xen/{_UUID}")
_DESCRIPTION: Final = DomainDescription(
    key=_DOMAIN,
    name="web “1”",
    domid=7,
    state="running",
    memory_bytes=512 * 2**20,
    max_memory_bytes=1024 * 2**20,
    vcpus=2,
    kind="hvm",
)
_USED: Final = "usb-id/0529:0001"
_KEYS: Final = (KEY, split_device_id(USB)[1])
BOND: Final = DomainBond(uuid=_UUID, gone_ms=90_000, keep=True)
_LEASE: Final = inputs.LeaseRequest(
    request_id=REQUEST,
    issued_at_ns=NS,
    devices=(KEY, "usb_1_1_4"),
    holder=HOLDER,
    ttl_ms=60_000,
    host=HOST,
    force=True,
    domain=_UUID,
    gone_ms=90_000,
    keep=True,
)
REQUESTS: Final[tuple[Request, ...]] = (
    inputs.RetireAgentRequest(
        request_id=REQUEST, issued_at_ns=NS, host=HOST, agent="poller", reason="the machine has no Xen any more"
    ),
)
OBSERVATIONS: Final[tuple[Observation, ...]] = (
    inputs.DomainSeen(_DESCRIPTION),
    inputs.DomainGone(_DOMAIN),
    inputs.DeviceUsed(_DOMAIN, _USED, "attached"),
    inputs.DeviceUnused(_DOMAIN, _USED, "configured"),
    inputs.SourceBlind("xend on localhost:8005 does not answer"),
    inputs.SourceSees(),
)
EVENTS: Final[tuple[Event, ...]] = (
    event_types.SourceWentBlind(HOST, "poller", "xend on localhost:8005 does not answer"),
    event_types.SourceSeesAgain(HOST, "poller"),
    event_types.AgentRetired(request=REF, host=HOST, agent="poller", reason="the machine has no Xen any more"),
    event_types.DomainAppeared(HOST, "poller", _DESCRIPTION),
    event_types.DomainChanged(HOST, _DESCRIPTION, ("name", "state"), {"name": "web", "state": "paused"}),
    event_types.DomainStarted(HOST, _DESCRIPTION, 6, ("domid",)),
    event_types.DomainVanished(HOST, _DOMAIN, "web", 7),
    event_types.AttachmentSeen(HOST, _DOMAIN, _USED, "attached", _KEYS, "web"),
    event_types.AttachmentGone(HOST, _DOMAIN, _USED, "attached", _KEYS, "web"),
    event_types.LeaseOutlived(lease=512, domain=_UUID, gone_since_ns=NS - 90),
)
GROWN: Final[dict[Any, tuple[Any, ...]]] = {
    Request: (_LEASE,),
    Input: (inputs.Asked(PRINCIPAL, _LEASE),),
    Event: (
        event_types.LeaseGranted(
            request=REF,
            tenant=Principal("the-tenant"),
            holder=HOLDER,
            devices=(DEVICE, USB),
            ttl_ms=60_000,
            expires_at_ns=NS + 60,
            forced=True,
            bond=BOND,
        ),
    ),
}
"""Types that were there before, with the fields that came to them."""
ROW: Final = (
    DomainId(f"{HOST}/{_DOMAIN}"),
    DomainState(
        host=HOST,
        agent="poller",
        description=_DESCRIPTION,
        uses=(Use(_USED, "attached"), Use(_USED, "configured")),
        used_since=(700, 701),
        since_position=768,
        since_ns=NS,
    ),
)
