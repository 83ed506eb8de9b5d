"""A refusal: a request decided against, as a value. It says which rule stood in the way, and what helps."""

from enum import StrEnum

import msgspec

from leasehold.events.scheduling import Search


class RefusalCode(StrEnum):
    """Stable for programs; a code is never given another meaning."""

    DEVICE_UNKNOWN = "device_unknown"
    DEVICE_AMBIGUOUS = "device_ambiguous"
    DEVICE_HELD = "device_held"
    """It, or a device that cannot be owned apart from it, is leased to another or still being given back."""
    DEVICE_PROTECTED = "device_protected"
    DEVICE_UNLEASABLE = "device_unleasable"
    """A PCI bridge, or a root hub without a physical parent: nothing that can be handed out."""
    DEVICE_MISSING = "device_missing"
    DEVICE_IN_USE = "device_in_use"
    """Something uses it without a lease."""
    HOST_STALE = "host_stale"
    LEASE_UNKNOWN = "lease_unknown"
    LEASE_ENDED = "lease_ended"
    TOKEN_STALE = "token_stale"
    NOT_YOURS = "not_yours"
    NOTHING_TO_CONFIRM = "nothing_to_confirm"
    HOST_FORBIDS = "host_forbids"
    """No agent there makes or destroys devices."""
    PARENT_UNSUITABLE = "parent_unsuitable"
    """It cannot have such a device, or has no room for another."""
    DEVICE_EXISTS = "device_exists"
    NOT_DESTROYABLE = "not_destroyable"
    ORDERS_TOO_MANY = "orders_too_many"
    AGENT_UNKNOWN = "agent_unknown"
    AGENT_ALIVE = "agent_alive"
    """It is heard: only what will not come back can be retired."""
    DEVICE_QUARANTINED = "device_quarantined"
    """Its host could not bring it into order."""
    DEVICE_NOT_DETACHED = "device_not_detached"
    """It is on a host driver, and the lease is to be unmanaged."""
    HOST_NOT_MANAGED = "host_not_managed"
    """No binder acts there."""
    HOST_ALIVE = "host_alive"
    """It is heard, so it is not dead."""
    DEVICES_TOO_MANY = "devices_too_many"
    """More than one lease may have."""
    DOMAIN_UNKNOWN = "domain_unknown"
    DOMAIN_AMBIGUOUS = "domain_ambiguous"
    NOTHING_TO_PREPARE = "nothing_to_prepare"
    NOTHING_TO_REATTACH = "nothing_to_reattach"
    LEASE_OF_BOTH_BUSES = "lease_of_both_buses"
    SELECTOR_INVALID = "selector_invalid"
    """The message says where, and what is wrong."""
    CLASS_UNKNOWN = "class_unknown"
    CLASSES_TOO_MANY = "classes_too_many"
    CLASS_IN_USE = "class_in_use"
    """A quota or a waiting request names it."""
    NO_MATCH = "no_match"
    """There is no such device, or not so many, whoever has them."""
    NOT_ENOUGH = "not_enough"
    """There are, but too few of them can be had now."""
    CONSTRAINT_UNMET = "constraint_unmet"
    """Enough can be had, but not so that they go together."""
    SEARCH_CUT_OFF = "search_cut_off"
    """The search was given up at its bound: there may be a solution. Say more narrowly what is needed."""
    QUOTA_EXCEEDED = "quota_exceeded"
    QUEUE_FULL = "queue_full"
    WAITED_IN_VAIN = "waited_in_vain"
    """It was waited for as long as was said."""
    WITHDRAWN = "withdrawn"
    QUEUED_UNKNOWN = "queued_unknown"
    DEVICE_CORDONED = "device_cordoned"
    DEVICE_TAINTED = "device_tainted"
    DEVICE_KEPT = "device_kept"
    """It is kept for a request that waits, and comes first."""
    DEVICE_UNCLEAN = "device_unclean"
    """Nobody has confirmed yet that it was cleaned up behind another tenant."""
    DEVICE_SHARED = "device_shared"
    """Others share it."""
    NOT_SHAREABLE = "not_shareable"
    NOT_TRANSFERABLE = "not_transferable"
    """It would go to another tenant without being cleaned up, or it is reserved, shared or only looked at."""
    PRINCIPAL_UNKNOWN = "principal_unknown"
    SOURCE_STILL_HAS = "source_still_has"
    """The domain has not let go of what it is to hand over."""
    LEASE_RESERVED = "lease_reserved"
    """It counts only after the switch."""
    NOT_RESERVED = "not_reserved"
    HOST_UNKNOWN = "host_unknown"
    NOT_CORDONED = "not_cordoned"
    TAINT_UNKNOWN = "taint_unknown"
    TAINTS_TOO_MANY = "taints_too_many"
    NOTHING_TO_CLEAN = "nothing_to_clean"
    NOTHING_TO_HEAL = "nothing_to_heal"
    QUOTA_UNKNOWN = "quota_unknown"
    QUOTAS_TOO_MANY = "quotas_too_many"
    REQUEST_ID_REUSED = "request_id_reused"
    REQUEST_TOO_OLD = "request_too_old"
    REQUEST_FROM_FUTURE = "request_from_future"


class Blocker(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One thing that stood in the way."""

    device: str
    """The device asked for."""
    rule: str
    """Which rule (`leasehold.projections.conflicts` has them all, with their texts)."""
    why: str
    because_of: str = ""
    """The device that is in the way, where it is another one."""
    lease: int = 0
    holder: str = ""
    since_ns: int = 0
    since_position: int = 0
    help: str = ""


class Refusal(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Why not."""

    code: RefusalCode
    message: str
    blockers: tuple[Blocker, ...] = ()
    help: str = ""
    search: Search | None = None
    """How devices were looked for, where none were named."""
