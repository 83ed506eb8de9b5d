"""What is shown of classes, quotas, the queue, and of why a request gets what it gets. See `views` for all others."""

import msgspec

from leasehold.events.identities import DeviceId
from leasehold.events.refusals import Refusal
from leasehold.events.scheduling import Search


class ClassView(msgspec.Struct, frozen=True, kw_only=True):
    """A device class, and how its devices stand: each is in one of `free`, `leased`, `kept` and `out`."""

    name: str
    select: str
    since_position: int
    devices: int = 0
    free: int = 0
    """Nothing stands in the way of a lease by somebody new."""
    leased: int = 0
    """Or shared, or still being given back."""
    kept: int = 0
    """Free, but kept for those who wait."""
    out: int = 0
    """All others: missing, in quarantine, cordoned, tainted, not clean, used without a lease, …"""
    queued: int = 0
    """How many waiting requests name it."""
    is_cut_off: bool = False
    """There are more devices than were looked at."""


class QuotaView(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a quota is used."""

    tenant: str
    device_class: str
    devices_max: int
    devices: int
    since_position: int


class QueuedView(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits."""

    queued: str
    """`Q4352`."""
    request_id: str
    principal: str
    tenant: str
    holder: str
    priority: int
    needs: str
    """What it needs, in one line."""
    since_ns: int
    until_ns: int
    place: int
    """Among all that wait, from 1."""
    ahead: int
    """How many of those before it could want the same."""
    kept: tuple[DeviceId, ...] = ()
    why: str = ""
    """Why not yet."""


class TaintView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operator said of a host or a device."""

    target: str
    """A host or a device id."""
    kind: str
    """`cordon` or `taint`."""
    name: str = ""
    value: str = ""
    effect: str = ""
    reason: str = ""
    by: str = ""
    evicts_at_ns: int = 0
    since_position: int = 0


class Broken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A living lease that would end, and who must act."""

    lease: str
    holder: str
    principal: str
    devices: tuple[DeviceId, ...]
    """Those of its devices that are concerned; all of its devices end with it."""
    domain: str = ""
    ends_at_ns: int = 0


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request, a lease or a device stands as it does."""

    of: str
    """`queued`, `granted`, `refused`, `device` or `class`."""
    text: str
    """In one sentence."""
    then: Search | None = None
    """How devices were searched for when it was decided."""
    now: Search | None = None
    """The same, if it were decided now."""
    refusal: Refusal | None = None
    """What stands, or stood, in the way."""
    order: tuple[str, ...] = ()
    """Why these and not others: the rules of the order in which devices are tried, as far as they mattered."""
